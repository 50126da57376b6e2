//! `ntransformer nvme bench`: how fast a drive is read.

use anyhow::ensure;
use bytesize::ByteSize;
use nvme::{Controller, Door, Drive, Operation, Transfer};
use std::{io::Write, sync::Arc, time::Duration};

use super::storage::open;

/// What is measured.
#[derive(Debug, Clone)]
pub struct Options {
    /// The namespace, or the only one.
    pub namespace: Option<u32>,
    /// Reads in flight.
    pub depths: Vec<u32>,
    /// Bytes of a read.
    pub sizes: Vec<u64>,
    /// Of each measurement.
    pub time: Duration,
}

/// Reads the drive behind `door` from its start on, over and over, and prints a line for each depth and size.
///
/// # Errors
/// If it cannot be read.
pub fn print(door: &Arc<dyn Door>, options: &Options, out: &mut dyn Write) -> anyhow::Result<()> {
    writeln!(out, "{}: {}", door.name(), door.describe())?;
    writeln!(
        out,
        "|      size | depth |   reads/s |   GB/s | us a read |\n|----------:|------:|----------:|-------:|----------:|"
    )?;
    for &size in &options.sizes {
        for &depth in &options.depths {
            let controller = nvme::Options { depth: depth + 1, max_transfer: 1 << 20, ..Default::default() };
            let mut drive = open(Controller::open(door.clone(), controller)?, options.namespace)?;
            let (reads, seconds) = measure(&mut drive, size, u64::from(depth), options.time)?;
            let rate = reads as f64 / seconds;
            let (bytes, size) = (rate * size as f64 / 1e9, ByteSize(size).to_string());
            let wait = 1e6 * f64::from(depth) / rate;
            writeln!(out, "| {size:>9} | {depth:>5} | {rate:>9.0} | {bytes:>6.3} | {wait:>9.1} |")?;
            drive.close()?;
        }
    }
    Ok(())
}

/// Reads of `size` bytes, `depth` of them in flight, for `time`: how many, and the seconds.
fn measure(drive: &mut Drive, size: u64, depth: u64, time: Duration) -> anyhow::Result<(u64, f64)> {
    let (block, all) = (drive.namespace().block_bytes as u64, drive.namespace().blocks);
    ensure!(
        size > 0 && size.is_multiple_of(block) && size / block <= all && size <= 1 << 30,
        "reads of {size} bytes: this drive takes multiples of {block}, of {} at most",
        (all * block).min(1 << 30)
    );
    let blocks = size / block;
    let door = drive.controller().door().clone();
    let memory = door.allocate((size * depth) as usize)?;
    let mut next = 0;
    // A read's id is the place of its data.
    let mut read = |drive: &mut Drive, id: u64| {
        let lba = next;
        next = if next + 2 * blocks <= all { next + blocks } else { 0 };
        let at = (id * size) as usize;
        drive.submit(Transfer { id, operation: Operation::Read, lba, blocks, memory: memory.bus().clone(), at })
    };
    let start = door.now();
    (0..depth).try_for_each(|id| read(drive, id))?;
    let (mut reads, mut done) = (0, Vec::new());
    while drive.pending() > 0 {
        drive.wait(Duration::from_secs(1), &mut done)?;
        for done in done.drain(..) {
            done.result?;
            reads += 1;
            if door.now() - start < time {
                read(drive, done.id)?;
            }
        }
    }
    Ok((reads, (door.now() - start).as_secs_f64()))
}
