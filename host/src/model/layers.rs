//! How layers reach the forward pass. `stream` implements it.

use crate::device::{Device, DeviceError, Layer, Weight};

/// What a layer's computation looks like to whoever provides the layer. The number says in which of the places where the
/// layer can be it is.
pub type Compute<'a, D> = &'a mut dyn FnMut(&mut D, &Layer<Weight<D>>, usize) -> Result<(), DeviceError>;

/// Provides layers, in any order, pass after pass.
pub trait Layers<D: Device> {
    /// Makes layer `id` available, runs `f` on it, and fences its memory, also when `f` fails.
    ///
    /// # Errors
    /// Those of the device and of `f`.
    fn with(&mut self, dev: &mut D, id: usize, f: Compute<'_, D>) -> Result<(), DeviceError>;

    /// Whether every layer is always available, each in one place: nobody waits for anything in [`Layers::with`].
    fn resident(&self) -> bool;
    /// Bytes that every pass copies to the device.
    fn streamed_bytes(&self) -> u64;
    /// Bytes of weights that stay in device memory, slots included.
    fn device_bytes(&self) -> u64;
    /// Bytes of page-locked host memory.
    fn pinned_bytes(&self) -> u64;
}
