//! The GPU's memory as a drive's destination: on the played controller's bus it has addresses, and what is written there the driver copies.

use std::{
    ptr::NonNull,
    sync::{Arc, Mutex},
};

use ::nvme::{BusAddr, BusMemory, model::Bus};
use cuda_dlopen::raw;
use ntransformer::device::cuda::{cust::CustDriver, driver::Driver, emulator::EmulatorDriver};

/// Writes bytes to a device address.
pub type Write = Box<dyn Fn(u64, &[u8]) + Send + Sync>;

/// A driver whose memory somebody else writes, from another thread.
pub trait Vram: Driver {
    fn writer(&self) -> Write;
    /// A driver of the same kind.
    fn again() -> Self;
}

impl Vram for EmulatorDriver {
    fn again() -> Self {
        EmulatorDriver::new(7)
    }

    fn writer(&self) -> Write {
        Box::new(|address, bytes| {
            let ptr = std::ptr::with_exposed_provenance_mut::<u8>(address as usize);
            // SAFETY: the emulator's memory is the host's; tests give addresses of live allocations that nobody else accesses meanwhile.
            unsafe { ptr.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
        })
    }
}

impl Vram for CustDriver {
    fn again() -> Self {
        CustDriver::open(0, |line| eprintln!("{line}")).unwrap()
    }

    fn writer(&self) -> Write {
        // Makes the context this thread's.
        self.memory().unwrap();
        let (mut context, mut stream) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the driver writes handles to locals.
        unsafe {
            raw::cuCtxGetCurrent(&mut context).unwrap();
            // Not ordered with the legacy default stream.
            raw::cuStreamCreateWithPriority(&mut stream, 1, 0).unwrap();
        }
        let (context, stream) = (context as usize, stream as usize);
        Box::new(move |address, bytes| {
            // SAFETY: the context lives as long as the test's driver; the stream is never destroyed but with it. Tests give addresses of
            // live allocations, and the copy has ended when this returns.
            unsafe {
                raw::cuCtxSetCurrent(context as *mut _).unwrap();
                let copied = raw::cuMemcpyHtoDAsync_v2(address, bytes.as_ptr().cast(), bytes.len(), stream as *mut _);
                copied
                    .unwrap_or_else(|e| panic!("{} bytes from {:p} to {address:#x}: {e}", bytes.len(), bytes.as_ptr()));
                raw::cuStreamSynchronize(stream as *mut _).unwrap();
            }
        })
    }
}

/// A run of the GPU's memory on the bus.
struct Run {
    bus: u64,
    address: u64,
    len: usize,
}

/// A bus with the GPU's memory beside all that another one has.
pub struct VramBus {
    inner: Arc<dyn Bus>,
    runs: Mutex<(Vec<Run>, Option<Write>)>,
}

/// Where the GPU's memory begins on the bus: far from what the door gives to RAM.
const BASE: u64 = 1 << 52;

impl VramBus {
    pub fn new(inner: Arc<dyn Bus>) -> Self {
        VramBus { inner, runs: Mutex::default() }
    }

    /// Puts `len` bytes of device memory at `address`, a whole number of pages, onto the bus, in runs of `run` bytes each, the last one first,
    /// with gaps in between; 0: in one.
    pub fn insert<D: Vram>(&self, driver: &D, address: u64, len: usize, run: usize) -> Arc<BusMemory> {
        let mut runs = self.runs.lock().unwrap();
        let run = if run == 0 { len } else { run };
        let count = len.div_ceil(run) as u64;
        let extent = |index: u64| {
            let len = run.min(len - index as usize * run);
            Run {
                bus: BASE + (count - index) * (2 * run as u64).next_power_of_two(),
                address: address + index * run as u64,
                len,
            }
        };
        runs.0 = (0..count).map(extent).collect();
        runs.1 = Some(driver.writer());
        let extents: Vec<_> = runs.0.iter().map(|run| (BusAddr(run.bus), run.len)).collect();
        // SAFETY: the addresses lead the played controller to this memory alone; the test keeps it for as long.
        Arc::new(unsafe { BusMemory::new(extents, Box::new(())) }.unwrap())
    }
}

impl Bus for VramBus {
    fn resolve(&self, address: BusAddr, len: usize) -> Option<NonNull<u8>> {
        self.inner.resolve(address, len)
    }

    fn write(&self, pieces: &[(BusAddr, &[u8])]) -> bool {
        let (runs, write) = &*self.runs.lock().unwrap();
        // Neighbours are copied at once: a copy by the driver takes microseconds, whatever its length.
        let mut joined: Option<(u64, &[u8])> = None;
        for &(BusAddr(bus), bytes) in pieces {
            let inside = |run: &&Run| bus >= run.bus && bus - run.bus + bytes.len() as u64 <= run.len as u64;
            let Some(run) = runs.iter().find(inside) else {
                if !self.inner.write(&[(BusAddr(bus), bytes)]) {
                    return false;
                }
                continue;
            };
            let (address, write) = (run.address + (bus - run.bus), write.as_ref().expect("with the runs"));
            joined = match joined {
                Some((first, before))
                    if first + before.len() as u64 == address && before.as_ptr_range().end == bytes.as_ptr() =>
                {
                    // SAFETY: both are parts of the same namespace's bytes, one right behind the other.
                    Some((first, unsafe { std::slice::from_raw_parts(before.as_ptr(), before.len() + bytes.len()) }))
                }
                other => {
                    other.into_iter().for_each(|(address, bytes)| write(address, bytes));
                    Some((address, bytes))
                }
            };
        }
        if let (Some((address, bytes)), Some(write)) = (joined, write) {
            write(address, bytes);
        }
        true
    }
}
