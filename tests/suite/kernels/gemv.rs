//! Matrix-vector products with activations that are quantised on the way, and embedding rows, for each tensor type.

use cuda_std::kernel::Grid;
use gpu::gemv::{
    self, APART, BESIDE, GELU, Launch, Matrix, NONE, Product, Room, SILU, Share, WeightKernels, WeightVisitor,
};
use ntransformer::device::cuda::{
    driver::{Driver, Properties},
    emulator::EmulatorDriver,
};
use quant::TensorType;
use rand::Rng;

use super::{Lab, Output, assert_close, pointer};
use crate::reference;

/// Activations that share a scale d = max |x| / 127.
const BLOCK: usize = 32;

/// Largest error of a quantised activation in units of d: half a step, and what the f32 reciprocal of d adds to q = 127 at most.
const HALF_STEP: f64 = 0.5 + 127.0 * 4.0 / (1u64 << 24) as f64;

/// Independent errors of at most e\[i\] each sum up to more than this times sqrt(sum of e\[i\]^2) with a probability of
/// 2 exp(-6^2 / 2) = 3e-8 (Hoeffding 1963).
const DEVIATIONS: f64 = 6.0;

/// Rounding errors in f32 relative to sum of |largest weight of a block| |x|: a lane adds at most 4352 / 32 terms one after the
/// other, each of two parts (scale and offset) that may be twice as large as their sum, and the RMSNorm adds its own.
const ROUNDING: f64 = 2e-6;

/// Relative error of the activation functions in f32.
const ACTIVATION: f64 = 1e-5;

/// So large that its absence shows.
const EPS: f32 = 1e-2;

/// Columns to try: one block, several, fewer or more than a warp takes in a step, an odd number of blocks, several pieces.
const COLS: [usize; 11] = [1, 3, 32, 33, 96, 256, 768, 1280, 2080, 4352, 8192];

/// Every type with every number of columns that it can have.
fn types_and_cols() -> impl Iterator<Item = (TensorType, usize)> {
    let fits = |ty: TensorType| move |cols: &usize| cols.is_multiple_of(ty.block_elems());
    TensorType::ALL.iter().flat_map(move |&ty| COLS.into_iter().filter(fits(ty)).map(move |cols| (ty, cols)))
}

fn is_float(ty: TensorType) -> bool {
    matches!(ty, TensorType::F32 | TensorType::F16 | TensorType::BF16)
}

/// A random matrix.
struct Weights {
    rows: usize,
    bytes: Vec<u8>,
    /// Decoded, `[rows][cols]`.
    values: Vec<f32>,
}

impl Weights {
    fn random<D: Driver>(lab: &mut Lab<D>, ty: TensorType, rows: usize, cols: usize) -> Self {
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
struct Case {
    ty: TensorType,
    cols: usize,
    matrices: Vec<Weights>,
    /// Rows of the first matrix before the ones that are multiplied.
    skipped: usize,
    /// `[tokens][cols]`
    x: Vec<f32>,
    norm: Option<Vec<f32>>,
    /// Of each matrix, `[rows]`.
    bias: Option<Vec<Vec<f32>>>,
    /// Of each matrix, `[tokens][rows]`, to be added to.
    y: Option<Vec<Vec<f32>>>,
}

/// What of [`Case`]'s options is there.
#[derive(Clone, Copy)]
struct Options {
    norm: bool,
    bias: bool,
    accumulate: bool,
}

impl Options {
    const NONE: Options = Options { norm: false, bias: false, accumulate: false };

    /// The bits of `i`: all combinations in turn.
    fn nth(i: usize) -> Self {
        Options { norm: i & 1 != 0, bias: i & 2 != 0, accumulate: i & 4 != 0 }
    }
}

impl Case {
    fn random<D: Driver>(
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

    fn tokens(&self) -> usize {
        self.x.len() / self.cols
    }

    /// Rows of matrix `m` that are multiplied.
    fn rows(&self, m: usize) -> usize {
        self.matrices[m].rows - if m == 0 { self.skipped } else { 0 }
    }

    /// The row of `values` that is row `row` of the product.
    fn row(&self, m: usize, row: usize) -> &[f32] {
        let row = row + if m == 0 { self.skipped } else { 0 };
        &self.matrices[m].values[row * self.cols..][..self.cols]
    }

    /// The activations of a token after the norm.
    fn normed(&self, token: usize) -> Vec<f64> {
        let x = &self.x[token * self.cols..][..self.cols];
        match &self.norm {
            Some(norm) => reference::rms_norm(x, norm, EPS),
            None => x.iter().map(|&x| x.into()).collect(),
        }
    }

    /// sum w\[i\] x\[i\], and the largest error that it may come out with.
    fn product(&self, w: &[f32], x: &[f64]) -> (f64, f64) {
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

    fn what(&self, m: usize, token: usize, row: usize) -> String {
        let (ty, cols, tokens) = (self.ty, self.cols, self.tokens());
        let rows: Vec<_> = self.matrices.iter().map(|matrix| matrix.rows).collect();
        let (norm, bias, accumulate) = (self.norm.is_some(), self.bias.is_some(), self.y.is_some());
        format!(
            "{ty} {rows:?} x {cols}, {tokens} tokens, norm {norm}, bias {bias}, accumulate {accumulate}: matrix {m}, token {token}, row {row}"
        )
    }

    /// Compares `[matrix][tokens][rows]`.
    fn check(&self, found: &[Vec<f32>]) {
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
    fn gemv<D: Driver>(&self, lab: &Lab<D>, columns: u32) -> Vec<Vec<f32>> {
        gemv::visit(self.ty, Run { lab, case: self, entry: Entry::Gemv(columns) })
    }

    /// The results of `glu`.
    fn glu<D: Driver>(&self, lab: &Lab<D>, activation: u32) -> Vec<f32> {
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
struct Image(Vec<u8>);

impl Image {
    /// Where `bytes` begin: as in a file, at a multiple of 32.
    fn add(&mut self, bytes: &[u8]) -> u64 {
        self.0.resize(self.0.len().next_multiple_of(32), 0xFF);
        let offset = self.0.len() as u64;
        self.0.extend_from_slice(bytes);
        offset
    }

    /// The buffer on the device, and what holds its address. What follows the last tensor is there to be read and is no number.
    fn upload<D: Driver>(mut self, lab: &Lab<D>) -> (D::Mem, D::Mem) {
        self.add(&[]);
        let image = lab.input(&self.0);
        let home = lab.input(&D::address(&image).to_le_bytes());
        (image, home)
    }
}

/// The launch of `product` with `groups` groups of rows, `columns` at a time, and `product` with what belongs to that.
fn fitted<F: WeightKernels>(room: Room, product: Product, groups: u32, columns: u32) -> (Grid, Product) {
    let Product { cols, tokens, norm, .. } = product;
    let launch = gemv::launch::<F::Weights>(room, groups, cols, tokens, columns, norm != NONE);
    let launch = launch.unwrap_or_else(|| panic!("{}: {cols} columns, {columns} at a time, do not fit", F::TYPE));
    let Launch { grid, piece_blocks, stage_bytes, stages, align } = launch;
    (grid, Product { piece_blocks, stage_bytes, stages, align, ..product })
}

/// No matrix.
const NO_MATRIX: Matrix = Matrix { offset: 0, bias: NONE, y: std::ptr::null_mut(), rows: 0, reserved: 0 };

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
        let norm = case.norm.as_ref().map_or(NONE, |norm| image.add(&super::to_bytes(norm)));
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
                bias: case.bias.as_ref().map_or(NONE, |bias| image.add(&super::to_bytes(&bias[m]))),
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
fn assert_same(found: &[f32], expected: &[f32], what: impl Fn(usize) -> String) {
    assert_eq!(found.len(), expected.len());
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(found.to_bits(), expected.to_bits(), "{}: {found} instead of {expected}", what(i));
    }
}

/// One matrix and one token: few, odd and many rows, with each combination of norm, bias and sum.
pub fn gemv_shapes<D: Driver>(lab: &mut Lab<D>) {
    for (i, (ty, cols)) in types_and_cols().enumerate() {
        for (k, rows) in [1, 2, 7, 131].into_iter().enumerate().filter(|&(k, _)| k < 3 || cols < 800) {
            let case = Case::random(lab, ty, cols, &[rows], 1, Options::nth(i + 3 * k));
            case.check(&case.gemv(lab, 1));
        }
    }
}

/// Blocks of a cluster of the launch of a case without a norm, one column at a time.
struct Cluster<'a, D>(&'a D, &'a Case);

impl<D: Driver> WeightVisitor for Cluster<'_, D> {
    type Out = [u32; 3];

    fn visit<F: WeightKernels>(self) -> [u32; 3] {
        let Cluster(driver, case) = self;
        let groups = (0..case.matrices.len()).map(|m| case.rows(m).div_ceil(gemv::ROWS) as u32).sum();
        let (room, tokens) = (driver.properties().room(Share::Small), case.tokens() as u32);
        gemv::launch::<F::Weights>(room, groups, case.cols as u32, tokens, 1, false).expect("it fits").grid.cluster
    }
}

/// So many columns that two blocks quantise them for each other, where there are clusters, and the number of blocks is even: of as
/// many blocks as groups of rows, 3 rows have two blocks, and 5 rows three.
pub fn gemv_wide<D: Driver>(lab: &mut Lab<D>) {
    for &ty in TensorType::ALL {
        for (i, cols) in [8192, 8448, 14336].into_iter().enumerate() {
            for (rows, even) in [(3, true), (5, false)] {
                let options = Options { norm: false, ..Options::nth(2 * i) };
                let case = Case::random(lab, ty, cols, &[rows], 1 + i % 2, options);
                let pairs = even && lab.driver.properties().cluster > 1;
                let cluster = gemv::visit(ty, Cluster(lab.driver, &case));
                assert_eq!(cluster, [if pairs { 2 } else { 1 }, 1, 1], "{ty} {rows} x {cols}");
                case.check(&case.gemv(lab, 1));
            }
        }
    }
}

/// Pairs of blocks that have several groups of rows for each warp.
#[test]
fn gemv_wide_and_high() {
    let four = Properties { multiprocessors: 4, ..*EmulatorDriver::new(0).properties() };
    let driver = EmulatorDriver::with_properties(7, four);
    let mut lab = Lab::new(&driver, "gemv_wide_and_high");
    for &ty in TensorType::ALL {
        let case = Case::random(&mut lab, ty, 8192, &[70, 71], 1, Options::nth(2));
        assert_eq!(gemv::visit(ty, Cluster(&driver, &case)), [2, 1, 1], "{ty}");
        case.check(&case.gemv(&lab, 1));
    }
}

/// Rounds of products that follow each other as a layer's do: one adds to x, three multiply x, of which the first is apart and takes
/// longer than the others, which are beside the one before them, and the last multiplies what those three give.
struct Rounds<'a, 'd, D: Driver> {
    lab: &'a mut Lab<'d, D>,
    cols: usize,
    normed: bool,
}

/// How rounds are launched.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    /// Each product when the one before it is done, and none beside another.
    OneByOne,
    Launched,
    Captured,
}

impl<D: Driver> WeightVisitor for Rounds<'_, '_, D> {
    type Out = ();

    fn visit<F: WeightKernels>(self) {
        const INPUTS: usize = 256;
        const RESULTS: usize = 16;
        let Rounds { lab, cols, normed } = self;
        let (rounds, rows) = if lab.driver.is_emulated() { (3, [195, 29, 32]) } else { (100, [4000, 40, 56]) };
        let starts = [0, rows[0], rows[0] + rows[1]];
        let width = rows.iter().sum::<usize>();

        let mut image = Image::default();
        let norm = if normed { image.add(&super::to_bytes(&lab.floats(cols))) } else { NONE };
        let mut weights = |rows: usize, cols: usize| {
            let mut bytes = vec![0; rows * F::TYPE.row_bytes(cols).unwrap()];
            quant::fill_random(F::TYPE, &mut || lab.rng.random(), 1.0, &mut bytes).unwrap();
            image.add(&bytes)
        };
        let first = weights(cols, INPUTS);
        let beside = rows.map(|rows| weights(rows, cols));
        let last = weights(RESULTS, width);
        let (_image, home) = image.upload(lab);
        let [inputs, start] = [INPUTS, cols].map(|len| lab.floats(len));
        let inputs = lab.input(&inputs);

        // The product of `x` with the matrix of so many rows and columns at `offset`, to `y`.
        let product = |(offset, rows, cols): (u64, usize, usize), x: *const f32, y: *mut f32| {
            let row_bytes = F::TYPE.row_bytes(cols).unwrap() as u32;
            Product {
                home: pointer::<D, _>(&home),
                x,
                norm: NONE,
                matrices: [Matrix { offset, y, rows: rows as u32, ..NO_MATRIX }, NO_MATRIX, NO_MATRIX],
                cols: cols as u32,
                row_bytes,
                tokens: 1,
                piece_blocks: 0,
                stage_bytes: 0,
                stages: 0,
                accumulate: 0,
                activation: SILU,
                eps: EPS,
                stride: row_bytes,
                overlap: APART,
                align: 0,
            }
        };
        let launch = |product: Product| {
            let share = if product.overlap == BESIDE { Share::Small } else { Share::Alone };
            let room = lab.driver.properties().room(share);
            let (grid, product) = fitted::<F>(room, product, gemv::row_groups(&product.matrices), 1);
            lab.launch::<F::Gemv>(grid, (product,));
        };
        let results_of = |way: Way| {
            let (x, y) = (lab.output(&start), lab.poisoned::<f32>(width));
            let results = lab.poisoned::<f32>(rounds * RESULTS);
            let mut pass = || {
                for round in 0..rounds {
                    let launch = |product: Product| {
                        launch(product);
                        if way == Way::OneByOne {
                            lab.read::<f32>(&x);
                        }
                    };
                    let sum = product((first, cols, INPUTS), pointer::<D, _>(&inputs), x.pointer());
                    launch(Product { accumulate: 1, ..sum });
                    for i in 0..3 {
                        let overlap = if i > 0 && way != Way::OneByOne { BESIDE } else { APART };
                        let y = y.pointer::<f32>().wrapping_add(starts[i]);
                        launch(Product { norm, overlap, ..product((beside[i], rows[i], cols), x.pointer(), y) });
                    }
                    let result = results.pointer::<f32>().wrapping_add(round * RESULTS);
                    launch(product((last, RESULTS, width), y.pointer(), result));
                }
                Ok(())
            };
            match way {
                Way::Captured => {
                    if let Some(graph) = lab.driver.capture(&mut pass).unwrap() {
                        // SAFETY: this driver's, and the buffers are alive.
                        unsafe { lab.driver.replay(&graph) }.unwrap();
                    }
                }
                Way::OneByOne | Way::Launched => pass().unwrap(),
            }
            lab.read::<f32>(&results)
        };

        let expected = results_of(Way::OneByOne);
        let mut each = expected.chunks_exact(RESULTS);
        let (one, other) = (each.next().unwrap(), each.next_back().unwrap());
        assert!(expected.iter().all(|value| value.is_finite()) && one != other, "{}: {expected:?}", F::TYPE);
        for way in [Way::Launched, Way::Captured] {
            let place = |i: usize| format!("{} of {cols} columns, {way:?}, round {}", F::TYPE, i / RESULTS);
            assert_same(&results_of(way), &expected, place);
        }
    }
}

/// Products that do not wait for the one before them find the x that was there before it, leave alone what is read beside them, and
/// whoever waits for them waits for that one too: what comes of many rounds is, to the bit, what comes of one product at a time.
pub fn gemv_beside<D: Driver>(lab: &mut Lab<D>) {
    for (i, (ty, cols)) in types_and_cols().filter(|(_, cols)| [33, 256, 1280, 4352].contains(cols)).enumerate() {
        gemv::visit(ty, Rounds { lab, cols, normed: i % 2 == 0 });
    }
}

/// Rows of a tensor from some row on: they begin at whatever address the rows before them leave.
pub fn gemv_starts<D: Driver>(lab: &mut Lab<D>) {
    for (ty, cols) in types_and_cols().filter(|(_, cols)| (32..2100).contains(cols)) {
        for skipped in 1..8 {
            let mut case = Case::random(lab, ty, cols, &[skipped + 3], 1, Options::NONE);
            case.skipped = skipped;
            case.check(&case.gemv(lab, 1));
        }
    }
}

/// Several tokens at once give what each gives alone, to the bit, and that is right.
pub fn gemv_tokens<D: Driver>(lab: &mut Lab<D>) {
    for (i, (ty, cols)) in types_and_cols().filter(|&(_, cols)| cols <= 2080).enumerate() {
        for (k, tokens) in [2, 3, 4, 5, 8, 9, 17].into_iter().enumerate().filter(|(k, _)| k % 3 == i % 3) {
            let case = Case::random(lab, ty, cols, &[5], tokens, Options::nth(i + k));
            let alone = case.gemv(lab, 1);
            case.check(&alone);
            for columns in [4, 8] {
                let found = case.gemv(lab, columns);
                assert_same(&found[0], &alone[0], |i| format!("{columns} at a time, {}", case.what(0, i / 5, i % 5)));
            }
        }
    }
}

/// Two and three matrices in a launch give what each gives alone, to the bit, wherever its rows lie, and that is right.
pub fn gemv_matrices<D: Driver>(lab: &mut Lab<D>) {
    for (i, (ty, cols)) in types_and_cols().filter(|(_, cols)| [33, 96, 256, 768, 1280].contains(cols)).enumerate() {
        let rows: &[usize] = if i % 2 == 0 { &[5, 1, 8] } else { &[4, 7] };
        let mut case = Case::random(lab, ty, cols, rows, 1 + i % 2, Options { accumulate: false, ..Options::nth(i) });
        let found = case.gemv(lab, 1);
        case.check(&found);
        for (m, found) in found.iter().enumerate() {
            // Only the last rows of it, which makes other warps and other addresses theirs.
            let skipped = m % case.matrices[m].rows;
            let alone = Case {
                matrices: vec![std::mem::replace(
                    &mut case.matrices[m],
                    Weights { rows: 0, bytes: vec![], values: vec![] },
                )],
                skipped,
                x: case.x.clone(),
                norm: case.norm.clone(),
                bias: case.bias.as_ref().map(|bias| vec![bias[m][skipped..].to_vec()]),
                y: None,
                ..case
            };
            let expected = &alone.gemv(lab, 1)[0];
            for (token, expected) in expected.chunks_exact(rows[m] - skipped).enumerate() {
                let found = &found[token * rows[m] + skipped..][..rows[m] - skipped];
                assert_same(found, expected, |row| alone.what(m, token, row));
            }
        }
    }
}

/// Activations that are all zero, or of which one is huge.
pub fn gemv_extremes<D: Driver>(lab: &mut Lab<D>) {
    for (ty, cols) in types_and_cols().filter(|(_, cols)| [32, 256, 1280].contains(cols)) {
        for norm in [false, true] {
            let mut case = Case::random(lab, ty, cols, &[5], 1, Options { norm, ..Options::NONE });
            case.x[cols / 3] = 1e6;
            case.check(&case.gemv(lab, 1));
            case.x.fill(0.0);
            assert_eq!(case.gemv(lab, 1)[0], [0.0; 5], "{ty} {cols}, norm {norm}, x = 0");
        }
    }
}

/// As many rows as a vocabulary has.
pub fn gemv_vocabulary<D: Driver>(lab: &mut Lab<D>) {
    let case = Case::random(lab, TensorType::Q8_0, 32, &[128_256], 1, Options { norm: true, ..Options::NONE });
    case.check(&case.gemv(lab, 1));
}

/// Gate and up projection with both functions, with and without norm and bias.
pub fn glu<D: Driver>(lab: &mut Lab<D>) {
    for (i, (ty, cols)) in types_and_cols().enumerate() {
        let rows = [1, 7, 34][i % 3];
        let case = Case::random(lab, ty, cols, &[rows, rows], 1, Options { accumulate: false, ..Options::nth(i) });
        let x = case.normed(0);
        let results = |m: usize, row: usize| {
            let (value, error) = case.product(case.row(m, row), &x);
            let bias = case.bias.as_ref().map_or(0.0, |bias| f64::from(bias[m][row]));
            (value + bias, error + ROUNDING * bias.abs())
        };
        for activation in [SILU, GELU] {
            let found = case.glu(lab, activation);
            let function = |x: f64| {
                let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                x / (1.0 + if activation == SILU { (-x).exp() } else { (-2.0 * u).exp() })
            };
            for (row, &found) in found.iter().enumerate() {
                let ((gate, gate_error), (up, up_error)) = (results(0, row), results(1, row));
                let gated = function(gate);
                // Neither function is steeper than 1.13.
                let gated_error = 1.13 * gate_error + ACTIVATION * gated.abs();
                let error =
                    gated_error * (up.abs() + up_error) + gated.abs() * up_error + ROUNDING * (gated * up).abs();
                assert_close(found, gated * up, error, || format!("activation {activation}, {}", case.what(0, 0, row)));
            }
        }
    }
}

/// Rows come out exactly as the host decodes them.
pub fn embed<D: Driver>(lab: &mut Lab<D>) {
    struct Embed<'a, 'd, D: Driver>(&'a Lab<'d, D>, &'a Weights, usize, &'a [u32]);

    impl<D: Driver> WeightVisitor for Embed<'_, '_, D> {
        type Out = Vec<f32>;

        fn visit<F: WeightKernels>(self) -> Vec<f32> {
            let Embed(lab, weights, cols, ids) = self;
            let (w, out) = (lab.input(&weights.bytes), lab.poisoned::<f32>(ids.len() * cols));
            let ids_mem = lab.input(ids);
            lab.launch::<F::Embed>(
                gemv::embed_grid(ids.len() as u32),
                (pointer::<D, _>(&w), pointer::<D, _>(&ids_mem), out.pointer(), cols as u32),
            );
            lab.read(&out)
        }
    }

    for (ty, cols) in types_and_cols() {
        let weights = Weights::random(lab, ty, 7, cols);
        for ids in [&[6][..], &[3, 0, 6, 3, 5]] {
            let found = gemv::visit(ty, Embed(lab, &weights, cols, ids));
            for ((&id, found), token) in ids.iter().zip(found.chunks_exact(cols)).zip(0..) {
                let row = &weights.values[id as usize * cols..][..cols];
                for (col, (found, expected)) in found.iter().zip(row).enumerate() {
                    let what = format!("{ty}, {cols} columns, token {token}, row {id}, column {col}");
                    assert_eq!(found.to_bits(), expected.to_bits(), "{what}: {found} instead of {expected}");
                }
            }
        }
    }
}

/// The sizes of an H100 or H200.
fn room(share: Share) -> gemv::Room {
    let (block, multiprocessor) = (227 << 10, 228 << 10);
    gemv::Room { multiprocessors: 132, block, multiprocessor, reserved: 1 << 10, cluster: 8, share }
}

/// Shared memory of a multiprocessor that the launch of a product of `cols` columns in `F` takes.
struct Taken(Share, u32);

impl WeightVisitor for Taken {
    type Out = u32;

    fn visit<F: WeightKernels>(self) -> u32 {
        let Taken(share, cols) = self;
        let launch = gemv::launch::<F::Weights>(room(share), 4096, cols, 1, 1, false).expect("it fits");
        // With the kernel's array of a float for each warp and column, and what the GPU takes for each block.
        launch.grid.shared + 4 * 8 * gemv::WARPS as u32 + (1 << 10)
    }
}

#[test]
fn no_two_products_that_are_apart_fit_on_a_multiprocessor() {
    for ty in TensorType::ALL.iter().copied().filter(|ty| 4096 % ty.block_elems() == 0) {
        let taken = |share, cols| gemv::visit(ty, Taken(share, cols));
        for share in [Share::Alone, Share::AloneFew] {
            for cols in [4096, 8192, 14336] {
                assert!(2 * taken(share, cols) > 228 << 10, "{ty}, {cols} columns: {share:?}");
            }
        }
        let turns = taken(Share::Small, 4096) + taken(Share::Large, 4096);
        assert!(turns <= 228 << 10, "{ty}: large and small launches take {turns} bytes together");
    }
}

/// Bytes of shared memory that a block of attention of heads of up to 128 has on such a GPU, from its PTX.
fn attention_bytes() -> u32 {
    let bytes = |module: &str, name: &str| {
        let ptx = ntransformer::ptx::module(module, (9, 0)).unwrap();
        let line = ptx.lines().find(|line| line.starts_with(".shared") && line.contains(name)).expect("an array");
        line.split(['[', ']']).nth(1).unwrap().parse::<u32>().unwrap()
    };
    bytes("attention_64", " DECODE_64[").max(bytes("attention_128", " DECODE_128["))
}

#[test]
fn attention_fits_beside_a_large_and_a_small_product() {
    let attention = attention_bytes() + (1 << 10);
    for ty in TensorType::ALL.iter().copied().filter(|ty| 4096 % ty.block_elems() == 0) {
        let taken = |share, cols| gemv::visit(ty, Taken(share, cols));
        // No larger than it must be.
        let large = taken(Share::Alone, 256);
        for cols in [1024, 2048, 4096] {
            let left = (228 << 10) - large - taken(Share::Small, cols);
            assert!(attention <= left, "{ty}, {cols} columns: {left} bytes are left, and attention takes {attention}");
        }
    }
}
