//! Every slice of random blocks, compared with what [`quant`] decodes.

use quant::{decode, formats::*};

use super::{Dot, Staged};

/// Relative error of `d * factor * q + offset`: five roundings of terms that are at most 16 times the largest weight of a run.
const ROUNDING: f32 = 1e-5;

/// Blocks that lie at `skew` bytes from a multiple of 16 hold what `decode` says.
fn check<D: Dot>(skew: usize) {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut memory = vec![[0u64; 2]; 20];
    for _ in 0..64 {
        for half in memory.iter_mut().flatten() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *half = state ^ state >> 29;
        }
        // SAFETY: the memory of the vector, any bytes of which are valid.
        let bytes = unsafe { std::slice::from_raw_parts_mut(memory.as_mut_ptr().cast::<u8>(), 320) };
        D::tame(&mut bytes[skew..skew + D::BYTES], 1.0);
        let mut expected = vec![0.0; D::ELEMS];
        decode::<D>(&bytes[skew..skew + D::BYTES], &mut expected);
        let mut seen = vec![false; D::ELEMS];
        for slice in 0..D::LANES {
            // SAFETY: no block is longer than 256 bytes, and no skew than 15.
            let bits = D::bits(unsafe { Staged::new(bytes.as_ptr(), skew as u32) }, slice);
            for part in 0..D::PARTS {
                let run = D::run(&bits, slice, part);
                let first = D::first(slice) + 32 * part;
                assert_eq!(first % (4 * D::W), 0);
                assert!(D::SUMS != 0 || run.offset == 0.0, "an offset without sums");
                let expected = &expected[first..first + 4 * D::W];
                let largest = expected.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
                for i in 0..4 * D::W {
                    // One activation is 1, the others are 0.
                    let mut x = [0; 8];
                    x[i / 4] = 1 << (8 * (i % 4));
                    let power = f32::powi(2.0, (D::POWER.0 + D::POWER.1 * part) as i32);
                    let got = D::d(&bits) / power * (run.factor * D::dot(&run, &x, part)) as f32 + run.offset;
                    let error = (got - expected[i]).abs();
                    assert!(error <= ROUNDING * largest, "{} {slice} {part} {i}: {got} {}", D::TYPE, expected[i]);
                    assert!(!std::mem::replace(&mut seen[first + i], true), "value {} comes twice", first + i);
                }
            }
        }
        assert!(seen.iter().all(|seen| *seen));
    }
}

macro_rules! formats {
    ($($test:ident $format:ident $step:literal;)*) => {$(
        #[test]
        fn $test() {
            for skew in (0..16).step_by($step) {
                check::<$format>(skew);
            }
        }
    )*};
}

formats! {
    q4_0 Q4_0 2;
    q4_1 Q4_1 4;
    q5_0 Q5_0 2;
    q5_1 Q5_1 8;
    q8_0 Q8_0 2;
    q2_k Q2_K 4;
    q3_k Q3_K 2;
    q4_k Q4_K 16;
    q5_k Q5_K 16;
    q6_k Q6_K 2;
    iq4_nl IQ4_NL 2;
    iq4_xs IQ4_XS 8;
}
