//! BARs of other devices, on machines of files: what is behind them is a file here.

use crate::machine::{Machine, address};
use nvme::{
    BusAddr, Door, PEER_PAGE, PeerBar, Window,
    model::{Bus, ModelDoor, Traits},
};
use std::{fs, os::unix::fs::FileExt};

const GPU: &str = "0000:01:00.0";
const LEN: usize = 64 << 10;

/// A GPU with registers, memory behind BAR1, I/O ports, and a BAR that is no BAR.
fn machine() -> Machine {
    let machine = Machine::new();
    machine.pci(GPU, "0x030200", Some("nvidia"), None);
    let folder = format!("/sys/bus/pci/devices/{GPU}");
    machine.file(
        &format!("{folder}/resource"),
        "0x00000000fb000000 0x00000000fbffffff 0x0000000000040200\n\
         0x0000004000000000 0x000000400000ffff 0x000000000014220c\n\
         0x0000000000000000 0x0000000000000000 0x0000000000000000\n\
         0x000000000000e000 0x000000000000e07f 0x0000000000040101\n\
         0x0000000000000000 0xffffffffffffffff 0x000000000014220c\n",
    );
    let bytes: Vec<u8> = (0..LEN / 8).flat_map(|word| (word as u64 * 3).to_le_bytes()).collect();
    machine.file(&format!("{folder}/resource1"), bytes);
    machine
}

#[test]
fn memory_behind_a_bar_is_read() {
    let machine = machine();
    let bar = PeerBar::open(&machine.system(), address(GPU), 1).unwrap();
    assert_eq!(bar.bytes(), LEN as u64);
    assert_eq!((bar.read64(0), bar.read64(80), bar.read64(LEN as u64 - 8)), (0, 30, 3 * (LEN as u64 / 8 - 1)));
    for (index, why) in [
        (0, "its BAR0 is no memory but registers (flags 0x40200)"),
        (2, "it has no BAR2"),
        (3, "its BAR3 is no memory but registers"),
        (4, "it has no BAR4"),
        (5, "it has no BAR5"),
    ] {
        let error = PeerBar::open(&machine.system(), address(GPU), index).err().unwrap().to_string();
        assert!(error.starts_with(GPU) && error.contains(why), "{error}");
    }
    fs::remove_file(machine.path(&format!("/sys/bus/pci/devices/{GPU}/resource1"))).unwrap();
    let error = PeerBar::open(&machine.system(), address(GPU), 1).err().unwrap().to_string();
    assert!(error.contains("resource1: opening failed"), "{error}");
}

/// Only a part is mapped at once.
#[test]
fn a_large_bar_is_read_in_parts() {
    const LARGE: u64 = 200 << 20;
    let machine = machine();
    let folder = format!("/sys/bus/pci/devices/{GPU}");
    machine.file(
        &format!("{folder}/resource"),
        format!("0x0 0x0 0x0\n0x0000004000000000 0x{:016x} 0x000000000014220c\n", 0x40_0000_0000u64 + LARGE - 1),
    );
    let file = fs::File::options().write(true).open(machine.path(&format!("{folder}/resource1"))).unwrap();
    file.set_len(0).unwrap();
    file.set_len(LARGE).unwrap();
    let places = [0, (64 << 20) - 8, 64 << 20, (128 << 20) + 4096, LARGE - 8];
    for at in places {
        file.write_all_at(&(at + 1).to_le_bytes(), at).unwrap();
    }
    let bar = PeerBar::open(&machine.system(), address(GPU), 1).unwrap();
    assert_eq!(bar.bytes(), LARGE);
    for at in places.into_iter().chain(places.into_iter().rev()) {
        assert_eq!((bar.read64(at), bar.read64(at ^ 8)), (at + 1, 0), "{at:#x}");
    }
}

#[test]
#[should_panic(expected = "byte 0x10000 of 0x10000")]
fn nothing_behind_its_end_is_read() {
    let machine = machine();
    PeerBar::open(&machine.system(), address(GPU), 1).unwrap().read64(LEN as u64);
}

#[test]
fn a_drive_reaches_it_by_physical_addresses_or_by_what_an_iommu_maps() {
    let machine = machine();
    let bar = PeerBar::open(&machine.system(), address(GPU), 1).unwrap();
    let door = ModelDoor::new(Traits::default(), vec![]);
    let map = |at: u64, len: usize| {
        // SAFETY: it is a file.
        unsafe { bar.map(&*door, at, len, Box::new(())) }
    };
    let at = 3 * PEER_PAGE as u64;
    let mapped = map(at, 2 * PEER_PAGE).unwrap();
    let (bus, run) = mapped.resolve(8).unwrap();
    assert!(run >= PEER_PAGE - 8 && bus != BusAddr(0x40_0000_0008 + at), "{bus:?}");
    // What the drive writes there is in the file.
    let ptr = door.bus().resolve(bus, 8).unwrap().cast::<u64>();
    // SAFETY: the mapping, which is there as long as `mapped`.
    unsafe { ptr.write_volatile(0x1234_5678) };
    let file = fs::File::open(machine.path(&format!("/sys/bus/pci/devices/{GPU}/resource1"))).unwrap();
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, at + 8).unwrap();
    assert_eq!((u64::from_le_bytes(bytes), bar.read64(at + 8)), (0x1234_5678, 0x1234_5678));
    drop(mapped);
    assert!(door.bus().resolve(bus, 8).is_none(), "the drive still reaches it");

    door.without_iommu();
    assert!(!door.holds());
    assert_eq!(map(at, 2 * PEER_PAGE).unwrap().contiguous(0, 2 * PEER_PAGE), Some(BusAddr(0x40_0000_0000 + at)));
    for (at, len) in [(LEN as u64, PEER_PAGE), (0, LEN + PEER_PAGE), (u64::MAX - 4095, PEER_PAGE)] {
        assert!(map(at, len).unwrap_err().to_string().contains("are not in its BAR"));
    }
}
