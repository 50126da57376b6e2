//! Kernels that no model runs: the PTX tests read what the compiler made of them.
//!
//! A barrier or a shuffle is convergent: it must stay where all threads reach it, be neither copied into the arms of a
//! branch nor moved into one. The emulator cannot see such a mistake, and a GPU only hangs now and then.
//! SAFETY, throughout: the kernels' callers vouch for the pointers, and every thread of a block reaches each collective.
#![allow(clippy::undocumented_unsafe_blocks)]

use cuda_std::prelude::*;

/// A barrier between two equal tests: it must remain one barrier, outside both.
///
/// # Safety
/// `x` holds a float for each thread of each block.
#[kernel("probe")]
pub unsafe fn barrier_between_equal_tests(x: *mut f32, n: u32) {
    let shared = shared_array!(BARRIER_BETWEEN_EQUAL_TESTS: [f32; 1024]);
    let t = thread::thread_idx_x();
    unsafe {
        if t < n {
            shared.add(t as usize).write(mem::load(x.add(t as usize)));
        }
        thread::sync_threads();
        if t < n {
            mem::store(x.add(t as usize), shared.add((n - 1 - t) as usize).read());
        }
    }
}

/// A barrier in a loop between two equal tests: one barrier, in the loop.
///
/// # Safety
/// As above, `rounds` times over.
#[kernel("probe")]
pub unsafe fn barrier_in_a_loop(x: *mut f32, n: u32, rounds: u32) {
    let shared = shared_array!(BARRIER_IN_A_LOOP: [f32; 1024]);
    let t = thread::thread_idx_x();
    let mut round = 0;
    unsafe {
        while round < rounds {
            if t < n {
                shared.add(t as usize).write(mem::load(x.add((round * n + t) as usize)));
            }
            thread::sync_threads();
            if t < n {
                mem::store(x.add((round * n + t) as usize), shared.add((n - 1 - t) as usize).read());
            }
            thread::sync_threads();
            round += 1;
        }
    }
}

/// A shuffle whose result only one lane uses: it must not sink into that lane's branch.
///
/// # Safety
/// `x` holds a float for each thread, `y` one.
#[kernel("probe")]
pub unsafe fn shuffle_before_a_branch(x: *const f32, y: *mut f32) {
    let t = thread::thread_idx_x();
    unsafe {
        let sum = warp::sum(mem::load(x.add(t as usize)));
        if t == 0 {
            mem::store(y, sum);
        }
    }
}

/// A vote between two equal tests, used in the second.
///
/// # Safety
/// `x` holds a float for each thread, `y` one.
#[kernel("probe")]
pub unsafe fn vote_between_equal_tests(x: *const f32, y: *mut u32, n: u32) {
    let t = thread::thread_idx_x();
    unsafe {
        let mut value = 0.0;
        if t < n {
            value = mem::load(x.add(t as usize));
        }
        let positive = warp::warp_vote_ballot(warp::FULL_MASK, value > 0.0);
        if t < n {
            mem::store(y.add(t as usize), positive);
        }
    }
}

/// Four floats at once, and arithmetic that is one instruction.
///
/// # Safety
/// `x` holds four floats a thread, 16-byte aligned; `y` one a thread.
#[kernel("probe")]
pub unsafe fn wide_load_and_fma(x: *const f32, y: *mut f32, a: f32) {
    let t = thread::thread_idx_x() as usize;
    unsafe {
        let v = mem::load4(x.add(4 * t));
        let mut sum = 0.0;
        for value in &v {
            sum = float::fma(*value, a, sum);
        }
        mem::store(y.add(t), sum);
    }
}

/// A struct as a kernel's parameter: numbers, an array and addresses.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Scaled {
    /// Floats.
    pub x: *const f32,
    /// As many.
    pub y: *mut f32,
    /// What x is multiplied by, and what is then added.
    pub factors: [f32; 2],
    /// How many floats.
    pub n: u32,
    /// Added to each.
    pub more: i32,
}
// SAFETY: `repr(C)`, 4 * 8 bytes without padding.
unsafe impl cuda_std::kernel::Param for Scaled {}

/// y = x times a factor plus two numbers, plus `last`: a parameter behind a struct.
///
/// # Safety
/// `job.x` and `job.y` hold `job.n` floats.
#[kernel("probe")]
pub unsafe fn struct_as_parameter(job: Scaled, last: f32) {
    let t = thread::thread_idx_x();
    unsafe {
        if t < job.n {
            let value = mem::load(job.x.add(t as usize)) * job.factors[0] + job.factors[1];
            mem::store(job.y.add(t as usize), value + job.more as f32 + last);
        }
    }
}

/// Reverses x by way of the whole dynamic shared memory, where the floats lie `apart` from each other.
///
/// # Safety
/// `x` holds a float for each thread of the one block, whose dynamic shared memory holds `apart` times as many.
#[kernel("probe")]
pub unsafe fn reverse_in_dynamic_shared(x: *mut f32, apart: u32) {
    let shared = dynamic_shared!(REVERSE_IN_DYNAMIC_SHARED: [f32]);
    let (t, n) = (thread::thread_idx_x(), thread::block_dim_x());
    unsafe {
        // The last float is the last of the memory.
        shared.add(((t + 1) * apart - 1) as usize).write(mem::load(x.add(t as usize)));
        thread::sync_threads();
        mem::store(x.add(t as usize), shared.add(((n - t) * apart - 1) as usize).read());
    }
}

/// Adds one to each number: a launch that starts before the previous one's stores are there loses an addition.
///
/// # Safety
/// `x` holds a number for each thread.
#[kernel("probe")]
pub unsafe fn increment(x: *mut u32) {
    let x = unsafe { x.add(thread::index_1d() as usize) };
    unsafe { mem::store(x, mem::load(x) + 1) };
}

/// A load before the wait for the kernel before, and one after it: both stay on their side.
///
/// # Safety
/// `weights` and `x` hold a float for each thread, and no kernel writes `weights`, which are read before the wait.
#[kernel("probe", prefetch)]
pub unsafe fn load_before_the_wait(weights: *const f32, x: *mut f32) {
    let t = thread::thread_idx_x() as usize;
    unsafe {
        let weight = mem::load(weights.add(t));
        grid::launch_dependents();
        grid::wait();
        mem::store(x.add(t), weight * mem::load(x.add(t)));
    }
}
