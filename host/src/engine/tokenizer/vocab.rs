//! The vocabulary: each token's text and type, and the ids with a meaning.

use super::{TokenizerError, TokenizerFault};
use crate::gguf::Gguf;
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";

/// Texts of control tokens that end a turn or a document whether or not the metadata says so: many files name only one
/// of the several that their model uses.
const END_TEXTS: [&str; 4] = ["<|eot_id|>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>"];

/// What a token is for (`tokenizer.ggml.token_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl Kind {
    /// Whether text becomes tokens of this kind without being asked to.
    fn is_text(self) -> bool {
        matches!(self, Self::Normal | Self::UserDefined)
    }
}

/// The tokens of a model.
#[derive(Debug)]
pub(super) struct Vocab {
    texts: Vec<Arc<str>>,
    kinds: Vec<Kind>,
    /// All tokens; where several have the same text, one that text can become goes before others, then the last.
    by_text: HashMap<Arc<str>, u32>,
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    pub(super) unknown: Option<u32>,
    ends: HashSet<u32>,
}

impl Vocab {
    pub(super) fn from_gguf(gguf: &Gguf) -> Result<Self, TokenizerError> {
        let fail = |fault| TokenizerError::new(gguf, fault);
        let metadata = gguf.metadata();
        let tokens = metadata.strings(TOKENS)?.ok_or_else(|| fail(TokenizerFault::NoKey(TOKENS)))?;
        if tokens.is_empty() || u32::try_from(tokens.len()).is_err() {
            return Err(fail(TokenizerFault::VocabularySize(tokens.len())));
        }
        let kinds = match metadata.i32s(TYPES)? {
            None => vec![Kind::Normal; tokens.len()],
            Some(types) => types.into_iter().map(kind).collect(),
        };
        if kinds.len() != tokens.len() {
            let (found, expected) = (kinds.len(), tokens.len());
            return Err(fail(TokenizerFault::Length { key: TYPES, found, expected }));
        }
        let texts: Vec<Arc<str>> = tokens.into_iter().map(Arc::from).collect();
        let mut by_text = HashMap::with_capacity(texts.len());
        for from_text in [false, true] {
            let entries = texts.iter().zip(0u32..).zip(&kinds).filter(|(_, kind)| kind.is_text() == from_text);
            by_text.extend(entries.map(|((text, id), _)| (text.clone(), id)));
        }

        let special = |key: &'static str| match metadata.u32(key)? {
            Some(id) if id as usize >= texts.len() => {
                Err(fail(TokenizerFault::NoSuchId { key, id, size: texts.len() }))
            }
            id => Ok(id),
        };
        let bos = special("tokenizer.ggml.bos_token_id")?;
        let unknown = special("tokenizer.ggml.unknown_token_id")?;
        let eos = special("tokenizer.ggml.eos_token_id")?;
        let mut ends: HashSet<u32> = eos.into_iter().collect();
        for key in ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
            ends.extend(special(key)?);
        }
        let known_end = |&id: &u32| kinds[id as usize] == Kind::Control && END_TEXTS.contains(&&*texts[id as usize]);
        ends.extend((0..texts.len() as u32).filter(known_end));
        Ok(Self { texts, kinds, by_text, bos, eos, unknown, ends })
    }

    pub(super) fn len(&self) -> usize {
        self.texts.len()
    }

    /// The token's text as the file has it; empty for an id that there isn't.
    pub(super) fn text(&self, id: u32) -> &str {
        self.texts.get(id as usize).map_or("", |text| text)
    }

    pub(super) fn kind(&self, id: u32) -> Option<Kind> {
        self.kinds.get(id as usize).copied()
    }

    /// The token that stands for this text in the file, unless it is one that text does not become (control, unused, ...).
    pub(super) fn id(&self, text: &str) -> Option<u32> {
        self.any_id(text).filter(|&id| self.kinds[id as usize].is_text())
    }

    /// The token with this text, of whatever kind.
    pub(super) fn any_id(&self, text: &str) -> Option<u32> {
        self.by_text.get(text).copied()
    }

    /// Ids and texts of all tokens whose kind is one of `kinds`.
    pub(super) fn of_kinds(&self, kinds: &'static [Kind]) -> impl Iterator<Item = (u32, &str)> {
        let ids = 0..self.texts.len() as u32;
        ids.filter(|&id| kinds.contains(&self.kinds[id as usize])).map(|id| (id, self.text(id)))
    }

    pub(super) fn is_end(&self, id: u32) -> bool {
        self.ends.contains(&id)
    }
}

/// Numbers that have no meaning (0 is "undefined") count as normal tokens.
fn kind(number: i32) -> Kind {
    match number {
        2 => Kind::Unknown,
        3 => Kind::Control,
        4 => Kind::UserDefined,
        5 => Kind::Unused,
        6 => Kind::Byte,
        _ => Kind::Normal,
    }
}
