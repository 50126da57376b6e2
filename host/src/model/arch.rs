//! What an architecture's name says about a model and its metadata do not. A new architecture of this shape is a row here.

use super::ModelError;
use crate::{
    device::{Activation, Pairing},
    gguf::Gguf,
};

/// The architectures that have a forward pass here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Llama 1 to 3, Mistral and others stored as `llama`.
    Llama,
    /// Mistral Small 3.1 and Ministral 3.
    Mistral3,
    /// Qwen 1.5, 2 and 2.5.
    Qwen2,
    /// Qwen 3, the dense ones.
    Qwen3,
    /// Phi-3 and Phi-4.
    Phi3,
    /// Gemma 1.
    Gemma,
    /// Gemma 2.
    Gemma2,
    /// Gemma 3, its text part.
    Gemma3,
}

/// The facts of an architecture, as llama.cpp's conversion and models define its files.
#[derive(Clone, Debug)]
pub struct Traits {
    /// `general.architecture`, which is also the prefix of its metadata.
    pub name: &'static str,
    /// Which elements of a head rotate together.
    pub pairing: Pairing,
    /// The feed-forward layer's.
    pub activation: Activation,
    /// Queries and keys have a norm for each head.
    pub head_norms: bool,
    /// What attention and feed-forward add to the residual stream has a norm.
    pub post_norms: bool,
    /// Embeddings are multiplied by sqrt(hidden).
    pub scaled_embeddings: bool,
    /// Attention looks back as far as this where the file does not say.
    pub window: Option<u32>,
    /// Of so many layers the last one sees everything, the others their window; 0: all layers see their window alone.
    pub window_period: u32,
    /// Layers with a window rotate by this base, unscaled, where the file does not say.
    pub window_rope_base: Option<f32>,
    /// The cap of attention's scores where the file does not say.
    pub attention_cap: Option<f32>,
    /// The cap of logits where the file does not say.
    pub logit_cap: Option<f32>,
    /// The number of layers of the one model whose attention scale is 1 / sqrt(hidden / heads), not 1 / sqrt(head_dim). No
    /// metadata tell.
    pub layers_of_the_model_scaled_by_width: Option<usize>,
}

const LLAMA: Traits = Traits {
    name: "llama",
    pairing: Pairing::Adjacent,
    activation: Activation::Silu,
    head_norms: false,
    post_norms: false,
    scaled_embeddings: false,
    window: None,
    window_period: 0,
    window_rope_base: None,
    attention_cap: None,
    logit_cap: None,
    layers_of_the_model_scaled_by_width: None,
};
const QWEN2: Traits = Traits { name: "qwen2", pairing: Pairing::Half, ..LLAMA };
const GEMMA: Traits = Traits { name: "gemma", activation: Activation::GeluTanh, scaled_embeddings: true, ..QWEN2 };
const GEMMA2: Traits = Traits {
    name: "gemma2",
    post_norms: true,
    window: Some(4096),
    window_period: 2,
    attention_cap: Some(50.0),
    logit_cap: Some(30.0),
    layers_of_the_model_scaled_by_width: Some(46),
    ..GEMMA
};
const GEMMA3: Traits = Traits {
    name: "gemma3",
    head_norms: true,
    post_norms: true,
    window_period: 6,
    window_rope_base: Some(10_000.0),
    layers_of_the_model_scaled_by_width: Some(62),
    ..GEMMA
};

impl Architecture {
    /// All of them.
    pub const ALL: [Architecture; 8] = [
        Architecture::Llama,
        Architecture::Mistral3,
        Architecture::Qwen2,
        Architecture::Qwen3,
        Architecture::Phi3,
        Architecture::Gemma,
        Architecture::Gemma2,
        Architecture::Gemma3,
    ];

    /// Its facts.
    pub const fn traits(self) -> Traits {
        match self {
            Architecture::Llama => LLAMA,
            Architecture::Mistral3 => Traits { name: "mistral3", ..LLAMA },
            Architecture::Qwen2 => QWEN2,
            Architecture::Qwen3 => Traits { name: "qwen3", head_norms: true, ..QWEN2 },
            Architecture::Phi3 => Traits { name: "phi3", ..QWEN2 },
            Architecture::Gemma => GEMMA,
            Architecture::Gemma2 => GEMMA2,
            Architecture::Gemma3 => GEMMA3,
        }
    }

    /// The name in `general.architecture`.
    pub const fn name(self) -> &'static str {
        self.traits().name
    }

    /// The architecture of a file.
    ///
    /// # Errors
    /// When it states none, or one that is not supported.
    pub(super) fn of(gguf: &Gguf) -> Result<Self, ModelError> {
        let arch = gguf.metadata().require_str("general.architecture")?;
        Self::ALL.into_iter().find(|a| a.name() == arch).ok_or_else(|| ModelError::Architecture {
            file: gguf.name().to_owned(),
            arch: arch.to_owned(),
            supported: Self::ALL.map(Self::name).join(", "),
        })
    }
}
