//! A model on a raw drive: its files as they are, behind a header that finds them again and checksums that tell whether they are whole.
//!
//! | bytes | what |
//! |---|---|
//! | 0 | magic, `NTIMAGE` and a zero |
//! | 8 | version, 32 bits: 1 |
//! | 12 | number of files, 32 bits |
//! | 16 | bytes of a chunk, 64 bits |
//! | 24 | checksum of the table of checksums |
//! | 32 | of each file: its first byte, from the image's start, and its length, 64 bits each |
//! | 4088 | checksum of the 4088 bytes in front of it |
//! | 4096 | the table: of each chunk of each file, its checksum |
//! | ... | the files, each at a multiple of 4096 |
//!
//! All numbers are little-endian, checksums XXH3 of 64 bits. The header is written last, so that what was not finished is no image.
//! A GGUF file that was laid down as it is (with dd, say) is as good, but for the checksums. What is read is not trusted.

use xxhash_rust::xxh3::xxh3_64;

/// Where things begin: a multiple of this. It is also what drives with blocks of 512 and 4096 bytes can write.
pub const RAW_ALIGN: u64 = 4096;

/// Bytes of the header.
pub const HEADER_BYTES: usize = 4096;

const MAGIC: &[u8; 8] = b"NTIMAGE\0";
const VERSION: u32 = 1;
const FILES: usize = 32;
const CHECKSUM: usize = HEADER_BYTES - 8;
/// Files that the header has room for.
const MAX_FILES: usize = (CHECKSUM - FILES) / 16;
/// Bytes that a checksum is of, in what is written.
const CHUNK: u64 = 16 << 20;
/// The least that is believed: the table of a whole drive fits into memory.
const MIN_CHUNK: u64 = 1 << 20;

/// The magics of what this module knows, with names for messages.
pub const KNOWN: &[(&[u8], &str)] = &[(MAGIC, "a packed model image"), (b"GGUF", "a GGUF model")];

/// Why there is no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RawError {
    /// Something else is there.
    #[error("there is no model image (`ntransformer nvme write` makes one)")]
    NoImage,
    /// A plain GGUF file is there.
    #[error("there is a plain GGUF file, which has no checksums; name the model to compare it with")]
    PlainGguf,
    /// A later version made it.
    #[error("the image is of version {0}, and this program knows version {VERSION}; write it anew")]
    Version(u32),
    /// It says things that cannot be.
    #[error("the image's header is damaged ({0}); write it anew")]
    Damaged(&'static str),
    /// It is longer than where it should go, or says so.
    #[error("the image needs {need} bytes, and there are {have}")]
    Size {
        /// Bytes of the image.
        need: u64,
        /// Bytes that there are.
        have: u64,
    },
    /// A header has no room for so many files.
    #[error("a model of {0} files; an image has {MAX_FILES} at most, and no empty ones")]
    Files(usize),
}

/// Where a file is in an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First byte, from the image's start.
    pub start: u64,
    /// Bytes.
    pub len: u64,
}

/// Where everything is in an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    files: Vec<Extent>,
    chunk: u64,
}

/// What is checked at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// Which file.
    pub file: usize,
    /// First byte in the file.
    pub offset: u64,
    /// First byte in the image.
    pub start: u64,
    /// Bytes.
    pub len: usize,
}

impl Layout {
    /// The layout of files of these lengths.
    ///
    /// # Errors
    /// If there are too many, none, or empty ones.
    pub fn new(lens: &[u64]) -> Result<Layout, RawError> {
        if !(1..=MAX_FILES).contains(&lens.len()) || lens.contains(&0) {
            return Err(RawError::Files(lens.len()));
        }
        let chunks = lens.iter().map(|len| len.div_ceil(CHUNK)).sum::<u64>();
        let mut start = (RAW_ALIGN + 8 * chunks).next_multiple_of(RAW_ALIGN);
        let files = lens.iter().map(|&len| {
            let extent = Extent { start, len };
            start = (start + len).next_multiple_of(RAW_ALIGN);
            extent
        });
        Ok(Layout { files: files.collect(), chunk: CHUNK })
    }

    /// The files, in order.
    pub fn files(&self) -> &[Extent] {
        &self.files
    }

    /// Bytes of the whole image, a multiple of [`RAW_ALIGN`].
    pub fn bytes(&self) -> u64 {
        self.files.last().map_or(0, |file| (file.start + file.len).next_multiple_of(RAW_ALIGN))
    }

    /// Bytes of the files.
    pub fn data_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.len).sum()
    }

    /// All chunks, in the order of their checksums.
    pub fn chunks(&self) -> impl Iterator<Item = Chunk> {
        let chunk = self.chunk;
        self.files.iter().enumerate().flat_map(move |(file, extent)| {
            (0..extent.len.div_ceil(chunk)).map(move |index| {
                let offset = index * chunk;
                let len = chunk.min(extent.len - offset) as usize;
                Chunk { file, offset, start: extent.start + offset, len }
            })
        })
    }

    /// Where the table is, and its bytes.
    pub fn table(&self) -> Extent {
        let chunks: u64 = self.files.iter().map(|file| file.len.div_ceil(self.chunk)).sum();
        Extent { start: RAW_ALIGN, len: 8 * chunks }
    }

    /// The header of an image with these checksums, and the table as it is written, filled up to a multiple of [`RAW_ALIGN`].
    pub fn encode(&self, checksums: &[u64]) -> (Vec<u8>, Vec<u8>) {
        assert_eq!(8 * checksums.len() as u64, self.table().len);
        let mut table: Vec<u8> = checksums.iter().flat_map(|checksum| checksum.to_le_bytes()).collect();
        let mut header = vec![0; HEADER_BYTES];
        header[..8].copy_from_slice(MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[12..16].copy_from_slice(&(self.files.len() as u32).to_le_bytes());
        header[16..24].copy_from_slice(&self.chunk.to_le_bytes());
        header[24..32].copy_from_slice(&xxh3_64(&table).to_le_bytes());
        for (file, bytes) in self.files.iter().zip(header[FILES..].as_chunks_mut::<16>().0) {
            *bytes = (u128::from(file.start) | u128::from(file.len) << 64).to_le_bytes();
        }
        let checksum = xxh3_64(&header[..CHECKSUM]);
        header[CHECKSUM..].copy_from_slice(&checksum.to_le_bytes());
        table.resize(table.len().next_multiple_of(RAW_ALIGN as usize), 0);
        (header, table)
    }

    /// Reads a header. `room` is how many bytes there are from the image's start on.
    ///
    /// # Errors
    /// If it is none, or says what cannot be.
    pub fn decode(header: &[u8; HEADER_BYTES], room: u64) -> Result<Layout, RawError> {
        let word = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("8 bytes"));
        if header.starts_with(b"GGUF") {
            return Err(RawError::PlainGguf);
        }
        if !header.starts_with(MAGIC) {
            return Err(RawError::NoImage);
        }
        let (version, count) = (word(8) as u32, (word(8) >> 32) as usize);
        if version != VERSION {
            return Err(RawError::Version(version));
        }
        if xxh3_64(&header[..CHECKSUM]) != word(CHECKSUM) {
            return Err(RawError::Damaged("its checksum is wrong"));
        }
        let chunk = word(16);
        if !(1..=MAX_FILES).contains(&count)
            || !(MIN_CHUNK..=1 << 30).contains(&chunk)
            || !chunk.is_multiple_of(RAW_ALIGN)
        {
            return Err(RawError::Damaged("numbers of files or chunks"));
        }
        let files: Vec<_> =
            (0..count).map(|i| Extent { start: word(FILES + 16 * i), len: word(FILES + 16 * i + 8) }).collect();
        let end = |file: &Extent| file.start.checked_add(file.len)?.checked_next_multiple_of(RAW_ALIGN);
        let Some(need) = files.iter().map(end).collect::<Option<Vec<_>>>().and_then(|ends| ends.into_iter().max())
        else {
            return Err(RawError::Damaged("lengths of files"));
        };
        if need > room {
            return Err(RawError::Size { need, have: room });
        }
        let layout = Layout { files, chunk };
        let mut free = layout.table().start + layout.table().len;
        for file in &layout.files {
            if file.len == 0 || file.start < free || !file.start.is_multiple_of(RAW_ALIGN) {
                return Err(RawError::Damaged("places of files"));
            }
            free = file.start + file.len;
        }
        Ok(layout)
    }

    /// The checksums in a table that was read, with the header's word for them.
    ///
    /// # Errors
    /// If it is not the table that was written.
    pub fn checksums(&self, header: &[u8; HEADER_BYTES], table: &[u8]) -> Result<Vec<u64>, RawError> {
        let table = &table[..self.table().len as usize];
        if xxh3_64(table).to_le_bytes() != header[24..32] {
            return Err(RawError::Damaged("the table of checksums"));
        }
        Ok(table.as_chunks::<8>().0.iter().map(|&bytes| u64::from_le_bytes(bytes)).collect())
    }
}

/// The checksum of a chunk.
pub fn checksum(bytes: &[u8]) -> u64 {
    xxh3_64(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(layout: &Layout) -> [u8; HEADER_BYTES] {
        let checksums: Vec<_> = (0..layout.table().len / 8).collect();
        layout.encode(&checksums).0.try_into().unwrap()
    }

    /// The header with other bytes at `at`, and a checksum that says it was meant.
    fn forged(layout: &Layout, at: usize, bytes: &[u8]) -> Result<Layout, RawError> {
        let mut header = header(layout);
        header[at..at + bytes.len()].copy_from_slice(bytes);
        let checksum = xxh3_64(&header[..CHECKSUM]);
        header[CHECKSUM..].copy_from_slice(&checksum.to_le_bytes());
        Layout::decode(&header, layout.bytes())
    }

    #[test]
    fn layouts_survive_their_header() {
        for lens in [&[1][..], &[CHUNK], &[3 * CHUNK + 5, 4096, CHUNK + 1], &[7; MAX_FILES]] {
            let layout = Layout::new(lens).unwrap();
            assert_eq!(Layout::decode(&header(&layout), layout.bytes()).as_ref(), Ok(&layout));
            let chunks: Vec<_> = layout.chunks().collect();
            assert_eq!(chunks.iter().map(|chunk| chunk.len as u64).sum::<u64>(), layout.data_bytes());
            assert_eq!(chunks.len() as u64, layout.table().len / 8);
            let checksums: Vec<_> = (0..layout.table().len / 8).collect();
            let (header, table) = layout.encode(&checksums);
            assert!(table.len() as u64 + RAW_ALIGN <= layout.files()[0].start);
            assert_eq!(layout.checksums(&header.try_into().unwrap(), &table), Ok(checksums));
        }
        for lens in [&[][..], &[1, 0], &[1; MAX_FILES + 1]] {
            assert_eq!(Layout::new(lens), Err(RawError::Files(lens.len())));
        }
    }

    #[test]
    fn what_is_no_image_is_told_apart() {
        let decode = |bytes: &[u8]| {
            let mut header = [0; HEADER_BYTES];
            header[..bytes.len()].copy_from_slice(bytes);
            Layout::decode(&header, 1 << 30)
        };
        assert_eq!(decode(b""), Err(RawError::NoImage));
        assert_eq!(decode(b"GGUF\x03"), Err(RawError::PlainGguf));
        assert_eq!(decode(b"NTIMAGE\0\x02"), Err(RawError::Version(2)));
        assert_eq!(decode(b"NTIMAGE\0\x01"), Err(RawError::Damaged("its checksum is wrong")));
    }

    #[test]
    fn lies_are_refused() {
        let layout = Layout::new(&[CHUNK, 5000]).unwrap();
        let max = u64::MAX.to_le_bytes();
        assert_eq!(forged(&layout, 16, &CHUNK.to_le_bytes()).as_ref(), Ok(&layout), "what is true is taken");
        let cases: [(usize, &[u8]); 9] = [
            (12, &[0; 4]),
            (12, &[255; 4]),
            (16, &[0; 8]),
            (16, &max),
            (FILES, &[0; 8]),
            (FILES, &max),
            (FILES + 8, &[0; 8]),
            (FILES + 8, &max),
            (FILES + 16, &RAW_ALIGN.to_le_bytes()),
        ];
        for (at, bytes) in cases {
            assert!(forged(&layout, at, bytes).is_err(), "{bytes:?} at {at}");
        }
        let error = Layout::decode(&header(&layout), layout.bytes() - 1);
        assert_eq!(error, Err(RawError::Size { need: layout.bytes(), have: layout.bytes() - 1 }));
        // Chunks so small that the table would not be small.
        assert!(forged(&layout, 16, &RAW_ALIGN.to_le_bytes()).is_err());
    }

    #[test]
    fn a_table_that_was_damaged_is_noticed() {
        let layout = Layout::new(&[3 * CHUNK]).unwrap();
        let (header, mut table) = layout.encode(&[1, 2, 3]);
        table[8] ^= 1;
        let result = layout.checksums(&header.try_into().unwrap(), &table);
        assert_eq!(result, Err(RawError::Damaged("the table of checksums")));
    }
}
