//! Texts that follow a grammar: before each token, the grammar says which ones may follow. The work is llguidance's.

mod error;
mod gbnf;
mod vocabulary;

use llguidance::{Matcher, api::TopLevelGrammar};
use serde_json::{Value, json};

pub use error::{GbnfError, GbnfFault, GrammarError};
pub use vocabulary::GrammarVocabulary;

/// A language that grammars are written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syntax {
    /// llama.cpp's, with the start rule `root`; without its `<token>` elements.
    Gbnf,
    /// llguidance's variant of Lark's.
    Lark,
    /// A JSON schema, which is a JSON text itself. Keywords that cannot be enforced are errors.
    JsonSchema,
}

/// The longest grammar, in bytes: with this much text the worst ones are refused in seconds.
const MAX_TEXT: usize = 256 << 10;

/// Stack for reading a grammar, in bytes: llguidance follows rules recursively. Only what is used of it takes memory.
const STACK: usize = 1 << 30;

/// Blanks between the parts of a JSON text: without a limit a model may write nothing else.
const JSON_BLANKS: &str = r" |\n[ \t]{0,20}";

/// A grammar, and the place in it that a text has reached. A clone goes its own way.
#[derive(Clone)]
pub struct Grammar {
    now: Matcher,
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammar").field("complete", &self.is_complete()).finish_non_exhaustive()
    }
}

impl Grammar {
    /// Reads a grammar, for the tokens of `vocabulary`.
    ///
    /// # Errors
    /// Faults of the text, with the line as far as it is known, and grammars that take too much work.
    pub fn new(vocabulary: &GrammarVocabulary, syntax: Syntax, text: &str) -> Result<Self, GrammarError> {
        if text.len() > MAX_TEXT {
            return Err(GrammarError::TooLong { bytes: text.len(), limit: MAX_TEXT });
        }
        let compile = || {
            let grammar = match syntax {
                Syntax::Gbnf => TopLevelGrammar::from_lark(gbnf::to_lark(text)?),
                Syntax::Lark => TopLevelGrammar::from_lark(text.to_owned()),
                Syntax::JsonSchema => TopLevelGrammar::from_json_schema(schema(text)?),
            };
            let mut now = vocabulary.matcher(grammar);
            // No tokens: this finds out whether the grammar is complete before anything was written.
            now.consume_tokens(&[]).map_err(|e| GrammarError::text(&e.to_string()))?;
            Ok(Grammar { now })
        };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, compile);
            let thread = thread.map_err(|e| GrammarError::Text(format!("no thread can be started for it: {e}")))?;
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// What the reader of the grammar wants its author to know.
    pub fn warnings(&mut self) -> Vec<String> {
        self.now.grammar_warnings()
    }

    /// Whether the text is complete and nothing can follow.
    pub(super) fn is_complete(&self) -> bool {
        self.now.is_stopped() && !self.now.is_error()
    }

    /// Whether the text may end here.
    pub(super) fn may_end(&mut self) -> bool {
        self.is_complete() || self.now.is_accepting().unwrap_or(false)
    }

    /// Sets the logits of all tokens that may not follow to minus infinity.
    pub(super) fn mask(&mut self, logits: &mut [f32]) -> Result<(), GrammarError> {
        let allowed = self.now.compute_mask_or_eos().map_err(|e| GrammarError::step(&e.to_string()))?;
        // A model may have more logits than its vocabulary has tokens.
        let known = allowed.len().min(logits.len());
        logits[known..].fill(f32::NEG_INFINITY);
        allowed.iter_unset_entries(|id| {
            if let Some(logit) = logits.get_mut(id) {
                *logit = f32::NEG_INFINITY;
            }
        });
        Ok(())
    }

    /// Goes on by a token that the mask allows.
    pub(super) fn accept(&mut self, token: u32) -> Result<(), GrammarError> {
        if self.is_complete() {
            return Ok(());
        }
        self.now.consume_token(token).map_err(|e| GrammarError::step(&e.to_string()))
    }
}

/// A JSON schema as llguidance wants it.
fn schema(text: &str) -> Result<Value, GrammarError> {
    let mut schema = match serde_json::from_str(text)? {
        Value::Bool(true) => json!({}),
        other => other,
    };
    if let Value::Object(schema) = &mut schema {
        schema.entry("x-guidance").or_insert_with(|| json!({ "whitespace_pattern": JSON_BLANKS }));
    }
    Ok(schema)
}
