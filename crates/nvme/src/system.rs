//! What the kernel knows of PCI devices (Documentation/ABI/testing/sysfs-bus-pci in Linux).

use crate::{Error, PciAddress};
use std::{
    fs, io,
    ops::Range,
    path::{Path, PathBuf},
};

/// Base class, sub-class and programming interface of NVMe I/O controllers (PCI Code and ID Assignment Specification).
const NVME_CLASS: u32 = 0x01_08_02;

/// A machine by its file systems.
#[derive(Clone, Debug)]
pub struct System {
    root: PathBuf,
    write: Write,
}

/// Writes a text to a file of sysfs, by its absolute path on the machine.
type Write = fn(&System, &str, &str) -> io::Result<()>;

/// Devices that an IOMMU cannot tell from each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its number.
    pub id: String,
    /// What its default domain does: `identity` leaves addresses as they are, `DMA` and `DMA-FQ` translate.
    pub kind: Option<String>,
    /// Its devices.
    pub devices: Vec<PciAddress>,
}

/// A PCI Express link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// As the kernel writes it: `8.0 GT/s PCIe`.
    pub speed: String,
    /// Lanes.
    pub width: u32,
}

/// A PCI function.
#[derive(Clone, Debug)]
pub struct PciDevice {
    /// Where it is.
    pub address: PciAddress,
    /// Class code, 24 bits.
    pub class: u32,
    /// The driver that is bound to it.
    pub driver: Option<String>,
    /// Its IOMMU group. None: there is no IOMMU, or it is off.
    pub group: Option<Group>,
    /// Its link as it is now. Idle links may slow down.
    pub link: Option<Link>,
    /// The fastest that it can have.
    pub max_link: Option<Link>,
    /// Block devices of its namespaces, such as `nvme0n1`. None unless the kernel's driver is bound.
    pub blocks: Vec<String>,
    /// Model and serial number, as far as the kernel's driver tells.
    pub model: Option<String>,
    /// Serial number.
    pub serial: Option<String>,
}

impl PciDevice {
    /// Whether it is an NVMe controller.
    pub fn is_nvme(&self) -> bool {
        self.class == NVME_CLASS
    }
}

impl System {
    /// This machine.
    pub fn live() -> System {
        System::at("/")
    }

    /// The machine whose `/sys`, `/proc` and `/dev` are in `root`.
    pub fn at(root: impl Into<PathBuf>) -> System {
        System::played(root, |system, path, text| fs::write(system.path(path), text))
    }

    /// The same, where `write` does what a kernel does when something is written to sysfs: for tests.
    pub fn played(root: impl Into<PathBuf>, write: Write) -> System {
        System { root: root.into(), write }
    }

    /// Writes `text` to the file `path` of sysfs.
    pub(crate) fn write(&self, path: &str, text: &str) -> Result<(), Error> {
        (self.write)(self, path, text).map_err(|cause| Error::Io { path: path.into(), what: "writing", cause })
    }

    /// Where the file at the absolute path `path` is.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join(path.as_ref().strip_prefix("/").unwrap_or(path.as_ref()))
    }

    /// The folder of sysfs that describes a function.
    pub fn pci_folder(&self, address: PciAddress) -> PathBuf {
        self.path("/sys/bus/pci/devices").join(address.to_string())
    }

    /// All NVMe controllers, in the order of their addresses.
    ///
    /// # Errors
    /// If the machine has no PCI bus that can be looked at.
    pub fn drives(&self) -> Result<Vec<PciDevice>, Error> {
        let path = self.path("/sys/bus/pci/devices");
        let mut addresses: Vec<PciAddress> = names(&path)
            .map_err(|cause| Error::Io { path, what: "looking for devices", cause })?
            .iter()
            .filter_map(|name| name.parse().ok())
            .collect();
        addresses.sort_unstable();
        let devices = addresses.into_iter().filter_map(|address| self.device(address).ok());
        Ok(devices.filter(PciDevice::is_nvme).collect())
    }

    /// The function at `address`.
    ///
    /// # Errors
    /// If there is none.
    pub fn device(&self, address: PciAddress) -> Result<PciDevice, Error> {
        let folder = self.pci_folder(address);
        let class = text(&folder.join("class"));
        let class =
            class.and_then(|class| u32::from_str_radix(class.strip_prefix("0x")?, 16).ok()).ok_or_else(|| {
                Error::Refused { device: address.to_string(), reason: "there is no such device (see lspci)".into() }
            })?;
        let controller = names(&folder.join("nvme")).unwrap_or_default().into_iter().next();
        let controller = controller.map(|name| folder.join("nvme").join(name));
        let of_controller = |name: &str| controller.as_ref().and_then(|folder| text(&folder.join(name)));
        let link = |prefix: &str| {
            let width = text(&folder.join(format!("{prefix}_link_width")))?.parse().ok().filter(|&width| width > 0)?;
            Some(Link { speed: text(&folder.join(format!("{prefix}_link_speed")))?, width })
        };
        Ok(PciDevice {
            address,
            class,
            driver: self.driver(address),
            group: self.group(&folder),
            link: link("current"),
            max_link: link("max"),
            blocks: controller.as_deref().map(blocks).unwrap_or_default(),
            model: of_controller("model"),
            serial: of_controller("serial"),
        })
    }

    /// The driver that is bound to the function at `address`.
    pub(crate) fn driver(&self, address: PciAddress) -> Option<String> {
        target_name(&self.pci_folder(address).join("driver"))
    }

    fn group(&self, device: &Path) -> Option<Group> {
        let link = device.join("iommu_group");
        let mut devices: Vec<_> =
            names(&link.join("devices")).ok()?.iter().filter_map(|name| name.parse().ok()).collect();
        devices.sort_unstable();
        Some(Group { id: target_name(&link)?, kind: text(&link.join("type")), devices })
    }

    /// Other devices of a function's group that have drivers which keep it from being used through VFIO, for messages.
    pub fn neighbours(&self, address: PciAddress) -> Vec<String> {
        let group = self.device(address).ok().and_then(|device| device.group);
        let others = group.into_iter().flat_map(|group| group.devices).filter(|&other| other != address);
        let with_driver = |other| {
            // Bridges do no DMA of their own, and vfio-pci shares the group.
            let driver = self.device(other).ok()?.driver.filter(|d| d != "pcieport" && !d.starts_with("vfio"))?;
            Some(format!("{other} ({driver})"))
        };
        others.filter_map(with_driver).collect()
    }

    /// Where BAR `index` of a function is on the bus.
    pub fn bar(&self, address: PciAddress, index: usize) -> Option<Range<u64>> {
        self.resource(address, index).map(|(range, _)| range)
    }

    /// The same with the flags that Linux has for it (include/linux/ioport.h).
    pub(crate) fn resource(&self, address: PciAddress, index: usize) -> Option<(Range<u64>, u64)> {
        let resources = text(&self.pci_folder(address).join("resource"))?;
        let mut numbers = resources.lines().nth(index)?.split_whitespace();
        let mut next = || u64::from_str_radix(numbers.next()?.strip_prefix("0x")?, 16).ok();
        let (first, last, flags) = (next()?, next()?, next()?);
        (first < last && last < u64::MAX).then(|| (first..last + 1, flags))
    }

    /// The namespace that the block device `name` is, by its id, which may be another number than the one in its name.
    pub fn namespace_of_block(&self, name: &str) -> Option<u32> {
        text(&self.path("/sys/class/block").join(name).join("nsid"))?.parse().ok()
    }

    /// The function that the block device `name` belongs to.
    pub fn pci_of_block(&self, name: &str) -> Option<PciAddress> {
        let device = fs::canonicalize(self.path("/sys/class/block").join(name)).ok()?;
        device.iter().rev().find_map(|part| part.to_str()?.parse().ok())
    }
}

/// The block devices of a controller's namespaces. With multipath, what is in the controller's folder is a path, `nvme0c1n1`, of the
/// block device `nvme0n1`.
fn blocks(controller: &Path) -> Vec<String> {
    let block = |name: String| {
        let rest = name.strip_prefix("nvme")?;
        let (instance, namespace) = rest.rsplit_once('n')?;
        let instance = instance.split('c').next()?;
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        (is_number(instance) && is_number(namespace)).then(|| format!("nvme{instance}n{namespace}"))
    };
    let mut blocks: Vec<_> = names(controller).unwrap_or_default().into_iter().filter_map(block).collect();
    blocks.sort_unstable();
    blocks
}

/// Names of what is in a folder, in no order.
pub(crate) fn names(folder: &Path) -> io::Result<Vec<String>> {
    fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// A file's text without blanks around it. None if there is no such file, or nothing in it.
pub(crate) fn text(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned()).filter(|text| !text.is_empty())
}

/// The last part of where a link leads.
pub(crate) fn target_name(link: &Path) -> Option<String> {
    Some(fs::read_link(link).ok()?.file_name()?.to_string_lossy().into_owned())
}
