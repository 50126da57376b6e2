//! The thread that reads ahead, and how it and the consumer wait for each other.

use super::sync::{Condvar, Mutex, MutexGuard, now, thread};
use crate::{
    BufferId, Dst, Filled, HostBuf, Options, Piece, ReadError, Source, Span,
    protocol::{Protocol, Step},
};
use std::{
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

/// Reads a list of pieces in a cycle, or once ([`Options::once`]), in order, ahead of who takes them.
///
/// Reading begins at once, with piece 0, and goes on while there are buffers. Pieces are taken in the same order, and each buffer is
/// given back when its content is not needed any more. Any number of buffers will do: with one, nothing is read while it is taken.
///
/// Dropping it waits for the reads in flight. A read that has been in flight for longer than [`Options::stall`] is waited for only if
/// its buffer has no owner ([`HostBuf::new`]); else the thread stays behind with it, and the buffers.
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
        let description = source.describe();
        let names = pieces.iter().map(|piece| (piece.file, source.name(piece.file))).collect();
        let owned = buffers.iter().all(HostBuf::is_owned);
        let shared = Arc::new(Shared {
            protocol: Mutex::new(Protocol::new(pieces, names, buffers.len(), source.depth(), options)),
            to_reader: Condvar::new(),
            to_consumer: Condvar::new(),
        });
        let theirs = shared.clone();
        let thread = thread::Builder::new()
            .name("read ahead".to_owned())
            .spawn(move || read(&theirs, source, &buffers))
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

    /// Starts the cycle again at `piece` (modulo their number). What was read ahead is dropped, also reads that are still in flight,
    /// when they come back. Buffers that are taken stay taken. Clears an error.
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
        self.shared.to_consumer.wait_timeout(protocol, LOOK).unwrap_or_else(PoisonError::into_inner).0
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

/// Says that the reading thread has ended, also when the source panics.
struct Ended<'a>(&'a Shared);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.lock().end();
        self.0.to_consumer.notify_all();
    }
}

/// The reading thread.
fn read(shared: &Shared, source: Box<dyn Source>, buffers: &[HostBuf]) {
    let _ended = Ended(shared);
    // Dropped before `_ended`, so that nothing is written any more when the end is told.
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
                    let dst = Dst::Host(buffers[read.buffer].share());
                    if let Err(error) = source.submit(read.id, &read.piece, dst) {
                        shared.lock().completed(read.id, Err(error), now());
                        shared.to_consumer.notify_all();
                    }
                }
            }
            Step::Wait => {
                let result = source.wait(TICK, &mut done);
                let mut protocol = shared.lock();
                let mut news = !done.is_empty() || result.is_err();
                for completion in done.drain(..) {
                    protocol.completed(completion.id, completion.result, now());
                }
                if let Err(error) = result {
                    protocol.broke(error);
                }
                news |= protocol.expire(now());
                if news {
                    shared.to_consumer.notify_all();
                }
            }
            Step::Sleep | Step::Exit => break,
        }
    }
}
