//! Reads of an NVMe drive that the GPU starts by itself: PTX module `nvme`.
//!
//! One warp drives a queue pair that was lent to it ([`read_list`](fn@read_list)): it writes commands, rings doorbells, and finds completions, with no word from the
//! host between a list's first command and its last. Sections are those of the NVM Express Base Specification 2.0.
//!
//! A drive is not trusted: of a completion, only the queue's and the command's number and the status are used, and a command ends only by a
//! completion with its very identifier. Whatever a drive writes, the kernel writes to where it was told to, and it ends.

use cuda_std::{kernel::Grid, prelude::*};

/// The most commands that are in flight: two for each lane.
pub const MAX_DEPTH: u32 = 64;
/// Bits of a command's identifier that are its slot. Those above change from command to command of a slot.
const SLOT_BITS: u32 = MAX_DEPTH.ilog2();

/// Words of a submission and of a completion queue entry.
const SUBMISSION_WORDS: u32 = 16;
const COMPLETION_WORDS: u32 = 4;
/// Bytes of an entry of a list of pages.
const ENTRY: u32 = 8;
/// The opcode of Read (NVM Command Set Specification 1.0, section 3.2.4).
const READ: u32 = 0x02;

/// A slot without a command.
const FREE: u32 = u32::MAX;

/// Pauses between two looks at the completion queue while nothing comes: each one twice as long as the one before. A read takes a drive 60 us
/// or more, and each look is a read over the link.
const PAUSE: (u32, u32) = (128, 2048);

/// Status word of a read that no command was made of. The host writes it.
pub const WAITING: u32 = 0;
/// Status word of a read whose command has not ended, and may still write its memory.
pub const OUTSTANDING: u32 = 1;
/// Set in the status word of a read that has ended; the completion's status field (section 3.3.3.2.1) is in the bits from 0 on.
pub const ENDED: u32 = 1 << 31;

/// Stop word: go on.
pub const GO_ON: u32 = 0;
/// Stop word: start no more commands, and wait for those that are in flight.
pub const DRAIN: u32 = 1;
/// Stop word: end at once.
pub const LEAVE: u32 = 2;

/// Why a list ended: every read has.
pub const ALL_ENDED: u32 = 0;
/// Why a list ended: the host wanted it to.
pub const STOPPED: u32 = 1;
/// Why a list ended: nothing completed for as long as was to be waited.
pub const TIMED_OUT: u32 = 2;

/// A queue pair, and all that belongs to it from one list to the next. Addresses are the device's.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Queue {
    /// The submission queue.
    pub submissions: *mut u32,
    /// The completion queue.
    pub completions: *const u32,
    /// The submission queue's tail doorbell, or a word of memory that somebody copies to it.
    pub tail: *mut u32,
    /// The completion queue's head doorbell, likewise.
    pub head: *mut u32,
    /// Memory for lists of pages: [`Self::list_pages`] pages for each slot.
    pub lists: *mut u64,
    /// Where each of these pages is on the bus.
    pub list_addresses: *const u64,
    /// What is kept from list to list.
    pub state: *mut State,
    /// The number of both queues.
    pub id: u32,
    /// Entries of each.
    pub entries: u32,
    /// Slots for commands: [`MAX_DEPTH`] at most, and fewer than entries.
    pub slots: u32,
    /// Pages for the list of one command.
    pub list_pages: u32,
    /// Power of two of a page's bytes (CC.MPS).
    pub page_bits: u32,
    /// The namespace.
    pub namespace: u32,
    /// Power of two of a logical block's bytes.
    pub block_bits: u32,
    /// For the alignment.
    pub _pad: u32,
}
// SAFETY: `repr(C)`, 7 * 8 + 8 * 4 bytes without padding.
unsafe impl cuda_std::kernel::Param for Queue {}

/// What is kept of a queue pair from list to list. New queues have zeros and phase 1.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct State {
    /// Where the next command goes.
    pub tail: u32,
    /// Where the next completion comes.
    pub head: u32,
    /// The phase tag of new completions (section 3.3.3.2).
    pub phase: u32,
    /// How often each slot has had a command.
    pub generations: [u32; MAX_DEPTH as usize],
}

/// A read: one command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Read {
    /// The first logical block.
    pub lba: u64,
    /// Where the bus addresses of the data's pages are, in order.
    pub pages: *const u64,
    /// Number of logical blocks, 1 to 65,536.
    pub blocks: u32,
    /// The data's first byte in its first page, a multiple of 4.
    pub offset: u32,
}

/// What is to be read.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct List {
    /// The reads.
    pub reads: *const Read,
    /// A status word for each, [`WAITING`] at first.
    pub statuses: *mut u32,
    /// What comes of the list as a whole.
    pub report: *mut Report,
    /// What the host wants: [`GO_ON`], [`DRAIN`] or [`LEAVE`]. It is looked at all the time.
    pub stop: *const u32,
    /// Nanoseconds to wait at most for the next completion of a command.
    pub patience: u64,
    /// Number of reads.
    pub count: u32,
    /// Commands in flight at most, 1 to [`Queue::slots`].
    pub depth: u32,
    /// The list's number, not 0.
    pub number: u32,
    /// For the alignment.
    pub _pad: u32,
}
// SAFETY: `repr(C)`, 5 * 8 + 4 * 4 bytes without padding.
unsafe impl cuda_std::kernel::Param for List {}

/// What came of a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Report {
    /// Commands that were submitted.
    pub commands: u32,
    /// Of these, the ones that ended with an error.
    pub errors: u32,
    /// The first error's status field, 0 if there is none.
    pub first_error: u32,
    /// Which read that was of.
    pub first_failed: u32,
    /// Completions of no command in flight: late ones, those that came twice, nonsense.
    pub strays: u32,
    /// Commands that have not ended.
    pub outstanding: u32,
    /// [`ALL_ENDED`], [`STOPPED`] or [`TIMED_OUT`].
    pub why: u32,
    /// [`List::number`], written last: all else is there then, the state included.
    pub number: u32,
}

/// The launch of [`read_list`](fn@read_list).
pub const fn read_list_grid() -> Grid {
    Grid::new(1, 1, 32)
}

/// A command's slot, in the lane that has it.
#[derive(Clone, Copy)]
struct Slot {
    /// Its read, or [`FREE`].
    read: u32,
    /// How often it has had a command.
    generation: u32,
}

impl Slot {
    /// The identifier of the command in slot `number`.
    #[inline(always)]
    fn cid(self, number: u32) -> u32 {
        (self.generation << SLOT_BITS | number) & 0xffff
    }

    /// Takes slot `number` for `read`, with another identifier than the last ones.
    #[inline(always)]
    fn take(&mut self, number: u32, read: u32) {
        self.generation += 1;
        // FFFFh is kept for other uses (section 3.3.3.1).
        if self.cid(number) == 0xffff {
            self.generation += 1;
        }
        self.read = read;
    }
}

/// Reads a list from a drive, in whatever order the drive likes.
///
/// Launched with [`read_list_grid`], beside all other work; it writes no memory that other kernels use, but the drive does. It ends when all reads
/// have ended, when [`List::stop`] says so, or when nothing has completed for [`List::patience`]. If commands are outstanding then, the queue
/// pair must be taken back before another list is started on it.
///
/// # Safety
/// All addresses are those of live memory that the drive sees at the addresses that it is told, of the extents that [`Queue`] and [`List`]
/// say; queues of a controller that were empty when [`State`] was new; one list at a time; `entries`, `slots`, `depth` and `count` in their
/// ranges. Each read is one that the controller takes (MDTS), has a page for every part of its data, and no more of them than the list
/// pages have room for. The data's memory is the drive's until the read's status word says [`ENDED`], and after a list that left commands
/// outstanding until the queue pair was taken back.
#[kernel("nvme")]
pub unsafe fn read_list(queue: Queue, list: List) {
    let lane = warp::lane_id();
    // SAFETY: throughout, the caller's promise; a branch around a collective is one that all lanes take, because what it tests is the same
    // in all of them.
    unsafe {
        let state = queue.state;
        let generations = (&raw mut (*state).generations).cast::<u32>();
        let (mut tail, mut head) = (mem::load(&raw const (*state).tail), mem::load(&raw const (*state).head));
        let mut phase = mem::load(&raw const (*state).phase);
        let mut low = Slot { read: FREE, generation: mem::load(generations.add(lane as usize)) };
        let mut high = Slot { read: FREE, generation: mem::load(generations.add(lane as usize + 32)) };
        let mut report = Report { number: list.number, ..empty() };
        let (mut next, mut stop) = (0, GO_ON);
        let (mut pause, mut since) = (PAUSE.0, system::nanoseconds());
        loop {
            let rung = tail;
            while stop == GO_ON && next < list.count && report.outstanding < list.depth {
                let in_low = warp::warp_vote_ballot(warp::FULL_MASK, low.read == FREE && lane < queue.slots);
                let in_high = warp::warp_vote_ballot(warp::FULL_MASK, high.read == FREE && lane + 32 < queue.slots);
                let slot = if in_low != 0 { in_low.trailing_zeros() } else { 32 + in_high.trailing_zeros() };
                let mut cid = 0;
                if lane == slot {
                    low.take(slot, next);
                    cid = low.cid(slot);
                }
                if lane + 32 == slot {
                    high.take(slot, next);
                    cid = high.cid(slot);
                }
                let cid = warp::warp_shuffle_idx(warp::FULL_MASK, cid, slot % 32);
                submit(&queue, mem::load(list.reads.add(next as usize)), slot, cid, tail);
                tail = if tail + 1 == queue.entries { 0 } else { tail + 1 };
                next += 1;
                report.commands += 1;
                report.outstanding += 1;
            }
            if tail != rung {
                // All lanes' parts of commands and lists are seen by whoever sees the doorbell.
                warp::sync_warp(warp::FULL_MASK);
                system::fence();
                if lane == 0 {
                    system::store(queue.tail, tail);
                }
            }
            if report.outstanding == 0 {
                report.why = if next == list.count { ALL_ENDED } else { STOPPED };
                break;
            }

            // A lane looks at the entry that many behind the head. No more can be new than are in flight, unless the drive is mad.
            let behind = head + lane;
            let wraps = behind >= queue.entries;
            let entry = queue
                .completions
                .add((COMPLETION_WORDS * (if wraps { behind - queue.entries } else { behind })) as usize);
            let looks = lane < report.outstanding;
            let mut last = 0;
            if lane == 0 {
                stop = system::load(list.stop);
            }
            if looks {
                last = system::load(entry.add(3));
            }
            let is_new = looks && (last >> 16 & 1) == phase ^ u32::from(wraps);
            let news = (!warp::warp_vote_ballot(warp::FULL_MASK, is_new)).trailing_zeros();
            stop = warp::warp_shuffle_idx(warp::FULL_MASK, stop, 0);
            let mut ended = 0;
            if news > 0 {
                // The drive writes the phase tag last. What is read behind this (the rest of the entry) is not read before it, and who sees
                // a status word that is written behind it sees the data too, whichever lane saw the tag.
                warp::sync_warp(warp::FULL_MASK);
                system::fence();
                let mut third = 0;
                if lane < news {
                    third = system::load(entry.add(2));
                }
                let mut i = 0;
                while i < news {
                    let third = warp::warp_shuffle_idx(warp::FULL_MASK, third, i);
                    let last = warp::warp_shuffle_idx(warp::FULL_MASK, last, i);
                    let (cid, status) = (last & 0xffff, last >> 17);
                    let slot = cid % MAX_DEPTH;
                    let in_high = slot >= 32;
                    let held = if in_high { high } else { low };
                    let is_its =
                        lane == slot % 32 && held.read != FREE && held.cid(slot) == cid && third >> 16 == queue.id;
                    if is_its {
                        system::store(list.statuses.add(held.read as usize), ENDED | status);
                        if in_high {
                            high.read = FREE;
                        } else {
                            low.read = FREE;
                        }
                    }
                    let read = warp::warp_shuffle_idx(warp::FULL_MASK, held.read, slot % 32);
                    if warp::warp_vote_ballot(warp::FULL_MASK, is_its) == 0 {
                        report.strays += 1;
                    } else {
                        ended += 1;
                        // Type and code; there is more to a status, which is no error.
                        if status & 0x7ff != 0 {
                            if report.errors == 0 {
                                (report.first_error, report.first_failed) = (status, read);
                            }
                            report.errors += 1;
                        }
                    }
                    i += 1;
                }
                head += news;
                if head >= queue.entries {
                    head -= queue.entries;
                    phase ^= 1;
                }
                // The entries have been read: their values were looked at above.
                if lane == 0 {
                    system::store(queue.head, head);
                }
                report.outstanding -= ended;
            }
            let waited = system::nanoseconds().wrapping_sub(since);
            let late = warp::warp_vote_ballot(warp::FULL_MASK, lane == 0 && waited > list.patience) != 0;
            if ended > 0 {
                (pause, since) = (PAUSE.0, system::nanoseconds());
            } else if late {
                report.why = TIMED_OUT;
                break;
            } else {
                system::sleep(pause);
                pause = if pause * 2 > PAUSE.1 { PAUSE.1 } else { pause * 2 };
            }
            if stop == LEAVE && report.outstanding > 0 {
                report.why = STOPPED;
                break;
            }
        }

        if low.read != FREE {
            system::store(list.statuses.add(low.read as usize), OUTSTANDING);
        }
        if high.read != FREE {
            system::store(list.statuses.add(high.read as usize), OUTSTANDING);
        }
        mem::store(generations.add(lane as usize), low.generation);
        mem::store(generations.add(lane as usize + 32), high.generation);
        if lane == 0 {
            mem::store(&raw mut (*state).tail, tail);
            mem::store(&raw mut (*state).head, head);
            mem::store(&raw mut (*state).phase, phase);
            mem::store(list.report, Report { number: 0, ..report });
        }
        warp::sync_warp(warp::FULL_MASK);
        system::fence();
        if lane == 0 {
            system::store(&raw mut (*list.report).number, report.number);
        }
    }
}

/// Nothing came of a list so far.
#[inline(always)]
fn empty() -> Report {
    Report {
        commands: 0,
        errors: 0,
        first_error: 0,
        first_failed: 0,
        strays: 0,
        outstanding: 0,
        why: ALL_ENDED,
        number: 0,
    }
}

/// Writes the command of `read` at `tail`, and the list of its pages to `slot`'s. No doorbell.
///
/// # Safety
/// As for [`read_list`](fn@read_list); all lanes are here with the same arguments, and the slot's list and the entry at `tail` are not the drive's.
#[inline(always)]
unsafe fn submit(queue: &Queue, read: Read, slot: u32, cid: u32, tail: u32) {
    let lane = warp::lane_id();
    let page = 1u32 << queue.page_bits;
    let bytes = read.blocks << queue.block_bits;
    let first = if page - read.offset < bytes { page - read.offset } else { bytes };
    // Pages behind the first (section 4.1.1).
    let count = (bytes - first).div_ceil(page);
    // SAFETY: the caller's promise: `count` + 1 pages of data, and list pages for them.
    unsafe {
        let prp1 = mem::load(read.pages) + u64::from(read.offset);
        let mut prp2 = 0;
        if count == 1 {
            prp2 = mem::load(read.pages.add(1));
        }
        if count > 1 {
            // A list page's last entry is the next list page's address, if more than that one entry remains.
            let room = page / ENTRY;
            let pages = if count <= room { 1 } else { 1 + (count - room).div_ceil(room - 1) };
            let list = queue.lists.add((slot * queue.list_pages * room) as usize);
            let addresses = queue.list_addresses.add((slot * queue.list_pages) as usize);
            prp2 = mem::load(addresses);
            let mut index = lane;
            while index < count {
                let in_page = if index / (room - 1) < pages { index / (room - 1) } else { pages - 1 };
                // The entries of the pages before it, and a link at the end of each.
                mem::store(list.add((index + in_page) as usize), mem::load(read.pages.add(1 + index as usize)));
                index += 32;
            }
            let mut link = lane + 1;
            while link < pages {
                mem::store(list.add((link * room - 1) as usize), mem::load(addresses.add(link as usize)));
                link += 32;
            }
        }
        let word = match lane {
            0 => cid << 16 | READ,
            1 => queue.namespace,
            6 => prp1 as u32,
            7 => (prp1 >> 32) as u32,
            8 => prp2 as u32,
            9 => (prp2 >> 32) as u32,
            10 => read.lba as u32,
            11 => (read.lba >> 32) as u32,
            12 => read.blocks - 1,
            _ => 0,
        };
        if lane < SUBMISSION_WORDS {
            mem::store(queue.submissions.add((SUBMISSION_WORDS * tail + lane) as usize), word);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Identifiers of a slot change with each command, come round late, and are never FFFFh; those of two slots differ.
    #[test]
    fn identifiers() {
        for number in [0, 31, 63] {
            let mut slot = Slot { read: FREE, generation: 0 };
            let mut seen = Vec::new();
            for _ in 0..1023 {
                slot.take(number, 5);
                seen.push(slot.cid(number));
            }
            assert!(seen.iter().all(|&cid| cid < 0xffff && cid % MAX_DEPTH == number));
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), 1023);
        }
    }
}
