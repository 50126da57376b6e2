//! The primitives, a kernel each, and the fused stages in place of some.

use std::rc::Rc;

use cuda_std::kernel::Kernel;
use gpu::{
    attention::{self, Decode, DecodeVisitor},
    gemv::{self, WeightKernels, WeightVisitor},
    ops,
};
use quant::TensorType;

use super::{
    CudaAct, CudaBuf, CudaDevice, CudaKv, bandwidth, bytes_of, bytes_of_mut, count,
    driver::Driver,
    fused::Attention,
    in_range,
    pass::Pass,
    recordings::{How, Recordings},
    sample::Choice,
};
use crate::device::{
    Activation, Attn, Batch, Device, DeviceError, Dims, Epilogue, Ffn, Head, Launch, Linear, Pairing, ReplayKey,
    Result, Scratch, Tensor, Weight, new_scratch, stages, top_k::Candidate,
};

impl<D: Driver> CudaDevice<D> {
    /// Runs `f`, whose own replays are a part of it.
    fn alone(&mut self, f: &mut dyn FnMut(&mut Self) -> Result<()>) -> Result<()> {
        let _busy = self.recordings.begin();
        f(self)
    }

    /// RMSNorm of `n` rows as wide as `w`.
    ///
    /// # Safety
    /// `x` and `y` are device addresses of as many rows; `y` may be `x`.
    unsafe fn norm_rows(
        &self,
        w: &Tensor<CudaBuf<D>>,
        n: usize,
        x: *const f32,
        y: *mut f32,
        epilogue: Epilogue,
    ) -> Result<()> {
        let accumulate = u32::from(epilogue == Epilogue::Residual);
        let args = (x, Self::vector(w, w.cols)?, y, w.cols as u32, self.dims().eps, accumulate);
        // SAFETY: the vector was checked, the rest is the caller's promise.
        unsafe { self.driver.launch::<ops::rms_norm>(ops::rms_norm_grid(n as u32, w.cols as u32), args) }
    }
}

/// How many positions a token sees, as kernels take it.
pub(super) fn positions_seen(window: Option<u32>) -> Result<u32> {
    match window {
        Some(0) => Err(DeviceError::Unsupported("attention that sees no position".into())),
        window => Ok(window.unwrap_or(u32::MAX)),
    }
}

/// Launches the embedding kernel of a table's type.
struct Embed<'a, D> {
    driver: &'a D,
    table: *const u8,
    ids: *const u32,
    y: *mut f32,
    cols: u32,
    tokens: u32,
}

impl<D: Driver> WeightVisitor for Embed<'_, D> {
    type Out = Result<()>;

    fn visit<F: WeightKernels>(self) -> Result<()> {
        let Embed { driver, table, ids, y, cols, tokens } = self;
        // SAFETY: `embed` checked every extent against its buffer, and the ids are below the table's rows.
        unsafe { driver.launch::<F::Embed>(gemv::embed_grid(tokens), (table, ids, y, cols)) }
    }
}

/// The module of a tensor type's kernels, or of attention for a size of head.
struct Module;

impl DecodeVisitor for Module {
    type Out = &'static str;

    fn visit<K: Kernel<Args = (Decode,)>>(self) -> &'static str {
        K::MODULE
    }
}

impl WeightVisitor for Module {
    type Out = &'static str;

    fn visit<F: WeightKernels>(self) -> &'static str {
        <F::Gemv as Kernel>::MODULE
    }
}

impl<D: Driver> Device for CudaDevice<D> {
    type Act = CudaAct<D>;
    type Kv = CudaKv<D>;

    fn prepare(&mut self, dims: &Dims, max_tokens: usize) -> Result<()> {
        self.release();
        self.pass = Some(Pass::new(&*self.driver, dims, max_tokens)?);
        self.scratch = Some(new_scratch(self, dims, max_tokens)?);
        Ok(())
    }

    fn release(&mut self) {
        self.recordings = Recordings::new();
        (self.pass, self.scratch) = (None, None);
    }

    fn load_kernels(&self, dims: &Dims, types: &[TensorType]) -> Result<()> {
        let mut modules: Vec<_> = types.iter().map(|&ty| gemv::visit(ty, Module)).collect();
        modules.push(<ops::rms_norm as Kernel>::MODULE);
        modules.push(attention::visit_decode(dims.head_dim as u32, Module));
        self.driver.load_modules(&modules)
    }

    fn workspace(&self, dims: &Dims, tokens: usize, _wanted: usize) -> u64 {
        Attention::bytes(&*self.driver, dims) + Choice::<D::Mem>::bytes(dims, tokens)
    }

    fn dims(&self) -> &Dims {
        &self.pass().dims
    }

    fn act(&self, rows: usize, width: usize) -> Result<CudaAct<D>> {
        let bytes = rows * width * size_of::<f32>();
        Ok(CudaAct { mem: Rc::new(self.driver.alloc("activations", bytes)?), bytes })
    }

    fn kv(&self) -> Result<CudaKv<D>> {
        let bytes = self.dims().kv_bytes() as usize / 2;
        Ok(CudaKv { k: self.driver.alloc("the KV cache", bytes)?, v: self.driver.alloc("the KV cache", bytes)? })
    }

    fn scratch(&mut self) -> &mut Option<Scratch<CudaAct<D>>> {
        &mut self.scratch
    }

    /// It lies in the block that [`Device::begin`] fills.
    fn residual(&self, rows: usize) -> Result<CudaAct<D>> {
        let row = self.dims().hidden * size_of::<f32>();
        in_range("the residual stream", 0, rows * row, self.pass().max_tokens * row)?;
        Ok(CudaAct { mem: self.pass().block.clone(), bytes: rows * row })
    }

    fn begin(&mut self, batch: &Batch, embeddings: Option<&[f32]>, x: &mut CudaAct<D>) -> Result<()> {
        let pass = self.pass.as_mut().expect("prepare() comes first");
        if !Rc::ptr_eq(&x.mem, &pass.block) {
            return Err(DeviceError::Unsupported("a residual stream that is not where passes begin".into()));
        }
        pass.begin(&self.driver, batch, embeddings)
    }

    fn replay(&mut self, key: ReplayKey, f: &mut dyn FnMut(&mut Self) -> Result<()>) -> Result<()> {
        if self.recordings.busy() || self.profiling {
            return f(self);
        }
        let (driver, key) = (self.driver.clone(), (key, self.pass.as_ref().is_some_and(Pass::is_short)));
        let graph = match self.recordings.find(&key) {
            // SAFETY: a recording stays with the device whose driver made it, and under its key only as long as the key's owners
            // keep the memory of weights and state; block and scratch are the device's own, and `prepare`, which replaces them,
            // ends all recordings. What the launches read in the block was checked by `begin`.
            How::Replay(graph) => return unsafe { driver.replay(graph) },
            How::Directly => self.alone(f).map(|()| None),
            How::Record => driver.capture(&mut || self.alone(f)),
        }?;
        if let Some(graph) = &graph {
            // SAFETY: as above; it was recorded just now.
            unsafe { driver.replay(graph)? };
        }
        self.recordings.insert(key, graph);
        Ok(())
    }

    fn profile(&mut self, on: bool) -> Result<()> {
        self.profiling = on;
        self.driver.profile(on);
        Ok(())
    }

    fn take_profile(&mut self) -> Result<Vec<Launch>> {
        self.driver.take_profile()
    }

    fn read_bandwidth(&mut self) -> Result<f64> {
        Ok(bandwidth::read(&*self.driver)?.rate())
    }

    fn memory_rate(&mut self) -> Result<Option<f64>> {
        if self.driver.is_emulated() { Ok(None) } else { bandwidth::roughly(&*self.driver).map(Some) }
    }

    fn zero_copy_rate(&mut self) -> Result<Option<f64>> {
        if self.driver.is_emulated() { Ok(None) } else { bandwidth::zero_copy(&*self.driver).map(Some) }
    }

    fn embed(&mut self, table: &Weight<Self>, batch: &Batch, x: &mut CudaAct<D>) -> Result<()> {
        let inputs = self.pass().begun(batch)?;
        if table.rows != self.dims().vocab {
            return Err(DeviceError::Unsupported(format!("an embedding table of {} rows", table.rows)));
        }
        let launch = Embed {
            driver: &*self.driver,
            table: Self::weight(table)?,
            ids: inputs.tokens,
            y: x.ptr("embeddings", batch.len() * table.cols)?,
            cols: table.cols as u32,
            tokens: batch.len() as u32,
        };
        gemv::visit(table.ty, launch)?;
        let (scale, count) = (self.dims().embedding_scale, count("activations", batch.len() * table.cols)?);
        if scale == 1.0 {
            return Ok(());
        }
        let args = (x.ptr("embeddings", count as usize)?, count, scale);
        // SAFETY: x was checked.
        unsafe { self.driver.launch::<ops::scale>(ops::elementwise_grid(count), args) }
    }

    fn load(&mut self, values: &[f32], x: &mut CudaAct<D>) -> Result<()> {
        self.driver.write(&x.mem, 0, bytes_of(values))
    }

    fn rms_norm(
        &mut self,
        w: &Weight<Self>,
        n: usize,
        x: &CudaAct<D>,
        y: &mut CudaAct<D>,
        epilogue: Epilogue,
    ) -> Result<()> {
        let (x, y) = (x.ptr("RMSNorm's input", n * w.cols)?, y.ptr("RMSNorm's output", n * w.cols)?);
        // SAFETY: both extents were checked.
        unsafe { self.norm_rows(w, n, x, y, epilogue) }
    }

    fn norm_heads(&mut self, w: &Weight<Self>, n: usize, x: &mut CudaAct<D>) -> Result<()> {
        let heads = x.ptr("heads to be normalised", n * w.cols)?;
        // SAFETY: the extent was checked.
        unsafe { self.norm_rows(w, n, heads, heads, Epilogue::Store) }
    }

    fn matmul(
        &mut self,
        w: &Linear<Weight<Self>>,
        n: usize,
        x: &CudaAct<D>,
        y: &mut CudaAct<D>,
        epilogue: Epilogue,
    ) -> Result<()> {
        self.multiply(None, n, x, &[(w, y)], epilogue)
    }

    fn rope(&mut self, batch: &Batch, rotation: usize, heads: usize, x: &mut CudaAct<D>) -> Result<()> {
        let Dims { head_dim, rope_dims, pairing, .. } = *self.dims();
        let (cos, sin) = self.pass().begun(batch)?.rotation(rotation)?;
        let grid = ops::rope_grid(batch.len() as u32, heads as u32, rope_dims as u32);
        let x = x.ptr("rotated heads", batch.len() * heads * head_dim)?;
        let args = (x, cos, sin, heads as u32, head_dim as u32, rope_dims as u32);
        // SAFETY: `begin` checked and wrote this batch's angles of each rotation; x was checked.
        unsafe {
            match pairing {
                Pairing::Adjacent => self.driver.launch::<ops::rope_adjacent>(grid, args),
                Pairing::Half => self.driver.launch::<ops::rope_half>(grid, args),
            }
        }
    }

    fn append(&mut self, batch: &Batch, k: &CudaAct<D>, v: &CudaAct<D>, kv: &mut CudaKv<D>) -> Result<()> {
        let (pass, inputs) = (self.pass(), self.pass().begun(batch)?);
        let elements = batch.len() * pass.dims.kv_width();
        let Dims { kv_heads, head_dim, context, .. } = pass.dims;
        let args = (
            k.ptr("keys", elements)?.cast_const(),
            v.ptr("values", elements)?.cast_const(),
            D::address(&kv.k) as *mut cuda_std::F16,
            D::address(&kv.v) as *mut cuda_std::F16,
            inputs.positions,
            kv_heads as u32,
            head_dim as u32,
            context as u32,
        );
        let grid = ops::kv_append_grid(batch.len() as u32, kv_heads as u32, head_dim as u32);
        // SAFETY: k and v were checked; `begin` checked that the positions are below the context that the caches were made for.
        unsafe { self.driver.launch::<ops::kv_append>(grid, args) }
    }

    fn attention(
        &mut self,
        batch: &Batch,
        window: Option<u32>,
        q: &CudaAct<D>,
        kv: &CudaKv<D>,
        y: &mut CudaAct<D>,
    ) -> Result<()> {
        let (pass, inputs) = (self.pass(), self.pass().begun(batch)?);
        let elements = batch.len() * pass.dims.q_width();
        let Dims { heads, kv_heads, head_dim, context, attention_scale, attention_cap, .. } = pass.dims;
        let args = (
            q.ptr("queries", elements)?.cast_const(),
            D::address(&kv.k) as *const cuda_std::F16,
            D::address(&kv.v) as *const cuda_std::F16,
            inputs.positions,
            y.ptr("attention's output", elements)?,
            heads as u32,
            kv_heads as u32,
            head_dim as u32,
            context as u32,
            attention_scale,
            positions_seen(window)?,
            attention_cap.unwrap_or(0.0),
        );
        let grid = ops::attention_grid(batch.len() as u32, heads as u32);
        // SAFETY: q and y were checked; `begin` checked that the positions are below the context that the caches were made for.
        let launch = || unsafe { self.driver.launch::<ops::attention>(grid, args) };
        self.labelled(|| ("KV cache".into(), self.dims().kv_read(&batch.positions, window)), launch)
    }

    fn glu(&mut self, n: usize, gate: &mut CudaAct<D>, up: &CudaAct<D>) -> Result<()> {
        let elements = n * self.dims().ffn;
        let count = count("activations", elements)?;
        let grid = ops::elementwise_grid(count);
        let args = (gate.ptr("gate", elements)?, up.ptr("up", elements)?.cast_const(), count);
        // SAFETY: both were checked.
        unsafe {
            match self.dims().activation {
                Activation::Silu => self.driver.launch::<ops::swiglu>(grid, args),
                Activation::GeluTanh => self.driver.launch::<ops::geglu>(grid, args),
            }
        }
    }

    fn cap_logits(&mut self, rows: usize, cap: f32, x: &mut CudaAct<D>) -> Result<()> {
        let elements = rows * self.dims().vocab;
        let count = count("activations", elements)?;
        let args = (x.ptr("logits", elements)?, count, cap);
        // SAFETY: x was checked.
        unsafe { self.driver.launch::<ops::soft_cap>(ops::elementwise_grid(count), args) }
    }

    fn gather(&mut self, batch: &Batch, x: &CudaAct<D>, y: &mut CudaAct<D>) -> Result<()> {
        let (pass, inputs, rows) = (self.pass(), self.pass().begun(batch)?, batch.want.len());
        let args = (
            x.ptr("hidden states", batch.len() * pass.dims.hidden)?.cast_const(),
            inputs.want,
            y.ptr("wanted rows", rows * pass.dims.hidden)?,
            pass.dims.hidden as u32,
        );
        // SAFETY: x and y were checked; `begin` checked that `want` is below the batch's length.
        unsafe { self.driver.launch::<ops::gather_rows>(ops::gather_rows_grid(rows as u32), args) }
    }

    fn fetch(&mut self, x: &CudaAct<D>, rows: usize, width: usize) -> Result<Vec<f32>> {
        let mut out = crate::platform::zeroed("fetched activations", rows * width)?;
        self.driver.read(&x.mem, 0, bytes_of_mut(&mut out))?;
        Ok(out)
    }

    fn argmax(&mut self, x: &CudaAct<D>, rows: usize, width: usize) -> Result<Vec<Option<u32>>> {
        self.best_of_rows(x, rows, width)
    }

    fn top_k(&mut self, x: &CudaAct<D>, rows: usize, width: usize, k: usize) -> Result<Vec<Vec<Candidate>>> {
        self.top_k_of_rows(x, rows, width, k)
    }

    fn qkv(
        &mut self,
        w: &Attn<Weight<Self>>,
        x: &CudaAct<D>,
        batch: &Batch,
        kv: &mut CudaKv<D>,
        q: &mut CudaAct<D>,
    ) -> Result<()> {
        match batch.len() {
            1 if self.projects(w) => self.project(w, x, q),
            _ => stages::qkv(self, w, x, batch, kv, q),
        }
    }

    fn attend(
        &mut self,
        w: &Attn<Weight<Self>>,
        q: &CudaAct<D>,
        kv: &CudaKv<D>,
        batch: &Batch,
        y: &mut CudaAct<D>,
    ) -> Result<()> {
        match batch.len() {
            1 if self.projects(w) => self.decode(w, q, kv, batch, y),
            _ => self.attention(batch, w.window, q, kv, y),
        }
    }

    fn gate_up(&mut self, w: &Ffn<Weight<Self>>, x: &CudaAct<D>, batch: &Batch, h: &mut CudaAct<D>) -> Result<()> {
        match batch.len() {
            1 if self.fit([&w.gate, &w.up]) => self.gate_up_one(w, x, h),
            _ => stages::gate_up(self, w, x, batch, h),
        }
    }

    fn head(&mut self, w: &Head<Weight<Self>>, x: &CudaAct<D>, batch: &Batch, logits: &mut CudaAct<D>) -> Result<()> {
        match (batch.len(), batch.want.len()) {
            (1, 1) if self.fit([&w.output]) => self.head_one(w, x, logits),
            _ => stages::head(self, w, x, batch, logits),
        }
    }
}
