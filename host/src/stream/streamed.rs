//! A model's weights where the plan wants them: on the device to stay, or flowing through its ring.

use std::{
    any::Any,
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use readahead::{OpenError, Piece, Place, Source};

use super::{
    flow::{Flow, Origin},
    lent::Lent,
    load::{Rams, Resident, fill_device, in_file, in_files, inputs},
    place::{Progress, place, view},
    plan::{Access, Inputs, Plan, STAGING, Tier},
    reads::{Reading, Reads},
    ring::{self, Layout},
    staging::{Staging, piece_bytes},
};
use crate::{
    device::{Device, DeviceError, Head, HostMemory, Layer, Weight},
    model::{Compute, ComputeHead, Flowed, Layers, Model, Trace},
    pack::{Image, Placed, TENSOR_ALIGN, TensorId, TensorPart},
    platform,
};

/// Which matrices flow through the ring, and how large it is. By default none: all weights are on the device.
#[derive(Clone, Debug)]
pub struct Streams {
    /// The matrices that are not on the device.
    pub elsewhere: HashMap<TensorId, Tier>,
    /// The ring's size, [`ring::least`] at least.
    pub ring_bytes: u64,
    /// Page-locked RAM for what is read from disk.
    pub staging_bytes: u64,
    /// Tells how much RAM may be page-locked, before each part is.
    pub spare_memory: fn() -> u64,
}

impl Default for Streams {
    fn default() -> Self {
        Streams { elsewhere: HashMap::new(), ring_bytes: 0, staging_bytes: 0, spare_memory: platform::spare_memory }
    }
}

impl Streams {
    /// Those of a plan.
    pub fn of(inputs: &Inputs, plan: &Plan) -> Self {
        let tiers = inputs.units.iter().zip(&plan.tiers);
        let elsewhere = tiers.filter(|(_, tier)| tier.is_streamed()).map(|(unit, &tier)| (unit.tensor, tier)).collect();
        Streams { elsewhere, ring_bytes: plan.ring_bytes, staging_bytes: plan.staging_bytes, ..Streams::default() }
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
    missing: Option<String>,
    way: Option<String>,
    cancel: Arc<AtomicBool>,
}

/// What device memory is made reachable for others in.
const PAGE: u64 = 4096;

/// A group's matrices that flow: the bytes of their places by segment, and where they come from.
struct Group {
    placed: Vec<Placed>,
    segments: Vec<Vec<u64>>,
    origins: Vec<Origin>,
}

impl Group {
    /// Makes the places of matrices in files as large as the whole blocks of `block` bytes that they lie in, so that a source can read
    /// these there. Matrices still begin where kernels want them to.
    fn make_room(&mut self, pieces: &[Piece], block: usize) {
        for (segments, origin) in self.segments.iter_mut().zip(&mut self.origins) {
            let Origin::Staged(first, lead) = origin else { continue };
            let (head, tail) = (pieces[*first], pieces[*first + segments.len() - 1]);
            *lead = head.blocks(block).0.next_multiple_of(TENSOR_ALIGN);
            let (begin, whole) = tail.blocks(block);
            *segments.last_mut().expect("a matrix has bytes") += (whole - begin - tail.len) as u64;
            segments[0] += *lead as u64;
        }
    }
}

/// Begins to read `pieces`: into their places in `ring`, where `source` can write there, and otherwise by way of page-locked buffers. Which of
/// the two, and why, if there was a choice.
#[expect(clippy::too_many_arguments, reason = "what is laid out, and where it comes from")]
fn stage<D: Device>(
    dev: &D,
    ring: &D::Buf,
    mut source: Box<dyn Source>,
    layout: &Layout,
    groups: &[Group],
    pieces: &[Piece],
    staging_bytes: u64,
    reading: &Reading<'_>,
) -> Result<(Staging<D>, Option<String>), DeviceError> {
    let (options, cancel) = (reading.reads.options(), reading.cancel.clone());
    let mut way = None;
    if source.lands_in_device() {
        let ring = Lent::new(vec![ring.clone()]);
        match land(dev, &ring, &mut *source, layout, groups, pieces) {
            Ok(places) => {
                // SAFETY: nobody uses the ring but the flow, which permits a piece when its place is free.
                let staging = unsafe { Staging::in_place(ring, source, pieces.to_vec(), places, options, cancel)? };
                return Ok((staging, Some("straight into the device's memory".into())));
            }
            // What computes in RAM loses nothing.
            Err(_) if dev.in_place() => {}
            Err(why) => {
                way = Some(format!(
                    "by way of page-locked RAM, since the device's memory is out of the drive's reach ({why})"
                ));
            }
        }
    }
    Ok((Staging::start(dev, source, pieces.to_vec(), staging_bytes, options, cancel)?, way))
}

/// Makes `ring` ready for `source` to write into, and finds the places of `pieces` in it.
///
/// # Errors
/// Why that cannot be done, in words.
fn land<D: Device>(
    dev: &D,
    ring: &Lent<D::Buf>,
    source: &mut dyn Source,
    layout: &Layout,
    groups: &[Group],
    pieces: &[Piece],
) -> Result<Vec<Place>, String> {
    let memory = dev.device_memory(&ring[0]).map_err(|e| e.to_string())?;
    let mut places = vec![Place { address: 0, len: 0, begin: 0 }; pieces.len()];
    let mut piece = 0;
    for segment in &layout.segments {
        let Origin::Staged(first, lead) = groups[segment.group].origins[segment.unit] else { continue };
        let begins = segment.range.start == 0;
        piece = if begins { first } else { piece + 1 };
        let (begin, len) = pieces[piece].blocks(source.block());
        let address = memory.address() + segment.offset + if begins { (lead - begin) as u64 } else { 0 };
        places[piece] = Place { address, len, begin };
    }
    let owner: Arc<dyn Any + Send + Sync> = ring.share();
    source.prepare_device(&*memory, &owner)?;
    Ok(places)
}

impl<D: Device> Streamed<D> {
    /// Puts all weights in their places.
    ///
    /// # Errors
    /// The device's, and those of reading the file; [`DeviceError::Cancelled`].
    pub fn load(
        dev: &D,
        model: &Model,
        streams: &Streams,
        reading: &Reading<'_>,
        progress: Progress<'_>,
    ) -> Result<Self, DeviceError> {
        progress(0);
        let count = model.config.layers;
        let mut tensors: HashMap<TensorId, Weight<D>> = HashMap::new();
        let (mut groups, mut flowing) = (Vec::<Group>::new(), Vec::new());
        let (mut device_bytes, mut pinned_bytes) = (0, 0);
        let (mut residents, mut pieces, mut rams, mut mapped) =
            (Vec::new(), Vec::new(), Rams::default(), Rams::default());
        let (mut pageable, mut missing, mut way) = (None, None, None);
        let staging_bytes = streams.staging_bytes.max(STAGING.0);
        for group in 0..=count {
            reading.wanted()?;
            let ids = if group < count { model.layer_tensors(group) } else { model.head_tensors() };
            let name = if group < count { format!("layer {group}") } else { "the output head".into() };
            let image = |wanted: fn(Option<&Tier>) -> bool| {
                let ids: Vec<_> = ids.iter().copied().filter(|id| wanted(streams.elsewhere.get(id))).collect();
                Image::new(name.clone(), &model.gguf, &ids).expect("types were checked when the tensors were found")
            };
            let in_group = |e: DeviceError| e.in_group(group, count);

            let stays = image(|tier| tier.is_none());
            let placed = place(dev, &model.gguf, &stays).map_err(in_group)?;
            device_bytes += placed.bytes;
            tensors.extend(placed.tensors);
            match placed.buf {
                None => progress(stays.tensor_bytes() as u64),
                Some(buf) => residents.extend(stays.tensors().iter().map(|placed| Resident {
                    group,
                    placed: placed.clone(),
                    buf: buf.clone(),
                })),
            }

            let mut moved = Group { placed: Vec::new(), segments: Vec::new(), origins: Vec::new() };
            let mut staged = image(|tier| matches!(tier, Some(Tier::Disk { .. }))).tensors().to_vec();
            let zero_copy = image(|tier| tier.is_some_and(|tier| tier.is_zero_copy()));
            if !zero_copy.tensors().is_empty() {
                let memory =
                    dev.try_pinned(zero_copy.name(), zero_copy.bytes()).and_then(page_locked).map_err(in_group)?;
                pinned_bytes += zero_copy.bytes() as u64;
                mapped.add(memory, group, &zero_copy);
            }
            let ram = image(|tier| matches!(tier, Some(Tier::Ram { access: Access::Copy, .. })));
            if !ram.tensors().is_empty() {
                match spared(&ram, streams).and_then(|()| dev.try_pinned(ram.name(), ram.bytes())) {
                    Ok(HostMemory::Pinned(pinned)) => {
                        pinned_bytes += ram.bytes() as u64;
                        let number = rams.add(pinned, group, &ram);
                        for placed in ram.tensors() {
                            moved.origins.push(Origin::Pinned(number, placed.range.start));
                            moved.segments.push(ring::cut(placed.range.len() as u64, SEGMENT_BYTES).collect());
                        }
                        moved.placed.extend_from_slice(ram.tensors());
                    }
                    Ok(HostMemory::Pageable { why }) => {
                        pageable.get_or_insert(why);
                        staged.extend_from_slice(ram.tensors());
                    }
                    // Somebody took RAM since the plan was made. The file has all that was to be there.
                    Err(e) if e.is_out_of_memory() && in_files(model) => {
                        missing.get_or_insert(e.to_string());
                        staged.extend_from_slice(ram.tensors());
                    }
                    Err(e) => return Err(in_group(e)),
                }
            }
            for placed in staged {
                let (file, range) = in_file(model, &placed);
                let (start, longest) = (range.start as u64, piece_bytes(staging_bytes));
                let cut: Vec<Piece> = Piece::cut(file, start, range.len() as u64, longest).collect();
                moved.origins.push(Origin::Staged(pieces.len(), 0));
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

        let read_bytes = pieces.iter().map(|piece| piece.len as u64).sum();
        let flowing_memory = if groups.is_empty() {
            None
        } else {
            let source = match pieces.is_empty() {
                true => None,
                false => Some(reading.reads.ahead(inputs(model)?, pageable.is_some())?),
            };
            let mut ring_bytes = streams.ring_bytes;
            if let Some(source) = source.as_ref().filter(|source| source.lands_in_device()) {
                groups.iter_mut().for_each(|group| group.make_room(&pieces, source.block()));
                let units = |group: &Group| group.segments.iter().map(|unit| unit.iter().sum()).collect();
                let least = ring::least(&groups.iter().map(units).collect::<Vec<Vec<u64>>>());
                ring_bytes = ring_bytes.max(least).next_multiple_of(PAGE);
            }
            let units: Vec<Vec<_>> = groups.iter().map(|group| group.segments.clone()).collect();
            let layout = ring::lay(&units, ring_bytes).ok_or_else(|| {
                DeviceError::Unsupported(format!("a ring of {ring_bytes} bytes is too small for this model"))
            })?;
            let buf = dev.alloc("the streaming ring", ring_bytes as usize)?;
            device_bytes += ring_bytes;
            for (group, offsets) in groups.iter().zip(&layout.offsets) {
                for ((placed, origin), &offset) in group.placed.iter().zip(&group.origins).zip(offsets) {
                    let lead = if let Origin::Staged(_, lead) = origin { *lead } else { 0 };
                    tensors.insert(placed.id, view(placed, buf.clone(), offset as usize + lead));
                }
            }
            let staging = match source {
                None => None,
                Some(source) => {
                    let (staging, taken) = stage(dev, &buf, source, &layout, &groups, &pieces, staging_bytes, reading)?;
                    way = taken;
                    Some(staging)
                }
            };
            pinned_bytes += staging.as_ref().map_or(0, Staging::bytes);
            let names = flowing.iter().enumerate().filter(|(_, flows)| flows.is_some()).map(|(group, _)| group);
            let groups = names.zip(groups).map(|(name, group)| (name, group.origins)).collect();
            Some((buf, layout, groups, staging))
        };
        // Behind all that takes memory, so that a lack of it shows before anything is read.
        fill_device(dev, model, residents, reading, progress)?;
        tensors.extend(mapped.zero_copied(dev, model, reading, progress)?);
        let rams = rams.filled(model, reading, progress)?;
        let flow = match flowing_memory {
            None => None,
            Some((buf, layout, groups, staging)) => Some(Flow::new(dev, buf, layout, groups, rams, &pieces, staging)?),
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
            missing,
            way,
            cancel: reading.cancel.clone(),
        })
    }

    /// Why RAM could not be page-locked, if any could not: what was to be there is read through the page cache.
    pub fn pageable(&self) -> Option<&str> {
        self.pageable.as_deref()
    }

    /// Why RAM could not be had, if some could not: what was to be there is read from disk.
    pub fn missing(&self) -> Option<&str> {
        self.missing.as_deref()
    }

    /// How what is on disk is read, if anything is.
    pub fn reads_by(&self) -> Option<&str> {
        self.flow.as_ref().and_then(Flow::reads_by)
    }

    /// Which way it takes from there, where the source might be able to write the device's memory by itself; and if it cannot, why not.
    pub fn lands(&self) -> Option<&str> {
        self.way.as_deref()
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
        if self.cancel.load(Ordering::Relaxed) {
            return Err(DeviceError::Cancelled);
        }
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

/// How much of the largest file is read to find out how fast it can be read, and for how long.
const MEASURED: (u64, Duration) = (256 << 20, Duration::from_millis(60));

/// How much longer the measurement may take before the drive counts as one that does not answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes a second that `reads` gets of the model's largest file. None where that cannot be measured.
///
/// # Errors
/// A drive that cannot be read, or holds something else: whoever names a drive wants to know.
pub fn disk_rate(model: &Model, reads: &dyn Reads) -> Result<Option<f64>, DeviceError> {
    match measure(model, reads) {
        Err(e) if matches!(e, DeviceError::Open(OpenError::Device(_))) || reads.drive().is_some() => Err(e),
        result => Ok(result.ok()),
    }
}

fn measure(model: &Model, reads: &dyn Reads) -> Result<f64, DeviceError> {
    let source = reads.ahead(inputs(model)?, false)?;
    let lengths = model.gguf.parts().iter().map(|part| part.bytes().len() as u64).enumerate();
    let (file, len) = lengths.max_by_key(|(_, len)| *len).unwrap_or_default();
    let pieces: Vec<Piece> = Piece::cut(file, 0, len.min(MEASURED.0), piece_bytes(u64::MAX)).collect();
    Ok(readahead::sequential_rate(source, &pieces, MEASURED.1, PATIENCE)?.bytes_per_second())
}

/// That there is RAM for an image which others do not need: they may have taken some since the plan was made.
fn spared(image: &Image, streams: &Streams) -> Result<(), DeviceError> {
    let (need, free) = (image.bytes() as u64, (streams.spare_memory)());
    match need > free {
        true => Err(DeviceError::OutOfMemory {
            device: "RAM that may be page-locked".into(),
            what: image.name().into(),
            need,
            free,
            advice: "close other programs",
        }),
        false => Ok(()),
    }
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
