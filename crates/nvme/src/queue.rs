//! A submission queue and its completion queue: NVM Express Base Specification 2.0, sections 3.3.1 and 3.3.3.
//!
//! Both are rings in memory. The host writes commands at the submission queue's tail and tells of them by the tail's doorbell; the
//! controller writes completions, in any order, and inverts the phase tag with each round, so that the host sees which are new. Of
//! each command that is outstanding the queue keeps what it takes to issue it again.

use crate::{
    BusAddr, BusMemory, Cap, Command, Completion, DmaBuf, PrpError, PrpList, Registers,
    command::{COMPLETION_BYTES, SUBMISSION_BYTES},
};
use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{Ordering, fence},
    },
    time::Instant,
};

/// The data of a command: bytes of memory.
#[derive(Debug, Clone)]
pub(crate) struct Data {
    pub memory: Arc<BusMemory>,
    pub at: usize,
    pub len: usize,
}

/// A command that is outstanding.
#[derive(Debug)]
pub(crate) struct Outstanding {
    pub command: Command,
    /// Whose command it is: what `submit` was given.
    pub tag: u64,
    pub deadline: Instant,
    /// How often it was tried. To be issued again because of others' failures is no attempt of its own.
    pub attempts: u32,
    /// An abort was asked for.
    pub aborting: bool,
    /// The memory must not go while the controller may write it.
    _memory: Option<Arc<BusMemory>>,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Completed(Completion),
    /// It was tried as often as was allowed.
    GaveUp,
}

#[derive(Debug)]
struct Slot {
    /// Tells a late completion of an earlier command in this slot from one of the present.
    generation: u16,
    list: PrpList,
    outstanding: Option<Outstanding>,
}

/// A submission queue, its completion queue, and the commands in between.
#[derive(Debug)]
pub(crate) struct QueuePair {
    id: u16,
    depth: u32,
    page: usize,
    memory: DmaBuf,
    addresses: [BusAddr; 2],
    /// Where the completion queue begins in the memory.
    completions: usize,
    tail: u32,
    /// The tail that the controller was told.
    rung: u32,
    head: u32,
    /// The head that the controller was told.
    acknowledged: u32,
    /// The phase tag of new completions.
    phase: bool,
    slots: Vec<Slot>,
    free: Vec<u16>,
    /// Ends that were found when the queue was restarted.
    ends: VecDeque<(u16, End)>,
    /// Completions of no outstanding command.
    strays: u64,
}

/// Where things are in a queue pair's memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    pub completions: usize,
    lists: usize,
    pub bytes: usize,
}

impl Layout {
    pub fn new(depth: u32, page: usize, list_pages: usize) -> Layout {
        let completions = (depth as usize * SUBMISSION_BYTES).next_multiple_of(page);
        let lists = completions + (depth as usize * COMPLETION_BYTES).next_multiple_of(page);
        Layout { completions, lists, bytes: lists + (depth as usize - 1) * list_pages * page }
    }

    /// Where the submission and the completion queue are on the bus. None if one is not contiguous there, or not at a page.
    pub fn addresses(&self, depth: u32, page: usize, memory: &BusMemory) -> Option<[BusAddr; 2]> {
        let submissions = memory.contiguous(0, depth as usize * SUBMISSION_BYTES)?;
        let completions = memory.contiguous(self.completions, depth as usize * COMPLETION_BYTES)?;
        let addresses = [submissions, completions];
        addresses.iter().all(|address| address.0.is_multiple_of(page as u64)).then_some(addresses)
    }
}

impl QueuePair {
    /// Bytes of memory for queues of `depth` entries with `list_pages` pages of PRPs for each command.
    pub fn bytes(depth: u32, page: usize, list_pages: usize) -> usize {
        Layout::new(depth, page, list_pages).bytes
    }

    /// Queues of `depth` entries, at least 2, in `memory`. None if a queue is not contiguous on the bus.
    pub fn new(id: u16, depth: u32, page: usize, list_pages: usize, memory: DmaBuf) -> Option<QueuePair> {
        let layout = Layout::new(depth, page, list_pages);
        let addresses = layout.addresses(depth, page, memory.bus())?;
        // One entry stays empty: else a full queue could not be told from an empty one (section 3.3.1.5).
        let count = depth as usize - 1;
        let list = |slot: usize| PrpList::new(memory.clone(), layout.lists + slot * list_pages * page, list_pages);
        let slots = (0..count).map(|slot| Slot { generation: 0, list: list(slot), outstanding: None }).collect();
        let (completions, free) = (layout.completions, (0..count as u16).rev().collect());
        let mut queue = QueuePair {
            id,
            depth,
            page,
            memory,
            addresses,
            completions,
            tail: 0,
            rung: 0,
            head: 0,
            acknowledged: 0,
            phase: true,
            slots,
            free,
            ends: VecDeque::new(),
            strays: 0,
        };
        queue.rewind();
        Some(queue)
    }

    pub fn id(&self) -> u16 {
        self.id
    }

    pub fn depth(&self) -> u32 {
        self.depth
    }

    /// Where the submission and the completion queue are on the bus.
    pub fn addresses(&self) -> [BusAddr; 2] {
        self.addresses
    }

    /// Whether another command may be submitted.
    pub fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Completions of commands that were not outstanding, so far.
    pub fn strays(&self) -> u64 {
        self.strays
    }

    /// Puts a command into the queue; `data` gives it its data pointers. There has to be room. The controller sees it after
    /// [`ring`](Self::ring).
    pub fn submit(
        &mut self,
        command: Command,
        data: Option<Data>,
        tag: u64,
        deadline: Instant,
    ) -> Result<(), PrpError> {
        let slot = *self.free.last().expect("the caller asked has_room");
        let list = &self.slots[usize::from(slot)].list;
        let prps = data.as_ref().map(|data| list.describe(&data.memory, data.at, data.len, self.page)).transpose()?;
        self.free.pop();
        self.slots[usize::from(slot)].outstanding = Some(Outstanding {
            command: prps.map_or(command, |prps| command.with_prps(prps)),
            tag,
            deadline,
            attempts: 1,
            aborting: false,
            _memory: data.map(|data| data.memory),
        });
        self.issue(slot, deadline);
        Ok(())
    }

    /// Tries the command in `slot` once more.
    pub fn retry(&mut self, slot: u16, deadline: Instant) {
        if let Some(outstanding) = &mut self.slots[usize::from(slot)].outstanding {
            outstanding.attempts += 1;
        }
        self.issue(slot, deadline);
    }

    fn issue(&mut self, slot: u16, deadline: Instant) {
        let cid = self.next_cid(slot);
        let Some(outstanding) = &mut self.slots[usize::from(slot)].outstanding else { return };
        outstanding.command = outstanding.command.with_cid(cid);
        outstanding.deadline = deadline;
        outstanding.aborting = false;
        let at = self.tail as usize * SUBMISSION_BYTES;
        for (dword, &value) in outstanding.command.0.iter().enumerate() {
            self.memory.write32(at + 4 * dword, value);
        }
        self.tail = (self.tail + 1) % self.depth;
    }

    /// An identifier for the next command in `slot`: the slot, and above it a number that changes. FFFFh is kept for other uses
    /// (section 3.3.3.1).
    fn next_cid(&mut self, slot: u16) -> u16 {
        let bits = self.slot_bits();
        let generation = &mut self.slots[usize::from(slot)].generation;
        loop {
            *generation = generation.wrapping_add(1);
            let cid = (u32::from(*generation) << bits) as u16 | slot;
            if cid != u16::MAX {
                return cid;
            }
        }
    }

    fn slot_bits(&self) -> u32 {
        self.slots.len().next_power_of_two().ilog2()
    }

    /// Tells the controller of commands that it does not know of.
    pub fn ring(&mut self, registers: &dyn Registers, cap: Cap) {
        if self.rung != self.tail {
            registers.write32(cap.submission_doorbell(self.id), self.tail);
            self.rung = self.tail;
        }
    }

    /// The next command that has ended, by its slot, which stays occupied until [`release`](Self::release).
    pub fn next_end(&mut self) -> Option<(u16, End)> {
        self.ends.pop_front().or_else(|| self.next_completion().map(|(slot, c)| (slot, End::Completed(c))))
    }

    /// Tells the controller how far completions have been read.
    pub fn acknowledge(&mut self, registers: &dyn Registers, cap: Cap) {
        if self.acknowledged != self.head {
            registers.write32(cap.completion_doorbell(self.id), self.head);
            self.acknowledged = self.head;
        }
    }

    fn next_completion(&mut self) -> Option<(u16, Completion)> {
        loop {
            let at = self.completions + self.head as usize * COMPLETION_BYTES;
            let last = self.memory.read32(at + 12);
            if Completion([0, 0, 0, last]).phase() != self.phase {
                return None;
            }
            // The controller writes the phase tag last. What is read behind this fence, the rest of the entry and the data, is not
            // read before it: neither by the compiler nor, on aarch64, by the CPU.
            fence(Ordering::Acquire);
            let entry = Completion([0, 4, 8, 12].map(|dword| self.memory.read32(at + dword)));
            self.head += 1;
            if self.head == self.depth {
                (self.head, self.phase) = (0, !self.phase);
            }
            match self.slot_of(&entry) {
                Some(slot) => return Some((slot, entry)),
                None => self.strays += 1,
            }
        }
    }

    /// The slot of the outstanding command that a completion is of.
    fn slot_of(&self, entry: &Completion) -> Option<u16> {
        let slot = (u32::from(entry.cid()) & ((1 << self.slot_bits()) - 1)) as u16;
        let outstanding = self.slots.get(usize::from(slot))?.outstanding.as_ref()?;
        let is_its = entry.queue() == self.id && outstanding.command.cid() == entry.cid();
        (is_its && !self.has_ended(slot)).then_some(slot)
    }

    /// The command in an occupied slot.
    pub fn get(&self, slot: u16) -> &Outstanding {
        self.slots[usize::from(slot)].outstanding.as_ref().expect("the slot is occupied")
    }

    /// Frees a slot whose command has ended.
    pub fn release(&mut self, slot: u16) -> Outstanding {
        let outstanding = self.slots[usize::from(slot)].outstanding.take().expect("the slot is occupied");
        self.free.push(slot);
        outstanding
    }

    /// A command whose deadline has passed.
    pub fn overdue(&self, now: Instant) -> Option<u16> {
        let overdue = |slot: &Slot| slot.outstanding.as_ref().is_some_and(|o| o.deadline <= now);
        self.slots.iter().position(overdue).map(|slot| slot as u16)
    }

    /// Notes that an abort of the command in `slot` was asked for, and waits for it until `deadline`.
    pub fn aborting(&mut self, slot: u16, deadline: Instant) {
        if let Some(outstanding) = &mut self.slots[usize::from(slot)].outstanding {
            (outstanding.aborting, outstanding.deadline) = (true, deadline);
        }
    }

    /// Collects what the controller completed before it was disabled, and empties both rings. The controller must be disabled. What
    /// is outstanding still is: [`reissue`](Self::reissue) issues it again.
    pub fn restart(&mut self) {
        while let Some((slot, completion)) = self.next_completion() {
            self.ends.push_back((slot, End::Completed(completion)));
        }
        self.rewind();
    }

    /// Issues all outstanding commands again. That is another attempt of those that did not complete in time, and of all if `all`; who
    /// had `attempts` ends.
    pub fn reissue(&mut self, all: bool, attempts: u32, deadline: Instant) {
        for slot in 0..self.slots.len() as u16 {
            let Some(outstanding) = &self.slots[usize::from(slot)].outstanding else { continue };
            let (late, tried) = (outstanding.aborting, outstanding.attempts);
            match (all || late, tried < attempts) {
                _ if self.has_ended(slot) => {}
                (false, _) => self.issue(slot, deadline),
                (true, true) => self.retry(slot, deadline),
                (true, false) => self.ends.push_back((slot, End::GaveUp)),
            }
        }
    }

    /// Whether the end of the command in `slot` waits to be taken.
    fn has_ended(&self, slot: u16) -> bool {
        self.ends.iter().any(|&(ended, _)| ended == slot)
    }

    /// Forgets all commands and empties both rings. The controller must be disabled.
    pub fn abandon(&mut self) {
        self.ends.clear();
        self.slots.iter_mut().for_each(|slot| slot.outstanding = None);
        self.free = (0..self.slots.len() as u16).rev().collect();
        self.rewind();
    }

    /// Both rings as they are when a controller has created them.
    fn rewind(&mut self) {
        // Old entries must not look new.
        self.memory.fill(self.completions, self.depth as usize * COMPLETION_BYTES, 0);
        (self.tail, self.rung, self.head, self.acknowledged, self.phase) = (0, 0, 0, 0, true);
    }

    /// Keeps all memory that the controller may still write, for ever.
    pub fn leak(&mut self) {
        std::mem::forget(self.memory.clone());
        self.slots.iter_mut().for_each(|slot| std::mem::forget(slot.outstanding.take()));
    }
}
