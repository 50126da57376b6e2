//! Memory of the CPU device, in which a copying thread writes one part while others are computed with.

use std::{
    cell::UnsafeCell,
    ops::{Deref, DerefMut, Range},
    os::fd::OwnedFd,
    slice,
    sync::{Arc, Condvar, Mutex, MutexGuard},
};

use readahead::DeviceMemory;

use crate::{
    device::{DeviceError, SharedBytes},
    platform,
};

type Result<T> = std::result::Result<T, DeviceError>;

/// Memory of the CPU device.
#[derive(Clone)]
pub enum CpuBuf {
    /// Bytes that are read where they are: part of a model file's map, or page-locked memory.
    Shared(SharedBytes),
    /// Its own allocation, e.g. the ring that weights are streamed through.
    Owned(Arc<Memory>),
}

impl CpuBuf {
    /// The bytes `start..end`, which nobody writes as long as the result lives. Waits for who does.
    pub(super) fn read(&self, start: usize, end: usize) -> Result<Bytes<'_>> {
        match self {
            CpuBuf::Shared(bytes) => {
                let len = bytes.len();
                let range =
                    bytes.get(start..end).ok_or(DeviceError::OutOfRange { what: "weights", start, end, len })?;
                Ok(Bytes::Shared(range))
            }
            CpuBuf::Owned(memory) => memory.read("weights", start..end).map(Bytes::Owned),
        }
    }

    /// The memory, for writing.
    pub(super) fn owned(&self) -> Result<&Arc<Memory>> {
        match self {
            CpuBuf::Shared(_) => {
                Err(DeviceError::Unsupported("weights that are read where they are cannot be written".into()))
            }
            CpuBuf::Owned(memory) => Ok(memory),
        }
    }
}

/// Bytes of a tensor, for the duration of one stage.
pub(super) enum Bytes<'a> {
    Shared(&'a [u8]),
    Owned(Reading<'a>),
}

impl Deref for Bytes<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Shared(bytes) => bytes,
            Bytes::Owned(reading) => reading,
        }
    }
}

/// Bytes with a lock of ranges: any number of threads read a range, one writes it, and who overlaps with that waits.
///
/// What orders the copies into streamed weights and the computations on them is the events. This lock makes sure that a
/// mistake there gives wrong numbers at worst. A thread waits for a range only while it holds none, so nobody waits forever.
pub struct Memory {
    bytes: Box<[UnsafeCell<u8>]>,
    held: Mutex<Vec<Held>>,
    freed: Condvar,
}

// SAFETY: `bytes` are reached through `Reading` and `Writing` alone, of which `hold` lets no two overlap unless both read.
unsafe impl Sync for Memory {}

/// A range in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    start: usize,
    end: usize,
    writes: bool,
}

impl Held {
    fn excludes(&self, other: &Held) -> bool {
        (self.writes || other.writes) && self.start.max(other.start) < self.end.min(other.end)
    }
}

impl Memory {
    /// `bytes` zeros. `what` names them in an error.
    pub fn new(what: &str, bytes: usize) -> Result<Memory> {
        let bytes = Box::into_raw(platform::zeroed::<u8>(what, bytes)?.into_boxed_slice());
        // SAFETY: the box gave up its bytes just now, and an `UnsafeCell<u8>` is laid out as a u8.
        let bytes = unsafe { Box::from_raw(bytes as *mut [UnsafeCell<u8>]) };
        Ok(Memory { bytes, held: Mutex::default(), freed: Condvar::new() })
    }

    /// Waits until nobody writes `range`, and keeps it so. `what` begins the message of an error.
    pub fn read(&self, what: &'static str, range: Range<usize>) -> Result<Reading<'_>> {
        let held = self.hold(what, range, false)?;
        Ok(Reading { memory: self, held })
    }

    /// Waits until nobody uses `range`, and keeps it so. `what` begins the message of an error.
    pub fn write(&self, what: &'static str, range: Range<usize>) -> Result<Writing<'_>> {
        let held = self.hold(what, range, true)?;
        Ok(Writing { memory: self, held })
    }

    /// An error where `range` is not inside.
    pub fn check(&self, what: &'static str, range: &Range<usize>) -> Result<()> {
        let (Range { start, end }, len) = (range.clone(), self.bytes.len());
        if start <= end && end <= len { Ok(()) } else { Err(DeviceError::OutOfRange { what, start, end, len }) }
    }

    fn ranges(&self) -> MutexGuard<'_, Vec<Held>> {
        // Nothing panics with the lock taken.
        self.held.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn hold(&self, what: &'static str, range: Range<usize>, writes: bool) -> Result<Held> {
        self.check(what, &range)?;
        let wanted = Held { start: range.start, end: range.end, writes };
        let busy = |held: &mut Vec<Held>| held.iter().any(|other| other.excludes(&wanted));
        let mut held = self.freed.wait_while(self.ranges(), busy).unwrap_or_else(|poisoned| poisoned.into_inner());
        held.push(wanted);
        Ok(wanted)
    }

    fn release(&self, held: Held) {
        let mut all = self.ranges();
        // Two readers of the same range leave the same entry, and either's will do.
        let index = all.iter().position(|other| *other == held).expect("a range is released once");
        all.swap_remove(index);
        drop(all);
        self.freed.notify_all();
    }

    /// The address of the first byte, for who writes it from elsewhere. The lock does not know of them: who lets them write sees to it
    /// that nobody uses what they may.
    fn address(&self) -> usize {
        UnsafeCell::raw_get(self.bytes.as_ptr()).expose_provenance()
    }

    /// The address of a range's first byte.
    fn at(&self, held: Held) -> *mut u8 {
        UnsafeCell::raw_get(self.bytes[held.start..].as_ptr())
    }
}

impl DeviceMemory for &Memory {
    fn address(&self) -> u64 {
        Memory::address(self) as u64
    }

    fn len(&self) -> usize {
        self.bytes.len()
    }

    fn pci_address(&self) -> Option<String> {
        None
    }

    fn write(&self, offset: usize, bytes: &[u8]) -> std::result::Result<(), String> {
        let range = offset..offset.saturating_add(bytes.len());
        Memory::write(self, "write", range).map(|mut target| target.copy_from_slice(bytes)).map_err(|e| e.to_string())
    }

    fn read(&self, offset: usize, bytes: &mut [u8]) -> std::result::Result<(), String> {
        let range = offset..offset.saturating_add(bytes.len());
        Memory::read(self, "read", range).map(|source| bytes.copy_from_slice(&source)).map_err(|e| e.to_string())
    }

    fn dma_buf(&self) -> std::result::Result<OwnedFd, String> {
        Err("there is no dma-buf of a program's own memory".into())
    }
}

/// A range of [`Memory`] that nobody writes.
pub struct Reading<'a> {
    memory: &'a Memory,
    held: Held,
}

impl Deref for Reading<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the range was checked when it was taken, and no `Writing` overlaps with it while it is held.
        unsafe { slice::from_raw_parts(self.memory.at(self.held), self.held.end - self.held.start) }
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.memory.release(self.held);
    }
}

/// A range of [`Memory`] that nobody else uses.
pub struct Writing<'a> {
    memory: &'a Memory,
    held: Held,
}

impl Deref for Writing<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: as in `deref_mut`.
        unsafe { slice::from_raw_parts(self.memory.at(self.held), self.held.end - self.held.start) }
    }
}

impl DerefMut for Writing<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: the range was checked when it was taken, and nobody else has a part of it while it is held.
        unsafe { slice::from_raw_parts_mut(self.memory.at(self.held), self.held.end - self.held.start) }
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.memory.release(self.held);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        thread,
        time::Duration,
    };

    use rand::{Rng, SeedableRng, rngs::SmallRng};

    use super::*;

    #[test]
    fn ranges_exclude_each_other_where_one_writes() {
        let range = |start, end, writes| Held { start, end, writes };
        for (a, b, excluded) in [
            (range(0, 10, true), range(9, 20, true), true),
            (range(0, 10, true), range(9, 20, false), true),
            (range(0, 10, false), range(9, 20, false), false),
            (range(0, 10, true), range(10, 20, true), false),
            (range(0, 30, true), range(10, 20, false), true),
            (range(0, 30, true), range(10, 10, false), false),
        ] {
            assert_eq!((a.excludes(&b), b.excludes(&a)), (excluded, excluded), "{a:?} and {b:?}");
        }
    }

    #[test]
    fn an_overlapping_write_waits_and_others_do_not() {
        let memory = Memory::new("test", 100).unwrap();
        let step = AtomicUsize::new(0);
        thread::scope(|threads| {
            let (first, second) = (memory.read("test", 10..20).unwrap(), memory.read("test", 10..20).unwrap());
            memory.write("test", 20..30).unwrap().fill(1);
            threads.spawn(|| {
                memory.write("test", 15..25).unwrap().fill(2);
                step.store(1, Ordering::SeqCst);
            });
            thread::sleep(Duration::from_millis(20));
            drop(first);
            thread::sleep(Duration::from_millis(20));
            assert_eq!((step.load(Ordering::SeqCst), &*second), (0, &[0; 10][..]));
        });
        assert_eq!(*memory.read("test", 13..27).unwrap(), [0, 0, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1]);
        assert!(memory.read("test", 90..101).is_err() && memory.write("test", 100..101).is_err());
    }

    /// Threads that write a number all over a range, and read it back, and read others': no range changes while it is held.
    #[test]
    fn ranges_are_stable_among_many_threads() {
        const LEN: usize = 4096;
        let memory = Memory::new("test", LEN).unwrap();
        let changes = AtomicUsize::new(0);
        thread::scope(|threads| {
            for thread in 0..6 {
                let (memory, changes) = (&memory, &changes);
                threads.spawn(move || {
                    let mut rng = SmallRng::seed_from_u64(thread);
                    for _ in 0..3000 {
                        let start = rng.random_range(0..LEN);
                        let range = start..rng.random_range(start..=LEN.min(start + 600));
                        if rng.random_bool(0.5) {
                            let mut bytes = memory.write("test", range).unwrap();
                            bytes.fill(thread as u8);
                            thread::yield_now();
                            let mine = bytes.iter().all(|&byte| byte == thread as u8);
                            changes.fetch_add(usize::from(!mine), Ordering::Relaxed);
                        } else {
                            let bytes = memory.read("test", range).unwrap();
                            let before = bytes.to_vec();
                            thread::yield_now();
                            changes.fetch_add(usize::from(*bytes != *before), Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        assert_eq!(changes.into_inner(), 0, "ranges that changed while they were held");
        assert!(memory.ranges().is_empty());
    }
}
