//! The CPU device's link: a thread that copies from host memory into the device's, one copy after the other.

use std::{
    ops::Range,
    slice,
    sync::{
        Arc, Condvar, Mutex,
        mpsc::{self, Sender},
    },
    thread::{self, JoinHandle},
    time::Instant,
};

use super::memory::{CpuBuf, Memory};
use crate::{
    device::{
        DeviceError, SharedBytes,
        link::{Throttle, sleep_until},
    },
    platform,
};

type Result<T> = std::result::Result<T, DeviceError>;

/// A point in the order of copies, or of computations, and when it was reached.
#[derive(Clone, Default)]
pub struct CpuEvent(Arc<Point>);

#[derive(Default)]
struct Point {
    at: Mutex<Option<Instant>>,
    reached: Condvar,
}

impl CpuEvent {
    /// A point that is reached.
    pub(super) fn now() -> Self {
        let event = CpuEvent::default();
        event.reach(Instant::now());
        event
    }

    fn reach(&self, at: Instant) {
        *self.0.at.lock().expect("nothing panics with the lock taken") = Some(at);
        self.0.reached.notify_all();
    }

    /// When it was reached, if it was.
    pub(super) fn at(&self) -> Option<Instant> {
        *self.0.at.lock().expect("nothing panics with the lock taken")
    }

    /// Waits for it; says when it was reached.
    pub(super) fn wait(&self) -> Instant {
        let at = self.0.at.lock().expect("nothing panics with the lock taken");
        let at = self.0.reached.wait_while(at, |at| at.is_none()).expect("nothing panics with the lock taken");
        at.expect("it was waited for")
    }

    /// Seconds from this point to `later`, both reached.
    pub(super) fn seconds_to(&self, later: &CpuEvent) -> Result<f64> {
        let (Some(from), Some(to)) = (self.at(), later.at()) else {
            let message = "one of the two points is not reached yet".into();
            return Err(DeviceError::Driver { call: "the time between two events", message });
        };
        let forward = to.saturating_duration_since(from).as_secs_f64();
        Ok(forward - from.saturating_duration_since(to).as_secs_f64())
    }
}

/// Host memory that copies start from. To change it waits for the copies that were asked for.
pub struct CpuPinned {
    bytes: Arc<Vec<u8>>,
    /// The ends of copies out of it. Those that are reached go when another is added.
    copies: Mutex<Vec<CpuEvent>>,
}

impl CpuPinned {
    /// `bytes` zeros. `what` names them in an error.
    pub(super) fn new(what: &str, bytes: usize) -> Result<Self> {
        Ok(CpuPinned { bytes: Arc::new(platform::zeroed(what, bytes)?), copies: Mutex::default() })
    }

    /// The bytes, which nobody changes any more.
    pub(super) fn into_shared(self) -> SharedBytes {
        let len = self.bytes.len();
        SharedBytes::new(self.bytes, 0, len).expect("all of them")
    }
}

impl AsRef<[u8]> for CpuPinned {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl AsMut<[u8]> for CpuPinned {
    fn as_mut(&mut self) -> &mut [u8] {
        for copy in self.copies.get_mut().expect("nothing panics with the lock taken").drain(..) {
            copy.wait();
        }
        Arc::get_mut(&mut self.bytes).expect("a copy gives its source back before its end")
    }
}

/// What the thread does next.
enum Job {
    Copy {
        from: Arc<Vec<u8>>,
        range: Range<usize>,
        to: Arc<Memory>,
        offset: usize,
        after: Option<CpuEvent>,
        limit: Option<f64>,
    },
    Nothing,
}

/// A job, and the point behind it.
struct Queued {
    job: Job,
    end: CpuEvent,
    at: Instant,
}

/// The copying thread. It does all that was asked for before it ends.
pub(super) struct Copies {
    queue: Option<Sender<Queued>>,
    thread: Option<JoinHandle<()>>,
}

impl Copies {
    /// Starts the thread.
    pub fn start() -> Result<Self> {
        let (queue, jobs) = mpsc::channel::<Queued>();
        let (mut link, mut last) = (Throttle::default(), Instant::now());
        let run = move || jobs.into_iter().for_each(|queued| last = queued.run(&mut link, last));
        let thread = thread::Builder::new()
            .name("copies".into())
            .spawn(run)
            .map_err(|e| DeviceError::Driver { call: "starting the copying thread", message: e.to_string() })?;
        Ok(Copies { queue: Some(queue), thread: Some(thread) })
    }

    /// As [`crate::device::Transfer::upload`], at `limit` bytes per second.
    pub fn upload(
        &self,
        src: &CpuPinned,
        range: Range<usize>,
        dst: &CpuBuf,
        offset: usize,
        after: Option<&CpuEvent>,
        limit: Option<f64>,
    ) -> Result<CpuEvent> {
        let (Range { start, end }, len) = (range.clone(), src.bytes.len());
        if start > end || end > len {
            return Err(DeviceError::OutOfRange { what: "upload's source", start, end, len });
        }
        let to = dst.owned()?.clone();
        to.check("upload", &(offset..offset.saturating_add(range.len())))?;
        let from = src.bytes.clone();
        let end = self.add(Job::Copy { from, range, to, offset, after: after.cloned(), limit });
        let mut copies = src.copies.lock().expect("nothing panics with the lock taken");
        copies.retain(|copy| copy.at().is_none());
        copies.push(end.clone());
        Ok(end)
    }

    /// The end of what has been asked to be copied so far.
    pub fn mark(&self) -> CpuEvent {
        self.add(Job::Nothing)
    }

    fn add(&self, job: Job) -> CpuEvent {
        let end = CpuEvent::default();
        let queue = self.queue.as_ref().expect("it is there until the thread is to end");
        let queued = Queued { job, end: end.clone(), at: Instant::now() };
        assert!(queue.send(queued).is_ok(), "the copying thread takes jobs until there can be no more");
        end
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        self.queue = None;
        // It was told to end, and nothing in it panics.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Queued {
    /// Does the job that comes after the one which ended at `last`. Says when it ended.
    fn run(self, link: &mut Throttle, last: Instant) -> Instant {
        let end = match self.job {
            // The queue's end, and not the moment at which the thread gets to looking at it.
            Job::Nothing => last.max(self.at),
            Job::Copy { from, range, to, offset, after, limit } => {
                // No range is held meanwhile: who is to reach this point may need one.
                let ready = after.map_or(self.at, |after| after.wait().max(self.at));
                let end = limit.map(|limit| link.copy(ready, range.len(), limit));
                // SAFETY: `upload` checked the range, and who has the memory writes none of it before the copy's end: `as_mut`
                // waits. The slice is this range alone, since another thread may be filling the rest through a pointer.
                let bytes = unsafe { slice::from_raw_parts(from.as_ptr().add(range.start), range.len()) };
                let target = to.write("upload", offset..offset + range.len());
                target.expect("`upload` checked the range").copy_from_slice(bytes);
                end.into_iter().for_each(sleep_until);
                // `from` ends here, before the point is reached.
                Instant::now()
            }
        };
        self.end.reach(end);
        end
    }
}
