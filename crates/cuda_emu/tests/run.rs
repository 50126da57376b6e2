//! Kernels that are right, and what they compute.

mod common;

use common::{download, shape, upload};
use cuda_emu::{Emulator, MemoryError};
use cuda_std::{kernel::Grid, prelude::*};

/// The sum of `n` floats by each block: tree reduction in shared memory.
#[kernel("test")]
unsafe fn reduce(x: *const f32, n: u32, sums: *mut f32) {
    let (t, threads) = (thread::thread_idx_x(), thread::block_dim_x());
    let partial = shared_array!(PARTIAL: [f32; 256]);
    // SAFETY: the test's launches pass what the kernel expects; a block has at most 256 threads.
    unsafe {
        let mut sum = 0.0;
        let mut i = thread::block_idx_x() * n + t;
        while i < (thread::block_idx_x() + 1) * n {
            sum += mem::load(x.add(i as usize));
            i += threads;
        }
        *partial.add(t as usize) = sum;
        let mut width = threads / 2;
        while width > 0 {
            thread::sync_threads();
            if t < width {
                *partial.add(t as usize) += *partial.add((t + width) as usize);
            }
            width /= 2;
        }
        if t == 0 {
            mem::store(sums.add(thread::block_idx_x() as usize), *partial);
        }
    }
}

#[test]
fn a_tree_reduction_with_barriers() {
    let (blocks, n) = (37u32, 1000u32);
    let x: Vec<f32> = (0..blocks * n).map(|i| (i * 7919 % 1024) as f32).collect();
    for threads in [1, 2, 64, 256] {
        let emulator = Emulator::new(u64::from(threads));
        let input = upload(&emulator, &x.iter().map(|v| v.to_bits()).collect::<Vec<_>>());
        let sums = emulator.alloc(blocks as usize * 4).unwrap();
        // SAFETY: the arrays are as long as the kernel needs.
        unsafe {
            emulator.launch::<reduce>(
                shape([blocks, 1, 1], [threads, 1, 1], 0),
                (input.address() as *const f32, n, sums.address() as *mut f32),
            )
        }
        .unwrap();
        let expected: Vec<f32> = x.chunks(n as usize).map(|block| block.iter().sum()).collect();
        assert_eq!(download(&sums).iter().map(|b| f32::from_bits(*b)).collect::<Vec<_>>(), expected);
    }
}

/// Many collectives one after the other, each lane's result depending on all before.
#[kernel("test")]
unsafe fn shuffles(rounds: u32, out: *mut u32) {
    let t = thread::thread_idx_x();
    let mut value = t;
    for round in 0..rounds {
        // SAFETY: whole warps; `out` has a place for each thread.
        unsafe {
            let other = warp::warp_shuffle_xor(warp::FULL_MASK, value, 1 << (round % 5));
            let first = warp::warp_shuffle_idx(warp::FULL_MASK, value, round % 32);
            let odd = warp::warp_vote_ballot(warp::FULL_MASK, value % 2 == 1);
            value = value.wrapping_mul(31).wrapping_add(other).rotate_left(7) ^ first ^ odd;
        }
    }
    // SAFETY: as above.
    unsafe { mem::store(out.add(t as usize), value) };
}

#[test]
fn shuffles_and_ballots_agree_with_lockstep() {
    let (threads, rounds) = (96usize, 200);
    let mut expected: Vec<u32> = (0..threads as u32).collect();
    for round in 0..rounds {
        for warp in expected.chunks_mut(32) {
            let old: Vec<u32> = warp.to_vec();
            let odd = old.iter().enumerate().fold(0, |bits, (lane, v)| bits | (v % 2) << lane);
            for (lane, value) in warp.iter_mut().enumerate() {
                let mixed = old[lane].wrapping_mul(31).wrapping_add(old[lane ^ 1 << (round % 5)]).rotate_left(7);
                *value = mixed ^ old[round % 32] ^ odd;
            }
        }
    }
    for seed in 0..8 {
        let emulator = Emulator::new(seed);
        let out = emulator.alloc(threads * 4).unwrap();
        let args = (rounds as u32, out.address() as *mut u32);
        // SAFETY: `out` has a place for each thread.
        unsafe { emulator.launch::<shuffles>(shape([1, 1, 1], [threads as u32, 1, 1], 0), args) }.unwrap();
        assert_eq!(download(&out), expected, "seed {seed}");
    }
}

/// Both halves of a warp meet among themselves several times, then all meet.
#[kernel("test")]
unsafe fn halves(out: *mut u32) {
    let t = thread::thread_idx_x();
    // SAFETY: one warp; `out` has a place for each thread.
    unsafe {
        let mask = if t < 16 { 0xffff } else { 0xffff_0000 };
        let mut value = t;
        for step in [1, 2, 4, 8] {
            value += warp::warp_shuffle_xor(mask, value, step);
        }
        if t == 5 {
            value = warp::warp_vote_ballot(1 << 5, true);
        }
        let other = warp::warp_shuffle_xor(warp::FULL_MASK, value, 16);
        mem::store(out.add(t as usize), other);
    }
}

#[test]
fn parts_of_a_warp_meet_by_their_masks() {
    let emulator = Emulator::new(3);
    let out = emulator.alloc(128).unwrap();
    // SAFETY: `out` has a place for each thread.
    unsafe { emulator.launch::<halves>(shape([1, 1, 1], [32, 1, 1], 0), (out.address() as *mut u32,)) }.unwrap();
    let (low, high): (u32, u32) = ((0..16).sum(), (16..32).sum());
    let mut expected = [[high; 16], [low; 16]].concat();
    expected[21] = 1 << 5;
    assert_eq!(download(&out), expected);
}

/// Swaps neighbours in a block whose rows are no whole warps.
#[kernel("test")]
unsafe fn flat(out: *mut u32) {
    let t = thread::thread_idx_y() * thread::block_dim_x() + thread::thread_idx_x();
    // SAFETY: whole warps; `out` has a place for each thread.
    unsafe { mem::store(out.add(t as usize), warp::warp_shuffle_xor(warp::FULL_MASK, t, 1)) };
}

#[test]
fn warps_are_cut_from_the_threads_in_order_x_fastest() {
    let emulator = Emulator::default();
    let out = emulator.alloc(96 * 4).unwrap();
    // SAFETY: `out` has a place for each thread.
    unsafe { emulator.launch::<flat>(shape([1, 1, 1], [3, 32, 1], 0), (out.address() as *mut u32,)) }.unwrap();
    assert_eq!(download(&out), (0..96).map(|t| t ^ 1).collect::<Vec<u32>>());
}

/// Lanes that exist, by a ballot of the full mask; a barrier that threads of the last warp's odd lanes do not reach.
#[kernel("test")]
unsafe fn partial(out: *mut u32) {
    let t = thread::thread_idx_x();
    // SAFETY: `out` has a place for each thread.
    unsafe {
        mem::store(out.add(t as usize), warp::warp_vote_ballot(warp::FULL_MASK, true));
        if t > 32 && t % 2 == 1 {
            return;
        }
        thread::sync_threads();
    }
}

#[test]
fn a_last_partial_warp_and_threads_that_exit_before_a_barrier() {
    let emulator = Emulator::default();
    let out = emulator.alloc(48 * 4).unwrap();
    // SAFETY: `out` has a place for each thread.
    unsafe { emulator.launch::<partial>(shape([1, 1, 1], [48, 1, 1], 0), (out.address() as *mut u32,)) }.unwrap();
    assert_eq!(download(&out), [vec![u32::MAX; 32], vec![0xffff; 16]].concat());
}

/// Each block writes its threads' numbers, and the last one adds up what all wrote. Also counts in shared memory.
#[kernel("test")]
unsafe fn last_block(parts: *mut u32, arrived: *mut u32, out: *mut u32) {
    let (threads, blocks) = (thread::block_dim_x(), thread::grid_dim_x());
    let last = shared_array!(LAST: [u32; 2]);
    // SAFETY: the test's arrays are as long as this takes; whoever reads `parts` comes after the fences.
    unsafe {
        if thread::thread_idx_x() == 0 {
            *last.add(1) = 0;
        }
        mem::store(parts.add(thread::index_1d() as usize), thread::index_1d());
        thread::sync_threads();
        atomic::add(last.add(1), 3);
        if thread::thread_idx_x() == 0 {
            atomic::fence();
            *last = atomic::add(arrived, 1);
            atomic::fence();
        }
        thread::sync_threads();
        if *last == blocks - 1 && thread::thread_idx_x() == 0 {
            let sum = (0..blocks * threads).map(|i| mem::load(parts.add(i as usize))).sum();
            mem::store(out, sum);
            mem::store(out.add(1), *last.add(1));
        }
    }
}

#[test]
fn the_last_block_sees_what_the_others_wrote() {
    let (blocks, threads) = (50, 64);
    for seed in 0..20 {
        let emulator = Emulator::new(seed);
        let parts = emulator.alloc(blocks as usize * threads as usize * 4).unwrap();
        let (arrived, out) = (upload(&emulator, &[0]), emulator.alloc(8).unwrap());
        let [p, a, o] = [&parts, &arrived, &out].map(|memory| memory.address() as *mut u32);
        // SAFETY: `parts` has a place for each thread; one counter, two results.
        unsafe { emulator.launch::<last_block>(shape([blocks, 1, 1], [threads, 1, 1], 0), (p, a, o)) }.unwrap();
        assert_eq!(download(&arrived), [blocks]);
        assert_eq!(download(&out), [(0..blocks * threads).sum(), 3 * threads]);
    }
}

/// Every index that a thread can ask for, and shared memory that nobody has written.
#[kernel("test")]
unsafe fn indices(out: *mut u32, fresh: *mut u32) {
    let idx = [thread::thread_idx_x(), thread::thread_idx_y(), thread::thread_idx_z()];
    let dim = [thread::block_dim_x(), thread::block_dim_y(), thread::block_dim_z()];
    let block = [thread::block_idx_x(), thread::block_idx_y(), thread::block_idx_z()];
    let grid = [thread::grid_dim_x(), thread::grid_dim_y(), thread::grid_dim_z()];
    let linear = (idx[2] * dim[1] + idx[1]) * dim[0] + idx[0];
    let number = (block[2] * grid[1] + block[1]) * grid[0] + block[0];
    let all = number * dim.iter().product::<u32>() + linear;
    let (one, two) = (shared_array!(ONE: [u32; 64]), shared_array!(TWO: [u32; 64]));
    let three = dynamic_shared!(THREE: [u32]);
    // SAFETY: 64 elements in each array and at least 64 threads in none; `out` and `fresh` have a place for each thread.
    unsafe {
        let arrays = [one, two, three].map(|array| array.add(linear as usize));
        let poisoned = arrays.iter().all(|&array| *array == u32::MAX);
        mem::store(fresh.add(all as usize), u32::from(poisoned));
        for (i, array) in arrays.iter().enumerate() {
            mem::store(*array, all * 3 + i as u32);
        }
        thread::sync_threads();
        let sum = arrays.iter().map(|&array| mem::load(array)).sum::<u32>();
        mem::store(out.add(all as usize), sum);
    }
}

#[test]
fn three_dimensions_and_shared_arrays_of_each_block_and_site() {
    let (grid, block) = ([3, 2, 4], [5, 3, 2]);
    let threads = 3 * 2 * 4 * 30;
    let emulator = Emulator::default();
    let (out, fresh) = (emulator.alloc(threads * 4).unwrap(), emulator.alloc(threads * 4).unwrap());
    let args = (out.address() as *mut u32, fresh.address() as *mut u32);
    // SAFETY: both have a place for each thread.
    unsafe { emulator.launch::<indices>(shape(grid, block, 64 * 4), args) }.unwrap();
    assert_eq!(download(&out), (0..threads as u32).map(|t| 9 * t + 3).collect::<Vec<_>>());
    assert_eq!(download(&fresh), vec![1; threads]);
}

/// The order of the threads of a block: each writes when it ran.
#[kernel("test")]
unsafe fn order(out: *mut u32) {
    let turn = shared_array!(TURN: [u32; 1]);
    // SAFETY: `out` has a place for each thread; threads change only at barriers, so none comes between.
    unsafe {
        let mine = (*turn).wrapping_add(1);
        *turn = mine;
        mem::store(out.add(thread::index_1d() as usize), mine);
    }
}

#[test]
fn orders_are_permutations_that_differ_by_seed_launch_and_block_and_repeat() {
    let run = |seed| {
        let emulator = Emulator::new(seed);
        let orders = [(); 2].map(|()| {
            let out = emulator.alloc(2 * 64 * 4).unwrap();
            // SAFETY: `out` has a place for each thread.
            unsafe { emulator.launch::<order>(shape([2, 1, 1], [64, 1, 1], 0), (out.address() as *mut u32,)) }.unwrap();
            download(&out)
        });
        orders.concat().chunks(64).map(<[u32]>::to_vec).collect::<Vec<_>>()
    };
    let orders = [run(1), run(2)].concat();
    for (i, order) in orders.iter().enumerate() {
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..64).collect::<Vec<_>>());
        assert!(orders[..i].iter().all(|other| other != order), "two of {} orders are the same", orders.len());
    }
    assert_eq!(run(1), orders[..4]);
}

/// Hands values to the neighbour through shared memory, with or without the barrier that this needs.
#[kernel("test")]
unsafe fn neighbour(barrier: u32, out: *mut u32) {
    let (t, threads) = (thread::thread_idx_x(), thread::block_dim_x());
    let values = shared_array!(VALUES: [u32; 128]);
    // SAFETY: at most 128 threads; `out` has a place for each.
    unsafe {
        *values.add(t as usize) = t;
        if barrier == 1 {
            thread::sync_threads();
        }
        mem::store(out.add(t as usize), *values.add(((t + 1) % threads) as usize));
    }
}

#[test]
fn a_missing_barrier_shows_as_results_that_differ_between_seeds() {
    let run = |barrier: u32| -> Vec<Vec<u32>> {
        let results = (0..8).map(|seed| {
            let emulator = Emulator::new(seed);
            let out = emulator.alloc(128 * 4).unwrap();
            let args = (barrier, out.address() as *mut u32);
            // SAFETY: `out` has a place for each thread.
            unsafe { emulator.launch::<neighbour>(shape([1, 1, 1], [128, 1, 1], 0), args) }.unwrap();
            download(&out)
        });
        let mut results: Vec<_> = results.collect();
        results.sort();
        results.dedup();
        results
    };
    assert_eq!(run(1), [(0..128).map(|t| (t + 1) % 128).collect::<Vec<u32>>()]);
    assert_eq!(run(0).len(), 8);
}

#[test]
fn memory_is_aligned_poisoned_checked_and_of_its_exact_size() {
    let emulator = Emulator::default();
    let memories: Vec<_> = [1, 3, 256, 1000].map(|bytes| emulator.alloc(bytes).unwrap()).into();
    for memory in &memories {
        assert_eq!(memory.address() % 256, 0);
        let mut bytes = vec![0; memory.len()];
        memory.read(0, &mut bytes).unwrap();
        assert_eq!(bytes, vec![0xFF; memory.len()]);
    }
    memories[3].write(998, &[1, 2]).unwrap();
    let mut end = [0; 3];
    memories[3].read(997, &mut end).unwrap();
    assert_eq!(end, [0xFF, 1, 2]);
    let past = |offset, bytes| Err(MemoryError::OutOfRange { offset, bytes, size: 1000 });
    assert_eq!(memories[3].write(999, &[1, 2]), past(999, 2));
    assert_eq!(memories[3].read(usize::MAX, &mut [0]), past(usize::MAX, 1));
    assert_eq!(emulator.alloc(0).unwrap_err(), MemoryError::Empty);
    assert_eq!(emulator.alloc(usize::MAX).unwrap_err(), MemoryError::OutOfMemory { bytes: usize::MAX });
    assert_eq!(emulator.alloc(1 << 60).unwrap_err(), MemoryError::OutOfMemory { bytes: 1 << 60 });
}

/// Every block of a cluster of `2 x 3` writes its number into each one's shared memory, and then what all have written to its own.
#[kernel("test")]
unsafe fn exchange(rounds: u32, out: *mut u32) {
    let inbox = shared_array!(INBOX: [u32; 2 * 64 * 6]);
    let (size, rank, t) = (cluster::size(), cluster::rank(), thread::thread_idx_x());
    let block = thread::block_idx_y() * thread::grid_dim_x() + thread::block_idx_x();
    // SAFETY: 64 threads a block, six blocks a cluster; `out` has a place for each thread of the grid. Blocks have started behind the
    // first barrier; two halves of the inbox take turns, so that nobody writes what is still read.
    unsafe {
        cluster::arrive();
        cluster::wait();
        let mut sum = block;
        for round in 0..rounds {
            let half = inbox.add((round % 2 * 64 * 6) as usize);
            for other in 0..size {
                cluster::map(half, other).add((64 * rank + t) as usize).write(sum.wrapping_mul(t + 1));
            }
            cluster::arrive();
            cluster::wait();
            for other in 0..size {
                sum = sum.rotate_left(3) ^ half.add((64 * other + t) as usize).read();
            }
        }
        mem::store(out.add((64 * block + t) as usize), sum);
    }
}

#[test]
fn blocks_of_a_cluster_write_into_each_others_shared_memory() {
    let (rounds, [width, height]) = (5, [4u32, 6u32]);
    let mut expected: Vec<Vec<u32>> = (0..width * height).map(|block| vec![block; 64]).collect();
    for _ in 0..rounds {
        let sent = expected.clone();
        for (block, sums) in expected.iter_mut().enumerate() {
            let (x, y) = (block as u32 % width, block as u32 / width);
            for (t, sum) in sums.iter_mut().enumerate() {
                for (other_y, other_x) in (0..3).flat_map(|y| (0..2).map(move |x| (y, x))) {
                    let other = (y / 3 * 3 + other_y) * width + x / 2 * 2 + other_x;
                    *sum = sum.rotate_left(3) ^ sent[other as usize][t].wrapping_mul(t as u32 + 1);
                }
            }
        }
    }
    for seed in 0..4 {
        let emulator = Emulator::new(seed);
        let out = emulator.alloc((64 * width * height * 4) as usize).unwrap();
        let grid = Grid::new(width, height, 64).with_cluster([2, 3, 1]);
        // SAFETY: as the kernel wants it.
        unsafe { emulator.launch::<exchange>(grid, (rounds, out.address() as *mut u32)) }.unwrap();
        assert_eq!(download(&out), expected.concat(), "seed {seed}");
    }
}
