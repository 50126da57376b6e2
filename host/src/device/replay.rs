//! Which computations are the same one, so that a device may record and replay it.

use std::{
    hash::{Hash, Hasher},
    rc::{Rc, Weak},
};

/// The identity of memory that computations refer to. Whoever owns the memory has one, and neither moves nor replaces any of
/// the memory as long as it has.
#[derive(Debug, Default)]
pub struct Owner(Rc<()>);

/// A part of a pass over one token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReplayPart {
    /// All of it behind [`super::Device::begin`].
    Pass {
        /// The logits are wanted.
        wanted: bool,
    },
    /// One layer.
    Layer {
        /// The layer's index.
        id: usize,
    },
}

/// A computation: a part of a pass, with which weights, and in which state. As long as both exist, the same key is the same
/// computation on the same memory; afterwards, no other one has it.
#[derive(Clone, Debug)]
pub struct ReplayKey {
    // A weak reference keeps the address from being given to another owner.
    weights: Weak<()>,
    state: Weak<()>,
    part: ReplayPart,
}

impl ReplayKey {
    /// `part` of a pass with the weights and the activations of these owners.
    pub fn new(weights: &Owner, state: &Owner, part: ReplayPart) -> Self {
        ReplayKey { weights: Rc::downgrade(&weights.0), state: Rc::downgrade(&state.0), part }
    }

    /// Weights and state still exist.
    pub fn is_alive(&self) -> bool {
        self.weights.strong_count() > 0 && self.state.strong_count() > 0
    }
}

impl PartialEq for ReplayKey {
    fn eq(&self, other: &Self) -> bool {
        self.weights.ptr_eq(&other.weights) && self.state.ptr_eq(&other.state) && self.part == other.part
    }
}

impl Eq for ReplayKey {}

impl Hash for ReplayKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.weights.as_ptr(), self.state.as_ptr(), self.part).hash(state);
    }
}
