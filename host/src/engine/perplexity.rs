//! How well a model predicts a text.

use super::{EngineError, Runner};

/// A perplexity in the making, and in the end the result.
#[derive(Clone, Copy, Debug, Default)]
pub struct Perplexity {
    /// Windows measured so far.
    pub windows: usize,
    /// Windows of the whole text.
    pub of: usize,
    /// Tokens scored so far.
    pub scored: usize,
    /// Sum of their negative log-likelihoods, in nats.
    pub nll: f64,
}

impl Perplexity {
    /// exp of the mean negative log-likelihood.
    pub fn value(&self) -> f64 {
        (self.nll / self.scored as f64).exp()
    }
}

/// llama.cpp's protocol: the text is cut into windows of `window` tokens, a last partial one is dropped; each starts with
/// `bos` in place of its first token where the model adds one; only predictions made from the second half of a window are
/// scored, so that each has at least half a window of context.
///
/// `progress` is called after every window and answers whether to go on. Interrupted in the middle of a window, the result is that of those
/// before it.
///
/// # Errors
/// A text shorter than a window, logits that are not numbers, or the device's errors.
pub fn perplexity(
    runner: &mut dyn Runner,
    tokens: &[u32],
    window: usize,
    bos: Option<u32>,
    progress: &mut dyn FnMut(&Perplexity) -> bool,
) -> Result<Perplexity, EngineError> {
    check_windows(tokens.len(), window)?;
    let mut result = Perplexity { of: tokens.len() / window, ..Perplexity::default() };
    for window_tokens in tokens.chunks_exact(window) {
        match score(runner, window_tokens, bos, &mut result) {
            Err(e) if e.is_cancelled() => break,
            scored => scored?,
        }
        if !progress(&result) {
            break;
        }
    }
    Ok(result)
}

/// Adds what a window says.
fn score(
    runner: &mut dyn Runner,
    tokens: &[u32],
    bos: Option<u32>,
    result: &mut Perplexity,
) -> Result<(), EngineError> {
    let (window, mut scored, mut sum) = (tokens.len(), 0, 0.0);
    let mut input = tokens.to_vec();
    if let Some(bos) = bos {
        input[0] = bos;
    }
    let mut done = 0;
    for chunk in input.chunks(runner.max_batch()) {
        // Position p predicts token p + 1, for p in window / 2 .. window - 1.
        let first = done.max(window / 2);
        let end = done + chunk.len();
        let wanted = end.saturating_sub(first);
        runner.pass(chunk, done, wanted)?;
        if wanted > 0 {
            let logits = runner.logits()?;
            let rows = logits.chunks_exact(runner.config().dims.vocab);
            for (position, row) in (first..end.min(window - 1)).zip(rows) {
                let file = &runner.config().file;
                let not_a_number = || EngineError::NotANumber { file: file.clone(), position };
                sum += nll(row, tokens[position + 1]).ok_or_else(not_a_number)?;
                scored += 1;
            }
        }
        done = end;
    }
    result.windows += 1;
    result.scored += scored;
    result.nll += sum;
    Ok(())
}

/// Whether a text can be measured; to be asked before the weights are loaded.
///
/// # Errors
/// A window that leaves nothing to score, or a text that does not fill one.
pub fn check_windows(tokens: usize, window: usize) -> Result<(), EngineError> {
    if window < 4 {
        return Err(EngineError::Window(window));
    }
    if tokens < window { Err(EngineError::TextTooShort { tokens, window }) } else { Ok(()) }
}

/// -ln of `token`'s probability. None where the logits are not numbers, or the token has none.
fn nll(logits: &[f32], token: u32) -> Option<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&l| f64::from(l - max).exp()).sum();
    let value = sum.ln() - f64::from(logits.get(token as usize)? - max);
    value.is_finite().then_some(value)
}
