//! Blocks of every type: any bytes decode, and what they decode to can be encoded.
#![no_main]

mod seeds;

use quant::{TensorType, decode_row, encode_row, fill_random};

libfuzzer_sys::fuzz_target!(
    init: seeds::write(TensorType::ALL.iter().enumerate().map(block).collect()),
    |bytes: &[u8]| {
        let Some((&which, bytes)) = bytes.split_first() else { return };
        let ty = TensorType::ALL[usize::from(which) % TensorType::ALL.len()];
        let blocks = bytes.len() / ty.block_bytes();
        let row = &bytes[..blocks * ty.block_bytes()];
        let mut values = vec![0.0; blocks * ty.block_elems()];
        decode_row(ty, row, &mut values).expect("whole blocks");
        assert_eq!(decode_row(ty, bytes, &mut values).is_ok(), row.len() == bytes.len());

        let mut again = vec![0; row.len()];
        encode_row(ty, &values, &mut again).expect("whole blocks");
        // Larger ones do not fit into the types' half-precision scales.
        if values.iter().all(|value| value.abs() <= 1e4) {
            let mut decoded = vec![0.0; values.len()];
            decode_row(ty, &again, &mut decoded).expect("whole blocks");
            assert!(decoded.iter().all(|value| value.is_finite()), "{ty}: {values:?} became {decoded:?}");
        }
    }
);

/// A block of type `ty`, behind the byte that chooses it.
fn block((index, ty): (usize, &TensorType)) -> (&'static str, Vec<u8>) {
    let mut bytes = vec![index as u8; 1 + ty.block_bytes()];
    let mut state = 1u64;
    let mut random = || {
        // Knuth's MMIX generator: any bits will do.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state
    };
    fill_random(*ty, &mut random, 1.0, &mut bytes[1..]).expect("one block");
    (ty.name(), bytes)
}
