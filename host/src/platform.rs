//! What the operating system says of this machine.

use procfs::{Current, Meminfo};

use crate::device::{DeviceError, MemoryInfo};

/// RAM that programs can still take without swapping, and all of it.
///
/// # Errors
/// Where /proc is not there.
pub fn memory() -> Result<MemoryInfo, procfs::ProcError> {
    let info = Meminfo::current()?;
    Ok(MemoryInfo { free: info.mem_available.unwrap_or(info.mem_free), total: info.mem_total })
}

/// `bytes` zero bytes, or an error that says what they were for.
pub(crate) fn zeroed(what: &str, bytes: usize) -> Result<Vec<u8>, DeviceError> {
    let free = memory().map_or(0, |m| m.free);
    let out_of_memory = || DeviceError::OutOfMemory {
        device: "RAM".into(),
        what: what.to_owned(),
        need: bytes as u64,
        free,
        advice: "close other programs, or use a smaller model or context",
    };
    let mut memory = Vec::new();
    if bytes as u64 > free {
        return Err(out_of_memory());
    }
    memory.try_reserve_exact(bytes).map_err(|_| out_of_memory())?;
    memory.resize(bytes, 0);
    Ok(memory)
}
