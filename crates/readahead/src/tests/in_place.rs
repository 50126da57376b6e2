//! Reading into places in a device's memory, with real threads and files. The device's memory is the CPU's here.

use super::{by, content, input, random_file};
use crate::{
    Completion, HostBuf, Options, Piece, Place, ReadAhead, ReadError, Source, SourceError, SourceOptions, forward,
    open,
    testing::{Addresses, Fault, Faulty, GARBAGE, Gate, WritesDevice},
};
use std::{
    any::Any,
    collections::HashMap,
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

const FILE: usize = 300_001;
const MAX: usize = 20_000;

/// A device's memory.
fn addresses(memory: &HostBuf) -> Addresses {
    Addresses { start: memory.address() as u64, len: memory.len() }
}

/// Places for all pieces, one behind the other.
fn places(pieces: &[Piece], block: usize, start: u64) -> Vec<Place> {
    let mut at = start;
    let place = |piece: &Piece| {
        let (begin, len) = piece.blocks(block);
        let place = Place { address: at, len, begin };
        at += len as u64;
        place
    };
    pieces.iter().map(place).collect()
}

struct Setup {
    bytes: Vec<u8>,
    pieces: Vec<Piece>,
    places: Vec<Place>,
    memory: HostBuf,
    _file: tempfile::NamedTempFile,
}

/// A file, and a reader of it into places, with faults by the number of the read.
fn start(
    io_uring: bool,
    owner: Arc<()>,
    faults: impl FnMut(u64, &Piece) -> Option<Fault> + Send + 'static,
) -> (Setup, ReadAhead) {
    let (file, bytes) = random_file(FILE, 40);
    let source = open(vec![input(&file)], &SourceOptions { depth: 4, by: by(io_uring), ..Default::default() }).unwrap();
    // SAFETY: the memory stays, and the tests look at places only between taking and permitting.
    let mut source = unsafe { WritesDevice::new(Faulty::new(source, faults)) };
    let memory = HostBuf::allocate(2 * FILE, 4096);
    let pieces: Vec<_> = Piece::cut(0, 77, FILE as u64 - 77, MAX).collect();
    let places = places(&pieces, source.block(), memory.address() as u64);
    let keeps: Arc<dyn Any + Send + Sync> = owner.clone();
    source.prepare_device(&addresses(&memory), &keeps).unwrap();
    let options = Options { stall: Duration::from_millis(150), ..Options::default() };
    // SAFETY: as above.
    let ahead =
        unsafe { ReadAhead::start_in_place(Box::new(source), pieces.clone(), places.clone(), owner, options).unwrap() };
    (Setup { bytes, pieces, places, memory, _file: file }, ahead)
}

impl Setup {
    fn take(&self, ahead: &ReadAhead, piece: usize) -> Result<(), ReadError> {
        ahead.take(piece)?;
        let (Place { address, begin, .. }, Piece { offset, len, .. }) = (self.places[piece], self.pieces[piece]);
        let at = address as usize - self.memory.address() + begin;
        let right = content(&self.memory)[at..at + len] == self.bytes[offset as usize..][..len];
        assert!(right, "wrong data in piece {piece}");
        Ok(())
    }
}

#[test]
fn pieces_land_in_their_places_whatever_passes() {
    for io_uring in [true, false] {
        let mut attempts = HashMap::new();
        let (it, ahead) = start(io_uring, Arc::new(()), move |_, piece| {
            let attempt = attempts.entry(piece.offset).or_insert(0);
            *attempt += 1;
            [None, Some(Fault::Fail), Some(Fault::Short(100)), Some(Fault::Refuse)][*attempt % 4].clone()
        });
        let count = it.pieces.len();
        (0..3).for_each(|_| ahead.permit());
        for turn in 0..2 * count {
            it.take(&ahead, turn % count).unwrap();
            ahead.permit();
        }
        ahead.seek(4);
        ahead.drained(&AtomicBool::new(false)).unwrap();
        assert!(matches!(ahead.take(4), Err(ReadError::NotPermitted { piece: 4 })));
        ahead.permit();
        it.take(&ahead, 4).unwrap();
    }
}

#[test]
fn what_does_not_come_back_keeps_its_place() {
    let (gate, owner) = (Gate::default(), Arc::new(()));
    let theirs = gate.clone();
    let (it, ahead) = start(true, owner.clone(), move |nth, _| (nth == 1).then(|| Fault::Stall(theirs.clone())));
    (0..2).for_each(|_| ahead.permit());
    it.take(&ahead, 0).unwrap();
    assert!(matches!(ahead.take(1), Err(ReadError::Stalled { .. })));
    ahead.seek(0);
    let no = AtomicBool::new(false);
    assert!(matches!(ahead.drained(&no), Err(ReadError::Stalled { .. })), "it may still write");
    assert!(matches!(ahead.drained(&AtomicBool::new(true)), Err(ReadError::Stalled { .. } | ReadError::Cancelled)));
    drop(ahead);
    assert_eq!(Arc::strong_count(&owner), 2, "the memory is not free");
    gate.open();
    let begin = Instant::now();
    while Arc::strong_count(&owner) > 1 {
        assert!(begin.elapsed() < Duration::from_secs(5), "the read did not end");
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(it);
}

#[test]
fn a_read_that_failed_leaves_garbage_that_nobody_takes() {
    let (it, ahead) = start(true, Arc::new(()), |nth, _| (nth >= 1).then_some(Fault::Fail));
    (0..2).for_each(|_| ahead.permit());
    it.take(&ahead, 0).unwrap();
    for _ in 0..2 {
        let error = ahead.take(1).unwrap_err().to_string();
        assert!(error.contains("failed (attempt 4): a fault on demand"), "{error}");
    }
    let at = it.places[1].address as usize - it.memory.address();
    assert!(content(&it.memory)[at..at + it.places[1].len].iter().all(|&byte| byte == GARBAGE));
}

/// Says that pieces begin elsewhere than they should.
struct Shifted<S>(S);

impl<S: Source> Source for Shifted<S> {
    forward!(self => self.0; submit, depth, is_queued, block, name, describe);

    fn wait(&mut self, timeout: Duration, done: &mut Vec<Completion>) -> Result<(), SourceError> {
        let result = self.0.wait(timeout, done);
        done.iter_mut().flat_map(|completion| &mut completion.result).for_each(|landed| landed.begin += 1);
        result
    }
}

#[test]
fn a_piece_that_comes_elsewhere_is_an_error() {
    let (file, _) = random_file(FILE, 42);
    let source = open(vec![input(&file)], &SourceOptions::default()).unwrap();
    // SAFETY: the memory stays, and nobody looks at it.
    let mut source = unsafe { WritesDevice::new(source) };
    let owner: Arc<dyn Any + Send + Sync> = Arc::new(());
    let memory = HostBuf::allocate(1 << 20, 4096);
    source.prepare_device(&addresses(&memory), &owner).unwrap();
    let pieces = vec![Piece { file: 0, offset: 100, len: 5000 }];
    let (begin, len) = pieces[0].blocks(source.block());
    let places = vec![Place { address: memory.address() as u64, len, begin }];
    let source = Box::new(Shifted(source));
    // SAFETY: as above.
    let ahead = unsafe { ReadAhead::start_in_place(source, pieces, places, owner, Options::default()).unwrap() };
    ahead.permit();
    let error = ahead.take(0).unwrap_err().to_string();
    assert!(error.contains(&format!("the piece came to byte {} of its place", begin + 1)), "{error}");
}

#[test]
fn places_that_do_not_fit_are_refused() {
    let (file, _) = random_file(FILE, 41);
    let pieces = [Piece { file: 0, offset: 100, len: 5000 }];
    let start = |place| {
        let source = open(vec![input(&file)], &SourceOptions::default()).unwrap();
        // SAFETY: nothing is permitted.
        let ahead = unsafe {
            ReadAhead::start_in_place(source, pieces.to_vec(), vec![place], Arc::new(()), Options::default())
        };
        ahead.err().map(|error| error.to_string())
    };
    let block = open(vec![input(&file)], &SourceOptions::default()).unwrap().block();
    let (begin, len) = pieces[0].blocks(block);
    assert_eq!(start(Place { address: 4096, len, begin }), None);
    for place in [Place { address: 4096, len: len + 1, begin }, Place { address: 4096, len, begin: begin + 1 }] {
        assert!(start(place).unwrap().contains("does not fill"));
    }
    // One that cannot write there answers so, and that is an error of the piece.
    let (source, place) =
        (open(vec![input(&file)], &SourceOptions::default()).unwrap(), Place { address: 4096, len, begin });
    // SAFETY: the source writes nothing there.
    let ahead = unsafe {
        ReadAhead::start_in_place(source, pieces.to_vec(), vec![place], Arc::new(()), Options::default()).unwrap()
    };
    ahead.permit();
    assert!(ahead.take(0).unwrap_err().to_string().contains("into host memory only"));
}
