//! The block formats as values.

use core::fmt;

use crate::{Format, formats};

/// What to do with a tensor type once it is known as a [`Format`]; see [`TensorType::visit`].
pub trait Visitor {
    /// The visit's result.
    type Out;

    /// Called with the format of the visited [`TensorType`].
    fn visit<F: Format>(self) -> Self::Out;
}

/// The enum, its tables and its dispatch all come from one list, so they cannot disagree.
macro_rules! tensor_types {
    ($($(#[$doc:meta])* $name:ident = $id:literal,)*) => {
        /// A tensor type of GGUF (`ggml_type`) that the engine computes with.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum TensorType {
            $($(#[$doc])* $name,)*
        }

        impl TensorType {
            /// Every type.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The type with this `ggml_type` id, or `None` if the engine does not compute with it.
            pub const fn from_ggml(id: u32) -> Option<Self> {
                match id {
                    $($id => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// The `ggml_type` id, as GGUF's tensor infos hold it.
            pub const fn ggml_id(self) -> u32 {
                match self {
                    $(Self::$name => $id,)*
                }
            }

            /// The usual name, such as `Q4_K`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }

            /// Values in a block.
            pub const fn block_elems(self) -> usize {
                match self {
                    $(Self::$name => formats::$name::ELEMS,)*
                }
            }

            /// Bytes of a block.
            pub const fn block_bytes(self) -> usize {
                match self {
                    $(Self::$name => formats::$name::BYTES,)*
                }
            }

            /// Calls the visitor with this type's [`Format`]: the one place where a value becomes a generic parameter.
            pub fn visit<V: Visitor>(self, visitor: V) -> V::Out {
                match self {
                    $(Self::$name => visitor.visit::<formats::$name>(),)*
                }
            }
        }

        $(const _: () = {
            type F = formats::$name;
            assert!(matches!(F::TYPE, TensorType::$name));
            assert!(F::SLICES * F::RUNS * F::RUN == F::ELEMS && F::RUN <= 4);
            assert!(F::SLICES < 8 || F::SLICES.is_multiple_of(8), "decode walks eight slices together");
        };)*
    };
}

tensor_types! {
    /// IEEE single precision.
    F32 = 0,
    /// IEEE half precision.
    F16 = 1,
    /// The upper half of a single: 8 bits of exponent, 7 of mantissa.
    BF16 = 30,
    /// 4-bit integers, one scale for 32.
    Q4_0 = 2,
    /// 4-bit integers, one scale and minimum for 32.
    Q4_1 = 3,
    /// 5-bit integers, one scale for 32.
    Q5_0 = 6,
    /// 5-bit integers, one scale and minimum for 32.
    Q5_1 = 7,
    /// 8-bit integers, one scale for 32.
    Q8_0 = 8,
    /// 2-bit integers, a 4-bit scale and minimum for 16.
    Q2_K = 10,
    /// 3-bit integers, a 6-bit scale for 16.
    Q3_K = 11,
    /// 4-bit integers, a 6-bit scale and minimum for 32.
    Q4_K = 12,
    /// 5-bit integers, a 6-bit scale and minimum for 32.
    Q5_K = 13,
    /// 6-bit integers, an 8-bit scale for 16.
    Q6_K = 14,
    /// 4-bit indices into a table of values, one scale for 32.
    IQ4_NL = 20,
    /// 4-bit indices into a table of values, a 6-bit scale for 32.
    IQ4_XS = 23,
}

impl TensorType {
    /// The type of this name, in upper or lower case, or `None`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|ty| ty.name().eq_ignore_ascii_case(name))
    }

    /// Bytes of a row of `cols` values; `None` if `cols` is no multiple of the block or the size overflows.
    pub const fn row_bytes(self, cols: usize) -> Option<usize> {
        if cols.is_multiple_of(self.block_elems()) {
            (cols / self.block_elems()).checked_mul(self.block_bytes())
        } else {
            None
        }
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
