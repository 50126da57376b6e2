//! What is on a drive, by the signatures of what is usually on drives. They are the formats' own, at the places that their
//! specifications or the kernel's headers name.

use std::io;

/// Something that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// What it is, for messages.
    pub name: String,
    /// It belongs to something larger, which would miss it: not to be touched.
    pub keep: bool,
}

/// Reads bytes from an offset on.
pub type Read<'a> = &'a dyn Fn(u64, &mut [u8]) -> io::Result<()>;

/// A signature: where it is, what it is, what it says.
type Signature = (u64, &'static [u8], &'static str);

const SIGNATURES: &[Signature] = &[
    (1080, &[0x53, 0xef], "an ext2, ext3 or ext4 file system"),
    (0, b"XFSB", "an XFS file system"),
    (0x1_0040, b"_BHRfS_M", "a Btrfs file system"),
    (1024, &[0x10, 0x20, 0xf5, 0xf2], "an F2FS file system"),
    (3, b"NTFS    ", "an NTFS file system"),
    (3, b"EXFAT   ", "an exFAT file system"),
    (82, b"FAT32   ", "a FAT file system"),
    (54, b"FAT16   ", "a FAT file system"),
    (54, b"FAT12   ", "a FAT file system"),
    (4086, b"SWAPSPACE2", "swap space"),
    (0, b"LUKS\xba\xbe", "an encrypted volume (LUKS)"),
];

/// What is found, and is part of a group of drives.
const GROUPED: &[Signature] = &[
    (24, b"LVM2 001", "a physical volume of LVM"),
    (512 + 24, b"LVM2 001", "a physical volume of LVM"),
    (1024 + 24, b"LVM2 001", "a physical volume of LVM"),
    (1536 + 24, b"LVM2 001", "a physical volume of LVM"),
    (0, &RAID, "a member of a RAID array (md)"),
    (4096, &RAID, "a member of a RAID array (md)"),
    (4096 + 24, &BCACHE, "a member of a cache (bcache)"),
];

/// Little-endian magic of md's superblocks.
const RAID: [u8; 4] = 0xa92b_4efc_u32.to_le_bytes();

/// Magic of bcache's superblock (drivers/md/bcache/bcache_ondisk.h in Linux).
const BCACHE: [u8; 16] =
    [0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d, 0x81];

/// Types of partitions that are part of something larger, as GPT stores them: those that firmware boots from (UEFI Specification 2.10, table 5-7; GRUB's
/// manual, section "BIOS installation"), and ZFS'.
const TYPES: &[([u8; 16], &str)] = &[
    (
        [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b],
        "an EFI system partition, which machines boot from",
    ),
    (*b"Hah!IdontNeedEFI", "a BIOS boot partition, which machines boot from"),
    (
        [0xc3, 0x8c, 0x89, 0x6a, 0xd2, 0x1d, 0xb2, 0x11, 0x99, 0xa6, 0x08, 0x00, 0x20, 0x73, 0x66, 0x31],
        "a member of a ZFS pool",
    ),
];

/// A partition, in bytes.
struct Partition {
    kind: [u8; 16],
    start: u64,
    len: u64,
}

/// What is on a drive or partition of `size` bytes. `known` are further signatures, at its first byte. What cannot be read has
/// nothing on it.
pub fn contents(read: Read, size: u64, known: &[(&[u8], &str)]) -> Vec<Content> {
    // Tables of partitions, which are not trusted, say where to look.
    let read: Read = &|at, out| match at.checked_add(out.len() as u64) {
        Some(end) if end <= size => read(at, out),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    };
    let mut found = Vec::new();
    known.iter().filter(|(magic, _)| has(read, 0, magic)).for_each(|&(_, name)| add(&mut found, name, false));
    let signatures = SIGNATURES.iter().filter(|&&(at, magic, _)| has(read, at, magic));
    signatures.for_each(|&(_, _, name)| add(&mut found, name, false));
    grouped(read, size).into_iter().for_each(|name| add(&mut found, name, true));
    let partitions = match [512, 4096].into_iter().find(|&block| has(read, block, b"EFI PART")) {
        Some(block) => {
            add(&mut found, "a partition table (GPT)", false);
            gpt(read, block)
        }
        // File systems have the same mark in their boot sectors.
        None if found.is_empty() && has(read, 510, &[0x55, 0xaa]) => {
            add(&mut found, "a partition table (MBR)", false);
            mbr(read)
        }
        None => Vec::new(),
    };
    // While the kernel has not the drive, there are no block devices of the partitions to look at.
    for Partition { kind, start, len } in partitions {
        TYPES.iter().filter(|(ty, _)| *ty == kind).for_each(|&(_, name)| add(&mut found, name, true));
        if start < size && len <= size - start {
            grouped(&|at, out| read(start + at, out), len).into_iter().for_each(|name| add(&mut found, name, true));
        }
    }
    found
}

/// Notes what was found, once.
fn add(found: &mut Vec<Content>, name: &str, keep: bool) {
    let content = Content { name: name.to_owned(), keep };
    if !found.contains(&content) {
        found.push(content);
    }
}

/// Whether `magic` is at byte `at`.
fn has(read: Read, at: u64, magic: &[u8]) -> bool {
    let mut bytes = vec![0; magic.len()];
    read(at, &mut bytes).is_ok() && bytes == magic
}

/// What on a drive or partition of `size` bytes is part of a group of drives.
fn grouped(read: Read, size: u64) -> Vec<&'static str> {
    let signatures = GROUPED.iter().filter(|&&(at, magic, _)| has(read, at, magic));
    let mut found: Vec<_> = signatures.map(|&(_, _, name)| name).collect();
    // md's older superblocks are at the end: version 1.0 and 0.90 (include/uapi/linux/raid/md_p.h in Linux).
    let sectors = size / 512;
    let ends = [sectors.saturating_sub(16) & !7, (sectors & !127).saturating_sub(128)];
    if ends.iter().any(|&sector| sector > 0 && has(read, sector * 512, &RAID)) {
        found.push("a member of a RAID array (md)");
    }
    // ZFS: any of the uberblocks of the first label.
    let mut uberblocks = vec![0; 128 << 10];
    if size >= 256 << 10 && read(128 << 10, &mut uberblocks).is_ok() {
        let magic = 0x00ba_b10c_u64;
        let is_uberblock =
            |block: &[u8]| [magic.to_le_bytes(), magic.to_be_bytes()].contains(&block[..8].try_into().unwrap());
        if uberblocks.chunks_exact(1024).any(is_uberblock) {
            found.push("a member of a ZFS pool");
        }
    }
    found
}

/// A GPT's partitions (UEFI Specification 2.10, section 5.3).
fn gpt(read: Read, block: u64) -> Vec<Partition> {
    let mut header = [0; 92];
    if read(block, &mut header).is_err() {
        return Vec::new();
    }
    let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("4 bytes"));
    let wide = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
    let first = wide(&header, 72);
    // What a table says of itself is not trusted: 128 entries of 128 bytes are usual.
    let (count, bytes) = (word(80).min(1024), u64::from(word(84)).clamp(128, 4096));
    let entry = |index: u32| {
        let mut entry = [0; 48];
        let at = first.checked_mul(block)?.checked_add(u64::from(index) * bytes)?;
        read(at, &mut entry).ok()?;
        let (first, last) = (wide(&entry, 32), wide(&entry, 40));
        let len = last.checked_sub(first).and_then(|blocks| blocks.checked_add(1)?.checked_mul(block));
        let (start, len) = (first.saturating_mul(block), len.unwrap_or(0));
        Some(Partition { kind: entry[..16].try_into().expect("16 bytes"), start, len })
    };
    (0..count).map_while(entry).filter(|partition| partition.kind != [0; 16]).collect()
}

/// The primary partitions of an MBR (UEFI Specification 2.10, section 5.2.1), as drives with blocks of 512 and of 4096 bytes have them.
fn mbr(read: Read) -> Vec<Partition> {
    let mut table = [0; 64];
    if read(446, &mut table).is_err() {
        return Vec::new();
    }
    let word = |bytes: &[u8]| u64::from(u32::from_le_bytes(bytes.try_into().expect("4 bytes")));
    let entries = table.as_chunks::<16>().0.iter().filter(|entry| entry[4] != 0);
    let sized = |entry: &[u8; 16]| {
        let (first, count) = (word(&entry[8..12]), word(&entry[12..]));
        [512, 4096].map(|block| Partition { kind: [0; 16], start: first * block, len: count * block })
    };
    entries.flat_map(sized).collect()
}
#[cfg(test)]
mod tests {
    use super::*;

    fn look(size: usize, bytes: &[(usize, &[u8])]) -> Vec<String> {
        let mut drive = vec![0u8; size];
        bytes.iter().for_each(|&(at, bytes)| drive[at..at + bytes.len()].copy_from_slice(bytes));
        let read = |at: u64, out: &mut [u8]| {
            let range = at as usize..at as usize + out.len();
            out.copy_from_slice(drive.get(range).ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        };
        let show = |content: Content| format!("{}{}", content.name, if content.keep { " (keep)" } else { "" });
        contents(&read, size as u64, &[(b"GGUF", "a model")]).into_iter().map(show).collect()
    }

    #[test]
    fn signatures_are_found() {
        const MIB: usize = 1 << 20;
        assert!(look(MIB, &[]).is_empty() && look(0, &[]).is_empty() && look(513, &[]).is_empty());
        assert_eq!(look(MIB, &[(0, b"GGUF")]), ["a model"]);
        assert_eq!(look(MIB, &[(1080, &[0x53, 0xef])]), ["an ext2, ext3 or ext4 file system"]);
        assert_eq!(look(MIB, &[(510, &[0x55, 0xaa])]), ["a partition table (MBR)"]);
        assert_eq!(look(MIB, &[(510, &[0x55, 0xaa]), (82, b"FAT32   ")]), ["a FAT file system"]);
        assert_eq!(look(MIB, &[(512, b"LABELONE"), (536, b"LVM2 001")]), ["a physical volume of LVM (keep)"]);
        for at in [0, 4096, MIB - 8192, MIB - 65536] {
            assert_eq!(look(MIB, &[(at, &RAID)]), ["a member of a RAID array (md) (keep)"], "at {at}");
        }
        let uberblock = 0x00ba_b10c_u64.to_be_bytes();
        assert_eq!(look(MIB, &[((128 << 10) + 5 * 1024, &uberblock)]), ["a member of a ZFS pool (keep)"]);
        for block in [512, 4096] {
            let (first, entries) = (2u64.to_le_bytes(), [[4, 0, 0, 0], [128, 0, 0, 0]].concat());
            let table = [(block, &b"EFI PART"[..]), (block + 72, &first), (block + 80, &entries)];
            let with = |kind: &[u8; 16]| look(MIB, &[&table[..], &[(2 * block + 128, kind)]].concat());
            assert_eq!(with(&[1; 16]), ["a partition table (GPT)"]);
            for (kind, name) in TYPES {
                assert_eq!(with(kind)[1..], [format!("{name} (keep)")]);
            }
        }
    }

    /// What groups have on partitions of a drive that the kernel has no block devices of.
    #[test]
    fn partitions_are_looked_at() {
        const MIB: usize = 1 << 20;
        for block in [512, 4096] {
            let (first, entries) = (2u64.to_le_bytes(), [[4, 0, 0, 0], [128, 0, 0, 0]].concat());
            let place = [64u64, 64 + 255].map(u64::to_le_bytes).concat();
            let table = [
                (block, &b"EFI PART"[..]),
                (block + 72, &first),
                (block + 80, &entries),
                (2 * block + 128, &[1; 16]),
                (2 * block + 128 + 32, &place),
            ];
            let with = |at: usize, bytes: &[u8]| look(2 * MIB, &[&table[..], &[(64 * block + at, bytes)]].concat());
            assert_eq!(with(536, b"LVM2 001")[1..], ["a physical volume of LVM (keep)"]);
            assert_eq!(with(4096 + 24, &BCACHE)[1..], ["a member of a cache (bcache) (keep)"]);
            assert_eq!(with(256 * block - 8192, &RAID)[1..], ["a member of a RAID array (md) (keep)"], "at its end");
            assert!(with(256 * block + 536, b"LVM2 001")[1..].is_empty(), "behind it");

            let mut entry = [0; 16];
            (entry[4], entry[8], entry[13]) = (0x8e, 64, 1);
            let with = |at: usize, bytes: &[u8]| look(2 * MIB, &[(462, &entry), (510, &[0x55, 0xaa]), (at, bytes)]);
            assert_eq!(with(64 * block + 4096, &RAID)[1..], ["a member of a RAID array (md) (keep)"], "of an MBR");
        }
    }

    /// Tables that lie about themselves.
    #[test]
    fn damaged_tables_are_survived() {
        let lies = [[0xff; 8].as_slice(), &[0xff; 8]].concat();
        assert_eq!(look(4096, &[(512, b"EFI PART"), (584, &lies)]), ["a partition table (GPT)"]);
        for place in [[u64::MAX; 2], [0, u64::MAX], [5, 4], [1 << 54, 1 << 55]] {
            let (place, first) = (place.map(u64::to_le_bytes).concat(), 2u64.to_le_bytes());
            let table = [(512, &b"EFI PART"[..]), (584, &first), (592, &[4]), (1024, &[1; 16]), (1024 + 32, &place)];
            assert_eq!(look(4096, &table), ["a partition table (GPT)"]);
        }
        assert_eq!(look(4096, &[(446, &[0xff; 64]), (510, &[0x55, 0xaa])]), ["a partition table (MBR)"]);
    }
}
