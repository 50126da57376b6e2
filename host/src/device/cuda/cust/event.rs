//! Points in the queues.

use std::{cell::RefCell, ffi::c_uint, ptr, rc::Rc};

use cuda_dlopen::{Code, raw};
use cust::{event::EventFlags, stream::Stream, sys::CUevent};

use super::gpu::Gpu;
use crate::device::DeviceError;

type Result<T> = std::result::Result<T, DeviceError>;

/// A point in one of a driver's queues.
// cust's own event can make a stream wait only by giving the event up, and a point may be waited for more than once.
#[derive(Clone)]
pub struct Event(Rc<RawEvent>);

struct RawEvent {
    gpu: Rc<Gpu>,
    raw: CUevent,
}

impl Event {
    /// The present end of `queue`. With `timed`, it can be given to `seconds`.
    pub(super) fn record(gpu: &Rc<Gpu>, queue: &Stream, timed: bool) -> Result<Event> {
        let event = Event::new(gpu, timed)?;
        event.place(queue)?;
        Ok(event)
    }

    /// A point that is nowhere yet.
    fn new(gpu: &Rc<Gpu>, timed: bool) -> Result<Event> {
        let flags = if timed { EventFlags::DEFAULT } else { EventFlags::DISABLE_TIMING };
        let mut raw = ptr::null_mut();
        // SAFETY: the driver writes the handle to a local.
        gpu.check("cuEventCreate", unsafe { raw::cuEventCreate(&mut raw, flags.bits() as c_uint) })?;
        Ok(Event(Rc::new(RawEvent { gpu: gpu.clone(), raw })))
    }

    /// Makes it the present end of `queue`.
    fn place(&self, queue: &Stream) -> Result<()> {
        // SAFETY: event and queue are alive.
        self.0.gpu.check("cuEventRecord", unsafe { raw::cuEventRecord(self.0.raw, queue.as_inner()) })
    }

    /// Seconds from this point to `later`, both timed and reached.
    pub(super) fn seconds_to(&self, later: &Event) -> Result<f64> {
        let mut milliseconds = 0f32;
        // SAFETY: both events are alive; the driver checks the rest.
        let read = unsafe { raw::cuEventElapsedTime(&mut milliseconds, self.0.raw, later.0.raw) };
        self.0.gpu.check("cuEventElapsedTime", read)?;
        Ok(f64::from(milliseconds) / 1e3)
    }

    /// Whether this point has passed.
    pub(super) fn reached(&self, gpu: &Gpu) -> Result<bool> {
        // SAFETY: the event is alive.
        match unsafe { raw::cuEventQuery(self.0.raw) } {
            Err(Code::NOT_READY) => Ok(false),
            result => gpu.check("cuEventQuery", result).map(|()| true),
        }
    }

    /// Lets `queue` wait for this point.
    pub(super) fn delay(&self, gpu: &Gpu, queue: &Stream) -> Result<()> {
        // SAFETY: event and queue are alive now; the driver keeps what it needs of the event.
        gpu.check("cuStreamWaitEvent", unsafe { raw::cuStreamWaitEvent(queue.as_inner(), self.0.raw, 0) })
    }

    /// Lets the calling thread wait for this point.
    pub(super) fn wait(&self, gpu: &Gpu) -> Result<()> {
        // SAFETY: the event is alive.
        gpu.check("cuEventSynchronize", unsafe { raw::cuEventSynchronize(self.0.raw) })
    }
}

impl Drop for RawEvent {
    fn drop(&mut self) {
        let _ = self.gpu.activate();
        // SAFETY: created by `record`, destroyed once; an event still pending is released when it completes.
        let _ = unsafe { raw::cuEventDestroy_v2(self.raw) };
    }
}

/// Timed events for a profile, made many at a time: to make one takes as long as to launch a kernel, and between launches the
/// queue would run empty.
#[derive(Default)]
pub(super) struct Timers(RefCell<Vec<Event>>);

impl Timers {
    /// The present end of `queue`.
    pub fn record(&self, gpu: &Rc<Gpu>, queue: &Stream) -> Result<Event> {
        let mut unused = self.0.borrow_mut();
        if unused.is_empty() {
            for _ in 0..256 {
                unused.push(Event::new(gpu, true)?);
            }
        }
        let event = unused.pop().expect("some were just made");
        event.place(queue)?;
        Ok(event)
    }
}
