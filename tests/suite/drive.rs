//! Weights that stay on a raw drive, read by our own driver from a controller that is played: the same results as from anywhere else, and
//! what becomes of faults, of other models, and of drives that hold none.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use ::nvme::{
    Command, Status, System,
    model::{Fault, Media, ModelDoor, Traits},
};
use ntransformer::{
    cli::nvme::{storage::DirectDrive, write},
    device::{Device, cpu::CpuDevice, cuda::CudaDevice, cuda::emulator::EmulatorDriver},
    engine::{self, Budget, DeviceChoice, EngineError, LoadOptions, Runner, Session},
    gguf::Gguf,
    model::Model,
    stream::{
        DiskReads, Reads,
        nvme::{DriveChoice, NvmeReads},
    },
};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use readahead::{Dst, HostBuf, Input, Options, Piece, ReadAhead};

use crate::{models, placement::Small, setup, split::Parts};

const PASSES: [&[u32]; 4] = [&[1, 5, 9, 14, 200], &[3], &[77], &[4]];

const MIB: usize = 1 << 20;

/// A drive with blocks of `block` bytes on which the model lies from block `lba` on, packed or as `dd` lays it.
fn holding(gguf: &Gguf, block: usize, lba: u64, packed: bool) -> Arc<Media> {
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
fn reads(door: &Arc<ModelDoor>, lba: u64) -> NvmeReads {
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

/// Commands whose first block is one of `blocks` have this fault.
fn at_blocks(blocks: std::ops::Range<u64>, fault: Fault) -> Box<dyn FnMut(u64, &Command) -> Option<Fault> + Send> {
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
                let place = format!("layer 2: {path} on model: reading ");
                assert!(error.starts_with(&place), "{fault:?}: {error}");
                assert!(error.contains(&format!(" at offset {offset} failed")) || fault == Fault::Fatal, "{error}");
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
    let reads =
        NvmeReads::through(Box::new(|| panic!("it was opened")), 0, DiskReads::Auto, ::nvme::Options::default());
    let options = LoadOptions { streaming: true, wanted: 64, ..LoadOptions::default() };
    let model = Model::new(gguf, None, 64).unwrap();
    let dev = CudaDevice::new(EmulatorDriver::new(0));
    let runner = Session::load_by(dev, model, &options, &reads, &mut |_| ()).unwrap();
    assert_eq!(runner.memory().streamed_per_pass, 0);
}

/// Why a model cannot be streamed from a drive that holds these bytes.
#[track_caller]
fn refused(path: &Path, block: usize, bytes: Vec<u8>, lba: u64) -> String {
    let door = ModelDoor::new(Traits::default(), vec![Arc::new(Media::new(block, bytes))]);
    match load(path, DeviceChoice::Cpu, &reads(&door, lba)) {
        Ok(_) => panic!("it was loaded"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn what_is_not_the_model_is_told_apart() {
    let small = Small::of("Q8_0");
    let gguf = Gguf::open(&small.path).unwrap();
    let (path, len) = (small.path.to_str().unwrap(), gguf.file_bytes() as usize);
    let check = |bytes: Vec<u8>, lba: u64, expected: &str| {
        let error = refused(&small.path, 512, bytes, lba);
        assert!(error.contains(expected), "{expected:?} is not in {error:?}");
    };
    let (plain, packed) = (holding(&gguf, 512, 8, false).bytes(), holding(&gguf, 512, 8, true).bytes());

    let advice = format!(
        "`ntransformer nvme write model {path}` lays it there, and --nvme-lba says where it is if it is elsewhere"
    );
    check(vec![0; 2 * MIB], 8, &format!("model: there is no model at block 8, but nothing that is known; {advice}"));
    let mut ext4 = vec![0; 2 * MIB];
    ext4[1080..1082].copy_from_slice(&[0x53, 0xef]);
    check(ext4, 0, "there is no model at block 0, but an ext2, ext3 or ext4 file system;");
    check(plain.clone(), 0, "there is no model at block 0, but nothing that is known;");
    check(packed.clone(), 1 << 40, "there is no block 1099511627776 for a model to begin at");

    // A bit anywhere makes another model of it.
    for place in [100, len / 2, len - 1] {
        let mut bytes = plain.clone();
        bytes[8 * 512 + place] ^= 1;
        let (portion, name) = (place / MIB * MIB, format!("the model at block 8 is not {path}: what is there differs"));
        check(bytes, 8, &name);
        let mut bytes = plain.clone();
        bytes[8 * 512 + place] ^= 1;
        check(bytes, 8, &format!("within 1024 KiB from byte {portion} on;"));
    }
    // The image of another model, of another version, and a damaged one.
    let other = Small::of("Q4_K_M");
    let others = holding(&Gguf::open(&other.path).unwrap(), 512, 8, true).bytes();
    check(
        others,
        8,
        &format!("bytes, and not [{len}]; lay it there (`ntransformer nvme write model {path}`), or name the model"),
    );
    let mut bytes = packed.clone();
    bytes[8 * 512 + 8] = 9;
    check(bytes, 8, "the model image at block 8: the image is of version 9");
    let mut bytes = packed.clone();
    bytes[8 * 512 + 40] ^= 1;
    check(bytes, 8, "the model image at block 8: the image's header is damaged (its checksum is wrong)");

    // Drives that end before the model does.
    let cut = |bytes: &[u8]| bytes[..(8 * 512 + len / 2).next_multiple_of(512)].to_vec();
    check(cut(&plain), 8, &format!("a GGUF file begins at block 8, and {path} has {len} bytes, but there are "));
    check(cut(&packed), 8, "the model image at block 8: the image needs ");
    check(plain[..9 * 512].to_vec(), 8, "there is no model at block 8, but ");

    // A split model is never plain.
    let parts = Parts::new(&gguf, &[5]);
    let error = refused(&parts.path(1), 512, plain, 8);
    assert!(error.contains("it is one file, and not 2"), "{error}");
}

/// Pieces that begin and end anywhere, into buffers that the drive sees and such that it does not.
#[test]
fn any_piece_is_read() {
    let small = Small::of("Q8_0");
    let gguf = Gguf::open(&small.path).unwrap();
    let bytes = gguf.parts()[0].bytes();
    let mut rng = SmallRng::seed_from_u64(1);
    let mut pieces: Vec<Piece> = (0..200)
        .map(|_| {
            let offset = rng.random_range(0..bytes.len());
            let len = rng.random_range(1..=(bytes.len() - offset).min(300_000));
            Piece { file: 0, offset: offset as u64, len }
        })
        .collect();
    pieces.push(Piece { file: 0, offset: bytes.len() as u64 - 1, len: 1 });
    for (block, iommu) in [(512, true), (512, false), (4096, true), (4096, false)] {
        let traits = Traits { shuffle: Some(9), pages: [0, 1], ..Traits::default() };
        let door = ModelDoor::new(traits, vec![holding(&gguf, block, 1, false)]);
        if !iommu {
            door.without_iommu();
        }
        let mut source = reads(&door, 1).ahead(inputs(&gguf), false).unwrap();
        let room = source.room(300_000);
        let buffers: Vec<HostBuf> = (0..5).map(|_| HostBuf::allocate(room, source.block())).collect();
        let memory: Vec<_> = buffers.iter().map(|buffer| (buffer.as_ptr(), buffer.owner())).collect();
        // What lies around a piece in its blocks is written, and nothing behind them.
        source.prepare(&buffers);
        let describes = if iommu {
            ", straight into the buffers"
        } else {
            " that the drive can write, since it cannot write the buffers ("
        };
        assert!(source.describe().contains(describes), "{}", source.describe());
        let ahead =
            ReadAhead::start(source, pieces.clone(), buffers, Options { once: true, ..Options::default() }).unwrap();
        for (number, piece) in pieces.iter().enumerate() {
            let filled = ahead.take(number).unwrap();
            let (ptr, _owner) = &memory[filled.buffer.index()];
            // SAFETY: the owner keeps the memory, and no read has it before it is given back.
            let found = unsafe { std::slice::from_raw_parts(ptr.add(filled.begin), filled.len) };
            assert!(found == &bytes[piece.offset as usize..][..piece.len], "{piece:?}");
            ahead.give_back(filled.buffer);
        }
    }
}

/// Behind the end of a source nothing is written, and its drive is at rest.
#[test]
fn a_source_that_is_dropped_in_mid_flight_leaves_memory_alone() {
    let small = Small::of("Q8_0");
    let gguf = Gguf::open(&small.path).unwrap();
    for late in [0, 20] {
        let door = ModelDoor::new(Traits::default(), vec![holding(&gguf, 512, 0, false)]);
        let reads = reads(&door, 0);
        let mut source = reads.ahead(inputs(&gguf), false).unwrap();
        door.model().faults(Box::new(move |_, _| Some(Fault::Late(late))));
        let mut buffers: Vec<HostBuf> = (0..4).map(|_| HostBuf::allocate(1 << 18, 4096)).collect();
        source.prepare(&buffers);
        let memory: Vec<_> = buffers.iter().map(|buffer| (buffer.as_ptr(), buffer.owner())).collect();
        for (id, buffer) in buffers.drain(..).enumerate() {
            let piece = Piece { file: 0, offset: 1 << 18 << id, len: 1 << 18 };
            source.submit(id as u64, &piece, Dst::Host(buffer)).unwrap();
        }
        let mut done = Vec::new();
        source.wait(Duration::from_micros(1), &mut done).unwrap();
        drop(source);
        // SAFETY: the owners keep the memory, which no read has any more.
        let bytes = || memory.iter().map(|(ptr, _)| unsafe { std::slice::from_raw_parts(*ptr, 1 << 18) }.to_vec());
        let before: Vec<_> = bytes().collect();
        (0..1000).for_each(|_| {
            door.model().step();
        });
        assert!(bytes().eq(before), "something was written");
        assert_eq!(door.bus().misses(), 0);
        // Another one begins anew.
        door.model().faults(Box::new(|_, _| None));
        let mut source = reads.ahead(inputs(&gguf), false).unwrap();
        source.submit(1, &Piece { file: 0, offset: 0, len: 10 }, Dst::Host(HostBuf::allocate(4096, 4096))).unwrap();
        let mut done = Vec::new();
        while done.is_empty() {
            source.wait(Duration::from_secs(1), &mut done).unwrap();
        }
        assert!(done[0].result.is_ok(), "{done:?}");
    }
}

fn inputs(gguf: &Gguf) -> Vec<Input> {
    let input = |part: &Arc<ntransformer::gguf::Part>| Input {
        path: part.path().unwrap().to_owned(),
        file: part.file().unwrap().try_clone().unwrap(),
    };
    gguf.parts().iter().map(input).collect()
}

/// A machine with these functions: addresses, classes and drivers.
fn machine(functions: &[(&str, &str, Option<&str>)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("sys/bus/pci/devices")).unwrap();
    for (address, class, driver) in functions {
        let folder = root.path().join("sys/bus/pci/devices").join(address);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("class"), class).unwrap();
        if let Some(driver) = driver {
            symlink(root.path().join("sys/bus/pci/drivers").join(driver), folder.join("driver")).unwrap();
        }
    }
    root
}

#[test]
fn a_drive_is_found_where_there_is_one() {
    const NVME: &str = "0x010802\n";
    let gpu = ("0000:01:00.0", "0x030200\n", Some("nvidia"));
    let kernels = ("0000:3b:00.0", NVME, Some("nvme"));
    let find = |choice: &str, functions: &[(&str, &str, Option<&str>)]| {
        let root = machine(functions);
        let choice: DriveChoice = choice.parse().unwrap();
        choice.find(&System::at(root.path())).map(|address| address.to_string()).map_err(|error| error.to_string())
    };
    for driver in [None, Some("vfio-pci")] {
        let taken = ("0000:3c:00.0", NVME, driver);
        assert_eq!(find("auto", &[gpu, kernels, taken]).as_deref(), Ok("0000:3c:00.0"));
    }
    let free = ("0000:04:00.0", "0x010601\n", None);
    let error = find("auto", &[gpu, kernels, free]).unwrap_err();
    assert!(error.starts_with("no NVMe drive is taken from the kernel (0000:3b:00.0 has the driver nvme);"), "{error}");
    assert!(error.ends_with("`nvme bind BDF` takes one"), "{error}");
    assert!(find("auto", &[gpu]).unwrap_err().contains("(there are none)"));
    let two = [("0000:3c:00.0", NVME, None), ("0000:3d:00.0", NVME, Some("vfio-pci"))];
    let error = find("auto", &two).unwrap_err();
    assert!(
        error.contains("0000:3c:00.0, 0000:3d:00.0; say which one is meant (--nvme BDF, or GPUNVME_PCI_BDF)"),
        "{error}"
    );
    assert_eq!(find("3d:00.0", &two).as_deref(), Ok("0000:3d:00.0"));
    // What the kernel's driver has is refused when it is opened, with what to do.
    assert_eq!(find("3b:00.0", &[kernels]).as_deref(), Ok("0000:3b:00.0"));
    let error = find("01:00.0", &[gpu]).unwrap_err();
    assert!(error.starts_with("0000:01:00.0 is no NVMe drive (its class is 030200)"), "{error}");
    assert!(find("05:00.0", &[gpu]).unwrap_err().contains("there is no such device"));
}

#[test]
fn the_command_says_what_is_wrong_with_a_drive() {
    let demo = setup::root().join("assets/demo.gguf");
    let run = |args: &[&str], variables: &[(&str, &str)]| {
        let common = ["-c", "64", "-n", "2", "-t", "0", "-p", "Once", "--device", "cpu", "--ram-budget", "0"];
        let mut command = std::process::Command::new(setup::ntransformer());
        command.args(common).args(["-m", demo.to_str().unwrap()]).args(args);
        let output = command.envs(variables.iter().copied()).stdin(Stdio::null()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (none, tight) = ("ffff:ff:1f.7", "--vram-budget=7MiB");
    let (drive, lba, gpu) = ("GPUNVME_PCI_BDF", "GPUNVME_GGUF_LBA", "GPUNVME_GPU_BDF");
    for (args, variables, code, expected) in [
        (&["--streaming", tight, "--nvme", none][..], &[][..], 1, "ffff:ff:1f.7: there is no such device (see lspci)"),
        (&["--streaming", tight], &[(drive, none)], 1, "ffff:ff:1f.7: there is no such device (see lspci)"),
        (&["--streaming", tight, "--plan"], &[(drive, none)], 1, "ffff:ff:1f.7: there is no such device (see lspci)"),
        (&["--streaming"], &[(drive, "nvme0")], 1, "GPUNVME_PCI_BDF is \"nvme0\": expected auto, or a PCI address"),
        (&["--streaming"], &[(lba, "one")], 1, "GPUNVME_GGUF_LBA is \"one\": expected the number of a logical block"),
        (&["--streaming"], &[(gpu, "cuda:0")], 1, "GPUNVME_GPU_BDF is \"cuda:0\": expected a PCI address"),
        (
            &["--streaming", "--nvme-lba", "8"],
            &[],
            1,
            "--nvme-lba says more of a drive that is read, but none is chosen",
        ),
        (&["--streaming", "--nvme", "nvme0"], &[], 2, "expected auto, or a PCI address such as 0000:3b:00.0"),
        (&["--nvme", none], &[], 2, "--streaming"),
        // What is not streamed needs no drive.
        (&[], &[(drive, none)], 0, ""),
        (&["--streaming"], &[(drive, none)], 0, "nothing to stream"),
        (&["--streaming", tight], &[], 0, "what is on disk is read by "),
    ] {
        let (found, error) = run(args, variables);
        assert!(found == Some(code) && error.contains(expected), "{args:?} {variables:?}: {found:?} {error}");
    }
}
