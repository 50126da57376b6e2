//! What one pass computes: tokens, their positions, and which of them need logits.

/// Which elements of a head are rotated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// Elements 2i and 2i + 1: GGUF's `llama`, whose q and k rows were permuted at conversion.
    Adjacent,
    /// Elements i and i + d/2, as the paper's authors and HF transformers store them: `qwen2` and most others.
    Half,
}

/// The function of the gate in a gated linear unit (Shazeer 2020).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x / (1 + e^-x): SwiGLU.
    Silu,
    /// The approximation of x Phi(x) with a tanh: GeGLU, Gemma's.
    GeluTanh,
}

/// The sizes of a model that a device computes with.
#[derive(Clone, Debug, PartialEq)]
pub struct Dims {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Width of the feed-forward layer.
    pub ffn: usize,
    /// Number of tokens in the vocabulary.
    pub vocab: usize,
    /// Elements of a head that are rotated; even, at most `head_dim`.
    pub rope_dims: usize,
    /// How they pair.
    pub pairing: Pairing,
    /// Rotation tables of a pass: layers of one model may rotate differently.
    pub rotations: usize,
    /// The feed-forward layer's.
    pub activation: Activation,
    /// What embeddings are multiplied with.
    pub embedding_scale: f32,
    /// What q k is multiplied with.
    pub attention_scale: f32,
    /// Attention's scores are cap tanh(score / cap).
    pub attention_cap: Option<f32>,
    /// Logits are cap tanh(logit / cap).
    pub logit_cap: Option<f32>,
    /// RMSNorm's epsilon.
    pub eps: f32,
    /// Positions in the KV cache.
    pub context: usize,
}

impl Dims {
    /// Width of the queries of one token.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of the keys, and of the values, of one token.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Bytes of keys and values that tokens at `positions` have to attend to in one layer, as far back as its window goes.
    pub fn kv_read(&self, positions: &[u32], window: Option<u32>) -> u64 {
        let seen = |&position: &u32| u64::from(position.saturating_add(1).min(window.unwrap_or(u32::MAX)));
        2 * 2 * positions.iter().map(seen).sum::<u64>() * self.kv_width() as u64
    }

    /// Bytes of one layer's K and V caches, F16.
    pub fn kv_bytes(&self) -> u64 {
        2 * 2 * (self.context as u64).saturating_mul(self.kv_width() as u64)
    }
}

/// Cosines and sines of the angles that heads are rotated by (Su et al. 2021), `[n x rope_dims / 2]` each.
#[derive(Clone, Debug, Default)]
pub struct Rotation {
    /// Cosines, times the model's magnitude.
    pub cos: Vec<f32>,
    /// Sines, times the model's magnitude.
    pub sin: Vec<f32>,
}

/// The tokens of one pass. Causal: a token attends to the cached positions up to its own, as far back as the layer sees.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Token ids, `[n]`.
    pub tokens: Vec<u32>,
    /// Their positions, `[n]`, each below `Dims::context`.
    pub positions: Vec<u32>,
    /// The rotations that layers choose from, `Dims::rotations` of them.
    pub rotations: Vec<Rotation>,
    /// Indices into `tokens` of those whose logits are wanted.
    pub want: Vec<u32>,
}

impl Batch {
    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// No tokens.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }
}
