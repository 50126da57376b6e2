//! What the operating system says of this machine.

use procfs::{Current, Meminfo};

use crate::device::MemoryInfo;

/// RAM that programs can still take without swapping, and all of it.
///
/// # Errors
/// Where /proc is not there.
pub fn memory() -> Result<MemoryInfo, procfs::ProcError> {
    let info = Meminfo::current()?;
    Ok(MemoryInfo { free: info.mem_available.unwrap_or(info.mem_free), total: info.mem_total })
}
