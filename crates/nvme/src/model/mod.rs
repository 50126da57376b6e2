//! A controller in plain Rust that plays a drive: for tests of this driver, and of others who speak to a drive by themselves, such as a
//! GPU's kernel.
//!
//! [`Model`] sees what a controller sees: registers and doorbells as words of memory ([`Words`]), and queues and data by their bus
//! addresses ([`Bus`]). It is written from the specification and shares no code with the driver but the fields of entries. What a driver
//! does wrong it answers as a drive does: with a status, or by failing. [`ModelDoor`] is the driver's way to it. [`Fault`]s are what
//! drives do wrong.

mod admin;
mod bus;
mod door;
mod media;
mod walk;

pub use bus::{Bus, PageTable, Words};
pub use door::ModelDoor;
pub use media::Media;
pub use walk::walk;

use crate::{
    BusAddr, COMPLETION_BYTES, Cap, Cc, Command, Completion, SUBMISSION_BYTES, Status,
    registers::{ACQ, AQA, ASQ, CAP, CC, CSTS, VS},
};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering, fence},
    },
};

/// What kind of controller it is.
#[derive(Clone, Debug)]
pub struct Traits {
    /// Entries of an I/O queue at most, from 2 (CAP.MQES).
    pub max_queue_entries: u32,
    /// Power of two of the distance of doorbells in units of 4 bytes (CAP.DSTRD).
    pub doorbell_stride: u8,
    /// Powers of two of the smallest and largest page in units of 4 KiB (CAP.MPSMIN, MPSMAX).
    pub pages: [u8; 2],
    /// MDTS.
    pub mdts: u8,
    /// I/O queue pairs that it gives.
    pub queues: u16,
    /// Version of the specification (VS).
    pub version: u32,
    /// Steps from CC.EN to CSTS.RDY.
    pub ready_steps: u32,
    /// Commands are executed and completed in an order that this seed chooses; none: in the order of their submission.
    pub shuffle: Option<u64>,
    /// Abort finds commands whose completion is missing.
    pub aborts: bool,
}

impl Default for Traits {
    fn default() -> Self {
        Traits {
            max_queue_entries: 1 << 16,
            doorbell_stride: 0,
            pages: [0, 0],
            mdts: 5,
            queues: 8,
            version: 0x0001_0400,
            ready_steps: 3,
            shuffle: None,
            aborts: true,
        }
    }
}

/// What goes wrong with an I/O command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is not executed and has this status.
    Status(Status),
    /// It is executed and completes so many steps later.
    Late(u32),
    /// It is not executed and never completes.
    Missing,
    /// It completes, and once more so many steps later.
    Duplicate(u32),
    /// It is executed and completes so many steps later, and at once comes a completion that is not the controller's to give: of this
    /// submission queue, with this head and this command identifier. It tells of an error, so that whoever believes it is found out.
    Nonsense {
        /// SQID.
        queue: u16,
        /// SQHD.
        head: u16,
        /// CID.
        cid: u16,
        /// Steps until the command's own completion.
        late: u32,
    },
    /// It completes with this submission queue head.
    Head(u16),
    /// The controller fails before it is executed (CSTS.CFS).
    Fatal,
}

/// Internal Error.
const INTERNAL_ERROR: Status = Status::new(0, 0x06, false);

/// Chooses the fault of the I/O command that is fetched as the n-th, from 0.
pub type Choose = Box<dyn FnMut(u64, &Command) -> Option<Fault> + Send>;

struct SubmissionQueue {
    base: BusAddr,
    depth: u32,
    head: u32,
    completions: u16,
}

struct CompletionQueue {
    base: BusAddr,
    depth: u32,
    tail: u32,
    phase: bool,
}

/// A command that was fetched.
struct Fetched {
    queue: u16,
    command: Command,
    fault: Option<Fault>,
    /// Steps until it completes.
    due: u32,
    /// What came of it, once it was executed.
    result: Option<(u32, Status)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Disabled,
    /// Ready in so many steps.
    Starting(u32),
    Ready,
    Failed,
}

/// A controller.
pub struct Model {
    words: Arc<Words>,
    bus: Arc<dyn Bus>,
    traits: Traits,
    media: Vec<Arc<Media>>,
    choose: Choose,
    /// An admin command's opcode and the status that it has next.
    refused: Option<(u8, Status)>,
    rng: SmallRng,
    state: State,
    page: usize,
    submissions: BTreeMap<u16, SubmissionQueue>,
    completions: BTreeMap<u16, CompletionQueue>,
    fetched: Vec<Fetched>,
    /// Commands that never complete by themselves.
    missing: Vec<(u16, u16)>,
    /// I/O commands so far.
    count: u64,
}

impl Model {
    /// A controller whose namespaces are `media`, with registers in `words`.
    pub fn new(words: Arc<Words>, bus: Arc<dyn Bus>, traits: Traits, media: Vec<Arc<Media>>) -> Model {
        let [min, max] = traits.pages.map(u64::from);
        let (entries, stride) = (u64::from(traits.max_queue_entries - 1), u64::from(traits.doorbell_stride));
        // TO 1: 500 ms. Queues have to be contiguous.
        let cap = Cap(max << 52 | min << 48 | 1 << 37 | stride << 32 | 1 << 24 | 1 << 16 | entries);
        words.store(CAP, cap.0 as u32);
        words.store(CAP + 4, (cap.0 >> 32) as u32);
        words.store(VS, traits.version);
        let rng = SmallRng::seed_from_u64(traits.shuffle.unwrap_or(0));
        Model {
            words,
            bus,
            traits,
            media,
            choose: Box::new(|_, _| None),
            refused: None,
            rng,
            state: State::Disabled,
            page: 4096,
            submissions: BTreeMap::new(),
            completions: BTreeMap::new(),
            fetched: Vec::new(),
            missing: Vec::new(),
            count: 0,
        }
    }

    /// From now on, `choose` chooses what goes wrong.
    pub fn faults(&mut self, choose: Choose) {
        (self.choose, self.count) = (choose, 0);
    }

    /// The next admin command of this opcode is not executed and has this status.
    pub fn refuse(&mut self, opcode: u8, status: Status) {
        self.refused = Some((opcode, status));
    }

    /// I/O commands that were fetched since faults were chosen.
    pub fn commands(&self) -> u64 {
        self.count
    }

    /// Plays until `stop` is set.
    pub fn run(&mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            if !self.step() {
                std::thread::yield_now();
            }
        }
    }

    /// Looks at the registers and doorbells once, and does what there is to do, or a part of it. Whether there was anything.
    pub fn step(&mut self) -> bool {
        let cc = Cc(self.words.load(CC));
        match (cc.is_enabled(), self.state) {
            (false, State::Disabled) => return false,
            (false, _) => self.disable(),
            (true, State::Disabled) => self.start(cc),
            (true, State::Starting(0)) => {
                self.state = State::Ready;
                self.words.store(CSTS, 1);
            }
            (true, State::Starting(steps)) => self.state = State::Starting(steps - 1),
            (true, State::Failed) => return false,
            (true, State::Ready) if cc.0 >> 14 & 3 != 0 => self.words.store(CSTS, 1 | 2 << 2),
            (true, State::Ready) => return self.work(),
        }
        true
    }

    fn disable(&mut self) {
        self.submissions.clear();
        self.completions.clear();
        self.fetched.clear();
        self.missing.clear();
        self.state = State::Disabled;
        (Cap::submission_doorbell(self.cap(), 0)..self.words.len()).step_by(4).for_each(|at| self.words.store(at, 0));
        self.words.store(CSTS, 0);
    }

    fn start(&mut self, cc: Cc) {
        let [min, max] = [self.cap().min_page(), self.cap().max_page()];
        let entries = cc.0 >> 16 & 0xff;
        let base = |at: usize| u64::from(self.words.load(at)) | u64::from(self.words.load(at + 4)) << 32;
        let ([asq, acq], aqa) = ([base(ASQ), base(ACQ)], self.words.load(AQA));
        self.page = cc.page();
        let aligned = [asq, acq].iter().all(|base| base.is_multiple_of(self.page as u64));
        if !(min..=max).contains(&self.page) || entries != 4 << 4 | 6 || !aligned || aqa & 0xfff == 0 {
            return self.fail();
        }
        let [submissions, completions] = [(aqa & 0xfff) + 1, (aqa >> 16 & 0xfff) + 1];
        let queue = SubmissionQueue { base: BusAddr(asq), depth: submissions, head: 0, completions: 0 };
        self.submissions.insert(0, queue);
        let queue = CompletionQueue { base: BusAddr(acq), depth: completions, tail: 0, phase: true };
        self.completions.insert(0, queue);
        self.state = State::Starting(self.traits.ready_steps);
    }

    /// The controller gives up: CSTS.CFS.
    fn fail(&mut self) {
        self.state = State::Failed;
        self.words.store(CSTS, self.words.load(CSTS) | 2);
    }

    fn cap(&self) -> Cap {
        Cap(u64::from(self.words.load(CAP)) | u64::from(self.words.load(CAP + 4)) << 32)
    }

    fn work(&mut self) -> bool {
        let before = self.fetched.len();
        let ids: Vec<u16> = self.submissions.keys().copied().collect();
        for id in ids {
            self.fetch(id);
        }
        let fetched = self.fetched.len() > before;
        let done = self.state == State::Ready && self.complete();
        fetched || done
    }

    /// Fetches the new commands of a queue, or some of them.
    fn fetch(&mut self, id: u16) {
        let tail = self.words.load(self.cap().submission_doorbell(id));
        let shuffled = self.traits.shuffle.is_some();
        while let Some(queue) = self.submissions.get_mut(&id) {
            if tail >= queue.depth {
                return self.fail();
            }
            if queue.head == tail || shuffled && self.rng.random_ratio(1, 8) {
                return;
            }
            let address = queue.base.offset(queue.head as usize * SUBMISSION_BYTES);
            queue.head = (queue.head + 1) % queue.depth;
            let Some(command) = bus::read_dwords(&*self.bus, address).map(Command) else {
                return self.fail();
            };
            let is_io = id != 0;
            let fault = is_io.then(|| (self.choose)(self.count, &command)).flatten();
            self.count += u64::from(is_io);
            match fault {
                Some(Fault::Fatal) => return self.fail(),
                Some(Fault::Missing) => self.missing.push((id, command.cid())),
                _ => {
                    let due = if let Some(Fault::Late(steps)) = fault { steps } else { 0 };
                    self.fetched.push(Fetched { queue: id, command, fault, due, result: None });
                }
            }
        }
    }

    /// Executes and completes commands. Whether there were any.
    fn complete(&mut self) -> bool {
        let mut waiting = std::mem::take(&mut self.fetched);
        let any = !waiting.is_empty();
        if self.traits.shuffle.is_some() {
            rand::seq::SliceRandom::shuffle(&mut waiting[..], &mut self.rng);
        }
        for mut fetched in waiting {
            if !self.submissions.contains_key(&fetched.queue) {
                // The queue has just been deleted.
                continue;
            }
            let postponed = self.traits.shuffle.is_some() && self.rng.random_ratio(1, 4);
            if fetched.due > 0 || postponed {
                fetched.due = fetched.due.saturating_sub(1);
                self.fetched.push(fetched);
                continue;
            }
            if let Some(Fault::Nonsense { queue, head, cid, late }) = fetched.fault {
                // Not if the completion queue is full.
                self.post(fetched.queue, queue, head.into(), cid, 0, INTERNAL_ERROR);
                self.fetched.push(Fetched { fault: None, due: late, ..fetched });
                continue;
            }
            let (result, status) = fetched.result.unwrap_or_else(|| self.execute(&fetched));
            if let Some(Fault::Duplicate(due)) = fetched.fault {
                let (queue, command) = (fetched.queue, fetched.command);
                self.fetched.push(Fetched { queue, command, fault: None, due, result: Some((result, status)) });
            }
            let (queue, cid) = (fetched.queue, fetched.command.cid());
            let head = self.submissions.get(&queue).map_or(0, |queue| queue.head);
            let head = if let Some(Fault::Head(head)) = fetched.fault { head.into() } else { head };
            if !self.post(queue, queue, head, cid, result, status) {
                // The completion queue is full.
                self.fetched.push(Fetched { fault: None, result: Some((result, status)), ..fetched });
            }
        }
        any
    }

    fn execute(&mut self, fetched: &Fetched) -> (u32, Status) {
        match (fetched.fault, fetched.queue) {
            (Some(Fault::Status(status)), _) => (0, status),
            (_, 0) => self.admin(&fetched.command),
            _ => (0, self.io(&fetched.command)),
        }
    }

    /// Writes a completion for submission queue `queue` that says to be of `named`, its phase last. Not if the queue is full.
    fn post(&mut self, queue: u16, named: u16, head: u32, cid: u16, result: u32, status: Status) -> bool {
        let Some(submissions) = self.submissions.get(&queue) else { return true };
        let id = submissions.completions;
        let told = self.words.load(self.cap().completion_doorbell(id));
        let Some(completions) = self.completions.get_mut(&id) else { return true };
        let next = (completions.tail + 1) % completions.depth;
        if told >= completions.depth {
            self.fail();
            return true;
        }
        if next == told {
            return false;
        }
        let address = completions.base.offset(completions.tail as usize * COMPLETION_BYTES);
        let phase = u32::from(completions.phase) << 16;
        completions.phase ^= next == 0;
        completions.tail = next;
        let last = u32::from(status.0) << 17 | phase | u32::from(cid);
        let Some(entry) = self.bus.resolve(address, COMPLETION_BYTES) else {
            self.fail();
            return true;
        };
        let Completion(dwords) = Completion([result, 0, u32::from(named) << 16 | head, last]);
        // SAFETY: the bus gave 16 bytes, aligned as queues are; the host reads them volatile.
        unsafe {
            let entry = entry.cast::<u32>();
            (0..3).for_each(|i| entry.add(i).write_volatile(dwords[i].to_le()));
            fence(Ordering::Release);
            entry.add(3).write_volatile(dwords[3].to_le());
        }
        true
    }
}
