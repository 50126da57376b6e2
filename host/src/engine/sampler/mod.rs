//! From logits to a token.

mod filters;
mod penalties;
mod settings;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::grammar::{Grammar, GrammarError};
use crate::device::{
    MAX_TOP_K,
    top_k::{Candidate, sort_best, top_k},
};
pub use settings::{Sampling, SamplingError};

/// Why no token can be chosen.
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    /// No logit is a finite number.
    #[error("the model's logits are not numbers")]
    NotANumber,
    /// All tokens are banned.
    #[error("the logit bias bans every token that could follow{}", if *grammar { " in the grammar" } else { "" })]
    NothingAllowed {
        /// Whether a grammar left only some.
        grammar: bool,
    },
    /// The grammar does not go on.
    #[error(transparent)]
    Grammar(#[from] GrammarError),
}

/// What the next token can be drawn from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The most likely token.
    Best,
    /// So many of the most likely tokens, and their logits.
    Top(usize),
    /// All logits.
    All,
}

/// Logits that are changed one by one.
trait Logits {
    /// A token's logit, if it is among them.
    fn of(&mut self, token: u32) -> Option<&mut f32>;
}

/// Of all tokens.
impl Logits for [f32] {
    fn of(&mut self, token: u32) -> Option<&mut f32> {
        self.get_mut(token as usize)
    }
}

/// Of some tokens, by ascending id.
impl Logits for [Candidate] {
    fn of(&mut self, token: u32) -> Option<&mut f32> {
        let found = self.binary_search_by_key(&token, |c| c.0).ok()?;
        Some(&mut self[found].1)
    }
}

/// Draws tokens. The same seed, logits and context give the same tokens on every machine.
pub struct Sampler {
    sampling: Sampling,
    rng: ChaCha8Rng,
    grammar: Option<Grammar>,
    /// Working memory, kept from token to token.
    logits: Vec<f32>,
    kept: Vec<Candidate>,
    window: Vec<u32>,
}

impl Sampler {
    /// A sampler at the start of its seed's sequence. With a grammar, what it draws is a text of the grammar.
    pub fn new(sampling: Sampling, grammar: Option<Grammar>) -> Self {
        let rng = ChaCha8Rng::seed_from_u64(sampling.seed);
        Sampler { sampling, rng, grammar, logits: Vec::new(), kept: Vec::new(), window: Vec::new() }
    }

    /// The least that gives the token after `context` which all logits would give.
    pub fn wants(&self, context: &[u32]) -> Wanted {
        let (sampling, limit) = (&self.sampling, self.sampling.limit());
        // A grammar may allow but what is unlikely, what is raised may come from anywhere, and without top-k the
        // probabilities are those among all.
        if self.grammar.is_some() || sampling.raises_logits() || limit == 0 {
            return Wanted::All;
        }
        if limit == 1 && !sampling.changes_logits() {
            return Wanted::Best;
        }
        // What is lowered can make way for others, each for one. The others stay where they were among themselves, and what
        // was behind them stays behind them.
        let penalized = if sampling.penalizes() { sampling.window(context).len() } else { 0 };
        match limit.saturating_add(penalized + sampling.logit_bias.len()) {
            k @ ..=MAX_TOP_K => Wanted::Top(k),
            _ => Wanted::All,
        }
    }

    /// Whether a grammar is at its end, and nothing can follow.
    pub fn is_complete(&self) -> bool {
        self.grammar.as_ref().is_some_and(Grammar::is_complete)
    }

    /// Whether a grammar wants more text before it may end.
    pub fn is_unfinished(&mut self) -> bool {
        self.grammar.as_mut().is_some_and(|grammar| !grammar.may_end())
    }

    /// A token drawn from `logits`, `[vocab]`, as the model computed them. `context` is all tokens so far, of the prompt and
    /// of what was drawn, for the penalties.
    ///
    /// # Errors
    /// When no logit is a finite number, nothing is allowed, or the grammar takes too much work.
    pub fn sample(&mut self, logits: &[f32], context: &[u32]) -> Result<u32, SampleError> {
        // A copy, so that nothing is applied twice.
        self.logits.clear();
        self.logits.extend_from_slice(logits);
        if let Some(grammar) = &mut self.grammar {
            grammar.mask(&mut self.logits)?;
        }
        change(&mut self.logits[..], context, &self.sampling, &mut self.window);
        top_k(&self.logits, self.sampling.limit(), &mut self.kept);
        let token = self.choose().ok_or_else(|| match logits.iter().any(|logit| logit.is_finite()) {
            true => SampleError::NothingAllowed { grammar: self.grammar.is_some() },
            false => SampleError::NotANumber,
        })?;
        if let Some(grammar) = &mut self.grammar {
            grammar.accept(token)?;
        }
        Ok(token)
    }

    /// The token that [`Sampler::sample`] would draw from all logits, where [`Sampler::wants`] says [`Wanted::Top`]: drawn from
    /// that many of the most likely tokens, or all whose logits are finite numbers.
    ///
    /// # Errors
    /// When there are none, or none is allowed.
    pub fn sample_top(&mut self, mut candidates: Vec<Candidate>, context: &[u32]) -> Result<u32, SampleError> {
        if candidates.is_empty() {
            return Err(SampleError::NotANumber);
        }
        candidates.sort_unstable_by_key(|c| c.0);
        change(&mut candidates[..], context, &self.sampling, &mut self.window);
        candidates.retain(|c| c.1.is_finite());
        sort_best(&mut candidates, self.sampling.limit());
        self.kept = candidates;
        self.choose().ok_or(SampleError::NothingAllowed { grammar: false })
    }

    /// One of the tokens in `kept`. None where there is none.
    fn choose(&mut self) -> Option<u32> {
        let kept = &mut self.kept;
        if kept.len() <= 1 {
            return kept.first().map(|c| c.0);
        }
        filters::top_p_and_min_p(kept, &self.sampling);
        let best = kept[0].1;
        let temperature = f64::from(self.sampling.temperature);
        let weight = |&(_, logit): &Candidate| (f64::from(logit - best) / temperature).exp();
        let total: f64 = kept.iter().map(weight).sum();
        let mut rest = self.rng.random::<f64>() * total;
        let drawn = kept.iter().position(|c| {
            rest -= weight(c);
            rest < 0.0
        });
        Some(kept[drawn.unwrap_or(kept.len() - 1)].0)
    }
}

/// Applies logit bias and penalties.
fn change<L: Logits + ?Sized>(logits: &mut L, context: &[u32], sampling: &Sampling, window: &mut Vec<u32>) {
    for &(token, bias) in &sampling.logit_bias {
        if let Some(logit) = logits.of(token) {
            *logit += bias;
        }
    }
    if sampling.penalizes() {
        penalties::penalize(logits, context, sampling, window);
    }
}

#[cfg(test)]
mod generation;

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(sampling: Sampling, logits: &[f32]) -> Vec<usize> {
        let mut sampler = Sampler::new(sampling, None);
        let mut counts = vec![0; logits.len()];
        for _ in 0..20_000 {
            counts[sampler.sample(logits, &[]).unwrap() as usize] += 1;
        }
        counts
    }

    /// No filter, no penalty.
    fn all() -> Sampling {
        Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 7, ..Sampling::default() }
    }

    #[test]
    fn draws_follow_the_distribution() {
        // Probabilities 0.5, 0.3, 0.2, in an order of their own.
        let logits = [0.2f32.ln(), 0.5f32.ln(), 0.3f32.ln()];
        let found = counts(all(), &logits);
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
            let found = counts(Sampling { temperature, ..all() }, &logits)[1] as f64 / 20_000.0;
            assert!((found - p(f64::from(temperature))).abs() < 0.02, "{temperature}: {found}");
        }
    }

    #[test]
    fn filters_cut_the_tail() {
        let logits = [0.1f32.ln(), 0.4f32.ln(), 0.3f32.ln(), 0.2f32.ln()];
        let drawn = |s: Sampling| counts(s, &logits).iter().map(|&c| c > 0).collect::<Vec<_>>();
        assert_eq!(drawn(Sampling { top_k: 2, ..all() }), [false, true, true, false]);
        // 0.4 + 0.3 do not reach 0.75, 0.2 more does.
        assert_eq!(drawn(Sampling { top_p: 0.75, ..all() }), [false, true, true, true]);
        assert_eq!(drawn(Sampling { top_p: 0.4, ..all() }), [false, true, false, false]);
        assert_eq!(drawn(Sampling { temperature: 0.0, ..all() }), [false, true, false, false]);
    }

    #[test]
    fn seeds_repeat_and_differ() {
        let logits: Vec<f32> = (0..50).map(|i| (i as f32 * 0.37).sin()).collect();
        let run = |seed| {
            let mut sampler = Sampler::new(Sampling { seed, ..all() }, None);
            (0..20).map(|_| sampler.sample(&logits, &[]).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }

    #[test]
    fn min_p_is_relative_to_the_most_likely() {
        let logits = [0.1f32.ln(), 0.4f32.ln(), 0.3f32.ln(), 0.2f32.ln()];
        let drawn = |s: Sampling| counts(s, &logits).iter().map(|&c| c > 0).collect::<Vec<_>>();
        // Half of 0.4 is the limit for 0.26, not for 0.2 and 0.1. An absolute 0.55 would leave nothing but the best.
        assert_eq!(drawn(Sampling { min_p: 0.55, ..all() }), [false, true, true, false]);
        assert_eq!(drawn(Sampling { min_p: 0.24, ..all() }), [true; 4]);
        assert_eq!(drawn(Sampling { min_p: 1.0, ..all() }), [false, true, false, false]);
        // A higher temperature changes the odds among those that are left, and not which are left.
        assert_eq!(drawn(Sampling { min_p: 0.55, temperature: 5.0, ..all() }), [false, true, true, false]);
    }

    #[test]
    fn the_odds_among_the_kept_stay() {
        let logits = [0.1f32.ln(), 0.4f32.ln(), 0.3f32.ln(), 0.2f32.ln()];
        let n = 20_000.0f64;
        for sampling in
            [Sampling { min_p: 0.55, ..all() }, Sampling { top_k: 2, ..all() }, Sampling { top_p: 0.7, ..all() }]
        {
            let found = counts(sampling.clone(), &logits)[1] as f64;
            let p = 4.0 / 7.0;
            assert!((found - n * p).abs() < 4.0 * (n * p * (1.0 - p)).sqrt(), "{sampling:?}: {found} of {n}");
        }
    }

    #[test]
    fn bias_shifts_the_odds_and_bans() {
        let logits = [1.0, 1.0, 1.0];
        let bias = |logit_bias: &[(u32, f32)]| Sampling { logit_bias: logit_bias.to_vec(), ..all() };
        let found = counts(bias(&[(0, f32::NEG_INFINITY), (1, 3f32.ln())]), &logits);
        assert_eq!(found[0], 0);
        let (n, p) = (20_000.0f64, 0.75);
        assert!((found[1] as f64 - n * p).abs() < 4.0 * (n * p * (1.0 - p)).sqrt(), "{found:?}");
        // Two for the same token add up.
        let greedy = Sampling { temperature: 0.0, ..bias(&[(2, 1.0), (2, 1.0), (1, 1.5)]) };
        assert_eq!(Sampler::new(greedy, None).sample(&logits, &[]).unwrap(), 2);
        let none = Sampler::new(bias(&[(0, f32::NEG_INFINITY)]), None).sample(&[1.0], &[]);
        assert!(matches!(none, Err(SampleError::NothingAllowed { grammar: false })), "{none:?}");
    }

    #[test]
    fn penalties_apply_to_what_the_model_computed_each_time() {
        // After one penalty of 1 token 0 leads by 0.5. A second one on top of it, from step to step or within one, and it
        // would not lead any more.
        let logits = [1.5, 0.0];
        let penalties = [Sampling { presence_penalty: 1.0, ..all() }, Sampling { repeat_penalty: 3.0, ..all() }];
        for sampling in penalties {
            let mut sampler = Sampler::new(Sampling { temperature: 0.0, ..sampling }, None);
            let mut context = vec![0];
            for _ in 0..50 {
                assert_eq!(sampler.sample(&logits, &context).unwrap(), 0);
                context.push(0);
            }
            assert_eq!(sampler.logits, [0.5, 0.0]);
        }
    }

    #[test]
    fn the_window_forgets() {
        let sampling = Sampling { presence_penalty: 2.0, repeat_last_n: Some(2), temperature: 0.0, ..all() };
        let mut sampler = Sampler::new(sampling, None);
        assert_eq!(sampler.sample(&[1.0, 0.0], &[0, 1, 1]).unwrap(), 0);
        assert_eq!(sampler.sample(&[1.0, 0.0], &[1, 0, 1]).unwrap(), 0, "both are in the window");
        assert_eq!(sampler.sample(&[1.0, 0.0], &[1, 0, 0]).unwrap(), 1);
    }

    #[test]
    fn settings_want_the_best_the_top_or_all() {
        use Wanted::*;
        let wants = |s: Sampling| Sampler::new(s, None).wants(&[1; 2000]);
        let (greedy, usual) = (Sampling::greedy, Sampling::default);
        let lowers = [
            Sampling { repeat_penalty: 1.1, ..usual() },
            Sampling { frequency_penalty: 0.1, ..usual() },
            Sampling { presence_penalty: 0.1, ..usual() },
        ];
        let raises = [
            Sampling { repeat_penalty: 0.9, ..usual() },
            Sampling { frequency_penalty: -0.1, ..usual() },
            Sampling { presence_penalty: -0.1, ..usual() },
        ];
        assert_eq!(wants(greedy()), Best);
        assert_eq!(wants(Sampling { top_k: 1, ..usual() }), Best);
        assert_eq!(wants(usual()), Top(40));
        assert_eq!(wants(Sampling { top_k: MAX_TOP_K, ..usual() }), Top(MAX_TOP_K));
        assert_eq!(wants(Sampling { top_k: MAX_TOP_K + 1, ..usual() }), All);
        assert_eq!(wants(Sampling { top_k: usize::MAX, logit_bias: vec![(1, -1.0)], ..usual() }), All);
        assert_eq!(wants(Sampling { top_k: 0, ..usual() }), All);
        for lowers in lowers {
            assert_eq!(wants(lowers.clone()), Top(104));
            assert_eq!(
                wants(Sampling { logit_bias: vec![(1, -1.0), (1, f32::NEG_INFINITY)], ..lowers.clone() }),
                Top(106)
            );
            assert_eq!(wants(Sampling { logit_bias: vec![(1, 1.0)], ..lowers.clone() }), All);
            assert_eq!(wants(Sampling { temperature: 0.0, ..lowers.clone() }), Top(65));
            assert_eq!(wants(Sampling { repeat_last_n: Some(0), ..lowers.clone() }), Top(40));
            assert_eq!(wants(Sampling { repeat_last_n: None, ..lowers.clone() }), All, "2000 and 40 are too many");
            assert_eq!(Sampler::new(Sampling { repeat_last_n: None, ..lowers }, None).wants(&[1; 900]), Top(940));
        }
        for raises in raises {
            assert_eq!(wants(raises.clone()), All);
            assert_eq!(wants(Sampling { repeat_last_n: Some(0), temperature: 0.0, ..raises }), Best);
        }
    }

    #[test]
    fn settings_are_checked_and_told() {
        assert_eq!(Sampling::default().check(10), Ok(()));
        let bad = |sampling: Sampling| sampling.check(10).unwrap_err().to_string();
        assert_eq!(bad(Sampling { top_p: 0.0, ..all() }), "top-p is 0; it has to be above 0 and up to 1");
        assert_eq!(bad(Sampling { min_p: -0.1, ..all() }), "min-p is -0.1; it has to be 0 to 1");
        assert_eq!(
            bad(Sampling { repeat_penalty: 0.0, ..all() }),
            "the repeat penalty is 0; it has to be a number above 0"
        );
        assert!(bad(Sampling { temperature: f32::NAN, ..all() }).starts_with("the temperature is NaN"));
        assert!(
            bad(Sampling { frequency_penalty: f32::INFINITY, ..all() }).starts_with("the frequency penalty is inf")
        );
        let bias = |token, bias| Sampling { logit_bias: vec![(token, bias)], ..all() };
        assert_eq!(bad(bias(10, 1.0)), "logit bias: there is no token 10; the model has the tokens 0 to 9");
        assert!(bad(bias(1, f32::INFINITY)).starts_with("a logit bias is inf"));
        assert_eq!(bias(1, f32::NEG_INFINITY).check(10), Ok(()));
        assert_eq!(
            Sampling { logit_bias: vec![(5, 1.5), (6, f32::NEG_INFINITY)], seed: 0, ..Sampling::default() }.to_string(),
            "repeat penalty 1, frequency penalty 0, presence penalty 0 (over the last 64 tokens), top-k 40, top-p 0.95, \
             min-p 0.05, temperature 0.8, logit bias 5+1.5 6-inf, seed 0"
        );
    }

    #[test]
    fn no_number_no_token() {
        let mut sampler = Sampler::new(all(), None);
        assert!(matches!(sampler.sample(&[f32::NAN, f32::INFINITY], &[]), Err(SampleError::NotANumber)));
        assert_eq!(sampler.sample(&[f32::NAN, 0.0, f32::NEG_INFINITY], &[]).unwrap(), 1);
        let mut greedy = Sampler::new(Sampling { temperature: 0.0, ..all() }, None);
        assert_eq!(greedy.sample(&[1.0, 1.0], &[]).unwrap(), 0, "ties: the lower id");
    }
}
