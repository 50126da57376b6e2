//! How fast a model processes prompts and generates.

use std::{
    fmt,
    ops::Range,
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{EngineError, Runner};
use crate::model::Flowed;

/// What is measured: a prompt, then generated tokens, after `depth` tokens that are in the KV cache already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Tokens of a prompt: as many in a pass as the engine takes.
    pub prompt: usize,
    /// Tokens of an answer: one in a pass.
    pub generate: usize,
    /// Tokens before them.
    pub depth: usize,
}

impl Workload {
    /// Tokens that are computed in the measured time.
    pub fn tokens(&self) -> usize {
        self.prompt.saturating_add(self.generate)
    }

    /// Tokens are generated, and nothing else is measured.
    pub fn is_answer(&self) -> bool {
        self.prompt == 0 && self.generate > 0
    }

    /// Positions that it takes in the KV cache.
    pub fn context(&self) -> usize {
        self.depth.saturating_add(self.tokens())
    }
}

/// As llama-bench names it: `pp512`, `tg128 @ d4096`, `pp512+tg128`.
impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match (self.prompt, self.generate) {
            (prompt, 0) => format!("pp{prompt}"),
            (0, generate) => format!("tg{generate}"),
            (prompt, generate) => format!("pp{prompt}+tg{generate}"),
        };
        f.pad(&match self.depth {
            0 => name,
            depth => format!("{name} @ d{depth}"),
        })
    }
}

/// How far a measurement is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// So many tokens are in the cache, of all that the depth asks for.
    Fill(usize),
    /// The run whose time does not count.
    WarmUp,
    /// So many repetitions have been measured.
    Repetition(usize),
    /// Some tokens whose launches are timed.
    Profile,
}

/// A workload's times.
#[derive(Clone, Debug)]
pub struct Measured {
    /// What was measured.
    pub workload: Workload,
    /// Passes over the weights in each repetition.
    pub passes: usize,
    /// The time of each repetition.
    pub samples: Vec<Duration>,
    /// What was streamed in all of them; none where nothing is.
    pub flowed: Option<Flowed>,
}

impl Measured {
    /// Tokens per second of each repetition.
    pub fn rates(&self) -> Vec<f64> {
        let tokens = self.workload.tokens() as f64;
        self.samples.iter().map(|time| tokens / time.as_secs_f64().max(1e-9)).collect()
    }

    /// Bytes of weights per second, at `rate` tokens per second, where a pass reads `per_pass` bytes.
    pub fn bandwidth(&self, rate: f64, per_pass: u64) -> f64 {
        rate * self.passes as f64 / self.workload.tokens() as f64 * per_pass as f64
    }
}

/// The arithmetic mean, and the sample standard deviation (divisor n - 1; 0 for a single value).
pub fn mean_and_deviation(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, if values.len() < 2 { 0.0 } else { (squares / (n - 1.0)).sqrt() })
}

/// Measures one workload after the other. The tokens are random, and the same in every run.
pub struct Bench<'a> {
    pub(super) runner: &'a mut dyn Runner,
    rng: ChaCha8Rng,
    /// Positions of the KV cache, from 0 on, that hold what the next workload may build on.
    filled: usize,
}

impl<'a> Bench<'a> {
    /// A bench with nothing in the cache.
    pub fn new(runner: &'a mut dyn Runner) -> Self {
        Bench { runner, rng: ChaCha8Rng::seed_from_u64(0), filled: 0 }
    }

    /// Fills the cache to the workload's depth, warms up (the prompt once, one generated token), and measures `repetitions`
    /// runs, each of which starts at that depth again.
    ///
    /// In the measured time are the passes, and what choosing the next token greedily takes: its search on the device and
    /// the way of its id to the host, after every generated token and once after a prompt. Not in it are drawing the random
    /// tokens, sampling, and text.
    ///
    /// # Errors
    /// A workload that the context does not hold, the device's errors, or logits that are not numbers.
    pub fn measure(
        &mut self,
        workload: Workload,
        repetitions: usize,
        progress: &mut dyn FnMut(Stage),
    ) -> Result<Measured, EngineError> {
        self.fill(workload.depth, progress)?;
        progress(Stage::WarmUp);
        let tokens = self.tokens(workload.tokens());
        self.run(&Workload { generate: workload.generate.min(1), ..workload }, &tokens)?;
        let before = self.runner.flowed()?;
        let (mut samples, mut passes) = (Vec::new(), 0);
        for done in 0..repetitions {
            progress(Stage::Repetition(done));
            let tokens = self.tokens(workload.tokens());
            let started = Instant::now();
            passes = self.run(&workload, &tokens)?;
            samples.push(started.elapsed());
        }
        let flowed = before.zip(self.runner.flowed()?).map(|(before, now)| now.since(&before));
        Ok(Measured { workload, passes, samples, flowed })
    }

    /// Puts tokens at the positions up to `depth` that have none yet. What lies behind will be overwritten.
    pub(super) fn fill(&mut self, depth: usize, progress: &mut dyn FnMut(Stage)) -> Result<(), EngineError> {
        while self.filled < depth {
            progress(Stage::Fill(self.filled));
            let chunk = self.tokens((depth - self.filled).min(self.runner.max_batch()));
            self.runner.pass(&chunk, self.filled, 0)?;
            self.filled += chunk.len();
        }
        self.filled = depth;
        Ok(())
    }

    /// One run over `tokens`, its prompt and its generated tokens, and the passes that it took.
    pub(super) fn run(&mut self, workload: &Workload, tokens: &[u32]) -> Result<usize, EngineError> {
        let (prompt, generated) = tokens.split_at(workload.prompt);
        let (mut start, mut passes) = (workload.depth, 0);
        let prompt_end = start + prompt.len();
        let single = generated[..workload.generate].chunks(1);
        for chunk in prompt.chunks(self.runner.max_batch()).chain(single) {
            let end = start + chunk.len();
            let wanted = end >= prompt_end;
            self.runner.pass(chunk, start, usize::from(wanted))?;
            if wanted && self.runner.argmax()?.is_none() {
                return Err(EngineError::NotANumber { file: self.runner.config().file.clone(), position: end - 1 });
            }
            (start, passes) = (end, passes + 1);
        }
        Ok(passes)
    }

    pub(super) fn tokens(&mut self, count: usize) -> Vec<u32> {
        let ids: Range<u32> = 0..self.runner.config().dims.vocab as u32;
        (0..count).map(|_| self.rng.random_range(ids.clone())).collect()
    }
}
