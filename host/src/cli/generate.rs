//! `ntransformer [-m MODEL] [-p PROMPT]`: continues a prompt.

use std::{
    io::{self, Write},
    ops::ControlFlow,
    path::PathBuf,
};

use anyhow::Context;
use bytesize::ByteSize;
use serde_json::{Value, json};

use super::{
    bench,
    chat::{self, ChatArgs},
    flowed::Figures,
    interrupt,
    open::ModelArgs,
    plan,
    sampling::SamplingArgs,
    text,
};
use crate::engine::{Engine, Event, GenerateOptions, Generated, Grammar, Stop, Timing, Tokenizer, check_length};

/// New tokens when -n is not given, unless the context holds fewer.
const DEFAULT_LENGTH: usize = 512;

/// Arguments of the main job.
#[derive(Debug, clap::Args)]
pub struct GenerateArgs {
    #[command(flatten)]
    pub(super) model: ModelArgs,
    /// The text to continue. Without -p and -f, the model starts a text of its own.
    #[arg(short, long, value_name = "TEXT", conflicts_with = "file")]
    prompt: Option<String>,
    /// Read the text to continue from a file; a newline at its end is dropped.
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// New tokens at most. 512 or what the context holds if absent.
    #[arg(short, long, value_name = "N")]
    pub(super) n_predict: Option<usize>,
    /// Tokens that prompt and answer may have together. min(the model's, 4096) if absent.
    #[arg(short, long, value_name = "TOKENS")]
    pub(super) context: Option<usize>,
    /// Print what would be placed where, how fast it would be, and why, and stop before anything is loaded.
    #[arg(long, conflicts_with_all = ["benchmark", "trace"])]
    plan: bool,
    /// Print one JSON object at the end instead of text.
    #[arg(long, conflicts_with = "chat")]
    json: bool,
    /// Measure speed instead, as `ntransformer bench` does with its defaults; -n sets the tokens to generate.
    #[arg(long, conflicts_with_all = ["prompt", "file", "chat", "SamplingArgs"])]
    benchmark: bool,
    #[command(flatten)]
    pub(super) chat: ChatArgs,
    // The last one, because its heading in --help is for all flags from here on.
    #[command(flatten)]
    pub(super) sampling: SamplingArgs,
}

/// Continues the prompt on stdout. The exit code is that of an interrupted run if Ctrl-C ended it.
pub fn run(args: &GenerateArgs) -> anyhow::Result<u8> {
    if args.plan {
        return plan::run(&args.model, args.context, args.json).map(|()| 0);
    }
    if args.chat.asked() {
        return chat::run(args);
    }
    if args.benchmark {
        let format = if args.json { bench::Format::Json } else { bench::Format::Md };
        bench::measure(&args.model, &bench::Plan::usual(args.n_predict, args.context, format))?;
        return Ok(0);
    }
    let file = args.model.open(args.context)?;
    let tokenizer = file.tokenizer();
    let prompt = tokenizer.prompt(&args.text()?)?;
    let context = file.config().dims.context;
    let length = args.n_predict.unwrap_or(DEFAULT_LENGTH.min(context.saturating_sub(prompt.len()).max(1)));
    check_length(file.config(), &prompt, length)?;
    let sampling = args.sampling.sampling(file.config().dims.vocab)?;
    let grammar = args.grammar(tokenizer)?;
    let trace = args.model.trace_file()?;
    let mut engine = args.model.load(file, 1)?;
    if args.model.verbose {
        args.model.say(&args.sampling.describe(&sampling));
        args.model.say(&format!("up to {length} tokens after {} of prompt", prompt.len()));
    } else if !sampling.is_greedy() {
        args.model.say(&format!("seed: {}", sampling.seed));
    }
    args.model.say("");

    let options = GenerateOptions { max_new: Some(length), sampling, grammar, stop: Vec::new() };
    let mut output = Output { silent: args.json, ..Output::default() };
    let bar = args.model.counter("prompt {pos}/{len} tokens", prompt.len() as u64)?;
    let generated = engine.generate(&prompt, &options, |event| {
        match event {
            Event::Prompt(done) if done < prompt.len() => bar.set_position(done as u64),
            Event::Prompt(_) => bar.finish_and_clear(),
            Event::Token(_) => (),
            Event::Text(text) => output.print(text),
        }
        if output.error.is_none() && !interrupt::requested() {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    });
    bar.finish_and_clear();
    // Also after an error, so that its message begins a line.
    output.finish(generated.is_ok())?;
    let traced = args.model.write_trace(trace, engine.runner());
    let generated = generated?;
    if args.json {
        writeln!(io::stdout(), "{:#}", report(&engine, &generated, args.sampling.report(&options.sampling)))?;
    }
    args.tell_unfinished(&generated);
    summary(args, &engine, &generated);
    traced?;
    Ok(if generated.stop == Stop::Interrupted { interrupt::EXIT_CODE } else { 0 })
}

impl GenerateArgs {
    /// The grammar, if there is one. What there is to say about it is told.
    pub(super) fn grammar(&self, tokenizer: &Tokenizer) -> anyhow::Result<Option<Grammar>> {
        let mut grammar = self.sampling.grammar(tokenizer)?;
        for warning in grammar.iter_mut().flat_map(Grammar::warnings) {
            self.model.say(&format!("grammar: {warning}"));
        }
        Ok(grammar)
    }

    /// Tells when the grammar had not come to its end.
    pub(super) fn tell_unfinished(&self, generated: &Generated) {
        if generated.stop == Stop::Length && generated.unfinished {
            self.model.say("the text ends before the grammar is complete: allow more tokens with -n");
        }
    }

    /// The text of -p or -f; empty if there is none.
    pub(super) fn text(&self) -> anyhow::Result<String> {
        match (&self.prompt, &self.file) {
            (Some(text), _) => Ok(text.clone()),
            (None, Some(path)) => {
                let text = text::read(path)?;
                // The newline that editors put at a file's end is not part of the prompt.
                Ok(text.strip_suffix('\n').unwrap_or(&text).to_owned())
            }
            (None, None) => Ok(String::new()),
        }
    }
}

/// The text on its way out.
#[derive(Default)]
pub(super) struct Output {
    /// The text goes into a JSON object instead.
    silent: bool,
    begun: bool,
    pub error: Option<io::Error>,
}

impl Output {
    pub fn print(&mut self, text: &str) {
        if !self.silent {
            let mut out = io::stdout().lock();
            self.begun = true;
            self.error = self.error.take().or(out.write_all(text.as_bytes()).and_then(|()| out.flush()).err());
        }
    }

    /// Whether nothing has been printed.
    pub fn is_empty(&self) -> bool {
        !self.begun
    }

    /// Ends the line, which is also there for an empty text that is `whole`.
    pub fn finish(mut self, whole: bool) -> anyhow::Result<()> {
        if whole || self.begun {
            self.print("\n");
        }
        self.error.map_or(Ok(()), |e| Err(e).context("writing to standard output"))
    }
}

fn summary(args: &GenerateArgs, engine: &Engine, generated: &Generated) {
    let say = |line: String| args.model.say(&line);
    let memory = engine.memory();
    say(String::new());
    let row = |name: &str, t: &Timing| {
        let gbs = t.passes as f64 * memory.read_per_pass as f64 / t.time.as_secs_f64().max(1e-9) / 1e9;
        format!(
            "{name}: {} tokens in {:.2} s, {:.2} tok/s, {gbs:.1} GB/s of weights",
            t.tokens,
            t.time.as_secs_f64(),
            t.rate()
        )
    };
    say(row("prompt", &generated.prompt));
    if generated.decode.tokens > 0 {
        say(row("decode", &generated.decode));
    }
    let streamed = match memory.streamed_per_pass {
        0 => String::new(),
        bytes => format!(", {} of them streamed to the device", ByteSize(bytes)),
    };
    say(format!("per token: {} of weights read{streamed}", ByteSize(memory.read_per_pass)));
    let (name, timing) =
        if generated.decode.passes > 0 { ("decode", generated.decode) } else { ("prompt", generated.prompt) };
    figures(engine, &timing).iter().flat_map(|figures| figures.lines(name)).for_each(say);
    say(format!(
        "memory: on {}: weights {}, KV cache {}, activations {}; RAM, to stream from {}; mapped file {}",
        engine.device(),
        ByteSize(memory.device_weights),
        ByteSize(memory.kv),
        ByteSize(memory.activations),
        ByteSize(memory.pinned),
        ByteSize(memory.mapped)
    ));
}

/// The figures of what was streamed, if anything was.
fn figures(engine: &Engine, timing: &Timing) -> Option<Figures> {
    let (memory, rates) = (engine.memory(), engine.rates());
    let (passes, seconds) = (timing.passes, timing.time.as_secs_f64());
    let tokens = timing.tokens;
    timing.flowed.filter(|_| passes > 0).map(|flowed| Figures { passes, tokens, seconds, memory, rates, flowed })
}

fn report(engine: &Engine, generated: &Generated, sampling: Value) -> Value {
    let memory = engine.memory();
    let config = engine.config();
    let timing = |t: &Timing| {
        json!({
            "tokens": t.tokens,
            "passes": t.passes,
            "seconds": t.time.as_secs_f64(),
            "tokens_per_second": t.rate(),
            "streamed": figures(engine, t).map(|figures| figures.json()),
        })
    };
    json!({
        "text": generated.text,
        "tokens": generated.tokens,
        "stop": match generated.stop { Stop::End => "end", Stop::Length => "length", Stop::StopString => "stop string", Stop::Interrupted => "interrupted" },
        "model": { "name": config.name, "arch": config.arch.name(), "context": config.dims.context },
        "device": engine.device(),
        "sampling": sampling,
        "prompt": timing(&generated.prompt),
        "decode": timing(&generated.decode),
        "memory": {
            "device_weights": memory.device_weights,
            "kv": memory.kv,
            "activations": memory.activations,
            "pinned": memory.pinned,
            "mapped": memory.mapped,
            "resident_layers": memory.resident_layers,
            "read_per_pass": memory.read_per_pass,
            "streamed_per_pass": memory.streamed_per_pass,
            "disk_per_pass": memory.disk_per_pass,
            "zero_copy_per_pass": memory.zero_copy_per_pass,
        },
    })
}
