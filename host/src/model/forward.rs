//! The forward pass. It reads as the transformer; what a stage is made of is the device's business, and where a layer's
//! weights come from is the layers'.

use crate::{
    device::{Batch, Device, DeviceError, Dims, Owner, ReplayKey, ReplayPart, Weight},
    model::{Layers, Model},
};

/// Where token embeddings are looked up.
pub enum Embedding<D: Device> {
    /// On the host, in the model file: one row is read per token, so the table need not take device memory.
    Host,
    /// On the device, which holds the table anyway because it is also the output matrix.
    Device(Weight<D>),
}

/// A model's weights, placed.
pub struct Weights<D: Device> {
    embedding: Embedding<D>,
    layers: Box<dyn Layers<D>>,
    owner: Owner,
}

impl<D: Device> Weights<D> {
    /// The parts of a model.
    pub fn new(embedding: Embedding<D>, layers: Box<dyn Layers<D>>) -> Self {
        Weights { embedding, layers, owner: Owner::default() }
    }

    /// The layers.
    pub fn layers(&mut self) -> &mut dyn Layers<D> {
        &mut *self.layers
    }
}

/// What passes compute in: the KV cache of a text, and a pass's activations.
pub struct State<D: Device> {
    /// The residual stream, `[tokens x hidden]`.
    x: D::Act,
    /// Queries, `[tokens x heads * head_dim]`.
    q: D::Act,
    /// Attention's result, `[tokens x heads * head_dim]`.
    y: D::Act,
    /// The feed-forward's inner activations, `[tokens x ffn]`.
    h: D::Act,
    /// `[wanted x vocab]`
    logits: D::Act,
    /// The layers' caches.
    kv: Vec<D::Kv>,
    owner: Owner,
}

impl<D: Device> State<D> {
    /// Room for passes of up to `tokens` tokens through `layers` layers, with logits of up to `wanted` tokens.
    ///
    /// # Errors
    /// When the device's memory does not suffice.
    pub fn new(dev: &D, dims: &Dims, layers: usize, tokens: usize, wanted: usize) -> Result<Self, DeviceError> {
        Ok(State {
            x: dev.residual(tokens)?,
            q: dev.act(tokens, dims.q_width())?,
            y: dev.act(tokens, dims.q_width())?,
            h: dev.act(tokens, dims.ffn)?,
            logits: dev.act(wanted, dims.vocab)?,
            kv: (0..layers).map(|_| dev.kv()).collect::<Result<_, _>>()?,
            owner: Owner::default(),
        })
    }

    /// The logits that the last pass left, `[wanted x vocab]`.
    pub fn logits(&self) -> &D::Act {
        &self.logits
    }
}

/// One pass: all layers over all tokens of `batch`. Leaves the wanted logits in `s.logits()`.
///
/// # Errors
/// The device's, with the layer they happened in.
pub fn forward<D: Device>(
    dev: &mut D,
    model: &Model,
    w: &mut Weights<D>,
    s: &mut State<D>,
    batch: &Batch,
) -> Result<(), DeviceError> {
    let embeddings = match w.embedding {
        Embedding::Host => Some(model.embed(&batch.tokens).map_err(|e| DeviceError::Source(e.into()))?),
        Embedding::Device(_) => None,
    };
    dev.begin(batch, embeddings.as_deref(), &mut s.x)?;
    // From here on, passes over one token differ in nothing but what `begin` brought. If no layer has to be waited for, all
    // of it is one computation.
    if batch.len() == 1 && w.layers.resident() {
        let key = ReplayKey::new(&w.owner, &s.owner, ReplayPart::Pass { wanted: !batch.want.is_empty() });
        return dev.replay(key, &mut |dev| compute(dev, w, s, batch));
    }
    compute(dev, w, s, batch)
}

fn compute<D: Device>(dev: &mut D, w: &mut Weights<D>, s: &mut State<D>, batch: &Batch) -> Result<(), DeviceError> {
    if let Embedding::Device(table) = &w.embedding {
        dev.embed(table, batch, &mut s.x)?;
    }
    for (id, kv) in s.kv.iter_mut().enumerate() {
        let (weights, state) = (&w.owner, &s.owner);
        let (x, q, y, h) = (&mut s.x, &mut s.q, &mut s.y, &mut s.h);
        w.layers
            .with(dev, id, &mut |dev, layer| {
                let mut compute = |dev: &mut D| {
                    dev.qkv(&layer.attn, x, batch, kv, q)?;
                    dev.attend(&layer.attn, q, kv, batch, y)?;
                    dev.linear(&layer.attn.out, layer.attn.post_norm.as_ref(), batch, y, x)?;
                    dev.gate_up(&layer.ffn, x, batch, h)?;
                    dev.linear(&layer.ffn.down, layer.ffn.post_norm.as_ref(), batch, h, x)
                };
                if batch.len() == 1 {
                    dev.replay(ReplayKey::new(weights, state, ReplayPart::Layer { id }), &mut compute)
                } else {
                    compute(dev)
                }
            })
            .map_err(|e| e.in_layer(id))?;
    }
    if batch.want.is_empty() {
        return Ok(());
    }
    let layers = s.kv.len();
    let head = w.layers.with_head(dev, &mut |dev, head| dev.head(head, &s.x, batch, &mut s.logits));
    head.map_err(|e| e.in_group(layers, layers))
}
