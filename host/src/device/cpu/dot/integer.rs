//! Dot products of quantised weights with quantised activations.
//!
//! A format says how 32 of its values become signed bytes, and what their scales are. The values are widened to 16 bits and
//! multiplied by their sub-block's integer scale, which makes one integer of each weight; then a block's products with the
//! activations are summed up in 32 bits. All of that is exact. What is left for floats, for each block: the sum times `d`,
//! less the minima times the sums of the activations; and for each step of 256 values: times the activations' scale.

use std::marker::PhantomData;

use quant::Format;

use super::{
    Kernel, STEP, bytes,
    columns::{LARGEST, Quantised},
    simd::Simd,
};

/// A format whose values are `d * scale * q - min`, with integers `scale` and `q`.
///
/// A block has 256 values or 32. Of 256, each sub-block has a scale and, if the format has minima, a minimum. Of 32 there is
/// only `d` and, likewise, a minimum.
pub trait IntegerFormat: Format {
    /// The largest magnitude of `scale * q`. With it, no sum of a block's products overflows: one of eight sums adds up the
    /// products of `ELEMS / 8` values.
    const LARGEST: i32;
    /// Sub-blocks that have scales: 8 or 16; 1 if the block's only scale is `d`.
    const SUBS: usize = 1;
    /// There are minima.
    const MINS: bool = false;
    /// Where in the block `d` is.
    const D: usize = 0;

    /// The `q` of values `32 group` to `32 group + 31`, as signed bytes. `group` is constant where this is inlined.
    fn values<S: Simd>(s: S, block: &[u8], group: usize) -> S::Bytes;

    /// `d`, in half precision at [`IntegerFormat::D`].
    #[inline(always)]
    fn d<S: Simd>(s: S, block: &[u8]) -> f32 {
        s.half(*bytes(block, Self::D))
    }

    /// The sub-blocks' scales, as signed bytes; unused if there are none.
    #[inline(always)]
    fn scales(_block: &[u8]) -> [u8; 16] {
        [0; 16]
    }

    /// For a step of 256 values, which may end early: the minima of the first 16 of each 32 values, and of the last 16.
    #[inline(always)]
    fn mins<S: Simd>(s: S, _blocks: &[u8]) -> [S::Floats; 2] {
        [s.splat(0.0); 2]
    }
}

/// The kernel of an [`IntegerFormat`].
pub struct Integer<F>(PhantomData<F>);

impl<F: IntegerFormat> Kernel for Integer<F> {
    type Step = Quantised;
    const STEP_BYTES: usize = STEP / F::ELEMS * F::BYTES;

    #[inline(always)]
    fn add<S: Simd, const N: usize>(s: S, blocks: &[u8], x: [&Quantised; N], sums: &mut [S::Floats; N]) {
        const {
            assert!(F::ELEMS == 256 || F::ELEMS == 32);
            let products = (F::ELEMS / 8) as i64;
            assert!(products * F::LARGEST as i64 * LARGEST as i64 <= i32::MAX as i64);
        }
        // The compiler then knows the length.
        let blocks = if F::ELEMS == STEP { &blocks[..F::BYTES] } else { blocks };
        let mut total = [s.splat(0.0); N];
        for (i, block) in blocks.chunks_exact(F::BYTES).enumerate() {
            let d = s.splat(F::d(s, block));
            let scales = s.bytes_twice(&F::scales(block));
            let mut products = [s.ints(); N];
            group::<S, F, N>(s, block, scales, 0, i, x, &mut products);
            if F::ELEMS == 256 {
                // Written out, because `group` has to be a constant.
                group::<S, F, N>(s, block, scales, 1, 1, x, &mut products);
                group::<S, F, N>(s, block, scales, 2, 2, x, &mut products);
                group::<S, F, N>(s, block, scales, 3, 3, x, &mut products);
                group::<S, F, N>(s, block, scales, 4, 4, x, &mut products);
                group::<S, F, N>(s, block, scales, 5, 5, x, &mut products);
                group::<S, F, N>(s, block, scales, 6, 6, x, &mut products);
                group::<S, F, N>(s, block, scales, 7, 7, x, &mut products);
            }
            for (total, products) in total.iter_mut().zip(products) {
                *total = s.add(*total, s.mul(s.floats_of_ints(products), d));
            }
        }
        let mins = F::mins(s, blocks);
        for c in 0..N {
            if F::MINS {
                for (mins, sums) in mins.iter().zip(&x[c].sums) {
                    total[c] = s.sub(total[c], s.mul(*mins, s.floats(sums)));
                }
            }
            sums[c] = s.add(sums[c], s.mul(total[c], s.splat(x[c].scale)));
        }
    }
}

/// Adds the products of the block's values `32 group` to `32 group + 31` with group `at` of the activations.
#[inline(always)]
fn group<S: Simd, F: IntegerFormat, const N: usize>(
    s: S,
    block: &[u8],
    scales: S::Bytes,
    group: u8,
    at: usize,
    x: [&Quantised; N],
    products: &mut [S::Ints; N],
) {
    let values = F::values(s, block, group.into());
    let (even, odd) = match F::SUBS {
        16 => s.widen_scaled(values, scales, 2 * group, 2 * group + 1),
        8 => s.widen_scaled(values, scales, group, group),
        _ => s.widen(values),
    };
    for (products, x) in products.iter_mut().zip(x) {
        let [even_x, odd_x] = &x.q[at];
        *products = s.add_products(s.add_products(*products, even, even_x), odd, odd_x);
    }
}
