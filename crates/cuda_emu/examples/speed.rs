//! What emulation costs on one core: `cargo run --release -p cuda_emu --example speed`.

use std::time::Instant;

use cuda_emu::Emulator;
use cuda_std::{kernel::Grid, prelude::*};

#[kernel("speed")]
unsafe fn empty() {}

#[kernel("speed")]
unsafe fn shuffles(count: u32) {
    let mut value = thread::thread_idx_x();
    for step in 0..count {
        // SAFETY: whole warps.
        value ^= unsafe { warp::warp_shuffle_xor(warp::FULL_MASK, value, 1 << (step % 5)) };
    }
    std::hint::black_box(value);
}

#[kernel("speed")]
unsafe fn barriers(count: u32) {
    for _ in 0..count {
        thread::sync_threads();
    }
}

/// Loads from two arrays in turn, as a dot product does.
#[kernel("speed")]
unsafe fn loads(x: *const f32, y: *const f32, n: u32) {
    let mut sum = 0.0;
    for i in 0..n as usize {
        // SAFETY: both arrays have `n` elements.
        sum += unsafe { mem::load(x.add(i)) * mem::load(y.add(i)) };
    }
    std::hint::black_box(sum);
}

/// Seconds of a launch on one host thread: the best of many short ones, so that other programs disturb little.
fn seconds<K: cuda_std::kernel::Kernel>(emulator: &Emulator, blocks: u32, args: K::Args) -> f64 {
    let time = |_| {
        let start = Instant::now();
        // SAFETY: `main` passes each kernel what it expects.
        unsafe { emulator.launch::<K>(Grid::new(blocks, 1, 256), args) }.expect("the kernels are right");
        start.elapsed().as_secs_f64()
    };
    (0..200).map(time).fold(f64::INFINITY, f64::min)
}

fn main() {
    rayon::ThreadPoolBuilder::new().num_threads(1).build_global().expect("the pool is not yet built");
    let emulator = Emulator::default();
    let (blocks, count, n) = (8, 20, 4096);
    let threads = f64::from(blocks * 256);
    let [x, y] = [(); 2].map(|()| emulator.alloc(n as usize * 4).expect("memory"));

    let rate = |events: f64, seconds: f64| events / seconds / 1e6;
    println!("empty threads      {:7.1} M/s", rate(threads, seconds::<empty>(&emulator, blocks, ())));
    let shuffled = seconds::<shuffles>(&emulator, blocks, (count,));
    println!("shuffles by a lane {:7.1} M/s", rate(threads * f64::from(count), shuffled));
    let waited = seconds::<barriers>(&emulator, blocks, (count,));
    println!("waits at a barrier {:7.1} M/s", rate(threads * f64::from(count), waited));
    let loaded = seconds::<loads>(&emulator, 1, (x.address() as *const f32, y.address() as *const f32, n));
    println!("checked load       {:7.2} ns", loaded * 1e9 / (256.0 * 2.0 * f64::from(n)));
    let launched = seconds::<empty>(&emulator, 1, ());
    println!("launch of a block  {:7.1} us", launched * 1e6);
}
