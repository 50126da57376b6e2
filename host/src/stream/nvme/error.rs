//! What can go wrong before the first read from a drive.

use std::{io, path::PathBuf};

use super::search::Held;
use crate::pack::raw::RawError;

/// Why a model cannot be read from a drive.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NvmeError {
    /// The driver's.
    #[error(transparent)]
    Drive(#[from] nvme::Error),
    /// A kernel is to read the drive, and there is no GPU to run it.
    #[error(
        "a GPU is to submit the reads of the drive (--nvme-submit gpu), but {device} computes: choose a GPU with --device, or leave it to the CPU"
    )]
    NoGpu {
        /// The device.
        device: String,
    },
    /// There is no drive to be found.
    #[error(
        "no NVMe drive is taken from the kernel{seen}; `ntransformer nvme list` shows drives, `nvme bind BDF` takes one"
    )]
    NoDrive {
        /// Those that there are, with their drivers.
        seen: String,
    },
    /// Which one is meant cannot be known.
    #[error("several NVMe drives are taken from the kernel: {}; say which one is meant (--nvme BDF, or GPUNVME_PCI_BDF)", drives.join(", "))]
    SeveralDrives {
        /// Their addresses.
        drives: Vec<String>,
    },
    /// The address is something else's.
    #[error("{address} is no NVMe drive (its class is {class:06x}); `ntransformer nvme list` shows drives")]
    NotADrive {
        /// The address.
        address: nvme::PciAddress,
        /// Its class code.
        class: u32,
    },
    /// The model would begin behind the drive's end.
    #[error(
        "{device} has {blocks} blocks of {block} bytes: there is no block {lba} for a model to begin at (--nvme-lba, GPUNVME_GGUF_LBA)"
    )]
    NoBlock {
        /// The drive.
        device: String,
        /// First block asked for.
        lba: u64,
        /// How many there are.
        blocks: u64,
        /// Bytes of a block.
        block: usize,
    },
    /// Something else is there.
    #[error(
        "{device}: there is no model at block {lba}, but {found}; `ntransformer nvme write {device} {}` lays it there, and --nvme-lba says \
         where it is if it is elsewhere", model.display()
    )]
    NoModel {
        /// The drive.
        device: String,
        /// Where a model was looked for.
        lba: u64,
        /// What was found.
        found: String,
        /// The model that should be there.
        model: PathBuf,
    },
    /// The image there is of no use.
    #[error("{device}: the model image at block {lba}: {cause}")]
    Image {
        /// The drive.
        device: String,
        /// Where it begins.
        lba: u64,
        /// What is wrong with it.
        cause: RawError,
    },
    /// A plain file does not fit where it should be.
    #[error(
        "{device}: a GGUF file begins at block {lba}, and {} has {need} bytes, but there are {have} from there to the drive's end: it is \
         another file, or was cut off; lay it there anew (`ntransformer nvme write {device} {}`)", model.display(), model.display()
    )]
    Short {
        /// The drive.
        device: String,
        /// Where it begins.
        lba: u64,
        /// The model's file.
        model: PathBuf,
        /// Bytes of the file.
        need: u64,
        /// Bytes from there to the drive's end.
        have: u64,
    },
    /// A model is there, but not this one.
    #[error(
        "{device}: the model at block {lba} is not {}: {what}; lay it there (`ntransformer nvme write {device} {}`), name the model that \
         is there with -m, or leave out --nvme (GPUNVME_PCI_BDF)", model.display(), model.display()
    )]
    OtherModel {
        /// The drive.
        device: String,
        /// Where it begins.
        lba: u64,
        /// The model that was asked for.
        model: PathBuf,
        /// What differs.
        what: String,
    },
    /// None of the namespaces can be read.
    #[error("{device} has no namespace that can be read{}", if held.0.is_empty() { String::new() } else { format!(" ({held})") })]
    NoNamespace {
        /// The drive.
        device: String,
        /// What is wrong with each.
        held: Held,
    },
    /// None of several namespaces holds the model.
    #[error(
        "{device}: no namespace holds {} at block {lba} ({held}); `ntransformer nvme write` lays it on one, and --nvme-lba says where it is \
         if it is elsewhere", model.display()
    )]
    OnNoNamespace {
        /// The drive.
        device: String,
        /// Where a model was looked for.
        lba: u64,
        /// What each of them holds.
        held: Held,
        /// The model that should be there.
        model: PathBuf,
    },
    /// Several of them hold it.
    #[error(
        "{device}: several namespaces hold {} at block {lba} ({held}); say which one is meant (--nvme-namespace, or GPUNVME_NAMESPACE)",
        model.display()
    )]
    OnSeveralNamespaces {
        /// The drive.
        device: String,
        /// Where it begins on each.
        lba: u64,
        /// What each of them holds.
        held: Held,
        /// The model.
        model: PathBuf,
    },
    /// The model's file cannot be read, to compare the drive with it.
    #[error("{}: reading it, to compare it with what is on the drive, failed: {cause}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's words.
        cause: io::Error,
    },
    /// A drive's place was said, and no drive.
    #[error("{flag} says more of a drive that is read, but none is chosen; add --nvme BDF (or --nvme auto)")]
    Unused {
        /// The flag.
        flag: &'static str,
    },
    /// An environment variable that is not what it should be.
    #[error("{variable} is {value:?}: expected {expected}")]
    Variable {
        /// Its name.
        variable: &'static str,
        /// What it is set to.
        value: String,
        /// What it could be.
        expected: &'static str,
    },
    /// Another GPU was named than the one that computes.
    #[error(
        "the GPU {asked} is asked for (--nvme-gpu, GPUNVME_GPU_BDF), but {device} at {address} computes; choose it with --device"
    )]
    OtherGpu {
        /// The address asked for.
        asked: nvme::PciAddress,
        /// The device.
        device: String,
        /// Its address.
        address: nvme::PciAddress,
    },
}

impl NvmeError {
    /// What a namespace holds instead of the model, where that is why it was not found there.
    ///
    /// # Errors
    /// This error, where it is about something else than what is on the namespace.
    pub(super) fn held(self) -> Result<String, NvmeError> {
        Ok(match self {
            NvmeError::NoBlock { blocks, block, .. } => format!("only {blocks} blocks of {block} bytes"),
            NvmeError::NoModel { found, .. } => found,
            NvmeError::Image { cause, .. } => format!("an image that is of no use: {cause}"),
            NvmeError::Short { need, have, .. } => {
                format!("a GGUF file, which has {have} bytes at most, and not {need}")
            }
            NvmeError::OtherModel { what, .. } => format!("another model: {what}"),
            NvmeError::Drive(error @ nvme::Error::Command { .. }) => error.to_string(),
            other => return Err(other),
        })
    }
}
