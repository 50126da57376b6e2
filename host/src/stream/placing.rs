//! Takes memory for a model's weights where the plan wants them, layer by layer, and fills it when all of it is there.

use std::{any::Any, collections::HashMap, sync::Arc};

use readahead::{Piece, Place, Source};

use super::{
    flow::{Flow, Origin},
    lent::Lent,
    load::{Rams, Resident, fill_device, in_file, inputs},
    place::{Progress, place, view},
    plan::{Access, Inputs, Plan, STAGING, Tier},
    reads::Reading,
    ring::{self, Layout},
    staging::{Staging, piece_bytes},
};
use crate::{
    device::{Device, DeviceError, HostMemory, Weight},
    model::Model,
    pack::{Image, Placed, TENSOR_ALIGN, TensorId},
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

/// What device memory is made reachable for others in.
const PAGE: u64 = 4096;

/// A layer's or the head's matrices that flow: the bytes of their places by segment, and where they come from.
struct Group {
    number: usize,
    placed: Vec<Placed>,
    segments: Vec<Vec<u64>>,
    origins: Vec<Origin>,
}

impl Group {
    fn add(&mut self, placed: &Placed, origin: Origin, segments: Vec<u64>) {
        self.placed.push(placed.clone());
        self.origins.push(origin);
        self.segments.push(segments);
    }

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

/// What weights have taken, and what is not as it was planned.
#[derive(Default)]
pub(super) struct Taken {
    pub device_bytes: u64,
    pub pinned_bytes: u64,
    /// Bytes that each pass reads from files.
    pub read_bytes: u64,
    /// Why RAM could not be page-locked, if any could not.
    pub pageable: Option<String>,
    /// Why RAM could not be had, if some could not.
    pub missing: Option<String>,
    /// Which way what is read from files takes, if there was a choice.
    pub way: Option<String>,
}

/// The weights whose memory has been taken.
pub(super) struct Placing<'a, D: Device> {
    dev: &'a D,
    model: &'a Model,
    streams: &'a Streams,
    /// All tensors, as kernels find them.
    tensors: HashMap<TensorId, Weight<D>>,
    residents: Vec<Resident<D::Buf>>,
    /// RAM that kernels read over the link, and RAM that is copied from.
    mapped: Rams<D::Pinned>,
    rams: Rams<D::Pinned>,
    groups: Vec<Group>,
    /// What is read from files in each pass.
    pieces: Vec<Piece>,
    taken: Taken,
}

impl<'a, D: Device> Placing<'a, D> {
    pub fn new(dev: &'a D, model: &'a Model, streams: &'a Streams) -> Self {
        Placing {
            dev,
            model,
            streams,
            tensors: HashMap::new(),
            residents: Vec::new(),
            mapped: Rams::default(),
            rams: Rams::default(),
            groups: Vec::new(),
            pieces: Vec::new(),
            taken: Taken::default(),
        }
    }

    /// Takes the memory of layer `number`, or of the head behind them. What needs none, because it stays in the file, counts as loaded.
    ///
    /// # Errors
    /// The device's.
    pub fn group(&mut self, number: usize, progress: Progress<'_>) -> Result<(), DeviceError> {
        let (model, streams) = (self.model, self.streams);
        let layers = model.config.layers;
        let ids = if number < layers { model.layer_tensors(number) } else { model.head_tensors() };
        let name = if number < layers { format!("layer {number}") } else { "the output head".into() };
        let image = |wanted: fn(Option<&Tier>) -> bool| {
            let ids: Vec<_> = ids.iter().copied().filter(|id| wanted(streams.elsewhere.get(id))).collect();
            Image::new(name.clone(), &model.gguf, &ids).expect("types were checked when the tensors were found")
        };
        self.on_device(number, &image(|tier| tier.is_none()), progress)?;
        self.read_in_ram(number, &image(|tier| tier.is_some_and(|tier| tier.is_zero_copy())))?;
        let mut group = Group { number, placed: Vec::new(), segments: Vec::new(), origins: Vec::new() };
        let ram = image(|tier| matches!(tier, Some(Tier::Ram { access: Access::Copy, .. })));
        let in_ram = self.in_ram(&mut group, &ram)?;
        self.in_files(&mut group, &image(|tier| matches!(tier, Some(Tier::Disk { .. }))), progress);
        if !in_ram {
            self.in_files(&mut group, &ram, progress);
        }
        if !group.placed.is_empty() {
            self.groups.push(group);
        }
        Ok(())
    }

    /// What stays on the device.
    fn on_device(&mut self, number: usize, image: &Image, progress: Progress<'_>) -> Result<(), DeviceError> {
        let placed = place(self.dev, &self.model.gguf, image)?;
        self.taken.device_bytes += placed.bytes;
        self.tensors.extend(placed.tensors);
        match placed.buf {
            None => progress(image.tensor_bytes() as u64),
            Some(buf) => self.residents.extend(image.tensors().iter().map(|placed| Resident {
                group: number,
                placed: placed.clone(),
                buf: buf.clone(),
            })),
        }
        Ok(())
    }

    /// What kernels read over the link.
    fn read_in_ram(&mut self, number: usize, image: &Image) -> Result<(), DeviceError> {
        if !image.tensors().is_empty() {
            let memory = self.dev.try_pinned(image.name(), image.bytes()).and_then(page_locked)?;
            self.taken.pinned_bytes += image.bytes() as u64;
            self.mapped.add(memory, number, image);
        }
        Ok(())
    }

    /// What is copied from RAM; whether there is RAM for it. If not, the file has all that was to be there.
    fn in_ram(&mut self, group: &mut Group, image: &Image) -> Result<bool, DeviceError> {
        if image.tensors().is_empty() {
            return Ok(true);
        }
        let spared = spared(image, self.streams);
        match spared.and_then(|()| self.dev.try_pinned(image.name(), image.bytes())) {
            Ok(HostMemory::Pinned(pinned)) => {
                self.taken.pinned_bytes += image.bytes() as u64;
                let ram = self.rams.add(pinned, group.number, image);
                for placed in image.tensors() {
                    let segments = ring::cut(placed.range.len() as u64, SEGMENT_BYTES).collect();
                    group.add(placed, Origin::Pinned(ram, placed.range.start), segments);
                }
                return Ok(true);
            }
            Ok(HostMemory::Pageable { why }) => {
                self.taken.pageable.get_or_insert(why);
            }
            // Somebody took RAM since the plan was made.
            Err(e) if e.is_out_of_memory() && self.model.gguf.in_files() => {
                self.taken.missing.get_or_insert(e.to_string());
            }
            Err(e) => return Err(e),
        }
        Ok(false)
    }

    /// What is read from files in each pass.
    fn in_files(&mut self, group: &mut Group, image: &Image, progress: Progress<'_>) {
        for placed in image.tensors() {
            let (file, range) = in_file(self.model, placed);
            let (len, longest) = (range.len() as u64, piece_bytes(self.staging_bytes()));
            let first = self.pieces.len();
            self.pieces.extend(Piece::cut(file, range.start as u64, len, longest));
            let segments = self.pieces[first..].iter().map(|piece| piece.len as u64).collect();
            group.add(placed, Origin::Staged(first, 0), segments);
            self.taken.read_bytes += len;
            progress(len);
        }
    }

    /// Page-locked RAM that pieces are read into.
    fn staging_bytes(&self) -> u64 {
        self.streams.staging_bytes.max(STAGING.0)
    }

    /// Takes the ring, and begins to read what goes there from files. None where nothing flows.
    ///
    /// # Errors
    /// The device's, and those of starting to read.
    pub fn ring(&mut self, reading: &Reading<'_>) -> Result<Option<Ring<D>>, DeviceError> {
        if self.groups.is_empty() {
            return Ok(None);
        }
        let source = match self.pieces.is_empty() {
            true => None,
            false => Some(reading.reads.ahead(inputs(self.model)?, self.taken.pageable.is_some())?),
        };
        let mut bytes = self.streams.ring_bytes;
        if let Some(source) = source.as_ref().filter(|source| source.lands_in_device()) {
            self.groups.iter_mut().for_each(|group| group.make_room(&self.pieces, source.block()));
            let units = |group: &Group| group.segments.iter().map(|unit| unit.iter().sum()).collect();
            let least = ring::least(&self.groups.iter().map(units).collect::<Vec<Vec<u64>>>());
            bytes = bytes.max(least).next_multiple_of(PAGE);
        }
        let units: Vec<Vec<_>> = self.groups.iter().map(|group| group.segments.clone()).collect();
        let layout = ring::lay(&units, bytes)
            .ok_or_else(|| DeviceError::Unsupported(format!("a ring of {bytes} bytes is too small for this model")))?;
        let buf = self.dev.alloc("the streaming ring", bytes as usize)?;
        self.taken.device_bytes += bytes;
        for (group, offsets) in self.groups.iter().zip(&layout.offsets) {
            for ((placed, origin), &offset) in group.placed.iter().zip(&group.origins).zip(offsets) {
                let lead = if let Origin::Staged(_, lead) = origin { *lead } else { 0 };
                self.tensors.insert(placed.id, view(placed, buf.clone(), offset as usize + lead));
            }
        }
        let staging = source.map(|source| self.stage(&buf, source, &layout, reading)).transpose()?;
        self.taken.pinned_bytes += staging.as_ref().map_or(0, Staging::bytes);
        Ok(Some(Ring { buf, layout, staging }))
    }

    /// Begins to read the pieces: into their places in `ring`, where `source` can write there, and otherwise by way of page-locked
    /// buffers.
    fn stage(
        &mut self,
        ring: &D::Buf,
        mut source: Box<dyn Source>,
        layout: &Layout,
        reading: &Reading<'_>,
    ) -> Result<Staging<D>, DeviceError> {
        let (pieces, options, cancel) = (self.pieces.clone(), reading.reads.options(), reading.cancel.clone());
        if source.lands_in_device() {
            let ring = Lent::new(vec![ring.clone()]);
            match self.land(&ring, &mut *source, layout) {
                Ok(places) => {
                    // SAFETY: nobody uses the ring but the flow, which permits a piece when its place is free.
                    let staging = unsafe { Staging::in_place(ring, source, pieces, places, options, cancel)? };
                    self.taken.way = Some("straight into the device's memory".into());
                    return Ok(staging);
                }
                // What computes in RAM loses nothing.
                Err(_) if self.dev.in_place() => {}
                Err(why) => {
                    self.taken.way = Some(format!(
                        "by way of page-locked RAM, since the device's memory is out of the drive's reach ({why})"
                    ));
                }
            }
        }
        Staging::start(self.dev, source, pieces, self.staging_bytes(), options, cancel)
    }

    /// Makes `ring` ready for `source` to write into, and finds the places of the pieces in it.
    ///
    /// # Errors
    /// Why that cannot be done, in words.
    fn land(&self, ring: &Lent<D::Buf>, source: &mut dyn Source, layout: &Layout) -> Result<Vec<Place>, String> {
        let memory = self.dev.device_memory(&ring[0]).map_err(|e| e.to_string())?;
        let mut places = vec![Place { address: 0, len: 0, begin: 0 }; self.pieces.len()];
        let mut piece = 0;
        for segment in &layout.segments {
            let Origin::Staged(first, lead) = self.groups[segment.group].origins[segment.unit] else { continue };
            let begins = segment.range.start == 0;
            piece = if begins { first } else { piece + 1 };
            let (begin, len) = self.pieces[piece].blocks(source.block());
            let address = memory.address() + segment.offset + if begins { (lead - begin) as u64 } else { 0 };
            places[piece] = Place { address, len, begin };
        }
        let owner: Arc<dyn Any + Send + Sync> = ring.share();
        source.prepare_device(&*memory, &owner)?;
        Ok(places)
    }

    /// Reads what stays on the device and in RAM, and lets the rest flow.
    ///
    /// # Errors
    /// The device's, and those of reading, with the group; [`DeviceError::Cancelled`].
    pub fn fill(
        self,
        ring: Option<Ring<D>>,
        reading: &Reading<'_>,
        progress: Progress<'_>,
    ) -> Result<Filled<D>, DeviceError> {
        let Placing { dev, model, mut tensors, residents, mapped, rams, groups, pieces, taken, .. } = self;
        fill_device(dev, model, residents, reading, progress)?;
        tensors.extend(mapped.zero_copied(dev, model, reading, progress)?);
        let rams = rams.filled(model, reading, progress)?;
        let number = |number| groups.iter().position(|group| group.number == number);
        let flowing = (0..=model.config.layers).map(number).collect();
        let origins = groups.into_iter().map(|group| (group.number, group.origins)).collect();
        let flow = |Ring { buf, layout, staging }| Flow::new(dev, buf, layout, origins, rams, &pieces, staging);
        Ok(Filled { tensors, flowing, flow: ring.map(flow).transpose()?, taken })
    }
}

/// Weights in their places.
pub(super) struct Filled<D: Device> {
    /// All tensors, as kernels find them.
    pub tensors: HashMap<TensorId, Weight<D>>,
    /// The number in the flow of each layer, and of the head behind them; none where nothing of it flows.
    pub flowing: Vec<Option<usize>>,
    pub flow: Option<Flow<D>>,
    pub taken: Taken,
}

/// The ring, before anything flows through it.
pub(super) struct Ring<D: Device> {
    buf: D::Buf,
    layout: Layout,
    staging: Option<Staging<D>>,
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
