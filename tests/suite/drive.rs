//! Weights that stay on a raw drive, read by our own driver from a controller that is played: the same results as from anywhere else, and
//! what becomes of faults, of other models, and of drives that hold none.

mod namespaces;
mod refused;
mod source;

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use ::nvme::{
    Command, Status,
    model::{Choose, Fault, Media, ModelDoor, Traits},
};
use ntransformer::{
    cli::nvme::{storage::DirectDrive, write},
    device::{Device, cpu::CpuDevice, cuda::CudaDevice, cuda::emulator::EmulatorDriver},
    engine::{self, Budget, DeviceChoice, EngineError, LoadOptions, Runner, Session},
    gguf::Gguf,
    model::Model,
    stream::{
        DiskReads, Reading,
        nvme::{NvmeReads, Spot},
    },
};

use crate::{models, placement::Small, split::Parts, zero_copy};

const PASSES: [&[u32]; 4] = [&[1, 5, 9, 14, 200], &[3], &[77], &[4]];

const MIB: usize = 1 << 20;

/// A drive with blocks of `block` bytes on which the model lies from block `lba` on, packed or as `dd` lays it.
pub fn holding(gguf: &Gguf, block: usize, lba: u64, packed: bool) -> Arc<Media> {
    let (start, bytes) = (lba as usize * block, gguf.file_bytes() as usize);
    let room = start + bytes.next_multiple_of(4096) + MIB;
    if !packed {
        let mut all = vec![0xa5; room.next_multiple_of(block)];
        all[start..start + bytes].copy_from_slice(gguf.parts()[0].bytes());
        return Arc::new(Media::new(block, all));
    }
    let media = Arc::new(Media::new(block, vec![0xa5; room.next_multiple_of(block)]));
    let door = ModelDoor::new(Traits::default(), vec![media.clone()]);
    let mut storage = DirectDrive::open(door, None).unwrap();
    write::write(&mut storage, start as u64, gguf, &mut |_| ()).unwrap();
    media
}

/// Reads from block `lba` of the drive behind `door`, with timeouts that take few of its steps.
pub fn reads(door: &Arc<ModelDoor>, lba: u64) -> NvmeReads {
    reads_at(door, Spot { lba, ..Spot::default() })
}

fn reads_at(door: &Arc<ModelDoor>, spot: Spot) -> NvmeReads {
    let door = door.clone();
    let options = ::nvme::Options {
        timeout: Duration::from_millis(50),
        abort_timeout: Duration::from_millis(20),
        ..::nvme::Options::default()
    };
    NvmeReads::through(Box::new(move || Ok(door.clone())), spot, DiskReads::Auto, options)
}

/// A model on `device`, with the least device memory and no RAM.
fn load(path: &Path, device: DeviceChoice, reads: &NvmeReads) -> Result<Box<dyn Runner>, EngineError> {
    fn on<D: Device + 'static>(
        dev: D,
        gguf: Arc<Gguf>,
        options: &LoadOptions,
        reads: &NvmeReads,
    ) -> Result<Box<dyn Runner>, EngineError> {
        let model = Model::new(gguf, None, 64).unwrap();
        Ok(Box::new(Session::load_by(dev, model, options, reads, &mut |_| ())?))
    }
    let gguf = Arc::new(Gguf::open(path).unwrap());
    let options = LoadOptions {
        streaming: true,
        vram_budget: Some(models::budget(&*models::open(device, &gguf, None), &gguf, 0).into()),
        ram_budget: Some(Budget::Bytes(0)),
        wanted: 64,
        ..LoadOptions::default()
    };
    match device {
        DeviceChoice::Cpu => on(CpuDevice::new(), gguf, &options, reads),
        _ => on(CudaDevice::new(EmulatorDriver::new(0)), gguf, &options, reads),
    }
}

fn resident(path: &Path, device: DeviceChoice) -> Vec<f32> {
    let gguf = Arc::new(Gguf::open(path).unwrap());
    models::logits_of_passes(&mut *models::open(device, &gguf, None), PASSES)
}

#[track_caller]
fn assert_right(runner: &mut dyn Runner, expected: &[f32], what: &str) {
    let found = models::logits_of_passes(runner, PASSES);
    assert!(found.iter().zip(expected).all(|(f, e)| f.to_bits() == e.to_bits()), "{what}: the logits are others");
}

#[test]
fn from_a_drive_is_resident_to_the_bit() {
    let small = Small::of("Q4_K_M");
    let gguf = Gguf::open(&small.path).unwrap();
    for device in [DeviceChoice::Cpu, DeviceChoice::Emulator] {
        let expected = resident(&small.path, device);
        for (block, lba, packed) in [(512, 0, true), (512, 3, false), (4096, 5, true), (4096, 0, false)] {
            for (shuffle, mdts, depth, iommu) in [(Some(7), 1, 2, true), (None, 5, 1 << 16, false)] {
                let traits = Traits { shuffle, mdts, max_queue_entries: depth, ..Traits::default() };
                let door = ModelDoor::new(traits, vec![holding(&gguf, block, lba, packed)]);
                if !iommu {
                    door.without_iommu();
                }
                let mut runner = load(&small.path, device, &reads(&door, lba)).unwrap();
                let memory = runner.memory();
                assert!(memory.disk_per_pass > 0 && memory.disk_per_pass == memory.streamed_per_pass);
                door.model().faults(Box::new(|_, _| None));
                assert_right(&mut *runner, &expected, &format!("{device:?} {block} {lba} {packed} {iommu}"));
                assert!(door.model().commands() > 16, "{} commands", door.model().commands());
                drop(runner);
                assert!(!door.is_bus_master(), "the drive goes on");
                assert_eq!(door.bus().misses(), 0);
            }
        }
    }
}

/// Commands whose first block is one of `blocks` have this fault.
fn at_blocks(blocks: std::ops::Range<u64>, fault: Fault) -> Choose {
    Box::new(move |_, command| {
        let lba = u64::from(command.0[11]) << 32 | u64::from(command.0[10]);
        blocks.contains(&lba).then_some(fault)
    })
}

const MEDIA_ERROR: Status = Status::new(2, 0x81, false);
const BUSY: Status = Status::new(0, 0x21, true);

/// A model on a sound drive of blocks of 512 bytes, plain, from block 0 on.
fn streamed(small: &Small, device: DeviceChoice) -> (Arc<ModelDoor>, Box<dyn Runner>) {
    let gguf = Gguf::open(&small.path).unwrap();
    let traits = Traits { shuffle: Some(3), ..Traits::default() };
    let door = ModelDoor::new(traits, vec![holding(&gguf, 512, 0, false)]);
    let runner = load(&small.path, device, &reads(&door, 0)).unwrap();
    (door, runner)
}

#[test]
fn faults_that_pass_change_nothing() {
    let small = Small::of("Q8_0");
    for device in [DeviceChoice::Cpu, DeviceChoice::Emulator] {
        let expected = resident(&small.path, device);
        let (door, mut runner) = streamed(&small, device);
        let faults = |nth: u64, _: &Command| match nth {
            17 | 29 => Some(Fault::Fatal),
            _ => match nth % 12 {
                3 => Some(Fault::Status(BUSY)),
                5 => Some(Fault::Late(9)),
                8 => Some(Fault::Duplicate(4)),
                11 if nth < 60 => Some(Fault::Missing),
                _ => None,
            },
        };
        door.model().faults(Box::new(faults));
        assert_right(&mut *runner, &expected, &format!("{device:?}"));
        assert!(door.model().commands() > 60, "{}", door.model().commands());
    }
}

/// The first error of some passes.
fn error_of(runner: &mut dyn Runner) -> String {
    (0..8).find_map(|position| runner.pass(&[7], position, 1).err()).expect("nobody noticed").to_string()
}

#[test]
fn faults_that_stay_are_errors_that_say_where() {
    let small = Small::of("Q8_0");
    let gguf = Gguf::open(&small.path).unwrap();
    let tensor = gguf.tensors().iter().find(|tensor| tensor.name == "blk.2.ffn_down.weight").unwrap();
    let offset = gguf.tensor_file_offset(tensor);
    let first = offset / 512;
    let path = small.path.to_str().unwrap();
    for device in [DeviceChoice::Cpu, DeviceChoice::Emulator] {
        let expected = resident(&small.path, device);
        let (door, mut runner) = streamed(&small, device);
        let lba = format!(" from block {first} on ");
        for (fault, message) in [
            (Fault::Status(MEDIA_ERROR), &*format!("{lba}failed: Unrecovered Read Error")),
            (Fault::Status(BUSY), "Command Interrupted (generic, type 0h code 21h) (attempt 4)"),
            (Fault::Missing, &*format!("{lba}did not complete within 50ms (4 attempts)")),
            (Fault::Fatal, "did not complete within 50ms (4 attempts)"),
        ] {
            door.model().faults(at_blocks(first..first + 1, fault));
            for _ in 0..2 {
                let error = error_of(&mut *runner);
                // A controller that fails takes with it whatever is in flight.
                let layer = if fault == Fault::Fatal { "layer " } else { "layer 2: " };
                let offset = if fault == Fault::Fatal { String::new() } else { format!("{offset} ") };
                assert!(error.starts_with(layer), "{fault:?}: {error}");
                assert!(error.contains(&format!("{path} on model: reading ")), "{fault:?}: {error}");
                assert!(error.contains(&format!(" at offset {offset}")), "{fault:?}: {error}");
                assert!(error.contains(": model: Read of ") && error.contains(message), "{fault:?}: {error}");
            }
            door.model().faults(Box::new(|_, _| None));
            assert_right(&mut *runner, &expected, &format!("{device:?} after {fault:?}"));
        }
    }
}

/// A drive that is gone ends each pass with an error, and the run.
#[test]
fn a_drive_that_is_gone_is_an_error() {
    let small = Small::of("Q8_0");
    let (door, mut runner) = streamed(&small, DeviceChoice::Cpu);
    runner.pass(&[7], 0, 1).unwrap();
    door.remove();
    let begin = Instant::now();
    for _ in 0..2 {
        let error = error_of(&mut *runner);
        assert!(error.starts_with("layer ") && error.contains("the device does not answer"), "{error}");
    }
    drop(runner);
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
}

#[test]
fn split_models_are_packed() {
    let small = Small::of("Q8_0");
    let parts = Parts::new(&Gguf::open(&small.path).unwrap(), &[5, 12]);
    let gguf = Gguf::open(&parts.path(1)).unwrap();
    let expected = resident(&small.path, DeviceChoice::Cpu);
    let door = ModelDoor::new(Traits::default(), vec![holding(&gguf, 4096, 2, true)]);
    let mut runner = load(&parts.path(1), DeviceChoice::Cpu, &reads(&door, 2)).unwrap();
    assert_right(&mut *runner, &expected, "in three files");
    // A fault names the file that it is in.
    door.model().faults(Box::new(|_, _| Some(Fault::Status(MEDIA_ERROR))));
    let error = error_of(&mut *runner);
    assert!(error.contains("of-00003.gguf on model: reading "), "{error}");
}

/// Beside weights on the device and in RAM, which come from the file.
#[test]
fn any_mix_is_resident_to_the_bit() {
    let small = Small::of("Q8_0");
    let gguf = Arc::new(Gguf::open(&small.path).unwrap());
    let whole = &mut *models::open(DeviceChoice::Cpu, &gguf, None);
    let expected = models::logits_of_passes(whole, zero_copy::PASSES);
    for seed in 1..=5 {
        let door = ModelDoor::new(Traits::default(), vec![holding(&gguf, 4096, 3, seed % 2 == 0)]);
        let reading = Reading { reads: &reads(&door, 3), ..Reading::default() };
        let (found, _) = zero_copy::logits(CpuDevice::new(), gguf.clone(), seed, &reading);
        assert!(found.iter().zip(&expected).all(|(f, e)| f.to_bits() == e.to_bits()), "seed {seed}");
    }
}

#[test]
fn the_plan_names_the_drive() {
    let small = Small::of("Q8_0");
    let gguf = Arc::new(Gguf::open(&small.path).unwrap());
    let door = ModelDoor::new(Traits::default(), vec![holding(&gguf, 512, 0, true)]);
    let whole = models::open(DeviceChoice::Cpu, &gguf, None);
    let mut options = LoadOptions {
        streaming: true,
        vram_budget: Some(models::budget(&*whole, &gguf, 0).into()),
        ram_budget: Some(Budget::Bytes(0)),
        wanted: 64,
        ..LoadOptions::default()
    };
    let model = Model::new(gguf, None, 64).unwrap();
    let plan =
        |options: &LoadOptions| engine::plan_for(&mut CpuDevice::new(), &model, options, &reads(&door, 0)).unwrap();
    let placement = plan(&options);
    assert_eq!(placement.drive.as_deref(), Some("model"));
    assert!(placement.inputs.rates.disk.is_some_and(|rate| rate > 0.0));
    options.ram_budget = None;
    assert_eq!(plan(&options).drive, None, "all is in RAM");
}

/// A drive that is not needed is not looked for.
#[test]
fn where_all_fits_no_drive_is_opened() {
    let small = Small::of("Q8_0");
    let gguf = Arc::new(Gguf::open(&small.path).unwrap());
    let find = Box::new(|| panic!("it was opened"));
    let reads = NvmeReads::through(find, Spot::default(), DiskReads::Auto, ::nvme::Options::default());
    let options = LoadOptions { streaming: true, wanted: 64, ..LoadOptions::default() };
    let model = Model::new(gguf, None, 64).unwrap();
    let dev = CudaDevice::new(EmulatorDriver::new(0));
    let runner = Session::load_by(dev, model, &options, &reads, &mut |_| ()).unwrap();
    assert_eq!(runner.memory().streamed_per_pass, 0);
}
