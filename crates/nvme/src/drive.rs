//! A namespace that is read and written: transfers of any length, several at once, and what becomes of them when something fails.
//!
//! - A transfer is cut into commands of what the controller takes at once (MDTS). All queues are kept full.
//! - A command that fails is issued again, unless the controller says that this is of no use (DNR) or it was tried often enough.
//! - One that does not complete in time is aborted. If that does not end it, or the controller reports that it has failed (CSTS.CFS),
//!   the controller is reset and everything that is outstanding is issued again.

use crate::{
    BusMemory, Command, Controller, Error, Namespace,
    command::io,
    queue::{Data, End},
};
use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    sync::Arc,
    time::{Duration, Instant},
};

/// What a transfer does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// From the drive into memory.
    Read,
    /// From memory to the drive.
    Write,
    /// What was written becomes lasting. Has no data.
    Flush,
}

/// Blocks that are read or written.
#[derive(Clone, Debug)]
pub struct Transfer {
    /// Comes back with its end.
    pub id: u64,
    /// What is done.
    pub operation: Operation,
    /// First logical block.
    pub lba: u64,
    /// Number of blocks.
    pub blocks: u64,
    /// Where the data is.
    pub memory: Arc<BusMemory>,
    /// First byte in the memory. Its bus address is a multiple of 4.
    pub at: usize,
}

/// The end of a transfer.
#[derive(Debug)]
pub struct Done {
    /// [`Transfer::id`].
    pub id: u64,
    /// What came of it. Of several errors, the first.
    pub result: Result<(), Error>,
}

/// How long the driver only polls before it looks whether the controller is well: that takes a read of a register.
const HEALTH_INTERVAL: Duration = Duration::from_millis(10);

/// A transfer that is not done.
struct Active {
    id: u64,
    /// Commands that are outstanding.
    commands: usize,
    /// There are blocks that no command was made of.
    to_cut: bool,
    error: Option<Error>,
}

/// A namespace of a controller.
pub struct Drive {
    controller: Controller,
    namespace: Namespace,
    /// Blocks of a command at most.
    chunk: u64,
    active: HashMap<u64, Active>,
    /// Ends that nobody was told of.
    done: Vec<Done>,
    next_tag: u64,
    /// What no command was made of, with tags.
    waiting: VecDeque<(u64, Transfer)>,
    /// The queue that the next command goes to if it has room.
    next_queue: usize,
    health_due: Instant,
    retries: u64,
    /// A command has completed since the last reset.
    completed: bool,
}

impl Drive {
    /// Namespace `id` of a controller.
    ///
    /// # Errors
    /// If there is no such namespace, or it cannot be read.
    pub fn open(mut controller: Controller, id: u32) -> Result<Drive, Error> {
        let namespace = controller.namespace(id)?;
        let chunk = chunk(&controller, namespace);
        let health_due = controller.registers().now() + HEALTH_INTERVAL;
        Ok(Drive {
            controller,
            namespace,
            chunk,
            active: HashMap::new(),
            done: Vec::new(),
            next_tag: 0,
            waiting: VecDeque::new(),
            next_queue: 0,
            health_due,
            retries: 0,
            completed: false,
        })
    }

    /// Changes to namespace `id`. Nothing may be pending.
    ///
    /// # Errors
    /// As [`open`](Self::open). It is the namespace before that is read then.
    pub fn select(&mut self, id: u32) -> Result<(), Error> {
        assert!(self.pending() == 0, "transfers are pending");
        self.namespace = self.controller.namespace(id)?;
        self.chunk = chunk(&self.controller, self.namespace);
        Ok(())
    }

    /// The namespace.
    pub fn namespace(&self) -> Namespace {
        self.namespace
    }

    /// The controller.
    pub fn controller(&self) -> &Controller {
        &self.controller
    }

    /// The controller, to lend queues of it to others.
    pub fn controller_mut(&mut self) -> &mut Controller {
        &mut self.controller
    }

    /// Commands that were issued again, because they had failed, so far.
    pub fn retries(&self) -> u64 {
        self.retries
    }

    /// Transfers whose end nobody was told of.
    pub fn pending(&self) -> usize {
        self.active.len() + self.done.len()
    }

    /// Starts a transfer. Does not wait. The memory is the transfer's until its end comes out of [`wait`](Self::wait).
    ///
    /// # Errors
    /// Nothing was started: it is outside of the namespace or of its memory.
    pub fn submit(&mut self, transfer: Transfer) -> Result<(), Error> {
        let (lba, blocks, size) = (transfer.lba, transfer.blocks, self.namespace.blocks);
        if transfer.operation != Operation::Flush {
            if blocks == 0 || lba > size || blocks > size - lba {
                return Err(Error::OutOfRange { device: self.controller.name().to_owned(), lba, blocks, size });
            }
            let bytes = blocks as u128 * self.namespace.block_bytes as u128;
            if transfer.at as u128 + bytes > transfer.memory.len() as u128 {
                let len = usize::try_from(bytes).unwrap_or(usize::MAX);
                let cause = crate::PrpError::Outside { at: transfer.at, len, of: transfer.memory.len() };
                return Err(Error::Prp { device: self.controller.name().to_owned(), cause });
            }
        }
        let tag = self.next_tag;
        self.next_tag += 1;
        self.active.insert(tag, Active { id: transfer.id, commands: 0, to_cut: true, error: None });
        self.waiting.push_back((tag, transfer));
        self.issue();
        Ok(())
    }

    /// Waits for ends, for `timeout` at most, and appends all that there are. Returns at once when nothing is pending.
    ///
    /// # Errors
    /// The controller is lost: it is gone, or did not come back from a reset. Pending transfers will not end any more.
    pub fn wait(&mut self, timeout: Duration, done: &mut Vec<Done>) -> Result<(), Error> {
        let start = self.controller.registers().now();
        loop {
            let progress = self.poll();
            self.issue();
            if !self.done.is_empty() || self.active.is_empty() {
                done.append(&mut self.done);
                return Ok(());
            }
            let now = self.controller.registers().now();
            if !progress && now >= self.health_due {
                self.look_after(now)?;
            }
            if now - start >= timeout {
                return Ok(());
            }
            if !progress {
                self.controller.registers().pause();
            }
        }
    }

    /// Transfers `blocks` blocks from or to `memory` at `at`, and waits for that. Nothing else may be pending.
    ///
    /// # Errors
    /// If it fails.
    pub fn run(
        &mut self,
        operation: Operation,
        lba: u64,
        blocks: u64,
        memory: &Arc<BusMemory>,
        at: usize,
    ) -> Result<(), Error> {
        assert!(self.pending() == 0, "transfers are pending");
        self.submit(Transfer { id: 0, operation, lba, blocks, memory: memory.clone(), at })?;
        let mut done = Vec::new();
        while done.is_empty() {
            self.wait(self.controller.options().timeout, &mut done)?;
        }
        done.remove(0).result
    }

    /// Resets the controller. What is outstanding is issued again.
    ///
    /// # Errors
    /// If the controller does not come back.
    pub fn reset(&mut self) -> Result<(), Error> {
        self.controller.reset(false)
    }

    /// The same because of a failure, which may be that of any outstanding command. It counts as an attempt of all of them if nothing
    /// has completed since the last one: so no drive is reset for ever, and no command fails for what others do.
    fn recover(&mut self) -> Result<(), Error> {
        let all = !std::mem::take(&mut self.completed);
        self.controller.reset(all)
    }

    /// Shuts the controller down. What is pending is abandoned.
    ///
    /// # Errors
    /// If the controller does not stop.
    pub fn close(self) -> Result<(), Error> {
        self.controller.close()
    }

    /// Makes commands of what waits, as long as a queue has room.
    fn issue(&mut self) {
        let deadline = self.controller.registers().now() + self.controller.options().timeout;
        let (namespace, block_bytes) = (self.namespace.id, self.namespace.block_bytes);
        while let Some((tag, transfer)) = self.waiting.front_mut() {
            let tag = *tag;
            let Some(active) = self.active.get_mut(&tag).filter(|active| active.to_cut) else {
                // It has failed, and the rest of it is not to be done.
                self.waiting.pop_front();
                continue;
            };
            let queues = &mut self.controller.queues;
            let count = queues.len();
            let Some(queue) = (0..count).map(|i| (self.next_queue + i) % count).find(|&i| queues[i].has_room()) else {
                break;
            };
            self.next_queue = (queue + 1) % count;
            let (lba, blocks) = (transfer.lba, transfer.blocks.min(self.chunk));
            let len = blocks as usize * block_bytes;
            let command = match transfer.operation {
                Operation::Read => Command::read(namespace, lba, blocks as u32),
                Operation::Write => Command::write(namespace, lba, blocks as u32),
                Operation::Flush => Command::flush(namespace),
            };
            let has_data = transfer.operation != Operation::Flush;
            let data = has_data.then(|| Data { memory: transfer.memory.clone(), at: transfer.at, len });
            let submitted = queues[queue].submit(command, data, tag, deadline);
            (transfer.lba, transfer.blocks, transfer.at) = (lba + blocks, transfer.blocks - blocks, transfer.at + len);
            active.to_cut = has_data && transfer.blocks > 0;
            match submitted {
                Ok(()) => active.commands += 1,
                Err(cause) => {
                    active.fail(Error::Prp { device: self.controller.name().to_owned(), cause });
                    self.settle(tag);
                }
            }
        }
        let (door, cap) = (self.controller.door().clone(), self.controller.cap());
        self.controller.queues.iter_mut().for_each(|queue| queue.ring(&*door, cap));
    }

    /// Takes what has ended out of the queues. Whether there was anything.
    fn poll(&mut self) -> bool {
        let (door, cap) = (self.controller.door().clone(), self.controller.cap());
        let mut progress = false;
        for queue in 0..self.controller.queues.len() {
            while let Some((slot, end)) = self.controller.queues[queue].next_end() {
                progress = true;
                self.end(queue, slot, end);
            }
            self.controller.queues[queue].acknowledge(&*door, cap);
        }
        progress
    }

    /// What becomes of a command that has ended: it is done, issued again, or its transfer fails.
    fn end(&mut self, queue: usize, slot: u16, end: End) {
        let (timeout, attempts) = (self.controller.options().timeout, self.controller.options().attempts);
        let outstanding = self.controller.queues[queue].get(slot);
        let failed = match end {
            End::Completed(completion) if completion.status().is_success() => None,
            End::Completed(completion) => {
                let status = completion.status();
                // An abort was this driver's wish, whatever the controller thinks of trying again.
                let again = !status.do_not_retry() || status.is_aborted();
                if again && outstanding.attempts < attempts {
                    self.retries += 1;
                    let deadline = self.controller.registers().now() + timeout;
                    return self.controller.queues[queue].retry(slot, deadline);
                }
                Some(Some(status))
            }
            End::GaveUp => Some(None),
        };
        self.completed |= matches!(end, End::Completed(_));
        let outstanding = self.controller.queues[queue].release(slot);
        let active = self.active.get_mut(&outstanding.tag).expect("a transfer is active while it has commands");
        active.commands -= 1;
        if let Some(status) = failed {
            let (device, command) = (self.controller.name().to_owned(), describe(&outstanding.command));
            active.fail(match status {
                // That it was aborted is what came of the wait.
                Some(status) if status.is_aborted() && outstanding.aborting => {
                    Error::Timeout { device, command, timeout, attempts: outstanding.attempts }
                }
                Some(status) => Error::Command { device, command, status, attempts: outstanding.attempts },
                None => Error::Timeout { device, command, timeout, attempts: outstanding.attempts },
            });
        }
        self.settle(outstanding.tag);
    }

    /// Notes the end of a transfer that has nothing left to do.
    fn settle(&mut self, tag: u64) {
        let Entry::Occupied(active) = self.active.entry(tag) else { return };
        if active.get().commands == 0 && !active.get().to_cut {
            let Active { id, error, .. } = active.remove();
            self.done.push(Done { id, result: error.map_or(Ok(()), Err) });
        }
    }

    /// Sees whether the controller is well, and does something about commands that take too long.
    fn look_after(&mut self, now: Instant) -> Result<(), Error> {
        self.health_due = now + HEALTH_INTERVAL;
        match self.controller.health() {
            Ok(()) => {}
            Err(Error::Fatal { .. }) => return self.recover(),
            Err(error) => return Err(error),
        }
        let overdue = |queue: usize| Some((queue, self.controller.queues[queue].overdue(now)?));
        let Some((queue, slot)) = (0..self.controller.queues.len()).find_map(overdue) else { return Ok(()) };
        let outstanding = self.controller.queues[queue].get(slot);
        let (id, cid) = (self.controller.queues[queue].id(), outstanding.command.cid());
        if outstanding.aborting || self.controller.abort(id, cid).is_err() {
            return self.recover();
        }
        let deadline = self.controller.registers().now() + self.controller.options().abort_timeout;
        self.controller.queues[queue].aborting(slot, deadline);
        Ok(())
    }
}

impl Active {
    fn fail(&mut self, error: Error) {
        self.to_cut = false;
        self.error.get_or_insert(error);
    }
}

/// Blocks of a command at most: 65,536 at any rate (NLB counts from 0 in 16 bits).
fn chunk(controller: &Controller, namespace: Namespace) -> u64 {
    (controller.max_transfer() / namespace.block_bytes).min(1 << 16) as u64
}

/// A command for messages.
fn describe(command: &Command) -> String {
    let name = match command.opcode() {
        io::READ => "Read",
        io::WRITE => "Write",
        _ => return "Flush".into(),
    };
    let (lba, blocks) = (u64::from(command.0[11]) << 32 | u64::from(command.0[10]), (command.0[12] & 0xffff) + 1);
    format!("{name} of {blocks} blocks from block {lba} on")
}
