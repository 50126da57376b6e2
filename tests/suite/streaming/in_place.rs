//! Pieces that a source writes into the ring by itself: begun only when the host knows that their places have been computed with.

use ntransformer::stream::{DiskReads, Reads};
use readahead::{
    Dst, Input, Memory as InMemory, MemoryRange, OpenError, Piece, Source, SourceError, forward,
    testing::{Addresses, Blocks, WritesDevice},
};

use super::*;
use crate::placement::Small;

/// Memory that others write: its address, and who read each block last.
pub(super) type Exposed = Arc<Mutex<Option<(u64, Arc<Mutex<Vec<usize>>>)>>>;

impl Recorder {
    pub(super) fn expose(&self, memory: &Memory) -> Box<dyn DeviceMemory> {
        let mut bytes = memory.bytes.borrow_mut();
        let (address, len) = (bytes.as_mut_ptr().expose_provenance() as u64, bytes.len());
        *self.exposed.lock().unwrap() = Some((address, memory.read.clone()));
        Box::new(Addresses { start: address, len })
    }
}

/// Looks at each read that is begun whether it may overwrite its place.
struct Watch<S> {
    inner: S,
    host: Arc<Mutex<Ended>>,
    exposed: Exposed,
    races: Arc<Mutex<Vec<String>>>,
}

impl<S: Source> Source for Watch<S> {
    forward!(
        self => self.inner;
        wait, depth, is_queued, block, prepare, lands_in_device, prepare_device, name, describe
    );

    fn submit(&mut self, id: u64, piece: &Piece, dst: Dst) -> Result<(), SourceError> {
        if let Dst::Vram { address, len } = dst {
            let exposed = self.exposed.lock().unwrap();
            let (start, read) = exposed.as_ref().expect("it was prepared");
            let at = (address - start) as usize;
            let known = self.host.lock().unwrap().computations;
            if read.lock().unwrap()[blocks(at..at + len)].iter().any(|&job| job > known) {
                self.races.lock().unwrap().push(format!("{piece:?} is read into a place that may be computed with"));
            }
        }
        self.inner.submit(id, piece, dst)
    }
}

/// Reads of every pass land in the ring, in blocks of so many bytes.
struct Landing {
    block: usize,
    host: Arc<Mutex<Ended>>,
    exposed: Exposed,
    races: Arc<Mutex<Vec<String>>>,
}

impl Reads for Landing {
    fn ahead(&self, files: Vec<Input>, _cached: bool) -> Result<Box<dyn Source>, OpenError> {
        let bytes: Vec<Vec<u8>> = files.iter().map(|file| std::fs::read(&file.path).unwrap()).collect();
        let sizes = bytes.iter().map(|bytes| bytes.len() as u64).collect();
        let ranges = bytes.into_iter().map(|bytes| MemoryRange { name: "model".into(), bytes: Arc::new(bytes) });
        let inner = Blocks::new(InMemory::new(ranges.collect(), 3)?, self.block, sizes);
        // SAFETY: the recorder's memory stays; that nobody uses what a read may write is what is tested.
        let inner = unsafe { WritesDevice::new(inner) };
        let (host, exposed, races) = (self.host.clone(), self.exposed.clone(), self.races.clone());
        Ok(Box::new(Watch { inner, host, exposed, races }))
    }

    fn once(&self, files: Vec<Input>, cached: bool) -> Result<Box<dyn Source>, OpenError> {
        DiskReads::Auto.once(files, cached)
    }
}

/// Some matrices come from the file, some from RAM, through one ring. With what goes wrong, and the layers that are read from the file.
fn stage(small: &Small, rng: &mut SmallRng, block: usize, above: u64) -> (Stage, Arc<Mutex<Vec<String>>>, Vec<usize>) {
    let gguf = Arc::new(Gguf::open(&small.path).unwrap());
    let model = Model::new(gguf.clone(), None, 64).unwrap();
    let (mut streams, mut groups, mut copies, mut read) = (Streams::default(), Vec::new(), 0, Vec::new());
    for layer in 0..=LAYERS {
        let ids = if layer < LAYERS { model.layer_tensors(layer) } else { model.head_tensors() };
        let mut copied = Vec::new();
        for id in ids.into_iter().filter(|id| gguf.tensors()[id.0].rows() > 1) {
            let tier = match rng.random_range(0..4) {
                0 => continue,
                1 => Tier::Ram { device: 0, access: Access::Copy },
                _ => Tier::Disk { device: 0 },
            };
            if tier == (Tier::Disk { device: 0 }) && !read.contains(&layer) {
                read.push(layer);
            }
            copies += usize::from(matches!(tier, Tier::Ram { .. }));
            streams.elsewhere.insert(id, tier);
            copied.push(gguf.tensors()[id.0].bytes);
        }
        groups.push(copied);
    }
    streams.ring_bytes = ring::least(&groups) + above;
    let dev = Recorder::default();
    let races = Arc::<Mutex<_>>::default();
    let reads = Landing { block, host: dev.host.clone(), exposed: dev.exposed.clone(), races: races.clone() };
    let reading = Reading { reads: &reads, ..Reading::default() };
    let layers = Streamed::load(&dev, &model, &streams, &reading, &mut |_| ()).unwrap();
    assert!(layers.read_bytes() == 0 || layers.lands() == Some("straight into the device's memory"));
    (Stage { gguf, model, dev, layers, copies }, races, read)
}

/// However large the ring and the drive's blocks: every layer is whole, its neighbours are, too, and no read is begun into a place that
/// the host does not know to have been computed with.
#[test]
fn reads_into_the_ring_and_computations_are_ordered() {
    let small = Small::of("Q8_0");
    let mut direct = 0;
    for round in 0..40 {
        let mut rng = SmallRng::seed_from_u64(100 + round);
        let block = [512, 4096, 65536][round as usize % 3];
        let above = if round % 4 == 0 { 0 } else { rng.random_range(0..300_000) };
        let (mut stage, races, read) = stage(&small, &mut rng, block, above);
        direct += stage.layers.read_bytes();
        for _ in 0..4 {
            for id in 0..=LAYERS {
                stage.compute(id, true).unwrap();
                if rng.random_bool(0.3) {
                    // Time passes.
                    stage.dev.host_waits(&stage.dev.mark().unwrap()).unwrap();
                }
            }
        }
        stage.assert_no_races();
        assert_eq!(*races.lock().unwrap(), Vec::<String>::new(), "round {round}");
        // Between what was computed before and a layer that was read, what came is made known.
        let ops = stage.dev.ops.borrow();
        let acquired = |to: usize| ops[..to].iter().rev().find(|op| **op != Op::Upload) == Some(&Op::Acquire);
        let known = (0..ops.len()).all(|at| match ops[at] {
            Op::Compute(layer) => acquired(at) || !read.contains(&layer),
            _ => true,
        });
        assert!(known, "round {round}: {ops:?}");
    }
    assert!(direct > 0);
}

/// Layers in any order, and failures anywhere: what was on its way when the flow starts anew does no harm.
#[test]
fn starting_anew_waits_for_reads_that_may_write() {
    let small = Small::of("Q8_0");
    let mut failures = 0;
    for round in 0..30 {
        let mut rng = SmallRng::seed_from_u64(200 + round);
        let (mut stage, races, _) = stage(&small, &mut rng, 4096, 100_000);
        failures += stage.in_any_order(&mut rng, 30);
        stage.dev.fail_upload.set(None);
        stage.dev.fail_marks.set(false);
        stage.pass();
        stage.assert_no_races();
        assert_eq!(*races.lock().unwrap(), Vec::<String>::new(), "round {round}");
    }
    assert!(failures > 50, "{failures}");
}
