//! What is done with the drives. Their serial numbers tell what is expected of them: `NT<drive>-<mdts>`, with `-bad` where the block at
//! [`BAD`] cannot be read, and `-slow` where the drive is.

use crate::{engine, pattern, shm::Shm};
use anyhow::{Context, Result, bail, ensure};
use nvme::{
    Bound, BusMemory, Controller, DmaBuf, Done, Door, Drive, Error, Operation, Options, PciAddress, Registers, System,
    Transfer, unbound::UnboundDoor,
};
use std::{
    any::Any,
    collections::HashMap,
    fs::{self, File},
    os::unix::fs::FileExt,
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// Bytes that are read at once, at most.
const WINDOW: usize = 16 << 20;

/// Bytes at a namespace's end that are written.
const WRITTEN: u64 = 1 << 20;

/// First byte of what cannot be read.
const BAD: u64 = 1 << 20;

/// Bytes of a command at most. QEMU 7.2 takes no more than 1024 pages.
const MAX_TRANSFER: usize = 3 << 20;

/// Bytes of transfers, none a power of two, so that they begin and end anywhere: in a list of PRPs that is not full, in one that just
/// is, and in more than one.
const LENS: [u64; 3] = [255 * 4096, 513 * 4096, 1279 * 4096];

/// Commands that are outstanding at most.
const DEPTHS: [u32; 3] = [1, 8, 60];

struct Guest {
    system: System,
    shm: Shm,
    iommu: bool,
}

/// A drive, by its serial number.
#[derive(Clone, Copy)]
struct Expected {
    drive: u8,
    mdts: u8,
    bad: bool,
    slow: bool,
}

pub fn run() -> Result<()> {
    let iommu = fs::read_to_string("/proc/cmdline")?.contains("intel_iommu=on");
    let system = System::live();
    let guest = Guest { shm: Shm::open(&system)?, system, iommu };
    let drives = guest.system.drives()?;
    ensure!(!drives.is_empty(), "no drives");
    for drive in &drives {
        let start = Instant::now();
        guest.drive(drive.address).with_context(|| drive.address.to_string())?;
        println!("guest: {} in {:.1} s", drive.address, start.elapsed().as_secs_f64());
    }
    Ok(())
}

impl Guest {
    fn drive(&self, address: PciAddress) -> Result<()> {
        let device = self.wait_for_kernel(address, 1)?;
        ensure!(device.group.is_some() == self.iommu, "the IOMMU is not as expected: {:?}", device.group);
        let serial = device.serial.clone().context("no serial number")?;
        if serial == engine::SERIAL {
            return engine::check(self.iommu, || self.wait_for_kernel(address, engine::NAMESPACES));
        }
        let expected = expected(&serial)?;
        for (block, namespace) in device.blocks.iter().zip(1..) {
            let mut bytes = vec![0; 64 << 10];
            File::open(format!("/dev/{block}"))?.read_exact_at(&mut bytes, 0)?;
            pattern::check(&bytes, 0, expected.drive, namespace)?;
        }
        let refused = UnboundDoor::open(&self.system, address).err().context("a drive with a driver was opened")?;
        ensure!(refused.to_string().contains("the driver nvme is bound to it"), "{refused}");

        let start = Instant::now();
        let bound = self.system.bind(address)?;
        ensure!(bound == if self.iommu { Bound::Vfio } else { Bound::Nothing }, "{bound:?}");
        println!("guest: {address} {serial}: {bound:?} after {:.1} s", start.elapsed().as_secs_f64());
        if expected.slow {
            self.reset(address, expected).context("reset")?;
        } else {
            for depth in DEPTHS {
                self.read_everything(address, expected, depth).with_context(|| format!("depth {depth}"))?;
            }
        }
        if expected.bad {
            self.media_error(address).context("media error")?;
        } else {
            self.write(address, expected).context("writing")?;
            self.abandon(address).context("a driver that dies")?;
        }
        let driver = self.system.unbind(address)?;
        ensure!(driver.as_deref() == Some("nvme"), "the driver after unbinding is {driver:?}");
        let device = self.wait_for_kernel(address, 1)?;
        if !expected.bad {
            for (block, namespace) in device.blocks.iter().zip(1..) {
                let size = self.system.block_bytes(block).context("no size")?;
                let mut bytes = vec![0; WRITTEN as usize];
                File::open(format!("/dev/{block}"))?.read_exact_at(&mut bytes, size - WRITTEN)?;
                pattern::check(&bytes, 0, 0xff, namespace).context("what was written, as the kernel reads it")?;
            }
        }
        Ok(())
    }

    /// The device when the kernel's driver has found its namespaces and made their files.
    /// Waits until the kernel's driver has the drive and so many namespaces of it.
    fn wait_for_kernel(&self, address: PciAddress, namespaces: usize) -> Result<nvme::PciDevice> {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(30) {
            let device = self.system.device(address)?;
            let ready = |block: &String| File::open(format!("/dev/{block}")).is_ok();
            if device.blocks.len() >= namespaces && device.blocks.iter().all(ready) {
                return Ok(device);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!("the kernel's driver has not found {namespaces} namespaces")
    }

    fn open(&self, address: PciAddress, outstanding: u32) -> Result<Controller> {
        let queues = if outstanding > 8 { 2 } else { 1 };
        let options = Options { queues, depth: outstanding + 1, max_transfer: MAX_TRANSFER, ..Options::default() };
        Ok(Controller::open(nvme::open(&self.system, address)?, options)?)
    }

    /// Every namespace, into the machine's memory and into the other device's.
    fn read_everything(&self, address: PciAddress, expected: Expected, outstanding: u32) -> Result<()> {
        let mut controller = self.open(address, outstanding)?;
        let mdts = controller.identity().mdts;
        ensure!(mdts == expected.mdts, "MDTS is {mdts}");
        let limit = if mdts == 0 { MAX_TRANSFER } else { 4096 << mdts };
        ensure!(controller.max_transfer() == limit, "{} bytes of a command", controller.max_transfer());
        let namespaces = controller.namespaces()?;
        drop(controller);
        for id in namespaces {
            let mut drive = Drive::open(self.open(address, outstanding)?, id)?;
            let all = drive.namespace().bytes();
            let door = drive.controller().door().clone();
            let host = door.allocate(WINDOW + 4096)?;
            // Data need not begin at a page.
            for (at, len) in [(0, all), (2052, 8 << 20)] {
                host.fill(0, host.len(), 0xee);
                read(&mut drive, host.bus(), at, WINDOW, len, &mut |at, out| host.copy_to(at, out), expected)?;
            }
            let shm = Arc::new(self.shm.bus(&*door)?);
            self.shm.clear();
            let copy = &mut |at: usize, out: &mut [u8]| self.shm.copy_to(at, out);
            read(&mut drive, &shm, 0, self.shm.len, all, copy, expected)?;
            let block = drive.namespace().block_bytes;
            println!("guest: {address} namespace {id}, blocks of {block}, depth {outstanding}, MDTS {mdts}: all read");
            drive.close()?;
        }
        Ok(())
    }

    fn write(&self, address: PciAddress, expected: Expected) -> Result<()> {
        let namespaces = self.open(address, 8)?.namespaces()?;
        for id in namespaces {
            let mut drive = Drive::open(self.open(address, 8)?, id)?;
            let data = drive.controller().door().allocate(WRITTEN as usize)?;
            let mut bytes = vec![0; WRITTEN as usize];
            pattern::fill(&mut bytes, 0, 0xff, id as u8);
            data.copy_from(0, &bytes);
            let namespace = drive.namespace();
            let blocks = WRITTEN / namespace.block_bytes as u64;
            let lba = namespace.blocks - blocks;
            drive.run(Operation::Write, lba, blocks, data.bus(), 0)?;
            drive.run(Operation::Flush, 0, 0, data.bus(), 0)?;
            data.fill(0, data.len(), 0);
            drive.run(Operation::Read, lba, blocks, data.bus(), 0)?;
            data.copy_to(0, &mut bytes);
            pattern::check(&bytes, 0, 0xff, id as u8)?;
            // In front of it, nothing has changed.
            drive.run(Operation::Read, lba - 8, 8, data.bus(), 0)?;
            let before = &mut bytes[..8 * namespace.block_bytes];
            data.copy_to(0, before);
            pattern::check(before, (lba - 8) * namespace.block_bytes as u64, expected.drive, id as u8)?;
            let refused = drive.run(Operation::Read, namespace.blocks, 1, data.bus(), 0);
            ensure!(refused.is_err(), "a block behind the end was read");
            drive.close()?;
        }
        Ok(())
    }

    /// Resets while commands are outstanding, on a drive that takes longer for them than it is let.
    fn reset(&self, address: PciAddress, expected: Expected) -> Result<()> {
        const LEN: usize = 6 << 20;
        let mut drive = Drive::open(self.open(address, 8)?, 1)?;
        let data = drive.controller().door().allocate(LEN)?;
        let blocks = (LEN / drive.namespace().block_bytes) as u64;
        let read = Transfer { id: 1, operation: Operation::Read, lba: 0, blocks, memory: data.bus().clone(), at: 0 };
        drive.submit(read)?;
        let mut done = Vec::new();
        for _ in 0..3 {
            // Until the device has fetched all that it was told of: QEMU 7.2 crashes if it is reset before that.
            std::thread::sleep(Duration::from_millis(150));
            drive.reset()?;
            drive.wait(Duration::from_millis(1), &mut done)?;
            ensure!(done.is_empty(), "nothing was outstanding");
        }
        while done.is_empty() {
            drive.wait(Duration::from_secs(1), &mut done)?;
        }
        ensure!(matches!(done[..], [Done { id: 1, result: Ok(()) }]), "{done:?}");
        ensure!((drive.controller().resets(), drive.retries()) == (3, 0), "{} retries", drive.retries());
        let mut bytes = vec![0; LEN];
        data.copy_to(0, &mut bytes);
        pattern::check(&bytes, 0, expected.drive, 1)?;
        Ok(drive.close()?)
    }

    /// The next one to open a drive finds it running, with queues in memory that is gone.
    fn abandon(&self, address: PciAddress) -> Result<()> {
        let door = nvme::open(&self.system, address)?;
        let mortal = Arc::new(Mortal { door: door.clone(), dead: AtomicBool::new(false) });
        let controller = Controller::open(mortal.clone(), Options::default())?;
        mortal.dead.store(true, Ordering::SeqCst);
        ensure!(controller.close().is_err(), "a dead driver closed its controller");
        let again = Controller::open(door, Options::default())?;
        ensure!(again.queues() == (1, 64), "{:?}", again.queues());
        Ok(again.close()?)
    }

    fn media_error(&self, address: PciAddress) -> Result<()> {
        let mut drive = Drive::open(self.open(address, 8)?, 1)?;
        let data = drive.controller().door().allocate(1 << 20)?;
        let (block, bad) = (drive.namespace().block_bytes as u64, BAD / drive.namespace().block_bytes as u64);
        for lba in [bad - 1, bad + 1] {
            drive.run(Operation::Read, lba, 1, data.bus(), 0)?;
        }
        let error = drive.run(Operation::Read, bad, 1, data.bus(), 0).err().context("it was read")?.to_string();
        println!("guest: {error}");
        ensure!(
            error.contains(&format!("Read of 1 blocks from block {bad} on failed: Unrecovered Read Error")),
            "{error}"
        );
        ensure!(
            drive.run(Operation::Read, bad - 4, (1 << 20) / block, data.bus(), 0).is_err(),
            "it was read among others"
        );
        Ok(drive.close()?)
    }
}

fn expected(serial: &str) -> Result<Expected> {
    let mut parts = serial.strip_prefix("NT").context("another drive")?.split('-');
    let mut next = || parts.next().context("too short");
    let (drive, mdts, kind) = (next()?.parse()?, next()?.parse()?, next().unwrap_or_default());
    Ok(Expected { drive, mdts, bad: kind == "bad", slow: kind == "slow" })
}

/// Reads `len` bytes of a drive from its start, in windows of `window` bytes of `memory` from `at` on, all transfers of a window at
/// once, and compares. Around what cannot be read, nothing is.
fn read(
    drive: &mut Drive,
    memory: &Arc<BusMemory>,
    at: usize,
    window: usize,
    len: u64,
    copy_to: &mut dyn FnMut(usize, &mut [u8]),
    expected: Expected,
) -> Result<()> {
    let (block, id) = (drive.namespace().block_bytes as u64, drive.namespace().id as u8);
    let mut bytes = vec![0; window];
    for start in (0..len).step_by(window) {
        let end = (start + window as u64).min(len);
        let (mut offset, mut lens, mut pending) = (start, LENS.iter().cycle(), HashMap::new());
        while offset < end {
            let len = (*lens.next().expect("a cycle")).min(end - offset);
            let (lba, blocks, at) = (offset / block, len / block, at + (offset - start) as usize);
            if !(expected.bad && offset < BAD + 8192 && offset + len > BAD) {
                let (operation, memory) = (Operation::Read, memory.clone());
                drive.submit(Transfer { id: offset, operation, lba, blocks, memory, at })?;
                pending.insert(offset, (at, len as usize));
            }
            offset += len;
        }
        let mut done = Vec::new();
        while !pending.is_empty() {
            drive.wait(Duration::from_secs(60), &mut done)?;
            for Done { id: offset, result } in done.drain(..) {
                result.with_context(|| format!("reading at {offset}"))?;
                let (at, len) = pending.remove(&offset).context("a transfer ended twice")?;
                copy_to(at, &mut bytes[..len]);
                pattern::check(&bytes[..len], offset, expected.drive, id)?;
            }
        }
    }
    Ok(())
}

/// A way to a device for a driver that dies: from then on, it does nothing.
struct Mortal {
    door: Arc<dyn Door>,
    dead: AtomicBool,
}

impl Mortal {
    fn is_dead(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }
}

impl Registers for Mortal {
    fn bytes(&self) -> usize {
        self.door.bytes()
    }

    fn read32(&self, offset: usize) -> u32 {
        if self.is_dead() { u32::MAX } else { self.door.read32(offset) }
    }

    fn write32(&self, offset: usize, value: u32) {
        if !self.is_dead() {
            self.door.write32(offset, value);
        }
    }
}

impl Door for Mortal {
    fn name(&self) -> &str {
        self.door.name()
    }

    fn describe(&self) -> String {
        self.door.describe()
    }

    fn check(&self) -> Result<(), Error> {
        self.door.check()
    }

    fn allocate(&self, len: usize) -> Result<DmaBuf, Error> {
        self.door.allocate(len)
    }

    unsafe fn map(&self, ptr: NonNull<u8>, len: usize, owner: Box<dyn Any + Send + Sync>) -> Result<BusMemory, Error> {
        // SAFETY: the caller promises what is asked for here.
        unsafe { self.door.map(ptr, len, owner) }
    }

    fn holds(&self) -> bool {
        self.door.holds()
    }

    fn set_bus_master(&self, on: bool) -> Result<(), Error> {
        match self.is_dead() {
            true => Err(Error::Gone { device: self.name().to_owned() }),
            false => self.door.set_bus_master(on),
        }
    }
}
