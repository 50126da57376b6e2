//! A source whose commands a GPU's kernel submits.
//!
//! What is submitted gathers; [`Source::wait`] makes a list of it when the kernel is not busy with another, starts the kernel, and looks at
//! what it reports. Until the list's end, the CPU only copies doorbells.

use std::{
    any::Any,
    collections::{HashMap, VecDeque},
    sync::{Arc, PoisonError},
    thread,
    time::{Duration, Instant},
};

use gpu::nvme::Report;
use nvme::{BusMemory, Controller, Namespace, PciAddress};
use readahead::{Completion, DeviceMemory, Dst, HostBuf, Landed, Piece, Source, SourceError};

use super::{
    Blocks, OnDrive, Opened, Parked,
    landing::{Landing, PAGE, Place},
    vram::{OpenBar, Vram, bar1},
};
use crate::device::cuda::nvme::{GpuQueue, Pages, Progress, QueueError, Read, ReadKernel, Settings, Stop};

/// Reads in flight at most. A list is started when the one before has ended, so that one is read into some buffers while others are used.
const DEPTH: usize = 64;
/// How long the thread sleeps between two looks at what has come. A list of many commands takes milliseconds.
const NAP: Duration = Duration::from_micros(50);
/// How often it looks whether the controller is well: that takes a read of a register.
const HEALTH_INTERVAL: Duration = Duration::from_millis(10);

/// Why a read failed.
#[derive(Debug, thiserror::Error)]
#[error("{device}: the GPU's read of {blocks} blocks from block {lba} on {why} (attempt {attempts})")]
struct Failed {
    device: String,
    lba: u64,
    blocks: u32,
    why: String,
    attempts: u32,
}

/// What a read was asked for.
struct Active {
    /// Commands that have not ended.
    commands: usize,
    failed: Option<Failed>,
    landed: Landed,
    to: To,
}

/// Where a read goes.
enum To {
    Host(HostBuf, Place),
    /// The GPU's memory.
    Vram,
}

/// A command of a read.
#[derive(Clone)]
struct Command {
    read: u64,
    lba: u64,
    blocks: u32,
    memory: Arc<BusMemory>,
    at: usize,
    /// How often it was tried.
    attempts: u32,
    /// Its end has been taken in.
    ended: bool,
}

/// Counts since the source was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Lists, one launch each.
    pub lists: u64,
    /// Commands that were submitted.
    pub commands: u64,
    /// Commands that were issued again, because they had failed.
    pub retries: u64,
    /// Completions of no command in flight.
    pub strays: u64,
    /// How often the queues were taken back because a command did not complete.
    pub renewals: u64,
    /// How often the controller was reset.
    pub resets: u64,
}

/// Reads a model's files from a drive, by a kernel of a GPU.
///
/// When it is dropped, commands in flight are waited for, and if they do not end, the queues are taken back from the drive.
pub struct GpuSource {
    queue: GpuQueue,
    opened: Option<Opened>,
    parked: Parked,
    landing: Landing,
    /// The GPU's address if its driver does not say it, and the way to its memory.
    gpu: Option<PciAddress>,
    open_bar: OpenBar,
    vram: Option<Vram>,
    /// Tables of pages that the kernel reads, of each memory that was read into.
    pages: Vec<(Arc<BusMemory>, Pages)>,
    reads: HashMap<u64, Active>,
    waiting: VecDeque<Command>,
    /// The commands of the list that is running.
    listed: Vec<Command>,
    health_due: Instant,
    counts: Counts,
}

impl GpuSource {
    /// Reads what was opened, whose controller has a queue pair to spare, and leaves it in `parked` afterwards.
    ///
    /// # Errors
    /// If there is no queue pair, or no memory for one.
    pub fn new(
        mut opened: Opened,
        parked: Parked,
        gpu: Box<dyn ReadKernel>,
        settings: Settings,
    ) -> Result<Self, QueueError> {
        let namespace = opened.drive.namespace();
        let queue = GpuQueue::new(gpu, opened.drive.controller_mut(), namespace, settings)?;
        let landing = Landing::new(opened.drive.controller().door().clone());
        Ok(GpuSource {
            queue,
            opened: Some(opened),
            parked,
            landing,
            gpu: None,
            open_bar: bar1(),
            vram: None,
            pages: Vec::new(),
            reads: HashMap::new(),
            waiting: VecDeque::new(),
            listed: Vec::new(),
            health_due: Instant::now(),
            counts: Counts::default(),
        })
    }

    /// The same with the GPU's address, if its driver does not say it, and the way to its memory.
    pub fn reaching(mut self, gpu: Option<PciAddress>, open_bar: OpenBar) -> Self {
        (self.gpu, self.open_bar) = (gpu, open_bar);
        self
    }

    /// What there has been so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    fn opened(&self) -> &Opened {
        self.opened.as_ref().expect("it is there until it is dropped")
    }

    fn image(&self) -> &OnDrive {
        &self.opened().image
    }

    fn controller(&self) -> &Controller {
        self.opened().drive.controller()
    }

    fn namespace(&self) -> Namespace {
        self.opened().drive.namespace()
    }

    /// Where in the GPU's memory `piece` goes, to `len` bytes at `address`. The drive's blocks may be smaller than what the place was made for: the
    /// first one goes to where the piece begins in its block, from where the piece begins in its place.
    fn in_vram(
        &self,
        piece: &Piece,
        blocks: Blocks,
        address: u64,
        len: usize,
    ) -> Result<(Arc<BusMemory>, usize, Landed), SourceError> {
        let vram = self.vram.as_ref().ok_or(SourceError::Vram)?;
        let (begin, need) = piece.blocks(self.block());
        if len < need {
            return Err(SourceError::Small { len, need, block: self.block() });
        }
        let (memory, place) = vram.place(address, len)?;
        Ok((memory, place + begin - blocks.begin, Landed { begin, len: piece.len }))
    }

    /// Makes a list of what waits, and starts the kernel.
    fn start(&mut self) -> Result<(), QueueError> {
        let most = self.queue.settings().reads.min(self.waiting.len());
        self.listed = self.waiting.drain(..most).collect();
        for command in &self.listed {
            if !self.pages.iter().any(|(memory, _)| Arc::ptr_eq(memory, &command.memory)) {
                let page = self.opened.as_ref().expect("not dropped").drive.controller().page();
                let pages = Pages::new(self.queue.gpu(), &command.memory, page)?;
                self.pages.push((command.memory.clone(), pages));
            }
        }
        let pages = &self.pages;
        let read = |command: &Command| {
            let same = |(memory, _): &&(Arc<BusMemory>, Pages)| Arc::ptr_eq(memory, &command.memory);
            let (_, pages) = pages.iter().find(same).expect("made above");
            Read { lba: command.lba, blocks: command.blocks, pages, at: command.at }
        };
        let reads: Vec<_> = self.listed.iter().map(read).collect();
        self.counts.lists += 1;
        // SAFETY: the memory is kept by `pages`, and in the reads' hands until `take_in` has seen the end of each; dropping this stops the
        // kernel and the drive first.
        unsafe { self.queue.start(&reads) }
    }

    /// Takes in what has ended since it was last asked.
    fn take_in(&mut self, done: &mut Vec<Completion>) {
        for index in 0..self.listed.len() {
            if self.listed[index].ended {
                continue;
            }
            if let Progress::Ended(status) = self.queue.progress(index) {
                self.listed[index].ended = true;
                let command = self.listed[index].clone();
                let again = !status.do_not_retry() || status.is_aborted();
                match status.is_success() {
                    true => self.end(command, None, done),
                    false => self.again(command, again, format!("failed: {status}"), done),
                }
            }
        }
    }

    /// Issues a command that failed once more, unless it was tried often enough, or that is of no use.
    fn again(&mut self, mut command: Command, useful: bool, why: String, done: &mut Vec<Completion>) {
        if useful && command.attempts < self.controller().options().attempts {
            self.counts.retries += 1;
            (command.attempts, command.ended) = (command.attempts + 1, false);
            return self.waiting.push_back(command);
        }
        let (device, attempts) = (self.controller().name().to_owned(), command.attempts);
        let failed = Failed { device, lba: command.lba, blocks: command.blocks, why, attempts };
        self.end(command, Some(failed), done);
    }

    /// A command is over; with the last one, its read is.
    fn end(&mut self, command: Command, failed: Option<Failed>, done: &mut Vec<Completion>) {
        let Some(active) = self.reads.get_mut(&command.read) else { return };
        active.commands -= 1;
        if let Some(failed) = failed {
            active.failed.get_or_insert(failed);
        }
        if active.commands > 0 {
            return;
        }
        let Some(Active { failed, landed, to, .. }) = self.reads.remove(&command.read) else { return };
        match (to, &self.vram) {
            (To::Host(mut dst, place), _) => {
                let wanted = failed.is_none().then_some(landed.begin..landed.begin + landed.len);
                self.landing.arrived(place, &mut dst, wanted);
            }
            (To::Vram, Some(vram)) if failed.is_none() => vram.arrived(),
            (To::Vram, _) => {}
        }
        let result = failed.map_or(Ok(landed), |failed| Err(SourceError::Device(Box::new(failed))));
        done.push(Completion { id: command.read, result });
    }

    /// Sees what became of a list that has ended: what was not done is done by the next one.
    fn settle(&mut self, report: Report, done: &mut Vec<Completion>) -> Result<(), QueueError> {
        self.counts.commands += u64::from(report.commands);
        self.counts.strays += u64::from(report.strays);
        self.take_in(done);
        let patience = self.queue.settings().patience;
        if report.outstanding > 0 {
            self.counts.renewals += 1;
            let opened = self.opened.as_mut().expect("it is there until it is dropped");
            self.counts.resets += u64::from(self.queue.renew(opened.drive.controller_mut())?);
        }
        for (index, command) in std::mem::take(&mut self.listed).into_iter().enumerate() {
            match self.queue.progress(index) {
                Progress::Ended(_) => {}
                Progress::Waiting => self.waiting.push_back(command),
                Progress::Outstanding => {
                    self.again(command, true, format!("did not complete within {patience:?}"), done)
                }
            }
        }
        Ok(())
    }

    /// Ends the list under way if the controller can't go on with it.
    fn look_after(&mut self) -> Result<(), QueueError> {
        if Instant::now() < self.health_due {
            return Ok(());
        }
        self.health_due = Instant::now() + HEALTH_INTERVAL;
        match self.controller().health() {
            // What is outstanding is then, and the queues are taken back.
            Err(nvme::Error::Fatal { .. }) => self.queue.stop(Stop::Leave),
            Err(error) => return Err(error.into()),
            Ok(()) => {}
        }
        Ok(())
    }

    /// Ends the list under way, and takes the drive off the memory. Whether that is certain.
    fn finish(&mut self) -> bool {
        self.queue.stop(Stop::Drain);
        let end = Instant::now() + 2 * self.queue.settings().patience;
        loop {
            match self.queue.poll() {
                Ok(Some(report)) => {
                    let Some(opened) = &mut self.opened else { return false };
                    return report.outstanding == 0 || self.queue.renew(opened.drive.controller_mut()).is_ok();
                }
                // A GPU that has failed, or a kernel that does not end.
                Err(_) => return false,
                Ok(None) if Instant::now() > end => return false,
                Ok(None) => thread::sleep(NAP),
            }
        }
    }
}

fn failed(error: QueueError) -> SourceError {
    SourceError::Device(Box::new(error))
}

impl Source for GpuSource {
    fn submit(&mut self, id: u64, piece: &Piece, dst: Dst) -> Result<(), SourceError> {
        let (blocks, depth) = (self.image().blocks(piece)?, self.depth());
        if self.reads.len() >= depth {
            return Err(SourceError::Full { depth });
        }
        let (memory, at, landed, to) = match dst {
            Dst::Host(dst) => {
                if !dst.address().is_multiple_of(PAGE) {
                    return Err(SourceError::Unaligned { address: dst.address(), block: PAGE });
                }
                if blocks.bytes > dst.len() {
                    return Err(SourceError::Small { len: dst.len(), need: blocks.bytes, block: self.block() });
                }
                let place = self.landing.place(&dst, blocks.bytes)?;
                let landed = Landed { begin: blocks.begin, len: piece.len };
                (place.bus.clone(), place.at, landed, To::Host(dst, place))
            }
            Dst::Vram { address, len } => {
                let (memory, at, landed) = self.in_vram(piece, blocks, address, len)?;
                (memory, at, landed, To::Vram)
            }
        };
        // A command has 65,536 blocks at most (NLB counts from 0 in 16 bits).
        let block = self.namespace().block_bytes;
        let most = (self.controller().max_transfer() / block).min(1 << 16) as u64;
        let commands = blocks.count.div_ceil(most) as usize;
        self.reads.insert(id, Active { commands, failed: None, landed, to });
        for first in (0..blocks.count).step_by(most as usize) {
            let count = most.min(blocks.count - first) as u32;
            self.waiting.push_back(Command {
                read: id,
                lba: blocks.lba + first,
                blocks: count,
                memory: memory.clone(),
                at: at + first as usize * block,
                attempts: 1,
                ended: false,
            });
        }
        Ok(())
    }

    fn wait(&mut self, timeout: Duration, done: &mut Vec<Completion>) -> Result<(), SourceError> {
        let (begin, before) = (Instant::now(), done.len());
        while !self.reads.is_empty() {
            if self.queue.is_running() {
                let report = self.queue.poll().map_err(failed)?;
                match report {
                    Some(report) => self.settle(report, done).map_err(failed)?,
                    None => {
                        self.take_in(done);
                        self.look_after().map_err(failed)?;
                    }
                }
            }
            if !self.queue.is_running() && !self.waiting.is_empty() {
                self.start().map_err(failed)?;
            }
            if done.len() > before || begin.elapsed() >= timeout {
                break;
            }
            thread::sleep(NAP);
        }
        Ok(())
    }

    fn depth(&self) -> usize {
        self.landing.depth().map_or(DEPTH, |most| DEPTH.min(most))
    }

    fn block(&self) -> usize {
        self.image().block().max(PAGE)
    }

    fn prepare(&mut self, buffers: &[HostBuf]) {
        let depth = self.depth();
        self.landing.prepare(buffers, depth);
    }

    fn is_queued(&self, id: u64) -> bool {
        self.waiting.iter().any(|command| command.read == id)
    }

    fn lands_in_device(&self) -> bool {
        true
    }

    fn prepare_device(&mut self, memory: &dyn DeviceMemory, owner: &Arc<dyn Any + Send + Sync>) -> Result<(), String> {
        let opened = self.opened.as_mut().expect("it is there until it is dropped");
        self.vram = Some(opened.reach(memory, self.gpu, &self.open_bar, owner)?);
        Ok(())
    }

    fn name(&self, file: usize) -> String {
        self.image().name(file)
    }

    fn describe(&self) -> String {
        let controller = self.controller();
        let landing =
            self.vram.as_ref().map_or_else(|| self.landing.describe(), |vram| format!("by {}", vram.describe()));
        let (name, way) = (controller.name(), controller.door().describe());
        let most = bytesize::ByteSize(controller.max_transfer() as u64);
        let (gpu, depth) = (self.queue.gpu().name(), self.queue.settings().depth);
        format!(
            "a kernel of {gpu} from the drive {name} ({way}): {}; {depth} commands of {most} in flight, {landing}",
            self.image().describe()
        )
    }
}

impl Drop for GpuSource {
    fn drop(&mut self) {
        let quiet = !self.queue.is_running() || self.finish();
        let Some(mut opened) = self.opened.take() else { return };
        if quiet && self.queue.give_back(opened.drive.controller_mut()).is_ok() {
            *self.parked.lock().unwrap_or_else(PoisonError::into_inner) = Some(opened);
            return;
        }
        // Stopping the controller takes it off the memory, or off the bus; where even that fails, the memory stays for ever.
        if opened.drive.close().is_err() {
            self.queue.leak();
            std::mem::forget((std::mem::take(&mut self.pages), std::mem::take(&mut self.reads)));
        }
    }
}
