//! Decoding against golden vectors from PyPI `gguf` (made by tools/golden/blocks.py), bit for bit.

mod data;

use data::{bytes, floats};
use quant::{Format, LengthError, TensorType, Visitor, decode_row};

/// Where two rows differ in their bits, for a readable failure.
fn first_difference(a: &[f32], b: &[f32]) -> Option<(usize, f32, f32)> {
    assert_eq!(a.len(), b.len());
    (0..a.len()).find(|&i| a[i].to_bits() != b[i].to_bits()).map(|i| (i, a[i], b[i]))
}

#[test]
fn decoded_blocks_equal_gguf_py_bit_for_bit() {
    for &ty in TensorType::ALL {
        let (blocks, expected) = (bytes(ty, "blocks"), floats(ty, "values"));
        assert!(expected.len() >= 512 && expected.iter().all(|x| x.is_finite()), "{ty}: poor golden data");
        let mut found = vec![f32::NAN; expected.len()];
        decode_row(ty, &blocks, &mut found).unwrap();
        assert_eq!(first_difference(&found, &expected), None, "{ty}: (index, decoded, golden)");
    }
}

#[test]
fn slices_and_runs_tile_a_block() {
    struct Tiles;
    impl Visitor for Tiles {
        type Out = ();

        fn visit<F: Format>(self) {
            let mut seen = vec![0; F::ELEMS];
            for slice in 0..F::SLICES {
                for run in 0..F::RUNS {
                    let at = F::at(slice, run);
                    seen[at..at + F::RUN].iter_mut().for_each(|n| *n += 1);
                }
            }
            assert!(seen.iter().all(|&n| n == 1), "{}: {seen:?}", F::TYPE);
        }
    }
    TensorType::ALL.iter().for_each(|ty| ty.visit(Tiles));
}

#[test]
fn wrong_lengths_are_errors() {
    for &ty in TensorType::ALL {
        let (elems, size) = (ty.block_elems(), ty.block_bytes());
        let mut out = vec![0.0; 3 * elems];
        for found in [0, 1, 3 * size - 1, 3 * size + 1, 4 * size] {
            let error = LengthError::Bytes { ty, cols: 3 * elems, expected: 3 * size, found };
            assert_eq!(decode_row(ty, &vec![0; found], &mut out), Err(error));
        }
        if elems > 1 {
            let cols = 2 * elems + 1;
            let error = decode_row(ty, &vec![0; 3 * size], &mut out[..cols]).unwrap_err();
            assert_eq!(error, LengthError::Columns { ty, cols });
            assert!(error.to_string().contains(ty.name()), "{error}");
            assert_eq!(ty.row_bytes(elems - 1), None);
        }
        assert_eq!(decode_row(ty, &[], &mut []), Ok(()));
        if elems < size {
            assert_eq!(ty.row_bytes(usize::MAX / elems * elems), None);
        }
        assert_eq!(ty.row_bytes(7 * elems), Some(7 * size));
    }
}
