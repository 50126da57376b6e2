//! A block's shared memory. A worker keeps the regions from block to block and poisons them in between.

use crate::memory::Region;

/// Bytes of `shared_array!`s that a block can have.
pub(crate) const STATIC_LIMIT: usize = 48 << 10;
/// Bytes of shared memory that a block can have in all on sm_80, the emulator's limit where it was given no other.
pub(crate) const SM_80_LIMIT: usize = 163 << 10;

/// One `shared_array!` site.
struct Array {
    key: *const u8,
    region: Region,
    /// Whether the present block has met the site.
    met: bool,
}

/// Why a shared array cannot be made.
pub(crate) enum SharedError {
    TooMuch { kind: &'static str, bytes: usize, limit: usize },
    OutOfMemory,
}

pub(crate) struct Shared {
    arrays: Vec<Array>,
    dynamic: Region,
    /// Bytes that the arrays and the dynamic shared memory can have together.
    limit: usize,
}

impl Shared {
    pub(crate) fn new(dynamic: usize, limit: usize) -> Option<Self> {
        Some(Shared { arrays: Vec::new(), dynamic: Region::new(dynamic)?, limit })
    }

    /// Makes everything undefined for the next block.
    pub(crate) fn begin_block(&mut self) {
        self.arrays.iter_mut().for_each(|array| array.met = false);
        self.dynamic.poison();
    }

    pub(crate) fn dynamic(&self) -> *mut u8 {
        self.dynamic.pointer()
    }

    pub(crate) fn array(&mut self, key: *const u8, bytes: usize) -> Result<*mut u8, SharedError> {
        let same = |array: &Array| array.key == key && array.region.len() == bytes;
        let known = self.arrays.iter().position(same);
        if let Some(Array { region, met: true, .. }) = known.map(|at| &self.arrays[at]) {
            return Ok(region.pointer());
        }
        let in_use = self.arrays.iter().filter(|array| array.met).map(|array| array.region.len()).sum::<usize>();
        let bytes_static = in_use.saturating_add(bytes);
        let bytes_total = bytes_static.saturating_add(self.dynamic.len());
        if bytes_static > STATIC_LIMIT {
            return Err(SharedError::TooMuch { kind: "static", bytes: bytes_static, limit: STATIC_LIMIT });
        }
        if bytes_total > self.limit {
            return Err(SharedError::TooMuch { kind: "static and dynamic", bytes: bytes_total, limit: self.limit });
        }
        let at = match known {
            Some(at) => at,
            None => {
                let region = Region::new(bytes).ok_or(SharedError::OutOfMemory)?;
                self.arrays.push(Array { key, region, met: false });
                self.arrays.len() - 1
            }
        };
        self.arrays[at].region.poison();
        self.arrays[at].met = true;
        Ok(self.arrays[at].region.pointer())
    }

    /// Where `other` has what `pointer` points to in these arrays; `None` where that is nothing, or where the other block has not met
    /// the array yet.
    pub(crate) fn map(&self, pointer: *const u8, other: &Self) -> Option<*mut u8> {
        let at = pointer.addr();
        if self.dynamic.contains(at, 1) {
            return Some(other.dynamic.pointer().wrapping_add(at - self.dynamic.start()));
        }
        let mine = self.arrays.iter().find(|array| array.met && array.region.contains(at, 1))?;
        let same = |array: &&Array| array.met && array.key == mine.key && array.region.len() == mine.region.len();
        let its = other.arrays.iter().find(same)?;
        Some(its.region.pointer().wrapping_add(at - mine.region.start()))
    }

    /// Whether an access lies inside one of the present block's arrays.
    pub(crate) fn contains(&self, address: usize, bytes: usize) -> bool {
        self.dynamic.contains(address, bytes)
            || self.arrays.iter().any(|array| array.met && array.region.contains(address, bytes))
    }

    /// Kind and length of a region with something written past an end.
    pub(crate) fn overrun(&self) -> Option<(&'static str, usize)> {
        let arrays = self.arrays.iter().map(|array| ("static", &array.region));
        arrays
            .chain([("dynamic", &self.dynamic)])
            .find(|(_, region)| !region.guards_intact())
            .map(|(kind, region)| (kind, region.len()))
    }
}
