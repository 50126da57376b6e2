//! SentencePiece's BPE: no pre-tokenizer, pairs are merged by the score of the token they become, and a character that
//! no token covers is written as its bytes. Blanks are written as U+2581.

use super::{
    TokenizerError, TokenizerFault,
    merge::{Merge, Merger, Symbol},
    vocab::{Kind, Vocab},
};
use crate::gguf::Gguf;
use hashbrown::HashSet;

const SCORES: &str = "tokenizer.ggml.scores";
/// What a blank is written as in the vocabulary.
const BLANK: &str = "\u{2581}";

#[derive(Debug)]
pub(super) struct Spm {
    /// Each token's place in the order of merging; equal scores have equal ranks.
    ranks: Vec<u32>,
    /// The token of each byte, for characters that no token covers.
    byte_ids: Vec<Option<u32>>,
    /// The characters that come before a blank within some token.
    before_blanks: HashSet<char>,
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
        let mut byte_ids = vec![None; 256];
        for (id, text) in vocab.of_kinds(&[Kind::Byte]) {
            let byte = byte_of(text).ok_or_else(|| fail(TokenizerFault::ByteToken { id, text: text.to_owned() }))?;
            byte_ids[byte as usize] = Some(id);
        }
        let adds_blank = gguf.metadata().bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
        let before_blanks =
            vocab.of_kinds(&[Kind::Normal, Kind::UserDefined]).flat_map(|(_, text)| before_blanks(text));
        Ok(Self {
            before_blanks: before_blanks.map(|(_, c)| c).collect(),
            ranks: scores.into_iter().map(rank).collect(),
            byte_ids,
            adds_blank,
        })
    }

    /// `text` is not empty, and starts the input or follows a special token.
    pub(super) fn encode(&self, vocab: &Vocab, text: &str, out: &mut Vec<u32>) -> Result<(), TokenizerFault> {
        let mut written = String::with_capacity(text.len() + BLANK.len());
        if self.adds_blank {
            written.push_str(BLANK);
        }
        written.push_str(&text.replace(' ', BLANK));

        // No token reaches beyond the ends of these parts. One by one they are faster than the whole text: the merger's
        // queue stays short.
        let mut merger = Merger::default();
        let mut start = 0;
        let cuts = before_blanks(&written).filter(|(_, c)| !self.before_blanks.contains(c)).map(|(at, _)| at);
        for end in cuts.chain([written.len()]) {
            self.encode_part(vocab, &written[start..end], &mut merger, out)?;
            start = end;
        }
        Ok(())
    }

    fn encode_part(
        &self,
        vocab: &Vocab,
        text: &str,
        merger: &mut Merger,
        out: &mut Vec<u32>,
    ) -> Result<(), TokenizerFault> {
        let symbol = |(at, c): (usize, char)| {
            let range = at..at + c.len_utf8();
            Symbol { id: vocab.id(&text[range.clone()]), text: range }
        };
        let find = |left: &Symbol, right: &Symbol| {
            let id = vocab.id(&text[left.text.start..right.text.end])?;
            Some(Merge { rank: self.ranks[id as usize], id })
        };
        let mut after_unknown = false;
        for symbol in merger.merge(text.char_indices().map(symbol), find) {
            let bytes = &text.as_bytes()[symbol.text.clone()];
            let unknown = symbol.id.is_none() && bytes.iter().any(|&byte| self.byte_ids[byte as usize].is_none());
            match symbol.id {
                Some(id) => out.push(id),
                None if !unknown => out.extend(bytes.iter().filter_map(|&byte| self.byte_ids[byte as usize])),
                // Neighbours that are unknown are one unknown token, as in SentencePiece.
                None if after_unknown => {}
                None => out.push(vocab.unknown.ok_or(TokenizerFault::MissingByte(bytes[0]))?),
            }
            after_unknown = unknown;
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

/// The higher the score, the lower the number; equal scores, such as 0 and -0, have equal numbers.
fn rank(score: f32) -> u32 {
    let bits = (score + 0.0).to_bits();
    // The bits of positive numbers are in their order, those of negative ones in the opposite order above them.
    if bits >> 31 == 0 { !bits & (u32::MAX >> 1) } else { bits }
}

/// Where blanks follow another character, and that character.
fn before_blanks(text: &str) -> impl Iterator<Item = (usize, char)> {
    let before = |at: usize| text[..at].chars().next_back().map(|c| (at, c));
    text.match_indices(BLANK).filter_map(move |(at, _)| before(at)).filter(|(_, c)| !BLANK.contains(*c))
}

/// The byte of a token such as `<0x0A>`.
fn byte_of(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}
