//! How weights reach the forward pass. `stream` implements it.

use super::{Flowed, Trace};
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
    /// Bytes that every pass brings to the device over the link.
    fn streamed_bytes(&self) -> u64;
    /// Bytes of weights that stay in device memory, the ring included.
    fn device_bytes(&self) -> u64;
    /// Bytes of page-locked host memory.
    fn pinned_bytes(&self) -> u64;

    /// What has been streamed so far, and what was waited for; none where nothing is streamed. What is waited for from now until the
    /// next pass is not counted.
    ///
    /// # Errors
    /// The device's.
    fn flowed(&mut self, dev: &D) -> Result<Option<Flowed>, DeviceError>;
    /// Remembers from now on what happens when, or no longer.
    fn trace(&mut self, on: bool);
    /// What has happened since the last time.
    ///
    /// # Errors
    /// The device's.
    fn take_trace(&mut self, dev: &D) -> Result<Trace, DeviceError>;
}
