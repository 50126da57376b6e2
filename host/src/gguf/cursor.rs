//! A position in untrusted bytes: every read is checked against what is left.

use super::GgufFault;

/// Reads little-endian values from `bytes` in order.
#[derive(Clone)]
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    pos: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, pos: 0 }
    }

    /// Bytes read so far.
    pub(super) fn pos(&self) -> u64 {
        self.pos as u64
    }

    /// Bytes left.
    pub(super) fn left(&self) -> u64 {
        (self.bytes.len() - self.pos) as u64
    }

    /// The bytes from `start`, an earlier position, to here.
    pub(super) fn since(&self, start: u64) -> &'a [u8] {
        &self.bytes[start as usize..self.pos]
    }

    /// The next `count` bytes; `what` names them in the error.
    pub(super) fn take(&mut self, count: u64, what: &'static str) -> Result<&'a [u8], GgufFault> {
        if count > self.left() {
            return Err(GgufFault::Truncated { what, at: self.pos(), need: count, have: self.left() });
        }
        let start = self.pos;
        self.pos += count as usize;
        Ok(&self.bytes[start..self.pos])
    }

    pub(super) fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], GgufFault> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64, what)?);
        Ok(out)
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, GgufFault> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, GgufFault> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A count of items of at least `min_bytes` each: one that the rest of the file could not hold is refused here, before
    /// anything is allocated or looped over for it.
    pub(super) fn count(&mut self, min_bytes: u64, what: &'static str) -> Result<u64, GgufFault> {
        let at = self.pos();
        let count = self.u64(what)?;
        self.check_count(count, min_bytes, at, what)?;
        Ok(count)
    }

    pub(super) fn check_count(&self, count: u64, min_bytes: u64, at: u64, what: &'static str) -> Result<(), GgufFault> {
        if count > self.left() / min_bytes {
            return Err(GgufFault::Count { what, count, at, have: self.left() });
        }
        Ok(())
    }

    /// A string's bytes: its length as u64, then that many bytes.
    pub(super) fn string(&mut self, what: &'static str) -> Result<&'a [u8], GgufFault> {
        let len = self.u64(what)?;
        self.take(len, what)
    }

    /// A string that is a name: UTF-8 of at most `max` bytes.
    pub(super) fn name(&mut self, max: u64, what: &'static str) -> Result<&'a str, GgufFault> {
        let at = self.pos();
        let len = self.u64(what)?;
        if len > max {
            return Err(GgufFault::TooLong { what, at, len, max });
        }
        std::str::from_utf8(self.take(len, what)?).map_err(|_| GgufFault::Utf8 { what, at })
    }
}
