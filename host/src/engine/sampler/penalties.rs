//! Penalties for tokens that have occurred before.

use super::{Logits, Sampling};

/// Lowers the logits of the tokens in the window at the end of `context`. Each token in it is treated once: the repeat
/// penalty first, then what is subtracted. To be called with what the model has computed, never with its own results.
pub(super) fn penalize<L: Logits + ?Sized>(
    logits: &mut L,
    context: &[u32],
    sampling: &Sampling,
    window: &mut Vec<u32>,
) {
    window.clear();
    window.extend_from_slice(sampling.window(context));
    window.sort_unstable();
    for same in window.chunk_by(|a, b| a == b) {
        let Some(logit) = logits.of(same[0]) else { continue };
        // Dividing a logit below 0 would make the token more likely.
        *logit = if *logit > 0.0 { *logit / sampling.repeat_penalty } else { *logit * sampling.repeat_penalty };
        *logit -= same.len() as f32 * sampling.frequency_penalty + sampling.presence_penalty;
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng, rngs::SmallRng};

    use super::*;

    /// The definition, token by token of the vocabulary.
    fn reference(logits: &[f32], context: &[u32], s: &Sampling) -> Vec<f32> {
        let window: Vec<u32> = match s.repeat_last_n {
            None => context.to_vec(),
            Some(n) => context.iter().rev().take(n).copied().collect(),
        };
        let penalized = logits.iter().enumerate().map(|(id, &logit)| {
            let count = window.iter().filter(|&&token| token as usize == id).count();
            let (mut x, n) = (f64::from(logit), count as f64);
            if count > 0 {
                let factor = f64::from(s.repeat_penalty);
                x = if x > 0.0 { x / factor } else { x * factor };
                x -= n * f64::from(s.frequency_penalty) + f64::from(s.presence_penalty);
            }
            x as f32
        });
        penalized.collect()
    }

    #[test]
    fn agrees_with_the_definition_on_random_data() {
        let mut rng = SmallRng::seed_from_u64(1);
        for case in 0..300 {
            let logits: Vec<f32> = (0..40).map(|_| rng.random_range(-8.0..8.0)).collect();
            // Some tokens are outside of the vocabulary.
            let context: Vec<u32> = (0..rng.random_range(0..100)).map(|_| rng.random_range(0..44)).collect();
            let sampling = Sampling {
                repeat_penalty: rng.random_range(0.5..2.0),
                frequency_penalty: rng.random_range(-1.0..1.0),
                presence_penalty: rng.random_range(-1.0..1.0),
                repeat_last_n: [None, Some(0), Some(1), Some(20), Some(200)][case % 5],
                ..Sampling::default()
            };
            let mut found = logits.clone();
            penalize(&mut found[..], &context, &sampling, &mut vec![7; 3]);
            for (id, (found, expected)) in found.iter().zip(reference(&logits, &context, &sampling)).enumerate() {
                assert!((found - expected).abs() < 1e-4, "case {case}, token {id}: {found} instead of {expected}");
            }
        }
    }

    #[test]
    fn the_repeat_penalty_counts_once() {
        let sampling = Sampling { repeat_penalty: 2.0, ..Sampling::default() };
        let mut logits = [4.0, -4.0, 4.0];
        penalize(&mut logits[..], &[0, 0, 0, 1, 1], &sampling, &mut Vec::new());
        assert_eq!(logits, [2.0, -8.0, 4.0]);
    }
}
