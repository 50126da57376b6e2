//! Conversations: which template a model has, how a conversation becomes tokens, and what stays of it when the context is
//! full.
//!
//! # User text and special tokens
//! A template writes the special tokens of a turn (`<|im_start|>`) as text, so its output is encoded with special tokens;
//! what users and models say must not become one. So each control token's text inside a message gets a mark after its first
//! character, a private-use character that neither the conversation nor the template has; the template is rendered; special tokens are
//! matched in what it wrote; and the marks are dropped before the text between them is encoded
//! ([`Tokenizer::encode_marked`]). A message that ends like the beginning of a control token's text, or begins like the
//! end of one, is marked there, too.
//!
//! Many files have the signs of turns as user-defined tokens, which any text becomes. Those that the template writes around
//! messages, or only names, are marked like control tokens. What it only names is left alone in answers: a template may
//! look for it there, to remove a model's reasoning (`</think>`).
//!
//! Against encoding template text and messages one by one, this has no seams: words that a message and its template share
//! are merged as in the whole text, as a model was trained on it, and a template may trim, cut or change messages. What it
//! does not stop is a template that itself cuts something out of the middle of a message and so puts the halves of a control
//! token together.

mod error;
mod families;
mod template;

pub use error::{ChatError, ChatFault};
pub use template::{Message, Role, Template};

use std::{collections::HashSet, ops::ControlFlow};

use super::{Engine, EngineError, Event, GenerateOptions, Generated, ModelFile, Stop, Tokenizer};

const KEY: &str = "tokenizer.chat_template";

/// Where a chat template is from.
#[derive(Clone, Debug, Default)]
pub enum TemplateSource {
    /// The model's file; if it has none, the model's family, as far as the vocabulary tells it.
    #[default]
    Model,
    /// A family of models, by name.
    Family(String),
    /// Text that the caller has.
    Text {
        /// What it is called in messages.
        name: String,
        /// Jinja.
        source: String,
    },
}

/// The template of a model's conversations.
///
/// # Errors
/// When there is none, or it is not Jinja.
pub fn template(file: &ModelFile, source: &TemplateSource) -> Result<Template, EngineError> {
    let (gguf, tokenizer) = (file.gguf(), file.tokenizer());
    let metadata = gguf.metadata();
    let text = |id: Option<u32>| id.and_then(|id| tokenizer.token_text(id));
    let tokens = [
        ("bos_token", text(tokenizer.bos())),
        ("eos_token", text(tokenizer.eos())),
        ("unk_token", text(metadata.u32("tokenizer.ggml.unknown_token_id")?)),
        ("pad_token", text(metadata.u32("tokenizer.ggml.padding_token_id")?)),
    ];
    let tokens = tokens.into_iter().filter_map(|(name, text)| Some((name, text?.to_owned()))).collect();
    let family = |family: &families::Family, tokens| {
        Template::new("--chat-template", family.name, family.source, tokens).map(|t| t.of_file(gguf.name()))
    };
    Ok(match source {
        TemplateSource::Text { name, source } => Template::new(gguf.name(), name, source, tokens)?,
        TemplateSource::Family(name) => family(families::named(name)?, tokens)?,
        TemplateSource::Model => match metadata.str(KEY)? {
            Some(source) => Template::new(gguf.name(), KEY, source, tokens)?,
            None => {
                let none = || ChatError {
                    file: gguf.name().to_owned(),
                    fault: ChatFault::NoTemplate { names: families::names() },
                };
                let found = families::recognize(gguf, tokenizer)?.ok_or_else(none)?;
                family(found, tokens)?.guessed(found.is_guess())
            }
        },
    })
}

/// A conversation with a model.
///
/// It keeps what was said as text, and an [`Engine`] keeps what it has computed of it: the next answer costs what is new
/// since the last one.
#[derive(Debug)]
pub struct Chat {
    template: Template,
    system: Option<String>,
    /// The template takes no system message: it is put in front of the user's first.
    merges_system: bool,
    /// What the template writes around messages.
    written: String,
    messages: Vec<Message>,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Text, tokens, and what they cost.
    pub generated: Generated,
    /// Messages that were dropped from the conversation before, because the context was full.
    pub dropped: usize,
}

impl Chat {
    /// A conversation that begins with the instructions `system`, or with nothing.
    ///
    /// # Errors
    /// A template that does not work for the simplest conversation.
    pub fn new(template: Template, system: Option<String>) -> Result<Self, ChatError> {
        template.render(&[Message::new(Role::User, "Hello")], true)?;
        let written = written_around(&template);
        let mut chat = Chat { template, system: None, merges_system: false, written, messages: Vec::new() };
        chat.set_system(system)?;
        Ok(chat)
    }

    /// Changes the instructions, for the whole conversation.
    ///
    /// # Errors
    /// A template that does not work.
    pub fn set_system(&mut self, system: Option<String>) -> Result<(), ChatError> {
        const PROBE: &str = "Instructions";
        let probe = [Message::new(Role::System, PROBE), Message::new(Role::User, "Hello")];
        self.merges_system = system.is_some()
            && match self.template.render(&probe, true) {
                Ok(text) => !text.contains(PROBE),
                Err(ChatError { fault: ChatFault::Refused { .. }, .. }) => true,
                Err(e) => return Err(e),
            };
        self.system = system;
        Ok(())
    }

    /// The instructions.
    pub fn system(&self) -> Option<&str> {
        self.system.as_deref()
    }

    /// Whether the template takes no system message, so that it is put in front of the user's first one.
    pub fn merges_system(&self) -> bool {
        self.merges_system
    }

    /// The template.
    pub fn template(&self) -> &Template {
        &self.template
    }

    /// What was said, without the instructions.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Forgets what was said, but not the instructions.
    pub fn clear(&mut self) {
        self.messages.clear();
    }

    /// Says `text` to the model and takes its answer into the conversation. `told` is as in [`Engine::generate`].
    ///
    /// Where the conversation and a quarter of the context (or the answer's `max_new`, if that is less) do not fit into the
    /// context together, the oldest turns are dropped until half of it is free.
    ///
    /// After an error, or when it was ended before the first piece of an answer, the conversation is as it was before.
    ///
    /// # Errors
    /// A template that does not work, a text that does not fit into the context, and those of [`Engine::generate`].
    pub fn say(
        &mut self,
        engine: &mut Engine,
        text: &str,
        options: &GenerateOptions,
        told: impl FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Answer, EngineError> {
        let before = self.messages.clone();
        self.messages.push(Message::new(Role::User, text));
        let answer = self.answer(engine, options, told);
        match &answer {
            Ok(Answer { generated, .. }) if generated.stop != Stop::Interrupted || !generated.text.is_empty() => {
                self.messages.push(Message::new(Role::Assistant, generated.text.as_str()));
            }
            _ => self.messages = before,
        }
        answer
    }

    fn answer(
        &mut self,
        engine: &mut Engine,
        options: &GenerateOptions,
        told: impl FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Answer, EngineError> {
        let context = engine.config().dims.context;
        let wanted = options.max_new.unwrap_or(usize::MAX);
        let mut tokens = self.tokens(engine.tokenizer())?;
        let mut dropped = 0;
        if tokens.len() + wanted.min(context / 4) > context {
            while tokens.len() > context / 2 && self.drop_turn(&mut dropped) {
                tokens = self.tokens(engine.tokenizer())?;
            }
        }
        let room = context.saturating_sub(tokens.len()).max(1);
        let options = GenerateOptions { max_new: Some(wanted.min(room)), ..options.clone() };
        Ok(Answer { generated: engine.generate(&tokens, &options, told)?, dropped })
    }

    /// Drops the first message and its answer. Not the last message, which waits for an answer.
    fn drop_turn(&mut self, dropped: &mut usize) -> bool {
        let next = self.messages.iter().skip(1).position(|m| m.role == Role::User).map(|at| at + 1);
        if let Some(next) = next {
            self.messages.drain(..next);
            *dropped += next;
        }
        next.is_some()
    }

    /// The conversation up to the next answer, as the model is given it.
    ///
    /// # Errors
    /// A template that does not work, or text that the vocabulary has no token for.
    pub fn tokens(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>, EngineError> {
        let mut messages = self.messages.clone();
        match (&self.system, messages.first_mut()) {
            (Some(system), Some(first)) if self.merges_system => {
                first.content = format!("{system}\n\n{}", first.content);
            }
            (Some(system), _) => messages.insert(0, Message::new(Role::System, system.as_str())),
            (None, _) => (),
        }
        encode(tokenizer, &self.template, &self.written, messages)
    }
}

/// The tokens of a conversation up to the next answer; see the module's documentation. `written` is what the template writes
/// around messages.
fn encode(
    tokenizer: &Tokenizer,
    template: &Template,
    written: &str,
    mut messages: Vec<Message>,
) -> Result<Vec<u32>, EngineError> {
    let texts = messages.iter().map(|m| m.content.as_str()).chain([template.source()]);
    let used: HashSet<char> = texts.flat_map(str::chars).collect();
    let mark = ('\u{e000}'..='\u{f8ff}').chain('\u{f0000}'..='\u{ffffd}').find(|c| !used.contains(c));
    let mark = mark.ok_or_else(|| template.error(ChatFault::NoMark))?;
    let steering = tokenizer.user_defined_texts().filter(|text| may_steer(text));
    let (turns, others): (Vec<&str>, Vec<&str>) =
        (steering.filter(|text| written.contains(text) || template.has(text))).partition(|text| written.contains(text));
    let in_answers: Vec<&str> = tokenizer.control_texts().chain(turns.iter().copied()).collect();
    let in_others = [&in_answers[..], &others].concat();
    for message in &mut messages {
        let special = if message.role == Role::Assistant { &in_answers } else { &in_others };
        message.content = marked(&message.content, special, mark);
    }
    let rendered = template.render(&messages, true)?;
    let mut tokens = tokenizer.encode_marked(&rendered, mark, &[turns, others].concat())?;
    if let Some(bos) = tokenizer.bos().filter(|bos| tokenizer.adds_bos() && tokens.first() != Some(bos)) {
        tokens.insert(0, bos);
    }
    Ok(tokens)
}

/// What the template writes around messages. They are a private-use character here, which is in no token.
fn written_around(template: &Template) -> String {
    let filler = '\u{e000}';
    let roles = [Role::System, Role::User, Role::Assistant, Role::User];
    let messages = roles.map(|role| Message::new(role, filler));
    // Some take no system message. One that takes neither conversation is still known by its source.
    let written = template.render(&messages, false).or_else(|_| template.render(&messages[1..], false));
    written.unwrap_or_default()
}

/// Whether a user-defined token can be a template's sign for a turn: blanks and single characters are parts of any text.
fn may_steer(text: &str) -> bool {
    text.chars().nth(1).is_some() && text.chars().any(|c| !c.is_whitespace() && c != '\u{2581}')
}

/// `text` with `mark` in it wherever it holds one of `controls`, or a part of one at its start or end.
fn marked(text: &str, controls: &[&str], mark: char) -> String {
    let mut marks = Vec::new();
    // A template may trim.
    let (start, end) = (text.len() - text.trim_start().len(), text.trim_end().len());
    for control in controls {
        let second = control.chars().next().map_or(0, char::len_utf8);
        // Also where they overlap.
        let mut from = 0;
        while let Some(at) = text.get(from..).and_then(|rest| rest.find(control)) {
            marks.push(from + at + second);
            from += at + second;
        }
        for (cut, _) in control.char_indices().skip(1) {
            let (head, tail) = control.split_at(cut);
            if start < end && text[start..end].ends_with(head) {
                marks.push(end - head.len() + second);
            }
            if start < end && text[start..end].starts_with(tail) {
                marks.push(start);
            }
        }
    }
    marks.sort_unstable();
    marks.dedup();
    let mut out = String::with_capacity(text.len() + 4 * marks.len());
    let mut done = 0;
    for at in marks {
        out.push_str(&text[done..at]);
        out.push(mark);
        done = at;
    }
    out + &text[done..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_where_control_tokens_could_be() {
        let marked = |text: &str| marked(text, &["<|end|>", "</s>", "[[]"], '#');
        assert_eq!(marked("no < token, </think> neither"), "no < token, </think> neither");
        assert_eq!(marked("a<|end|>b</s>"), "a<#|end|>b<#/s>");
        assert_eq!(marked("[[[]"), "[[#[]", "it starts at the second bracket");
        assert_eq!(marked("<|end|><|end|>"), "<#|end|><#|end|>");
        assert_eq!(marked(" a <|e \n"), " a <#|e \n", "a beginning at the end, which may be trimmed");
        assert_eq!(marked(" |> a"), " #|> a", "an end at the beginning");
        assert_eq!(marked("a <|e b"), "a <|e b", "what is in the middle stays apart");
        assert_eq!(marked(""), "");
    }
}
