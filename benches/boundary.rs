//! What ordering all multiprocessors takes, between kernels and inside one.

use gpu::bench;
use ntransformer::device::cuda::{bandwidth::seconds, driver::Driver};

use crate::{Result, cuda, report::Report, timing::median};

/// Launches of a recording, and barriers of a launch.
const MANY: u32 = 1000;

/// Measures the way from a kernel's end into the next one, by a chain of empty kernels, and a barrier of as many blocks.
pub fn measure<D: Driver>(driver: &D, blocks: u32, report: &mut Report) -> Result<()> {
    let grid = bench::meeting_grid(blocks);
    // SAFETY: it does nothing.
    let boundary = cuda::time(driver, MANY as usize, |_| unsafe { driver.launch::<bench::boundary>(grid, ()) })?;
    let state = driver.alloc("a barrier", 2 * size_of::<u32>())?;
    driver.write(&state, 0, &[0; 8])?;
    let address = D::address(&state) as *mut u32;
    // SAFETY: two words, 0 at first, for launches one after the other; the caller's number of blocks.
    let meet = |count| unsafe { driver.launch::<bench::barriers>(grid, (address, count)) };
    let of = |count| median(1, |calls| seconds(driver, || (0..calls).try_for_each(|_| meet(count))));
    let barrier = (of(MANY)? - of(0)?) / f64::from(MANY);
    report.add(driver.name(), "boundary", 0, boundary);
    report.add(driver.name(), "barrier", 0, barrier);
    println!(
        "{blocks} blocks: from one kernel into the next one {:.2} us, a barrier inside a kernel {:.2} us",
        boundary * 1e6,
        barrier * 1e6
    );
    Ok(())
}
