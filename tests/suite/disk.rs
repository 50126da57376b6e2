//! Weights that stay on disk: the same results, and files that change while they are read.

use std::{
    fs::{self, File, OpenOptions},
    io::{Seek, SeekFrom, Write},
    process::{Command, Stdio},
    sync::Arc,
};

use ntransformer::{
    device::DeviceError,
    engine::{self, Budget, DeviceChoice, EngineError, LoadOptions, Runner},
    gguf::Gguf,
    model::Model,
};

use super::{models, placement::Small};
use crate::setup;

/// The model with the least device memory, and no RAM.
fn streamed(small: &Small, device: DeviceChoice) -> Box<dyn Runner> {
    let gguf = Arc::new(Gguf::open(&small.path).unwrap());
    let budget = models::budget(&*models::open(device, &gguf, None), &gguf, 0);
    let options = LoadOptions {
        streaming: true,
        vram_budget: Some(budget.into()),
        ram_budget: Some(Budget::Bytes(0)),
        wanted: 64,
        ..Default::default()
    };
    let model = Model::new(gguf, None, 64).unwrap();
    engine::open(device, model, &options, &mut |_| (), &mut |_| ()).unwrap()
}

const PASSES: [&[u32]; 4] = [&[1, 5, 9, 14, 200], &[3], &[77], &[4]];

#[test]
fn from_disk_is_resident_to_the_bit() {
    for quant in ["Q8_0", "Q4_K_M"] {
        let small = Small::of(quant);
        let gguf = Arc::new(Gguf::open(&small.path).unwrap());
        for device in models::devices() {
            let expected = models::logits_of_passes(&mut *models::open(device, &gguf, None), PASSES);
            let mut runner = streamed(&small, device);
            let memory = runner.memory();
            assert!(memory.disk_per_pass > 0 && memory.disk_per_pass == memory.streamed_per_pass, "{device:?}");
            let found = models::logits_of_passes(&mut *runner, PASSES);
            let same = found.iter().zip(&expected).all(|(f, e)| f.to_bits() == e.to_bits());
            assert!(same, "{quant} {device:?}: the logits are others");
        }
    }
}

/// Passes until one fails: what was read ahead before the file changed may still be right.
fn fails(runner: &mut dyn Runner) -> EngineError {
    (0..64).find_map(|position| runner.pass(&[7], position % 60, 1).err()).expect("nobody noticed")
}

#[track_caller]
fn assert_names(error: &EngineError, small: &Small, parts: &[&str]) {
    let EngineError::Device(DeviceError::Layer { .. }) = error else { panic!("{error} names no layer") };
    let message = error.to_string();
    for part in parts.iter().copied().chain([small.path.to_str().unwrap(), "offset"]) {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
}

/// A file that changes while it is in use ends the passes with an error that names it, time and again.
fn ends_passes(change: impl FnOnce(&mut File, u64), message: &str) {
    let small = Small::of("Q8_0");
    let mut runner = streamed(&small, DeviceChoice::Cpu);
    runner.pass(&[7], 0, 1).unwrap();
    let length = fs::metadata(&small.path).unwrap().len();
    change(&mut OpenOptions::new().write(true).open(&small.path).unwrap(), length);
    for _ in 0..2 {
        assert_names(&fails(&mut *runner), &small, &[message]);
    }
}

#[test]
fn a_file_that_changes_is_an_error() {
    // Elsewhere than what the host reads in the map.
    let write = |file: &mut File, length| {
        file.seek(SeekFrom::Start(length - 64)).unwrap();
        file.write_all(&[0; 64]).unwrap();
        file.sync_all().unwrap();
    };
    ends_passes(write, "changed while in use");
}

#[test]
fn a_file_that_is_truncated_is_an_error() {
    ends_passes(|file, length| file.set_len(length - 4096).unwrap(), "truncated while in use");
}

/// Of a model that is on the device as a whole, passes read the embeddings of their tokens.
#[test]
fn a_file_that_is_emptied_is_an_error() {
    let small = Small::of("Q8_0");
    let gguf = Arc::new(Gguf::open(&small.path).unwrap());
    let mut runner = models::open(DeviceChoice::Emulator, &gguf, None);
    runner.pass(&[7], 0, 1).unwrap();
    OpenOptions::new().write(true).open(&small.path).unwrap().set_len(0).unwrap();
    let error = runner.pass(&[7], 1, 1).unwrap_err().to_string();
    let path = small.path.to_str().unwrap();
    assert!(error.contains(path) && error.contains("shorter since it was opened"), "{error}");
}

/// Another file of that name is another file.
#[test]
fn a_file_that_is_replaced_by_renaming_stays() {
    let small = Small::of("Q8_0");
    let mut runner = streamed(&small, DeviceChoice::Cpu);
    let expected = models::logits_of_passes(&mut *runner, PASSES);
    let other = small.path.with_extension("other");
    fs::write(&other, [0; 100]).unwrap();
    fs::rename(&other, &small.path).unwrap();
    assert!(models::logits_of_passes(&mut *runner, PASSES) == expected);
}

/// All ways of reading give the same, and each says which it is.
#[test]
fn the_way_of_reading_is_chosen() {
    let model = setup::root().join("assets/demo.gguf");
    let run = |reads: &[&str]| {
        let args =
            ["-c", "64", "-n", "4", "-t", "0", "-p", "Once", "--device", "cpu", "--streaming", "--vram-budget", "7MiB"];
        let mut command = Command::new(setup::ntransformer());
        command.args(args).args(["--ram-budget", "0", "-m", model.to_str().unwrap()]).args(reads).stdin(Stdio::null());
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, expected, log) = run(&[]);
    assert_eq!(code, Some(0), "{log}");
    let line = |log: &str| log.lines().find(|line| line.starts_with("what is on disk is read by ")).unwrap().to_owned();
    let auto = line(&log);
    for (way, begins, contains) in [
        ("auto", &auto["what is on disk is read by ".len()..], ""),
        ("pread", "pread, ", "16 threads (as asked for)"),
        ("page-cache", "pread, through the page cache (as asked for)", "16 threads (as asked for)"),
    ] {
        let (code, text, log) = run(&["--disk-reads", way]);
        assert_eq!((code, &text), (Some(0), &expected), "{way}: {log}");
        let line = line(&log);
        assert!(line.starts_with(&format!("what is on disk is read by {begins}")) && line.contains(contains), "{line}");
    }
    // Where it is refused, that is no reason to take another way silently.
    let (code, text, log) = run(&["--disk-reads", "io_uring"]);
    match auto.contains("by io_uring, ") {
        true => assert_eq!((code, text, line(&log)), (Some(0), expected, auto), "{log}"),
        false => assert!(code == Some(1) && log.contains("io_uring"), "{log}"),
    }
    let (code, _, log) = run(&["--disk-reads", "mmap"]);
    assert!(code == Some(2) && log.contains("expected auto, io_uring, pread or page-cache"), "{log}");
}
