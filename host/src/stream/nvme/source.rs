//! A source whose commands the CPU submits.

use std::{
    collections::HashMap,
    sync::PoisonError,
    thread,
    time::{Duration, Instant},
};

use nvme::{Done, Drive, Operation, Transfer};
use readahead::{Completion, Dst, HostBuf, Landed, Piece, Source, SourceError};

use super::{
    Opened, Parked,
    landing::{Landing, PAGE, Place},
};

/// How long the driver polls by itself before the thread sleeps for a while, and how long that is. Commands for more than a millisecond
/// are in the queue while pieces of 1 MiB and more are read, so that a drive does not notice; and a processor that polls all the time is
/// one less to compute with.
const POLL: Duration = Duration::from_micros(20);
const NAP: Duration = Duration::from_micros(50);

/// A read in flight.
struct Read {
    dst: HostBuf,
    place: Place,
    landed: Landed,
}

/// Reads a model's files from a drive.
///
/// When it is dropped, reads that are in flight are abandoned by stopping the controller: behind that, it writes no memory.
pub struct DriveSource {
    /// Dropped first.
    opened: Option<Opened>,
    parked: Parked,
    landing: Landing,
    reads: HashMap<u64, Read>,
    ended: Vec<Done>,
}

impl DriveSource {
    /// Reads what was opened, and leaves it in `parked` afterwards.
    pub(super) fn new(opened: Opened, parked: Parked) -> Self {
        let landing = Landing::new(opened.drive.controller().door().clone());
        DriveSource { opened: Some(opened), parked, landing, reads: HashMap::new(), ended: Vec::new() }
    }

    fn opened(&self) -> &Opened {
        self.opened.as_ref().expect("it is there until it is dropped")
    }

    fn drive(&mut self) -> &mut Drive {
        &mut self.opened.as_mut().expect("it is there until it is dropped").drive
    }

    /// Takes in what has ended. Whether there was anything.
    fn settle(&mut self, done: &mut Vec<Completion>) -> bool {
        let any = !self.ended.is_empty();
        for Done { id, result } in self.ended.drain(..) {
            let Some(Read { mut dst, place, landed }) = self.reads.remove(&id) else { continue };
            let wanted = result.is_ok().then_some(landed.begin..landed.begin + landed.len);
            self.landing.arrived(place, &mut dst, wanted);
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
        let dst = dst.host()?;
        let (blocks, depth) = (self.opened().image.blocks(piece)?, self.depth());
        if self.reads.len() >= depth {
            return Err(SourceError::Full { depth });
        }
        if !dst.address().is_multiple_of(PAGE) {
            return Err(SourceError::Unaligned { address: dst.address(), block: PAGE });
        }
        if blocks.bytes > dst.len() {
            return Err(SourceError::Small { len: dst.len(), need: blocks.bytes, block: self.block() });
        }
        let landed = Landed { begin: blocks.begin, len: piece.len };
        let mut read = Read { place: self.landing.place(&dst, blocks.bytes)?, dst, landed };
        let (memory, at) = (read.place.bus.clone(), read.place.at);
        let transfer = Transfer { id, operation: Operation::Read, lba: blocks.lba, blocks: blocks.count, memory, at };
        if let Err(error) = self.drive().submit(transfer) {
            self.landing.arrived(read.place, &mut read.dst, None);
            return Err(failed(error));
        }
        self.reads.insert(id, read);
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

    fn name(&self, file: usize) -> String {
        self.opened().image.name(file)
    }

    fn describe(&self) -> String {
        let Opened { drive, image } = self.opened();
        let controller = drive.controller();
        let (name, way, landing) = (controller.name(), controller.door().describe(), self.landing.describe());
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
