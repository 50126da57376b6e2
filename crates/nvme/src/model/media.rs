//! What a namespace holds, and reading and writing it.

use super::{Model, walk::walk};
use crate::{Command, Status, io};
use std::sync::Mutex;

/// A namespace's blocks.
pub struct Media {
    /// Bytes of a block.
    pub block_bytes: usize,
    bytes: Mutex<Stored>,
}

/// Where a namespace's bytes are.
enum Stored {
    Owned(Vec<u8>),
    /// Somebody's, such as a mapped file's. They are read only.
    Shared(Box<dyn AsRef<[u8]> + Send>),
}

impl Stored {
    fn bytes(&self) -> &[u8] {
        match self {
            Stored::Owned(bytes) => bytes,
            Stored::Shared(bytes) => (**bytes).as_ref(),
        }
    }
}

impl Media {
    /// Blocks of `block_bytes` bytes, a power of two, that hold `bytes`, a whole number of blocks.
    pub fn new(block_bytes: usize, bytes: Vec<u8>) -> Media {
        assert!(bytes.len().is_multiple_of(block_bytes));
        Media { block_bytes, bytes: Mutex::new(Stored::Owned(bytes)) }
    }

    /// The same of bytes that stay where they are, such as a mapped file's, and cannot be written: the whole blocks of them.
    pub fn shared(block_bytes: usize, bytes: impl AsRef<[u8]> + Send + 'static) -> Media {
        Media { block_bytes, bytes: Mutex::new(Stored::Shared(Box::new(bytes))) }
    }

    /// Number of blocks.
    pub fn blocks(&self) -> u64 {
        (self.bytes.lock().expect("no holder panics").bytes().len() / self.block_bytes) as u64
    }

    /// A copy of all bytes.
    pub fn bytes(&self) -> Vec<u8> {
        self.bytes.lock().expect("no holder panics").bytes().to_vec()
    }
}

const INVALID_OPCODE: Status = Status::new(0, 0x01, false);
const INVALID_FIELD: Status = Status::new(0, 0x02, false);
const INVALID_NAMESPACE: Status = Status::new(0, 0x0b, false);
const OUT_OF_RANGE: Status = Status::new(0, 0x80, false);
const TRANSFER_ERROR: Status = Status::new(0, 0x04, true);
const WRITE_PROTECTED: Status = Status::new(0, 0x20, false);

impl Model {
    /// Executes an I/O command.
    pub(super) fn io(&mut self, command: &Command) -> Status {
        let dwords = &command.0;
        let Some(media) = (dwords[1] as usize).checked_sub(1).and_then(|index| self.media.get(index)).cloned() else {
            return INVALID_NAMESPACE;
        };
        let is_read = match command.opcode() {
            io::FLUSH => return Status::SUCCESS,
            io::READ => true,
            io::WRITE => false,
            _ => return INVALID_OPCODE,
        };
        let lba = u64::from(dwords[11]) << 32 | u64::from(dwords[10]);
        let blocks = u64::from(dwords[12] & 0xffff) + 1;
        let (block, end) = (media.block_bytes as u64, lba.checked_add(blocks));
        if end.is_none_or(|end| end > media.blocks()) {
            return OUT_OF_RANGE;
        }
        let len = (blocks * block) as usize;
        if self.traits.mdts > 0 && len > self.cap().min_page() << self.traits.mdts {
            return INVALID_FIELD;
        }
        let prp = |at: usize| u64::from(dwords[at + 1]) << 32 | u64::from(dwords[at]);
        let pieces = match walk(&*self.bus, [prp(6), prp(8)], len, self.page) {
            Ok(pieces) => pieces,
            Err(status) => return status,
        };
        let mut at = (lba * block) as usize;
        let mut stored = media.bytes.lock().expect("no holder panics");
        if is_read {
            let bytes = stored.bytes();
            let mut next = |(address, len)| {
                at += len;
                (address, &bytes[at - len..at])
            };
            let pieces: Vec<_> = pieces.into_iter().map(&mut next).collect();
            return if self.bus.write(&pieces) { Status::SUCCESS } else { TRANSFER_ERROR };
        }
        let Stored::Owned(bytes) = &mut *stored else { return WRITE_PROTECTED };
        for (address, len) in pieces {
            let Some(memory) = self.bus.resolve(address, len) else { return TRANSFER_ERROR };
            // SAFETY: the bus gave `len` bytes, which are the device's while a command has them; the media is a Rust allocation.
            unsafe { bytes[at..at + len].as_mut_ptr().copy_from_nonoverlapping(memory.as_ptr(), len) };
            at += len;
        }
        Status::SUCCESS
    }
}
