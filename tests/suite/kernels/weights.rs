//! Matrix products and embedding rows, for each tensor type.

use gpu::weights::{self, WeightKernels, WeightVisitor};
use ntransformer::device::cuda::driver::Driver;
use quant::TensorType;
use rand::Rng;

use super::{Lab, Output, assert_close, pointer};
use crate::reference::{self, Sum};

/// Rounding error of a product relative to sum |w| |x|: a lane adds at most 4352 / 32 terms, one after the other, each
/// with a relative error of 2^-24 of the sum so far.
const PRODUCT_BUDGET: f64 = 5e-7;

/// Columns to try: one block, several, one block fewer or more than a warp takes at once, an odd number of blocks.
const COLS: [usize; 9] = [1, 3, 32, 33, 96, 256, 768, 1280, 4352];

/// A random matrix.
struct Matrix {
    ty: TensorType,
    rows: usize,
    cols: usize,
    bytes: Vec<u8>,
    /// Decoded, `[rows][cols]`.
    values: Vec<f32>,
}

impl Matrix {
    fn random<D: Driver>(lab: &mut Lab<D>, ty: TensorType, rows: usize, cols: usize) -> Self {
        let row_bytes = ty.row_bytes(cols).unwrap();
        let mut bytes = vec![0; rows * row_bytes];
        quant::fill_random(ty, &mut || lab.rng.random(), 1.0, &mut bytes).unwrap();
        let mut values = vec![0.0; rows * cols];
        for (row, values) in bytes.chunks_exact(row_bytes).zip(values.chunks_exact_mut(cols)) {
            quant::decode_row(ty, row, values).unwrap();
        }
        Matrix { ty, rows, cols, bytes, values }
    }
}

/// Every type with every number of columns that it can have.
fn types_and_cols() -> impl Iterator<Item = (TensorType, usize)> {
    let fits = |ty: TensorType| move |cols: &usize| cols.is_multiple_of(ty.block_elems());
    TensorType::ALL.iter().flat_map(move |&ty| COLS.into_iter().filter(fits(ty)).map(move |cols| (ty, cols)))
}

/// A matrix on the device with everything that its product reads.
struct Product<'a, 'd, D: Driver> {
    lab: &'a Lab<'d, D>,
    matrix: &'a Matrix,
    /// `[tokens][cols]`
    x: &'a [f32],
    /// `[rows]`
    bias: Option<&'a [f32]>,
    /// `[tokens][rows]`, to be added to.
    y: Option<&'a [f32]>,
}

impl<D: Driver> Product<'_, '_, D> {
    fn tokens(&self) -> usize {
        self.x.len() / self.matrix.cols
    }

    /// The output before the launch.
    fn output(&self) -> Output<D> {
        match self.y {
            Some(y) => self.lab.output(y),
            None => self.lab.poisoned::<f32>(self.tokens() * self.matrix.rows),
        }
    }

    fn check(&self, found: &[f32]) {
        let Matrix { ty, rows, cols, values, .. } = self.matrix;
        let expected =
            self.x.chunks_exact(*cols).flat_map(|x| values.chunks_exact(*cols).map(move |w| reference::dot(w, x)));
        for (i, (&found, product)) in found.iter().zip(expected).enumerate() {
            let (token, row) = (i / rows, i % rows);
            let mut sum: Sum = product;
            sum.add(self.bias.map_or(0.0, |bias| bias[row].into()));
            sum.add(self.y.map_or(0.0, |y| y[i].into()));
            assert_close(found, sum.value, PRODUCT_BUDGET * sum.magnitude, || {
                let (bias, accumulate) = (self.bias.is_some(), self.y.is_some());
                format!("{ty} {rows} x {cols}, bias {bias}, accumulate {accumulate}, token {token}, row {row}")
            });
        }
    }
}

/// One token at a time.
struct Gemv<'a, 'd, D: Driver>(&'a Product<'a, 'd, D>);

impl<D: Driver> WeightVisitor for Gemv<'_, '_, D> {
    type Out = Vec<f32>;

    fn visit<F: WeightKernels>(self) -> Vec<f32> {
        let Product { lab, matrix, x, bias, y } = *self.0;
        let (rows, cols) = (matrix.rows as u32, matrix.cols as u32);
        let w = lab.input(&matrix.bytes);
        let bias = bias.map(|bias| lab.input(bias));
        let of_token = |token: usize| {
            let x = lab.input(&x[token * matrix.cols..][..matrix.cols]);
            let y = y.map(|y| &y[token * matrix.rows..][..matrix.rows]);
            let out = y.map_or_else(|| lab.poisoned::<f32>(matrix.rows), |y| lab.output(y));
            lab.launch::<F::Gemv>(
                weights::gemv_grid(rows),
                (
                    pointer::<D, _>(&w),
                    pointer::<D, _>(&x),
                    bias.as_ref().map_or(std::ptr::null(), pointer::<D, _>),
                    out.pointer(),
                    rows,
                    cols,
                    y.is_some().into(),
                ),
            );
            lab.read::<f32>(&out)
        };
        (0..self.0.tokens()).flat_map(of_token).collect()
    }
}

/// All tokens at once.
struct Gemm<'a, 'd, D: Driver>(&'a Product<'a, 'd, D>);

impl<D: Driver> WeightVisitor for Gemm<'_, '_, D> {
    type Out = Vec<f32>;

    fn visit<F: WeightKernels>(self) -> Vec<f32> {
        let Product { lab, matrix, x, bias, y } = *self.0;
        let (rows, cols, tokens) = (matrix.rows as u32, matrix.cols as u32, self.0.tokens() as u32);
        let (w, x) = (lab.input(&matrix.bytes), lab.input(x));
        let bias = bias.map(|bias| lab.input(bias));
        let out = self.0.output();
        lab.launch::<F::Gemm>(
            weights::gemm_grid(rows, tokens),
            (
                pointer::<D, _>(&w),
                pointer::<D, _>(&x),
                bias.as_ref().map_or(std::ptr::null(), pointer::<D, _>),
                out.pointer(),
                rows,
                cols,
                tokens,
                y.is_some().into(),
            ),
        );
        lab.read(&out)
    }
}

/// y = W x, with and without a bias, stored and added.
pub fn gemv<D: Driver>(lab: &mut Lab<D>) {
    for (ty, cols) in types_and_cols() {
        for rows in [1, 2, 7, 33] {
            let matrix = Matrix::random(lab, ty, rows, cols);
            let (x, bias, y) = (lab.floats(cols), lab.floats(rows), lab.floats(rows));
            for (bias, y) in [(None, None), (Some(&bias[..]), None), (None, Some(&y[..])), (Some(&bias), Some(&y))] {
                let product = Product { lab, matrix: &matrix, x: &x, bias, y };
                product.check(&weights::visit(ty, Gemv(&product)));
            }
        }
    }
}

/// Several tokens at once give what each gives alone, to the bit, and that is right.
pub fn gemm<D: Driver>(lab: &mut Lab<D>) {
    for (i, (ty, cols)) in types_and_cols().enumerate() {
        // Every number of tokens up to more than a pass, on few rows; more passes and rows now and then.
        let shapes = (1..=9).map(|tokens| (5, tokens)).chain([(1, 8), (34, 1 + i % 4), (3, 17)]);
        for (k, (rows, tokens)) in shapes.enumerate().filter(|(k, _)| cols < 1000 || k % 4 == i % 4) {
            let matrix = Matrix::random(lab, ty, rows, cols);
            let (x, bias, y) = (lab.floats(tokens * cols), lab.floats(rows), lab.floats(tokens * rows));
            let bias = (k % 2 == 1).then_some(&bias[..]);
            let y = (k % 3 == 1).then_some(&y[..]);
            let product = Product { lab, matrix: &matrix, x: &x, bias, y };
            let found = weights::visit(ty, Gemm(&product));
            product.check(&found);
            let alone = weights::visit(ty, Gemv(&product));
            for (i, (found, alone)) in found.iter().zip(&alone).enumerate() {
                let (token, row) = (i / rows, i % rows);
                assert_eq!(
                    found.to_bits(),
                    alone.to_bits(),
                    "{ty} {rows} x {cols}, token {token} of {tokens}, row {row}: {found} with others, {alone} alone"
                );
            }
        }
    }
}

/// Rows come out exactly as the host decodes them.
pub fn embed<D: Driver>(lab: &mut Lab<D>) {
    struct Embed<'a, 'd, D: Driver>(&'a Lab<'d, D>, &'a Matrix, &'a [u32]);

    impl<D: Driver> WeightVisitor for Embed<'_, '_, D> {
        type Out = Vec<f32>;

        fn visit<F: WeightKernels>(self) -> Vec<f32> {
            let Embed(lab, matrix, ids) = self;
            let (w, out) = (lab.input(&matrix.bytes), lab.poisoned::<f32>(ids.len() * matrix.cols));
            let ids_mem = lab.input(ids);
            lab.launch::<F::Embed>(
                weights::embed_grid(ids.len() as u32),
                (pointer::<D, _>(&w), pointer::<D, _>(&ids_mem), out.pointer(), matrix.cols as u32),
            );
            lab.read(&out)
        }
    }

    for (ty, cols) in types_and_cols() {
        let matrix = Matrix::random(lab, ty, 7, cols);
        for ids in [&[6][..], &[3, 0, 6, 3, 5]] {
            let found = weights::visit(ty, Embed(lab, &matrix, ids));
            for ((&id, found), token) in ids.iter().zip(found.chunks_exact(cols)).zip(0..) {
                let row = &matrix.values[id as usize * cols..][..cols];
                for (col, (found, expected)) in found.iter().zip(row).enumerate() {
                    let what = format!("{ty}, {cols} columns, token {token}, row {id}, column {col}");
                    assert_eq!(found.to_bits(), expected.to_bits(), "{what}: {found} instead of {expected}");
                }
            }
        }
    }
}
