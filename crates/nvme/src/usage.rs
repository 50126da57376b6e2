//! What a drive is used for: what must not be taken from the kernel, and not be written.

use crate::{
    Error, PciDevice, System,
    contents::{Content, contents},
    system::{names, text},
};
use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Levels of block devices on block devices: more are a mistake.
const LEVELS: usize = 16;

/// How long other processes may have a block device open to look at it.
const LOOK: Duration = Duration::from_secs(1);

impl System {
    /// Why the block device `name` (`nvme0n1`) is in use, a reason each; empty if it is not.
    ///
    /// A drive and its partitions are in use if they are mounted, swapped to, or a part of something: of an LVM volume, of another device of
    /// device-mapper, of a RAID array, of a pool of ZFS, of a loop device, or of what the machine boots from; and if another process has them open,
    /// as a virtual machine has, or other machines have them, which claim nothing.
    pub fn uses(&self, name: &str) -> Vec<String> {
        let mut reasons = BTreeSet::new();
        self.add_uses(name, "", 0, &mut reasons);
        reasons.into_iter().collect()
    }

    fn add_uses(&self, name: &str, via: &str, level: usize, reasons: &mut BTreeSet<String>) {
        for block in &self.with_partitions(name) {
            let mut add = |what: String| reasons.insert(format!("{block}{via} {what}"));
            let number = text(&self.path("/sys/class/block").join(block).join("dev")).unwrap_or_default();
            for (place, is_boot) in self.mounts(block, &number) {
                let boot = if is_boot { ", which this machine runs or boots from" } else { "" };
                add(format!("is mounted at {place}{boot}"));
            }
            if self.is_swap(block) {
                add("is swapped to".into());
            }
            if self.is_btrfs(block) {
                add("is part of a mounted Btrfs file system".into());
            }
            self.loops(block).into_iter().for_each(|name| {
                add(format!("is behind the loop device {name}"));
            });
            self.exports(block).into_iter().for_each(|name| {
                add(format!("is given to other machines by nvmet, as {name}"));
            });
            self.openers(block).into_iter().for_each(|process| {
                add(format!("is open in {process}"));
            });
            for content in self.block_contents(block, &[]).into_iter().filter(|content| content.keep) {
                add(format!("holds {}", content.name));
            }
            for holder in names(&self.path("/sys/class/block").join(block).join("holders")).unwrap_or_default() {
                let what = self.holder(&holder);
                reasons.insert(format!("{block}{via} is part of {what}"));
                if level < LEVELS {
                    self.add_uses(&holder, &format!(" ({what}, on {block})"), level + 1, reasons);
                }
            }
        }
    }

    /// A block device and its partitions.
    fn with_partitions(&self, name: &str) -> Vec<String> {
        let folder = self.path("/sys/class/block").join(name);
        let partitions = names(&folder).unwrap_or_default().into_iter();
        let partitions = partitions.filter(|part| folder.join(part).join("partition").exists());
        std::iter::once(name.to_owned()).chain(partitions).collect()
    }

    /// Where a block device is mounted, in this mount namespace or the first process's, and whether the machine needs it to run.
    fn mounts(&self, block: &str, number: &str) -> BTreeSet<(String, bool)> {
        let mut places = BTreeSet::new();
        for table in ["/proc/self/mountinfo", "/proc/1/mountinfo"] {
            for line in text(&self.path(table)).unwrap_or_default().lines() {
                // proc(5): id, parent, major:minor, root, place, options, ..., "-", type, source.
                let fields: Vec<_> = line.split(' ').collect();
                let source = line.split(" - ").nth(1).and_then(|rest| rest.split(' ').nth(1));
                let is_it = fields.get(2) == Some(&number) || source == Some(&format!("/dev/{block}"));
                if let (true, Some(place)) = (is_it, fields.get(4)) {
                    let boot = ["/", "/usr", "/boot", "/boot/efi", "/efi"].contains(place);
                    places.insert((place.replace("\\040", " "), boot));
                }
            }
        }
        places
    }

    fn is_swap(&self, block: &str) -> bool {
        let name = |line: &str| Some(Path::new(line.split_whitespace().next()?).file_name()?.to_str()?.to_owned());
        text(&self.path("/proc/swaps")).unwrap_or_default().lines().any(|line| name(line).as_deref() == Some(block))
    }

    /// Of a Btrfs of several devices, the table of mounts names one.
    fn is_btrfs(&self, block: &str) -> bool {
        let folder = self.path("/sys/fs/btrfs");
        names(&folder).unwrap_or_default().iter().any(|fs| folder.join(fs).join("devices").join(block).exists())
    }

    /// Loop devices on a block device, which are no holders of it.
    fn loops(&self, block: &str) -> Vec<String> {
        let folder = self.path("/sys/class/block");
        let file = |name: &String| text(&folder.join(name).join("loop/backing_file"));
        let device = format!("/dev/{block}");
        let names = names(&folder).unwrap_or_default();
        names.into_iter().filter(|name| file(name).as_deref() == Some(&device)).collect()
    }

    /// Subsystems by which the kernel's NVMe target (nvmet) gives a block device to other machines, without a claim.
    fn exports(&self, block: &str) -> Vec<String> {
        let folder = self.path("/sys/kernel/config/nvmet/subsystems");
        let is_it = |namespace: &Path| {
            let device = text(&namespace.join("device_path")).and_then(|path| fs::canonicalize(self.path(path)).ok());
            device.is_some_and(|device| device.file_name() == Some(block.as_ref()))
        };
        let exports = |name: &String| {
            let namespaces = folder.join(name).join("namespaces");
            names(&namespaces).unwrap_or_default().iter().any(|id| is_it(&namespaces.join(id)))
        };
        names(&folder).unwrap_or_default().into_iter().filter(exports).collect()
    }

    /// Other processes that have a block device open, for messages; those of other users are seen by root only.
    fn openers(&self, block: &str) -> Vec<String> {
        // A namespace has a character device besides.
        let generic = block.strip_prefix("nvme").map(|rest| format!("/dev/ng{rest}"));
        let devices = [Some(format!("/dev/{block}")), generic].map(|path| path.map(PathBuf::from));
        let folder = self.path("/proc");
        let is_open = |process: &Path| {
            let files = fs::read_dir(process.join("fd")).into_iter().flatten();
            files.flatten().any(|file| fs::read_link(file.path()).is_ok_and(|target| devices.contains(&Some(target))))
        };
        let named = |id: String| {
            let process = folder.join(&id);
            let other = id.parse::<u32>().is_ok_and(|id| id != std::process::id());
            let name = || text(&process.join("comm")).unwrap_or_else(|| "a process".into());
            (other && is_open(&process)).then(|| format!("{} (process {id})", name()))
        };
        names(&folder).unwrap_or_default().into_iter().filter_map(named).collect()
    }

    /// What holds a block device, for messages.
    fn holder(&self, name: &str) -> String {
        let folder = self.path("/sys/class/block").join(name);
        if folder.join("md").exists() {
            return format!("the RAID array {name}");
        }
        if folder.join("bcache").exists() {
            return format!("the cache {name}");
        }
        let label = text(&folder.join("dm/name")).unwrap_or_else(|| name.to_owned());
        match text(&folder.join("dm/uuid")).unwrap_or_default() {
            uuid if uuid.starts_with("LVM-") => format!("the LVM volume {label}"),
            uuid if uuid.starts_with("CRYPT-") => format!("the encrypted volume {label}"),
            _ => format!("the device-mapper device {label}"),
        }
    }

    /// What is on a block device, by its signatures and those in `known`. Nothing if it cannot be read.
    pub fn block_contents(&self, name: &str, known: &[(&[u8], &str)]) -> Vec<Content> {
        let Ok(file) = File::open(self.path("/dev").join(name)) else { return Vec::new() };
        let size = self.block_bytes(name).unwrap_or(0);
        contents(&|at, out| file.read_exact_at(out, at), size, known)
    }

    /// Bytes of a block device.
    pub fn block_bytes(&self, name: &str) -> Option<u64> {
        // In sectors of 512 bytes, whatever the device's blocks are.
        text(&self.path("/sys/class/block").join(name).join("size"))?.parse::<u64>().ok()?.checked_mul(512)
    }

    /// Takes all block devices of a drive for as long as the files are open: what is not in use yet cannot come into use.
    ///
    /// # Errors
    /// The drive is in use, and for what.
    pub fn claim(&self, device: &PciDevice) -> Result<Vec<File>, Error> {
        let refuse = |reason: String| Error::Refused { device: device.address.to_string(), reason };
        let claim = |block: &String| {
            // Without O_CREAT, this is the kernel's way to say: nobody else (open(2)). Mounts, LVM, RAID and ZFS claim so, too, in
            // whatever namespace.
            let path = self.path("/dev").join(block);
            let opened = OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(&path);
            opened.map_err(|cause| match cause.kind() {
                std::io::ErrorKind::ResourceBusy => refuse(format!("{block} is in use, by what this user is not told")),
                _ => Error::Io { path, what: "opening", cause },
            })
        };
        // Behind the claim nothing changes any more that would be a reason. Who only looks what is there, as udev does when something was written,
        // is gone soon.
        let claimed: Result<Vec<_>, _> = device.blocks.iter().map(claim).collect();
        let until = Instant::now() + LOOK;
        let blocks: Vec<_> = device.blocks.iter().flat_map(|block| self.with_partitions(block)).collect();
        while blocks.iter().any(|block| !self.openers(block).is_empty()) && Instant::now() < until {
            std::thread::sleep(LOOK / 20);
        }
        let reasons: Vec<_> = device.blocks.iter().flat_map(|block| self.uses(block)).collect();
        match reasons.is_empty() {
            true => claimed,
            false => Err(refuse(format!("the drive is in use: {}", reasons.join("; ")))),
        }
    }
}

/// Whether a path names a block device, such as `/dev/nvme0n1`, and its name.
pub fn block_name(system: &System, path: &Path) -> Option<String> {
    let path = fs::canonicalize(path).ok()?;
    let name = path.file_name()?.to_str()?.to_owned();
    system.path("/sys/class/block").join(&name).exists().then_some(name)
}
