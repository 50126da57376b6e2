//! Which drives there are, what they are used for, and taking them from the kernel: on machines of files.

mod bind;
mod machine;
mod peer;
mod usage;

use machine::{Machine, address};
use nvme::{Link, System};
use std::path::Path;

#[test]
fn drives_are_listed() {
    let machine = Machine::new();
    machine.drive("0000:3b:00.0", "nvme0", Some("7"));
    machine.drive("0000:3c:00.0", "nvme1", None);
    machine.pci("0000:01:00.0", "0x030200", Some("nvidia"), None);
    let system = machine.system();
    let drives = system.drives().unwrap();
    assert_eq!(
        drives.iter().map(|drive| drive.address.to_string()).collect::<Vec<_>>(),
        ["0000:3b:00.0", "0000:3c:00.0"]
    );
    let drive = &drives[0];
    assert_eq!((drive.driver.as_deref(), &*drive.blocks), (Some("nvme"), &["nvme0n1".to_owned()][..]));
    assert_eq!((drive.model.as_deref(), drive.serial.as_deref()), (Some("Disk nvme0"), Some("S-nvme0")));
    let link = Link { speed: "8.0 GT/s PCIe".into(), width: 4 };
    assert_eq!((drive.link.as_ref(), drive.max_link.as_ref()), (Some(&link), None));
    let group = drive.group.as_ref().unwrap();
    assert_eq!((&*group.id, group.kind.as_deref(), &*group.devices), ("7", Some("DMA-FQ"), &[address("3b:00.0")][..]));
    assert_eq!(drives[1].group, None);
    assert_eq!(system.pci_of_block("nvme1n1"), Some(address("0000:3c:00.0")));
    assert_eq!(system.pci_of_block("sda"), None);
    assert_eq!(system.bar(drive.address, 0), Some(0xfe80_0000..0xfe80_4000));
    assert_eq!((system.bar(drive.address, 1), system.bar(drive.address, 9)), (None, None));
    let missing = system.device(address("0000:ff:00.0")).unwrap_err().to_string();
    assert_eq!(missing, "0000:ff:00.0: there is no such device (see lspci)");
    assert!(System::at(Path::new("/nonexistent")).drives().is_err());
    assert_eq!(nvme::block_name(&system, &machine.path("/dev/nvme0n1")).as_deref(), Some("nvme0n1"));
    assert_eq!(nvme::block_name(&system, &machine.path("/proc/swaps")), None);
}

/// With multipath, the controller's folder has paths, and the block device is elsewhere.
#[test]
fn namespaces_behind_multipath() {
    let machine = Machine::new();
    machine.drive("0000:3b:00.0", "nvme0", None);
    machine.file("/sys/bus/pci/devices/0000:3b:00.0/nvme/nvme0/nvme3c0n12/dev", "0:0");
    machine.file("/sys/bus/pci/devices/0000:3b:00.0/nvme/nvme0/hwmon0/name", "nvme");
    let blocks = machine.system().device(address("3b:00.0")).unwrap().blocks;
    assert_eq!(blocks, ["nvme0n1", "nvme3n12"]);
}
