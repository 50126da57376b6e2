//! The GGUF file format: a zero-copy reader over a memory map, and a writer.
//!
//! The format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. A file is a header, metadata (keys and typed
//! values), tensor infos, and, from the next multiple of the alignment on, the tensors' data. Versions 2 and 3 are read
//! (they differ only in that 3 may be big-endian), and 3 is written.
//!
//! Files are untrusted. Everything about their structure is checked once, in [`Gguf::open`]: after that, metadata and
//! tensor data are views of the map that are known to lie inside it. A model may be split into several files (`split`); a plain
//! file is a model of one part.

mod cursor;
mod error;
mod metadata;
mod part;
mod split;
mod tensor;
mod value;
mod writer;

pub use error::{GgufError, GgufFault};
pub use metadata::Metadata;
pub use part::Part;
pub use tensor::{GgmlType, TensorInfo};
pub use value::{Array, Value, ValueType};
pub use writer::{DataWriter, Encode, Writer};

use part::Opened;
use quant::TensorType;
use std::{
    borrow::Cow,
    collections::{HashMap, hash_map},
    path::Path,
    sync::Arc,
};

/// An open GGUF model: a file, or several that are the parts of one.
#[derive(Debug)]
pub struct Gguf {
    /// At least one.
    parts: Vec<Arc<Part>>,
    version: u32,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    index: HashMap<String, usize>,
}

impl Gguf {
    /// Maps the file into memory and reads its structure; tensor data is not touched. Given a part of a split model
    /// (`NAME-00001-of-00003.gguf`), no matter which, opens all of them.
    ///
    /// The files must not be truncated while they are open: the system answers a read of pages that are gone with SIGBUS,
    /// which ends the process. Overwriting them in place changes the weights under the engine.
    ///
    /// # Errors
    /// If the file or another part cannot be read, or is not a sound GGUF file of version 2 or 3.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        Self::join(split::all_parts(path, Opened::map(path)?)?)
    }

    /// Reads a file that is part of the program; `name` stands for it in messages.
    ///
    /// # Errors
    /// As [`Self::open`], and for a part of a split model.
    pub fn from_static(name: &str, bytes: &'static [u8]) -> Result<Self, GgufError> {
        Self::in_memory(name, Cow::Borrowed(bytes))
    }

    /// Reads a file that is in memory; `name` stands for it in messages.
    ///
    /// # Errors
    /// As [`Self::from_static`].
    pub fn from_vec(name: &str, bytes: Vec<u8>) -> Result<Self, GgufError> {
        Self::in_memory(name, Cow::Owned(bytes))
    }

    fn in_memory(name: &str, bytes: Cow<'static, [u8]>) -> Result<Self, GgufError> {
        let opened = Opened::memory(name, bytes)?;
        split::alone(&opened)?;
        Self::join(vec![opened])
    }

    /// One model of all its parts, in order.
    fn join(opened: Vec<Opened>) -> Result<Self, GgufError> {
        let (mut parts, mut tensors, mut index) = (Vec::new(), Vec::new(), HashMap::new());
        let mut first = None;
        for (number, Opened { part, version, metadata, tensors: more }) in opened.into_iter().enumerate() {
            for mut tensor in more {
                tensor.part = number;
                match index.entry(tensor.name.clone()) {
                    hash_map::Entry::Vacant(entry) => entry.insert(tensors.len()),
                    hash_map::Entry::Occupied(_) => return Err(part.error(GgufFault::DuplicateTensor(tensor.name))),
                };
                tensors.push(tensor);
            }
            first.get_or_insert((version, metadata));
            parts.push(part);
        }
        let (version, metadata) = first.expect("a model has at least one part");
        Ok(Self { parts, version, metadata, tensors, index })
    }

    /// The path of the file, or of the first part, or the name it was given: for messages.
    pub fn name(&self) -> &str {
        self.parts[0].name()
    }

    /// The files that the model consists of, in order: one, unless it is split.
    pub fn parts(&self) -> &[Arc<Part>] {
        &self.parts
    }

    /// Whether all of them are files: models may also be in memory.
    pub fn in_files(&self) -> bool {
        self.parts.iter().all(|part| part.file().is_some())
    }

    /// The part that holds the tensor's data.
    pub fn part(&self, tensor: &TensorInfo) -> &Arc<Part> {
        &self.parts[tensor.part]
    }

    /// The length of all files together, in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes().len() as u64).sum()
    }

    /// The version of the format, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The tensors in file order, part by part.
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
        self.tensor(name).ok_or_else(|| GgufError::new(self.name(), GgufFault::NoTensor(name.to_owned())))
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
                Err(self.part(tensor).error(fault))
            }
        }
    }

    /// The tensor's data: [`TensorInfo::bytes`] bytes. They are aligned in the file, not necessarily in memory.
    ///
    /// # Panics
    /// If `tensor` is of another file and lies outside this one.
    pub fn bytes(&self, tensor: &TensorInfo) -> &[u8] {
        let start = self.tensor_file_offset(tensor) as usize;
        &self.part(tensor).bytes()[start..start + tensor.bytes as usize]
    }

    /// Reads `out.len()` bytes of the tensor's data from the file, from byte `at` of the tensor on.
    ///
    /// # Errors
    /// When the file cannot be read, or no longer has them.
    ///
    /// # Panics
    /// When the tensor does not have as many.
    pub fn read(&self, tensor: &TensorInfo, at: usize, out: &mut [u8]) -> Result<(), GgufError> {
        assert!(at.checked_add(out.len()).is_some_and(|end| end as u64 <= tensor.bytes), "outside of {}", tensor.name);
        let (part, at) = (self.part(tensor), self.tensor_file_offset(tensor) + at as u64);
        part.read_at(at, out).map_err(|source| {
            part.error(GgufFault::Read { tensor: tensor.name.clone(), at, len: out.len() as u64, source })
        })
    }

    /// Where the tensor's data starts, in bytes from the start of [its part](Self::part)'s file.
    pub fn tensor_file_offset(&self, tensor: &TensorInfo) -> u64 {
        self.part(tensor).offset(tensor)
    }
}
