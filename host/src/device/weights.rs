//! A model's weights as a device sees them. Generic over `T`, the handle of a tensor: its place in an image while a load is
//! planned, a view of device memory while it computes.

use std::ops::Range;

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

impl<B: Clone> Tensor<B> {
    /// The outputs `range` alone: rows of a matrix, elements of a vector. None where the tensor has not as many.
    pub fn part(&self, range: Range<usize>) -> Option<Self> {
        let outputs = if self.rows == 1 { self.cols } else { self.rows };
        if range.start > range.end || range.end > outputs {
            return None;
        }
        let (rows, cols) = if self.rows == 1 { (1, range.len()) } else { (range.len(), self.cols) };
        let before = if self.rows == 1 { range.start } else { range.start * self.cols };
        Some(Tensor { offset: self.offset + self.ty.row_bytes(before)?, rows, cols, ..self.clone() })
    }
}

/// y = W x + b.
#[derive(Clone, Debug)]
pub struct Linear<T> {
    /// W, `[outputs x inputs]`.
    pub weight: T,
    /// b, `[outputs]`, F32.
    pub bias: Option<T>,
}

/// The attention half of a layer: x + post_norm(out(attention(q, k, v of norm(x)))).
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
    /// RMSNorm weights of each head's query before its rotation, `[head_dim]`.
    pub q_norm: Option<T>,
    /// RMSNorm weights of each head's key before its rotation, `[head_dim]`.
    pub k_norm: Option<T>,
    /// `[hidden x heads * head_dim]`.
    pub out: Linear<T>,
    /// RMSNorm weights of what is added to the residual stream, `[hidden]`.
    pub post_norm: Option<T>,
    /// Which of the batch's rotations turns the queries.
    pub q_rotation: usize,
    /// Which of them turns the keys.
    pub k_rotation: usize,
    /// Positions that a token sees, its own included; none: all of them.
    pub window: Option<u32>,
}

/// The feed-forward half of a layer: x + post_norm(down(activation(gate(norm(x))) * up(norm(x)))).
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
    /// RMSNorm weights of what is added to the residual stream, `[hidden]`.
    pub post_norm: Option<T>,
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
        let Attn { norm, q, k, v, q_norm, k_norm, out, post_norm, q_rotation, k_rotation, window } = &self.attn;
        let attn = Attn {
            norm: f(norm),
            q: q.map(f),
            k: k.map(f),
            v: v.map(f),
            q_norm: q_norm.as_ref().map(&mut *f),
            k_norm: k_norm.as_ref().map(&mut *f),
            out: out.map(f),
            post_norm: post_norm.as_ref().map(&mut *f),
            q_rotation: *q_rotation,
            k_rotation: *k_rotation,
            window: *window,
        };
        let Ffn { norm, gate, up, down, post_norm } = &self.ffn;
        let ffn = Ffn {
            norm: f(norm),
            gate: gate.map(f),
            up: up.map(f),
            down: down.map(f),
            post_norm: post_norm.as_ref().map(f),
        };
        Layer { attn, ffn }
    }
}

impl<T> Head<T> {
    /// The same head with each handle replaced.
    pub fn map<U>(&self, mut f: impl FnMut(&T) -> U) -> Head<U> {
        Head { norm: f(&self.norm), output: self.output.map(&mut f) }
    }
}
