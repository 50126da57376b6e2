//! How fast a GPU reads its memory when it does nothing else: what other kernels are measured by.

use gpu::bench;
use rand::{RngCore, SeedableRng, rngs::SmallRng};

use super::driver::Driver;
use crate::device::DeviceError;

type Result<T> = std::result::Result<T, DeviceError>;

/// Bytes that are read at once, where the device has twice as many free.
const BYTES: usize = 4 << 30;
/// Fewer are enough where they take as long, in seconds.
const LONG: f64 = 5e-3;
/// Threads of a block, and blocks a multiprocessor, of the launches that are tried. The most blocks are several times as many
/// as run at once.
const THREADS: [u32; 2] = [256, 512];
const BLOCKS: [u32; 5] = [2, 4, 8, 16, 32];
/// Times that each launch is measured, of which the median counts, and launches that are measured together.
const ROUNDS: usize = 5;
const LAUNCHES: u32 = 3;
/// Bytes of the quick measurement: several times any GPU's L2 cache. And its blocks a multiprocessor.
const ROUGHLY: usize = 512 << 20;
const ROUGHLY_BLOCKS: u32 = 8;
/// Bytes that are read over the link, at least.
const ZERO_COPIED: usize = 64 << 20;
/// Random bytes, again and again: zeros might be read faster.
const PATTERN: usize = 64 << 20;

/// The reading of much memory.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// Bytes that were read.
    pub bytes: usize,
    /// Seconds that the fastest launch took.
    pub seconds: f64,
    /// That launch's blocks of threads.
    pub blocks: u32,
    /// Threads of a block.
    pub threads: u32,
}

impl Reading {
    /// Bytes a second.
    pub fn rate(&self) -> f64 {
        self.bytes as f64 / self.seconds
    }
}

/// Reads 4 GiB of device memory, or less where there is not as much or it would take long, by launches of several shapes.
///
/// # Errors
/// The driver's.
pub fn read<D: Driver>(driver: &D) -> Result<Reading> {
    let limit = BYTES.min((driver.memory()?.free / 2) as usize);
    let mut bytes = 1 << 20;
    loop {
        let x = driver.alloc("memory to read", bytes)?;
        // The first time goes into loading the kernel.
        let time = || time(driver, &x, driver.properties().multiprocessors, THREADS[0]);
        time()?;
        if 8 * bytes > limit || time()? > LONG {
            return fastest(driver, &x);
        }
        bytes *= 8;
    }
}

/// Bytes a second at which device memory is read by launches of one shape: within some per cent of the fastest.
///
/// # Errors
/// The driver's.
pub fn roughly<D: Driver>(driver: &D) -> Result<f64> {
    let bytes = ROUGHLY.min((driver.memory()?.free / 4) as usize) / 16 * 16;
    rate(driver, &driver.alloc("memory to read", bytes)?)
}

/// Bytes a second at which page-locked RAM is read over the link, where it is, by launches of one shape.
///
/// # Errors
/// The driver's.
pub fn zero_copy<D: Driver>(driver: &D) -> Result<f64> {
    // Several times the L2 cache, which might keep what was read.
    let bytes = (4 * driver.properties().l2_bytes as usize).max(ZERO_COPIED);
    let x = driver.zero_copy(driver.pinned("the measurement of reads over the link", bytes)?)?;
    rate(driver, &x)
}

/// Bytes a second at which `x` is read by launches of one shape.
fn rate<D: Driver>(driver: &D, x: &D::Mem) -> Result<f64> {
    let time = || time(driver, x, ROUGHLY_BLOCKS * driver.properties().multiprocessors, THREADS[1]);
    // The first time goes into loading the kernel.
    time()?;
    Ok(D::len(x) as f64 / time()?.min(time()?))
}

/// The fastest of all launches that read `x`.
fn fastest<D: Driver>(driver: &D, x: &D::Mem) -> Result<Reading> {
    let bytes = D::len(x);
    let mut pattern = vec![0; PATTERN.min(bytes)];
    SmallRng::seed_from_u64(0).fill_bytes(&mut pattern);
    for at in (0..bytes).step_by(pattern.len()) {
        driver.write(x, at, &pattern[..pattern.len().min(bytes - at)])?;
    }
    let mut best: Option<Reading> = None;
    for (blocks, threads) in BLOCKS.into_iter().flat_map(|blocks| THREADS.map(|threads| (blocks, threads))) {
        let blocks = blocks * driver.properties().multiprocessors;
        let mut times = (0..ROUNDS).map(|_| time(driver, x, blocks, threads)).collect::<Result<Vec<_>>>()?;
        times.sort_by(f64::total_cmp);
        let seconds = times[ROUNDS / 2];
        if best.is_none_or(|best| seconds < best.seconds) {
            best = Some(Reading { bytes, seconds, blocks, threads });
        }
    }
    Ok(best.expect("several launches"))
}

/// Seconds of one launch that reads `x`.
fn time<D: Driver>(driver: &D, x: &D::Mem, blocks: u32, threads: u32) -> Result<f64> {
    let sums = driver.alloc("sums", (blocks * threads) as usize * size_of::<u32>())?;
    let vectors = (D::len(x) / size_of::<cuda_std::mem::U32x4>()) as u64;
    let args = (D::address(x) as *const _, vectors, D::address(&sums) as *mut u32);
    // SAFETY: all of `x`, an allocation and so aligned, and a sum for each thread.
    let launch = |_| unsafe { driver.launch::<bench::read>(bench::read_grid(blocks, threads), args) };
    Ok(seconds(driver, || (0..LAUNCHES).try_for_each(launch))? / f64::from(LAUNCHES))
}

/// Seconds that the compute queue takes for what `f` puts into it.
///
/// # Errors
/// The driver's, and those of `f`.
pub fn seconds<D: Driver>(driver: &D, f: impl FnOnce() -> Result<()>) -> Result<f64> {
    let from = driver.mark()?;
    f()?;
    let to = driver.mark()?;
    driver.host_waits(&to)?;
    driver.seconds(&from, &to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cuda::emulator::EmulatorDriver;

    #[test]
    fn memory_is_read_over_the_link() {
        assert!(zero_copy(&EmulatorDriver::new(7)).unwrap() > 0.0);
    }

    /// Times mean nothing in the emulator; what was read does.
    #[test]
    fn memory_is_read() {
        let reading = read(&EmulatorDriver::new(7)).unwrap();
        assert!(reading.bytes >= 1 << 20 && reading.rate() > 0.0, "{reading:?}");
        assert!(THREADS.contains(&reading.threads) && reading.blocks >= BLOCKS[0], "{reading:?}");
    }
}
