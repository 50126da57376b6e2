//! Byte-level BPE with merges, as of GPT-2: text is cut into words by the pre-tokenizer, and within a word pairs are
//! merged in the order of the merge list. The vocabulary writes each byte as a printable character.

use super::{
    TokenizerError, TokenizerFault,
    merge::{Merge, Merger, Symbol},
    pretokenizer::PreTokenizer,
    vocab::{Kind, Vocab},
};
use crate::gguf::Gguf;
use hashbrown::HashMap;
use std::sync::LazyLock;

const MERGES: &str = "tokenizer.ggml.merges";
const PRE: &str = "tokenizer.ggml.pre";

#[derive(Debug)]
pub(super) struct Bpe {
    pretokenizer: PreTokenizer,
    /// The token of each single byte; a vocabulary may lack some.
    byte_ids: Vec<Option<u32>>,
    merges: HashMap<(u32, u32), Merge>,
}

impl Bpe {
    pub(super) fn from_gguf(gguf: &Gguf, vocab: &Vocab) -> Result<Self, TokenizerError> {
        let fail = |fault| TokenizerError::new(gguf, fault);
        let metadata = gguf.metadata();
        let pretokenizer = PreTokenizer::by_name(metadata.str(PRE)?).map_err(fail)?;

        let list = metadata.strings(MERGES)?.ok_or_else(|| fail(TokenizerFault::NoKey(MERGES)))?;
        let mut merges = HashMap::with_capacity(list.len());
        let mut both = String::new();
        // What a merge makes is mostly the token that the one before it makes, or the next: found without a search.
        let mut last = 0;
        for (rank, pair) in (0u32..).zip(list) {
            // The left token may start with a blank of its own, where blanks are not written as another character.
            let blank = pair.char_indices().skip(1).find(|&(_, c)| c == ' ');
            let (at, _) = blank.ok_or_else(|| fail(TokenizerFault::Merge { rank }))?;
            let (left, right) = (&pair[..at], &pair[at + 1..]);
            both.clear();
            both.push_str(left);
            both.push_str(right);
            let id = |text: &str| {
                vocab.any_id(text).ok_or_else(|| fail(TokenizerFault::MergeToken { rank, text: text.to_owned() }))
            };
            let pair = (id(left)?, id(right)?);
            let near = [last, last + 1].into_iter().find(|&id| vocab.text(id) == both);
            let merged = near.map_or_else(|| id(&both), Ok)?;
            last = merged;
            // Text must not become a control token, whatever the list says. Where a pair is listed twice the first counts.
            if !vocab.is_control(merged) {
                merges.entry(pair).or_insert(Merge { rank, id: merged });
            }
        }
        let byte_id = |c: &char| vocab.any_id(c.encode_utf8(&mut [0; 4])).filter(|&id| !vocab.is_control(id));
        Ok(Self { pretokenizer, byte_ids: BYTE_CHARS.iter().map(byte_id).collect(), merges })
    }

    /// Whether files with this pre-tokenizer that don't say so expect a BOS token.
    pub(super) fn adds_bos(&self) -> bool {
        self.pretokenizer.adds_bos()
    }

    pub(super) fn encode(&self, vocab: &Vocab, text: &str, out: &mut Vec<u32>) -> Result<(), TokenizerFault> {
        let mut merger = Merger::default();
        let mut written = String::new();
        self.pretokenizer.split(text, &mut |word| {
            if self.pretokenizer.whole_words() {
                written.clear();
                written.extend(word.bytes().map(|byte| BYTE_CHARS[byte as usize]));
                if let Some(id) = vocab.id(&written) {
                    out.push(id);
                    return Ok(());
                }
            }
            if let Some(byte) = word.bytes().find(|&byte| self.byte_ids[byte as usize].is_none()) {
                return Err(TokenizerFault::MissingByte(byte));
            }
            let symbol = |(at, byte): (usize, u8)| Symbol { text: at..at + 1, id: self.byte_ids[byte as usize] };
            let find = |left: &Symbol, right: &Symbol| self.merges.get(&(left.id?, right.id?)).copied();
            out.extend(merger.merge(word.bytes().enumerate().map(symbol), find).filter_map(|symbol| symbol.id));
            Ok(())
        })
    }

    /// The bytes a token stands for. Control and user-defined tokens are written as they are, not byte by byte.
    pub(super) fn token_bytes(vocab: &Vocab, id: u32) -> Vec<u8> {
        let text = vocab.text(id);
        let plain = || text.as_bytes().to_vec();
        match vocab.kind(id) {
            Some(Kind::Normal | Kind::Byte) => {
                let bytes = text.chars().map(|c| CHAR_BYTES.get(&c).copied()).collect::<Option<Vec<u8>>>();
                bytes.unwrap_or_else(plain)
            }
            _ => plain(),
        }
    }
}

/// The character that stands for each byte in a vocabulary: printable characters of Latin-1 stand for themselves, the
/// other bytes are, in order, the characters from U+0100 on.
static BYTE_CHARS: LazyLock<[char; 256]> = LazyLock::new(|| {
    let mut others = '\u{100}'..;
    std::array::from_fn(|byte| match byte as u8 {
        byte @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => char::from(byte),
        _ => others.next().unwrap_or_default(),
    })
});

static CHAR_BYTES: LazyLock<HashMap<char, u8>> =
    LazyLock::new(|| (0u8..=255).map(|byte| (BYTE_CHARS[byte as usize], byte)).collect());
