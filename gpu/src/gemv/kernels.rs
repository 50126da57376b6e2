//! The entry points: four products and the embedding for each tensor type, each type in a PTX module of its own.

use cuda_std::{kernel::Grid, prelude::*};
use quant::{Bytes, Format, formats};

use super::{
    COLUMNS_WARPS, Product, gemv, glu,
    weights::{Floats, Integers},
};

const EMBED_THREADS: u32 = 128;

/// The launch of `embed` for `tokens` tokens.
pub const fn embed_grid(tokens: u32) -> Grid {
    Grid::new(tokens, 1, EMBED_THREADS)
}

/// A block in device memory.
#[derive(Clone, Copy)]
struct DeviceBlock(*const u8);

impl DeviceBlock {
    #[inline(always)]
    fn load<T: Copy>(self, at: usize) -> T {
        // SAFETY: `embed` makes blocks of addresses of whole ones, aligned as [`Bytes`] assumes; formats stay inside.
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
            let raw = F::load(DeviceBlock(row.add(block * F::BYTES)), slice);
            for run in 0..F::RUNS {
                let values = F::decode(raw, slice, run);
                let y = y.add(block * F::ELEMS + F::at(slice, run));
                for k in 0..F::RUN {
                    mem::store(y.add(k), values[k]);
                }
            }
            i += EMBED_THREADS as usize;
        }
    }
}

/// Parameters of an `embed` kernel: w, ids, y, cols.
#[cfg(not(target_arch = "nvptx64"))]
pub type EmbedArgs = (*const u8, *const u32, *mut f32, u32);

/// The kernels of a tensor type.
#[cfg(not(target_arch = "nvptx64"))]
pub trait WeightKernels: Format {
    /// How lanes multiply its blocks.
    type Weights: super::Weights;
    /// Matrices times one column.
    type Gemv: cuda_std::kernel::Kernel<Args = (Product,)>;
    /// Matrices times up to four columns at once.
    type Gemv4: cuda_std::kernel::Kernel<Args = (Product,)>;
    /// Matrices times up to eight columns at once.
    type Gemv8: cuda_std::kernel::Kernel<Args = (Product,)>;
    /// The gated linear unit of one column.
    type Glu: cuda_std::kernel::Kernel<Args = (Product,)>;
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

/// The entry points of each tensor type: PTX module, format, how lanes multiply it, names.
macro_rules! kernels {
    ($($module:literal $format:ident $weights:ident $gemv:ident $gemv4:ident $gemv8:ident $glu:ident $embed:ident;)*) => {
        $(
            #[doc = concat!("y\\[r\\] (+)= sum over c of W\\[r\\]\\[c\\] x\\[c\\] + bias\\[r\\], W in ", stringify!($format), ": [`Product`] with one column.")]
            ///
            /// Fetches weights before it waits for the kernel before it.
            ///
            /// # Safety
            /// Launched with what [`super::launch()`] gives for one column. Device addresses and offsets of what [`Product`] says, `x`
            /// 16-byte aligned; nobody else writes them. Offsets of vectors are multiples of 4; a matrix's bytes are readable from the multiple of 16
            /// before its first to the one behind its last. No kernel writes the buffer of weights or its home.
            #[cfg(feature = $module)]
            #[kernel($module, prefetch)]
            pub unsafe fn $gemv(product: Product) {
                thread::launch_bounds::<{ 32 * <$weights<formats::$format> as super::Weights>::WARPS }, 2>();
                // SAFETY: the caller's promise.
                unsafe { gemv::<$weights<formats::$format>, 1>(&product) }
            }

            #[doc = concat!("As `", stringify!($gemv), "`, four columns at a time. Each has the bits that it has alone.")]
            ///
            /// # Safety
            /// As there, with the launch for four columns.
            #[cfg(feature = $module)]
            #[kernel($module, prefetch)]
            pub unsafe fn $gemv4(product: Product) {
                thread::launch_bounds::<{ 32 * COLUMNS_WARPS }, 1>();
                // SAFETY: the caller's promise.
                unsafe { gemv::<$weights<formats::$format>, 4>(&product) }
            }

            #[doc = concat!("As `", stringify!($gemv), "`, eight columns at a time. Each has the bits that it has alone.")]
            ///
            /// # Safety
            /// As there, with the launch for eight columns.
            #[cfg(feature = $module)]
            #[kernel($module, prefetch)]
            pub unsafe fn $gemv8(product: Product) {
                thread::launch_bounds::<{ 32 * COLUMNS_WARPS }, 1>();
                // SAFETY: the caller's promise.
                unsafe { gemv::<$weights<formats::$format>, 8>(&product) }
            }

            #[doc = concat!("y\\[r\\] = activation(gate x)\\[r\\] (up x)\\[r\\], weights in ", stringify!($format), ": the first two matrices of a [`Product`], one column, y the first's.")]
            ///
            /// # Safety
            /// As for the product of one column.
            #[cfg(feature = $module)]
            #[kernel($module, prefetch)]
            pub unsafe fn $glu(product: Product) {
                thread::launch_bounds::<{ 32 * <$weights<formats::$format> as super::Weights>::WARPS }, 2>();
                // SAFETY: the caller's promise.
                unsafe { glu::<$weights<formats::$format>>(&product) }
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
                unsafe { embed::<formats::$format>(w, ids, y, cols) }
            }

            #[cfg(all(not(target_arch = "nvptx64"), feature = $module))]
            impl WeightKernels for formats::$format {
                type Weights = $weights<formats::$format>;
                type Gemv = $gemv;
                type Gemv4 = $gemv4;
                type Gemv8 = $gemv8;
                type Glu = $glu;
                type Embed = $embed;
            }
        )*

        /// Calls the visitor with the kernels of `ty`: the one place where a value becomes a kernel.
        #[cfg(not(target_arch = "nvptx64"))]
        pub fn visit<V: WeightVisitor>(ty: quant::TensorType, visitor: V) -> V::Out {
            match ty {
                $(quant::TensorType::$format => visitor.visit::<formats::$format>(),)*
            }
        }
    };
}

kernels! {
    "f32" F32 Floats gemv_f32 gemv4_f32 gemv8_f32 glu_f32 embed_f32;
    "f16" F16 Floats gemv_f16 gemv4_f16 gemv8_f16 glu_f16 embed_f16;
    "bf16" BF16 Floats gemv_bf16 gemv4_bf16 gemv8_bf16 glu_bf16 embed_bf16;
    "q4_0" Q4_0 Integers gemv_q4_0 gemv4_q4_0 gemv8_q4_0 glu_q4_0 embed_q4_0;
    "q4_1" Q4_1 Integers gemv_q4_1 gemv4_q4_1 gemv8_q4_1 glu_q4_1 embed_q4_1;
    "q5_0" Q5_0 Integers gemv_q5_0 gemv4_q5_0 gemv8_q5_0 glu_q5_0 embed_q5_0;
    "q5_1" Q5_1 Integers gemv_q5_1 gemv4_q5_1 gemv8_q5_1 glu_q5_1 embed_q5_1;
    "q8_0" Q8_0 Integers gemv_q8_0 gemv4_q8_0 gemv8_q8_0 glu_q8_0 embed_q8_0;
    "q2_k" Q2_K Integers gemv_q2_k gemv4_q2_k gemv8_q2_k glu_q2_k embed_q2_k;
    "q3_k" Q3_K Integers gemv_q3_k gemv4_q3_k gemv8_q3_k glu_q3_k embed_q3_k;
    "q4_k" Q4_K Integers gemv_q4_k gemv4_q4_k gemv8_q4_k glu_q4_k embed_q4_k;
    "q5_k" Q5_K Integers gemv_q5_k gemv4_q5_k gemv8_q5_k glu_q5_k embed_q5_k;
    "q6_k" Q6_K Integers gemv_q6_k gemv4_q6_k gemv8_q6_k glu_q6_k embed_q6_k;
    "iq4_nl" IQ4_NL Integers gemv_iq4_nl gemv4_iq4_nl gemv8_iq4_nl glu_iq4_nl embed_iq4_nl;
    "iq4_xs" IQ4_XS Integers gemv_iq4_xs gemv4_iq4_xs gemv8_iq4_xs glu_iq4_xs embed_iq4_xs;
}
