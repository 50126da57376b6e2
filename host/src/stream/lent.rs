//! Memory that reads write into.

use std::{mem, ops::Deref, ptr::NonNull, sync::Arc};

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

    /// Lends what `bytes` finds in value `index`.
    ///
    /// # Safety
    /// The bytes do not move with the value. Nobody uses them while a read may have them, and no two lent ranges that reads have at
    /// the same time overlap.
    pub unsafe fn lend(&mut self, index: usize, bytes: impl FnOnce(&mut T) -> &mut [u8]) -> HostBuf {
        let bytes = bytes(&mut self.values[index]);
        let ptr = NonNull::new(bytes.as_mut_ptr()).expect("memory has an address");
        // SAFETY: the caller's promise; `drop` keeps the memory as long as somebody has a clone of `reads`.
        unsafe { HostBuf::new(ptr, bytes.len(), Some(self.reads.clone())) }
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
        // SAFETY: nobody reads or writes the bytes.
        let lend = |lent: &mut Lent<(Arc<()>, Vec<u8>)>| unsafe { lent.lend(0, |(_, bytes)| &mut bytes[2..6]) };
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
    }
}
