//! Recorded computations, by their keys.

use std::{cell::Cell, collections::HashMap, rc::Rc};

use super::Driver;
use crate::device::ReplayKey;

/// Recordings kept at most. A model that is streamed has two for each layer, and twice as many when its context gets long; a
/// recording of a whole pass takes some hundred KiB.
const LIMIT: usize = 1024;

/// A computation, and whether its token's context is short ([`super::pass::Pass::is_short`]).
pub(super) type Key = (ReplayKey, bool);

/// What is known of a computation.
enum Recording<G> {
    /// It was computed once: all that it loads or allocates is there.
    Seen,
    /// It can be replayed.
    Graph(G),
}

/// The recordings of a device.
pub(super) struct Recordings<D: Driver> {
    by_key: HashMap<Key, (Recording<D::Graph>, u64)>,
    /// Counts uses, to tell which recording has not been used for the longest time.
    clock: u64,
    /// A computation is under way: one inside it is a part of it.
    busy: Rc<Cell<bool>>,
}

/// A computation under way.
pub(super) struct Busy(Rc<Cell<bool>>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

/// How a computation is to be done.
pub(super) enum How<'a, G> {
    /// For the first time.
    Directly,
    /// Once more, and recorded.
    Record,
    /// By launching what was recorded.
    Replay(&'a G),
}

impl<D: Driver> Recordings<D> {
    pub fn new() -> Self {
        Recordings { by_key: HashMap::new(), clock: 0, busy: Rc::default() }
    }

    pub fn busy(&self) -> bool {
        self.busy.get()
    }

    /// Says that a computation is under way, as long as what is returned exists: also where it panics.
    pub fn begin(&self) -> Busy {
        self.busy.set(true);
        Busy(self.busy.clone())
    }

    pub fn find(&mut self, key: &Key) -> How<'_, D::Graph> {
        self.clock += 1;
        match self.by_key.get_mut(key) {
            None => How::Directly,
            Some((recording, used)) => {
                *used = self.clock;
                match recording {
                    Recording::Seen => How::Record,
                    Recording::Graph(graph) => How::Replay(graph),
                }
            }
        }
    }

    /// Remembers the computation, which was done, and its recording if there is one. Forgets those whose memory is gone, and
    /// if there are too many, the one that was not used for the longest time.
    pub fn insert(&mut self, key: Key, graph: Option<D::Graph>) {
        if !self.by_key.contains_key(&key) {
            self.by_key.retain(|(key, _), _| key.is_alive());
            if self.by_key.len() >= LIMIT {
                let oldest = self.by_key.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| key.clone());
                oldest.map(|key| self.by_key.remove(&key));
            }
        }
        self.by_key.insert(key, (graph.map_or(Recording::Seen, Recording::Graph), self.clock));
    }
}
