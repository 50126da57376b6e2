//! Which drive: flags win over variables, and where there is one candidate it need not be named.

use std::{env, ffi::OsString, num::NonZeroU32, str::FromStr};

use nvme::{PciAddress, System};

use super::{NvmeError, Spot};

/// The variables, named as in the original of this engine.
const DRIVE: &str = "GPUNVME_PCI_BDF";
const GPU: &str = "GPUNVME_GPU_BDF";
const LBA: &str = "GPUNVME_GGUF_LBA";
/// Not one of the original's, which knows one namespace.
const NAMESPACE: &str = "GPUNVME_NAMESPACE";

/// Which drive is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriveChoice {
    /// The only one that is taken from the kernel.
    Auto,
    /// The one with this address.
    At(PciAddress),
}

impl FromStr for DriveChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(DriveChoice::Auto),
            _ => text
                .parse()
                .map(DriveChoice::At)
                .map_err(|_| "expected auto, or a PCI address such as 0000:3b:00.0".into()),
        }
    }
}

impl DriveChoice {
    /// The drive's address. A drive is taken from the kernel if vfio-pci has it, or no driver.
    ///
    /// # Errors
    /// If there is none, or several, or something else has the address.
    pub fn find(self, system: &System) -> Result<PciAddress, NvmeError> {
        if let DriveChoice::At(address) = self {
            let device = system.device(address)?;
            return match device.is_nvme() {
                true => Ok(address),
                false => Err(NvmeError::NotADrive { address, class: device.class }),
            };
        }
        let (taken, others): (Vec<_>, Vec<_>) =
            system.drives()?.into_iter().partition(|drive| matches!(drive.driver.as_deref(), None | Some("vfio-pci")));
        match &taken[..] {
            [drive] => Ok(drive.address),
            [] => {
                let name = |drive: &nvme::PciDevice| {
                    format!("{} has the driver {}", drive.address, drive.driver.as_deref().unwrap_or_default())
                };
                let seen: Vec<_> = others.iter().map(name).collect();
                let seen = if seen.is_empty() { " (there are none)".into() } else { format!(" ({})", seen.join(", ")) };
                Err(NvmeError::NoDrive { seen })
            }
            drives => {
                let drives = drives.iter().map(|drive| drive.address.to_string()).collect();
                Err(NvmeError::SeveralDrives { drives })
            }
        }
    }
}

/// Who submits a drive's commands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Submit {
    /// The CPU.
    #[default]
    Cpu,
    /// A kernel of the GPU that computes.
    Gpu,
}

impl FromStr for Submit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "cpu" => Ok(Submit::Cpu),
            "gpu" => Ok(Submit::Gpu),
            _ => Err("expected cpu or gpu".into()),
        }
    }
}

/// The drive that tier C is read from by our own driver; none: it is read from the model's files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NvmeOptions {
    /// Which one. None: what GPUNVME_PCI_BDF says, if that is set.
    pub drive: Option<DriveChoice>,
    /// Logical block that the model begins at. None: what GPUNVME_GGUF_LBA says, else 0.
    pub lba: Option<u64>,
    /// Namespace that it is on. None: what GPUNVME_NAMESPACE says, else the one that holds the model.
    pub namespace: Option<NonZeroU32>,
    /// The GPU's address, for reads that go straight into its memory. None: what GPUNVME_GPU_BDF says, else what CUDA says.
    pub gpu: Option<PciAddress>,
    /// Who submits its commands. None: the CPU.
    pub submit: Option<Submit>,
}

impl NvmeOptions {
    /// With what the environment says where the options say nothing.
    ///
    /// # Errors
    /// A variable that is set and malformed; a place on a drive, and no drive.
    pub fn or_environment(&self) -> Result<Self, NvmeError> {
        self.or_variables(|name| env::var_os(name))
    }

    fn or_variables(&self, get: impl Fn(&str) -> Option<OsString>) -> Result<Self, NvmeError> {
        let get = |name: &'static str| get(name).filter(|value| !value.is_empty());
        let all = NvmeOptions {
            drive: self.drive.or(parsed(DRIVE, get(DRIVE), "auto, or a PCI address such as 0000:3b:00.0")?),
            lba: self.lba.or(parsed(LBA, get(LBA), "the number of a logical block, such as 0")?),
            namespace: self.namespace.or(parsed(NAMESPACE, get(NAMESPACE), "the number of a namespace, such as 1")?),
            gpu: self.gpu.or(parsed(GPU, get(GPU), "a PCI address such as 0000:01:00.0")?),
            submit: self.submit,
        };
        let said = [
            (self.lba.is_some(), "--nvme-lba"),
            (self.namespace.is_some(), "--nvme-namespace"),
            (self.gpu.is_some(), "--nvme-gpu"),
            (self.submit.is_some(), "--nvme-submit"),
        ];
        match said.into_iter().find(|&(said, _)| said && all.drive.is_none()) {
            Some((_, flag)) => Err(NvmeError::Unused { flag }),
            None => Ok(all),
        }
    }

    /// Where on the drive the model is looked for.
    pub fn spot(&self) -> Spot {
        Spot { namespace: self.namespace.map(NonZeroU32::get), lba: self.lba.unwrap_or(0) }
    }

    /// That the GPU, if one is named, is the device that computes: `device`, at the address that CUDA says, if it is a GPU.
    ///
    /// # Errors
    /// If it is another one.
    pub fn check_gpu(&self, device: &str, address: Option<&str>) -> Result<(), NvmeError> {
        let address = address.and_then(|address| address.parse().ok());
        match (self.gpu, address) {
            (Some(asked), Some(address)) if asked != address => {
                Err(NvmeError::OtherGpu { asked, device: device.to_owned(), address })
            }
            _ => Ok(()),
        }
    }
}

/// A variable's value, if it is set.
fn parsed<T: FromStr>(
    variable: &'static str,
    value: Option<OsString>,
    expected: &'static str,
) -> Result<Option<T>, NvmeError> {
    let Some(value) = value else { return Ok(None) };
    let parsed = value.to_str().and_then(|text| text.trim().parse().ok());
    let wrong = || NvmeError::Variable { variable, value: value.to_string_lossy().into_owned(), expected };
    parsed.map(Some).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(options: NvmeOptions, variables: &[(&str, &str)]) -> Result<NvmeOptions, String> {
        let get = |name: &str| variables.iter().find(|(its, _)| *its == name).map(|(_, value)| value.into());
        options.or_variables(get).map_err(|e| e.to_string())
    }

    fn at(text: &str) -> PciAddress {
        text.parse().unwrap()
    }

    #[test]
    fn flags_win_over_variables() {
        let none = NvmeOptions::default();
        assert_eq!(with(none, &[]), Ok(none));
        assert_eq!(with(none, &[DRIVE, LBA, GPU, NAMESPACE].map(|name| (name, ""))), Ok(none), "empty is not set");
        let set = [(DRIVE, "3B:00.0"), (LBA, "2048"), (GPU, "0000:01:00.0"), (NAMESPACE, "2")];
        let read = NvmeOptions {
            drive: Some(DriveChoice::At(at("3b:00.0"))),
            lba: Some(2048),
            gpu: Some(at("1:0.0")),
            namespace: NonZeroU32::new(2),
            ..none
        };
        assert_eq!(read.spot(), Spot { namespace: Some(2), lba: 2048 });
        assert_eq!(none.spot(), Spot { namespace: None, lba: 0 });
        assert_eq!(with(none, &set), Ok(read));
        let flags = NvmeOptions {
            drive: Some(DriveChoice::Auto),
            lba: Some(7),
            gpu: Some(at("2:0.0")),
            namespace: NonZeroU32::new(3),
            ..none
        };
        assert_eq!(with(flags, &set), Ok(flags));
        let lba = NvmeOptions { lba: Some(7), ..none };
        assert_eq!(with(lba, &set), Ok(NvmeOptions { lba: Some(7), ..read }));
        assert_eq!(with(none, &[(DRIVE, "auto")]).unwrap().drive, Some(DriveChoice::Auto));
        // A machine's settings may be complete also while no drive is used.
        assert_eq!(with(none, &[(LBA, "5")]), Ok(NvmeOptions { lba: Some(5), ..none }));
        assert!(with(lba, &[]).unwrap_err().starts_with("--nvme-lba says more"));
        assert!(with(NvmeOptions { gpu: Some(at("2:0.0")), ..none }, &[]).unwrap_err().starts_with("--nvme-gpu says"));
        let namespace = NvmeOptions { namespace: NonZeroU32::new(2), ..none };
        assert!(with(namespace, &[]).unwrap_err().starts_with("--nvme-namespace says"));
        assert!(with(NvmeOptions { submit: Some(Submit::Gpu), ..none }, &[]).unwrap_err().starts_with("--nvme-submit"));
    }

    #[test]
    fn malformed_variables_are_named() {
        for (name, value, expected) in [
            (DRIVE, "nvme0n1", "auto, or a PCI address such as 0000:3b:00.0"),
            (LBA, "-1", "the number of a logical block, such as 0"),
            (LBA, "0x10", "the number of a logical block, such as 0"),
            (NAMESPACE, "0", "the number of a namespace, such as 1"),
            (NAMESPACE, "nvme0n1", "the number of a namespace, such as 1"),
            (GPU, "auto", "a PCI address such as 0000:01:00.0"),
        ] {
            let error = with(NvmeOptions::default(), &[(name, value)]).unwrap_err();
            assert_eq!(error, format!("{name} is {value:?}: expected {expected}"));
        }
    }

    #[test]
    fn the_gpu_is_the_one_that_computes() {
        let asked = NvmeOptions { gpu: Some(at("3b:00.0")), ..NvmeOptions::default() };
        assert!(asked.check_gpu("cuda:0", Some("00000000:3B:00.0")).is_ok() && asked.check_gpu("cpu", None).is_ok());
        assert!(NvmeOptions::default().check_gpu("cuda:0", Some("0000:01:00.0")).is_ok());
        let error = asked.check_gpu("cuda:0", Some("0000:01:00.0")).unwrap_err().to_string();
        assert!(error.starts_with("the GPU 0000:3b:00.0 is asked for") && error.contains("cuda:0 at 0000:01:00.0"));
    }
}
