//! A model's tokens, prepared for grammars.

use std::{collections::HashSet, sync::Arc};

use llguidance::{
    Matcher, ParserFactory,
    api::TopLevelGrammar,
    earley::SlicedBiasComputer,
    toktrie::{ApproximateTokEnv, INVALID_TOKEN, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie},
};

use super::GrammarError;
use crate::engine::Tokenizer;

/// Longer tokens are left out: toktrie holds 1024 bytes.
const MAX_TOKEN: usize = 1000;
/// What toktrie holds.
const MAX_NODES: usize = (1 << 22) - 2;
/// What toktrie holds.
const MAX_VOCAB: usize = (1 << 24) - 2;

/// A model's tokens as a tree of their bytes. Takes about two seconds to make for a vocabulary of 128 k tokens; serves
/// any number of grammars.
pub struct GrammarVocabulary {
    factory: ParserFactory,
}

impl GrammarVocabulary {
    /// Sorts the tokens of `tokenizer`.
    ///
    /// # Errors
    /// When there are more than can be sorted.
    pub fn new(tokenizer: &Tokenizer) -> Result<Self, GrammarError> {
        let fail = |why: String| GrammarError::Vocabulary(why);
        let vocab = tokenizer.vocab_size();
        if vocab > MAX_VOCAB {
            return Err(fail(format!("{vocab} tokens are too many")));
        }
        let ids = || 0..vocab as u32;
        let ends: Vec<u32> = ids().filter(|&id| tokenizer.is_end(id)).collect();
        let end_set: HashSet<u32> = ends.iter().copied().collect();
        let marker = [TokTrie::SPECIAL_TOKEN_MARKER];
        let words = ids().map(|id| {
            let bytes = tokenizer.token_bytes(id);
            match () {
                // Found by their name in a Lark grammar, and never by their bytes.
                () if tokenizer.is_control(id) || end_set.contains(&id) => {
                    let named = bytes.starts_with(b"<") && bytes.ends_with(b">") && bytes.len() <= MAX_TOKEN;
                    if named { [&marker, &*bytes].concat() } else { Vec::new() }
                }
                // The marker's byte is in no UTF-8 text, so no grammar misses these tokens.
                () if bytes.len() > MAX_TOKEN || bytes.starts_with(&marker) => Vec::new(),
                () => bytes,
            }
        });
        let words: Vec<Vec<u8>> = words.collect();
        let nodes = nodes(&words);
        if nodes > MAX_NODES {
            return Err(fail(format!("its tokens have {nodes} different beginnings, more than {MAX_NODES}")));
        }
        let end = ends.first().copied().unwrap_or(INVALID_TOKEN);
        let mut trie = TokTrie::from(&TokRxInfo::new(vocab as u32, end), &words);
        if !ends.is_empty() {
            trie = trie.with_eos_tokens(&ends);
        }
        // Any way to cut a text into tokens is allowed, not only the tokenizer's own: the model has the choice.
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let slices = SlicedBiasComputer::general_slices();
        let mut factory =
            ParserFactory::new(&env, InferenceCapabilities::default(), &slices).map_err(|e| fail(e.to_string()))?;
        factory.quiet().limits_mut().verbose_errors = false;
        Ok(GrammarVocabulary { factory })
    }

    pub(super) fn matcher(&self, grammar: TopLevelGrammar) -> Matcher {
        Matcher::new(self.factory.create_parser(grammar))
    }
}

/// The nodes of a tree of `words`, the root included: each of a word's bytes is one, unless the words share a beginning.
/// Equal words have a last node each.
fn nodes(words: &[Vec<u8>]) -> usize {
    let mut sorted: Vec<&[u8]> = words.iter().map(Vec::as_slice).filter(|word| !word.is_empty()).collect();
    sorted.sort_unstable();
    let mut before: &[u8] = &[];
    let own = sorted.into_iter().map(|word| {
        let shared = word.iter().zip(before).take_while(|(a, b)| a == b).count();
        before = word;
        word.len() - shared.min(word.len() - 1)
    });
    1 + own.sum::<usize>()
}
