//! Who else uses a GPU's memory, from NVML, which comes with the driver. It is looked for when it is asked; where it is absent or
//! says nothing, nothing is known.

use std::{cmp::Reverse, ffi::OsStr, fmt, path::Path};

use bytesize::ByteSize;
use nvml_wrapper::{Nvml, enums::device::UsedGpuMemory};

/// The name under which the driver installs it; the one without a number comes with development packages.
const LIBRARY: &str = "libnvidia-ml.so.1";
/// Characters of a process's name that are asked for.
const NAME: usize = 256;

/// A process that holds memory of a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its number.
    pub pid: u32,
    /// Its program, where it is known: not across containers.
    pub name: Option<String>,
    /// What it holds.
    pub bytes: u64,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{name} ({}) {}", self.pid, ByteSize(self.bytes)),
            None => write!(f, "process {} {}", self.pid, ByteSize(self.bytes)),
        }
    }
}

/// The other processes that hold memory of the GPU at `address`, as CUDA writes it; the largest first.
pub fn holders(address: &str) -> Vec<Holder> {
    let Ok(nvml) = Nvml::builder().lib_path(OsStr::new(LIBRARY)).init() else { return Vec::new() };
    let Ok(gpu) = nvml.device_by_pci_bus_id(address) else { return Vec::new() };
    let lists = [gpu.running_compute_processes(), gpu.running_graphics_processes()];
    let mut holders: Vec<Holder> = lists
        .into_iter()
        .flat_map(Result::unwrap_or_default)
        .filter(|process| process.pid != std::process::id())
        .filter_map(|process| match process.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Some((process.pid, bytes)),
            UsedGpuMemory::Unavailable => None,
        })
        .map(|(pid, bytes)| Holder {
            pid,
            name: nvml.sys_process_name(pid, NAME).ok().and_then(|path| program(&path)),
            bytes,
        })
        .collect();
    holders.sort_by_key(|holder| (Reverse(holder.bytes), holder.pid));
    // One that computes and draws is in both lists.
    holders.dedup_by_key(|holder| holder.pid);
    holders
}

/// The program's name: its path's last part, without its arguments.
fn program(path: &str) -> Option<String> {
    let name = Path::new(path.split_whitespace().next()?).file_name()?.to_string_lossy();
    Some(name.escape_debug().to_string()).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_named() {
        assert_eq!(program("/usr/bin/python3 train.py").as_deref(), Some("python3"));
        assert_eq!(program("ollama").as_deref(), Some("ollama"));
        assert_eq!((program(""), program("/")), (None, None));
        let holder = Holder { pid: 7, name: program("/opt/x"), bytes: 3 << 29 };
        assert_eq!(holder.to_string(), "x (7) 1.5 GiB");
        assert_eq!(Holder { name: None, ..holder }.to_string(), "process 7 1.5 GiB");
    }

    /// Without a driver, and of a GPU that there is not, nothing is known; and that is no error.
    #[test]
    fn a_gpu_that_is_not_there_has_no_holders() {
        assert_eq!(holders("ffff:ff:1f.7"), []);
    }
}
