//! Sources against plain reads.

use super::{by, content, input, random_file};
use crate::{
    Completion, Dst, HostBuf, Input, Landed, Memory, MemoryRange, OpenError, Piece, ReadError, Source, SourceError,
    SourceOptions,
    files::Progress,
    loader, open, sequential_rate,
    testing::{Fault, Faulty, Gate},
};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use std::{sync::Arc, time::Duration};

/// Every kind of source, over these files.
fn sources(files: &[(tempfile::NamedTempFile, Vec<u8>)]) -> Vec<Box<dyn Source>> {
    let inputs = || files.iter().map(|(file, _)| input(file)).collect::<Vec<_>>();
    let with = |io_uring, direct| open(inputs(), &SourceOptions { depth: 5, by: by(io_uring), direct }).unwrap();
    let ranges = files
        .iter()
        .map(|(_, bytes)| MemoryRange { name: "memory".to_owned(), bytes: Arc::new(bytes.clone()) })
        .collect();
    vec![
        with(true, true),
        with(true, false),
        with(false, true),
        with(false, false),
        loader(inputs(), 3, true).unwrap(),
        Box::new(Memory::new(ranges, 3).unwrap()),
    ]
}

fn complete(source: &mut dyn Source, count: usize) -> Vec<Completion> {
    let mut done = Vec::new();
    while done.len() < count {
        source.wait(Duration::from_secs(10), &mut done).unwrap();
    }
    done
}

#[test]
fn random_pieces_are_what_plain_reads_give() {
    let mut rng = SmallRng::seed_from_u64(20);
    // The last is longer than what one thread loads at once.
    let sizes = [1usize, 511, 4096, 4097, 65_536, 3_000_003];
    let files: Vec<_> = sizes.iter().enumerate().map(|(seed, size)| random_file(*size, seed as u64)).collect();
    for (kind, mut source) in sources(&files).into_iter().enumerate() {
        for registered in [false, true] {
            let longest = sizes[5];
            let buffers: Vec<_> = (0..source.depth()).map(|_| HostBuf::allocate(source.room(longest), 4096)).collect();
            if registered {
                source.prepare(&buffers);
            }
            for _ in 0..60 {
                let pieces: Vec<_> = (0..source.depth())
                    .map(|_| {
                        let file = rng.random_range(0..sizes.len());
                        let offset = rng.random_range(0..=sizes[file]);
                        // Often up to the file's end.
                        let most = sizes[file] - offset;
                        let len = if rng.random_ratio(1, 3) { most } else { rng.random_range(0..=most) };
                        Piece { file, offset: offset as u64, len }
                    })
                    .collect();
                for (id, (piece, buffer)) in pieces.iter().zip(&buffers).enumerate() {
                    let room = if source.block() == 1 { piece.len } else { source.room(piece.len) };
                    buffer.share().bytes().fill(0xaa);
                    source.submit(id as u64, piece, Dst::Host(buffer.part(0, room))).unwrap();
                }
                for Completion { id, result } in complete(&mut *source, pieces.len()) {
                    let (piece, Landed { begin, len }) = (pieces[id as usize], result.unwrap());
                    let right = &files[piece.file].1[piece.offset as usize..][..piece.len];
                    let all = content(&buffers[id as usize]);
                    assert!(len == piece.len && all[begin..begin + len] == *right, "{kind}: {piece:?} at {begin}");
                    if source.block() == 1 {
                        assert_eq!(begin, 0, "exactly the piece is read");
                        assert!(all[len..].iter().all(|byte| *byte == 0xaa), "{kind}: {piece:?} is overrun");
                    }
                }
            }
        }
    }
}

#[test]
fn the_description_says_which_way() {
    let files = [random_file(10_000, 1)];
    let described: Vec<_> = sources(&files).iter().map(|source| source.describe()).collect();
    println!("{described:#?}");
    assert!(described[2].starts_with("pread, ") && described[2].ends_with("5 threads (as asked for)"));
    assert!(described[3].contains("through the page cache (as asked for)"));
    assert!(described[4].starts_with("page cache first, then pread, "));
    assert_eq!(described[5], "copies from memory, 3 threads");
    // Where io_uring is refused, the pool says why.
    match described[0].starts_with("io_uring, ") {
        true => assert!(described[0].ends_with("5 reads in flight, unregistered buffers"), "{}", described[0]),
        false => assert!(described[0].starts_with("pread, ") && described[0].contains("io_uring"), "{}", described[0]),
    }
}

#[test]
fn what_cannot_be_read_is_refused() {
    let files = [random_file(10_000, 2)];
    for mut source in sources(&files) {
        let piece = Piece { file: 0, offset: 10, len: 100 };
        let vram = source.submit(1, &piece, Dst::Vram { address: 0, len: 1 << 20 });
        assert!(matches!(vram, Err(SourceError::Vram)));
        let mut submit = |piece: Piece, buffer| source.submit(1, &piece, Dst::Host(buffer)).unwrap_err();
        let room = || HostBuf::allocate(1 << 16, 4096);
        assert!(matches!(submit(Piece { file: 1, ..piece }, room()), SourceError::NoFile { file: 1, files: 1 }));
        for (offset, len) in [(9_901, 100), (10_001, 0), (u64::MAX, 100), (0, usize::MAX)] {
            let error = submit(Piece { file: 0, offset, len }, room());
            assert!(matches!(error, SourceError::OutOfFile { size: 10_000, .. }), "{offset}, {len}: {error}");
        }
        assert!(matches!(submit(piece, HostBuf::allocate(99, 4096)), SourceError::Small { len: 99, .. }));
        if source.block() > 1 {
            let odd = room().part(512, 1 << 15);
            assert!(matches!(
                source.submit(1, &piece, Dst::Host(odd)),
                Err(SourceError::Unaligned { block: 4096.., .. })
            ));
        }
        for id in 0..source.depth() as u64 {
            source.submit(id, &piece, Dst::Host(room())).unwrap();
        }
        assert!(matches!(source.submit(99, &piece, Dst::Host(room())), Err(SourceError::Full { .. })));
        let depth = source.depth();
        complete(&mut *source, depth);
        let mut none = Vec::new();
        source.wait(Duration::from_secs(1000), &mut none).unwrap();
        assert!(none.is_empty(), "nothing is in flight, and it returns at once");
    }
}

#[test]
fn what_is_no_file_is_refused() {
    let path = std::env::temp_dir();
    let file = std::fs::File::open(&path).unwrap();
    let error = open(vec![Input { path, file }], &SourceOptions::default()).err().unwrap();
    assert!(matches!(error, OpenError::NotAFile { .. }), "{error}");
}

#[test]
fn reads_that_come_in_parts_go_on_until_the_piece_is_whole() {
    let piece = Piece { file: 0, offset: 5000, len: 6000 };
    let fresh = Progress::new(&piece, 4096);
    assert_eq!((fresh.offset(), fresh.want), (4096, 8192));
    let whole = Some(Landed { begin: 904, len: 6000 });
    let run = |counts: &[usize]| {
        let mut progress = fresh;
        counts.iter().map(|count| progress.arrived(*count)).collect::<Vec<_>>()
    };
    assert_eq!(run(&[8192]), [whole]);
    assert_eq!(run(&[4096, 4096]), [None, whole]);
    assert_eq!(run(&[6904]), [whole], "the file ends with the piece");
    assert_eq!(run(&[4096, 0]), [None, Some(Landed { begin: 904, len: 3192 })], "the file ends");
    assert_eq!(run(&[6903]), [Some(Landed { begin: 904, len: 5999 })], "the file ends inside of a block");
    assert_eq!(run(&[512]), [Some(Landed { begin: 904, len: 0 })], "before the piece");
}

#[test]
fn pieces_are_cut_at_multiples() {
    let cut =
        |offset, len, max| Piece::cut(7, offset, len, max).map(|piece| (piece.offset, piece.len)).collect::<Vec<_>>();
    assert_eq!(cut(10, 25, 16), [(10, 6), (16, 16), (32, 3)]);
    assert_eq!(cut(16, 16, 16), [(16, 16)]);
    assert_eq!(cut(3, 0, 16), []);
    assert_eq!(cut(u64::MAX - 3, 100, 16), [(u64::MAX - 3, 3)]);
}

#[test]
fn a_rate_is_measured_within_its_budget() {
    let files = [random_file(6 << 20, 3)];
    let pieces: Vec<_> = Piece::cut(0, 0, 6 << 20, 1 << 20).collect();
    let rates = |pieces: &[Piece], budget| {
        let rate = |source| sequential_rate(source, pieces, budget, Duration::from_secs(10));
        sources(&files).into_iter().map(rate).collect::<Vec<_>>()
    };
    for rate in rates(&pieces, Duration::from_secs(5)) {
        let rate = rate.unwrap();
        assert_eq!(rate.bytes, 6 << 20);
        assert!(rate.bytes_per_second() > 1e5 && rate.bytes_per_second() < 1e12, "{rate:?}");
    }
    // Without time, one piece is read.
    assert!(rates(&pieces, Duration::ZERO).into_iter().all(|rate| rate.unwrap().bytes == 1 << 20));
    let outside = [Piece { file: 0, offset: 6 << 20, len: 1 }];
    assert!(rates(&outside, Duration::ZERO).into_iter().all(|rate| rate.is_err()));
}

/// Nobody waits for a drive that does not answer, not even to leave it.
#[test]
fn the_rate_of_a_drive_that_does_not_answer_is_an_error() {
    let files = [random_file(1 << 20, 3)];
    for source in sources(&files) {
        let gate = Gate::default();
        let stalls = gate.clone();
        let source = Box::new(Faulty::new(source, move |_, _| Some(Fault::Stall(stalls.clone()))));
        let pieces: Vec<_> = Piece::cut(0, 0, 1 << 20, 1 << 20).collect();
        let rate = sequential_rate(source, &pieces, Duration::ZERO, Duration::from_millis(50));
        assert!(matches!(rate, Err(ReadError::Stalled { .. })), "{rate:?}");
        gate.open();
    }
}
