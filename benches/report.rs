//! Tables for people, and a file for programs.

use std::{
    io::{self, Write},
    path::Path,
};

use serde_json::{Value, json};

/// Columns of a table that go onto a line of 120 characters.
pub const COLUMNS: usize = 5;

/// Every measurement that was made.
#[derive(Default)]
pub struct Report {
    measured: Vec<Value>,
}

impl Report {
    /// The head of a table of `columns`, and what its percentages are of: bytes a second.
    pub fn table(&mut self, device: &str, what: &'static str, columns: &[String], rate: f64) -> Table<'_> {
        print!("{:<7}", "");
        columns.iter().for_each(|column| print!("{column:>21}"));
        print!("\n{:<7}", "");
        columns.iter().for_each(|_| print!("{:>10} {:>5} {:>4}", "us", "GB/s", "%"));
        println!();
        Table { report: self, device: device.to_owned(), what, columns: columns.to_vec(), rate, next: 0 }
    }

    /// Adds a measurement that belongs to no table.
    pub fn add(&mut self, device: &str, what: &str, bytes: usize, seconds: f64) {
        self.measured
            .push(json!({ "device": device, "what": what, "us": seconds * 1e6, "gbs": bytes as f64 / seconds / 1e9 }));
    }

    /// Writes all measurements into `file`.
    pub fn write(&self, file: &Path) -> Result<(), String> {
        let lines: Vec<_> = self.measured.iter().map(Value::to_string).collect();
        std::fs::write(file, format!("[\n{}\n]\n", lines.join(",\n"))).map_err(|e| format!("{}: {e}", file.display()))
    }
}

/// A table that is printed while it is measured.
pub struct Table<'a> {
    report: &'a mut Report,
    device: String,
    what: &'static str,
    columns: Vec<String>,
    rate: f64,
    next: usize,
}

impl Table<'_> {
    /// Begins a line.
    pub fn row(&mut self, name: &str) {
        print!("{name:<7}");
        self.next = 0;
    }

    /// The line's next cell: what was read in `seconds`.
    pub fn cell(&mut self, name: &str, bytes: usize, seconds: f64) {
        let rate = bytes as f64 / seconds;
        let (us, gbs, percent) = (seconds * 1e6, rate / 1e9, 100.0 * rate / self.rate);
        print!("{us:>10.1} {gbs:>5.0} {percent:>3.0}%");
        let (device, what, column) = (&self.device, self.what, &self.columns[self.next]);
        self.report.measured.push(json!({
            "device": device, "what": what, "name": name, "of": column, "bytes": bytes, "us": us, "gbs": gbs, "percent": percent,
        }));
        self.next += 1;
        if self.next == self.columns.len() {
            println!();
        }
        // Whoever waits sees how far it is.
        let _ = io::stdout().flush();
    }
}
