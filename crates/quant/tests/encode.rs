//! Encoders against golden vectors and error budgets, and random blocks.

mod data;

use data::{bytes, floats};
use quant::{LengthError, TensorType, decode_row, encode_row, fill_random};
use rand::{Rng, RngCore, SeedableRng, rngs::SmallRng};

/// Largest root mean square error, relative to that of the values, after encoding Gaussian values: as measured, plus 3 %.
const BUDGETS: [(TensorType, f64); 15] = [
    (TensorType::F32, 0.0),
    (TensorType::F16, 0.000_22),
    (TensorType::BF16, 0.001_73),
    (TensorType::Q8_0, 0.005_52),
    (TensorType::Q6_K, 0.017_6),
    (TensorType::Q5_K, 0.036_7),
    (TensorType::Q4_K, 0.073),
    (TensorType::Q3_K, 0.149),
    (TensorType::Q2_K, 0.274),
    (TensorType::Q5_1, 0.039_1),
    (TensorType::Q5_0, 0.043_9),
    (TensorType::Q4_1, 0.081),
    (TensorType::Q4_0, 0.089_2),
    (TensorType::IQ4_NL, 0.075_6),
    (TensorType::IQ4_XS, 0.076_4),
];

/// Standard normal numbers (Box and Muller).
fn gaussian(rng: &mut SmallRng, n: usize) -> Vec<f32> {
    let mut one = || {
        let radius = (-2.0 * rng.random_range(f64::MIN_POSITIVE..1.0).ln()).sqrt();
        (radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()) as f32
    };
    (0..n).map(|_| one()).collect()
}

fn round_trip(ty: TensorType, x: &[f32]) -> Vec<f32> {
    // Poison shows bytes that an encoder leaves unwritten, or a mask that it only adds to.
    let mut blocks = vec![0xa5; ty.row_bytes(x.len()).unwrap()];
    encode_row(ty, x, &mut blocks).unwrap();
    let mut y = vec![f32::NAN; x.len()];
    decode_row(ty, &blocks, &mut y).unwrap();
    y
}

/// Root mean square of the differences, relative to that of `x`.
fn relative_error(x: &[f32], y: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let error: f64 = x.iter().zip(y).map(|(x, y)| square(x - y)).sum();
    (error / x.iter().copied().map(square).sum::<f64>()).sqrt()
}

#[test]
fn reference_encodings_equal_gguf_py_bit_for_bit() {
    use TensorType::{BF16, F16, F32, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
    for ty in [F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0] {
        let (source, expected) = (floats(ty, "source"), bytes(ty, "encoded"));
        assert!(source.len() >= 512);
        let mut found = vec![0xa5; expected.len()];
        encode_row(ty, &source, &mut found).unwrap();
        let different = (0..found.len()).find(|&i| found[i] != expected[i]);
        assert_eq!(different, None, "{ty}: first different byte");
    }
}

#[test]
fn gaussian_values_survive_within_the_budget() {
    let mut rng = SmallRng::seed_from_u64(1);
    let standard = gaussian(&mut rng, 64 * 256);
    assert!(TensorType::ALL.iter().all(|all| BUDGETS.iter().any(|(ty, _)| ty == all)));
    for (ty, budget) in BUDGETS {
        for (scale, shift) in [(1.0, 0.0), (0.02, 0.0), (-300.0, 0.0), (0.02, 0.01)] {
            let x: Vec<f32> = standard.iter().map(|x| x * scale + shift).collect();
            let error = relative_error(&x, &round_trip(ty, &x));
            assert!(error <= budget, "{ty} scale {scale} shift {shift}: {error} > {budget}");
        }
    }
}

#[test]
fn awkward_blocks_survive() {
    let one_large = |i: usize| if i == 77 { 50.0 } else { 0.0 };
    let shapes: [(&str, &dyn Fn(usize) -> f32); 6] = [
        ("one large value", &one_large),
        ("positive only", &|i| 1.0 + (i % 7) as f32 / 7.0),
        ("negative only", &|i| -1.0 - (i % 7) as f32 / 7.0),
        ("constant", &|_| 0.75),
        ("negative constant", &|_| -0.75),
        ("ramp", &|i| i as f32 - 128.0),
    ];
    for (ty, budget) in BUDGETS {
        let zeros = [0.0; 512];
        assert_eq!(round_trip(ty, &zeros), zeros, "{ty}");
        for (name, f) in shapes {
            let x: Vec<f32> = (0..512).map(|i| f(i % 256)).collect();
            let error = relative_error(&x, &round_trip(ty, &x));
            assert!(error <= budget, "{ty}, {name}: {error} > {budget}");
        }
        // Unspecified values, but no panic.
        for x in [f32::NAN, f32::INFINITY, f32::MAX, f32::MIN_POSITIVE, 1e-45] {
            round_trip(ty, &[x; 256]);
            round_trip(ty, &std::array::from_fn::<_, 256, _>(|i| if i % 3 == 0 { x } else { -1.0 }));
        }
    }
}

#[test]
fn random_blocks_have_the_asked_deviation_and_no_mean() {
    let mut rng = SmallRng::seed_from_u64(3);
    for &ty in TensorType::ALL {
        for sigma in [0.02, 1.0, 30.0] {
            let n = 1 << 19;
            let mut blocks = vec![0; ty.row_bytes(n).unwrap()];
            fill_random(ty, &mut || rng.next_u64(), sigma, &mut blocks).unwrap();
            let mut x = vec![f32::NAN; n];
            decode_row(ty, &blocks, &mut x).unwrap();
            assert!(x.iter().all(|x| x.is_finite() && x.abs() < 4.0 * sigma), "{ty}: beyond any plausible value");
            let mean = x.iter().copied().map(f64::from).sum::<f64>() / n as f64 / f64::from(sigma);
            let rms = (x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / n as f64).sqrt() / f64::from(sigma);
            assert!((rms - 1.0).abs() < 0.03, "{ty}, sigma {sigma}: rms {rms}");
            assert!(mean.abs() < 0.005, "{ty}, sigma {sigma}: mean {mean}");
        }
    }
}

#[test]
fn random_blocks_depend_on_the_seed_alone() {
    let fill = |ty: TensorType, seed| {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut blocks = vec![0xa5; 101 * ty.block_bytes()];
        fill_random(ty, &mut || rng.next_u64(), 1.0, &mut blocks).unwrap();
        blocks
    };
    for &ty in TensorType::ALL {
        assert_eq!(fill(ty, 5), fill(ty, 5), "{ty}");
        let (blocks, others) = (fill(ty, 5), fill(ty, 6));
        assert_ne!(blocks[..8], others[..8], "{ty}: first bytes");
        assert_ne!(blocks[blocks.len() - 2..], others[blocks.len() - 2..], "{ty}: last bytes");
    }
}

#[test]
fn wrong_lengths_are_errors() {
    for &ty in TensorType::ALL {
        let (elems, size) = (ty.block_elems(), ty.block_bytes());
        let x = vec![0.0; 2 * elems];
        let error = LengthError::Bytes { ty, cols: 2 * elems, expected: 2 * size, found: 2 * size - 1 };
        assert_eq!(encode_row(ty, &x, &mut vec![0; 2 * size - 1]), Err(error));
        if elems > 1 {
            let cols = 2 * elems - 1;
            assert_eq!(encode_row(ty, &x[1..], &mut vec![0; 2 * size]), Err(LengthError::Columns { ty, cols }));
        }
        let error = LengthError::Blocks { ty, found: 3 * size - 1 };
        assert_eq!(fill_random(ty, &mut || 1, 1.0, &mut vec![0; 3 * size - 1]), Err(error));
        assert!(error.to_string().contains(ty.name()), "{error}");
    }
}
