//! What a lane does with the weights of a stage: integer dot products for block formats, fused multiply-adds for floats.

use core::marker::PhantomData;

use cuda_std::prelude::*;
use quant::{Format, formats};

use super::{
    MAX_WARPS,
    acts::{Int8, float_chunk, int8_bytes},
    dot::Dot,
    staged::Staged,
};

/// How the lanes of a warp multiply the blocks of a row. Consecutive lanes take consecutive *slices*, `LANES` of them a block.
pub trait Weights {
    /// Values of a block, and its bytes.
    const ELEMS: usize;
    /// Bytes of a block.
    const BYTES: usize;
    /// Slices of a block.
    const LANES: usize;
    /// Warps of a block that multiplies one column, at most.
    const WARPS: u32 = MAX_WARPS as u32;
    /// Rows may end within a block.
    const ANY_END: bool;

    /// Bytes of shared memory that a column of `cols` activations takes, a multiple of 16.
    fn acts_bytes(cols: usize) -> usize;

    /// Stores activations `at` to `at + 3` of a column at each of `acts`: as `Int8::put`, which says what is promised.
    ///
    /// # Safety
    /// As there.
    unsafe fn put<const N: usize>(acts: [*mut u8; N], cols: usize, at: usize, values: [f32; 4], inside: bool);

    /// Adds the products of a slice of `R` rows and of `C` columns to `sums`. `blocks` are the rows' blocks, `slice` the slice's
    /// number, `start + at` the index of the block's first value in the row of `cols`, where `start` is a multiple of 512 for integers and of
    /// 128 for floats; the columns are one after the other, [`Weights::acts_bytes`] each. `WHOLE` says that `cols` is a multiple of
    /// [`Weights::ELEMS`].
    ///
    /// # Safety
    /// The blocks are in the stage, as many values of them as the row has; the columns are in shared memory.
    unsafe fn multiply<const R: usize, const C: usize, const WHOLE: bool>(
        blocks: [Staged; R],
        slice: usize,
        acts: *mut u8,
        cols: usize,
        start: usize,
        at: usize,
        sums: &mut [[f32; C]; R],
    );
}

/// A format with integer dot products.
pub struct Integers<D>(PhantomData<D>);

impl<D: Dot> Weights for Integers<D> {
    const WARPS: u32 = D::WARPS;
    const ELEMS: usize = D::ELEMS;
    const BYTES: usize = D::BYTES;
    const LANES: usize = <D as Dot>::LANES;
    const ANY_END: bool = false;

    #[inline(always)]
    fn acts_bytes(cols: usize) -> usize {
        int8_bytes(cols, D::SUMS)
    }

    #[inline(always)]
    unsafe fn put<const N: usize>(acts: [*mut u8; N], cols: usize, at: usize, values: [f32; 4], inside: bool) {
        let columns = acts.map(|acts| Int8::at(acts, cols));
        // SAFETY: the caller's promise.
        unsafe { Int8::put::<D, N>(columns, at, values, inside) }
    }

    #[inline(always)]
    unsafe fn multiply<const R: usize, const C: usize, const WHOLE: bool>(
        blocks: [Staged; R],
        slice: usize,
        acts: *mut u8,
        cols: usize,
        start: usize,
        at: usize,
        sums: &mut [[f32; C]; R],
    ) {
        let bits = blocks.map(|block| D::bits(block, slice));
        let mut products = [[0.0; C]; R];
        let column = |c: usize| Int8::at(acts.wrapping_add(c * Self::acts_bytes(cols)), cols);
        // What belongs to the parts lies side by side. Of one column it is read at once; of several it would take too many registers.
        let (mut ds, mut totals) = ([0.0; 4], [0.0; 4]);
        let at = at + D::first(slice);
        if C == 1 {
            // SAFETY: the caller's promise.
            unsafe {
                ds = column(0).scales::<D>(start, at);
                if D::SUMS != 0 {
                    totals = column(0).sums::<D>(start, at);
                }
            }
        }
        unrolled!(part < D::PARTS, {
            let runs = core::array::from_fn::<_, R, _>(|r| D::run(&bits[r], slice, part));
            unrolled!(c < C, {
                let column = column(c);
                // SAFETY: the caller's promise.
                let (x, d, sum) = unsafe {
                    let x = column.run::<D>(start, at, part);
                    let d = if C == 1 { ds[part] } else { column.scale(start, at + 32 * part) };
                    let sum = match D::SUMS {
                        0 => 0.0,
                        _ if C == 1 => totals[part],
                        _ => column.sum::<D>(start, at + 32 * part),
                    };
                    (x, d, sum)
                };
                for r in 0..R {
                    let dot = runs[r].factor * D::dot(&runs[r], &x, part);
                    products[r][c] = float::fma(d, dot as f32, products[r][c]);
                    if D::SUMS != 0 {
                        sums[r][c] = float::fma(runs[r].offset, sum, sums[r][c]);
                    }
                }
            });
        });
        for r in 0..R {
            for c in 0..C {
                sums[r][c] = float::fma(D::d(&bits[r]), products[r][c], sums[r][c]);
            }
        }
    }
}

/// A format of floats: a lane takes 16 bytes, and activations are F32.
pub struct Floats<F>(PhantomData<F>);

impl<F: Float> Weights for Floats<F> {
    const ELEMS: usize = 16 / F::BYTES;
    const BYTES: usize = 16;
    const LANES: usize = 1;
    const ANY_END: bool = true;

    #[inline(always)]
    fn acts_bytes(cols: usize) -> usize {
        // A lane reads up to eight, and `float_chunk` swaps neighbouring fours.
        4 * cols.next_multiple_of(8)
    }

    #[inline(always)]
    unsafe fn put<const N: usize>(acts: [*mut u8; N], cols: usize, at: usize, values: [f32; 4], inside: bool) {
        // Zeros behind the end, where lanes multiply with zeros.
        let values = if inside { values } else { [0.0; 4] };
        if at < cols.next_multiple_of(8) {
            for i in 0..N {
                // SAFETY: the caller's promise.
                unsafe { acts[i].cast::<mem::F32x4>().add(float_chunk(at / 4)).write(mem::F32x4(values)) }
            }
        }
    }

    #[inline(always)]
    unsafe fn multiply<const R: usize, const C: usize, const WHOLE: bool>(
        blocks: [Staged; R],
        _slice: usize,
        acts: *mut u8,
        cols: usize,
        start: usize,
        at: usize,
        sums: &mut [[f32; C]; R],
    ) {
        // Rows of 16 bytes' multiples all lie alike.
        let mut bits = blocks.map(|block| if WHOLE { block.words::<4, 16>(0) } else { block.words::<4, 2>(0) });
        if !WHOLE && start + at + Self::ELEMS > cols {
            // What lies behind the row is no number of it.
            for r in 0..R {
                for i in 0..4 {
                    let kept = (cols - (start + at).min(cols)) * F::BYTES;
                    let mask = match kept.saturating_sub(4 * i) {
                        0 => 0,
                        2 => 0xffff,
                        _ => u32::MAX,
                    };
                    bits[r][i] &= mask;
                }
            }
        }
        unrolled!(c < C, {
            let x = acts.wrapping_add(c * Self::acts_bytes(cols) + 4 * start);
            // SAFETY: the caller's promise.
            let read = |n: usize| unsafe {
                Staged::new(x.wrapping_add(16 * float_chunk(at / 4 + n)), 0).words::<4, 16>(0).map(f32::from_bits)
            };
            let x = read(0);
            if F::BYTES == 4 {
                for r in 0..R {
                    for i in 0..4 {
                        sums[r][c] = float::fma(F::low(bits[r][i]), x[i], sums[r][c]);
                    }
                }
            } else {
                let y = read(1);
                for r in 0..R {
                    for i in 0..2 {
                        sums[r][c] = float::fma(F::low(bits[r][i]), x[2 * i], sums[r][c]);
                        sums[r][c] = float::fma(F::high(bits[r][i]), x[2 * i + 1], sums[r][c]);
                    }
                    for i in 0..2 {
                        sums[r][c] = float::fma(F::low(bits[r][2 + i]), y[2 * i], sums[r][c]);
                        sums[r][c] = float::fma(F::high(bits[r][2 + i]), y[2 * i + 1], sums[r][c]);
                    }
                }
            }
        });
    }
}

/// A float in memory.
pub trait Float: Format {
    /// The number in a word, or in its low half.
    fn low(word: u32) -> f32;
    /// The number in its high half.
    fn high(word: u32) -> f32;
}

impl Float for formats::F32 {
    #[inline(always)]
    fn low(word: u32) -> f32 {
        f32::from_bits(word)
    }

    #[inline(always)]
    fn high(_word: u32) -> f32 {
        0.0
    }
}

impl Float for formats::F16 {
    #[inline(always)]
    fn low(word: u32) -> f32 {
        F16(word as u16).to_f32()
    }

    #[inline(always)]
    fn high(word: u32) -> f32 {
        F16((word >> 16) as u16).to_f32()
    }
}

impl Float for formats::BF16 {
    #[inline(always)]
    fn low(word: u32) -> f32 {
        f32::from_bits(word << 16)
    }

    #[inline(always)]
    fn high(word: u32) -> f32 {
        f32::from_bits(word & 0xffff_0000)
    }
}
