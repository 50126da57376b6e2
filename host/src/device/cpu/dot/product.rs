//! A matrix times columns, on all cores.

use quant::{TensorType, formats};
use rayon::prelude::*;

use super::{
    InstructionSet, Kernel, STEP,
    columns::{Floats, Quantised, Step},
    float::Float,
    integer::Integer,
    simd::{Simd, Task},
};
use crate::device::DeviceError;

/// Columns that are multiplied at a time: their sums fit into the registers.
const TILE: usize = 4;
/// Rows that a task consists of.
const ROWS: usize = 16;
/// Steps that all rows of a task are multiplied with before the next ones, over all columns of a tile: 19 KB, which stay in
/// the L1 cache.
const PART: usize = 32;

/// Bytes that a single column's weights are asked for ahead of their use. The hardware's own prefetching stops at the end of a
/// page. On 16 cores of a Xeon that read 120 GB/s, Q8_0 went from 73 to 91 GB/s with it, Q4_K from 54 to 67; half as far gave
/// 93 and 63.
const AHEAD: usize = 4096;
/// Bytes of a cache line.
const LINE: usize = 64;

/// A matrix: rows of `cols` values of type `ty`, one after the other.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    /// Type of the values.
    pub ty: TensorType,
    /// Values of a row.
    pub cols: usize,
    /// All rows.
    pub data: &'a [u8],
}

/// Memory that products need, kept from one to the next.
#[derive(Default)]
pub struct Workspace {
    floats: Vec<Floats>,
    quantised: Vec<Quantised>,
    /// `[rows x columns]`
    products: Vec<f32>,
}

/// Multiplies `w` with the columns `x`, `[columns x cols]`: for each product, `finish(row, product, y)` puts it into its place
/// in `y`, `[columns x rows]`.
///
/// # Errors
/// If there is not enough memory.
///
/// # Panics
/// If the lengths do not fit together.
pub fn multiply(
    set: InstructionSet,
    w: Matrix,
    x: &[f32],
    y: &mut [f32],
    Workspace { floats, quantised, products }: &mut Workspace,
    finish: impl Fn(usize, f32, &mut f32) + Sync,
) -> Result<(), DeviceError> {
    let n = x.len() / w.cols;
    if n == 0 {
        return Ok(());
    }
    macro_rules! by_type {
        ($($kernel:ident($columns:ident): $($ty:ident)*;)*) => {
            match w.ty { $($(TensorType::$ty => compute::<$kernel<formats::$ty>>(set, w, x, $columns, products),)*)* }
        };
    }
    let products = by_type! {
        Float(floats): F32 F16 BF16;
        Integer(quantised): Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS;
    }?;
    assert!(products.len() == y.len());
    let finish = |t: usize, y: &mut [f32]| {
        for (r, (y, products)) in y.iter_mut().zip(products.chunks_exact(n)).enumerate() {
            finish(r, products[t], y);
        }
    };
    if n == 1 {
        finish(0, y);
    } else {
        y.par_chunks_exact_mut(y.len() / n).enumerate().for_each(|(t, y)| finish(t, y));
    }
    Ok(())
}

/// The first `len` of the kept values; what they hold does not matter.
fn room<'a, T: Copy + Default>(what: &str, kept: &'a mut Vec<T>, len: usize) -> Result<&'a mut [T], DeviceError> {
    if kept.len() < len {
        *kept = crate::platform::zeroed(what, len)?;
    }
    Ok(&mut kept[..len])
}

/// The products, `[rows x columns]`.
fn compute<'a, K: Kernel>(
    set: InstructionSet,
    w: Matrix,
    x: &[f32],
    columns: &mut Vec<K::Step>,
    products: &'a mut Vec<f32>,
) -> Result<&'a [f32], DeviceError> {
    let row_bytes = w.ty.row_bytes(w.cols).expect("a row is whole blocks");
    let (n, rows, steps) = (x.len() / w.cols, w.data.len() / row_bytes, w.cols.div_ceil(STEP));
    assert!(n * w.cols == x.len() && rows * row_bytes == w.data.len());
    let columns = room("a matrix's input", columns, n * steps)?;
    let products = room("a matrix's output", products, n * rows)?;

    let store = |(steps, x): (&mut [K::Step], &[f32])| set.run(Store { steps, x });
    if n == 1 {
        store((columns, x));
    } else {
        columns.par_chunks_exact_mut(steps).zip(x.par_chunks_exact(w.cols)).for_each(store);
    }
    let columns = &*columns;
    products.par_chunks_mut(ROWS * n).zip(w.data.par_chunks(ROWS * row_bytes)).for_each(|(products, w)| {
        set.run(Rows::<K> { w, row_bytes, columns, steps, products });
    });
    Ok(products)
}

/// Brings a column into its kernels' form.
struct Store<'a, X> {
    steps: &'a mut [X],
    x: &'a [f32],
}

impl<X: Step> Task for Store<'_, X> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _s: S) {
        for (step, x) in self.steps.iter_mut().zip(self.x.chunks(STEP)) {
            step.store(x);
        }
    }
}

/// Multiplies up to `ROWS` rows with all columns.
struct Rows<'a, K: Kernel> {
    w: &'a [u8],
    row_bytes: usize,
    /// `[columns x steps]`
    columns: &'a [K::Step],
    steps: usize,
    /// `[rows x columns]`
    products: &'a mut [f32],
}

impl<K: Kernel> Task for Rows<'_, K> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let n = self.columns.len() / self.steps;
        let mut first = 0;
        while S::TILES && first + TILE <= n {
            self.tile::<S, TILE>(s, first);
            first += TILE;
        }
        for column in first..n {
            self.tile::<S, 1>(s, column);
        }
    }
}

impl<K: Kernel> Rows<'_, K> {
    /// All rows times the columns from `first` on.
    #[inline(always)]
    fn tile<S: Simd, const N: usize>(&mut self, s: S, first: usize) {
        let n = self.columns.len() / self.steps;
        // A single column is small: rows are read from end to end.
        let part = if N == 1 { self.steps } else { PART / N };
        let mut sums = [[s.splat(0.0); N]; ROWS];
        for start in (0..self.steps).step_by(part) {
            let end = self.steps.min(start + part);
            let mut columns = [&self.columns[..0]; N];
            for (c, column) in columns.iter_mut().enumerate() {
                let at = (first + c) * self.steps;
                *column = &self.columns[at + start..at + end];
            }
            for (row, sums) in self.w.chunks_exact(self.row_bytes).zip(&mut sums) {
                let bytes = start * K::STEP_BYTES..self.row_bytes.min(end * K::STEP_BYTES);
                for (i, w) in row[bytes].chunks(K::STEP_BYTES).enumerate() {
                    if N == 1 {
                        for line in (0..K::STEP_BYTES).step_by(LINE) {
                            s.prefetch(w.as_ptr().wrapping_add(AHEAD + line));
                        }
                    }
                    let mut x = [&columns[0][i]; N];
                    for (x, column) in x.iter_mut().zip(columns) {
                        *x = &column[i];
                    }
                    K::add(s, w, x, sums);
                }
            }
        }
        for (products, sums) in self.products.chunks_exact_mut(n).zip(&sums) {
            for (product, &sums) in products[first..].iter_mut().zip(sums) {
                let [a, b, c, d, e, f, g, h] = s.array(sums);
                *product = ((a + b) + (c + d)) + ((e + f) + (g + h));
            }
        }
    }
}
