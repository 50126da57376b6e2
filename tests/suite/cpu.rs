//! The CPU device's matrix products, of every type: against f64, and with every instruction set, to the bit.

use std::sync::Arc;

use ntransformer::device::{
    Device, Epilogue, Linear, SharedBytes, Tensor, Transfer,
    cpu::{CpuDevice, InstructionSet},
};
use quant::TensorType;
use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::reference;

/// An activation is off by half a unit at most, where 16383 units are the largest magnitude of its 256.
const HALF_UNIT: f64 = 0.5 / 16383.0;

/// What the rounding of floats adds, relative to the sum of the activations' magnitudes times the row's largest weight. A
/// product goes through fewer than 30 roundings of 2^-24 each: of the unit, in its step's sum, and of at most 17 steps; and
/// in formats with minima both parts of a weight are up to three times the largest whole.
const ROUNDING: f64 = 3.0 * 30.0 / 16_777_216.0;

/// Makes an activation.
type Activation = fn(&mut SmallRng) -> f32;

/// Activations of a column.
const X: [(&str, Activation); 6] = [
    ("uniform", |rng| rng.random_range(-1.0..1.0)),
    ("with outliers", |rng| rng.random_range(-1.0..1.0) * if rng.random_ratio(1, 50) { 3000.0 } else { 1.0 }),
    ("mostly zero", |rng| if rng.random_ratio(1, 300) { rng.random_range(-1.0..1.0) } else { 0.0 }),
    ("huge", |rng| rng.random_range(-1e34..1e34)),
    ("tiny", |rng| rng.random_range(-1e-30..1e-30)),
    ("positive", |rng| rng.random_range(0.5..1.0)),
];

/// Columns to try: one block, an odd number of blocks, whole steps of 256 and not.
const COLS: [usize; 9] = [1, 7, 32, 77, 288, 256, 768, 1504, 4352];

/// Rows and numbers of activation columns: one, and what is no multiple of what is computed at once.
const ROWS_AND_COLUMNS: [(usize, usize); 4] = [(1, 1), (37, 1), (19, 6), (3, 9)];

/// A matrix.
#[derive(Clone)]
struct Matrix {
    ty: TensorType,
    rows: usize,
    cols: usize,
    bytes: Arc<Vec<u8>>,
}

impl Matrix {
    fn random(rng: &mut SmallRng, ty: TensorType, rows: usize, cols: usize) -> Self {
        let mut bytes = vec![0; rows * ty.row_bytes(cols).unwrap()];
        quant::fill_random(ty, &mut || rng.random(), 1.0, &mut bytes).unwrap();
        Matrix { ty, rows, cols, bytes: Arc::new(bytes) }
    }

    fn row(&self, row: usize) -> Vec<f32> {
        let (bytes, mut values) = (self.ty.row_bytes(self.cols).unwrap(), vec![0.0; self.cols]);
        quant::decode_row(self.ty, &self.bytes[row * bytes..][..bytes], &mut values).unwrap();
        values
    }

    fn tensor(&self, device: &CpuDevice) -> Tensor<<CpuDevice as Transfer>::Buf> {
        let Matrix { ty, rows, cols, .. } = *self;
        let buf = device.share(SharedBytes::new(self.bytes.clone(), 0, self.bytes.len()).unwrap()).unwrap();
        Tensor { buf, offset: 0, ty, rows, cols }
    }

    /// The products with columns `x`, `[columns x rows]`.
    fn times(&self, set: InstructionSet, x: &[f32]) -> Vec<f32> {
        let (mut device, n) = (CpuDevice::with(set), x.len() / self.cols);
        let (mut from, mut to) = (device.act(n, self.cols).unwrap(), device.act(n, self.rows).unwrap());
        device.load(x, &mut from).unwrap();
        let linear = Linear { weight: self.tensor(&device), bias: None };
        device.matmul(&linear, n, &from, &mut to, Epilogue::Store).unwrap();
        device.fetch(&to, n, self.rows).unwrap()
    }
}

/// Every type with every number of columns that it can have.
fn types_and_cols() -> impl Iterator<Item = (TensorType, usize)> {
    let fits = |ty: TensorType| move |cols: &usize| cols.is_multiple_of(ty.block_elems());
    TensorType::ALL.iter().flat_map(move |&ty| COLS.into_iter().filter(fits(ty)).map(move |cols| (ty, cols)))
}

fn sets() -> [InstructionSet; 2] {
    [InstructionSet::detect(), InstructionSet::Portable]
}

/// The bits, where all NaN are alike.
fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| if v.is_nan() { f32::NAN.to_bits() } else { v.to_bits() }).collect()
}

/// What quantisation and rounding may make of the product of `w` and `x`.
fn budget(ty: TensorType, w: &[f32], x: &[f32]) -> f64 {
    let magnitude = |x: &[f32]| x.iter().map(|&x| f64::from(x.abs())).sum::<f64>();
    let largest = |x: &[f32]| x.iter().fold(0.0, |largest: f64, &x| largest.max(x.abs().into()));
    let floats = matches!(ty, TensorType::F32 | TensorType::F16 | TensorType::BF16);
    let unit = if floats { 0.0 } else { HALF_UNIT };
    let quantised: f64 = w.chunks(256).zip(x.chunks(256)).map(|(w, x)| unit * largest(x) * magnitude(w)).sum();
    // Below the smallest normal number, units do not shrink further.
    quantised + ROUNDING * magnitude(x) * largest(w) + magnitude(w) * f64::from(f32::MIN_POSITIVE)
}

#[test]
fn products_match_f64() {
    let mut rng = SmallRng::seed_from_u64(11);
    for (ty, cols) in types_and_cols() {
        for (rows, n) in ROWS_AND_COLUMNS {
            let matrix = Matrix::random(&mut rng, ty, rows, cols);
            for (what, random) in X {
                let x: Vec<f32> = (0..n * cols).map(|_| random(&mut rng)).collect();
                let found = matrix.times(InstructionSet::detect(), &x);
                for (i, (x, found)) in x.chunks_exact(cols).zip(found.chunks_exact(rows)).enumerate() {
                    for (r, &found) in found.iter().enumerate() {
                        let w = matrix.row(r);
                        let (expected, budget) = (reference::dot(&w, x).value, budget(ty, &w, x));
                        let off = (f64::from(found) - expected).abs();
                        assert!(
                            off <= budget,
                            "{ty} {rows} x {cols}, {what}, column {i} of {n}, row {r}: {found} instead of {expected}, \
                             off by {off:e}, the budget is {budget:e}"
                        );
                    }
                }
            }
        }
    }
}

/// Random bits, not tamed: all scales and minima that there are, and d infinite or no number in some blocks.
#[test]
fn bits_depend_on_row_and_column_alone() {
    let mut rng = SmallRng::seed_from_u64(12);
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let many = rayon::ThreadPoolBuilder::new().num_threads(5).build().unwrap();
    for (ty, cols) in types_and_cols() {
        let (rows, n) = (37, 9);
        let bytes = (0..rows * ty.row_bytes(cols).unwrap()).map(|_| rng.random()).collect();
        let matrix = Matrix { ty, rows, cols, bytes: Arc::new(bytes) };
        let x: Vec<f32> = (0..n * cols).map(|_| rng.random_range(-1.0..1.0)).collect();
        let [fast, portable] = sets().map(|set| matrix.times(set, &x));
        assert!(bits(&fast) == bits(&portable), "{ty} {rows} x {cols}: instruction sets differ");
        assert!(fast.iter().any(|y| y.is_finite()) || cols > 100, "{ty} {rows} x {cols}: nothing to compare");
        let [threads_1, threads_5] = [&one, &many].map(|pool| pool.install(|| matrix.times(sets()[0], &x)));
        assert!(bits(&threads_1) == bits(&fast) && bits(&threads_5) == bits(&fast), "{ty}: threads");
        for set in sets() {
            let alone: Vec<f32> = x.chunks_exact(cols).flat_map(|x| matrix.times(set, x)).collect();
            assert!(bits(&alone) == bits(&fast), "{ty} {rows} x {cols}, {set}: one column at a time differs");
        }
    }
}

/// The largest sums that a format can make: nothing overflows.
#[test]
fn extreme_blocks_do_not_overflow() {
    // Where a type keeps d and, if it has one, the factor of its minima; and bytes to set apart from the others.
    let types: [(TensorType, &[usize], std::ops::Range<usize>); 12] = [
        (TensorType::Q8_0, &[0], 0..0),
        (TensorType::Q4_0, &[0], 0..0),
        (TensorType::Q4_1, &[0, 2], 0..0),
        (TensorType::Q5_0, &[0], 2..6),
        (TensorType::Q5_1, &[0, 2], 4..8),
        (TensorType::IQ4_NL, &[0], 0..0),
        (TensorType::IQ4_XS, &[0], 2..8),
        (TensorType::Q2_K, &[80, 82], 0..16),
        (TensorType::Q3_K, &[108], 96..108),
        (TensorType::Q4_K, &[0, 2], 4..16),
        (TensorType::Q5_K, &[0, 2], 4..16),
        (TensorType::Q6_K, &[208], 192..208),
    ];
    const COLS: usize = 512;
    const FILLS: [u8; 4] = [0x00, 0xff, 0x7f, 0x80];
    for (ty, factors, scales) in types {
        for (fill, scale) in FILLS.into_iter().flat_map(|fill| FILLS.map(|scale| (fill, scale))) {
            let mut block = vec![fill; ty.block_bytes()];
            block[scales.clone()].fill(scale);
            for &at in factors {
                block[at..at + 2].copy_from_slice(&0x3c00u16.to_le_bytes()); // 1.0
            }
            let bytes = Arc::new(block.repeat(COLS / ty.block_elems()));
            let matrix = Matrix { ty, rows: 1, cols: COLS, bytes };
            let w = matrix.row(0);
            let signs: [fn(f32) -> f32; 4] = [|_| 1.0, |_| -1.0, f32::signum, |w| -w.signum()];
            for sign in signs {
                let x: Vec<f32> = w.iter().map(|&w| sign(w)).collect();
                for set in sets() {
                    let (found, expected) = (matrix.times(set, &x)[0], reference::dot(&w, &x));
                    // Both parts of a weight with a minimum are below 2^11; other weights have no parts.
                    let budget = ROUNDING * (expected.magnitude + 2048.0 * COLS as f64);
                    let off = (f64::from(found) - expected.value).abs();
                    assert!(off <= budget, "{ty} {set}, bytes {fill:#x} {scale:#x}: {found}, not {}", expected.value);
                }
            }
        }
    }
}

/// An activation that is no number, or infinite, leaves no number that could be taken for a product; other columns are as
/// they were.
#[test]
fn what_is_no_number_stays_none() {
    let mut rng = SmallRng::seed_from_u64(13);
    for (ty, cols) in types_and_cols() {
        let matrix = Matrix::random(&mut rng, ty, 5, cols);
        let good: Vec<f32> = (0..6 * cols).map(|_| rng.random_range(-1.0..1.0)).collect();
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let (mut x, column) = (good.clone(), rng.random_range(0..6));
            x[column * cols + rng.random_range(0..cols)] = bad;
            for set in sets() {
                let (found, expected) = (matrix.times(set, &x), matrix.times(set, &good));
                for (i, (found, expected)) in found.chunks(5).zip(expected.chunks(5)).enumerate() {
                    match i == column {
                        true => assert!(found.iter().all(|y| !y.is_finite()), "{ty} {set}, {cols} columns: {found:?}"),
                        false => assert_eq!(found, expected, "{ty} {set}, {cols} columns"),
                    }
                }
            }
        }
    }
}

#[test]
fn bias_and_residual_are_added() {
    let mut rng = SmallRng::seed_from_u64(14);
    let matrix = Matrix::random(&mut rng, TensorType::Q4_K, 21, 256);
    let bias = Matrix::random(&mut rng, TensorType::F32, 1, 21);
    for n in [1, 5] {
        let x: Vec<f32> = (0..n * 256).map(|_| rng.random_range(-1.0..1.0)).collect();
        let before: Vec<f32> = (0..n * 21).map(|_| rng.random_range(-1.0..1.0)).collect();
        let (products, bias_values) = (matrix.times(sets()[0], &x), bias.row(0));
        for (with_bias, epilogue) in [(false, Epilogue::Residual), (true, Epilogue::Store), (true, Epilogue::Residual)]
        {
            let mut device = CpuDevice::new();
            let (mut from, mut to) = (device.act(n, 256).unwrap(), device.act(n, 21).unwrap());
            device.load(&x, &mut from).unwrap();
            device.load(&before, &mut to).unwrap();
            let linear = Linear { weight: matrix.tensor(&device), bias: with_bias.then(|| bias.tensor(&device)) };
            device.matmul(&linear, n, &from, &mut to, epilogue).unwrap();
            for (i, found) in device.fetch(&to, n, 21).unwrap().into_iter().enumerate() {
                let bias = if with_bias { bias_values[i % 21] } else { 0.0 };
                let value = products[i] + bias;
                let expected = if epilogue == Epilogue::Residual { before[i] + value } else { value };
                assert_eq!(found, expected, "{epilogue:?}, bias {with_bias}, {n} columns, {i}");
            }
        }
    }
}

#[test]
fn the_device_tells_its_instruction_set() {
    assert!(CpuDevice::with(InstructionSet::Portable).name().ends_with(", portable)"));
    if cfg!(target_arch = "x86_64")
        && std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|info| info.contains(" avx2 "))
    {
        assert!(CpuDevice::new().name().ends_with(", AVX2)"), "{}", CpuDevice::new().name());
    }
}
