//! A model's hyperparameters, from its metadata.

use super::{ModelError, rope::Rope};
use crate::{
    device::{Dims, Pairing},
    gguf::Gguf,
};

/// Heads wider than this have no kernel.
const MAX_HEAD_DIM: usize = gpu::ops::MAX_HEAD_DIM as usize;

/// A model's sizes and constants.
#[derive(Clone, Debug)]
pub struct Config {
    /// `general.architecture`.
    pub arch: Architecture,
    /// The model's file, for messages.
    pub file: String,
    /// `general.name`, where there is one.
    pub name: Option<String>,
    /// Number of layers.
    pub layers: usize,
    /// The context it was trained for, in tokens.
    pub trained_context: usize,
    /// What the device computes with. `dims.context` is the context of this run.
    pub dims: Dims,
    /// How positions become rotations.
    pub rope: Rope,
}

/// The architectures that have a forward pass here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Llama 1 to 3, Mistral and others stored as `llama`.
    Llama,
    /// Qwen 1.5, 2 and 2.5.
    Qwen2,
}

impl Architecture {
    const ALL: [Architecture; 2] = [Architecture::Llama, Architecture::Qwen2];

    /// The name in `general.architecture`, which is also the prefix of its metadata.
    pub fn name(self) -> &'static str {
        match self {
            Architecture::Llama => "llama",
            Architecture::Qwen2 => "qwen2",
        }
    }

    fn pairing(self) -> Pairing {
        match self {
            Architecture::Llama => Pairing::Adjacent,
            Architecture::Qwen2 => Pairing::Half,
        }
    }

    fn of(gguf: &Gguf) -> Result<Self, ModelError> {
        let arch = gguf.metadata().require_str("general.architecture")?;
        Self::ALL.into_iter().find(|a| a.name() == arch).ok_or_else(|| ModelError::Architecture {
            file: gguf.name().to_owned(),
            arch: arch.to_owned(),
            supported: Self::ALL.map(Self::name).join(", "),
        })
    }
}

impl Config {
    /// Reads and checks the metadata. `context` limits the KV cache; none means min(the model's, `default_context`).
    ///
    /// # Errors
    /// An architecture or feature that is not supported, or metadata that make no sense.
    pub fn new(gguf: &Gguf, context: Option<usize>, default_context: usize) -> Result<Self, ModelError> {
        let arch = Architecture::of(gguf)?;
        let keys = Keys { gguf, prefix: arch.name() };
        let size = |key: &str, max: usize| keys.require(key).and_then(|v| keys.within(key, v, 1, max));

        if gguf.tensors().is_empty() {
            return Err(keys.unsupported("a file without tensors (a vocabulary, say)".into()));
        }
        let layers = size("block_count", gguf.tensors().len())?;
        let hidden = size("embedding_length", 1 << 20)?;
        let heads = size("attention.head_count", 1 << 14)?;
        let kv_heads = keys.or("attention.head_count_kv", heads)?;
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(keys.bad("attention.head_count_kv", format!("{kv_heads} does not divide {heads} query heads")));
        }
        let head_dim = match keys.gguf.metadata().u32(&keys.key("attention.key_length"))? {
            Some(stated) => stated as usize,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                return Err(
                    keys.bad("attention.head_count", format!("{heads} does not divide embedding_length {hidden}"))
                );
            }
        };
        keys.within("attention.key_length", head_dim, 2, MAX_HEAD_DIM)?;
        let value_dim = keys.or("attention.value_length", head_dim)?;
        if value_dim != head_dim {
            return Err(keys.unsupported(format!("attention.value_length {value_dim} unlike key_length {head_dim}")));
        }
        if !head_dim.is_multiple_of(2) {
            return Err(keys.unsupported(format!("attention.key_length {head_dim}, an odd number,")));
        }
        let rope_dims = keys.or("rope.dimension_count", head_dim)?;
        keys.within("rope.dimension_count", rope_dims, 2, head_dim)?;
        if !rope_dims.is_multiple_of(2) {
            return Err(keys.bad("rope.dimension_count", format!("{rope_dims} is odd")));
        }
        if keys.or("expert_count", 0)? > 0 {
            return Err(keys.unsupported("a mixture of experts (expert_count)".into()));
        }
        let eps = keys.gguf.metadata().require_f32(&keys.key("attention.layer_norm_rms_epsilon"))?;
        if !(eps.is_finite() && eps >= 0.0) {
            return Err(keys.bad("attention.layer_norm_rms_epsilon", format!("{eps} is not a number of 0 or more")));
        }
        let ffn = size("feed_forward_length", 1 << 22)?;
        let trained_context = size("context_length", 1 << 31)?;
        let context = context.unwrap_or(trained_context.min(default_context));
        if context == 0 || context > trained_context {
            return Err(keys.bad(
                "context_length",
                format!(
                    "the model was trained for {trained_context} tokens; -c {context} is outside 1..={trained_context}"
                ),
            ));
        }
        let vocab = gguf.require("token_embd.weight")?.rows() as usize;
        // Products of sizes then fit 64 bits with room to spare, and counts of elements 32.
        if vocab > 1 << 22 {
            return Err(keys.unsupported(format!("a vocabulary of {vocab} tokens")));
        }

        let dims =
            Dims { hidden, heads, kv_heads, head_dim, ffn, vocab, rope_dims, pairing: arch.pairing(), eps, context };
        Ok(Config {
            arch,
            file: gguf.name().to_owned(),
            name: gguf.metadata().str("general.name")?.map(str::to_owned),
            layers,
            trained_context,
            rope: Rope::new(gguf, arch.name(), rope_dims)?,
            dims,
        })
    }
}

/// Integer metadata under an architecture's prefix.
struct Keys<'a> {
    gguf: &'a Gguf,
    prefix: &'a str,
}

impl Keys<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.prefix)
    }

    fn require(&self, key: &str) -> Result<usize, ModelError> {
        Ok(self.gguf.metadata().require_u32(&self.key(key))? as usize)
    }

    fn or(&self, key: &str, default: usize) -> Result<usize, ModelError> {
        Ok(self.gguf.metadata().u32(&self.key(key))?.map_or(default, |v| v as usize))
    }

    fn within(&self, key: &str, value: usize, min: usize, max: usize) -> Result<usize, ModelError> {
        if (min..=max).contains(&value) {
            Ok(value)
        } else {
            Err(self.bad(key, format!("{value} is outside {min}..={max}")))
        }
    }

    fn bad(&self, key: &str, why: String) -> ModelError {
        ModelError::Metadata { file: self.gguf.name().to_owned(), key: self.key(key), why }
    }

    fn unsupported(&self, what: String) -> ModelError {
        ModelError::Unsupported { file: self.gguf.name().to_owned(), what }
    }
}
