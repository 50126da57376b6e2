//! The thread that reads ahead, and how it and the consumer wait for each other.

use super::sync::{Condvar, Mutex, MutexGuard, now, thread};
use crate::{
    BufferId, Completion, Dst, Filled, HostBuf, Options, Piece, Place, ReadError, Source, SourceError, Span,
    protocol::{Protocol, Read, Step},
};
use std::{
    any::Any,
    collections::HashMap,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// How long the reading thread waits for the source before it looks whether the consumer has given a buffer back. Reads that come
/// back wake it anyway, and while there are some in flight the drive has work.
const TICK: Duration = Duration::from_millis(2);
/// How long the consumer waits before it looks at the clock itself: a source that blocks where it should not cannot hold it up.
const LOOK: Duration = Duration::from_millis(100);
/// Pieces that are read into their places before the first of them is taken, at most: with pieces of 4 MiB, 1 GiB.
pub(crate) const AHEAD: usize = 256;

struct Shared {
    protocol: Mutex<Protocol>,
    /// Something changed for the reading thread: a buffer, a seek, the end.
    to_reader: Condvar,
    /// Something changed for the consumer: a piece, an error, the end.
    to_consumer: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Protocol> {
        self.protocol.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is read into.
enum Memory {
    /// Buffers, whichever is free.
    Lent(Vec<HostBuf>),
    /// A place in the device's memory for each piece, which is there as long as the owner.
    Places { places: Vec<Place>, _owner: Arc<dyn Any + Send + Sync> },
}

impl Memory {
    /// Where a read goes.
    fn of(&self, read: &Read) -> Dst {
        match self {
            Memory::Lent(buffers) => Dst::Host(buffers[read.buffer].share()),
            Memory::Places { places, .. } => {
                let Place { address, len, .. } = places[read.number];
                Dst::Vram { address, len }
            }
        }
    }

    /// Makes an error of a piece that came elsewhere than it should.
    fn check(&self, protocol: &Protocol, completion: &mut Completion) {
        if let (Memory::Places { places, .. }, Ok(landed)) = (self, &completion.result)
            && let Some(want) = protocol.piece_of(completion.id).map(|piece| places[piece].begin)
            && want != landed.begin
        {
            completion.result = Err(SourceError::Misplaced { got: landed.begin, want });
        }
    }
}

/// Reads a list of pieces in a cycle, or once ([`Options::once`]), in order, ahead of who takes them.
///
/// Reading begins at once, with piece 0, and goes on while there are buffers. Pieces are taken in the same order, and each buffer is
/// given back when its content is not needed any more. Any number of buffers will do: with one, nothing is read while it is taken.
///
/// Dropping it waits for the reads in flight. A read that has been in flight for longer than [`Options::stall`] is waited for only if
/// its buffer has no owner ([`HostBuf::new`]); else the thread stays behind with it, and the buffers.
///
/// With a source that writes the device's memory by itself, each piece can be read into a place of its own there instead
/// ([`start_in_place`](Self::start_in_place)).
pub struct ReadAhead {
    shared: Arc<Shared>,
    thread: Option<thread::JoinHandle<()>>,
    /// Whether the buffers stay there for reads that never come back.
    owned: bool,
    description: String,
}

impl ReadAhead {
    /// Begins to read `pieces` into `buffers`.
    ///
    /// # Errors
    /// There are no pieces or no buffers, a buffer does not begin at a block of the source or has too little room for a piece
    /// ([`Source::room`]), or no thread can be had.
    pub fn start(
        mut source: Box<dyn Source>,
        pieces: Vec<Piece>,
        buffers: Vec<HostBuf>,
        options: Options,
    ) -> Result<Self, ReadError> {
        let refuse = |why: String| Err(ReadError::Start(why));
        let Some(longest) = pieces.iter().map(|piece| piece.len).max() else { return refuse("no pieces".to_owned()) };
        let (need, block) = (source.room(longest), source.block());
        if buffers.is_empty() {
            return refuse("no buffers".to_owned());
        }
        for (index, buffer) in buffers.iter().enumerate() {
            if buffer.len() < need {
                let len = buffer.len();
                return refuse(format!("buffer {index} has {len} bytes; a piece of {longest} needs {need}"));
            }
            if !buffer.address().is_multiple_of(block) {
                return refuse(format!("buffer {index} at {:#x} is not aligned to {block} bytes", buffer.address()));
            }
        }
        source.prepare(&buffers);
        let names = names(&*source, &pieces);
        let owned = buffers.iter().all(HostBuf::is_owned);
        let protocol = Protocol::new(pieces, names, buffers.len(), source.depth(), options);
        Self::spawn(source, protocol, Memory::Lent(buffers), owned)
    }

    /// Begins to read each piece into its place in the device's memory, which `source` has been
    /// [prepared](Source::prepare_device) for. A piece is read when it is [permitted](Self::permit). To take it gives it away: nothing
    /// has to be given back.
    ///
    /// # Safety
    /// The memory is there until this is dropped and nobody else has a share of `owner`. From when a piece is permitted until it is
    /// taken, and behind a [`seek`](Self::seek) until all reads have [come back](Self::drained), nobody reads or writes its place.
    ///
    /// # Errors
    /// There are no pieces, a place is not that of the whole blocks around its piece, or no thread can be had.
    pub unsafe fn start_in_place(
        source: Box<dyn Source>,
        pieces: Vec<Piece>,
        places: Vec<Place>,
        owner: Arc<dyn Any + Send + Sync>,
        options: Options,
    ) -> Result<Self, ReadError> {
        if pieces.is_empty() || places.len() != pieces.len() {
            return Err(ReadError::Start(format!("{} pieces and {} places", pieces.len(), places.len())));
        }
        for (piece, place) in pieces.iter().zip(&places) {
            if piece.blocks(source.block()) != (place.begin, place.len) {
                let Place { begin, len, .. } = place;
                let why =
                    format!("{piece:?} in blocks of {} bytes does not fill {len} from {begin} on", source.block());
                return Err(ReadError::Start(why));
            }
        }
        let names = names(&*source, &pieces);
        let protocol = Protocol::new(pieces, names, AHEAD, source.depth(), options).in_place();
        Self::spawn(source, protocol, Memory::Places { places, _owner: owner }, true)
    }

    fn spawn(source: Box<dyn Source>, protocol: Protocol, memory: Memory, owned: bool) -> Result<Self, ReadError> {
        let description = source.describe();
        let shared =
            Arc::new(Shared { protocol: Mutex::new(protocol), to_reader: Condvar::new(), to_consumer: Condvar::new() });
        let theirs = shared.clone();
        let thread = thread::Builder::new()
            .name("read ahead".to_owned())
            .spawn(move || read(&theirs, source, memory))
            .map_err(|error| ReadError::Start(format!("no thread: {error}")))?;
        Ok(Self { shared, thread: Some(thread), owned, description })
    }

    /// Takes the next piece, which has to be `piece`; waits until it is there.
    ///
    /// # Errors
    /// It could not be read ([`ReadError::Failed`], [`ReadError::Stalled`]): the same answer again until a [`seek`](Self::seek).
    /// Another piece is next. All buffers are taken, so that waiting would be in vain: [`try_take`](Self::try_take) is for those who
    /// give back on another thread, or later.
    pub fn take(&self, piece: usize) -> Result<Filled, ReadError> {
        self.take_unless(&AtomicBool::new(false), piece)
    }

    /// As [`take`](Self::take), but gives up a tenth of a second after `cancel` has become true.
    ///
    /// # Errors
    /// As there, and [`ReadError::Cancelled`].
    pub fn take_unless(&self, cancel: &AtomicBool, piece: usize) -> Result<Filled, ReadError> {
        let mut protocol = self.shared.lock();
        loop {
            if let Some(filled) = protocol.take(piece, now())? {
                return Ok(filled);
            }
            if cancel.load(Ordering::Relaxed) {
                return Err(ReadError::Cancelled);
            }
            protocol = self.wait(protocol);
        }
    }

    /// As [`take`](Self::take), but waits for `patience` at most, or a tenth of a second if that is less: none if it is not there by then.
    ///
    /// # Errors
    /// As there, and [`ReadError::Cancelled`].
    pub fn take_within(
        &self,
        cancel: &AtomicBool,
        piece: usize,
        patience: Duration,
    ) -> Result<Option<Filled>, ReadError> {
        let mut protocol = self.shared.lock();
        let mut filled = protocol.take(piece, now())?;
        if filled.is_none() && cancel.load(Ordering::Relaxed) {
            return Err(ReadError::Cancelled);
        }
        if filled.is_none() && !patience.is_zero() {
            protocol = self.wait_for(protocol, patience.min(LOOK));
            filled = protocol.take(piece, now())?;
        }
        Ok(filled)
    }

    /// Takes the next piece, which has to be `piece`, if it is there.
    ///
    /// # Errors
    /// As [`take`](Self::take), but that all buffers are taken is none.
    pub fn try_take(&self, piece: usize) -> Result<Option<Filled>, ReadError> {
        match self.shared.lock().take(piece, now()) {
            Err(ReadError::AllTaken { .. }) => Ok(None),
            answer => answer,
        }
    }

    /// Gives a buffer back: it will be read into.
    pub fn give_back(&self, buffer: BufferId) {
        self.shared.lock().give_back(buffer);
        self.shared.to_reader.notify_one();
    }

    /// Lets one more piece be read into its place: the first, or the one that was sought, or the one behind the last that was permitted,
    /// in the cycle.
    pub fn permit(&self) {
        self.shared.lock().permit();
        self.shared.to_reader.notify_one();
    }

    /// Waits until the reads have come back that were in flight at a [`seek`](Self::seek): from then on nothing is written into places
    /// that are not permitted. Gives up a tenth of a second after `cancel` has become true.
    ///
    /// # Errors
    /// One does not come back ([`ReadError::Stalled`]), the source is broken, or [`ReadError::Cancelled`].
    pub fn drained(&self, cancel: &AtomicBool) -> Result<(), ReadError> {
        let mut protocol = self.shared.lock();
        while !protocol.drained(now())? {
            if cancel.load(Ordering::Relaxed) {
                return Err(ReadError::Cancelled);
            }
            protocol = self.wait(protocol);
        }
        Ok(())
    }

    /// Starts the cycle again at `piece` (modulo their number). What was read ahead is dropped, also reads that are still in flight,
    /// when they come back. Buffers that are taken stay taken, and no piece is permitted any more. Clears an error.
    pub fn seek(&self, piece: usize) {
        self.shared.lock().seek(piece);
        self.shared.to_reader.notify_one();
    }

    /// Hands out the reads that have succeeded since it was last asked, in the order in which they did; the latest 65,536.
    pub fn spans(&self, f: &mut dyn FnMut(Span)) {
        let spans = self.shared.lock().spans();
        spans.into_iter().for_each(f);
    }

    /// [`Source::describe`], after the buffers were made known to it.
    pub fn describe(&self) -> &str {
        &self.description
    }

    fn wait<'a>(&self, protocol: MutexGuard<'a, Protocol>) -> MutexGuard<'a, Protocol> {
        self.wait_for(protocol, LOOK)
    }

    fn wait_for<'a>(&self, protocol: MutexGuard<'a, Protocol>, time: Duration) -> MutexGuard<'a, Protocol> {
        self.shared.to_consumer.wait_timeout(protocol, time).unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        let mut protocol = self.shared.lock();
        protocol.stop();
        self.shared.to_reader.notify_one();
        while !protocol.has_ended() {
            if self.owned && protocol.is_stuck(now()) {
                return;
            }
            protocol = self.wait(protocol);
        }
        drop(protocol);
        if let Some(thread) = self.thread.take() {
            // A panic of the source has been printed by its thread.
            let _ = thread.join();
        }
    }
}

/// The names of the pieces' files.
pub(crate) fn names(source: &dyn Source, pieces: &[Piece]) -> HashMap<usize, String> {
    pieces.iter().map(|piece| (piece.file, source.name(piece.file))).collect()
}

/// Says that the reading thread has ended, also when the source panics.
struct Ended<'a>(&'a Shared);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.lock().end();
        self.0.to_consumer.notify_all();
    }
}

/// Takes in what came of waiting for `source`. Whether a read is late.
pub(crate) fn waited(
    protocol: &mut Protocol,
    source: &dyn Source,
    done: &mut Vec<Completion>,
    result: Result<(), SourceError>,
) -> bool {
    for Completion { id, result } in done.drain(..) {
        protocol.completed(id, result, now());
    }
    protocol.queued(&mut |id| source.is_queued(id), now());
    if let Err(error) = result {
        protocol.broke(error);
    }
    protocol.expire(now())
}

/// The reading thread.
fn read(shared: &Shared, source: Box<dyn Source>, memory: Memory) {
    let _ended = Ended(shared);
    // Dropped before `_ended`, so that nothing is written any more when the end is told; and what is written to, behind the source.
    let memory = memory;
    let mut source = source;
    let mut done = Vec::new();
    loop {
        let mut protocol = shared.lock();
        let step = loop {
            match protocol.next(now()) {
                Step::Sleep => protocol = shared.to_reader.wait(protocol).unwrap_or_else(PoisonError::into_inner),
                step => break step,
            }
        };
        drop(protocol);
        match step {
            Step::Read(reads) => {
                for read in reads {
                    if let Err(error) = source.submit(read.id, &read.piece, memory.of(&read)) {
                        shared.lock().completed(read.id, Err(error), now());
                        shared.to_consumer.notify_all();
                    }
                }
            }
            Step::Wait => {
                let result = source.wait(TICK, &mut done);
                let mut protocol = shared.lock();
                let mut news = !done.is_empty() || result.is_err();
                for completion in &mut done {
                    memory.check(&protocol, completion);
                }
                news |= waited(&mut protocol, &*source, &mut done, result);
                if news {
                    shared.to_consumer.notify_all();
                }
            }
            Step::Sleep | Step::Exit => break,
        }
    }
}
