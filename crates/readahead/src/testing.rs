//! Sources for tests of those who use sources: one that fails on demand, one that writes a device's memory by itself, and one that reads
//! whole blocks, as drives do.

use crate::{Completion, DeviceMemory, Dst, HostBuf, Piece, Source, SourceError, forward};
use std::{
    any::Any,
    collections::HashMap,
    io,
    os::fd::OwnedFd,
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// What a [`Faulty`] source writes where there is no data.
pub const GARBAGE: u8 = 0xee;

/// Something that is waited for until it opens.
#[derive(Debug, Clone, Default)]
pub struct Gate(Arc<AtomicBool>);

impl Gate {
    /// Opens it, for good.
    pub fn open(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    fn is_open(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// What goes wrong with a read.
#[derive(Debug, Clone)]
pub enum Fault {
    /// It is not started.
    Refuse,
    /// Its buffer is full of garbage, and it says that it failed.
    Fail,
    /// Only so many bytes of the piece come, garbage behind them.
    Short(usize),
    /// It begins so much later.
    Late(Duration),
    /// It begins when the gate opens. Until then it does not come back, also not for who drops a [`ReadAhead`](crate::ReadAhead).
    Stall(Gate),
}

/// Chooses the fault of the read that is submitted as the n-th, from 0.
pub type Choose = Box<dyn FnMut(u64, &Piece) -> Option<Fault> + Send>;

enum Due {
    At(Instant),
    Opened(Gate),
}

impl Due {
    fn is_due(&self) -> bool {
        match self {
            Due::At(time) => Instant::now() >= *time,
            Due::Opened(gate) => gate.is_open(),
        }
    }
}

/// A source with faults.
pub struct Faulty<S> {
    inner: S,
    choose: Choose,
    count: u64,
    held: Vec<(Due, u64, Piece, HostBuf)>,
    /// Reads in the inner source that will be damaged, with their buffers.
    damaged: HashMap<u64, (Fault, HostBuf)>,
    in_inner: usize,
}

impl<S: Source> Faulty<S> {
    /// `inner`, with the faults that `choose` chooses.
    pub fn new(inner: S, choose: impl FnMut(u64, &Piece) -> Option<Fault> + Send + 'static) -> Self {
        Self { inner, choose: Box::new(choose), count: 0, held: Vec::new(), damaged: HashMap::new(), in_inner: 0 }
    }

    fn start(&mut self, id: u64, piece: &Piece, buffer: HostBuf) -> Result<(), SourceError> {
        self.inner.submit(id, piece, Dst::Host(buffer))?;
        self.in_inner += 1;
        Ok(())
    }

    fn damage(&mut self, completion: Completion) -> Completion {
        let Completion { id, result } = completion;
        let result = match (self.damaged.remove(&id), result) {
            (Some((Fault::Short(len), mut buffer)), Ok(mut landed)) => {
                landed.len = landed.len.min(len);
                buffer.bytes()[landed.begin + landed.len..].fill(GARBAGE);
                Ok(landed)
            }
            (Some((_, mut buffer)), Ok(_)) => {
                buffer.bytes().fill(GARBAGE);
                Err(io::Error::other("a fault on demand").into())
            }
            (_, result) => result,
        };
        Completion { id, result }
    }
}

impl<S: Source> Source for Faulty<S> {
    forward!(self => self.inner; depth, is_queued, block, prepare, name);

    fn submit(&mut self, id: u64, piece: &Piece, dst: Dst) -> Result<(), SourceError> {
        let buffer = dst.host()?;
        let fault = (self.choose)(self.count, piece);
        self.count += 1;
        match fault {
            Some(Fault::Refuse) => Err(io::Error::other("a refusal on demand").into()),
            Some(Fault::Late(time)) => {
                self.held.push((Due::At(Instant::now() + time), id, *piece, buffer));
                Ok(())
            }
            Some(Fault::Stall(gate)) => {
                self.held.push((Due::Opened(gate), id, *piece, buffer));
                Ok(())
            }
            Some(fault) => {
                let same = buffer.share();
                self.start(id, piece, buffer)?;
                self.damaged.insert(id, (fault, same));
                Ok(())
            }
            None => self.start(id, piece, buffer),
        }
    }

    fn wait(&mut self, timeout: Duration, done: &mut Vec<Completion>) -> Result<(), SourceError> {
        let (end, before) = (Instant::now() + timeout, done.len());
        let mut came = Vec::new();
        while done.len() == before && !(self.held.is_empty() && self.in_inner == 0) {
            for (_, id, piece, buffer) in self.held.extract_if(.., |(due, ..)| due.is_due()).collect::<Vec<_>>() {
                if let Err(error) = self.start(id, &piece, buffer) {
                    done.push(Completion { id, result: Err(error) });
                }
            }
            let slice = end.saturating_duration_since(Instant::now()).min(Duration::from_millis(1));
            match self.in_inner {
                0 => thread::sleep(slice),
                _ => self.inner.wait(slice, &mut came)?,
            }
            self.in_inner -= came.len();
            for completion in came.drain(..) {
                let completion = self.damage(completion);
                done.push(completion);
            }
            if Instant::now() >= end {
                break;
            }
        }
        Ok(())
    }

    fn describe(&self) -> String {
        format!("{}, with faults", self.inner.describe())
    }
}

/// A source that reads whole blocks around each piece, as far as its files have them, through one that reads any bytes.
pub struct Blocks<S> {
    inner: S,
    block: usize,
    /// The files' bytes.
    files: Vec<u64>,
    /// Where the pieces in flight begin in their blocks, and how long they are.
    reads: HashMap<u64, (usize, usize)>,
}

impl<S: Source> Blocks<S> {
    /// `inner`, whose block is 1, in blocks of `block` bytes, a power of two. `files` are the lengths of its files.
    pub fn new(inner: S, block: usize, files: Vec<u64>) -> Self {
        assert_eq!(inner.block(), 1);
        Self { inner, block, files, reads: HashMap::new() }
    }
}

impl<S: Source> Source for Blocks<S> {
    forward!(self => self.inner; depth, is_queued, name);

    fn submit(&mut self, id: u64, piece: &Piece, dst: Dst) -> Result<(), SourceError> {
        let buffer = dst.host()?;
        let (begin, whole) = piece.blocks(self.block);
        if buffer.len() < whole || !buffer.address().is_multiple_of(self.block) {
            return Err(SourceError::Small { len: buffer.len(), need: whole, block: self.block });
        }
        let (offset, size) = (piece.offset - begin as u64, self.files[piece.file]);
        let len = whole.min(size.saturating_sub(offset).max(1) as usize);
        self.inner.submit(id, &Piece { offset, len, ..*piece }, Dst::Host(buffer))?;
        self.reads.insert(id, (begin, piece.len));
        Ok(())
    }

    fn wait(&mut self, timeout: Duration, done: &mut Vec<Completion>) -> Result<(), SourceError> {
        let before = done.len();
        let result = self.inner.wait(timeout, done);
        for completion in &mut done[before..] {
            let (begin, len) = self.reads.remove(&completion.id).expect("a read ends once");
            if let Ok(landed) = &mut completion.result {
                (landed.begin, landed.len) = (begin, landed.len.saturating_sub(begin).min(len));
            }
        }
        result
    }

    fn block(&self) -> usize {
        self.block
    }

    fn describe(&self) -> String {
        format!("{}, in blocks of {} bytes", self.inner.describe(), self.block)
    }
}

/// Memory of a device whose addresses are the CPU's, of which nothing else is known.
pub struct Addresses {
    /// Of its first byte.
    pub start: u64,
    /// How many bytes.
    pub len: usize,
}

impl DeviceMemory for Addresses {
    fn address(&self) -> u64 {
        self.start
    }

    fn len(&self) -> usize {
        self.len
    }

    fn pci_address(&self) -> Option<String> {
        None
    }

    fn write(&self, _: usize, _: &[u8]) -> Result<(), String> {
        Err("nobody asks for it".to_owned())
    }

    fn read(&self, _: usize, _: &mut [u8]) -> Result<(), String> {
        Err("nobody asks for it".to_owned())
    }

    fn dma_buf(&self) -> Result<OwnedFd, String> {
        Err("nobody asks for it".to_owned())
    }
}

/// A source that writes the memory of a device by itself, where a device's addresses are the CPU's: what another source reads lands
/// there, whole blocks of it. From when a read begins until it ends there is garbage in its place, and behind one that failed whatever it
/// brought: who needs what was there before, or uses it too early, sees that.
pub struct WritesDevice<S> {
    inner: S,
    /// Why it cannot, after all.
    refuses: Option<String>,
    /// Device memory that was told of.
    memory: Option<(u64, usize)>,
    reads: HashMap<u64, (HostBuf, u64, usize)>,
}

impl<S: Source> WritesDevice<S> {
    /// A source that reads as `inner` does.
    ///
    /// # Safety
    /// Whoever calls [`Source::submit`] promises of the bytes at a device address what [`HostBuf::new`] asks for.
    pub unsafe fn new(inner: S) -> Self {
        Self { inner, refuses: None, memory: None, reads: HashMap::new() }
    }

    /// The same that turns out not to be able to, and says why.
    pub fn refusing(self, why: &str) -> Self {
        Self { refuses: Some(why.to_owned()), ..self }
    }

    /// Puts what a read brought, or garbage, into its place.
    fn land(buffer: &mut HostBuf, address: u64, len: usize) {
        let place = NonNull::new(address as *mut u8).expect("a device's memory is not at 0");
        // SAFETY: `new`'s caller vouches for what `submit` was given. The buffer is memory of its own.
        unsafe { place.copy_from_nonoverlapping(NonNull::from(&mut buffer.bytes()[..len]).cast(), len) }
    }
}

impl<S: Source> Source for WritesDevice<S> {
    forward!(self => self.inner; depth, is_queued, block, prepare, name);

    fn submit(&mut self, id: u64, piece: &Piece, dst: Dst) -> Result<(), SourceError> {
        let Dst::Vram { address, len } = dst else { return self.inner.submit(id, piece, dst) };
        let (_, need) = piece.blocks(self.inner.block());
        let inside = |&(start, all): &(u64, usize)| address >= start && address + len as u64 <= start + all as u64;
        if len < need || !self.memory.as_ref().is_some_and(inside) {
            return Err(SourceError::Small { len, need, block: self.inner.block() });
        }
        let mut buffer = HostBuf::allocate(self.inner.room(piece.len), self.inner.block());
        buffer.bytes().fill(GARBAGE);
        self.inner.submit(id, piece, Dst::Host(buffer.share()))?;
        let mut garbage = HostBuf::allocate(len, 1);
        garbage.bytes().fill(GARBAGE);
        Self::land(&mut garbage, address, len);
        self.reads.insert(id, (buffer, address, len));
        Ok(())
    }

    fn wait(&mut self, timeout: Duration, done: &mut Vec<Completion>) -> Result<(), SourceError> {
        let before = done.len();
        let result = self.inner.wait(timeout, done);
        for completion in &done[before..] {
            if let Some((mut buffer, address, len)) = self.reads.remove(&completion.id) {
                let len = len.min(buffer.len());
                Self::land(&mut buffer, address, len);
            }
        }
        result
    }

    fn lands_in_device(&self) -> bool {
        true
    }

    fn prepare_device(&mut self, memory: &dyn DeviceMemory, _: &Arc<dyn Any + Send + Sync>) -> Result<(), String> {
        if let Some(why) = &self.refuses {
            return Err(why.clone());
        }
        self.memory = Some((memory.address(), memory.len()));
        Ok(())
    }

    fn describe(&self) -> String {
        format!("{}, written by the source", self.inner.describe())
    }
}
