//! The stages of a pass over one token, each in as few launches as it can be: norms are computed with the product behind them,
//! biases and residuals with the one before, and all of attention at once.
//!
//! `qkv` leaves queries, keys and values as they come out of their matrices; `attend` norms and rotates them, and appends.

use gpu::attention::{self, Decode, DecodeShape, DecodeVisitor};

use super::{
    CudaAct, CudaBuf, CudaDevice, CudaKv,
    driver::{Driver, Properties},
    primitives::positions_seen,
};
use crate::device::{Attn, Batch, Device, Dims, Epilogue, Ffn, Head, Pairing, Result, Tensor, stages::with_scratch};

/// What attention over the cache needs beside its operands.
pub(super) struct Attention<D: Driver> {
    shape: DecodeShape,
    /// For passes that are short ([`super::pass::Pass::is_short`]).
    short: Option<DecodeShape>,
    workspace: D::Mem,
}

/// How attention is launched on such a GPU: in any context, and in a short one.
fn shapes(dims: &Dims, gpu: &Properties) -> (DecodeShape, Option<DecodeShape>) {
    let [heads, kv_heads, head_dim, context] =
        [dims.heads, dims.kv_heads, dims.head_dim, dims.context].map(|size| size as u32);
    let short = DecodeShape::short(heads, kv_heads, head_dim, gpu.multiprocessors, gpu.cluster);
    (DecodeShape::new(heads, kv_heads, head_dim, context, gpu.multiprocessors), short)
}

/// What either shape's workspace takes; their counters are the same.
fn workspace_bytes(shape: DecodeShape, short: Option<DecodeShape>) -> usize {
    shape.workspace_bytes().max(short.map_or(0, |short| short.workspace_bytes()))
}

impl<D: Driver> Attention<D> {
    pub fn new(driver: &D, dims: &Dims) -> Result<Self> {
        let (shape, short) = shapes(dims, driver.properties());
        let workspace = driver.alloc("attention's partial results", workspace_bytes(shape, short))?;
        driver.write(&workspace, 0, &vec![0; shape.counter_bytes()])?;
        Ok(Attention { shape, short, workspace })
    }

    /// Whether short contexts have a shape of their own.
    pub fn has_short(&self) -> bool {
        self.short.is_some()
    }

    /// Bytes of device memory.
    pub fn bytes(driver: &D, dims: &Dims) -> u64 {
        let (shape, short) = shapes(dims, driver.properties());
        workspace_bytes(shape, short) as u64
    }
}

impl<D: Driver> CudaDevice<D> {
    /// Whether one token goes through [`Self::project`] and [`Self::decode`]: both or neither.
    pub(super) fn projects(&self, w: &Attn<Tensor<CudaBuf<D>>>) -> bool {
        self.fit([&w.q, &w.k, &w.v])
    }

    /// [`Device::qkv`] of one token, up to the projections: keys and values are in the scratch afterwards.
    pub(super) fn project(&mut self, w: &Attn<Tensor<CudaBuf<D>>>, x: &CudaAct<D>, q: &CudaAct<D>) -> Result<()> {
        with_scratch(self, |dev, s| {
            dev.multiply(Some(&w.norm), 1, x, &[(&w.q, q), (&w.k, &s.k), (&w.v, &s.v)], Epilogue::Store)
        })
    }

    /// [`Device::attend`] of one token, from what `project` left on.
    pub(super) fn decode(
        &mut self,
        w: &Attn<Tensor<CudaBuf<D>>>,
        q: &CudaAct<D>,
        kv: &CudaKv<D>,
        batch: &Batch,
        y: &CudaAct<D>,
    ) -> Result<()> {
        with_scratch(self, |dev, s| {
            let (dims, inputs, attention) = (dev.dims(), dev.pass().begun(batch)?, &dev.pass().attention);
            let (q_rotation, k_rotation) = (inputs.rotation(w.q_rotation)?, inputs.rotation(w.k_rotation)?);
            let norm = |w: &Option<Tensor<CudaBuf<D>>>| {
                w.as_ref().map_or(Ok(std::ptr::null()), |w| Self::vector(w, dims.head_dim))
            };
            let window = positions_seen(w.window)?;
            let is_short = window <= attention::SHORT || dev.pass().is_short();
            let shape = attention.short.filter(|_| is_short).unwrap_or(attention.shape);
            let args = Decode {
                q: q.ptr("queries", dims.q_width())?,
                k: s.k.ptr("keys", dims.kv_width())?,
                v: s.v.ptr("values", dims.kv_width())?,
                q_norm: norm(&w.q_norm)?,
                k_norm: norm(&w.k_norm)?,
                q_cos: q_rotation.0,
                q_sin: q_rotation.1,
                k_cos: k_rotation.0,
                k_sin: k_rotation.1,
                k_cache: D::address(&kv.k) as *mut cuda_std::F16,
                v_cache: D::address(&kv.v) as *mut cuda_std::F16,
                position: inputs.positions,
                y: y.ptr("attention's output", dims.q_width())?,
                workspace: D::address(&attention.workspace) as *mut u32,
                heads: dims.heads as u32,
                kv_heads: dims.kv_heads as u32,
                head_dim: dims.head_dim as u32,
                context: dims.context as u32,
                rope_dims: dims.rope_dims as u32,
                pairing: match dims.pairing {
                    Pairing::Adjacent => attention::ADJACENT,
                    Pairing::Half => attention::HALF,
                },
                window,
                splits: shape.splits(),
                scale: dims.attention_scale,
                cap: dims.attention_cap.unwrap_or(0.0),
                eps: dims.eps,
                overlap: dev.overlap().into(),
            };
            let launch = || attention::visit_decode(args.head_dim, Launch { driver: &*dev.driver, shape, args });
            dev.labelled(|| ("KV cache".into(), dims.kv_read(&batch.positions, w.window)), launch)
        })
    }

    /// [`Device::gate_up`] of one token.
    pub(super) fn gate_up_one(
        &mut self,
        w: &Ffn<Tensor<CudaBuf<D>>>,
        x: &CudaAct<D>,
        h: &mut CudaAct<D>,
    ) -> Result<()> {
        if w.gate.weight.ty == w.up.weight.ty {
            return self.gated(&w.norm, x, &w.gate, &w.up, h);
        }
        with_scratch(self, |dev, s| {
            dev.multiply(Some(&w.norm), 1, x, &[(&w.gate, h), (&w.up, &s.up)], Epilogue::Store)?;
            dev.glu(1, h, &s.up)
        })
    }

    /// [`Device::head`] of one token whose logits are wanted.
    pub(super) fn head_one(
        &mut self,
        w: &Head<Tensor<CudaBuf<D>>>,
        x: &CudaAct<D>,
        logits: &mut CudaAct<D>,
    ) -> Result<()> {
        self.multiply(Some(&w.norm), 1, x, &[(&w.output, logits)], Epilogue::Store)?;
        self.dims().logit_cap.map_or(Ok(()), |cap| self.cap_logits(1, cap, logits))
    }
}

/// Launches attention for a size of head.
struct Launch<'a, D> {
    driver: &'a D,
    shape: DecodeShape,
    args: Decode,
}

impl<D: Driver> DecodeVisitor for Launch<'_, D> {
    type Out = Result<()>;

    fn visit<K: cuda_std::kernel::Kernel<Args = (Decode,)>>(self) -> Result<()> {
        // SAFETY: `decode` checked every extent against its buffer; `begin` checked that the position is below the context
        // that the caches were made for. The workspace has room for this shape, and its counters are 0 between launches.
        unsafe { self.driver.launch::<K>(self.shape.grid(), (self.args,)) }
    }
}
