//! The source that the streamer reads by.

use std::{
    fs::File,
    io::Write,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use ::nvme::{
    Command, Controller, Drive, Options, Status,
    model::{Choose, Fault, Media, ModelDoor, Traits, Words},
};
use ntransformer::{
    device::cuda::{
        beside::Beside,
        driver::Driver,
        nvme::{MODULE, Settings},
    },
    stream::nvme::{GpuSource, OnDrive, Opened, Parked},
};
use readahead::{Dst, HostBuf, Input, Piece, ReadAhead, ReadError, Source};

use super::{Played, assert_bytes, noise};

const MIB: usize = 1 << 20;

/// A file that begins as a model does, on a drive that is played, from block 3 on.
struct OnPlayed {
    folder: tempfile::TempDir,
    bytes: Vec<u8>,
    /// Dropped before the controller is not played any more.
    parked: Parked,
    played: Played,
    timeout: Duration,
}

impl OnPlayed {
    fn new<D: Driver>(driver: &D, block: usize, mdts: u8) -> Self {
        let mut bytes = noise(17, 3 * MIB + 777);
        bytes[..4].copy_from_slice(b"GGUF");
        let folder = tempfile::tempdir().unwrap();
        File::create(folder.path().join("model.gguf")).unwrap().write_all(&bytes).unwrap();
        let mut all = vec![0xee; (3 * block + bytes.len() + MIB).next_multiple_of(block)];
        all[3 * block..][..bytes.len()].copy_from_slice(&bytes);
        let traits = Traits { mdts, shuffle: Some(5), ..Traits::default() };
        let words = driver.beside(MODULE).unwrap().shared("registers", ModelDoor::registers(&traits)).unwrap();
        let len = ModelDoor::registers(&traits);
        // SAFETY: zeros, which the owner keeps, and which are accessed as whole words.
        let words = unsafe { Words::from_raw(words.as_ptr().cast(), len, Box::new(words.owner())) };
        let door = ModelDoor::threaded_in(traits, vec![Arc::new(Media::new(block, all))], words, |bus| bus);
        let played = Played::new(door);
        OnPlayed { folder, bytes, played, parked: Parked::default(), timeout: Duration::from_secs(20) }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("model.gguf")
    }

    fn source<D: Driver>(&self, driver: &D) -> GpuSource {
        // The admin queue's timeouts are another matter than the kernel's.
        let options = Options { spare: 1, timeout: Duration::from_secs(5), ..Options::default() };
        let controller = Controller::open(self.played.door.clone(), options).unwrap();
        let mut drive = Drive::open(controller, 1).unwrap();
        let input = Input { path: self.path(), file: File::open(self.path()).unwrap() };
        let image = Arc::new(OnDrive::find(&mut drive, 3, &[input]).unwrap());
        let settings = Settings { patience: self.timeout, ..Settings::default() };
        let gpu = Box::new(driver.beside(MODULE).unwrap());
        GpuSource::new(Opened { drive, image }, self.parked.clone(), gpu, settings).unwrap()
    }

    fn pieces(&self, max: usize) -> Vec<Piece> {
        Piece::cut(0, 5, self.bytes.len() as u64 - 5, max).collect()
    }

    /// Reads all pieces, twice, by four buffers. Faults begin once the drive is open.
    fn read<D: Driver>(&mut self, driver: &D, pieces: &[Piece], faults: Option<Choose>) -> Result<(), ReadError> {
        let source = self.source(driver);
        if let Some(faults) = faults {
            self.played.with(|model| model.faults(faults));
        }
        let room = source.room(pieces.iter().map(|piece| piece.len).max().unwrap());
        let buffers = (0..4).map(|_| HostBuf::allocate(room.next_multiple_of(4096), 4096)).collect::<Vec<_>>();
        // What a piece was read into.
        let places: Vec<_> = buffers.iter().map(|buffer| buffer.as_ptr()).collect();
        let ahead = ReadAhead::start(Box::new(source), pieces.to_vec(), buffers, readahead::Options::default())?;
        for index in 0..2 * pieces.len() {
            let piece = pieces[index % pieces.len()];
            let filled = ahead.take(index % pieces.len())?;
            // SAFETY: between taking and giving back, the buffer is the consumer's.
            let found =
                unsafe { std::slice::from_raw_parts(places[filled.buffer.index()].add(filled.begin), filled.len) };
            assert_bytes(found, &self.bytes[piece.offset as usize..][..piece.len], &format!("piece {index}"));
            ahead.give_back(filled.buffer);
        }
        Ok(())
    }
}

/// Pieces of a file arrive in the buffers that are lent, whatever the drive's blocks, or by way of memory of the driver's own.
pub fn reads_pieces<D: Driver>(driver: &D) {
    for (block, mdts, max, iommu) in [(512, 1, 100_000, true), (4096, 5, 1 << 20, true), (512, 5, 70_001, false)] {
        let mut on = OnPlayed::new(driver, block, mdts);
        if !iommu {
            on.played.door.without_iommu();
        }
        let pieces = on.pieces(max);
        on.read(driver, &pieces, None).unwrap_or_else(|e| panic!("{block} {mdts} {max} {iommu}: {e}"));
        assert_eq!(on.played.door.bus().misses(), 0);
        // It is there for the next source.
        assert!(on.parked.lock().unwrap().take().is_some() && !on.played.door.is_bus_master(), "the drive goes on");
    }
}

/// Faults of the first `times` reads that begin at block `lba`.
fn times(lba: u64, times: usize, fault: Fault) -> Choose {
    let mut left = times;
    Box::new(move |_, command: &Command| {
        let hit = left > 0 && u64::from(command.0[10]) == lba;
        left -= usize::from(hit);
        hit.then_some(fault)
    })
}

/// A block that some command begins with: that of the file's byte 1 MiB + 64 KiB, with commands of 64 KiB.
const LBA: u64 = 3 + (MIB + (64 << 10)) as u64 / 512;

fn on_pieces<D: Driver>(driver: &D) -> (OnPlayed, Vec<Piece>) {
    let on = OnPlayed::new(driver, 512, 4);
    let pieces = Piece::cut(0, 0, on.bytes.len() as u64, MIB).collect();
    (on, pieces)
}

fn failing<D: Driver>(driver: &D, tries: usize, fault: Fault) -> Result<(), String> {
    let (mut on, pieces) = on_pieces(driver);
    on.timeout = Duration::from_millis(400);
    let result = on.read(driver, &pieces, Some(times(LBA, tries, fault))).map_err(|e| e.to_string());
    assert_eq!(on.played.door.bus().misses(), 0);
    result
}

/// What may pass is tried again, four times in all; what will not is told at once, with drive, block and status.
pub fn retries<D: Driver>(driver: &D) {
    let (busy, media) = (Status::new(0, 0x21, true), Status::new(2, 0x81, false));
    assert_eq!(failing(driver, 3, Fault::Status(busy)), Ok(()));
    let error = failing(driver, 4, Fault::Status(busy)).unwrap_err();
    let read = format!("model: the GPU's read of 128 blocks from block {LBA} on failed: ");
    assert!(error.contains(&read) && error.contains("Command Interrupted") && error.contains("(attempt 4)"), "{error}");
    let error = failing(driver, 1, Fault::Status(media)).unwrap_err();
    assert!(
        error.contains(&read) && error.contains("Unrecovered Read Error") && error.contains("(attempt 1)"),
        "{error}"
    );
    assert!(error.contains("model.gguf") && error.contains(&format!("offset {MIB}")), "{error}");
}

/// What does not complete is read by new queues, four times in all.
pub fn missing_completions<D: Driver>(driver: &D) {
    assert_eq!(failing(driver, 1, Fault::Missing), Ok(()));
    assert_eq!(failing(driver, 2, Fault::Late(u32::MAX)), Ok(()));
    let error = failing(driver, 4, Fault::Missing).unwrap_err();
    assert!(error.contains(&format!("block {LBA} on did not complete within 400ms (attempt 4)")), "{error}");
}

/// A controller that has failed is reset.
pub fn a_fatal_controller<D: Driver>(driver: &D) {
    let begin = Instant::now();
    let (mut on, pieces) = on_pieces(driver);
    on.read(driver, &pieces, Some(times(LBA, 1, Fault::Fatal))).unwrap();
    assert!(begin.elapsed() < Duration::from_secs(10), "it was waited for as long as for a completion");
}

/// A drive that was pulled out is an error, and not one to wait for.
pub fn a_controller_that_is_gone<D: Driver>(driver: &D) {
    let (mut on, pieces) = on_pieces(driver);
    on.timeout = Duration::from_millis(200);
    let mut source = on.source(driver);
    // All registers read as ones, and nobody completes anything.
    on.played.pause();
    (0..0x40).step_by(4).for_each(|at| on.played.door.words().store(at, u32::MAX));
    source.submit(1, &pieces[0], Dst::Host(HostBuf::allocate(MIB + 8192, 4096))).unwrap();
    let (begin, mut done) = (Instant::now(), Vec::new());
    let error = loop {
        if let Err(error) = source.wait(Duration::from_millis(10), &mut done) {
            break error.to_string();
        }
        assert!(done.is_empty() && begin.elapsed() < Duration::from_secs(10));
    };
    assert!(error.contains("model: the device does not answer"), "{error}");
    drop(source);
}

/// Dropping a source takes the drive off the memory, also where commands do not complete.
pub fn dropped_while_it_reads<D: Driver>(driver: &D) {
    for fault in [Fault::Late(300), Fault::Missing] {
        let (mut on, pieces) = on_pieces(driver);
        on.timeout = Duration::from_millis(100);
        let mut source = on.source(driver);
        on.played.with(|model| model.faults(Box::new(move |nth, _| (nth % 7 == 6).then_some(fault))));
        let buffers: Vec<_> = (0..3).map(|_| HostBuf::allocate(2 * MIB, 4096)).collect();
        source.prepare(&buffers);
        for (id, buffer) in buffers.into_iter().enumerate() {
            source.submit(id as u64, &pieces[id], Dst::Host(buffer)).unwrap();
        }
        // It begins.
        source.wait(Duration::ZERO, &mut Vec::new()).unwrap();
        drop(source);
        assert!(on.parked.lock().unwrap().is_some(), "the drive is well, and its queues are its own again");
        // What was let go is not looked for by the drive any more.
        on.played.with(|_| ());
        assert_eq!(on.played.door.bus().misses(), 0, "{fault:?}");
    }
}
