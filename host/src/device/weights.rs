//! A model's weights as a device sees them. Generic over `T`, the handle of a tensor: its place in an image while a load is
//! planned, a view of device memory while it computes.

use quant::TensorType;

/// A tensor in device memory: `rows` rows of `cols` elements, in GGUF's blocks of type `ty`. A vector has one row.
#[derive(Clone, Debug)]
pub struct Tensor<B> {
    /// Where its bytes are.
    pub buf: B,
    /// Its first byte in `buf`.
    pub offset: usize,
    /// Element type.
    pub ty: TensorType,
    /// Number of rows (outputs of a linear map).
    pub rows: usize,
    /// Elements of a row (inputs of a linear map).
    pub cols: usize,
}

/// y = W x + b.
#[derive(Clone, Debug)]
pub struct Linear<T> {
    /// W, `[outputs x inputs]`.
    pub weight: T,
    /// b, `[outputs]`, F32.
    pub bias: Option<T>,
}

/// The attention half of a layer.
#[derive(Clone, Debug)]
pub struct Attn<T> {
    /// RMSNorm weights before the projections, `[hidden]`.
    pub norm: T,
    /// `[heads * head_dim x hidden]`.
    pub q: Linear<T>,
    /// `[kv_heads * head_dim x hidden]`.
    pub k: Linear<T>,
    /// `[kv_heads * head_dim x hidden]`.
    pub v: Linear<T>,
    /// `[hidden x heads * head_dim]`.
    pub out: Linear<T>,
}

/// The feed-forward half of a layer.
#[derive(Clone, Debug)]
pub struct Ffn<T> {
    /// RMSNorm weights before the projections, `[hidden]`.
    pub norm: T,
    /// `[ffn x hidden]`.
    pub gate: Linear<T>,
    /// `[ffn x hidden]`.
    pub up: Linear<T>,
    /// `[hidden x ffn]`.
    pub down: Linear<T>,
}

/// One transformer layer.
#[derive(Clone, Debug)]
pub struct Layer<T> {
    /// Attention.
    pub attn: Attn<T>,
    /// Feed-forward.
    pub ffn: Ffn<T>,
}

/// What turns the last hidden state into logits.
#[derive(Clone, Debug)]
pub struct Head<T> {
    /// RMSNorm weights, `[hidden]`.
    pub norm: T,
    /// `[vocab x hidden]`.
    pub output: Linear<T>,
}

impl<T> Linear<T> {
    fn map<U>(&self, f: &mut impl FnMut(&T) -> U) -> Linear<U> {
        Linear { weight: f(&self.weight), bias: self.bias.as_ref().map(f) }
    }
}

impl<T> Layer<T> {
    /// The same layer with each handle replaced.
    pub fn map<U>(&self, mut f: impl FnMut(&T) -> U) -> Layer<U> {
        let f = &mut f;
        let Attn { norm, q, k, v, out } = &self.attn;
        let attn = Attn { norm: f(norm), q: q.map(f), k: k.map(f), v: v.map(f), out: out.map(f) };
        let Ffn { norm, gate, up, down } = &self.ffn;
        Layer { attn, ffn: Ffn { norm: f(norm), gate: gate.map(f), up: up.map(f), down: down.map(f) } }
    }
}

impl<T> Head<T> {
    /// The same head with each handle replaced.
    pub fn map<U>(&self, mut f: impl FnMut(&T) -> U) -> Head<U> {
        Head { norm: f(&self.norm), output: self.output.map(&mut f) }
    }
}
