//! The stages a forward pass needs of a device, and the transfers the streamer needs.

mod batch;
pub mod cpu;
pub mod cuda;
mod error;
mod link;
mod replay;
mod shared;
mod stages;
pub mod top_k;
mod weights;

use std::ops::Range;

pub use batch::{Activation, Batch, Dims, Pairing, Rotation};
pub use cuda::driver::Launch;
pub use error::DeviceError;
use quant::TensorType;
use readahead::DeviceMemory;
pub use replay::{Owner, ReplayKey, ReplayPart};
pub use shared::SharedBytes;
pub use stages::Scratch;
use stages::new_scratch;
use top_k::Candidate;
pub use weights::{Attn, Ffn, Head, Layer, Linear, Tensor};

type Result<T> = std::result::Result<T, DeviceError>;

/// The largest k of [`Device::top_k`].
pub const MAX_TOP_K: usize = gpu::ops::MAX_TOP_K as usize;

/// Memory of a device, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryInfo {
    /// Not in use by anyone.
    pub free: u64,
    /// All there is.
    pub total: u64,
}

/// What came of asking for page-locked memory.
#[derive(Debug)]
pub enum HostMemory<P> {
    /// The memory.
    Pinned(P),
    /// There is RAM for it, but it would not be page-locked, and copies out of it go through staging buffers.
    Pageable {
        /// Who refused, and the reason.
        why: String,
    },
}

/// All that the streamer sees of a device: memory, copies into it, and the order between copies and computing.
pub trait Transfer: Sized {
    /// Device memory; clones are handles of the same memory.
    type Buf: Clone;
    /// Host memory that copies start from.
    type Pinned: AsRef<[u8]> + AsMut<[u8]>;
    /// A point in time of one of the device's queues.
    type Event: Clone;

    /// The device's name, e.g. `cuda:0 NVIDIA H200`.
    fn name(&self) -> &str;
    /// Free and total memory.
    fn memory(&self) -> Result<MemoryInfo>;
    /// Bytes of free memory that are no use to a plan: they go into kernels' code, and what allocations are rounded up by.
    fn headroom(&self) -> u64 {
        0
    }
    /// Opens the kernel by which it reads a drive by itself, if it can do that.
    fn read_kernels(&self) -> Option<cuda::nvme::ReadKernels> {
        None
    }
    /// Its number among the devices of its kind.
    fn index(&self) -> usize {
        0
    }
    /// The address of its slot, e.g. `0000:3B:00.0`, if it has one.
    fn pci_address(&self) -> Option<String> {
        None
    }
    /// `bytes` bytes of device memory. `what` names them in an error.
    fn alloc(&self, what: &str, bytes: usize) -> Result<Self::Buf>;
    /// Page-locked host memory, zeroed. On a GPU it is near it where there are several NUMA nodes.
    fn pinned(&self, what: &str, bytes: usize) -> Result<Self::Pinned>;
    /// The same where the caller can do without: that the memory is not locked is no error. That there is not enough is one.
    fn try_pinned(&self, what: &str, bytes: usize) -> Result<HostMemory<Self::Pinned>> {
        self.pinned(what, bytes).map(HostMemory::Pinned)
    }
    /// `count` times `bytes` bytes of such memory. A device may make them of one piece, which takes a fraction of the time.
    fn pinned_parts(&self, what: &str, bytes: usize, count: usize) -> Result<Vec<Self::Pinned>> {
        (0..count).map(|_| self.pinned(what, bytes)).collect()
    }
    /// Whether the pages of [`Transfer::pinned`] memory stay where they are in physical memory, because the device's driver holds them
    /// there.
    fn locks_pages(&self) -> bool {
        false
    }
    /// The device computes in host memory: resident weights are [`Transfer::share`]d and cost none of it.
    fn in_place(&self) -> bool {
        false
    }
    /// A buffer that is `bytes` itself, on devices that compute in place.
    fn share(&self, _bytes: SharedBytes) -> Result<Self::Buf> {
        Err(DeviceError::Unsupported(format!("{} does not compute in host memory", self.name())))
    }
    /// A buffer that is `src` itself: what is computed with it is read over the link, where it is in RAM (zero-copy), and takes no
    /// device memory. Nobody writes it any more. It is a whole number of 16 bytes.
    fn zero_copy(&self, _src: Self::Pinned) -> Result<Self::Buf> {
        Err(DeviceError::Unsupported(format!("{} does not read host memory over the link", self.name())))
    }
    /// Copies `bytes` to `dst[offset..]` before anything that is queued later; `bytes` may be reused on return.
    fn write(&self, dst: &Self::Buf, offset: usize, bytes: &[u8]) -> Result<()>;
    /// Starts copying `src[range]` to `dst[offset..]`, beside the computation, once `after` has passed. The event is the
    /// copy's end.
    fn upload(
        &self,
        src: &Self::Pinned,
        range: Range<usize>,
        dst: &Self::Buf,
        offset: usize,
        after: Option<&Self::Event>,
    ) -> Result<Self::Event>;
    /// Lets uploads from now on take as long as on a link of so many bytes per second, for tests and for seeing what other
    /// machines would do; none: as long as they take. The link does one copy after the other, in the order of the uploads,
    /// whatever the calling thread does meanwhile. What is read without a copy ([`Transfer::zero_copy`]) is not slowed down.
    fn limit_link(&mut self, bytes_per_second: Option<f64>);
    /// Bytes per second of uploads while the device does nothing else, measured now, with the limit. Takes 20 to 30 ms.
    fn link_rate(&self) -> Result<f64> {
        link::rate(self)
    }
    /// `buf` for somebody who is to write it from elsewhere, past this device's queues.
    ///
    /// # Errors
    /// That nobody can.
    fn device_memory<'a>(&'a self, _buf: &'a Self::Buf) -> Result<Box<dyn DeviceMemory + 'a>> {
        Err(DeviceError::Unsupported(format!("{} has no memory that others can write", self.name())))
    }
    /// Makes what others have written into [`Transfer::device_memory`] by now known to what is computed from now on.
    fn acquire(&self) -> Result<()> {
        Ok(())
    }
    /// The end of what has been asked to be computed so far.
    fn mark(&self) -> Result<Self::Event>;
    /// The end of what has been asked to be copied so far: the copy that is asked for next starts when this is reached and
    /// what it is to come after.
    fn mark_copies(&self) -> Result<Self::Event>;
    /// What is computed from now on waits for `event`.
    fn compute_waits(&self, event: &Self::Event) -> Result<()>;
    /// The calling thread waits for `event`.
    fn host_waits(&self, event: &Self::Event) -> Result<()>;
    /// Whether `event` has passed.
    fn reached(&self, event: &Self::Event) -> Result<bool>;
    /// Seconds from `from` to `to`, of any queues, both reached.
    fn seconds(&self, from: &Self::Event, to: &Self::Event) -> Result<f64>;
}

/// A tensor on device `D`.
pub type Weight<D> = Tensor<<D as Transfer>::Buf>;

/// What becomes of a primitive's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epilogue {
    /// It is y.
    Store,
    /// It is added to y, the residual stream.
    Residual,
}

/// The stages of a forward pass, and the primitives they are made of. A device implements the primitives and gets the
/// stages; it may implement a stage itself to fuse them.
///
/// Activations (`Act`) are F32, row-major, one row per token of the batch; each has room for the tokens that
/// [`Device::prepare`] was told of, and a pass uses the first `batch.len()` rows.
pub trait Device: Transfer {
    /// Activations, `[tokens x width]`.
    type Act;
    /// One layer's K and V caches: F16, `[kv_heads x context x head_dim]` each.
    type Kv;

    /// Sets the model's sizes and makes the scratch for passes of up to `max_tokens` tokens.
    fn prepare(&mut self, dims: &Dims, max_tokens: usize) -> Result<()>;
    /// Gives back the memory that [`Device::prepare`] took, until it is called again.
    fn release(&mut self) {}
    /// Makes the code for a model of these sizes with matrices of `types` ready, so that no time of the first pass goes into it.
    fn load_kernels(&self, _dims: &Dims, _types: &[TensorType]) -> Result<()> {
        Ok(())
    }
    /// Bytes that computing takes beside activations, for passes of up to `tokens` tokens and `wanted` rows of logits.
    fn workspace(&self, _dims: &Dims, _tokens: usize, _wanted: usize) -> u64 {
        0
    }
    /// The sizes that [`Device::prepare`] set.
    fn dims(&self) -> &Dims;
    /// Room for `rows x width` activations.
    fn act(&self, rows: usize, width: usize) -> Result<Self::Act>;
    /// An empty KV cache of one layer.
    fn kv(&self) -> Result<Self::Kv>;
    /// Where the scratch is kept between stages.
    fn scratch(&mut self) -> &mut Option<Scratch<Self::Act>>;

    /// Room for the residual stream x of passes of up to `rows` tokens, `[rows x hidden]`. A device may put it where
    /// [`Device::begin`] brings all that a pass starts from; it then holds one pass at a time.
    fn residual(&self, rows: usize) -> Result<Self::Act> {
        self.act(rows, self.dims().hidden)
    }
    /// Makes the batch's tokens, positions and rotations known to the device, before the first stage of a pass, and x =
    /// `embeddings`, `[n x hidden]`, where the host looked them up.
    fn begin(&mut self, batch: &Batch, embeddings: Option<&[f32]>, x: &mut Self::Act) -> Result<()>;
    /// Computes `f`, which is the same computation on the same memory each time that `key` is. So a device may record what
    /// it launches, and launch the recording from then on: all that `f` takes from the host was brought by
    /// [`Device::begin`] before.
    fn replay(&mut self, _key: ReplayKey, f: &mut dyn FnMut(&mut Self) -> Result<()>) -> Result<()> {
        f(self)
    }
    /// x\[t\] = `embedding_scale` times row `tokens[t]` of `table`, for a table in device memory.
    fn embed(&mut self, table: &Weight<Self>, batch: &Batch, x: &mut Self::Act) -> Result<()>;
    /// The first elements of x = `values`.
    fn load(&mut self, values: &[f32], x: &mut Self::Act) -> Result<()>;
    /// y\[t\] = RMSNorm(x\[t\]) * w for `n` tokens (Zhang and Sennrich 2019), or added to y\[t\].
    fn rms_norm(
        &mut self,
        w: &Weight<Self>,
        n: usize,
        x: &Self::Act,
        y: &mut Self::Act,
        epilogue: Epilogue,
    ) -> Result<()>;
    /// RMSNorm of each of the `n` heads of x by itself, in place; w `[head_dim]`.
    fn norm_heads(&mut self, w: &Weight<Self>, n: usize, x: &mut Self::Act) -> Result<()>;
    /// y\[t\] = W x\[t\] + b, or added to y\[t\].
    fn matmul(
        &mut self,
        w: &Linear<Weight<Self>>,
        n: usize,
        x: &Self::Act,
        y: &mut Self::Act,
        epilogue: Epilogue,
    ) -> Result<()>;
    /// Rotates each of `heads` heads of x\[t\] by the batch's angles of `rotation` (Su et al. 2021).
    fn rope(&mut self, batch: &Batch, rotation: usize, heads: usize, x: &mut Self::Act) -> Result<()>;
    /// Stores k\[t\] and v\[t\] at the batch's positions.
    fn append(&mut self, batch: &Batch, k: &Self::Act, v: &Self::Act, kv: &mut Self::Kv) -> Result<()>;
    /// y\[t\] = softmax(`attention_scale` q\[t\] K^T) V over the last `window` positions up to t's own, grouped-query (Ainslie
    /// et al. 2023), with scores bounded by `attention_cap`.
    fn attention(
        &mut self,
        batch: &Batch,
        window: Option<u32>,
        q: &Self::Act,
        kv: &Self::Kv,
        y: &mut Self::Act,
    ) -> Result<()>;
    /// gate = activation(gate) * up for `n` tokens (Shazeer 2020).
    fn glu(&mut self, n: usize, gate: &mut Self::Act, up: &Self::Act) -> Result<()>;
    /// x = cap tanh(x / cap) for the `rows` rows of logits x.
    fn cap_logits(&mut self, rows: usize, cap: f32, x: &mut Self::Act) -> Result<()>;
    /// y\[i\] = x\[batch.want\[i\]\], rows of the hidden width.
    fn gather(&mut self, batch: &Batch, x: &Self::Act, y: &mut Self::Act) -> Result<()>;
    /// The first `rows` rows of x, `width` wide, on the host. Waits for what was asked for before.
    fn fetch(&mut self, x: &Self::Act, rows: usize, width: usize) -> Result<Vec<f32>>;
    /// The index of the largest element of each of the first `rows` rows; the lowest wins a tie. None where no element of a
    /// row is a number.
    fn argmax(&mut self, x: &Self::Act, rows: usize, width: usize) -> Result<Vec<Option<u32>>>;
    /// The `k` largest elements of each of the first `rows` rows and their indices, the largest first and of equal ones the one
    /// with the lower index, for k from 1 to [`MAX_TOP_K`]. Infinities and NaN are left out, so that there may be fewer.
    fn top_k(&mut self, x: &Self::Act, rows: usize, width: usize, k: usize) -> Result<Vec<Vec<Candidate>>>;

    /// Starts or ends the timing of every launch. A profile makes kernels wait for each other.
    fn profile(&mut self, _on: bool) -> Result<()> {
        Err(DeviceError::no_launches(self.name()))
    }
    /// The launches that were timed since this was last called, in their order. Waits for what was asked for before.
    fn take_profile(&mut self) -> Result<Vec<Launch>> {
        Err(DeviceError::no_launches(self.name()))
    }
    /// Bytes a second at which the device reads its memory when it does nothing else. Measured: takes a second, and some GiB of
    /// free memory where there are as many.
    fn read_bandwidth(&mut self) -> Result<f64> {
        Err(DeviceError::no_launches(self.name()))
    }

    /// Bytes a second at which the device reads its memory, measured in some milliseconds and so roughly. None where what is
    /// computed does not depend on that alone.
    fn memory_rate(&mut self) -> Result<Option<f64>> {
        Ok(None)
    }

    /// Bytes a second at which kernels read page-locked RAM over the link, measured in some 50 ms. None where that is not known.
    fn zero_copy_rate(&mut self) -> Result<Option<f64>> {
        Ok(None)
    }

    /// Norm, projections, norms of heads, rotation, KV append: x `[n x hidden]` to q `[n x heads * head_dim]`. A device may leave
    /// the later ones to [`Device::attend`], which comes next.
    fn qkv(
        &mut self,
        w: &Attn<Weight<Self>>,
        x: &Self::Act,
        batch: &Batch,
        kv: &mut Self::Kv,
        q: &mut Self::Act,
    ) -> Result<()> {
        stages::qkv(self, w, x, batch, kv, q)
    }

    /// Attention of q over the cache: y `[n x heads * head_dim]`.
    fn attend(
        &mut self,
        w: &Attn<Weight<Self>>,
        q: &Self::Act,
        kv: &Self::Kv,
        batch: &Batch,
        y: &mut Self::Act,
    ) -> Result<()> {
        self.attention(batch, w.window, q, kv, y)
    }

    /// The end of a half-layer: x += W y + b, which goes through a norm of its own where the model has one.
    fn linear(
        &mut self,
        w: &Linear<Weight<Self>>,
        norm: Option<&Weight<Self>>,
        batch: &Batch,
        y: &Self::Act,
        x: &mut Self::Act,
    ) -> Result<()> {
        stages::linear(self, w, norm, batch, y, x)
    }

    /// Norm, gate and up projections, gated activation: x `[n x hidden]` to h `[n x ffn]`.
    fn gate_up(&mut self, w: &Ffn<Weight<Self>>, x: &Self::Act, batch: &Batch, h: &mut Self::Act) -> Result<()> {
        stages::gate_up(self, w, x, batch, h)
    }

    /// Norm, output projection and cap of the wanted rows: x `[n x hidden]` to logits `[want x vocab]`.
    fn head(&mut self, w: &Head<Weight<Self>>, x: &Self::Act, batch: &Batch, logits: &mut Self::Act) -> Result<()> {
        stages::head(self, w, x, batch, logits)
    }
}
