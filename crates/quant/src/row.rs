//! Rows of blocks, of a type known at run time.

use core::fmt;

use crate::{Format, TensorType, Visitor, decode};

/// A row and its bytes do not fit together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LengthError {
    /// The row's length is no multiple of the block's, or its size overflows.
    Columns {
        /// The row's type.
        ty: TensorType,
        /// Values in the row.
        cols: usize,
    },
    /// The bytes are no whole number of blocks.
    Blocks {
        /// The blocks' type.
        ty: TensorType,
        /// Bytes that there are.
        found: usize,
    },
    /// The row has another number of bytes than its values take.
    Bytes {
        /// The row's type.
        ty: TensorType,
        /// Values in the row.
        cols: usize,
        /// Bytes that they take.
        expected: usize,
        /// Bytes that there are.
        found: usize,
    },
}

impl fmt::Display for LengthError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Columns { ty, cols } => {
                write!(f, "a row of {cols} values is not made of whole {ty} blocks of {}", ty.block_elems())
            }
            Self::Blocks { ty, found } => {
                write!(f, "{found} bytes are no whole number of {ty} blocks of {} bytes", ty.block_bytes())
            }
            Self::Bytes { ty, cols, expected, found } => {
                write!(f, "a row of {cols} {ty} values takes {expected} bytes, not {found}")
            }
        }
    }
}

impl core::error::Error for LengthError {}

/// Checks that a row of `cols` values of type `ty` takes `found` bytes.
fn check(ty: TensorType, cols: usize, found: usize) -> Result<(), LengthError> {
    match ty.row_bytes(cols) {
        None => Err(LengthError::Columns { ty, cols }),
        Some(expected) if expected != found => Err(LengthError::Bytes { ty, cols, expected, found }),
        Some(_) => Ok(()),
    }
}

/// Checks that `found` bytes are whole blocks of type `ty`.
pub(crate) fn check_bytes(ty: TensorType, found: usize) -> Result<(), LengthError> {
    if found.is_multiple_of(ty.block_bytes()) { Ok(()) } else { Err(LengthError::Blocks { ty, found }) }
}

/// Decodes a row of type `ty` into `out`, whose length is the number of columns.
///
/// # Errors
/// If `out` is not whole blocks or `row` has another size than they take.
pub fn decode_row(ty: TensorType, row: &[u8], out: &mut [f32]) -> Result<(), LengthError> {
    struct Decode<'a>(&'a [u8], &'a mut [f32]);

    impl Visitor for Decode<'_> {
        type Out = ();

        fn visit<F: Format>(self) {
            for (block, out) in self.0.chunks_exact(F::BYTES).zip(self.1.chunks_exact_mut(F::ELEMS)) {
                decode::<F>(block, out);
            }
        }
    }

    check(ty, out.len(), row.len())?;
    ty.visit(Decode(row, out));
    Ok(())
}

/// Encodes a row into blocks of type `ty`.
///
/// F16 and BF16 round to nearest even, and Q8_0, Q4_0, Q4_1, Q5_0 and Q5_1 are the reference quantisation, bit for bit
/// that of PyPI `gguf`. The K-quants and the IQ4 types minimise the squared error of each sub-block.
///
/// # Errors
/// If `x` is not whole blocks or `out` has another size than they take.
pub fn encode_row(ty: TensorType, x: &[f32], out: &mut [u8]) -> Result<(), LengthError> {
    struct Encode<'a>(&'a [f32], &'a mut [u8]);

    impl Visitor for Encode<'_> {
        type Out = ();

        fn visit<F: Format>(self) {
            for (x, block) in self.0.chunks_exact(F::ELEMS).zip(self.1.chunks_exact_mut(F::BYTES)) {
                F::encode(x, block);
            }
        }
    }

    check(ty, x.len(), out.len())?;
    ty.visit(Encode(x, out));
    Ok(())
}
