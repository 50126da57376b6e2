//! The driver's way to a [`Model`].

use super::{Media, Model, PageTable, Traits, Words};
use crate::{BusAddr, BusMemory, DmaBuf, Door, Error, Registers, registers::DOORBELLS};
use std::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    ptr::NonNull,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// What a pause takes by a clock that goes on by nothing else.
const TICK: Duration = Duration::from_micros(100);

/// Bytes that are contiguous on the bus in what [`Door::allocate`] gives.
const RUN: usize = 64 << 10;

/// Power of two of a mebibyte.
const MIB: u32 = 20;

/// Who plays the controller.
enum Player {
    /// The driver's pauses, each of which is a tick.
    Pauses(AtomicU64),
    /// A thread that runs the model.
    Thread,
}

/// A door to a controller in the same process. Memory has scattered addresses on the bus.
pub struct ModelDoor {
    words: Arc<Words>,
    bus: Arc<PageTable>,
    model: Mutex<Model>,
    player: Player,
    start: Instant,
    /// Runs of memory that were given out, and one.
    runs: AtomicU64,
    bus_master: AtomicBool,
}

impl ModelDoor {
    /// A controller with these traits and namespaces, which steps on when the driver pauses, by a clock of its own.
    pub fn new(traits: Traits, media: Vec<Arc<Media>>) -> Arc<ModelDoor> {
        Self::with_player(traits, media, Player::Pauses(AtomicU64::new(0)))
    }

    /// One that a thread has to [`run`](Model::run).
    pub fn threaded(traits: Traits, media: Vec<Arc<Media>>) -> Arc<ModelDoor> {
        Self::with_player(traits, media, Player::Thread)
    }

    fn with_player(traits: Traits, media: Vec<Arc<Media>>, player: Player) -> Arc<ModelDoor> {
        let doorbells = (2 * (usize::from(traits.queues) + 1)) * (4 << traits.doorbell_stride);
        let (words, bus) = (Arc::new(Words::new(DOORBELLS + doorbells)), Arc::new(PageTable::default()));
        let model = Model::new(words.clone(), bus.clone(), traits, media);
        Arc::new(ModelDoor {
            words,
            bus,
            model: Mutex::new(model),
            player,
            start: Instant::now(),
            runs: AtomicU64::new(1),
            bus_master: AtomicBool::new(false),
        })
    }

    /// The controller.
    pub fn model(&self) -> std::sync::MutexGuard<'_, Model> {
        self.model.lock().expect("no holder panics")
    }

    /// The registers, to tamper with.
    pub fn words(&self) -> &Words {
        &self.words
    }

    /// The memory by its bus addresses.
    pub fn bus(&self) -> &PageTable {
        &self.bus
    }

    /// Whether the device may use the bus.
    pub fn is_bus_master(&self) -> bool {
        self.bus_master.load(Ordering::SeqCst)
    }

    /// Memory of `len` bytes at least, of which runs of `run` bytes, a multiple of 4 KiB, are contiguous on the bus.
    pub fn allocate_runs(&self, len: usize, run: usize) -> DmaBuf {
        let len = len.next_multiple_of(run);
        let memory = Allocation::new(len);
        assert!(run <= 1 << MIB, "runs of 1 MiB at most");
        // Multiples of an odd number are scattered over 28 bits, and none is there twice.
        let first = self.runs.fetch_add((len / run) as u64, Ordering::Relaxed);
        let scattered = |index: u64| BusAddr((index.wrapping_mul(0x9e37_79b1) & 0xfff_ffff) << MIB);
        let extents: Vec<_> = (first..).take(len / run).map(scattered).collect();
        for (index, &address) in extents.iter().enumerate() {
            for at in (0..run).step_by(4096) {
                self.bus.insert(address.offset(at), memory.0.as_ptr() as usize + index * run + at);
            }
        }
        let ptr = memory.0;
        let owner = Mapped { bus: self.bus.clone(), extents: extents.clone(), run, _memory: memory };
        // SAFETY: the addresses lead the model to this memory alone, until the owner takes them out of the table.
        let bus = unsafe { BusMemory::new(extents.into_iter().map(|address| (address, run)), Box::new(owner)) };
        // SAFETY: the owner keeps the memory, which is aligned to 64 KiB.
        unsafe { DmaBuf::new(ptr, bus.expect("addresses of 48 bits")) }
    }
}

impl Registers for ModelDoor {
    fn read32(&self, offset: usize) -> u32 {
        self.words.load(offset)
    }

    fn write32(&self, offset: usize, value: u32) {
        self.words.store(offset, value);
    }

    fn pause(&self) {
        match &self.player {
            Player::Pauses(ticks) => {
                ticks.fetch_add(1, Ordering::Relaxed);
                self.model().step();
            }
            Player::Thread => std::thread::yield_now(),
        }
    }

    fn now(&self) -> Instant {
        match &self.player {
            Player::Pauses(ticks) => self.start + TICK * ticks.load(Ordering::Relaxed) as u32,
            Player::Thread => Instant::now(),
        }
    }
}

impl Door for ModelDoor {
    fn name(&self) -> &str {
        "model"
    }

    fn describe(&self) -> String {
        "a controller in this process".into()
    }

    fn allocate(&self, len: usize) -> Result<DmaBuf, Error> {
        Ok(self.allocate_runs(len, RUN))
    }

    fn set_bus_master(&self, on: bool) -> Result<(), Error> {
        self.bus_master.store(on, Ordering::SeqCst);
        Ok(())
    }
}

struct Allocation(NonNull<u8>, Layout);

// SAFETY: only an address; the memory goes with it, from whatever thread.
unsafe impl Send for Allocation {}
// SAFETY: a shared reference gives the address alone.
unsafe impl Sync for Allocation {}

impl Allocation {
    fn new(len: usize) -> Allocation {
        let layout = Layout::from_size_align(len, RUN).expect("a test's sizes");
        // SAFETY: the layout has bytes.
        let ptr = unsafe { alloc_zeroed(layout) };
        Allocation(NonNull::new(ptr).unwrap_or_else(|| handle_alloc_error(layout)), layout)
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: it was allocated with this layout.
        unsafe { dealloc(self.0.as_ptr(), self.1) };
    }
}

/// Memory in a page table, which leaves it when it is dropped.
struct Mapped {
    bus: Arc<PageTable>,
    extents: Vec<BusAddr>,
    run: usize,
    _memory: Allocation,
}

impl Drop for Mapped {
    fn drop(&mut self) {
        for address in &self.extents {
            (0..self.run).step_by(4096).for_each(|at| self.bus.remove(address.offset(at)));
        }
    }
}
