//! How fast: commands and bytes a second of the kernel, and of the CPU's driver, with the same played controller.
//!
//! That controller is a thread that copies, so it is what bounds the bytes. The figures say what the kernel takes beside it.

use std::{sync::Arc, time::Instant};

use ::nvme::{BusMemory, Controller, Drive, Operation, Options, Transfer, model::Traits};
use ntransformer::device::cuda::nvme::{Pages, Settings};

use super::{Kind, Rig, Target, Vram, Wanted, assert_bytes, assert_good};

/// Prints a table, and looks at every byte.
pub fn figures<D: Vram>(driver: &D) {
    let bytes = if driver.is_emulated() { 1 << 20 } else { 256 << 20 };
    eprintln!("{}, a played drive:", driver.name());
    eprintln!(
        "| data goes to | bytes of a command | depth | kernel: commands/s | GB/s | CPU's driver: commands/s | GB/s |"
    );
    eprintln!("|---|---|---|---|---|---|---|");
    for (place, command) in [("RAM", 4096), ("RAM", 128 << 10), ("VRAM", 128 << 10), ("VRAM", 1 << 20)] {
        for depth in [1, 8, 60] {
            // Small commands are many.
            let bytes = bytes.min(command << 14).min(if driver.is_emulated() { 64 * command } else { bytes });
            let [kernel, cpu] = measure(driver, place == "VRAM", bytes, command, depth);
            let figures = |seconds: f64| {
                format!("{:.0} | {:.2}", (bytes / command) as f64 / seconds, bytes as f64 / seconds / 1e9)
            };
            eprintln!("| {place} | {command} | {depth} | {} | {} |", figures(kernel), figures(cpu));
        }
    }
}

/// Seconds that the kernel takes to read `bytes` bytes, and that the CPU's driver takes.
fn measure<D: Vram>(driver: &D, vram: bool, bytes: usize, command: usize, depth: u32) -> [f64; 2] {
    let kind = Kind {
        traits: Traits { mdts: 0, shuffle: None, ..Traits::default() },
        block: 4096,
        bytes,
        max_transfer: command,
        settings: Settings { depth, reads: bytes / command, ..Settings::default() },
        ..Kind::default()
    };
    let mut rig = Rig::new(driver, &kind);
    let memory = Target::new(driver.alloc("a drive's destination", if vram { bytes } else { 256 }).unwrap());
    let ram = rig.ram(if vram { 4096 } else { bytes }, 65536, 0);
    let bus: Arc<BusMemory> = match vram {
        true => rig.vram.clone().insert(driver, D::address(&memory), bytes, 0),
        false => ram.buf.bus().clone(),
    };
    let pages = Pages::new(&rig.beside, &bus, 4096).unwrap();
    let blocks = (command / 4096) as u32;
    let reads: Vec<_> =
        (0..bytes / command).map(|i| Wanted { lba: i as u64 * u64::from(blocks), blocks, at: i * command }).collect();
    // The first time, kernels are loaded and pages are touched.
    let mut kernel = 0.0;
    for _ in 0..2 {
        let begin = Instant::now();
        rig.start(&reads, &pages, 0);
        let report = rig.end();
        kernel = begin.elapsed().as_secs_f64();
        assert_good(report, reads.len());
    }
    let mut found = vec![0; bytes];
    match vram {
        true => driver.read(&memory, 0, &mut found).unwrap(),
        false => found = ram.bytes(),
    }
    assert_bytes(&found, &rig.media.bytes(), "what was read");

    let Rig { queue, controller, played, .. } = rig;
    drop((queue, controller));
    let options = Options { depth: depth + 1, max_transfer: command, ..Options::default() };
    let mut drive = Drive::open(Controller::open(played.door.clone(), options).unwrap(), 1).unwrap();
    let begin = Instant::now();
    for (id, read) in reads.iter().enumerate() {
        let Wanted { lba, blocks, at } = *read;
        let transfer =
            Transfer { id: id as u64, operation: Operation::Read, lba, blocks: blocks.into(), memory: bus.clone(), at };
        drive.submit(transfer).unwrap();
    }
    let mut done = Vec::new();
    while drive.pending() > 0 {
        drive.wait(std::time::Duration::from_secs(10), &mut done).unwrap();
    }
    assert!(done.iter().all(|done| done.result.is_ok()));
    [kernel, begin.elapsed().as_secs_f64()]
}
