//! A source whose commands the CPU submits.

use std::{
    any::Any,
    collections::HashMap,
    sync::{Arc, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nvme::{Done, Drive, Operation, PciAddress, Transfer};
use readahead::{Completion, DeviceMemory, Dst, HostBuf, Landed, Piece, Source, SourceError};

use super::{
    Blocks, Opened, Parked,
    landing::{Landing, PAGE, Place},
    vram::{OpenBar, Vram},
};

/// How long the driver polls by itself before the thread sleeps for a while, and how long that is. Commands for more than a millisecond
/// are in the queue while pieces of 1 MiB and more are read, so that a drive does not notice; and a processor that polls all the time is
/// one less to compute with.
const POLL: Duration = Duration::from_micros(20);
const NAP: Duration = Duration::from_micros(50);

/// A read in flight.
struct Read {
    to: To,
    landed: Landed,
}

/// Where it goes.
enum To {
    Host { dst: HostBuf, place: Place },
    Vram,
}

/// Reads a model's files from a drive.
///
/// When it is dropped, reads that are in flight are abandoned by stopping the controller: behind that, it writes no memory.
pub struct DriveSource {
    /// Dropped first.
    opened: Option<Opened>,
    parked: Parked,
    landing: Landing,
    /// The GPU's address if its driver does not say it, and the way to its memory.
    gpu: Option<PciAddress>,
    open_bar: OpenBar,
    vram: Option<Vram>,
    reads: HashMap<u64, Read>,
    ended: Vec<Done>,
}

impl DriveSource {
    /// Reads what was opened, and leaves it in `parked` afterwards.
    pub(super) fn new(opened: Opened, parked: Parked, gpu: Option<PciAddress>, open_bar: OpenBar) -> Self {
        let landing = Landing::new(opened.drive.controller().door().clone());
        let (reads, ended) = (HashMap::new(), Vec::new());
        DriveSource { opened: Some(opened), parked, landing, gpu, open_bar, vram: None, reads, ended }
    }

    fn opened(&self) -> &Opened {
        self.opened.as_ref().expect("it is there until it is dropped")
    }

    fn drive(&mut self) -> &mut Drive {
        &mut self.opened.as_mut().expect("it is there until it is dropped").drive
    }

    /// Starts a read into the device's memory, `len` bytes at `address`. The drive's blocks may be smaller than what the place was made
    /// for: the first one goes to where the piece begins in its block, from where the piece begins in its place.
    fn submit_to_device(
        &mut self,
        id: u64,
        piece: &Piece,
        blocks: Blocks,
        address: u64,
        len: usize,
    ) -> Result<(), SourceError> {
        let vram = self.vram.as_ref().ok_or(SourceError::Vram)?;
        let (begin, need) = piece.blocks(self.block());
        if len < need {
            return Err(SourceError::Small { len, need, block: self.block() });
        }
        let (memory, place) = vram.place(address, len)?;
        let at = place + begin - blocks.begin;
        let transfer = Transfer { id, operation: Operation::Read, lba: blocks.lba, blocks: blocks.count, memory, at };
        self.drive().submit(transfer).map_err(failed)?;
        let landed = Landed { begin, len: piece.len };
        self.reads.insert(id, Read { to: To::Vram, landed });
        Ok(())
    }

    /// Takes in what has ended. Whether there was anything.
    fn settle(&mut self, done: &mut Vec<Completion>) -> bool {
        let any = !self.ended.is_empty();
        for Done { id, result } in self.ended.drain(..) {
            let Some(Read { to, landed }) = self.reads.remove(&id) else { continue };
            match (to, &self.vram) {
                (To::Host { mut dst, place }, _) => {
                    let wanted = result.is_ok().then_some(landed.begin..landed.begin + landed.len);
                    self.landing.arrived(place, &mut dst, wanted);
                }
                (To::Vram, Some(vram)) if result.is_ok() => vram.arrived(),
                (To::Vram, _) => {}
            }
            done.push(Completion { id, result: result.map(|()| landed).map_err(failed) });
        }
        any
    }
}

/// How many commands are in flight at most: one entry of a queue stays empty.
fn commands(drive: &Drive) -> usize {
    let (queues, entries) = drive.controller().queues();
    queues * (entries as usize - 1)
}

fn failed(error: nvme::Error) -> SourceError {
    SourceError::Device(Box::new(error))
}

impl Source for DriveSource {
    fn submit(&mut self, id: u64, piece: &Piece, dst: Dst) -> Result<(), SourceError> {
        let (blocks, depth) = (self.opened().image.blocks(piece)?, self.depth());
        if self.reads.len() >= depth {
            return Err(SourceError::Full { depth });
        }
        let dst = match dst {
            Dst::Host(dst) => dst,
            Dst::Vram { address, len } => return self.submit_to_device(id, piece, blocks, address, len),
        };
        if !dst.address().is_multiple_of(PAGE) {
            return Err(SourceError::Unaligned { address: dst.address(), block: PAGE });
        }
        if blocks.bytes > dst.len() {
            return Err(SourceError::Small { len: dst.len(), need: blocks.bytes, block: self.block() });
        }
        let landed = Landed { begin: blocks.begin, len: piece.len };
        let (place, mut dst) = (self.landing.place(&dst, blocks.bytes)?, dst);
        let (memory, at) = (place.bus.clone(), place.at);
        let transfer = Transfer { id, operation: Operation::Read, lba: blocks.lba, blocks: blocks.count, memory, at };
        if let Err(error) = self.drive().submit(transfer) {
            self.landing.arrived(place, &mut dst, None);
            return Err(failed(error));
        }
        self.reads.insert(id, Read { to: To::Host { dst, place }, landed });
        Ok(())
    }

    fn wait(&mut self, timeout: Duration, done: &mut Vec<Completion>) -> Result<(), SourceError> {
        let begin = Instant::now();
        while !self.reads.is_empty() {
            let mut ended = std::mem::take(&mut self.ended);
            let result = self.drive().wait(POLL.min(timeout), &mut ended);
            self.ended = ended;
            if self.settle(done) {
                break;
            }
            result.map_err(failed)?;
            if begin.elapsed() >= timeout {
                break;
            }
            thread::sleep(NAP);
        }
        Ok(())
    }

    fn depth(&self) -> usize {
        let depth = commands(&self.opened().drive);
        self.landing.depth().map_or(depth, |most| depth.min(most))
    }

    fn block(&self) -> usize {
        self.opened().image.block().max(PAGE)
    }

    fn prepare(&mut self, buffers: &[HostBuf]) {
        let depth = self.depth();
        self.landing.prepare(buffers, depth);
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
        self.opened().image.name(file)
    }

    fn describe(&self) -> String {
        let Opened { drive, image } = self.opened();
        let controller = drive.controller();
        let landing =
            self.vram.as_ref().map_or_else(|| self.landing.describe(), |vram| format!("by {}", vram.describe()));
        let (name, way) = (controller.name(), controller.door().describe());
        let most = bytesize::ByteSize(controller.max_transfer() as u64);
        let commands = commands(drive);
        format!(
            "our driver from the drive {name} ({way}): {}; in commands of {most}, up to {commands} at once, {landing}",
            image.describe()
        )
    }
}

impl Drop for DriveSource {
    fn drop(&mut self) {
        let opened = self.opened.take();
        // What is in flight is abandoned with its drive.
        if let Some(opened) = opened.filter(|opened| opened.drive.pending() == 0) {
            *self.parked.lock().unwrap_or_else(PoisonError::into_inner) = Some(opened);
        }
    }
}
