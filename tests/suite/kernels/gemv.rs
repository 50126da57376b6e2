//! Matrix-vector products with activations that are quantised on the way, and embedding rows, for each tensor type.

mod case;
mod room;
mod rounds;

use gpu::gemv::{self, GELU, SILU, Share, WeightKernels, WeightVisitor};
use ntransformer::device::cuda::{
    driver::{Driver, Properties},
    emulator::EmulatorDriver,
};
use quant::TensorType;

use self::case::{Case, Options, ROUNDING, Weights, assert_same};
pub use self::rounds::gemv_beside;
use super::{Lab, assert_close, pointer};

/// Relative error of the activation functions in f32.
const ACTIVATION: f64 = 1e-5;

/// Columns to try: one block, several, fewer or more than a warp takes in a step, an odd number of blocks, several pieces.
const COLS: [usize; 11] = [1, 3, 32, 33, 96, 256, 768, 1280, 2080, 4352, 8192];

/// Every type with every number of columns that it can have.
fn types_and_cols() -> impl Iterator<Item = (TensorType, usize)> {
    let fits = |ty: TensorType| move |cols: &usize| cols.is_multiple_of(ty.block_elems());
    TensorType::ALL.iter().flat_map(move |&ty| COLS.into_iter().filter(fits(ty)).map(move |cols| (ty, cols)))
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
