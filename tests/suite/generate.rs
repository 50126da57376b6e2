//! The main job, run as a user runs it, on the demo model.

use std::{
    io::Read,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use ntransformer::{demo, gguf::Writer};
use serde_json::Value;

use crate::setup;

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(setup::ntransformer());
    command.args(["--device", "cpu"]).args(args).stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

/// Standard output of a run that worked.
fn text(args: &[&str]) -> String {
    let output = run(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&text(&[&["--json", "-q"], args].concat())).unwrap()
}

#[test]
fn without_arguments_a_story_is_told() {
    let output = run(&["--seed", "1"]);
    let story = String::from_utf8(output.stdout).unwrap();
    assert!(story.split_whitespace().count() > 50 && story.ends_with('\n'), "{story}");
    let log = String::from_utf8(output.stderr).unwrap();
    for part in [
        "model: demo",
        "context: 1024 tokens",
        "device: cpu",
        "seed: 1",
        "prompt:",
        "decode:",
        "tok/s",
        "GB/s",
        "memory:",
    ] {
        assert!(log.contains(part), "{part} is missing in:\n{log}");
    }
}

#[test]
fn temperature_has_the_name_that_it_has_elsewhere() {
    assert_eq!(json(&["-n", "1", "--temp", "0.25"])["sampling"]["temperature"], 0.25);
}

#[test]
fn a_seed_repeats_and_another_differs() {
    let story = |seed: &str| text(&["-q", "-n", "40", "--seed", seed]);
    assert_eq!(story("5"), story("5"));
    assert_ne!(story("5"), story("6"));
}

#[test]
fn greedy_needs_no_seed_and_top_k_of_one_is_greedy() {
    let greedy = text(&["-q", "-n", "30", "-p", "Once upon a time", "-t", "0"]);
    assert_eq!(greedy, text(&["-q", "-n", "30", "-p", "Once upon a time", "--top-k", "1", "--seed", "3"]));
    // The text is what follows the prompt.
    assert!(!greedy.starts_with("Once"), "{greedy}");
}

#[test]
fn length_and_end_stop_the_text() {
    let short = json(&["-n", "7", "-t", "0"]);
    assert_eq!((short["stop"].as_str(), short["tokens"].as_array().unwrap().len()), (Some("length"), 7));
    assert_eq!(json(&["-n", "0", "-p", "A"])["tokens"].as_array().unwrap().len(), 0);
    let ended = (1..20).map(|seed: u32| json(&["-n", "900", "--seed", &seed.to_string()])).find(|r| r["stop"] == "end");
    let ended = ended.expect("a story ends within 900 tokens for one seed of twenty");
    assert!(!ended["text"].as_str().unwrap().contains("<|end_of_text|>"));
    assert!(ended["tokens"].as_array().unwrap().len() < 900);
}

#[test]
fn a_prompt_from_a_file_is_the_prompt() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("prompt.txt");
    std::fs::write(&file, "Once upon a time").unwrap();
    let from_file = text(&["-q", "-n", "20", "-t", "0", "-f", file.to_str().unwrap()]);
    assert_eq!(from_file, text(&["-q", "-n", "20", "-t", "0", "-p", "Once upon a time"]));
}

#[test]
fn json_tells_where_time_and_memory_went() {
    let report = json(&["-n", "5", "-t", "0", "-p", "Once upon a time", "-c", "64"]);
    assert_eq!(report["decode"]["tokens"], 4, "the fifth token needs no pass of its own");
    assert_eq!(report["prompt"]["passes"], 1);
    assert_eq!(report["model"]["context"], 64);
    assert!(report["decode"]["tokens_per_second"].as_f64().unwrap() > 0.0);
    // 8 layers of K and V: 64 positions, 2 heads of 64, F16.
    assert_eq!(report["memory"]["kv"], 8 * 2 * 64 * 2 * 64 * 2);
    assert_eq!(report["memory"]["streamed_per_pass"], 0);
}

#[test]
fn streaming_gives_the_same_text() {
    let args = ["-q", "-n", "25", "-t", "0", "-p", "Once upon a time", "-c", "128"];
    let resident = text(&args);
    let output = run(&[&args[1..], &["--streaming", "--vram-budget", "8MiB"]].concat());
    assert_eq!(String::from_utf8(output.stdout).unwrap(), resident);
    let log = String::from_utf8(output.stderr).unwrap();
    let streamed = log.lines().find(|line| line.starts_with("streaming:")).expect("the plan is told");
    assert!(streamed.ends_with("come from RAM in each pass"), "{streamed}");
}

#[test]
fn ctrl_c_ends_the_text_and_still_reports() {
    // This seed's text is long: the signal comes first.
    let mut child = command(&["-n", "1000", "-c", "1024", "--seed", "3"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The text has begun, so the handler is in place.
    let mut first = [0; 1];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let started = Instant::now();
    let output = child.wait_with_output().unwrap();
    assert!(started.elapsed() < Duration::from_secs(20));
    let log = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{log}");
    assert!(log.contains("prompt:") && log.contains("memory:"), "{log}");
    assert!(output.stdout.ends_with(b"\n"));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut child =
        command(&["-n", "400", "--seed", "2"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 4];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let output = child.wait_with_output().unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && !log.contains("error"), "{log}");
}

#[test]
fn a_closed_stderr_does_not_matter() {
    let mut child = command(&["-n", "30", "-t", "0"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    assert!(child.wait_with_output().unwrap().status.success());
}

#[test]
fn a_newline_at_the_end_of_a_prompt_file_is_no_prompt() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = |text: &str| {
        let file = dir.path().join("prompt.txt");
        std::fs::write(&file, text).unwrap();
        json(&["-n", "1", "-f", file.to_str().unwrap()])["prompt"]["tokens"].as_u64().unwrap()
    };
    assert_eq!(tokens("Once upon a time\n"), tokens("Once upon a time"));
    assert_eq!(tokens("Once upon a time\n\n"), tokens("Once upon a time") + 1);
}

/// The demo model with an output matrix of its own, and an embedding of `token` that is not a number.
fn damaged_at(token: u32) -> Vec<u8> {
    let demo = demo::gguf().unwrap();
    let mut writer = Writer::new();
    for (key, value) in demo.metadata().iter() {
        writer.set_value(key, value).unwrap();
    }
    let embedding = demo.require("token_embd.weight").unwrap();
    for tensor in demo.tensors() {
        writer.tensor(&tensor.name, &tensor.dims, tensor.ty).unwrap();
    }
    writer.tensor("output.weight", &embedding.dims, embedding.ty).unwrap();
    let mut data = writer.begin(Vec::new()).unwrap();
    for tensor in demo.tensors() {
        let mut bytes = demo.bytes(tensor).to_vec();
        if tensor.name == embedding.name {
            // Q8_0: the first block's scale becomes an F16 NaN.
            let row = bytes.len() / embedding.dims[1] as usize;
            bytes[token as usize * row..][..2].copy_from_slice(&[0xff, 0x7f]);
        }
        data.write(&bytes).unwrap();
    }
    data.write(demo.bytes(embedding)).unwrap();
    data.finish().unwrap()
}

#[test]
fn an_error_after_some_text_is_on_a_line_of_its_own() {
    let prompt = ["-n", "8", "-t", "0", "-p", "Once upon a time"];
    let tokens = json(&prompt)["tokens"].as_array().unwrap().clone();
    let third = tokens[3].as_u64().unwrap() as u32;
    assert!(tokens[..3].iter().all(|t| *t != tokens[3]), "{tokens:?}");
    let dir = tempfile::tempdir().unwrap();
    let (model, log) = (dir.path().join("damaged.gguf"), dir.path().join("log"));
    std::fs::write(&model, damaged_at(third)).unwrap();
    // Both into one file, as a terminal shows them.
    let out = std::fs::File::create(&log).unwrap();
    let mut both = command(&[&["-q", "-m", model.to_str().unwrap()], &prompt[..]].concat());
    let status = both.stdout(out.try_clone().unwrap()).stderr(out).status().unwrap();
    let log = std::fs::read_to_string(&log).unwrap();
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!((status.code(), lines.len()), (Some(1), 2), "{log:?}");
    assert!(lines[0].starts_with(" there") && lines[1].contains("the model's logits at position"), "{log:?}");
}
