//! The device's memory as a drive sees it: by a dma-buf of it, or behind the GPU's BAR1; proved by data, page by page.

use std::{
    any::Any,
    sync::Arc,
    time::{Duration, Instant},
};

use nvme::{
    BusMemory, DmaBufWindow, Door, Drive, Operation, PEER_PAGE, PciAddress, PeerBar, Run, System, Window, prove,
};
use readahead::{DeviceMemory, SourceError};

/// The BAR through which the bus gets at a GPU's memory: NVIDIA's GPUs have registers behind BAR0 and memory behind BAR1.
const MEMORY_BAR: usize = 1;

/// How long BAR1 is looked through. 256 GiB take a third of a second where pages of 2 MiB are found, four seconds where they have 64 KiB.
const BUDGET: Duration = Duration::from_secs(10);

/// Runs that the drive writes into on trial, at most.
const TRIALS: usize = 64;

/// Opens the window to the memory of the GPU at an address.
pub type OpenBar = Arc<dyn Fn(PciAddress) -> Result<Box<dyn Window>, nvme::Error> + Send + Sync>;

/// BAR1 of this machine's GPUs.
pub fn bar1() -> OpenBar {
    Arc::new(|address| Ok(Box::new(PeerBar::open(&System::live(), address, MEMORY_BAR)?)))
}

/// A window and its name, or why there is none.
type Opened = Result<(String, Box<dyn Window>), String>;

/// Memory of the device that the drive can write.
pub struct Vram {
    /// Device addresses.
    address: u64,
    len: usize,
    bus: Arc<BusMemory>,
    window: Box<dyn Window>,
    /// Where it is behind the window.
    runs: Vec<Run>,
    how: String,
}

impl Vram {
    /// Makes `memory` reachable for `drive`, and tries it with what is in block `known` of it. `gpu` is where the device is if it does not say
    /// so itself; `owner` keeps the memory.
    ///
    /// # Errors
    /// Why there is no way, in words.
    pub fn reach(
        memory: &dyn DeviceMemory,
        gpu: Option<PciAddress>,
        open: &OpenBar,
        drive: &mut Drive,
        known: u64,
        owner: &Arc<dyn Any + Send + Sync>,
    ) -> Result<Self, String> {
        let (address, len) = (memory.address(), memory.len());
        let door = drive.controller().door().clone();
        if !address.is_multiple_of(PEER_PAGE as u64) || !len.is_multiple_of(PEER_PAGE) {
            return Err(format!("{len} bytes at {address:#x} are no whole pages"));
        }
        let gpu = memory.pci_address().and_then(|address| address.parse().ok()).or(gpu);
        let dma_buf = || {
            let opened = DmaBufWindow::open(&memory.dma_buf()?, len).map_err(|e| e.to_string())?;
            Ok(("its dma-buf".to_owned(), Box::new(opened) as Box<dyn Window>))
        };
        let bar = || {
            let gpu = gpu.ok_or("the device is at no PCI address that is known")?;
            Ok((format!("BAR1 of {gpu}"), open(gpu).map_err(|e| e.to_string())?))
        };
        let ways: [(&str, &dyn Fn() -> Opened); 2] = [("a dma-buf", &dma_buf), ("BAR1", &bar)];
        let mut refused = Vec::new();
        for (way, opened) in ways {
            let found = opened().and_then(|(name, window)| Self::behind(name, window, memory, &*door, owner));
            match found.and_then(|vram| vram.tried(memory, drive, known)) {
                Ok(vram) => return Ok(vram),
                Err(why) => refused.push(format!("{way}: {why}")),
            }
        }
        Err(refused.join("; "))
    }

    fn behind(
        name: String,
        window: Box<dyn Window>,
        memory: &dyn DeviceMemory,
        door: &dyn Door,
        owner: &Arc<dyn Any + Send + Sync>,
    ) -> Result<Self, String> {
        let begin = Instant::now();
        let (address, len) = (memory.address(), memory.len());
        let runs = prove(&*window, len, &mut |at, bytes| memory.write(at, bytes), BUDGET).map_err(|e| e.to_string())?;
        let map = |run: &Run| {
            // SAFETY: data has proved that these pages are the memory's, which is there as long as its owner. The drive is told of
            // nothing else, and writes where the streamer lets it.
            unsafe { window.map(door, run.at, run.len, Box::new(owner.clone())) }
        };
        let parts: Result<Vec<_>, _> = runs.iter().map(map).collect();
        let bus = parts.and_then(BusMemory::joined).map_err(|e| e.to_string())?;
        let (pages, pieces, seconds) = (len / PEER_PAGE, runs.len(), begin.elapsed().as_secs_f64());
        let how = format!("{name}, {pages} pages in {pieces} pieces, each proved by data in {seconds:.1} s");
        Ok(Vram { address, len, bus: Arc::new(bus), window, runs, how })
    }

    /// Lets the drive write into the begin of each run, or of some of them, and the device read that: bridges and IOMMUs may drop what one
    /// device writes to another, without a word to the one that writes.
    fn tried(self, memory: &dyn DeviceMemory, drive: &mut Drive, known: u64) -> Result<Self, String> {
        let block = drive.namespace().block_bytes;
        let (mut expected, mut found) = (vec![0; block], vec![0; block]);
        let failed = |e: nvme::Error| format!("the drive cannot write into the device's memory: {e}");
        let staging = drive.controller().door().allocate(block).map_err(failed)?;
        drive.run(Operation::Read, known, 1, staging.bus(), 0).map_err(failed)?;
        staging.copy_to(0, &mut expected);
        let room = self.runs.iter().filter(|run| run.offset + block <= self.len);
        for run in room.step_by(self.runs.len().div_ceil(TRIALS)) {
            drive.run(Operation::Read, known, 1, &self.bus, run.offset).map_err(failed)?;
            self.arrived();
            memory.read(run.offset, &mut found)?;
            if found != expected {
                return Err(format!(
                    "{}: what the drive writes into the device's memory does not get there; bridges between the two, or their IOMMU, drop \
                     it (access control services, or a root complex that passes nothing from device to device)",
                    self.how
                ));
            }
        }
        Ok(self)
    }

    /// The memory on the bus, and where in it `len` bytes from a device address on begin.
    ///
    /// # Errors
    /// Bytes that are not in the memory.
    pub fn place(&self, address: u64, len: usize) -> Result<(Arc<BusMemory>, usize), SourceError> {
        let at = address.checked_sub(self.address).and_then(|at| usize::try_from(at).ok());
        match at.filter(|at| at.checked_add(len).is_some_and(|end| end <= self.len)) {
            Some(at) => Ok((self.bus.clone(), at)),
            None => Err(SourceError::Small { len: self.len, need: len, block: PEER_PAGE }),
        }
    }

    /// Waits until what the drive has written has reached the device. A completion goes another way than the data, and may be there first. A
    /// read from the device's memory, of whichever word, takes the data's last steps, and passes none of it.
    pub fn arrived(&self) {
        std::hint::black_box(self.window.read64(self.runs[0].at));
    }

    /// For the user: by which way.
    pub fn describe(&self) -> &str {
        &self.how
    }
}
