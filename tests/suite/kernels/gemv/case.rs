//! A launch of products with random numbers, run and compared.

use cuda_std::kernel::Grid;
use gpu::gemv::{self, Launch, Matrix, NONE, Product, Room, SILU, Share, WeightKernels, WeightVisitor};
use ntransformer::device::cuda::driver::Driver;
use quant::TensorType;
use rand::Rng;

use crate::{
    kernels::{Lab, Output, assert_close, pointer, to_bytes},
    reference,
};

/// Activations that share a scale d = max |x| / 127.
const BLOCK: usize = 32;

/// Largest error of a quantised activation in units of d: half a step, and what the f32 reciprocal of d adds to q = 127 at most.
const HALF_STEP: f64 = 0.5 + 127.0 * 4.0 / (1u64 << 24) as f64;

/// Independent errors of at most e\[i\] each sum up to more than this times sqrt(sum of e\[i\]^2) with a probability of
/// 2 exp(-6^2 / 2) = 3e-8 (Hoeffding 1963).
const DEVIATIONS: f64 = 6.0;

/// Rounding errors in f32 relative to sum of |largest weight of a block| |x|: a lane adds at most 4352 / 32 terms one after the
/// other, each of two parts (scale and offset) that may be twice as large as their sum, and the RMSNorm adds its own.
pub const ROUNDING: f64 = 2e-6;

/// So large that its absence shows.
pub const EPS: f32 = 1e-2;

fn is_float(ty: TensorType) -> bool {
    matches!(ty, TensorType::F32 | TensorType::F16 | TensorType::BF16)
}

/// A random matrix.
pub struct Weights {
    pub rows: usize,
    pub bytes: Vec<u8>,
    /// Decoded, `[rows][cols]`.
    pub values: Vec<f32>,
}

impl Weights {
    pub fn random<D: Driver>(lab: &mut Lab<D>, ty: TensorType, rows: usize, cols: usize) -> Self {
        let row_bytes = ty.row_bytes(cols).unwrap();
        let mut bytes = vec![0; rows * row_bytes];
        quant::fill_random(ty, &mut || lab.rng.random(), 1.0, &mut bytes).unwrap();
        let mut values = vec![0.0; rows * cols];
        for (row, values) in bytes.chunks_exact(row_bytes).zip(values.chunks_exact_mut(cols)) {
            quant::decode_row(ty, row, values).unwrap();
        }
        Weights { rows, bytes, values }
    }
}

/// A launch.
pub struct Case {
    pub ty: TensorType,
    pub cols: usize,
    pub matrices: Vec<Weights>,
    /// Rows of the first matrix before the ones that are multiplied.
    pub skipped: usize,
    /// `[tokens][cols]`
    pub x: Vec<f32>,
    pub norm: Option<Vec<f32>>,
    /// Of each matrix, `[rows]`.
    pub bias: Option<Vec<Vec<f32>>>,
    /// Of each matrix, `[tokens][rows]`, to be added to.
    pub y: Option<Vec<Vec<f32>>>,
}

/// What of [`Case`]'s options is there.
#[derive(Clone, Copy)]
pub struct Options {
    pub norm: bool,
    pub bias: bool,
    pub accumulate: bool,
}

impl Options {
    pub const NONE: Options = Options { norm: false, bias: false, accumulate: false };

    /// The bits of `i`: all combinations in turn.
    pub fn nth(i: usize) -> Self {
        Options { norm: i & 1 != 0, bias: i & 2 != 0, accumulate: i & 4 != 0 }
    }
}

impl Case {
    pub fn random<D: Driver>(
        lab: &mut Lab<D>,
        ty: TensorType,
        cols: usize,
        rows: &[usize],
        tokens: usize,
        options: Options,
    ) -> Self {
        let matrices: Vec<_> = rows.iter().map(|&rows| Weights::random(lab, ty, rows, cols)).collect();
        let x = lab.floats(tokens * cols);
        let norm = options.norm.then(|| lab.floats(cols));
        let bias = options.bias.then(|| rows.iter().map(|&rows| lab.floats(rows)).collect());
        let y = options.accumulate.then(|| rows.iter().map(|&rows| lab.floats(tokens * rows)).collect());
        Case { ty, cols, matrices, skipped: 0, x, norm, bias, y }
    }

    pub fn tokens(&self) -> usize {
        self.x.len() / self.cols
    }

    /// Rows of matrix `m` that are multiplied.
    pub fn rows(&self, m: usize) -> usize {
        self.matrices[m].rows - if m == 0 { self.skipped } else { 0 }
    }

    /// The row of `values` that is row `row` of the product.
    pub fn row(&self, m: usize, row: usize) -> &[f32] {
        let row = row + if m == 0 { self.skipped } else { 0 };
        &self.matrices[m].values[row * self.cols..][..self.cols]
    }

    /// The activations of a token after the norm.
    pub fn normed(&self, token: usize) -> Vec<f64> {
        let x = &self.x[token * self.cols..][..self.cols];
        match &self.norm {
            Some(norm) => reference::rms_norm(x, norm, EPS),
            None => x.iter().map(|&x| x.into()).collect(),
        }
    }

    /// sum w\[i\] x\[i\], and the largest error that it may come out with.
    pub fn product(&self, w: &[f32], x: &[f64]) -> (f64, f64) {
        let value = w.iter().zip(x).map(|(&w, x)| f64::from(w) * x).sum();
        let (mut worst, mut squares, mut magnitude) = (0.0, 0.0, 0.0);
        for (w, x) in w.chunks(self.ty.block_elems().max(BLOCK)).zip(x.chunks(self.ty.block_elems().max(BLOCK))) {
            let largest = w.iter().fold(0.0f64, |largest, &w| largest.max(f64::from(w).abs()));
            magnitude += largest * x.iter().map(|x| x.abs()).sum::<f64>();
            for (w, x) in w.chunks(BLOCK).zip(x.chunks(BLOCK)) {
                let error = HALF_STEP * x.iter().fold(0.0f64, |largest, x| largest.max(x.abs())) / 127.0;
                for &w in w {
                    worst += f64::from(w).abs() * error;
                    squares += (f64::from(w) * error).powi(2);
                }
            }
        }
        let quantisation = if is_float(self.ty) { 0.0 } else { f64::min(worst, DEVIATIONS * f64::sqrt(squares)) };
        (value, quantisation + ROUNDING * magnitude)
    }

    pub fn what(&self, m: usize, token: usize, row: usize) -> String {
        let (ty, cols, tokens) = (self.ty, self.cols, self.tokens());
        let rows: Vec<_> = self.matrices.iter().map(|matrix| matrix.rows).collect();
        let (norm, bias, accumulate) = (self.norm.is_some(), self.bias.is_some(), self.y.is_some());
        format!(
            "{ty} {rows:?} x {cols}, {tokens} tokens, norm {norm}, bias {bias}, accumulate {accumulate}: matrix {m}, token {token}, row {row}"
        )
    }

    /// Compares `[matrix][tokens][rows]`.
    pub fn check(&self, found: &[Vec<f32>]) {
        for (m, found) in found.iter().enumerate() {
            let rows = self.rows(m);
            for token in 0..self.tokens() {
                let x = self.normed(token);
                for row in 0..rows {
                    let (mut value, mut error) = self.product(self.row(m, row), &x);
                    for added in
                        [&self.bias.as_ref().map(|b| b[m][row]), &self.y.as_ref().map(|y| y[m][token * rows + row])]
                    {
                        let added = f64::from(added.unwrap_or(0.0));
                        value += added;
                        error += ROUNDING * added.abs();
                    }
                    assert_close(found[token * rows + row], value, error, || self.what(m, token, row));
                }
            }
        }
    }

    /// The results `[matrix][tokens][rows]` of `gemv`, `columns` at a time.
    pub fn gemv<D: Driver>(&self, lab: &Lab<D>, columns: u32) -> Vec<Vec<f32>> {
        gemv::visit(self.ty, Run { lab, case: self, entry: Entry::Gemv(columns) })
    }

    /// The results of `glu`.
    pub fn glu<D: Driver>(&self, lab: &Lab<D>, activation: u32) -> Vec<f32> {
        gemv::visit(self.ty, Run { lab, case: self, entry: Entry::Glu(activation) }).remove(0)
    }
}

/// A kernel: `gemv` of so many columns at a time, `glu` with an activation.
#[derive(Clone, Copy, PartialEq)]
enum Entry {
    Gemv(u32),
    Glu(u32),
}

/// A buffer of weights in the making.
#[derive(Default)]
pub struct Image(Vec<u8>);

impl Image {
    /// Where `bytes` begin: as in a file, at a multiple of 32.
    pub fn add(&mut self, bytes: &[u8]) -> u64 {
        self.0.resize(self.0.len().next_multiple_of(32), 0xFF);
        let offset = self.0.len() as u64;
        self.0.extend_from_slice(bytes);
        offset
    }

    /// The buffer on the device, and what holds its address. What follows the last tensor is there to be read and is no number.
    pub fn upload<D: Driver>(mut self, lab: &Lab<D>) -> (D::Mem, D::Mem) {
        self.add(&[]);
        let image = lab.input(&self.0);
        let home = lab.input(&D::address(&image).to_le_bytes());
        (image, home)
    }
}

/// The launch of `product` with `groups` groups of rows, `columns` at a time, and `product` with what belongs to that.
pub fn fitted<F: WeightKernels>(room: Room, product: Product, groups: u32, columns: u32) -> (Grid, Product) {
    let Product { cols, tokens, norm, .. } = product;
    let launch = gemv::launch::<F::Weights>(room, groups, cols, tokens, columns, norm != NONE);
    let launch = launch.unwrap_or_else(|| panic!("{}: {cols} columns, {columns} at a time, do not fit", F::TYPE));
    let Launch { grid, piece_blocks, stage_bytes, stages, align } = launch;
    (grid, Product { piece_blocks, stage_bytes, stages, align, ..product })
}

/// No matrix.
pub const NO_MATRIX: Matrix = Matrix { offset: 0, bias: NONE, y: std::ptr::null_mut(), rows: 0, reserved: 0 };

struct Run<'a, 'd, D: Driver> {
    lab: &'a Lab<'d, D>,
    case: &'a Case,
    entry: Entry,
}

impl<D: Driver> WeightVisitor for Run<'_, '_, D> {
    type Out = Vec<Vec<f32>>;

    fn visit<F: WeightKernels>(self) -> Vec<Vec<f32>> {
        let Run { lab, case, entry } = self;
        let row_bytes = case.ty.row_bytes(case.cols).unwrap();
        let mut image = Image::default();
        let norm = case.norm.as_ref().map_or(NONE, |norm| image.add(&to_bytes(norm)));
        let outputs: Vec<Output<D>> = (0..case.matrices.len())
            .map(|m| match &case.y {
                Some(y) => lab.output(&y[m]),
                None => lab.poisoned::<f32>(case.tokens() * case.rows(m)),
            })
            .collect();
        let mut matrices = [NO_MATRIX; 3];
        for (m, weights) in case.matrices.iter().enumerate() {
            let skipped = if m == 0 { case.skipped } else { 0 };
            matrices[m] = Matrix {
                offset: image.add(&weights.bytes) + (skipped * row_bytes) as u64,
                bias: case.bias.as_ref().map_or(NONE, |bias| image.add(&to_bytes(&bias[m]))),
                y: outputs[m].pointer(),
                rows: case.rows(m) as u32,
                reserved: 0,
            };
        }
        let (_image, home) = image.upload(lab);
        let x = lab.input(&case.x);

        let (groups, columns) = match entry {
            Entry::Gemv(columns) => (gemv::row_groups(&matrices), columns),
            Entry::Glu(_) => (matrices[0].rows, 1),
        };
        let product = Product {
            home: pointer::<D, _>(&home),
            x: pointer::<D, _>(&x),
            norm,
            matrices,
            cols: case.cols as u32,
            row_bytes: row_bytes as u32,
            tokens: case.tokens() as u32,
            piece_blocks: 0,
            stage_bytes: 0,
            stages: 0,
            accumulate: case.y.is_some().into(),
            activation: if let Entry::Glu(activation) = entry { activation } else { SILU },
            eps: EPS,
            stride: row_bytes as u32,
            overlap: groups % 2,
            align: 0,
        };
        let (grid, product) = fitted::<F>(lab.driver.properties().room(Share::Small), product, groups, columns);
        match entry {
            Entry::Gemv(1) => lab.launch::<F::Gemv>(grid, (product,)),
            Entry::Gemv(4) => lab.launch::<F::Gemv4>(grid, (product,)),
            Entry::Gemv(_) => lab.launch::<F::Gemv8>(grid, (product,)),
            Entry::Glu(_) => lab.launch::<F::Glu>(grid, (product,)),
        }
        let written = if let Entry::Glu(_) = entry { 1 } else { outputs.len() };
        outputs[..written].iter().map(|output| lab.read(output)).collect()
    }
}

/// Fails unless both have the same bits.
#[track_caller]
pub fn assert_same(found: &[f32], expected: &[f32], what: impl Fn(usize) -> String) {
    assert_eq!(found.len(), expected.len());
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(found.to_bits(), expected.to_bits(), "{}: {found} instead of {expected}", what(i));
    }
}
