//! Cuts text into words before byte-level BPE; merges never cross a word's end.

use super::{
    TokenizerFault,
    families::{self, Family, Step},
};
use regex_automata::{Input, meta::Regex};

/// Called with each word in order.
type Each<'a> = &'a mut dyn FnMut(&str) -> Result<(), TokenizerFault>;

/// A pre-tokenizer: the rules that `tokenizer.ggml.pre` names.
#[derive(Debug)]
pub(super) struct PreTokenizer {
    family: &'static Family,
    cutters: Vec<Cutter>,
}

impl PreTokenizer {
    /// `name` is absent from the oldest files, and from some that never had one.
    pub(super) fn by_name(name: Option<&str>) -> Result<Self, TokenizerFault> {
        let family = families::by_name(name.unwrap_or(families::DEFAULT))
            .ok_or_else(|| TokenizerFault::PreTokenizer(name.unwrap_or_default().to_owned()))?;
        Ok(Self { family, cutters: family.steps.iter().map(Cutter::new).collect::<Result<_, _>>()? })
    }

    /// Whether a word that is a token as a whole becomes it, whatever the merges say.
    pub(super) fn whole_words(&self) -> bool {
        self.family.whole_words
    }

    /// Whether models with this pre-tokenizer start with BOS unless the file says otherwise.
    pub(super) fn adds_bos(&self) -> bool {
        self.family.adds_bos
    }

    /// Calls `each` with the words of `text` in order. Takes time linear in the text's length.
    pub(super) fn split(&self, text: &str, each: Each<'_>) -> Result<(), TokenizerFault> {
        split(&self.cutters, text, each)
    }
}

/// Every step cuts what the ones before it have left.
fn split(cutters: &[Cutter], text: &str, each: Each<'_>) -> Result<(), TokenizerFault> {
    match cutters.split_first() {
        None => each(text),
        Some((first, rest)) => first.cut(text, &mut |part| split(rest, part, each)),
    }
}

/// A step, ready to use.
#[derive(Debug)]
struct Cutter {
    regex: Regex,
}

/// Matches runs of blanks that no other rule takes.
const BLANKS: &str = r"\s+";
/// Its place in the list of patterns.
const BLANKS_INDEX: usize = 1;

impl Cutter {
    fn new(step: &Step) -> Result<Self, TokenizerFault> {
        let regex = match step {
            Step::Isolate(pattern) => Regex::new(pattern),
            Step::Words(pattern) => Regex::new_many(&[pattern, BLANKS]),
        };
        Ok(Self { regex: regex.map_err(|error| TokenizerFault::Build(error.to_string()))? })
    }

    /// Matches are parts, and so is what lies between two of them.
    fn cut(&self, text: &str, each: Each<'_>) -> Result<(), TokenizerFault> {
        let mut start = 0;
        while let Some(found) = self.regex.find(Input::new(text).range(start..)) {
            let mut end = found.end();
            if found.pattern().as_usize() == BLANKS_INDEX && end < text.len() {
                // The last blank, unless it is the only one, belongs to what follows.
                let last = text[found.range()].char_indices().next_back().map_or(0, |(at, _)| at);
                end = if last > 0 { found.start() + last } else { end };
            }
            if start < found.start() {
                each(&text[start..found.start()])?;
            }
            each(&text[found.start()..end])?;
            start = end;
        }
        if start < text.len() { each(&text[start..]) } else { Ok(()) }
    }
}
