//! Continuing a prompt, token by token.

use std::time::{Duration, Instant};

use super::{EngineError, Runner, Sampler};
use crate::model::Config;

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The model ended its text.
    End,
    /// As many tokens as asked for.
    Length,
    /// The caller asked to stop.
    Interrupted,
}

/// What generation tells its caller while it runs. The caller answers whether to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// So many tokens of the prompt have been processed.
    Prompt(usize),
    /// The next token of the text.
    Token(u32),
}

/// Tokens and the time they took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timing {
    /// Tokens processed.
    pub tokens: usize,
    /// Passes over the weights.
    pub passes: usize,
    /// Time taken.
    pub time: Duration,
}

impl Timing {
    /// Tokens per second.
    pub fn rate(&self) -> f64 {
        if self.time.is_zero() { 0.0 } else { self.tokens as f64 / self.time.as_secs_f64() }
    }
}

/// The outcome of a generation.
#[derive(Clone, Debug)]
pub struct Generated {
    /// The new tokens, without the one that ended the text.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub stop: Stop,
    /// Processing the prompt, up to the first new token's logits.
    pub prompt: Timing,
    /// The passes that computed further tokens.
    pub decode: Timing,
}

/// Whether `prompt` can be continued by `max_new` tokens; to be asked before the weights are loaded.
///
/// # Errors
/// An empty prompt, or more tokens than the context holds.
pub fn check_length(config: &Config, prompt: &[u32], max_new: usize) -> Result<(), EngineError> {
    let (tokens, context) = (prompt.len().saturating_add(max_new), config.dims.context);
    if prompt.is_empty() {
        return Err(EngineError::EmptyPrompt);
    }
    if tokens > context {
        return Err(EngineError::Context { prompt: prompt.len(), max_new, context, trained: config.trained_context });
    }
    Ok(())
}

/// Continues `prompt` by up to `max_new` tokens, until `is_end` accepts one.
///
/// # Errors
/// Before anything is computed: an empty prompt, or one that does not fit into the context with `max_new` tokens. Later:
/// the device's errors, or logits that are not numbers.
pub fn generate(
    runner: &mut dyn Runner,
    prompt: &[u32],
    max_new: usize,
    sampler: &mut Sampler,
    is_end: &dyn Fn(u32) -> bool,
    go_on: &mut dyn FnMut(Event) -> bool,
) -> Result<Generated, EngineError> {
    check_length(runner.config(), prompt, max_new)?;
    let mut out =
        Generated { tokens: Vec::new(), stop: Stop::Length, prompt: Timing::default(), decode: Timing::default() };

    let started = Instant::now();
    for chunk in prompt.chunks(runner.max_batch()) {
        let last = out.prompt.tokens + chunk.len() == prompt.len();
        runner.pass(chunk, out.prompt.tokens, usize::from(last))?;
        out.prompt.tokens += chunk.len();
        out.prompt.passes += 1;
        out.prompt.time = started.elapsed();
        if !go_on(Event::Prompt(out.prompt.tokens)) {
            out.stop = Stop::Interrupted;
            return Ok(out);
        }
    }
    if max_new == 0 {
        return Ok(out);
    }
    let mut next = choose(runner, sampler, prompt.len() - 1)?;
    out.prompt.time = started.elapsed();

    let started = Instant::now();
    loop {
        if is_end(next) {
            out.stop = Stop::End;
            break;
        }
        out.tokens.push(next);
        if !go_on(Event::Token(next)) {
            out.stop = Stop::Interrupted;
            break;
        }
        if out.tokens.len() == max_new {
            break;
        }
        let position = prompt.len() + out.tokens.len() - 1;
        runner.pass(&[next], position, 1)?;
        out.decode.tokens += 1;
        out.decode.passes += 1;
        next = choose(runner, sampler, position)?;
    }
    out.decode.time = started.elapsed();
    Ok(out)
}

/// The token that follows `position`.
fn choose(runner: &mut dyn Runner, sampler: &mut Sampler, position: usize) -> Result<u32, EngineError> {
    let token = if sampler.sampling().is_greedy() { runner.argmax()? } else { sampler.sample(&runner.logits()?) };
    token.ok_or(EngineError::NotANumber { position })
}
