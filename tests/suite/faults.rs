//! What goes wrong with reads, seen from the engine: the tokens are right, or the run ends with an error that says where. Nothing waits
//! for ever.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use ntransformer::{
    device::{Device, cpu::CpuDevice, cuda::CudaDevice, cuda::emulator::EmulatorDriver},
    engine::{Budget, DeviceChoice, EngineError, LoadOptions, Runner, Session},
    gguf::Gguf,
    model::Model,
    stream::{DiskReads, Reads, ring::Buffers},
};
use readahead::{
    Input, OpenError, Options, Piece, Source,
    testing::{Fault, Faulty, Gate, WritesDevice},
};

use super::{models, placement::Small};

/// What is being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Weights that go to the device to stay.
    Device,
    /// Weights that go into RAM.
    Ram,
    /// Weights that every pass reads.
    Pass,
    /// The same by a source that writes them into the ring by itself.
    InPlace,
}

impl Stage {
    fn is_pass(self) -> bool {
        matches!(self, Stage::Pass | Stage::InPlace)
    }
}

/// The fault of a read, by its number and its piece.
type Choose = Arc<dyn Fn(u64, &Piece) -> Option<Fault> + Send + Sync>;

/// Reads with faults in one of the stages.
struct FaultyReads {
    stage: Stage,
    choose: Choose,
    /// How many there have been.
    faults: Arc<AtomicUsize>,
}

impl FaultyReads {
    fn new(stage: Stage, choose: impl Fn(u64, &Piece) -> Option<Fault> + Send + Sync + 'static) -> Self {
        FaultyReads { stage, choose: Arc::new(choose), faults: Arc::default() }
    }

    fn wrap(&self, stage: Stage, source: Box<dyn Source>) -> Box<dyn Source> {
        if stage != self.stage {
            return source;
        }
        let (choose, faults) = (self.choose.clone(), self.faults.clone());
        let faulty = Faulty::new(source, move |nth, piece| {
            let fault = choose(nth, piece);
            faults.fetch_add(usize::from(fault.is_some()), Ordering::Relaxed);
            fault
        });
        match stage {
            // SAFETY: the device's memory is the CPU's, and the streamer uses a place of the ring when no read may write it.
            Stage::InPlace => Box::new(unsafe { WritesDevice::new(faulty) }),
            _ => Box::new(faulty),
        }
    }
}

impl Reads for FaultyReads {
    fn ahead(&self, files: Vec<Input>, cached: bool) -> Result<Box<dyn Source>, OpenError> {
        let stage = if self.stage == Stage::InPlace { Stage::InPlace } else { Stage::Pass };
        Ok(self.wrap(stage, DiskReads::Auto.ahead(files, cached)?))
    }

    fn once(&self, files: Vec<Input>, cached: bool) -> Result<Box<dyn Source>, OpenError> {
        let stage = if cached { Stage::Device } else { Stage::Ram };
        Ok(self.wrap(stage, DiskReads::Auto.once(files, cached)?))
    }

    fn options(&self) -> Options {
        Options { stall: STALL, ..Options::default() }
    }
}

/// A read counts as stalled after this.
const STALL: Duration = Duration::from_millis(400);

const PASSES: [&[u32]; 2] = [&[1, 5], &[3]];

/// A model whose layers are streamed, from RAM or from disk as the stage asks for.
struct Streamed {
    small: Small,
    options: LoadOptions,
    expected: Vec<f32>,
    device: DeviceChoice,
    stage: Stage,
}

impl Streamed {
    fn on(device: DeviceChoice, stage: Stage) -> Self {
        let small = Small::of("Q8_0");
        let gguf = Arc::new(Gguf::open(&small.path).unwrap());
        let mut resident = models::open(device, &gguf, None);
        let expected = models::logits_of_passes(&mut *resident, PASSES);
        let options = LoadOptions {
            streaming: true,
            vram_budget: Some((models::budget(&*resident, &gguf, if stage == Stage::Device { 1 } else { 0 })).into()),
            ram_budget: Some(Budget::Bytes(if stage == Stage::Ram { 1 << 30 } else { 0 })),
            wanted: 64,
            ..LoadOptions::default()
        };
        Streamed { small, options, expected, device, stage }
    }

    fn load(&self, options: &LoadOptions, reads: &dyn Reads) -> Result<Box<dyn Runner>, EngineError> {
        fn load<D: Device + 'static>(
            dev: D,
            it: &Streamed,
            options: &LoadOptions,
            reads: &dyn Reads,
        ) -> Result<Box<dyn Runner>, EngineError> {
            let model = Model::new(Arc::new(Gguf::open(&it.small.path)?), None, 64)?;
            Ok(Box::new(Session::load_by(dev, model, options, reads, &mut |_| ())?))
        }
        match self.device {
            DeviceChoice::Cpu => load(CpuDevice::new(), self, options, reads),
            _ => load(CudaDevice::new(EmulatorDriver::new(0)), self, options, reads),
        }
    }

    #[track_caller]
    fn assert_right(&self, runner: &mut dyn Runner, what: &str) {
        let memory = runner.memory();
        let disk = if self.stage == Stage::Ram { 0 } else { memory.streamed_per_pass };
        assert!(memory.streamed_per_pass > 0 && memory.disk_per_pass == disk, "{memory:?}");
        let found = models::logits_of_passes(runner, PASSES);
        let same = found.iter().zip(&self.expected).all(|(f, e)| f.to_bits() == e.to_bits());
        assert!(same, "{what}: the logits are others");
    }

    /// The layer whose bytes a piece has, as errors call it.
    fn layer_of(&self, piece: &Piece) -> String {
        let gguf = Gguf::open(&self.small.path).unwrap();
        let holds = |tensor: &&ntransformer::gguf::TensorInfo| {
            let start = gguf.tensor_file_offset(tensor);
            (start..start + tensor.bytes).contains(&piece.offset)
        };
        let name = gguf.tensors().iter().find(holds).expect("pieces are of tensors").name.clone();
        match name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
            Some((layer, _)) => format!("layer {layer}: "),
            None => "the output head: ".to_owned(),
        }
    }
}

/// Where each kind of read can be seen. The CPU computes in the file's map what stays, so that nothing is read for that.
const STAGES: [(DeviceChoice, Stage); 6] = [
    (DeviceChoice::Cpu, Stage::Ram),
    (DeviceChoice::Cpu, Stage::Pass),
    (DeviceChoice::Cpu, Stage::InPlace),
    (DeviceChoice::Emulator, Stage::Device),
    (DeviceChoice::Emulator, Stage::InPlace),
    (DeviceChoice::Emulator, Stage::Pass),
];

#[test]
fn faults_that_pass_change_nothing() {
    for (device, stage) in STAGES {
        let it = Streamed::on(device, stage);
        for buffers in [Buffers::Auto, Buffers::Count(1.try_into().unwrap()), Buffers::Count(3.try_into().unwrap())] {
            let options = LoadOptions { buffers, ..it.options.clone() };
            // Each read fails as often as it is tried again, and is late in the end.
            let attempts = Mutex::new(HashMap::<u64, usize>::new());
            let reads = FaultyReads::new(stage, move |_, piece| {
                let mut attempts = attempts.lock().unwrap();
                let attempt = attempts.entry(piece.offset).or_default();
                *attempt += 1;
                Some(match *attempt % 4 {
                    1 => Fault::Fail,
                    2 => Fault::Short(piece.len / 2),
                    3 => Fault::Refuse,
                    _ => Fault::Late(Duration::from_millis(3)),
                })
            });
            let mut runner = it.load(&options, &reads).unwrap();
            it.assert_right(&mut *runner, &format!("{device:?}, {stage:?}, {buffers:?}"));
            let faults = reads.faults.load(Ordering::Relaxed);
            assert!(faults >= 4, "{faults} faults");
        }
    }
}

/// The fault of one piece, the n-th that is read, as long as it is on.
struct Persistent {
    nth: u64,
    fault: Fault,
    piece: Arc<Mutex<Option<Piece>>>,
    on: Arc<AtomicBool>,
}

impl Persistent {
    fn new(nth: u64, fault: Fault) -> Self {
        Persistent { nth, fault, piece: Arc::default(), on: Arc::new(AtomicBool::new(true)) }
    }

    fn reads(&self, stage: Stage) -> FaultyReads {
        let (nth, fault, place, on) = (self.nth, self.fault.clone(), self.piece.clone(), self.on.clone());
        FaultyReads::new(stage, move |number, piece| {
            let mut place = place.lock().unwrap();
            if number == nth {
                *place = Some(*piece);
            }
            (on.load(Ordering::Relaxed) && *place == Some(*piece)).then(|| fault.clone())
        })
    }

    #[track_caller]
    fn assert_named(&self, it: &Streamed, error: &EngineError) {
        let (message, piece) = (error.to_string(), self.piece.lock().unwrap().expect("it was read"));
        let path = it.small.path.to_str().unwrap();
        for part in [&it.layer_of(&piece), &format!("at offset {} ", piece.offset), path] {
            assert!(message.contains(part), "{part:?} is not in {message:?}");
        }
    }
}

#[test]
fn faults_that_stay_are_errors_that_say_where() {
    for (device, stage) in STAGES {
        let it = Streamed::on(device, stage);
        let gate = Gate::default();
        let faults = [Fault::Fail, Fault::Refuse, Fault::Short(100), Fault::Stall(gate.clone())];
        for (number, fault) in faults.into_iter().enumerate() {
            // From one layer's room to all that there is.
            let buffers = [Buffers::Auto, Buffers::Count(1.try_into().unwrap())][number % 2];
            let options = LoadOptions { buffers, ..it.options.clone() };
            let persistent = Persistent::new(2, fault);
            let reads = persistent.reads(stage);
            let begin = Instant::now();
            match it.load(&options, &reads) {
                Err(error) if !stage.is_pass() => persistent.assert_named(&it, &error),
                Err(error) => panic!("{error}"),
                Ok(_) if !stage.is_pass() => panic!("{stage:?}: it loaded"),
                Ok(mut runner) => {
                    // Time and again, and in the end as if nothing had been.
                    for _ in 0..2 {
                        let error = (0..4).find_map(|position| runner.pass(&[7], position, 1).err());
                        persistent.assert_named(&it, &error.expect("nobody noticed"));
                    }
                    persistent.on.store(false, Ordering::Relaxed);
                    if let Fault::Stall(gate) = &persistent.fault {
                        gate.open();
                        // What may still write its place is waited for, but not once more for as long as a stall takes.
                        thread::sleep(STALL / 4);
                    }
                    it.assert_right(&mut *runner, &format!("{device:?} after {:?}", persistent.fault));
                }
            }
            assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
        }
    }
}

/// A drive that never answers again holds up neither the error nor the end.
#[test]
fn what_never_comes_back_is_left_behind() {
    for (device, stage) in STAGES {
        let it = Streamed::on(device, stage);
        let gate = Gate::default();
        let theirs = gate.clone();
        let reads = FaultyReads::new(stage, move |nth, _| (nth > 2).then(|| Fault::Stall(theirs.clone())));
        let begin = Instant::now();
        let error = match it.load(&it.options, &reads) {
            Err(error) => error,
            Ok(mut runner) => (0..4).find_map(|position| runner.pass(&[7], position, 1).err()).expect("it goes on"),
        };
        assert!(error.to_string().contains("the drive does not answer"), "{error}");
        assert!(begin.elapsed() < 20 * STALL, "{stage:?}: {:?}", begin.elapsed());
        gate.open();
    }
}

/// Whoever asks to stop need not wait for a slow drive, in whatever the engine is doing; and can go on afterwards.
#[test]
fn asking_to_stop_ends_loading_and_passes() {
    for (device, stage) in STAGES {
        let it = Streamed::on(device, stage);
        let options = LoadOptions { cancel: Arc::default(), ..it.options.clone() };
        let slow = Arc::new(AtomicBool::new(true));
        let theirs = slow.clone();
        let late = Duration::from_millis(150);
        let reads = FaultyReads::new(stage, move |_, _| theirs.load(Ordering::Relaxed).then_some(Fault::Late(late)));
        let mut ended = None;
        thread::scope(|threads| {
            let ask = || {
                let cancel = options.cancel.clone();
                threads.spawn(move || {
                    thread::sleep(Duration::from_millis(60));
                    cancel.store(true, Ordering::Relaxed);
                });
            };
            if !stage.is_pass() {
                ask();
            }
            let mut begin = Instant::now();
            let error = match it.load(&options, &reads) {
                Err(error) => error,
                Ok(mut runner) => {
                    ask();
                    begin = Instant::now();
                    // Endless, if nobody asks.
                    let mut pass = |i: usize| runner.pass(&[7], i % 60, 1).and_then(|()| runner.argmax()).err();
                    let error = (0..10_000).find_map(&mut pass).expect("it went on");
                    ended = Some(runner);
                    error
                }
            };
            assert!(error.is_cancelled(), "{error}");
            assert!(begin.elapsed() < Duration::from_secs(1), "{stage:?}: {:?}", begin.elapsed());
        });
        assert_eq!(ended.is_some(), stage.is_pass());
        if let Some(mut runner) = ended {
            slow.store(false, Ordering::Relaxed);
            options.cancel.store(false, Ordering::Relaxed);
            it.assert_right(&mut *runner, "after an interruption");
        }
    }
}
