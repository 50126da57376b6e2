//! The CPU device: plain Rust over rayon. It computes where the weights are, so a resident model is used in the file's map.

mod copies;
mod dot;
mod math;
mod memory;

use std::{
    ops::Range,
    sync::{Arc, OnceLock},
};

use copies::Copies;
pub use copies::{CpuEvent, CpuPinned};
pub use dot::InstructionSet;
use half::f16;
use memory::Bytes;
pub use memory::{CpuBuf, Memory};
use rayon::prelude::*;
use readahead::DeviceMemory;

use super::{
    Activation, Batch, Device, DeviceError, Dims, Epilogue, Linear, MemoryInfo, Pairing, Result, Rotation, Scratch,
    SharedBytes, Tensor, Transfer, Weight,
    link::not_slowed_down,
    new_scratch,
    top_k::{self, Candidate},
};

/// Activations that a thread computes at a time where each is computed by itself: some microseconds' work.
const PART: usize = 2048;

/// Activations, `[rows x width]`.
pub struct CpuAct {
    data: Vec<f32>,
    width: usize,
}

impl CpuAct {
    /// The first `n` rows.
    fn rows(&self, n: usize) -> &[f32] {
        &self.data[..n * self.width]
    }

    fn rows_mut(&mut self, n: usize) -> &mut [f32] {
        &mut self.data[..n * self.width]
    }
}

/// One layer's caches, `[kv_heads x context x head_dim]` each.
pub struct CpuKv {
    k: Vec<f16>,
    v: Vec<f16>,
}

/// The CPU device. Uses the global rayon pool.
pub struct CpuDevice {
    name: String,
    dims: Option<Dims>,
    scratch: Option<Scratch<CpuAct>>,
    set: InstructionSet,
    workspace: dot::Workspace,
    /// Started by the first upload.
    copies: OnceLock<Copies>,
    link_limit: Option<f64>,
}

impl CpuDevice {
    /// The CPU, with as many threads as the global rayon pool has and the fastest instructions that are supported.
    pub fn new() -> Self {
        Self::with(InstructionSet::detect())
    }

    /// The CPU, with chosen instructions. They make no difference to what is computed, to the bit.
    pub fn with(set: InstructionSet) -> Self {
        let name = format!("cpu ({} threads, {set})", rayon::current_num_threads());
        CpuDevice {
            name,
            dims: None,
            scratch: None,
            set,
            workspace: dot::Workspace::default(),
            copies: OnceLock::new(),
            link_limit: None,
        }
    }

    fn copies(&self) -> Result<&Copies> {
        if let Some(copies) = self.copies.get() {
            return Ok(copies);
        }
        let copies = Copies::start()?;
        Ok(self.copies.get_or_init(|| copies))
    }
}

impl Default for CpuDevice {
    fn default() -> Self {
        Self::new()
    }
}

impl Transfer for CpuDevice {
    type Buf = CpuBuf;
    type Pinned = CpuPinned;
    type Event = CpuEvent;

    fn name(&self) -> &str {
        &self.name
    }

    fn memory(&self) -> Result<MemoryInfo> {
        crate::platform::memory()
            .map_err(|e| DeviceError::Driver { call: "reading /proc/meminfo", message: e.to_string() })
    }

    fn alloc(&self, what: &str, bytes: usize) -> Result<CpuBuf> {
        Ok(CpuBuf::Owned(Arc::new(Memory::new(what, bytes)?)))
    }

    fn pinned(&self, what: &str, bytes: usize) -> Result<CpuPinned> {
        CpuPinned::new(what, bytes)
    }

    fn in_place(&self) -> bool {
        true
    }

    fn share(&self, bytes: SharedBytes) -> Result<CpuBuf> {
        Ok(CpuBuf::Shared(bytes))
    }

    fn zero_copy(&self, src: CpuPinned) -> Result<CpuBuf> {
        Ok(CpuBuf::Shared(src.into_shared()))
    }

    fn write(&self, dst: &CpuBuf, offset: usize, bytes: &[u8]) -> Result<()> {
        let target = offset..offset.saturating_add(bytes.len());
        dst.owned()?.write("write", target)?.copy_from_slice(bytes);
        Ok(())
    }

    fn upload(
        &self,
        src: &CpuPinned,
        range: Range<usize>,
        dst: &CpuBuf,
        offset: usize,
        after: Option<&CpuEvent>,
    ) -> Result<CpuEvent> {
        self.copies()?.upload(src, range, dst, offset, after, self.link_limit)
    }

    fn limit_link(&mut self, bytes_per_second: Option<f64>) {
        self.link_limit = bytes_per_second;
    }

    fn device_memory<'a>(&'a self, buf: &'a CpuBuf) -> Result<Box<dyn DeviceMemory + 'a>> {
        not_slowed_down(self.link_limit)?;
        Ok(Box::new(buf.owned()?.as_ref()))
    }

    /// All that was asked to be computed has been, by the caller's own thread.
    fn mark(&self) -> Result<CpuEvent> {
        Ok(CpuEvent::now())
    }

    fn mark_copies(&self) -> Result<CpuEvent> {
        Ok(self.copies()?.mark())
    }

    fn compute_waits(&self, event: &CpuEvent) -> Result<()> {
        self.host_waits(event)
    }

    fn host_waits(&self, event: &CpuEvent) -> Result<()> {
        event.wait();
        Ok(())
    }

    fn reached(&self, event: &CpuEvent) -> Result<bool> {
        Ok(event.at().is_some())
    }

    fn seconds(&self, from: &CpuEvent, to: &CpuEvent) -> Result<f64> {
        from.seconds_to(to)
    }
}

impl CpuDevice {
    /// The bytes of a tensor: `rows` rows of `row_bytes` bytes.
    fn weight(w: &Tensor<CpuBuf>) -> Result<(Bytes<'_>, usize)> {
        let row_bytes = w.ty.row_bytes(w.cols).ok_or_else(|| {
            DeviceError::Unsupported(format!("a {} tensor cannot have rows of {} elements", w.ty, w.cols))
        })?;
        let end = w.offset.saturating_add(w.rows.saturating_mul(row_bytes));
        Ok((w.buf.read(w.offset, end)?, row_bytes))
    }

    /// A vector of F32 weights.
    fn vector(w: &Tensor<CpuBuf>) -> Result<Vec<f32>> {
        let (data, _) = Self::weight(w)?;
        let mut out = vec![0.0; w.cols];
        decode(w.ty, &data, &mut out);
        Ok(out)
    }
}

/// Decodes a row whose length was checked against its tensor's shape.
fn decode(ty: quant::TensorType, row: &[u8], out: &mut [f32]) {
    quant::decode_row(ty, row, out).expect("the row's length follows from its shape");
}

impl Device for CpuDevice {
    type Act = CpuAct;
    type Kv = CpuKv;

    fn prepare(&mut self, dims: &Dims, max_tokens: usize) -> Result<()> {
        self.scratch = Some(new_scratch(self, dims, max_tokens)?);
        self.dims = Some(dims.clone());
        Ok(())
    }

    fn workspace(&self, dims: &Dims, tokens: usize, wanted: usize) -> u64 {
        let widest = dims.hidden.max(dims.q_width()).max(dims.ffn);
        // A product's output before it is transposed and its input as the kernels take it, and the copy of the logits that is
        // fetched.
        let products = (tokens * widest).max(wanted * dims.vocab);
        ((products + tokens * widest + wanted * dims.vocab) * size_of::<f32>()) as u64
    }

    fn dims(&self) -> &Dims {
        self.dims.as_ref().expect("prepare() comes first")
    }

    fn act(&self, rows: usize, width: usize) -> Result<CpuAct> {
        Ok(CpuAct { data: crate::platform::zeroed("activations", rows * width)?, width })
    }

    fn kv(&self) -> Result<CpuKv> {
        let elements = self.dims().context * self.dims().kv_width();
        let cache = || crate::platform::zeroed("the KV cache", elements);
        Ok(CpuKv { k: cache()?, v: cache()? })
    }

    fn scratch(&mut self) -> &mut Option<Scratch<CpuAct>> {
        &mut self.scratch
    }

    fn begin(&mut self, _batch: &Batch, embeddings: Option<&[f32]>, x: &mut CpuAct) -> Result<()> {
        embeddings.map_or(Ok(()), |values| self.load(values, x))
    }

    fn embed(&mut self, table: &Weight<Self>, batch: &Batch, x: &mut CpuAct) -> Result<()> {
        let (data, row_bytes) = Self::weight(table)?;
        for (&token, out) in batch.tokens.iter().zip(x.rows_mut(batch.len()).chunks_exact_mut(table.cols)) {
            decode(table.ty, &data[token as usize * row_bytes..][..row_bytes], out);
            out.iter_mut().for_each(|x| *x *= self.dims().embedding_scale);
        }
        Ok(())
    }

    fn load(&mut self, values: &[f32], x: &mut CpuAct) -> Result<()> {
        x.data[..values.len()].copy_from_slice(values);
        Ok(())
    }

    fn rms_norm(&mut self, w: &Weight<Self>, n: usize, x: &CpuAct, y: &mut CpuAct, epilogue: Epilogue) -> Result<()> {
        let (weight, eps) = (Self::vector(w)?, self.dims().eps);
        y.rows_mut(n).par_chunks_exact_mut(w.cols).zip(x.rows(n).par_chunks_exact(w.cols)).for_each(|(y, x)| {
            let scale = math::inverse_rms(x, eps);
            for ((y, x), w) in y.iter_mut().zip(x).zip(&weight) {
                let value = x * scale * w;
                *y = if epilogue == Epilogue::Residual { *y + value } else { value };
            }
        });
        Ok(())
    }

    fn norm_heads(&mut self, w: &Weight<Self>, n: usize, x: &mut CpuAct) -> Result<()> {
        let (weight, eps) = (Self::vector(w)?, self.dims().eps);
        let heads = x.data[..n * w.cols].par_chunks_exact_mut(w.cols).with_min_len(PART.div_ceil(w.cols));
        heads.for_each(|head| {
            let scale = math::inverse_rms(head, eps);
            head.iter_mut().zip(&weight).for_each(|(x, w)| *x = *x * scale * w);
        });
        Ok(())
    }

    fn matmul(
        &mut self,
        w: &Linear<Weight<Self>>,
        n: usize,
        x: &CpuAct,
        y: &mut CpuAct,
        epilogue: Epilogue,
    ) -> Result<()> {
        let (weight, bias) = (&w.weight, w.bias.as_ref().map(Self::vector).transpose()?);
        let (data, _) = Self::weight(weight)?;
        let w = dot::Matrix { ty: weight.ty, cols: weight.cols, data: &data };
        let finish = |row: usize, product: f32, y: &mut f32| {
            let value = product + bias.as_ref().map_or(0.0, |b| b[row]);
            *y = if epilogue == Epilogue::Residual { *y + value } else { value };
        };
        dot::multiply(self.set, w, x.rows(n), y.rows_mut(n), &mut self.workspace, finish)
    }

    fn rope(&mut self, batch: &Batch, rotation: usize, heads: usize, x: &mut CpuAct) -> Result<()> {
        let Dims { head_dim, rope_dims, pairing, .. } = *self.dims();
        let (half, Rotation { cos, sin }) = (rope_dims / 2, &batch.rotations[rotation]);
        x.rows_mut(batch.len()).par_chunks_exact_mut(heads * head_dim).enumerate().for_each(|(t, row)| {
            let (cos, sin) = (&cos[t * half..][..half], &sin[t * half..][..half]);
            for head in row.chunks_exact_mut(head_dim) {
                for i in 0..half {
                    let (a, b) = match pairing {
                        Pairing::Adjacent => (2 * i, 2 * i + 1),
                        Pairing::Half => (i, i + half),
                    };
                    (head[a], head[b]) = (head[a] * cos[i] - head[b] * sin[i], head[a] * sin[i] + head[b] * cos[i]);
                }
            }
        });
        Ok(())
    }

    fn append(&mut self, batch: &Batch, k: &CpuAct, v: &CpuAct, kv: &mut CpuKv) -> Result<()> {
        let Dims { kv_heads, head_dim, context, .. } = *self.dims();
        for (t, &position) in batch.positions.iter().enumerate() {
            for (cache, new) in [(&mut kv.k, k), (&mut kv.v, v)] {
                for head in 0..kv_heads {
                    let from = &new.data[(t * kv_heads + head) * head_dim..][..head_dim];
                    let at = (head * context + position as usize) * head_dim;
                    for (slot, &value) in cache[at..at + head_dim].iter_mut().zip(from) {
                        *slot = f16::from_f32(value);
                    }
                }
            }
        }
        Ok(())
    }

    fn attention(&mut self, batch: &Batch, window: Option<u32>, q: &CpuAct, kv: &CpuKv, y: &mut CpuAct) -> Result<()> {
        let Dims { heads, kv_heads, head_dim, context, attention_scale, attention_cap, .. } = *self.dims();
        let q = q.rows(batch.len());
        y.rows_mut(batch.len()).par_chunks_mut(head_dim).zip(q.par_chunks(head_dim)).enumerate().for_each(
            |(i, (y, q))| {
                let (t, head) = (i / heads, i % heads);
                let end = batch.positions[t] as usize + 1;
                let start = window.map_or(0, |window| end.saturating_sub(window as usize));
                let cache = (head / (heads / kv_heads)) * context * head_dim;
                let range = cache + start * head_dim..cache + end * head_dim;
                math::attend(q, &kv.k[range.clone()], &kv.v[range], attention_scale, attention_cap, y);
            },
        );
        Ok(())
    }

    fn glu(&mut self, n: usize, gate: &mut CpuAct, up: &CpuAct) -> Result<()> {
        let activation = match self.dims().activation {
            Activation::Silu => math::silu,
            Activation::GeluTanh => math::gelu_tanh,
        };
        gate.rows_mut(n).par_chunks_mut(PART).zip(up.rows(n).par_chunks(PART)).for_each(|(gate, up)| {
            gate.iter_mut().zip(up).for_each(|(g, u)| *g = activation(*g) * u);
        });
        Ok(())
    }

    fn cap_logits(&mut self, rows: usize, cap: f32, x: &mut CpuAct) -> Result<()> {
        let parts = x.rows_mut(rows).par_chunks_mut(PART);
        parts.for_each(|part| part.iter_mut().for_each(|x| *x = math::soft_cap(*x, cap)));
        Ok(())
    }

    fn gather(&mut self, batch: &Batch, x: &CpuAct, y: &mut CpuAct) -> Result<()> {
        let width = x.width;
        for (&row, y) in batch.want.iter().zip(y.data.chunks_exact_mut(width)) {
            y.copy_from_slice(&x.data[row as usize * width..][..width]);
        }
        Ok(())
    }

    fn fetch(&mut self, x: &CpuAct, rows: usize, width: usize) -> Result<Vec<f32>> {
        let mut out = crate::platform::zeroed("fetched activations", rows * width)?;
        out.copy_from_slice(&x.data[..rows * width]);
        Ok(out)
    }

    fn argmax(&mut self, x: &CpuAct, rows: usize, width: usize) -> Result<Vec<Option<u32>>> {
        Ok(x.data.chunks_exact(width).take(rows).map(math::argmax).collect())
    }

    fn top_k(&mut self, x: &CpuAct, rows: usize, width: usize, k: usize) -> Result<Vec<Vec<Candidate>>> {
        top_k::check(k)?;
        let of_row = |row| {
            let mut kept = Vec::new();
            top_k::top_k(row, k, &mut kept);
            kept
        };
        Ok(x.data.chunks_exact(width).take(rows).map(of_row).collect())
    }
}
