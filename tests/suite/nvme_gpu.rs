//! Reads of a drive that a GPU's kernel submits, against a controller that is played on a thread of this process: every byte and every end.
//!
//! Each case is two tests, one in the emulator and one in the module `gpu`, which needs a GPU and is ignored unless asked for. On a GPU, queues
//! and lists are in page-locked memory, and the played controller copies data into RAM, or into the GPU's memory by the driver.

mod faults;
mod figures;
mod lists;
mod model;
mod source;
mod vram;

use std::{
    ops::Deref,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use ::gpu::nvme::Report;
use ::nvme::{
    Controller, Namespace, Options,
    model::{Media, Model, ModelDoor, Traits, Words},
};
use ntransformer::device::cuda::{
    beside::Beside,
    cust::CustDriver,
    driver::Driver,
    emulator::EmulatorDriver,
    nvme::{Doorbells, GpuQueue, MODULE, Pages, Progress, Read, Settings},
};
use rand::{Rng, RngCore, SeedableRng, rngs::SmallRng};

use self::vram::{Vram, VramBus};

/// Makes two tests of each case.
macro_rules! cases {
    ($($area:ident::$case:ident,)*) => {
        mod gpu {
            use super::*;

            /// One test at a time. Freeing memory, unlocking it and unloading a module wait for all kernels of the context, with the driver
            /// locked; a kernel that waits for its played drive would not end then, since that drive copies by the driver.
            static ONE: Mutex<()> = Mutex::new(());

            $(
                #[test]
                #[ignore = "needs a GPU"]
                fn $case() {
                    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
                    let driver = CustDriver::open(0, |line| eprintln!("{line}")).unwrap();
                    eprintln!("{}: {}", driver.name(), stringify!($case));
                    $area::$case(&driver);
                }
            )*
        }

        $(
            #[test]
            fn $case() {
                $area::$case(&EmulatorDriver::new(7));
            }
        )*
    };
}

cases! {
    lists::depths_and_blocks,
    lists::lists_of_pages,
    lists::pages_of_other_sizes,
    lists::rings_that_wrap,
    lists::doorbells_of_the_gpus_own,
    lists::into_the_gpus_memory,
    lists::what_no_command_can_do,
    lists::a_drive_without_a_queue_to_spare,
    faults::statuses,
    faults::completions_of_nothing,
    faults::late_and_twice,
    faults::late_for_the_next_list,
    faults::missing,
    faults::queues_that_are_not_given_back,
    faults::stop,
    faults::random_faults,
    faults::a_kernel_that_is_gone,
    source::reads_pieces,
    source::retries,
    source::missing_completions,
    source::a_fatal_controller,
    source::a_controller_that_is_gone,
    source::dropped_while_it_reads,
    figures::figures,
    model::tokens_of_a_model_on_a_drive,
    model::decoding_beside_lists,
}

/// What a byte holds that nobody has written.
const POISON: u8 = 0xa5;

/// Bytes that look random.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    SmallRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

/// A controller that a thread plays.
pub struct Played {
    pub door: Arc<ModelDoor>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Played {
    pub fn new(door: Arc<ModelDoor>) -> Self {
        let mut played = Played { door, stop: Arc::default(), thread: None };
        played.play();
        played
    }

    fn play(&mut self) {
        self.stop.store(false, Ordering::SeqCst);
        let (door, stop) = (self.door.clone(), self.stop.clone());
        let started = Arc::new(AtomicBool::new(false));
        let theirs = started.clone();
        let run = move || {
            let mut model = door.model();
            theirs.store(true, Ordering::SeqCst);
            model.run(&stop);
        };
        self.thread = Some(thread::Builder::new().name("played drive".into()).spawn(run).unwrap());
        // Nobody else has it before the thread does.
        while !started.load(Ordering::SeqCst) {
            thread::yield_now();
        }
    }

    fn pause(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }

    /// What `f` says of the controller while it does nothing.
    fn with<R>(&mut self, f: impl FnOnce(&mut Model) -> R) -> R {
        self.pause();
        let result = f(&mut self.door.model());
        self.play();
        result
    }
}

impl Drop for Played {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A kind of rig.
#[derive(Clone)]
struct Kind {
    traits: Traits,
    block: usize,
    bytes: usize,
    max_transfer: usize,
    settings: Settings,
    /// The kernel writes the doorbells by itself.
    mapped: bool,
}

impl Default for Kind {
    fn default() -> Self {
        Kind {
            traits: Traits { shuffle: Some(3), ..Traits::default() },
            block: 512,
            bytes: 1 << 20,
            max_transfer: 4 << 20,
            settings: Settings { patience: Duration::from_secs(20), ..Settings::default() },
            mapped: false,
        }
    }
}

/// Memory that a played drive writes. A test that fails drops it before its rig, whose drive goes on until then: so it stays for ever.
struct Target<T>(Option<T>);

impl<T> Target<T> {
    fn new(memory: T) -> Self {
        Target(Some(memory))
    }
}

impl<T> Deref for Target<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("it is there until it is dropped")
    }
}

impl<T> Drop for Target<T> {
    fn drop(&mut self) {
        if thread::panicking() {
            std::mem::forget(self.0.take());
        }
    }
}

/// A drive of noise, and a kernel that has a queue of it. Dropped in this order.
struct Rig<D: Driver> {
    queue: GpuQueue,
    controller: Controller,
    namespace: Namespace,
    played: Played,
    media: Arc<Media>,
    vram: Arc<VramBus>,
    beside: D::Beside,
}

impl<D: Driver> Rig<D> {
    fn new(driver: &D, kind: &Kind) -> Self {
        Self::with_media(driver, kind, Arc::new(Media::new(kind.block, noise(5, kind.bytes))))
    }

    fn with_media(driver: &D, kind: &Kind, media: Arc<Media>) -> Self {
        let beside = driver.beside(MODULE).unwrap();
        let mut settings = kind.settings;
        let words = beside.shared("registers", ModelDoor::registers(&kind.traits)).unwrap();
        if kind.mapped {
            settings.doorbells = Doorbells::Mapped(words.address(0));
        }
        let len = ModelDoor::registers(&kind.traits);
        // SAFETY: page-locked zeros, which the owner keeps, and which are accessed as whole words.
        let words = unsafe { Words::from_raw(words.as_ptr().cast(), len, Box::new(words.owner())) };
        let mut vram = None;
        let door = ModelDoor::threaded_in(kind.traits.clone(), vec![media.clone()], words, |inner| {
            let bus = Arc::new(VramBus::new(inner));
            vram = Some(bus.clone());
            bus
        });
        let played = Played::new(door.clone());
        let options = Options {
            queues: 1,
            spare: 1,
            max_transfer: kind.max_transfer,
            timeout: Duration::from_secs(5),
            ..Options::default()
        };
        let mut controller = Controller::open(door, options).unwrap();
        let namespace = controller.namespace(1).unwrap();
        let queue =
            GpuQueue::new(Box::new(driver.beside(MODULE).unwrap()), &mut controller, namespace, settings).unwrap();
        Rig { queue, controller, namespace, played, media, vram: vram.expect("made by the door"), beside }
    }

    fn door(&self) -> &Arc<ModelDoor> {
        &self.played.door
    }

    /// RAM of `len` bytes of poison, of which runs of `run` are contiguous on the bus; it begins `first` bytes into a page.
    fn ram(&self, len: usize, run: usize, first: usize) -> Ram {
        let buf = self.door().allocate_runs(first + len, run);
        buf.fill(0, buf.len(), POISON);
        let pages = Pages::new(&self.beside, buf.bus(), self.controller.page()).unwrap();
        Ram { buf: Target::new(buf), first, len, pages }
    }

    /// Starts a list of reads.
    fn start(&mut self, reads: &[Wanted], pages: &Pages, first: usize) {
        let read = |read: &Wanted| Read { lba: read.lba, blocks: read.blocks, pages, at: first + read.at };
        let reads: Vec<_> = reads.iter().map(read).collect();
        // SAFETY: the memory is kept until behind the list's end, and no queue is left that has some of it.
        unsafe { self.queue.start(&reads) }.unwrap();
    }

    /// Waits for the list's end.
    fn end(&mut self) -> Report {
        let begin = Instant::now();
        loop {
            if let Some(report) = self.queue.poll().unwrap() {
                return report;
            }
            assert!(begin.elapsed() < Duration::from_secs(60), "the kernel does not end");
            thread::sleep(Duration::from_micros(50));
        }
    }

    fn run(&mut self, reads: &[Wanted], ram: &Ram) -> Report {
        self.start(reads, &ram.pages, ram.first);
        self.end()
    }

    /// What has become of each of `count` reads.
    fn progress(&self, count: usize) -> Vec<Progress> {
        (0..count).map(|index| self.queue.progress(index)).collect()
    }

    /// `bytes` blocks' worth of reads of up to `most` blocks, at random places, one behind the other in memory with gaps of a random
    /// multiple of 4 bytes, or of none if `dense`.
    fn random_reads(&self, rng: &mut SmallRng, count: usize, most: u32, dense: bool) -> Vec<Wanted> {
        let block = self.namespace.block_bytes;
        let most = most.min((self.controller.max_transfer() / block) as u32).min(self.media.blocks() as u32);
        let mut at = 0;
        let mut next = || {
            let blocks = rng.random_range(1..=most);
            let lba = rng.random_range(0..=self.media.blocks() - u64::from(blocks));
            let gap = if dense { 0 } else { 4 * rng.random_range(0..300usize) };
            let read = Wanted { lba, blocks, at: at + gap };
            at = read.at + blocks as usize * block;
            read
        };
        (0..count).map(|_| next()).collect()
    }

    /// What memory of `len` bytes holds when these reads were done.
    fn expected<'a>(&self, len: usize, reads: impl IntoIterator<Item = &'a Wanted>) -> Vec<u8> {
        let (stored, block) = (self.media.bytes(), self.namespace.block_bytes);
        let mut expected = vec![POISON; len];
        for read in reads {
            let bytes = &stored[read.lba as usize * block..][..read.blocks as usize * block];
            expected[read.at..][..bytes.len()].copy_from_slice(bytes);
        }
        expected
    }
}

/// A read into a memory.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    lba: u64,
    blocks: u32,
    at: usize,
}

/// Bytes of memory that these reads need.
fn room(reads: &[Wanted], block: usize) -> usize {
    reads.iter().map(|read| read.at + read.blocks as usize * block).max().unwrap_or(1)
}

/// Memory that a drive writes.
struct Ram {
    buf: Target<::nvme::DmaBuf>,
    first: usize,
    len: usize,
    pages: Pages,
}

impl Ram {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        self.buf.copy_to(self.first, &mut bytes);
        bytes
    }
}

/// Fails, naming the first byte that differs.
#[track_caller]
fn assert_bytes(found: &[u8], expected: &[u8], what: &str) {
    assert_eq!(found.len(), expected.len());
    let differs = found.iter().zip(expected).position(|(f, e)| f != e);
    if let Some(at) = differs {
        panic!("{what}: byte {at} of {} is {:#x} and not {:#x}", found.len(), found[at], expected[at]);
    }
}

/// All reads have ended well.
#[track_caller]
fn assert_good(report: Report, reads: usize) {
    let good = Report { commands: reads as u32, number: report.number, ..Report::default() };
    assert_eq!(report, good);
}
