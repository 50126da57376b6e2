//! The forward pass. It reads as the transformer; what a stage is made of is the device's business, and where a layer's
//! weights come from is the layers'.

use crate::{
    device::{Batch, Device, DeviceError, Dims, Head, Weight},
    model::{Layers, Model},
};

/// Where token embeddings are looked up.
pub enum Embedding<D: Device> {
    /// On the host, in the model file: one row is read per token, so the table need not take device memory.
    Host,
    /// On the device, which holds the table anyway because it is also the output matrix.
    Device(Weight<D>),
}

/// The activations of a pass.
pub struct State<D: Device> {
    /// The residual stream, `[tokens x hidden]`.
    pub x: D::Act,
    /// Queries, `[tokens x heads * head_dim]`.
    pub q: D::Act,
    /// Attention's result, `[tokens x heads * head_dim]`.
    pub y: D::Act,
    /// The feed-forward's inner activations, `[tokens x ffn]`.
    pub h: D::Act,
    /// `[wanted x vocab]`
    pub logits: D::Act,
}

impl<D: Device> State<D> {
    /// Room for passes of up to `tokens` tokens, `wanted` of them with logits.
    ///
    /// # Errors
    /// When the device's memory does not suffice.
    pub fn new(dev: &D, dims: &Dims, tokens: usize, wanted: usize) -> Result<Self, DeviceError> {
        Ok(State {
            x: dev.act(tokens, dims.hidden)?,
            q: dev.act(tokens, dims.q_width())?,
            y: dev.act(tokens, dims.q_width())?,
            h: dev.act(tokens, dims.ffn)?,
            logits: dev.act(wanted, dims.vocab)?,
        })
    }
}

/// One pass: all layers over all tokens of `batch`. Leaves the wanted logits in `s.logits`.
///
/// # Errors
/// The device's, with the layer they happened in.
#[allow(clippy::too_many_arguments, reason = "these are the parts of a transformer, each with its own owner")]
pub fn forward<D: Device>(
    dev: &mut D,
    model: &Model,
    embedding: &Embedding<D>,
    layers: &mut dyn Layers<D>,
    head: &Head<Weight<D>>,
    kv: &mut [D::Kv],
    s: &mut State<D>,
    batch: &Batch,
) -> Result<(), DeviceError> {
    dev.begin(batch)?;
    match embedding {
        Embedding::Host => dev.load(&model.embed(&batch.tokens), &mut s.x)?,
        Embedding::Device(table) => dev.embed(table, batch, &mut s.x)?,
    }
    for (i, kv) in kv.iter_mut().enumerate() {
        layers
            .with(dev, i, &mut |dev, layer| {
                dev.qkv(&layer.attn, &s.x, batch, kv, &mut s.q)?;
                dev.attend(&layer.attn, &s.q, kv, batch, &mut s.y)?;
                dev.linear(&layer.attn.out, layer.attn.post_norm.as_ref(), batch, &s.y, &mut s.x)?;
                dev.gate_up(&layer.ffn, &s.x, batch, &mut s.h)?;
                dev.linear(&layer.ffn.down, layer.ffn.post_norm.as_ref(), batch, &s.h, &mut s.x)
            })
            .map_err(|e| e.in_layer(i))?;
    }
    if batch.want.is_empty() { Ok(()) } else { dev.head(head, &s.x, batch, &mut s.logits) }
}
