//! A machine's `/sys`, `/proc` and `/dev`, as far as drives are concerned, and the part of its kernel that binds drivers.

use nvme::{PciAddress, System};
use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

pub struct Machine(tempfile::TempDir);

pub fn address(text: &str) -> PciAddress {
    text.parse().unwrap()
}

impl Machine {
    pub fn new() -> Machine {
        let machine = Machine(tempfile::tempdir().unwrap());
        machine.file("/proc/self/mountinfo", "22 28 0:21 / /sys rw shared:7 - sysfs sysfs rw\n");
        machine.file("/proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n");
        machine.folder("/sys/bus/pci/drivers/nvme");
        machine.folder("/sys/bus/pci/drivers/vfio-pci");
        machine.folder("/sys/class/block");
        machine
    }

    pub fn system(&self) -> System {
        System::played(self.0.path(), kernel)
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path.trim_start_matches('/'))
    }

    pub fn folder(&self, path: &str) {
        fs::create_dir_all(self.path(path)).unwrap();
    }

    pub fn file(&self, path: &str, text: impl AsRef<[u8]>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub fn append(&self, path: &str, line: &str) {
        let path = self.path(path);
        let before = fs::read_to_string(&path).unwrap();
        fs::write(path, before + line + "\n").unwrap();
    }

    /// A function, in an IOMMU group if it is said.
    pub fn pci(&self, address: &str, class: &str, driver: Option<&str>, group: Option<&str>) {
        let folder = format!("/sys/bus/pci/devices/{address}");
        self.file(&format!("{folder}/class"), class);
        if let Some(driver) = driver {
            self.folder(&format!("/sys/bus/pci/drivers/{driver}"));
            link(&self.path(&format!("/sys/bus/pci/drivers/{driver}")), &self.path(&format!("{folder}/driver")));
        }
        if let Some(group) = group {
            let groups = format!("/sys/kernel/iommu_groups/{group}");
            self.file(&format!("{groups}/type"), "DMA-FQ\n");
            self.folder(&format!("{groups}/devices"));
            link(&self.path(&folder), &self.path(&format!("{groups}/devices/{address}")));
            link(&self.path(&groups), &self.path(&format!("{folder}/iommu_group")));
        }
    }

    /// An NVMe drive with the kernel's driver and one namespace.
    pub fn drive(&self, address: &str, name: &str, group: Option<&str>) {
        self.pci(address, "0x010802\n", Some("nvme"), group);
        let folder = format!("/sys/bus/pci/devices/{address}");
        self.file(&format!("{folder}/current_link_speed"), "8.0 GT/s PCIe\n");
        self.file(&format!("{folder}/current_link_width"), "4\n");
        self.file(&format!("{folder}/max_link_speed"), "Unknown\n");
        self.file(&format!("{folder}/max_link_width"), "0\n");
        self.file(
            &format!("{folder}/resource"),
            "0x00000000fe800000 0x00000000fe803fff 0x0000000000140204\n0x0000000000000000 0x0000000000000000 0x0\n",
        );
        self.file(&format!("{folder}/nvme/{name}/model"), format!("Disk {name}        \n"));
        self.file(&format!("{folder}/nvme/{name}/serial"), format!("S-{name}\n"));
        self.block(&format!("{folder}/nvme/{name}"), &format!("{name}n1"), "259:0");
    }

    /// A block device of 1 MiB, in the folder of sysfs of what it belongs to.
    pub fn block(&self, parent: &str, name: &str, number: &str) {
        self.file(&format!("{parent}/{name}/dev"), format!("{number}\n"));
        self.file(&format!("{parent}/{name}/size"), "2048\n");
        self.folder(&format!("{parent}/{name}/holders"));
        link(&self.path(&format!("{parent}/{name}")), &self.path(&format!("/sys/class/block/{name}")));
        self.file(&format!("/dev/{name}"), vec![0; 1 << 20]);
    }

    /// A partition of the block device `of`.
    pub fn partition(&self, of: &str, name: &str, number: &str) {
        let parent = fs::canonicalize(self.path(&format!("/sys/class/block/{of}"))).unwrap();
        let root = fs::canonicalize(self.0.path()).unwrap();
        let parent = format!("/{}", parent.strip_prefix(root).unwrap().display());
        self.block(&parent, name, number);
        self.file(&format!("{parent}/{name}/partition"), "1\n");
    }

    /// From now on, `holder` holds the block device `of`.
    pub fn hold(&self, of: &str, holder: &str) {
        self.folder(&format!("/sys/class/block/{of}/holders/{holder}"));
    }

    pub fn driver(&self, address: &str) -> Option<String> {
        let link = fs::read_link(self.path(&format!("/sys/bus/pci/devices/{address}/driver"))).ok()?;
        Some(link.file_name()?.to_str()?.to_owned())
    }
}

fn link(to: &Path, at: &Path) {
    fs::create_dir_all(at.parent().unwrap()).unwrap();
    symlink(to, at).unwrap();
}

/// What the kernel does when these files are written.
fn kernel(system: &System, path: &str, text: &str) -> io::Result<()> {
    let file = system.path(path);
    if path.ends_with("/driver/unbind") {
        let device = file.parent().and_then(Path::parent).unwrap();
        assert_eq!(device.file_name().unwrap().to_str(), Some(text));
        return fs::remove_file(device.join("driver"));
    }
    if path == "/sys/bus/pci/drivers_probe" {
        let device = system.path("/sys/bus/pci/devices").join(text);
        let wanted = fs::read_to_string(device.join("driver_override")).unwrap_or_default();
        let wanted = if wanted.trim().is_empty() { "nvme" } else { wanted.trim() };
        if device.join("refuses").exists() && wanted == "vfio-pci" {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let driver = system.path("/sys/bus/pci/drivers").join(wanted);
        if driver.exists() && !device.join("driver").exists() {
            symlink(driver, device.join("driver"))?;
        }
        return Ok(());
    }
    assert!(path.ends_with("/driver_override"), "nothing else is written, but {path}");
    fs::write(file, text)
}
