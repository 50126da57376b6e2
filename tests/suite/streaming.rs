//! The streamed matrices' use of the ring: every copy into a place is ordered after the computations that read it, and every
//! computation after the copy it needs, by events; also after failures.
//!
//! [`Recorder`] is a device that copies at once but keeps the order that a real one would guarantee: what each of its two
//! queues knows to have happened when it starts its next job. A job that relies on more than that is a race.

use std::{
    cell::{Cell, RefCell},
    ops::Range,
    rc::Rc,
    sync::{Arc, Mutex},
};

use ntransformer::{
    cli::synth::{Quant, Shape},
    device::{
        Batch, Device, DeviceError, Dims, Epilogue, Head, Layer, Linear, MemoryInfo, Scratch, Tensor, Transfer, Weight,
    },
    gguf::Gguf,
    model::{Layers, Model},
    pack::TensorId,
    stream::{
        Reading, Streamed, Streams,
        plan::{Access, Tier},
        ring,
    },
};
use quant::TensorType;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use readahead::DeviceMemory;

mod in_place;

/// How many jobs of each queue have certainly ended at some point.
#[derive(Clone, Copy, Debug, Default)]
struct Ended {
    copies: usize,
    computations: usize,
}

impl Ended {
    fn join(&mut self, other: &Ended) {
        self.copies = self.copies.max(other.copies);
        self.computations = self.computations.max(other.computations);
    }
}

/// Bytes that are remembered together: tensors lie at multiples of it.
const BLOCK: usize = 256;

/// Device memory, and who touched each block of it last: the number of that job in its queue.
#[derive(Default)]
struct Memory {
    bytes: RefCell<Vec<u8>>,
    written: RefCell<Vec<usize>>,
    read: Arc<Mutex<Vec<usize>>>,
}

fn blocks(bytes: Range<usize>) -> Range<usize> {
    bytes.start / BLOCK..bytes.end.div_ceil(BLOCK)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Upload,
    Compute(usize),
    /// What others have written is made known to what follows.
    Acquire,
}

/// A device with a queue for copies and one for computations.
#[derive(Default)]
struct Recorder {
    /// What the copy queue knows; `copies` is its own length.
    copy_queue: Cell<Ended>,
    /// What the compute queue knows; `computations` is its own length.
    compute_queue: Cell<Ended>,
    /// What the calling thread has waited for.
    host: Arc<Mutex<Ended>>,
    /// Memory that others write: its address, and who read it last.
    exposed: in_place::Exposed,
    ops: RefCell<Vec<Op>>,
    /// The upload that fails, counted down to 0.
    fail_upload: Cell<Option<usize>>,
    /// Marks fail.
    fail_marks: Cell<bool>,
    races: RefCell<Vec<String>>,
}

impl Recorder {
    fn update(queue: &Cell<Ended>, f: impl FnOnce(&mut Ended)) -> Ended {
        let mut ended = queue.get();
        f(&mut ended);
        queue.set(ended);
        ended
    }

    fn race(&self, what: String) {
        self.races.borrow_mut().push(what);
    }

    /// A computation that reads these bytes, queued.
    fn compute(&self, layer: usize, read: &[(&Memory, Range<usize>)]) {
        let queue = Self::update(&self.compute_queue, |ended| ended.computations += 1);
        for (buf, bytes) in read {
            let blocks = blocks(bytes.clone());
            if buf.written.borrow()[blocks.clone()].iter().any(|&job| job > queue.copies) {
                self.race(format!("layer {layer} is computed while it may still be copied"));
            }
            buf.read.lock().unwrap()[blocks].fill(queue.computations);
        }
        self.ops.borrow_mut().push(Op::Compute(layer));
    }

    fn uploads(&self) -> usize {
        self.ops.borrow().iter().filter(|op| **op == Op::Upload).count()
    }
}

impl Transfer for Recorder {
    type Buf = Rc<Memory>;
    type Pinned = Vec<u8>;
    type Event = Ended;

    fn name(&self) -> &str {
        "recorder"
    }

    fn memory(&self) -> Result<MemoryInfo, DeviceError> {
        unreachable!("layers do not ask")
    }

    fn alloc(&self, _what: &str, bytes: usize) -> Result<Rc<Memory>, DeviceError> {
        let unused = vec![0; bytes.div_ceil(BLOCK)];
        let read = Arc::new(Mutex::new(unused.clone()));
        Ok(Rc::new(Memory { bytes: RefCell::new(vec![0xEE; bytes]), written: RefCell::new(unused), read }))
    }

    fn pinned(&self, _what: &str, bytes: usize) -> Result<Vec<u8>, DeviceError> {
        Ok(vec![0xEE; bytes])
    }

    fn zero_copy(&self, src: Vec<u8>) -> Result<Rc<Memory>, DeviceError> {
        let memory = self.alloc("", src.len())?;
        self.write(&memory, 0, &src)?;
        Ok(memory)
    }

    fn write(&self, dst: &Rc<Memory>, offset: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        dst.bytes.borrow_mut()[offset..offset + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn upload(
        &self,
        src: &Vec<u8>,
        range: Range<usize>,
        dst: &Rc<Memory>,
        offset: usize,
        after: Option<&Ended>,
    ) -> Result<Ended, DeviceError> {
        let queue = Self::update(&self.copy_queue, |ended| {
            ended.join(after.unwrap_or(&Ended::default()));
            ended.copies += 1;
        });
        let written = blocks(offset..offset + range.len());
        if dst.read.lock().unwrap()[written.clone()].iter().any(|&job| job > queue.computations) {
            self.race("a place is overwritten while it may still be read".into());
        }
        dst.written.borrow_mut()[written].fill(queue.copies);
        self.ops.borrow_mut().push(Op::Upload);
        let fails = self.fail_upload.get() == Some(0);
        self.fail_upload.set(self.fail_upload.get().and_then(|left| left.checked_sub(1)));
        let (mut bytes, len) = (dst.bytes.borrow_mut(), range.len());
        bytes[offset..offset + len].copy_from_slice(&src[range]);
        if fails {
            // Half of it has arrived.
            bytes[offset + len / 2..offset + len].fill(0xEE);
            return Err(DeviceError::Unsupported("this copy fails".into()));
        }
        Ok(queue)
    }

    fn acquire(&self) -> Result<(), DeviceError> {
        self.ops.borrow_mut().push(Op::Acquire);
        Ok(())
    }

    fn device_memory<'a>(&'a self, buf: &'a Rc<Memory>) -> Result<Box<dyn DeviceMemory + 'a>, DeviceError> {
        Ok(self.expose(buf))
    }

    fn limit_link(&mut self, _bytes_per_second: Option<f64>) {
        unreachable!("layers do not set the link's speed")
    }

    fn mark_copies(&self) -> Result<Ended, DeviceError> {
        Ok(self.copy_queue.get())
    }

    /// What the calling thread has waited for is all that it can know of.
    fn reached(&self, event: &Ended) -> Result<bool, DeviceError> {
        let known = self.host.lock().unwrap();
        Ok(event.copies <= known.copies && event.computations <= known.computations)
    }

    fn seconds(&self, _from: &Ended, _to: &Ended) -> Result<f64, DeviceError> {
        Ok(1e-3)
    }

    fn mark(&self) -> Result<Ended, DeviceError> {
        match self.fail_marks.get() {
            true => Err(DeviceError::Unsupported("this mark fails".into())),
            false => Ok(self.compute_queue.get()),
        }
    }

    fn compute_waits(&self, event: &Ended) -> Result<(), DeviceError> {
        Self::update(&self.compute_queue, |ended| ended.join(event));
        Ok(())
    }

    fn host_waits(&self, event: &Ended) -> Result<(), DeviceError> {
        self.host.lock().unwrap().join(event);
        // Whatever the host asks for from now on comes later.
        Self::update(&self.copy_queue, |ended| ended.join(event));
        Self::update(&self.compute_queue, |ended| ended.join(event));
        Ok(())
    }
}

/// The streamer uses none of the stages; the tests' own closures stand for computations.
macro_rules! no_stages {
    ($($name:ident($($arg:ty),*) -> $ret:ty;)*) => {
        $(fn $name(&mut self, $(_: $arg),*) -> Result<$ret, DeviceError> {
            unreachable!(concat!(stringify!($name), " is no business of the streamer"))
        })*
    };
}

impl Device for Recorder {
    type Act = ();
    type Kv = ();

    fn dims(&self) -> &Dims {
        unreachable!("the streamer knows no sizes")
    }
    fn act(&self, _rows: usize, _width: usize) -> Result<(), DeviceError> {
        unreachable!("the streamer has no activations")
    }
    fn kv(&self) -> Result<(), DeviceError> {
        unreachable!("the streamer has no cache")
    }
    fn scratch(&mut self) -> &mut Option<Scratch<()>> {
        unreachable!("the streamer has no activations")
    }
    no_stages! {
        prepare(&Dims, usize) -> ();
        begin(&Batch, Option<&[f32]>, &mut ()) -> ();
        embed(&Weight<Self>, &Batch, &mut ()) -> ();
        load(&[f32], &mut ()) -> ();
        rms_norm(&Weight<Self>, usize, &(), &mut (), Epilogue) -> ();
        norm_heads(&Weight<Self>, usize, &mut ()) -> ();
        matmul(&Linear<Weight<Self>>, usize, &(), &mut (), Epilogue) -> ();
        rope(&Batch, usize, usize, &mut ()) -> ();
        append(&Batch, &(), &(), &mut ()) -> ();
        attention(&Batch, Option<u32>, &(), &(), &mut ()) -> ();
        glu(usize, &mut (), &()) -> ();
        cap_logits(usize, f32, &mut ()) -> ();
        gather(&Batch, &(), &mut ()) -> ();
        fetch(&(), usize, usize) -> Vec<f32>;
        argmax(&(), usize, usize) -> Vec<Option<u32>>;
        top_k(&(), usize, usize, usize) -> Vec<Vec<(u32, f32)>>;
    }
}

/// A model behind the streamer.
struct Stage {
    gguf: Arc<Gguf>,
    model: Model,
    dev: Recorder,
    layers: Streamed<Recorder>,
    /// Copies of a pass.
    copies: usize,
}

const LAYERS: usize = 4;

impl Stage {
    /// The matrices stream of which `access` says how, by layer (the head is the last) and by their order in it, through a ring `above`
    /// bytes larger than the least.
    fn new(access: impl Fn(usize, usize) -> Option<Access>, above: u64) -> Self {
        let gguf = super::synth::model(Shape::Tiny, Quant::pure(TensorType::Q8_0), 1);
        let model = Model::new(gguf.clone(), None, 64).unwrap();
        assert_eq!(model.config.layers, LAYERS);
        let mut streams = Streams::default();
        let mut groups = Vec::new();
        for layer in 0..=LAYERS {
            let ids = if layer < LAYERS { model.layer_tensors(layer) } else { model.head_tensors() };
            let matrices = ids.into_iter().filter(|id| gguf.tensors()[id.0].rows() > 1);
            let mut copied = Vec::new();
            for (i, id) in matrices.enumerate() {
                let Some(access) = access(layer, i) else { continue };
                streams.elsewhere.insert(id, Tier::Ram { device: 0, access });
                copied.extend((access == Access::Copy).then(|| gguf.tensors()[id.0].bytes));
            }
            groups.push(copied);
        }
        streams.ring_bytes = ring::least(&groups) + above;
        let dev = Recorder::default();
        let mut loaded = 0;
        let layers = Streamed::load(&dev, &model, &streams, &Reading::default(), &mut |bytes| loaded += bytes).unwrap();
        assert!(loaded > 0 && dev.uploads() == 0);
        Stage { gguf, model, dev, layers, copies: groups.iter().flatten().count() }
    }

    /// The first layers and the head are resident.
    fn with_resident(layers: usize) -> Self {
        Self::new(|layer, _| (layers..LAYERS).contains(&layer).then_some(Access::Copy), 50_000)
    }

    /// Computes a layer, or the head: checks that it is there, whole. The computation itself succeeds or not.
    fn compute(&mut self, id: usize, succeeds: bool) -> Result<(), DeviceError> {
        let Stage { gguf, model, dev, layers, .. } = self;
        let mut ran = false;
        let mut compute = |dev: &mut Recorder, weights: Vec<(TensorId, Tensor<Rc<Memory>>)>| {
            ran = true;
            let len = |weight: &Tensor<Rc<Memory>>| weight.rows * weight.ty.row_bytes(weight.cols).unwrap();
            let read = |weight: &Tensor<Rc<Memory>>| weight.offset..weight.offset + len(weight);
            let bytes: Vec<_> = weights.iter().map(|(_, weight)| (&*weight.buf, read(weight))).collect();
            dev.compute(id, &bytes);
            for (tensor, weight) in &weights {
                let info = &gguf.tensors()[tensor.0];
                assert!(
                    weight.buf.bytes.borrow()[read(weight)] == *gguf.bytes(info),
                    "layer {id}: {} is not its own",
                    info.name
                );
            }
            if succeeds { Ok(()) } else { Err(DeviceError::Unsupported("this computation fails".into())) }
        };
        // Pairs what the file has with what was provided.
        fn zip(
            parts: &mut Vec<TensorId>,
            weights: &mut Vec<Tensor<Rc<Memory>>>,
        ) -> Vec<(TensorId, Tensor<Rc<Memory>>)> {
            parts.drain(..).zip(weights.drain(..)).collect()
        }
        let (mut parts, mut weights) = (Vec::new(), Vec::new());
        let result = if id < LAYERS {
            let _ = model.tensors.layers[id].map(|part| parts.push(part.tensor));
            layers.with(dev, id, &mut |dev, layer: &Layer<Weight<Recorder>>| {
                let _ = layer.map(|weight| weights.push(weight.clone()));
                compute(dev, zip(&mut parts, &mut weights))
            })
        } else {
            let _ = model.tensors.head.map(|part| parts.push(part.tensor));
            layers.with_head(dev, &mut |dev, head: &Head<Weight<Recorder>>| {
                let _ = head.map(|weight| weights.push(weight.clone()));
                compute(dev, zip(&mut parts, &mut weights))
            })
        };
        assert!(ran || result.is_err(), "layer {id} was not computed");
        result
    }

    fn pass(&mut self) {
        for id in 0..=LAYERS {
            self.compute(id, true).unwrap();
        }
    }

    /// So many layers, in their order and in none, with copies, marks and computations that fail now and then. How many fail.
    fn in_any_order(&mut self, rng: &mut SmallRng, count: usize) -> usize {
        let mut last = LAYERS;
        let mut step = || {
            if rng.random_bool(0.1) {
                self.dev.fail_upload.set(Some(rng.random_range(0..10)));
            }
            self.dev.fail_marks.set(rng.random_bool(0.05));
            last = if rng.random_bool(0.5) { rng.random_range(0..=LAYERS) } else { (last + 1) % (LAYERS + 1) };
            self.compute(last, rng.random_bool(0.9)).is_err()
        };
        (0..count).filter(|_| step()).count()
    }

    #[track_caller]
    fn assert_no_races(&self) {
        assert_eq!(*self.dev.races.borrow(), Vec::<String>::new());
    }
}

/// Whatever is copied, through however large a ring, or read where it is: each matrix is copied once per pass, or never, and every layer
/// is whole.
#[test]
fn copies_and_computations_are_ordered() {
    for round in 0..60 {
        let mut rng = SmallRng::seed_from_u64(round);
        let ways = [None, Some(Access::Copy), Some(Access::Copy), Some(Access::ZeroCopy)];
        let mut way = || ways[rng.random_range(0..if round % 2 == 0 { 3 } else { 4 })];
        let flows: Vec<Vec<_>> = (0..=LAYERS).map(|_| (0..8).map(|_| way()).collect()).collect();
        let above = if round % 4 == 0 { 0 } else { rng.random_range(0..200_000) };
        let mut stage = Stage::new(|layer, matrix| flows[layer][matrix], above);
        for pass in 1..=5 {
            stage.pass();
            let uploads = stage.dev.uploads();
            // The next pass has begun.
            assert!((pass * stage.copies..(pass + 1) * stage.copies).contains(&uploads), "{uploads} in round {round}");
        }
        stage.assert_no_races();
        assert!(stage.layers.streamed_bytes() <= stage.layers.pinned_bytes());
        assert_eq!(
            stage.layers.zero_copy_bytes() > 0,
            flows.iter().flatten().any(|way| *way == Some(Access::ZeroCopy))
        );
    }
}

/// The link is busy while a layer is computed: the next one's matrices are on their way before the queue has the computation, and so are
/// the next pass's first ones before the head's.
#[test]
fn what_comes_next_is_on_its_way_before_a_layer_is_computed() {
    let mut stage = Stage::new(|layer, _| (1..LAYERS).contains(&layer).then_some(Access::Copy), 1 << 30);
    stage.pass();
    stage.dev.ops.borrow_mut().clear();
    let each = stage.copies / 3;
    stage.pass();
    let ops = stage.dev.ops.borrow();
    for (i, layer) in [1, 2, 3].into_iter().enumerate() {
        let computed = ops.iter().position(|op| *op == Op::Compute(layer)).unwrap();
        let uploads = ops[..computed].iter().filter(|op| **op == Op::Upload).count();
        // In the first pass all three were brought for this one already.
        assert_eq!(uploads, i * each, "before layer {layer}: {ops:?}");
    }
    let head = ops.iter().position(|op| *op == Op::Compute(LAYERS)).unwrap();
    assert_eq!(ops[..head].iter().filter(|op| **op == Op::Upload).count(), 3 * each);
    stage.assert_no_races();
}

#[test]
fn a_resident_model_copies_nothing() {
    let mut stage = Stage::new(|_, _| None, 0);
    assert!(stage.layers.resident());
    for _ in 0..3 {
        stage.pass();
    }
    assert_eq!((stage.dev.uploads(), stage.layers.streamed_bytes(), stage.layers.pinned_bytes()), (0, 0, 0));
}

/// What is read where it is takes no ring, and no device memory: all is always there, and one recording holds a whole pass.
#[test]
fn a_model_that_is_read_in_ram_copies_nothing() {
    let mut stage = Stage::new(|_, _| Some(Access::ZeroCopy), 0);
    assert!(stage.layers.resident());
    for _ in 0..3 {
        stage.pass();
    }
    let gguf = &stage.gguf;
    let matrices: u64 = stage
        .model
        .tensors
        .layers
        .iter()
        .zip(0..)
        .map(|(_, layer)| {
            let ids = stage.model.layer_tensors(layer).into_iter();
            ids.map(|id| &gguf.tensors()[id.0]).filter(|t| t.rows() > 1).map(|t| t.bytes).sum::<u64>()
        })
        .sum();
    let layers = &stage.layers;
    assert_eq!(stage.dev.uploads(), 0);
    assert_eq!(layers.streamed_bytes(), layers.zero_copy_bytes());
    assert!(layers.zero_copy_bytes() > matrices && layers.zero_copy_bytes() <= layers.pinned_bytes());
    assert!(
        layers.device_bytes() < 64 << 10,
        "{} bytes of device memory are more than the vectors",
        layers.device_bytes()
    );
}

/// Whichever copy fails: the layer is never computed with what is in its place. A copy that was made ahead is made again in time;
/// one that the layer waits for is an error, and the next attempt copies again.
#[test]
fn a_copy_that_fails_leaves_no_matrix_in_its_place() {
    for (above, failing) in [0, 100_000].into_iter().flat_map(|above| (0..60).map(move |i| (above, i))) {
        let mut stage = Stage::new(|layer, _| (layer < LAYERS).then_some(Access::Copy), above);
        stage.dev.fail_upload.set(Some(failing));
        let mut failures = 0;
        for _ in 0..3 {
            for id in 0..=LAYERS {
                if let Err(e) = stage.compute(id, true) {
                    assert!(e.to_string().contains("this copy fails"), "{e}");
                    failures += 1;
                    stage.compute(id, true).expect("the second attempt");
                }
            }
        }
        assert!(stage.dev.fail_upload.get().is_none(), "copy {failing} was not made");
        assert!(failures <= 1, "copy {failing}");
        stage.assert_no_races();
    }
}

/// A computation that fails may have been queued in part, so its place is not free before that has ended.
#[test]
fn a_computation_that_fails_is_fenced() {
    for failing in 0..LAYERS {
        let mut stage = Stage::with_resident(0);
        stage.pass();
        for id in 0..=failing {
            assert_eq!(stage.compute(id, id < failing).is_err(), id == failing);
        }
        stage.pass();
        stage.pass();
        stage.assert_no_races();
    }
}

/// Where the end of a computation cannot be marked, nothing is copied until it can.
#[test]
fn a_place_without_a_fence_is_not_overwritten() {
    let mut stage = Stage::with_resident(0);
    stage.compute(0, true).unwrap();
    stage.dev.fail_marks.set(true);
    assert!(stage.compute(1, true).is_err(), "a computation that cannot be fenced is an error");
    let uploads = stage.dev.uploads();
    assert!(stage.compute(2, true).unwrap_err().to_string().contains("this mark fails"));
    assert_eq!(stage.dev.uploads(), uploads);
    stage.dev.fail_marks.set(false);
    stage.compute(2, true).unwrap();
    stage.compute(3, true).unwrap();
    stage.pass();
    stage.assert_no_races();
}

/// Layers in any order, as skipped layers and rejected drafts will ask for them, and failures anywhere.
#[test]
fn any_order_with_failures() {
    let mut rng = SmallRng::seed_from_u64(11);
    let mut failures = 0;
    for round in 0..50 {
        let mut stage = Stage::with_resident(round % 3);
        failures += stage.in_any_order(&mut rng, 40);
        stage.assert_no_races();
    }
    assert!(failures > 100, "only {failures} failures were tried");
}

/// The recorder sees both kinds of race.
#[test]
fn races_are_seen() {
    let dev = Recorder::default();
    let (slot, ram) = (dev.alloc("slot", 8).unwrap(), vec![1u8; 8]);
    let races = |dev: &Recorder| dev.races.take().len();

    let copied = dev.upload(&ram, 0..8, &slot, 0, None).unwrap();
    dev.compute(0, &[(&slot, 0..8)]);
    assert_eq!(races(&dev), 1, "a computation that waited for no copy");
    dev.compute_waits(&copied).unwrap();
    dev.compute(0, &[(&slot, 0..8)]);
    let before = dev.mark().unwrap();
    dev.compute(0, &[(&slot, 0..8)]);
    assert_eq!(races(&dev), 0);
    dev.upload(&ram, 0..8, &slot, 0, Some(&before)).unwrap();
    assert_eq!(races(&dev), 1, "a copy that waited for the last computation but one");
    dev.upload(&ram, 0..8, &slot, 0, Some(&dev.mark().unwrap())).unwrap();
    assert_eq!(races(&dev), 0);
}
