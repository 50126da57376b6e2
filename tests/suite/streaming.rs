//! The streamed layers' use of their slots: every copy into a slot is ordered after the computations that read it, and every
//! computation after the copy it needs, by events; also after failures.
//!
//! [`Recorder`] is a device that copies at once but keeps the order that a real one would guarantee: what each of its two
//! queues knows to have happened when it starts its next job. A job that relies on more than that is a race.

use std::{
    cell::{Cell, RefCell},
    ops::Range,
    rc::Rc,
    sync::Arc,
};

use ntransformer::{
    cli::synth::{Quant, Shape},
    device::{
        Batch, Device, DeviceError, Dims, Epilogue, Layer, Linear, MemoryInfo, Scratch, Tensor, Transfer, Weight,
    },
    gguf::Gguf,
    model::{Layers, Model},
    pack::Image,
    stream::Streamed,
};
use quant::TensorType;
use rand::{Rng, SeedableRng, rngs::SmallRng};

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

/// Device memory, and who touched it last: the number of that job in its queue.
#[derive(Default)]
struct Memory {
    bytes: RefCell<Vec<u8>>,
    written: Cell<usize>,
    read: Cell<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Upload,
    Compute(usize),
}

/// A device with a queue for copies and one for computations.
#[derive(Default)]
struct Recorder {
    /// What the copy queue knows; `copies` is its own length.
    copy_queue: Cell<Ended>,
    /// What the compute queue knows; `computations` is its own length.
    compute_queue: Cell<Ended>,
    /// What the calling thread has waited for.
    host: Cell<Ended>,
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

    /// A computation that reads `buf`, queued.
    fn compute(&self, layer: usize, buf: &Memory) {
        let queue = Self::update(&self.compute_queue, |ended| ended.computations += 1);
        if buf.written.get() > queue.copies {
            self.race(format!("layer {layer} is computed while it may still be copied"));
        }
        buf.read.set(queue.computations);
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
        Ok(Rc::new(Memory { bytes: RefCell::new(vec![0xEE; bytes]), ..Memory::default() }))
    }

    fn pinned(&self, _what: &str, bytes: usize) -> Result<Vec<u8>, DeviceError> {
        Ok(vec![0xEE; bytes])
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
        if dst.read.get() > queue.computations {
            self.race("a slot is overwritten while it may still be read".into());
        }
        dst.written.set(queue.copies);
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

    fn limit_link(&mut self, _bytes_per_second: Option<f64>) {
        unreachable!("layers do not set the link's speed")
    }

    fn mark_copies(&self) -> Result<Ended, DeviceError> {
        Ok(self.copy_queue.get())
    }

    /// What the calling thread has waited for is all that it can know of.
    fn reached(&self, event: &Ended) -> Result<bool, DeviceError> {
        let known = self.host.get();
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
        Self::update(&self.host, |ended| ended.join(event));
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

/// Four layers behind the streamer.
struct Stage {
    gguf: Arc<Gguf>,
    dev: Recorder,
    layers: Streamed<Recorder>,
}

const LAYERS: usize = 4;

impl Stage {
    fn new(resident: usize) -> Self {
        let gguf = super::synth::model(Shape::Tiny, Quant::pure(TensorType::Q8_0), 1);
        let model = Model::new(gguf.clone(), None, 64).unwrap();
        assert_eq!(model.config.layers, LAYERS);
        let images: Vec<Image> = (0..LAYERS).map(|i| model.layer_image(i).unwrap()).collect();
        let dev = Recorder::default();
        let mut loaded = 0;
        let layers = Streamed::load(&dev, &model, &images, resident, &mut |bytes| loaded += bytes).unwrap();
        assert!(loaded > 0 && dev.uploads() == 0);
        Stage { gguf, dev, layers }
    }

    /// Computes one layer: checks that it is there, whole. The computation itself succeeds or not.
    fn compute(&mut self, id: usize, succeeds: bool) -> Result<(), DeviceError> {
        let Stage { gguf, dev, layers } = self;
        let mut ran = false;
        let result = layers.with(dev, id, &mut |dev, layer: &Layer<Weight<Recorder>>, _| {
            ran = true;
            dev.compute(id, &layer.attn.q.weight.buf);
            let weights: [(&str, &Tensor<_>); 3] = [
                ("attn_norm", &layer.attn.norm),
                ("attn_q", &layer.attn.q.weight),
                ("ffn_down", &layer.ffn.down.weight),
            ];
            for (name, weight) in weights {
                let expected = gguf.bytes(gguf.require(&format!("blk.{id}.{name}.weight")).unwrap());
                let bytes = weight.buf.bytes.borrow();
                assert!(bytes[weight.offset..][..expected.len()] == *expected, "layer {id}: {name} is not its own");
            }
            if succeeds { Ok(()) } else { Err(DeviceError::Unsupported("this computation fails".into())) }
        });
        assert!(ran || result.is_err(), "layer {id} was not computed");
        result
    }

    fn pass(&mut self) {
        for id in 0..LAYERS {
            self.compute(id, true).unwrap();
        }
    }

    #[track_caller]
    fn assert_no_races(&self) {
        assert_eq!(*self.dev.races.borrow(), Vec::<String>::new());
    }
}

#[test]
fn copies_and_computations_are_ordered() {
    for resident in [0, 1] {
        let mut stage = Stage::new(resident);
        for pass in 1..=5 {
            stage.pass();
            // Each streamed layer once per pass, and the first of the next pass.
            assert_eq!(stage.dev.uploads(), pass * (LAYERS - resident) + 1);
        }
        stage.assert_no_races();
        assert_eq!(stage.layers.streamed_bytes(), stage.layers.pinned_bytes());
    }
}

/// The link is busy while a layer is computed: the next one's copy is under way before the computation is queued, and so is
/// the next pass's first layer before the last one's.
#[test]
fn the_next_layer_is_on_its_way_before_a_layer_is_computed() {
    use Op::{Compute, Upload};
    let mut stage = Stage::new(1);
    stage.pass();
    let first = [Compute(0), Upload, Upload, Compute(1), Upload, Compute(2), Upload, Compute(3)];
    assert_eq!(*stage.dev.ops.borrow(), first);
    stage.dev.ops.borrow_mut().clear();
    stage.pass();
    let second = [Compute(0), Upload, Compute(1), Upload, Compute(2), Upload, Compute(3)];
    assert_eq!(*stage.dev.ops.borrow(), second);
    stage.assert_no_races();
}

#[test]
fn two_streamed_layers_stay_in_their_slots() {
    let mut stage = Stage::new(2);
    for _ in 0..4 {
        stage.pass();
    }
    assert_eq!(stage.dev.uploads(), 2);
    assert_eq!(stage.layers.streamed_bytes(), 0);
    stage.assert_no_races();
}

/// Whichever copy fails: the error comes out, the layer is not computed with what is in the slot, and the next attempt
/// copies again.
#[test]
fn a_copy_that_fails_leaves_no_layer_in_its_slot() {
    for failing in 0..8 {
        let mut stage = Stage::new(0);
        stage.dev.fail_upload.set(Some(failing));
        let mut failures = 0;
        for _ in 0..3 {
            for id in 0..LAYERS {
                if let Err(e) = stage.compute(id, true) {
                    assert!(e.to_string().contains("this copy fails"), "{e}");
                    failures += 1;
                    stage.compute(id, true).expect("the second attempt");
                }
            }
        }
        assert_eq!(failures, 1, "copy {failing}");
        stage.assert_no_races();
    }
}

/// A computation that fails may have been queued in part, so its slot is not free before that has ended.
#[test]
fn a_computation_that_fails_is_fenced() {
    for failing in 0..LAYERS {
        let mut stage = Stage::new(0);
        stage.pass();
        for id in 0..=failing {
            assert_eq!(stage.compute(id, id < failing).is_err(), id == failing);
        }
        stage.pass();
        stage.pass();
        stage.assert_no_races();
    }
}

/// Layers in any order, as skipped layers and rejected drafts will ask for them, and failures anywhere.
#[test]
fn a_slot_without_a_fence_is_not_overwritten() {
    let mut stage = Stage::new(0);
    stage.compute(0, true).unwrap();
    stage.dev.fail_marks.set(true);
    assert!(stage.compute(1, true).is_err(), "a computation that cannot be fenced is an error");
    stage.dev.fail_marks.set(false);
    // Layer 2 is in the other slot, and its successor would overwrite layer 1's.
    let message = stage.compute(2, true).unwrap_err().to_string();
    assert!(message.contains("slot"), "{message}");
    // Layer 1 is still there: computing it again, with a fence, frees its slot.
    stage.compute(1, true).unwrap();
    stage.compute(2, true).unwrap();
    stage.compute(3, true).unwrap();
    stage.assert_no_races();
}

#[test]
fn any_order_with_failures() {
    let mut rng = SmallRng::seed_from_u64(11);
    let mut failures = 0;
    for round in 0..50 {
        let mut stage = Stage::new(round % 3);
        for _ in 0..40 {
            if rng.random_bool(0.1) {
                stage.dev.fail_upload.set(Some(rng.random_range(0..3)));
            }
            failures += usize::from(stage.compute(rng.random_range(0..LAYERS), rng.random_bool(0.9)).is_err());
        }
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
    dev.compute(0, &slot);
    assert_eq!(races(&dev), 1, "a computation that waited for no copy");
    dev.compute_waits(&copied).unwrap();
    dev.compute(0, &slot);
    let before = dev.mark().unwrap();
    dev.compute(0, &slot);
    assert_eq!(races(&dev), 0);
    dev.upload(&ram, 0..8, &slot, 0, Some(&before)).unwrap();
    assert_eq!(races(&dev), 1, "a copy that waited for the last computation but one");
    dev.upload(&ram, 0..8, &slot, 0, Some(&dev.mark().unwrap())).unwrap();
    assert_eq!(races(&dev), 0);
}
