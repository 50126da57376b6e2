//! Layers streamed from pinned RAM through two slots of device memory: while one layer is computed, the next is copied.

use super::place::{Progress, Views, place};
use crate::{
    device::{Device, DeviceError, Layer, Transfer, Weight},
    model::{Compute, Layers, Model},
    pack::Image,
};

/// Where a layer is.
enum Place<D: Device> {
    /// On the device, always.
    Resident(Box<Layer<Weight<D>>>),
    /// In pinned RAM. `views` are its weights as they lie in each slot.
    Pinned { ram: D::Pinned, image: Image, views: [Layer<Weight<D>>; SLOTS] },
}

const SLOTS: usize = 2;

/// Device memory that layers take turns in.
struct Slot<D: Transfer> {
    buf: D::Buf,
    /// The layer that was copied here last, and the end of that copy.
    holds: Option<(usize, D::Event)>,
    /// The end of the last computation that read the slot: no copy may start before.
    read_until: Option<D::Event>,
    /// Setting that fence failed: nobody knows when the slot may be written again.
    unfenced: bool,
}

/// The first layers resident, as many as fit, and the others streamed.
pub struct Streamed<D: Device> {
    places: Vec<Place<D>>,
    slots: Vec<Slot<D>>,
    /// The streamed layers in the order of a pass.
    order: Vec<usize>,
    resident_bytes: u64,
}

impl<D: Device> Streamed<D> {
    /// Places layers `0..resident` on the device and the others in pinned RAM.
    ///
    /// # Errors
    /// The device's; `images` are the layers' layouts in order.
    pub fn load(
        dev: &D,
        model: &Model,
        images: &[Image],
        resident: usize,
        progress: Progress<'_>,
    ) -> Result<Self, DeviceError> {
        let slot_bytes = images.iter().skip(resident).map(Image::bytes).max().unwrap_or(0);
        let slots = (0..SLOTS)
            .map(|i| {
                let buf = dev.alloc(&format!("streaming slot {i}"), slot_bytes)?;
                Ok(Slot { buf, holds: None, read_until: None, unfenced: false })
            })
            .collect::<Result<Vec<Slot<D>>, DeviceError>>()?;
        let (mut places, mut resident_bytes) = (Vec::with_capacity(images.len()), 0);
        for (id, image) in images.iter().enumerate() {
            places.push(if id < resident {
                let views = place(dev, &model.gguf, image, progress).map_err(|e| e.in_layer(id))?;
                resident_bytes += views.bytes;
                Place::Resident(Box::new(views.layer(model, id)))
            } else {
                let mut ram = dev.pinned(image.name(), image.bytes()).map_err(|e| e.in_layer(id))?;
                for placed in image.tensors() {
                    ram.as_mut()[placed.range.clone()].copy_from_slice(&placed.data(&model.gguf));
                    progress(placed.range.len() as u64);
                }
                let views = [0, 1].map(|slot: usize| Views::of_image(image, &slots[slot].buf).layer(model, id));
                Place::Pinned { ram, image: image.clone(), views }
            });
        }
        Ok(Streamed { places, slots, order: (resident..images.len()).collect(), resident_bytes })
    }

    /// The slot that layer `id` is in, or is on its way to. Starts the copy, into the slot that was not used last, if the
    /// layer is in neither.
    fn fetch(&mut self, dev: &D, id: usize, avoid: Option<usize>) -> Result<usize, DeviceError> {
        if let Some(slot) = self.slots.iter().position(|s| s.holds.as_ref().is_some_and(|(layer, _)| *layer == id)) {
            return Ok(slot);
        }
        let index = avoid.map_or(0, |used| (used + 1) % SLOTS);
        let Place::Pinned { ram, image, .. } = &self.places[id] else {
            unreachable!("only streamed layers are fetched");
        };
        let slot = &mut self.slots[index];
        if slot.unfenced {
            let message = "an earlier error left a slot in unknown use".into();
            return Err(DeviceError::Driver { call: "streaming", message });
        }
        // A copy that fails halfway leaves neither the old layer nor the new one in the slot.
        slot.holds = None;
        let mut end = None;
        for segment in image.segments() {
            let offset = segment.start;
            end = Some(dev.upload(ram, segment, &slot.buf, offset, slot.read_until.as_ref())?);
        }
        slot.holds = end.map(|end| (id, end));
        Ok(index)
    }
}

impl<D: Device> Layers<D> for Streamed<D> {
    fn with(&mut self, dev: &mut D, id: usize, f: Compute<'_, D>) -> Result<(), DeviceError> {
        if let Place::Resident(layer) = &self.places[id] {
            return f(dev, layer, 0);
        }
        let index = self.fetch(dev, id, None)?;
        // The next streamed layer starts moving before this one is computed. After the last comes the first: the next
        // pass will want it.
        let turn = self.order.iter().position(|&layer| layer == id).expect("a pinned layer is streamed");
        let next = self.order[(turn + 1) % self.order.len()];
        self.fetch(dev, next, Some(index))?;

        let (Place::Pinned { views, .. }, slot) = (&self.places[id], &mut self.slots[index]) else {
            unreachable!("resident layers returned above");
        };
        if let Some((_, copied)) = &slot.holds {
            dev.compute_waits(copied)?;
        }
        let result = f(dev, &views[index], index);
        match dev.mark() {
            Ok(end) => {
                // The queue's end now is also behind what an earlier mark should have fenced.
                (slot.read_until, slot.unfenced) = (Some(end), false);
                result
            }
            Err(e) => {
                slot.unfenced = true;
                result.and(Err(e))
            }
        }
    }

    fn resident(&self) -> bool {
        self.order.is_empty()
    }

    fn streamed_bytes(&self) -> u64 {
        // Two streamed layers or fewer stay in their slots.
        if self.order.len() <= SLOTS { 0 } else { self.pinned_bytes() }
    }

    fn device_bytes(&self) -> u64 {
        let slot =
            self.places.iter().map(|p| if let Place::Pinned { image, .. } = p { image.bytes() } else { 0 }).max();
        self.resident_bytes + SLOTS as u64 * slot.unwrap_or(0) as u64
    }

    fn pinned_bytes(&self) -> u64 {
        let pinned = |p: &Place<D>| if let Place::Pinned { image, .. } = p { image.bytes() as u64 } else { 0 };
        self.places.iter().map(pinned).sum()
    }
}
