//! The other side of the device API on the host: whoever runs kernel threads implements [`Machine`].

use std::cell::Cell;

/// What a kernel thread can ask of the machine that runs it. One value serves all threads of a block; it knows which of
/// them is running. Methods that wait (`sync_threads`, `warp_exchange`) switch to other threads and return later.
pub trait Machine {
    /// `threadIdx`, as x, y, z.
    fn thread_idx(&self) -> [u32; 3];
    /// `blockIdx`.
    fn block_idx(&self) -> [u32; 3];
    /// `blockDim`.
    fn block_dim(&self) -> [u32; 3];
    /// `gridDim`.
    fn grid_dim(&self) -> [u32; 3];
    /// Blocks of the block's cluster, and its number among them, x first (`cluster_nctarank`, `cluster_ctarank`).
    fn cluster(&self) -> (u32, u32);
    /// Where what `pointer` points to in this block's shared memory is in that of block `rank` of the cluster.
    fn cluster_map(&self, pointer: *mut u8, rank: u32) -> *mut u8;
    /// Tells the other threads of the cluster that this one has come here (`barrier.cluster.arrive`).
    fn cluster_arrive(&self);
    /// Waits until all threads of the cluster have arrived as often as this one (`barrier.cluster.wait`).
    fn cluster_wait(&self);
    /// Waits for all threads of the block (`bar.sync 0`).
    fn sync_threads(&self);
    /// A warp collective: publishes `value` and returns what every lane of `mask` published (0 for the others), once all
    /// of them have arrived. Lanes outside the launch (a last, partial warp) are not part of any mask.
    fn warp_exchange(&self, mask: u32, value: u32) -> [u32; 32];
    /// The block's static shared array that `key` (one address per `shared_array!` site) stands for, made at first use.
    fn shared(&self, key: *const u8, bytes: usize, align: usize) -> *mut u8;
    /// The block's dynamic shared memory, 16-byte aligned.
    fn dynamic_shared(&self) -> *mut u8;
    /// Called before `bytes` bytes at `addr` are read or written through [`crate::mem`]: ends the launch with an error
    /// when they are not inside one live allocation, or misaligned.
    fn access(&self, addr: usize, bytes: usize, align: usize, write: bool);
}

thread_local! {
    static CURRENT: Cell<Option<*const dyn Machine>> = const { Cell::new(None) };
}

/// Runs `f` with `machine` answering the device API on this OS thread.
pub fn with_machine<R>(machine: &dyn Machine, f: impl FnOnce() -> R) -> R {
    struct Restore(Option<*const dyn Machine>);
    impl Drop for Restore {
        fn drop(&mut self) {
            CURRENT.with(|c| c.set(self.0));
        }
    }
    // SAFETY: only the lifetime changes; `Restore` takes the pointer back out before `machine` can go away.
    let erased = unsafe { std::mem::transmute::<*const (dyn Machine + '_), *const (dyn Machine + 'static)>(machine) };
    let _restore = Restore(CURRENT.with(|c| c.replace(Some(erased))));
    f()
}

/// The machine of this OS thread.
///
/// # Panics
/// Outside [`with_machine`]: device code was called as if it were host code.
#[inline]
pub(crate) fn machine<'a>() -> &'a dyn Machine {
    let current = CURRENT.with(Cell::get).expect("device code runs only inside a kernel launch");
    // SAFETY: `with_machine` keeps the machine alive while it is current.
    unsafe { &*current }
}

/// The running thread's lane in its warp, in blocks of any shape: warps are cut from the threads in order, x fastest.
pub(crate) fn lane() -> u32 {
    let ([x, y, z], [width, height, _]) = (machine().thread_idx(), machine().block_dim());
    ((z * height + y) * width + x) % 32
}
