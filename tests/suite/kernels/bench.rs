//! The benchmarks' yardsticks.

use gpu::bench;
use ntransformer::device::cuda::driver::Driver;
use rand::Rng;

use super::{Lab, pointer};

/// Every sixteen bytes are read, once, by the thread that should.
pub fn read<D: Driver>(lab: &mut Lab<D>) {
    for (blocks, threads) in [(1, 32), (3, 64), (2, 96)] {
        let all = (blocks * threads) as usize;
        // None, fewer than threads, whole rounds of every thread, and what is left of one.
        for vectors in [0, 1, all - 1, 8 * all, 8 * all + 5, 25 * all - 1] {
            let words: Vec<u32> = (0..4 * vectors.max(1)).map(|_| lab.rng.random()).collect();
            let (x, sums) = (lab.input(&words), lab.poisoned::<u32>(all));
            let args = (pointer::<D, _>(&x), vectors as u64, sums.pointer());
            lab.launch::<bench::read>(bench::read_grid(blocks, threads), args);
            let xor = |thread| {
                let at = (thread..vectors).step_by(all);
                at.flat_map(|i| &words[4 * i..4 * i + 4]).fold(0, |sum, word| sum ^ word)
            };
            let expected: Vec<u32> = (0..all).map(xor).collect();
            assert_eq!(lab.read::<u32>(&sums), expected, "{vectors} vectors, {blocks} blocks of {threads} threads");
        }
    }
}

/// Blocks meet as often as they should, in each of several launches, and leave nothing behind. (The emulator runs one block at a time, which
/// would wait for others forever.)
pub fn barriers<D: Driver>(lab: &mut Lab<D>) {
    let emulated = lab.driver.name().starts_with("emulator");
    let blocks = if emulated { 1 } else { lab.driver.properties().multiprocessors };
    let state = lab.output(&[0u32, 0]);
    for (count, together) in [(0, 0), (1, 1), (1000, 1001)] {
        lab.launch::<bench::barriers>(bench::meeting_grid(blocks), (state.pointer(), count));
        lab.launch::<bench::boundary>(bench::meeting_grid(blocks), ());
        assert_eq!(lab.read::<u32>(&state), [0, together]);
    }
}
