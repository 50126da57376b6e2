//! The machine that the threads of one cluster see, and who among them waits for what. Most clusters are one block.

use std::{
    cell::{Cell, RefCell},
    ptr,
};

use cuda_std::{host::Machine, kernel::Grid};
use rand::{RngCore, rngs::SmallRng, seq::SliceRandom};

use crate::{
    error::{LaunchError, Place, Wait, Waiting},
    memory::{ALIGN, Snapshot, find, nearest, within},
    shared::{Shared, SharedError},
};

pub(crate) type Yielder = corosensei::Yielder<(), ()>;

/// What unwinds a thread that has failed. The error itself is in [`Cluster::fault`].
struct Failed;

#[derive(Clone, Copy, PartialEq)]
enum State {
    Ready,
    Exited,
    Waits(Wait),
}

struct Thread {
    /// In its block.
    idx: [u32; 3],
    state: Cell<State>,
    /// How often it has come to the cluster's barrier.
    arrivals: Cell<u32>,
    /// Its coroutine's way out, from its first instruction to its exit.
    yielder: Cell<*const Yielder>,
}

/// A warp collective. Its values stay until every lane has taken them: the lane that completes it goes on at once, and
/// may be in the next collective of the same mask before the others have run.
struct Exchange {
    /// The lanes it needs; 0 while the slot is free.
    mask: u32,
    arrived: u32,
    /// Lanes that have yet to take the values.
    readers: u32,
    values: [u32; 32],
}

struct Warp {
    /// Lanes that the block has.
    lanes: u32,
    exited: u32,
    exchanges: Vec<Exchange>,
}

/// How many allocations each worker remembers as recently used.
const RECENT: usize = 4;

/// What the threads of a block share.
struct Team {
    /// One of its threads has run its first instruction.
    started: Cell<bool>,
    at_barrier: Cell<usize>,
    exited: Cell<usize>,
    shared: RefCell<Shared>,
}

/// One cluster of blocks at a time; a worker uses the same value for all of its clusters.
pub(crate) struct Cluster {
    kernel: &'static str,
    grid: Grid,
    /// Of the cluster's first block.
    block_idx: Cell<[u32; 3]>,
    /// Threads of a block.
    per_block: usize,
    /// Those of all blocks, one block after the other.
    threads: Vec<Thread>,
    blocks: Vec<Team>,
    current: Cell<usize>,
    warps: RefCell<Vec<Warp>>,
    /// Threads that have become able to go on since the scheduler last asked.
    ready: RefCell<Vec<u32>>,
    /// Blocks that start when those before them cannot go on, the last one first.
    later: RefCell<Vec<usize>>,
    /// How often the cluster's barrier has opened, and how many threads have come to it since.
    opened: Cell<u32>,
    arrived: Cell<usize>,
    live: Snapshot,
    /// Address and length of allocations used lately.
    recent: [Cell<(usize, usize)>; RECENT],
    oldest: Cell<usize>,
    fault: Cell<Option<LaunchError>>,
}

impl Cluster {
    /// `shared` is that of each block.
    pub(crate) fn new(kernel: &'static str, grid: Grid, shared: Vec<Shared>, live: Snapshot) -> Self {
        let [width, height, depth] = grid.threads;
        let per_block = (width * height * depth) as usize;
        let thread = |t: u32| Thread {
            idx: [t % width, t / width % height, t / width / height],
            state: Cell::new(State::Ready),
            arrivals: Cell::new(0),
            yielder: Cell::new(ptr::null()),
        };
        let threads: Vec<Thread> = shared.iter().flat_map(|_| (0..per_block as u32).map(thread)).collect();
        let warp = |lanes: &[Thread]| Warp { lanes: u32::MAX >> (32 - lanes.len()), exited: 0, exchanges: Vec::new() };
        let warps = threads.chunks(per_block).flat_map(|block| block.chunks(32).map(warp)).collect();
        let team = |shared| Team {
            started: Cell::new(false),
            at_barrier: Cell::new(0),
            exited: Cell::new(0),
            shared: RefCell::new(shared),
        };
        Cluster {
            kernel,
            grid,
            block_idx: Cell::default(),
            per_block,
            current: Cell::new(0),
            warps: RefCell::new(warps),
            ready: RefCell::default(),
            later: RefCell::default(),
            opened: Cell::new(0),
            arrived: Cell::new(0),
            blocks: shared.into_iter().map(team).collect(),
            live,
            recent: Default::default(),
            oldest: Cell::new(0),
            fault: Cell::new(None),
            threads,
        }
    }

    /// Starts the cluster whose first block is `idx`, its shared memory poisoned: all blocks together, or, drawn from `rng`, one after
    /// the other, as far as each comes without those behind it.
    pub(crate) fn begin(&self, idx: [u32; 3], rng: &mut SmallRng) {
        self.block_idx.set(idx);
        self.opened.set(0);
        self.arrived.set(0);
        for block in &self.blocks {
            block.started.set(false);
            block.at_barrier.set(0);
            block.exited.set(0);
            block.shared.borrow_mut().begin_block();
        }
        for thread in &self.threads {
            thread.state.set(State::Ready);
            thread.arrivals.set(0);
        }
        for warp in self.warps.borrow_mut().iter_mut() {
            warp.exited = 0;
            warp.exchanges.clear();
        }
        let (mut ready, mut later) = (self.ready.borrow_mut(), self.later.borrow_mut());
        ready.clear();
        later.clear();
        if self.blocks.len() > 1 && rng.next_u32() & 1 == 0 {
            later.extend(0..self.blocks.len());
            later.shuffle(rng);
        } else {
            ready.extend(0..self.threads.len() as u32);
        }
    }

    /// The number in the cluster of thread `t`'s block.
    fn rank_of(&self, t: usize) -> usize {
        t / self.per_block
    }

    /// The warp of thread `t`, and its lane in it.
    fn warp_of(&self, t: usize) -> (usize, usize) {
        let (rank, in_block) = (self.rank_of(t), t % self.per_block);
        (rank * self.per_block.div_ceil(32) + in_block / 32, in_block % 32)
    }

    /// The current thread's block.
    fn block(&self) -> &Team {
        &self.blocks[self.rank_of(self.current.get())]
    }

    fn block_idx_of(&self, t: usize) -> [u32; 3] {
        let ([x, y, z], [width, height, _], rank) = (self.block_idx.get(), self.grid.cluster, self.rank_of(t) as u32);
        [x + rank % width, y + rank / width % height, z + rank / width / height]
    }

    /// The scheduler is about to run thread `t`.
    pub(crate) fn enter(&self, t: usize) {
        self.current.set(t);
    }

    /// The current thread runs its first instruction.
    pub(crate) fn started(&self, yielder: &Yielder) {
        self.threads[self.current.get()].yielder.set(yielder);
        self.block().started.set(true);
    }

    /// The current thread has returned from the kernel.
    pub(crate) fn exit(&self) {
        let t = self.current.get();
        self.threads[t].state.set(State::Exited);
        let block = self.block();
        block.exited.set(block.exited.get() + 1);
        let (warp, lane) = self.warp_of(t);
        self.warps.borrow_mut()[warp].exited |= 1 << lane;
        self.open_cluster();
    }

    /// Opens the cluster's barrier once all who have not exited have come to it.
    fn open_cluster(&self) {
        let (opened, arrived) = (self.opened.get(), self.arrived.get());
        let exited: usize = self.blocks.iter().map(|block| block.exited.get()).sum();
        let came = |thread: &Thread| thread.state.get() == State::Exited || thread.arrivals.get() > opened;
        // Those who came and exited are counted twice.
        if arrived == 0 || arrived + exited < self.threads.len() || !self.threads.iter().all(came) {
            return;
        }
        self.opened.set(opened + 1);
        self.arrived.set(0);
        for (t, thread) in self.threads.iter().enumerate() {
            if thread.state.get() == State::Waits(Wait::Cluster) {
                thread.state.set(State::Ready);
                self.ready.borrow_mut().push(t as u32);
            }
        }
    }

    /// Moves the threads that can go on into `round`; a barrier that everybody of its block is at opens. Leaves `round` empty when all
    /// have exited.
    pub(crate) fn next_round(&self, round: &mut Vec<u32>) -> Result<(), LaunchError> {
        round.clear();
        std::mem::swap(round, &mut self.ready.borrow_mut());
        if !round.is_empty() {
            return Ok(());
        }
        let mut running = 0;
        for (rank, block) in self.blocks.iter().enumerate() {
            let alive = self.per_block - block.exited.get();
            running += alive;
            if alive == 0 || block.at_barrier.get() < alive {
                continue;
            }
            block.at_barrier.set(0);
            for t in rank * self.per_block..(rank + 1) * self.per_block {
                if self.threads[t].state.get() != State::Exited {
                    self.threads[t].state.set(State::Ready);
                    round.push(t as u32);
                }
            }
        }
        if round.is_empty() {
            if let Some(rank) = self.later.borrow_mut().pop() {
                round.extend((rank * self.per_block) as u32..((rank + 1) * self.per_block) as u32);
            } else if running > 0 {
                return Err(self.stuck());
            }
        }
        Ok(())
    }

    /// The error of a cluster in which nobody can go on: of the first of its blocks that waits.
    fn stuck(&self) -> LaunchError {
        let mut waiting: Vec<Waiting> = Vec::new();
        let mut first = None;
        for (t, thread) in self.threads.iter().enumerate() {
            let State::Waits(at) = thread.state.get() else { continue };
            if *first.get_or_insert(self.rank_of(t)) != self.rank_of(t) {
                break;
            }
            if let Wait::Collective { mask } = at {
                let exited = self.warps.borrow()[self.warp_of(t).0].exited & mask;
                if exited != 0 {
                    return LaunchError::ExitedLanes { place: self.place_of(t), mask, exited };
                }
            }
            // Barriers are one per block or cluster, collectives one per warp and mask.
            let in_block = t % self.per_block;
            let same = |group: &&mut Waiting| {
                let one = !matches!(at, Wait::Collective { .. });
                group.at == at && (one || group.threads[0] as usize / 32 == in_block / 32)
            };
            match waiting.iter_mut().find(same) {
                Some(group) => group.threads.push(in_block as u32),
                None => waiting.push(Waiting { at, threads: vec![in_block as u32] }),
            }
        }
        let block = self.block_idx_of(first.unwrap_or(0) * self.per_block);
        LaunchError::Divergence { kernel: self.kernel, block, waiting }
    }

    /// Ends the cluster: its shared memory must be whole.
    pub(crate) fn finish(&self) -> Result<(), LaunchError> {
        for (rank, block) in self.blocks.iter().enumerate() {
            if let Some((kind, bytes)) = block.shared.borrow().overrun() {
                let block = self.block_idx_of(rank * self.per_block);
                return Err(LaunchError::SharedOverrun { kernel: self.kernel, block, kind, bytes });
            }
        }
        Ok(())
    }

    /// The error behind what the current thread unwound with.
    pub(crate) fn error(&self, payload: Box<dyn std::any::Any + Send>) -> LaunchError {
        self.fault.take().unwrap_or_else(|| {
            let message = match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
                (Some(text), _) => (*text).to_owned(),
                (_, Some(text)) => text.clone(),
                _ => "(no message)".to_owned(),
            };
            LaunchError::Panic { place: self.place(), message }
        })
    }

    fn place(&self) -> Place {
        self.place_of(self.current.get())
    }

    fn place_of(&self, t: usize) -> Place {
        Place { kernel: self.kernel, block: self.block_idx_of(t), thread: self.threads[t].idx }
    }

    /// Ends the launch with `error`: unwinds the current thread up to the scheduler.
    #[cold]
    fn fail(&self, error: LaunchError) -> ! {
        self.fault.set(Some(error));
        std::panic::resume_unwind(Box::new(Failed))
    }

    /// Switches to the scheduler until it runs the current thread again.
    fn wait(&self, at: Wait) {
        let thread = &self.threads[self.current.get()];
        thread.state.set(State::Waits(at));
        // SAFETY: the current thread has run its first instruction and has not exited, so the yielder lives on its
        // coroutine's stack, which is the stack that this call is on.
        unsafe { (*thread.yielder.get()).suspend(()) };
    }

    /// An access that was in none of the recent allocations.
    #[cold]
    fn access_slow(&self, address: usize, bytes: usize, write: bool) {
        if let Some(region) = find(&self.live, address).filter(|region| region.contains(address, bytes)) {
            let oldest = self.oldest.get();
            self.recent[oldest].set((region.start(), region.len()));
            self.oldest.set((oldest + 1) % RECENT);
        } else if !self.blocks.iter().any(|block| block.shared.borrow().contains(address, bytes)) {
            let nearest = nearest(&self.live, address);
            self.fail(LaunchError::OutOfBounds { place: self.place(), write, address, bytes, nearest });
        }
    }
}

impl Machine for Cluster {
    fn thread_idx(&self) -> [u32; 3] {
        self.threads[self.current.get()].idx
    }

    fn block_idx(&self) -> [u32; 3] {
        self.block_idx_of(self.current.get())
    }

    fn block_dim(&self) -> [u32; 3] {
        self.grid.threads
    }

    fn grid_dim(&self) -> [u32; 3] {
        self.grid.blocks
    }

    fn cluster(&self) -> (u32, u32) {
        (self.blocks.len() as u32, self.rank_of(self.current.get()) as u32)
    }

    fn cluster_map(&self, pointer: *mut u8, rank: u32) -> *mut u8 {
        let other = &self.blocks[rank as usize];
        if std::ptr::eq(other, self.block()) {
            return pointer;
        }
        let runs = other.started.get() && other.exited.get() < self.per_block;
        let mapped = runs.then(|| self.block().shared.borrow().map(pointer, &other.shared.borrow()));
        mapped.flatten().unwrap_or_else(|| self.fail(LaunchError::ClusterMap { place: self.place(), rank }))
    }

    fn cluster_arrive(&self) {
        let arrivals = &self.threads[self.current.get()].arrivals;
        arrivals.set(arrivals.get() + 1);
        self.arrived.set(self.arrived.get() + 1);
        self.open_cluster();
    }

    fn cluster_wait(&self) {
        if self.threads[self.current.get()].arrivals.get() > self.opened.get() {
            self.wait(Wait::Cluster);
        }
    }

    fn sync_threads(&self) {
        let block = self.block();
        block.at_barrier.set(block.at_barrier.get() + 1);
        self.wait(Wait::Barrier);
    }

    fn warp_exchange(&self, mask: u32, value: u32) -> [u32; 32] {
        let t = self.current.get();
        let (warp, lane) = self.warp_of(t);
        let mut warps = self.warps.borrow_mut();
        let Warp { lanes, exchanges, .. } = &mut warps[warp];
        let mask = mask & *lanes;
        if mask >> lane & 1 == 0 {
            self.fail(LaunchError::NotInMask { place: self.place(), mask });
        }
        let open = exchanges.iter().position(|e| e.mask == mask && e.arrived != mask);
        let slot = open.or_else(|| exchanges.iter().position(|e| e.mask == 0)).unwrap_or_else(|| {
            exchanges.push(Exchange { mask: 0, arrived: 0, readers: 0, values: [0; 32] });
            exchanges.len() - 1
        });
        let exchange = &mut exchanges[slot];
        if open.is_none() {
            *exchange = Exchange { mask, arrived: 0, readers: mask, values: [0; 32] };
        }
        exchange.values[lane] = value;
        exchange.arrived |= 1 << lane;
        if exchange.arrived == mask {
            let mut ready = self.ready.borrow_mut();
            for other in (0..32).filter(|other| *other != lane && mask >> other & 1 == 1) {
                self.threads[t - lane + other].state.set(State::Ready);
                ready.push((t - lane + other) as u32);
            }
        } else {
            drop(warps);
            self.wait(Wait::Collective { mask });
            warps = self.warps.borrow_mut();
        }
        let exchange = &mut warps[warp].exchanges[slot];
        exchange.readers &= !(1 << lane);
        if exchange.readers == 0 {
            exchange.mask = 0;
        }
        exchange.values
    }

    fn shared(&self, key: *const u8, bytes: usize, align: usize) -> *mut u8 {
        debug_assert!(align <= ALIGN);
        let made = self.block().shared.borrow_mut().array(key, bytes);
        made.unwrap_or_else(|error| {
            self.fail(match error {
                SharedError::TooMuch { kind, bytes, limit } => {
                    LaunchError::SharedMemory { kernel: self.kernel, kind, bytes, limit }
                }
                SharedError::OutOfMemory => {
                    LaunchError::OutOfMemory { kernel: self.kernel, what: "a block's shared memory" }
                }
            })
        })
    }

    fn dynamic_shared(&self) -> *mut u8 {
        self.block().shared.borrow().dynamic()
    }

    fn access(&self, address: usize, bytes: usize, align: usize, write: bool) {
        if !address.is_multiple_of(align) {
            self.fail(LaunchError::Misaligned { place: self.place(), write, address, bytes, align });
        }
        let hit = |recent: &Cell<(usize, usize)>| {
            let (start, len) = recent.get();
            within(start, len, address, bytes)
        };
        if !self.recent.iter().any(hit) {
            self.access_slow(address, bytes, write);
        }
    }
}
