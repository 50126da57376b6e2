//! Choosing among logits: what is fetched are a few numbers.

use gpu::ops;

use super::{CudaAct, CudaDevice, Driver, Result, bytes_of_mut, in_range};
use crate::device::{
    DeviceError, Dims, MAX_TOP_K,
    top_k::{self, Candidate},
};

/// What the kernels that choose need beside the logits.
pub(super) struct Choice<M> {
    /// `[max_tokens]` u32: argmax's results.
    best: M,
    /// `argmax_parts` u64: what its blocks found.
    parts: M,
    /// `[max_tokens]` u32: its counters, 0 between launches.
    arrived: M,
    /// `[vocab]` u32: indices that may be among the k best.
    list: M,
    /// A `TopKState`.
    state: M,
    /// `[MAX_TOP_K][2]` u32: the k best, indices and bits.
    pairs: M,
}

/// Bytes of each buffer of [`Choice`], in its order.
fn sizes(dims: &Dims, max_tokens: usize) -> [usize; 6] {
    let (word, parts) = (size_of::<u32>(), ops::argmax_parts(max_tokens) * size_of::<u64>());
    let rows = max_tokens.max(1) * word;
    [rows, parts, rows, dims.vocab.max(1) * word, size_of::<ops::TopKState>(), 2 * MAX_TOP_K * word]
}

impl<M> Choice<M> {
    /// Room for `max_tokens` rows of the model's logits.
    pub fn new<D: Driver<Mem = M>>(driver: &D, dims: &Dims, max_tokens: usize) -> Result<Self> {
        let sizes = sizes(dims, max_tokens);
        let alloc = |bytes: usize| driver.alloc("choosing among logits", bytes);
        let zeroed = |bytes: usize| {
            let mem = alloc(bytes)?;
            driver.write(&mem, 0, &vec![0; bytes])?;
            Ok::<M, DeviceError>(mem)
        };
        Ok(Choice {
            best: alloc(sizes[0])?,
            parts: alloc(sizes[1])?,
            arrived: zeroed(sizes[2])?,
            list: alloc(sizes[3])?,
            state: zeroed(sizes[4])?,
            pairs: alloc(sizes[5])?,
        })
    }

    /// Bytes of device memory.
    pub fn bytes(dims: &Dims, max_tokens: usize) -> u64 {
        sizes(dims, max_tokens).iter().sum::<usize>() as u64
    }
}

impl<D: Driver> CudaDevice<D> {
    /// [`Device::argmax`](crate::device::Device::argmax).
    pub(super) fn best_of_rows(&self, x: &CudaAct<D>, rows: usize, width: usize) -> Result<Vec<Option<u32>>> {
        let Choice { best, parts, arrived, .. } = &self.pass().choice;
        if rows == 0 {
            return Ok(Vec::new());
        }
        in_range("argmax's output", 0, rows * size_of::<u32>(), D::len(best))?;
        let args = (
            x.ptr("logits", rows * width)?.cast_const(),
            D::address(best) as *mut u32,
            width as u32,
            D::address(parts) as *mut u64,
            D::address(arrived) as *mut u32,
        );
        // SAFETY: logits and output were checked; `parts` and `arrived` were made for as many rows as the output, and the
        // counters for nobody else.
        unsafe { self.driver.launch::<ops::argmax>(ops::argmax_grid(rows as u32, width as u32), args)? };
        let mut out = vec![0u32; rows];
        self.driver.read(best, 0, bytes_of_mut(&mut out))?;
        Ok(out.into_iter().map(|index| Some(index).filter(|&index| index != u32::MAX)).collect())
    }

    /// [`Device::top_k`](crate::device::Device::top_k).
    pub(super) fn top_k_of_rows(
        &self,
        x: &CudaAct<D>,
        rows: usize,
        width: usize,
        k: usize,
    ) -> Result<Vec<Vec<Candidate>>> {
        let Choice { list, state, pairs, .. } = &self.pass().choice;
        top_k::check(k)?;
        in_range("the list of the best", 0, width * size_of::<u32>(), D::len(list))?;
        let logits = x.ptr("logits", rows * width)?.cast_const();
        let (list, state) = (D::address(list) as *mut u32, D::address(state) as *mut ops::TopKState);
        let (grid, n, length) = (ops::top_k_grid(width as u32), width as u32, k as u32);
        let mut out = vec![0u32; 2 * k];
        let row = |row: usize| {
            // SAFETY: the logits and the list were checked, the state was made for these kernels, and `pairs` for any k.
            unsafe {
                let x = logits.add(row * width);
                self.driver.launch::<ops::top_k_floor>(grid, (x, n, length, list, state))?;
                let pairs = D::address(pairs) as *mut u32;
                self.driver.launch::<ops::top_k>(grid, (x, n, length, list, state, pairs))?;
            }
            self.driver.read(pairs, 0, bytes_of_mut(&mut out))?;
            let found = out.chunks_exact(2).take_while(|pair| pair[0] != u32::MAX);
            Ok(found.map(|pair| (pair[0], f32::from_bits(pair[1]))).collect())
        };
        (0..rows).map(row).collect()
    }
}
