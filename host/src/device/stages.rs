//! The stages as compositions of primitives: what a device computes that fuses nothing.

use super::{Attn, Batch, Device, Dims, Epilogue, Ffn, Head, Linear, Result, Weight};

/// Activations that live only inside a stage, `[max_tokens x width]` each.
pub struct Scratch<A> {
    pub(super) norm: A,
    pub(super) k: A,
    pub(super) v: A,
    pub(super) rows: A,
    pub(super) up: A,
}

/// Scratch for passes of up to `max_tokens` tokens.
pub(super) fn new_scratch<D: Device>(dev: &D, dims: &Dims, max_tokens: usize) -> Result<Scratch<D::Act>> {
    Ok(Scratch {
        norm: dev.act(max_tokens, dims.hidden)?,
        k: dev.act(max_tokens, dims.kv_width())?,
        v: dev.act(max_tokens, dims.kv_width())?,
        rows: dev.act(max_tokens, dims.hidden)?,
        up: dev.act(max_tokens, dims.ffn)?,
    })
}

/// Lends the scratch to a stage's body, which also needs the device.
pub(super) fn with_scratch<D: Device>(
    dev: &mut D,
    f: impl FnOnce(&mut D, &mut Scratch<D::Act>) -> Result<()>,
) -> Result<()> {
    let mut scratch = dev.scratch().take().expect("prepare() makes the scratch before the first stage");
    let result = f(dev, &mut scratch);
    *dev.scratch() = Some(scratch);
    result
}

/// [`Device::qkv`]
pub(super) fn qkv<D: Device>(
    dev: &mut D,
    w: &Attn<Weight<D>>,
    x: &D::Act,
    batch: &Batch,
    kv: &mut D::Kv,
    q: &mut D::Act,
) -> Result<()> {
    let (n, heads, kv_heads) = (batch.len(), dev.dims().heads, dev.dims().kv_heads);
    with_scratch(dev, |dev, s| {
        dev.rms_norm(&w.norm, n, x, &mut s.norm, Epilogue::Store)?;
        dev.matmul(&w.q, n, &s.norm, q, Epilogue::Store)?;
        dev.matmul(&w.k, n, &s.norm, &mut s.k, Epilogue::Store)?;
        dev.matmul(&w.v, n, &s.norm, &mut s.v, Epilogue::Store)?;
        if let Some(norm) = &w.q_norm {
            dev.norm_heads(norm, n * heads, q)?;
        }
        if let Some(norm) = &w.k_norm {
            dev.norm_heads(norm, n * kv_heads, &mut s.k)?;
        }
        dev.rope(batch, w.q_rotation, heads, q)?;
        dev.rope(batch, w.k_rotation, kv_heads, &mut s.k)?;
        dev.append(batch, &s.k, &s.v, kv)
    })
}

/// [`Device::linear`]
pub(super) fn linear<D: Device>(
    dev: &mut D,
    w: &Linear<Weight<D>>,
    norm: Option<&Weight<D>>,
    batch: &Batch,
    y: &D::Act,
    x: &mut D::Act,
) -> Result<()> {
    let (n, Some(norm)) = (batch.len(), norm) else {
        return dev.matmul(w, batch.len(), y, x, Epilogue::Residual);
    };
    with_scratch(dev, |dev, s| {
        dev.matmul(w, n, y, &mut s.norm, Epilogue::Store)?;
        dev.rms_norm(norm, n, &s.norm, x, Epilogue::Residual)
    })
}

/// [`Device::gate_up`]
pub(super) fn gate_up<D: Device>(
    dev: &mut D,
    w: &Ffn<Weight<D>>,
    x: &D::Act,
    batch: &Batch,
    h: &mut D::Act,
) -> Result<()> {
    let n = batch.len();
    with_scratch(dev, |dev, s| {
        dev.rms_norm(&w.norm, n, x, &mut s.norm, Epilogue::Store)?;
        dev.matmul(&w.gate, n, &s.norm, h, Epilogue::Store)?;
        dev.matmul(&w.up, n, &s.norm, &mut s.up, Epilogue::Store)?;
        dev.glu(n, h, &s.up)
    })
}

/// [`Device::head`]
pub(super) fn head<D: Device>(
    dev: &mut D,
    w: &Head<Weight<D>>,
    x: &D::Act,
    batch: &Batch,
    logits: &mut D::Act,
) -> Result<()> {
    let rows = batch.want.len();
    with_scratch(dev, |dev, s| {
        // All rows are wanted as they are, as while generating: nothing is picked.
        let x = if batch.want.iter().copied().eq(0..batch.len() as u32) {
            x
        } else {
            dev.gather(batch, x, &mut s.rows)?;
            &s.rows
        };
        dev.rms_norm(&w.norm, rows, x, &mut s.norm, Epilogue::Store)?;
        dev.matmul(&w.output, rows, &s.norm, logits, Epilogue::Store)?;
        dev.dims().logit_cap.map_or(Ok(()), |cap| dev.cap_logits(rows, cap, logits))
    })
}
