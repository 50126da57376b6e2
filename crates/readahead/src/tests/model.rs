//! The reading thread, its consumer and a faulty source under shuttle: random and adversarial interleavings of every lock, wait and
//! notification. `ahead.rs` is compiled a second time here, over shuttle's locks and threads and a clock that the source moves; shuttle's
//! waits never time out, so every wake-up that is missing is a deadlock, which it reports.
//!
//! Seen to fail with each of these put into the code:
//! - a buffer counts as filled when its read begins: deadlock, because the completion finds no read;
//! - `expire` or `seek` frees the buffers of reads that are in flight: two reads in one buffer;
//! - `completed` does not compare the length, `seek` leaves old tickets valid, or taken buffers are read into: wrong data;
//! - reads of void tickets count as filled, or the buffer of a failed read is not freed: nothing is left to read into;
//! - `give_back`, `seek`, `drop`, a completion, a refused read or the thread's end without its notification: deadlock;
//! - `take` waits although all buffers are taken: deadlock;
//! - one read more than the source's depth: the source sees it.
//!
//! And for places in the device's memory:
//! - reads begin before they are permitted: overlapping reads, wrong data;
//! - `drained` does not wait, or `seek` leaves pieces permitted: what the consumer puts there is overwritten;
//! - `permit` without its notification: deadlock.
//!
//! What no interleaving shows (retries, how long a stall is, that nothing begins while void reads write to places) is in `tests/protocol.rs`.

mod sync {
    pub(crate) use shuttle::{
        sync::{Condvar, Mutex, MutexGuard},
        thread,
    };
    use std::{
        cell::Cell,
        sync::OnceLock,
        time::{Duration, Instant},
    };

    thread_local! {
        /// Milliseconds. Shuttle runs all its threads on one.
        static CLOCK: Cell<u64> = const { Cell::new(0) };
    }

    pub(crate) fn now() -> Instant {
        static BEGIN: OnceLock<Instant> = OnceLock::new();
        *BEGIN.get_or_init(Instant::now) + Duration::from_millis(CLOCK.get())
    }

    pub(super) fn pass(milliseconds: u64) {
        CLOCK.set(CLOCK.get() + milliseconds);
    }
}

#[allow(clippy::duplicate_mod, reason = "that is the point")]
#[allow(dead_code, reason = "the model needs no spans and no description")]
#[path = "../ahead.rs"]
mod ahead;

use crate::{
    BufferId, Completion, Dst, Filled, HostBuf, Landed, Options, Piece, Place, ReadError, Source, SourceError,
    testing::GARBAGE,
};
use ahead::ReadAhead;
use shuttle::{
    Config, Runner,
    rand::Rng,
    scheduler::{DfsScheduler, PctScheduler, RandomScheduler, Scheduler},
    sync::mpsc,
};
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

const LEN: usize = 4;
const PIECES: usize = 3;
/// Milliseconds.
const STALL: u64 = 1000;
const OPTIONS: Options = Options { retries: 1, stall: Duration::from_millis(STALL), once: false };

fn pieces() -> Vec<Piece> {
    (0..PIECES).map(|index| Piece { file: 0, offset: (index * LEN) as u64, len: LEN }).collect()
}

/// The bytes of the piece at this offset.
fn data(offset: u64) -> [u8; LEN] {
    [offset as u8; LEN]
}

fn chance(one_in: u32) -> bool {
    shuttle::rand::thread_rng().gen_range(0..one_in) == 0
}

/// Does to reads whatever can happen to them: they fail, come back short, late, in any order, or so late that they count as stalled.
/// Their bytes come one half after the other.
struct Mean {
    depth: usize,
    /// Reads in flight, and whether the first half has come.
    reads: Vec<(u64, Piece, HostBuf, bool)>,
    /// Waits that may still bring nothing. Nothing goes wrong any more when they are used up: each execution ends.
    patience: u32,
    gone: Arc<AtomicBool>,
}

impl Source for Mean {
    fn submit(&mut self, id: u64, piece: &Piece, dst: Dst) -> Result<(), SourceError> {
        let mut buffer = match dst {
            Dst::Host(buffer) => buffer,
            Dst::Vram { address, len } => memory(address as usize as *mut u8, len),
        };
        assert!(self.reads.len() < self.depth, "more reads than the source takes");
        let apart = |other: &HostBuf| {
            other.address() + other.len() <= buffer.address() || buffer.address() + buffer.len() <= other.address()
        };
        assert!(self.reads.iter().all(|(_, _, other, _)| apart(other)), "two reads in one buffer");
        if self.patience > 0 && chance(12) {
            return Err(io::Error::other("refused").into());
        }
        buffer.bytes().fill(GARBAGE);
        self.reads.push((id, *piece, buffer, false));
        Ok(())
    }

    fn wait(&mut self, _: Duration, done: &mut Vec<Completion>) -> Result<(), SourceError> {
        sync::thread::yield_now();
        sync::pass(if self.patience > 0 && chance(6) { STALL } else { 1 });
        if self.patience > 0 {
            self.patience -= 1;
            if chance(16) {
                return Err(io::Error::other("the source is broken").into());
            }
        }
        let mean = self.patience > 0;
        for (id, piece, mut buffer, half) in std::mem::take(&mut self.reads) {
            let bytes = buffer.bytes();
            if mean && chance(2) {
                bytes[..LEN / 2].copy_from_slice(&data(piece.offset)[..LEN / 2]);
                self.reads.push((id, piece, buffer, true));
            } else if mean && chance(6) {
                bytes.fill(GARBAGE);
                done.push(Completion { id, result: Err(io::Error::other("failed").into()) });
            } else if mean && half && chance(6) {
                bytes[LEN / 2..].fill(GARBAGE);
                done.push(Completion { id, result: Ok(Landed { begin: 0, len: LEN / 2 }) });
            } else {
                bytes.copy_from_slice(&data(piece.offset));
                done.push(Completion { id, result: Ok(Landed { begin: 0, len: LEN }) });
            }
        }
        if done.len() > 1 && chance(2) {
            done.reverse();
        }
        Ok(())
    }

    fn depth(&self) -> usize {
        self.depth
    }

    fn block(&self) -> usize {
        1
    }

    fn name(&self, _: usize) -> String {
        "mean".to_owned()
    }

    fn describe(&self) -> String {
        self.name(0)
    }
}

impl Drop for Mean {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::SeqCst);
    }
}

/// Some buffers, a reader over them, which is to be dropped before them, and whether its source is gone.
fn start(buffers: usize, depth: usize, patience: u32) -> (Vec<HostBuf>, ReadAhead, Arc<AtomicBool>) {
    let gone = Arc::new(AtomicBool::new(false));
    let source = Mean { depth, reads: Vec::new(), patience, gone: gone.clone() };
    let memory: Vec<_> = (0..buffers).map(|_| HostBuf::allocate(LEN, 1)).collect();
    let lent = memory.iter().map(|buffer| self::memory(buffer.as_ptr(), LEN));
    let ahead = ReadAhead::start(Box::new(source), pieces(), lent.collect(), OPTIONS).unwrap();
    (memory, ahead, gone)
}

/// Memory that outlives the reader. All of it runs on one OS thread.
fn memory(ptr: *mut u8, len: usize) -> HostBuf {
    // SAFETY: as said; the tests look at the bytes when no read is to have them, which is what they test.
    unsafe { HostBuf::new(std::ptr::NonNull::new(ptr).unwrap(), len, None) }
}

/// Whether a taken buffer holds the piece, and nothing writes to it.
fn check(memory: &[HostBuf], filled: &Filled) {
    let bytes = super::content(&memory[filled.buffer.index()]);
    let right = data((filled.piece * LEN) as u64);
    assert_eq!((filled.begin, filled.len, &bytes[..]), (0, LEN, &right[..]), "wrong data in piece {}", filled.piece);
}

/// Takes pieces, keeps up to `keep` of them, seeks now and then and after errors, and drops the reader at some time.
fn consume(buffers: usize, depth: usize) {
    let (memory, ahead, gone) = start(buffers, depth, 12);
    let keep = shuttle::rand::thread_rng().gen_range(0..=buffers);
    let mut kept: Vec<Filled> = Vec::new();
    let (mut next, mut taken) = (0, 0);
    while taken < 5 {
        if chance(8) {
            next = shuttle::rand::thread_rng().gen_range(0..PIECES);
            ahead.seek(next);
        }
        match ahead.take(next) {
            Ok(filled) => {
                assert_eq!(filled.piece, next);
                check(&memory, &filled);
                kept.push(filled);
                (next, taken) = ((next + 1) % PIECES, taken + 1);
            }
            // Those that are not kept are in reads that are stalled.
            Err(ReadError::AllTaken { .. }) => ahead.give_back(kept.pop().expect("no buffer is taken").buffer),
            Err(ReadError::Failed { .. } | ReadError::Stalled { .. }) => ahead.seek(next),
            Err(error) => panic!("{error}"),
        }
        while kept.len() > keep || (!kept.is_empty() && chance(3)) {
            let filled = kept.remove(0);
            check(&memory, &filled);
            ahead.give_back(filled.buffer);
        }
        if chance(20) {
            break;
        }
    }
    drop(ahead);
    assert!(gone.load(Ordering::SeqCst), "the source is still there behind the drop");
    kept.iter().for_each(|filled| check(&memory, filled));
}

/// As [`consume`], but another thread gives the buffers back, as a copy's end does.
fn give_back_elsewhere(buffers: usize, depth: usize) {
    let (memory, ahead, _) = start(buffers, depth, 8);
    let (memory, ahead) = (Arc::new(memory), Arc::new(ahead));
    let (send, receive) = mpsc::channel::<Filled>();
    let copies = {
        let (memory, ahead) = (memory.clone(), ahead.clone());
        sync::thread::spawn(move || {
            while let Ok(filled) = receive.recv() {
                check(&memory, &filled);
                let Filled { buffer, .. } = filled;
                let buffer: BufferId = buffer;
                ahead.give_back(buffer);
            }
        })
    };
    let (mut next, mut taken) = (0, 0);
    while taken < 4 {
        match ahead.try_take(next) {
            Ok(Some(filled)) => {
                send.send(filled).unwrap();
                (next, taken) = ((next + 1) % PIECES, taken + 1);
            }
            Ok(None) => sync::thread::yield_now(),
            Err(ReadError::Failed { .. } | ReadError::Stalled { .. }) => ahead.seek(next),
            Err(error) => panic!("{error}"),
        }
    }
    drop(send);
    copies.join().unwrap();
}

/// Where the pieces lie in a device's memory of [`RING`] bytes: the third over the halves of both others.
const PLACES: [usize; PIECES] = [0, LEN, LEN / 2];
const RING: usize = 2 * LEN;
/// What the consumer puts there by other means.
const OTHER: u8 = 0x0f;

/// A device's memory with places, a reader into it, and whether its source is gone.
fn start_in_place(depth: usize, patience: u32) -> (Arc<HostBuf>, ReadAhead, Arc<AtomicBool>) {
    let gone = Arc::new(AtomicBool::new(false));
    let source = Mean { depth, reads: Vec::new(), patience, gone: gone.clone() };
    let ring = Arc::new(HostBuf::allocate(RING, 1));
    let place = |&at: &usize| Place { address: (ring.address() + at) as u64, len: LEN, begin: 0 };
    let places = PLACES.iter().map(place).collect();
    // SAFETY: the ring is the owner; that its places are not used too early is what is tested.
    let ahead = unsafe { ReadAhead::start_in_place(Box::new(source), pieces(), places, ring.clone(), OPTIONS) };
    (ring, ahead.unwrap(), gone)
}

fn check_place(ring: &HostBuf, piece: usize) {
    let bytes = &super::content(ring)[PLACES[piece]..][..LEN];
    assert_eq!(bytes, data((piece * LEN) as u64), "wrong data in piece {piece}");
}

/// Takes pieces in their places, computes with the last one while others are read, and starts elsewhere now and then and after errors.
fn consume_in_place(depth: usize) {
    let (ring, ahead, gone) = start_in_place(depth, 12);
    let overlap = |a: usize, b: usize| PLACES[a % PIECES].abs_diff(PLACES[b % PIECES]) < LEN;
    // Turn t is that of piece t modulo their number. Turns before `computed` need their places no more.
    let (mut computed, mut turn, mut permitted, mut taken) = (0, 0, 0, 0);
    let mut restart = None;
    while taken < 5 {
        if let Some(piece) = restart.take() {
            ahead.seek(piece);
            if ahead.drained(&AtomicBool::new(false)).is_err() {
                sync::thread::yield_now();
                restart = Some(piece);
                continue;
            }
            (computed, turn, permitted) = (piece, piece, piece);
            memory(ring.as_ptr(), RING).bytes().fill(OTHER);
            sync::thread::yield_now();
            assert!(super::content(&ring) == [OTHER; RING], "a read wrote what is the consumer's");
        }
        while permitted < turn + 2 * PIECES && (computed..permitted).all(|other| !overlap(other, permitted)) {
            ahead.permit();
            permitted += 1;
        }
        if computed < turn && (permitted == turn || chance(2)) {
            check_place(&ring, computed % PIECES);
            computed += 1;
            continue;
        }
        match ahead.take(turn % PIECES) {
            Ok(filled) => {
                check_place(&ring, filled.piece);
                (turn, taken) = (turn + 1, taken + 1);
            }
            Err(ReadError::Failed { .. } | ReadError::Stalled { .. }) => restart = Some(turn % PIECES),
            Err(error) => panic!("{error}"),
        }
        if chance(8) {
            restart = Some(shuttle::rand::thread_rng().gen_range(0..PIECES));
        }
        if chance(20) {
            break;
        }
    }
    drop(ahead);
    // A read that counts as stalled is left behind, with the memory.
    assert!(gone.load(Ordering::SeqCst) || Arc::strong_count(&ring) > 1, "reads without memory behind the drop");
}

/// Runs `f` under a scheduler of shuttle's.
fn run(scheduler: impl Scheduler + 'static, f: impl Fn() + Send + Sync + 'static) {
    let mut config = Config::new();
    // Its default overflows with an error's text.
    config.stack_size = 256 << 10;
    Runner::new(scheduler, config).run(f);
}

const RUNS: usize = 4000;
const SEED: u64 = 5;

#[test]
fn random_interleavings() {
    for (buffers, depth) in [(1, 1), (1, 4), (2, 1), (2, 4), (3, 2), (3, 4)] {
        run(RandomScheduler::new_from_seed(SEED, RUNS), move || consume(buffers, depth));
        run(RandomScheduler::new_from_seed(SEED, RUNS / 4), move || give_back_elsewhere(buffers, depth));
    }
}

#[test]
fn adversarial_interleavings() {
    for buffers in 1..=3 {
        run(PctScheduler::new_from_seed(SEED, 3, RUNS), move || consume(buffers, 2));
    }
}

#[test]
fn interleavings_of_reads_in_places() {
    for depth in [1, 2, 4] {
        run(RandomScheduler::new_from_seed(SEED, RUNS), move || consume_in_place(depth));
        run(PctScheduler::new_from_seed(SEED, 3, RUNS), move || consume_in_place(depth));
    }
}

/// All interleavings of short lives, with a source that works. Longer ones have too many.
#[test]
fn all_interleavings_of_short_lives() {
    let lives: [fn(&[HostBuf], &ReadAhead); 3] = [
        |_, _| (),
        |memory, ahead| check(memory, &ahead.take(0).unwrap()),
        |memory, ahead| {
            if let Some(filled) = ahead.try_take(0).unwrap() {
                check(memory, &filled);
            }
        },
    ];
    const TOO_MANY: usize = 1_000_000;
    for (life, number) in lives.into_iter().zip(0..) {
        let runs = Arc::new(AtomicUsize::new(0));
        let count = runs.clone();
        run(DfsScheduler::new(Some(TOO_MANY), false), move || {
            count.fetch_add(1, Ordering::Relaxed);
            let (memory, ahead, gone) = start(1, 1, 0);
            life(&memory, &ahead);
            drop(ahead);
            assert!(gone.load(Ordering::SeqCst));
        });
        let runs = runs.load(Ordering::Relaxed);
        println!("life {number}: {runs} interleavings");
        assert!(runs < TOO_MANY, "life {number} has more than {runs} interleavings");
    }
    run(DfsScheduler::new(Some(TOO_MANY), false), || {
        let (ring, ahead, gone) = start_in_place(1, 0);
        ahead.permit();
        ahead.take(0).unwrap();
        check_place(&ring, 0);
        drop(ahead);
        assert!(gone.load(Ordering::SeqCst));
    });
}
