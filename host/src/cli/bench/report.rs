//! What `ntransformer bench` prints: a table for people, JSON and CSV for programs. Names and units are llama-bench's
//! where it has them.

use std::{
    io::{self, Write},
    time::Duration,
};

use serde_json::{Map, Value, json};

use super::{super::flowed::Figures, Format, profile};
use crate::{
    engine::{Measured, MemoryReport, Profile, Runner, Workload, mean_and_deviation},
    gguf::Gguf,
    model::Flowed,
    stream::plan::Rates,
};

/// The model that is measured.
pub struct Subject {
    file: String,
    /// Architecture, size, and the type that most bytes are of: `llama 8B Q4_K`.
    kind: String,
    /// Bytes of all tensors.
    bytes: u64,
    /// Elements of all tensors.
    params: u64,
}

impl Subject {
    pub fn new(gguf: &Gguf) -> Self {
        let tensors = gguf.tensors();
        let sum = |of: &mut dyn Iterator<Item = u64>| of.fold(0, u64::saturating_add);
        let params = sum(&mut tensors.iter().map(|t| t.elems()));
        let bytes_of = |ty| sum(&mut tensors.iter().filter(|t| t.ty == ty).map(|t| t.bytes));
        let main_type = tensors.iter().map(|t| t.ty).max_by_key(|&ty| bytes_of(ty));
        let text = |key| gguf.metadata().str(key).ok().flatten().map(str::to_owned);
        let parts = [
            text("general.architecture"),
            Some(text("general.size_label").unwrap_or_else(|| count(params, 1).replace(' ', ""))),
            main_type.map(|ty| ty.to_string()),
        ];
        Subject {
            file: gguf.name().to_owned(),
            kind: parts.into_iter().flatten().collect::<Vec<_>>().join(" "),
            bytes: sum(&mut tensors.iter().map(|t| t.bytes)),
            params,
        }
    }
}

/// `8.03 B`, `8.41 M`.
fn count(n: u64, decimals: usize) -> String {
    match n {
        0..1_000_000_000 => format!("{:.decimals$} M", n as f64 / 1e6),
        _ => format!("{:.decimals$} B", n as f64 / 1e9),
    }
}

fn size(bytes: u64) -> String {
    match bytes >> 30 {
        0 => format!("{:.2} MiB", bytes as f64 / f64::from(1 << 20)),
        _ => format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30)),
    }
}

/// Results on their way out.
pub struct Report<W> {
    format: Format,
    out: W,
    subject: Subject,
    device: String,
    layers: usize,
    max_batch: usize,
    memory: MemoryReport,
    rates: Rates,
    /// Widths of the table's columns, in characters.
    widths: Vec<usize>,
    rows: usize,
    /// They come after the table: what was streamed, and profiles.
    streamed: Vec<String>,
    profiles: Vec<Profile>,
}

impl<W: Write> Report<W> {
    /// A report on `subject` as `runner` runs it; `workloads` are those that will be measured.
    pub fn new(format: Format, subject: Subject, runner: &dyn Runner, workloads: &[Workload], out: W) -> Self {
        let mut report = Report {
            format,
            out,
            subject,
            device: runner.device().to_owned(),
            layers: runner.config().layers,
            max_batch: runner.max_batch(),
            memory: runner.memory(),
            rates: runner.rates(),
            widths: Vec::new(),
            rows: 0,
            streamed: Vec::new(),
            profiles: Vec::new(),
        };
        let usual = "12345.67 ± 123.45";
        let cells = workloads.iter().map(|workload| report.cells(&workload.to_string(), usual, "1234.5"));
        let lines: Vec<Vec<String>> = cells.chain([report.names().map(str::to_owned).collect()]).collect();
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
        report.widths = (0..report.names().count()).map(width).collect();
        report
    }

    /// What comes before the first result.
    pub fn begin(&mut self) -> io::Result<()> {
        match self.format {
            Format::Md => {
                let names: Vec<_> = self.names().map(str::to_owned).collect();
                self.line(&names)?;
                let rules = self.widths.iter().enumerate().map(|(column, &width)| match is_text(column) {
                    true => "-".repeat(width),
                    false => format!("{}:", "-".repeat(width - 1)),
                });
                let rules: Vec<_> = rules.collect();
                self.line(&rules)
            }
            Format::Json => write!(self.out, "["),
            // The names come with the first result.
            Format::Csv => Ok(()),
        }
    }

    /// One result, and where its tokens' time goes.
    pub fn row(&mut self, measured: &Measured, profile: Option<Profile>) -> io::Result<()> {
        let first = self.rows == 0;
        self.rows += 1;
        match self.format {
            Format::Md => {
                let (rate, deviation) = mean_and_deviation(&measured.rates());
                let gbs = measured.bandwidth(rate, self.memory.read_per_pass) / 1e9;
                let cells = self.cells(
                    &measured.workload.to_string(),
                    &format!("{rate:.2} ± {deviation:.2}"),
                    &format!("{gbs:.1}"),
                );
                self.line(&cells)?;
                let streamed = self.figures(measured).map(|figures| figures.lines(&measured.workload.to_string()));
                self.streamed.extend(streamed.into_iter().flatten());
                self.profiles.extend(profile);
            }
            Format::Json => {
                let separator = if first { "" } else { "," };
                let mut fields = self.fields(measured);
                fields.extend(profile.map(|profile| ("profile".to_owned(), profile::json(&profile))));
                write!(self.out, "{separator}\n{:#}", Value::Object(fields))?;
            }
            Format::Csv => {
                let fields = self.fields(measured);
                if first {
                    let names: Vec<_> = fields.keys().map(String::as_str).collect();
                    writeln!(self.out, "{}", names.join(","))?;
                }
                writeln!(self.out, "{}", fields.values().map(csv).collect::<Vec<_>>().join(","))?;
            }
        }
        self.out.flush()
    }

    /// What comes after the last result.
    pub fn end(&mut self) -> io::Result<()> {
        match self.format {
            Format::Json => writeln!(self.out, "\n]"),
            Format::Md => {
                if !self.streamed.is_empty() {
                    writeln!(self.out, "\n{}", self.streamed.join("\n"))?;
                }
                self.profiles.iter().try_for_each(|profile| profile::print(profile, &mut self.out))
            }
            Format::Csv => Ok(()),
        }
    }

    fn streams(&self) -> bool {
        self.memory.streamed_per_pass > 0
    }

    /// The figures of what was streamed in all repetitions, if anything was.
    fn figures(&self, measured: &Measured) -> Option<Figures> {
        let Report { memory, rates, .. } = *self;
        let (times, seconds) = (measured.samples.len(), measured.samples.iter().sum::<Duration>().as_secs_f64());
        let (passes, tokens) = (measured.passes * times, measured.workload.tokens() * times);
        measured.flowed.map(|flowed| Figures { passes, tokens, seconds, memory, rates, flowed })
    }

    /// The names of the table's columns.
    fn names(&self) -> impl Iterator<Item = &'static str> + use<W> {
        let streamed = self.streams().then_some("streamed");
        ["model", "device", "size", "params"].into_iter().chain(streamed).chain(["test", "t/s", "GB/s"])
    }

    /// A line of the table.
    fn cells(&self, test: &str, rate: &str, gbs: &str) -> Vec<String> {
        let Subject { kind, bytes, params, .. } = &self.subject;
        let share = self.memory.streamed_per_pass as f64 / self.memory.read_per_pass.max(1) as f64;
        let streamed = format!("{:.0} %", 100.0 * share);
        let start = [kind.clone(), self.device.clone(), size(*bytes), count(*params, 2)].into_iter();
        let end = [test, rate, gbs].into_iter().map(str::to_owned);
        // The model's kind is from the file: it may not end a cell, nor the line.
        let clean = |cell: String| cell.replace(char::is_control, " ").replace('|', "\\|");
        start.chain(self.streams().then_some(streamed)).chain(end).map(clean).collect()
    }

    fn line(&mut self, cells: &[String]) -> io::Result<()> {
        for (column, (cell, &width)) in cells.iter().zip(&self.widths).enumerate() {
            match is_text(column) {
                true => write!(self.out, "| {cell:width$} ")?,
                false => write!(self.out, "| {cell:>width$} ")?,
            }
        }
        writeln!(self.out, "|")
    }

    /// All that is known of a result: sizes in bytes and tokens, times in ns, rates in tokens (`ts`) and in 10^9 bytes of
    /// weights (`gbs`) per second. Waits are a repetition's; what does not exist or is not known is null, in CSV an empty cell.
    fn fields(&self, measured: &Measured) -> Map<String, Value> {
        let samples_ns: Vec<u64> = measured.samples.iter().map(|time| time.as_nanos() as u64).collect();
        let samples_ts = measured.rates();
        let (avg_ns, stddev_ns) = mean_and_deviation(&samples_ns.iter().map(|&ns| ns as f64).collect::<Vec<_>>());
        let (avg_ts, stddev_ts) = mean_and_deviation(&samples_ts);
        let Workload { prompt, generate, depth } = measured.workload;
        let figures = self.figures(measured);
        let of = |figure: fn(&Figures) -> Option<f64>| figures.as_ref().and_then(figure);
        let gbs = |figure: fn(&Figures) -> Option<f64>| of(figure).map(|rate| rate / 1e9);
        // Nanoseconds of one repetition.
        let waits = |part: fn(&Flowed) -> f64| {
            let flowed = measured.flowed.as_ref();
            flowed.map(|flowed| (part(flowed) * 1e9 / measured.samples.len().max(1) as f64).round() as u64)
        };
        let fields = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "device": self.device,
            "n_threads": rayon::current_num_threads(),
            "model_filename": self.subject.file,
            "model_type": self.subject.kind,
            "model_size": self.subject.bytes,
            "model_n_params": self.subject.params,
            "n_layers": self.layers,
            "n_resident_layers": self.memory.resident_layers,
            "n_batch": self.max_batch,
            "read_per_pass": self.memory.read_per_pass,
            "streamed_per_pass": self.memory.streamed_per_pass,
            "disk_per_pass": self.memory.disk_per_pass,
            "zero_copy_per_pass": self.memory.zero_copy_per_pass,
            "test": measured.workload.to_string(),
            "n_prompt": prompt,
            "n_gen": generate,
            "n_depth": depth,
            "n_passes": measured.passes,
            "avg_ns": avg_ns.round() as u64,
            "stddev_ns": stddev_ns.round() as u64,
            "avg_ts": avg_ts,
            "stddev_ts": stddev_ts,
            "avg_gbs": measured.bandwidth(avg_ts, self.memory.read_per_pass) / 1e9,
            "link_gbs": gbs(Figures::link),
            "link_measured_gbs": self.rates.link.map(|rate| rate / 1e9),
            "link_percent": of(|figures| figures.link_share().map(|share| share * 100.0)),
            "disk_gbs": gbs(Figures::disk),
            "disk_measured_gbs": self.rates.disk.map(|rate| rate / 1e9),
            "link_waits_for_room_ns": waits(|flowed| flowed.link_waits_for_room),
            "link_waits_for_data_ns": waits(|flowed| flowed.link_waits_for_data),
            "link_waits_for_host_ns": waits(|flowed| flowed.link_waits_for_host),
            "compute_waits_ns": waits(|flowed| flowed.compute_waits),
            "samples_ns": samples_ns,
            "samples_ts": samples_ts,
        });
        match fields {
            Value::Object(fields) => fields,
            _ => unreachable!("json! of braces is an object"),
        }
    }
}

/// Texts are to the left, figures to the right.
fn is_text(column: usize) -> bool {
    column < 2
}

/// A cell by RFC 4180: texts in quotes, their quotes doubled. A list's elements are separated by blanks.
fn csv(value: &Value) -> String {
    let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
    match value {
        Value::String(text) => quoted(text),
        Value::Null => String::new(),
        Value::Array(list) => quoted(&list.iter().map(Value::to_string).collect::<Vec<_>>().join(" ")),
        other => other.to_string(),
    }
}
