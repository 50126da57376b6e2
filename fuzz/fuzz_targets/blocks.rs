//! Blocks of every type: any bytes decode, and what they decode to can be encoded.
#![no_main]

use quant::{TensorType, decode_row, encode_row};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((&which, bytes)) = bytes.split_first() else { return };
    let ty = TensorType::ALL[usize::from(which) % TensorType::ALL.len()];
    let blocks = bytes.len() / ty.block_bytes();
    let row = &bytes[..blocks * ty.block_bytes()];
    let mut values = vec![0.0; blocks * ty.block_elems()];
    decode_row(ty, row, &mut values).expect("whole blocks");
    assert_eq!(decode_row(ty, bytes, &mut values).is_ok(), row.len() == bytes.len());

    let mut again = vec![0; row.len()];
    encode_row(ty, &values, &mut again).expect("whole blocks");
    if values.iter().all(|value| value.abs() <= 1e4) {
        let mut decoded = vec![0.0; values.len()];
        decode_row(ty, &again, &mut decoded).expect("whole blocks");
        assert!(decoded.iter().all(|value| value.is_finite()), "{ty}: {values:?} became {decoded:?}");
    }
});
