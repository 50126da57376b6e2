//! Matrix times vector for each tensor type: how fast weights are read, beside a copy on the same GPU, or a plain read on the
//! CPU; and the link over which streamed layers come.
//!
//! `cargo bench` runs it on the CPU, and on the first GPU if there is one. A decoded token reads every weight once, so these
//! GB/s bound the tokens a second.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use gpu::weights::{self, WeightKernels, WeightVisitor};
use ntransformer::device::{
    Device, DeviceError, Epilogue, Linear, Tensor, Transfer,
    cpu::CpuDevice,
    cuda::{cust::CustDriver, driver::Driver},
};
use quant::TensorType;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use rayon::prelude::*;

/// Shapes of an 8B model's matrices: k and v, q and out, gate and up, down, head.
const GPU_SHAPES: [(usize, usize); 5] = [(1024, 4096), (4096, 4096), (14336, 4096), (4096, 14336), (128256, 4096)];
/// Fewer on the CPU, which takes its time.
const CPU_SHAPES: [(usize, usize); 2] = [(4096, 4096), (4096, 14336)];
/// A matrix that fits into a core's cache, in every type but F32.
const CACHED: (usize, usize) = (128, 4096);
/// Weights that are gone over before the same ones come again: more than any cache holds.
const ROTATION: usize = 512 << 20;
/// Bytes of a copy.
const COPY: usize = 1 << 30;
/// Bytes of a transfer from pinned RAM: from 16 MiB on, transfers run at the link's full speed.
const UPLOAD: usize = 64 << 20;
/// Measurements of which the median counts.
const ROUNDS: usize = 7;
/// A measurement takes about as long.
const ROUND: Duration = Duration::from_millis(20);

type Result<T> = std::result::Result<T, DeviceError>;

fn main() -> Result<()> {
    // In the thread pool, as the command line runs.
    rayon::scope(|_| cpu())?;
    match CustDriver::open(0, |line| eprintln!("{line}")) {
        Ok(driver) => gpu(&driver),
        Err(DeviceError::Unavailable { why }) => {
            println!("no GPU is measured: {why}");
            Ok(())
        }
        Err(e) => Err(e),
    }
}

/// One device's table.
struct Table {
    /// Bytes a second to which others are compared.
    rate: f64,
}

impl Table {
    /// A table of rates beside that of `what`, which takes `seconds` for `bytes` bytes.
    fn new(device: &str, what: &str, bytes: usize, seconds: f64) -> Self {
        let rate = bytes as f64 / seconds;
        println!("{device}: {what} runs at {:.1} GB/s", rate / 1e9);
        println!("{:<6} {:>16} {:>10} {:>8} {:>8}", "type", "rows x cols", "us", "GB/s", "of it");
        Table { rate }
    }

    fn row(&self, ty: TensorType, (rows, cols): (usize, usize), seconds: f64) {
        let rate = bytes_of(ty, rows, cols) as f64 / seconds;
        let shape = format!("{rows} x {cols}");
        let (us, percent) = (seconds * 1e6, 100.0 * rate / self.rate);
        println!("{:<6} {shape:>16} {us:>10.1} {:>8.1} {percent:>7.1}%", ty.name(), rate / 1e9);
    }
}

fn bytes_of(ty: TensorType, rows: usize, cols: usize) -> usize {
    rows * ty.row_bytes(cols).expect("the shapes are whole blocks of every type")
}

fn random_blocks(ty: TensorType, bytes: usize) -> Vec<u8> {
    let mut rng = SmallRng::seed_from_u64(1);
    let mut blocks = vec![0; bytes];
    quant::fill_random(ty, &mut || rng.random(), 0.02, &mut blocks).expect("whole blocks");
    blocks
}

/// Seconds of one call of `f`, where `time(n)` are the seconds of `n` calls: the median of several rounds.
fn median(mut time: impl FnMut(usize) -> Result<f64>) -> Result<f64> {
    // The first call is slow: modules load, pages are touched.
    time(1)?;
    let calls = (ROUND.as_secs_f64() / time(2)? * 2.0).ceil().clamp(1.0, 1000.0) as usize;
    let mut seconds = (0..ROUNDS).map(|_| Ok(time(calls)? / calls as f64)).collect::<Result<Vec<f64>>>()?;
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[ROUNDS / 2])
}

/// Seconds of `calls` calls.
fn elapsed(mut f: impl FnMut() -> Result<()>, calls: usize) -> Result<f64> {
    let start = Instant::now();
    (0..calls).try_for_each(|_| f())?;
    Ok(start.elapsed().as_secs_f64())
}

fn cpu() -> Result<()> {
    let device = CpuDevice::new();
    let read = {
        let bytes = vec![1u8; ROTATION];
        let sum = |part: &[u8]| part.as_chunks().0.iter().fold(0, |sum: u64, &word| sum ^ u64::from_ne_bytes(word));
        let mut read = || {
            black_box(bytes.par_chunks(1 << 18).map(sum).reduce(|| 0, |a, b| a ^ b));
            Ok(())
        };
        median(|calls| elapsed(&mut read, calls))?
    };
    let table = Table::new(device.name(), "a plain read", ROTATION, read);
    for &ty in TensorType::ALL {
        for shape in CPU_SHAPES {
            table.row(ty, shape, cpu_gemv(ty, shape, ROTATION)?);
        }
    }
    // Without the memory: what one core computes, of weights in its cache.
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread can be started");
    println!("one core of it, weights in its cache, {} x {}:", CACHED.0, CACHED.1);
    for &ty in TensorType::ALL {
        let seconds = one.install(|| cpu_gemv(ty, CACHED, 0))?;
        println!("{:<6} {:>8.1} GB/s", ty.name(), bytes_of(ty, CACHED.0, CACHED.1) as f64 / seconds / 1e9);
    }
    Ok(())
}

/// Seconds of a product on the CPU, with `rotation` bytes of weights gone over before the same ones come again.
fn cpu_gemv(ty: TensorType, (rows, cols): (usize, usize), rotation: usize) -> Result<f64> {
    let mut device = CpuDevice::new();
    let bytes = bytes_of(ty, rows, cols);
    let copies = rotation.div_ceil(bytes).max(1);
    let buf = device.alloc("weights", copies * bytes)?;
    let blocks = random_blocks(ty, bytes);
    (0..copies).try_for_each(|i| device.write(&buf, i * bytes, &blocks))?;
    let (mut x, mut y) = (device.act(1, cols)?, device.act(1, rows)?);
    device.load(&vec![0.5; cols], &mut x)?;
    let mut turn = 0;
    let mut multiply = || {
        turn = (turn + 1) % copies;
        let weight = Tensor { buf: buf.clone(), offset: turn * bytes, ty, rows, cols };
        device.matmul(&Linear { weight, bias: None }, 1, &x, &mut y, Epilogue::Store)
    };
    median(|calls| elapsed(&mut multiply, calls))
}

/// Seconds that the compute queue takes for what `f` puts into it.
fn queued<D: Driver>(driver: &D, mut f: impl FnMut() -> Result<()>) -> Result<f64> {
    let from = driver.mark()?;
    f()?;
    let to = driver.mark()?;
    driver.host_waits(&to)?;
    driver.seconds(&from, &to)
}

/// Bytes a second from pinned RAM to the device.
fn link<D: Driver>(driver: &D) -> Result<f64> {
    let (from, to) = (driver.pinned("a transfer", UPLOAD)?, driver.alloc("a transfer", UPLOAD)?);
    let seconds = median(|calls| {
        let start = Instant::now();
        let mut end = None;
        for _ in 0..calls {
            end = Some(driver.upload(&from, 0..UPLOAD, &to, 0, None)?);
        }
        end.iter().try_for_each(|end| driver.host_waits(end))?;
        Ok(start.elapsed().as_secs_f64())
    })?;
    Ok(UPLOAD as f64 / seconds)
}

fn gpu<D: Driver>(driver: &D) -> Result<()> {
    println!("{}: pinned RAM is copied to the device at {:.1} GB/s", driver.name(), link(driver)? / 1e9);
    let copied = {
        let (from, to) = (driver.alloc("a copy", COPY)?, driver.alloc("a copy", COPY)?);
        median(|calls| queued(driver, || (0..calls).try_for_each(|_| driver.copy(&from, &to, COPY))))?
    };
    let table = Table::new(driver.name(), "a copy, read and written,", 2 * COPY, copied);
    for &ty in TensorType::ALL {
        for (rows, cols) in GPU_SHAPES {
            table.row(ty, (rows, cols), weights::visit(ty, Gemv { driver, rows, cols })?);
        }
    }
    Ok(())
}

/// Measures the `gemv` kernel of a type.
struct Gemv<'a, D> {
    driver: &'a D,
    rows: usize,
    cols: usize,
}

impl<D: Driver> WeightVisitor for Gemv<'_, D> {
    type Out = Result<f64>;

    fn visit<F: WeightKernels>(self) -> Result<f64> {
        let Gemv { driver, rows, cols } = self;
        let bytes = bytes_of(F::TYPE, rows, cols);
        let copies = ROTATION.div_ceil(bytes);
        let w = driver.alloc("weights", copies * bytes)?;
        // Random rows, again and again: what the values are does not matter, but zeros would run faster.
        let blocks = random_blocks(F::TYPE, bytes_of(F::TYPE, rows.min(1024), cols));
        for at in (0..copies * bytes).step_by(blocks.len()) {
            driver.write(&w, at, &blocks[..blocks.len().min(copies * bytes - at)])?;
        }
        let x: Vec<u8> = (0..cols).flat_map(|i| (0.5 + (i % 7) as f32).to_le_bytes()).collect();
        let (x_mem, y) = (driver.alloc("x", x.len())?, driver.alloc("y", 4 * rows)?);
        driver.write(&x_mem, 0, &x)?;

        let grid = weights::gemv_grid(rows as u32);
        let mut turn = 0;
        median(|calls| {
            queued(driver, || {
                (0..calls).try_for_each(|_| {
                    turn = (turn + 1) % copies;
                    let args = (
                        (D::address(&w) + (turn * bytes) as u64) as *const u8,
                        D::address(&x_mem) as *const f32,
                        std::ptr::null(),
                        D::address(&y) as *mut f32,
                        rows as u32,
                        cols as u32,
                        0,
                    );
                    // SAFETY: a matrix inside `w`, and vectors of its sides' lengths.
                    unsafe { driver.launch::<F::Gemv>(grid, args) }
                })
            })
        })
    }
}
