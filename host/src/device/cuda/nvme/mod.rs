//! A drive's queue pair that a GPU's kernel drives (`gpu/src/nvme.rs`): its memory, its lists of reads, and what comes of them.
//!
//! The kernel has the queues, the lists of pages, the list of reads and its report in page-locked memory, and rings the doorbells there, too:
//! a thread copies them to the drive's registers ([`Doorbells`]). Between the start of a list and its end, the host calls nothing.

mod mailbox;
mod pages;

use std::time::{Duration, Instant};

use ::nvme::{BusMemory, Controller, DmaBuf, LentQueue, Namespace, PrpError, PrpList, SUBMISSION_BYTES, Status};
use cuda_std::kernel::Kernel;
use gpu::nvme as kernel;

use self::mailbox::Mailbox;
pub use self::pages::Pages;
use super::beside::{Beside, SharedMem};
use crate::device::DeviceError;

/// A GPU that has a kernel read a drive: what of a [`Beside`] a queue pair needs, of whatever driver.
pub trait ReadKernel: Send {
    /// As [`Beside::name`].
    fn name(&self) -> &str;
    /// As [`Beside::shared`].
    ///
    /// # Errors
    /// As there.
    fn shared(&self, what: &str, bytes: usize) -> std::result::Result<SharedMem, DeviceError>;
    /// Starts the kernel. Dropping this waits for it.
    ///
    /// # Safety
    /// As for [`kernel::read_list`](fn@kernel::read_list).
    ///
    /// # Errors
    /// Nothing was started.
    unsafe fn start(&mut self, queue: kernel::Queue, list: kernel::List) -> std::result::Result<(), DeviceError>;
    /// As [`Beside::is_idle`].
    ///
    /// # Errors
    /// As there.
    fn is_idle(&mut self) -> std::result::Result<bool, DeviceError>;
}

/// Opens a [`ReadKernel`] of one GPU, each time another one.
pub type ReadKernels = Box<dyn Fn() -> std::result::Result<Box<dyn ReadKernel>, DeviceError>>;

/// The module that the kernel is in, for [`Driver::beside`](super::driver::Driver::beside).
pub const MODULE: &str = <kernel::read_list as Kernel>::MODULE;

impl<B: Beside> ReadKernel for B {
    fn name(&self) -> &str {
        Beside::name(self)
    }

    fn shared(&self, what: &str, bytes: usize) -> std::result::Result<SharedMem, DeviceError> {
        Beside::shared(self, what, bytes)
    }

    unsafe fn start(&mut self, queue: kernel::Queue, list: kernel::List) -> std::result::Result<(), DeviceError> {
        // SAFETY: the caller's promise.
        unsafe { self.launch::<kernel::read_list>(kernel::read_list_grid(), (queue, list)) }
    }

    fn is_idle(&mut self) -> std::result::Result<bool, DeviceError> {
        Beside::is_idle(self)
    }
}

/// What can go wrong with a queue pair as a whole.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueueError {
    /// The GPU.
    #[error(transparent)]
    Device(DeviceError),
    /// The drive.
    #[error(transparent)]
    Drive(#[from] ::nvme::Error),
    /// The drive has no queue pair to lend.
    #[error("{0}; a GPU needs one for itself: leave the commands to the CPU (--nvme-submit cpu)")]
    NoQueue(::nvme::Error),
    /// Memory that cannot be described to a drive.
    #[error(transparent)]
    Pages(PrpError),
    /// A list or a read that the kernel cannot take: a bug in the caller.
    #[error("a list of reads for a GPU's kernel: {0}")]
    List(String),
    /// The thread that copies doorbells cannot be had.
    #[error("the thread that copies doorbells cannot be started: {0}")]
    Thread(std::io::Error),
}

type Result<T> = std::result::Result<T, QueueError>;

/// Where the kernel rings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Doorbells {
    /// In memory, from where a thread of the CPU copies.
    #[default]
    Copied,
    /// In the drive's registers, which the GPU has at this address.
    Mapped(u64),
}

/// How a queue pair is used.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Commands in flight at most, 1 to [`kernel::MAX_DEPTH`]; fewer if the controller takes fewer.
    pub depth: u32,
    /// Reads of a list at most.
    pub reads: usize,
    /// How long the kernel waits for the next completion.
    pub patience: Duration,
    /// Where it rings.
    pub doorbells: Doorbells,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { depth: 60, reads: 4096, patience: Duration::from_secs(10), doorbells: Doorbells::Copied }
    }
}

/// One read, which is one command.
#[derive(Clone, Copy)]
pub struct Read<'a> {
    /// The first logical block.
    pub lba: u64,
    /// Number of logical blocks.
    pub blocks: u32,
    /// The memory that the data goes to.
    pub pages: &'a Pages,
    /// Its first byte there.
    pub at: usize,
}

/// What has become of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// No command was made of it so far.
    Waiting,
    /// Its command has not ended, as was seen when the list ended.
    Outstanding,
    /// It has ended with this status.
    Ended(Status),
}

/// How a list is to end early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// What is in flight is waited for.
    Drain,
    /// At once.
    Leave,
}

// Where things are in the memory of `GpuQueue::control`, each in lines of its own.
const STATE: usize = 0;
const REPORT: usize = 512;
/// [`kernel::Report::number`].
const NUMBER: usize = REPORT + 28;
const STOP: usize = 640;
const TAIL: usize = 768;
const HEAD: usize = 896;
const CONTROL_BYTES: usize = 1024;

/// How long nothing may complete before the driver is asked whether the kernel is still there. Not before: a call of the engine's that frees
/// memory waits for all kernels with the driver locked, and whoever asks waits with it.
const QUIET: Duration = Duration::from_millis(50);

/// A queue pair in the hands of a kernel.
pub struct GpuQueue {
    // Dropped in this order: the kernel ends, then the thread that copies its doorbells, then the memory of both.
    gpu: Box<dyn ReadKernel>,
    mailbox: Option<Mailbox>,
    lent: LentQueue,
    lists: DmaBuf,
    queue: kernel::Queue,
    control: SharedMem,
    addresses: SharedMem,
    reads: SharedMem,
    statuses: SharedMem,
    settings: Settings,
    max_transfer: usize,
    number: u32,
    count: usize,
    running: bool,
    /// The head's doorbell as it was last seen to change, and when.
    seen: (u32, Instant),
}

// SAFETY: the addresses in `queue` are those of memory that the other fields keep.
unsafe impl Send for GpuQueue {}

impl GpuQueue {
    /// Has `controller` lend a queue pair for reads of `namespace` ([`::nvme::Options::spare`]).
    ///
    /// # Errors
    /// Those of memory, and of the controller.
    pub fn new(
        gpu: Box<dyn ReadKernel>,
        controller: &mut Controller,
        namespace: Namespace,
        settings: Settings,
    ) -> Result<Self> {
        let (page, max_transfer) = (controller.page(), controller.max_transfer());
        let most = controller.cap().max_queue_entries() - 1;
        let slots = settings.depth.clamp(1, kernel::MAX_DEPTH.min(most));
        let settings = Settings { depth: slots, ..settings };
        let list_pages = PrpList::pages_for(max_transfer, page);
        let dma = |what: &str, bytes: usize| dma(&*gpu, controller, what, bytes);
        let (lists, lists_shared) = dma("lists of pages", slots as usize * list_pages * page)?;
        let (memory, queues_shared) = dma("a drive's queues", LentQueue::bytes(slots + 1, page))?;
        let addresses = list_addresses(&lists, slots as usize * list_pages, page)?;
        let table = gpu.shared("the addresses of lists", addresses.len() * size_of::<u64>())?;
        table.write(0, &addresses);
        let control = gpu.shared("a kernel's words", CONTROL_BYTES)?;
        let reads = gpu.shared("a list of reads", settings.reads.max(1) * size_of::<kernel::Read>())?;
        let statuses = gpu.shared("the ends of reads", settings.reads.max(1) * size_of::<u32>())?;
        let lent = controller.lend(slots + 1, memory).map_err(|error| match error {
            ::nvme::Error::NoQueue { .. } => QueueError::NoQueue(error),
            error => error.into(),
        })?;
        let [submissions, completions] = lent.offsets();
        let [tail, head] = rings(&settings, &control, &lent);
        debug_assert!(completions >= lent.depth() as usize * SUBMISSION_BYTES);
        let queue = kernel::Queue {
            submissions: queues_shared.address(submissions) as *mut u32,
            completions: queues_shared.address(completions) as *const u32,
            tail: tail as *mut u32,
            head: head as *mut u32,
            lists: lists_shared.address(0) as *mut u64,
            list_addresses: table.address(0) as *const u64,
            state: control.address(STATE) as *mut kernel::State,
            id: lent.id().into(),
            entries: lent.depth(),
            slots,
            list_pages: list_pages as u32,
            page_bits: page.ilog2(),
            namespace: namespace.id,
            block_bits: namespace.block_bytes.ilog2(),
            _pad: 0,
        };
        let mut queue = GpuQueue {
            gpu,
            mailbox: None,
            lent,
            lists,
            queue,
            control,
            addresses: table,
            reads,
            statuses,
            settings,
            max_transfer,
            number: 0,
            count: 0,
            running: false,
            seen: (0, Instant::now()),
        };
        queue.begin(controller)?;
        Ok(queue)
    }

    /// How it is used.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The GPU's side.
    pub fn gpu(&self) -> &dyn ReadKernel {
        &*self.gpu
    }

    /// Both rings as they are when a controller has just created them.
    fn begin(&mut self, controller: &Controller) -> Result<()> {
        let state = kernel::State { tail: 0, head: 0, phase: 1, generations: [0; kernel::MAX_DEPTH as usize] };
        // Identifiers go on: a completion of before the controller forgot its command is not one of now.
        let generations = |slot: usize| self.control.load(STATE + 12 + 4 * slot);
        let state = kernel::State { generations: std::array::from_fn(generations), ..state };
        self.control.write(STATE, &[state]);
        self.control.store(TAIL, 0);
        self.control.store(HEAD, 0);
        if self.settings.doorbells == Doorbells::Copied {
            let (door, doorbells) = (controller.door().clone(), self.lent.doorbells());
            let mailbox = Mailbox::start(door, self.control.clone(), [TAIL, HEAD], doorbells);
            self.mailbox = Some(mailbox.map_err(QueueError::Thread)?);
        }
        Ok(())
    }

    /// Starts a list. None may be running, and the last one must have left nothing outstanding.
    ///
    /// # Safety
    /// The memory behind each read's pages is the drive's until the read has [`Ended`](Progress::Ended), or until behind the list's end
    /// [`renew`](Self::renew) has succeeded. The [`Pages`] are the kernel's until the list has ended.
    ///
    /// # Errors
    /// Nothing was started: a read that no command can do, too many of them, or the GPU.
    pub unsafe fn start(&mut self, reads: &[Read<'_>]) -> Result<()> {
        let refuse = |why: String| Err(QueueError::List(why));
        if self.running || reads.len() > self.settings.reads {
            return refuse(format!("{} reads, of {} at most, one list at a time", reads.len(), self.settings.reads));
        }
        let mut listed = Vec::with_capacity(reads.len());
        for &Read { lba, blocks, pages, at } in reads {
            let bytes = u64::from(blocks) << self.queue.block_bits;
            if blocks == 0 || blocks > 1 << 16 || bytes > self.max_transfer as u64 {
                return refuse(format!("{blocks} blocks in one command, which takes {} bytes", self.max_transfer));
            }
            if pages.page() != 1 << self.queue.page_bits {
                return refuse(format!("pages of {} bytes, and not the controller's", pages.page()));
            }
            let (pages, offset) = pages.find(at, bytes as usize)?;
            listed.push(kernel::Read { lba, pages, blocks, offset });
        }
        self.reads.write(0, &listed);
        self.statuses.write(0, &vec![kernel::WAITING; reads.len()]);
        self.control.store(STOP, kernel::GO_ON);
        self.control.store(NUMBER, 0);
        // Never 0.
        self.number = self.number % u32::MAX + 1;
        let list = kernel::List {
            reads: self.reads.address(0) as *const kernel::Read,
            statuses: self.statuses.address(0) as *mut u32,
            report: self.control.address(REPORT) as *mut kernel::Report,
            stop: self.control.address(STOP) as *const u32,
            patience: self.settings.patience.as_nanos() as u64,
            count: reads.len() as u32,
            depth: self.settings.depth,
            number: self.number,
            _pad: 0,
        };
        self.mailbox.iter().for_each(|mailbox| mailbox.set_active(true));
        // SAFETY: the memory is this object's, of the extents that were allocated for so many slots and reads; dropping `gpu`, the first
        // field, waits for the kernel. Reads were checked above, except where their data goes, which is the caller's promise.
        let started = unsafe { self.gpu.start(self.queue, list) };
        if let Err(error) = started {
            self.mailbox.iter().for_each(|mailbox| mailbox.set_active(false));
            return Err(error.into());
        }
        (self.running, self.count) = (true, reads.len());
        self.seen = (self.control.load(HEAD), Instant::now());
        Ok(())
    }

    /// Whether a list has been started whose end nobody was told of.
    pub fn is_running(&self) -> bool {
        self.running
    }

    /// What has become of read `index` of the list that is running, or was last. If it has ended, its data is there.
    pub fn progress(&self, index: usize) -> Progress {
        assert!(index < self.count, "read {index} of {}", self.count);
        match self.statuses.load(index * size_of::<u32>()) {
            kernel::WAITING => Progress::Waiting,
            status if status & kernel::ENDED != 0 => Progress::Ended(Status(status as u16)),
            _ => Progress::Outstanding,
        }
    }

    /// What came of the list, if it has ended. Calls the GPU's driver only if nothing has completed for a while.
    ///
    /// # Errors
    /// The kernel failed.
    pub fn poll(&mut self) -> Result<Option<kernel::Report>> {
        if !self.running {
            return Ok(None);
        }
        // The number is looked at first, the rest behind it.
        if self.control.load(NUMBER) != self.number {
            // The only other end of a kernel is a fault, which the driver tells of.
            if !self.has_been_quiet() || !self.gpu.is_idle()? {
                return Ok(None);
            }
            if self.control.load(NUMBER) != self.number {
                return Err(QueueError::List("the kernel has ended without a report".into()));
            }
        }
        let report = |word: usize| self.control.load(REPORT + 4 * word);
        let [commands, errors, first_error, first_failed, strays, outstanding, why, number] =
            std::array::from_fn(report);
        self.running = false;
        // The last doorbells are copied still.
        self.mailbox.iter().for_each(|mailbox| mailbox.set_active(false));
        Ok(Some(kernel::Report { commands, errors, first_error, first_failed, strays, outstanding, why, number }))
    }

    /// Whether nothing has completed for [`QUIET`], as far as can be seen: from [`Doorbells::Mapped`], nothing is.
    fn has_been_quiet(&mut self) -> bool {
        let (head, now) = (self.control.load(HEAD), Instant::now());
        let quiet = head == self.seen.0 && now - self.seen.1 >= QUIET;
        if quiet || head != self.seen.0 {
            self.seen = (head, now);
        }
        quiet
    }

    /// Lets the list that is running end early.
    pub fn stop(&self, how: Stop) {
        let word = if how == Stop::Drain { kernel::DRAIN } else { kernel::LEAVE };
        self.control.store(STOP, word);
    }

    /// Takes the queues back from the drive, with what is outstanding in them, and lends them anew: behind this, the drive writes no memory that it was
    /// told of before. Where it does not give them back, the controller is reset. No list may be running. Whether it was reset.
    ///
    /// # Errors
    /// The controller does not come back. What was outstanding may still be written.
    pub fn renew(&mut self, controller: &mut Controller) -> Result<bool> {
        assert!(!self.running, "a list is running");
        // What the old queues' doorbells were told is not told to the new ones'.
        self.mailbox = None;
        let (depth, memory) = (self.lent.depth(), self.lent.memory().clone());
        // If that is refused, it is lent still, and a reset empties it.
        let taken = controller.take_back(&self.lent).is_ok();
        let mut again = if taken { controller.lend(depth, memory.clone()).ok() } else { None };
        let reset = again.is_none();
        if reset {
            controller.restart()?;
            if taken {
                again = Some(controller.lend(depth, memory)?);
            }
        }
        if let Some(lent) = again {
            self.lent = lent;
        }
        self.queue.id = self.lent.id().into();
        let [tail, head] = rings(&self.settings, &self.control, &self.lent);
        (self.queue.tail, self.queue.head) = (tail as *mut u32, head as *mut u32);
        self.begin(controller)?;
        Ok(reset)
    }

    /// Gives the queue pair back to its controller. No list may be running.
    ///
    /// # Errors
    /// If the controller refuses. The queues' memory is its own still.
    pub fn give_back(&mut self, controller: &mut Controller) -> Result<()> {
        assert!(!self.running, "a list is running");
        self.mailbox = None;
        Ok(controller.take_back(&self.lent)?)
    }

    /// Forgets all memory that the drive may still write, so that it is never freed.
    pub fn leak(&mut self) {
        std::mem::forget((self.lent.clone(), self.lists.clone(), self.addresses.clone()));
    }
}

impl Drop for GpuQueue {
    fn drop(&mut self) {
        // The kernel is waited for, and need not be for long. Whoever drops this takes the drive off its memory.
        self.stop(Stop::Leave);
    }
}

/// Where the kernel has the tail's and the head's doorbell.
fn rings(settings: &Settings, control: &SharedMem, lent: &LentQueue) -> [u64; 2] {
    match settings.doorbells {
        Doorbells::Copied => [control.address(TAIL), control.address(HEAD)],
        Doorbells::Mapped(registers) => lent.doorbells().map(|doorbell| registers + doorbell as u64),
    }
}

/// Memory that a drive and a GPU's kernel both see.
fn dma(gpu: &dyn ReadKernel, controller: &Controller, what: &str, bytes: usize) -> Result<(DmaBuf, SharedMem)> {
    let memory = gpu.shared(what, bytes)?;
    let bus = map(&memory, controller)?;
    // SAFETY: the memory is mapped as long as its owner is there, which `bus` keeps, and begins at a page.
    Ok((unsafe { DmaBuf::new(memory.as_ptr(), bus) }, memory))
}

/// `memory` as the controller sees it.
fn map(memory: &SharedMem, controller: &Controller) -> Result<BusMemory> {
    // SAFETY: the owner keeps the memory, which a device's driver has page-locked, and of which there are no references.
    Ok(unsafe { controller.door().map(memory.as_ptr(), memory.len(), Box::new(memory.owner())) }?)
}

/// Where each of `count` pages of lists is on the bus.
fn list_addresses(lists: &DmaBuf, count: usize, page: usize) -> Result<Vec<u64>> {
    let address = |index: usize| {
        let at = index * page;
        let found = lists.bus().contiguous(at, page).filter(|bus| bus.0.is_multiple_of(page as u64));
        let broken = || PrpError::BrokenPage { at, bus: lists.bus().resolve(at).map_or(0, |(bus, _)| bus.0), page };
        found.map(|bus| bus.0).ok_or_else(|| QueueError::Pages(broken()))
    };
    (0..count).map(address).collect()
}
