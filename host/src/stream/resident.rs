//! All layers in device memory.

use super::{Compute, Layers, Progress, layer_in, load_image};
use crate::{
    device::{Device, DeviceError, Head, Layer, Weight},
    model::Model,
    pack::{Image, TensorId},
};

/// Every layer stays on the device.
pub struct Resident<D: Device> {
    layers: Vec<Layer<Weight<D>>>,
    device_bytes: u64,
}

/// A tensor group's weights on the device, and the device memory they took.
pub(super) struct Placed<T> {
    pub weights: T,
    pub bytes: u64,
}

/// One layer, in the model file's map where the device computes there, else in its own memory.
pub(super) fn place_layer<D: Device>(
    dev: &D,
    model: &Model,
    id: usize,
    image: &Image,
    progress: Progress<'_>,
) -> Result<Placed<Layer<Weight<D>>>, DeviceError> {
    if let Some(views) = image.share(&model.gguf, dev)? {
        progress(image.bytes() as u64);
        return Ok(Placed { weights: model.tensors.layers[id].map(|t| find::<D>(&views, *t)), bytes: 0 });
    }
    let buf = load_image(dev, model, image, progress)?;
    Ok(Placed { weights: layer_in::<D>(model, id, image, &buf), bytes: image.bytes() as u64 })
}

/// The head, likewise. Also says how much device memory it takes.
///
/// # Errors
/// The device's.
pub fn place_head<D: Device>(
    dev: &D,
    model: &Model,
    image: &Image,
    progress: Progress<'_>,
) -> Result<(Head<Weight<D>>, u64), DeviceError> {
    if let Some(views) = image.share(&model.gguf, dev)? {
        progress(image.bytes() as u64);
        return Ok((model.tensors.head.map(|t| find::<D>(&views, *t)), 0));
    }
    let buf = load_image(dev, model, image, progress)?;
    Ok((model.tensors.head.map(|&t| image.view(t, &buf)), image.bytes() as u64))
}

fn find<D: Device>(views: &[(TensorId, Weight<D>)], id: TensorId) -> Weight<D> {
    let view = views.iter().find(|(tensor, _)| *tensor == id);
    view.expect("an image is asked for its own tensors").1.clone()
}

impl<D: Device> Resident<D> {
    /// Loads every layer.
    ///
    /// # Errors
    /// The device's; `images` are the layers' layouts in order.
    pub fn load(dev: &D, model: &Model, images: &[Image], progress: Progress<'_>) -> Result<Self, DeviceError> {
        let (mut layers, mut device_bytes) = (Vec::with_capacity(images.len()), 0);
        for (id, image) in images.iter().enumerate() {
            let placed = place_layer(dev, model, id, image, progress).map_err(|e| e.in_layer(id))?;
            layers.push(placed.weights);
            device_bytes += placed.bytes;
        }
        Ok(Resident { layers, device_bytes })
    }
}

impl<D: Device> Layers<D> for Resident<D> {
    fn with(&mut self, dev: &mut D, id: usize, f: Compute<'_, D>) -> Result<(), DeviceError> {
        f(dev, &self.layers[id])
    }

    fn streamed_bytes(&self) -> u64 {
        0
    }

    fn device_bytes(&self) -> u64 {
        self.device_bytes
    }

    fn pinned_bytes(&self) -> u64 {
        0
    }
}
