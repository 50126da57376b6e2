//! How layers reach the forward pass: all of them resident on the device, or streamed through it.

mod resident;
mod streamed;

pub use resident::Resident;
pub use streamed::Streamed;

use crate::{
    device::{Device, DeviceError, Layer, Transfer, Weight},
    model::Model,
    pack::Image,
};

/// What a layer's computation looks like to whoever provides the layer.
pub type Compute<'a, D> = &'a mut dyn FnMut(&mut D, &Layer<Weight<D>>) -> Result<(), DeviceError>;

/// Provides layers, in any order, pass after pass.
pub trait Layers<D: Device> {
    /// Makes layer `id` available, runs `f` on it, and fences its memory, also when `f` fails.
    ///
    /// # Errors
    /// Those of the device and of `f`.
    fn with(&mut self, dev: &mut D, id: usize, f: Compute<'_, D>) -> Result<(), DeviceError>;

    /// Bytes that every pass copies to the device.
    fn streamed_bytes(&self) -> u64;
    /// Bytes of weights that stay in device memory, slots included.
    fn device_bytes(&self) -> u64;
    /// Bytes of page-locked host memory.
    fn pinned_bytes(&self) -> u64;
}

/// Told of the bytes loaded so far.
pub type Progress<'a> = &'a mut dyn FnMut(u64);

/// Copies `image` into new device memory.
fn load_image<D: Device>(dev: &D, model: &Model, image: &Image, progress: Progress<'_>) -> Result<D::Buf, DeviceError> {
    let buf = dev.alloc(image.name(), image.bytes())?;
    image.fill(&model.gguf, |offset, bytes| {
        dev.write(&buf, offset, bytes)?;
        progress(bytes.len() as u64);
        Ok(())
    })?;
    Ok(buf)
}

/// The layer's weights as views of `buf`, which holds its image.
fn layer_in<D: Transfer>(model: &Model, id: usize, image: &Image, buf: &D::Buf) -> Layer<Weight<D>> {
    model.tensors.layers[id].map(|&tensor| image.view(tensor, buf))
}
