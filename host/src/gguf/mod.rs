//! The GGUF file format: a zero-copy reader over a memory map, and a writer.
//!
//! The format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. A file is a header, metadata (keys and typed
//! values), tensor infos, and, from the next multiple of the alignment on, the tensors' data. Versions 2 and 3 are read
//! (they differ only in that 3 may be big-endian), and 3 is written.
//!
//! Files are untrusted. Everything about their structure is checked once, in [`Gguf::open`]: after that, metadata and
//! tensor data are views of the map that are known to lie inside it.

mod cursor;
mod error;
mod metadata;
mod tensor;
mod value;
mod writer;

pub use error::{GgufError, GgufFault};
pub use metadata::Metadata;
pub use tensor::{GgmlType, TensorInfo};
pub use value::{Array, Value, ValueType};
pub use writer::{DataWriter, Encode, Writer};

use cursor::Cursor;
use memmap2::Mmap;
use metadata::Entry;
use quant::TensorType;
use std::{
    borrow::Cow,
    collections::{HashMap, hash_map},
    fs::File,
    ops::Deref,
    path::Path,
    sync::Arc,
};

const MAGIC: &[u8; 4] = b"GGUF";
/// GGUF allows keys of at most 65535 bytes.
const MAX_KEY: u64 = 65535;
/// The alignment of a file that doesn't state one.
const DEFAULT_ALIGNMENT: u64 = 32;
const ALIGNMENT_KEY: &str = "general.alignment";
/// The least bytes of a key and its value: the key's length, the value's type, a one-byte value.
const MIN_ENTRY: u64 = 8 + 4 + 1;
/// The least bytes of a tensor info: the name's length, the number of dimensions, one of them, type, offset.
const MIN_TENSOR: u64 = 8 + 4 + 8 + 4 + 8;

/// A file's content.
#[derive(Debug)]
enum Bytes {
    Map(Mmap),
    Memory(Cow<'static, [u8]>),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Map(map) => map,
            Self::Memory(bytes) => bytes,
        }
    }
}

/// An open GGUF file.
#[derive(Debug)]
pub struct Gguf {
    name: Arc<str>,
    bytes: Arc<Bytes>,
    version: u32,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    index: HashMap<String, usize>,
    data_start: u64,
}

impl Gguf {
    /// Maps the file into memory and reads its structure; tensor data is not touched.
    ///
    /// The file must not be truncated while it is open: the system answers a read of pages that are gone with SIGBUS, which
    /// ends the process. Overwriting it in place changes the weights under the engine.
    ///
    /// # Errors
    /// If the file cannot be read, or is not a sound GGUF file of version 2 or 3.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let name = path.display().to_string();
        let map = || -> Result<Mmap, GgufFault> {
            // Asked before opening, because opening a pipe would wait for its writer.
            if !std::fs::metadata(path)?.is_file() {
                return Err(GgufFault::NotAFile);
            }
            let file = File::open(path)?;
            // SAFETY: the map is private to this process and read-only, and outlives its views (they borrow from `Gguf`).
            // Rust cannot rule out that another process changes or truncates the file meanwhile: changed bytes are
            // plain data to us (structure is copied out and checked once, strings are checked on each decoding, block
            // formats have no invalid bytes), and truncation ends in SIGBUS, which the documentation above states.
            Ok(unsafe { Mmap::map(&file) }?)
        };
        let bytes = map().map_err(|fault| GgufError::new(&name, fault))?;
        Self::parse(&name, Bytes::Map(bytes))
    }

    /// Reads a file that is part of the program; `name` stands for it in messages.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_static(name: &str, bytes: &'static [u8]) -> Result<Self, GgufError> {
        Self::parse(name, Bytes::Memory(Cow::Borrowed(bytes)))
    }

    /// Reads a file that is in memory; `name` stands for it in messages.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_vec(name: &str, bytes: Vec<u8>) -> Result<Self, GgufError> {
        Self::parse(name, Bytes::Memory(Cow::Owned(bytes)))
    }

    fn parse(name: &str, bytes: Bytes) -> Result<Self, GgufError> {
        let header = Header::read(&bytes).map_err(|fault| GgufError::new(name, fault))?;
        let (name, bytes) = (Arc::<str>::from(name), Arc::new(bytes));
        Ok(Self {
            metadata: Metadata::new(name.clone(), bytes.clone(), header.entries, header.keys),
            name,
            bytes,
            version: header.version,
            tensors: header.tensors,
            index: header.names,
            data_start: header.data_start,
        })
    }

    /// The file's path, or the name it was given: for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The version of the format, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The tensors in file order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor called `name`.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensor_index(name).map(|index| &self.tensors[index])
    }

    /// Where the tensor called `name` is in [`Self::tensors`].
    pub fn tensor_index(&self, name: &str) -> Option<usize> {
        self.index.get(name).copied()
    }

    /// The tensor called `name`.
    ///
    /// # Errors
    /// If there is none.
    pub fn require(&self, name: &str) -> Result<&TensorInfo, GgufError> {
        self.tensor(name).ok_or_else(|| GgufError::new(&self.name, GgufFault::NoTensor(name.to_owned())))
    }

    /// The tensor's type, where the engine computes with it.
    ///
    /// # Errors
    /// If it doesn't: names the tensor, its type, and the types that are supported.
    pub fn supported_type(&self, tensor: &TensorInfo) -> Result<TensorType, GgufError> {
        match tensor.ty {
            GgmlType::Supported(ty) => Ok(ty),
            ty => {
                let fault = GgufFault::UnsupportedType { tensor: tensor.name.clone(), ty };
                Err(GgufError::new(&self.name, fault))
            }
        }
    }

    /// The tensor's data: [`TensorInfo::bytes`] bytes. They are aligned in the file, not necessarily in memory.
    ///
    /// # Panics
    /// If `tensor` is of another file and lies outside this one.
    pub fn bytes(&self, tensor: &TensorInfo) -> &[u8] {
        let start = self.tensor_file_offset(tensor) as usize;
        &self.bytes[start..start + tensor.bytes as usize]
    }

    /// Where the tensor's data starts, in bytes from the start of the file.
    pub fn tensor_file_offset(&self, tensor: &TensorInfo) -> u64 {
        self.data_start + tensor.offset
    }
}

/// The whole file's bytes.
impl AsRef<[u8]> for Gguf {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// What precedes the data in a file.
struct Header {
    version: u32,
    entries: Vec<Entry>,
    keys: HashMap<String, usize>,
    tensors: Vec<TensorInfo>,
    names: HashMap<String, usize>,
    data_start: u64,
}

impl Header {
    fn read(bytes: &[u8]) -> Result<Self, GgufFault> {
        let mut cur = Cursor::new(bytes);
        if cur.take(4, "the magic number").ok() != Some(MAGIC) {
            return Err(GgufFault::NotGguf);
        }
        let version = cur.u32("the version")?;
        // Small numbers only have low bytes, so the low half is 0 exactly if the bytes are in the other order.
        if version != 0 && version & 0xffff == 0 {
            return Err(GgufFault::BigEndian);
        }
        if !matches!(version, 2 | 3) {
            return Err(GgufFault::Version(version));
        }
        let tensor_count_at = cur.pos();
        let tensor_count = cur.u64("the number of tensors")?;
        let entry_count = cur.count(MIN_ENTRY, "the number of metadata entries")?;

        // Nothing is reserved by the counts: in a file of many gigabytes even a possible one may be absurd.
        let mut entries = Vec::new();
        let mut keys = HashMap::new();
        let mut alignment = DEFAULT_ALIGNMENT;
        for index in 0..entry_count as usize {
            let key = cur.name(MAX_KEY, "a metadata key")?.to_owned();
            let ty = ValueType::read(&mut cur)?;
            let start = cur.pos() as usize;
            let value = Value::read(&mut cur, ty)?;
            if key == ALIGNMENT_KEY {
                alignment = read_alignment(value)?;
            }
            insert_new(&mut keys, &key, index).map_err(GgufFault::DuplicateKey)?;
            entries.push(Entry { key, ty, range: start..cur.pos() as usize });
        }

        cur.check_count(tensor_count, MIN_TENSOR, tensor_count_at, "the number of tensors")?;
        let mut tensors = Vec::new();
        let mut names = HashMap::new();
        for index in 0..tensor_count as usize {
            let tensor = TensorInfo::read(&mut cur)?;
            insert_new(&mut names, &tensor.name, index).map_err(GgufFault::DuplicateTensor)?;
            tensors.push(tensor);
        }

        // Cannot overflow: a position in memory, plus less than 4 GiB.
        let data_start = cur.pos().next_multiple_of(alignment);
        let len = bytes.len() as u64;
        for tensor in &tensors {
            tensor.check_place(data_start, len, alignment)?;
        }
        bound_unknown_sizes(&mut tensors, len.saturating_sub(data_start));
        Ok(Self { version, entries, keys, tensors, names, data_start })
    }
}

/// Inserts `key` unless it is there; else returns it.
fn insert_new(map: &mut HashMap<String, usize>, key: &str, index: usize) -> Result<(), String> {
    match map.entry(key.to_owned()) {
        hash_map::Entry::Vacant(entry) => {
            entry.insert(index);
            Ok(())
        }
        hash_map::Entry::Occupied(entry) => Err(entry.key().clone()),
    }
}

fn read_alignment(value: Value<'_>) -> Result<u64, GgufFault> {
    let wrong = || GgufFault::WrongType {
        key: ALIGNMENT_KEY.to_owned(),
        expected: "an integer in u32's range",
        found: value.describe(),
    };
    let alignment = value.integer().and_then(|v| u32::try_from(v).ok()).ok_or_else(wrong)?;
    if !alignment.is_power_of_two() || alignment < 8 {
        return Err(GgufFault::Alignment(alignment.into()));
    }
    Ok(alignment.into())
}

/// Tensors of types whose block size is unknown reach to the next tensor, or to the end of the data section.
fn bound_unknown_sizes(tensors: &mut [TensorInfo], data_len: u64) {
    if !tensors.iter().any(TensorInfo::size_unknown) {
        return;
    }
    let mut starts: Vec<u64> = tensors.iter().map(|tensor| tensor.offset).collect();
    starts.sort_unstable();
    for tensor in tensors.iter_mut().filter(|tensor| tensor.size_unknown()) {
        let next = starts.partition_point(|&start| start <= tensor.offset);
        tensor.bytes = starts.get(next).copied().unwrap_or(data_len) - tensor.offset;
    }
}
