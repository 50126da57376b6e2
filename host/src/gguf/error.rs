//! What can be wrong with a GGUF file.

use super::{GgmlType, tensor::supported_names};

/// An error in a GGUF file: the file, and what is wrong with it.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {fault}")]
pub struct GgufError {
    /// The file's path, or the name given to [`super::Gguf::from_static`].
    pub file: String,
    /// What is wrong. Boxed, so that a `Result` stays small.
    pub fault: Box<GgufFault>,
}

impl GgufError {
    pub(super) fn new(file: &str, fault: GgufFault) -> Self {
        Self { file: file.to_owned(), fault: Box::new(fault) }
    }
}

/// What is wrong with a GGUF file. Offsets and sizes are in bytes.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum GgufFault {
    #[error("cannot be read: {0}")]
    Io(#[from] std::io::Error),
    #[error("tensor {tensor}: reading {len} bytes at byte {at} failed: {source}")]
    Read { tensor: String, at: u64, len: u64, source: std::io::Error },
    #[error("is not a regular file")]
    NotAFile,
    #[error("is not a GGUF file (it does not start with the letters GGUF)")]
    NotGguf,
    #[error("is a big-endian GGUF file; only little-endian ones are supported (gguf-convert-endian converts it)")]
    BigEndian,
    #[error("GGUF version {0} is not supported, only 2 and 3 are (a newer conversion of the model has them)")]
    Version(u32),
    #[error("truncated: {what} at byte {at} needs {need} bytes, the file has {have} more")]
    Truncated { what: &'static str, at: u64, need: u64, have: u64 },
    #[error("{what} {count} at byte {at} is impossible: the file has only {have} more bytes")]
    Count { what: &'static str, count: u64, at: u64, have: u64 },
    #[error("{what} at byte {at} is not valid UTF-8")]
    Utf8 { what: &'static str, at: u64 },
    #[error("{what} at byte {at} has {len} bytes, at most {max} are allowed")]
    TooLong { what: &'static str, at: u64, len: u64, max: u64 },
    #[error("unknown metadata value type {ty} at byte {at}")]
    ValueType { ty: u32, at: u64 },
    #[error("the value {value} at byte {at} is no boolean (0 or 1)")]
    Bool { value: u8, at: u64 },
    #[error("the metadata arrays at byte {at} are nested more than {max} deep")]
    Nested { at: u64, max: u32 },
    #[error("metadata key {0:?} occurs twice")]
    DuplicateKey(String),
    #[error("tensor name {0:?} occurs twice")]
    DuplicateTensor(String),
    #[error("general.alignment is {0}; it must be a power of two and a multiple of 8")]
    Alignment(u64),
    #[error("tensor {tensor} has {count} dimensions; 1 to 4 are possible")]
    Dimensions { tensor: String, count: u32 },
    #[error("tensor {tensor}: dimension {index} is 0 (shape {dims:?})")]
    ZeroDimension { tensor: String, index: usize, dims: Vec<u64> },
    #[error("tensor {tensor}: the size of shape {dims:?} overflows")]
    TensorTooLarge { tensor: String, dims: Vec<u64> },
    #[error("tensor {tensor}: rows of {cols} elements are no whole number of {ty} blocks ({block} elements)")]
    PartialBlock { tensor: String, ty: GgmlType, cols: u64, block: u64 },
    #[error("tensor {tensor}: its offset {offset} is no multiple of the alignment {alignment}")]
    Misaligned { tensor: String, offset: u64, alignment: u64 },
    #[error("truncated: tensor {tensor} needs bytes {start}..{end}, the file has {len}: get it again")]
    TensorTruncated { tensor: String, start: u64, end: u64, len: u64 },
    #[error(
        "{fault}; it is part {number} of {count} of a split model: all of them have to be in one folder, complete and under their \
         own names"
    )]
    Part { number: u32, count: u32, fault: Box<GgufFault> },
    #[error("its metadata say split.no {index} of split.count {count}, which is impossible: get this file again")]
    PartNumber { index: u32, count: u32 },
    #[error("is part {number} of {count} of a split model: give the path of the file, to which the others are found")]
    PartAlone { number: u32, count: u32 },
    #[error(
        "by its metadata it is part {number} of {count} of a split model, so its name has to end in {suffix}: rename it, or get it \
         again if it should be another part"
    )]
    PartName { number: u32, count: u32, suffix: String },
    #[error("by its metadata it is {}: rename it, or get it again", describe_part(*stated))]
    OtherPart { stated: Option<(u32, u32)> },
    #[error(
        "is of another model than {first}: it counts {stated} tensors in all parts (split.tensors.count), not {expected}"
    )]
    OtherModel { stated: u32, first: String, expected: u32 },
    #[error(
        "has {expected} tensors in all parts (split.tensors.count), but the parts have {found}: they are not of one model; get \
         them again"
    )]
    SplitTensors { expected: u32, found: usize },
    #[error("has no tensor {0}")]
    NoTensor(String),
    #[error("tensor {tensor} has the type {ty}, which is not supported (supported: {})", supported_names())]
    UnsupportedType { tensor: String, ty: GgmlType },
    #[error("has no metadata {0:?}")]
    NoKey(String),
    #[error("metadata {key:?}: expected {expected}, found {found}")]
    WrongType { key: String, expected: &'static str, found: String },
    #[error("metadata {key:?}: string {index} is not valid UTF-8")]
    StringUtf8 { key: String, index: usize },
}

fn describe_part(stated: Option<(u32, u32)>) -> String {
    stated.map_or("no part of a split model".to_owned(), |(number, count)| format!("part {number} of {count}"))
}
