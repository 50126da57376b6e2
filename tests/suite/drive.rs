//! Weights that stay on a raw drive, read by our own driver from a controller that is played: the same results as from anywhere else, and
//! what becomes of faults, of other models, and of drives that hold none.

use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use ::nvme::{
    Status,
    model::{Fault, Media, ModelDoor, Traits},
};
use ntransformer::{
    cli::nvme::{storage::DirectDrive, write},
    device::{Device, cpu::CpuDevice, cuda::CudaDevice, cuda::emulator::EmulatorDriver},
    engine::{Budget, DeviceChoice, EngineError, LoadOptions, Runner, Session},
    gguf::Gguf,
    model::Model,
    stream::{DiskReads, nvme::NvmeReads},
};

use crate::{models, placement::Small, split::Parts};

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
    let mut storage = DirectDrive::open(door, 1).unwrap();
    write::write(&mut storage, start as u64, gguf, &mut |_| ()).unwrap();
    media
}

/// Reads from the drive behind `door`, with timeouts that take few of its steps.
pub fn reads(door: &Arc<ModelDoor>, lba: u64) -> NvmeReads {
    let door = door.clone();
    let options = ::nvme::Options {
        timeout: Duration::from_millis(50),
        abort_timeout: Duration::from_millis(20),
        ..::nvme::Options::default()
    };
    NvmeReads::through(Box::new(move || Ok(door.clone())), lba, DiskReads::Auto, options)
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
