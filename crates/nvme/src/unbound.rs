//! The door for machines without an IOMMU: a device that no driver is bound to, by its files in sysfs, and huge pages by their
//! physical addresses.
//!
//! There is nothing between such a device and the machine's memory. What it is told to write, it writes.

use crate::{
    BusMemory, DmaBuf, Door, Error, PciAddress, Registers, System, ending,
    hugepage::{Anonymous, PAGE, physical},
    pci::{Bar, set_bus_master},
    registers::DOORBELLS,
};
use rustix::fs::{FlockOperation, flock};
use std::{
    any::Any,
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
    ptr::NonNull,
    sync::Arc,
};

pub use ending::stop_all;

/// A device without a driver.
pub struct UnboundDoor {
    system: System,
    address: PciAddress,
    name: String,
    bar: Bar,
    config: File,
    memory: PhysicalMemory,
    /// Holds the lock.
    _resource: File,
    /// Undone last.
    _enabled: Enabled,
}

impl UnboundDoor {
    /// Opens the device at `address`. Memory access is switched on, and off again when the door is dropped.
    ///
    /// # Errors
    /// If a driver is bound to it, an IOMMU is in the way, or this user may not.
    pub fn open(system: &System, address: PciAddress) -> Result<Arc<dyn Door>, Error> {
        let device = system.device(address)?;
        let refuse = |reason: String| Err(Error::Refused { device: address.to_string(), reason });
        if let Some(driver) = &device.driver {
            return Err(has_driver(address, driver));
        }
        // A device that no driver is bound to is in its group's default domain. That translates addresses unless it is "identity".
        if let Some(group) = &device.group
            && group.kind.as_deref() != Some("identity")
        {
            return refuse("it is behind an IOMMU; bind vfio-pci to it (ntransformer nvme bind)".into());
        }
        let folder = system.pci_folder(address);
        let path = folder.join("resource0");
        let file = open(&path)?;
        if !lock(&file) {
            return refuse("another process drives it".into());
        }
        let enabled = Enabled::new(folder.join("enable"))?;
        let len = file.metadata().map_err(|cause| Error::Io { path: path.clone(), what: "looking", cause })?.len();
        if len < DOORBELLS as u64 {
            return refuse(format!("BAR0 has {len} bytes, too few for an NVMe controller"));
        }
        let door = Arc::new(UnboundDoor {
            system: system.clone(),
            address,
            name: address.to_string(),
            bar: Bar::map(&file, 0, len as usize)?,
            config: open(&folder.join("config"))?,
            memory: PhysicalMemory::new()?,
            _resource: file,
            _enabled: enabled,
        });
        ending::remember(&door);
        Ok(door)
    }
}

/// Takes the lock that who drives a device without a driver has on its `resource0`, for as long as the file is open. Whether nobody else has it.
pub(crate) fn lock(resource: &File) -> bool {
    flock(resource, FlockOperation::NonBlockingLockExclusive).is_ok()
}

fn has_driver(address: PciAddress, driver: &str) -> Error {
    let reason = format!("the driver {driver} is bound to it; unbind it first (ntransformer nvme bind {address})");
    Error::Refused { device: address.to_string(), reason }
}

fn open(path: &Path) -> Result<File, Error> {
    let opened = OpenOptions::new().read(true).write(true).open(path);
    opened.map_err(|cause| Error::Io { path: path.to_owned(), what: "opening", cause })
}

/// A device whose memory access the kernel has switched on for us (`enable` in sysfs). That wakes it up, too.
struct Enabled(PathBuf);

impl Enabled {
    fn new(path: PathBuf) -> Result<Enabled, Error> {
        let written = fs::write(&path, "1");
        written.map_err(|cause| Error::Io { path: path.clone(), what: "switching the device on", cause })?;
        Ok(Enabled(path))
    }
}

impl Drop for Enabled {
    fn drop(&mut self) {
        // It was switched on, so it can be switched off; if not, that does no harm.
        let _ = fs::write(&self.0, "0");
    }
}

impl Registers for UnboundDoor {
    fn bytes(&self) -> usize {
        self.bar.bytes()
    }

    fn read32(&self, offset: usize) -> u32 {
        self.bar.read32(offset)
    }

    fn write32(&self, offset: usize, value: u32) {
        self.bar.write32(offset, value);
    }
}

impl Door for UnboundDoor {
    fn name(&self) -> &str {
        &self.name
    }

    fn describe(&self) -> String {
        "no driver, through sysfs; physical addresses of huge pages".into()
    }

    fn check(&self) -> Result<(), Error> {
        match self.system.driver(self.address) {
            None => Ok(()),
            Some(driver) => Err(has_driver(self.address, &driver)),
        }
    }

    fn allocate(&self, len: usize) -> Result<DmaBuf, Error> {
        self.memory.allocate(len)
    }

    unsafe fn map(&self, ptr: NonNull<u8>, len: usize, owner: Box<dyn Any + Send + Sync>) -> Result<BusMemory, Error> {
        // SAFETY: the caller promises what is asked for here.
        unsafe { self.memory.map(ptr, len, owner) }
    }

    fn set_bus_master(&self, on: bool) -> Result<(), Error> {
        set_bus_master(&self.config, 0, on).map_err(|cause| config_error(&self.name, cause))
    }
}

pub(crate) fn config_error(device: &str, cause: io::Error) -> Error {
    Error::Refused { device: device.to_owned(), reason: format!("its PCI configuration cannot be written: {cause}") }
}

/// Memory by its physical addresses.
pub(crate) struct PhysicalMemory {
    pagemap: File,
}

impl PhysicalMemory {
    pub fn new() -> Result<PhysicalMemory, Error> {
        let path = PathBuf::from("/proc/self/pagemap");
        let pagemap = File::open(&path).map_err(|cause| Error::Io { path, what: "opening", cause })?;
        Ok(PhysicalMemory { pagemap })
    }

    /// New memory of huge pages.
    pub fn allocate(&self, len: usize) -> Result<DmaBuf, Error> {
        let memory = Anonymous::huge(len)?;
        let (ptr, len) = (memory.ptr, memory.len);
        // SAFETY: new memory of huge pages, which goes with its owner.
        let bus = unsafe { self.map(ptr, len, Box::new(memory))? };
        // SAFETY: as above; the memory is aligned to a page.
        Ok(unsafe { DmaBuf::new(ptr, bus) })
    }

    /// # Safety
    /// As for [`Door::map`].
    pub unsafe fn map(
        &self,
        ptr: NonNull<u8>,
        len: usize,
        owner: Box<dyn Any + Send + Sync>,
    ) -> Result<BusMemory, Error> {
        let start = ptr.as_ptr() as usize;
        // Each page is looked up by itself; the map of the memory merges what is contiguous.
        let pages = (0..len).step_by(PAGE).map(|at| Ok((physical(&self.pagemap, start + at)?, PAGE.min(len - at))));
        let pages: Result<Vec<_>, Error> = pages.collect();
        // SAFETY: the caller promises that the pages stay where they are.
        unsafe { BusMemory::new(pages?, owner) }
    }
}
