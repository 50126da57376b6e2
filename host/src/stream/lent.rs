//! Memory that reads write into.

use std::{
    mem,
    ops::{Deref, Range},
    ptr::NonNull,
    sync::Arc,
};

use readahead::HostBuf;

/// Values with memory that is lent to reads. A read that does not come back may write at any time, so the memory of those that still have
/// some stays for ever when this is dropped.
pub(super) struct Lent<T> {
    values: Vec<T>,
    /// Each read in flight has a clone.
    reads: Arc<()>,
}

impl<T> Lent<T> {
    pub fn new(values: Vec<T>) -> Self {
        Lent { values, reads: Arc::default() }
    }

    /// Lends `ranges` of what `bytes` finds in value `index`. All of them come from the one reference that is made of the memory, so that
    /// no later one takes from the reads what they were lent. (Under Stacked Borrows, making one is using all of the memory.)
    ///
    /// # Safety
    /// The bytes do not move with the value. Nobody uses them, nor makes a reference to any of them, while a read may have some, and no
    /// two lent ranges that reads have at the same time overlap.
    pub unsafe fn lend(
        &mut self,
        index: usize,
        bytes: impl FnOnce(&mut T) -> &mut [u8],
        ranges: impl IntoIterator<Item = Range<usize>>,
    ) -> Vec<HostBuf> {
        let bytes = bytes(&mut self.values[index]);
        let (start, len) = (NonNull::from(&mut *bytes).cast::<u8>(), bytes.len());
        let lend = |Range { start: at, end }: Range<usize>| {
            assert!(at <= end && end <= len, "{at}..{end} of {len} bytes");
            // SAFETY: inside of the bytes. The caller's promise; `drop` keeps the memory as long as somebody has a clone of `reads`.
            unsafe { HostBuf::new(start.add(at), end - at, Some(self.reads.clone())) }
        };
        ranges.into_iter().map(lend).collect()
    }

    /// A share of the values: they stay as long as somebody has one.
    pub fn share(&self) -> Arc<()> {
        self.reads.clone()
    }

    /// The values, none of which a read has any more.
    pub fn into_inner(mut self) -> Vec<T> {
        // Where nobody else has a clone, what those who had one wrote can be seen: `get_mut` acquires what their drops released.
        assert!(Arc::get_mut(&mut self.reads).is_some(), "a read has some of it");
        mem::take(&mut self.values)
    }
}

impl<T> Deref for Lent<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.values
    }
}

impl<T> Drop for Lent<T> {
    fn drop(&mut self) {
        // Whoever has no clone by now gets none any more, and what he wrote came before this: `get_mut` acquires what drops of clones released.
        if Arc::get_mut(&mut self.reads).is_none() {
            mem::forget(mem::take(&mut self.values));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_stays_while_a_read_has_it() {
        let value = Arc::new(());
        let lent = |kept: &Arc<()>| Lent::new(vec![(kept.clone(), vec![0u8; 10])]);
        let lend = |lent: &mut Lent<(Arc<()>, Vec<u8>)>| {
            // SAFETY: nobody reads or writes the bytes.
            unsafe { lent.lend(0, |(_, bytes)| bytes, std::iter::once(2..6)) }.remove(0)
        };
        let mut first = lent(&value);
        let buffer = lend(&mut first);
        assert_eq!((buffer.len(), buffer.address()), (4, first[0].1.as_ptr() as usize + 2));
        drop(buffer);
        drop(first);
        assert_eq!(Arc::strong_count(&value), 1, "no read had it");
        let mut second = lent(&value);
        let buffer = lend(&mut second);
        drop(second);
        assert_eq!(Arc::strong_count(&value), 2);
        drop(buffer);
        let third = lent(&value);
        let share = third.share();
        drop(third);
        assert_eq!(Arc::strong_count(&value), 3);
        drop(share);
    }

    /// What is lent later takes nothing from what was lent before: under Miri this fails where each range is a reference of its own.
    #[test]
    fn ranges_of_one_memory_are_used_side_by_side() {
        let mut lent = Lent::new(vec![vec![0u8; 12]]);
        // SAFETY: only the two below use the bytes, which do not overlap.
        let buffers = unsafe { lent.lend(0, |bytes| bytes, [0..5, 5..12]) };
        for (buffer, value) in buffers.iter().zip([1, 2]).rev() {
            // SAFETY: its own bytes.
            unsafe { NonNull::new(buffer.as_ptr()).unwrap().write_bytes(value, buffer.len()) };
        }
        drop(buffers);
        assert_eq!(lent.into_inner(), [[1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2]]);
    }

    #[test]
    #[should_panic(expected = "5..13 of 12 bytes")]
    fn what_is_not_there_is_not_lent() {
        // SAFETY: it panics.
        unsafe { Lent::new(vec![vec![0u8; 12]]).lend(0, |bytes| bytes, std::iter::once(5..13)) };
    }
}
