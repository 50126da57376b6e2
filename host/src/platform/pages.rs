//! Pages of memory: near a device, and real before they are used.

use memmap2::{Advice, MmapMut};
use rayon::prelude::*;

/// What a thread makes real at a time.
const PART: usize = 64 << 20;

/// Makes the pages of new anonymous memory real, huge ones where the system has them, on the NUMA node `node` if there is room.
/// All of it helps and none is needed, so that a system that cannot do a part of it is no error.
///
/// Several threads do it, which is faster than leaving it to whoever locks the pages: 4 GiB were locked in 0.3 s instead of 1.2
/// (docs/streaming.md).
pub(crate) fn prepare(map: &mut MmapMut, node: Option<u32>) {
    let _ = map.advise(Advice::HugePage);
    if let Some(node) = node {
        prefer_node(map, node);
    }
    let (map, len) = (&*map, map.len());
    (0..len.div_ceil(PART)).into_par_iter().for_each(|part| {
        let start = part * PART;
        let _ = map.advise_range(Advice::PopulateWrite, start, PART.min(len - start));
    });
}

/// Lets the pages of `map` be taken from NUMA node `node` while it has some.
fn prefer_node(map: &mut MmapMut, node: u32) {
    // The kernel takes the number of bits plus one (mbind(2), "BUGS").
    let (mut nodes, bits) = ([0u64; 16], 16 * u64::BITS);
    if node < bits {
        nodes[(node / u64::BITS) as usize] = 1 << (node % u64::BITS);
        let (start, none) = (map.as_mut_ptr(), 0usize);
        // SAFETY: the range is a mapping of our own, the mask has as many bits as is said, and a policy changes no bytes.
        let _ = unsafe {
            libc::syscall(libc::SYS_mbind, start, map.len(), libc::MPOL_PREFERRED, nodes.as_ptr(), bits + 1, none)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_made_real_is_zeroed() {
        for len in [1, PART + 5] {
            let mut map = MmapMut::map_anon(len).unwrap();
            // A node that surely has no memory, and one that surely has.
            prepare(&mut map, Some(1000));
            prepare(&mut map, Some(0));
            assert!(map.iter().all(|&byte| byte == 0));
        }
    }
}
