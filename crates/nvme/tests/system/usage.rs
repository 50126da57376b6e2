//! What a drive is used for: each case on a machine of its own.

use crate::machine::{Machine, address};

/// The reasons with two partitions, after `prepare`.
fn reasons(prepare: impl Fn(&Machine)) -> Vec<String> {
    let machine = Machine::new();
    machine.drive("0000:3b:00.0", "nvme0", None);
    machine.partition("nvme0n1", "nvme0n1p1", "259:1");
    machine.partition("nvme0n1", "nvme0n1p2", "259:2");
    prepare(&machine);
    let system = machine.system();
    let reasons = system.uses("nvme0n1");
    let claimed = system.claim(&system.device(address("3b:00.0")).unwrap());
    assert_eq!(claimed.is_ok(), reasons.is_empty(), "{reasons:?}");
    if let Err(error) = claimed {
        let expected = format!("0000:3b:00.0: the drive is in use: {}", reasons.join("; "));
        assert_eq!(error.to_string(), expected);
    }
    reasons
}

fn mount(machine: &Machine, number: &str, place: &str, source: &str) {
    let line = format!("31 1 {number} / {place} rw,relatime shared:1 - ext4 {source} rw");
    machine.append("/proc/self/mountinfo", &line);
}

#[test]
fn drives_that_nobody_uses() {
    assert!(reasons(|_| {}).is_empty());
    // Others' mounts, and numbers that begin alike.
    assert!(reasons(|m| mount(m, "259:10", "/data", "/dev/nvme1n1")).is_empty());
    assert!(reasons(|m| m.append("/proc/swaps", "/dev/nvme0n11 partition 1 0 -2")).is_empty());
    // A file system that is not mounted is nobody's business until something is written.
    assert!(
        reasons(|m| m.file("/dev/nvme0n1p1", [vec![0; 1080], vec![0x53, 0xef], vec![0; 1 << 19]].concat())).is_empty()
    );
}

#[test]
fn mounts() {
    assert_eq!(reasons(|m| mount(m, "259:0", "/data", "/dev/nvme0n1")), ["nvme0n1 is mounted at /data"]);
    assert_eq!(reasons(|m| mount(m, "259:2", "/my\\040disk", "/dev/nvme0n1p2")), ["nvme0n1p2 is mounted at /my disk"]);
    let root = ["nvme0n1p2 is mounted at /, which this machine runs or boots from"];
    assert_eq!(reasons(|m| mount(m, "259:2", "/", "/dev/root")), root);
    let boot = ["nvme0n1p1 is mounted at /boot/efi, which this machine runs or boots from"];
    assert_eq!(reasons(|m| mount(m, "259:1", "/boot/efi", "/dev/nvme0n1p1")), boot);
    // Btrfs has numbers of its own.
    assert_eq!(reasons(|m| mount(m, "0:38", "/home", "/dev/nvme0n1p1")), ["nvme0n1p1 is mounted at /home"]);
    let outside = |m: &Machine| m.file("/proc/1/mountinfo", "31 1 259:1 / /srv rw - xfs /dev/nvme0n1p1 rw\n");
    assert_eq!(reasons(outside), ["nvme0n1p1 is mounted at /srv"], "seen by the first process only");
}

#[test]
fn swap() {
    assert_eq!(reasons(|m| m.append("/proc/swaps", "/dev/nvme0n1p2 partition 8 0 -2")), ["nvme0n1p2 is swapped to"]);
}

#[test]
fn the_second_device_of_a_btrfs() {
    let expected = ["nvme0n1p1 is part of a mounted Btrfs file system"];
    assert_eq!(reasons(|m| m.folder("/sys/fs/btrfs/1b2c/devices/nvme0n1p1")), expected);
}

#[test]
fn what_lies_on_a_drive() {
    let dm = |uuid: &'static str, name: &'static str| {
        move |m: &Machine| {
            m.block("/sys/devices/virtual/block", "dm-0", "254:0");
            m.file("/sys/devices/virtual/block/dm-0/dm/uuid", uuid);
            m.file("/sys/devices/virtual/block/dm-0/dm/name", name);
            m.hold("nvme0n1p2", "dm-0");
        }
    };
    assert_eq!(reasons(dm("LVM-abc", "vg-root")), ["nvme0n1p2 is part of the LVM volume vg-root"]);
    assert_eq!(reasons(dm("CRYPT-LUKS2-abc", "home")), ["nvme0n1p2 is part of the encrypted volume home"]);
    assert_eq!(reasons(dm("", "snap")), ["nvme0n1p2 is part of the device-mapper device snap"]);
    let raid = |m: &Machine| {
        m.block("/sys/devices/virtual/block", "md127", "9:127");
        m.folder("/sys/devices/virtual/block/md127/md");
        m.hold("nvme0n1", "md127");
        mount(m, "9:127", "/", "/dev/md127");
    };
    let expected = [
        "md127 (the RAID array md127, on nvme0n1) is mounted at /, which this machine runs or boots from",
        "nvme0n1 is part of the RAID array md127",
    ];
    assert_eq!(reasons(raid), expected);
    let cache = |m: &Machine| {
        m.block("/sys/devices/virtual/block", "bcache0", "252:0");
        m.folder("/sys/devices/virtual/block/bcache0/bcache");
        m.hold("nvme0n1", "bcache0");
    };
    assert_eq!(reasons(cache), ["nvme0n1 is part of the cache bcache0"]);
}

#[test]
fn loop_devices() {
    let on = |device: &'static str| {
        move |m: &Machine| {
            m.block("/sys/devices/virtual/block", "loop3", "7:3");
            m.file("/sys/devices/virtual/block/loop3/loop/backing_file", format!("{device}\n"));
        }
    };
    assert_eq!(reasons(on("/dev/nvme0n1p2")), ["nvme0n1p2 is behind the loop device loop3"]);
    assert!(reasons(on("/dev/nvme0n11")).is_empty() && reasons(on("/data/nvme0n1")).is_empty());
}

#[test]
fn what_other_machines_have() {
    let export = |device: &'static str| {
        move |m: &Machine| {
            let subsystem = "/sys/kernel/config/nvmet/subsystems/nqn.2026-01.test:store";
            m.file(&format!("{subsystem}/namespaces/4/device_path"), format!("{device}\n"));
            m.folder("/dev/disk/by-id");
            std::os::unix::fs::symlink("../../nvme0n1p1", m.path("/dev/disk/by-id/nvme-Disk-part1")).unwrap();
        }
    };
    let reason = |block: &str| [format!("{block} is given to other machines by nvmet, as nqn.2026-01.test:store")];
    assert_eq!(reasons(export("/dev/nvme0n1")), reason("nvme0n1"));
    assert_eq!(reasons(export("/dev/disk/by-id/nvme-Disk-part1")), reason("nvme0n1p1"));
    assert!(reasons(export("/dev/nvme1n1")).is_empty());
}

/// A virtual machine may have a drive open without a claim.
#[test]
fn processes_that_have_it_open() {
    let process = |id: u32, device: &'static str| {
        move |m: &Machine| {
            m.file(&format!("/proc/{id}/comm"), "qemu\n");
            m.folder(&format!("/proc/{id}/fd"));
            std::os::unix::fs::symlink("/dev/null", m.path(&format!("/proc/{id}/fd/0"))).unwrap();
            std::os::unix::fs::symlink(device, m.path(&format!("/proc/{id}/fd/7"))).unwrap();
        }
    };
    let other = std::process::id() + 1;
    let expected = |block: &str| [format!("{block} is open in qemu (process {other})")];
    assert_eq!(reasons(process(other, "/dev/nvme0n1")), expected("nvme0n1"));
    assert_eq!(reasons(process(other, "/dev/nvme0n1p1")), expected("nvme0n1p1"));
    assert_eq!(reasons(process(other, "/dev/ng0n1")), expected("nvme0n1"), "by its character device");
    assert!(reasons(process(other, "/dev/nvme0n10")).is_empty());
    assert!(reasons(process(std::process::id(), "/dev/nvme0n1")).is_empty(), "this one");
}

/// Who only looks at it is waited for.
#[test]
fn a_process_that_closes_it_soon() {
    let machine = Machine::new();
    machine.drive("0000:3b:00.0", "nvme0", None);
    let file = machine.path("/proc/1/fd/3");
    machine.folder("/proc/1/fd");
    std::os::unix::fs::symlink("/dev/nvme0n1", &file).unwrap();
    let system = machine.system();
    let device = system.device(address("3b:00.0")).unwrap();
    let looks = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(200));
        std::fs::remove_file(file).unwrap();
    });
    let claimed = system.claim(&device).unwrap();
    assert!(looks.is_finished() && claimed.len() == 1);
}

/// Devices that hold each other, which only a broken machine has, are no endless loop.
#[test]
fn holders_in_a_circle() {
    let circle = |m: &Machine| {
        m.block("/sys/devices/virtual/block", "dm-0", "254:0");
        m.hold("nvme0n1", "dm-0");
        m.hold("dm-0", "dm-0");
    };
    assert!(reasons(circle).iter().any(|reason| reason == "nvme0n1 is part of the device-mapper device dm-0"));
}

/// What belongs to a group is kept although nobody uses it now: the group would miss it.
#[test]
fn members_of_groups_that_are_not_assembled() {
    let raid =
        |m: &Machine| m.file("/dev/nvme0n1p1", [vec![0; 4096], vec![0xfc, 0x4e, 0x2b, 0xa9], vec![0; 4096]].concat());
    assert_eq!(reasons(raid), ["nvme0n1p1 holds a member of a RAID array (md)"]);
    let zfs = |m: &Machine| {
        m.file("/dev/nvme0n1", [vec![0; 128 << 10], vec![0x0c, 0xb1, 0xba, 0, 0, 0, 0, 0], vec![0; 1 << 18]].concat())
    };
    assert_eq!(reasons(zfs), ["nvme0n1 holds a member of a ZFS pool"]);
}
