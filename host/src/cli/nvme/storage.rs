//! A drive as bytes: through the kernel's block device, or by our own driver.

use anyhow::{Context, bail, ensure};
use nvme::{Content, Controller, DmaBuf, Door, Drive, Operation, Options, PciAddress, System};
use rustix::fs::{Advice, fadvise};
use std::{
    cell::RefCell,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::Path,
    sync::Arc,
};

use crate::pack::raw;

/// Bytes that are read or written at once, at most.
const STAGING: usize = 16 << 20;

/// Bytes that are read and written in whole blocks.
pub trait Storage {
    /// All of them.
    fn bytes(&self) -> u64;

    /// Bytes of a block.
    fn block_bytes(&self) -> u64;

    /// Reads whole blocks.
    ///
    /// # Errors
    /// If they cannot be read.
    fn read(&mut self, at: u64, out: &mut [u8]) -> anyhow::Result<()>;

    /// Writes whole blocks.
    ///
    /// # Errors
    /// If they cannot be written.
    fn write(&mut self, at: u64, bytes: &[u8]) -> anyhow::Result<()>;

    /// Makes what was written lasting.
    ///
    /// # Errors
    /// If the drive says that it is not.
    fn flush(&mut self) -> anyhow::Result<()>;

    /// Ends its use.
    ///
    /// # Errors
    /// If the drive does not end as it should.
    fn close(self: Box<Self>) -> anyhow::Result<()>;
}

/// Namespace `namespace` of a controller, or the only one that it has.
///
/// # Errors
/// If it cannot be known which one is meant, or it cannot be read.
pub fn open(mut controller: Controller, namespace: Option<u32>) -> anyhow::Result<Drive> {
    let id = match namespace {
        Some(id) => id,
        None => match controller.namespaces()?[..] {
            [id] => id,
            [] => bail!("{} has no namespaces", controller.name()),
            ref ids => bail!("{} has the namespaces {ids:?}; say which one is meant (--namespace)", controller.name()),
        },
    };
    Ok(Drive::open(controller, id)?)
}

/// A drive that our driver drives.
pub struct DirectDrive {
    drive: Drive,
    staging: DmaBuf,
}

impl DirectDrive {
    /// Namespace `namespace` of the controller behind `door`, or the only one.
    ///
    /// # Errors
    /// If it cannot be driven.
    pub fn open(door: Arc<dyn Door>, namespace: Option<u32>) -> anyhow::Result<DirectDrive> {
        let staging = door.allocate(STAGING)?;
        Ok(DirectDrive { drive: open(Controller::open(door, Options::default())?, namespace)?, staging })
    }

    /// The drive.
    pub fn drive(&self) -> &Drive {
        &self.drive
    }

    /// Whole blocks, in portions of the staging memory, each from `at` to `bytes` of the whole.
    fn portions(&self, at: u64, len: usize) -> impl Iterator<Item = (u64, u64, std::ops::Range<usize>)> + use<> {
        let block = self.block_bytes();
        (0..len).step_by(STAGING).map(move |start| {
            let range = start..(start + STAGING).min(len);
            ((at + start as u64) / block, range.len() as u64 / block, range)
        })
    }
}

impl Storage for DirectDrive {
    fn bytes(&self) -> u64 {
        self.drive.namespace().bytes()
    }

    fn block_bytes(&self) -> u64 {
        self.drive.namespace().block_bytes as u64
    }

    fn read(&mut self, at: u64, out: &mut [u8]) -> anyhow::Result<()> {
        for (lba, blocks, range) in self.portions(at, out.len()) {
            self.drive.run(Operation::Read, lba, blocks, self.staging.bus(), 0)?;
            self.staging.copy_to(0, &mut out[range]);
        }
        Ok(())
    }

    fn write(&mut self, at: u64, bytes: &[u8]) -> anyhow::Result<()> {
        for (lba, blocks, range) in self.portions(at, bytes.len()) {
            self.staging.copy_from(0, &bytes[range]);
            self.drive.run(Operation::Write, lba, blocks, self.staging.bus(), 0)?;
        }
        Ok(())
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        Ok(self.drive.run(Operation::Flush, 0, 0, self.staging.bus(), 0)?)
    }

    fn close(self: Box<Self>) -> anyhow::Result<()> {
        Ok(self.drive.close()?)
    }
}

/// A block device of the kernel.
pub struct BlockDevice {
    file: File,
    bytes: u64,
}

impl BlockDevice {
    /// The device or file at `path`, of `bytes` bytes.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn open(path: &Path, bytes: u64) -> anyhow::Result<BlockDevice> {
        let file = OpenOptions::new().read(true).write(true).open(path);
        Ok(BlockDevice { file: file.with_context(|| format!("{} cannot be opened", path.display()))?, bytes })
    }
}

impl Storage for BlockDevice {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The kernel takes any bytes, and makes blocks of them.
    fn block_bytes(&self) -> u64 {
        1
    }

    fn read(&mut self, at: u64, out: &mut [u8]) -> anyhow::Result<()> {
        self.file.read_exact_at(out, at).with_context(|| format!("reading at byte {at} failed"))
    }

    fn write(&mut self, at: u64, bytes: &[u8]) -> anyhow::Result<()> {
        self.file.write_all_at(bytes, at).with_context(|| format!("writing at byte {at} failed"))
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        self.file.sync_all().context("flushing failed")?;
        // So that what is read again comes from the drive. Where the kernel does not listen, reading again proves less.
        let _ = fadvise(&self.file, 0, None, Advice::DontNeed);
        Ok(())
    }

    fn close(self: Box<Self>) -> anyhow::Result<()> {
        Ok(())
    }
}

/// A namespace that a command is about. Nothing else uses it meanwhile.
pub struct Target {
    /// As the user named it.
    pub name: String,
    /// The drive's serial number.
    pub serial: String,
    /// Its bytes.
    pub storage: Box<dyn Storage>,
    /// Bytes of a logical block.
    lba_bytes: u64,
    /// What keeps others from the block devices.
    _claims: Vec<File>,
}

impl Target {
    /// The drive `name`: a PCI address or a block device.
    ///
    /// # Errors
    /// If it is none, or in use.
    pub fn open(system: &System, name: &str, namespace: Option<u32>) -> anyhow::Result<Target> {
        if let Ok(address) = name.parse::<PciAddress>() {
            let device = system.device(address)?;
            if device.driver.as_deref() != Some("nvme") {
                return Self::direct(name, nvme::open(system, address)?, namespace);
            }
            let is_it = |block: &&String| namespace.is_none_or(|id| system.namespace_of_block(block) == Some(id));
            return match device.blocks.iter().filter(is_it).collect::<Vec<_>>()[..] {
                [block] => Self::block(system, name, address, block),
                _ => {
                    let devices: Vec<_> = device.blocks.iter().map(|block| format!("/dev/{block}")).collect();
                    bail!("{name} has the driver nvme; name one of its block devices instead: {}", devices.join(", "))
                }
            };
        }
        let path = Path::new(name);
        ensure!(path.exists(), "{name} is neither a PCI address nor a device that there is");
        let block = nvme::block_name(system, path).with_context(|| format!("{name} is no block device"))?;
        let address = system.pci_of_block(&block).with_context(|| format!("{name} is no NVMe drive"))?;
        let device = system.device(address)?;
        ensure!(
            device.blocks.contains(&block),
            "{name} is no whole namespace of an NVMe drive; those of {address} are {}",
            device.blocks.join(", ")
        );
        ensure!(namespace.is_none(), "{name} is one namespace; --namespace goes with a PCI address");
        Self::block(system, name, address, &block)
    }

    fn block(system: &System, name: &str, address: PciAddress, block: &str) -> anyhow::Result<Target> {
        let device = system.device(address)?;
        let claims = system.claim(&device)?;
        let bytes = system.block_bytes(block).with_context(|| format!("{name} has no size"))?;
        let storage = BlockDevice::open(&system.path("/dev").join(block), bytes)?;
        let serial = device.serial.with_context(|| format!("{name} has no serial number"))?;
        let lba = system.path("/sys/class/block").join(block).join("queue/logical_block_size");
        let lba = std::fs::read_to_string(&lba).with_context(|| lba.display().to_string())?;
        let lba_bytes = lba.trim().parse().with_context(|| format!("{name} has blocks of {lba:?} bytes"))?;
        Ok(Target { name: name.into(), serial, storage: Box::new(storage), lba_bytes, _claims: claims })
    }

    fn direct(name: &str, door: Arc<dyn Door>, namespace: Option<u32>) -> anyhow::Result<Target> {
        let storage = DirectDrive::open(door, namespace)?;
        let (serial, lba_bytes) = (storage.drive().controller().identity().serial.clone(), storage.block_bytes());
        Ok(Target { name: name.into(), serial, storage: Box::new(storage), lba_bytes, _claims: Vec::new() })
    }

    /// The byte that a logical block begins at.
    ///
    /// # Errors
    /// If there is no such block.
    pub fn start(&self, lba: u64) -> anyhow::Result<u64> {
        let start = lba.checked_mul(self.lba_bytes).filter(|&start| start < self.storage.bytes());
        let blocks = self.storage.bytes() / self.lba_bytes;
        start.with_context(|| format!("{} has {blocks} blocks: there is no block {lba}", self.name))
    }

    /// What is on it.
    pub fn contents(&mut self) -> Vec<Content> {
        let (size, block) = (self.storage.bytes(), self.storage.block_bytes());
        let storage = RefCell::new(&mut *self.storage);
        let read = |at: u64, out: &mut [u8]| {
            // Signatures are anywhere; whole blocks around them are read.
            let (first, last) = (at / block * block, (at + out.len() as u64).next_multiple_of(block));
            let mut blocks = vec![0; (last - first) as usize];
            storage.borrow_mut().read(first, &mut blocks).map_err(io::Error::other)?;
            out.copy_from_slice(&blocks[(at - first) as usize..][..out.len()]);
            Ok(())
        };
        nvme::contents(&read, size, raw::KNOWN)
    }

    /// Ends its use.
    ///
    /// # Errors
    /// If the drive does not end as it should.
    pub fn close(self) -> anyhow::Result<()> {
        self.storage.close()
    }
}
