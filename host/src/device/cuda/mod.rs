//! The CUDA device: launches the kernels of `gpu/` through a [`Driver`], the real one or the emulator.

pub mod bandwidth;
pub mod beside;
pub mod cust;
pub mod driver;
pub mod emulator;
mod fused;
pub mod nvme;
mod pass;
mod primitives;
mod products;
mod recordings;
mod sample;

use std::{ops::Range, os::fd::OwnedFd, rc::Rc};

use quant::TensorType;
use readahead::DeviceMemory;

use self::{driver::Driver, pass::Pass, recordings::Recordings};
use super::{DeviceError, HostMemory, MemoryInfo, Result, Scratch, Tensor, Transfer};

/// A device whose kernels `D` runs.
pub struct CudaDevice<D: Driver> {
    recordings: Recordings<D>,
    pass: Option<Pass<D>>,
    scratch: Option<Scratch<CudaAct<D>>>,
    /// Launches are timed, so that each has to happen: nothing is replayed.
    profiling: bool,
    name: String,
    driver: Rc<D>,
}

/// Bytes of weights that kernels copy at once: what begins with a matrix's first one and ends with its last one is in its buffer.
const COPIED: usize = 16;

/// Memory for weights, the device's or RAM that it reads over the link. It has a home: 8 bytes in device memory that hold its address. Kernels that a recording
/// launches find the memory there, so that it can be exchanged without recording anew.
pub struct CudaBuf<D: Driver> {
    mem: Rc<D::Mem>,
    home: Rc<D::Mem>,
}

impl<D: Driver> Clone for CudaBuf<D> {
    fn clone(&self) -> Self {
        CudaBuf { mem: self.mem.clone(), home: self.home.clone() }
    }
}

/// An allocation, as somebody has to know it who is to write it from elsewhere.
struct OnDevice<'a, D: Driver> {
    driver: &'a D,
    mem: &'a D::Mem,
}

impl<D: Driver> DeviceMemory for OnDevice<'_, D> {
    fn address(&self) -> u64 {
        D::address(self.mem)
    }

    fn len(&self) -> usize {
        D::len(self.mem)
    }

    fn pci_address(&self) -> Option<String> {
        self.driver.pci_address()
    }

    fn write(&self, offset: usize, bytes: &[u8]) -> std::result::Result<(), String> {
        let written = || -> Result<()> {
            self.driver.write(self.mem, offset, bytes)?;
            self.driver.host_waits(&self.driver.mark()?)
        };
        written().map_err(|e| e.to_string())
    }

    fn read(&self, offset: usize, bytes: &mut [u8]) -> std::result::Result<(), String> {
        let mut read = || {
            self.driver.acquire()?;
            self.driver.read(self.mem, offset, bytes)
        };
        read().map_err(|e: DeviceError| e.to_string())
    }

    fn dma_buf(&self) -> std::result::Result<OwnedFd, String> {
        self.driver.dma_buf(self.mem).map_err(|e| e.to_string())
    }
}

/// Activations: F32, `[rows x width]`, at the start of an allocation.
pub struct CudaAct<D: Driver> {
    mem: Rc<D::Mem>,
    bytes: usize,
}

/// One layer's caches: F16, `[kv_heads x context x head_dim]` each.
pub struct CudaKv<D: Driver> {
    k: D::Mem,
    v: D::Mem,
}

impl<D: Driver> CudaAct<D> {
    /// The device address, after checking that `elements` fit: kernels trust it.
    fn ptr(&self, what: &'static str, elements: usize) -> Result<*mut f32> {
        in_range(what, 0, elements.saturating_mul(size_of::<f32>()), self.bytes)?;
        Ok(D::address(&self.mem) as *mut f32)
    }
}

fn in_range(what: &'static str, start: usize, bytes: usize, len: usize) -> Result<()> {
    let end = start.saturating_add(bytes);
    if end <= len { Ok(()) } else { Err(DeviceError::OutOfRange { what, start, end, len }) }
}

/// A number as kernels take it.
fn count(what: &'static str, n: usize) -> Result<u32> {
    let refused = |_| DeviceError::Unsupported(format!("{n} {what}: kernels count them in 32 bits"));
    u32::try_from(n).map_err(refused)
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
        let driver = Rc::new(driver);
        CudaDevice { recordings: Recordings::new(), pass: None, scratch: None, profiling: false, name, driver }
    }

    /// Launches by `f` as one on `what`, which reads `bytes` bytes of weights, or of keys and values, in a profile.
    fn labelled(&self, what: impl FnOnce() -> (String, u64), f: impl FnOnce() -> Result<()>) -> Result<()> {
        if !self.profiling {
            return f();
        }
        let (what, bytes) = what();
        self.driver.label(&what, bytes);
        let result = f();
        self.driver.label("", 0);
        result
    }

    /// `mem` with its home.
    fn buffer(&self, mem: D::Mem) -> Result<CudaBuf<D>> {
        let home = self.driver.alloc("an address", size_of::<u64>())?;
        self.driver.write(&home, 0, &D::address(&mem).to_le_bytes())?;
        Ok(CudaBuf { mem: Rc::new(mem), home: Rc::new(home) })
    }

    fn pass(&self) -> &Pass<D> {
        self.pass.as_ref().expect("prepare() comes first")
    }

    /// The address of a tensor's first byte, after checking that all of it is inside its buffer.
    fn weight(w: &Tensor<CudaBuf<D>>) -> Result<*const u8> {
        let row_bytes = w.ty.row_bytes(w.cols).ok_or_else(|| {
            DeviceError::Unsupported(format!("a {} tensor cannot have rows of {} elements", w.ty, w.cols))
        })?;
        in_range("weights", w.offset, w.rows.saturating_mul(row_bytes), D::len(&w.buf.mem))?;
        Ok((D::address(&w.buf.mem) + w.offset as u64) as *const u8)
    }

    /// The address of a vector, after checking that it is one of `len` F32 numbers.
    fn vector(w: &Tensor<CudaBuf<D>>, len: usize) -> Result<*const f32> {
        if (w.ty, w.rows, w.cols) != (TensorType::F32, 1, len) {
            let what =
                format!("a vector of {} {} elements in {} rows, where {len} F32 are needed", w.cols, w.ty, w.rows);
            return Err(DeviceError::Unsupported(what));
        }
        Self::weight(w).map(<*const u8>::cast)
    }
}

impl<D: Driver> Transfer for CudaDevice<D> {
    type Buf = CudaBuf<D>;
    type Pinned = D::Pinned;
    type Event = D::Event;

    fn name(&self) -> &str {
        &self.name
    }

    fn memory(&self) -> Result<MemoryInfo> {
        self.driver.memory()
    }

    fn headroom(&self) -> u64 {
        self.driver.headroom()
    }

    fn index(&self) -> usize {
        self.driver.index()
    }

    fn read_kernels(&self) -> Option<nvme::ReadKernels> {
        let driver = self.driver.clone();
        Some(Box::new(move || Ok(Box::new(driver.beside(nvme::MODULE)?))))
    }

    fn pci_address(&self) -> Option<String> {
        self.driver.pci_address()
    }

    /// A whole number of what kernels copy at once, so that they may read past the end of `bytes`.
    fn alloc(&self, what: &str, bytes: usize) -> Result<CudaBuf<D>> {
        self.buffer(self.driver.alloc(what, bytes.next_multiple_of(COPIED))?)
    }

    fn pinned(&self, what: &str, bytes: usize) -> Result<D::Pinned> {
        self.driver.pinned(what, bytes)
    }

    fn pinned_parts(&self, what: &str, bytes: usize, count: usize) -> Result<Vec<D::Pinned>> {
        self.driver.pinned_parts(what, bytes, count)
    }

    fn try_pinned(&self, what: &str, bytes: usize) -> Result<HostMemory<D::Pinned>> {
        self.driver.try_pinned(what, bytes)
    }

    fn locks_pages(&self) -> bool {
        self.driver.locks_pages()
    }

    fn zero_copy(&self, src: D::Pinned) -> Result<CudaBuf<D>> {
        let bytes = src.as_ref().len();
        in_range("zero-copy", 0, bytes.next_multiple_of(COPIED), bytes)?;
        self.buffer(self.driver.zero_copy(src)?)
    }

    fn write(&self, dst: &CudaBuf<D>, offset: usize, bytes: &[u8]) -> Result<()> {
        self.driver.write(&dst.mem, offset, bytes)
    }

    fn upload(
        &self,
        src: &D::Pinned,
        range: Range<usize>,
        dst: &CudaBuf<D>,
        offset: usize,
        after: Option<&D::Event>,
    ) -> Result<D::Event> {
        self.driver.upload(src, range, &dst.mem, offset, after)
    }

    fn device_memory<'a>(&'a self, buf: &'a CudaBuf<D>) -> Result<Box<dyn DeviceMemory + 'a>> {
        self.driver.open_to_others(&buf.mem)?;
        Ok(Box::new(OnDevice { driver: &*self.driver, mem: &*buf.mem }))
    }

    fn acquire(&self) -> Result<()> {
        self.driver.acquire()
    }

    fn limit_link(&mut self, bytes_per_second: Option<f64>) {
        self.driver.limit_link(bytes_per_second);
    }

    fn mark(&self) -> Result<D::Event> {
        self.driver.mark()
    }

    fn mark_copies(&self) -> Result<D::Event> {
        self.driver.mark_copies()
    }

    fn compute_waits(&self, event: &D::Event) -> Result<()> {
        self.driver.compute_waits(event)
    }

    fn host_waits(&self, event: &D::Event) -> Result<()> {
        self.driver.host_waits(event)
    }

    fn reached(&self, event: &D::Event) -> Result<bool> {
        self.driver.reached(event)
    }

    fn seconds(&self, from: &D::Event, to: &D::Event) -> Result<f64> {
        self.driver.seconds(from, to)
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_number_beyond_32_bits_is_named() {
        assert_eq!(super::count("rows", u32::MAX as usize).unwrap(), u32::MAX);
        let error = super::count("rows", 1 << 32).unwrap_err().to_string();
        assert_eq!(error, "4294967296 rows: kernels count them in 32 bits");
    }
}
