//! `cargo xtask qemu`: the NVMe driver against QEMU's devices, in a virtual machine that needs no virtualisation (TCG).
//!
//! The machine is Debian's kernel and one program, `crates/nvme/examples/guest`, which also starts the engine. It starts twice: with an IOMMU, where the driver goes
//! through VFIO, and without, where it takes devices that have no driver. docs/nvme.md says what is checked.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::{initramfs, root, sh};

/// The flags of `cargo xtask qemu`.
#[derive(clap::Args)]
pub struct Qemu {
    /// Show all that the machines print
    #[arg(long)]
    pub verbose: bool,
}

/// Modules that the guest loads, with those that they need.
const MODULES: [&str; 5] = ["crct10dif_generic", "nvme", "vfio_iommu_type1", "vfio-pci", "vfio"];

/// Longer than a machine takes, on a slow one.
const TIMEOUT: Duration = Duration::from_secs(300);

/// What the guest prints at last.
const PASSED: &str = "guest: passed";

const TARGET: &str = "x86_64-unknown-linux-gnu";

const MIB: u64 = 1 << 20;

/// What is special about a device.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Sound,
    /// A block at 1 MiB cannot be read.
    Bad,
    /// 2 MiB a second.
    Slow,
    /// The engine lays its model there.
    Model,
}

/// An NVMe device.
struct Drive {
    mdts: u8,
    kind: Kind,
    /// Bytes of a block, and of the namespace.
    namespaces: &'static [(u32, u64)],
}

const DRIVES: [Drive; 5] = [
    Drive { mdts: 0, kind: Kind::Sound, namespaces: &[(512, 64 * MIB)] },
    Drive { mdts: 5, kind: Kind::Sound, namespaces: &[(4096, 256 * MIB), (512, 32 * MIB)] },
    Drive { mdts: 7, kind: Kind::Bad, namespaces: &[(512, 32 * MIB)] },
    Drive { mdts: 5, kind: Kind::Slow, namespaces: &[(4096, 16 * MIB)] },
    Drive { mdts: 5, kind: Kind::Model, namespaces: &[(512, 32 * MIB), (4096, 32 * MIB)] },
];

pub fn run(args: &Qemu) -> Result<()> {
    let folder = sh::target().join("qemu");
    fs::create_dir_all(&folder)?;
    let kernel = kernel(&folder)?;
    let guest = guest()?;
    let initrd = folder.join("initrd");
    fs::write(&initrd, initrd_of(&kernel, &guest, &engine()?)?)?;
    for iommu in [true, false] {
        let start = Instant::now();
        let disks = tempfile::tempdir_in(&folder)?;
        let mut machine = machine(&kernel.image, &initrd, disks.path(), &guest, iommu)?;
        watch(&mut machine, args.verbose)?;
        let with = if iommu { "with" } else { "without" };
        println!("NVMe in a machine {with} an IOMMU: passed in {:.0} s", start.elapsed().as_secs_f64());
    }
    Ok(())
}

/// Debian's kernel, unpacked and not installed.
struct Kernel {
    image: PathBuf,
    modules: PathBuf,
}

fn kernel(folder: &Path) -> Result<Kernel> {
    let unpacked = folder.join("kernel");
    if !unpacked.join("boot").exists() {
        let depends = sh::output(sh::command("apt-cache").args(["depends", "linux-image-amd64"]));
        let depends = depends.context("Debian's package lists (apt-get update) tell which kernel is the newest")?;
        // Its own name comes first.
        let mut packages = depends.split_whitespace().filter(|word| word.starts_with("linux-image-"));
        let package = packages.nth(1).context("apt-cache knows no linux-image-amd64; run apt-get update")?;
        let download = tempfile::tempdir_in(folder)?;
        sh::run(sh::command("apt-get").args(["download", "-q", package]).current_dir(download.path()))?;
        let file = fs::read_dir(download.path())?.next().context("apt-get has downloaded nothing")??.path();
        let partial = folder.join("kernel.partial");
        sh::run(sh::command("dpkg-deb").arg("--extract").arg(&file).arg(&partial))?;
        fs::rename(&partial, &unpacked)?;
    }
    let only = |path: PathBuf, prefix: &str| -> Result<PathBuf> {
        let mut found = fs::read_dir(&path).with_context(|| path.display().to_string())?;
        let is_it = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with(prefix);
        let found = found.find_map(|entry| entry.ok().filter(is_it));
        Ok(found.with_context(|| format!("{}: no {prefix}*", path.display()))?.path())
    };
    Ok(Kernel { image: only(unpacked.join("boot"), "vmlinuz-")?, modules: only(unpacked.join("lib/modules"), "")? })
}

/// The guest's program, without shared libraries.
fn guest() -> Result<PathBuf> {
    let args = ["build", "--release", "--package", "nvme", "--example", "guest", "--target", TARGET];
    let flags = "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS";
    sh::run(sh::cargo().args(args).env(flags, "-Ctarget-feature=+crt-static"))?;
    Ok(sh::target().join(TARGET).join("release/examples/guest"))
}

/// The engine as it is built for users.
fn engine() -> Result<PathBuf> {
    sh::run(sh::cargo().args(["build", "--release", "--package", "host", "--bin", "ntransformer"]))?;
    Ok(sh::target().join("release/ntransformer"))
}

/// The shared libraries of a program, the loader among them.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let list = sh::output(sh::command("ldd").arg(program))?;
    // A name, an arrow and a path, or a path alone, and an address behind it.
    let paths = list.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(paths.map(PathBuf::from).collect())
}

fn initrd_of(kernel: &Kernel, guest: &Path, engine: &Path) -> Result<Vec<u8>> {
    let mut archive = initramfs::Archive::default();
    archive.folder("modules");
    for (number, module) in initramfs::modules(&kernel.modules, &MODULES)?.iter().enumerate() {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        archive.file(&format!("modules/{number:02}-{name}"), &fs::read(module)?, 0o644);
    }
    archive.file("init", &fs::read(guest)?, 0o755);
    for folder in ["bin", "lib", "lib64"] {
        archive.folder(folder);
    }
    archive.file("bin/ntransformer", &fs::read(engine)?, 0o755);
    for library in libraries(engine)? {
        let name = library.file_name().unwrap_or_default().to_string_lossy();
        // Where the loader is expected, and where it looks by itself.
        let folder = if name.starts_with("ld-") { "lib64" } else { "lib" };
        archive.file(&format!("{folder}/{name}"), &fs::read(&library)?, 0o755);
    }
    archive.file("model.gguf", &fs::read(root().join("assets/demo.gguf"))?, 0o644);
    Ok(archive.finish())
}

fn machine(kernel: &Path, initrd: &Path, disks: &Path, guest: &Path, iommu: bool) -> Result<Command> {
    let mut qemu = sh::command("qemu-system-x86_64");
    qemu.args(["-machine", "q35", "-accel", "tcg", "-smp", "1", "-m", "768M", "-no-reboot", "-nodefaults"]);
    qemu.args(["-display", "none", "-serial", "stdio"]);
    qemu.arg("-kernel").arg(kernel).arg("-initrd").arg(initrd);
    let memory = if iommu { "intel_iommu=on" } else { "hugepages=64" };
    // On a busy machine the kernel would find that its timer does not work, and stop.
    qemu.arg("-append").arg(format!("console=ttyS0 quiet panic=-1 no_timer_check {memory}"));
    if iommu {
        qemu.args(["-device", "intel-iommu,intremap=on"]);
    }
    qemu.args(["-object", "memory-backend-ram,id=shm,size=32M,share=on", "-device", "ivshmem-plain,memdev=shm"]);
    let slow = json!({ "qom-type": "throttle-group", "id": "slow", "limits": { "bps-total": 2 * MIB } });
    qemu.arg("-object").arg(slow.to_string());
    for (number, drive) in DRIVES.iter().enumerate() {
        let kind = match drive.kind {
            Kind::Sound => "",
            Kind::Bad => "-bad",
            Kind::Slow => "-slow",
            Kind::Model => "",
        };
        let serial = match drive.kind {
            Kind::Model => "NTMODEL".to_owned(),
            _ => format!("NT{number}-{}{kind}", drive.mdts),
        };
        qemu.arg("-device").arg(format!("nvme,id=nvme{number},serial={serial},mdts={}", drive.mdts));
        for (id, &(block, bytes)) in (1..).zip(drive.namespaces) {
            let file = disks.join(format!("{number}-{id}"));
            let numbers = [bytes.to_string(), number.to_string(), id.to_string()];
            sh::run(sh::command(guest).arg("image").arg(&file).args(numbers))?;
            let node = format!("disk{number}-{id}");
            let file = json!({ "driver": "file", "filename": file });
            let image = match drive.kind {
                Kind::Sound | Kind::Model => file,
                Kind::Bad => {
                    let error = json!({ "event": "none", "iotype": "read", "errno": 5, "sector": 2048 });
                    json!({ "driver": "blkdebug", "image": file, "inject-error": [error] })
                }
                Kind::Slow => json!({ "driver": "throttle", "throttle-group": "slow", "file": file }),
            };
            let disk = json!({ "driver": "raw", "node-name": node, "file": image });
            qemu.arg("-blockdev").arg(disk.to_string());
            let blocks = format!("logical_block_size={block},physical_block_size={block}");
            qemu.arg("-device").arg(format!("nvme-ns,bus=nvme{number},drive={node},nsid={id},{blocks}"));
        }
    }
    Ok(qemu)
}

/// Starts a machine and waits for its end.
fn watch(machine: &mut Command, verbose: bool) -> Result<()> {
    let mut child = machine.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let child = child.as_mut().map_err(|e| anyhow::anyhow!("{e}"));
    let child = child.context("qemu-system-x86_64 cannot be started (Debian: apt-get install qemu-system-x86)")?;
    let out = BufReader::new(child.stdout.take().context("stdout is piped")?);
    let (send, lines) = mpsc::channel();
    // Ends with the machine's output.
    thread::spawn(move || out.split(b'\n').map_while(Result::ok).try_for_each(|line| send.send(line)));
    let (start, mut log) = (Instant::now(), Vec::new());
    while let Ok(line) = lines.recv_timeout(TIMEOUT.saturating_sub(start.elapsed())) {
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        if verbose || line.contains("guest: ") {
            println!("{line}");
        }
        log.push(line);
    }
    // It has ended, or takes too long.
    let late = start.elapsed() >= TIMEOUT;
    if late {
        child.kill()?;
    }
    let status = child.wait()?;
    if !log.iter().any(|line| line.contains(PASSED)) {
        let shown = if verbose { String::new() } else { log.join("\n") + "\n" };
        let why = if late { format!("it took longer than {TIMEOUT:?}") } else { format!("QEMU: {status}") };
        bail!("{shown}the driver's checks in the virtual machine failed ({why})");
    }
    Ok(())
}
