//! The link between host and device: how fast it is, and a slower one for tests and for seeing what other machines would do.

use std::{
    thread,
    time::{Duration, Instant},
};

use super::{DeviceError, Result, Transfer};

/// A link of a given speed, by the clock: a copy starts when it may and the link is free, and ends when its bytes have gone
/// through. What is late in reality does not delay the copies behind it, so that errors do not add up.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    /// The end of the copy before.
    free: Option<Instant>,
}

impl Throttle {
    /// The end of a copy of `bytes` bytes that may start at `ready`, at `limit` bytes per second, on a link that does one copy
    /// after the other.
    pub fn copy(&mut self, ready: Instant, bytes: usize, limit: f64) -> Instant {
        let start = self.free.map_or(ready, |free| free.max(ready));
        // Less than a byte a second is no link.
        let end = start + Duration::from_secs_f64(bytes as f64 / limit.max(1.0));
        self.free = Some(end);
        end
    }
}

/// Lets the calling thread sleep until `end`.
pub(super) fn sleep_until(end: Instant) {
    let left = end.saturating_duration_since(Instant::now());
    if !left.is_zero() {
        thread::sleep(left);
    }
}

/// That others may write a device's memory: what they do is no copy, which a limit of the link could delay.
pub(super) fn not_slowed_down(limit: Option<f64>) -> Result<()> {
    match limit {
        None => Ok(()),
        Some(_) => Err(DeviceError::Unsupported("--link-limit delays copies, and not what others write".into())),
    }
}

/// A part of a measurement's copies: as large as they come in streaming, small enough to be page-locked in about 10 ms.
const PIECE: usize = 32 << 20;
/// The first copies, which tell how many more are worth it: a small one, in case that the link is slowed down to a crawl.
const FIRST: usize = 64 << 10;
const WARM_UP: usize = 4 << 20;
/// What the copies of one round are to take, in seconds.
const ROUND: f64 = 6e-3;
/// Rounds. The fastest counts: the first may find a link that was asleep.
const ROUNDS: usize = 2;

/// Bytes per second of copies from page-locked memory into `device` while it does nothing else, the same way that streamed
/// weights go. Takes 20 to 30 ms, and 32 MiB on both sides.
///
/// # Errors
/// The device's.
pub(super) fn rate<T: Transfer>(device: &T) -> Result<f64> {
    let from = device.pinned("the measurement of the link", PIECE)?;
    let to = device.alloc("the measurement of the link", PIECE)?;
    let copy = |mut bytes: usize| -> Result<f64> {
        let begin = device.mark_copies()?;
        let mut end = begin.clone();
        while bytes > 0 {
            let piece = bytes.min(PIECE);
            end = device.upload(&from, 0..piece, &to, 0, None)?;
            bytes -= piece;
        }
        device.host_waits(&end)?;
        device.seconds(&begin, &end)
    };
    // A clock that did not advance over the copy: it was fast.
    let per_second = |bytes: usize, seconds: f64| bytes as f64 / seconds.max(1e-9);
    let warm_up = ((per_second(FIRST, copy(FIRST)?) * ROUND) as usize).clamp(FIRST, WARM_UP);
    let first = per_second(warm_up, copy(warm_up)?.max(copy(warm_up)?));
    let bytes = ((first * ROUND) as usize).clamp(warm_up, 64 * PIECE);
    let mut best = 0f64;
    for _ in 0..ROUNDS {
        best = best.max(per_second(bytes, copy(bytes)?));
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Copies that are ready queue up on the link; one that comes later starts when it comes.
    #[test]
    fn copies_take_the_link_in_turn() {
        let (mut link, begin) = (Throttle::default(), Instant::now());
        let after = |ms| begin + Duration::from_millis(ms);
        assert_eq!(link.copy(begin, 100, 1e3), after(100));
        assert_eq!(link.copy(after(30), 100, 1e3), after(200), "the link was busy");
        assert_eq!(link.copy(after(500), 100, 1e3), after(600), "the link was idle");
        assert_eq!(link.copy(after(500), 100, 1e4), after(610), "another limit");
    }
}
