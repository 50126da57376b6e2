//! The vocabulary: each token's text and type, and the ids with a meaning.

use super::{TokenizerError, TokenizerFault, known};
use crate::gguf::Gguf;
use hashbrown::{DefaultHashBuilder, HashTable, hash_table::Entry};
use std::{collections::HashSet, hash::BuildHasher};

const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";

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
    texts: Texts,
    kinds: Vec<Kind>,
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
        let mut kinds = match metadata.i32s(TYPES)? {
            None => vec![Kind::Normal; tokens.len()],
            Some(types) => types.into_iter().map(kind).collect(),
        };
        if kinds.len() != tokens.len() {
            let (found, expected) = (kinds.len(), tokens.len());
            return Err(fail(TokenizerFault::Length { key: TYPES, found, expected }));
        }
        let texts = Texts::new(&tokens, &kinds);
        let special = |key: &'static str| match metadata.u32(key)? {
            Some(id) if id as usize >= tokens.len() => {
                Err(fail(TokenizerFault::NoSuchId { key, id, size: tokens.len() }))
            }
            id => Ok(id),
        };
        let bos = special("tokenizer.ggml.bos_token_id")?;
        let unknown = special("tokenizer.ggml.unknown_token_id")?;
        let unknown = unknown.or_else(|| kinds.iter().position(|&kind| kind == Kind::Unknown).map(|id| id as u32));
        let eos = special("tokenizer.ggml.eos_token_id")?;
        let mut ends: HashSet<u32> = known::ends(|text| texts.id(text)).collect();
        for id in known::fill_in(|text| texts.id(text)).chain(ends.iter().copied()) {
            kinds[id as usize] = Kind::Control;
        }
        ends.extend(eos);
        for key in ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
            ends.extend(special(key)?);
        }
        Ok(Self { texts, kinds, bos, eos, unknown, ends })
    }

    pub(super) fn len(&self) -> usize {
        self.kinds.len()
    }

    /// The token's text as the file has it; empty for an id that there isn't.
    pub(super) fn text(&self, id: u32) -> &str {
        if (id as usize) < self.len() { self.texts.get(id) } else { "" }
    }

    pub(super) fn kind(&self, id: u32) -> Option<Kind> {
        self.kinds.get(id as usize).copied()
    }

    pub(super) fn is_control(&self, id: u32) -> bool {
        self.kind(id) == Some(Kind::Control)
    }

    /// The token that stands for this text in the file, unless it is one that text does not become (control, unused, ...).
    pub(super) fn id(&self, text: &str) -> Option<u32> {
        self.any_id(text).filter(|&id| self.kinds[id as usize].is_text())
    }

    /// The token with this text, of whatever kind.
    pub(super) fn any_id(&self, text: &str) -> Option<u32> {
        self.texts.id(text)
    }

    /// Ids and texts of all tokens whose kind is one of `kinds`.
    pub(super) fn of_kinds(&self, kinds: &'static [Kind]) -> impl Iterator<Item = (u32, &str)> {
        let ids = 0..self.len() as u32;
        ids.filter(|&id| kinds.contains(&self.kinds[id as usize])).map(|id| (id, self.text(id)))
    }

    pub(super) fn is_end(&self, id: u32) -> bool {
        self.ends.contains(&id)
    }
}

/// The texts of all tokens in one string, and the way back.
#[derive(Debug)]
struct Texts {
    all: String,
    /// Where each text ends in `all`; it starts where the one before ends.
    ends: Vec<usize>,
    /// All tokens by their text. Where several have the same one, a token that text can become goes before others, then
    /// the last.
    ids: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

impl Texts {
    fn new(tokens: &[&str], kinds: &[Kind]) -> Self {
        let all = tokens.concat();
        let ends = tokens.iter().scan(0, |end, text| {
            *end += text.len();
            Some(*end)
        });
        let (ends, hasher) = (ends.collect(), DefaultHashBuilder::default());
        let mut ids: HashTable<u32> = HashTable::with_capacity(tokens.len());
        for ((id, &text), kind) in (0u32..).zip(tokens).zip(kinds) {
            let same = |&other: &u32| tokens[other as usize] == text;
            let hash = |&id: &u32| hasher.hash_one(tokens[id as usize]);
            match ids.entry(hasher.hash_one(text), same, hash) {
                Entry::Vacant(entry) => drop(entry.insert(id)),
                Entry::Occupied(mut entry) => {
                    if kind.is_text() || !kinds[*entry.get() as usize].is_text() {
                        *entry.get_mut() = id;
                    }
                }
            }
        }
        Self { all, ends, ids, hasher }
    }

    /// `id` is below the number of tokens.
    fn get(&self, id: u32) -> &str {
        let id = id as usize;
        let start = id.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.all[start..self.ends[id]]
    }

    fn id(&self, text: &str) -> Option<u32> {
        self.ids.find(self.hasher.hash_one(text), |&id| self.get(id) == text).copied()
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
