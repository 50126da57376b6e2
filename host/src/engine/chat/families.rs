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

impl Family {
    /// Whether no token of the vocabulary gives the family away, so that to recognize it is to guess.
    pub(super) fn is_guess(&self) -> bool {
        self.marks.is_empty()
    }
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
        !family.is_guess() && family.marks.iter().all(has) && (family.model.is_none() || family.model == model)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::Writer;

    #[test]
    fn the_vocabulary_of_llama_2_is_only_a_guess() {
        let recognized = |name: &str, turn: &str| {
            let mut writer = Writer::new();
            let mut tokens: Vec<String> = (0..LLAMA_2_VOCABULARY).map(|id| format!("token {id}")).collect();
            tokens[0] = "<unk>".into();
            tokens[1..3].clone_from_slice(&["<s>".into(), "</s>".into()]);
            tokens[3..5].clone_from_slice(&[format!("[{turn}]"), format!("[/{turn}]")]);
            let mut types = vec![1; tokens.len()];
            types[..3].copy_from_slice(&[2, 3, 3]);
            writer.set("general.architecture", "llama").unwrap();
            writer.set("general.name", name).unwrap();
            writer.set("tokenizer.ggml.model", "llama").unwrap();
            writer.set("tokenizer.ggml.bos_token_id", &1_u32).unwrap();
            writer.set("tokenizer.ggml.tokens", &tokens.iter().map(String::as_str).collect::<Vec<_>>()[..]).unwrap();
            writer.set("tokenizer.ggml.token_type", &types[..]).unwrap();
            writer.set("tokenizer.ggml.scores", &vec![0.0_f32; tokens.len()][..]).unwrap();
            let file = writer.begin(Vec::new()).unwrap().finish().unwrap();
            let gguf = Gguf::from_vec("model.gguf", file).unwrap();
            let family = recognize(&gguf, &Tokenizer::from_gguf(&gguf).unwrap()).unwrap().unwrap();
            (family.name, family.is_guess())
        };
        assert_eq!(recognized("Tiny", "x"), ("llama-2", true));
        assert_eq!(recognized("Mistral 7B", "x"), ("mistral-v1", true));
        assert_eq!(recognized("Mistral 7B", "INST"), ("mistral-v3", false));
    }
}
