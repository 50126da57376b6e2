//! Launches: checks, workers, and the scheduler of a cluster of blocks.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use corosensei::{Coroutine, CoroutineResult, stack::DefaultStack};
use cuda_std::{
    host::with_machine,
    kernel::{Grid, Kernel},
};
use rand::{RngCore, SeedableRng, rngs::SmallRng, seq::SliceRandom};

use crate::{
    block::{Cluster, Yielder},
    error::LaunchError,
    memory::{Allocation, MemoryError, Registry},
    shared::{SM_80_LIMIT, Shared},
};

/// Bytes of stack of a thread. Only pages that are touched cost memory.
const STACK: usize = 128 << 10;
/// Threads that exist at once, over all workers: each stack is two memory mappings, and Linux allows 65530 of them.
const MAX_THREADS: usize = 8192;

/// Blocks of a cluster at most: what every GPU that has clusters can do (CUDA programming guide, "Thread Block Clusters").
const MAX_CLUSTER: u64 = 8;

type Thread = Coroutine<(), (), ()>;

/// An emulated GPU: its memory, and launches on it. Everything takes `&self`, from any host thread.
pub struct Emulator {
    seed: u64,
    launches: AtomicU64,
    /// Bytes of shared memory that a block can have in all.
    shared_limit: usize,
    memory: Arc<Registry>,
    /// Stacks of finished threads, for later launches.
    stacks: Mutex<Vec<DefaultStack>>,
}

impl Default for Emulator {
    fn default() -> Self {
        Self::new(0)
    }
}

/// A kernel's arguments on their way to a worker.
#[derive(Clone, Copy)]
struct Shareable<T>(T);
// SAFETY: kernel arguments are plain bits (`cuda_std::kernel::Param`); what their pointers mean to several threads at
// once is the contract of `Emulator::launch`.
unsafe impl<T> Send for Shareable<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shareable<T> {}

impl Emulator {
    /// A GPU whose threads run in orders drawn from `seed`.
    pub fn new(seed: u64) -> Self {
        Emulator {
            seed,
            launches: AtomicU64::new(0),
            shared_limit: SM_80_LIMIT,
            memory: Arc::default(),
            stacks: Mutex::default(),
        }
    }

    /// The same GPU with `bytes` bytes of shared memory for a block, static and dynamic, in place of sm_80's 163 KiB. An
    /// H100 or H200 (sm_90) has 227 KiB, the GPUs of sm_86 and sm_89 99 KiB.
    pub fn with_shared_limit(self, bytes: usize) -> Self {
        Emulator { shared_limit: bytes, ..self }
    }

    /// `bytes` bytes of device memory, 256-byte aligned, every byte 0xFF.
    pub fn alloc(&self, bytes: usize) -> Result<Allocation, MemoryError> {
        self.memory.alloc(bytes)
    }

    /// Bytes of device memory that are allocated.
    pub fn allocated(&self) -> u64 {
        self.memory.snapshot().iter().map(|region| region.len() as u64).sum()
    }

    /// Runs kernel `K` on the blocks of `grid`, those of a cluster together, and returns when all have exited. The first error ends
    /// the launch; of several blocks' errors, the one of the lowest cluster is returned.
    ///
    /// # Safety
    /// The kernel must reach global memory through `cuda_std`'s `mem`, `atomic` and `system` alone, where every address is checked, and
    /// stay inside its shared arrays. Its blocks must not write what other blocks access but in the order that `atomic` or the
    /// barriers of their cluster give, and until the launch returns no other host thread may copy from or to, or launch on, what it
    /// accesses, but for words that both sides reach as `system` does.
    pub unsafe fn launch<K: Kernel>(&self, grid: Grid, args: K::Args) -> Result<(), LaunchError> {
        check_shape(K::NAME, grid, self.shared_limit)?;
        let clusters = [0, 1, 2].map(|axis| grid.blocks[axis] / grid.cluster[axis]);
        let count = clusters.iter().map(|&extent| u64::from(extent)).product::<u64>();
        let blocks_each = grid.cluster.iter().product::<u32>() as usize;
        let threads = blocks_each * grid.threads.iter().product::<u32>() as usize;
        // The golden ratio's bits keep launch n of one seed apart from launch m of a seed nearby.
        let launch = self.launches.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let order = SmallRng::seed_from_u64(self.seed.wrapping_add(launch)).next_u64();
        let live = self.memory.snapshot();
        let args = Shareable(args);
        let next = AtomicU64::new(0);
        let failed: Mutex<Option<(u64, LaunchError)>> = Mutex::new(None);
        let report = |index: u64, error: LaunchError| {
            // Nobody needs to start another cluster.
            next.store(count, Ordering::Relaxed);
            let mut first = failed.lock().unwrap_or_else(PoisonError::into_inner);
            if first.as_ref().is_none_or(|(other, _)| index < *other) {
                *first = Some((index, error));
            }
        };
        let work = || {
            let shared = (0..blocks_each).map(|_| Shared::new(grid.shared as usize, self.shared_limit)).collect();
            let Some(shared) = shared else {
                return report(count, LaunchError::OutOfMemory { kernel: K::NAME, what: "a block's shared memory" });
            };
            let machine = Cluster::new(K::NAME, grid, shared, Arc::clone(&live));
            let mut worker = Worker { emulator: self, stacks: Vec::new(), threads: Vec::new(), round: Vec::new() };
            worker.threads.resize_with(threads, || None);
            with_machine(&machine, || {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        break;
                    }
                    let rng = SmallRng::seed_from_u64(order.wrapping_add(index));
                    if let Err(error) = worker.run::<K>(&machine, first_block(grid, clusters, index), rng, args) {
                        report(index, error);
                        break;
                    }
                }
                // Under the machine still: threads that were left waiting unwind now.
                drop(worker);
            });
        };
        let at_once = (MAX_THREADS / threads).clamp(1, rayon::current_num_threads());
        match count.min(at_once as u64) {
            1 => work(),
            workers => rayon::scope(|scope| (0..workers).for_each(|_| scope.spawn(|_| work()))),
        }
        let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
        failed.map_or(Ok(()), |(_, error)| Err(error))
    }

    fn stacks(&self) -> std::sync::MutexGuard<'_, Vec<DefaultStack>> {
        self.stacks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the driver checks before it starts a kernel.
fn check_shape(
    kernel: &'static str,
    Grid { blocks: grid, threads: block, shared, cluster }: Grid,
    limit: usize,
) -> Result<(), LaunchError> {
    let fits = |extents: [u32; 3], limits: [u32; 3]| extents.iter().zip(limits).all(|(&e, limit)| 1 <= e && e <= limit);
    if !fits(grid, [i32::MAX as u32, 65535, 65535]) {
        return Err(LaunchError::Grid { kernel, grid });
    }
    if !fits(block, [1024, 1024, 64]) || block.iter().product::<u32>() > 1024 {
        return Err(LaunchError::Block { kernel, block });
    }
    let divides = grid.iter().zip(cluster).all(|(&blocks, part)| part > 0 && blocks.is_multiple_of(part));
    // Of extents within the grid's limits, the product is below 2^63.
    if !divides || cluster.map(u64::from).iter().product::<u64>() > MAX_CLUSTER {
        return Err(LaunchError::Cluster { kernel, grid, cluster });
    }
    let bytes = shared as usize;
    if bytes > limit {
        return Err(LaunchError::SharedMemory { kernel, kind: "static and dynamic", bytes, limit });
    }
    Ok(())
}

/// The first block of cluster `index` of `clusters`.
fn first_block(grid: Grid, [width, height, _]: [u32; 3], index: u64) -> [u32; 3] {
    let (width, height) = (u64::from(width), u64::from(height));
    let [x, y, z] = [(index % width) as u32, (index / width % height) as u32, (index / width / height) as u32];
    [x * grid.cluster[0], y * grid.cluster[1], z * grid.cluster[2]]
}

/// What a host thread needs to run clusters one after the other.
struct Worker<'a> {
    emulator: &'a Emulator,
    /// Stacks of finished threads. A thread that never waits leaves its stack to the next one.
    stacks: Vec<DefaultStack>,
    /// The threads of the cluster that wait.
    threads: Vec<Option<Thread>>,
    round: Vec<u32>,
}

impl Worker<'_> {
    fn run<K: Kernel>(
        &mut self,
        machine: &Cluster,
        idx: [u32; 3],
        mut rng: SmallRng,
        args: Shareable<K::Args>,
    ) -> Result<(), LaunchError> {
        machine.begin(idx, &mut rng);
        loop {
            machine.next_round(&mut self.round)?;
            if self.round.is_empty() {
                return machine.finish();
            }
            self.round.shuffle(&mut rng);
            for i in 0..self.round.len() {
                let t = self.round[i] as usize;
                machine.enter(t);
                let mut thread = match self.threads[t].take() {
                    Some(thread) => thread,
                    None => start::<K>(self.stack(K::NAME)?, machine, args),
                };
                // A thread that unwinds has finished, so that nothing it might have left broken is used again.
                match catch_unwind(AssertUnwindSafe(|| thread.resume(()))) {
                    Ok(CoroutineResult::Yield(())) => self.threads[t] = Some(thread),
                    Ok(CoroutineResult::Return(())) => {
                        machine.exit();
                        self.stacks.push(thread.into_stack());
                    }
                    Err(payload) => return Err(machine.error(payload)),
                }
            }
        }
    }

    fn stack(&mut self, kernel: &'static str) -> Result<DefaultStack, LaunchError> {
        if let Some(stack) = self.stacks.pop().or_else(|| self.emulator.stacks().pop()) {
            return Ok(stack);
        }
        DefaultStack::new(STACK).map_err(|_| LaunchError::OutOfMemory { kernel, what: "the stacks of its threads" })
    }
}

impl Drop for Worker<'_> {
    fn drop(&mut self) {
        self.emulator.stacks().append(&mut self.stacks);
    }
}

/// A thread that has not run yet.
fn start<K: Kernel>(stack: DefaultStack, machine: &Cluster, args: Shareable<K::Args>) -> Thread {
    let machine: *const Cluster = machine;
    let body = move |yielder: &Yielder, ()| {
        let Shareable(args) = args;
        // SAFETY: `launch` drops its worker, and with it every coroutine, before the machine.
        unsafe { &*machine }.started(yielder);
        // SAFETY: the contract of `Emulator::launch`; `Cluster::access` checks the addresses.
        unsafe { K::run(args) }
    };
    // SAFETY: `body` borrows nothing but the machine, of which see above: arguments are plain bits.
    unsafe { Coroutine::with_stack_unchecked(stack, body) }
}
