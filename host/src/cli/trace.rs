//! `--trace FILE`: what link, disk and device did when, in the Trace Event Format that Perfetto and Chrome read.
//! <https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU>

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use anyhow::Context;
use serde_json::{Value, json};

use crate::{
    engine::Runner,
    model::{Cause, Lane, Span, Trace},
};

/// The thread numbers of the lanes in the file. Reads that overlap need one each.
const PASSES: usize = 1;
const COMPUTE: usize = 2;
const LINK: usize = 3;
const DISK: usize = 4;

/// The file, there before anything takes long. If nothing is written and it was not there before, it goes again.
pub struct TraceFile {
    path: PathBuf,
    file: Option<File>,
    is_new: bool,
}

impl Drop for TraceFile {
    fn drop(&mut self) {
        if self.is_new && self.file.is_some() {
            // That it cannot be removed is no reason to say more than why nothing was written.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl TraceFile {
    /// The file at `path`, which keeps what it has until [`Self::write`]: a run that fails takes no older trace away.
    pub fn create(path: &Path) -> anyhow::Result<Self> {
        let is_new = !path.exists();
        let file = File::options().write(true).create(true).truncate(false).open(path);
        let file = file.with_context(|| format!("--trace {}: cannot be written", path.display()))?;
        Ok(TraceFile { path: path.to_owned(), file: Some(file), is_new })
    }

    /// Writes what `runner` remembers. Answers what there is to say about it.
    pub fn write(mut self, runner: &mut dyn Runner) -> anyhow::Result<Option<String>> {
        let trace = runner.take_trace()?;
        let (path, file) = (&self.path, self.file.take().expect("it is written once"));
        // A pipe has no length.
        let emptied = file.metadata().and_then(|of| if of.is_file() { file.set_len(0) } else { Ok(()) });
        let mut out = BufWriter::new(file);
        let written = emptied.and_then(|()| write(&trace, runner, &mut out)).and_then(|()| out.flush());
        written.with_context(|| format!("--trace {}: cannot be written", path.display()))?;
        Ok(match (trace.spans.len(), trace.dropped) {
            (0, _) if runner.memory().streamed_per_pass == 0 => Some(format!(
                "{}: nothing in it, since nothing is streamed: all weights stay where they are computed",
                path.display()
            )),
            (0, _) if runner.memory().streamed_per_pass == runner.memory().zero_copy_per_pass => Some(format!(
                "{}: nothing in it, since nothing is copied: kernels read what is in RAM there (zero-copy)",
                path.display()
            )),
            (_, 0) => None,
            (kept, dropped) => Some(format!(
                "{}: the first {kept} spans; {dropped} later ones are left out, to bound its size",
                path.display()
            )),
        })
    }
}

/// One event to a line.
fn write(trace: &Trace, runner: &dyn Runner, out: &mut dyn Write) -> io::Result<()> {
    let (rates, memory) = (runner.rates(), runner.memory());
    let about = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "device": runner.device(),
        "model": runner.config().name,
        "layers": runner.config().layers,
        "streamed_per_pass": memory.streamed_per_pass,
        "disk_per_pass": memory.disk_per_pass,
        "zero_copy_per_pass": memory.zero_copy_per_pass,
        "link_bytes_per_second": rates.link,
        "disk_bytes_per_second": rates.disk,
    });
    write!(out, "{{\"displayTimeUnit\":\"ms\",\"otherData\":{about},\"traceEvents\":[")?;
    let mut separator = "\n";
    let mut event = |event: Value| write!(out, "{}{event}", std::mem::replace(&mut separator, ",\n"));
    event(json!({ "ph": "M", "pid": 1, "name": "process_name", "args": { "name": "ntransformer" } }))?;
    let begin = trace.spans.iter().map(|span| span.begin).fold(f64::INFINITY, f64::min);
    let (reads, others): (Vec<_>, Vec<_>) = trace.spans.iter().partition(|span| span.lane == Lane::Disk);
    let reads = beside_each_other(reads);
    let disks = reads.iter().map(|(at_once, _)| at_once + 1).max().unwrap_or(0);
    let disk_names = (0..disks).map(|i| (DISK + i, format!("disk, read {}", i + 1)));
    let names = [(PASSES, "passes"), (COMPUTE, "compute"), (LINK, "link")].map(|(lane, name)| (lane, name.to_owned()));
    for (lane, name) in names.into_iter().chain(disk_names) {
        event(json!({ "ph": "M", "pid": 1, "tid": lane, "name": "thread_name", "args": { "name": name } }))?;
        event(
            json!({ "ph": "M", "pid": 1, "tid": lane, "name": "thread_sort_index", "args": { "sort_index": lane } }),
        )?;
    }
    for (pass, [from, to]) in passes(&trace.spans) {
        let (ts, dur) = micros(from - begin, to - begin);
        event(
            json!({ "ph": "X", "pid": 1, "tid": PASSES, "cat": "pass", "name": format!("pass {pass}"), "ts": ts, "dur": dur, "args": { "pass": pass } }),
        )?;
    }
    let others = others.into_iter().map(|span| (if span.lane == Lane::Link { LINK } else { COMPUTE }, span));
    let reads = reads.into_iter().map(|(at_once, span)| (DISK + at_once, span));
    for (lane, span) in others.chain(reads) {
        event(complete(span, lane, begin, runner.config().layers))?;
    }
    writeln!(out, "\n]}}")
}

/// A complete event.
fn complete(span: &Span, lane: usize, begin: f64, layers: usize) -> Value {
    let group = if span.group < layers { format!("layer {}", span.group) } else { "head".to_owned() };
    let mut args = serde_json::Map::new();
    args.extend(span.pass.map(|pass| ("pass".to_owned(), json!(pass))));
    let name = match span.waits {
        None => group,
        Some(cause) => {
            args.insert("for".to_owned(), json!(group));
            let cause = match cause {
                Cause::Room => "room in the ring",
                Cause::Data => "the disk",
                Cause::Host => "the host",
                Cause::Weights => "weights",
            };
            format!("waits for {cause}")
        }
    };
    if span.bytes > 0 {
        args.insert("bytes".to_owned(), json!(span.bytes));
        args.insert("GB/s".to_owned(), json!(span.bytes as f64 / span.seconds.max(1e-9) / 1e9));
    }
    let cat = match (span.waits, span.lane) {
        (Some(_), _) => "wait",
        (None, Lane::Disk) => "disk",
        (None, Lane::Link) => "link",
        (None, Lane::Compute) => "compute",
    };
    let (ts, dur) = micros(span.begin - begin, span.begin - begin + span.seconds);
    json!({ "ph": "X", "pid": 1, "tid": lane, "cat": cat, "name": name, "ts": ts, "dur": dur, "args": args })
}

/// Beginning and duration in microseconds, of two times in seconds. Rounded to whole nanoseconds, so that what follows without a gap
/// does so in the file.
fn micros(from: f64, to: f64) -> (f64, f64) {
    let [from, to] = [from, to].map(|seconds| (seconds * 1e9).round());
    (from / 1e3, (to - from) / 1e3)
}

/// From the first wait or computation of each pass to the end of its last one, in seconds.
fn passes(spans: &[Span]) -> BTreeMap<u64, [f64; 2]> {
    let mut passes = BTreeMap::new();
    for span in spans.iter().filter(|span| span.lane == Lane::Compute) {
        let (from, to) = (span.begin, span.begin + span.seconds);
        let known: &mut [f64; 2] = passes.entry(span.pass.unwrap_or(0)).or_insert([from, to]);
        *known = [known[0].min(from), known[1].max(to)];
    }
    passes
}

/// Each span with a number that no other span has at the same time, as small as possible.
fn beside_each_other(mut spans: Vec<&Span>) -> Vec<(usize, &Span)> {
    spans.sort_by(|a, b| a.begin.total_cmp(&b.begin));
    let mut ends = Vec::<f64>::new();
    let mut number = |span: &Span| {
        let free = ends.iter().position(|&end| end <= span.begin).unwrap_or(ends.len());
        ends.resize(ends.len().max(free + 1), 0.0);
        ends[free] = span.begin + span.seconds;
        free
    };
    spans.into_iter().map(|span| (number(span), span)).collect()
}
