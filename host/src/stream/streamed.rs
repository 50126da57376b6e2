//! A model's weights where the plan wants them: on the device to stay, or flowing through its ring.

use std::{
    collections::HashMap,
    ops::Range,
    ptr::NonNull,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use readahead::{HostBuf, Input, Piece, Source, SourceOptions, Target};

use super::{
    flow::{Flow, Origin},
    place::{Progress, place, reading, view},
    plan::{Access, Inputs, Plan, Tier},
    ring,
    staging::{Staging, piece_bytes},
};
use crate::{
    device::{Device, DeviceError, Head, HostMemory, Layer, Weight, fill},
    gguf::Part,
    model::{Compute, ComputeHead, Flowed, Layers, Model, Trace},
    pack::{Image, Placed, TensorId, TensorPart},
};

/// Which matrices flow through the ring, and how large it is. By default none: all weights are on the device.
#[derive(Clone, Debug, Default)]
pub struct Streams {
    /// The matrices that are not on the device.
    pub elsewhere: HashMap<TensorId, Tier>,
    /// The ring's size, [`ring::least`] at least.
    pub ring_bytes: u64,
    /// Page-locked RAM for what is read from disk.
    pub staging_bytes: u64,
}

impl Streams {
    /// Those of a plan.
    pub fn of(inputs: &Inputs, plan: &Plan) -> Self {
        let tiers = inputs.units.iter().zip(&plan.tiers);
        let elsewhere = tiers.filter(|(_, tier)| tier.is_streamed()).map(|(unit, &tier)| (unit.tensor, tier)).collect();
        Streams { elsewhere, ring_bytes: plan.ring_bytes, staging_bytes: plan.staging_bytes }
    }
}

/// The longest copy. Copies of 16 MiB run at the link's full speed, and shorter ones free the ring in smaller steps.
const SEGMENT_BYTES: u64 = 32 << 20;

/// A model's weights, placed.
pub struct Streamed<D: Device> {
    layers: Vec<Layer<Weight<D>>>,
    head: Head<Weight<D>>,
    /// The number in the flow of each layer, and of the head behind them; none where all of it is on the device.
    flowing: Vec<Option<usize>>,
    flow: Option<Flow<D>>,
    device_bytes: u64,
    streamed_bytes: u64,
    read_bytes: u64,
    zero_copy_bytes: u64,
    pinned_bytes: u64,
    pageable: Option<String>,
}

/// A group's matrices that flow: their bytes by segment, and where they come from.
struct Group {
    placed: Vec<Placed>,
    segments: Vec<Vec<u64>>,
    origins: Vec<Origin>,
}

impl<D: Device> Streamed<D> {
    /// Puts all weights in their places.
    ///
    /// # Errors
    /// The device's, and those of reading the file.
    pub fn load(dev: &D, model: &Model, streams: &Streams, progress: Progress<'_>) -> Result<Self, DeviceError> {
        let count = model.config.layers;
        let mut tensors: HashMap<TensorId, Weight<D>> = HashMap::new();
        let (mut groups, mut flowing) = (Vec::<Group>::new(), Vec::new());
        let (mut device_bytes, mut pinned_bytes) = (0, 0);
        let (mut pieces, mut rams, mut mapped, mut pageable) = (Vec::new(), Rams::default(), Rams::default(), None);
        for group in 0..=count {
            let ids = if group < count { model.layer_tensors(group) } else { model.head_tensors() };
            let name = if group < count { format!("layer {group}") } else { "the output head".into() };
            let image = |wanted: fn(Option<&Tier>) -> bool| {
                let ids: Vec<_> = ids.iter().copied().filter(|id| wanted(streams.elsewhere.get(id))).collect();
                Image::new(name.clone(), &model.gguf, &ids).expect("types were checked when the tensors were found")
            };
            let in_group = |e: DeviceError| if group < count { e.in_layer(group) } else { e };

            let placed = place(dev, &model.gguf, &image(|tier| tier.is_none()), progress).map_err(in_group)?;
            device_bytes += placed.bytes;
            tensors.extend(placed.tensors);

            let mut moved = Group { placed: Vec::new(), segments: Vec::new(), origins: Vec::new() };
            let mut staged = image(|tier| matches!(tier, Some(Tier::Disk { .. }))).tensors().to_vec();
            let zero_copy = image(|tier| tier.is_some_and(|tier| tier.is_zero_copy()));
            if !zero_copy.tensors().is_empty() {
                let memory =
                    dev.try_pinned(zero_copy.name(), zero_copy.bytes()).and_then(page_locked).map_err(in_group)?;
                pinned_bytes += zero_copy.bytes() as u64;
                mapped.add(memory, &zero_copy);
            }
            let ram = image(|tier| matches!(tier, Some(Tier::Ram { access: Access::Copy, .. })));
            if !ram.tensors().is_empty() {
                match dev.try_pinned(ram.name(), ram.bytes()).map_err(in_group)? {
                    HostMemory::Pinned(pinned) => {
                        pinned_bytes += ram.bytes() as u64;
                        let number = rams.add(pinned, &ram);
                        for placed in ram.tensors() {
                            moved.origins.push(Origin::Pinned(number, placed.range.start));
                            moved.segments.push(ring::cut(placed.range.len() as u64, SEGMENT_BYTES).collect());
                        }
                        moved.placed.extend_from_slice(ram.tensors());
                    }
                    HostMemory::Pageable { why } => {
                        pageable.get_or_insert(why);
                        staged.extend_from_slice(ram.tensors());
                    }
                }
            }
            for placed in staged {
                let (file, range) = in_file(model, &placed);
                let (start, longest) = (range.start as u64, piece_bytes(streams.staging_bytes));
                let cut: Vec<Piece> = Piece::cut(file, start, range.len() as u64, longest).collect();
                moved.origins.push(Origin::Staged(pieces.len()));
                moved.segments.push(cut.iter().map(|piece| piece.len as u64).collect());
                moved.placed.push(placed);
                progress(range.len() as u64);
                pieces.extend(cut);
            }
            flowing.push((!moved.placed.is_empty()).then_some(groups.len()));
            if !moved.placed.is_empty() {
                groups.push(moved);
            }
        }

        tensors.extend(mapped.zero_copied(dev, model, progress)?);
        let read_bytes = pieces.iter().map(|piece| piece.len as u64).sum();
        let flow = if groups.is_empty() {
            None
        } else {
            let units: Vec<Vec<_>> = groups.iter().map(|group| group.segments.clone()).collect();
            let layout = ring::lay(&units, streams.ring_bytes).ok_or_else(|| {
                DeviceError::Unsupported(format!("a ring of {} bytes is too small for this model", streams.ring_bytes))
            })?;
            let buf = dev.alloc("the streaming ring", streams.ring_bytes as usize)?;
            device_bytes += streams.ring_bytes;
            for (group, offsets) in groups.iter().zip(&layout.offsets) {
                for (placed, &offset) in group.placed.iter().zip(offsets) {
                    tensors.insert(placed.id, view(placed, buf.clone(), offset as usize));
                }
            }
            let staging = match pieces.is_empty() {
                true => None,
                false => Some(Staging::start(dev, open(model, pageable.is_none())?, pieces, streams.staging_bytes)?),
            };
            pinned_bytes += staging.as_ref().map_or(0, Staging::bytes);
            let names = flowing.iter().enumerate().filter(|(_, flows)| flows.is_some()).map(|(group, _)| group);
            let groups = names.zip(groups).map(|(name, group)| (name, group.origins)).collect();
            let rams = rams.filled(model, progress)?;
            Some(Flow::new(dev, buf, layout, groups, rams, staging)?)
        };
        let bytes_in = |of: fn(Tier) -> bool| -> u64 {
            let elsewhere = streams.elsewhere.iter().filter(|(_, tier)| of(**tier));
            elsewhere.map(|(id, _)| model.gguf.tensors()[id.0].bytes).sum()
        };
        let (streamed_bytes, zero_copy_bytes) = (bytes_in(Tier::is_streamed), bytes_in(Tier::is_zero_copy));
        let get = |part: &TensorPart| {
            let whole = &tensors[&part.tensor];
            match &part.outputs {
                None => whole.clone(),
                Some(outputs) => whole.part(outputs.clone()).expect("parts were checked when the tensor was found"),
            }
        };
        Ok(Streamed {
            layers: model.tensors.layers.iter().map(|layer| layer.map(get)).collect(),
            head: model.tensors.head.map(get),
            flowing,
            flow,
            device_bytes,
            streamed_bytes,
            read_bytes,
            zero_copy_bytes,
            pinned_bytes,
            pageable,
        })
    }

    /// Why RAM could not be page-locked, if any could not: what was to be there is read through the page cache.
    pub fn pageable(&self) -> Option<&str> {
        self.pageable.as_deref()
    }

    /// How what is on disk is read, if anything is.
    pub fn reads_by(&self) -> Option<&str> {
        self.flow.as_ref().and_then(Flow::reads_by)
    }

    /// Bytes of the streamed ones that every pass reads from the model's files.
    pub fn read_bytes(&self) -> u64 {
        self.read_bytes
    }

    /// Bytes of the streamed ones that every pass reads over the link where they are in RAM.
    pub fn zero_copy_bytes(&self) -> u64 {
        self.zero_copy_bytes
    }

    /// The output matrix, where it is always on the device.
    pub fn output(&self) -> &Weight<D> {
        &self.head.output.weight
    }

    /// Runs `f` when group `id` is there.
    fn with_group(
        &mut self,
        dev: &mut D,
        id: usize,
        mut f: impl FnMut(&mut D, &Layer<Weight<D>>, &Head<Weight<D>>) -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        let Streamed { layers, head, flowing, flow, .. } = self;
        let layer = &layers[id.min(layers.len() - 1)];
        if let (0, Some(flow)) = (id, &mut *flow) {
            flow.begin_pass();
        }
        match (flow, flowing[id]) {
            (Some(flow), Some(group)) => flow.with(dev, group, &mut |dev| f(dev, layer, head)),
            (Some(flow), None) => flow.beside(dev, id, &mut |dev| f(dev, layer, head)),
            (None, _) => f(dev, layer, head),
        }
    }
}

/// What reads the model's files: past the page cache, or what that has.
fn open(model: &Model, direct: bool) -> Result<Box<dyn Source>, DeviceError> {
    Ok(readahead::open(inputs(model)?, &SourceOptions { direct, ..SourceOptions::default() })?)
}

/// How much of the largest file is read to find out how fast it can be read, and for how long.
const MEASURED: (u64, Duration) = (256 << 20, Duration::from_millis(60));

/// Bytes a second that the model's largest file is read at, in the way that streaming reads it.
///
/// # Errors
/// A model that is in no file, or that cannot be read.
pub fn disk_rate(model: &Model) -> Result<f64, DeviceError> {
    let mut source = open(model, true)?;
    let lengths = model.gguf.parts().iter().map(|part| part.bytes().len() as u64).enumerate();
    let (file, len) = lengths.max_by_key(|(_, len)| *len).unwrap_or_default();
    let pieces: Vec<Piece> = Piece::cut(file, 0, len.min(MEASURED.0), piece_bytes(u64::MAX)).collect();
    Ok(readahead::sequential_rate(&mut *source, &pieces, MEASURED.1)?.bytes_per_second())
}

/// The model's files, to read from.
fn inputs(model: &Model) -> Result<Vec<Input>, DeviceError> {
    let input = |part: &Arc<Part>| {
        let opened = part.path().zip(part.file());
        let (path, file) =
            opened.ok_or_else(|| DeviceError::Unsupported(format!("{} is in memory, not in a file", part.name())))?;
        let file = file.try_clone().map_err(|e| DeviceError::Unsupported(format!("{}: {e}", part.name())))?;
        Ok(Input { path: path.to_owned(), file })
    };
    model.gguf.parts().iter().map(input).collect()
}

/// The file, as an index into the model's, and the range in it that hold a matrix.
fn in_file(model: &Model, placed: &Placed) -> (usize, Range<usize>) {
    let (_, range) = placed.file_range(&model.gguf).expect("matrices lie in the file as they are");
    (model.gguf.tensors()[placed.id.0].part, range)
}

/// Memory that the device can read over the link.
fn page_locked<P>(memory: HostMemory<P>) -> Result<P, DeviceError> {
    match memory {
        HostMemory::Pinned(pinned) => Ok(pinned),
        HostMemory::Pageable { why } => Err(DeviceError::Unsupported(format!(
            "{why}, and zero-copy takes page-locked memory: --ram-access copy does without, where --vram-budget leaves room for it"
        ))),
    }
}

/// Page-locked memory of groups, and what belongs there.
struct Rams<P> {
    memory: Vec<P>,
    images: Vec<Image>,
}

impl<P> Default for Rams<P> {
    fn default() -> Self {
        Rams { memory: Vec::new(), images: Vec::new() }
    }
}

impl<P: AsMut<[u8]>> Rams<P> {
    /// Its number.
    fn add(&mut self, memory: P, image: &Image) -> usize {
        self.memory.push(memory);
        self.images.push(image.clone());
        self.memory.len() - 1
    }

    /// Their tensors, where the device reads them over the link.
    fn zero_copied<D: Device<Pinned = P>>(
        self,
        dev: &D,
        model: &Model,
        progress: Progress<'_>,
    ) -> Result<Vec<(TensorId, Weight<D>)>, DeviceError> {
        let images = self.images.clone();
        let mut tensors = Vec::new();
        for (memory, image) in self.filled(model, progress)?.into_iter().zip(&images) {
            let buf = dev.zero_copy(memory)?;
            tensors.extend(image.tensors().iter().map(|t| (t.id, view(t, buf.clone(), t.range.start))));
        }
        Ok(tensors)
    }

    /// All of them, with what belongs there: read at full depth, past the page cache but for what that has.
    fn filled(mut self, model: &Model, progress: Progress<'_>) -> Result<Vec<P>, DeviceError> {
        if model.gguf.parts().iter().any(|part| part.file().is_none()) {
            for (memory, image) in self.memory.iter_mut().zip(&self.images) {
                for placed in image.tensors() {
                    fill(&mut memory.as_mut()[placed.range.clone()], 0, &reading(&model.gguf, placed))?;
                    progress(placed.range.len() as u64);
                }
            }
            return Ok(self.memory);
        }
        let mut targets = Vec::new();
        for (memory, image) in self.memory.iter_mut().zip(&self.images) {
            let memory = memory.as_mut();
            for placed in image.tensors() {
                let (file, range) = in_file(model, placed);
                let bytes = &mut memory[placed.range.clone()];
                let ptr = NonNull::new(bytes.as_mut_ptr()).expect("memory has an address");
                // SAFETY: the memory does not move and outlives `fill`, which waits for all its reads. The tensors of an image do not
                // overlap, and nobody else has the memory yet.
                let dst = unsafe { HostBuf::new(ptr, bytes.len(), None) };
                targets.push(Target { file, offset: range.start as u64, dst });
            }
        }
        if !targets.is_empty() {
            let source = readahead::loader(
                inputs(model)?,
                std::thread::available_parallelism().map_or(8, |n| n.get().clamp(8, 32)),
            )?;
            let mut told = 0;
            let never = AtomicBool::new(false);
            readahead::fill(source, &targets, &readahead::Options::default(), &never, &mut |done| {
                progress(done - told);
                told = done;
            })?;
        }
        Ok(self.memory)
    }
}

impl<D: Device> Layers<D> for Streamed<D> {
    fn with(&mut self, dev: &mut D, id: usize, f: Compute<'_, D>) -> Result<(), DeviceError> {
        self.with_group(dev, id, |dev, layer, _| f(dev, layer))
    }

    fn with_head(&mut self, dev: &mut D, f: ComputeHead<'_, D>) -> Result<(), DeviceError> {
        self.with_group(dev, self.layers.len(), |dev, _, head| f(dev, head))
    }

    fn resident(&self) -> bool {
        self.flow.is_none()
    }

    fn streamed_bytes(&self) -> u64 {
        self.streamed_bytes
    }

    fn device_bytes(&self) -> u64 {
        self.device_bytes
    }

    fn pinned_bytes(&self) -> u64 {
        self.pinned_bytes
    }

    fn flowed(&mut self, dev: &D) -> Result<Option<Flowed>, DeviceError> {
        // What kernels read over the link is not seen here.
        let beside = (self.zero_copy_bytes > 0).then(Flowed::default);
        self.flow.as_mut().map(|flow| flow.flowed(dev)).transpose().map(|flowed| flowed.or(beside))
    }

    fn trace(&mut self, on: bool) {
        if let Some(flow) = &mut self.flow {
            flow.trace(on);
        }
    }

    fn take_trace(&mut self, dev: &D) -> Result<Trace, DeviceError> {
        self.flow.as_mut().map_or(Ok(Trace::default()), |flow| flow.take_trace(dev))
    }
}
