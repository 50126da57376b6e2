//! A model on a device, ready to run.

use bytesize::ByteSize;
use quant::TensorType;

use super::EngineError;
use crate::{
    device::{Device, Head, Weight},
    model::{Config, Embedding, Layers, Model, State, forward},
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
    /// The model file's map, which is read where it is as far as the device does not hold copies.
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
    /// The most likely token after the last one of the last pass. Found on the device: only its id travels.
    ///
    /// # Errors
    /// When the device fails.
    fn argmax(&mut self) -> Result<u32, EngineError>;
}

/// A model on device `D`.
pub struct Session<D: Device> {
    model: Model,
    embedding: Embedding<D>,
    layers: Box<dyn Layers<D>>,
    head: Head<Weight<D>>,
    kv: Vec<D::Kv>,
    state: State<D>,
    dev: D,
    memory: MemoryReport,
    max_batch: usize,
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
    fn new(model: &Model, batch: usize, wanted: usize) -> Result<Self, EngineError> {
        let d = &model.config.dims;
        // The state's four and the scratch's five, and the rotations.
        let width = 4 * d.hidden + 2 * d.q_width() + 2 * d.kv_width() + 2 * d.ffn + d.rope_dims;
        Ok(Needs {
            images: (0..model.config.layers).map(|i| model.layer_image(i)).collect::<Result<_, _>>()?,
            head: model.head_image()?,
            kv: (model.config.layers * d.kv_bytes()) as u64,
            activations: ((batch * width + wanted * d.vocab) * size_of::<f32>()) as u64,
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
        self.head.bytes() as u64 + self.kv + self.activations + bytes(&self.images[..resident]) + 2 * slot
    }

    /// How many layers stay on the device; all of them unless `streaming`.
    fn place(&self, model: &Model, device: &str, limit: u64, streaming: bool) -> Result<usize, EngineError> {
        let all = self.images.len();
        let fits = |resident: &usize| self.with_resident(*resident) <= limit;
        let resident = if streaming { (0..=all).rev().find(fits) } else { Some(all).filter(fits) };
        resident.ok_or_else(|| {
            let least = (0..=all).map(|n| self.with_resident(n)).min().unwrap_or(0);
            let advice = if !streaming && least <= limit {
                format!("use --streaming, which needs {} at least", ByteSize(least))
            } else {
                "use a shorter context (-c), a smaller model, or a larger --vram-budget".into()
            };
            EngineError::DoesNotFit {
                device: device.to_owned(),
                need: ByteSize(if streaming { least } else { self.with_resident(all) }),
                limit: ByteSize(limit),
                weights: ByteSize(self.weights()),
                kv: ByteSize(self.kv),
                activations: ByteSize(self.activations),
                context: model.config.dims.context,
                advice,
            }
        })
    }
}

/// Bytes that loading the model will report to its progress.
///
/// # Errors
/// When a tensor's type is not supported.
pub fn load_bytes(model: &Model) -> Result<u64, EngineError> {
    let needs = Needs::new(model, 1, 1)?;
    Ok(needs.weights())
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
        let needs = Needs::new(&model, max_batch, wanted)?;
        let free = dev.memory()?.free;
        let limit = options.vram_budget.map_or(free.saturating_sub(HEADROOM), |budget| budget.min(free));
        // Weights that are read where the file is mapped need no memory of the device's; a budget asks for streaming anyway.
        let mapped = dev.in_place() && options.vram_budget.is_none();
        let resident = match mapped {
            true => needs.place(&model, dev.name(), limit.saturating_add(needs.weights()), false)?,
            false => needs.place(&model, dev.name(), limit, options.streaming)?,
        };

        dev.load_kernels(&needs.types())?;
        dev.prepare(&dims, max_batch)?;
        let state = State::new(&dev, &dims, max_batch, wanted)?;
        let kv = (0..model.config.layers).map(|_| dev.kv()).collect::<Result<Vec<_>, _>>()?;
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
            mapped: AsRef::<[u8]>::as_ref(&*model.gguf).len() as u64,
            resident_layers: resident,
            read_per_pass: needs.weights(),
            streamed_per_pass: layers.streamed_bytes(),
        };
        Ok(Session { model, embedding, layers, head, kv, state, dev, memory, max_batch, wanted: 0 })
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
        let Config { dims, trained_context, .. } = &self.model.config;
        if tokens.len() > self.max_batch || start + tokens.len() > dims.context {
            let (max_new, context, trained) = (tokens.len(), dims.context, *trained_context);
            return Err(EngineError::Context { prompt: start, max_new, context, trained });
        }
        if let Some(&token) = tokens.iter().find(|&&token| token as usize >= dims.vocab) {
            return Err(EngineError::Vocabulary { token, vocab: dims.vocab });
        }
        let want = (tokens.len() - wanted..tokens.len()).map(|i| i as u32).collect();
        let batch = self.model.batch(tokens, start, want);
        let Session { model, embedding, layers, head, kv, state, dev, .. } = self;
        forward(dev, model, embedding, &mut **layers, head, kv, state, &batch)?;
        self.wanted = wanted;
        Ok(())
    }

    fn logits(&mut self) -> Result<Vec<f32>, EngineError> {
        Ok(self.dev.fetch(&self.state.logits, self.wanted, self.model.config.dims.vocab)?)
    }

    fn argmax(&mut self) -> Result<u32, EngineError> {
        let best = self.dev.argmax(&self.state.logits, self.wanted, self.model.config.dims.vocab)?;
        Ok(best[self.wanted - 1])
    }
}
