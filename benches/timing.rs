//! Medians of repeated measurements.

use std::time::{Duration, Instant};

use crate::Result;

/// Measurements of which the median counts.
const ROUNDS: usize = 5;
/// A measurement takes about as long.
const ROUND: Duration = Duration::from_millis(10);
/// Calls of a measurement at most.
const CALLS: f64 = 4000.0;

/// Seconds of one call of what `time(n)` calls `n` times, for `n` a multiple of `step`, and measures: the median of several
/// rounds.
pub fn median(step: usize, mut time: impl FnMut(usize) -> Result<f64>) -> Result<f64> {
    // The first call is slow: modules load, pages are touched.
    time(step)?;
    let calls = (ROUND.as_secs_f64() / time(step)? * step as f64).clamp(1.0, CALLS) as usize;
    let calls = calls.next_multiple_of(step);
    let mut seconds = (0..ROUNDS).map(|_| Ok(time(calls)? / calls as f64)).collect::<Result<Vec<f64>>>()?;
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[ROUNDS / 2])
}

/// Seconds of `calls` calls.
pub fn elapsed(mut f: impl FnMut() -> Result<()>, calls: usize) -> Result<f64> {
    let start = Instant::now();
    (0..calls).try_for_each(|_| f())?;
    Ok(start.elapsed().as_secs_f64())
}
