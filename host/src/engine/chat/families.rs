//! The templates of model families, for files that have none.

use super::{ChatError, ChatFault};
use crate::{
    engine::Tokenizer,
    gguf::{Gguf, GgufError},
};

/// A family of models that were trained with the same template.
pub(super) struct Family {
    /// Its name on the command line.
    pub name: &'static str,
    /// The template.
    pub source: &'static str,
    /// Tokens that vocabularies of this family have, and no family before it.
    marks: &'static [&'static str],
    /// `tokenizer.ggml.model`, where it makes a difference.
    model: Option<&'static str>,
}

macro_rules! family {
    ($name:literal, $marks:expr, $model:expr) => {
        Family {
            name: $name,
            source: include_str!(concat!("templates/", $name, ".jinja")),
            marks: $marks,
            model: $model,
        }
    };
}

/// Those with tokens of their own first.
const FAMILIES: [Family; 12] = [
    family!("llama-3", &["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], None),
    family!("chatml", &["<|im_start|>", "<|im_end|>"], None),
    family!("gemma", &["<start_of_turn>", "<end_of_turn>"], None),
    family!("phi-3", &["<|user|>", "<|assistant|>", "<|end|>"], None),
    family!("deepseek", &["<｜User｜>", "<｜Assistant｜>"], None),
    family!("mistral-v7-tekken", &["[SYSTEM_PROMPT]", "[INST]", "[/INST]"], Some("gpt2")),
    family!("mistral-v7", &["[SYSTEM_PROMPT]", "[INST]", "[/INST]"], Some("llama")),
    family!("mistral-v3-tekken", &["[INST]", "[/INST]"], Some("gpt2")),
    family!("mistral-v3", &["[INST]", "[/INST]"], Some("llama")),
    // These write their marks as text: no vocabulary gives them away.
    family!("mistral-v1", &[], None),
    family!("llama-2", &[], None),
    family!("zephyr", &[], None),
];

/// Tokens of the vocabulary of Llama 2, which Mistral 7B took over.
const LLAMA_2_VOCABULARY: usize = 32_000;

/// The names of all families.
pub(super) fn names() -> String {
    FAMILIES.iter().map(|family| family.name).collect::<Vec<_>>().join(", ")
}

/// The family of that name.
pub(super) fn named(name: &str) -> Result<&'static Family, ChatError> {
    let unknown = || ChatFault::NoSuchName { name: name.to_owned(), names: names() };
    let found = FAMILIES.iter().find(|family| family.name == name);
    found.ok_or_else(|| ChatError { file: "--chat-template".into(), fault: unknown() })
}

/// The family that the file's vocabulary is of, as far as it shows. A Llama 2 vocabulary without special tokens is taken for
/// a model of Meta's, or of Mistral's if the model is called so.
pub(super) fn recognize(gguf: &Gguf, tokenizer: &Tokenizer) -> Result<Option<&'static Family>, GgufError> {
    let metadata = gguf.metadata();
    let model = metadata.str("tokenizer.ggml.model")?;
    let has = |text: &&str| tokenizer.token_id_by_text(text).is_some();
    let is_of = |family: &&Family| {
        !family.marks.is_empty() && family.marks.iter().all(has) && (family.model.is_none() || family.model == model)
    };
    if let Some(family) = FAMILIES.iter().find(is_of) {
        return Ok(Some(family));
    }
    let llama_2 = model == Some("llama")
        && metadata.str("general.architecture")? == Some("llama")
        && tokenizer.vocab_size() == LLAMA_2_VOCABULARY;
    let mistral = metadata.str("general.name")?.is_some_and(|name| name.to_lowercase().contains("mistral"));
    let name = if mistral { "mistral-v1" } else { "llama-2" };
    Ok(FAMILIES.iter().find(|family| llama_2 && family.name == name))
}
