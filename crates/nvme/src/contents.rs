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
];

/// Little-endian magic of md's superblocks.
const RAID: [u8; 4] = 0xa92b_4efc_u32.to_le_bytes();

/// The type of partitions that firmware boots from (UEFI Specification 2.10, table 5-7), and of ZFS', as GPT stores them.
const EFI_SYSTEM: [u8; 16] =
    [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b];
const ZFS: [u8; 16] = [0xc3, 0x8c, 0x89, 0x6a, 0xd2, 0x1d, 0xb2, 0x11, 0x99, 0xa6, 0x08, 0x00, 0x20, 0x73, 0x66, 0x31];

/// What is on a drive or partition of `size` bytes. `known` are further signatures, at its first byte. What cannot be read has
/// nothing on it.
pub fn contents(read: Read, size: u64, known: &[(&[u8], &str)]) -> Vec<Content> {
    let mut found = Vec::new();
    let mut add = |name: &str, keep: bool| {
        let content = Content { name: name.to_owned(), keep };
        if !found.contains(&content) {
            found.push(content);
        }
    };
    let has = |at: u64, magic: &[u8]| {
        let mut bytes = vec![0; magic.len()];
        at.checked_add(magic.len() as u64).is_some_and(|end| end <= size)
            && read(at, &mut bytes).is_ok()
            && bytes == magic
    };
    for &(magic, name) in known {
        if has(0, magic) {
            add(name, false);
        }
    }
    for (table, keep) in [(SIGNATURES, false), (GROUPED, true)] {
        table.iter().filter(|&&(at, magic, _)| has(at, magic)).for_each(|&(_, _, name)| add(name, keep));
    }
    // md's older superblocks are at the end: version 1.0 and 0.90 (include/uapi/linux/raid/md_p.h in Linux).
    let sectors = size / 512;
    let ends = [sectors.saturating_sub(16) & !7, (sectors & !127).saturating_sub(128)];
    if ends.iter().any(|&sector| sector > 0 && has(sector * 512, &RAID)) {
        add("a member of a RAID array (md)", true);
    }
    // ZFS: any of the uberblocks of the first label.
    let mut uberblocks = vec![0; 128 << 10];
    if size >= 256 << 10 && read(128 << 10, &mut uberblocks).is_ok() {
        let magic = 0x00ba_b10c_u64;
        let is_uberblock =
            |block: &[u8]| [magic.to_le_bytes(), magic.to_be_bytes()].contains(&block[..8].try_into().unwrap());
        if uberblocks.chunks_exact(1024).any(is_uberblock) {
            add("a member of a ZFS pool", true);
        }
    }
    let table = [512, 4096].into_iter().find(|&block| has(block, b"EFI PART"));
    match table {
        Some(block) => {
            add("a partition table (GPT)", false);
            for kind in partition_types(read, block) {
                match kind {
                    EFI_SYSTEM => add("an EFI system partition, which machines boot from", true),
                    ZFS => add("a member of a ZFS pool", true),
                    _ => {}
                }
            }
        }
        // File systems have the same mark in their boot sectors.
        None if found.is_empty() && has(510, &[0x55, 0xaa]) => {
            found.push(Content { name: "a partition table (MBR)".into(), keep: false });
        }
        None => {}
    }
    found
}

/// The types of a GPT's partitions (UEFI Specification 2.10, section 5.3).
fn partition_types(read: Read, block: u64) -> Vec<[u8; 16]> {
    let mut header = [0; 92];
    if read(block, &mut header).is_err() {
        return Vec::new();
    }
    let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("4 bytes"));
    let first = u64::from_le_bytes(header[72..80].try_into().expect("8 bytes"));
    // What a table says of itself is not trusted: 128 entries of 128 bytes are usual.
    let (count, bytes) = (word(80).min(1024), u64::from(word(84)).clamp(128, 4096));
    let entry = |index: u32| {
        let mut kind = [0; 16];
        let at = first.checked_mul(block)?.checked_add(u64::from(index) * bytes)?;
        read(at, &mut kind).ok().map(|()| kind)
    };
    (0..count).map_while(entry).filter(|kind| *kind != [0; 16]).collect()
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
            assert_eq!(with(&EFI_SYSTEM)[1], "an EFI system partition, which machines boot from (keep)");
            assert_eq!(with(&ZFS)[1], "a member of a ZFS pool (keep)");
        }
    }

    /// Tables that lie about themselves.
    #[test]
    fn damaged_tables_are_survived() {
        let lies = [[0xff; 8].as_slice(), &[0xff; 8]].concat();
        assert_eq!(look(4096, &[(512, b"EFI PART"), (584, &lies)]), ["a partition table (GPT)"]);
    }
}
