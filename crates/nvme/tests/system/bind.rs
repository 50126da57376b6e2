//! Binding and unbinding.

use crate::machine::{Machine, address};
use nvme::Bound;
use std::{collections::BTreeMap, fs, path::Path};

const DRIVE: &str = "0000:3b:00.0";

/// All files and links of a machine, to see what has changed.
fn everything(folder: &Path, into: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.display().to_string();
        match (fs::read_link(&path), path.is_dir()) {
            (Ok(target), _) => drop(into.insert(name, target.display().to_string())),
            (_, true) => everything(&path, into),
            _ => drop(into.insert(name, fs::read_to_string(&path).unwrap())),
        }
    }
}

fn snapshot(machine: &Machine) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    everything(&machine.path("/"), &mut all);
    all.retain(|_, text| !text.trim().is_empty());
    all
}

#[test]
fn with_an_iommu_vfio_gets_the_drive_and_gives_it_back() {
    let machine = Machine::new();
    machine.drive(DRIVE, "nvme0", Some("7"));
    let (system, before) = (machine.system(), snapshot(&machine));
    assert_eq!(system.bind(address(DRIVE)).unwrap(), Bound::Vfio);
    assert_eq!(machine.driver(DRIVE).as_deref(), Some("vfio-pci"));
    assert_ne!(snapshot(&machine), before);
    assert_eq!(system.bind(address(DRIVE)).unwrap(), Bound::Vfio, "again");
    assert_eq!(system.unbind(address(DRIVE)).unwrap().as_deref(), Some("nvme"));
    assert_eq!(snapshot(&machine), before, "nothing is left");
    assert_eq!(system.unbind(address(DRIVE)).unwrap().as_deref(), Some("nvme"), "again");
}

#[test]
fn without_an_iommu_no_driver_has_the_drive() {
    let machine = Machine::new();
    machine.drive(DRIVE, "nvme0", None);
    let (system, before) = (machine.system(), snapshot(&machine));
    assert_eq!(system.bind(address(DRIVE)).unwrap(), Bound::Nothing);
    assert_eq!(machine.driver(DRIVE), None);
    assert_eq!(system.bind(address(DRIVE)).unwrap(), Bound::Nothing, "again");
    assert_eq!(system.unbind(address(DRIVE)).unwrap().as_deref(), Some("nvme"));
    assert_eq!(snapshot(&machine), before);
}

#[test]
fn an_iommu_that_does_not_translate_is_none() {
    let machine = Machine::new();
    machine.drive(DRIVE, "nvme0", Some("7"));
    machine.file("/sys/kernel/iommu_groups/7/type", "identity\n");
    assert_eq!(machine.system().bind(address(DRIVE)).unwrap(), Bound::Nothing);
}

#[test]
fn refusals_leave_the_drive_as_it_is() {
    let refuse = |prepare: fn(&Machine), expected: &str| {
        let machine = Machine::new();
        machine.drive(DRIVE, "nvme0", Some("7"));
        prepare(&machine);
        let before = snapshot(&machine);
        let error = machine.system().bind(address(DRIVE)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert_eq!(snapshot(&machine), before, "{error}");
    };
    refuse(
        |machine| machine.append("/proc/swaps", "/dev/nvme0n1 partition 1 0 -2"),
        "the drive is in use: nvme0n1 is swapped to",
    );
    refuse(|machine| fs::remove_dir(machine.path("/sys/bus/pci/drivers/vfio-pci")).unwrap(), "modprobe vfio-pci");
    refuse(
        |machine| machine.file("/sys/bus/pci/devices/0000:3b:00.0/class", "0x020000"),
        "it is no NVMe drive (its class is 020000)",
    );
    let neighbour = |machine: &Machine| {
        machine.pci("0000:3b:00.1", "0x040300", Some("snd_hda_intel"), Some("7"));
    };
    refuse(neighbour, "its IOMMU group has devices with drivers of their own: 0000:3b:00.1 (snd_hda_intel)");
    refuse(|machine| machine.file("/sys/bus/pci/devices/0000:3b:00.0/refuses", "1"), "writing failed");
    let other = |machine: &Machine| {
        fs::remove_file(machine.path("/sys/bus/pci/devices/0000:3b:00.0/driver")).unwrap();
        machine.pci(DRIVE, "0x010802", Some("xen-pciback"), None);
    };
    refuse(other, "the driver xen-pciback is bound to it");
    refuse(|machine| fs::remove_file(machine.path("/dev/nvme0n1")).unwrap(), "opening failed");
}

/// The kernel's driver would drive it at the same time.
#[test]
fn a_drive_that_is_driven_without_an_iommu_is_not_given_back() {
    let machine = Machine::new();
    machine.drive(DRIVE, "nvme0", None);
    let system = machine.system();
    assert_eq!(system.bind(address(DRIVE)).unwrap(), Bound::Nothing);
    let folder = format!("/sys/bus/pci/devices/{DRIVE}");
    for (name, bytes) in [("enable", &b"0"[..]), ("config", &[0; 64]), ("resource0", &[0; 8192])] {
        machine.file(&format!("{folder}/{name}"), bytes);
    }
    let door = nvme::open(&system, address(DRIVE)).unwrap();
    let error = system.unbind(address(DRIVE)).unwrap_err().to_string();
    assert_eq!(error, "0000:3b:00.0: another process drives it; end that first");
    assert_eq!(machine.driver(DRIVE), None);
    drop(door);
    assert_eq!(system.unbind(address(DRIVE)).unwrap().as_deref(), Some("nvme"));
}

/// Also a device without a driver is not driven if it is something else.
#[test]
fn what_is_no_drive_is_not_opened() {
    let machine = Machine::new();
    machine.pci(DRIVE, "0x020000", None, None);
    let error = nvme::open(&machine.system(), address(DRIVE)).err().unwrap().to_string();
    assert_eq!(error, "0000:3b:00.0: it is no NVMe drive (its class is 020000)");
}

#[test]
fn neighbours_without_drivers_and_bridges_are_in_nobodys_way() {
    let machine = Machine::new();
    machine.drive(DRIVE, "nvme0", Some("7"));
    machine.pci("0000:3b:00.1", "0x040300", None, Some("7"));
    machine.pci("0000:3a:00.0", "0x060400", Some("pcieport"), Some("7"));
    assert_eq!(machine.system().bind(address(DRIVE)).unwrap(), Bound::Vfio);
}
