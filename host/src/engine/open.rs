//! From a file to a model on a device.

use std::{path::Path, str::FromStr, sync::Arc};

use super::{
    EngineError, LoadOptions, MemoryReport, Perplexity, Placement, Runner, Session, Tokenizer, load_bytes, plan_for,
};
use crate::{
    demo,
    device::{
        Device, DeviceError,
        cpu::CpuDevice,
        cuda::{CudaDevice, cust::CustDriver, emulator::EmulatorDriver},
    },
    gguf::{Gguf, Metadata},
    model::{Config, Model},
    stream::{Progress, plan::Rates},
};

/// The context where none is asked for, unless the model allows less.
const DEFAULT_CONTEXT: usize = 4096;

/// What the user asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first GPU if there is one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of that number.
    Cuda(usize),
    /// The CUDA device without a GPU, its kernels run by the emulator. Slow; for tests.
    Emulator,
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match (s, s.strip_prefix("cuda:").map(str::parse)) {
            ("auto", _) => Ok(DeviceChoice::Auto),
            ("cpu", _) => Ok(DeviceChoice::Cpu),
            ("emulator", _) => Ok(DeviceChoice::Emulator),
            ("cuda", _) => Ok(DeviceChoice::Cuda(0)),
            (_, Some(Ok(index))) => Ok(DeviceChoice::Cuda(index)),
            _ => Err("expected auto, cpu, cuda, cuda:N or emulator".into()),
        }
    }
}

/// Where a model runs, and with what.
#[derive(Clone, Debug, Default)]
pub struct EngineOptions {
    /// Where to compute.
    pub device: DeviceChoice,
    /// Tokens of prompt and answer together. None: what the model was trained for, 4096 at most.
    pub context: Option<usize>,
    /// How the model is placed.
    pub load: LoadOptions,
}

/// What loading tells its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loading<'a> {
    /// The device, and why it is this one.
    Device(&'a str),
    /// So many bytes of weights are in place.
    Bytes {
        /// So far.
        done: u64,
        /// Of the whole model.
        total: u64,
    },
}

/// A model file that was found to be complete and consistent: sizes and vocabulary are known, no weight has been read.
pub struct ModelFile {
    pub(super) model: Model,
    pub(super) tokenizer: Tokenizer,
}

impl ModelFile {
    /// Reads the structure of the file at `path`, for a context of `context` tokens, see [`EngineOptions::context`].
    ///
    /// # Errors
    /// A file that cannot be read, is damaged, or has something that is not supported: named.
    pub fn open(path: &Path, context: Option<usize>) -> Result<Self, EngineError> {
        Self::from_gguf(Gguf::open(path)?, context)
    }

    /// The built-in demo model, a small storyteller.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn demo(context: Option<usize>) -> Result<Self, EngineError> {
        Self::from_gguf(demo::gguf()?, context)
    }

    /// As [`Self::open`], of a file that is open.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_gguf(gguf: Gguf, context: Option<usize>) -> Result<Self, EngineError> {
        let tokenizer = Tokenizer::from_gguf(&gguf)?;
        let model = Model::new(Arc::new(gguf), context, DEFAULT_CONTEXT)?;
        Ok(ModelFile { model, tokenizer })
    }

    /// The file.
    pub fn gguf(&self) -> &Gguf {
        &self.model.gguf
    }

    /// The model's configuration.
    pub fn config(&self) -> &Config {
        &self.model.config
    }

    /// The model's vocabulary.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Bytes of weights that loading puts in place.
    ///
    /// # Errors
    /// When a tensor's type is not supported.
    pub fn load_bytes(&self) -> Result<u64, EngineError> {
        load_bytes(&self.model)
    }

    /// What loading the model on `device` would place where, without doing it.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn plan(&self, device: DeviceChoice, options: &LoadOptions) -> Result<Placement, EngineError> {
        on_device(device, options.announce, Planning { model: &self.model, options })
    }

    /// Loads the weights on `device`, and tells `told` about it.
    ///
    /// # Errors
    /// When there is no such device, or the model does not fit on it.
    pub fn load(
        self,
        device: DeviceChoice,
        options: &LoadOptions,
        mut told: impl FnMut(Loading<'_>),
    ) -> Result<Engine, EngineError> {
        let ModelFile { model, tokenizer } = self;
        let (gguf, total) = (model.gguf.clone(), load_bytes(&model)?);
        let told = std::cell::RefCell::new(&mut told);
        let mut done = 0;
        let runner =
            open(device, model, options, &mut |line| told.borrow_mut()(Loading::Device(line)), &mut |bytes| {
                done = if bytes == 0 { 0 } else { done + bytes };
                told.borrow_mut()(Loading::Bytes { done, total });
            })?;
        Ok(Engine { runner, tokenizer, gguf, cached: Vec::new() })
    }
}

/// A model that is loaded, with its vocabulary, and the tokens that it has read.
///
/// [`Engine::generate`] continues a text; what the text has in common with the one before is not computed again.
/// An engine stays on the thread that made it.
pub struct Engine {
    pub(super) runner: Box<dyn Runner>,
    pub(super) tokenizer: Tokenizer,
    pub(super) gguf: Arc<Gguf>,
    /// The tokens whose keys and values are in the KV cache, from position 0 on.
    pub(super) cached: Vec<u32>,
}

impl Engine {
    /// Loads the model in the GGUF file at `path`.
    ///
    /// # Errors
    /// A file that cannot be read, is damaged, or has something that is not supported; a device that there is not, or that
    /// the model does not fit on.
    pub fn open(path: impl AsRef<Path>, options: &EngineOptions) -> Result<Self, EngineError> {
        ModelFile::open(path.as_ref(), options.context)?.load(options.device, &options.load, |_| ())
    }

    /// Loads the built-in demo model, a small storyteller.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn demo(options: &EngineOptions) -> Result<Self, EngineError> {
        ModelFile::demo(options.context)?.load(options.device, &options.load, |_| ())
    }

    /// The model's configuration; `config().dims.context` is the context in tokens.
    pub fn config(&self) -> &Config {
        self.runner.config()
    }

    /// The metadata of the model's file.
    pub fn metadata(&self) -> &Metadata {
        self.gguf.metadata()
    }

    /// The name of the device, such as `cuda:0 NVIDIA H200`.
    pub fn device(&self) -> &str {
        self.runner.device()
    }

    /// Where the model's memory is.
    pub fn memory(&self) -> MemoryReport {
        self.runner.memory()
    }

    /// How fast bytes travel when nothing else does, as measured before loading, as far as that was needed.
    pub fn rates(&self) -> Rates {
        self.runner.rates()
    }

    /// The model's vocabulary, for all that [`Self::tokenize`] does not do.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The ids of a prompt, as [`Tokenizer::prompt`].
    ///
    /// # Errors
    /// If the text has a byte for which the vocabulary has no token.
    pub fn tokenize(&self, text: &str) -> Result<Vec<u32>, EngineError> {
        Ok(self.tokenizer.prompt(text)?)
    }

    /// The text of a run of tokens. Bytes that are no UTF-8 become U+FFFD.
    pub fn detokenize(&self, tokens: &[u32]) -> String {
        String::from_utf8_lossy(&self.tokenizer.decode(tokens)).into_owned()
    }

    /// The tokens whose keys and values are in the KV cache: a prompt that starts with them costs only its rest.
    pub fn cached(&self) -> &[u32] {
        &self.cached
    }

    /// The model itself, to run passes with. The tokens in the KV cache count as forgotten, since passes overwrite them.
    pub fn runner(&mut self) -> &mut dyn Runner {
        self.cached.clear();
        &mut *self.runner
    }

    /// How well the model predicts a text; see [`super::perplexity()`], which takes the model loaded with
    /// [`LoadOptions::wanted`] of half a window.
    ///
    /// # Errors
    /// A text shorter than a window, logits that are not numbers, or the device's errors.
    pub fn perplexity(
        &mut self,
        tokens: &[u32],
        window: usize,
        progress: &mut dyn FnMut(&Perplexity) -> bool,
    ) -> Result<Perplexity, EngineError> {
        let bos = self.tokenizer.bos().filter(|_| self.tokenizer.adds_bos());
        super::perplexity(self.runner(), tokens, window, bos, progress)
    }
}

/// What is done with the device that was asked for, whichever it is.
trait OnDevice {
    type Output;

    /// `why` says why it is this one, for behind its name.
    fn run<D: Device + 'static>(self, dev: D, why: &str) -> Result<Self::Output, EngineError>;
}

fn on_device<T: OnDevice>(choice: DeviceChoice, announce: fn(&str), then: T) -> Result<T::Output, EngineError> {
    let cuda = |index| CustDriver::open(index, announce).map(CudaDevice::new);
    match choice {
        DeviceChoice::Cpu => then.run(CpuDevice::new(), ""),
        DeviceChoice::Cuda(index) => then.run(cuda(index)?, ""),
        DeviceChoice::Emulator => {
            let dev = CudaDevice::new(EmulatorDriver::new(0));
            then.run(dev, " (slow: every GPU thread is run in turn; for tests)")
        }
        DeviceChoice::Auto => match cuda(0) {
            Ok(dev) => then.run(dev, " (auto: the first GPU)"),
            Err(DeviceError::Unavailable { why }) => {
                then.run(CpuDevice::new(), &format!(" (auto: no usable GPU: {why})"))
            }
            Err(e) => Err(e.into()),
        },
    }
}

/// Loads `model` on the device that was asked for. `say` is told its name, and with `Auto` why it is this one.
///
/// # Errors
/// When there is no such device, or the model does not fit on it.
pub fn open(
    choice: DeviceChoice,
    model: Model,
    options: &LoadOptions,
    say: &mut dyn FnMut(&str),
    progress: Progress<'_>,
) -> Result<Box<dyn Runner>, EngineError> {
    struct Load<'a> {
        model: Model,
        options: &'a LoadOptions,
        say: &'a mut dyn FnMut(&str),
        progress: Progress<'a>,
    }
    impl OnDevice for Load<'_> {
        type Output = Box<dyn Runner>;

        fn run<D: Device + 'static>(self, dev: D, why: &str) -> Result<Box<dyn Runner>, EngineError> {
            (self.say)(&format!("{}{why}", dev.name()));
            Ok(Box::new(Session::load(dev, self.model, self.options, self.progress)?))
        }
    }
    on_device(choice, options.announce, Load { model, options, say, progress })
}

/// Plans how `model` would be placed on the device that was asked for.
struct Planning<'a> {
    model: &'a Model,
    options: &'a LoadOptions,
}

impl OnDevice for Planning<'_> {
    type Output = Placement;

    fn run<D: Device + 'static>(self, mut dev: D, why: &str) -> Result<Placement, EngineError> {
        (self.options.announce)(&format!("device: {}{why}", dev.name()));
        let reads = self.options.reads(&dev)?;
        let mut placement = plan_for(&mut dev, self.model, self.options, &*reads)?;
        placement.measure_vram(&mut dev);
        Ok(placement)
    }
}
