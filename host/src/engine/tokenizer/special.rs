//! Cuts text at the tokens that are matched as a whole, before what lies between them is tokenized.

use super::TokenizerFault;
use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};
use std::collections::BTreeMap;

/// A part of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    /// Text that is not empty.
    Text(&'a str),
    Token(u32),
}

/// The tokens of some kinds, to be found in text.
#[derive(Debug)]
pub(super) struct Special {
    /// The longest tokens first: as in llama.cpp, a longer one goes before a shorter one that starts earlier.
    by_length: Vec<SameLength>,
}

/// Finds tokens whose texts are equally long.
#[derive(Debug)]
struct SameLength {
    matcher: AhoCorasick,
    /// The token of each of the matcher's patterns.
    ids: Vec<u32>,
}

impl Special {
    /// Finds these ids by their texts; those without one are never found.
    pub(super) fn new<'a>(tokens: impl Iterator<Item = (u32, &'a str)>) -> Result<Self, TokenizerFault> {
        let mut by_length: BTreeMap<usize, (Vec<u32>, Vec<&str>)> = BTreeMap::new();
        for (id, text) in tokens.filter(|(_, text)| !text.is_empty()) {
            let (ids, texts) = by_length.entry(text.len()).or_default();
            ids.push(id);
            texts.push(text);
        }
        let same_length = |(ids, texts)| {
            // Of a few tokens the builder would make a table of a row per byte, a thousand times their size.
            let kind = Some(AhoCorasickKind::ContiguousNFA);
            let matcher =
                AhoCorasick::builder().kind(kind).match_kind(MatchKind::LeftmostFirst).build::<_, &str>(texts);
            Ok(SameLength { matcher: matcher.map_err(|error| TokenizerFault::Build(error.to_string()))?, ids })
        };
        Ok(Self { by_length: by_length.into_values().rev().map(same_length).collect::<Result<_, _>>()? })
    }

    /// The pieces of `text` in order. Blanks that follow a token for which `eats_blanks` holds belong to no piece.
    pub(super) fn cut<'a>(&self, text: &'a str, eats_blanks: impl Fn(u32) -> bool) -> Vec<Piece<'a>> {
        let mut pieces = Vec::from_iter(piece(text));
        for tokens in &self.by_length {
            let mut cut = Vec::with_capacity(pieces.len());
            for piece in pieces {
                match piece {
                    Piece::Text(text) => tokens.cut(text, &eats_blanks, &mut cut),
                    token => cut.push(token),
                }
            }
            pieces = cut;
        }
        pieces
    }
}

impl SameLength {
    fn cut<'a>(&self, mut text: &'a str, eats_blanks: impl Fn(u32) -> bool, out: &mut Vec<Piece<'a>>) {
        while let Some(found) = self.matcher.find(text) {
            let id = self.ids[found.pattern().as_usize()];
            out.extend(piece(&text[..found.start()]));
            out.push(Piece::Token(id));
            text = &text[found.end()..];
            if eats_blanks(id) {
                text = text.trim_start_matches([' ', '\t', '\n', '\x0b', '\x0c', '\r']);
            }
        }
        out.extend(piece(text));
    }
}

fn piece(text: &str) -> Option<Piece<'_>> {
    (!text.is_empty()).then_some(Piece::Text(text))
}
