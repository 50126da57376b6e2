//! [`fill()`] against plain reads.

use super::{content, input, random_file};
use crate::{
    Completion, HostBuf, Landed, Options, Piece, ReadAhead, ReadError, Source, SourceError, SourceOptions, Target,
    fill, forward, loader, open,
    pool::{Bounce, Pool, Reader},
    testing::{Fault, Faulty, Gate},
};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

const FILE: usize = 11_000_001;

/// Ranges of the file, next to each other in memory, some of them aligned as in the file.
fn targets(memory: &HostBuf, seed: u64) -> (Vec<Target>, Vec<(usize, usize, usize)>) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let (mut targets, mut places, mut at) = (Vec::new(), Vec::new(), 0);
    while at < memory.len() {
        let len = [1, 100, 5000, 300_000, 5_000_000][rng.random_range(0..5)].min(memory.len() - at);
        let mut offset = rng.random_range(0..=FILE - len);
        if rng.random() {
            offset = offset / 4096 * 4096 + at % 4096;
            offset = offset.min(FILE - len);
        }
        targets.push(Target { file: 0, offset: offset as u64, dst: memory.part(at, len) });
        places.push((at, offset, len));
        at += len;
    }
    (targets, places)
}

fn run(source: Box<dyn Source>, targets: &[Target], cancel: &AtomicBool, retries: u32) -> Result<u64, ReadError> {
    let mut last = 0;
    let options = Options { retries, stall: Duration::from_millis(150), ..Options::default() };
    fill(source, targets, &options, cancel, &mut |bytes| {
        assert!(bytes >= last);
        last = bytes;
    })?;
    Ok(last)
}

#[test]
fn ranges_are_filled_whatever_is_cached() {
    let (file, bytes) = random_file(FILE, 30);
    let source = || loader(vec![input(&file)], 4, true).unwrap();
    let faulty = || {
        Faulty::new(source(), |nth, _| {
            [None, Some(Fault::Fail), Some(Fault::Short(5)), Some(Fault::Refuse)][nth as usize % 4].clone()
        })
    };
    for seed in 0..4 {
        // The pages are clean, so that they can be dropped: then reads are direct. Else they come from the cache.
        if seed % 2 == 0 {
            rustix::fs::fadvise(file.as_file(), 0, None, rustix::fs::Advice::DontNeed).unwrap();
        }
        let memory = HostBuf::allocate(20_000_000, 4096);
        let (targets, places) = targets(&memory, seed);
        let source: Box<dyn Source> = if seed == 3 { Box::new(faulty()) } else { source() };
        let total = run(source, &targets, &AtomicBool::new(false), 30).unwrap();
        assert_eq!(total, memory.len() as u64);
        let got = content(&memory);
        for (at, offset, len) in places {
            assert!(got[at..at + len] == bytes[offset..offset + len], "{len} bytes from {offset} to {at}");
        }
    }
}

#[test]
fn filling_can_be_cancelled_and_fails_clearly() {
    let (file, _) = random_file(FILE, 31);
    let source = || loader(vec![input(&file)], 2, true).unwrap();
    let target = |len| [Target { file: 0, offset: 1, dst: HostBuf::allocate(len, 4096) }];
    assert!(matches!(run(source(), &target(100), &AtomicBool::new(true), 3), Err(ReadError::Cancelled)));

    let cancel = AtomicBool::new(false);
    let result =
        fill(source(), &target(FILE - 1), &Options::default(), &cancel, &mut |_| cancel.store(true, Ordering::Relaxed));
    assert!(matches!(result, Err(ReadError::Cancelled)));

    let no = AtomicBool::new(false);
    let error = run(source(), &target(FILE), &no, 3).unwrap_err().to_string();
    assert!(error.contains("outside of the file's 11000001 bytes"), "{error}");
    let fails = Faulty::new(source(), |nth, _| (nth > 0).then_some(Fault::Fail));
    let error = run(Box::new(fails), &target(FILE - 1), &no, 3).unwrap_err().to_string();
    assert!(error.contains("failed (attempt 4): a fault on demand"), "{error}");

    let gate = Gate::default();
    let theirs = gate.clone();
    let stalls = Faulty::new(source(), move |nth, _| (nth == 1).then(|| Fault::Stall(theirs.clone())));
    assert!(matches!(run(Box::new(stalls), &target(FILE - 1), &no, 3), Err(ReadError::Stalled { .. })));
    gate.open();

    let error = run(Box::new(Broken(source())), &target(FILE - 1), &no, 3).unwrap_err().to_string();
    assert!(error.contains("failed (attempt 1)"), "{error}");

    let blocks = open(vec![input(&file)], &SourceOptions::default()).unwrap();
    if blocks.block() > 1 {
        let error = run(blocks, &target(100), &no, 3).unwrap_err().to_string();
        assert!(error.contains("reads blocks of 4096 bytes cannot fill"), "{error}");
    }
}

/// A source that does not say what becomes of its reads.
struct Broken<S>(S);

impl<S: Source> Source for Broken<S> {
    forward!(self => self.0; submit, depth, is_queued, block, name, describe);

    fn wait(&mut self, _: Duration, _: &mut Vec<Completion>) -> Result<(), SourceError> {
        Err(SourceError::Ended)
    }
}

/// Each read takes so long.
struct Slow(Duration);

impl Reader for Slow {
    fn check(&self, _: &Piece, _: &HostBuf) -> Result<(), SourceError> {
        Ok(())
    }

    fn read(&self, piece: &Piece, _: &mut HostBuf, _: &mut Bounce) -> Result<Landed, SourceError> {
        thread::sleep(self.0);
        Ok(Landed { begin: 0, len: piece.len })
    }

    fn block(&self) -> usize {
        1
    }

    fn name(&self, _: usize) -> String {
        "slow".to_owned()
    }
}

/// One thread and a queue of eight: what is at its end waits longer than a read may take, and is not late.
#[test]
fn waiting_for_other_reads_is_no_stall() {
    const READS: usize = 8;
    let source = || Box::new(Pool::new(Slow(Duration::from_millis(80)), 1, READS - 1, String::new()).unwrap());
    let target = |index| Target { file: 0, offset: 10 * index as u64, dst: HostBuf::allocate(10, 1) };
    let targets: Vec<_> = (0..READS).map(target).collect();
    assert_eq!(run(source(), &targets, &AtomicBool::new(false), 0).unwrap(), 10 * READS as u64);

    let pieces: Vec<_> = Piece::cut(0, 0, 10 * READS as u64, 10).collect();
    let buffers = (0..READS).map(|_| HostBuf::allocate(10, 1)).collect();
    let options = Options { stall: Duration::from_millis(150), ..Options::default() };
    let ahead = ReadAhead::start(source(), pieces, buffers, options).unwrap();
    for piece in 0..READS {
        ahead.give_back(ahead.take(piece).unwrap().buffer);
    }
}
