//! Kernels on activations.

use cuda_std::{F16, kernel::Kernel};
use gpu::ops;
use half::f16;
use ntransformer::device::cuda::driver::Driver;
use rand::Rng;

use super::{Lab, Number, assert_close, pointer};
use crate::reference;

/// Relative: `rsqrt.approx` has 2^-22, the mean of squares about as much.
pub(super) const RMS_NORM_BUDGET: f64 = 1e-6;
/// Relative: one rounding.
const SUM_BUDGET: f64 = 1e-7;
/// Relative to the pair's length: two products and a sum.
pub(super) const ROPE_BUDGET: f64 = 2e-7;
/// Relative to sum p |v|, and to 1 + the largest sum |q| |k| of a score: e^x turns a score's absolute error into a
/// relative one.
pub(super) const ATTENTION_BUDGET: f64 = 5e-7;
/// Relative, and to 1 + |gate|, for the same reason.
const SWIGLU_BUDGET: f64 = 5e-7;
/// As SwiGLU's; the exponent has a cube.
const GEGLU_BUDGET: f64 = 1e-6;
/// Relative: the kernels' tanh.
pub(super) const CAP_BUDGET: f64 = 2e-6;

/// y = weight x / rms(x), also in place, and added to y.
pub fn rms_norm<D: Driver>(lab: &mut Lab<D>) {
    // So large that its absence shows.
    const EPS: f32 = 1e-2;
    for n in [1, 20, 32, 80, 511, 512, 513, 4096] {
        for rows in [1, 3] {
            let (x, weight, before) = (lab.floats(rows * n), lab.floats(n), lab.floats(rows * n));
            let (x_mem, weight_mem) = (lab.input(&x), lab.input(&weight));
            let (apart, in_place, added) = (lab.poisoned::<f32>(rows * n), lab.output(&x), lab.output(&before));
            let input = pointer::<D, _>(&x_mem);
            let outputs =
                [(input, &apart, 0), (in_place.pointer::<f32>().cast_const(), &in_place, 0), (input, &added, 1)];
            for (x, y, accumulate) in outputs {
                let args = (x, pointer::<D, _>(&weight_mem), y.pointer(), n as u32, EPS, accumulate);
                lab.launch::<ops::rms_norm>(ops::rms_norm_grid(rows as u32, n as u32), args);
            }
            let expected: Vec<f64> = x.chunks_exact(n).flat_map(|x| reference::rms_norm(x, &weight, EPS)).collect();
            let nothing = vec![0.0; rows * n];
            for (place, y, before) in
                [("apart", apart, &nothing), ("in place", in_place, &nothing), ("added", added, &before)]
            {
                for (i, (&found, &expected)) in lab.read::<f32>(&y).iter().zip(&expected).enumerate() {
                    let what = || format!("{place}, row {}, element {} of {n}", i / n, i % n);
                    let before = f64::from(before[i]);
                    let error = RMS_NORM_BUDGET * expected.abs() + SUM_BUDGET * before.abs();
                    assert_close(found, before + expected, error, what);
                }
            }
        }
    }
}

/// Pairs (2i, 2i + 1).
pub fn rope_adjacent<D: Driver>(lab: &mut Lab<D>) {
    rope::<ops::rope_adjacent, D>(lab, |pair, _| (2 * pair, 2 * pair + 1));
}

/// Pairs (i, i + rot / 2).
pub fn rope_half<D: Driver>(lab: &mut Lab<D>) {
    rope::<ops::rope_half, D>(lab, |pair, rot| (pair, pair + rot / 2));
}

fn rope<K, D: Driver>(lab: &mut Lab<D>, pair: fn(usize, usize) -> (usize, usize))
where
    K: Kernel<Args = (*mut f32, *const f32, *const f32, u32, u32, u32)>,
{
    for (head_dim, rot) in [(2, 2), (20, 20), (64, 64), (80, 32), (128, 128), (256, 64)] {
        for (heads, tokens) in [(1, 1), (3, 5), (8, 2)] {
            let width = heads * head_dim;
            let x = lab.floats(tokens * width);
            let angles: Vec<f32> = (0..tokens * rot / 2).map(|_| lab.rng.random_range(-4.0..4.0)).collect();
            let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|angle| (angle.cos(), angle.sin())).unzip();
            let (cos_mem, sin_mem, y) = (lab.input(&cos), lab.input(&sin), lab.output(&x));
            lab.launch::<K>(
                ops::rope_grid(tokens as u32, heads as u32, rot as u32),
                (
                    y.pointer(),
                    pointer::<D, _>(&cos_mem),
                    pointer::<D, _>(&sin_mem),
                    heads as u32,
                    head_dim as u32,
                    rot as u32,
                ),
            );
            let found = lab.read::<f32>(&y);
            for (i, (x, found)) in x.chunks_exact(head_dim).zip(found.chunks_exact(head_dim)).enumerate() {
                let (token, head) = (i / heads, i % heads);
                let angles = token * rot / 2..(token + 1) * rot / 2;
                let expected = reference::rope(x, &cos[angles.clone()], &sin[angles], |i| pair(i, rot));
                for dim in 0..head_dim {
                    let what =
                        || format!("head_dim {head_dim}, rot {rot}, token {token}, head {head}, dimension {dim}");
                    // What does not rotate stays as it is.
                    let error = if dim < rot { ROPE_BUDGET * 2f64.sqrt() } else { 0.0 };
                    assert_close(found[dim], expected[dim], error, what);
                }
            }
        }
    }
}

/// Tokens arrive at their positions, rounded to nearest even, and nothing else changes.
pub fn kv_append<D: Driver>(lab: &mut Lab<D>) {
    const CONTEXT: usize = 9;
    for (kv_heads, head_dim) in [(1, 20), (2, 64), (3, 80), (1, 256)] {
        for positions in [&[0u32][..], &[8], &[3, 4, 5, 6], &[8, 0, 7]] {
            let width = kv_heads * head_dim;
            let mut k = lab.floats(positions.len() * width);
            let v = lab.floats(positions.len() * width);
            // Too large, the largest, below the smallest subnormal, a tie.
            k[..4].copy_from_slice(&[1e6, -65504.0, 1e-9, 1.0 + 1.0 / 2048.0]);
            let len = kv_heads * CONTEXT * head_dim;
            let (k_cache, v_cache) = (lab.poisoned::<u16>(len), lab.poisoned::<u16>(len));
            let (k_mem, v_mem, positions_mem) = (lab.input(&k), lab.input(&v), lab.input(positions));
            lab.launch::<ops::kv_append>(
                ops::kv_append_grid(positions.len() as u32, kv_heads as u32, head_dim as u32),
                (
                    pointer::<D, _>(&k_mem),
                    pointer::<D, _>(&v_mem),
                    k_cache.pointer::<F16>(),
                    v_cache.pointer::<F16>(),
                    pointer::<D, _>(&positions_mem),
                    kv_heads as u32,
                    head_dim as u32,
                    CONTEXT as u32,
                ),
            );
            for (name, new, cache) in [("k", &k, &k_cache), ("v", &v, &v_cache)] {
                let mut expected = vec![u16::POISON; len];
                for (token, &position) in positions.iter().enumerate() {
                    for (i, &value) in new[token * width..][..width].iter().enumerate() {
                        let (head, dim) = (i / head_dim, i % head_dim);
                        expected[(head * CONTEXT + position as usize) * head_dim + dim] =
                            f16::from_f32(value).to_bits();
                    }
                }
                let what = format!("{name}, {kv_heads} heads of {head_dim}, positions {positions:?}");
                assert_eq!(lab.read::<u16>(cache), expected, "{what}");
            }
        }
    }
}

/// A shape of attention.
struct Attention {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    context: usize,
    scale: f32,
    /// u32::MAX for all positions.
    window: u32,
    /// 0 for none.
    cap: f32,
}

impl Attention {
    fn check<D: Driver>(&self, lab: &mut Lab<D>, positions: &[u32]) {
        let &Attention { heads, kv_heads, head_dim, context, scale, window, cap } = self;
        let q = lab.floats(positions.len() * heads * head_dim);
        let len = kv_heads * context * head_dim;
        let cache = |lab: &mut Lab<D>| -> Vec<f16> { lab.floats(len).into_iter().map(f16::from_f32).collect() };
        let (keys, values) = (cache(lab), cache(lab));
        // What no token sees is NaN.
        let from = |position: u32| (position + 1).saturating_sub(window) as usize;
        let seen = from(*positions.iter().min().unwrap())..=*positions.iter().max().unwrap() as usize;
        let bits = |cache: &[f16]| -> Vec<u16> {
            let visible = |i: usize| seen.contains(&(i / head_dim % context));
            cache.iter().enumerate().map(|(i, x)| if visible(i) { x.to_bits() } else { u16::POISON }).collect()
        };
        let (q_mem, k_mem, v_mem) = (lab.input(&q), lab.input(&bits(&keys)), lab.input(&bits(&values)));
        let (positions_mem, y) = (lab.input(positions), lab.poisoned::<f32>(q.len()));
        lab.launch::<ops::attention>(
            ops::attention_grid(positions.len() as u32, heads as u32),
            (
                pointer::<D, _>(&q_mem),
                pointer::<D, F16>(&k_mem),
                pointer::<D, F16>(&v_mem),
                pointer::<D, _>(&positions_mem),
                y.pointer(),
                heads as u32,
                kv_heads as u32,
                head_dim as u32,
                context as u32,
                scale,
                window,
                cap,
            ),
        );
        let to_f32 = |cache: Vec<f16>| -> Vec<f32> { cache.into_iter().map(f16::to_f32).collect() };
        let (keys, values) = (to_f32(keys), to_f32(values));
        let found = lab.read::<f32>(&y);
        for (i, (q, found)) in q.chunks_exact(head_dim).zip(found.chunks_exact(head_dim)).enumerate() {
            let (token, head) = (i / heads, i % heads);
            let kv_head = head / (heads / kv_heads);
            let seen = from(positions[token])..positions[token] as usize + 1;
            let rows = kv_head * context + seen.start..kv_head * context + seen.end;
            let keys: Vec<&[f32]> = rows.clone().map(|row| &keys[row * head_dim..][..head_dim]).collect();
            let values: Vec<&[f32]> = rows.map(|row| &values[row * head_dim..][..head_dim]).collect();
            let (expected, score) = reference::attention(q, &keys, &values, scale, cap);
            for (dim, (&found, expected)) in found.iter().zip(expected).enumerate() {
                assert_close(
                    found,
                    expected.value,
                    (ATTENTION_BUDGET * (1.0 + score) + CAP_BUDGET * f64::from(cap)) * expected.magnitude,
                    || {
                        format!(
                            "{heads} heads on {kv_heads}, head_dim {head_dim}, context {context}, scale {scale}, \
                         window {window}, cap {cap}: \
                         token {token} at {}, head {head}, dimension {dim}",
                            positions[token]
                        )
                    },
                );
            }
        }
    }
}

const HEAD_DIMS: [usize; 7] = [2, 20, 64, 80, 96, 128, 256];
/// Heads and KV heads: groups of 1, 3, 4, 8.
const GROUPS: [(usize, usize); 4] = [(2, 2), (3, 1), (8, 2), (8, 1)];

/// One token, at the first and the last position and around the edges of the kernel's tiles.
pub fn attention_decode<D: Driver>(lab: &mut Lab<D>) {
    const CONTEXT: usize = 67;
    for (i, head_dim) in HEAD_DIMS.into_iter().enumerate() {
        let (heads, kv_heads) = GROUPS[i % GROUPS.len()];
        let scale = 1.0 / (head_dim as f32).sqrt();
        for position in [0, 1, 7, 8, 31, 32, 33, CONTEXT as u32 - 1] {
            Attention { heads, kv_heads, head_dim, context: CONTEXT, scale, window: u32::MAX, cap: 0.0 }
                .check(lab, &[position]);
        }
    }
}

/// Several tokens, each of which sees no further than itself.
pub fn attention_prefill<D: Driver>(lab: &mut Lab<D>) {
    for (heads, kv_heads) in GROUPS {
        for (head_dim, context) in [(20, 40), (128, 40), (64, 9)] {
            // Scores of up to +-100, whose exponentials overflow unless the largest is taken off first.
            for scale in [0.1, 100.0 / (head_dim as f32).sqrt()] {
                let attention = Attention { heads, kv_heads, head_dim, context, scale, window: u32::MAX, cap: 0.0 };
                attention.check(lab, &(0..9).collect::<Vec<_>>());
                attention.check(lab, &[context as u32 - 1, 0, 3]);
            }
        }
    }
}

/// Many tiles for each warp.
pub fn attention_long<D: Driver>(lab: &mut Lab<D>) {
    let (window, cap) = (u32::MAX, 0.0);
    Attention { heads: 2, kv_heads: 1, head_dim: 64, context: 1500, scale: 0.5, window, cap }.check(lab, &[1499, 1000]);
}

/// No further back than the window: before it has filled, at its edge and beyond, around the edges of the kernel's tiles.
pub fn attention_window<D: Driver>(lab: &mut Lab<D>) {
    for window in [1, 2, 8, 31, 33, 60, 100] {
        let attention = Attention { heads: 4, kv_heads: 2, head_dim: 20, context: 80, scale: 0.3, window, cap: 0.0 };
        for position in [0, 1, 7, 31, 32, 33, 79] {
            attention.check(lab, &[position]);
        }
        attention.check(lab, &[40, 41, 42, 43]);
    }
}

/// Scores around the cap, far below it and far above.
pub fn attention_cap<D: Driver>(lab: &mut Lab<D>) {
    for (scale, cap) in [(0.3, 50.0), (5.0, 5.0), (100.0, 3.0)] {
        for window in [u32::MAX, 9] {
            let attention = Attention { heads: 2, kv_heads: 1, head_dim: 64, context: 40, scale, window, cap };
            attention.check(lab, &[39]);
            attention.check(lab, &[0, 7, 20]);
        }
    }
}

/// gate = silu(gate) up
pub fn swiglu<D: Driver>(lab: &mut Lab<D>) {
    glu::<ops::swiglu, D>(lab, reference::swiglu, SWIGLU_BUDGET);
}

/// gate = gelu(gate) up
pub fn geglu<D: Driver>(lab: &mut Lab<D>) {
    glu::<ops::geglu, D>(lab, reference::geglu, GEGLU_BUDGET);
}

fn glu<K, D: Driver>(lab: &mut Lab<D>, expected: fn(f32, f32) -> f64, budget: f64)
where
    K: Kernel<Args = (*mut f32, *const f32, u32)>,
{
    for n in [1, 255, 256, 257, 11008] {
        let up = lab.floats(n);
        let mut gate: Vec<f32> = (0..n).map(|_| lab.rng.random_range(-20.0..20.0)).collect();
        gate[n / 2] = -200.0;
        gate[n - 1] = 100.0;
        let (up_mem, y) = (lab.input(&up), lab.output(&gate));
        lab.launch::<K>(ops::elementwise_grid(n as u32), (y.pointer(), pointer::<D, _>(&up_mem), n as u32));
        for (i, &found) in lab.read::<f32>(&y).iter().enumerate() {
            let expected = expected(gate[i], up[i]);
            // The exponent's error is relative to it, and e^x makes it one of the result.
            let exponent = f64::from(gate[i].abs()) + f64::from(gate[i].abs()).powi(3) * 0.08;
            let error = budget * (1.0 + exponent) * expected.abs() + f64::EPSILON * f64::from((gate[i] * up[i]).abs());
            assert_close(found, expected, error + f64::from(f32::MIN_POSITIVE), || {
                format!("gate {}, {i} of {n}", gate[i])
            });
        }
    }
}

/// x = factor x
pub fn scale<D: Driver>(lab: &mut Lab<D>) {
    for n in [1, 255, 257, 3000] {
        let x = lab.floats(n);
        let y = lab.output(&x);
        lab.launch::<ops::scale>(ops::elementwise_grid(n as u32), (y.pointer(), n as u32, 5.5));
        let expected: Vec<f32> = x.iter().map(|x| 5.5 * x).collect();
        assert_eq!(lab.read::<f32>(&y), expected, "{n} elements");
    }
}

/// x = cap tanh(x / cap): tiny numbers, those around the cap, and those far beyond.
pub fn soft_cap<D: Driver>(lab: &mut Lab<D>) {
    for (n, cap) in [(1, 30.0), (255, 30.0), (3000, 0.5)] {
        let mut x: Vec<f32> = (0..n).map(|_| cap * lab.rng.random_range(-4.0..4.0)).collect();
        let special = [0.0, 1e-30, -1e-6 * cap, 0.12499 * cap, -0.125 * cap, 0.12501 * cap, 1e30, -f32::INFINITY];
        x.iter_mut().zip(special).for_each(|(x, special)| *x = special);
        let y = lab.output(&x);
        lab.launch::<ops::soft_cap>(ops::elementwise_grid(n as u32), (y.pointer(), n as u32, cap));
        for (i, (&x, &found)) in x.iter().zip(&lab.read::<f32>(&y)).enumerate() {
            let expected = reference::soft_cap(x.into(), cap.into());
            assert_close(found, expected, CAP_BUDGET * expected.abs(), || format!("cap {cap}: {x}, {i} of {n}"));
        }
    }
}

/// Rows in any order, also repeated.
pub fn gather_rows<D: Driver>(lab: &mut Lab<D>) {
    for n in [1, 32, 255, 300] {
        for rows in [&[4][..], &[0, 4, 1, 1]] {
            let x = lab.floats(5 * n);
            let (x_mem, rows_mem, y) = (lab.input(&x), lab.input(rows), lab.poisoned::<f32>(rows.len() * n));
            let args = (pointer::<D, _>(&x_mem), pointer::<D, _>(&rows_mem), y.pointer(), n as u32);
            lab.launch::<ops::gather_rows>(ops::gather_rows_grid(rows.len() as u32), args);
            let expected: Vec<f32> = rows.iter().flat_map(|&row: &u32| x[row as usize * n..][..n].to_vec()).collect();
            assert_eq!(lab.read::<f32>(&y), expected, "rows {rows:?} of {n} elements");
        }
    }
}
