//! Byte-level BPE with merges, as of GPT-2: text is cut into words by the pre-tokenizer, and within a word pairs are
//! merged in the order of the merge list. The vocabulary writes each byte as a printable character.

use super::{
    TokenizerError, TokenizerFault,
    merge::{Merge, Symbol, merge},
    pretokenizer::PreTokenizer,
    vocab::{Kind, Vocab},
};
use crate::gguf::Gguf;
use std::{collections::HashMap, sync::LazyLock};

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
        let pre = metadata.str(PRE)?.ok_or_else(|| fail(TokenizerFault::NoKey(PRE)))?;
        let pretokenizer = PreTokenizer::by_name(pre).map_err(fail)?;

        let list = metadata.strings(MERGES)?.ok_or_else(|| fail(TokenizerFault::NoKey(MERGES)))?;
        let mut merges = HashMap::with_capacity(list.len());
        let mut both = String::new();
        for (rank, pair) in (0u32..).zip(list) {
            let (left, right) = pair.split_once(' ').ok_or_else(|| fail(TokenizerFault::Merge { rank }))?;
            both.clear();
            both.push_str(left);
            both.push_str(right);
            let id = |text: &str| {
                vocab.id(text).ok_or_else(|| fail(TokenizerFault::MergeToken { rank, text: text.to_owned() }))
            };
            // Where a pair is listed twice the first counts.
            merges.entry((id(left)?, id(right)?)).or_insert(Merge { rank, id: id(&both)? });
        }
        let byte_ids = BYTE_CHARS.iter().map(|c| vocab.id(c.encode_utf8(&mut [0; 4]))).collect();
        Ok(Self { pretokenizer, byte_ids, merges })
    }

    /// Whether files with this pre-tokenizer that don't say so expect a BOS token.
    pub(super) fn adds_bos(&self) -> bool {
        self.pretokenizer.adds_bos
    }

    pub(super) fn encode(&self, vocab: &Vocab, text: &str, out: &mut Vec<u32>) -> Result<(), TokenizerFault> {
        self.pretokenizer.split(text, |word| {
            if self.pretokenizer.whole_words {
                let written: String = word.bytes().map(|byte| BYTE_CHARS[byte as usize]).collect();
                if let Some(id) = vocab.id(&written) {
                    out.push(id);
                    return Ok(());
                }
            }
            let symbol = |(at, byte): (usize, u8)| {
                let id = self.byte_ids[byte as usize].ok_or(TokenizerFault::MissingByte(byte))?;
                Ok(Symbol { text: at..at + 1, id: Some(id) })
            };
            let symbols = word.bytes().enumerate().map(symbol).collect::<Result<_, _>>()?;
            let find = |l: &Symbol, r: &Symbol| self.merges.get(&(l.id?, r.id?)).copied();
            out.extend(merge(symbols, find).into_iter().filter_map(|symbol| symbol.id));
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
