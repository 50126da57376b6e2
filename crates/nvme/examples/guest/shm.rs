//! QEMU's ivshmem-plain: memory behind a PCI BAR, which stands for a GPU's.

use anyhow::{Context, Result, ensure};
use nvme::{BusMemory, Door, PciAddress, PeerBar, System, Window, prove};
use rustix::mm::{MapFlags, ProtFlags, mmap};
use std::{
    fs::{self, OpenOptions},
    ptr::NonNull,
    time::Duration,
};

/// Vendor and device (docs/specs/ivshmem-spec.txt in QEMU), and the BAR with the memory.
const IDS: [&str; 2] = ["0x1af4", "0x1110"];
const MEMORY_BAR: usize = 2;

/// The memory, mapped. There is one, and it stays.
pub struct Shm {
    ptr: NonNull<u8>,
    bar: PeerBar,
    pub len: usize,
}

impl Shm {
    pub fn open(system: &System) -> Result<Shm> {
        let id = |address: PciAddress, name: &str| fs::read_to_string(system.pci_folder(address).join(name));
        let is_it = |&address: &PciAddress| {
            let ids = ["vendor", "device"].map(|name| id(address, name).unwrap_or_default());
            ids.each_ref().map(|id| id.trim()) == IDS
        };
        let devices = fs::read_dir("/sys/bus/pci/devices")?;
        let mut addresses = devices.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let address = addresses.find(is_it).context("no ivshmem device")?;
        let folder = system.pci_folder(address);
        fs::write(folder.join("enable"), "1")?;
        let range = system.bar(address, MEMORY_BAR).context("no BAR 2")?;
        let len = (range.end - range.start) as usize;
        let file = OpenOptions::new().read(true).write(true).open(folder.join(format!("resource{MEMORY_BAR}")))?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let ptr = unsafe { mmap(std::ptr::null_mut(), len, protection, MapFlags::SHARED, &file, 0)? };
        let bar = PeerBar::open(system, address, MEMORY_BAR)?;
        ensure!(PeerBar::open(system, address, 0).is_err(), "registers were opened as memory");
        Ok(Shm { ptr: NonNull::new(ptr.cast()).context("mapped at 0")?, bar, len })
    }

    /// The memory as a drive sees it: through the IOMMU by addresses that are mapped for it, without one by the BAR's. Where it is in the BAR
    /// is proved as for a GPU, which writes its memory not by that way.
    pub fn bus(&self, door: &dyn Door) -> Result<BusMemory> {
        let mut write = |at: usize, bytes: &[u8]| {
            assert!(at + bytes.len() <= self.len);
            // SAFETY: inside the mapping; `bytes` is a Rust reference, so it is none of it.
            unsafe { self.ptr.add(at).copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len()) };
            Ok(())
        };
        let runs = prove(&self.bar, self.len, &mut write, Duration::from_secs(20))?;
        ensure!(runs.len() == 1 && runs[0].at == 0, "{runs:?}");
        // SAFETY: the BAR stays where it is, and only copies are made.
        Ok(unsafe { self.bar.map(door, 0, self.len, Box::new(()))? })
    }

    pub fn copy_to(&self, at: usize, out: &mut [u8]) {
        assert!(at + out.len() <= self.len);
        // SAFETY: inside the mapping; `out` is a Rust reference, so it is none of it.
        unsafe { self.ptr.add(at).copy_to_nonoverlapping(NonNull::from(&mut *out).cast(), out.len()) }
    }

    pub fn clear(&self) {
        // SAFETY: its own mapping.
        unsafe { self.ptr.write_bytes(0xee, self.len) }
    }
}
