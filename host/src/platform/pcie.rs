//! The link that a GPU is attached to, as the kernel describes it.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

/// The fastest that a device and its slot have agreed on being able to do. The present speed would say less: idle links slow down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PcieLink {
    /// 5 for PCIe 5.0.
    pub generation: u32,
    /// Lanes.
    pub width: u32,
}

impl fmt::Display for PcieLink {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "PCIe {}.0 x{}", self.generation, self.width)
    }
}

/// Of the device at `address`, as CUDA writes it, e.g. `0000:3B:00.0`. None where the kernel does not say.
pub fn pcie_link(address: &str) -> Option<PcieLink> {
    read(Path::new("/sys"), address)
}

/// The NUMA node of the device at `address`; none where the kernel does not say, or there is only one.
pub fn numa_node(address: &str) -> Option<u32> {
    node(Path::new("/sys"), address)
}

fn node(sys: &Path, address: &str) -> Option<u32> {
    let online = fs::read_to_string(sys.join("devices/system/node/online")).ok()?;
    // A list, e.g. 0-1 or 0,2. Of a single node it is the number.
    if online.trim().parse::<u32>().is_ok() {
        return None;
    }
    // -1 where the firmware does not say.
    fs::read_to_string(folder(sys, address)?.join("numa_node")).ok()?.trim().parse().ok()
}

/// Where the kernel describes the device at `address`.
fn folder(sys: &Path, address: &str) -> Option<PathBuf> {
    // CUDA may write the domain with eight digits, the kernel uses four unless it takes more; both write hexadecimal.
    let (domain, rest) = address.split_once(':')?;
    let domain = u32::from_str_radix(domain, 16).ok()?;
    Some(sys.join(format!("bus/pci/devices/{domain:04x}:{}", rest.to_ascii_lowercase())))
}

fn read(sys: &Path, address: &str) -> Option<PcieLink> {
    let folder = folder(sys, address)?;
    let first = |name: &str| -> Option<String> {
        Some(fs::read_to_string(folder.join(name)).ok()?.split_whitespace().next()?.to_owned())
    };
    // Gigatransfers a second and lane of each generation (PCI Express Base Specification).
    let generation = match first("max_link_speed")?.as_str() {
        "2.5" => 1,
        "5.0" | "5" => 2,
        "8.0" | "8" => 3,
        "16.0" | "16" => 4,
        "32.0" | "32" => 5,
        "64.0" | "64" => 6,
        _ => return None,
    };
    let width = first("max_link_width")?.parse().ok().filter(|&width| width > 0)?;
    Some(PcieLink { generation, width })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_read() {
        let sys = tempfile::tempdir().unwrap();
        let device = |name: &str, speed: &str, width: &str| {
            let folder = sys.path().join("bus/pci/devices").join(name);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("max_link_speed"), speed).unwrap();
            fs::write(folder.join("max_link_width"), width).unwrap();
        };
        device("0000:3b:00.0", "32.0 GT/s PCIe\n", "16\n");
        device("10000:01:00.0", "8.0 GT/s PCIe\n", "4\n");
        device("0000:01:00.0", "Unknown\n", "255\n");
        device("0000:02:00.0", "16.0 GT/s PCIe\n", "0\n");
        let link = |address| read(sys.path(), address).map(|link| link.to_string());
        assert_eq!(link("0000:3B:00.0").as_deref(), Some("PCIe 5.0 x16"));
        assert_eq!(link("00000000:3B:00.0").as_deref(), Some("PCIe 5.0 x16"));
        assert_eq!(link("00010000:01:00.0").as_deref(), Some("PCIe 3.0 x4"));
        for unknown in ["0000:01:00.0", "0000:02:00.0", "0000:03:00.0", "", "x:y"] {
            assert_eq!(link(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn nodes_are_read_where_there_are_several() {
        let sys = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = sys.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!(node(sys.path(), "0000:3B:00.0"), None, "nothing is said");
        write("bus/pci/devices/0000:3b:00.0/numa_node", "1\n");
        write("bus/pci/devices/0000:3c:00.0/numa_node", "-1\n");
        for (online, expected) in [("0-1\n", Some(1)), ("0,2\n", Some(1)), ("0\n", None)] {
            write("devices/system/node/online", online);
            assert_eq!(node(sys.path(), "00000000:3B:00.0"), expected, "nodes {online}");
            assert_eq!(node(sys.path(), "0000:3C:00.0"), None);
            assert_eq!(node(sys.path(), "0000:3D:00.0"), None);
        }
    }
}
