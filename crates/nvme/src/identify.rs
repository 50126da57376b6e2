//! What Identify answers: NVM Express Base Specification 2.0, section 5.17.2, and NVM Command Set Specification 1.0, section 4.1.5.
//! The data comes from the device and is not trusted.

use crate::{Error, Version};

/// Bytes of every Identify data structure.
pub const IDENTIFY_BYTES: usize = 4096;

/// A controller (CNS 01h).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerIdentity {
    /// Serial number (SN).
    pub serial: String,
    /// Model number (MN).
    pub model: String,
    /// Firmware revision (FR).
    pub firmware: String,
    /// The specification's version that it keeps to (VER).
    pub version: Version,
    /// The most bytes that one command transfers, as a power of two times the smallest memory page (MDTS). 0: no limit.
    pub mdts: u8,
    /// Abort commands that may be outstanding at once (ACL).
    pub abort_limit: u32,
    /// The highest namespace id (NN).
    pub namespaces: u32,
    /// Whether what was written may be lost with power until it is flushed (VWC).
    pub volatile_write_cache: bool,
}

impl ControllerIdentity {
    pub(crate) fn new(data: &[u8; IDENTIFY_BYTES]) -> Self {
        ControllerIdentity {
            serial: text(&data[4..24]),
            model: text(&data[24..64]),
            firmware: text(&data[64..72]),
            version: Version(dword(data, 80)),
            mdts: data[77],
            abort_limit: u32::from(data[258]) + 1,
            namespaces: dword(data, 516),
            volatile_write_cache: data[525] & 1 == 1,
        }
    }

    /// The most bytes that one command may transfer, where a memory page has `min_page` bytes at least (CAP.MPSMIN). None: no limit.
    pub fn max_transfer(&self, min_page: usize) -> Option<usize> {
        let limit = 1usize.checked_shl(u32::from(self.mdts)).and_then(|pages| pages.checked_mul(min_page));
        limit.filter(|_| self.mdts > 0)
    }
}

/// A namespace in a format that can be read (CNS 00h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its id, from 1.
    pub id: u32,
    /// Logical blocks (NSZE).
    pub blocks: u64,
    /// Bytes of a logical block (LBADS), a power of two from 512 to 65,536.
    pub block_bytes: usize,
}

impl Namespace {
    /// # Errors
    /// If its format is one that this driver cannot read, or none that there is.
    pub(crate) fn new(device: &str, id: u32, data: &[u8; IDENTIFY_BYTES]) -> Result<Self, Error> {
        let refuse = |reason: String| Error::Refused { device: device.to_owned(), reason };
        // What is told of an inactive one (Base Specification, section 5.17.2.1).
        if data.iter().all(|&byte| byte == 0) {
            return Err(refuse(format!("there is no namespace {id}")));
        }
        // Bits 6:5 are the upper ones where there are more than 16 formats (FLBAS).
        let format = usize::from(data[26] & 0xf | if data[25] >= 16 { data[26] >> 1 & 0x30 } else { 0 });
        let described = dword(data, 128 + 4 * format);
        let (metadata, shift) = (described & 0xffff, described >> 16 & 0xff);
        if !(9..=16).contains(&shift) {
            return Err(refuse(format!("namespace {id} has blocks of 2^{shift} bytes, not of 512 to 65536")));
        }
        if metadata > 0 || data[29] & 7 != 0 {
            let reason =
                format!("namespace {id} is formatted with metadata or protection information; format it without");
            return Err(refuse(reason));
        }
        let blocks = u64::from_le_bytes(data[..8].try_into().expect("8 bytes"));
        if blocks == 0 || blocks.checked_mul(1 << shift).is_none() {
            return Err(refuse(format!("namespace {id} has {blocks} blocks of {} bytes, which cannot be", 1 << shift)));
        }
        Ok(Namespace { id, blocks, block_bytes: 1 << shift })
    }

    /// Bytes of the namespace.
    pub fn bytes(&self) -> u64 {
        self.blocks * self.block_bytes as u64
    }
}

fn dword(data: &[u8; IDENTIFY_BYTES], at: usize) -> u32 {
    u32::from_le_bytes(data[at..at + 4].try_into().expect("4 bytes"))
}

/// ASCII, padded with blanks; what else is in it is replaced, since it is printed.
fn text(bytes: &[u8]) -> String {
    let printable = |&byte: &u8| if (0x20..0x7f).contains(&byte) { byte as char } else { '?' };
    let filled = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
    filled.iter().map(printable).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controllers() {
        let mut data = [0; IDENTIFY_BYTES];
        data[4..24].copy_from_slice(b"S64DNX0T\x1b[31m       ");
        data[24..29].copy_from_slice(b"Disk ");
        data[77] = 5;
        data[80..84].copy_from_slice(&0x0001_0400u32.to_le_bytes());
        data[516] = 2;
        let identity = ControllerIdentity::new(&data);
        assert_eq!((&*identity.serial, &*identity.model), ("S64DNX0T?[31m", "Disk"));
        assert_eq!((identity.abort_limit, identity.namespaces, identity.volatile_write_cache), (1, 2, false));
        let limit = |mdts, page| ControllerIdentity { mdts, ..identity.clone() }.max_transfer(page);
        assert_eq!((limit(0, 4096), limit(5, 4096), limit(1, 65536)), (None, Some(128 << 10), Some(128 << 10)));
        assert_eq!((limit(255, 4096), limit(63, 4096)), (None, None));
    }

    #[test]
    fn namespaces() {
        let mut data = [0; IDENTIFY_BYTES];
        data[..8].copy_from_slice(&1000u64.to_le_bytes());
        data[26] = 1;
        data[132..136].copy_from_slice(&(12u32 << 16).to_le_bytes());
        let parse = |data: &[u8; IDENTIFY_BYTES]| Namespace::new("d", 3, data).map_err(|e| e.to_string());
        let namespace = Namespace { id: 3, blocks: 1000, block_bytes: 4096 };
        assert_eq!((parse(&data), namespace.bytes()), (Ok(namespace), 4_096_000));
        let damaged = |at: usize, byte: u8| {
            let mut data = data;
            data[at] = byte;
            parse(&data).unwrap_err()
        };
        assert_eq!(damaged(134, 8), "d: namespace 3 has blocks of 2^8 bytes, not of 512 to 65536");
        assert!(damaged(132, 8).contains("metadata") && damaged(29, 1).contains("protection"));
        assert!(damaged(7, 0xff).contains("cannot be"));
        let none = Namespace::new("d", 3, &[0; IDENTIFY_BYTES]).unwrap_err().to_string();
        assert_eq!(none, "d: there is no namespace 3");
        assert!(damaged(26, 0).contains("2^0"), "a format that is not described");
        // Format 17 is the second of the upper sixteen.
        data[25] = 17;
        data[26] = 0x21;
        data[128 + 4 * 17 + 2] = 9;
        assert_eq!(parse(&data).unwrap().block_bytes, 512);
    }
}
