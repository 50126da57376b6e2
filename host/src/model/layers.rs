//! How weights reach the forward pass. `stream` implements it.

use crate::device::{Device, DeviceError, Head, Layer, Weight};

/// What a layer's computation looks like to whoever provides the layer.
pub type Compute<'a, D> = &'a mut dyn FnMut(&mut D, &Layer<Weight<D>>) -> Result<(), DeviceError>;

/// What the head's computation looks like.
pub type ComputeHead<'a, D> = &'a mut dyn FnMut(&mut D, &Head<Weight<D>>) -> Result<(), DeviceError>;

/// Provides layers and head, in any order, pass after pass. Each is always in the same place.
pub trait Layers<D: Device> {
    /// Makes layer `id` available, runs `f` on it, and fences its memory, also when `f` fails.
    ///
    /// # Errors
    /// Those of the device and of `f`.
    fn with(&mut self, dev: &mut D, id: usize, f: Compute<'_, D>) -> Result<(), DeviceError>;
    /// As [`Layers::with`], the head.
    ///
    /// # Errors
    /// Those of the device and of `f`.
    fn with_head(&mut self, dev: &mut D, f: ComputeHead<'_, D>) -> Result<(), DeviceError>;

    /// Whether all is always available: nobody waits for anything in [`Layers::with`].
    fn resident(&self) -> bool;
    /// Bytes that every pass copies to the device.
    fn streamed_bytes(&self) -> u64;
    /// Bytes of weights that stay in device memory, the ring included.
    fn device_bytes(&self) -> u64;
    /// Bytes of page-locked host memory.
    fn pinned_bytes(&self) -> u64;
}
