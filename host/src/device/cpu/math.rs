//! The arithmetic of the CPU device, one function per formula. Each gives the same bits whatever the number of threads.

use half::{f16, slice::HalfFloatSliceExt};

/// Sums kept apart so that the compiler can use vector registers; their order is fixed.
const LANES: usize = 16;

/// a . b
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let tail: f32 = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f32>() + tail
}

/// 1 / rms(x)
pub fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt()
}

/// x / (1 + e^-x)
pub fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

/// x Phi(x), approximated with a tanh (Hendrycks and Gimpel 2016): x (1 + tanh u) / 2 is x / (1 + e^-2u).
pub fn gelu_tanh(x: f32) -> f32 {
    let u = (2.0 / std::f32::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
    x / (1.0 + (-2.0 * u).exp())
}

/// cap tanh(x / cap)
pub fn soft_cap(x: f32, cap: f32) -> f32 {
    cap * (x / cap).tanh()
}

/// y = softmax(scale q K^T) V for one head, with scores bounded by `cap`; K and V are `[positions x d]`.
pub fn attend(q: &[f32], k: &[f16], v: &[f16], scale: f32, cap: Option<f32>, y: &mut [f32]) {
    let mut row = vec![0.0f32; q.len()];
    let mut weights: Vec<f32> = k
        .chunks_exact(q.len())
        .map(|k| {
            k.convert_to_f32_slice(&mut row);
            let score = dot(q, &row) * scale;
            cap.map_or(score, |cap| soft_cap(score, cap))
        })
        .collect();
    let max = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    weights.iter_mut().for_each(|w| *w = (*w - max).exp());
    let total: f32 = weights.iter().sum();
    y.fill(0.0);
    for (w, v) in weights.iter().zip(v.chunks_exact(q.len())) {
        v.convert_to_f32_slice(&mut row);
        y.iter_mut().zip(&row).for_each(|(y, v)| *y += w / total * v);
    }
}

/// The index of the largest element; the lowest wins a tie. None where no element is a number.
pub fn argmax(x: &[f32]) -> Option<u32> {
    let better = |best: Option<(u32, f32)>, (i, value): (u32, f32)| match best {
        Some((_, most)) if value <= most || value.is_nan() => best,
        None if value.is_nan() => None,
        _ => Some((i, value)),
    };
    (0..).zip(x.iter().copied()).fold(None, better).map(|(i, _)| i)
}
