//! The largest of a row of logits: their order, and how the CPU finds them.

use std::cmp::Ordering;

use super::{DeviceError, MAX_TOP_K};

/// A token and its logit, which is a finite number.
pub type Candidate = (u32, f32);

/// The order from the most likely token on. Of equal logits the one with the lower id comes first.
pub fn better(a: &Candidate, b: &Candidate) -> Ordering {
    b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal).then(a.0.cmp(&b.0))
}

/// Refuses a `k` that a device need not find.
pub(super) fn check(k: usize) -> Result<(), DeviceError> {
    match k {
        1..=MAX_TOP_K => Ok(()),
        _ => Err(DeviceError::Unsupported(format!("the {k} largest of a row, where 1 to {MAX_TOP_K} can be found"))),
    }
}

/// The `k` largest of `logits`, the most likely first; 0 means all, by id. Those that are no finite numbers are left out.
pub fn top_k(logits: &[f32], k: usize, kept: &mut Vec<Candidate>) {
    // One pass: what is not above the k-th best so far is passed over, which soon is nearly everything.
    let room = if k == 0 { usize::MAX } else { k.saturating_mul(4).max(256) };
    let mut floor = f32::NEG_INFINITY;
    kept.clear();
    for (id, &logit) in (0..).zip(logits) {
        if logit > floor && logit < f32::INFINITY {
            kept.push((id, logit));
            if kept.len() == room {
                floor = keep_best(kept, k);
            }
        }
    }
    if k > 0 {
        sort_best(kept, k);
    }
}

/// Leaves the best `k`, the most likely first.
pub fn sort_best(kept: &mut Vec<Candidate>, k: usize) {
    if kept.len() > k {
        keep_best(kept, k);
    }
    kept.sort_unstable_by(better);
}

/// Keeps the best `k`, and returns the least logit of them.
fn keep_best(kept: &mut Vec<Candidate>, k: usize) -> f32 {
    let (_, &mut (_, least), _) = kept.select_nth_unstable_by(k - 1, better);
    kept.truncate(k);
    least
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng, rngs::SmallRng};

    use super::*;

    #[test]
    fn top_k_is_the_start_of_the_sorted_vocabulary() {
        let mut rng = SmallRng::seed_from_u64(2);
        for vocab in [1, 10, 1000, 5000] {
            // Few different values, so that there are ties at the edge, and zeros of both signs, which are equal.
            let mut logits: Vec<f32> =
                (0..vocab).map(|_| rng.random_range(-30..30) as f32 * [0.25, -0.25][rng.random_range(0..2)]).collect();
            logits[vocab / 2] = f32::NAN;
            logits[vocab / 3] = f32::NEG_INFINITY;
            logits[vocab / 4] = f32::INFINITY;
            let by_id: Vec<Candidate> = (0..).zip(logits.iter().copied()).filter(|c| c.1.is_finite()).collect();
            let mut sorted = by_id.clone();
            // A stable sort: equal ones stay in order.
            sorted.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap());
            for k in [0, 1, 2, 40, 300, 4999, 6000] {
                let mut kept = vec![(9, 9.0)];
                top_k(&logits, k, &mut kept);
                let expected = if k == 0 { &by_id } else { &sorted[..k.min(sorted.len())] };
                assert_eq!(kept, expected, "{k} of {vocab}");
            }
        }
    }
}
