//! Cuts text into words before byte-level BPE; merges never cross a word's end.

use super::TokenizerFault;
use regex_automata::{Input, meta::Regex};

/// A pre-tokenizer: the rules that `tokenizer.ggml.pre` names.
///
/// Published patterns end in `\s+(?!\S)|\s+`: a run of blanks leaves its last one to the word that follows. Look-ahead
/// needs a backtracking matcher, which gives up on long runs, so the pattern here ends without it, as a pattern of its
/// own, and [`Self::split`] moves the end of its matches.
#[derive(Debug)]
pub(super) struct PreTokenizer {
    regex: Regex,
    /// Whether a word that is a token as a whole becomes it, whatever the merges say.
    pub(super) whole_words: bool,
    /// Whether models with this pre-tokenizer start with BOS unless the file says otherwise.
    pub(super) adds_bos: bool,
}

/// Matches runs of blanks that no other rule takes.
const BLANKS: &str = r"\s+";
/// Its place in the list of patterns.
const BLANKS_INDEX: usize = 1;

/// From the tokenizer.json of Llama 3.
const LLAMA3: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+";
/// From the tokenizer.json of Qwen2: as Llama 3's, but every digit is a word.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+";
/// From GPT-2's encoder.py.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+";

/// The names that [`PreTokenizer::by_name`] knows, for messages.
pub(super) const NAMES: &str = "llama-bpe llama3 llama-v3 qwen2 gpt-2";

impl PreTokenizer {
    pub(super) fn by_name(name: &str) -> Result<Self, TokenizerFault> {
        let (pattern, is_llama3) = match name {
            "llama-bpe" | "llama3" | "llama-v3" => (LLAMA3, true),
            "qwen2" => (QWEN2, false),
            "gpt-2" => (GPT2, false),
            _ => return Err(TokenizerFault::PreTokenizer(name.to_owned())),
        };
        let regex = Regex::new_many(&[pattern, BLANKS]).map_err(|error| TokenizerFault::Build(error.to_string()))?;
        Ok(Self { regex, whole_words: is_llama3, adds_bos: is_llama3 })
    }

    /// Calls `each` with the words of `text` in order. Takes time linear in the text's length.
    pub(super) fn split(
        &self,
        text: &str,
        mut each: impl FnMut(&str) -> Result<(), TokenizerFault>,
    ) -> Result<(), TokenizerFault> {
        let mut start = 0;
        // Every character is matched by some rule, so that the matches leave no gaps.
        while let Some(found) = self.regex.find(Input::new(text).range(start..)) {
            let mut end = found.end();
            if found.pattern().as_usize() == BLANKS_INDEX && end < text.len() {
                // The last blank, unless it is the only one, belongs to what follows.
                let last = text[start..end].char_indices().next_back().map_or(0, |(at, _)| at);
                end = if last > 0 { start + last } else { end };
            }
            each(&text[start..end])?;
            start = end;
        }
        Ok(())
    }
}
