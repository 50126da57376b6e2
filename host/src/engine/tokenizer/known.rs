//! Tokens whose text says what they are for. Many files name only one of the several ends that their model uses, and some
//! have such tokens as normal or user-defined ones, so that any text could end the answer.
//!
//! The lists are llama.cpp's (`llama-vocab.cpp`, where it looks for special tokens by text).

/// End a turn or a document.
const ENDS: &[&str] = &[
    "<eos>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|end|>",
    "<end_of_turn>",
    "<turn|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<end_of_utterance>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
    // In code: what would follow is nothing, or another file.
    "<|fim_pad|>",
    "<fim_pad>",
    "<fim-pad>",
    "<|file_sep|>",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
];

/// Ends a document too, but where there is `<eos>` it is HTML (Gemma).
const CLASSIC_END: &str = "</s>";

/// Mark the gap in code that is to be filled.
const FILL_IN: &[&str] = &[
    "<|fim_prefix|>",
    "<|fim_suffix|>",
    "<|fim_middle|>",
    "<fim_prefix>",
    "<fim_suffix>",
    "<fim_middle>",
    "<fim-prefix>",
    "<fim-suffix>",
    "<fim-middle>",
    "<｜fim▁begin｜>",
    "<｜fim▁hole｜>",
    "<｜fim▁end｜>",
    "<|code_prefix|>",
    "<|code_suffix|>",
    "<|code_middle|>",
    "<PRE>",
    "<SUF>",
    "<MID>",
    "▁<PRE>",
    "▁<SUF>",
    "▁<MID>",
];

/// The tokens that end a turn or a document; `id` tells the token of a text.
pub(super) fn ends(id: impl Fn(&str) -> Option<u32>) -> impl Iterator<Item = u32> {
    let classic = id(CLASSIC_END).filter(|_| id("<eos>").is_none());
    ENDS.iter().filter_map(move |text| id(text)).chain(classic)
}

/// The tokens that mark what is to be filled in.
pub(super) fn fill_in(id: impl Fn(&str) -> Option<u32>) -> impl Iterator<Item = u32> {
    FILL_IN.iter().filter_map(move |text| id(text))
}
