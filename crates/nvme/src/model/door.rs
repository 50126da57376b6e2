//! The driver's way to a [`Model`].

use super::{Bus, Media, Model, PageTable, Traits, Words};
use crate::{
    BusAddr, BusMemory, Csts, DmaBuf, Door, Error, Registers,
    registers::{CSTS, DOORBELLS},
};
use std::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    any::Any,
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
    taken: AtomicBool,
    removed: AtomicBool,
    holds: AtomicBool,
}

impl ModelDoor {
    /// A controller with these traits and namespaces, which steps on when the driver pauses, by a clock of its own.
    pub fn new(traits: Traits, media: Vec<Arc<Media>>) -> Arc<ModelDoor> {
        let words = Words::new(ModelDoor::registers(&traits));
        Self::with_player(traits, media, Player::Pauses(AtomicU64::new(0)), words, |bus| bus)
    }

    /// One that a thread has to [`run`](Model::run).
    pub fn threaded(traits: Traits, media: Vec<Arc<Media>>) -> Arc<ModelDoor> {
        let words = Words::new(ModelDoor::registers(&traits));
        Self::threaded_in(traits, media, words, |bus| bus)
    }

    /// The same whose registers are `words`, [`Self::registers`] bytes of zeros, and whose bus is made by `bus` of the one that has the
    /// memory of this door.
    pub fn threaded_in(
        traits: Traits,
        media: Vec<Arc<Media>>,
        words: Words,
        bus: impl FnOnce(Arc<dyn Bus>) -> Arc<dyn Bus>,
    ) -> Arc<ModelDoor> {
        Self::with_player(traits, media, Player::Thread, words, bus)
    }

    /// Bytes of a controller's registers.
    pub fn registers(traits: &Traits) -> usize {
        DOORBELLS + (2 * (usize::from(traits.queues) + 1)) * (4 << traits.doorbell_stride)
    }

    fn with_player(
        traits: Traits,
        media: Vec<Arc<Media>>,
        player: Player,
        words: Words,
        outer: impl FnOnce(Arc<dyn Bus>) -> Arc<dyn Bus>,
    ) -> Arc<ModelDoor> {
        let (words, bus) = (Arc::new(words), Arc::new(PageTable::default()));
        let model = Model::new(words.clone(), outer(bus.clone()), traits, media);
        Arc::new(ModelDoor {
            words,
            bus,
            model: Mutex::new(model),
            player,
            start: Instant::now(),
            runs: AtomicU64::new(1),
            bus_master: AtomicBool::new(false),
            taken: AtomicBool::new(false),
            removed: AtomicBool::new(false),
            holds: AtomicBool::new(true),
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

    /// From now on, the device is gone: its registers read as ones.
    pub fn remove(&self) {
        self.removed.store(true, Ordering::SeqCst);
    }

    /// From now on, a driver of the kernel has the device.
    pub fn take(&self) {
        self.taken.store(true, Ordering::SeqCst);
    }

    /// From now on, memory is held in its place by nobody, as without an IOMMU.
    pub fn without_iommu(&self) {
        self.holds.store(false, Ordering::SeqCst);
    }

    /// Memory of `len` bytes at least, of which runs of `run` bytes, a multiple of 4 KiB, are contiguous on the bus.
    pub fn allocate_runs(&self, len: usize, run: usize) -> DmaBuf {
        let memory = Allocation::new(len.next_multiple_of(run));
        let (ptr, len) = (memory.0, memory.1.size());
        // SAFETY: new memory, which goes with its owner.
        let bus = unsafe { self.map_runs(ptr, len, run, Box::new(memory)) };
        // SAFETY: as above; it is aligned to 64 KiB.
        unsafe { DmaBuf::new(ptr, bus.expect("addresses of 48 bits")) }
    }

    /// # Safety
    /// As for [`Door::map`].
    unsafe fn map_runs(
        &self,
        ptr: NonNull<u8>,
        len: usize,
        run: usize,
        owner: Box<dyn Any + Send + Sync>,
    ) -> Result<BusMemory, Error> {
        assert!(run <= 1 << MIB, "runs of 1 MiB at most");
        let count = len.div_ceil(run);
        // Multiples of an odd number are scattered over 28 bits, and none is there twice.
        let first = self.runs.fetch_add(count as u64, Ordering::Relaxed);
        let scattered = |index: u64| BusAddr((index.wrapping_mul(0x9e37_79b1) & 0xfff_ffff) << MIB);
        let runs: Vec<_> = (first..).take(count).map(scattered).collect();
        let extents: Vec<_> =
            runs.iter().enumerate().map(|(index, &address)| (address, run.min(len - index * run))).collect();
        let mut page = ptr.as_ptr() as usize;
        for &(address, bytes) in &extents {
            for at in (0..bytes).step_by(4096) {
                self.bus.insert(address.offset(at), page);
                page += 4096;
            }
        }
        let owner = Mapped { bus: self.bus.clone(), extents: extents.clone(), _owner: owner };
        // SAFETY: the addresses lead the model to this memory alone, until the owner takes them out of the table.
        unsafe { BusMemory::new(extents, Box::new(owner)) }
    }
}

impl Registers for ModelDoor {
    fn bytes(&self) -> usize {
        self.words.len()
    }

    fn read32(&self, offset: usize) -> u32 {
        if self.removed.load(Ordering::SeqCst) { u32::MAX } else { self.words.load(offset) }
    }

    fn write32(&self, offset: usize, value: u32) {
        if !self.removed.load(Ordering::SeqCst) {
            self.words.store(offset, value);
        }
    }

    fn pause(&self) {
        match &self.player {
            Player::Pauses(ticks) => {
                ticks.fetch_add(1, Ordering::Relaxed);
                if !self.removed.load(Ordering::SeqCst) {
                    self.model().step();
                }
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

    fn check(&self) -> Result<(), Error> {
        let reason = || Error::Refused { device: "model".into(), reason: "the driver nvme is bound to it".into() };
        if self.taken.load(Ordering::SeqCst) { Err(reason()) } else { Ok(()) }
    }

    fn allocate(&self, len: usize) -> Result<DmaBuf, Error> {
        Ok(self.allocate_runs(len, RUN))
    }

    unsafe fn map(&self, ptr: NonNull<u8>, len: usize, owner: Box<dyn Any + Send + Sync>) -> Result<BusMemory, Error> {
        // SAFETY: the caller promises what is asked for here.
        unsafe { self.map_runs(ptr, len, RUN, owner) }
    }

    fn holds(&self) -> bool {
        self.holds.load(Ordering::SeqCst)
    }

    fn set_bus_master(&self, on: bool) -> Result<(), Error> {
        let goes_on = on && !self.is_bus_master() && Csts(self.words.load(CSTS)).is_ready();
        assert!(!goes_on, "what was in flight before goes on, into memory of who knows whom");
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
    extents: Vec<(BusAddr, usize)>,
    _owner: Box<dyn Any + Send + Sync>,
}

impl Drop for Mapped {
    fn drop(&mut self) {
        for &(address, bytes) in &self.extents {
            (0..bytes).step_by(4096).for_each(|at| self.bus.remove(address.offset(at)));
        }
    }
}
