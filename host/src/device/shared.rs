//! Host bytes that several owners read: a part of a mapped model file.

use std::{ops::Deref, sync::Arc};

/// A range of bytes together with what keeps them alive and unchanged.
#[derive(Clone)]
pub struct SharedBytes {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    start: usize,
    end: usize,
}

impl SharedBytes {
    /// `owner`'s bytes `start..end`, or none where they are out of range.
    pub fn new(owner: Arc<dyn AsRef<[u8]> + Send + Sync>, start: usize, end: usize) -> Option<Self> {
        (*owner).as_ref().get(start..end)?;
        Some(SharedBytes { owner, start, end })
    }
}

impl Deref for SharedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.start..self.end]
    }
}
