//! How tokens are chosen.

use std::fmt;

/// How tokens are chosen. The steps, in this order: grammar, logit bias, penalties, top-k, top-p, min-p, temperature, and
/// the draw. Top-p and min-p look at probabilities at temperature 1. Order and defaults are llama.cpp's.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits, 0 or more; 0 always takes the most likely token.
    pub temperature: f32,
    /// Only the k most likely tokens; 0 means all.
    pub top_k: usize,
    /// Only the most likely tokens whose probabilities reach p together (Holtzman et al. 2020), above 0 and up to 1; 1 means
    /// all.
    pub top_p: f32,
    /// Only tokens that are at least this share as probable as the most likely one (Nguyen et al. 2024), 0 to 1; 0 means all.
    pub min_p: f32,
    /// Divides the logits above 0, and multiplies the others, of the tokens in the window (Keskar et al. 2019), once
    /// however often they occur; above 0. 1 is off.
    pub repeat_penalty: f32,
    /// The window: that many of the last tokens, of prompt and answer. 0 turns all penalties off; None is all tokens.
    pub repeat_last_n: Option<usize>,
    /// Is subtracted from a token's logit for each time that it occurs in the window. 0 is off; below 0 it rewards.
    pub frequency_penalty: f32,
    /// Is subtracted from a token's logit if it occurs in the window at all. 0 is off; below 0 it rewards.
    pub presence_penalty: f32,
    /// Tokens and what is added to their logits; minus infinity bans a token. Several for one token add up.
    pub logit_bias: Vec<(u32, f32)>,
    /// Of the random numbers.
    pub seed: u64,
}

impl Default for Sampling {
    /// What the command line takes where nothing is said, with a new seed each time.
    fn default() -> Self {
        Sampling {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repeat_penalty: 1.0,
            repeat_last_n: Some(64),
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: rand::random(),
        }
    }
}

/// A setting that no sampling is possible with.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SamplingError {
    /// A value outside of its range.
    #[error("{name} is {value}; it has to be {range}")]
    Range {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: f32,
        /// What it may be.
        range: &'static str,
    },
    /// A bias for a token that the model does not have.
    #[error("logit bias: there is no token {token}; the model has the tokens 0 to {}", vocab.saturating_sub(1))]
    NoSuchToken {
        /// The token's id.
        token: u32,
        /// The model's number of tokens.
        vocab: usize,
    },
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

    /// Whether some logits are changed before tokens are chosen.
    pub fn changes_logits(&self) -> bool {
        self.penalizes() || !self.logit_bias.is_empty()
    }

    pub(super) fn penalizes(&self) -> bool {
        let on = self.repeat_penalty != 1.0 || self.frequency_penalty != 0.0 || self.presence_penalty != 0.0;
        on && self.repeat_last_n != Some(0)
    }

    /// Whether a token can become more likely by bias or penalties.
    pub(super) fn raises_logits(&self) -> bool {
        let penalties = self.repeat_penalty < 1.0 || self.frequency_penalty < 0.0 || self.presence_penalty < 0.0;
        self.penalizes() && penalties || self.logit_bias.iter().any(|&(_, bias)| bias > 0.0)
    }

    /// What of `context` the penalties see.
    pub(super) fn window<'a>(&self, context: &'a [u32]) -> &'a [u32] {
        let length = self.repeat_last_n.unwrap_or(usize::MAX).min(context.len());
        &context[context.len() - length..]
    }

    /// How many tokens are left at most before top-p and min-p; 0 means all.
    pub(super) fn limit(&self) -> usize {
        if self.is_greedy() { 1 } else { self.top_k }
    }

    /// Whether the settings make sense for a model with `vocab` tokens.
    ///
    /// # Errors
    /// Names the first one that does not.
    pub fn check(&self, vocab: usize) -> Result<(), SamplingError> {
        let ranges = [
            ("the temperature", self.temperature, self.temperature >= 0.0, "a number, 0 or more"),
            ("top-p", self.top_p, 0.0 < self.top_p && self.top_p <= 1.0, "above 0 and up to 1"),
            ("min-p", self.min_p, (0.0..=1.0).contains(&self.min_p), "0 to 1"),
            ("the repeat penalty", self.repeat_penalty, self.repeat_penalty > 0.0, "a number above 0"),
            ("the frequency penalty", self.frequency_penalty, true, "a number"),
            ("the presence penalty", self.presence_penalty, true, "a number"),
        ];
        for (name, value, inside, range) in ranges {
            if !value.is_finite() || !inside {
                return Err(SamplingError::Range { name, value, range });
            }
        }
        for &(token, bias) in &self.logit_bias {
            if token as usize >= vocab {
                return Err(SamplingError::NoSuchToken { token, vocab });
            }
            if !bias.is_finite() && bias != f32::NEG_INFINITY {
                let range = "a number or minus infinity";
                return Err(SamplingError::Range { name: "a logit bias", value: bias, range });
            }
        }
        Ok(())
    }
}

/// All settings on one line, those that are off too.
impl fmt::Display for Sampling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sampling { temperature, top_k, top_p, min_p, repeat_penalty, frequency_penalty, presence_penalty, .. } =
            self;
        let window = self.repeat_last_n.map_or("all".into(), |n| format!("the last {n}"));
        write!(
            f,
            "repeat penalty {repeat_penalty}, frequency penalty {frequency_penalty}, presence penalty {presence_penalty} \
             (over {window} tokens), top-k {top_k}, top-p {top_p}, min-p {min_p}, temperature {temperature}, logit bias "
        )?;
        if self.logit_bias.is_empty() {
            f.write_str("none")?;
        }
        for (i, (token, bias)) in self.logit_bias.iter().enumerate() {
            write!(f, "{}{token}{bias:+}", if i == 0 { "" } else { " " })?;
        }
        write!(f, ", seed {}", self.seed)
    }
}
