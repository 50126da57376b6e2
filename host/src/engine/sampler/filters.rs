//! From logits to the few tokens that one is drawn from.

use super::Sampling;
use crate::device::top_k::{Candidate, better};

/// Applies top-p and min-p to the tokens in `kept` and sorts those that are left, the most likely first.
///
/// Both keep the most likely tokens up to some place, so it does not matter which comes first, only that top-p's
/// probabilities are those before min-p. Min-p needs no order and comes first, so that less is sorted.
pub(super) fn top_p_and_min_p(kept: &mut Vec<Candidate>, sampling: &Sampling) {
    let best = kept.iter().map(|c| c.1).fold(f32::NEG_INFINITY, f32::max);
    let weight = |logit: f32| f64::from(logit - best).exp();
    let total: f64 = if sampling.top_p < 1.0 { kept.iter().map(|c| weight(c.1)).sum() } else { 0.0 };
    if sampling.min_p > 0.0 {
        let least = f64::from(best) + f64::from(sampling.min_p).ln();
        kept.retain(|c| f64::from(c.1) >= least);
    }
    kept.sort_unstable_by(better);
    if sampling.top_p < 1.0 {
        let mut sum = 0.0;
        let reached = kept.iter().position(|c| {
            sum += weight(c.1);
            sum >= f64::from(sampling.top_p) * total
        });
        kept.truncate(reached.map_or(kept.len(), |i| i + 1));
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng, rngs::SmallRng};

    use super::*;
    use crate::device::top_k::top_k;

    /// Both filters by their definitions, one after the other.
    fn reference(logits: &[f32], top_p: f64, min_p: f64) -> Vec<u32> {
        let mut sorted: Vec<(u32, f64)> = (0..).zip(logits.iter().map(|&l| f64::from(l).exp())).collect();
        sorted.sort_by(|a, b| b.1.total_cmp(&a.1));
        let total: f64 = sorted.iter().map(|c| c.1).sum();
        let mut sum = 0.0;
        let mut nucleus = Vec::new();
        for c in sorted {
            nucleus.push(c);
            sum += c.1 / total;
            if sum >= top_p {
                break;
            }
        }
        let most = nucleus[0].1;
        nucleus.iter().filter(|c| c.1 >= min_p * most).map(|c| c.0).collect()
    }

    #[test]
    fn agrees_with_the_definitions_on_random_data() {
        let mut rng = SmallRng::seed_from_u64(3);
        let mut shortened = [0; 2];
        for case in 0..500 {
            let logits: Vec<f32> = (0..60).map(|_| rng.random_range(-4.0..4.0)).collect();
            let (top_p, min_p): (f32, f32) = (rng.random_range(0.5..1.0), rng.random_range(0.0..0.2));
            let sampling = Sampling { top_p, min_p, ..Sampling::default() };
            let mut kept = Vec::new();
            top_k(&logits, 0, &mut kept);
            top_p_and_min_p(&mut kept, &sampling);
            let found: Vec<u32> = kept.iter().map(|c| c.0).collect();
            assert_eq!(found, reference(&logits, f64::from(top_p), f64::from(min_p)), "case {case}: {sampling:?}");
            shortened[0] += usize::from(found.len() < reference(&logits, 1.0, f64::from(min_p)).len());
            shortened[1] += usize::from(found.len() < reference(&logits, f64::from(top_p), 0.0).len());
        }
        assert!(shortened.iter().all(|&n| n > 50), "each filter decides some cases: {shortened:?}");
    }
}
