//! One file: its bytes, and what its header says of them.

use super::{
    GgufError, GgufFault, Metadata, TensorInfo, Value, ValueType,
    cursor::Cursor,
    metadata::{Entries, Entry},
};
use memmap2::Mmap;
use std::{borrow::Cow, fs::File, io, os::unix::fs::FileExt, path::Path, sync::Arc};

pub(super) const MAGIC: &[u8; 4] = b"GGUF";
/// GGUF allows keys of at most 65535 bytes.
const MAX_KEY: u64 = 65535;
/// The alignment of a file that doesn't state one.
pub(super) const DEFAULT_ALIGNMENT: u64 = 32;
pub(super) const ALIGNMENT_KEY: &str = "general.alignment";
/// The least bytes of a key and its value: the key's length, the value's type, a one-byte value.
const MIN_ENTRY: u64 = 8 + 4 + 1;
/// The least bytes of a tensor info: the name's length, the number of dimensions, one of them, type, offset.
const MIN_TENSOR: u64 = 8 + 4 + 8 + 4 + 8;

/// A file's content.
#[derive(Debug)]
enum Bytes {
    /// The map, and the file for reading what is not to be mapped.
    Map(Mmap, File),
    Memory(Cow<'static, [u8]>),
}

/// One of the files that a model consists of; most models are one file.
#[derive(Debug)]
pub struct Part {
    name: String,
    bytes: Bytes,
    /// Where the data section starts, in bytes from the start of the file.
    data_start: u64,
}

impl Part {
    /// The file's path, or the name it was given: for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file, if it is one: models may also be in memory.
    pub fn path(&self) -> Option<&Path> {
        matches!(self.bytes, Bytes::Map(..)).then(|| Path::new(&self.name))
    }

    /// The opened file, if it is one.
    pub fn file(&self) -> Option<&File> {
        match &self.bytes {
            Bytes::Map(_, file) => Some(file),
            Bytes::Memory(_) => None,
        }
    }

    /// The whole file's bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Map(map, _) => map,
            Bytes::Memory(bytes) => bytes,
        }
    }

    /// Copies the bytes from `at` on into `out`, from the file rather than from its map: that is as fast, takes no memory, and a
    /// file that was truncated meanwhile is an error.
    ///
    /// # Errors
    /// When the bytes cannot be read, or are not there.
    pub fn read_at(&self, at: u64, out: &mut [u8]) -> io::Result<()> {
        let gone = || io::Error::new(io::ErrorKind::UnexpectedEof, "the file has become shorter since it was opened");
        match &self.bytes {
            Bytes::Map(_, file) => file.read_exact_at(out, at).map_err(|e| match e.kind() {
                io::ErrorKind::UnexpectedEof => gone(),
                _ => e,
            }),
            Bytes::Memory(bytes) => {
                let start = usize::try_from(at).unwrap_or(usize::MAX);
                let bytes = bytes.get(start..start.saturating_add(out.len())).ok_or_else(gone)?;
                out.copy_from_slice(bytes);
                Ok(())
            }
        }
    }

    /// Where the data of `tensor`, which is in this part, starts, in bytes from the start of the file.
    pub(super) fn offset(&self, tensor: &TensorInfo) -> u64 {
        self.data_start + tensor.offset
    }

    pub(super) fn error(&self, fault: GgufFault) -> GgufError {
        GgufError::new(&self.name, fault)
    }
}

/// [`Part::bytes`].
impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

/// A file whose header was read.
pub(super) struct Opened {
    pub(super) part: Arc<Part>,
    pub(super) version: u32,
    pub(super) metadata: Metadata,
    /// Their `part` is 0: they don't know yet which part this is.
    pub(super) tensors: Vec<TensorInfo>,
}

impl Opened {
    /// Maps the file into memory and reads its header.
    pub(super) fn map(path: &Path) -> Result<Self, GgufError> {
        let map = || -> Result<Bytes, GgufFault> {
            // Asked before opening, because opening a pipe would wait for its writer.
            if !std::fs::metadata(path)?.is_file() {
                return Err(GgufFault::NotAFile);
            }
            let file = File::open(path)?;
            // SAFETY: the map is private to this process and read-only, and outlives its views (they borrow from the `Part`
            // that owns it, or share it). Rust cannot rule out that another process changes or truncates the file
            // meanwhile: changed bytes are plain data to us (structure is copied out and checked once, strings are checked
            // on each decoding, block formats have no invalid bytes), and truncation ends in SIGBUS, which the
            // documentation of `Gguf::open` states.
            let map = unsafe { Mmap::map(&file) }?;
            Ok(Bytes::Map(map, file))
        };
        let name = path.display().to_string();
        match map() {
            Ok(bytes) => Self::read(name, bytes),
            Err(fault) => Err(GgufError::new(&name, fault)),
        }
    }

    /// Reads the header of a file in memory.
    pub(super) fn memory(name: &str, bytes: Cow<'static, [u8]>) -> Result<Self, GgufError> {
        Self::read(name.to_owned(), Bytes::Memory(bytes))
    }

    fn read(name: String, bytes: Bytes) -> Result<Self, GgufError> {
        let mut part = Part { name, bytes, data_start: 0 };
        let header = Header::read(part.bytes()).map_err(|fault| part.error(fault))?;
        part.data_start = header.data_start;
        let part = Arc::new(part);
        let metadata = Metadata::new(part.clone(), header.entries);
        Ok(Self { part, version: header.version, metadata, tensors: header.tensors })
    }
}

/// What precedes the data in a file.
struct Header {
    version: u32,
    entries: Entries,
    tensors: Vec<TensorInfo>,
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
        let mut entries = Entries::default();
        let mut alignment = DEFAULT_ALIGNMENT;
        for _ in 0..entry_count {
            let key = cur.name(MAX_KEY, "a metadata key")?.to_owned();
            let ty = ValueType::read(&mut cur)?;
            let start = cur.pos() as usize;
            let value = Value::read(&mut cur, ty)?;
            if key == ALIGNMENT_KEY {
                alignment = read_alignment(value)?;
            }
            entries.push(Entry { key, ty, range: start..cur.pos() as usize })?;
        }

        cur.check_count(tensor_count, MIN_TENSOR, tensor_count_at, "the number of tensors")?;
        let mut tensors = Vec::new();
        for _ in 0..tensor_count {
            tensors.push(TensorInfo::read(&mut cur)?);
        }

        // Cannot overflow: a position in memory, plus less than 4 GiB.
        let data_start = cur.pos().next_multiple_of(alignment);
        let len = bytes.len() as u64;
        for tensor in &tensors {
            tensor.check_place(data_start, len, alignment)?;
        }
        bound_unknown_sizes(&mut tensors, len.saturating_sub(data_start));
        Ok(Self { version, entries, tensors, data_start })
    }
}

pub(super) fn read_alignment(value: Value<'_>) -> Result<u64, GgufFault> {
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
