//! The figures of a run whose weights were streamed.

use bytesize::ByteSize;
use serde_json::{Value, json};

use crate::{engine::MemoryReport, model::Flowed, stream::plan::Rates};

/// What was streamed in some passes, and how fast.
pub struct Figures {
    /// Passes over the weights.
    pub passes: usize,
    /// Tokens that they took.
    pub tokens: usize,
    /// Seconds that they took, all together.
    pub seconds: f64,
    /// Bytes of a pass.
    pub memory: MemoryReport,
    /// What link and disk attain alone.
    pub rates: Rates,
    /// What was waited for.
    pub flowed: Flowed,
}

impl Figures {
    /// Bytes a second over the link: those of the passes in the time that they took. None where kernels read over it for several tokens
    /// at once: nobody counts how often they read the same.
    pub fn link(&self) -> Option<f64> {
        let once = self.memory.zero_copy_per_pass == 0 || self.tokens == self.passes;
        once.then(|| self.attained(self.memory.streamed_per_pass))
    }

    /// The same as a share of what copies over the link attain alone.
    pub fn link_share(&self) -> Option<f64> {
        Some(self.link()? / self.rates.link?)
    }

    /// Bytes a second from the disk, if any come from there.
    pub fn disk(&self) -> Option<f64> {
        (self.memory.disk_per_pass > 0).then(|| self.attained(self.memory.disk_per_pass))
    }

    fn attained(&self, per_pass: u64) -> f64 {
        self.passes as f64 * per_pass as f64 / self.seconds.max(1e-9)
    }

    /// Lines for people: what travelled, and what was waited for, if anything was copied.
    pub fn lines(&self, of: &str) -> Vec<String> {
        let MemoryReport { streamed_per_pass, disk_per_pass, zero_copy_per_pass, .. } = self.memory;
        let at = self
            .link()
            .map_or(String::new(), |link| format!(", at {}{}", rate(link), share(self.link_share(), "link")));
        let in_ram = match zero_copy_per_pass {
            0 => String::new(),
            all if all == streamed_per_pass => " by zero-copy".into(),
            some => format!(", {} of it by zero-copy", ByteSize(some)),
        };
        let from_disk = match self.disk() {
            None => String::new(),
            Some(disk) => format!(
                "; {} of it from disk at {}{}",
                ByteSize(disk_per_pass),
                rate(disk),
                share(self.rates.disk.map(|rate| disk / rate), "disk")
            ),
        };
        let Flowed { link_waits_for_room, link_waits_for_data, link_waits_for_host, compute_waits, .. } = self.flowed;
        let per_pass = |seconds: f64| format!("{:.2} ms", seconds * 1e3 / self.passes.max(1) as f64);
        let data = match disk_per_pass {
            0 => String::new(),
            _ => format!(", {} for the disk", per_pass(link_waits_for_data)),
        };
        let moved = format!("{of}: a pass moves {} over the link{in_ram}{at}{from_disk}", ByteSize(streamed_per_pass));
        let waits = format!(
            "{of}: in a pass of {} the link waits {} for room in the ring{data}, {} for the host; the device {} for weights",
            per_pass(self.seconds),
            per_pass(link_waits_for_room),
            per_pass(link_waits_for_host),
            per_pass(compute_waits),
        );
        [moved].into_iter().chain((streamed_per_pass > zero_copy_per_pass).then_some(waits)).collect()
    }

    /// For programs, in bytes and seconds; totals but for the bytes of a pass and rates.
    pub fn json(&self) -> Value {
        json!({
            "link_bytes_per_pass": self.memory.streamed_per_pass,
            "zero_copy_bytes_per_pass": self.memory.zero_copy_per_pass,
            "link_bytes_per_second": self.link(),
            "link_measured_bytes_per_second": self.rates.link,
            "link_share": self.link_share(),
            "disk_bytes_per_pass": self.memory.disk_per_pass,
            "disk_bytes_per_second": self.disk(),
            "disk_measured_bytes_per_second": self.rates.disk,
            "link_bytes": self.flowed.link_bytes,
            "link_busy_seconds": self.flowed.link_busy,
            "link_waits_for_room_seconds": self.flowed.link_waits_for_room,
            "link_waits_for_data_seconds": self.flowed.link_waits_for_data,
            "link_waits_for_host_seconds": self.flowed.link_waits_for_host,
            "compute_waits_seconds": self.flowed.compute_waits,
        })
    }
}

/// `6.50 GB/s`, `200.1 MB/s`.
fn rate(bytes_per_second: f64) -> String {
    match bytes_per_second {
        slow if slow < 1e9 => format!("{:.1} MB/s", slow / 1e6),
        fast => format!("{:.2} GB/s", fast / 1e9),
    }
}

fn share(share: Option<f64>, of: &str) -> String {
    share.map_or(String::new(), |share| format!(", {:.1} % of what the {of} attains alone", share * 100.0))
}
