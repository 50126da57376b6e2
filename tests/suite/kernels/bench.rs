//! The benchmarks' yardstick.

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
