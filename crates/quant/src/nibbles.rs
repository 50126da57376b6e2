//! Sixteen bytes that hold 32 four-bit numbers: byte `i` has that of value `i` in its low half, of value `i + 16` in its
//! high one.
//!
//! A slice of them is one 32-bit word, with two runs of four values: its low halves and its high ones.

/// Bytes that 32 values take.
pub(crate) const BYTES: usize = 16;
/// Slices of 32 values.
pub(crate) const SLICES: usize = BYTES / 4;
/// Runs of a slice.
pub(crate) const RUNS: usize = 2;

/// The index among the 32 of a run's first value.
#[inline(always)]
pub(crate) fn at(slice: usize, run: usize) -> usize {
    16 * run + 4 * slice
}

/// A run's four numbers, each in a byte, of its slice's word.
#[inline(always)]
pub(crate) fn run(word: u32, run: usize) -> u32 {
    word >> (4 * run) & 0x0f0f_0f0f
}

/// Packs the low four bits of 32 numbers into `out`, 16 bytes.
pub(crate) fn pack(numbers: &[u8; 32], out: &mut [u8]) {
    let (low, high) = numbers.split_at(BYTES);
    for ((out, &low), &high) in out.iter_mut().zip(low).zip(high) {
        *out = low & 0xf | high << 4;
    }
}
