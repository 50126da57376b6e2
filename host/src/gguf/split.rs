//! Models in several files, as `llama-gguf-split` writes them: `NAME-00001-of-00003.gguf` and so on, each a GGUF file of its
//! own with some of the tensors. The first has the metadata, and may have no tensors; the others have little besides
//! `split.no` (from 0), `split.count` and `split.tensors.count` (of all parts together).
//!
//! llama.cpp wants to be given the first part. Here any part leads to the others, since each says which one it is.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
    path::Path,
};

use super::{GgufError, GgufFault, Metadata, part::Opened};

const NUMBER: &str = "split.no";
const COUNT: &str = "split.count";
const TENSORS: &str = "split.tensors.count";

/// Which part a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Split {
    /// From 1, as in the file's name.
    number: u32,
    count: u32,
}

impl Split {
    /// What the metadata say; none for a model in one file.
    pub(super) fn of(metadata: &Metadata) -> Result<Option<Self>, GgufError> {
        let count = metadata.u32(COUNT)?.unwrap_or(1);
        if count <= 1 {
            return Ok(None);
        }
        let index = metadata.require_u32(NUMBER)?;
        if index >= count {
            return Err(metadata.error(GgufFault::PartNumber { index, count }));
        }
        Ok(Some(Self { number: index + 1, count }))
    }

    /// How the file's name has to end.
    fn suffix(self) -> String {
        format!("-{:05}-of-{:05}.gguf", self.number, self.count)
    }

    /// As an error of this part: says that there are others, and that all are needed.
    pub(super) fn fault(self, fault: GgufFault) -> GgufFault {
        let Self { number, count } = self;
        GgufFault::Part { number, count, fault: Box::new(fault) }
    }
}

/// The fault of a part that is given without the others.
pub(super) fn alone(opened: &Opened) -> Result<(), GgufError> {
    match Split::of(&opened.metadata)? {
        None => Ok(()),
        Some(Split { number, count }) => Err(opened.part.error(GgufFault::PartAlone { number, count })),
    }
}

/// All parts in order, of which `given`, opened from `path`, is one.
pub(super) fn all_parts(path: &Path, given: Opened) -> Result<Vec<Opened>, GgufError> {
    let Some(split) = Split::of(&given.metadata)? else { return Ok(vec![given]) };
    // Bytes: a name need not be UTF-8.
    let prefix = path.file_name().and_then(|name| name.as_bytes().strip_suffix(split.suffix().as_bytes()));
    let Some(prefix) = prefix.map(OsStr::from_bytes) else {
        let (Split { number, count }, suffix) = (split, split.suffix());
        return Err(given.part.error(GgufFault::PartName { number, count, suffix }));
    };
    let mut given = Some(given);
    let mut parts = Vec::new();
    for part in (1..=split.count).map(|number| Split { number, ..split }) {
        let opened = match given.take_if(|_| part == split) {
            Some(given) => given,
            None => {
                let name = OsString::from_iter([prefix, OsStr::new(&part.suffix())]);
                open_part(&path.with_file_name(name), part)?
            }
        };
        parts.push(opened);
    }
    check_tensors(&parts)?;
    Ok(parts)
}

/// Opens the file that should be `part`.
fn open_part(path: &Path, part: Split) -> Result<Opened, GgufError> {
    let opened = Opened::map(path).map_err(|error| GgufError::new(&error.file, part.fault(*error.fault)))?;
    match Split::of(&opened.metadata)? {
        Some(stated) if stated == part => Ok(opened),
        stated => {
            let stated = stated.map(|Split { number, count }| (number, count));
            Err(opened.part.error(part.fault(GgufFault::OtherPart { stated })))
        }
    }
}

/// Checks that the parts have as many tensors together as they say.
fn check_tensors(parts: &[Opened]) -> Result<(), GgufError> {
    let first = &parts[0];
    let expected = first.metadata.require_u32(TENSORS)?;
    for other in &parts[1..] {
        match other.metadata.u32(TENSORS)? {
            Some(stated) if stated != expected => {
                let first = first.part.name().to_owned();
                return Err(other.part.error(GgufFault::OtherModel { stated, first, expected }));
            }
            _ => {}
        }
    }
    let found: usize = parts.iter().map(|part| part.tensors.len()).sum();
    if found as u64 != u64::from(expected) {
        return Err(first.part.error(GgufFault::SplitTensors { expected, found }));
    }
    Ok(())
}
