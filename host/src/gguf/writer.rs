//! Writes GGUF files, version 3, little-endian.

use super::{
    GgmlType, GgufFault, TensorInfo, Value, ValueType,
    cursor::Cursor,
    part::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAGIC, read_alignment},
};
use std::{
    collections::HashSet,
    io::{self, Write},
};

/// A Rust value that is stored as metadata: integers, floats, bool, text, and slices of any of them.
pub trait Encode {
    /// The type in the file.
    const TYPE: ValueType;
    /// Appends the value's bytes, without its type.
    fn encode(&self, out: &mut Vec<u8>);
}

macro_rules! encode_number {
    ($($ty:ty = $id:ident),*) => {
        $(impl Encode for $ty {
            const TYPE: ValueType = ValueType::$id;
            fn encode(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
        })*
    };
}
encode_number!(
    u8 = U8,
    i8 = I8,
    u16 = U16,
    i16 = I16,
    u32 = U32,
    i32 = I32,
    f32 = F32,
    u64 = U64,
    i64 = I64,
    f64 = F64
);

impl Encode for bool {
    const TYPE: ValueType = ValueType::Bool;
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
}

impl Encode for str {
    const TYPE: ValueType = ValueType::String;
    fn encode(&self, out: &mut Vec<u8>) {
        encode_string(self.as_bytes(), out);
    }
}

impl Encode for String {
    const TYPE: ValueType = ValueType::String;
    fn encode(&self, out: &mut Vec<u8>) {
        self.as_str().encode(out);
    }
}

impl<T: Encode> Encode for [T] {
    const TYPE: ValueType = ValueType::Array;
    fn encode(&self, out: &mut Vec<u8>) {
        T::TYPE.id().encode(out);
        (self.len() as u64).encode(out);
        self.iter().for_each(|elem| elem.encode(out));
    }
}

impl<T: Encode> Encode for Vec<T> {
    const TYPE: ValueType = ValueType::Array;
    fn encode(&self, out: &mut Vec<u8>) {
        self.as_slice().encode(out);
    }
}

impl<T: Encode + ?Sized> Encode for &T {
    const TYPE: ValueType = T::TYPE;
    fn encode(&self, out: &mut Vec<u8>) {
        (**self).encode(out);
    }
}

fn encode_string(bytes: &[u8], out: &mut Vec<u8>) {
    (bytes.len() as u64).encode(out);
    out.extend_from_slice(bytes);
}

fn encode_value(value: Value<'_>, out: &mut Vec<u8>) {
    match value {
        Value::U8(v) => v.encode(out),
        Value::I8(v) => v.encode(out),
        Value::U16(v) => v.encode(out),
        Value::I16(v) => v.encode(out),
        Value::U32(v) => v.encode(out),
        Value::I32(v) => v.encode(out),
        Value::F32(v) => v.encode(out),
        Value::Bool(v) => v.encode(out),
        Value::String(v) => encode_string(v, out),
        Value::U64(v) => v.encode(out),
        Value::I64(v) => v.encode(out),
        Value::F64(v) => v.encode(out),
        Value::Array(v) => {
            v.elem().id().encode(out);
            (v.len() as u64).encode(out);
            out.extend_from_slice(v.bytes());
        }
    }
}

/// Collects metadata and tensor descriptions; [`Self::begin`] then writes them and takes the tensors' data.
///
/// ```
/// use ntransformer::gguf::{Gguf, Writer};
/// let mut writer = Writer::new();
/// writer.set("general.architecture", "llama")?.set("llama.block_count", &1u32)?;
/// writer.tensor("output_norm.weight", &[2], quant::TensorType::F32)?;
/// let mut data = writer.begin(Vec::new())?;
/// data.write(&1f32.to_le_bytes())?;
/// data.write(&2f32.to_le_bytes())?;
/// let file = Gguf::from_vec("example", data.finish()?)?;
/// assert_eq!(file.require("output_norm.weight")?.bytes, 8);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Writer {
    alignment: u64,
    keys: HashSet<String>,
    metadata: Vec<u8>,
    tensors: Vec<TensorInfo>,
    names: HashSet<String>,
    /// Size of the data section so far, up to the end of the last tensor.
    data_len: u64,
}

impl Default for Writer {
    fn default() -> Self {
        Self::new()
    }
}

impl Writer {
    /// An empty file with the usual alignment of 32.
    pub fn new() -> Self {
        Self {
            alignment: DEFAULT_ALIGNMENT,
            keys: HashSet::new(),
            metadata: Vec::new(),
            tensors: Vec::new(),
            names: HashSet::new(),
            data_len: 0,
        }
    }

    /// Adds a metadata entry. A `general.alignment` (u32) takes effect for the tensors that follow it.
    ///
    /// # Errors
    /// If the key was set before, or the alignment is not valid.
    pub fn set<T: Encode + ?Sized>(&mut self, key: &str, value: &T) -> Result<&mut Self, GgufFault> {
        let mut bytes = Vec::new();
        value.encode(&mut bytes);
        self.push(key, T::TYPE, &bytes)
    }

    /// Adds a metadata entry with a value of another file.
    ///
    /// # Errors
    /// As [`Self::set`].
    pub fn set_value(&mut self, key: &str, value: Value<'_>) -> Result<&mut Self, GgufFault> {
        let mut bytes = Vec::new();
        encode_value(value, &mut bytes);
        self.push(key, value.ty(), &bytes)
    }

    fn push(&mut self, key: &str, ty: ValueType, bytes: &[u8]) -> Result<&mut Self, GgufFault> {
        if !self.keys.insert(key.to_owned()) {
            return Err(GgufFault::DuplicateKey(key.to_owned()));
        }
        if key == ALIGNMENT_KEY {
            self.alignment = read_alignment(Value::read(&mut Cursor::new(bytes), ty)?)?;
        }
        key.encode(&mut self.metadata);
        ty.id().encode(&mut self.metadata);
        self.metadata.extend_from_slice(bytes);
        Ok(self)
    }

    /// Adds a tensor of shape `dims` (ggml's order: `dims[0]` is the length of a row). Its data will be taken in the order of
    /// these calls.
    ///
    /// # Errors
    /// If the name is taken, or shape and type don't fit each other.
    pub fn tensor(&mut self, name: &str, dims: &[u64], ty: impl Into<GgmlType>) -> Result<&mut Self, GgufFault> {
        let offset = self.data_len.next_multiple_of(self.alignment);
        let info = TensorInfo::new(name, dims, ty.into(), offset)?;
        if !self.names.insert(name.to_owned()) {
            return Err(GgufFault::DuplicateTensor(name.to_owned()));
        }
        let end = offset.checked_add(info.bytes).filter(|&end| end <= i64::MAX as u64);
        let too_large = || GgufFault::TensorTooLarge { tensor: name.to_owned(), dims: dims.to_vec() };
        self.data_len = end.ok_or_else(too_large)?;
        self.tensors.push(info);
        Ok(self)
    }

    /// The tensors added so far.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// Writes all that precedes the data to `out`, which should be buffered or a file that takes large writes.
    ///
    /// # Errors
    /// If writing fails.
    pub fn begin<W: Write>(self, mut out: W) -> io::Result<DataWriter<W>> {
        let mut header = Vec::with_capacity(self.metadata.len() + 64 * self.tensors.len() + 64);
        header.extend_from_slice(MAGIC);
        3u32.encode(&mut header);
        (self.tensors.len() as u64).encode(&mut header);
        (self.keys.len() as u64).encode(&mut header);
        header.extend_from_slice(&self.metadata);
        for tensor in &self.tensors {
            tensor.name.encode(&mut header);
            (tensor.dims.len() as u32).encode(&mut header);
            tensor.dims.iter().for_each(|dim| dim.encode(&mut header));
            tensor.ty.id().encode(&mut header);
            tensor.offset.encode(&mut header);
        }
        header.resize(header.len().next_multiple_of(self.alignment as usize), 0);
        out.write_all(&header)?;
        Ok(DataWriter { out, tensors: self.tensors, current: 0, pos: 0 })
    }
}

/// Takes the tensors' data, one after the other, in pieces of any size; the padding between tensors is its own business.
#[derive(Debug)]
pub struct DataWriter<W> {
    out: W,
    tensors: Vec<TensorInfo>,
    /// The tensor being written.
    current: usize,
    /// Bytes of the data section written so far, padding included.
    pos: u64,
}

impl<W: Write> DataWriter<W> {
    /// Writes the next bytes of the current tensor; when it is complete, the next one becomes current.
    ///
    /// # Errors
    /// If writing fails, or `bytes` are more than the current tensor still lacks.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let Some(tensor) = self.tensors.get(self.current) else {
            return Err(io::Error::other("data after the last tensor"));
        };
        let padding = tensor.offset.saturating_sub(self.pos);
        let end = tensor.offset + tensor.bytes;
        let new_pos = self.pos + padding + bytes.len() as u64;
        if new_pos > end {
            let message = format!("tensor {}: {} bytes more than its size", tensor.name, new_pos - end);
            return Err(io::Error::other(message));
        }
        io::copy(&mut io::Read::take(io::repeat(0), padding), &mut self.out)?;
        self.out.write_all(bytes)?;
        self.pos = new_pos;
        if new_pos == end {
            self.current += 1;
        }
        Ok(())
    }

    /// Ends the file and returns what it was written to, flushed.
    ///
    /// # Errors
    /// If writing fails, or data of a tensor is missing.
    pub fn finish(mut self) -> io::Result<W> {
        if let Some(tensor) = self.tensors.get(self.current) {
            return Err(io::Error::other(format!("tensor {}: its data is not complete", tensor.name)));
        }
        self.out.flush()?;
        Ok(self.out)
    }
}
