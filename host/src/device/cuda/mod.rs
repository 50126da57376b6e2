//! The CUDA device: launches the kernels of `gpu/` through a [`Driver`], the real one or the emulator.

pub mod cust;
pub mod driver;
pub mod emulator;
mod sample;

use std::{ops::Range, rc::Rc};

use gpu::{
    ops,
    weights::{self, WeightKernels, WeightVisitor},
};

use quant::TensorType;

use self::driver::Driver;
use super::{
    Activation, Batch, Device, DeviceError, Dims, Epilogue, Linear, MemoryInfo, Pairing, Result, Scratch, Tensor,
    Transfer, Weight, new_scratch, top_k::Candidate,
};

/// A device whose kernels `D` runs.
pub struct CudaDevice<D: Driver> {
    driver: D,
    name: String,
    pass: Option<Pass<D::Mem>>,
    scratch: Option<Scratch<CudaAct<D>>>,
}

/// What a pass needs beside activations.
struct Pass<M> {
    dims: Dims,
    /// `[max_tokens]` u32 each.
    tokens: M,
    positions: M,
    want: M,
    /// `[rotations x tokens x rope_dims / 2]` f32 each, one rotation after the other.
    cos: M,
    sin: M,
    /// For argmax and top-k.
    choice: sample::Choice<M>,
    /// Tokens of the batch that `begin` checked and wrote.
    tokens_begun: usize,
    /// How many of them it wants.
    wanted_begun: usize,
}

/// Activations: F32, `[rows x width]`.
pub struct CudaAct<D: Driver> {
    mem: D::Mem,
}

/// One layer's caches: F16, `[kv_heads x context x head_dim]` each.
pub struct CudaKv<D: Driver> {
    k: D::Mem,
    v: D::Mem,
}

impl<D: Driver> CudaAct<D> {
    /// The device address, after checking that `elements` fit: kernels trust it.
    fn ptr(&self, what: &'static str, elements: usize) -> Result<*mut f32> {
        in_range(what, 0, elements.saturating_mul(size_of::<f32>()), D::len(&self.mem))?;
        Ok(D::address(&self.mem) as *mut f32)
    }
}

fn in_range(what: &'static str, start: usize, bytes: usize, len: usize) -> Result<()> {
    let end = start.saturating_add(bytes);
    if end <= len { Ok(()) } else { Err(DeviceError::OutOfRange { what, start, end, len }) }
}

/// Native memory as little-endian bytes.
fn bytes_of<T: Plain>(values: &[T]) -> &[u8] {
    // SAFETY: `Plain` types have no padding, and u8 has no alignment.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

fn bytes_of_mut<T: Plain>(values: &mut [T]) -> &mut [u8] {
    // SAFETY: as in `bytes_of`, and every bit pattern is a value of a `Plain` type.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}

/// Numbers: no padding, every bit pattern valid.
trait Plain: Copy {}
impl Plain for u32 {}
impl Plain for f32 {}

impl<D: Driver> CudaDevice<D> {
    /// A device over `driver`.
    pub fn new(driver: D) -> Self {
        let name = driver.name().to_owned();
        CudaDevice { driver, name, pass: None, scratch: None }
    }

    fn pass(&self) -> &Pass<D::Mem> {
        self.pass.as_ref().expect("prepare() comes first")
    }

    /// The address of a tensor's first byte, after checking that all of it is inside its buffer.
    fn weight(w: &Tensor<Rc<D::Mem>>) -> Result<*const u8> {
        let row_bytes = w.ty.row_bytes(w.cols).ok_or_else(|| {
            DeviceError::Unsupported(format!("a {} tensor cannot have rows of {} elements", w.ty, w.cols))
        })?;
        in_range("weights", w.offset, w.rows.saturating_mul(row_bytes), D::len(&w.buf))?;
        Ok((D::address(&w.buf) + w.offset as u64) as *const u8)
    }

    /// The address of a vector, after checking that it is one of `len` F32 numbers.
    fn vector(w: &Tensor<Rc<D::Mem>>, len: usize) -> Result<*const f32> {
        if (w.ty, w.rows, w.cols) != (TensorType::F32, 1, len) {
            let what =
                format!("a vector of {} {} elements in {} rows, where {len} F32 are needed", w.cols, w.ty, w.rows);
            return Err(DeviceError::Unsupported(what));
        }
        Self::weight(w).map(<*const u8>::cast)
    }

    /// A number of activations as kernels take it.
    fn count(elements: usize) -> Result<u32> {
        let count = u32::try_from(elements);
        count.map_err(|_| DeviceError::Unsupported(format!("{elements} activations of a layer at once")))
    }

    /// RMSNorm of `n` rows as wide as `w`.
    ///
    /// # Safety
    /// `x` and `y` are device addresses of as many rows; `y` may be `x`.
    unsafe fn norm_rows(
        &self,
        w: &Tensor<Rc<D::Mem>>,
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

    /// What `begin` wrote, after checking that it was for a batch of as many tokens.
    fn begun(&self, batch: &Batch) -> Result<&Pass<D::Mem>> {
        let pass = self.pass();
        if (pass.tokens_begun, pass.wanted_begun) == (batch.len(), batch.want.len()) {
            return Ok(pass);
        }
        Err(DeviceError::Unsupported("a stage of another batch than the one that was begun".into()))
    }
}

impl<D: Driver> Transfer for CudaDevice<D> {
    type Buf = Rc<D::Mem>;
    type Pinned = D::Pinned;
    type Event = D::Event;

    fn name(&self) -> &str {
        &self.name
    }

    fn memory(&self) -> Result<MemoryInfo> {
        self.driver.memory()
    }

    fn alloc(&self, what: &str, bytes: usize) -> Result<Rc<D::Mem>> {
        self.driver.alloc(what, bytes).map(Rc::new)
    }

    fn pinned(&self, what: &str, bytes: usize) -> Result<D::Pinned> {
        self.driver.pinned(what, bytes)
    }

    fn write(&self, dst: &Rc<D::Mem>, offset: usize, bytes: &[u8]) -> Result<()> {
        self.driver.write(dst, offset, bytes)
    }

    fn upload(
        &self,
        src: &D::Pinned,
        range: Range<usize>,
        dst: &Rc<D::Mem>,
        offset: usize,
        after: Option<&D::Event>,
    ) -> Result<D::Event> {
        self.driver.upload(src, range, dst, offset, after)
    }

    fn mark(&self) -> Result<D::Event> {
        self.driver.mark()
    }

    fn compute_waits(&self, event: &D::Event) -> Result<()> {
        self.driver.compute_waits(event)
    }

    fn host_waits(&self, event: &D::Event) -> Result<()> {
        self.driver.host_waits(event)
    }
}

/// Launches the matrix kernel of a tensor's type.
struct Matmul<'a, D> {
    driver: &'a D,
    w: *const u8,
    x: *const f32,
    bias: *const f32,
    y: *mut f32,
    rows: u32,
    cols: u32,
    tokens: u32,
    accumulate: u32,
}

impl<D: Driver> WeightVisitor for Matmul<'_, D> {
    type Out = Result<()>;

    fn visit<F: WeightKernels>(self) -> Result<()> {
        let Matmul { driver, w, x, bias, y, rows, cols, tokens, accumulate } = self;
        // SAFETY: `matmul` checked every extent against its buffer. Alignment: `x` is an allocation's start, 256-byte aligned.
        // So is the matrix that `w` belongs to, at a multiple of `TENSOR_ALIGN` in its buffer; `w` may be a later row of it
        // (`Tensor::part`), a whole number of blocks further on. Of the 16 bytes that the kernels' contract names, only `x`
        // needs as many: a block is read in words of 1, 2 or 4 bytes at multiples of their length, and the length of a
        // format's block is a multiple of its longest word (`quant::Bytes`), so every row is aligned as the first one is.
        unsafe {
            if tokens == 1 {
                driver.launch::<F::Gemv>(weights::gemv_grid(rows), (w, x, bias, y, rows, cols, accumulate))
            } else {
                let grid = weights::gemm_grid(rows, tokens);
                driver.launch::<F::Gemm>(grid, (w, x, bias, y, rows, cols, tokens, accumulate))
            }
        }
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
        unsafe { driver.launch::<F::Embed>(weights::embed_grid(tokens), (table, ids, y, cols)) }
    }
}

/// Loads the kernels of a tensor type.
struct Load<'a, D>(&'a D);

impl<D: Driver> WeightVisitor for Load<'_, D> {
    type Out = Result<()>;

    fn visit<F: WeightKernels>(self) -> Result<()> {
        self.0.load::<F::Gemv>()
    }
}

impl<D: Driver> Device for CudaDevice<D> {
    type Act = CudaAct<D>;
    type Kv = CudaKv<D>;

    fn prepare(&mut self, dims: &Dims, max_tokens: usize) -> Result<()> {
        let alloc = |width: usize| self.driver.alloc("a pass's tokens and positions", (max_tokens * width * 4).max(4));
        self.pass = Some(Pass {
            dims: dims.clone(),
            tokens: alloc(1)?,
            positions: alloc(1)?,
            want: alloc(1)?,
            cos: alloc(dims.rotations * dims.rope_dims / 2)?,
            sin: alloc(dims.rotations * dims.rope_dims / 2)?,
            choice: sample::Choice::new(&self.driver, dims, max_tokens)?,
            tokens_begun: 0,
            wanted_begun: 0,
        });
        self.scratch = Some(new_scratch(self, dims, max_tokens)?);
        Ok(())
    }

    fn load_kernels(&self, types: &[TensorType]) -> Result<()> {
        self.driver.load::<ops::rms_norm>()?;
        types.iter().try_for_each(|&ty| weights::visit(ty, Load(&self.driver)))
    }

    fn workspace(&self, dims: &Dims, tokens: usize, _wanted: usize) -> u64 {
        sample::workspace(dims, tokens)
    }

    fn dims(&self) -> &Dims {
        &self.pass().dims
    }

    fn act(&self, rows: usize, width: usize) -> Result<CudaAct<D>> {
        Ok(CudaAct { mem: self.driver.alloc("activations", rows * width * size_of::<f32>())? })
    }

    fn kv(&self) -> Result<CudaKv<D>> {
        let bytes = self.dims().kv_bytes() as usize / 2;
        Ok(CudaKv { k: self.driver.alloc("the KV cache", bytes)?, v: self.driver.alloc("the KV cache", bytes)? })
    }

    fn scratch(&mut self) -> &mut Option<Scratch<CudaAct<D>>> {
        &mut self.scratch
    }

    /// Checks all that kernels will trust: ids, positions and indices inside their ranges, one of each per token.
    fn begin(&mut self, batch: &Batch) -> Result<()> {
        let (pass, n) = (self.pass.as_mut().expect("prepare() comes first"), batch.len());
        let below = |values: &[u32], limit: usize| values.iter().all(|&v| (v as usize) < limit);
        let angles = n * (pass.dims.rope_dims / 2);
        let lengths = (batch.positions.len(), batch.rotations.len()) == (n, pass.dims.rotations)
            && batch.rotations.iter().all(|r| (r.cos.len(), r.sin.len()) == (angles, angles));
        let ranges = below(&batch.tokens, pass.dims.vocab)
            && below(&batch.positions, pass.dims.context)
            && below(&batch.want, n);
        if !lengths || !ranges {
            return Err(DeviceError::Unsupported("a batch whose tokens, positions or rows are out of range".into()));
        }
        pass.tokens_begun = 0;
        let write = |mem, offset, bytes: &[u8]| self.driver.write(mem, offset, bytes);
        write(&pass.tokens, 0, bytes_of(&batch.tokens))?;
        write(&pass.positions, 0, bytes_of(&batch.positions))?;
        for (i, rotation) in batch.rotations.iter().enumerate() {
            write(&pass.cos, i * angles * size_of::<f32>(), bytes_of(&rotation.cos))?;
            write(&pass.sin, i * angles * size_of::<f32>(), bytes_of(&rotation.sin))?;
        }
        if !batch.want.is_empty() {
            write(&pass.want, 0, bytes_of(&batch.want))?;
        }
        (pass.tokens_begun, pass.wanted_begun) = (n, batch.want.len());
        Ok(())
    }

    fn embed(&mut self, table: &Weight<Self>, batch: &Batch, x: &mut CudaAct<D>) -> Result<()> {
        if table.rows != self.begun(batch)?.dims.vocab {
            return Err(DeviceError::Unsupported(format!("an embedding table of {} rows", table.rows)));
        }
        let launch = Embed {
            driver: &self.driver,
            table: Self::weight(table)?,
            ids: D::address(&self.pass().tokens) as *const u32,
            y: x.ptr("embeddings", batch.len() * table.cols)?,
            cols: table.cols as u32,
            tokens: batch.len() as u32,
        };
        weights::visit(table.ty, launch)?;
        let (scale, count) = (self.dims().embedding_scale, Self::count(batch.len() * table.cols)?);
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
        let launch = Matmul {
            driver: &self.driver,
            w: Self::weight(&w.weight)?,
            x: x.ptr("a matrix's input", n * w.weight.cols)?,
            bias: w.bias.as_ref().map_or(Ok(std::ptr::null()), |b| Self::vector(b, w.weight.rows))?,
            y: y.ptr("a matrix's output", n * w.weight.rows)?,
            rows: w.weight.rows as u32,
            cols: w.weight.cols as u32,
            tokens: n as u32,
            accumulate: u32::from(epilogue == Epilogue::Residual),
        };
        weights::visit(w.weight.ty, launch)
    }

    fn rope(&mut self, batch: &Batch, rotation: usize, heads: usize, x: &mut CudaAct<D>) -> Result<()> {
        let pass = self.begun(batch)?;
        let Dims { head_dim, rope_dims, pairing, rotations, .. } = pass.dims;
        if rotation >= rotations {
            return Err(DeviceError::Unsupported(format!("rotation {rotation} of a batch with {rotations}")));
        }
        let offset = (rotation * batch.len() * (rope_dims / 2) * size_of::<f32>()) as u64;
        let grid = ops::rope_grid(batch.len() as u32, heads as u32, rope_dims as u32);
        let args = (
            x.ptr("rotated heads", batch.len() * heads * head_dim)?,
            (D::address(&pass.cos) + offset) as *const f32,
            (D::address(&pass.sin) + offset) as *const f32,
            heads as u32,
            head_dim as u32,
            rope_dims as u32,
        );
        // SAFETY: `begin` checked and wrote this batch's angles of each rotation; x was checked.
        unsafe {
            match pairing {
                Pairing::Adjacent => self.driver.launch::<ops::rope_adjacent>(grid, args),
                Pairing::Half => self.driver.launch::<ops::rope_half>(grid, args),
            }
        }
    }

    fn append(&mut self, batch: &Batch, k: &CudaAct<D>, v: &CudaAct<D>, kv: &mut CudaKv<D>) -> Result<()> {
        let pass = self.begun(batch)?;
        let elements = batch.len() * pass.dims.kv_width();
        let Dims { kv_heads, head_dim, context, .. } = pass.dims;
        let args = (
            k.ptr("keys", elements)?.cast_const(),
            v.ptr("values", elements)?.cast_const(),
            D::address(&kv.k) as *mut cuda_std::F16,
            D::address(&kv.v) as *mut cuda_std::F16,
            D::address(&pass.positions) as *const u32,
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
        let pass = self.begun(batch)?;
        let elements = batch.len() * pass.dims.q_width();
        let Dims { heads, kv_heads, head_dim, context, attention_scale, attention_cap, .. } = pass.dims;
        if window == Some(0) {
            return Err(DeviceError::Unsupported("attention that sees no position".into()));
        }
        let args = (
            q.ptr("queries", elements)?.cast_const(),
            D::address(&kv.k) as *const cuda_std::F16,
            D::address(&kv.v) as *const cuda_std::F16,
            D::address(&pass.positions) as *const u32,
            y.ptr("attention's output", elements)?,
            heads as u32,
            kv_heads as u32,
            head_dim as u32,
            context as u32,
            attention_scale,
            window.unwrap_or(u32::MAX),
            attention_cap.unwrap_or(0.0),
        );
        let grid = ops::attention_grid(batch.len() as u32, heads as u32);
        // SAFETY: q and y were checked; `begin` checked that the positions are below the context that the caches were made for.
        unsafe { self.driver.launch::<ops::attention>(grid, args) }
    }

    fn glu(&mut self, n: usize, gate: &mut CudaAct<D>, up: &CudaAct<D>) -> Result<()> {
        let elements = n * self.dims().ffn;
        let count = Self::count(elements)?;
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
        let count = Self::count(elements)?;
        let args = (x.ptr("logits", elements)?, count, cap);
        // SAFETY: x was checked.
        unsafe { self.driver.launch::<ops::soft_cap>(ops::elementwise_grid(count), args) }
    }

    fn gather(&mut self, batch: &Batch, x: &CudaAct<D>, y: &mut CudaAct<D>) -> Result<()> {
        let (pass, rows) = (self.begun(batch)?, batch.want.len());
        let args = (
            x.ptr("hidden states", batch.len() * pass.dims.hidden)?.cast_const(),
            D::address(&pass.want) as *const u32,
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
}
