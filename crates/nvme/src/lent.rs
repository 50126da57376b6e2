//! Queues that somebody else drives: a GPU, whose kernel writes commands and reads completions by itself.

use crate::{BusAddr, Cap, DmaBuf, command::COMPLETION_BYTES, queue::Layout};

/// A submission queue and its completion queue, empty when it is lent and behind each reset of the controller.
///
/// Who drives it keeps to sections 3.3.1 and 3.3.3 of the Base Specification: commands go to the tail, then the tail's doorbell is
/// written; a completion is new if its phase tag is the round's (1 in the first), the rest of it is read behind that, and the head's
/// doorbell is written.
#[derive(Debug, Clone)]
pub struct LentQueue {
    pub(crate) id: u16,
    pub(crate) depth: u32,
    pub(crate) addresses: [BusAddr; 2],
    memory: DmaBuf,
    completions: usize,
    doorbells: [usize; 2],
}

impl LentQueue {
    /// Bytes of memory for a queue of `depth` entries, with pages of `page` bytes.
    pub fn bytes(depth: u32, page: usize) -> usize {
        Layout::new(depth, page, 0).bytes
    }

    /// None if the memory is too small, or a queue is not contiguous on the bus.
    pub(crate) fn new(id: u16, depth: u32, page: usize, cap: Cap, memory: DmaBuf) -> Option<LentQueue> {
        let layout = Layout::new(depth, page, 0);
        let addresses = (layout.bytes <= memory.len()).then(|| layout.addresses(depth, page, memory.bus()))??;
        let doorbells = [cap.submission_doorbell(id), cap.completion_doorbell(id)];
        let queue = LentQueue { id, depth, addresses, memory, completions: layout.completions, doorbells };
        queue.clear();
        Some(queue)
    }

    /// Takes all completions away: old ones must not look new.
    pub(crate) fn clear(&self) {
        self.memory.fill(self.completions, self.depth as usize * COMPLETION_BYTES, 0);
    }

    /// Its number.
    pub fn id(&self) -> u16 {
        self.id
    }

    /// Entries of each of the two; one stays empty.
    pub fn depth(&self) -> u32 {
        self.depth
    }

    /// The memory that both are in.
    pub fn memory(&self) -> &DmaBuf {
        &self.memory
    }

    /// Where in the memory the submission queue begins, and the completion queue.
    pub fn offsets(&self) -> [usize; 2] {
        [0, self.completions]
    }

    /// Where among the registers the tail's and the head's doorbell are.
    pub fn doorbells(&self) -> [usize; 2] {
        self.doorbells
    }
}
