//! A model on a device, ready to run.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use bytesize::ByteSize;

use super::{Budget, EngineError, Placement, plan_for};
use crate::{
    device::{Device, DeviceError, Launch, cuda::nvme::Settings, top_k::Candidate},
    model::{Config, Embedding, Flowed, Layers, Model, State, Trace, Weights, forward},
    stream::{
        DiskReads, Progress, Reading, Reads, Streamed, Streams,
        nvme::{NvmeError, NvmeOptions, NvmeReads, Submit},
        plan::{RamAccess, Rates},
        ring::Buffers,
    },
};

/// How a model is placed.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Stream the layers that do not fit.
    pub streaming: bool,
    /// Device memory to use at most. None: what is free.
    pub vram_budget: Option<Budget>,
    /// RAM to use at most for what is streamed. None: what is free, but for a reserve.
    pub ram_budget: Option<Budget>,
    /// The size of the ring that streamed matrices go through.
    pub buffers: Buffers,
    /// How the device gets at what is in RAM.
    pub ram_access: RamAccess,
    /// Bytes a second that copies to the device are slowed down to, to see what another machine would do. None: as it is.
    pub link_limit: Option<f64>,
    /// How the model's files are read for what is streamed.
    pub disk_reads: DiskReads,
    /// The drive that what every pass reads comes from by our own driver, instead of from the model's files.
    pub nvme: NvmeOptions,
    /// Logits rows of one pass at most: 1 to generate, more to score a text.
    pub wanted: usize,
    /// Whoever sets it, from whatever thread, ends loading and passes within about a layer's time, by an error that
    /// [`EngineError::is_cancelled`] tells from others. Texts end as if their caller had asked for it.
    pub cancel: Arc<AtomicBool>,
    /// Told what takes long meanwhile, and what goes on less well than it should.
    pub announce: fn(&str),
}

impl Default for LoadOptions {
    /// All of the model on the device, to generate; silent.
    fn default() -> Self {
        LoadOptions {
            streaming: false,
            vram_budget: None,
            ram_budget: None,
            buffers: Buffers::Auto,
            ram_access: RamAccess::Auto,
            link_limit: None,
            disk_reads: DiskReads::Auto,
            nvme: NvmeOptions::default(),
            wanted: 1,
            cancel: Arc::default(),
            announce: |_| (),
        }
    }
}

impl LoadOptions {
    /// What reads the model for `dev`.
    ///
    /// # Errors
    /// An environment variable that is malformed, or that asks for another GPU.
    pub fn reads<D: Device>(&self, dev: &D) -> Result<Box<dyn Reads>, EngineError> {
        let nvme = self.nvme.or_environment()?;
        let Some(drive) = nvme.drive.filter(|_| self.streaming) else { return Ok(Box::new(self.disk_reads)) };
        nvme.check_gpu(dev.name(), dev.pci_address().as_deref())?;
        let reads = NvmeReads::new(drive, nvme.spot(), self.disk_reads).beside(nvme.gpu);
        Ok(Box::new(match nvme.submit.unwrap_or_default() {
            Submit::Cpu => reads,
            Submit::Gpu => {
                let no_gpu = || NvmeError::NoGpu { device: dev.name().to_owned() };
                reads.by_gpu(dev.read_kernels().ok_or_else(no_gpu)?, Settings::default())
            }
        }))
    }
}

/// Where the model's memory is, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MemoryReport {
    /// Weights in device memory, the ring included.
    pub device_weights: u64,
    /// KV cache in device memory.
    pub kv: u64,
    /// Activations in device memory.
    pub activations: u64,
    /// Weights in page-locked RAM.
    pub pinned: u64,
    /// The maps of the model's files, which is read where it is as far as the device does not hold copies.
    pub mapped: u64,
    /// What is not streamed of the layers' matrices, in layers of average size, to a hundredth.
    pub resident_layers: f64,
    /// Bytes of weights that each pass reads.
    pub read_per_pass: u64,
    /// Bytes of weights that each pass brings to the device over the link.
    pub streamed_per_pass: u64,
    /// Bytes of these that it reads from the model's files before.
    pub disk_per_pass: u64,
    /// Bytes of these that kernels read over the link, where they are in RAM; the others are copied.
    pub zero_copy_per_pass: u64,
}

/// A model that computes, whatever it runs on.
pub trait Runner {
    /// The model's configuration.
    fn config(&self) -> &Config;
    /// The device's name.
    fn device(&self) -> &str;
    /// Tokens of one pass at most.
    fn max_batch(&self) -> usize;
    /// Where the memory is.
    fn memory(&self) -> MemoryReport;
    /// One pass over `tokens` at the positions from `start` on; leaves logits of the last `wanted` of them.
    ///
    /// # Errors
    /// When the tokens do not fit into the context, are not in the vocabulary, or the device fails.
    fn pass(&mut self, tokens: &[u32], start: usize, wanted: usize) -> Result<(), EngineError>;
    /// The last pass's logits, `[wanted x vocab]`.
    ///
    /// # Errors
    /// When the device fails.
    fn logits(&mut self) -> Result<Vec<f32>, EngineError>;
    /// The most likely token after the last one of the last pass. Found on the device: only its id travels. None where no
    /// logit is a number, or none was wanted.
    ///
    /// # Errors
    /// When the device fails.
    fn argmax(&mut self) -> Result<Option<u32>, EngineError>;
    /// The `k` most likely tokens after the last one of the last pass and their logits, the most likely first and of equal
    /// ones the one with the lower id, for k from 1 to [`MAX_TOP_K`](crate::device::MAX_TOP_K). Found on the device: only
    /// they travel. Logits that are no finite numbers are left out, so that there may be fewer, and none where none was wanted.
    ///
    /// # Errors
    /// When the device fails.
    fn top_k(&mut self, k: usize) -> Result<Vec<Candidate>, EngineError>;
    /// How fast bytes travel when nothing else does, as measured before loading, as far as that was needed.
    fn rates(&self) -> Rates {
        Rates::default()
    }
    /// What has been streamed so far, and what was waited for; none where nothing is streamed. What is waited for from now until the
    /// next pass is not counted.
    ///
    /// # Errors
    /// When the device fails.
    fn flowed(&mut self) -> Result<Option<Flowed>, EngineError> {
        Ok(None)
    }
    /// Remembers from now on what is streamed and computed when, or no longer.
    fn trace(&mut self, _on: bool) {}
    /// What was streamed and computed when, since this was last asked for. Empty where nothing is streamed.
    ///
    /// # Errors
    /// When the device fails.
    fn take_trace(&mut self) -> Result<Trace, EngineError> {
        Ok(Trace::default())
    }
    /// Starts or ends the timing of every launch ([`Device::profile`]).
    ///
    /// # Errors
    /// Where the device times none: only GPUs do.
    fn profile(&mut self, _on: bool) -> Result<(), EngineError> {
        Err(DeviceError::no_launches(self.device()).into())
    }
    /// The launches that were timed since this was last asked for ([`Device::take_profile`]).
    ///
    /// # Errors
    /// When the device fails.
    fn take_profile(&mut self) -> Result<Vec<Launch>, EngineError> {
        Err(DeviceError::no_launches(self.device()).into())
    }
    /// Bytes a second at which the device reads its memory when it does nothing else ([`Device::read_bandwidth`]).
    ///
    /// # Errors
    /// Where that is not known: only GPUs measure it.
    fn read_bandwidth(&mut self) -> Result<f64, EngineError> {
        Err(DeviceError::no_launches(self.device()).into())
    }
}

/// A model on device `D`.
pub struct Session<D: Device> {
    model: Model,
    weights: Weights<D>,
    state: State<D>,
    dev: D,
    memory: MemoryReport,
    rates: Rates,
    cancel: Arc<AtomicBool>,
    max_batch: usize,
    max_wanted: usize,
    /// Rows of logits that the last pass left.
    wanted: usize,
}

/// Bytes that loading the model will report to its progress.
///
/// # Errors
/// When a tensor's type is not supported.
pub fn load_bytes(model: &Model) -> Result<u64, EngineError> {
    let images = (0..model.config.layers).map(|i| model.layer_image(i)).chain([model.head_image()]);
    Ok(images.map(|image| image.map(|image| image.tensor_bytes() as u64)).sum::<Result<u64, _>>()?)
}

impl<D: Device + 'static> Session<D> {
    /// Places the model on `dev`, where [`plan_for`] says.
    ///
    /// # Errors
    /// When the memory does not suffice, with what would.
    pub fn load(dev: D, model: Model, options: &LoadOptions, progress: Progress<'_>) -> Result<Self, EngineError> {
        let reads = options.reads(&dev)?;
        Self::load_by(dev, model, options, &*reads, progress)
    }

    /// The same, the model's files read by `reads`.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_by(
        mut dev: D,
        model: Model,
        options: &LoadOptions,
        reads: &dyn Reads,
        progress: Progress<'_>,
    ) -> Result<Self, EngineError> {
        let reading = Reading { reads, cancel: options.cancel.clone() };
        let mut lost = None;
        let mut attempts = 0;
        let (placement, state, layers) = loop {
            let placement = plan_for(&mut dev, &model, options, reads)?;
            let stays = placement.plan.resident_bytes;
            if let Some((why, before)) = lost.take() {
                let [stays, before] = [stays, before].map(ByteSize);
                (options.announce)(&format!(
                    "{why}: somebody has taken memory since the plan was made; by a new one, {stays} of weights stay on the device \
                     instead of {before}"
                ));
            }
            match place(&mut dev, &model, &placement, &reading, progress) {
                Ok((state, layers)) => break (placement, state, layers),
                // With what is left, a plan that streams more.
                Err(e) if options.streaming && e.is_out_of_memory() && attempts < REPLANS => {
                    attempts += 1;
                    lost = Some((e, stays));
                    dev.release();
                }
                Err(e) => return Err(e.into()),
            }
        };
        let Placement { max_batch, max_wanted, kv, activations, .. } = placement;
        if let Some(why) = layers.pageable() {
            (options.announce)(&format!(
                "some RAM could not be page-locked ({why}): what was to be there is read through the page cache, which is slower"
            ));
        }
        if let Some(why) = layers.missing() {
            (options.announce)(&format!("{why}: what was to be there is read from disk in each pass, which is slower"));
        }
        if options.ram_access == RamAccess::Auto && placement.plan.zero_copies() {
            (options.announce)(
                "device memory has no room for a ring that streamed layers are copied through: kernels read them in RAM (zero-copy), \
                 which is slower, above all for prompts",
            );
        }
        if let Some(how) = layers.reads_by() {
            let way = layers.lands().map_or(String::new(), |way| format!("; it goes {way}"));
            (options.announce)(&format!("what is on disk is read by {how}{way}"));
        }
        let embedding = if model.tied() { Embedding::Device(layers.output().clone()) } else { Embedding::Host };
        let always: u64 = placement.always.iter().map(|(_, bytes)| bytes).sum();
        let memory = MemoryReport {
            device_weights: layers.device_bytes(),
            kv,
            activations,
            pinned: layers.pinned_bytes(),
            mapped: model.gguf.file_bytes(),
            resident_layers: placement.resident_layers(),
            read_per_pass: placement.plan.load.weight_bytes + always,
            streamed_per_pass: layers.streamed_bytes(),
            disk_per_pass: layers.read_bytes(),
            zero_copy_per_pass: layers.zero_copy_bytes(),
        };
        let weights = Weights::new(embedding, Box::new(layers));
        let rates = placement.inputs.rates;
        let cancel = options.cancel.clone();
        Ok(Session { model, weights, state, dev, memory, rates, cancel, max_batch, max_wanted, wanted: 0 })
    }

    /// Waits for what was asked to be computed, unless nobody wants it any more: a pass whose weights are streamed may take seconds, for
    /// which a device's own way of waiting could not be left.
    fn wait(&mut self) -> Result<(), EngineError> {
        if self.memory.streamed_per_pass == 0 {
            return Ok(());
        }
        let end = self.dev.mark()?;
        while !self.dev.reached(&end)? {
            if self.cancel.load(Ordering::Relaxed) {
                return Err(DeviceError::Cancelled.into());
            }
            // As the device's own way does: sleeping would cost a fast token a good part of its time.
            std::hint::spin_loop();
        }
        Ok(())
    }
}

/// How often a plan that does not fit any more is made anew.
const REPLANS: usize = 3;

/// Takes all memory of the plan, and loads the weights.
fn place<D: Device>(
    dev: &mut D,
    model: &Model,
    placement: &Placement,
    reading: &Reading<'_>,
    progress: Progress<'_>,
) -> Result<(State<D>, Streamed<D>), DeviceError> {
    let Placement { max_batch, max_wanted, .. } = *placement;
    let (dims, layers) = (&model.config.dims, model.config.layers);
    dev.load_kernels(dims, &placement.types)?;
    dev.prepare(dims, max_batch)?;
    let state = State::new(dev, dims, layers, max_batch, max_wanted)?;
    let streams = Streams::of(&placement.inputs, &placement.plan);
    Ok((state, Streamed::load(dev, model, &streams, reading, progress)?))
}

impl<D: Device + 'static> Runner for Session<D> {
    fn config(&self) -> &Config {
        &self.model.config
    }

    fn device(&self) -> &str {
        self.dev.name()
    }

    fn max_batch(&self) -> usize {
        self.max_batch
    }

    fn memory(&self) -> MemoryReport {
        self.memory
    }

    fn pass(&mut self, tokens: &[u32], start: usize, wanted: usize) -> Result<(), EngineError> {
        let Config { file, dims, max_context, .. } = &self.model.config;
        if tokens.is_empty() || tokens.len() > self.max_batch || wanted > tokens.len().min(self.max_wanted) {
            let (max_batch, max_wanted) = (self.max_batch, self.max_wanted);
            return Err(EngineError::Pass { tokens: tokens.len(), wanted, max_batch, max_wanted });
        }
        if start.saturating_add(tokens.len()) > dims.context {
            let (max_new, context, limit) = (tokens.len(), dims.context, *max_context);
            return Err(EngineError::Context { prompt: start, max_new, context, limit });
        }
        if let Some(&token) = tokens.iter().find(|&&token| token as usize >= dims.vocab) {
            return Err(EngineError::Vocabulary { file: file.clone(), token, vocab: dims.vocab });
        }
        let want = (tokens.len() - wanted..tokens.len()).map(|i| i as u32).collect();
        let batch = self.model.batch(tokens, start, want);
        forward(&mut self.dev, &self.model, &mut self.weights, &mut self.state, &batch)?;
        self.wanted = wanted;
        Ok(())
    }

    fn logits(&mut self) -> Result<Vec<f32>, EngineError> {
        self.wait()?;
        Ok(self.dev.fetch(self.state.logits(), self.wanted, self.model.config.dims.vocab)?)
    }

    fn argmax(&mut self) -> Result<Option<u32>, EngineError> {
        self.wait()?;
        let best = self.dev.argmax(self.state.logits(), self.wanted, self.model.config.dims.vocab)?;
        Ok(best.last().copied().flatten())
    }

    fn top_k(&mut self, k: usize) -> Result<Vec<Candidate>, EngineError> {
        self.wait()?;
        let mut best = self.dev.top_k(self.state.logits(), self.wanted, self.model.config.dims.vocab, k)?;
        Ok(best.pop().unwrap_or_default())
    }

    fn rates(&self) -> Rates {
        self.rates
    }

    fn flowed(&mut self) -> Result<Option<Flowed>, EngineError> {
        Ok(self.weights.layers().flowed(&self.dev)?)
    }

    fn trace(&mut self, on: bool) {
        self.weights.layers().trace(on);
    }

    fn take_trace(&mut self) -> Result<Trace, EngineError> {
        Ok(self.weights.layers().take_trace(&self.dev)?)
    }

    fn profile(&mut self, on: bool) -> Result<(), EngineError> {
        Ok(self.dev.profile(on)?)
    }

    fn take_profile(&mut self) -> Result<Vec<Launch>, EngineError> {
        Ok(self.dev.take_profile()?)
    }

    fn read_bandwidth(&mut self) -> Result<f64, EngineError> {
        Ok(self.dev.read_bandwidth()?)
    }
}
