//! The link between host and device: copies beside the computation, their order, their times, and slower links.
//!
//! `gpu::` runs the same on a GPU (ignored otherwise; scripts/gpu-check.sh).

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use ntransformer::{
    demo,
    device::{
        Activation, Batch, Device, Dims, Pairing, Rotation, Tensor, Transfer,
        cpu::{CpuBuf, CpuDevice},
        cuda::{CudaDevice, cust::CustDriver, emulator::EmulatorDriver},
    },
    engine::{self, DeviceChoice, LoadOptions},
    gguf::Gguf,
    model::Model,
};
use quant::TensorType;

/// Elements of a row, and rows of the matrix that a slot holds.
const COLS: usize = 64;
const ROWS: usize = 64;
const UNIT: usize = ROWS * COLS * size_of::<f32>();

fn cpu() -> CpuDevice {
    CpuDevice::new()
}

fn emulator() -> CudaDevice<EmulatorDriver> {
    CudaDevice::new(EmulatorDriver::new(0))
}

fn cuda() -> CudaDevice<CustDriver> {
    let device = CudaDevice::new(CustDriver::open(0, |line| eprintln!("{line}")).unwrap());
    eprintln!("{}", device.name());
    device
}

macro_rules! on_every_device {
    ($($test:ident;)*) => {
        $(mod $test {
            #[test]
            fn cpu() {
                super::checks::$test(super::cpu());
            }
            #[test]
            fn emulator() {
                super::checks::$test(super::emulator());
            }
        })*
        mod gpu {
            $(#[test]
            #[ignore = "needs a GPU"]
            fn $test() {
                super::checks::$test(super::cuda());
            })*
        }
    };
}

on_every_device! {
    units_in_a_ring_are_whole_when_they_are_read;
    a_slow_link_takes_its_time;
    events_tell_when_copies_were_made;
    long_writes_arrive;
}

mod checks {
    use super::*;

    /// The rows `tokens` of the matrix at `offset` of `buf`, by way of the device's own computation.
    fn rows<D: Device>(device: &mut D, buf: &D::Buf, offset: usize, x: &mut D::Act) -> Vec<f32> {
        let batch = Batch {
            tokens: vec![0, ROWS as u32 / 2, ROWS as u32 - 1],
            positions: vec![0, 1, 2],
            rotations: vec![Rotation { cos: vec![1.0; 24], sin: vec![0.0; 24] }],
            want: vec![0],
        };
        let table = Tensor { buf: buf.clone(), offset, ty: TensorType::F32, rows: ROWS, cols: COLS };
        device.begin(&batch, None, x).unwrap();
        device.embed(&table, &batch, x).unwrap();
        device.fetch(x, 3, COLS).unwrap()
    }

    fn prepare<D: Device>(device: &mut D) -> D::Act {
        let dims = Dims {
            hidden: COLS,
            heads: 4,
            kv_heads: 1,
            head_dim: 16,
            ffn: 64,
            vocab: ROWS,
            rope_dims: 16,
            pairing: Pairing::Half,
            rotations: 1,
            activation: Activation::Silu,
            embedding_scale: 1.0,
            attention_scale: 0.25,
            attention_cap: None,
            logit_cap: None,
            eps: 1e-5,
            context: 8,
        };
        device.prepare(&dims, 3).unwrap();
        device.residual(3).unwrap()
    }

    /// Units flow through three slots of one buffer: each is uploaded, in two segments, while the two before it are computed
    /// with. Only events keep them apart.
    pub fn units_in_a_ring_are_whole_when_they_are_read<D: Device>(mut device: D) {
        const SLOTS: usize = 3;
        const UNITS: usize = 7;
        const STEPS: usize = 120;
        let mut x = prepare(&mut device);
        let ring = device.alloc("ring", SLOTS * UNIT).unwrap();
        let mut ram = device.pinned("units", UNITS * UNIT).unwrap();
        let value = |unit: usize, element: usize| (unit * 10_000 + element) as f32;
        for (i, bytes) in ram.as_mut().chunks_exact_mut(4).enumerate() {
            bytes.copy_from_slice(&value(i / (UNIT / 4), i % (UNIT / 4)).to_le_bytes());
        }
        let mut used: [Option<D::Event>; SLOTS] = [const { None }; SLOTS];
        let mut there: [Option<D::Event>; SLOTS] = [const { None }; SLOTS];
        for step in 0..STEPS + SLOTS - 1 {
            if step < STEPS {
                let (slot, from) = (step % SLOTS, step % UNITS * UNIT);
                let half = UNIT / 2;
                for (from, to) in [(from, slot * UNIT), (from + half, slot * UNIT + half)] {
                    let copied = device.upload(&ram, from..from + half, &ring, to, used[slot].as_ref()).unwrap();
                    there[slot] = Some(copied);
                }
            }
            // Two steps behind.
            let Some(step) = step.checked_sub(SLOTS - 1) else { continue };
            let (slot, unit) = (step % SLOTS, step % UNITS);
            device.compute_waits(there[slot].as_ref().unwrap()).unwrap();
            let found = rows(&mut device, &ring, slot * UNIT, &mut x);
            used[slot] = Some(device.mark().unwrap());
            let row = |row: usize| (row * COLS..(row + 1) * COLS).map(|element| value(unit, element));
            let expected: Vec<f32> = [0, ROWS / 2, ROWS - 1].into_iter().flat_map(row).collect();
            assert_eq!(found, expected, "step {step}");
        }
    }

    /// Copies take as long as their bytes on the slower link, one after the other, also those that come after an event.
    pub fn a_slow_link_takes_its_time<D: Device>(mut device: D) {
        const PIECE: usize = 1 << 20;
        const COPIES: usize = 10;
        // 10 ms a copy.
        let limit = PIECE as f64 * 100.0;
        let (ram, to) = (device.pinned("ram", PIECE).unwrap(), device.alloc("vram", PIECE).unwrap());
        let unlimited = device.link_rate().unwrap();
        assert!(unlimited > 2.0 * limit, "{unlimited} B/s");
        device.limit_link(Some(limit));
        // Early never: but for the clocks' steps, and the first event's own way. Late by a hiccup of a machine that does other things
        // too, but not time and again.
        let hiccups = (0..10).take_while(|_| {
            let begin = device.mark_copies().unwrap();
            let mut ends = Vec::new();
            for _ in 0..COPIES {
                let after = device.mark().unwrap();
                ends.push(device.upload(&ram, 0..PIECE, &to, 0, Some(&after)).unwrap());
            }
            device.host_waits(ends.last().unwrap()).unwrap();
            let late = |(i, end): (usize, &D::Event)| {
                let late = device.seconds(&begin, end).unwrap() - (i + 1) as f64 * 10e-3;
                assert!(late >= -0.5e-3, "copy {i} ended {late} s early");
                late
            };
            ends.iter().enumerate().map(late).fold(0.0, f64::max) > 80e-3
        });
        assert!(hiccups.count() < 10, "copies end too late");
        let limited = device.link_rate().unwrap();
        assert!((0.2..1.03).contains(&(limited / limit)), "measured {limited} B/s of {limit}");
        device.limit_link(None);
        let again = device.link_rate().unwrap();
        assert!(again > 2.0 * limit, "{again} B/s");
    }

    /// A write of more than what goes at once arrives in its place, whatever is around it.
    pub fn long_writes_arrive<D: Device>(mut device: D) {
        let mut x = prepare(&mut device);
        let (before, units) = (UNIT / 2, 50);
        let all: Vec<u8> = (0..units * UNIT / 4).flat_map(|i| (i as f32).to_le_bytes()).collect();
        let buf = device.alloc("target", before + all.len()).unwrap();
        device.write(&buf, before, &all).unwrap();
        for unit in [0, 1, units / 2, units - 1] {
            let found = rows(&mut device, &buf, before + unit * UNIT, &mut x);
            let row = |row: usize| (0..COLS).map(move |col| ((unit * ROWS + row) * COLS + col) as f32);
            let expected: Vec<f32> = [0, ROWS / 2, ROWS - 1].into_iter().flat_map(row).collect();
            assert_eq!(found, expected, "unit {unit}");
        }
        assert!(device.write(&buf, before + 1000, &all).is_err(), "beyond the end");
    }

    pub fn events_tell_when_copies_were_made<D: Device>(mut device: D) {
        const BYTES: usize = 1 << 20;
        let (ram, to) = (device.pinned("ram", BYTES).unwrap(), device.alloc("vram", BYTES).unwrap());
        device.limit_link(Some(BYTES as f64 * 50.0));
        let before = device.mark_copies().unwrap();
        let end = device.upload(&ram, 0..BYTES, &to, 0, None).unwrap();
        let behind = device.mark_copies().unwrap();
        device.host_waits(&behind).unwrap();
        for event in [&before, &end, &behind] {
            assert!(device.reached(event).unwrap());
        }
        let seconds = device.seconds(&before, &end).unwrap();
        assert!(seconds > 19e-3, "{seconds}");
        let back = device.seconds(&end, &before).unwrap();
        assert!((seconds + back).abs() < 1e-5, "{seconds} s there, {back} s back");
        assert!(device.seconds(&end, &behind).unwrap() >= 0.0);
        let now = device.mark().unwrap();
        device.host_waits(&now).unwrap();
        assert!(device.seconds(&end, &now).unwrap() > 0.0, "events of both queues");
    }
}

/// A copy of 256 KiB that takes 50 ms.
const SLOW: usize = 256 << 10;

fn slow_cpu() -> CpuDevice {
    let mut device = cpu();
    device.limit_link(Some(SLOW as f64 * 20.0));
    device
}

fn bytes(buf: &CpuBuf) -> Vec<u8> {
    let CpuBuf::Owned(memory) = buf else { panic!("memory of its own") };
    memory.read("test", 0..SLOW).unwrap().to_vec()
}

/// On the CPU too, an upload returns before it is done.
#[test]
fn the_caller_goes_on_while_the_cpu_copies() {
    let device = slow_cpu();
    let (ram, to) = (device.pinned("ram", SLOW).unwrap(), device.alloc("vram", SLOW).unwrap());
    let begin = Instant::now();
    let before = device.mark_copies().unwrap();
    let end = device.upload(&ram, 0..SLOW, &to, 0, None).unwrap();
    if begin.elapsed() < Duration::from_millis(40) {
        assert!(!device.reached(&end).unwrap());
        assert!(device.seconds(&before, &end).is_err(), "not reached yet");
    }
    device.compute_waits(&end).unwrap();
    assert!(begin.elapsed() >= Duration::from_millis(49), "{:?}", begin.elapsed());
    assert!(device.reached(&end).unwrap());
}

/// A copy starts after its event, and those behind it after that.
#[test]
fn a_copy_on_the_cpu_waits_for_its_event() {
    let (slow, fast) = (slow_cpu(), cpu());
    let mut ram = slow.pinned("ram", SLOW).unwrap();
    ram.as_mut().fill(1);
    let to = slow.alloc("vram", SLOW).unwrap();
    let first = slow.upload(&ram, 0..SLOW, &to, 0, None).unwrap();
    let mut other = fast.pinned("ram", SLOW).unwrap();
    other.as_mut().fill(2);
    let second = fast.upload(&other, 0..SLOW, &to, 0, Some(&first)).unwrap();
    let third = fast.upload(&other, 0..1, &to, 0, None).unwrap();
    fast.host_waits(&third).unwrap();
    assert!(fast.seconds(&first, &second).unwrap() > 0.0);
    assert!(fast.seconds(&second, &third).unwrap() >= 0.0);
    assert!(bytes(&to) == [2; SLOW]);
}

/// Page-locked memory can be changed when the copies out of it have ended.
#[test]
fn what_the_cpu_is_copying_does_not_change() {
    let device = slow_cpu();
    let mut ram = device.pinned("ram", SLOW).unwrap();
    ram.as_mut().fill(1);
    let targets = [device.alloc("first", SLOW).unwrap(), device.alloc("second", SLOW).unwrap()];
    let ends = targets.each_ref().map(|to| device.upload(&ram, 0..SLOW, to, 0, None).unwrap());
    ram.as_mut().fill(2);
    for (end, to) in ends.iter().zip(&targets) {
        assert!(device.reached(end).unwrap());
        assert!(bytes(to) == [1; SLOW]);
    }
}

/// What was asked for is copied, although device and source are gone.
#[test]
fn the_cpu_ends_its_copies_before_it_goes() {
    let device = slow_cpu();
    let mut ram = device.pinned("ram", SLOW).unwrap();
    ram.as_mut().fill(3);
    let to = device.alloc("vram", SLOW).unwrap();
    let events = [(); 2].map(|()| device.upload(&ram, 0..SLOW, &to, 0, None).unwrap());
    drop((ram, device));
    assert!(cpu().reached(&events[1]).unwrap());
    assert!(bytes(&to) == [3; SLOW]);
}

#[test]
fn ranges_outside_of_the_cpus_memory_are_refused() {
    let device = cpu();
    let (ram, to) = (device.pinned("ram", 100).unwrap(), device.alloc("vram", 100).unwrap());
    let upload = |range, offset| device.upload(&ram, range, &to, offset, None).map(drop).map_err(|e| e.to_string());
    upload(0..100, 0).unwrap();
    upload(100..100, 100).unwrap();
    #[expect(clippy::reversed_empty_ranges)]
    for (range, offset, part) in [
        (0..101, 0, "upload's source: bytes 0..101"),
        (2..1, 0, "upload's source: bytes 2..1"),
        (50..100, 51, "upload: bytes 51..101 are outside a buffer of 100 bytes"),
        (0..1, usize::MAX, "upload: bytes 18446744073709551615.."),
    ] {
        let message = upload(range, offset).unwrap_err();
        assert!(message.contains(part), "{message}");
    }
    assert!(device.write(&to, 99, &[0; 2]).is_err());
}

/// Weights are read rather than mapped, so that a file that changes while it is loaded cannot end the process.
#[test]
fn a_file_that_shrinks_while_it_is_loaded_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    fs::write(&path, demo::BYTES).unwrap();
    let gguf = Arc::new(Gguf::open(&path).unwrap());
    let model = Model::new(gguf, None, 64).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_len(demo::BYTES.len() as u64 / 2).unwrap();
    let options = LoadOptions::default();
    let Err(error) = engine::open(DeviceChoice::Emulator, model, &options, &mut |_| (), &mut |_| ()) else {
        panic!("it loaded");
    };
    let message = error.to_string();
    for part in ["model.gguf", "tensor ", "reading", "has become shorter"] {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
}
