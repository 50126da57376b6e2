//! Random blocks for tests and synthetic models: made from random bits directly, at the speed of memory.

use crate::row::check_bytes;
use crate::{Format, LengthError, TensorType, Visitor, f16_to_f32, f32_to_f16};

/// Bytes that are made at a time, about: few enough for the L1 cache.
const BATCH: usize = 8192;

/// Fills `out` with random valid blocks of type `ty` from the random words of `rng`. The decoded values have mean zero
/// and a standard deviation of about `sigma` (within a few per cent); they are uniform rather than Gaussian within a
/// sub-block.
///
/// # Errors
/// If `out` is not a whole number of blocks.
pub fn fill_random(
    ty: TensorType,
    rng: &mut impl FnMut() -> u64,
    sigma: f32,
    out: &mut [u8],
) -> Result<(), LengthError> {
    check_bytes(ty, out.len())?;
    // A multiple of eight blocks is whole random words.
    for batch in out.chunks_mut(BATCH.next_multiple_of(8 * ty.block_bytes())) {
        let mut words = batch.chunks_exact_mut(8);
        words.by_ref().for_each(|word| word.copy_from_slice(&rng().to_le_bytes()));
        let rest = words.into_remainder();
        if !rest.is_empty() {
            rest.copy_from_slice(&rng().to_le_bytes()[..rest.len()]);
        }
        tame(ty, sigma, batch);
    }
    Ok(())
}

/// Makes random bytes into blocks. Not generic, so that it is compiled here, with all that it inlines.
fn tame(ty: TensorType, sigma: f32, blocks: &mut [u8]) {
    struct Tame<'a>(f32, &'a mut [u8]);

    impl Visitor for Tame<'_> {
        type Out = ();

        fn visit<F: Format>(self) {
            let Self(sigma, blocks) = self;
            blocks.chunks_exact_mut(F::BYTES).for_each(|block| F::tame(block, sigma));
        }
    }

    ty.visit(Tame(sigma, blocks));
}

/// Makes the random 16 bits at `at` into a half-precision scale within a quarter of `d`, of either sign.
pub(crate) fn tame_signed(block: &mut [u8], at: usize, d: f32) {
    let sign = block[at + 1] & 0x80;
    tame_scale(block, at, d);
    block[at + 1] |= sign;
}

/// Makes the random 16 bits at `at` into a half-precision scale within a quarter of `d`, and returns it.
pub(crate) fn tame_scale(block: &mut [u8], at: usize, d: f32) -> f32 {
    let factor = 0.75 + f32::from(block[at]) / 510.0;
    let scale = f32_to_f16(d * factor);
    block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
    f16_to_f32(scale)
}

/// Makes the random bits of a scale and a minimum into a scale near `d` and a minimum that centres `0..=top` on zero.
pub(crate) fn tame_affine(block: &mut [u8], at: usize, at_min: usize, d: f32, top: u8) {
    let d = tame_scale(block, at, d);
    let min = f32_to_f16(d * f32::from(top) / 2.0);
    block[at_min..at_min + 2].copy_from_slice(&min.to_le_bytes());
}
