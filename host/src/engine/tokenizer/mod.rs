//! From text to token ids and back, by the vocabulary in a GGUF file's metadata.
//!
//! Two models: `gpt2`, byte-level BPE with merges and a pre-tokenizer, and `llama`, SentencePiece's BPE by scores. Both are
//! one loop that merges neighbours (`merge`), with different symbols and different ranks. docs/tokenizers.md says what is
//! supported, and how it was checked.
//!
//! # Why our own
//! Two crates were measured on the vectors of llama.cpp for the vocabularies of Llama 3 (gpt2) and Llama 2 (llama), 46
//! texts each:
//! - shimmytok 0.8.4 matches 46 and 31: with `llama` it drops the blank that is put in front when the text starts with one.
//! - tokenizers 0.22.2 matches 46 and 46. Without C code its pre-tokenizers run on a backtracking matcher; when that gives
//!   up, after about a million blanks in a row, the rest of the text is silently taken as one word and the ids are wrong.
//!   Bytes that are not in the vocabulary vanish without an error. Scores have to be turned into merges first, which loses
//!   that equal scores go from left to right. With the pre-tokenizer, special tokens, and raw bytes of tokens done here
//!   anyway, what would remain of it is the loop in `merge`, for 55 more crates.

mod bpe;
mod families;
mod known;
mod merge;
mod pretokenizer;
mod special;
mod spm;
mod utf8;
mod vocab;

pub use utf8::Utf8Stream;

use crate::gguf::{Gguf, GgufError};
use bpe::Bpe;
use special::{Piece, Special};
use spm::Spm;
use std::collections::HashSet;
use vocab::{Kind, Vocab};

const MODEL: &str = "tokenizer.ggml.model";

/// An error of the tokenizer.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The file's metadata is not as it should be.
    #[error(transparent)]
    Metadata(#[from] GgufError),
    /// The vocabulary is not as it should be, or does not serve for what was asked.
    #[error("{file}: {fault}")]
    Vocabulary {
        /// The file that the vocabulary is from.
        file: String,
        /// What is wrong.
        fault: TokenizerFault,
    },
}

impl TokenizerError {
    fn new(gguf: &Gguf, fault: TokenizerFault) -> Self {
        Self::Vocabulary { file: gguf.name().to_owned(), fault }
    }
}

/// What is wrong with a vocabulary.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum TokenizerFault {
    #[error("has no metadata {0:?}, so that text cannot be tokenized")]
    NoKey(&'static str),
    #[error("the tokenizer model {0:?} is not supported (supported: gpt2 llama)")]
    Model(String),
    #[error("the pre-tokenizer {0:?} is not supported (supported: {names})", names = families::names())]
    PreTokenizer(String),
    #[error("a vocabulary of {0} tokens is not possible")]
    VocabularySize(usize),
    #[error("metadata {key:?} has {found} elements for {expected} tokens")]
    Length { key: &'static str, found: usize, expected: usize },
    #[error("metadata {key:?} is {id}, but there are only {size} tokens")]
    NoSuchId { key: &'static str, id: u32, size: usize },
    #[error("merge {rank} is not two tokens with a blank between")]
    Merge { rank: u32 },
    #[error("merge {rank}: {text:?} is not in the vocabulary")]
    MergeToken { rank: u32, text: String },
    #[error("token {id} has no number as its score")]
    Score { id: usize },
    #[error("the byte token {id} is {text:?}, not of the form <0x0A>")]
    ByteToken { id: u32, text: String },
    #[error("the matcher cannot be built: {0}")]
    Build(String),
    #[error("the text has the byte {0:#04x}, for which the vocabulary has no token")]
    MissingByte(u8),
    #[error("a BOS token was asked for, and the vocabulary has none")]
    NoBos,
}

/// How to encode a text.
#[derive(Clone, Copy, Debug, Default)]
pub struct EncodeOptions {
    /// Start with the BOS token.
    pub bos: bool,
    /// Control tokens written in the text (`<|eot_id|>`) become those tokens. Without this they are text like any other,
    /// as they must be in what a user typed.
    pub special: bool,
}

/// A model's vocabulary and the way text is cut into it.
#[derive(Debug)]
pub struct Tokenizer {
    file: String,
    vocab: Vocab,
    model: Model,
    adds_bos: bool,
    user_defined: Special,
    special: Special,
    /// Tokens that take the blanks behind them along.
    eats_blanks: HashSet<u32>,
}

#[derive(Debug)]
enum Model {
    Bpe(Bpe),
    Spm(Spm),
}

impl Tokenizer {
    /// Reads the vocabulary of a model.
    ///
    /// # Errors
    /// If the file has none, it is inconsistent, or its kind is not supported.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, TokenizerError> {
        let fail = |fault| TokenizerError::new(gguf, fault);
        let vocab = Vocab::from_gguf(gguf)?;
        let model = match gguf.metadata().str(MODEL)?.ok_or_else(|| fail(TokenizerFault::NoKey(MODEL)))? {
            "gpt2" => Model::Bpe(Bpe::from_gguf(gguf, &vocab)?),
            "llama" => Model::Spm(Spm::from_gguf(gguf, &vocab)?),
            other => return Err(fail(TokenizerFault::Model(other.to_owned()))),
        };
        let usual = match &model {
            Model::Bpe(bpe) => bpe.adds_bos(),
            Model::Spm(_) => true,
        };
        let adds_bos = match gguf.metadata().bool("tokenizer.ggml.add_bos_token")? {
            Some(true) if vocab.bos.is_none() => return Err(fail(TokenizerFault::NoBos)),
            stated => stated.unwrap_or(usual) && vocab.bos.is_some(),
        };
        let user_defined = Special::new(vocab.of_kinds(&[Kind::UserDefined])).map_err(fail)?;
        let special = vocab.of_kinds(&[Kind::UserDefined, Kind::Control, Kind::Unknown]);
        let special = Special::new(special).map_err(fail)?;
        let eats_blanks = if is_phi3(gguf)? { phi3_eats_blanks(&vocab).collect() } else { HashSet::new() };
        Ok(Self { file: gguf.name().to_owned(), vocab, model, adds_bos, user_defined, special, eats_blanks })
    }

    /// The ids of `text`.
    ///
    /// # Errors
    /// If the text has a byte for which there is no token, or BOS is asked for and there is none.
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = Vec::new();
        if options.bos {
            ids.push(self.vocab.bos.ok_or_else(|| self.error(TokenizerFault::NoBos))?);
        }
        let special = if options.special { &self.special } else { &self.user_defined };
        self.encode_with(special, text, &mut ids)?;
        Ok(ids)
    }

    /// The ids of a prompt: with the BOS token if the model expects one. Special tokens that are written in the text stay
    /// text.
    ///
    /// # Errors
    /// If the text has a byte for which there is no token.
    pub fn prompt(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.encode(text, EncodeOptions { bos: self.adds_bos, special: false })
    }

    /// The ids of `text` with its special tokens, without the character `mark`: it is dropped, and a special token's text
    /// with a mark in it is text. The user-defined tokens whose texts are in `steering` are special, too: no text with a
    /// mark becomes one, as that of others does.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_marked(&self, text: &str, mark: char, steering: &[&str]) -> Result<Vec<u32>, TokenizerError> {
        let harmless = self.vocab.of_kinds(&[Kind::UserDefined]).filter(|(_, text)| !steering.contains(text));
        let harmless = Special::new(harmless).map_err(|fault| self.error(fault))?;
        let mut ids = Vec::new();
        for piece in self.special.cut(text, |id| self.eats_blanks.contains(&id)) {
            match piece {
                Piece::Token(id) => ids.push(id),
                // A mark may also have broken a token that text becomes anyway, where a control token overlaps it.
                Piece::Text(text) => self.encode_with(&harmless, &text.replace(mark, ""), &mut ids)?,
            }
        }
        Ok(ids)
    }

    /// The texts that only become tokens when special tokens are asked for.
    pub fn control_texts(&self) -> impl Iterator<Item = &str> {
        let texts = self.vocab.of_kinds(&[Kind::Control, Kind::Unknown]);
        texts.map(|(_, text)| text).filter(|text| !text.is_empty())
    }

    /// The texts that become tokens whether or not special tokens are asked for.
    pub fn user_defined_texts(&self) -> impl Iterator<Item = &str> {
        self.vocab.of_kinds(&[Kind::UserDefined]).map(|(_, text)| text).filter(|text| !text.is_empty())
    }

    fn encode_with(&self, special: &Special, text: &str, ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
        for piece in special.cut(text, |id| self.eats_blanks.contains(&id)) {
            let encoded = match (piece, &self.model) {
                (Piece::Token(id), _) => {
                    ids.push(id);
                    Ok(())
                }
                (Piece::Text(text), Model::Bpe(bpe)) => bpe.encode(&self.vocab, text, ids),
                (Piece::Text(text), Model::Spm(spm)) => spm.encode(&self.vocab, text, ids),
            };
            encoded.map_err(|fault| self.error(fault))?;
        }
        Ok(())
    }

    fn error(&self, fault: TokenizerFault) -> TokenizerError {
        TokenizerError::Vocabulary { file: self.file.clone(), fault }
    }

    /// The bytes that a token stands for: they may be part of a character, see [`Utf8Stream`]. A control token's are its
    /// text; an id outside the vocabulary has none.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        match &self.model {
            Model::Bpe(_) => Bpe::token_bytes(&self.vocab, id),
            Model::Spm(_) => Spm::token_bytes(&self.vocab, id),
        }
    }

    /// The bytes of a whole text, without the blank that SentencePiece models put in front of text. The inverse of
    /// [`Self::encode`] without BOS, except that SentencePiece cannot tell U+2581 from a blank.
    pub fn decode(&self, ids: &[u32]) -> Vec<u8> {
        let adds_blank = matches!(&self.model, Model::Spm(spm) if spm.adds_blank);
        let mut out = Vec::new();
        let mut first = true;
        for &id in ids {
            let bytes = self.token_bytes(id);
            let plain = matches!(self.vocab.kind(id), Some(Kind::Normal | Kind::Byte));
            let blank = plain && first && adds_blank && bytes.starts_with(b" ");
            out.extend_from_slice(&bytes[usize::from(blank)..]);
            first = !plain;
        }
        out
    }

    /// The bytes of every token in the order of the ids, as [`Self::token_bytes`].
    pub fn all_token_bytes(&self) -> impl ExactSizeIterator<Item = Vec<u8>> {
        (0..self.vocab.len() as u32).map(|id| self.token_bytes(id))
    }

    /// A token's text as the file has it: in byte-level BPE characters stand for bytes, in SentencePiece U+2581 stands for
    /// a blank. `None` for an id outside the vocabulary.
    pub fn token_text(&self, id: u32) -> Option<&str> {
        self.vocab.kind(id).map(|_| self.vocab.text(id))
    }

    /// The token with this text as the file has it, of whatever kind: `<|im_start|>`, `</s>`. Where several have the same
    /// text it is the one that text becomes.
    pub fn token_id_by_text(&self, text: &str) -> Option<u32> {
        self.vocab.any_id(text)
    }

    /// Whether the token steers the model and is no text: the start of a turn, the end of a document.
    pub fn is_control(&self, id: u32) -> bool {
        self.vocab.is_control(id)
    }

    /// The token that starts a text, if the model has one.
    pub fn bos(&self) -> Option<u32> {
        self.vocab.bos
    }

    /// The token that ends a text, if the file names one. A model may have more, see [`Self::is_end`].
    pub fn eos(&self) -> Option<u32> {
        self.vocab.eos
    }

    /// Whether the model expects its BOS token at the start of a prompt.
    pub fn adds_bos(&self) -> bool {
        self.adds_bos
    }

    /// Whether the token ends a text or a turn, so that generation stops.
    pub fn is_end(&self, id: u32) -> bool {
        self.vocab.is_end(id)
    }

    /// The number of tokens. A model's output may be longer, padded with rows that no token has.
    pub fn vocab_size(&self) -> usize {
        self.vocab.len()
    }
}

/// Files do not say which tokens take the blanks behind them along. llama.cpp knows it of Phi-3 by the model's name.
fn is_phi3(gguf: &Gguf) -> Result<bool, GgufError> {
    let name = gguf.metadata().str("general.name")?.unwrap_or_default().to_ascii_lowercase();
    Ok(name.contains("phi-3") || name.contains("phi3"))
}

/// Phi-3's tokens that are followed by blanks which mean nothing (`rstrip` in its tokenizer.json, as llama.cpp has it).
fn phi3_eats_blanks(vocab: &Vocab) -> impl Iterator<Item = u32> {
    let special = vocab.of_kinds(&[Kind::UserDefined, Kind::Control, Kind::Unknown]);
    special.filter(|(_, text)| !["<unk>", "<s>", "<|endoftext|>"].contains(text)).map(|(id, _)| id)
}
