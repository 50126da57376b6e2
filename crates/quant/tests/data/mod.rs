//! The files of this folder, made by tools/golden/blocks.py.

use quant::TensorType;

/// The file `TYPE.suffix`.
pub fn bytes(ty: TensorType, suffix: &str) -> Vec<u8> {
    let path = format!("{}/tests/data/{ty}.{suffix}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The file `TYPE.suffix` as little-endian `f32`.
pub fn floats(ty: TensorType, suffix: &str) -> Vec<f32> {
    bytes(ty, suffix).chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}
