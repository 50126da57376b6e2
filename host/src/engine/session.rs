//! A model on a device, ready to run.

use bytesize::ByteSize;
use quant::TensorType;

use super::EngineError;
use crate::{
    device::{Device, DeviceError, Launch, top_k::Candidate},
    model::{Config, Embedding, Layers, Model, State, Weights, forward},
    pack::Image,
    stream::{Progress, Resident, Streamed, place_head},
};

/// Tokens that one pass takes at most. More tokens use the weights better but need more activations: at 512, an 8B
/// model's take 85 MB.
const MAX_BATCH: usize = 512;

/// Device memory that stays free unless a budget is set: kernels' code, and what allocations are rounded up by.
const HEADROOM: u64 = 256 << 20;

/// How a model is placed.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Stream the layers that do not fit.
    pub streaming: bool,
    /// Device memory to use at most, in bytes. None: what is free.
    pub vram_budget: Option<u64>,
    /// Logits rows of one pass at most: 1 to generate, more to score a text.
    pub wanted: usize,
    /// Told what takes long meanwhile, and what goes on less well than it should.
    pub announce: fn(&str),
}

impl Default for LoadOptions {
    /// All of the model on the device, to generate; silent.
    fn default() -> Self {
        LoadOptions { streaming: false, vram_budget: None, wanted: 1, announce: |_| () }
    }
}

/// Where the model's memory is, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryReport {
    /// Weights in device memory, streaming slots included.
    pub device_weights: u64,
    /// KV cache in device memory.
    pub kv: u64,
    /// Activations in device memory.
    pub activations: u64,
    /// Weights in page-locked RAM.
    pub pinned: u64,
    /// The maps of the model's files, which is read where it is as far as the device does not hold copies.
    pub mapped: u64,
    /// Layers that stay on the device.
    pub resident_layers: usize,
    /// Bytes of weights that each pass reads.
    pub read_per_pass: u64,
    /// Bytes of weights that each pass copies to the device.
    pub streamed_per_pass: u64,
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
    max_batch: usize,
    max_wanted: usize,
    /// Rows of logits that the last pass left.
    wanted: usize,
}

/// What has to be on the device, and what can be.
struct Needs {
    images: Vec<Image>,
    head: Image,
    kv: u64,
    activations: u64,
}

impl Needs {
    /// `workspace` are the device's bytes beside the activations.
    fn new(model: &Model, batch: usize, wanted: usize, workspace: u64) -> Result<Self, EngineError> {
        let d = &model.config.dims;
        // x, norm and wanted rows; q and y; k and v; gate and up; the rotations; tokens, positions, want.
        let width = 3 * d.hidden + 2 * d.q_width() + 2 * d.kv_width() + 2 * d.ffn + d.rotations * d.rope_dims + 3;
        Ok(Needs {
            images: (0..model.config.layers).map(|i| model.layer_image(i)).collect::<Result<_, _>>()?,
            head: model.head_image()?,
            kv: (model.config.layers as u64).saturating_mul(d.kv_bytes()),
            activations: ((batch * width + wanted * d.vocab) * size_of::<f32>()) as u64 + workspace,
        })
    }

    fn weights(&self) -> u64 {
        self.images.iter().chain([&self.head]).map(|image| image.bytes() as u64).sum()
    }

    /// The types of all matrices.
    fn types(&self) -> Vec<TensorType> {
        let tensors = || self.images.iter().chain([&self.head]).flat_map(Image::tensors).filter(|t| t.rows > 1);
        TensorType::ALL.iter().copied().filter(|&ty| tensors().any(|t| t.ty == ty)).collect()
    }

    /// Device memory with the first `resident` layers on it and two slots for the largest of the others.
    fn with_resident(&self, resident: usize) -> u64 {
        let bytes = |images: &[Image]| images.iter().map(|image| image.bytes() as u64).sum::<u64>();
        let slot = self.images[resident..].iter().map(|image| image.bytes() as u64).max().unwrap_or(0);
        let weights = self.head.bytes() as u64 + bytes(&self.images[..resident]) + 2 * slot;
        self.kv.saturating_add(self.activations + weights)
    }

    /// How many layers stay on the device. All of them, unless `streaming`; then as many as fit.
    fn place(&self, model: &Model, device: &str, limit: u64, streaming: bool) -> Result<usize, EngineError> {
        let all = self.images.len();
        let fits = |resident: &usize| self.with_resident(*resident) <= limit;
        let resident = if streaming { (0..=all).rev().find(fits) } else { Some(all).filter(fits) };
        resident.ok_or_else(|| {
            let least = (0..=all).map(|n| self.with_resident(n)).min().unwrap_or(0);
            let advice = if !streaming && least <= limit {
                format!("use --streaming, which needs {} at least", ByteSize(least))
            } else {
                OTHER_ADVICE.into()
            };
            self.does_not_fit(model, device, if streaming { least } else { self.with_resident(all) }, limit, advice)
        })
    }

    /// What `place` is where the device reads the weights in the file's map: only the rest needs memory.
    fn place_mapped(&self, model: &Model, device: &str, limit: u64) -> Result<usize, EngineError> {
        let need = self.kv.saturating_add(self.activations);
        if need > limit {
            return Err(self.does_not_fit(model, device, need, limit, OTHER_ADVICE.into()));
        }
        Ok(self.images.len())
    }

    /// Streamed layers have to fit into RAM, all of them: better said before the first is read.
    fn check_ram(&self, model: &Model, resident: usize) -> Result<(), EngineError> {
        let need: u64 = self.images[resident..].iter().map(|image| image.bytes() as u64).sum();
        match crate::platform::memory() {
            Ok(ram) if need > ram.free => {
                let advice = "close other programs, use a smaller model, or raise --vram-budget if one is set";
                Err(self.does_not_fit(model, "RAM, for the streamed layers", need, ram.free, advice.into()))
            }
            _ => Ok(()),
        }
    }

    fn does_not_fit(&self, model: &Model, device: &str, need: u64, limit: u64, advice: String) -> EngineError {
        EngineError::DoesNotFit {
            device: device.to_owned(),
            need: ByteSize(need),
            limit: ByteSize(limit),
            weights: ByteSize(self.weights()),
            kv: ByteSize(self.kv),
            activations: ByteSize(self.activations),
            context: model.config.dims.context,
            advice,
        }
    }
}

const OTHER_ADVICE: &str =
    "use a shorter context (-c), a smaller model, another --device, or a larger --vram-budget if one is set";

/// Bytes that loading the model will report to its progress.
///
/// # Errors
/// When a tensor's type is not supported.
pub fn load_bytes(model: &Model) -> Result<u64, EngineError> {
    let needs = Needs::new(model, 1, 1, 0)?;
    Ok(needs.images.iter().chain([&needs.head]).map(|image| image.tensor_bytes() as u64).sum())
}

impl<D: Device + 'static> Session<D> {
    /// Places the model on `dev`. Without `streaming`, all of it or an error; with it, as many layers as fit and the others
    /// in pinned RAM.
    ///
    /// # Errors
    /// When the memory does not suffice, with what would.
    pub fn load(mut dev: D, model: Model, options: &LoadOptions, progress: Progress<'_>) -> Result<Self, EngineError> {
        let dims = model.config.dims.clone();
        let max_batch = dims.context.min(MAX_BATCH);
        let wanted = options.wanted.clamp(1, max_batch);
        let needs = Needs::new(&model, max_batch, wanted, dev.workspace(&dims, max_batch, wanted))?;
        let free = dev.memory()?.free;
        let usable = if dev.in_place() { free } else { free.saturating_sub(HEADROOM) };
        let limit = options.vram_budget.map_or(usable, |budget| budget.min(usable));
        // A budget asks for streaming even of weights that could be read where they are mapped.
        let resident = match dev.in_place() && options.vram_budget.is_none() {
            true => needs.place_mapped(&model, dev.name(), limit)?,
            false => needs.place(&model, dev.name(), limit, options.streaming)?,
        };
        needs.check_ram(&model, resident)?;

        dev.load_kernels(&needs.types())?;
        dev.prepare(&dims, max_batch)?;
        let state = State::new(&dev, &dims, model.config.layers, max_batch, wanted)?;
        let (head, head_bytes) = place_head(&dev, &model, &needs.head, progress)?;
        let layers: Box<dyn Layers<D>> = if resident == model.config.layers {
            Box::new(Resident::load(&dev, &model, &needs.images, progress)?)
        } else {
            Box::new(Streamed::load(&dev, &model, &needs.images, resident, progress)?)
        };
        let embedding = if model.tied() { Embedding::Device(head.output.weight.clone()) } else { Embedding::Host };
        let memory = MemoryReport {
            device_weights: layers.device_bytes() + head_bytes,
            kv: needs.kv,
            activations: needs.activations,
            pinned: layers.pinned_bytes(),
            mapped: model.gguf.file_bytes(),
            resident_layers: resident,
            read_per_pass: needs.weights(),
            streamed_per_pass: layers.streamed_bytes(),
        };
        let weights = Weights::new(embedding, layers, head);
        Ok(Session { model, weights, state, dev, memory, max_batch, max_wanted: wanted, wanted: 0 })
    }
}

impl<D: Device> Runner for Session<D> {
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
        Ok(self.dev.fetch(self.state.logits(), self.wanted, self.model.config.dims.vocab)?)
    }

    fn argmax(&mut self) -> Result<Option<u32>, EngineError> {
        let best = self.dev.argmax(self.state.logits(), self.wanted, self.model.config.dims.vocab)?;
        Ok(best.last().copied().flatten())
    }

    fn top_k(&mut self, k: usize) -> Result<Vec<Candidate>, EngineError> {
        let mut best = self.dev.top_k(self.state.logits(), self.wanted, self.model.config.dims.vocab, k)?;
        Ok(best.pop().unwrap_or_default())
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
