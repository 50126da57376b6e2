//! All layers in device memory.

use super::place::{Progress, place};
use crate::{
    device::{Device, DeviceError, Layer, Weight},
    model::{Compute, Layers, Model},
    pack::Image,
};

/// Every layer stays on the device.
pub struct Resident<D: Device> {
    layers: Vec<Layer<Weight<D>>>,
    device_bytes: u64,
}

impl<D: Device> Resident<D> {
    /// Loads every layer.
    ///
    /// # Errors
    /// The device's; `images` are the layers' layouts in order.
    pub fn load(dev: &D, model: &Model, images: &[Image], progress: Progress<'_>) -> Result<Self, DeviceError> {
        let (mut layers, mut device_bytes) = (Vec::with_capacity(images.len()), 0);
        for (id, image) in images.iter().enumerate() {
            let views = place(dev, &model.gguf, image, progress).map_err(|e| e.in_layer(id))?;
            layers.push(views.layer(model, id));
            device_bytes += views.bytes;
        }
        Ok(Resident { layers, device_bytes })
    }
}

impl<D: Device> Layers<D> for Resident<D> {
    fn with(&mut self, dev: &mut D, id: usize, f: Compute<'_, D>) -> Result<(), DeviceError> {
        f(dev, &self.layers[id], 0)
    }

    fn resident(&self) -> bool {
        true
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
