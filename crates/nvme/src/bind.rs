//! Taking a drive from the kernel's driver, and giving it back (Documentation/ABI/testing/sysfs-bus-pci in Linux).
//!
//! With an IOMMU, vfio-pci is bound to it by the device's own `driver_override`; without one, no driver is. Nothing else is changed, and
//! nothing outlives a restart.

use crate::{Error, PciAddress, System, unbound::lock};
use std::fs::OpenOptions;

/// The driver that VFIO has for PCI devices.
const VFIO: &str = "vfio-pci";

/// How a drive is open to this driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// vfio-pci is bound to it, and the IOMMU guards memory.
    Vfio,
    /// No driver is bound to it; there is no IOMMU that would be in the way.
    Nothing,
}

impl System {
    /// Takes the drive at `address` from its driver.
    ///
    /// # Errors
    /// If it is in use, no NVMe drive, shares its IOMMU group with devices that have drivers, or the kernel refuses. It has its driver
    /// then.
    pub fn bind(&self, address: PciAddress) -> Result<Bound, Error> {
        let device = self.device(address)?;
        let refuse = |reason: String| Error::Refused { device: address.to_string(), reason };
        if !device.is_nvme() {
            return Err(refuse(format!("it is no NVMe drive (its class is {:06x})", device.class)));
        }
        let translated = device.group.as_ref().is_some_and(|group| group.kind.as_deref() != Some("identity"));
        let bound = if translated { Bound::Vfio } else { Bound::Nothing };
        match (bound, device.driver.as_deref()) {
            (_, Some(VFIO)) => return Ok(Bound::Vfio),
            (Bound::Nothing, None) => return Ok(bound),
            (_, None | Some("nvme")) => {}
            (_, Some(other)) => {
                return Err(refuse(format!("the driver {other} is bound to it, which is not the kernel's for drives")));
            }
        }
        let _claimed = self.claim(&device)?;
        if bound == Bound::Nothing {
            self.write(&format!("/sys/bus/pci/devices/{address}/driver/unbind"), &address.to_string())?;
            return match self.device(address)?.driver {
                None => Ok(bound),
                Some(driver) => Err(refuse(format!("the driver {driver} did not let go of it"))),
            };
        }
        if !self.path("/sys/bus/pci/drivers").join(VFIO).exists() {
            return Err(refuse("the kernel has not loaded vfio-pci; as root: modprobe vfio-pci".into()));
        }
        let neighbours = self.neighbours(address);
        if !neighbours.is_empty() {
            let them = neighbours.join(", ");
            let reason = format!(
                "its IOMMU group has devices with drivers of their own: {them}; unbind them, or use another slot"
            );
            return Err(refuse(reason));
        }
        let changed = self.change(address, device.driver.is_some());
        let driver = self.device(address)?.driver;
        if changed.is_ok() && driver.as_deref() == Some(VFIO) {
            return Ok(bound);
        }
        // Back to how it was; the first error is the one to tell of.
        let _ = self.unbind(address);
        changed?;
        Err(refuse(format!(
            "vfio-pci did not take it (see dmesg); its driver is now {}",
            driver.unwrap_or("none".into())
        )))
    }

    fn change(&self, address: PciAddress, has_driver: bool) -> Result<(), Error> {
        let folder = format!("/sys/bus/pci/devices/{address}");
        self.write(&format!("{folder}/driver_override"), VFIO)?;
        if has_driver {
            self.write(&format!("{folder}/driver/unbind"), &address.to_string())?;
        }
        self.write("/sys/bus/pci/drivers_probe", &address.to_string())
    }

    /// Undoes [`bind`](Self::bind): the drive gets the driver that the kernel chooses. That driver's name; none if the kernel has none for
    /// it.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn unbind(&self, address: PciAddress) -> Result<Option<String>, Error> {
        let device = self.device(address)?;
        let folder = format!("/sys/bus/pci/devices/{address}");
        if !device.is_nvme() {
            let reason = format!("it is no NVMe drive (its class is {:06x})", device.class);
            return Err(Error::Refused { device: address.to_string(), reason });
        }
        match device.driver.as_deref() {
            Some(VFIO) | None => {}
            Some(_) => return Ok(device.driver),
        }
        let driven = || {
            let reason = "another process drives it; end that first".into();
            Err(Error::Refused { device: address.to_string(), reason })
        };
        // The kernel would wait for who has it open, which may be a model that runs for days.
        let group = device.group.as_ref().map(|group| self.path("/dev/vfio").join(&group.id));
        let opened = group.map(|path| OpenOptions::new().read(true).write(true).open(path));
        if opened.is_some_and(|opened| opened.is_err_and(|e| e.kind() == std::io::ErrorKind::ResourceBusy)) {
            return driven();
        }
        // Without VFIO it would not wait, and two would ring the same doorbells. Nobody opens it while the lock is here.
        let resource = OpenOptions::new().read(true).write(true).open(self.pci_folder(address).join("resource0"));
        if device.driver.is_none() && resource.as_ref().is_ok_and(|resource| !lock(resource)) {
            return driven();
        }
        // An empty line takes the override away.
        self.write(&format!("{folder}/driver_override"), "\n")?;
        if device.driver.is_some() {
            self.write(&format!("{folder}/driver/unbind"), &address.to_string())?;
        }
        self.write("/sys/bus/pci/drivers_probe", &address.to_string())?;
        Ok(self.device(address)?.driver)
    }
}
