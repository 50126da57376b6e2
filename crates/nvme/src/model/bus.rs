//! What a device sees: words of registers, and memory by its bus addresses.

use crate::BusAddr;
use std::{
    any::Any,
    collections::HashMap,
    ptr::NonNull,
    sync::{
        Mutex,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

/// Registers and doorbells as memory that host and controller share.
pub struct Words {
    ptr: NonNull<AtomicU32>,
    len: usize,
    _owner: Box<dyn Any + Send + Sync>,
}

// SAFETY: the words are atomic, and the owner keeps them.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl Words {
    /// `len` bytes of zeros, a multiple of 4.
    pub fn new(len: usize) -> Words {
        let words: Box<[AtomicU32]> = (0..len / 4).map(|_| AtomicU32::new(0)).collect();
        let ptr = NonNull::from(&*words).cast();
        // SAFETY: the words are where they are as long as the box is.
        unsafe { Words::from_raw(ptr, len, Box::new(words)) }
    }

    /// The `len` bytes at `ptr`, such as memory that a GPU writes too.
    ///
    /// # Safety
    /// As long as `owner` is not dropped, the bytes are mapped, aligned to 4, initialised, and only accessed in whole words.
    pub unsafe fn from_raw(ptr: NonNull<AtomicU32>, len: usize, owner: Box<dyn Any + Send + Sync>) -> Words {
        Words { ptr, len, _owner: owner }
    }

    /// How many bytes.
    #[expect(clippy::len_without_is_empty, reason = "there are some")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The word at byte `at`. Panics where there is none.
    pub fn load(&self, at: usize) -> u32 {
        self.word(at).load(Ordering::Acquire)
    }

    /// Sets the word at byte `at`. Panics where there is none.
    pub fn store(&self, at: usize, value: u32) {
        self.word(at).store(value, Ordering::Release);
    }

    fn word(&self, at: usize) -> &AtomicU32 {
        assert!(at.is_multiple_of(4) && at < self.len, "register {at:#x} of {:#x} bytes", self.len);
        // SAFETY: inside, aligned, and kept by the owner.
        unsafe { self.ptr.add(at / 4).as_ref() }
    }
}

/// Memory by its bus addresses.
pub trait Bus: Send + Sync {
    /// Where the CPU sees the `len` bytes at `address`. None: nobody answers there.
    fn resolve(&self, address: BusAddr, len: usize) -> Option<NonNull<u8>>;

    /// Writes a command's data, `pieces` one after the other, each to an address on the bus. For memory that the CPU does not see. Whether
    /// somebody answered at all of them.
    fn write(&self, pieces: &[(BusAddr, &[u8])]) -> bool {
        pieces.iter().all(|&(address, bytes)| {
            let Some(memory) = self.resolve(address, bytes.len()) else { return false };
            // SAFETY: the bus gave as many bytes, which are the device's while a command has them; `bytes` is a Rust reference and none of
            // them.
            unsafe { memory.as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
            true
        })
    }
}

/// Reads aligned dwords.
pub(super) fn read_dwords<const N: usize>(bus: &dyn Bus, address: BusAddr) -> Option<[u32; N]> {
    let ptr = bus.resolve(address, 4 * N)?.cast::<u32>();
    // SAFETY: the bus gave 4 N bytes; queues and lists are aligned to more than 4.
    Some(std::array::from_fn(|i| u32::from_le(unsafe { ptr.add(i).read_volatile() })))
}

/// Bytes of a page of a [`PageTable`].
const PAGE: u64 = 4096;

/// Memory whose bus addresses have nothing to do with the CPU's.
#[derive(Default)]
pub struct PageTable {
    pages: Mutex<HashMap<u64, usize>>,
    /// Accesses to where there is nothing.
    misses: AtomicU64,
}

impl PageTable {
    /// From now on, the page at `ptr` is at `address`.
    pub(super) fn insert(&self, address: BusAddr, ptr: usize) {
        let before = self.pages.lock().expect("no holder panics").insert(address.0 / PAGE, ptr);
        assert_eq!(before, None, "two pages at one address");
    }

    pub(super) fn remove(&self, address: BusAddr) {
        self.pages.lock().expect("no holder panics").remove(&(address.0 / PAGE));
    }

    /// How often the device accessed what is no memory, or no longer.
    pub fn misses(&self) -> u64 {
        self.misses.load(Ordering::Relaxed)
    }
}

impl Bus for PageTable {
    fn resolve(&self, address: BusAddr, len: usize) -> Option<NonNull<u8>> {
        let pages = self.pages.lock().expect("no holder panics");
        let (first, last) = (address.0 / PAGE, (address.0 + len.max(1) as u64 - 1) / PAGE);
        let start = pages.get(&first).copied();
        let whole = start.filter(|start| {
            (first..=last).all(|page| pages.get(&page) == Some(&(start + ((page - first) * PAGE) as usize)))
        });
        if whole.is_none() {
            self.misses.fetch_add(1, Ordering::Relaxed);
        }
        NonNull::new((whole? + (address.0 % PAGE) as usize) as *mut u8)
    }
}
