//! Attention of one token in one launch: norms, rotation, append, softmax and the merge of the splits.

use cuda_std::{
    F16,
    kernel::{Grid, Kernel},
};
use gpu::attention::{ADJACENT, Decode, DecodeShape, DecodeVisitor, HALF, visit_decode};
use half::f16;
use ntransformer::device::cuda::driver::Driver;
use rand::Rng;

use super::{
    Lab, Number, assert_close,
    ops::{ATTENTION_BUDGET, CAP_BUDGET, RMS_NORM_BUDGET, ROPE_BUDGET},
    pointer,
};
use crate::reference;

/// So large that its absence shows.
const EPS: f32 = 1e-2;
/// Relative to a stored key: F16's rounding.
const F16_BUDGET: f64 = 1.0 / 2048.0;
/// F16's smallest number.
const F16_SMALLEST: f64 = 1.0 / 16_777_216.0;

/// A model's attention, and how it is launched.
#[derive(Clone, Copy, Debug)]
struct Attention {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    context: usize,
    rope_dims: usize,
    pairing: u32,
    norms: bool,
    /// u32::MAX for all positions.
    window: u32,
    /// 0 for none.
    cap: f32,
    scale: f32,
    splits: u32,
}

/// Launches the kernel for a head's size.
struct Launch<'a, 'b, D: Driver>(&'a Lab<'b, D>, DecodeShape, Decode);

impl<D: Driver> DecodeVisitor for Launch<'_, '_, D> {
    type Out = ();

    fn visit<K: Kernel<Args = (Decode,)>>(self) {
        self.0.launch::<K>(self.1.grid(), (self.2,));
    }
}

impl Attention {
    /// Heads of `head_dim`, all of which rotates, in three splits.
    fn new(heads: usize, kv_heads: usize, head_dim: usize, context: usize) -> Self {
        Attention {
            heads,
            kv_heads,
            head_dim,
            context,
            rope_dims: head_dim,
            pairing: ADJACENT,
            norms: false,
            window: u32::MAX,
            cap: 0.0,
            scale: 1.0 / (head_dim as f32).sqrt(),
            splits: 3,
        }
    }

    fn pair(&self, i: usize) -> (usize, usize) {
        if self.pairing == HALF { (i, i + self.rope_dims / 2) } else { (2 * i, 2 * i + 1) }
    }

    /// A vector of the token as the kernel should make it, in F64.
    fn prepared(&self, x: &[f32], norm: &[f32], cos: &[f32], sin: &[f32]) -> Vec<f64> {
        let x = if self.norms { reference::rms_norm(x, norm, EPS) } else { x.iter().map(|&x| x.into()).collect() };
        reference::rope(&x, cos, sin, |i| self.pair(i))
    }

    /// At `position`, without clusters and with clusters of a random size.
    fn check<D: Driver>(&self, lab: &mut Lab<D>, position: u32) {
        self.check_in_clusters(lab, position, 1);
        let size = 2u32 << lab.rng.random_range(0..3);
        if size <= lab.driver.properties().cluster {
            self.check_in_clusters(lab, position, size);
        }
    }

    /// Two launches at `position`, over random keys and values at the positions before it that are seen, and NaN elsewhere.
    fn check_in_clusters<D: Driver>(&self, lab: &mut Lab<D>, position: u32, cluster: u32) {
        let &Attention { heads, kv_heads, head_dim, context, rope_dims, .. } = self;
        let [q, k, v] = [heads, kv_heads, kv_heads].map(|heads| lab.floats(heads * head_dim));
        let [q_norm, k_norm] = [0; 2].map(|_| lab.floats(head_dim));
        let [q_angles, k_angles] =
            [0; 2].map(|_| (0..rope_dims / 2).map(|_| lab.rng.random_range(-4.0f32..4.0)).collect::<Vec<_>>());
        let cos = |angles: &[f32]| angles.iter().map(|angle| angle.cos()).collect::<Vec<_>>();
        let sin = |angles: &[f32]| angles.iter().map(|angle| angle.sin()).collect::<Vec<_>>();
        let (q_cos, q_sin, k_cos, k_sin) = (cos(&q_angles), sin(&q_angles), cos(&k_angles), sin(&k_angles));

        let from = (position + 1).saturating_sub(self.window) as usize;
        let cached = from..position as usize;
        let mut cache = || -> Vec<u16> {
            let random = lab.floats(kv_heads * context * head_dim);
            let seen = |i: usize| cached.contains(&(i / head_dim % context));
            let bits = |(i, &x): (usize, &f32)| if seen(i) { f16::from_f32(x).to_bits() } else { u16::POISON };
            random.iter().enumerate().map(bits).collect()
        };
        let (keys, values) = (cache(), cache());
        let (k_cache, v_cache) = (lab.output(&keys), lab.output(&values));

        let [h, kv, dims] = [heads, kv_heads, head_dim].map(|n| n as u32);
        let shape = match cluster {
            1 => DecodeShape::with_splits(h, kv, dims, self.splits),
            size => DecodeShape::clustered(h, kv, dims, size),
        };
        let mut workspace = vec![u8::POISON; shape.workspace_bytes()];
        workspace[..shape.counter_bytes()].fill(0);
        let workspace = lab.output(&workspace);
        // A table without angles is an address that must not be read.
        let table = |x: &[f32]| lab.input(if x.is_empty() { &[0.0] } else { x });
        let inputs = [&q, &k, &v, &q_norm, &k_norm, &q_cos, &q_sin, &k_cos, &k_sin].map(|x| table(x));
        let [q_mem, k_mem, v_mem, q_norm_mem, k_norm_mem, q_cos_mem, q_sin_mem, k_cos_mem, k_sin_mem] =
            inputs.each_ref().map(|mem| pointer::<D, f32>(mem));
        let position_mem = lab.input(&[position]);
        let norm = |pointer: *const f32| if self.norms { pointer } else { std::ptr::null() };
        let launch = || {
            let y = lab.poisoned::<f32>(q.len());
            let args = Decode {
                q: q_mem,
                k: k_mem,
                v: v_mem,
                q_norm: norm(q_norm_mem),
                k_norm: norm(k_norm_mem),
                q_cos: q_cos_mem,
                q_sin: q_sin_mem,
                k_cos: k_cos_mem,
                k_sin: k_sin_mem,
                k_cache: k_cache.pointer::<F16>(),
                v_cache: v_cache.pointer::<F16>(),
                position: pointer::<D, _>(&position_mem),
                y: y.pointer(),
                workspace: workspace.pointer(),
                heads: heads as u32,
                kv_heads: kv_heads as u32,
                head_dim: head_dim as u32,
                context: context as u32,
                rope_dims: rope_dims as u32,
                pairing: self.pairing,
                window: self.window,
                splits: shape.splits(),
                scale: self.scale,
                cap: self.cap,
                eps: EPS,
                overlap: position % 2,
            };
            visit_decode(head_dim as u32, Launch(lab, shape, args));
            lab.read::<f32>(&y)
        };
        let (found, again) = (launch(), launch());
        let bits = |y: &[f32]| y.iter().map(|y| y.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&found), bits(&again), "{self:?} at {position}: another result from a second launch");
        let counters = &lab.read::<u8>(&workspace)[..shape.counter_bytes()];
        assert!(counters.iter().all(|&byte| byte == 0), "{self:?} at {position}: a counter was left");

        let new_keys = self.check_appended(position, &k, &keys, &lab.read(&k_cache), |x, at| {
            if self.norms {
                let expected = self.prepared(x, &k_norm, &k_cos, &k_sin);
                for (dim, (&bits, &expected)) in at.iter().zip(&expected).enumerate() {
                    let error = F16_BUDGET * expected.abs() + (RMS_NORM_BUDGET + ROPE_BUDGET) * 4.0 + F16_SMALLEST;
                    assert_close(f16::from_bits(bits).to_f32(), expected, error, || {
                        format!("{self:?} at {position}: dimension {dim} of the key")
                    });
                }
                return;
            }
            // The same operations in F32: the same bits.
            let mut expected = x.to_vec();
            for (i, (&cos, &sin)) in k_cos.iter().zip(&k_sin).enumerate() {
                let (a, b) = self.pair(i);
                (expected[a], expected[b]) = (x[a] * cos - x[b] * sin, x[a] * sin + x[b] * cos);
            }
            let expected: Vec<u16> = expected.iter().map(|&x| f16::from_f32(x).to_bits()).collect();
            assert_eq!(at, expected, "{self:?} at {position}: the key");
        });
        let new_values = self.check_appended(position, &v, &values, &lab.read(&v_cache), |x, at| {
            let expected: Vec<u16> = x.iter().map(|&x| f16::from_f32(x).to_bits()).collect();
            assert_eq!(at, expected, "{self:?} at {position}: the value");
        });

        let seen = from..position as usize + 1;
        for (head, (q, found)) in q.chunks_exact(head_dim).zip(found.chunks_exact(head_dim)).enumerate() {
            let kv_head = head / (heads / kv_heads);
            let rows = |cache: &[f32]| -> Vec<Vec<f32>> {
                let row = |position| cache[(kv_head * context + position) * head_dim..][..head_dim].to_vec();
                seen.clone().map(row).collect()
            };
            let (keys, values) = (rows(&new_keys), rows(&new_values));
            let [keys, values] = [&keys, &values].map(|rows| rows.iter().map(Vec::as_slice).collect::<Vec<_>>());
            let q = self.prepared(q, &q_norm, &q_cos, &q_sin);
            let (expected, score) = reference::attention(&q, &keys, &values, self.scale, self.cap);
            // A pair's error is relative to its length, at most the sum of its magnitudes.
            let query = 2.0 * ROPE_BUDGET + if self.norms { RMS_NORM_BUDGET } else { 0.0 };
            let budget = ATTENTION_BUDGET + (ATTENTION_BUDGET + query) * score + CAP_BUDGET * f64::from(self.cap);
            for (dim, (&found, expected)) in found.iter().zip(expected).enumerate() {
                assert_close(found, expected.value, budget * expected.magnitude, || {
                    format!("{self:?} at {position}: head {head}, dimension {dim}")
                });
            }
        }
    }

    /// Checks that a cache has changed at the position alone, and there by `row`'s standards. Returns it as numbers.
    fn check_appended(
        &self,
        position: u32,
        new: &[f32],
        before: &[u16],
        after: &[u16],
        row: impl Fn(&[f32], &[u16]),
    ) -> Vec<f32> {
        let mut expected = before.to_vec();
        for (kv_head, new) in new.chunks_exact(self.head_dim).enumerate() {
            let at = (kv_head * self.context + position as usize) * self.head_dim;
            row(new, &after[at..][..self.head_dim]);
            expected[at..][..self.head_dim].copy_from_slice(&after[at..][..self.head_dim]);
        }
        assert_eq!(after, expected, "{self:?}: written beside position {position}");
        after.iter().map(|&bits| f16::from_bits(bits).to_f32()).collect()
    }
}

/// Every size of head, with groups of 1, 4, 5, 7, 8, and more than a block takes, of one KV head and of several.
pub fn decode_heads<D: Driver>(lab: &mut Lab<D>) {
    const GROUPS: [(usize, usize); 7] = [(2, 2), (8, 2), (5, 1), (14, 2), (8, 1), (24, 2), (17, 1)];
    for (i, head_dim) in [2, 20, 64, 72, 80, 96, 100, 128, 136, 192, 256].into_iter().enumerate() {
        for (heads, kv_heads) in [GROUPS[i % 7], GROUPS[(i + 3) % 7]] {
            Attention::new(heads, kv_heads, head_dim, 40).check(lab, 37);
        }
    }
}

/// The first positions, and the edges of tiles, of warps' and of blocks' shares.
pub fn decode_edges<D: Driver>(lab: &mut Lab<D>) {
    for head_dim in [64, 128] {
        for position in [0, 1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 192, 193, 199] {
            Attention::new(4, 2, head_dim, 200).check(lab, position);
        }
    }
}

/// Any number of splits.
pub fn decode_splits<D: Driver>(lab: &mut Lab<D>) {
    for splits in [1, 2, 3, 4, 7, 33, 256] {
        for position in [5, 300, 511] {
            let (heads, kv_heads, head_dim) = if splits % 2 == 0 { (4, 1, 128) } else { (2, 2, 20) };
            Attention { splits, ..Attention::new(heads, kv_heads, head_dim, 512) }.check(lab, position);
        }
    }
}

/// No further back than the window: before it has filled, at its edge and beyond.
pub fn decode_windows<D: Driver>(lab: &mut Lab<D>) {
    for window in [1, 2, 16, 33, 100, 1000] {
        for position in [0, 1, 15, 40, 99, 100, 199] {
            Attention { window, ..Attention::new(4, 2, 64, 200) }.check(lab, position);
        }
    }
}

/// Scores around the cap, far below it and far above; and scores of up to 100, whose exponentials overflow unless the largest is
/// taken off first.
pub fn decode_caps<D: Driver>(lab: &mut Lab<D>) {
    for (scale, cap) in [(0.3, 50.0), (5.0, 5.0), (100.0, 3.0), (100.0 / 8.0, 0.0)] {
        for position in [0, 39, 150] {
            Attention { scale, cap, ..Attention::new(2, 1, 64, 160) }.check(lab, position);
        }
    }
}

/// Norms of q and k, both pairings, and heads of which a part rotates or nothing.
pub fn decode_norms_and_rotations<D: Driver>(lab: &mut Lab<D>) {
    for (head_dim, rope_dims) in [(20, 20), (64, 64), (80, 32), (96, 0), (128, 128), (256, 64)] {
        for pairing in [ADJACENT, HALF] {
            for norms in [false, true] {
                let attention = Attention { rope_dims, pairing, norms, ..Attention::new(6, 2, head_dim, 80) };
                attention.check(lab, 70);
                attention.check(lab, 0);
            }
        }
    }
}

/// Many tiles for each warp, many splits for the last block, several clusters.
pub fn decode_long<D: Driver>(lab: &mut Lab<D>) {
    Attention { splits: 2, ..Attention::new(2, 1, 64, 1500) }.check(lab, 1499);
    let long = Attention { splits: 40, ..Attention::new(4, 1, 128, 3000) };
    long.check(lab, 2900);
    for cluster in [2, 4, 8].into_iter().filter(|&size| size <= lab.driver.properties().cluster) {
        long.check_in_clusters(lab, 2900, cluster);
    }
    // As many splits as there can be, each with positions: the last ones are read together with what is behind them.
    Attention { splits: 256, ..Attention::new(2, 1, 72, 16_400) }.check(lab, 16_399);
}

#[test]
fn splits_fill_the_gpu_and_no_more_than_the_context() {
    // Llama 8B on an H200: two blocks on each of 132 multiprocessors.
    assert_eq!(DecodeShape::new(32, 8, 128, 131_072, 132).splits(), 33);
    assert_eq!(DecodeShape::new(32, 8, 128, 512, 132).splits(), 8);
    assert_eq!(DecodeShape::new(8, 1, 256, 131_072, 132).splits(), 256);
    // More queries than a block takes, more KV heads than blocks fit.
    assert_eq!(DecodeShape::new(96, 8, 128, 131_072, 132).grid().blocks, [16, 16, 1]);
    assert_eq!(DecodeShape::new(64, 64, 64, 4096, 8).grid().blocks, [64, 1, 1]);
}

#[test]
fn clusters_leave_a_multiprocessor_for_each_block() {
    let grid = |kv_heads, most| DecodeShape::short(kv_heads, kv_heads, 128, 132, most).map(|shape| shape.grid());
    assert_eq!(grid(8, 8), Some(Grid::new(8, 8, 128).with_cluster([1, 8, 1])));
    assert_eq!(grid(20, 8), Some(Grid::new(20, 4, 128).with_cluster([1, 4, 1])));
    assert_eq!((grid(67, 8), grid(8, 1)), (None, None));
}
