//! Launches that must fail, and how.

mod common;

use common::{download, shape, upload};
use cuda_emu::{Emulator, LaunchError, Nearest, Place, Wait, Waiting};
use cuda_std::{
    kernel::{Grid, Kernel},
    prelude::*,
};

/// Runs `K` on one block and returns its error.
fn error<K: Kernel>(emulator: &Emulator, threads: u32, args: K::Args) -> LaunchError {
    // SAFETY: the kernels of this file reach global memory through `mem` alone, and one block runs alone.
    unsafe { emulator.launch::<K>(shape([1, 1, 1], [threads, 1, 1], 0), args) }.unwrap_err()
}

fn place(kernel: &'static str, x: u32) -> Place {
    Place { kernel, block: [0; 3], thread: [x, 0, 0] }
}

/// Thread 3 accesses 4 bytes at `address`.
#[kernel("test")]
unsafe fn touch(address: u64, write: u32) {
    if thread::thread_idx_x() == 3 {
        // SAFETY: the emulator checks the address.
        unsafe {
            match write {
                0 => drop(mem::load(address as *const u32)),
                _ => mem::store(address as *mut u32, 7),
            }
        }
    }
}

#[test]
fn accesses_outside_live_allocations() {
    let emulator = Emulator::default();
    assert!(matches!(
        error::<touch>(&emulator, 32, (4096, 0)),
        LaunchError::OutOfBounds { place: p, write: false, address: 4096, bytes: 4, nearest: None } if p == place("touch", 3)
    ));
    let memories = [100, 102, 8].map(|bytes| emulator.alloc(bytes).unwrap());
    assert_eq!(emulator.allocated(), 210);
    for (memory, offset, write) in memories
        .iter()
        .flat_map(|m| [-4, -1024, m.len() as i64, m.len() as i64 - 2].map(|at| (m, at & !3, at % 3 != 0)))
    {
        // One byte past the last whole word of 102 bytes is inside: skip what is.
        if offset >= 0 && offset + 4 <= memory.len() as i64 {
            continue;
        }
        let address = memory.address().wrapping_add_signed(offset);
        let error = error::<touch>(&emulator, 32, (address, u32::from(write)));
        let LaunchError::OutOfBounds { place: p, write: w, address: a, bytes: 4, nearest: Some(nearest) } = error
        else {
            panic!("{error}");
        };
        assert_eq!((p, w, a as u64), (place("touch", 3), write, address));
        let expected = Nearest { start: memory.address() as usize, size: memory.len(), offset: offset as isize };
        assert_eq!(nearest, expected);
        let mut bytes = vec![0; memory.len()];
        memory.read(0, &mut bytes).unwrap();
        assert!(bytes.iter().all(|b| *b == 0xFF), "a refused write was done");
    }
    // The ends are inside.
    for offset in [0, 96] {
        // SAFETY: inside the allocation.
        unsafe { emulator.launch::<touch>(shape([1; 3], [32, 1, 1], 0), (memories[0].address() + offset, 1)) }.unwrap();
    }
    assert_eq!(download(&memories[0])[24], 7);
}

#[test]
fn an_access_after_free_and_an_address_at_the_end_of_the_address_space() {
    let emulator = Emulator::default();
    let kept = emulator.alloc(64).unwrap();
    let address = emulator.alloc(64).unwrap().address();
    let text = error::<touch>(&emulator, 4, (address, 1)).to_string();
    let start = format!("kernel `touch`, block [0, 0, 0], thread [3, 0, 0] writes 4 bytes at {address:#x}, offset ");
    assert!(text.starts_with(&start), "{text}");
    assert!(text.ends_with(&format!("of the nearest allocation, 64 bytes at {:#x}", kept.address())), "{text}");
    assert!(matches!(error::<touch>(&emulator, 4, (u64::MAX - 3, 0)), LaunchError::OutOfBounds { .. }));
}

#[test]
fn misaligned_accesses() {
    let emulator = Emulator::default();
    let memory = emulator.alloc(64).unwrap();
    let error = error::<touch>(&emulator, 32, (memory.address() + 2, 0));
    assert!(
        matches!(error, LaunchError::Misaligned { place: p, write: false, bytes: 4, align: 4, .. } if p == place("touch", 3)),
        "{error}"
    );
}

/// The upper half waits at the barrier, the lower half in a shuffle of all, except those that `exit` sends home.
#[kernel("test")]
unsafe fn diverge(exit: u32) {
    let t = thread::thread_idx_x();
    if t < 32 && exit >> t & 1 == 1 {
        return;
    }
    if t < 16 {
        // SAFETY: never completes, which is the test.
        unsafe { warp::warp_shuffle_xor(warp::FULL_MASK, t, 1) };
    } else {
        thread::sync_threads();
    }
}

#[test]
fn some_wait_at_the_barrier_and_some_in_a_collective() {
    for seed in 0..4 {
        let error = error::<diverge>(&Emulator::new(seed), 40, (0,));
        let text = "kernel `diverge`, block [0, 0, 0]: divergence, no thread can go on: \
                    threads 0-15 wait in a warp collective of mask 0xffffffff; threads 16-39 wait at the barrier";
        assert_eq!(error.to_string(), text);
        let LaunchError::Divergence { kernel: "diverge", block: [0, 0, 0], waiting } = error else { panic!() };
        let collective = Waiting { at: Wait::Collective { mask: u32::MAX }, threads: (0..16).collect() };
        assert_eq!(waiting, [collective, Waiting { at: Wait::Barrier, threads: (16..40).collect() }]);
    }
}

#[test]
fn a_collective_that_names_lanes_that_have_exited() {
    for seed in 0..8 {
        let error = error::<diverge>(&Emulator::new(seed), 32, (0b101 << 20,));
        assert!(
            matches!(error, LaunchError::ExitedLanes { place: p, mask: u32::MAX, exited: 0x50_0000 } if p == place("diverge", 0)),
            "{error}"
        );
    }
}

/// Lane 7 calls a ballot of the lanes below it; lane 0 alone calls one of the lanes 0 and 1.
#[kernel("test")]
unsafe fn masks(case: u32) {
    let t = thread::thread_idx_x();
    // SAFETY: wrong on purpose.
    unsafe {
        match (case, t) {
            (0, 7) => drop(warp::warp_vote_ballot(0x7f, true)),
            (1, 0) => drop(warp::warp_vote_ballot(0b11, true)),
            (1, 1) => drop(warp::warp_vote_ballot(0b110, true)),
            (1, 2) => drop(warp::warp_vote_ballot(0b101, true)),
            _ => (),
        }
    }
}

#[test]
fn masks_that_leave_the_caller_out_or_wait_in_a_circle() {
    let emulator = Emulator::default();
    let out = error::<masks>(&emulator, 32, (0,));
    assert!(matches!(out, LaunchError::NotInMask { place: p, mask: 0x7f } if p == place("masks", 7)), "{out}");
    let circle = error::<masks>(&emulator, 32, (1,));
    let LaunchError::Divergence { waiting, .. } = circle else { panic!("{circle}") };
    let waits = [0b11, 0b110, 0b101].iter().zip(0..);
    let expected = waits.map(|(&mask, t)| Waiting { at: Wait::Collective { mask }, threads: vec![t] });
    assert_eq!(waiting, expected.collect::<Vec<_>>());
}

/// Indexes a slice with `index` in thread 2 while the others wait at the barrier.
#[kernel("test")]
unsafe fn panics(index: u32) {
    if thread::thread_idx_x() == 2 {
        assert!(index != 100, "a hundred");
        std::hint::black_box(std::hint::black_box([1, 2, 3, 4])[index as usize]);
    }
    thread::sync_threads();
}

#[test]
fn a_panic_is_an_error_with_its_message_and_the_emulator_lives_on() {
    let emulator = Emulator::default();
    for (index, message) in [(9, "index out of bounds: the len is 4 but the index is 9"), (100, "a hundred")] {
        let error = error::<panics>(&emulator, 64, (index,));
        assert!(
            matches!(&error, LaunchError::Panic { place: p, message: m } if *p == place("panics", 2) && m == message),
            "{error}"
        );
    }
    // SAFETY: touches no memory.
    unsafe { emulator.launch::<panics>(shape([4, 1, 1], [64, 1, 1], 0), (3,)) }.unwrap();
}

struct CountDrops<'a>(&'a std::sync::atomic::AtomicU32);
impl Drop for CountDrops<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
}
static DROPS: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);

/// Every thread holds a value at a barrier that never opens, since thread 0 waits for ever in a collective.
#[kernel("test")]
unsafe fn abandon() {
    let _held = CountDrops(&DROPS);
    if thread::thread_idx_x() == 0 {
        // SAFETY: never completes.
        unsafe { warp::warp_vote_ballot(warp::FULL_MASK, true) };
    }
    thread::sync_threads();
}

#[test]
fn abandoned_threads_are_unwound() {
    let error = error::<abandon>(&Emulator::default(), 300, ());
    assert!(matches!(error, LaunchError::Divergence { .. }), "{error}");
    assert_eq!(DROPS.load(std::sync::atomic::Ordering::Relaxed), 300);
}

/// Block 5 and those after it read past the end of `x`.
#[kernel("test")]
unsafe fn late(x: *const u32) {
    // SAFETY: the emulator checks the address.
    unsafe { mem::load(x.add(thread::block_idx_x() as usize)) };
}

#[test]
fn of_many_blocks_errors_the_first_is_returned() {
    let emulator = Emulator::default();
    let x = upload(&emulator, &[1; 5]);
    for _ in 0..20 {
        // SAFETY: reads only.
        let error = unsafe { emulator.launch::<late>(shape([1000, 1, 1], [1, 1, 1], 0), (x.address() as *const u32,)) };
        let Err(LaunchError::OutOfBounds { place, .. }) = error else { panic!("{error:?}") };
        assert_eq!(place.block, [5, 0, 0]);
    }
}

/// Writes element `at` of a static and of the dynamic shared array, of 4 elements each.
#[kernel("test")]
unsafe fn overrun(fixed: i32, dynamic: i32) {
    let array = shared_array!(ARRAY: [u32; 4]);
    let launched = dynamic_shared!(LAUNCHED: [u32]);
    // SAFETY: wrong on purpose, but within the emulator's guards.
    unsafe {
        *array.offset(fixed as isize) = 1;
        *launched.offset(dynamic as isize) = 1;
    }
}

#[test]
fn writes_past_the_ends_of_shared_memory() {
    for (fixed, dynamic, wrong) in [
        (3, 0, None),
        (4, 0, Some("static")),
        (-1, 3, Some("static")),
        (0, 4, Some("dynamic")),
        (0, -2, Some("dynamic")),
    ] {
        // SAFETY: no global memory; the overruns stay within the emulator's guards.
        let result = unsafe { Emulator::default().launch::<overrun>(shape([1; 3], [1, 1, 1], 16), (fixed, dynamic)) };
        match (result, wrong) {
            (Ok(()), None) => (),
            (Err(LaunchError::SharedOverrun { kind, bytes: 16, .. }), Some(expected)) => assert_eq!(kind, expected),
            (result, _) => panic!("{fixed} {dynamic}: {result:?}"),
        }
    }
}

#[kernel("test")]
unsafe fn empty() {}

/// One or two static arrays of 30 KiB.
#[kernel("test")]
unsafe fn greedy(arrays: u32) {
    shared_array!(FIRST: [u8; 30 << 10]);
    if arrays == 2 {
        shared_array!(SECOND: [u8; 30 << 10]);
    }
}

#[test]
fn shapes_and_shared_memory_that_the_driver_would_refuse() {
    let emulator = Emulator::default();
    // SAFETY: the kernels touch no memory.
    let (empty, greedy) = unsafe {
        (
            |grid, block, shared| emulator.launch::<empty>(shape(grid, block, shared), ()),
            |arrays, shared| emulator.launch::<greedy>(shape([1; 3], [1; 3], shared), (arrays,)),
        )
    };
    for grid in [[0, 1, 1], [1, 0, 1], [1, 1, 0], [1 << 31, 1, 1], [1, 65536, 1], [1, 1, 65536]] {
        assert!(matches!(empty(grid, [1; 3], 0), Err(LaunchError::Grid { grid: g, .. }) if g == grid));
    }
    for block in [[0, 1, 1], [1, 0, 1], [1, 1, 0], [1025, 1, 1], [1, 1, 65], [33, 32, 1], [1 << 16, 1 << 16, 1]] {
        assert!(matches!(empty([1; 3], block, 0), Err(LaunchError::Block { block: b, .. }) if b == block));
    }
    let wrong = [([4, 4, 1], [3, 1, 1]), ([4, 4, 1], [1, 0, 1]), ([16, 1, 1], [16, 1, 1])];
    // 2^32 blocks.
    for (blocks, cluster) in wrong.into_iter().chain([([1 << 17, 1 << 15, 1], [1 << 17, 1 << 15, 1])]) {
        let grid = Grid { blocks, threads: [1; 3], shared: 0, cluster };
        // SAFETY: the kernel touches no memory.
        let result = unsafe { emulator.launch::<empty>(grid, ()) };
        assert!(matches!(result, Err(LaunchError::Cluster { cluster: c, .. }) if c == cluster));
    }
    empty([1; 3], [1024, 1, 1], 163 << 10).unwrap();
    let too_much = |result, limit| matches!(result, Err(LaunchError::SharedMemory { limit: l, .. }) if l == limit);
    assert!(too_much(empty([1; 3], [1; 3], (163 << 10) + 1), 163 << 10));
    greedy(1, 133 << 10).unwrap();
    assert!(too_much(greedy(1, (133 << 10) + 1), 163 << 10));
    assert!(too_much(greedy(2, 0), 48 << 10));

    let h200 = Emulator::default().with_shared_limit(227 << 10);
    // SAFETY: the kernel touches no memory.
    let greedy = |shared| unsafe { h200.launch::<greedy>(shape([1; 3], [1; 3], shared), (1,)) };
    greedy(197 << 10).unwrap();
    assert!(too_much(greedy((197 << 10) + 1), 227 << 10));
    assert!(too_much(greedy((227 << 10) + 1), 227 << 10));
}

/// Block 1 of a pair writes to an array of block 0's that this one has not made, without a barrier of the cluster before it.
#[kernel("test")]
unsafe fn hasty() {
    if cluster::rank() == 1 {
        let array = shared_array!(HASTY: [u32; 8]);
        // SAFETY: this is the error.
        unsafe { cluster::map(array, 0).write(1) };
    }
}

/// Block 1 of a pair writes to block 0's dynamic shared memory: with `waits`, behind a barrier of the cluster; with `ends`, behind that
/// block's end.
#[kernel("test")]
unsafe fn dynamic_of_another(waits: u32, ends: u32) {
    let array = dynamic_shared!(OTHER: [u32]);
    // SAFETY: without a barrier, and after the end, this is the error.
    unsafe {
        if ends != 0 && cluster::rank() == 0 {
            return;
        }
        // Whatever else a block waits for, it does not wait for the other one.
        warp::warp_vote_ballot(warp::FULL_MASK, true);
        thread::sync_threads();
        if waits != 0 {
            cluster::arrive();
            cluster::wait();
        }
        if cluster::rank() == 1 {
            cluster::map(array, 0).write(1);
        }
        cluster::arrive();
        cluster::wait();
    }
}

#[test]
fn only_a_block_that_runs_has_shared_memory() {
    let grid = Grid::new(2, 1, 40).with_shared(16).with_cluster([2, 1, 1]);
    // SAFETY: the kernel touches no global memory.
    let launch = |seed, args| unsafe { Emulator::new(seed).launch::<dynamic_of_another>(grid, args) };
    let refused = |result: &Result<(), LaunchError>| match result {
        Ok(()) => false,
        Err(LaunchError::ClusterMap { place, rank: 0 }) if place.block == [1, 0, 0] => true,
        Err(error) => panic!("{error}"),
    };
    // Either block may be the first, or both start together.
    let hasty = (0..32).filter(|&seed| refused(&launch(seed, (0, 0)))).count();
    assert!((1..32).contains(&hasty), "{hasty} of 32");
    for seed in 0..32 {
        launch(seed, (1, 0)).unwrap();
        assert!(refused(&launch(seed, (1, 1))), "a block that has ended has shared memory");
    }
}

/// Thread 0 waits for the cluster, the others for their block.
#[kernel("test")]
unsafe fn torn() {
    // SAFETY: this is the error.
    unsafe {
        if thread::thread_idx_x() == 0 {
            cluster::arrive();
            cluster::wait();
        } else {
            thread::sync_threads();
        }
    }
}

#[test]
fn clusters_whose_blocks_do_not_wait_for_each_other() {
    let grid = Grid::new(4, 1, 3).with_cluster([2, 1, 1]);
    // SAFETY: the kernels touch no global memory.
    let (hasty, torn) =
        unsafe { (Emulator::default().launch::<hasty>(grid, ()), Emulator::default().launch::<torn>(grid, ())) };
    let text = hasty.as_ref().unwrap_err().to_string();
    let expected = "kernel `hasty`, block [1, 0, 0], thread [0, 0, 0] maps an address to block 0 of its cluster, which has not \
                    begun, has ended or has no such array: a barrier of the cluster is missing, or it is no address of shared memory";
    // Any of its threads may be the first.
    assert!((0..3).any(|x| text == expected.replace("thread [0", &format!("thread [{x}"))), "{text}");
    let Err(LaunchError::ClusterMap { place, rank: 0 }) = hasty else { panic!("{hasty:?}") };
    assert_eq!(place.block, [1, 0, 0]);
    let Err(LaunchError::Divergence { block: [0, 0, 0], waiting, .. }) = torn else { panic!("{torn:?}") };
    let [cluster, block] = [(Wait::Cluster, vec![0]), (Wait::Barrier, vec![1, 2])];
    assert_eq!(waiting.into_iter().map(|w| (w.at, w.threads)).collect::<Vec<_>>(), [cluster, block]);
}
