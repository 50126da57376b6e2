//! `ntransformer bench`: what is measured, against a runner that writes down what it is asked for, and how it is printed.

use std::{
    process::{Command, Output, Stdio},
    thread::sleep,
    time::Duration,
};

use ntransformer::{
    demo,
    device::Launch,
    engine::{Bench, EngineError, MemoryReport, Runner, Stage, Workload, mean_and_deviation},
    model::Config,
};
use serde_json::Value;

use crate::setup;

const BATCH: usize = 8;

/// What a runner was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Pass { start: usize, len: usize, wanted: usize },
    Argmax,
}

/// A runner that takes its time: `pass_time` for each pass, `argmax_time` for each token chosen.
struct Recorder {
    config: Config,
    calls: Vec<Call>,
    tokens: Vec<u32>,
    /// Positions, from 0 on, that tokens were put at.
    filled: usize,
    pass_time: fn(start: usize) -> Duration,
    argmax_time: Duration,
    best: Option<u32>,
    /// What runs in a pass while a profile is on, and what was timed. None on devices that time nothing.
    kernels: Option<fn() -> Vec<Launch>>,
    timed: Option<Vec<Launch>>,
}

impl Recorder {
    fn new() -> Self {
        Recorder {
            config: Config::new(&demo::gguf().unwrap(), None, usize::MAX).unwrap(),
            calls: Vec::new(),
            tokens: Vec::new(),
            filled: 0,
            pass_time: |_| Duration::ZERO,
            argmax_time: Duration::ZERO,
            best: Some(1),
            kernels: None,
            timed: None,
        }
    }
}

impl Runner for Recorder {
    fn config(&self) -> &Config {
        &self.config
    }
    fn device(&self) -> &str {
        "recorder"
    }
    fn max_batch(&self) -> usize {
        BATCH
    }
    fn memory(&self) -> MemoryReport {
        MemoryReport::default()
    }
    fn pass(&mut self, tokens: &[u32], start: usize, wanted: usize) -> Result<(), EngineError> {
        assert!((1..=BATCH).contains(&tokens.len()) && wanted <= tokens.len());
        assert!(start <= self.filled, "position {} was never filled, but {start} is computed", self.filled);
        self.filled = start + tokens.len();
        self.tokens.extend(tokens);
        self.calls.push(Call::Pass { start, len: tokens.len(), wanted });
        if let (Some(timed), Some(kernels)) = (&mut self.timed, self.kernels) {
            timed.extend(kernels());
        }
        sleep((self.pass_time)(start));
        Ok(())
    }
    fn logits(&mut self) -> Result<Vec<f32>, EngineError> {
        unreachable!("no logits travel in a bench")
    }
    fn argmax(&mut self) -> Result<Option<u32>, EngineError> {
        self.calls.push(Call::Argmax);
        sleep(self.argmax_time);
        Ok(self.best)
    }
    fn top_k(&mut self, _: usize) -> Result<Vec<(u32, f32)>, EngineError> {
        unreachable!("a bench takes the best token")
    }
    fn profile(&mut self, on: bool) -> Result<(), EngineError> {
        self.timed = on.then(Vec::new);
        Ok(())
    }
    fn take_profile(&mut self) -> Result<Vec<Launch>, EngineError> {
        Ok(self.timed.as_mut().map(std::mem::take).unwrap_or_default())
    }
    fn read_bandwidth(&mut self) -> Result<f64, EngineError> {
        Ok(4e12)
    }
}

fn workload(prompt: usize, generate: usize, depth: usize) -> Workload {
    Workload { prompt, generate, depth }
}

fn pass(start: usize, len: usize, wanted: usize) -> Call {
    Call::Pass { start, len, wanted }
}

#[test]
fn the_depth_is_filled_once_and_every_run_starts_there() {
    let mut runner = Recorder::new();
    let mut stages = Vec::new();
    let mut bench = Bench::new(&mut runner);
    let measured = bench.measure(workload(10, 0, 18), 2, &mut |stage| stages.push(stage)).unwrap();
    assert_eq!((measured.passes, measured.samples.len()), (2, 2));
    let run = [pass(18, 8, 0), pass(26, 2, 1), Call::Argmax];
    let filled = [pass(0, 8, 0), pass(8, 8, 0), pass(16, 2, 0)];
    assert_eq!(runner.calls, [&filled[..], &run, &run, &run].concat());
    use Stage::*;
    assert_eq!(stages, [Fill(0), Fill(8), Fill(16), WarmUp, Repetition(0), Repetition(1)]);
}

#[test]
fn generated_tokens_come_one_by_one_after_a_warm_up_of_one() {
    let mut runner = Recorder::new();
    let measured = Bench::new(&mut runner).measure(workload(3, 2, 0), 1, &mut |_| ()).unwrap();
    assert_eq!(measured.passes, 3);
    let warm_up = [pass(0, 3, 1), Call::Argmax, pass(3, 1, 1), Call::Argmax];
    assert_eq!(runner.calls, [&warm_up[..], &warm_up, &[pass(4, 1, 1), Call::Argmax]].concat());
}

#[test]
fn a_cache_is_filled_on_and_not_trusted_behind_its_depth() {
    let mut runner = Recorder::new();
    let mut bench = Bench::new(&mut runner);
    for depth in [4, 9, 2, 9] {
        bench.measure(workload(0, 1, depth), 1, &mut |_| ()).unwrap();
    }
    let tests = |depth| [pass(depth, 1, 1), Call::Argmax, pass(depth, 1, 1), Call::Argmax];
    let expected = [
        &[pass(0, 4, 0)][..],
        &tests(4),
        &[pass(4, 5, 0)],
        &tests(9),
        // All that is needed is there; but now position 2 holds another token, so that 3 to 8 follow it no longer.
        &tests(2),
        &[pass(2, 7, 0)],
        &tests(9),
    ];
    assert_eq!(runner.calls, expected.concat());
}

#[test]
fn the_time_has_the_choice_of_a_token_and_not_the_filling() {
    let (fill, argmax) = (Duration::from_millis(150), Duration::from_millis(20));
    let mut runner = Recorder { argmax_time: argmax, ..Recorder::new() };
    runner.pass_time = |start| if start < 8 { Duration::from_millis(150) } else { Duration::from_millis(5) };
    let measured = Bench::new(&mut runner).measure(workload(0, 2, 8), 2, &mut |_| ()).unwrap();
    for sample in &measured.samples {
        assert!(*sample >= 2 * (argmax + Duration::from_millis(5)) && *sample < fill, "{sample:?}");
    }
    // 2 tokens in each sample's time.
    for (rate, sample) in measured.rates().iter().zip(&measured.samples) {
        assert!((rate * sample.as_secs_f64() - 2.0).abs() < 1e-9, "{rate} tokens per second in {sample:?}");
    }
    // A prompt of 2 passes reads the weights twice for 10 tokens.
    let prompt =
        ntransformer::engine::Measured { workload: workload(10, 0, 0), passes: 2, samples: vec![argmax], flowed: None };
    assert_eq!(prompt.bandwidth(500.0, 1000), 500.0 / 10.0 * 2.0 * 1000.0);
}

#[test]
fn tokens_are_random_but_repeat() {
    let tokens = || {
        let mut runner = Recorder::new();
        Bench::new(&mut runner).measure(workload(64, 0, 0), 1, &mut |_| ()).unwrap();
        runner.tokens
    };
    let (first, vocab) = (tokens(), Recorder::new().config.dims.vocab);
    assert_eq!(first, tokens());
    assert!(first.iter().all(|&token| (token as usize) < vocab));
    let different: std::collections::BTreeSet<_> = first.iter().collect();
    assert!(different.len() > 64, "{} different ones of 128", different.len());
}

#[test]
fn damaged_weights_are_no_result() {
    let mut runner = Recorder { best: None, ..Recorder::new() };
    let result = Bench::new(&mut runner).measure(workload(0, 1, 3), 1, &mut |_| ());
    assert!(matches!(result, Err(EngineError::NotANumber { position: 3, .. })), "{result:?}");
}

#[test]
fn a_profile_adds_up_launches_by_kernel_and_operand() {
    let mut runner = Recorder::new();
    runner.kernels = Some(|| {
        let launch = |kernel, label: &str, bytes, seconds| Launch { kernel, label: label.into(), bytes, seconds };
        let [a, b] = [launch("gemv", "Q8_0 4x4", 100, 2.0), launch("gemv", "Q8_0 8x4", 200, 8.0)];
        vec![a.clone(), launch("norm", "", 0, 1.0), b, a]
    });
    let mut bench = Bench::new(&mut runner);
    let measured = bench.measure(workload(0, 20, 3), 2, &mut |_| ()).unwrap();
    let mut stages = Vec::new();
    let profile = bench.profile(&measured, &mut |stage| stages.push(stage)).unwrap();
    assert_eq!((profile.workload, profile.tokens, profile.read_bandwidth), (workload(0, 20, 3), 8, 4e12));
    assert_eq!(stages, [Stage::Profile]);
    let found: Vec<_> =
        profile.kernels.iter().map(|k| (k.kernel, k.label.as_str(), k.launches, k.bytes, k.seconds)).collect();
    let expected =
        [("gemv", "Q8_0 8x4", 1.0, 200.0, 8.0), ("gemv", "Q8_0 4x4", 2.0, 200.0, 4.0), ("norm", "", 1.0, 0.0, 1.0)];
    assert_eq!(found, expected);
    assert_eq!((profile.seconds(), profile.bytes()), (13.0, 400.0));
    // The time of a token is that of the runs before, which were not profiled.
    let mean = measured.samples.iter().sum::<Duration>() / 2 / 20;
    assert_eq!(profile.token, mean);
    // The profile is off again; its tokens came after the ones in the cache.
    assert!(runner.timed.is_none());
    let profiled: Vec<_> = runner.calls.iter().rev().filter(|call| **call != Call::Argmax).take(8).collect();
    assert_eq!(*profiled[7], pass(3, 1, 1));

    let prompt = Bench::new(&mut runner).measure(workload(4, 2, 0), 1, &mut |_| ()).unwrap();
    let refused = Bench::new(&mut runner).profile(&prompt, &mut |_| ()).unwrap_err();
    assert!(refused.to_string().contains("pp4+tg2 cannot be profiled"), "{refused}");
}

#[test]
fn mean_and_deviation_are_those_of_statistics() {
    // Python's statistics.mean and statistics.stdev.
    for (values, mean, deviation) in [
        (&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0][..], 5.0, 2.138_089_935_299_395),
        (&[7340.2, 7316.75, 7363.65], 7340.2, 23.449_999_999_999_818),
        (&[3.5], 3.5, 0.0),
    ] {
        let found = mean_and_deviation(values);
        approx::assert_relative_eq!(found.0, mean, max_relative = 1e-12);
        approx::assert_relative_eq!(found.1, deviation, max_relative = 1e-9);
    }
}

#[test]
fn tests_are_named_as_llama_bench_names_them() {
    let names = [workload(512, 0, 0), workload(0, 128, 4096), workload(512, 128, 0), workload(16, 4, 2)];
    assert_eq!(
        names.map(|w| w.to_string()),
        ["pp512", "tg128 @ d4096", "pp512+tg128", "pp16+tg4 @ d2"].map(str::to_owned)
    );
}

fn run_on(device: &str, args: &[&str]) -> Output {
    Command::new(setup::ntransformer()).args(args).args(["--device", device]).stdin(Stdio::null()).output().unwrap()
}

fn run(args: &[&str]) -> Output {
    run_on("cpu", args)
}

fn stdout(args: &[&str]) -> String {
    let output = run(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Small tests, in an order that fills the cache and overwrites it.
const SMALL: [&str; 11] = ["bench", "-q", "-p", "4,0", "-n", "2", "-d", "0,3", "--pg", "5,2", "-r3"];
const NAMES: [&str; 6] = ["pp4", "tg2", "pp5+tg2", "pp4 @ d3", "tg2 @ d3", "pp5+tg2 @ d3"];

#[test]
fn json_has_every_sample_and_what_follows_from_them() {
    let results: Vec<Value> = serde_json::from_str(&stdout(&[&SMALL[..], &["-o", "json"]].concat())).unwrap();
    assert_eq!(results.iter().map(|r| r["test"].as_str().unwrap()).collect::<Vec<_>>(), NAMES);
    let gguf = demo::gguf().unwrap();
    for result in &results {
        let number = |key: &str| result[key].as_f64().unwrap_or_else(|| panic!("{key} in {result}"));
        let samples: Vec<f64> = result["samples_ns"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        let tokens = number("n_prompt") + number("n_gen");
        assert_eq!(samples.len(), 3);
        let rates: Vec<f64> = samples.iter().map(|ns| tokens * 1e9 / ns).collect();
        // E[x^2] - E[x]^2, the other formula.
        let reference = |values: &[f64]| {
            let (sum, squares) = values.iter().fold((0.0, 0.0), |(s, q), v| (s + v, q + v * v));
            (sum / 3.0, ((squares - sum * sum / 3.0) / 2.0).max(0.0).sqrt())
        };
        for (values, mean, deviation) in [(&samples, "avg_ns", "stddev_ns"), (&rates, "avg_ts", "stddev_ts")] {
            let expected = reference(values);
            approx::assert_relative_eq!(number(mean), expected.0, max_relative = 1e-6);
            approx::assert_abs_diff_eq!(number(deviation), expected.1, epsilon = expected.0 * 1e-5);
        }
        let weights = number("n_passes") * number("read_per_pass") / tokens * number("avg_ts") / 1e9;
        approx::assert_relative_eq!(number("avg_gbs"), weights, max_relative = 1e-9);
        assert_eq!(number("model_n_params"), gguf.tensors().iter().map(|t| t.elems() as f64).sum::<f64>());
        assert_eq!(number("model_size"), gguf.tensors().iter().map(|t| t.bytes as f64).sum::<f64>());
        assert_eq!(result["model_type"], "llama 8.4M Q8_0");
    }
    let shape = |i: usize| ["n_prompt", "n_gen", "n_depth", "n_passes"].map(|key| results[i][key].as_u64().unwrap());
    assert_eq!([shape(0), shape(4), shape(5)], [[4, 0, 0, 1], [0, 2, 3, 2], [5, 2, 3, 3]]);
}

/// The cells of a line of CSV by RFC 4180.
fn csv_cells(line: &str) -> Vec<String> {
    let (mut cells, mut quoted) = (vec![String::new()], false);
    for c in line.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => cells.push(String::new()),
            c => cells.last_mut().unwrap().push(c),
        }
    }
    cells
}

#[test]
fn csv_has_the_same_columns_in_every_line() {
    let text = stdout(&[&SMALL[..], &["-o", "csv"]].concat());
    let lines: Vec<_> = text.lines().map(csv_cells).collect();
    assert_eq!(lines.len(), 1 + NAMES.len());
    assert!(lines.iter().all(|line| line.len() == lines[0].len()), "{text}");
    let column = |name: &str| lines[0].iter().position(|cell| cell == name).unwrap_or_else(|| panic!("{name}: {text}"));
    assert_eq!(lines[1..].iter().map(|line| line[column("test")].as_str()).collect::<Vec<_>>(), NAMES);
    for line in &lines[1..] {
        let samples: Vec<f64> = line[column("samples_ns")].split(' ').map(|ns| ns.parse().unwrap()).collect();
        let mean: f64 = line[column("avg_ns")].parse().unwrap();
        assert!(samples.len() == 3 && (samples.iter().sum::<f64>() / 3.0 - mean).abs() < 1.0, "{line:?}");
    }
}

#[test]
fn the_table_is_markdown_with_even_columns() {
    let text = stdout(&[&SMALL[..], &["--streaming", "--vram-budget", "8MiB"]].concat());
    let (table, streamed) = text.split_once("\n\n").unwrap_or_else(|| panic!("{text}"));
    // What was moved, and what was waited for.
    assert_eq!(streamed.lines().count(), 2 * NAMES.len(), "{text}");
    let lines: Vec<&str> = table.lines().collect();
    let cells = |line: &str| -> Vec<String> {
        let inner =
            line.strip_prefix("| ").and_then(|line| line.strip_suffix(" |")).unwrap_or_else(|| panic!("{text}"));
        inner.split(" | ").map(|cell| cell.trim().to_owned()).collect()
    };
    assert_eq!(cells(lines[0]), ["model", "device", "size", "params", "streamed", "test", "t/s", "GB/s"]);
    assert!(lines[1].chars().all(|c| "|-: ".contains(c)), "{text}");
    assert!(lines.iter().all(|line| line.chars().count() == lines[0].chars().count()), "{text}");
    assert_eq!(lines[2..].iter().map(|line| cells(line)[5].clone()).collect::<Vec<_>>(), NAMES);
    for line in &lines[2..] {
        let line = cells(line);
        assert_eq!((line.len(), line[2].as_str(), line[3].as_str()), (8, "8.52 MiB", "8.39 M"));
        assert!(line[4].ends_with(" %") && !line[4].starts_with("0 "), "{text}");
        let (rate, deviation) = line[6].split_once(" ± ").unwrap();
        assert!(rate.parse::<f64>().unwrap() > 0.0 && deviation.parse::<f64>().unwrap() >= 0.0, "{text}");
        assert!(line[7].parse::<f64>().is_ok(), "{text}");
    }
}

/// In the emulator, whose times mean nothing: that every kernel of a token is there, and reads what it must.
#[test]
fn a_profile_lists_the_kernels_of_a_token() {
    let model = setup::root().join("assets/demo-small.gguf");
    let args = ["bench", "-q", "-p0", "-n1", "-d2", "-r1", "--profile", "-m", model.to_str().unwrap(), "-o"];
    let run = |format| {
        let output = run_on("emulator", &[&args[..], &[format]].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let results: Value = serde_json::from_str(&run("json")).unwrap();
    let (result, profile) = (&results[0], &results[0]["profile"]);
    let kernels = profile["kernels"].as_array().unwrap_or_else(|| panic!("{results}"));
    let sum = |key: &str| kernels.iter().map(|kernel| kernel[key].as_f64().unwrap()).sum::<f64>();
    approx::assert_relative_eq!(sum("us"), profile["kernels_us"].as_f64().unwrap(), max_relative = 1e-9);
    assert!(profile["read_gbs"].as_f64().unwrap() > 0.0 && profile["token_us"].as_f64().unwrap() > 0.0);
    // Matrices are nearly all of a model's weights; keys and values of the third token are 3 positions of each layer.
    let (read, counted) = (result["read_per_pass"].as_f64().unwrap(), sum("bytes"));
    assert!((0.9 * read..1.1 * read).contains(&counted), "{counted} bytes of {read} are counted: {profile:#}");
    let config = Config::new(&ntransformer::gguf::Gguf::open(&model).unwrap(), None, usize::MAX).unwrap();
    let cached = kernels.iter().find(|kernel| kernel["of"] == "KV cache").unwrap_or_else(|| panic!("{profile:#}"));
    assert_eq!(cached["bytes"].as_f64().unwrap(), (config.layers * 3 * 2 * 2 * config.dims.kv_width()) as f64);
    assert_eq!(cached["launches"].as_f64().unwrap(), config.layers as f64);

    let table = run("md");
    let lines: Vec<&str> = table.lines().filter(|line| line.starts_with('|')).skip(3).collect();
    assert!(table.contains("| kernel ") && table.contains("Without a profile, a token takes "), "{table}");
    assert!(lines.iter().all(|line| line.chars().count() == lines[0].chars().count()), "{table}");
    assert!(lines.last().unwrap().starts_with("| all kernels "), "{table}");
}

#[test]
fn a_models_text_cannot_break_the_table() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.gguf");
    let mut writer = ntransformer::gguf::Writer::new();
    let demo = demo::gguf().unwrap();
    for (key, value) in demo.metadata().iter().filter(|(key, _)| *key != "general.size_label") {
        writer.set_value(key, value).unwrap();
    }
    writer.set("general.size_label", "8|\n\"B").unwrap();
    for tensor in demo.tensors() {
        let ntransformer::gguf::GgmlType::Supported(ty) = tensor.ty else { panic!("{tensor:?}") };
        writer.tensor(&tensor.name, &tensor.dims, ty).unwrap();
    }
    let mut data = writer.begin(std::fs::File::create(&file).unwrap()).unwrap();
    demo.tensors().iter().for_each(|tensor| data.write(demo.bytes(tensor)).unwrap());
    data.finish().unwrap();

    let args = |format| ["bench", "-q", "-r1", "-p1", "-n0", "-o", format, "-m", file.to_str().unwrap()];
    let table = stdout(&args("md"));
    assert!(table.lines().count() == 3 && table.contains(r#"| llama 8\| "B Q8_0 |"#), "{table}");
    let json: Value = serde_json::from_str(&stdout(&args("json"))).unwrap();
    assert_eq!(json[0]["model_type"], "llama 8|\n\"B Q8_0");
    assert!(stdout(&args("csv")).contains("\"llama 8|\n\"\"B Q8_0\""));
}

#[test]
fn benchmark_is_bench_with_its_defaults() {
    let model = setup::root().join("assets/demo-small.gguf");
    let text = stdout(&["--benchmark", "-n", "2", "-q", "-m", model.to_str().unwrap()]);
    let tests: Vec<_> = text.lines().skip(2).map(|line| line.split('|').nth_back(3).unwrap().trim()).collect();
    assert_eq!(tests, ["pp512", "tg2"]);
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let refused = |args: &[&str], code: i32, part: &str| {
        let output = run(args);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(code), &[][..]), "{args:?}: {message}");
        assert!(message.contains(part), "{args:?}: {message}");
    };
    refused(&["bench", "-r", "0"], 2, "'--repetitions <N>': 0 is not in 1..");
    refused(&["bench", "-r", "4294967295"], 2, "is not in 1..=1000000");
    refused(&["--benchmark", "--top-k", "1"], 2, "cannot be used with");
    refused(&["--benchmark", "--json-mode"], 2, "cannot be used with");
    refused(&["bench", "-p", "x"], 2, "'x' for '--n-prompt");
    refused(&["bench", "-pg", "512,128"], 2, "--pg PP,TG");
    refused(&["bench", "--pg", "512"], 2, "such as 512,128");
    refused(&["bench", "--pg", "0,4"], 2, "such as 512,128");
    refused(&["bench", "-o", "xml"], 2, "md, json, csv");
    refused(&["bench", "-p", "1", "-n", "1", "--profile"], 1, "launches no kernels: a profile takes a GPU");
    refused(&["bench", "-n", "0", "--profile"], 1, "-n asks for none");
    refused(&["bench", "--profile", "-o", "csv"], 1, "-o md or -o json");
    refused(&["bench", "-p", "0", "-n", "0"], 1, "nothing to measure");
    refused(&["bench", "-d", "1000"], 1, "pp512 @ d1000 needs a context of 1512 tokens, the model allows 1024");
    refused(&["bench", "-p", "18446744073709551615"], 1, "the model allows 1024");
    refused(&["bench", "-c", "100"], 1, "pp512 needs a context of 512 tokens, -c gives 100");
    refused(&["bench", "-p", "9", "-n", "0", "-c", "2000"], 1, "context_length");
    refused(&["bench", "-m", "/nonexistent/model.gguf"], 1, "/nonexistent/model.gguf");
    refused(&["--benchmark", "-p", "text"], 2, "cannot be used with");
}
