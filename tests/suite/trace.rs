//! `--trace FILE`, and the figures of what was streamed.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Output, Stdio},
};

use serde_json::Value;

use crate::setup;

/// A budget that leaves most of the demo model's matrices outside, and a context that leaves room for them.
const STREAMED: [&str; 9] = ["--device", "cpu", "-c", "128", "-t", "0", "--streaming", "--vram-budget", "6MiB"];
const PROMPT: &str = "Once upon a time";

fn run(args: &[&str]) -> Output {
    let output = Command::new(setup::ntransformer()).args(args).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn streamed(args: &[&str]) -> Output {
    run(&[&STREAMED, args].concat())
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stdout)))
}

/// A complete event of a trace.
#[derive(Clone, Debug)]
struct Event {
    lane: String,
    name: String,
    kind: String,
    begin: f64,
    end: f64,
    args: Value,
}

struct Trace {
    events: Vec<Event>,
    about: Value,
}

impl Trace {
    fn read(path: &Path) -> Self {
        let trace: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        let all = trace["traceEvents"].as_array().unwrap();
        let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("{value}")).to_owned();
        let names = all.iter().filter(|event| event["ph"] == "M" && event["name"] == "thread_name");
        let lanes: BTreeMap<u64, String> =
            names.map(|event| (event["tid"].as_u64().unwrap(), text(&event["args"]["name"]))).collect();
        let complete = |event: &Value| {
            let (begin, seconds) = (event["ts"].as_f64().unwrap(), event["dur"].as_f64().unwrap());
            assert!(begin >= 0.0 && seconds >= 0.0, "{event}");
            let (lane, args) = (lanes[&event["tid"].as_u64().unwrap()].clone(), event["args"].clone());
            let (name, kind) = (text(&event["name"]), text(&event["cat"]));
            Event { lane, name, kind, begin, end: begin + seconds, args }
        };
        let events = all.iter().filter(|event| event["ph"] == "X").map(complete).collect();
        Trace { events, about: trace["otherData"].clone() }
    }

    fn lane(&self, lane: &str) -> Vec<&Event> {
        let mut events: Vec<_> = self.events.iter().filter(|event| event.lane == lane).collect();
        events.sort_by(|a, b| a.begin.total_cmp(&b.begin));
        events
    }

    /// In each lane, one thing after the other; all within the passes but what runs ahead of them.
    fn check(&self, layers: usize) {
        let lanes: BTreeMap<&str, ()> = self.events.iter().map(|event| (event.lane.as_str(), ())).collect();
        for lane in lanes.keys() {
            for pair in self.lane(lane).windows(2) {
                // Half a nanosecond: sums of rounded numbers.
                assert!(pair[0].end <= pair[1].begin + 5e-4, "{lane}: {:?} overlaps {:?}", pair[0], pair[1]);
            }
        }
        let passes = self.lane("passes");
        let (first, last) = (passes[0].begin, passes[passes.len() - 1].end);
        for event in self.lane("compute") {
            assert!((first..=last + 5e-4).contains(&event.begin) && event.end <= last + 5e-4, "{event:?}");
            let pass = &passes[event.args["pass"].as_u64().unwrap() as usize - 1];
            assert!(pass.begin <= event.begin + 5e-4 && event.end <= pass.end + 5e-4, "{event:?} is not in {pass:?}");
        }
        for event in self.events.iter().filter(|event| event.kind != "wait" && event.kind != "pass") {
            let known = (0..layers).map(|layer| format!("layer {layer}")).chain(["head".to_owned()]);
            assert!(known.into_iter().any(|name| name == event.name), "{event:?}");
        }
        for event in self.events.iter().filter(|event| ["link", "disk"].contains(&event.kind.as_str())) {
            let (bytes, gbs) = (event.args["bytes"].as_f64().unwrap(), event.args["GB/s"].as_f64().unwrap());
            let expected = bytes / ((event.end - event.begin) * 1e3).max(1.0);
            // The file's times are whole nanoseconds.
            assert!((gbs / expected - 1.0).abs() < 0.01 || event.end - event.begin < 0.1, "{event:?}");
        }
    }

    fn bytes(&self, kind: &str, pass: u64) -> u64 {
        let of = self.events.iter().filter(|event| event.kind == kind && event.args["pass"] == pass);
        of.map(|event| event.args["bytes"].as_u64().unwrap()).sum()
    }
}

/// Every byte of every pass is in the trace, on the CPU and on the GPU's code.
#[test]
fn a_trace_has_all_copies_and_computations() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("trace.json");
    let model = setup::root().join("assets/demo-small.gguf");
    let small = ["-m", model.to_str().unwrap(), "--device", "emulator", "-n", "3", "-p", "A", "-c", "32", "-t", "0"];
    let emulated = [&small[..], &["--streaming", "--ram-access", "copy", "--vram-budget"]].concat();
    // The least budget is in the plan.
    let plan = json(&run(&[&emulated[..], &["1GiB", "--plan", "--json"]].concat()));
    let least = plan["vram_least_bytes"].to_string();
    let traced = ["--json", "-q", "--trace", file.to_str().unwrap()];
    for args in
        [[&STREAMED[..], &["-p", PROMPT, "-n", "6"], &traced].concat(), [&emulated[..], &[&least], &traced].concat()]
    {
        let report = json(&run(&args));
        let trace = Trace::read(&file);
        let layers = trace.about["layers"].as_u64().unwrap() as usize;
        trace.check(layers);
        let passes = ["prompt", "decode"].map(|part| report[part]["passes"].as_u64().unwrap()).iter().sum::<u64>();
        let names: Vec<_> = trace.lane("passes").iter().map(|pass| pass.name.clone()).collect();
        assert_eq!(names, (1..=passes).map(|pass| format!("pass {pass}")).collect::<Vec<_>>());
        let streamed = report["memory"]["streamed_per_pass"].as_u64().unwrap();
        assert!(streamed > 0 && trace.about["streamed_per_pass"] == streamed);
        for pass in 1..=passes {
            assert_eq!(trace.bytes("link", pass), streamed, "pass {pass}");
            let computed = trace.lane("compute");
            let of_pass = computed.iter().filter(|event| event.kind == "compute" && event.args["pass"] == pass);
            assert_eq!(of_pass.count(), layers + 1, "all layers and the head, resident ones too");
        }
        assert!(trace.bytes("link", passes + 1) <= streamed && trace.bytes("link", passes + 2) == 0);
    }
}

/// What is read from disk is in the trace too, and no more of it than was asked for.
#[test]
fn a_trace_shows_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    // The demo model that is built in is not on disk.
    let (model, file) = (setup::root().join("assets/demo.gguf"), dir.path().join("trace.json"));
    let args = [
        "-p",
        PROMPT,
        "-n",
        "5",
        "-m",
        model.to_str().unwrap(),
        "--ram-budget",
        "1MiB",
        "--trace",
        file.to_str().unwrap(),
    ];
    let report = json(&streamed(&[&args[..], &["--json", "-q"]].concat()));
    let trace = Trace::read(&file);
    trace.check(8);
    let disk = report["memory"]["disk_per_pass"].as_u64().unwrap();
    assert!(disk > 0 && disk <= report["memory"]["streamed_per_pass"].as_u64().unwrap());
    assert_eq!(report["decode"]["streamed"]["disk_bytes_per_pass"], disk);
    let read: u64 =
        trace.events.iter().filter(|event| event.kind == "disk").map(|e| e.args["bytes"].as_u64().unwrap()).sum();
    // Five passes, and what was read ahead in the end; not what had been read ahead when the trace began, up to 16 MiB.
    assert!((3 * disk..=7 * disk).contains(&read), "{read} bytes of {disk} a pass");
}

#[test]
fn a_trace_of_nothing_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("trace.json");
    let output = run(&["--device", "cpu", "-n", "2", "--trace", file.to_str().unwrap()]);
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(log.contains("nothing in it, since nothing is streamed"), "{log}");
    assert!(!log.contains("over the link"), "{log}");
    let trace = Trace::read(&file);
    assert!(trace.events.is_empty() && trace.about["streamed_per_pass"] == 0);
}

/// Before anything is loaded.
#[test]
fn a_trace_that_cannot_be_written_is_refused() {
    for command in [&["-n", "1"][..], &["bench", "-p", "1", "-n", "0"], &["--chat"]] {
        let args = [command, &["--device", "cpu", "--trace", "/nonexistent/trace.json"]].concat();
        let output = Command::new(setup::ntransformer()).args(&args).stdin(Stdio::null()).output().unwrap();
        let log = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{log}");
        assert!(log.contains("--trace /nonexistent/trace.json: cannot be written"), "{log}");
        assert!(!log.contains("device:"), "{log}");
    }
}

/// A limited link is that fast: where it bounds a run, the run attains it.
#[test]
fn a_limited_link_bounds_a_run() {
    let limit = 20e6;
    let output = streamed(&["-p", PROMPT, "-n", "5", "--link-limit", "20MB/s", "--json", "-v"]);
    let (report, log) = (json(&output), String::from_utf8(output.stderr).unwrap());
    let (decode, memory) = (&report["decode"], &report["memory"]);
    let figure = |name: &str| decode["streamed"][name].as_f64().unwrap_or_else(|| panic!("{name}: {report:#}"));
    let streamed = memory["streamed_per_pass"].as_f64().unwrap();
    let seconds = decode["seconds"].as_f64().unwrap();
    let attained = 4.0 * streamed / seconds;
    assert!((0.9 * limit..1.1 * limit).contains(&attained), "{attained} bytes a second: {report:#}");
    approx::assert_relative_eq!(figure("link_bytes_per_second"), attained, max_relative = 1e-6);
    let measured = figure("link_measured_bytes_per_second");
    // Measured in some copies, and so with what other programs do meanwhile.
    assert!((0.6 * limit..1.1 * limit).contains(&measured), "{measured} bytes a second were measured");
    approx::assert_relative_eq!(figure("link_share"), attained / measured, max_relative = 1e-6);
    // The link is never idle for long, and it is what the device waits for.
    approx::assert_relative_eq!(figure("link_bytes"), 4.0 * streamed, max_relative = 0.15);
    assert!(figure("link_busy_seconds") > 0.9 * seconds, "{report:#}");
    assert!(figure("compute_waits_seconds") > 0.5 * seconds, "{report:#}");
    let waits = ["room", "data", "host"].map(|cause| figure(&format!("link_waits_for_{cause}_seconds")));
    assert!(waits.iter().all(|&wait| (0.0..0.1 * seconds).contains(&wait)), "{report:#}");
    assert_eq!(waits[1], 0.0, "nothing is on disk");
    for part in
        ["decode: a pass moves ", " over the link, at ", " % of what the link attains alone", "for room in the ring"]
    {
        assert!(log.contains(part), "{part} is missing in {log}");
    }
}

/// A computation that is slower than the link: the link waits for room in the ring, and that is what is said.
#[test]
fn a_slow_computation_is_waited_for() {
    // A prompt of many tokens costs much and moves each weight once.
    let prompt = "Once upon a time there was a dog. ".repeat(12);
    let report = json(&streamed(&["-n", "1", "--json", "-q", "-p", &prompt]));
    let prompt = &report["prompt"];
    let figure = |name: &str| prompt["streamed"][name].as_f64().unwrap();
    assert!(figure("link_waits_for_room_seconds") > 0.2 * prompt["seconds"].as_f64().unwrap(), "{report:#}");
    assert!(figure("link_waits_for_host_seconds") < figure("link_waits_for_room_seconds"), "{report:#}");
}

/// The same figures in bench's forms.
#[test]
fn bench_has_the_figures_too() {
    let bench =
        ["bench", "--device", "cpu", "-q", "-p", "0", "-n", "2", "-r", "2", "--streaming", "--vram-budget", "6MiB"];
    let limited = [&bench[..], &["--link-limit", "20MB/s"]].concat();
    let result = &json(&run(&[&limited[..], &["-o", "json"]].concat()))[0];
    let number = |name: &str| result[name].as_f64().unwrap_or_else(|| panic!("{name}: {result:#}"));
    let attained = 2.0 * number("streamed_per_pass") / number("avg_ns");
    approx::assert_relative_eq!(number("link_gbs"), attained, max_relative = 1e-3);
    approx::assert_relative_eq!(
        number("link_percent"),
        attained / number("link_measured_gbs") * 100.0,
        max_relative = 1e-3
    );
    assert!((0.018..0.022).contains(&number("link_gbs")), "{result:#}");
    assert!(number("compute_waits_ns") > 0.5 * number("avg_ns") && number("compute_waits_ns") < number("avg_ns"));
    assert!(result["disk_gbs"].is_null());
    let table = String::from_utf8(run(&limited).stdout).unwrap();
    assert!(table.contains("tg2: a pass moves ") && table.contains("for room in the ring"), "{table}");
    let resident =
        String::from_utf8(run(&["bench", "--device", "cpu", "-q", "-p", "0", "-n", "1", "-r", "1"]).stdout).unwrap();
    assert_eq!(resident.lines().count(), 3, "{resident}");
}
