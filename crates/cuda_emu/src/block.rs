//! The machine that the threads of one block see, and who among them waits for what.

use std::{
    cell::{Cell, RefCell},
    ptr,
};

use cuda_std::host::Machine;

use crate::{
    error::{LaunchError, Place, Wait, Waiting},
    memory::{ALIGN, Snapshot, find, nearest, within},
    shared::{Shared, SharedError},
};

pub(crate) type Yielder = corosensei::Yielder<(), ()>;

/// What unwinds a thread that has failed. The error itself is in [`Block::fault`].
struct Failed;

#[derive(Clone, Copy, PartialEq)]
enum State {
    Ready,
    Exited,
    Waits(Wait),
}

struct Thread {
    idx: [u32; 3],
    state: Cell<State>,
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

/// One block at a time; a worker uses the same value for all of its blocks.
pub(crate) struct Block {
    kernel: &'static str,
    grid_dim: [u32; 3],
    block_dim: [u32; 3],
    block_idx: Cell<[u32; 3]>,
    threads: Vec<Thread>,
    current: Cell<usize>,
    warps: RefCell<Vec<Warp>>,
    /// Threads that have become able to go on since the scheduler last asked.
    ready: RefCell<Vec<u32>>,
    at_barrier: Cell<usize>,
    exited: Cell<usize>,
    shared: RefCell<Shared>,
    live: Snapshot,
    /// Address and length of allocations used lately.
    recent: [Cell<(usize, usize)>; RECENT],
    oldest: Cell<usize>,
    fault: Cell<Option<LaunchError>>,
}

impl Block {
    pub(crate) fn new(
        kernel: &'static str,
        grid_dim: [u32; 3],
        block_dim: [u32; 3],
        shared: Shared,
        live: Snapshot,
    ) -> Self {
        let [width, height, depth] = block_dim;
        let threads: Vec<Thread> = (0..width * height * depth)
            .map(|t| Thread {
                idx: [t % width, t / width % height, t / width / height],
                state: Cell::new(State::Ready),
                yielder: Cell::new(ptr::null()),
            })
            .collect();
        let warps = threads.chunks(32).map(|lanes| Warp {
            lanes: u32::MAX >> (32 - lanes.len()),
            exited: 0,
            exchanges: Vec::new(),
        });
        Block {
            kernel,
            grid_dim,
            block_dim,
            block_idx: Cell::default(),
            current: Cell::new(0),
            warps: RefCell::new(warps.collect()),
            ready: RefCell::default(),
            at_barrier: Cell::new(0),
            exited: Cell::new(0),
            shared: RefCell::new(shared),
            live,
            recent: Default::default(),
            oldest: Cell::new(0),
            fault: Cell::new(None),
            threads,
        }
    }

    /// Starts block `idx`: all its threads are ready, its shared memory is poisoned.
    pub(crate) fn begin(&self, idx: [u32; 3]) {
        self.block_idx.set(idx);
        self.at_barrier.set(0);
        self.exited.set(0);
        for thread in &self.threads {
            thread.state.set(State::Ready);
        }
        for warp in self.warps.borrow_mut().iter_mut() {
            warp.exited = 0;
            warp.exchanges.clear();
        }
        let mut ready = self.ready.borrow_mut();
        ready.clear();
        ready.extend(0..self.threads.len() as u32);
        self.shared.borrow_mut().begin_block();
    }

    /// The scheduler is about to run thread `t`.
    pub(crate) fn enter(&self, t: usize) {
        self.current.set(t);
    }

    /// The current thread runs its first instruction.
    pub(crate) fn started(&self, yielder: &Yielder) {
        self.threads[self.current.get()].yielder.set(yielder);
    }

    /// The current thread has returned from the kernel.
    pub(crate) fn exit(&self) {
        let t = self.current.get();
        self.threads[t].state.set(State::Exited);
        self.exited.set(self.exited.get() + 1);
        self.warps.borrow_mut()[t / 32].exited |= 1 << (t % 32);
    }

    /// Moves the threads that can go on into `round`; when that is everybody at the barrier, it opens. Leaves `round`
    /// empty when all have exited.
    pub(crate) fn next_round(&self, round: &mut Vec<u32>) -> Result<(), LaunchError> {
        round.clear();
        std::mem::swap(round, &mut self.ready.borrow_mut());
        let running = self.threads.len() - self.exited.get();
        if !round.is_empty() || running == 0 {
            return Ok(());
        }
        if self.at_barrier.get() < running {
            return Err(self.stuck());
        }
        self.at_barrier.set(0);
        for (t, thread) in self.threads.iter().enumerate() {
            if thread.state.get() != State::Exited {
                thread.state.set(State::Ready);
                round.push(t as u32);
            }
        }
        Ok(())
    }

    /// The error of a block in which nobody can go on.
    fn stuck(&self) -> LaunchError {
        let mut waiting: Vec<Waiting> = Vec::new();
        for (t, thread) in self.threads.iter().enumerate() {
            let State::Waits(at) = thread.state.get() else { continue };
            if let Wait::Collective { mask } = at {
                let exited = self.warps.borrow()[t / 32].exited & mask;
                if exited != 0 {
                    return LaunchError::ExitedLanes { place: self.place_of(t), mask, exited };
                }
            }
            // Barriers are one per block, collectives one per warp and mask.
            let same = |group: &&mut Waiting| {
                group.at == at && (at == Wait::Barrier || group.threads[0] as usize / 32 == t / 32)
            };
            match waiting.iter_mut().find(same) {
                Some(group) => group.threads.push(t as u32),
                None => waiting.push(Waiting { at, threads: vec![t as u32] }),
            }
        }
        LaunchError::Divergence { kernel: self.kernel, block: self.block_idx.get(), waiting }
    }

    /// Ends the block: its shared memory must be whole.
    pub(crate) fn finish(&self) -> Result<(), LaunchError> {
        match self.shared.borrow().overrun() {
            None => Ok(()),
            Some((kind, bytes)) => {
                Err(LaunchError::SharedOverrun { kernel: self.kernel, block: self.block_idx.get(), kind, bytes })
            }
        }
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
        Place { kernel: self.kernel, block: self.block_idx.get(), thread: self.threads[t].idx }
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
        } else if !self.shared.borrow().contains(address, bytes) {
            let nearest = nearest(&self.live, address);
            self.fail(LaunchError::OutOfBounds { place: self.place(), write, address, bytes, nearest });
        }
    }
}

impl Machine for Block {
    fn thread_idx(&self) -> [u32; 3] {
        self.threads[self.current.get()].idx
    }

    fn block_idx(&self) -> [u32; 3] {
        self.block_idx.get()
    }

    fn block_dim(&self) -> [u32; 3] {
        self.block_dim
    }

    fn grid_dim(&self) -> [u32; 3] {
        self.grid_dim
    }

    fn sync_threads(&self) {
        self.at_barrier.set(self.at_barrier.get() + 1);
        self.wait(Wait::Barrier);
    }

    fn warp_exchange(&self, mask: u32, value: u32) -> [u32; 32] {
        let t = self.current.get();
        let (warp, lane) = (t / 32, t % 32);
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
                self.threads[warp * 32 + other].state.set(State::Ready);
                ready.push((warp * 32 + other) as u32);
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
        let made = self.shared.borrow_mut().array(key, bytes);
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
        self.shared.borrow().dynamic()
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
