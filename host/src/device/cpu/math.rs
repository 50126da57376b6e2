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

/// y = x / rms(x) * w
pub fn rms_norm(x: &[f32], w: &[f32], eps: f32, y: &mut [f32]) {
    let scale = 1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt();
    for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
        *y = x * scale * w;
    }
}

/// y = softmax(q K^T / sqrt(d)) V for one head; K and V are `[positions x d]`.
pub fn attend(q: &[f32], k: &[f16], v: &[f16], y: &mut [f32]) {
    let mut row = vec![0.0f32; q.len()];
    let scale = 1.0 / (q.len() as f32).sqrt();
    let mut weights: Vec<f32> = k
        .chunks_exact(q.len())
        .map(|k| {
            k.convert_to_f32_slice(&mut row);
            dot(q, &row) * scale
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
