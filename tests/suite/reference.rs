//! What the kernels compute, written naively in f64.

/// A sum and the sum of its terms' magnitudes, to which a budget for rounding errors is relative.
#[derive(Clone, Copy, Default)]
pub struct Sum {
    /// The sum.
    pub value: f64,
    /// The sum of the terms' magnitudes.
    pub magnitude: f64,
}

impl Sum {
    /// Adds a term.
    pub fn add(&mut self, term: f64) {
        self.value += term;
        self.magnitude += term.abs();
    }
}

/// sum a\[i\] b\[i\]
pub fn dot(a: &[impl Copy + Into<f64>], b: &[f32]) -> Sum {
    assert_eq!(a.len(), b.len());
    let mut sum = Sum::default();
    for (&a, &b) in a.iter().zip(b) {
        sum.add(a.into() * f64::from(b));
    }
    sum
}

/// weight\[i\] x\[i\] / sqrt(mean of x^2 + eps)
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32) -> Vec<f64> {
    let mean = dot(x, x).value / x.len() as f64;
    let scale = 1.0 / (mean + f64::from(eps)).sqrt();
    x.iter().zip(weight).map(|(&x, &w)| f64::from(w) * f64::from(x) * scale).collect()
}

/// One head's vector with the pairs `pair(i)` rotated by the angles whose cosine and sine are given.
pub fn rope(x: &[impl Copy + Into<f64>], cos: &[f32], sin: &[f32], pair: impl Fn(usize) -> (usize, usize)) -> Vec<f64> {
    let mut y: Vec<f64> = x.iter().map(|&x| x.into()).collect();
    for (i, (&cos, &sin)) in cos.iter().zip(sin).enumerate() {
        let (a, b) = pair(i);
        let (u, v): (f64, f64) = (x[a].into(), x[b].into());
        y[a] = u * f64::from(cos) - v * f64::from(sin);
        y[b] = u * f64::from(sin) + v * f64::from(cos);
    }
    y
}

/// softmax(scale q K^T) V of one head, with one key and one value a position, and scores within `cap` unless that is 0. Beside
/// the result, the largest magnitude
/// sum of a score: a score's rounding error is relative to it, and shifts the result by as much again.
pub fn attention(
    q: &[impl Copy + Into<f64>],
    keys: &[&[f32]],
    values: &[&[f32]],
    scale: f32,
    cap: f32,
) -> (Vec<Sum>, f64) {
    let scores: Vec<Sum> = keys.iter().map(|key| dot(q, key)).collect();
    let scale = f64::from(scale);
    let capped: Vec<f64> = scores.iter().map(|s| soft_cap(s.value * scale, cap.into())).collect();
    let largest = capped.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = capped.iter().map(|s| (s - largest).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut y = vec![Sum::default(); q.len()];
    for (weight, value) in weights.iter().zip(values) {
        for (y, &v) in y.iter_mut().zip(*value) {
            y.add(weight / total * f64::from(v));
        }
    }
    (y, scores.iter().map(|s| s.magnitude * scale.abs()).fold(0.0, f64::max))
}

/// silu(gate) up
pub fn swiglu(gate: f32, up: f32) -> f64 {
    let gate = f64::from(gate);
    gate / (1.0 + (-gate).exp()) * f64::from(up)
}

/// gelu(gate) up, with the tanh
pub fn geglu(gate: f32, up: f32) -> f64 {
    let gate = f64::from(gate);
    let u = (2.0 / std::f64::consts::PI).sqrt() * (gate + 0.044715 * gate.powi(3));
    0.5 * gate * (1.0 + u.tanh()) * f64::from(up)
}

/// cap tanh(x / cap), or x where the cap is 0
pub fn soft_cap(x: f64, cap: f64) -> f64 {
    if cap == 0.0 { x } else { cap * (x / cap).tanh() }
}

/// The index of the largest number; the lowest wins a tie; `u32::MAX` if there is none.
pub fn argmax(x: &[f32]) -> u32 {
    let mut best: Option<usize> = None;
    for (i, value) in x.iter().enumerate().filter(|(_, value)| !value.is_nan()) {
        if best.is_none_or(|best| *value > x[best]) {
            best = Some(i);
        }
    }
    best.map_or(u32::MAX, |best| best as u32)
}

/// The `k` largest finite numbers and their indices; of equal ones the lower index comes first.
pub fn top_k(x: &[f32], k: usize) -> Vec<(u32, f32)> {
    let mut sorted: Vec<(u32, f32)> = (0..).zip(x.iter().copied()).filter(|(_, value)| value.is_finite()).collect();
    // A stable sort: equal ones stay in order.
    sorted.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap());
    sorted.truncate(k);
    sorted
}
