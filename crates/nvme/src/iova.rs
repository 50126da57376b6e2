//! Addresses of an IOMMU's address space: which are free.

use std::collections::BTreeMap;

/// Where memory begins: suits huge pages, and every page size of a controller.
const ALIGN: u64 = 2 << 20;

/// An address space, and what of it is taken.
pub(crate) struct IovaSpace {
    /// First and last address, in order.
    ranges: Vec<(u64, u64)>,
    /// First address and length.
    taken: BTreeMap<u64, u64>,
}

impl IovaSpace {
    /// An address space of these ranges, first and last address.
    pub fn new(mut ranges: Vec<(u64, u64)>) -> IovaSpace {
        ranges.sort_unstable();
        IovaSpace { ranges, taken: BTreeMap::new() }
    }

    /// Takes `len` addresses, if there are. Never 0, which is what forgotten addresses are.
    pub fn take(&mut self, len: u64) -> Option<u64> {
        let mut found = None;
        for &(first, last) in &self.ranges {
            let mut start = first.max(1).checked_next_multiple_of(ALIGN)?;
            // What is taken is in order too: it is either before the start, or the gap in front of it is large enough.
            for (&taken, &bytes) in self.taken.range(..last) {
                if taken + bytes > start && taken < start.saturating_add(len) {
                    start = (taken + bytes).checked_next_multiple_of(ALIGN)?;
                }
            }
            if len > 0 && start <= last && len - 1 <= last - start {
                found = Some(start);
                break;
            }
        }
        self.taken.insert(found?, len);
        found
    }

    /// Gives back what was taken at `start`.
    pub fn give_back(&mut self, start: u64) {
        self.taken.remove(&start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_once() {
        const MIB: u64 = 1 << 20;
        let mut space = IovaSpace::new(vec![(0x100_0000_0000, 0x100_0000_0000 + 6 * MIB - 1), (0, 6 * MIB - 1)]);
        assert_eq!(space.take(3 * MIB), Some(2 * MIB), "not 0");
        assert_eq!(space.take(4096), Some(0x100_0000_0000), "nothing left below");
        assert_eq!(space.take(4 * MIB + 1), None);
        assert_eq!(space.take(4 * MIB), Some(0x100_0020_0000));
        assert_eq!(space.take(1), None);
        space.give_back(0x100_0000_0000);
        assert_eq!(space.take(2 * MIB), Some(0x100_0000_0000));
        space.give_back(2 * MIB);
        assert_eq!((space.take(4096), space.take(MIB), space.take(0)), (Some(2 * MIB), Some(4 * MIB), None));
        assert_eq!(IovaSpace::new(vec![]).take(1), None);
        assert_eq!(IovaSpace::new(vec![(0, u64::MAX)]).take(u64::MAX), None);
    }
}
