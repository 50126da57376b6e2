//! [`ReadAhead`] with real threads, over real files, with faults.

use super::{by, content, input, random_file};
use crate::{
    HostBuf, Options, Piece, ReadAhead, ReadError, Source, SourceOptions, open,
    testing::{Fault, Faulty, Gate},
};
use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};
use tempfile::NamedTempFile;

const FILE: usize = 300_001;
const MAX: usize = 20_000;

struct Setup {
    file: NamedTempFile,
    bytes: Vec<u8>,
    pieces: Vec<Piece>,
}

fn setup(seed: u64) -> Setup {
    let (file, bytes) = random_file(FILE, seed);
    let pieces = Piece::cut(0, 77, FILE as u64 - 77, MAX).collect();
    Setup { file, bytes, pieces }
}

impl Setup {
    fn source(&self, io_uring: bool) -> Box<dyn Source> {
        open(vec![input(&self.file)], &SourceOptions { depth: 4, by: by(io_uring), ..Default::default() }).unwrap()
    }

    /// A reader, and shares of its buffers.
    fn start(&self, source: Box<dyn Source>, buffers: usize, options: Options) -> (ReadAhead, Vec<HostBuf>) {
        let buffers: Vec<_> = (0..buffers).map(|_| HostBuf::allocate(source.room(MAX), 4096)).collect();
        let shares = buffers.iter().map(HostBuf::share).collect();
        (ReadAhead::start(source, self.pieces.clone(), buffers, options).unwrap(), shares)
    }

    /// Takes `count` pieces from `first` on, compares and gives them back.
    fn take(&self, ahead: &ReadAhead, buffers: &[HostBuf], first: usize, count: usize) -> Result<(), ReadError> {
        for index in (first..first + count).map(|index| index % self.pieces.len()) {
            let filled = ahead.take(index)?;
            let Piece { offset, len, .. } = self.pieces[index];
            let got = &content(&buffers[filled.buffer.index()])[filled.begin..filled.begin + filled.len];
            assert_eq!(filled.len, len);
            assert!(got == &self.bytes[offset as usize..][..len], "wrong data in piece {index}");
            ahead.give_back(filled.buffer);
        }
        Ok(())
    }
}

fn quick() -> Options {
    Options { retries: 3, stall: Duration::from_millis(150), ..Options::default() }
}

#[test]
fn cycles_bring_the_file_in_order() {
    let it = setup(1);
    for (io_uring, buffers) in [(true, 1), (true, 3), (true, 40), (false, 1), (false, 9)] {
        let (ahead, shares) = it.start(it.source(io_uring), buffers, Options::default());
        it.take(&ahead, &shares, 0, 2 * it.pieces.len() + 3).unwrap();
        ahead.seek(9);
        it.take(&ahead, &shares, 9, it.pieces.len()).unwrap();
        let (mut count, mut bytes) = (0, 0);
        ahead.spans(&mut |span| {
            assert!(span.end >= span.begin && span.attempts == 1);
            (count, bytes) = (count + 1, bytes + span.bytes);
        });
        assert!(count >= 3 * it.pieces.len() + 3 && bytes >= 3 * (FILE - 77), "{count} spans of {bytes} bytes");
        ahead.spans(&mut |_| panic!("spans are handed out once"));
    }
}

#[test]
fn once_is_not_twice() {
    let it = setup(12);
    for buffers in [1, 3, 40] {
        let once = Options { once: true, ..Options::default() };
        let (ahead, shares) = it.start(it.source(true), buffers, once);
        it.take(&ahead, &shares, 0, it.pieces.len()).unwrap();
        assert!(matches!(ahead.take(0), Err(ReadError::Ended)), "a second cycle with {buffers} buffers");
        let mut count = 0;
        ahead.spans(&mut |_| count += 1);
        assert_eq!(count, it.pieces.len());
    }
}

#[test]
fn who_waits_for_a_piece_can_be_told_to_give_up() {
    let it = setup(13);
    let gate = Gate::default();
    let theirs = gate.clone();
    let faulty = Faulty::new(it.source(true), move |nth, _| (nth == 1).then(|| Fault::Stall(theirs.clone())));
    let (ahead, shares) = it.start(Box::new(faulty), 2, Options::default());
    let cancel = AtomicBool::new(false);
    ahead.give_back(ahead.take_unless(&cancel, 0).unwrap().buffer);
    let begin = Instant::now();
    std::thread::scope(|threads| {
        threads.spawn(|| {
            std::thread::sleep(Duration::from_millis(30));
            cancel.store(true, Ordering::Relaxed);
        });
        assert!(matches!(ahead.take_unless(&cancel, 1), Err(ReadError::Cancelled)));
    });
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    // Nothing is lost: it may be waited for once more.
    gate.open();
    it.take(&ahead, &shares, 1, it.pieces.len()).unwrap();
}

#[test]
fn faults_that_pass_are_not_seen() {
    let it = setup(2);
    for io_uring in [true, false] {
        let faulty = Faulty::new(it.source(io_uring), |nth, _| match nth % 7 {
            1 => Some(Fault::Fail),
            3 => Some(Fault::Short(100)),
            4 => Some(Fault::Late(Duration::from_millis(3))),
            5 => Some(Fault::Refuse),
            _ => None,
        });
        let (ahead, shares) = it.start(Box::new(faulty), 3, Options::default());
        it.take(&ahead, &shares, 0, 3 * it.pieces.len()).unwrap();
        let mut retried = 0;
        ahead.spans(&mut |span| retried += u32::from(span.attempts > 1));
        assert!(retried > 10, "{retried} reads were tried again");
    }
}

#[test]
fn faults_that_stay_are_errors_of_their_piece() {
    let it = setup(3);
    let bad = it.pieces[2];
    let (name, offset, len) = (it.file.path().display().to_string(), bad.offset, bad.len);
    for (fault, cause) in [
        (Fault::Fail, "a fault on demand".to_owned()),
        (Fault::Refuse, "a refusal on demand".to_owned()),
        (Fault::Short(17), format!("only 17 of {len} bytes came")),
    ] {
        let faulty = Faulty::new(it.source(true), move |_, piece| (*piece == bad).then(|| fault.clone()));
        let (ahead, shares) = it.start(Box::new(faulty), 2, Options::default());
        it.take(&ahead, &shares, 0, 2).unwrap();
        for _ in 0..2 {
            let error = ahead.take(2).unwrap_err().to_string();
            assert_eq!(error, format!("{name}: reading {len} bytes at offset {offset} failed (attempt 4): {cause}"));
        }
        ahead.seek(3);
        it.take(&ahead, &shares, 3, it.pieces.len() - 1).unwrap();
    }
}

#[test]
fn a_stalled_read_is_an_error_and_its_buffer_is_safe() {
    let it = setup(4);
    let gate = Gate::default();
    let theirs = gate.clone();
    let faulty = Faulty::new(it.source(true), move |nth, _| (nth == 1).then(|| Fault::Stall(theirs.clone())));
    let (ahead, shares) = it.start(Box::new(faulty), 2, quick());
    it.take(&ahead, &shares, 0, 1).unwrap();
    assert!(matches!(ahead.take(1), Err(ReadError::Stalled { offset, .. }) if offset == it.pieces[1].offset));
    // One buffer is left, and does for all.
    ahead.seek(1);
    it.take(&ahead, &shares, 1, 4).unwrap();
    gate.open();
    it.take(&ahead, &shares, 5, 2 * it.pieces.len()).unwrap();
}

#[test]
fn dropping_waits_for_reads_in_flight_but_not_for_ever() {
    let it = setup(5);
    let late = Faulty::new(it.source(true), |_, _| Some(Fault::Late(Duration::from_millis(60))));
    let (ahead, _) = it.start(Box::new(late), 2, Options::default());
    std::thread::sleep(Duration::from_millis(20));
    let begin = Instant::now();
    drop(ahead);
    assert!(begin.elapsed() > Duration::from_millis(20), "it did not wait");

    let gate = Gate::default();
    let theirs = gate.clone();
    let stalls = Faulty::new(it.source(true), move |_, _| Some(Fault::Stall(theirs.clone())));
    let (ahead, shares) = it.start(Box::new(stalls), 2, quick());
    assert!(matches!(ahead.take(0), Err(ReadError::Stalled { .. })));
    drop(ahead);
    // The thread and the buffers are still there, and what comes late goes where it belongs.
    gate.open();
    let begin = Instant::now();
    let first = &it.bytes[77..it.pieces[0].len + 77];
    while !shares.iter().any(|buffer| content(buffer).windows(first.len()).any(|window| window == first)) {
        assert!(begin.elapsed() < Duration::from_secs(5), "the stalled read did not end");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_file_that_is_truncated_or_written_to_is_an_error() {
    for io_uring in [true, false] {
        let it = setup(6);
        let (ahead, shares) = it.start(it.source(io_uring), 1, Options::default());
        it.take(&ahead, &shares, 0, 3).unwrap();
        it.file.as_file().set_len(100_000).unwrap();
        let error = it.take(&ahead, &shares, 3, 2 * it.pieces.len()).unwrap_err().to_string();
        assert!(error.contains("truncated while in use, from 300001 to 100000 bytes"), "{error}");

        let it = setup(7);
        let (ahead, shares) = it.start(it.source(io_uring), 1, Options::default());
        it.take(&ahead, &shares, 0, 3).unwrap();
        let later = std::time::SystemTime::now() + Duration::from_secs(10);
        it.file.as_file().set_modified(later).unwrap();
        let error = it.take(&ahead, &shares, 3, 2 * it.pieces.len()).unwrap_err().to_string();
        assert!(error.contains("changed while in use"), "{error}");
    }
}

#[test]
fn a_path_that_means_another_file_by_now_changes_nothing() {
    let it = setup(8);
    let (other, _) = random_file(FILE, 9);
    let (ahead, shares) = it.start(it.source(true), 2, Options::default());
    std::fs::rename(other.path(), it.file.path()).unwrap();
    it.take(&ahead, &shares, 0, 2 * it.pieces.len()).unwrap();
}

#[test]
fn wrong_use_is_an_error() {
    let it = setup(10);
    let start = |pieces: &[Piece], buffers| {
        ReadAhead::start(it.source(true), pieces.to_vec(), buffers, Options::default()).err().unwrap().to_string()
    };
    assert_eq!(start(&[], vec![]), "reading ahead cannot start: no pieces");
    assert_eq!(start(&it.pieces, vec![]), "reading ahead cannot start: no buffers");
    let small = start(&it.pieces, vec![HostBuf::allocate(MAX, 4096)]);
    assert!(small.contains("buffer 0 has 20000 bytes; a piece of 20000 needs 24576"), "{small}");

    let outside = Piece { file: 0, offset: FILE as u64 - 10, len: 11 };
    let nowhere = Piece { file: usize::MAX, offset: 0, len: 1 };
    for (piece, words) in
        [(outside, "bytes 299991..300002 are outside of the file's 300001 bytes"), (nowhere, "the source has 1")]
    {
        let buffers = vec![HostBuf::allocate(1 << 16, 4096)];
        let ahead = ReadAhead::start(it.source(true), vec![piece], buffers, Options::default()).unwrap();
        let error = ahead.take(0).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

/// A source that panics must not leave its consumer waiting.
#[test]
fn a_panicking_source_is_an_error() {
    let it = setup(11);
    let panics = Faulty::new(it.source(true), |nth, _| if nth == 2 { panic!("on demand") } else { None });
    let (ahead, shares) = it.start(Box::new(panics), 1, Options::default());
    it.take(&ahead, &shares, 0, 2).unwrap();
    assert!(matches!(ahead.take(2), Err(ReadError::Ended)));
}
