//! Drives that are played.

use nvme::{
    Controller, DmaBuf, Drive, Options,
    model::{Media, ModelDoor, Traits},
};
use rand::{RngCore, SeedableRng, rngs::SmallRng};
use std::{sync::Arc, time::Duration};

/// Bytes that look random.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    SmallRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

/// A namespace of `blocks` blocks of noise.
pub fn media(seed: u64, block_bytes: usize, blocks: usize) -> Arc<Media> {
    Arc::new(Media::new(block_bytes, noise(seed, block_bytes * blocks)))
}

/// Timeouts that take few steps of the model.
pub fn options() -> Options {
    Options { timeout: Duration::from_millis(50), abort_timeout: Duration::from_millis(20), ..Options::default() }
}

/// Namespace 1 of a controller with these traits.
pub fn drive(traits: Traits, options: Options, media: &Arc<Media>) -> (Arc<ModelDoor>, Drive) {
    let door = ModelDoor::new(traits, vec![media.clone()]);
    let controller = Controller::open(door.clone(), options).expect("a sound controller");
    (door, Drive::open(controller, 1).expect("a sound namespace"))
}

/// All bytes of a buffer from `at` on.
pub fn bytes(buf: &DmaBuf, at: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    buf.copy_to(at, &mut bytes);
    bytes
}
