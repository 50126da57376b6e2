//! SentencePiece's BPE: no pre-tokenizer, pairs are merged by the score of the token they become, and a character that
//! no token covers is written as its bytes. Blanks are written as U+2581.

use super::{
    TokenizerError, TokenizerFault,
    merge::{Merge, Symbol, merge},
    vocab::{Kind, Vocab},
};
use crate::gguf::Gguf;

const SCORES: &str = "tokenizer.ggml.scores";
/// What a blank is written as in the vocabulary.
const BLANK: &str = "\u{2581}";

#[derive(Debug)]
pub(super) struct Spm {
    /// Each token's place in the order of merging; equal scores have equal ranks.
    ranks: Vec<u32>,
    /// The token of each byte, for characters that no token covers.
    byte_ids: Vec<Option<u32>>,
    /// Whether text gets a blank in front, so that a word at the start is the token that it is elsewhere.
    pub(super) adds_blank: bool,
}

impl Spm {
    pub(super) fn from_gguf(gguf: &Gguf, vocab: &Vocab) -> Result<Self, TokenizerError> {
        let fail = |fault| TokenizerError::new(gguf, fault);
        let scores = gguf.metadata().f32s(SCORES)?.ok_or_else(|| fail(TokenizerFault::NoKey(SCORES)))?;
        if scores.len() != vocab.len() {
            let (found, expected) = (scores.len(), vocab.len());
            return Err(fail(TokenizerFault::Length { key: SCORES, found, expected }));
        }
        if let Some(id) = scores.iter().position(|score| score.is_nan()) {
            return Err(fail(TokenizerFault::Score { id }));
        }
        let mut best_first = scores.clone();
        best_first.sort_by(|a, b| b.total_cmp(a));
        best_first.dedup();
        let ranks = scores.iter().map(|score| best_first.partition_point(|better| better > score) as u32);

        let mut byte_ids = vec![None; 256];
        for (id, text) in vocab.of_kinds(&[Kind::Byte]) {
            let byte = byte_of(text).ok_or_else(|| fail(TokenizerFault::ByteToken { id, text: text.to_owned() }))?;
            byte_ids[byte as usize] = Some(id);
        }
        let adds_blank = gguf.metadata().bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
        Ok(Self { ranks: ranks.collect(), byte_ids, adds_blank })
    }

    /// `text` is not empty, and starts the input or follows a special token.
    pub(super) fn encode(&self, vocab: &Vocab, text: &str, out: &mut Vec<u32>) -> Result<(), TokenizerFault> {
        let mut written = String::with_capacity(text.len() + BLANK.len());
        if self.adds_blank {
            written.push_str(BLANK);
        }
        written.push_str(&text.replace(' ', BLANK));

        let symbol = |(at, c): (usize, char)| {
            let text = at..at + c.len_utf8();
            Symbol { id: vocab.id(&written[text.clone()]), text }
        };
        let find = |left: &Symbol, right: &Symbol| {
            let id = vocab.id(&written[left.text.start..right.text.end])?;
            Some(Merge { rank: self.ranks[id as usize], id })
        };
        for symbol in merge(written.char_indices().map(symbol).collect(), find) {
            match symbol.id {
                Some(id) => out.push(id),
                None => {
                    for &byte in &written.as_bytes()[symbol.text] {
                        let id = self.byte_ids[byte as usize].or(vocab.unknown);
                        out.push(id.ok_or(TokenizerFault::MissingByte(byte))?);
                    }
                }
            }
        }
        Ok(())
    }

    /// The bytes a token stands for. Control and user-defined tokens are written as they are.
    pub(super) fn token_bytes(vocab: &Vocab, id: u32) -> Vec<u8> {
        let text = vocab.text(id);
        match vocab.kind(id) {
            Some(Kind::Normal) => text.replace(BLANK, " ").into_bytes(),
            Some(Kind::Byte) => byte_of(text).into_iter().collect(),
            _ => text.as_bytes().to_vec(),
        }
    }
}

/// The byte of a token such as `<0x0A>`.
fn byte_of(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}
