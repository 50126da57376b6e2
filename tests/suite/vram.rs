//! A drive that writes the device's memory: found behind a window page by page, and the same results as from anywhere else. The drive is
//! played, the GPU emulated, and the window leads to the emulated GPU's memory, in disorder.

use std::{
    any::Any,
    collections::HashMap,
    os::fd::OwnedFd,
    ptr::NonNull,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use ::nvme::{
    BusMemory, Door, Error, PEER_PAGE, PeerBar, Status, System, Window,
    model::{Fault, ModelDoor, Traits},
    prove,
};
use ntransformer::{
    device::{
        Transfer,
        cuda::{CudaDevice, cust::CustDriver, emulator::EmulatorDriver, nvme::Settings},
    },
    engine::{Budget, DeviceChoice, EngineError, LoadOptions, Runner, Session},
    gguf::Gguf,
    model::Model,
    stream::{
        DiskReads, Reads,
        nvme::{NvmeReads, Spot, bar1},
        ring::Buffers,
    },
};
use rand::{SeedableRng, rngs::SmallRng, seq::SliceRandom};
use readahead::{DeviceMemory, Dst, Input, OpenError, Piece, Source, SourceError, forward};

use crate::{drive, models, nvme_gpu::Played, placement::Small};

const PASSES: [&[u32]; 4] = [&[1, 5, 9, 14, 200], &[3], &[77], &[4]];

/// Bytes of the window.
const WINDOW: usize = 64 << 20;

/// What the window does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// It leads to all of the memory, in runs of so many pages in any order.
    Scattered(usize),
    /// A page of the memory is behind none of the window's.
    Missing,
    /// Two pages of the window lead to the same.
    Twice,
    /// Two pages have changed places when the second pattern comes.
    Moving,
    /// What the drive writes there gets lost on its way, from so many bytes of the memory on.
    Dropped(usize),
}

/// Where the GPU's memory is, which is known when it has been taken.
#[derive(Default)]
struct Memory {
    address: u64,
    /// By the number of a page of the window, that of the memory.
    pages: HashMap<u64, usize>,
    /// Patterns that were begun.
    attempts: usize,
}

#[derive(Clone)]
struct Bar {
    way: Way,
    memory: Arc<Mutex<Memory>>,
}

impl Bar {
    fn new(way: Way) -> Self {
        Bar { way, memory: Arc::default() }
    }

    /// The memory is at `address` from now on.
    fn lead_to(&self, address: u64, len: usize) {
        let run = if let Way::Scattered(run) = self.way { run } else { 16 };
        let count = len / PEER_PAGE;
        let mut slots: Vec<usize> = (0..WINDOW / PEER_PAGE / run).collect();
        slots.shuffle(&mut SmallRng::seed_from_u64(3));
        let place = |page: usize| (slots[page / run] * run + page % run) as u64;
        let mut pages: HashMap<u64, usize> = (0..count).map(|page| (place(page), page)).collect();
        match self.way {
            Way::Missing => drop(pages.remove(&place(count / 2))),
            Way::Twice => drop(pages.insert((slots[count / run + 1] * run) as u64, 0)),
            Way::Scattered(_) | Way::Moving | Way::Dropped(_) => {}
        }
        *self.memory.lock().unwrap() = Memory { address, pages, attempts: 0 };
    }

    /// A pattern is about to be written at byte `at`.
    fn written(&self, at: usize) {
        let mut memory = self.memory.lock().unwrap();
        memory.attempts += usize::from(at == 0);
        if memory.attempts == 2 && self.way == Way::Moving && at == 0 {
            let place =
                |page: usize| memory.pages.iter().find(|(_, at)| **at == page).map(|(place, _)| *place).unwrap();
            let (a, b) = (place(2), place(5));
            memory.pages.extend([(a, 5), (b, 2)]);
        }
    }
}

impl Window for Bar {
    fn bytes(&self) -> u64 {
        WINDOW as u64
    }

    fn read64(&self, at: u64) -> u64 {
        let memory = self.memory.lock().unwrap();
        let Some(page) = memory.pages.get(&(at / PEER_PAGE as u64)) else { return 0 };
        let address = memory.address as usize + page * PEER_PAGE + at as usize % PEER_PAGE;
        // SAFETY: the emulated GPU's memory, which is the CPU's, of initialised bytes. Only what tells pages apart is read, and the ends
        // of what has landed.
        unsafe { std::ptr::with_exposed_provenance::<u64>(address).read_volatile() }
    }

    unsafe fn map(
        &self,
        door: &dyn Door,
        at: u64,
        len: usize,
        owner: Box<dyn Any + Send + Sync>,
    ) -> Result<BusMemory, Error> {
        let memory = self.memory.lock().unwrap();
        let first = memory.pages[&(at / PEER_PAGE as u64)];
        let all =
            (0..len / PEER_PAGE).all(|i| memory.pages.get(&(at / PEER_PAGE as u64 + i as u64)) == Some(&(first + i)));
        assert!(all, "{len} bytes at {at:#x} are not in one piece");
        if matches!(self.way, Way::Dropped(from) if first * PEER_PAGE >= from) {
            let elsewhere = Box::leak(vec![0u8; len].into_boxed_slice());
            // SAFETY: nobody else has it.
            return unsafe { door.map(NonNull::from(elsewhere).cast(), len, owner) };
        }
        let ptr = NonNull::new(std::ptr::with_exposed_provenance_mut((memory.address as usize) + first * PEER_PAGE));
        // SAFETY: the caller's promise.
        unsafe { door.map(ptr.unwrap(), len, owner) }
    }
}

/// Tells the window where the memory is before the source looks for it.
struct Told {
    inner: Box<dyn Source>,
    bar: Bar,
    places: Arc<AtomicUsize>,
}

/// The memory, and the window that is told of what is written.
struct Watched<'a>(&'a dyn DeviceMemory, &'a Bar);

impl DeviceMemory for Watched<'_> {
    fn address(&self) -> u64 {
        self.0.address()
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    fn pci_address(&self) -> Option<String> {
        self.0.pci_address()
    }

    fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), String> {
        self.1.written(offset);
        self.0.write(offset, bytes)
    }

    fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<(), String> {
        self.0.read(offset, bytes)
    }

    fn dma_buf(&self) -> Result<OwnedFd, String> {
        self.0.dma_buf()
    }
}

impl Source for Told {
    forward!(self => self.inner; wait, depth, is_queued, block, prepare, lands_in_device, name, describe);

    fn submit(&mut self, id: u64, piece: &Piece, dst: Dst) -> Result<(), SourceError> {
        self.places.fetch_add(usize::from(matches!(dst, Dst::Vram { .. })), Ordering::Relaxed);
        self.inner.submit(id, piece, dst)
    }

    fn prepare_device(&mut self, memory: &dyn DeviceMemory, owner: &Arc<dyn Any + Send + Sync>) -> Result<(), String> {
        self.bar.lead_to(memory.address(), memory.len());
        self.inner.prepare_device(&Watched(memory, &self.bar), owner)
    }
}

/// A drive, and a window to the GPU's memory.
struct Machine {
    reads: NvmeReads,
    bar: Bar,
    /// Reads that went to the device's memory.
    places: Arc<AtomicUsize>,
}

impl Machine {
    fn new(door: &Arc<ModelDoor>, lba: u64, way: Way, gpu: Option<&str>) -> Self {
        Self::reading(drive::reads(door, lba), way, gpu)
    }

    fn reading(reads: NvmeReads, way: Way, gpu: Option<&str>) -> Self {
        let bar = Bar::new(way);
        let opened = bar.clone();
        let reads = reads
            .beside(gpu.map(|address| address.parse().unwrap()))
            .behind(Arc::new(move |_| Ok(Box::new(opened.clone()))));
        Machine { reads, bar, places: Arc::default() }
    }
}

impl Reads for Machine {
    fn ahead(&self, files: Vec<Input>, cached: bool) -> Result<Box<dyn Source>, OpenError> {
        let inner = self.reads.ahead(files, cached)?;
        Ok(Box::new(Told { inner, bar: self.bar.clone(), places: self.places.clone() }))
    }

    fn once(&self, files: Vec<Input>, cached: bool) -> Result<Box<dyn Source>, OpenError> {
        DiskReads::Auto.once(files, cached)
    }
}

static SAID: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// A model on the emulated GPU with everything on the drive, and what was said of the way it takes.
fn load(small: &Small, machine: &Machine, buffers: Buffers) -> Result<(Box<dyn Runner>, String), EngineError> {
    load_with(small, machine, LoadOptions { buffers, ..LoadOptions::default() })
}

fn load_with(small: &Small, machine: &Machine, options: LoadOptions) -> Result<(Box<dyn Runner>, String), EngineError> {
    let gguf = Arc::new(Gguf::open(&small.path).unwrap());
    let budget = models::budget(&*models::open(DeviceChoice::Emulator, &gguf, None), &gguf, 0);
    let options = LoadOptions {
        streaming: true,
        vram_budget: Some(budget.into()),
        ram_budget: Some(Budget::Bytes(0)),
        wanted: 64,
        announce: |line| SAID.lock().unwrap().push(line.to_owned()),
        ..options
    };
    let model = Model::new(gguf, None, 64).unwrap();
    let dev = CudaDevice::new(EmulatorDriver::new(0));
    // One test at a time, so that the line is its own.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(|e| e.into_inner());
    SAID.lock().unwrap().clear();
    let runner = Session::load_by(dev, model, &options, machine, &mut |_| ())?;
    let said = SAID.lock().unwrap().iter().find(|line| line.starts_with("what is on disk is read by")).cloned();
    Ok((Box::new(runner), said.expect("it is said")))
}

fn resident(small: &Small) -> Vec<f32> {
    let gguf = Arc::new(Gguf::open(&small.path).unwrap());
    models::logits_of_passes(&mut *models::open(DeviceChoice::Emulator, &gguf, None), PASSES)
}

#[track_caller]
fn assert_right(runner: &mut dyn Runner, expected: &[f32], what: &str) {
    let found = models::logits_of_passes(runner, PASSES);
    assert!(found.iter().zip(expected).all(|(f, e)| f.to_bits() == e.to_bits()), "{what}: the logits are others");
}

const GPU: Option<&str> = Some("0000:01:00.0");

#[test]
fn a_drive_that_writes_the_devices_memory_brings_the_same() {
    let small = Small::of("Q4_K_M");
    let (gguf, expected) = (Gguf::open(&small.path).unwrap(), resident(&small));
    let one = Buffers::Count(1.try_into().unwrap());
    for (block, lba, packed, run, buffers) in
        [(512, 3, false, 16, Buffers::Auto), (512, 0, true, 1, one), (4096, 5, true, 5, Buffers::Auto)]
    {
        let traits = Traits { shuffle: Some(7), mdts: 1, max_queue_entries: 9, ..Traits::default() };
        let door = ModelDoor::new(traits, vec![drive::holding(&gguf, block, lba, packed)]);
        let machine = Machine::new(&door, lba, Way::Scattered(run), GPU);
        let (mut runner, said) = load(&small, &machine, buffers).unwrap();
        assert!(said.contains("by BAR1 of 0000:01:00.0, ") && said.contains(" pages in "), "{said}");
        assert!(said.ends_with("; it goes straight into the device's memory"), "{said}");
        let memory = runner.memory();
        assert!(memory.disk_per_pass > 0 && memory.disk_per_pass == memory.streamed_per_pass);
        assert_eq!(memory.pinned, 0, "there are buffers that nothing goes through");
        assert_right(&mut *runner, &expected, &format!("{block} {lba} {packed} {run} {buffers:?}"));
        assert!(machine.places.load(Ordering::Relaxed) > 16);
        drop((runner, machine));
        assert!(!door.is_bus_master(), "the drive goes on");
        assert_eq!(door.bus().misses(), 0);
    }
}

/// The same where a kernel submits the commands.
#[test]
fn a_kernel_reads_into_the_devices_memory() {
    let small = Small::of("Q4_K_M");
    let (gguf, expected) = (Gguf::open(&small.path).unwrap(), resident(&small));
    for (block, lba, packed, run) in [(512, 3, false, 16), (512, 0, true, 1), (4096, 5, true, 5)] {
        let traits = Traits { shuffle: Some(7), mdts: 1, max_queue_entries: 9, ..Traits::default() };
        let played = Played::new(ModelDoor::threaded(traits, vec![drive::holding(&gguf, block, lba, packed)]));
        let (door, options) = (played.door.clone(), ::nvme::Options::default());
        let kernels = CudaDevice::new(EmulatorDriver::new(3)).read_kernels().unwrap();
        let reads = NvmeReads::through(
            Box::new(move || Ok(door.clone())),
            Spot { lba, ..Spot::default() },
            DiskReads::Auto,
            options,
        )
        .by_gpu(kernels, Settings::default());
        let machine = Machine::reading(reads, Way::Scattered(run), GPU);
        let (mut runner, said) = load(&small, &machine, Buffers::Auto).unwrap();
        assert!(said.contains("a kernel of emulator from the drive model"), "{said}");
        assert!(
            said.contains("by BAR1 of 0000:01:00.0, ") && said.ends_with("straight into the device's memory"),
            "{said}"
        );
        assert_right(&mut *runner, &expected, &format!("{block} {lba} {packed} {run}"));
        assert!(machine.places.load(Ordering::Relaxed) > 16);
        drop((runner, machine));
        assert_eq!(played.door.bus().misses(), 0);
    }
}

/// Whatever is not certain: the reason is said, and everything goes by way of RAM.
#[test]
fn memory_that_is_not_found_for_certain_is_not_written() {
    let small = Small::of("Q8_0");
    let (gguf, expected) = (Gguf::open(&small.path).unwrap(), resident(&small));
    for (way, gpu, why) in [
        (Way::Missing, GPU, "BAR1: 1 of "),
        (Way::Twice, GPU, "BAR1: page 0 is in two places"),
        (Way::Moving, GPU, "something else is there now: the window moves"),
        (Way::Dropped(0), GPU, "what the drive writes into the device's memory does not get there"),
        (Way::Dropped(300 << 10), GPU, "what the drive writes into the device's memory does not get there"),
        (Way::Scattered(16), None, "BAR1: the device is at no PCI address that is known"),
    ] {
        let door = ModelDoor::new(Traits::default(), vec![drive::holding(&gguf, 512, 0, true)]);
        let machine = Machine::new(&door, 0, way, gpu);
        let (mut runner, said) = load(&small, &machine, Buffers::Auto).unwrap();
        assert!(said.contains("; it goes by way of page-locked RAM") && said.contains(why), "{way:?}: {said}");
        assert!(said.contains("a dma-buf: emulator has no dma-bufs"), "{said}");
        assert!(runner.memory().pinned > 0);
        assert_right(&mut *runner, &expected, &format!("{way:?}"));
        assert_eq!(machine.places.load(Ordering::Relaxed), 0);
    }
    // A slower link is played for copies only.
    let door = ModelDoor::new(Traits::default(), vec![drive::holding(&gguf, 512, 0, true)]);
    let machine = Machine::new(&door, 0, Way::Scattered(16), GPU);
    let slow = LoadOptions { link_limit: Some(1e9), ..LoadOptions::default() };
    let (mut runner, said) = load_with(&small, &machine, slow).unwrap();
    assert!(said.contains("(--link-limit delays copies, and not what others write)"), "{said}");
    assert_right(&mut *runner, &expected, "a slow link");
    // What is not there at all.
    let door = ModelDoor::new(Traits::default(), vec![drive::holding(&gguf, 512, 0, true)]);
    let reads = drive::reads(&door, 0).beside(Some("ffff:ff:1f.7".parse().unwrap())).behind(bar1());
    let machine = Machine { reads, bar: Bar::new(Way::Missing), places: Arc::default() };
    let (mut runner, said) = load(&small, &machine, Buffers::Auto).unwrap();
    assert!(said.contains("BAR1: ffff:ff:1f.7: it has no BAR1"), "{said}");
    assert_right(&mut *runner, &expected, "no GPU");
}

/// What goes wrong with commands while the device's memory is written: they are issued again, or it is an error that says where.
#[test]
fn faults_of_a_drive_that_writes_the_devices_memory() {
    let small = Small::of("Q8_0");
    let (gguf, expected) = (Gguf::open(&small.path).unwrap(), resident(&small));
    let door =
        ModelDoor::new(Traits { shuffle: Some(3), ..Traits::default() }, vec![drive::holding(&gguf, 512, 0, true)]);
    let machine = Machine::new(&door, 0, Way::Scattered(16), GPU);
    let (mut runner, _) = load(&small, &machine, Buffers::Auto).unwrap();
    // Internal Error, that may pass.
    let passing = Status::new(0, 0x06, true);
    for fault in [Fault::Status(passing), Fault::Late(40), Fault::Missing, Fault::Duplicate(3), Fault::Fatal] {
        door.model().faults(Box::new(move |nth, _| (nth % 9 == 4 && nth < 40).then_some(fault)));
        assert_right(&mut *runner, &expected, &format!("{fault:?}"));
    }
    // Unrecovered Read Error, that stays.
    let bad = Status::new(2, 0x81, false);
    door.model().faults(Box::new(move |nth, _| (nth >= 5).then_some(Fault::Status(bad))));
    let error = (0..4).find_map(|position| runner.pass(&[7], position, 1).err()).expect("nobody noticed").to_string();
    for part in ["layer ", "small.gguf on model", "at offset ", "Unrecovered Read Error"] {
        assert!(error.contains(part), "{part:?} is not in {error:?}");
    }
    door.model().faults(Box::new(|_, _| None));
    assert_right(&mut *runner, &expected, "behind an error");
}

/// On a machine with a GPU: which way there is to its memory, or why there is none. It needs no drive. To be read, since that depends on the
/// machine; what is found has to be right.
#[test]
#[ignore = "needs a GPU"]
fn gpu_memory_behind_bar1() {
    let dev = CudaDevice::new(CustDriver::open(0, |line| eprintln!("{line}")).unwrap());
    let buf = dev.alloc("the ring", 256 << 20).unwrap();
    let memory = dev.device_memory(&buf).unwrap();
    println!("{} at {:?}: {} MiB at {:#x}", dev.name(), memory.pci_address(), memory.len() >> 20, memory.address());
    dev.acquire().unwrap();
    match memory.dma_buf() {
        Ok(fd) => match ::nvme::DmaBufWindow::open(&fd, memory.len()) {
            Ok(_) => println!("its dma-buf can be mapped"),
            Err(e) => println!("a dma-buf: {e}"),
        },
        Err(why) => println!("no dma-buf: {why}"),
    }
    let Some(address) = memory.pci_address().and_then(|address| address.parse().ok()) else { return };
    let bar = match PeerBar::open(&System::live(), address, 1) {
        Ok(bar) => bar,
        Err(e) => return println!("no BAR1: {e}"),
    };
    let begin = std::time::Instant::now();
    let proved = prove(&bar, memory.len(), &mut |at, bytes| memory.write(at, bytes), Duration::from_secs(30));
    println!("BAR1 of {} MiB, in {:?}:", bar.bytes() >> 20, begin.elapsed());
    match proved {
        Err(why) => println!("{why}"),
        Ok(runs) => {
            println!("{} runs, the first at {:#x}", runs.len(), runs[0].at);
            let mut bytes = vec![0; memory.len()];
            bytes.iter_mut().enumerate().for_each(|(i, byte)| *byte = (i / 8 * 7 + i) as u8);
            memory.write(0, &bytes).unwrap();
            for run in runs {
                for at in (0..run.len).step_by(997 * 8) {
                    let word = u64::from_le_bytes(bytes[run.offset + at..][..8].try_into().unwrap());
                    assert_eq!(bar.read64(run.at + at as u64), word, "byte {at} of {run:?}");
                }
            }
        }
    }
}
