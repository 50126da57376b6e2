//! Metadata values, decoded on demand from the file's bytes.

use super::{GgufFault, cursor::Cursor};
use std::fmt;

/// Arrays in arrays deeper than this are refused; nothing known nests at all.
const MAX_DEPTH: u32 = 8;

/// The type of a metadata value (`gguf_metadata_value_type`); the numbers are the file's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names say it")]
pub enum ValueType {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl ValueType {
    const ALL: [Self; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::String,
        Self::Array,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    /// The number that stands for this type in a file.
    pub fn id(self) -> u32 {
        self as u32
    }

    /// The type's name, such as `u32`.
    pub fn name(self) -> &'static str {
        match self {
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::F32 => "f32",
            Self::Bool => "bool",
            Self::String => "string",
            Self::Array => "array",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F64 => "f64",
        }
    }

    /// The fewest bytes a value of this type takes: its size, or that of an empty string or array.
    fn min_bytes(self) -> u64 {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::String => 8,
            Self::Array => 12,
        }
    }

    pub(super) fn read(cur: &mut Cursor<'_>) -> Result<Self, GgufFault> {
        let at = cur.pos();
        let ty = cur.u32("a metadata value's type")?;
        Self::ALL.get(ty as usize).copied().ok_or(GgufFault::ValueType { ty, at })
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A metadata value. Strings and arrays are views of the file's bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Value<'a> {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    /// A string's bytes. They should be UTF-8, but the vocabularies of some models are not, so whoever wants text checks.
    String(&'a [u8]),
    Array(Array<'a>),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl<'a> Value<'a> {
    /// Reads a value of type `ty`. Everything inside it has been checked when this succeeds.
    pub(super) fn read(cur: &mut Cursor<'a>, ty: ValueType) -> Result<Self, GgufFault> {
        Self::read_at_depth(cur, ty, 0)
    }

    fn read_at_depth(cur: &mut Cursor<'a>, ty: ValueType, depth: u32) -> Result<Self, GgufFault> {
        const WHAT: &str = "a metadata value";
        let at = cur.pos();
        Ok(match ty {
            ValueType::U8 => Self::U8(u8::from_le_bytes(cur.array(WHAT)?)),
            ValueType::I8 => Self::I8(i8::from_le_bytes(cur.array(WHAT)?)),
            ValueType::U16 => Self::U16(u16::from_le_bytes(cur.array(WHAT)?)),
            ValueType::I16 => Self::I16(i16::from_le_bytes(cur.array(WHAT)?)),
            ValueType::U32 => Self::U32(u32::from_le_bytes(cur.array(WHAT)?)),
            ValueType::I32 => Self::I32(i32::from_le_bytes(cur.array(WHAT)?)),
            ValueType::F32 => Self::F32(f32::from_le_bytes(cur.array(WHAT)?)),
            ValueType::Bool => match u8::from_le_bytes(cur.array(WHAT)?) {
                0 => Self::Bool(false),
                1 => Self::Bool(true),
                value => return Err(GgufFault::Bool { value, at }),
            },
            ValueType::String => Self::String(cur.string("a metadata string")?),
            ValueType::Array => Self::Array(Array::read(cur, depth)?),
            ValueType::U64 => Self::U64(u64::from_le_bytes(cur.array(WHAT)?)),
            ValueType::I64 => Self::I64(i64::from_le_bytes(cur.array(WHAT)?)),
            ValueType::F64 => Self::F64(f64::from_le_bytes(cur.array(WHAT)?)),
        })
    }

    /// The value's type.
    pub fn ty(&self) -> ValueType {
        match self {
            Self::U8(_) => ValueType::U8,
            Self::I8(_) => ValueType::I8,
            Self::U16(_) => ValueType::U16,
            Self::I16(_) => ValueType::I16,
            Self::U32(_) => ValueType::U32,
            Self::I32(_) => ValueType::I32,
            Self::F32(_) => ValueType::F32,
            Self::Bool(_) => ValueType::Bool,
            Self::String(_) => ValueType::String,
            Self::Array(_) => ValueType::Array,
            Self::U64(_) => ValueType::U64,
            Self::I64(_) => ValueType::I64,
            Self::F64(_) => ValueType::F64,
        }
    }

    /// The number, if the value is an integer of any width.
    pub fn integer(&self) -> Option<i128> {
        match *self {
            Self::U8(v) => Some(v.into()),
            Self::I8(v) => Some(v.into()),
            Self::U16(v) => Some(v.into()),
            Self::I16(v) => Some(v.into()),
            Self::U32(v) => Some(v.into()),
            Self::I32(v) => Some(v.into()),
            Self::U64(v) => Some(v.into()),
            Self::I64(v) => Some(v.into()),
            _ => None,
        }
    }

    /// The number in single precision, if the value is a float of either width.
    pub fn float(&self) -> Option<f32> {
        match *self {
            Self::F32(v) => Some(v),
            Self::F64(v) => Some(v as f32),
            _ => None,
        }
    }

    /// The value for an error message: `i32 -1`, `string`, `array of f32`.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::F32(v) => format!("f32 {v}"),
            Self::F64(v) => format!("f64 {v}"),
            Self::Bool(v) => format!("bool {v}"),
            Self::String(_) => "a string".to_owned(),
            Self::Array(a) => format!("an array of {}", a.elem),
            _ => format!("{} {}", self.ty(), self.integer().unwrap_or_default()),
        }
    }
}

/// A metadata array: a view of the file's bytes, decoded while iterating.
#[derive(Clone, Copy, PartialEq)]
pub struct Array<'a> {
    elem: ValueType,
    len: usize,
    bytes: &'a [u8],
    depth: u32,
}

impl<'a> Array<'a> {
    fn read(cur: &mut Cursor<'a>, depth: u32) -> Result<Self, GgufFault> {
        if depth >= MAX_DEPTH {
            return Err(GgufFault::Nested { at: cur.pos(), max: MAX_DEPTH });
        }
        let elem = ValueType::read(cur)?;
        let len = cur.count(elem.min_bytes(), "a metadata array's length")?;
        let start = cur.pos();
        match elem {
            // Elements that vary in size, or may be invalid, are walked once here; iterating can then not fail.
            ValueType::String | ValueType::Array | ValueType::Bool => {
                for _ in 0..len {
                    Value::read_at_depth(cur, elem, depth + 1)?;
                }
            }
            // The product cannot overflow: the count was checked against the bytes left.
            _ => {
                cur.take(len * elem.min_bytes(), "a metadata array")?;
            }
        }
        Ok(Self { elem, len: len as usize, bytes: cur.since(start), depth })
    }

    /// The type of the elements.
    pub fn elem(&self) -> ValueType {
        self.elem
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The encoded elements.
    pub(super) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The elements in order.
    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let mut cur = Cursor::new(self.bytes);
        let (elem, depth) = (self.elem, self.depth + 1);
        // No element is lost to the `ok`: all were read when the file was opened.
        (0..self.len).map_while(move |_| Value::read_at_depth(&mut cur, elem, depth).ok())
    }
}

impl fmt::Debug for Array<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}; {}]", self.elem, self.len)
    }
}
