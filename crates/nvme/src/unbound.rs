//! The door for machines without an IOMMU: a device that no driver is bound to, by its files in sysfs, and huge pages by their
//! physical addresses.
//!
//! There is nothing between such a device and the machine's memory. What it is told to write, it writes.

use crate::{
    BusMemory, DmaBuf, Door, Error, PciAddress, Registers, System,
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
    sync::{Arc, Mutex, Once, PoisonError, Weak},
};

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
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
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
        remember(&door);
        Ok(door)
    }
}

/// The doors that are open.
static OPEN: Mutex<Vec<Weak<UnboundDoor>>> = Mutex::new(Vec::new());

fn remember(door: &Arc<UnboundDoor>) {
    static AT_EXIT: Once = Once::new();
    extern "C" fn at_exit() {
        stop_all();
    }
    AT_EXIT.call_once(|| {
        // Where it cannot be registered, a drive that its owner does not stop goes on, as it does when a process is killed.
        // SAFETY: the function takes nothing and lives as long as the process.
        let _ = unsafe { libc::atexit(at_exit) };
    });
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    open.retain(|door| door.strong_count() > 0);
    open.push(Arc::downgrade(door));
}

/// Keeps all devices that this process has taken without an IOMMU from the bus, for who ends the process with reads in flight: its memory
/// becomes others', and the devices would still write there. A process that exits does it by itself. (VFIO's devices are stopped by the
/// kernel, however the process ends.)
pub fn stop_all() {
    let open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    for door in open.iter().filter_map(Weak::upgrade) {
        // Nothing is left to be told of an error.
        let _ = door.set_bus_master(false);
    }
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
        match self.system.device(self.address)?.driver {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    /// A device of files, whose registers nobody plays.
    #[test]
    fn devices_are_kept_from_the_bus_when_the_process_ends() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("sys/bus/pci/devices/0000:3b:00.0");
        fs::create_dir_all(&folder).unwrap();
        for (name, bytes) in
            [("class", &b"0x010802\n"[..]), ("enable", b"0"), ("config", &[0; 64]), ("resource0", &[0; 8192])]
        {
            fs::write(folder.join(name), bytes).unwrap();
        }
        let address = "3b:00.0".parse().unwrap();
        let door = UnboundDoor::open(&System::at(root.path()), address).unwrap();
        let is_master = || {
            let mut command = [0; 2];
            File::open(folder.join("config")).unwrap().read_exact_at(&mut command, 4).unwrap();
            command[0] & 4 != 0
        };
        door.set_bus_master(true).unwrap();
        assert!(is_master());
        stop_all();
        assert!(!is_master());
        let again = UnboundDoor::open(&System::at(root.path()), address).err().unwrap().to_string();
        assert!(again.contains("another process drives it"), "{again}");
        drop(door);
        assert_eq!(fs::read(folder.join("enable")).unwrap(), b"0");
    }
}
