//! Tier C without the kernel: the model's files as they lie on a raw drive, read by our own driver (`crates/nvme`).
//!
//! - [`NvmeOptions`]: which drive, and where on it; from flags, variables, or by itself.
//! - [`Spot`]: on which of its namespaces they are. [`OnDrive`]: where on that, checked against the files themselves. Whoever submits reads asks it
//!   for their blocks.
//! - [`Landing`]: the buffers that reads go into, as the drive sees them; [`Vram`]: the device's memory, where it can be reached.
//! - [`DriveSource`]: the source whose commands the CPU submits. [`GpuSource`]: the one whose commands a GPU's kernel submits.
//!
//! docs/nvme.md has the picture.

mod error;
mod gpu;
mod landing;
mod on_drive;
mod options;
mod search;
mod source;
mod vram;

use std::{
    any::Any,
    cell::OnceCell,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nvme::{Controller, Door, Drive, System};
use readahead::{DeviceMemory, Input, OpenError, Piece, Source};

use super::reads::{DiskReads, Reads};
use crate::device::cuda::nvme::{ReadKernels, Settings};

pub use ::nvme::PciAddress;
pub use error::NvmeError;
pub use gpu::{Counts, GpuSource};
pub use landing::{Landing, Place};
pub use on_drive::{Blocks, OnDrive};
pub use options::{DriveChoice, NvmeOptions, Submit};
pub use search::{Held, Spot};
pub use source::DriveSource;
pub use vram::{OpenBar, Vram, bar1};

/// What a command may take. Four attempts, with the aborts in between, have to end before a read counts as one that does not come back
/// ([`readahead::Options::stall`], 30 s): the driver knows more of what is wrong.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A drive that is driven by this process, and what is on it.
pub struct Opened {
    /// The drive.
    pub drive: Drive,
    /// Where the model is on it.
    pub image: Arc<OnDrive>,
}

impl Opened {
    /// Makes the device's memory reachable for the drive: as [`Vram::reach`], tried with the model's first block.
    fn reach(
        &mut self,
        memory: &dyn DeviceMemory,
        gpu: Option<PciAddress>,
        open_bar: &OpenBar,
        owner: &Arc<dyn Any + Send + Sync>,
    ) -> Result<Vram, String> {
        let first = Piece { file: 0, offset: 0, len: 1 };
        let known = self.image.blocks(&first).map_err(|e| e.to_string())?.lba;
        Vram::reach(memory, gpu, open_bar, &mut self.drive, known, owner)
    }
}

/// A drive between two sources that read from it.
pub type Parked = Arc<Mutex<Option<Opened>>>;

/// Makes the way to a drive.
type Find = Box<dyn Fn() -> Result<Arc<dyn Door>, NvmeError>>;

/// What every pass reads comes from a drive by our own driver, what is read once from the model's files.
pub struct NvmeReads {
    find: Find,
    spot: Spot,
    files: DiskReads,
    options: nvme::Options,
    /// The drive while nothing reads from it: to reset a controller takes some drives a second.
    parked: Parked,
    device: OnceCell<String>,
    /// The kernel that submits commands, where it is not the CPU that does.
    kernels: Option<(ReadKernels, Settings)>,
    gpu: Option<PciAddress>,
    open_bar: OpenBar,
}

impl NvmeReads {
    /// The drive that `choice` says, with the model at `spot`; the model's files are read by `files`. The drive is looked for when something is
    /// to be read.
    pub fn new(choice: DriveChoice, spot: Spot, files: DiskReads) -> Self {
        let find = move || {
            let system = System::live();
            Ok(nvme::open(&system, choice.find(&system)?)?)
        };
        let options = nvme::Options { timeout: TIMEOUT, ..nvme::Options::default() };
        Self::through(Box::new(find), spot, files, options)
    }

    /// The same by a way that is made by `find`, driven as `options` say.
    pub fn through(find: Find, spot: Spot, files: DiskReads, options: nvme::Options) -> Self {
        let (parked, device) = (Parked::default(), OnceCell::new());
        NvmeReads { find, spot, files, options, parked, device, kernels: None, gpu: None, open_bar: bar1() }
    }

    /// The same with the GPU's address, if its driver does not say it.
    pub fn beside(self, gpu: Option<PciAddress>) -> Self {
        NvmeReads { gpu, ..self }
    }

    /// The same with another way to a GPU's memory than BAR1.
    pub fn behind(self, open_bar: OpenBar) -> Self {
        NvmeReads { open_bar, ..self }
    }

    /// The same with commands that a kernel submits, of the GPU that `kernels` opens. Its patience is what a command may take.
    pub fn by_gpu(mut self, kernels: ReadKernels, settings: Settings) -> Self {
        self.options.spare = self.options.spare.max(1);
        self.kernels = Some((kernels, Settings { patience: self.options.timeout, ..settings }));
        self
    }

    /// The drive, from where it is parked or else from the kernel, with the model checked.
    fn open(&self, files: &[Input]) -> Result<Opened, NvmeError> {
        if let Some(opened) = self.parked.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Ok(opened);
        }
        let opened = self.spot.find(Controller::open((self.find)()?, self.options.clone())?, files)?;
        self.device.get_or_init(|| opened.drive.controller().name().to_owned());
        Ok(opened)
    }
}

impl Reads for NvmeReads {
    fn ahead(&self, files: Vec<Input>, _cached: bool) -> Result<Box<dyn Source>, OpenError> {
        let opened = self.open(&files).map_err(|e| OpenError::Device(Box::new(e)))?;
        let (parked, open_bar) = (self.parked.clone(), self.open_bar.clone());
        let Some((kernels, settings)) = &self.kernels else {
            return Ok(Box::new(DriveSource::new(opened, parked, self.gpu, open_bar)));
        };
        let kernel = kernels().map_err(|e| OpenError::Device(Box::new(e)))?;
        match GpuSource::new(opened, parked, kernel, *settings) {
            Ok(source) => Ok(Box::new(source.reaching(self.gpu, open_bar))),
            Err(e) => Err(OpenError::Device(Box::new(e))),
        }
    }

    fn once(&self, files: Vec<Input>, cached: bool) -> Result<Box<dyn Source>, OpenError> {
        self.files.once(files, cached)
    }

    fn drive(&self) -> Option<&str> {
        self.device.get().map(String::as_str)
    }
}
