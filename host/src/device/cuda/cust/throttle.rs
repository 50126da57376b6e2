//! A copy queue that takes as long as on a slower link: host functions around each copy keep the time.

use std::{
    ffi::c_void,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use cuda_dlopen::raw;
use cust::stream::Stream;

use super::gpu::Gpu;
use crate::device::{
    DeviceError,
    link::{Throttle, sleep_until},
};

type Result<T> = std::result::Result<T, DeviceError>;

/// What passes between the end of one piece of work and the host function behind it, at most: it takes the driver's thread some
/// 10 us to start one. A longer pause is one of the queue's own, e.g. a wait for a computation.
const LATE: Duration = Duration::from_micros(200);

/// The link's time, which host functions on the driver's thread keep.
#[derive(Clone, Default)]
pub(super) struct SlowLink(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    link: Throttle,
    /// When the copy under way ends.
    end: Option<Instant>,
    /// When the host function behind the copy before let the queue go on.
    left: Option<Instant>,
}

impl SlowLink {
    /// Puts a copy of `bytes` bytes into `queue` by `copy`, which lasts as long as `limit` bytes per second take from the moment
    /// at which the queue gets there.
    pub fn around(
        &self,
        gpu: &Gpu,
        queue: &Stream,
        bytes: usize,
        limit: f64,
        copy: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let asked = Instant::now();
        let state = self.0.clone();
        host_function(gpu, queue, move || {
            let mut state = state.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            let ready = state.ready(asked, Instant::now());
            state.end = Some(state.link.copy(ready, bytes, limit));
        })?;
        copy()?;
        let state = self.0.clone();
        host_function(gpu, queue, move || {
            let end = state.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).end;
            end.into_iter().for_each(sleep_until);
            state.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).left = Some(Instant::now());
        })
    }
}

impl State {
    /// When the copy could start that was asked for at `asked` and whose host function came at `now`. What host functions and
    /// sleeping take by themselves is not the link's time.
    fn ready(&self, asked: Instant, now: Instant) -> Instant {
        let possible = self.left.map_or(asked, |left| left.max(asked));
        if now.saturating_duration_since(possible) < LATE { asked } else { now }
    }
}

/// Lets the driver call `f` when `queue` gets there. It must not call the driver. What is behind it in the queue waits.
fn host_function<F: FnOnce() + Send + 'static>(gpu: &Gpu, queue: &Stream, f: F) -> Result<()> {
    extern "C" fn call<F: FnOnce()>(f: *mut c_void) {
        // SAFETY: `host_function` gave the driver a box of this type, and the driver calls once.
        let f = unsafe { Box::from_raw(f.cast::<F>()) };
        f();
    }
    let f = Box::into_raw(Box::new(f));
    // SAFETY: the queue is alive. The function gets the box; if the context dies first it is never called, and the box is lost.
    let queued = unsafe { raw::cuLaunchHostFunc(queue.as_inner(), Some(call::<F>), f.cast()) };
    if queued.is_err() {
        // SAFETY: nobody else has it.
        drop(unsafe { Box::from_raw(f) });
    }
    gpu.check("cuLaunchHostFunc", queued)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Late host functions do not add up, real pauses count.
    #[test]
    fn what_host_functions_take_is_not_the_links_time() {
        let begin = Instant::now();
        let after = |us| begin + Duration::from_micros(us);
        let mut state = State::default();
        assert_eq!(state.ready(begin, after(50)), begin, "the queue was empty");
        assert_eq!(state.ready(begin, after(5000)), after(5000), "the queue waited for something");
        state.left = Some(after(10_000));
        assert_eq!(state.ready(begin, after(10_050)), begin, "back to back");
        assert_eq!(state.ready(begin, after(12_000)), after(12_000), "a wait between two copies");
        assert_eq!(state.ready(after(11_000), after(11_050)), after(11_000), "asked for when the queue was empty");
    }
}
