//! The flags that say how tokens are chosen. Meanings are llama.cpp's, and so are the long names.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::{Value, json};

use super::text;
use crate::engine::{Grammar, GrammarVocabulary, Sampling, Syntax, Tokenizer};

/// The grammar of --json-mode.
const ANY_OBJECT: &str = r#"{"type": "object"}"#;

/// How tokens are chosen.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Randomness: 0 always takes the most likely token.
    #[arg(short, long, visible_alias = "temp", value_name = "T", default_value_t = 0.8, value_parser = non_negative)]
    temperature: f32,
    /// Choose among the K most likely tokens only; 0 for all.
    #[arg(long, value_name = "K", default_value_t = 40)]
    top_k: usize,
    /// Choose among the most likely tokens that have probability P together; 1 for all.
    #[arg(long, value_name = "P", default_value_t = 0.95, value_parser = probability)]
    top_p: f32,
    /// Choose among tokens that are at least P times as probable as the most likely one; 0 for all.
    #[arg(long, value_name = "P", default_value_t = 0.05, value_parser = share)]
    min_p: f32,
    /// Divide the logits of tokens that occurred among the last ones by R, once; 1 is off.
    #[arg(long, value_name = "R", default_value_t = 1.0, value_parser = positive)]
    repeat_penalty: f32,
    /// How many of the last tokens the penalties look at, prompt included; 0 for none, -1 for all.
    #[arg(long, value_name = "N", default_value = "64", allow_negative_numbers = true)]
    repeat_last_n: Window,
    /// Lower a token's logit by F for each time that it occurred among the last ones; 0 is off.
    #[arg(long, value_name = "F", default_value_t = 0.0, allow_negative_numbers = true, value_parser = number)]
    frequency_penalty: f32,
    /// Lower a token's logit by F if it occurred among the last ones; 0 is off.
    #[arg(long, value_name = "F", default_value_t = 0.0, allow_negative_numbers = true, value_parser = number)]
    presence_penalty: f32,
    /// Add to a token's logit: its id with + or - and a number, such as 15043+1.5 or 15043-1; -inf bans it. May be repeated.
    #[arg(long, value_name = "ID+BIAS", value_parser = bias)]
    logit_bias: Vec<(u32, f32)>,
    /// Seed of the random numbers. A new one each time if absent.
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,
    /// The text follows this grammar: GBNF, or Lark if it has a line with %llguidance. Some texts of a recursive GBNF
    /// are never written.
    #[arg(long, value_name = "GRAMMAR", group = "constraint")]
    grammar: Option<String>,
    /// The text follows the grammar in this file; Lark if it ends with .lark.
    #[arg(long, value_name = "FILE", group = "constraint")]
    grammar_file: Option<PathBuf>,
    /// The text is JSON that follows this JSON schema; {} is any JSON.
    #[arg(short = 'j', long, value_name = "SCHEMA", group = "constraint")]
    json_schema: Option<String>,
    /// The text is JSON that follows the JSON schema in this file.
    #[arg(long, value_name = "FILE", group = "constraint")]
    json_schema_file: Option<PathBuf>,
    /// The text is a JSON object.
    #[arg(long, group = "constraint")]
    json_mode: bool,
}

/// The number of tokens that penalties look at. None: all.
#[derive(Clone, Copy, Debug)]
struct Window(Option<usize>);

impl std::str::FromStr for Window {
    type Err = &'static str;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "-1" => Ok(Window(None)),
            _ => s.parse().map(|n| Window(Some(n))).map_err(|_| "expected a number of tokens, or -1 for all"),
        }
    }
}

fn number(s: &str) -> Result<f32, String> {
    s.parse().ok().filter(|t: &f32| t.is_finite()).ok_or("expected a number".into())
}

fn non_negative(s: &str) -> Result<f32, String> {
    number(s).ok().filter(|t| *t >= 0.0).ok_or("expected a number, 0 or more".into())
}

fn positive(s: &str) -> Result<f32, String> {
    number(s).ok().filter(|t| *t > 0.0).ok_or("expected a number above 0".into())
}

fn probability(s: &str) -> Result<f32, String> {
    number(s).ok().filter(|p| 0.0 < *p && *p <= 1.0).ok_or("expected a number above 0 and up to 1".into())
}

fn share(s: &str) -> Result<f32, String> {
    number(s).ok().filter(|p| (0.0..=1.0).contains(p)).ok_or("expected a number from 0 to 1".into())
}

fn bias(s: &str) -> Result<(u32, f32), String> {
    let split = s.find(['+', '-']).map(|at| s.split_at(at));
    let parsed = split.and_then(|(id, bias)| Some((id.parse().ok()?, bias.parse().ok()?)));
    let possible = parsed.filter(|(_, bias): &(u32, f32)| bias.is_finite() || *bias == f32::NEG_INFINITY);
    possible.ok_or("expected a token's id and what to add, such as 15043+1.5, 15043-1 or 15043-inf".into())
}

impl SamplingArgs {
    /// The settings, for a model with `vocab` logits.
    pub fn sampling(&self, vocab: usize) -> anyhow::Result<Sampling> {
        let sampling = Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repeat_penalty: self.repeat_penalty,
            repeat_last_n: self.repeat_last_n.0,
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            logit_bias: self.logit_bias.clone(),
            seed: self.seed.unwrap_or_else(rand::random),
        };
        sampling.check(vocab)?;
        Ok(sampling)
    }

    /// The grammar, if there is one. Made before weights are loaded, so that faults are told early.
    pub fn grammar(&self, tokenizer: &Tokenizer) -> anyhow::Result<Option<Grammar>> {
        let Some(constraint) = self.constraint()? else { return Ok(None) };
        let vocabulary = GrammarVocabulary::new(tokenizer)?;
        let grammar = Grammar::new(&vocabulary, constraint.syntax, &constraint.text);
        Ok(Some(grammar.with_context(|| constraint.origin)?))
    }

    /// What the text has to follow, and where that is from.
    fn constraint(&self) -> anyhow::Result<Option<Constraint>> {
        let given =
            |syntax, flag: &str, text: &str| Constraint { syntax, text: text.to_owned(), origin: flag.to_owned() };
        let file = |syntax, path: &Path| {
            anyhow::Ok(Constraint { syntax, text: text::read(path)?, origin: path.display().to_string() })
        };
        Ok(if let Some(text) = &self.grammar {
            Some(given(Syntax::Gbnf, "--grammar", text).recognized())
        } else if let Some(path) = &self.grammar_file {
            let lark = path.extension().is_some_and(|extension| extension == "lark");
            Some(file(if lark { Syntax::Lark } else { Syntax::Gbnf }, path)?.recognized())
        } else if let Some(text) = &self.json_schema {
            Some(given(Syntax::JsonSchema, "--json-schema", text))
        } else if let Some(path) = &self.json_schema_file {
            Some(file(Syntax::JsonSchema, path)?)
        } else if self.json_mode {
            Some(given(Syntax::JsonSchema, "--json-mode", ANY_OBJECT))
        } else {
            None
        })
    }

    /// The flag that says what the text has to follow.
    fn constraint_name(&self) -> Option<&'static str> {
        let given = [
            ("grammar", self.grammar.is_some()),
            ("grammar-file", self.grammar_file.is_some()),
            ("json-schema", self.json_schema.is_some()),
            ("json-schema-file", self.json_schema_file.is_some()),
            ("json-mode", self.json_mode),
        ];
        given.into_iter().find(|(_, given)| *given).map(|(name, _)| name)
    }

    /// All settings on one line.
    pub fn describe(&self, sampling: &Sampling) -> String {
        let constraint = self.constraint_name().map_or("none".into(), |name| format!("of --{name}"));
        format!("sampling: {sampling}, grammar {constraint}")
    }

    /// All settings, for --json.
    pub fn report(&self, s: &Sampling) -> Value {
        // JSON has no infinity. That a ban is `false` is from llama.cpp's server.
        let bias =
            |&(token, bias): &(u32, f32)| json!([token, if bias.is_finite() { short(bias) } else { false.into() }]);
        json!({
            "repeat_penalty": short(s.repeat_penalty),
            "frequency_penalty": short(s.frequency_penalty),
            "presence_penalty": short(s.presence_penalty),
            "repeat_last_n": s.repeat_last_n.map_or(json!(-1), |n| json!(n)),
            "top_k": s.top_k,
            "top_p": short(s.top_p),
            "min_p": short(s.min_p),
            "temperature": short(s.temperature),
            "logit_bias": s.logit_bias.iter().map(bias).collect::<Vec<_>>(),
            "seed": s.seed,
            "constraint": self.constraint_name(),
        })
    }
}

/// A number as it was written: 0.95, not the 0.949999988079071 that an f32 holds.
fn short(x: f32) -> Value {
    x.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

/// A grammar's text.
struct Constraint {
    syntax: Syntax,
    text: String,
    origin: String,
}

impl Constraint {
    /// A text that says so itself is Lark.
    fn recognized(mut self) -> Self {
        if self.text.lines().any(|line| line.trim_start().starts_with("%llguidance")) {
            self.syntax = Syntax::Lark;
        }
        self
    }
}
