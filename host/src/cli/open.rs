//! From flags to a model on a device.

use std::{
    io::{self, IsTerminal, Write},
    path::PathBuf,
};

use anyhow::Context;
use bytesize::ByteSize;
use indicatif::{ProgressBar, ProgressStyle};

use crate::{
    demo,
    engine::{DeviceChoice, Engine, LoadOptions, Loading, ModelFile},
    gguf::Gguf,
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
    /// Stream the layers that do not fit into device memory through it, from RAM.
    #[arg(long)]
    streaming: bool,
    /// Device memory to use at most, e.g. 8GiB. What is free if absent.
    #[arg(long, value_name = "SIZE")]
    vram_budget: Option<ByteSize>,
    /// Say more on stderr.
    #[arg(short, long, conflicts_with = "quiet")]
    pub verbose: bool,
    /// Say nothing on stderr but errors.
    #[arg(short, long)]
    pub quiet: bool,
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
    pub fn load(&self, file: ModelFile, wanted: usize) -> anyhow::Result<Engine> {
        let options = LoadOptions {
            streaming: self.streaming,
            vram_budget: self.vram_budget.map(|b| b.0),
            wanted,
            announce: self.announce(),
        };
        let bar = if self.quiet { ProgressBar::hidden() } else { ProgressBar::new(file.load_bytes()?) };
        let template = "loading {bar:30} {bytes}/{total_bytes} {binary_bytes_per_sec}";
        bar.set_style(ProgressStyle::with_template(template).context("the progress bar's template")?);
        let engine = file.load(self.device, &options, |event| match event {
            Loading::Device(line) => bar.suspend(|| self.say(&format!("device: {line}"))),
            Loading::Bytes { done, .. } => bar.set_position(done),
        })?;
        bar.finish_and_clear();
        if self.streaming {
            let (layers, resident) = (engine.config().layers, engine.memory().resident_layers);
            self.say(&match layers - resident {
                0 => format!("streaming: all {layers} layers fit on the device, nothing to stream"),
                streamed => format!("streaming: {resident} layers on the device, {streamed} streamed from RAM"),
            });
        }
        Ok(engine)
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

/// A line on stderr. That nobody reads it is no reason to stop.
pub fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}
