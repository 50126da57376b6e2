//! What the operating system and the driver say of this machine.

mod cgroup;
mod nvml;
mod pages;
mod pcie;

pub use nvml::{Holder, holders};
pub(crate) use pages::prepare;
pub use pcie::{PcieLink, numa_node, pcie_link};
use procfs::{Current, Meminfo};

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
fn reserve(total: u64) -> u64 {
    (total / 100 * 15).max(4 << 30)
}

/// RAM that this program may still page-lock: what is free, but for what is left to everybody else. All there is where the operating
/// system does not say; the allocation will.
pub fn spare_memory() -> u64 {
    memory().map_or(u64::MAX, |memory| memory.free.saturating_sub(reserve(memory.total)))
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
