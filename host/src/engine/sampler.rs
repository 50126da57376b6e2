//! From logits to a token.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// How tokens are chosen. Filters apply in this order: top-k, top-p, temperature.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 always takes the most likely token.
    pub temperature: f32,
    /// Only the k most likely tokens; 0 means all.
    pub top_k: usize,
    /// Only the most likely tokens whose probabilities reach p together (Holtzman et al. 2020); 1 means all.
    pub top_p: f32,
    /// Of the random numbers.
    pub seed: u64,
}

impl Default for Sampling {
    /// What the command line takes where nothing is said, with a new seed each time.
    fn default() -> Self {
        Sampling { temperature: 0.8, top_k: 40, top_p: 0.95, seed: rand::random() }
    }
}

impl Sampling {
    /// Always the most likely token.
    pub fn greedy() -> Self {
        Sampling { temperature: 0.0, ..Self::default() }
    }

    /// Always the most likely token.
    pub fn is_greedy(&self) -> bool {
        self.temperature <= 0.0 || self.top_k == 1
    }
}

/// Draws tokens. The same seed and logits give the same tokens on every machine.
pub struct Sampler {
    sampling: Sampling,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// A sampler at the start of its seed's sequence.
    pub fn new(sampling: Sampling) -> Self {
        Sampler { sampling, rng: ChaCha8Rng::seed_from_u64(sampling.seed) }
    }

    /// How tokens are chosen.
    pub fn sampling(&self) -> &Sampling {
        &self.sampling
    }

    /// A token drawn from `logits`, `[vocab]`. None where no logit is a finite number.
    pub fn sample(&mut self, logits: &[f32]) -> Option<u32> {
        let mut candidates: Vec<(u32, f32)> =
            (0..).zip(logits.iter().copied()).filter(|(_, logit)| logit.is_finite()).collect();
        // Ties go to the lower id, so that the order does not depend on the sorting algorithm.
        let better = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        let keep = match self.sampling.top_k {
            _ if self.sampling.is_greedy() => 1,
            0 => candidates.len(),
            k => k,
        };
        if keep < candidates.len() {
            candidates.select_nth_unstable_by(keep, better);
            candidates.truncate(keep);
        }
        candidates.sort_unstable_by(better);
        if candidates.len() <= 1 {
            return candidates.first().map(|c| c.0);
        }

        let best = candidates[0].1;
        let mut probabilities = softmax(&candidates, best, 1.0);
        if self.sampling.top_p < 1.0 {
            let mut sum = 0.0;
            let reached = probabilities.iter().position(|p| {
                sum += p;
                sum >= f64::from(self.sampling.top_p)
            });
            candidates.truncate(reached.map_or(candidates.len(), |i| i + 1));
        }
        probabilities = softmax(&candidates, best, self.sampling.temperature);
        let mut rest = self.rng.random::<f64>();
        let drawn = probabilities.iter().position(|p| {
            rest -= p;
            rest < 0.0
        });
        Some(candidates[drawn.unwrap_or(candidates.len() - 1)].0)
    }
}

/// Probabilities of `candidates` at `temperature`.
fn softmax(candidates: &[(u32, f32)], best: f32, temperature: f32) -> Vec<f64> {
    let weights = candidates.iter().map(|&(_, logit)| (f64::from(logit - best) / f64::from(temperature)).exp());
    let weights: Vec<f64> = weights.collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|w| w / total).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(sampling: Sampling, logits: &[f32]) -> Vec<usize> {
        let mut sampler = Sampler::new(sampling);
        let mut counts = vec![0; logits.len()];
        for _ in 0..20_000 {
            counts[sampler.sample(logits).unwrap() as usize] += 1;
        }
        counts
    }

    const ALL: Sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, seed: 7 };

    #[test]
    fn draws_follow_the_distribution() {
        // Probabilities 0.5, 0.3, 0.2, in an order of their own.
        let logits = [0.2f32.ln(), 0.5f32.ln(), 0.3f32.ln()];
        let found = counts(ALL, &logits);
        for (count, p) in found.iter().zip([0.2, 0.5, 0.3]) {
            // Four standard deviations of a binomial.
            let n = 20_000.0f64;
            assert!((*count as f64 - n * p).abs() < 4.0 * (n * p * (1.0 - p)).sqrt(), "{found:?}");
        }
    }

    #[test]
    fn temperature_sharpens() {
        let logits = [0.0, 1.0];
        let p = |t: f64| 1.0 / (1.0 + (-1.0 / t).exp());
        for temperature in [0.5f32, 2.0] {
            let found = counts(Sampling { temperature, ..ALL }, &logits)[1] as f64 / 20_000.0;
            assert!((found - p(f64::from(temperature))).abs() < 0.02, "{temperature}: {found}");
        }
    }

    #[test]
    fn filters_cut_the_tail() {
        let logits = [0.1f32.ln(), 0.4f32.ln(), 0.3f32.ln(), 0.2f32.ln()];
        let drawn = |s: Sampling| counts(s, &logits).iter().map(|&c| c > 0).collect::<Vec<_>>();
        assert_eq!(drawn(Sampling { top_k: 2, ..ALL }), [false, true, true, false]);
        // 0.4 + 0.3 do not reach 0.75, 0.2 more does.
        assert_eq!(drawn(Sampling { top_p: 0.75, ..ALL }), [false, true, true, true]);
        assert_eq!(drawn(Sampling { top_p: 0.4, ..ALL }), [false, true, false, false]);
        assert_eq!(drawn(Sampling { temperature: 0.0, ..ALL }), [false, true, false, false]);
    }

    #[test]
    fn seeds_repeat_and_differ() {
        let logits: Vec<f32> = (0..50).map(|i| (i as f32 * 0.37).sin()).collect();
        let run = |seed| {
            let mut sampler = Sampler::new(Sampling { seed, ..ALL });
            (0..20).map(|_| sampler.sample(&logits).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }

    #[test]
    fn no_number_no_token() {
        let mut sampler = Sampler::new(ALL);
        assert_eq!(sampler.sample(&[f32::NAN, f32::INFINITY]), None);
        assert_eq!(sampler.sample(&[f32::NAN, 0.0, f32::NEG_INFINITY]), Some(1));
        assert_eq!(
            Sampler::new(Sampling { temperature: 0.0, ..ALL }).sample(&[1.0, 1.0]),
            Some(0),
            "ties: the lower id"
        );
    }
}
