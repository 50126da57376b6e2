//! The CPU's part in the doorbells: a thread that copies them from memory, where a kernel writes them, to the drive's registers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle, Thread},
    time::Duration,
};

use ::nvme::Door;

use super::super::beside::SharedMem;

/// Looks in a row that found nothing, behind which the thread gives the processor away each time: some microseconds.
const SPINS: u32 = 200;
/// How long it sleeps at most while there is no list. Whoever starts one wakes it.
const SLEEP: Duration = Duration::from_secs(1);

/// Two words of memory that are copied to two doorbells.
///
/// A doorbell's value replaces the one before, so what is copied is the latest. None is mistaken for the one before: between two looks, a
/// queue's tail cannot come round, because the entries in between would have to be free, and so be told of.
pub(super) struct Mailbox {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    /// A kernel may write the words.
    active: AtomicBool,
    end: AtomicBool,
}

impl Mailbox {
    /// Begins to copy the words at these two bytes of `memory`, both 0, to the doorbells at these two bytes of the registers.
    pub fn start(
        door: Arc<dyn Door>,
        memory: SharedMem,
        words: [usize; 2],
        doorbells: [usize; 2],
    ) -> std::io::Result<Mailbox> {
        let shared = Arc::new(Shared { active: AtomicBool::new(false), end: AtomicBool::new(false) });
        let theirs = shared.clone();
        let copy = move || {
            let (mut told, mut idle) = ([0; 2], 0);
            loop {
                // Looked at before the words: what was written before it was reset is copied in this round.
                let (active, end) = (theirs.active.load(Ordering::Acquire), theirs.end.load(Ordering::Acquire));
                idle += 1;
                for (i, told) in told.iter_mut().enumerate() {
                    // What the kernel wrote before, commands and lists of pages, is there when the drive sees the doorbell: the load
                    // acquires it, and `write32` is behind it.
                    let value = memory.load(words[i]);
                    if value != *told {
                        door.write32(doorbells[i], value);
                        (*told, idle) = (value, 0);
                    }
                }
                match (end, active) {
                    (true, _) => return,
                    (_, false) => thread::park_timeout(SLEEP),
                    _ if idle < SPINS => std::hint::spin_loop(),
                    _ => thread::yield_now(),
                }
            }
        };
        let thread = thread::Builder::new().name("nvme doorbells".into()).spawn(copy)?;
        Ok(Mailbox { shared, thread: Some(thread) })
    }

    /// Says whether a kernel may write the words from now on. If not, what it wrote is copied, and then the thread sleeps.
    pub fn set_active(&self, active: bool) {
        self.shared.active.store(active, Ordering::Release);
        if active {
            self.thread.as_ref().map(JoinHandle::thread).into_iter().for_each(Thread::unpark);
        }
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        self.shared.end.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // Its panics have been printed.
            let _ = thread.join();
        }
    }
}
