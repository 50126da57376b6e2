//! Laying a model on a drive, and reading it back. The format is [`raw`]'s.

use anyhow::{Context, bail, ensure};

use super::storage::Storage;
use crate::{
    gguf::Gguf,
    pack::raw::{self, HEADER_BYTES, Layout, RAW_ALIGN, RawError},
};

/// Writes the files of `gguf` from byte `start` on. `progress` is told of the bytes that are written.
///
/// # Errors
/// If the drive has too little room, or something cannot be read or written. What is on the drive is no image then.
pub fn write(
    storage: &mut dyn Storage,
    start: u64,
    gguf: &Gguf,
    progress: &mut dyn FnMut(u64),
) -> anyhow::Result<Layout> {
    check_blocks(storage, start)?;
    let lens: Vec<_> = gguf.parts().iter().map(|part| part.bytes().len() as u64).collect();
    let layout = Layout::new(&lens)?;
    let room = storage.bytes() - start;
    if layout.bytes() > room {
        return Err(RawError::Size { need: layout.bytes(), have: room }.into());
    }
    // From here on, there is no image, until there is a new one.
    storage.write(start, &[0; HEADER_BYTES])?;
    storage.flush()?;
    let (mut checksums, mut bytes, mut done) = (Vec::new(), Vec::new(), 0);
    for chunk in layout.chunks() {
        let part = &gguf.parts()[chunk.file];
        bytes.clear();
        bytes.resize(chunk.len.next_multiple_of(RAW_ALIGN as usize), 0);
        let read = part.read_at(chunk.offset, &mut bytes[..chunk.len]);
        read.with_context(|| format!("{} cannot be read", part.name()))?;
        checksums.push(raw::checksum(&bytes[..chunk.len]));
        storage.write(start + chunk.start, &bytes)?;
        done += chunk.len as u64;
        progress(done);
    }
    let (header, table) = layout.encode(&checksums);
    storage.write(start + layout.table().start, &table)?;
    storage.flush()?;
    storage.write(start, &header)?;
    storage.flush()?;
    Ok(layout)
}

/// That whole blocks are read and written where a multiple of [`RAW_ALIGN`] is.
fn check_blocks(storage: &dyn Storage, start: u64) -> anyhow::Result<()> {
    let block = storage.block_bytes();
    ensure!(
        RAW_ALIGN.is_multiple_of(block) && start.is_multiple_of(block),
        "drives with blocks of {block} bytes are not supported; format it with blocks of 512 or 4096"
    );
    Ok(())
}

/// What was found to be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Bytes that were read.
    pub bytes: u64,
    /// What they are.
    pub what: &'static str,
}

/// Reads what is from byte `start` on. With a model, it is compared with that, without one with its checksums. `progress` is told of
/// the bytes that were read, and of all.
///
/// # Errors
/// If something cannot be read, is no model, or is not as it should be, and where.
pub fn verify(
    storage: &mut dyn Storage,
    start: u64,
    gguf: Option<&Gguf>,
    progress: &mut dyn FnMut(u64, u64),
) -> anyhow::Result<Verified> {
    check_blocks(storage, start)?;
    let room = storage.bytes() - start;
    ensure!(room >= HEADER_BYTES as u64, "there is no room for a model at byte {start}");
    let mut header = [0; HEADER_BYTES];
    storage.read(start, &mut header)?;
    let (layout, plain) = match (Layout::decode(&header, room), gguf) {
        (Ok(layout), _) => (layout, false),
        (Err(RawError::PlainGguf), Some(gguf)) => (plain(gguf, room)?, true),
        (Err(error), _) => return Err(error.into()),
    };
    let table = layout.table();
    let checksums = match plain {
        true => Vec::new(),
        false => {
            let mut bytes = vec![0; table.len.next_multiple_of(RAW_ALIGN) as usize];
            storage.read(start + table.start, &mut bytes)?;
            layout.checksums(&header, &bytes)?
        }
    };
    if let Some(gguf) = gguf {
        let lens = |layout: &Layout| layout.files().iter().map(|file| file.len).collect::<Vec<_>>();
        let theirs: Vec<_> = gguf.parts().iter().map(|part| part.bytes().len() as u64).collect();
        ensure!(
            lens(&layout) == theirs,
            "another model is there: its files have {:?} bytes, not {theirs:?}",
            lens(&layout)
        );
    }
    // Of a plain file, the first byte is the drive's, and there is nothing in front of it.
    let shift = if plain { layout.files()[0].start } else { 0 };
    let (mut bytes, mut expected, mut done) = (Vec::new(), Vec::new(), 0);
    for (index, chunk) in layout.chunks().enumerate() {
        // What a plain file ends in may be less than the blocks that it takes.
        let whole = (chunk.len as u64).next_multiple_of(RAW_ALIGN).min(room - (chunk.start - shift));
        bytes.resize(whole as usize, 0);
        storage.read(start + chunk.start - shift, &mut bytes)?;
        let bytes = &bytes[..chunk.len];
        let place =
            || format!("bytes {} to {} of file {}", chunk.offset, chunk.offset + chunk.len as u64, chunk.file + 1);
        if !plain && raw::checksum(bytes) != checksums[index] {
            bail!("{} are damaged: their checksum is wrong; write the model anew", place());
        }
        if let Some(gguf) = gguf {
            let part = &gguf.parts()[chunk.file];
            expected.resize(chunk.len, 0);
            part.read_at(chunk.offset, &mut expected).with_context(|| format!("{} cannot be read", part.name()))?;
            ensure!(bytes == expected, "{} differ from {}", place(), part.name());
        }
        done += chunk.len as u64;
        progress(done, layout.data_bytes());
    }
    Ok(Verified { bytes: done, what: if plain { "a plain GGUF file" } else { "a packed image" } })
}

/// The layout of a plain file.
fn plain(gguf: &Gguf, room: u64) -> anyhow::Result<Layout> {
    let [part] = gguf.parts() else { bail!("a plain GGUF file is there, but the model to compare with is split") };
    let len = part.bytes().len() as u64;
    if len > room {
        return Err(RawError::Size { need: len, have: room }.into());
    }
    Ok(Layout::new(&[len])?)
}
