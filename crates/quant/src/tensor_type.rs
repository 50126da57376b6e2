//! The tensor types that the engine computes with.

use core::fmt;

/// One row per type: the enum, its tables and the dispatch all come from this list, so they cannot disagree.
macro_rules! tensor_types {
    ($($(#[$doc:meta])* $variant:ident = $id:literal, $elems:literal elements in $bytes:literal bytes;)*) => {
        /// A tensor type of GGUF (`ggml_type`) that the engine computes with.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[allow(non_camel_case_types, reason = "the formats' standard names")]
        pub enum TensorType {
            $($(#[$doc])* $variant,)*
        }

        impl TensorType {
            /// Every type, in the order of their `ggml_type` ids except that BF16 follows F16.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The type with this `ggml_type` id, or `None` if the engine does not compute with it.
            pub const fn from_ggml(id: u32) -> Option<Self> {
                match id {
                    $($id => Some(Self::$variant),)*
                    _ => None,
                }
            }

            /// The `ggml_type` id, as GGUF's tensor infos hold it.
            pub const fn ggml_id(self) -> u32 {
                match self {
                    $(Self::$variant => $id,)*
                }
            }

            /// The usual name, such as `Q4_K`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => stringify!($variant),)*
                }
            }

            /// Elements in a block.
            pub const fn block_elems(self) -> usize {
                match self {
                    $(Self::$variant => $elems,)*
                }
            }

            /// Bytes of a block.
            pub const fn block_bytes(self) -> usize {
                match self {
                    $(Self::$variant => $bytes,)*
                }
            }
        }
    };
}

tensor_types! {
    /// IEEE single precision.
    F32 = 0, 1 elements in 4 bytes;
    /// IEEE half precision.
    F16 = 1, 1 elements in 2 bytes;
    /// The upper half of a single: 8 bits of exponent, 7 of mantissa.
    BF16 = 30, 1 elements in 2 bytes;
    /// 8-bit integers, one scale for 32.
    Q8_0 = 8, 32 elements in 34 bytes;
    /// 2-bit integers, a 4-bit scale and minimum for 16.
    Q2_K = 10, 256 elements in 84 bytes;
    /// 3-bit integers, a 6-bit scale for 16.
    Q3_K = 11, 256 elements in 110 bytes;
    /// 4-bit integers, a 6-bit scale and minimum for 32.
    Q4_K = 12, 256 elements in 144 bytes;
    /// 5-bit integers, a 6-bit scale and minimum for 32.
    Q5_K = 13, 256 elements in 176 bytes;
    /// 6-bit integers, an 8-bit scale for 16.
    Q6_K = 14, 256 elements in 210 bytes;
}

impl TensorType {
    /// The type of this name, in upper or lower case, or `None`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|ty| ty.name().eq_ignore_ascii_case(name))
    }

    /// Bytes of a row of `cols` elements; `None` if `cols` is no multiple of the block or the size overflows.
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
