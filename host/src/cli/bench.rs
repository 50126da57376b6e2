//! `ntransformer bench`: how fast a model is on a device, in the manner of llama-bench.

mod profile;
mod report;

use std::io;

use anyhow::ensure;
use clap::ValueEnum;

use super::open::ModelArgs;
use crate::{
    engine::{Bench, Runner, Stage, Workload},
    gguf::Gguf,
    model::Config,
};
use report::{Report, Subject};

/// Tokens of the prompt that is processed unless -p says otherwise.
const PROMPT: usize = 512;

/// Tokens that are generated unless -n says otherwise.
const ANSWER: usize = 128;

/// Runs of a test unless -r says otherwise.
const REPETITIONS: u32 = 5;

/// Runs of a test at most: every one's time is kept.
const MAX_REPETITIONS: i64 = 1_000_000;

/// Arguments of `ntransformer bench`.
#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    plan: Plan,
}

/// What is measured, how often, and how it is printed.
///
/// Lists may be separated by commas or given by repeating the flag. Every test is run at every depth.
#[derive(Debug, clap::Args)]
pub struct Plan {
    /// Prompts to process, in tokens (ppN); 0 for none.
    #[arg(short = 'p', long, value_name = "N,...", value_delimiter = ',', default_values_t = [PROMPT], value_parser = prompt)]
    pub n_prompt: Vec<usize>,
    /// Answers to generate, in tokens (tgN); 0 for none.
    #[arg(short, long, value_name = "N,...", value_delimiter = ',', default_values_t = [ANSWER])]
    pub n_gen: Vec<usize>,
    /// A prompt and its answer measured together (ppN+tgN); repeat for more.
    #[arg(long, value_name = "PP,TG", value_parser = pair)]
    pub pg: Vec<(usize, usize)>,
    /// Tokens that are in the context before a test starts.
    #[arg(short = 'd', long, value_name = "N,...", value_delimiter = ',', default_values_t = [0])]
    pub n_depth: Vec<usize>,
    /// Runs of each test, after one that warms up.
    #[arg(short, long, value_name = "N", default_value_t = REPETITIONS, value_parser = clap::value_parser!(u32).range(1..=MAX_REPETITIONS))]
    pub repetitions: u32,
    /// How results are printed: a Markdown table, or every sample as JSON or CSV.
    #[arg(short, long, value_name = "FORMAT", default_value = "md")]
    pub output: Format,
    /// Tokens of context. What the longest test takes if absent.
    #[arg(short, long, value_name = "TOKENS")]
    pub context: Option<usize>,
    /// Also prints where the time of a generated token goes, kernel by kernel. Takes a GPU.
    #[arg(long)]
    pub profile: bool,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A Markdown table.
    Md,
    /// An array of objects.
    Json,
    /// A line of names, and a line for each test.
    Csv,
}

fn prompt(s: &str) -> Result<usize, String> {
    // `-pg 512,128` is `-p g,512,128` to the parser.
    s.strip_prefix('g').map_or(Ok(()), |_| Err("a prompt and its answer together are --pg PP,TG"))?;
    s.parse().map_err(|e| format!("{e}"))
}

fn pair(s: &str) -> Result<(usize, usize), String> {
    let tokens = s.split_once(',').and_then(|(pp, tg)| Some((pp.parse().ok()?, tg.parse().ok()?)));
    tokens.filter(|&(pp, tg)| pp > 0 && tg > 0).ok_or("expected two numbers of 1 or more, such as 512,128".into())
}

/// Runs the tests that the flags ask for.
pub fn run(args: &BenchArgs) -> anyhow::Result<()> {
    measure(&args.model, &args.plan)
}

/// Runs the tests of `plan` and prints each one's result when it is there.
pub fn measure(model: &ModelArgs, plan: &Plan) -> anyhow::Result<()> {
    let workloads = plan.workloads();
    ensure!(!workloads.is_empty(), "nothing to measure: -p, -n and --pg ask for no tokens");
    plan.check_profile()?;
    let gguf = model.gguf()?;
    let context = plan.context(&workloads, &Config::new(&gguf, None, usize::MAX)?)?;
    let subject = Subject::new(&gguf);
    drop::<Gguf>(gguf);

    let file = model.open(Some(context))?;
    let trace = model.trace_file()?;
    let mut engine = model.load(file, 1)?;
    let result = print(model, plan, &workloads, subject, engine.runner());
    let traced = model.write_trace(trace, engine.runner());
    result.and(traced)
}

fn print(
    model: &ModelArgs,
    plan: &Plan,
    workloads: &[Workload],
    subject: Subject,
    runner: &mut dyn Runner,
) -> anyhow::Result<()> {
    if plan.profile {
        // Where none can be made, that is said before anything is measured.
        runner.profile(false)?;
    }
    let mut report = Report::new(plan.output, subject, runner, workloads, io::stdout());
    report.begin()?;
    let mut bench = Bench::new(runner);
    for (done, workload) in workloads.iter().enumerate() {
        let bar = model.counter("{prefix}: {msg} {pos}/{len}", 0)?;
        bar.set_prefix(format!("test {} of {}, {workload}", done + 1, workloads.len()));
        let show = |message, position, len| {
            bar.set_message(message);
            bar.set_length(len as u64);
            bar.set_position(position as u64);
        };
        let mut progress = |stage| match stage {
            Stage::Fill(tokens) => show("filling the context, token", tokens, workload.depth),
            Stage::WarmUp => show("warm-up", 0, 1),
            Stage::Repetition(repetitions) => show("repetition", repetitions + 1, plan.repetitions as usize),
            Stage::Profile => show("profile", 0, 1),
        };
        let result = bench.measure(*workload, plan.repetitions as usize, &mut progress).and_then(|measured| {
            let profiled = plan.profile && workload.is_answer();
            Ok((profiled.then(|| bench.profile(&measured, &mut progress)).transpose()?, measured))
        });
        bar.finish_and_clear();
        match result {
            Ok((profile, measured)) => report.row(&measured, profile)?,
            // What was measured before is whole.
            Err(e) if e.is_cancelled() => {
                report.end()?;
                model.say(&format!("interrupted after {done} of {} tests", workloads.len()));
                return Err(e.into());
            }
            Err(e) => return Err(e.into()),
        }
    }
    report.end()?;
    Ok(())
}

impl Plan {
    /// What `--benchmark` of the main command runs.
    pub fn usual(answer: Option<usize>, context: Option<usize>, output: Format) -> Self {
        let (n_prompt, n_gen) = (vec![PROMPT], vec![answer.unwrap_or(ANSWER)]);
        Plan {
            n_prompt,
            n_gen,
            pg: Vec::new(),
            n_depth: vec![0],
            repetitions: REPETITIONS,
            output,
            context,
            profile: false,
        }
    }

    /// A profile is one of generated tokens, and no cell of a CSV file.
    fn check_profile(&self) -> anyhow::Result<()> {
        ensure!(!self.profile || self.output != Format::Csv, "--profile is printed with -o md or -o json");
        let answers = self.workloads().iter().any(Workload::is_answer);
        ensure!(!self.profile || answers, "--profile is one of generated tokens, and -n asks for none");
        Ok(())
    }

    /// Every test at every depth.
    fn workloads(&self) -> Vec<Workload> {
        let prompts = self.n_prompt.iter().map(|&n| (n, 0));
        let answers = self.n_gen.iter().map(|&n| (0, n));
        let tests: Vec<_> =
            prompts.chain(answers).chain(self.pg.iter().copied()).filter(|&test| test != (0, 0)).collect();
        let at = |&depth: &usize| tests.iter().map(move |&(prompt, generate)| Workload { prompt, generate, depth });
        self.n_depth.iter().flat_map(at).collect()
    }

    /// The context that holds every test.
    fn context(&self, workloads: &[Workload], config: &Config) -> anyhow::Result<usize> {
        let limit = self.context.unwrap_or(config.max_context);
        for workload in workloads {
            let need = workload.context();
            let of = if self.context.is_some() { "-c gives" } else { "the model allows" };
            ensure!(
                need <= limit,
                "{workload} needs a context of {need} tokens, {of} {limit}: lower -p, -n, --pg or -d"
            );
        }
        Ok(self.context.unwrap_or_else(|| workloads.iter().map(Workload::context).max().unwrap_or(limit)))
    }
}
