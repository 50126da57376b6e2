//! The engine itself: a model is laid on a drive, streamed from there, and tells the story that it tells from its file.

use anyhow::{Context, Result, ensure};
use nvme::PciDevice;
use std::{
    fs::{self, File, OpenOptions},
    io::Read,
    os::unix::{
        fs::FileExt,
        process::{CommandExt, ExitStatusExt},
    },
    path::Path,
    process::{Command, ExitStatus, Stdio},
    time::Instant,
};

/// The drive's serial number.
pub const SERIAL: &str = "NTMODEL";

/// How many namespaces it has.
pub const NAMESPACES: usize = 2;

const ENGINE: &str = "/bin/ntransformer";
const MODEL: &str = "/model.gguf";

/// So little memory that all of the layers are streamed.
const RUN: [&str; 15] = [
    "-m",
    MODEL,
    "--device",
    "cpu",
    "-c",
    "64",
    "-t",
    "0",
    "-p",
    "Once upon a time",
    "--streaming",
    "--vram-budget",
    "7MiB",
    "--ram-budget",
    "0",
];

/// How long the story is.
const SHORT: [&str; 2] = ["-n", "16"];

/// The block that a plain file is laid at.
const LBA: u64 = 40;

/// Runs the engine; what it says on stdout and on stderr.
fn engine(args: &[&str], variables: &[(&str, &str)]) -> Result<(bool, String, String)> {
    let output = Command::new(ENGINE).args(args).envs(variables.iter().copied()).output().context(ENGINE)?;
    let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    Ok((output.status.success(), out, err))
}

/// The same, which has to succeed.
fn run(args: &[&str], variables: &[(&str, &str)]) -> Result<(String, String)> {
    let (succeeded, out, err) = engine(args, variables)?;
    ensure!(succeeded, "{args:?} {variables:?}: {err}");
    Ok((out, err))
}

/// `wait` waits until the kernel's driver has the drive.
pub fn check(iommu: bool, wait: impl Fn() -> Result<PciDevice>) -> Result<()> {
    let address = wait()?.address.to_string();
    let with = |more: &[&'static str]| [&RUN[..], &SHORT, more].concat();
    let (expected, said) = run(&with(&[]), &[])?;
    ensure!(
        expected.split_whitespace().count() > 4 && said.contains("what is on disk is read by "),
        "{expected} {said}"
    );

    let refused = engine(&with(&["--nvme", "auto"]), &[])?;
    ensure!(!refused.0 && refused.2.contains("no NVMe drive is taken from the kernel"), "{}", refused.2);
    let refused = engine(&with(&[]), &[("GPUNVME_PCI_BDF", &address)])?;
    ensure!(!refused.0 && refused.2.contains("the driver nvme is bound to it; unbind it first"), "{}", refused.2);

    // As the documentation tells a user to do it.
    let refused = engine(&["nvme", "write", &address, MODEL, "--serial", SERIAL], &[])?;
    ensure!(!refused.0 && refused.2.contains("name one of its block devices instead: /dev/nvme"), "{}", refused.2);
    run(&["nvme", "write", &address, MODEL, "--namespace", "2", "--serial", SERIAL], &[])?;
    run(&["nvme", "bind", &address], &[])?;
    let way =
        if iommu { "VFIO, through the IOMMU" } else { "no driver, through sysfs; physical addresses of huge pages" };
    let landing = if iommu { "straight into the buffers" } else { "by way of " };
    let told = |what: &str, args: &[&str], variables: &[(&str, &str)], image: &str| {
        let start = Instant::now();
        let (text, said) = run(args, variables)?;
        let from = format!("what is on disk is read by our driver from the drive {address} ({way}): {image}");
        ensure!(said.contains(&from) && said.contains(landing), "{what}: {said}");
        ensure!(text == expected, "{what}: {text:?} instead of {expected:?}");
        println!("guest: {address} {what}: the same story in {:.1} s", start.elapsed().as_secs_f64());
        Ok(())
    };
    told("packed", &with(&["--nvme", "auto"]), &[], "a packed image on namespace 2 from block 0 on")?;
    unprepared(&with(&["--nvme", "auto"]), iommu).context("a machine that is not prepared")?;
    let long = [&RUN[..], &["-n", "50", "--nvme", "auto"]].concat();
    let interrupted = ended(&long, &address, libc::SIGINT).context("Ctrl-C")?;
    ensure!(interrupted.code() == Some(130), "Ctrl-C: {interrupted}");
    let terminated = ended(&long, &address, libc::SIGTERM).context("SIGTERM")?;
    ensure!(terminated.signal() == Some(libc::SIGTERM), "SIGTERM: {terminated}");
    let (plan, _) = run(&with(&["--plan"]), &[("GPUNVME_PCI_BDF", &address)])?;
    ensure!(plan.contains(&format!("on the drive {address}, streamed")) && plan.contains(" from disk at "), "{plan}");
    run(&["nvme", "unbind", &address], &[])?;

    // As dd does it, on the first namespace.
    let block = wait()?.blocks.first().context("no block device")?.clone();
    let blocks = fs::read_to_string(format!("/sys/class/block/{block}/queue/logical_block_size"))?;
    let drive = OpenOptions::new().write(true).open(format!("/dev/{block}"))?;
    drive.write_all_at(&fs::read(MODEL)?, LBA * blocks.trim().parse::<u64>()?)?;
    drive.sync_all()?;
    drop(drive);
    run(&["nvme", "bind", &address], &[])?;
    let lba = LBA.to_string();
    let variables = [("GPUNVME_PCI_BDF", &*address), ("GPUNVME_GGUF_LBA", &lba)];
    told("plain", &with(&[]), &variables, &format!("a plain GGUF file on namespace 1 from block {lba} on"))?;
    // At block 0, only the other namespace has something.
    let refused = engine(&with(&["--nvme-namespace", "1"]), &variables[..1])?;
    ensure!(
        !refused.0 && refused.2.contains("there is no model at block 0, but nothing that is known"),
        "{}",
        refused.2
    );
    run(&["nvme", "unbind", &address], &[])?;
    wait()?;
    Ok(())
}

/// What is missing is said, with what to do.
fn unprepared(args: &[&str], iommu: bool) -> Result<()> {
    let output = Command::new(ENGINE).args(args).uid(1000).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    let advice = "Permission denied (os error 13); start as root, or let this user read and write that file";
    ensure!(!output.status.success() && said.contains(advice), "{said}");
    if !iommu {
        let pages = Path::new("/proc/sys/vm/nr_hugepages");
        let before = fs::read_to_string(pages)?;
        fs::write(pages, "0")?;
        let (succeeded, _, said) = engine(args, &[])?;
        fs::write(pages, &before)?;
        ensure!(!succeeded && said.contains("; set some aside (as root: sysctl vm.nr_hugepages="), "{said}");
    }
    Ok(())
}

/// A run that is ended in its middle by a signal, and what its end is: it leaves a drive that writes nothing any more.
fn ended(args: &[&str], address: &str, signal: i32) -> Result<ExitStatus> {
    let is_bus_master = || -> Result<bool> {
        let mut command = [0];
        File::open(format!("/sys/bus/pci/devices/{address}/config"))?.read_exact_at(&mut command, 4)?;
        Ok(command[0] & 4 != 0)
    };
    let mut engine = Command::new(ENGINE).args(args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    // It has begun to tell.
    engine.stdout.as_mut().context("stdout is piped")?.read_exact(&mut [0; 24])?;
    ensure!(is_bus_master()?, "nothing is read");
    // SAFETY: a process of our own that was not waited for.
    let sent = unsafe { libc::kill(engine.id() as i32, signal) };
    ensure!(sent == 0, "no signal");
    let status = engine.wait()?;
    ensure!(!is_bus_master()?, "the drive goes on");
    Ok(status)
}
