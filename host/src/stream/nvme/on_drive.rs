//! Where a model's files are on a drive, and whether they are that model's.

use std::{cell::RefCell, io, ops::Range, os::unix::fs::FileExt, path::PathBuf};

use nvme::{DmaBuf, Drive, Operation};
use readahead::{Input, Piece, SourceError};

use super::NvmeError;
use crate::pack::raw::{self, HEADER_BYTES, Layout, RawError};

/// Bytes that are read at once to look at a drive.
const PORTION: usize = 1 << 20;

/// What is compared of each file: so many bytes at its begin and end, and at so many places in between so many bytes. It takes some
/// tens of milliseconds, and no two models agree in all that.
const EDGE: u64 = 16 << 20;
const SPOTS: u64 = 16;
const SPOT: u64 = 64 << 10;

/// A file on a drive.
#[derive(Debug, Clone, PartialEq, Eq)]
struct File {
    path: PathBuf,
    /// First byte, from the namespace's start.
    start: u64,
    /// Bytes.
    len: u64,
}

/// Blocks that hold a piece of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocks {
    /// The first.
    pub lba: u64,
    /// How many.
    pub count: u64,
    /// Bytes of them all.
    pub bytes: usize,
    /// Where in them the piece begins.
    pub begin: usize,
}

/// A model's files on a drive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnDrive {
    device: String,
    namespace: u32,
    block: u64,
    lba: u64,
    packed: bool,
    files: Vec<File>,
}

impl OnDrive {
    /// Finds the model whose files are `files` at block `lba` of `drive`: a packed image, or one plain GGUF file.
    ///
    /// # Errors
    /// If something else is there, or another model, or it cannot be read.
    pub fn find(drive: &mut Drive, lba: u64, files: &[Input]) -> Result<OnDrive, NvmeError> {
        let (device, namespace) = (drive.controller().name().to_owned(), drive.namespace());
        let block = namespace.block_bytes as u64;
        if lba >= namespace.blocks {
            return Err(NvmeError::NoBlock { device, lba, blocks: namespace.blocks, block: namespace.block_bytes });
        }
        // The namespace's bytes are counted by 64 bits, so those of a block in it are, too.
        let (start, room) = (lba * block, namespace.bytes() - lba * block);
        let model = files.first().map(|file| file.path.clone()).unwrap_or_default();
        let mut lens = Vec::new();
        for Input { path, file } in files {
            let meta = file.metadata().map_err(|cause| NvmeError::File { path: path.clone(), cause })?;
            lens.push(meta.len());
        }
        let other = |what: String| NvmeError::OtherModel { device: device.clone(), lba, model: model.clone(), what };
        let staging = drive.controller().door().allocate(PORTION + namespace.block_bytes)?;
        let mut bytes = Bytes { drive, staging, block };
        let mut header = [0; HEADER_BYTES];
        if room >= HEADER_BYTES as u64 {
            bytes.read(start, &mut header)?;
        }
        let (starts, packed): (Vec<u64>, bool) = match Layout::decode(&header, room) {
            Ok(layout) => {
                let theirs: Vec<u64> = layout.files().iter().map(|file| file.len).collect();
                if theirs != lens {
                    return Err(other(format!("its files have {theirs:?} bytes, and not {lens:?}")));
                }
                (layout.files().iter().map(|file| start + file.start).collect(), true)
            }
            Err(RawError::PlainGguf) => match lens[..] {
                [need] if need > room => return Err(NvmeError::Short { device, lba, model, need, have: room }),
                [_] => (vec![start], false),
                _ => return Err(other(format!("it is one file, and not {}", lens.len()))),
            },
            Err(RawError::NoImage) => {
                let found = bytes.contents(start, room);
                return Err(NvmeError::NoModel { device, lba, found, model });
            }
            Err(cause) => return Err(NvmeError::Image { device, lba, cause }),
        };
        for (file, (&start, &len)) in files.iter().zip(starts.iter().zip(&lens)) {
            if let Some(at) = bytes.difference(file, start, len)? {
                let name = file.path.display();
                return Err(other(format!(
                    "what is there differs from {name} within {} KiB from byte {at} on",
                    PORTION >> 10
                )));
            }
        }
        let places = files.iter().zip(starts.into_iter().zip(lens));
        let files = places.map(|(file, (start, len))| File { path: file.path.clone(), start, len }).collect();
        Ok(OnDrive { device, namespace: namespace.id, block, lba, packed, files })
    }

    /// Bytes of a block.
    pub fn block(&self) -> usize {
        self.block as usize
    }

    /// The blocks that hold `piece`.
    ///
    /// # Errors
    /// If it is outside of its file.
    pub fn blocks(&self, piece: &Piece) -> Result<Blocks, SourceError> {
        let file = self.files.get(piece.file);
        let file = file.ok_or(SourceError::NoFile { file: piece.file, files: self.files.len() })?;
        let end = piece.offset.saturating_add(piece.len as u64);
        if end > file.len {
            return Err(SourceError::OutOfFile { offset: piece.offset, end, size: file.len });
        }
        let (first, last) = (file.start + piece.offset, file.start + end);
        let (lba, count) = (first / self.block, last.div_ceil(self.block) - first / self.block);
        Ok(Blocks { lba, count, bytes: (count * self.block) as usize, begin: (first % self.block) as usize })
    }

    /// What a file is called in errors.
    pub fn name(&self, file: usize) -> String {
        match self.files.get(file) {
            Some(file) => format!("{} on {}", file.path.display(), self.device),
            None => format!("file {file} on {}", self.device),
        }
    }

    /// For the user: what is read.
    pub fn describe(&self) -> String {
        let what = if self.packed { "a packed image" } else { "a plain GGUF file" };
        format!("{what} on namespace {} from block {} on, blocks of {}", self.namespace, self.lba, self.block)
    }
}

/// A drive as bytes.
struct Bytes<'a> {
    drive: &'a mut Drive,
    staging: DmaBuf,
    block: u64,
}

impl Bytes<'_> {
    /// Reads the bytes from `at` on, by whole blocks around them.
    fn read(&mut self, at: u64, out: &mut [u8]) -> Result<(), nvme::Error> {
        for (number, out) in out.chunks_mut(PORTION).enumerate() {
            let first = at + (number * PORTION) as u64;
            let (lba, end) = (first / self.block, (first + out.len() as u64).div_ceil(self.block));
            self.drive.run(Operation::Read, lba, end - lba, self.staging.bus(), 0)?;
            self.staging.copy_to((first % self.block) as usize, out);
        }
        Ok(())
    }

    /// What is on the drive from byte `start` on, for messages.
    fn contents(&mut self, start: u64, room: u64) -> String {
        let bytes = RefCell::new(self);
        let read = |at: u64, out: &mut [u8]| bytes.borrow_mut().read(start + at, out).map_err(io::Error::other);
        let found: Vec<_> = nvme::contents(&read, room, raw::KNOWN).into_iter().map(|content| content.name).collect();
        if found.is_empty() { "nothing that is known".into() } else { found.join(" and ") }
    }

    /// The first byte of a portion in which the drive, from byte `start` on, does not hold what `file` does, of what is compared.
    fn difference(&mut self, file: &Input, start: u64, len: u64) -> Result<Option<u64>, NvmeError> {
        let (mut theirs, mut ours) = (vec![0; PORTION], vec![0; PORTION]);
        for range in compared(len) {
            for at in range.clone().step_by(PORTION) {
                let len = (range.end - at).min(PORTION as u64) as usize;
                let (theirs, ours) = (&mut theirs[..len], &mut ours[..len]);
                self.read(start + at, theirs)?;
                let read = file.file.read_exact_at(ours, at);
                read.map_err(|cause| NvmeError::File { path: file.path.clone(), cause })?;
                if theirs != ours {
                    return Ok(Some(at));
                }
            }
        }
        Ok(None)
    }
}

/// What is compared of a file of `len` bytes.
fn compared(len: u64) -> Vec<Range<u64>> {
    if len <= 2 * EDGE + SPOTS * SPOT {
        return std::iter::once(0..len).collect();
    }
    let step = (len - 2 * EDGE) / (SPOTS + 1);
    let mut ranges: Vec<_> = (1..=SPOTS).map(|number| EDGE + number * step).map(|at| at..at + SPOT).collect();
    ranges.insert(0, 0..EDGE);
    ranges.push(len - EDGE..len);
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_compared_is_in_the_file() {
        for len in [0, 1, 2 * EDGE + SPOTS * SPOT, 2 * EDGE + SPOTS * SPOT + 1, 40 << 30] {
            let ranges = compared(len);
            assert!(
                ranges.iter().all(|range| range.end <= len && (len == 0 || !range.is_empty())),
                "{len}: {ranges:?}"
            );
            assert!(ranges.is_sorted_by_key(|range| range.start), "{len}: {ranges:?}");
            assert_eq!((ranges[0].start, ranges[ranges.len() - 1].end), (0, len));
        }
    }

    #[test]
    fn pieces_have_blocks() {
        let file = |start, len| File { path: "m".into(), start, len };
        let image = |block| OnDrive {
            device: "d".into(),
            namespace: 1,
            block,
            lba: 0,
            packed: true,
            files: vec![file(8192, 5000), file(16384, 100)],
        };
        let blocks = |block, file, offset, len| {
            let Blocks { lba, count, bytes, begin } = image(block).blocks(&Piece { file, offset, len }).ok()?;
            assert_eq!(bytes as u64, count * block);
            Some((lba, count, begin))
        };
        assert_eq!(blocks(512, 0, 0, 5000), Some((16, 10, 0)));
        assert_eq!(blocks(512, 0, 511, 2), Some((16, 2, 511)));
        assert_eq!(blocks(4096, 0, 4999, 1), Some((3, 1, 903)));
        assert_eq!(blocks(4096, 1, 0, 100), Some((4, 1, 0)));
        for (file, offset, len) in [(0, 5000, 1), (0, 0, 5001), (0, u64::MAX, 2), (2, 0, 1)] {
            assert_eq!(blocks(512, file, offset, len), None);
        }
        assert_eq!(image(512).name(1), "m on d");
    }
}
