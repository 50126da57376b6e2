//! Where the time of a generated token goes, kernel by kernel.

use std::time::Duration;

use super::{Bench, EngineError, Measured, Stage, Workload};
use crate::device::Launch;

/// Tokens whose launches are timed.
const TOKENS: usize = 8;

/// What a token spends in one kernel on one kind of operand.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelTime {
    /// The kernel's name.
    pub kernel: &'static str,
    /// What it works on: type and shape of a matrix, for one.
    pub label: String,
    /// Launches per token.
    pub launches: f64,
    /// Seconds per token.
    pub seconds: f64,
    /// Bytes of weights, or of keys and values, that are read per token; 0 where nobody counts them.
    pub bytes: f64,
}

/// Where the time of a generated token goes.
#[derive(Clone, Debug)]
pub struct Profile {
    /// What was profiled.
    pub workload: Workload,
    /// Tokens that were.
    pub tokens: usize,
    /// The kernels, those that take longest first.
    pub kernels: Vec<KernelTime>,
    /// A token's time when nothing is profiled.
    pub token: Duration,
    /// Bytes a second at which the device reads its memory when it does nothing else.
    pub read_bandwidth: f64,
}

impl Profile {
    /// Seconds per token of all kernels, each by itself.
    pub fn seconds(&self) -> f64 {
        self.kernels.iter().map(|kernel| kernel.seconds).sum()
    }

    /// Bytes per token that are known to be read.
    pub fn bytes(&self) -> f64 {
        self.kernels.iter().map(|kernel| kernel.bytes).sum()
    }
}

/// The launches of `tokens` tokens by kernel and label, the longest first.
fn by_kernel(launches: Vec<Launch>, tokens: usize) -> Vec<KernelTime> {
    let mut kernels: Vec<KernelTime> = Vec::new();
    let each = 1.0 / tokens as f64;
    for Launch { kernel, label, bytes, seconds } in launches {
        let found = kernels.iter().position(|known| known.kernel == kernel && known.label == label);
        let at = found.unwrap_or_else(|| {
            kernels.push(KernelTime { kernel, label, launches: 0.0, seconds: 0.0, bytes: 0.0 });
            kernels.len() - 1
        });
        kernels[at].launches += each;
        kernels[at].seconds += seconds * each;
        kernels[at].bytes += bytes as f64 * each;
    }
    kernels.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    kernels
}

impl Bench<'_> {
    /// Times every launch of some tokens of a workload that generates, `measured` before. Behind each token is the greedy choice
    /// of the next one, as in [`Bench::measure`]. Times of launches make kernels wait for each other, so they add up to more
    /// than a token takes where kernels overlap.
    ///
    /// # Errors
    /// A workload with a prompt, which would be something else; a device that measures no launches (only GPUs do); and all of
    /// [`Bench::measure`]'s.
    pub fn profile(&mut self, measured: &Measured, progress: &mut dyn FnMut(Stage)) -> Result<Profile, EngineError> {
        let workload = Workload { generate: measured.workload.generate.min(TOKENS), ..measured.workload };
        if !workload.is_answer() {
            return Err(EngineError::ProfiledPrompt(measured.workload.to_string()));
        }
        let read_bandwidth = self.runner.read_bandwidth()?;
        self.fill(workload.depth, progress)?;
        progress(Stage::Profile);
        self.runner.profile(true)?;
        let tokens = self.tokens(workload.generate);
        let run = self.run(&workload, &tokens);
        let launches = self.runner.take_profile();
        self.runner.profile(false)?;
        run?;
        let samples = measured.samples.len().max(1) as u32;
        Ok(Profile {
            workload: measured.workload,
            tokens: workload.generate,
            kernels: by_kernel(launches?, workload.generate),
            token: measured.samples.iter().sum::<Duration>() / samples / measured.workload.generate as u32,
            read_bandwidth,
        })
    }
}
