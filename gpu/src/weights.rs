//! Kernels that read weights: matrix times vector, matrix times a few vectors, embedding rows.
//!
//! One mechanism, generic over [`quant::Format`]; the macro below makes the entry points of each tensor type from it, each type
//! in a PTX module of its own. Matrices are in GGUF's own layout: row after row, each `cols / ELEMS` blocks.

use core::{array, marker::PhantomData};

use cuda_std::{kernel::Grid, prelude::*};
use quant::{Bytes, Format};

/// Threads of a block in the kernels here. In a product they share out the columns: with a warp a row, a matrix of 4096 rows
/// would leave half of a large GPU without work.
const THREADS: u32 = 128;
const WARPS: usize = (THREADS / 32) as usize;
/// Rows that a block of `gemv` computes side by side.
const GEMV_ROWS: usize = 1;
/// Rows that a block of `gemm` computes side by side: an activation that was read is used for each of them.
const GEMM_ROWS: usize = 2;
/// Tokens that `gemm` computes in one pass over the weights.
const GEMM_TOKENS: usize = 8;
/// Results that a block can have, one a lane.
const MAX_RESULTS: usize = 32;

/// The launch of `gemv` for a matrix of `rows` rows.
pub const fn gemv_grid(rows: u32) -> Grid {
    Grid::new(rows.div_ceil(GEMV_ROWS as u32), 1, THREADS)
}

/// The launch of `gemm` for a matrix of `rows` rows and `tokens` tokens, at most 65535 * 8.
pub const fn gemm_grid(rows: u32, tokens: u32) -> Grid {
    Grid::new(rows.div_ceil(GEMM_ROWS as u32), tokens.div_ceil(GEMM_TOKENS as u32), THREADS)
}

/// The launch of `embed` for `tokens` tokens.
pub const fn embed_grid(tokens: u32) -> Grid {
    Grid::new(tokens, 1, THREADS)
}

/// A block in device memory.
#[derive(Clone, Copy)]
struct DeviceBlock(*const u8);

impl DeviceBlock {
    /// # Safety
    /// `block` must be the device address of a whole block of the format that will read it, aligned as [`Bytes`] assumes.
    #[inline(always)]
    unsafe fn new(block: *const u8) -> Self {
        DeviceBlock(block)
    }

    #[inline(always)]
    fn load<T: Copy>(self, at: usize) -> T {
        // SAFETY: `new`'s promise; formats stay inside their block.
        unsafe { mem::load(self.0.add(at).cast()) }
    }
}

impl Bytes for DeviceBlock {
    #[inline(always)]
    fn u8(self, at: usize) -> u8 {
        self.load(at)
    }

    #[inline(always)]
    fn u16(self, at: usize) -> u16 {
        self.load(at)
    }

    #[inline(always)]
    fn u32_aligned(self, at: usize) -> u32 {
        self.load(at)
    }

    #[inline(always)]
    fn f16(self, at: usize) -> f32 {
        self.load::<F16>(at).to_f32()
    }
}

/// The activations that a run is multiplied with, from `x` on.
///
/// # Safety
/// `x` is the device address of `F::RUN` floats, 16-byte aligned where that is 4.
#[inline(always)]
unsafe fn load_run<F: Format>(x: *const f32) -> [f32; 4] {
    if F::RUN == 4 {
        // SAFETY: the caller's promise.
        return unsafe { mem::load4(x) };
    }
    let mut run = [0.0; 4];
    for i in 0..F::RUN {
        // SAFETY: the caller's promise.
        run[i] = unsafe { mem::load(x.add(i)) };
    }
    run
}

/// What `gemv` and `gemm` compute a product from. Pointers are device addresses.
struct Product {
    w: *const u8,
    x: *const f32,
    bias: *const f32,
    y: *mut f32,
    rows: u32,
    cols: u32,
    tokens: u32,
    accumulate: bool,
}

impl Product {
    /// One block's share: `R` rows times `C` tokens.
    ///
    /// A thread takes every `THREADS`th slice of a row, so it meets the same slice of every block of weights, and adds one
    /// product after the other; then each warp adds its lanes' sums, and one thread the warps'. A result's bits therefore
    /// depend neither on `R` nor on `C`.
    ///
    /// # Safety
    /// As for the kernels.
    #[inline(always)]
    unsafe fn run<F: Format, const R: usize, const C: usize>(&self) {
        const { assert!((THREADS as usize).is_multiple_of(F::SLICES) && R * C <= MAX_RESULTS) };
        let thread = thread::thread_idx_x() as usize;
        let first_row = thread::block_idx_x() * R as u32;
        let first_token = thread::block_idx_y() * C as u32;

        // Beyond the last row and token, the last one is computed again and not stored: all threads stay together.
        let cols = self.cols as usize;
        let blocks = cols / F::ELEMS;
        let weights: [*const u8; R] = array::from_fn(|r| {
            let row = (first_row + r as u32).min(self.rows - 1);
            self.w.wrapping_add(row as usize * blocks * F::BYTES)
        });
        let activations: [*const f32; C] = array::from_fn(|c| {
            let token = (first_token + c as u32).min(self.tokens - 1);
            self.x.wrapping_add(token as usize * cols)
        });

        let slice = thread % F::SLICES;
        let mut sums = [[0.0; C]; R];
        let step = Step::<F, R, C> { weights, activations, slice, format: PhantomData };
        let stride = THREADS as usize / F::SLICES;
        let mut block = thread / F::SLICES;
        let mut rounds = blocks / (4 * stride);
        // SAFETY: the blocks are the rows'; all threads take as many rounds.
        unsafe {
            while rounds > 0 {
                // Written out, since a loop over registers has to be unrolled.
                let [a, b, c, d] = [block, block + stride, block + 2 * stride, block + 3 * stride];
                let raw = [step.load(a), step.load(b), step.load(c), step.load(d)];
                // All reads are asked for before the first is waited for: without a fence, ptxas moves each to its use.
                warp::sync_warp(warp::FULL_MASK);
                step.multiply(raw[0], a, &mut sums);
                step.multiply(raw[1], b, &mut sums);
                step.multiply(raw[2], c, &mut sums);
                step.multiply(raw[3], d, &mut sums);
                block += 4 * stride;
                rounds -= 1;
            }
            while block < blocks {
                step.multiply(step.load(block), block, &mut sums);
                block += stride;
            }
        }

        // Result (r, c) of each warp is in lane r C + c, and is stored by that thread of the block.
        let sums = sums.as_flattened_mut();
        // SAFETY: all threads are here.
        unsafe { warp::sums(sums) };
        let mut result = 0.0;
        for i in 0..R * C {
            if warp::lane_id() as usize == i {
                result = sums[i];
            }
        }
        let partial = shared_array!(PARTIAL_RESULTS: [f32; MAX_RESULTS * WARPS]);
        // SAFETY: all threads are at the barrier, each writes an element of its own before it; a result is inside y and
        // stored by one thread.
        unsafe {
            partial.add(thread).write(result);
            thread::sync_threads();
            let (row, token) = (first_row + (thread / C) as u32, first_token + (thread % C) as u32);
            if thread < R * C && row < self.rows && token < self.tokens {
                let mut result = 0.0;
                for warp in 0..WARPS {
                    result += partial.add(MAX_RESULTS * warp + thread).read();
                }
                self.store(row as usize, token as usize, result);
            }
        }
    }

    /// y\[token\]\[row\] (+)= sum + bias\[row\].
    ///
    /// # Safety
    /// The element must be inside `y`, and no other thread's.
    #[inline(always)]
    unsafe fn store(&self, row: usize, token: usize, mut sum: f32) {
        // SAFETY: the caller's promise.
        unsafe {
            let y = self.y.add(token * self.rows as usize + row);
            if !self.bias.is_null() {
                sum += mem::load(self.bias.add(row));
            }
            if self.accumulate {
                sum += mem::load(y);
            }
            mem::store(y, sum);
        }
    }
}

/// A slice of `R` rows' blocks times the activations of `C` tokens.
struct Step<F, const R: usize, const C: usize> {
    weights: [*const u8; R],
    activations: [*const f32; C],
    slice: usize,
    format: PhantomData<F>,
}

impl<F: Format, const R: usize, const C: usize> Step<F, R, C> {
    /// # Safety
    /// The rows must have that block.
    #[inline(always)]
    unsafe fn load(&self, block: usize) -> [F::Raw; R] {
        // SAFETY: the caller's promise.
        self.weights.map(|row| F::load(unsafe { DeviceBlock::new(row.add(block * F::BYTES)) }, self.slice))
    }

    /// # Safety
    /// The tokens must have activations for that block.
    #[inline(always)]
    unsafe fn multiply(&self, raw: [F::Raw; R], block: usize, sums: &mut [[f32; C]; R]) {
        for run in 0..F::RUNS {
            let runs = raw.map(|raw| F::decode(raw, self.slice, run));
            let at = block * F::ELEMS + F::at(self.slice, run);
            for c in 0..C {
                // SAFETY: the caller's promise.
                let x = unsafe { load_run::<F>(self.activations[c].add(at)) };
                for r in 0..R {
                    for i in 0..F::RUN {
                        sums[r][c] = float::fma(runs[r][i], x[i], sums[r][c]);
                    }
                }
            }
        }
    }
}

/// y\[t\] = row `ids[t]` of `w`, one block of threads a token.
///
/// # Safety
/// As for the kernels.
#[inline(always)]
unsafe fn embed<F: Format>(w: *const u8, ids: *const u32, y: *mut f32, cols: u32) {
    let token = thread::block_idx_x() as usize;
    let cols = cols as usize;
    let blocks = cols / F::ELEMS;
    let mut i = thread::thread_idx_x() as usize;
    // SAFETY: row and token are the caller's promise, and the `i`th slice of the row's is inside both.
    unsafe {
        let row = w.add(mem::load(ids.add(token)) as usize * blocks * F::BYTES);
        let y = y.add(token * cols);
        while i < blocks * F::SLICES {
            let (block, slice) = (i / F::SLICES, i % F::SLICES);
            let raw = F::load(DeviceBlock::new(row.add(block * F::BYTES)), slice);
            for run in 0..F::RUNS {
                let values = F::decode(raw, slice, run);
                let y = y.add(block * F::ELEMS + F::at(slice, run));
                for k in 0..F::RUN {
                    mem::store(y.add(k), values[k]);
                }
            }
            i += THREADS as usize;
        }
    }
}

/// Parameters of a `gemv` kernel: w, x, bias, y, rows, cols, accumulate.
#[cfg(not(target_arch = "nvptx64"))]
pub type GemvArgs = (*const u8, *const f32, *const f32, *mut f32, u32, u32, u32);
/// Parameters of a `gemm` kernel: w, x, bias, y, rows, cols, tokens, accumulate.
#[cfg(not(target_arch = "nvptx64"))]
pub type GemmArgs = (*const u8, *const f32, *const f32, *mut f32, u32, u32, u32, u32);
/// Parameters of an `embed` kernel: w, ids, y, cols.
#[cfg(not(target_arch = "nvptx64"))]
pub type EmbedArgs = (*const u8, *const u32, *mut f32, u32);

/// The kernels of a tensor type.
#[cfg(not(target_arch = "nvptx64"))]
pub trait WeightKernels: Format {
    /// Matrix times vector.
    type Gemv: cuda_std::kernel::Kernel<Args = GemvArgs>;
    /// Matrix times a few vectors.
    type Gemm: cuda_std::kernel::Kernel<Args = GemmArgs>;
    /// Rows of the matrix, decoded.
    type Embed: cuda_std::kernel::Kernel<Args = EmbedArgs>;
}

/// What to do with a tensor type once its kernels are known; see [`visit`].
#[cfg(not(target_arch = "nvptx64"))]
pub trait WeightVisitor {
    /// The visit's result.
    type Out;

    /// Called with the format of the visited tensor type.
    fn visit<F: WeightKernels>(self) -> Self::Out;
}

/// The entry points of each tensor type: PTX module, format, names.
macro_rules! weights {
    ($($module:literal $format:ident $gemv:ident $gemm:ident $embed:ident;)*) => {
        $(
            #[doc = concat!("y\\[r\\] (+)= sum over c of W\\[r\\]\\[c\\] x\\[c\\] + bias\\[r\\], W in ", stringify!($format), ".")]
            ///
            /// Launched with [`gemv_grid`]. `x` has `cols` floats, `y` and `bias` (or null) `rows`; `accumulate` other than 0
            /// adds to `y`. `cols` is a multiple of the format's block.
            ///
            /// # Safety
            /// `w`, `x`, `bias`, `y` are device addresses of that much, `x` 16-byte aligned, `w` the start
            /// of a row of a tensor that is; nobody else writes them.
            #[cfg(feature = $module)]
            #[kernel($module)]
            pub unsafe fn $gemv(
                w: *const u8, x: *const f32, bias: *const f32, y: *mut f32, rows: u32, cols: u32, accumulate: u32
            ) {
                let product = Product { w, x, bias, y, rows, cols, tokens: 1, accumulate: accumulate != 0 };
                // SAFETY: the caller's promise.
                unsafe { product.run::<quant::formats::$format, GEMV_ROWS, 1>() }
            }

            #[doc = concat!("y\\[t\\]\\[r\\] (+)= sum over c of W\\[r\\]\\[c\\] x\\[t\\]\\[c\\] + bias\\[r\\], W in ", stringify!($format), ".")]
            ///
            /// Launched with [`gemm_grid`]. `x` is `[tokens][cols]`, `y` `[tokens][rows]`, `bias` (or null) has `rows` floats;
            /// `accumulate` other than 0 adds to `y`. `cols` is a multiple of the format's block. Each token's result has
            /// the bits that the `gemv` kernel computes.
            ///
            /// # Safety
            /// `w`, `x`, `bias`, `y` are device addresses of that much, `x` 16-byte aligned, `w` the start
            /// of a row of a tensor that is; nobody else writes them.
            #[cfg(feature = $module)]
            #[kernel($module)]
            pub unsafe fn $gemm(
                w: *const u8, x: *const f32, bias: *const f32, y: *mut f32, rows: u32, cols: u32, tokens: u32, accumulate: u32
            ) {
                let product = Product { w, x, bias, y, rows, cols, tokens, accumulate: accumulate != 0 };
                // SAFETY: the caller's promise.
                unsafe { product.run::<quant::formats::$format, GEMM_ROWS, GEMM_TOKENS>() }
            }

            #[doc = concat!("y\\[t\\] = row ids\\[t\\] of W, W in ", stringify!($format), ".")]
            ///
            /// Launched with [`embed_grid`]. `y` is `[tokens][cols]`; `cols` is a multiple of the format's block.
            ///
            /// # Safety
            /// `w`, `ids` and `y` are device addresses, `w` 16-byte aligned, and every id is a row of `w`; nobody else writes them.
            #[cfg(feature = $module)]
            #[kernel($module)]
            pub unsafe fn $embed(w: *const u8, ids: *const u32, y: *mut f32, cols: u32) {
                // SAFETY: the caller's promise.
                unsafe { embed::<quant::formats::$format>(w, ids, y, cols) }
            }

            #[cfg(all(not(target_arch = "nvptx64"), feature = $module))]
            impl WeightKernels for quant::formats::$format {
                type Gemv = $gemv;
                type Gemm = $gemm;
                type Embed = $embed;
            }
        )*

        /// Calls the visitor with the kernels of `ty`: the one place where a value becomes a kernel.
        #[cfg(not(target_arch = "nvptx64"))]
        pub fn visit<V: WeightVisitor>(ty: quant::TensorType, visitor: V) -> V::Out {
            match ty {
                $(quant::TensorType::$format => visitor.visit::<quant::formats::$format>(),)*
            }
        }
    };
}

weights! {
    "f32" F32 gemv_f32 gemm_f32 embed_f32;
    "f16" F16 gemv_f16 gemm_f16 embed_f16;
    "bf16" BF16 gemv_bf16 gemm_bf16 embed_bf16;
    "q4_0" Q4_0 gemv_q4_0 gemm_q4_0 embed_q4_0;
    "q4_1" Q4_1 gemv_q4_1 gemm_q4_1 embed_q4_1;
    "q5_0" Q5_0 gemv_q5_0 gemm_q5_0 embed_q5_0;
    "q5_1" Q5_1 gemv_q5_1 gemm_q5_1 embed_q5_1;
    "q8_0" Q8_0 gemv_q8_0 gemm_q8_0 embed_q8_0;
    "q2_k" Q2_K gemv_q2_k gemm_q2_k embed_q2_k;
    "q3_k" Q3_K gemv_q3_k gemm_q3_k embed_q3_k;
    "q4_k" Q4_K gemv_q4_k gemm_q4_k embed_q4_k;
    "q5_k" Q5_K gemv_q5_k gemm_q5_k embed_q5_k;
    "q6_k" Q6_K gemv_q6_k gemm_q6_k embed_q6_k;
    "iq4_nl" IQ4_NL gemv_iq4_nl gemm_iq4_nl embed_iq4_nl;
    "iq4_xs" IQ4_XS gemv_iq4_xs gemm_iq4_xs embed_iq4_xs;
}
