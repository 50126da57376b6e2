//! A profile as a table for people, and as JSON.

use std::io::{self, Write};

use serde_json::{Value, json};

use crate::engine::Profile;

/// Shares below this are added up in one line, in per cent.
const SMALL: f64 = 0.1;

/// A line of the table: name, operand, launches, microseconds, megabytes.
struct Line<'a> {
    kernel: &'a str,
    label: &'a str,
    launches: f64,
    seconds: f64,
    bytes: f64,
}

/// Prints the kernels of a token and what they add up to, in Markdown.
pub fn print(profile: &Profile, out: &mut impl Write) -> io::Result<()> {
    let all = profile.seconds();
    let share = |seconds: f64| if all > 0.0 { 100.0 * seconds / all } else { 0.0 };
    let lines = profile.kernels.iter().map(|k| Line {
        kernel: k.kernel,
        label: &k.label,
        launches: k.launches,
        seconds: k.seconds,
        bytes: k.bytes,
    });
    let (shown, small): (Vec<_>, Vec<_>) = lines.partition(|line| share(line.seconds) >= SMALL);
    let sum = |lines: &[Line], kernel| {
        let add = |of: fn(&Line) -> f64| lines.iter().map(of).sum();
        let (launches, seconds, bytes) = (add(|l| l.launches), add(|l| l.seconds), add(|l| l.bytes));
        Line { kernel, label: "", launches, seconds, bytes }
    };
    let together = [sum(&shown, ""), sum(&small, "(others)")];
    let total = sum(&together, "all kernels");
    let [_, others] = together;
    let rows: Vec<Line> = shown.into_iter().chain((!small.is_empty()).then_some(others)).chain([total]).collect();

    let read = profile.read_bandwidth;
    let (name, of) = (width(&rows, "kernel", |line| line.kernel), width(&rows, "of", |line| line.label));
    writeln!(out, "\n{}, a token on average of {}:\n", profile.workload, profile.tokens)?;
    writeln!(
        out,
        "| {:name$} | {:of$} | {:>8} | {:>9} | {:>6} | {:>8} | {:>6} | {:>6} |",
        "kernel", "of", "launches", "us", "share", "MB", "GB/s", "% read"
    )?;
    let rule = |width: usize| "-".repeat(width);
    let figures: Vec<_> = [8, 9, 6, 8, 6, 6].iter().map(|width| format!("{}:", rule(width - 1))).collect();
    writeln!(out, "| {} | {} | {} |", rule(name), rule(of), figures.join(" | "))?;
    for Line { kernel, label, launches, seconds, bytes } in rows {
        let (us, share, rate) = (seconds * 1e6, share(seconds), if seconds > 0.0 { bytes / seconds } else { 0.0 });
        write!(out, "| {kernel:name$} | {label:of$} | {launches:>8.1} | {us:>9.1} | {share:>5.1}% | ")?;
        // What nobody counts is not zero.
        match bytes > 0.0 {
            true => writeln!(out, "{:>8.1} | {:>6.0} | {:>5.1}% |", bytes / 1e6, rate / 1e9, 100.0 * rate / read)?,
            false => writeln!(out, "{:>8} | {:>6} | {:>6} |", "", "", "")?,
        }
    }
    let token = profile.token.as_secs_f64();
    let (counted, difference) = (100.0 * profile.bytes() / token / read, (all - token) * 1e6);
    writeln!(
        out,
        "\nWithout a profile, a token takes {:.1} us and reads at {counted:.1} % of {:.0} GB/s, which is what this device \
         reads when it does nothing else.",
        token * 1e6,
        read / 1e9
    )?;
    if difference >= 0.0 {
        writeln!(out, "That is {difference:.1} us less than the kernels one by one: there, each start is waited for.")
    } else {
        writeln!(
            out,
            "That is {:.1} us more than the kernels one by one: time between them, copies, and the way to the host and back.",
            -difference
        )
    }
}

/// The widest of a column's texts.
fn width<'a>(lines: &'a [Line], head: &str, of: fn(&Line<'a>) -> &'a str) -> usize {
    lines.iter().map(|line| of(line).chars().count()).fold(head.len(), usize::max)
}

/// All that a profile has: times in microseconds per token, rates in 10^9 bytes a second.
pub fn json(profile: &Profile) -> Value {
    let kernels = profile.kernels.iter().map(|kernel| {
        json!({
            "kernel": kernel.kernel,
            "of": kernel.label,
            "launches": kernel.launches,
            "us": kernel.seconds * 1e6,
            "bytes": kernel.bytes,
        })
    });
    json!({
        "tokens": profile.tokens,
        "read_gbs": profile.read_bandwidth / 1e9,
        "token_us": profile.token.as_secs_f64() * 1e6,
        "kernels_us": profile.seconds() * 1e6,
        "bytes": profile.bytes(),
        "kernels": kernels.collect::<Vec<_>>(),
    })
}
