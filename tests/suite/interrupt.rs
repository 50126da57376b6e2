//! Ctrl-C: the command ends at once, with what there is, whatever it is doing.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, ChildStdout, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::setup;

/// What ending may take, on a machine that does other things, too.
const PROMPTLY: Duration = Duration::from_secs(2);

struct Running {
    child: Child,
    stdout: ChildStdout,
    /// What it has said on stderr so far.
    log: String,
    stderr: BufReader<std::process::ChildStderr>,
}

impl Running {
    fn start(args: &[&str]) -> Self {
        let mut command = Command::new(setup::ntransformer());
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        Running { child, stdout, log: String::new(), stderr: BufReader::new(stderr) }
    }

    /// Waits until it has said a line with `part`.
    fn until(mut self, part: &str) -> Self {
        loop {
            let mut line = String::new();
            assert!(self.stderr.read_line(&mut line).unwrap() > 0, "it ended: {}", self.log);
            self.log += &line;
            if line.contains(part) {
                return self;
            }
        }
    }

    /// Waits until there is text.
    fn until_text(mut self) -> Self {
        self.stdout.read_exact(&mut [0]).unwrap();
        self
    }

    fn signal(&self) {
        kill_process(Pid::from_child(&self.child), Signal::INT).unwrap();
    }

    /// Sends the signal, and expects it to end promptly. Its exit code, the rest of its text, and all that it said.
    #[track_caller]
    fn interrupt(mut self) -> (String, String) {
        self.signal();
        let begin = Instant::now();
        let mut text = String::new();
        self.stdout.read_to_string(&mut text).unwrap();
        self.stderr.read_to_string(&mut self.log).unwrap();
        let code = self.child.wait().unwrap().code();
        assert_eq!(code, Some(130), "{}", self.log);
        assert!(begin.elapsed() < PROMPTLY, "{:?}: {}", begin.elapsed(), self.log);
        (text, self.log)
    }
}

/// The demo model as a file, of which 4 MB are streamed to the CPU, some of it from disk: a token takes 4 s.
fn slow<'a>(model: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    const ARGS: [&str; 12] = [
        "--device",
        "cpu",
        "-c",
        "64",
        "--streaming",
        "--vram-budget",
        "7MiB",
        "--link-limit",
        "1MB/s",
        "-t",
        "0",
        "-m",
    ];
    [&ARGS[..], &[model], more].concat()
}

fn model() -> String {
    setup::root().join("assets/demo.gguf").to_str().unwrap().to_owned()
}

#[test]
fn while_weights_are_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let (model, trace) = (model(), dir.path().join("trace.json"));
    // Over a link that would take 8 s.
    let args = ["--device", "emulator", "-c", "64", "--link-limit", "1MB/s", "-m", &model];
    let trace = ["--trace", trace.to_str().unwrap()];
    let run = Running::start(&[&args[..], &trace].concat()).until("device: ");
    thread::sleep(Duration::from_millis(500));
    let (text, log) = run.interrupt();
    assert!(text.is_empty() && log.ends_with("interrupted while loading\n"), "{log}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "a file is left");
    // Quietly, and with other commands.
    for more in [&["-q"][..], &["bench", "-q"]] {
        let args = [more, &["--device", "emulator", "-c", "512", "--link-limit", "1MB/s", "-m", &model]].concat();
        let run = Running::start(&args);
        thread::sleep(Duration::from_millis(700));
        assert_eq!(run.interrupt(), Default::default(), "{more:?}");
    }
}

/// In the first pass there is no text yet, and later what there is, with its figures.
#[test]
fn in_the_middle_of_a_pass() {
    let model = model();
    let (text, log) = Running::start(&slow(&model, &["-p", "Once upon a time"])).until("streaming: ").interrupt();
    assert_eq!(text.trim(), "", "{log}");
    assert!(log.contains("\nprompt: 0 tokens") && log.contains("\nmemory: "), "{log}");

    let run = Running::start(&slow(&model, &["-p", "Once upon a time"])).until_text();
    let begin = Instant::now();
    let (text, log) = run.interrupt();
    assert!(begin.elapsed() < PROMPTLY && text.ends_with('\n'), "{text:?}");
    assert!(log.contains("\nprompt: 5 tokens") && log.contains(" over the link, at "), "{log}");

    // As an object, too.
    let run = Running::start(&slow(&model, &["-p", "Once upon a time", "--json"])).until("streaming: ");
    let (text, log) = run.interrupt();
    let report: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}{log}"));
    assert_eq!((&report["stop"], &report["decode"]["tokens"]), (&"interrupted".into(), &0.into()));
}

/// Kernels that read in RAM are not waited for longer than a layer takes.
#[test]
fn in_the_middle_of_a_zero_copy_pass() {
    let model = model();
    let args = ["--device", "emulator", "-c", "64", "--streaming", "--ram-access", "zero-copy", "-m", &model];
    let more = ["--vram-budget", "7MiB", "-t", "0", "-p", "Once upon a time, there was a little girl"];
    let (text, log) = Running::start(&[&args[..], &more].concat()).until("streaming: ").interrupt();
    assert_eq!(text.trim(), "", "{log}");
    assert!(log.contains("are read in RAM (zero-copy)") && log.contains("\nprompt: 0 tokens"), "{log}");
}

/// Tables have the rows that were whole, and are whole themselves.
#[test]
fn in_a_benchmark() {
    let model = model();
    let args = [&["bench"], &slow(&model, &["-p", "1", "-n", "1", "-r", "1", "-o", "json"])[..]].concat();
    // bench has no temperature.
    let args: Vec<_> = args.into_iter().filter(|arg| !["-t", "0"].contains(arg)).collect();
    let (text, log) = Running::start(&args).until("streaming: ").interrupt();
    assert_eq!(text.split_whitespace().collect::<String>(), "[]", "{log}");
    assert!(log.ends_with("interrupted after 0 of 2 tests\n"), "{log}");
}

/// A perplexity that is in its first window.
#[test]
fn in_a_perplexity() {
    let (model, text) = (model(), setup::root().join("assets/heldout.txt"));
    let args = [&["perplexity", "-f", text.to_str().unwrap()], &slow(&model, &[])[..]].concat();
    let args: Vec<_> = args.into_iter().filter(|arg| !["-t", "0"].contains(arg)).collect();
    let (text, log) = Running::start(&args).until("streaming: ").interrupt();
    assert!(text.is_empty() && log.contains("interrupted in the first window"), "{log}");
}

/// Who presses it twice does not want to wait for anything.
#[test]
fn twice() {
    let model = model();
    let run = Running::start(&slow(&model, &["-p", "Once upon a time"])).until("streaming: ");
    run.signal();
    thread::sleep(Duration::from_millis(5));
    // It may have ended by now.
    let _ = kill_process(Pid::from_child(&run.child), Signal::INT);
    let begin = Instant::now();
    let Output { status, .. } = run.child.wait_with_output().unwrap();
    assert_eq!(status.code(), Some(130));
    assert!(begin.elapsed() < PROMPTLY);
}

/// An answer ends, and the conversation with it where nobody is at a terminal.
#[test]
fn in_a_conversation() {
    let model = model();
    let run = Running::start(&slow(&model, &["--chat", "-p", "Once upon a time"])).until("streaming: ");
    thread::sleep(Duration::from_millis(200));
    run.interrupt();
}
