//! Recorded passes: that each is the computation that it stands for, to the bit.
//!
//! [`Recorder`] is a driver that records as a GPU's does: it keeps what is launched, parameters and all, and launches it again
//! when asked to. Anything else than a launch is refused while it records, as
//! the emulator does.

use std::{
    cell::{Cell, RefCell},
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    sync::Arc,
};

use cuda_std::kernel::{Grid, Kernel};
use gpu::gemv::{self, Product, WeightKernels};
use ntransformer::{
    cli::synth::Shape,
    device::{
        Device, DeviceError, MemoryInfo, Owner, ReplayKey, ReplayPart,
        cuda::{
            CudaDevice,
            driver::{self, Driver, Properties},
            emulator::EmulatorDriver,
        },
    },
    engine::{DeviceChoice, LoadOptions, Runner, Session},
    gguf::Gguf,
    model::{Embedding, Model, State, Weights, forward},
    stream::{Reading, Streamed, Streams},
};
use quant::formats;

use super::{
    launches::{Log, Seen},
    models::{self, devices, open},
    setup::root,
    synth,
};

type Result<T> = std::result::Result<T, DeviceError>;

/// What a recorder did.
#[derive(Default)]
pub struct Counts {
    launches: Cell<usize>,
    recorded: Cell<usize>,
    replayed: Cell<usize>,
    /// Recordings that exist.
    kept: Cell<usize>,
}

fn add(count: &Cell<usize>, n: usize) {
    count.set(count.get() + n);
}

/// The emulator, with recordings.
pub struct Recorder {
    emulator: EmulatorDriver,
    /// What it answers to [`Driver::dependent_launch`].
    dependent: bool,
    /// Memory is not NaN when it is allocated.
    numbers: bool,
    log: Log,
    /// What has been launched since recording began.
    recording: RefCell<Option<Vec<Launch>>>,
    counts: Rc<Counts>,
}

/// A launch with its parameters as they were.
struct Launch {
    again: unsafe fn(&EmulatorDriver, Grid, *const u128) -> Result<()>,
    grid: Grid,
    /// Bytes of the parameters, with the alignment that they may have at most.
    args: Vec<u128>,
}

/// # Safety
/// `args` points to the arguments of `K`, which satisfy the kernel's contract.
unsafe fn launch<K: Kernel>(emulator: &EmulatorDriver, grid: Grid, args: *const u128) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe { emulator.launch::<K>(grid, args.cast::<K::Args>().read()) }
}

/// A recording.
pub struct Recorded {
    launches: Vec<Launch>,
    counts: Rc<Counts>,
}

impl Drop for Recorded {
    fn drop(&mut self) {
        self.counts.kept.set(self.counts.kept.get() - 1);
    }
}

impl Recorder {
    fn new() -> (Self, Rc<Counts>) {
        Recorder::over(EmulatorDriver::new(0))
    }

    pub fn over(emulator: EmulatorDriver) -> (Self, Rc<Counts>) {
        let (counts, recording) = (Rc::new(Counts::default()), RefCell::new(None));
        (
            Recorder {
                emulator,
                dependent: false,
                numbers: false,
                log: Log::default(),
                recording,
                counts: counts.clone(),
            },
            counts,
        )
    }

    pub fn with_dependent_launch(self, dependent: bool) -> Self {
        Recorder { dependent, ..self }
    }

    /// The same, where memory holds small F16 numbers of both signs when it is allocated.
    pub fn with_numbers(self) -> Self {
        Recorder { numbers: true, ..self }
    }

    pub fn log(&self) -> Log {
        self.log.clone()
    }
}

impl Driver for Recorder {
    type Mem = <EmulatorDriver as Driver>::Mem;
    type Pinned = <EmulatorDriver as Driver>::Pinned;
    type Event = <EmulatorDriver as Driver>::Event;
    type Graph = Recorded;
    type Beside = <EmulatorDriver as Driver>::Beside;

    fn name(&self) -> &str {
        "recorder"
    }

    fn beside(&self, module: &'static str) -> Result<Self::Beside> {
        self.emulator.beside(module)
    }

    fn open_to_others(&self, mem: &Self::Mem) -> Result<()> {
        self.emulator.open_to_others(mem)
    }

    fn properties(&self) -> &Properties {
        self.emulator.properties()
    }

    fn memory(&self) -> Result<MemoryInfo> {
        self.emulator.memory()
    }

    fn alloc(&self, what: &str, bytes: usize) -> Result<Self::Mem> {
        let mem = self.emulator.alloc(what, bytes)?;
        if self.numbers {
            let word = |i: u32| (0x3400 | (i.wrapping_mul(0x9E37_79B9) >> 16 & 0x83FF)) as u16;
            let contents: Vec<u8> = (0..bytes.div_ceil(2) as u32).flat_map(|i| word(i).to_le_bytes()).collect();
            self.emulator.write(&mem, 0, &contents[..bytes])?;
        }
        Ok(mem)
    }

    fn address(mem: &Self::Mem) -> u64 {
        EmulatorDriver::address(mem)
    }

    fn len(mem: &Self::Mem) -> usize {
        EmulatorDriver::len(mem)
    }

    fn pinned(&self, what: &str, bytes: usize) -> Result<Self::Pinned> {
        self.emulator.pinned(what, bytes)
    }

    fn zero_copy(&self, src: Self::Pinned) -> Result<Self::Mem> {
        self.emulator.zero_copy(src)
    }

    fn write(&self, dst: &Self::Mem, offset: usize, bytes: &[u8]) -> Result<()> {
        self.emulator.write(dst, offset, bytes)
    }

    fn read(&self, src: &Self::Mem, offset: usize, bytes: &mut [u8]) -> Result<()> {
        self.emulator.read(src, offset, bytes)
    }

    fn copy(&self, src: &Self::Mem, dst: &Self::Mem, len: usize) -> Result<()> {
        self.emulator.copy(src, dst, len)
    }

    fn upload(
        &self,
        src: &Self::Pinned,
        range: Range<usize>,
        dst: &Self::Mem,
        offset: usize,
        after: Option<&Self::Event>,
    ) -> Result<Self::Event> {
        self.emulator.upload(src, range, dst, offset, after)
    }

    fn limit_link(&self, bytes_per_second: Option<f64>) {
        self.emulator.limit_link(bytes_per_second);
    }

    fn load_modules(&self, modules: &[&'static str]) -> Result<()> {
        self.emulator.load_modules(modules)
    }

    unsafe fn launch<K: Kernel>(&self, grid: Grid, args: K::Args) -> Result<()> {
        add(&self.counts.launches, 1);
        let is_product = K::NAME.starts_with("gemv") || K::NAME.starts_with("glu_");
        let overlap = is_product.then(|| {
            assert_eq!(size_of::<K::Args>(), size_of::<Product>());
            // SAFETY: it is the arguments of a product's kernel, which has this one.
            unsafe { std::ptr::from_ref(&args).cast::<Product>().read() }.overlap
        });
        self.log.borrow_mut().push(Seen { kernel: K::NAME, grid, overlap });
        let Some(recording) = &mut *self.recording.borrow_mut() else {
            // SAFETY: the caller's promise.
            return unsafe { self.emulator.launch::<K>(grid, args) };
        };
        let mut bytes = vec![0u128; size_of::<K::Args>().div_ceil(size_of::<u128>())];
        assert!(align_of::<K::Args>() <= align_of::<u128>());
        // SAFETY: there is room for the arguments, and they are aligned.
        unsafe { bytes.as_mut_ptr().cast::<K::Args>().write(args) };
        recording.push(Launch { again: launch::<K>, grid, args: bytes });
        Ok(())
    }

    fn capture(&self, f: &mut dyn FnMut() -> Result<()>) -> Result<Option<Recorded>> {
        assert!(self.recording.replace(Some(Vec::new())).is_none(), "a recording inside another");
        // The emulator refuses what a recording cannot hold.
        let result = self.emulator.capture(f);
        let launches = self.recording.take().expect("it was just set");
        result?;
        add(&self.counts.recorded, 1);
        add(&self.counts.kept, 1);
        Ok(Some(Recorded { launches, counts: self.counts.clone() }))
    }

    unsafe fn replay(&self, graph: &Recorded) -> Result<()> {
        add(&self.counts.replayed, 1);
        for launch in &graph.launches {
            // SAFETY: the arguments are the kernel's. That the memory is still there is what the tests are about, and the
            // emulator checks every access.
            unsafe { (launch.again)(&self.emulator, launch.grid, launch.args.as_ptr())? };
        }
        Ok(())
    }

    fn dependent_launch(&self) -> bool {
        self.dependent
    }

    fn profile(&self, on: bool) {
        self.emulator.profile(on);
    }

    fn label(&self, what: &str, bytes: u64) {
        self.emulator.label(what, bytes);
    }

    fn take_profile(&self) -> Result<Vec<driver::Launch>> {
        self.emulator.take_profile()
    }

    fn mark(&self) -> Result<Self::Event> {
        self.emulator.mark()
    }

    fn mark_copies(&self) -> Result<Self::Event> {
        self.emulator.mark_copies()
    }

    fn reached(&self, event: &Self::Event) -> Result<bool> {
        self.emulator.reached(event)
    }

    fn compute_waits(&self, event: &Self::Event) -> Result<()> {
        self.emulator.compute_waits(event)
    }

    fn host_waits(&self, event: &Self::Event) -> Result<()> {
        self.emulator.host_waits(event)
    }

    fn seconds(&self, from: &Self::Event, to: &Self::Event) -> Result<f64> {
        self.emulator.seconds(from, to)
    }
}

/// A prompt and tokens after it, one by one: the first of them is computed, the second recorded, the others replayed.
pub const PASSES: [&[u32]; 5] = [&[5, 101], &[77], &[3], &[100], &[42]];

#[track_caller]
fn assert_same(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let differ = found.iter().zip(expected).filter(|(f, e)| f.to_bits() != e.to_bits()).count();
    assert_eq!(differ, 0, "{what}: {differ} of {} logits have other bits", found.len());
}

fn recording(gguf: &Arc<Gguf>, vram_budget: Option<u64>) -> (Session<CudaDevice<Recorder>>, Rc<Counts>) {
    recording_over(EmulatorDriver::new(0), gguf, vram_budget)
}

fn recording_over(
    emulator: EmulatorDriver,
    gguf: &Arc<Gguf>,
    vram_budget: Option<u64>,
) -> (Session<CudaDevice<Recorder>>, Rc<Counts>) {
    let (recorder, counts) = Recorder::over(emulator);
    let model = Model::new(gguf.clone(), None, 64).unwrap();
    let options = LoadOptions {
        streaming: vram_budget.is_some(),
        vram_budget: vram_budget.map(Into::into),
        wanted: 64,
        ..Default::default()
    };
    (Session::load(CudaDevice::new(recorder), model, &options, &mut |_| ()).unwrap(), counts)
}

/// A small model of the golden data: the emulator is through with it in no time.
pub fn golden(name: &str) -> Arc<Gguf> {
    Arc::new(Gguf::open(&root().join(format!("tests/data/{name}.gguf"))).unwrap())
}

/// The logits of every position of [`PASSES`], computed by the emulator without recordings.
fn expected(gguf: &Arc<Gguf>) -> Vec<f32> {
    models::logits_of_passes(&mut *open(DeviceChoice::Emulator, gguf, None), PASSES)
}

/// A replayed pass is the pass itself, whatever a model has: everything that its passes launch can be recorded.
#[test]
fn a_replayed_pass_is_the_pass_to_the_bit() {
    for name in ["llama-gqa-tied", "qwen2-tied", "qwen3", "phi3-window", "gemma2", "gemma3"] {
        let gguf = golden(name);
        let expected = expected(&gguf);
        let (mut session, counts) = recording(&gguf, None);
        let found = models::logits_of_passes(&mut session, PASSES);
        assert_same(&found, &expected, name);
        assert_eq!((counts.recorded.get(), counts.replayed.get()), (1, 3), "{name}");

        // A pass without logits is another computation, and changes nothing of the one with logits.
        for _ in 0..3 {
            session.pass(&[7], 6, 0).unwrap();
        }
        assert_eq!((counts.recorded.get(), counts.replayed.get()), (2, 5), "{name}");
        session.pass(PASSES[4], 5, 1).unwrap();
        let last = expected.len() - session.config().dims.vocab;
        assert_same(&session.logits().unwrap(), &expected[last..], &format!("{name}, again"));
    }
}

/// A layer of a model that is streamed is recorded once, since it always is in the same place, and the waiting for it is not.
#[test]
fn streamed_layers_are_replayed_in_their_places() {
    let gguf = golden("gemma3");
    let expected = expected(&gguf);
    let direct = open(DeviceChoice::Emulator, &gguf, None);
    for resident in [0, 1] {
        let budget = models::budget(&*direct, &gguf, resident);
        let (mut session, counts) = recording(&gguf, Some(budget));
        assert!(session.memory().streamed_per_pass > 0 && session.config().layers == 7);
        let found = models::logits_of_passes(&mut session, PASSES);
        assert_same(&found, &expected, &format!("{resident} layers resident"));
        // A layer has four passes over one token, and the first is computed.
        assert_eq!((counts.recorded.get(), counts.replayed.get()), (7, 7 * 3), "{resident} layers resident");
    }
}

/// Weights that kernels read in RAM stay where they are, so that a whole pass is one recording.
#[test]
fn a_pass_that_reads_in_ram_is_one_recording() {
    let gguf = golden("gemma3");
    let memory = open(DeviceChoice::Emulator, &gguf, None).memory();
    let ids = Model::new(gguf.clone(), None, 64).unwrap().layer_tensors(0).into_iter();
    let layer: u64 =
        ids.map(|id| &gguf.tensors()[id.0]).filter(|tensor| tensor.rows() > 1).map(|tensor| tensor.bytes).sum();
    // Less than a ring takes, beside what has to be on the device.
    let budget = memory.kv + memory.activations + memory.device_weights - 7 * layer + layer / 2;
    let (mut session, counts) = recording(&gguf, Some(budget));
    let memory = session.memory();
    assert!(memory.zero_copy_per_pass > 0 && memory.zero_copy_per_pass == memory.streamed_per_pass, "{memory:?}");
    assert_same(&models::logits_of_passes(&mut session, PASSES), &expected(&gguf), "read in RAM");
    assert_eq!((counts.recorded.get(), counts.replayed.get()), (1, 3));
}

/// A model on a device that others use too.
struct Placed {
    model: Model,
    weights: Weights<CudaDevice<Recorder>>,
}

impl Placed {
    fn new(dev: &CudaDevice<Recorder>, gguf: &Arc<Gguf>) -> Self {
        let model = Model::new(gguf.clone(), None, 64).unwrap();
        let layers = Streamed::load(dev, &model, &Streams::default(), &Reading::default(), &mut |_| ()).unwrap();
        let embedding = if model.tied() { Embedding::Device(layers.output().clone()) } else { Embedding::Host };
        Placed { model, weights: Weights::new(embedding, Box::new(layers)) }
    }

    fn state(&self, dev: &CudaDevice<Recorder>) -> State<CudaDevice<Recorder>> {
        State::new(dev, &self.model.config.dims, self.model.config.layers, 4, 1).unwrap()
    }

    /// The logits of `token` at `position`.
    fn pass(
        &mut self,
        dev: &mut CudaDevice<Recorder>,
        state: &mut State<CudaDevice<Recorder>>,
        token: u32,
        position: usize,
    ) -> Vec<f32> {
        let batch = self.model.batch(&[token], position, vec![0]);
        forward(dev, &self.model, &mut self.weights, state, &batch).unwrap();
        dev.fetch(state.logits(), 1, self.model.config.dims.vocab).unwrap()
    }
}

/// Two models and several texts on one device, in turns: each pass is recorded by itself, and replayed as itself. When a text
/// or a model ends, so do its recordings.
#[test]
fn models_and_texts_have_recordings_of_their_own() {
    const TOKENS: [u32; 4] = [77, 3, 100, 42];
    // Of the same sizes, with other weights.
    let models = ["llama-linear", "mistral-window"].map(golden);
    let [first, second] = models.each_ref().map(|gguf| {
        let passes: Vec<&[u32]> = TOKENS.chunks(1).collect();
        let logits = models::logits_of_passes(&mut *open(DeviceChoice::Emulator, gguf, None), passes);
        logits.chunks(logits.len() / TOKENS.len()).map(<[f32]>::to_vec).collect::<Vec<_>>()
    });
    assert_ne!(first, second);

    let (recorder, counts) = Recorder::new();
    let mut dev = CudaDevice::new(recorder);
    dev.prepare(&Model::new(models[0].clone(), None, 64).unwrap().config.dims, 4).unwrap();
    let [mut a, mut b] = models.each_ref().map(|gguf| Placed::new(&dev, gguf));
    let (mut a1, mut b1) = (a.state(&dev), b.state(&dev));
    for (position, &token) in TOKENS.iter().enumerate() {
        assert_same(&a.pass(&mut dev, &mut a1, token, position), &first[position], "the first model");
        assert_same(&b.pass(&mut dev, &mut b1, token, position), &second[position], "the second model");
    }
    assert_eq!((counts.recorded.get(), counts.replayed.get(), counts.kept.get()), (2, 6, 2));

    // Another text, while the first one goes on.
    let mut a2 = a.state(&dev);
    for (position, &token) in TOKENS.iter().enumerate() {
        assert_same(&a.pass(&mut dev, &mut a2, token, position), &first[position], "a second text");
        assert_same(&a.pass(&mut dev, &mut a1, token, position), &first[position], "the first text");
    }
    assert_eq!(counts.kept.get(), 3);

    // A new text may get the memory of one that ended, and nothing else of it.
    for _ in 0..3 {
        drop(a2);
        a2 = a.state(&dev);
        for (position, &token) in TOKENS.iter().enumerate() {
            assert_same(&a.pass(&mut dev, &mut a2, token, position), &first[position], "a new text");
        }
        assert_eq!(counts.kept.get(), 3, "recordings of texts that ended are kept");
    }

    drop((a, a1, a2));
    let mut a = Placed::new(&dev, &models[0]);
    let mut a1 = a.state(&dev);
    assert_same(&a.pass(&mut dev, &mut a1, TOKENS[0], 0), &first[0], "the first model, loaded again");
    assert_eq!(counts.kept.get(), 1, "recordings of a model that is gone are kept");
}

/// On a GPU where not even these models' rows fit into a block's shared memory, beside a column of activations: products go piece by
/// piece, and nothing is fused with them.
#[test]
fn a_pass_in_pieces_is_the_pass() {
    let narrow = |gguf: &Arc<Gguf>| {
        // 32 columns of F32 fit.
        let shared = Properties {
            shared_per_block: 6400,
            shared_per_multiprocessor: 7424,
            ..*EmulatorDriver::new(0).properties()
        };
        let hidden = Model::new(gguf.clone(), None, 64).unwrap().config.dims.hidden as u32;
        let whole = gemv::launch::<<formats::F32 as WeightKernels>::Weights>(
            shared.room(gemv::Share::Small),
            1,
            hidden,
            1,
            1,
            true,
        );
        assert!(whole.is_none(), "{hidden} columns fit");
        EmulatorDriver::with_properties(0, shared)
    };
    for name in ["llama-gqa-tied", "llama-head-dim", "qwen2-head-20"] {
        let gguf = golden(name);
        let expected = models::logits_of_passes(&mut *open(DeviceChoice::Cpu, &gguf, None), PASSES);
        let (mut session, counts) = recording_over(narrow(&gguf), &gguf, None);
        let found = models::logits_of_passes(&mut session, PASSES);
        assert_eq!((counts.recorded.get(), counts.replayed.get()), (1, 3), "{name}");
        let apart = models::difference(&found, &expected);
        assert!(apart < models::ROUNDING, "{name}: {apart:e}");
    }
}

/// A computation that panics leaves a device that records.
#[test]
fn a_panic_does_not_end_recording() {
    let (recorder, counts) = Recorder::new();
    let mut dev = CudaDevice::new(recorder);
    dev.prepare(&Model::new(golden("llama-linear"), None, 64).unwrap().config.dims, 1).unwrap();
    let owner = Owner::default();
    let key = || ReplayKey::new(&owner, &owner, ReplayPart::Pass { wanted: true });
    let panicked = catch_unwind(AssertUnwindSafe(|| dev.replay(key(), &mut |_| panic!("in a computation"))));
    assert!(panicked.is_err());
    for _ in 0..3 {
        dev.replay(key(), &mut |_| Ok(())).unwrap();
    }
    assert_eq!((counts.recorded.get(), counts.replayed.get()), (1, 2));
}

/// Whatever was computed before it, and however often, recorded or not: a token's logits have the same bits.
#[test]
fn a_token_is_the_same_after_prompts_of_any_size() {
    let gguf = synth::model(Shape::Tiny, "Q4_K_M".parse().unwrap(), 5);
    for device in devices() {
        let mut runner: Box<dyn Runner> = match device {
            DeviceChoice::Emulator => Box::new(recording(&gguf, None).0),
            other => open(other, &gguf, None),
        };
        runner.pass(&[5, 301, 77], 0, 1).unwrap();
        let mut expected = None;
        for between in [&[][..], &[9, 8], &[1, 2, 3, 4, 5, 6, 7, 8, 9], &[6]] {
            if !between.is_empty() {
                runner.pass(between, 4, 1).unwrap();
            }
            runner.pass(&[1999], 3, 1).unwrap();
            let found = runner.logits().unwrap();
            let expected = expected.get_or_insert_with(|| found.clone());
            assert_same(&found, expected, &format!("{device:?}, after {between:?}"));
        }
    }
}
