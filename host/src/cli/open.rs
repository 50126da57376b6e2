//! From flags to a model on a device.

use std::{
    io::{self, IsTerminal, Write},
    mem::ManuallyDrop,
    num::NonZeroU32,
    ops::{Deref, DerefMut},
    path::PathBuf,
    time::Instant,
};

use anyhow::Context;
use bytesize::ByteSize;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use indicatif::{ProgressBar, ProgressStyle};
use nvme::PciAddress;

use super::{interrupt, trace::TraceFile};
use crate::{
    demo,
    engine::{
        Budget, DeviceChoice, DiskReads, DriveChoice, Engine, LoadOptions, Loading, ModelFile, NvmeOptions, Placement,
        Runner, Submit,
    },
    gguf::Gguf,
    stream::{plan::RamAccess, ring::Buffers},
};

/// Which model, where, and how much is said about it.
#[derive(Debug, clap::Args)]
pub struct ModelArgs {
    /// The model, a GGUF file. The built-in demo model if absent.
    #[arg(short, long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    /// Where to compute: auto, cpu, cuda, cuda:N, or emulator (the GPU kernels without a GPU: slow, for tests).
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: DeviceChoice,
    /// Keep what does not fit into device memory in RAM, and what does not fit there on disk, and stream it.
    #[arg(long)]
    streaming: bool,
    /// Device memory to use at most, e.g. 8GiB or 50%. What is free if absent.
    #[arg(long, value_name = "SIZE")]
    vram_budget: Option<Budget>,
    /// RAM to use at most for layers that are streamed, e.g. 20GiB or 50%; the others are streamed from the model's file. What is
    /// available if absent, but for 15 % of all RAM, and 4 GiB at least.
    #[arg(long, value_name = "SIZE")]
    ram_budget: Option<Budget>,
    /// Layers that streamed ones have room for on the device: more keep the link busy, fewer leave room for layers that stay.
    #[arg(long, value_name = "N", default_value = "auto", value_parser = buffers)]
    n_buffers: Buffers,
    /// How the device gets at layers in RAM: copy (through room on the device, as --n-buffers says), zero-copy (kernels read them over
    /// the link: slower, above all for prompts, but it takes no room), or auto: copy unless there is no room.
    #[arg(long, value_name = "HOW", default_value = "auto", value_parser = ram_access())]
    ram_access: RamAccess,
    /// Slow copies to the device down to this many bytes a second, e.g. 6.5GB/s, to see what another machine would do.
    #[arg(long, value_name = "RATE", value_parser = rate)]
    link_limit: Option<f64>,
    /// How what stays on disk is read: io_uring or pread, past the page cache; page-cache, by way of it; auto, the first of these that works.
    #[arg(long, value_name = "WAY", default_value = "auto")]
    disk_reads: DiskReads,
    /// Read what stays on disk from this drive by our own driver, without the kernel: auto, or its PCI address. The model is laid there by
    /// `ntransformer nvme write`, or dd. GPUNVME_PCI_BDF if absent; without either, the model's file is read.
    #[arg(long, value_name = "BDF", requires_all = ["streaming", "model"])]
    nvme: Option<DriveChoice>,
    /// Logical block of that drive that the model begins at. GPUNVME_GGUF_LBA if absent, else 0.
    #[arg(long, value_name = "BLOCK")]
    nvme_lba: Option<u64>,
    /// Namespace of that drive that the model is on. GPUNVME_NAMESPACE if absent, else the one that holds the model.
    #[arg(long, value_name = "ID")]
    nvme_namespace: Option<NonZeroU32>,
    /// The GPU that the drive may write to, by its PCI address. GPUNVME_GPU_BDF if absent, else what CUDA says.
    #[arg(long, value_name = "BDF")]
    nvme_gpu: Option<PciAddress>,
    /// Who submits the drive's commands: cpu, or gpu (a kernel of the GPU that computes). cpu if absent.
    #[arg(long, value_name = "WHO")]
    nvme_submit: Option<Submit>,
    /// Write what disk, link and device did when to a file, for ui.perfetto.dev or chrome://tracing.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Say more on stderr.
    #[arg(short, long, conflicts_with = "quiet")]
    pub verbose: bool,
    /// Say nothing on stderr but errors.
    #[arg(short, long)]
    pub quiet: bool,
}

/// An engine that is gone when nobody needs it, unless the user has asked to stop: to free it would wait for the copies and kernels that
/// are under way, and the process is about to end.
pub struct Loaded(ManuallyDrop<Engine>);

impl Deref for Loaded {
    type Target = Engine;

    fn deref(&self) -> &Engine {
        &self.0
    }
}

impl DerefMut for Loaded {
    fn deref_mut(&mut self) -> &mut Engine {
        &mut self.0
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        if !interrupt::requested() {
            // SAFETY: dropped once, and not used again.
            unsafe { ManuallyDrop::drop(&mut self.0) }
        }
    }
}

impl ModelArgs {
    /// Reads the file's structure, with a context of `context` tokens.
    pub fn open(&self, context: Option<usize>) -> anyhow::Result<ModelFile> {
        let file = ModelFile::from_gguf(self.gguf()?, context)?;
        let (gguf, config) = (file.gguf(), file.config());
        self.say(&format!(
            "model: {} ({}, {} layers, {}{})",
            config.name.as_deref().unwrap_or(gguf.name()).escape_debug(),
            config.arch.name(),
            config.layers,
            ByteSize(gguf.file_bytes()),
            match gguf.parts().len() {
                1 => String::new(),
                parts => format!(" in {parts} files"),
            }
        ));
        self.say(&format!("context: {} tokens (the model allows {})", config.dims.context, config.max_context));
        if self.verbose {
            self.say(&format!("sizes: {:?}", config.dims));
        }
        Ok(file)
    }

    /// The file that -m names, or the demo model.
    pub fn gguf(&self) -> anyhow::Result<Gguf> {
        Ok(match &self.model {
            Some(path) => Gguf::open(path)?,
            None => demo::gguf()?,
        })
    }

    /// Loads the weights, with room for `wanted` rows of logits.
    pub fn load(&self, file: ModelFile, wanted: usize) -> anyhow::Result<Loaded> {
        interrupt::install();
        let options = self.options(wanted);
        let bar = if self.quiet { ProgressBar::hidden() } else { ProgressBar::new(file.load_bytes()?) };
        let template = "loading {bar:30} {bytes}/{total_bytes} {binary_bytes_per_sec}";
        bar.set_style(ProgressStyle::with_template(template).context("the progress bar's template")?);
        let (mut begin, mut bytes) = (None, 0);
        let engine = file.load(self.device, &options, |event| match event {
            Loading::Device(line) => bar.suspend(|| self.say(&format!("device: {line}"))),
            Loading::Bytes { done, .. } => {
                begin.get_or_insert_with(Instant::now);
                bytes = done;
                bar.set_position(done);
            }
        });
        bar.finish_and_clear();
        let mut engine = engine.inspect_err(|e| {
            if e.is_cancelled() {
                self.say("interrupted while loading");
            }
        })?;
        engine.runner().trace(self.trace.is_some());
        let moved = engine.memory().device_weights + engine.memory().pinned;
        if let Some(begin) = begin.filter(|_| moved > 0) {
            let seconds = begin.elapsed().as_secs_f64();
            self.say(&format!(
                "loaded {} in {seconds:.2} s, {}/s",
                ByteSize(bytes),
                ByteSize((bytes as f64 / seconds) as u64)
            ));
        }
        if self.streaming {
            let memory = engine.memory();
            let (streamed, disk, zero_copy) =
                (memory.streamed_per_pass, memory.disk_per_pass, memory.zero_copy_per_pass);
            let [all, stays] = [memory.read_per_pass, memory.read_per_pass - streamed].map(ByteSize);
            let some = |bytes: u64, what: &str| (bytes > 0).then(|| format!("{} {what}", ByteSize(bytes)));
            let sources = [
                some(streamed - disk - zero_copy, "come from RAM"),
                some(zero_copy, "are read in RAM (zero-copy)"),
                some(disk, "come from disk"),
            ];
            let sources: Vec<_> = sources.into_iter().flatten().collect();
            self.say(&match streamed {
                0 => format!("streaming: all {all} of weights fit on the device, nothing to stream"),
                _ => format!(
                    "streaming: {stays} of {all} of weights stay on the device, {:.1} of {} layers, {} in each pass",
                    memory.resident_layers,
                    engine.config().layers,
                    sources.join(" and ")
                ),
            });
        }
        Ok(Loaded(ManuallyDrop::new(engine)))
    }

    /// The file of --trace, empty. To be asked for before the weights are loaded, which takes long.
    pub fn trace_file(&self) -> anyhow::Result<Option<TraceFile>> {
        self.trace.as_deref().map(TraceFile::create).transpose()
    }

    /// Writes the trace of an engine that [`Self::load`] made.
    pub fn write_trace(&self, file: Option<TraceFile>, runner: &mut dyn Runner) -> anyhow::Result<()> {
        if let Some(line) = file.map_or(Ok(None), |file| file.write(runner))? {
            self.say(&line);
        }
        Ok(())
    }

    /// What loading the model would place where.
    pub fn plan(&self, file: &ModelFile, wanted: usize) -> anyhow::Result<Placement> {
        Ok(file.plan(self.device, &self.options(wanted))?)
    }

    fn options(&self, wanted: usize) -> LoadOptions {
        LoadOptions {
            streaming: self.streaming,
            vram_budget: self.vram_budget,
            ram_budget: self.ram_budget,
            buffers: self.n_buffers,
            ram_access: self.ram_access,
            link_limit: self.link_limit,
            disk_reads: self.disk_reads,
            nvme: NvmeOptions {
                drive: self.nvme,
                lba: self.nvme_lba,
                namespace: self.nvme_namespace,
                gpu: self.nvme_gpu,
                submit: self.nvme_submit,
            },
            wanted,
            cancel: interrupt::flag(),
            announce: self.announce(),
        }
    }

    /// A line on stderr, unless -q.
    pub fn say(&self, line: &str) {
        if !self.quiet {
            say(line);
        }
    }

    /// Where the engine says what takes long, and warns.
    fn announce(&self) -> fn(&str) {
        if self.quiet { |_| () } else { say }
    }

    /// A counter on stderr that only a terminal shows.
    pub fn counter(&self, template: &str, len: u64) -> anyhow::Result<ProgressBar> {
        if self.quiet || !std::io::stderr().is_terminal() {
            return Ok(ProgressBar::hidden());
        }
        Ok(ProgressBar::new(len).with_style(ProgressStyle::with_template(template)?))
    }
}

fn buffers(text: &str) -> Result<Buffers, String> {
    match (text, text.parse()) {
        ("auto", _) => Ok(Buffers::Auto),
        (_, Ok(count)) => Ok(Buffers::Count(count)),
        _ => Err("expected auto, or a number of layers of 1 or more".into()),
    }
}

fn ram_access() -> impl TypedValueParser<Value = RamAccess> {
    PossibleValuesParser::new(["auto", "copy", "zero-copy"]).try_map(|how| how.parse::<RamAccess>())
}

/// Bytes a second: a size, with or without `/s`.
fn rate(text: &str) -> Result<f64, String> {
    let size = text.strip_suffix("/s").unwrap_or(text).parse::<ByteSize>().ok().filter(|size| size.0 > 0);
    size.map(|size| size.0 as f64).ok_or("expected bytes a second, such as 6.5GB/s".into())
}

/// A line on stderr. That nobody reads it is no reason to stop.
pub fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;

    #[test]
    fn values_of_flags() {
        assert_eq!(buffers("auto"), Ok(Buffers::Auto));
        assert_eq!(buffers("3"), Ok(Buffers::Count(NonZeroUsize::new(3).unwrap())));
        assert_eq!(["0", "-1", "two", ""].map(|text| buffers(text).is_err()), [true; 4]);
        assert_eq!(rate("6.5GB/s"), Ok(6.5e9));
        assert_eq!(rate("1GiB"), Ok(f64::from(1 << 30)));
        assert_eq!(rate("1000000"), Ok(1e6));
        assert_eq!(["0", "0GB/s", "-1GB/s", "fast", "/s", "nan"].map(|text| rate(text).is_err()), [true; 6]);
    }
}
