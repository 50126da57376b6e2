//! Continuing a prompt, token by token.

use std::time::{Duration, Instant};

use super::{EngineError, Runner, SampleError, Sampler};
use crate::model::Config;

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The model ended its text, or the grammar is complete.
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
/// Before anything is computed: an empty prompt, or one that does not fit into the context with `max_new` tokens, or
/// sampling settings without a meaning. Later: the device's errors, logits that are not numbers, or no token that may follow.
pub fn generate(
    runner: &mut dyn Runner,
    prompt: &[u32],
    max_new: usize,
    sampler: &mut Sampler,
    is_end: &dyn Fn(u32) -> bool,
    go_on: &mut dyn FnMut(Event) -> bool,
) -> Result<Generated, EngineError> {
    check_length(runner.config(), prompt, max_new)?;
    sampler.sampling().check(runner.config().dims.vocab)?;
    sampler.begin();
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
    if sampler.is_complete() {
        out.stop = Stop::End;
        return Ok(out);
    }
    let mut context = prompt.to_vec();
    let mut next = choose(runner, sampler, &context)?;
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
        if sampler.is_complete() {
            out.stop = Stop::End;
            break;
        }
        if out.tokens.len() == max_new {
            break;
        }
        runner.pass(&[next], context.len(), 1)?;
        context.push(next);
        out.decode.tokens += 1;
        out.decode.passes += 1;
        next = choose(runner, sampler, &context)?;
    }
    out.decode.time = started.elapsed();
    Ok(out)
}

/// The token that follows `context`, whose last token was the last one of the last pass.
fn choose(runner: &mut dyn Runner, sampler: &mut Sampler, context: &[u32]) -> Result<u32, EngineError> {
    let chosen = if sampler.takes_argmax() {
        runner.argmax()?.ok_or(SampleError::NotANumber)
    } else {
        sampler.sample(&runner.logits()?, context)
    };
    chosen.map_err(|e| match e {
        SampleError::NotANumber => EngineError::NotANumber { position: context.len() - 1 },
        other => other.into(),
    })
}
