//! [`Door`]: all that the driver needs of the way to a device.

use crate::{BusMemory, DmaBuf, Error, PciAddress, Registers, System, unbound::UnboundDoor, vfio::VfioDoor};
use std::{any::Any, ptr::NonNull, sync::Arc};

/// The way to the drive at `address` that its driver leaves open: through vfio-pci, or without a driver.
///
/// # Errors
/// If there is none, and what to do; a device that is no drive.
pub fn open(system: &System, address: PciAddress) -> Result<Arc<dyn Door>, Error> {
    let device = system.device(address)?;
    // What a controller's registers are would be others in another device.
    if !device.is_nvme() {
        let reason = format!("it is no NVMe drive (its class is {:06x})", device.class);
        return Err(Error::Refused { device: address.to_string(), reason });
    }
    match device.driver.as_deref() {
        Some("vfio-pci") => VfioDoor::open(system, address),
        _ => UnboundDoor::open(system, address),
    }
}

/// A way to a PCI device: its registers, and memory that it can reach.
pub trait Door: Registers {
    /// The device's address, for messages.
    fn name(&self) -> &str;

    /// One line for the user: which way it is.
    fn describe(&self) -> String;

    /// That no driver of the kernel has the device: two drivers must not drive it, and none may be reset under the other.
    ///
    /// # Errors
    /// Which driver has it.
    fn check(&self) -> Result<(), Error>;

    /// New memory of zeros, `len` bytes at least, that begins at a page of both sides. It need not be contiguous on the bus; whole
    /// pages of 64 KiB, and of 2 MiB where there are huge pages, are.
    ///
    /// # Errors
    /// If there is no such memory, and what to do.
    fn allocate(&self, len: usize) -> Result<DmaBuf, Error>;

    /// Makes memory that is there reachable: `len` bytes at `ptr`, whole pages of 4 KiB.
    ///
    /// # Safety
    /// As long as `owner` is not dropped, the memory is mapped, stays in its place (unless this door [`holds`](Self::holds) it: huge
    /// pages, or memory that a device's driver has page-locked), and no Rust reference to it is used while the device may write it.
    ///
    /// # Errors
    /// If the system refuses, and what to do.
    unsafe fn map(&self, ptr: NonNull<u8>, len: usize, owner: Box<dyn Any + Send + Sync>) -> Result<BusMemory, Error>;

    /// Whether [`map`](Self::map) keeps memory in its place by itself, whatever memory it is, as an IOMMU's driver does.
    fn holds(&self) -> bool {
        false
    }

    /// Lets the device use the bus by itself, or keeps it from that. When it is off, the device writes no memory.
    ///
    /// # Errors
    /// If the device's configuration cannot be written.
    fn set_bus_master(&self, on: bool) -> Result<(), Error>;
}
