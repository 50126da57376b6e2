//! What the operating system and the driver say of this machine.

mod cgroup;
mod disk;
mod nvml;
mod pcie;

pub use disk::disk_rate;
pub use nvml::{Holder, holders};
pub use pcie::{PcieLink, pcie_link};

use std::fs;

use memmap2::{Advice, MmapMut};
use procfs::{Current, Meminfo};
use rayon::prelude::*;

use crate::device::{DeviceError, MemoryInfo};

/// RAM that this program can still take without swapping, and all that it may have: the machine's, or what its control groups
/// (containers, job schedulers) allow.
///
/// # Errors
/// Where /proc is not there.
pub fn memory() -> Result<MemoryInfo, procfs::ProcError> {
    let info = Meminfo::current()?;
    let machine = MemoryInfo { free: info.mem_available.unwrap_or(info.mem_free), total: info.mem_total };
    let groups = cgroup::memory().unwrap_or(machine);
    Ok(MemoryInfo { free: machine.free.min(groups.free), total: machine.total.min(groups.total) })
}

/// RAM that is left to everybody else, of `total` bytes.
pub fn reserve(total: u64) -> u64 {
    (total / 100 * 15).max(4 << 30)
}

/// `len` zeros, or an error that says what they were for: an allocation that fails by itself would end the process.
pub(crate) fn zeroed<T: Copy + Default>(what: &str, len: usize) -> Result<Vec<T>, DeviceError> {
    let free = memory().map_or(0, |m| m.free);
    let need = (len as u64).saturating_mul(size_of::<T>() as u64);
    let out_of_memory = || DeviceError::OutOfMemory {
        device: "RAM".into(),
        what: what.to_owned(),
        need,
        free,
        advice: "use a smaller model or context, close other programs, or raise this process's limit (ulimit -v)",
    };
    let mut memory = Vec::new();
    if need > free {
        return Err(out_of_memory());
    }
    memory.try_reserve_exact(len).map_err(|_| out_of_memory())?;
    memory.resize(len, T::default());
    Ok(memory)
}

/// The NUMA node of the PCI device at `address`, e.g. `0000:17:00.0`; none where it is not known or there is only one node.
pub(crate) fn numa_node(address: &str) -> Option<u32> {
    let others = fs::read_to_string("/sys/devices/system/node/online").ok()?;
    // The list of nodes is e.g. 0-1 or 0,2; of a single one it is its number.
    if others.trim().parse::<u32>().is_ok() {
        return None;
    }
    let node = fs::read_to_string(format!("/sys/bus/pci/devices/{address}/numa_node")).ok()?;
    // -1: the firmware does not say.
    node.trim().parse().ok()
}

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

    #[test]
    fn a_device_that_is_not_there_has_no_node() {
        assert_eq!(numa_node("ffff:ff:1f.0"), None);
    }
}
