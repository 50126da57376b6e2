//! `ntransformer nvme`: drives that are read without the kernel's block layer. docs/nvme.md says what for, and what it takes.

pub mod bench;
pub mod list;
pub mod storage;
pub mod write;

use std::{
    io::{self, IsTerminal, Write},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use bytesize::ByteSize;
use indicatif::{ProgressBar, ProgressStyle};
use nvme::{Bound, Content, PciAddress, System};

use super::open::say;
use crate::gguf::Gguf;
use storage::Target;

/// Arguments of `ntransformer nvme`.
#[derive(Debug, clap::Args)]
pub struct NvmeArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Show the drives, their drivers, and what is on them.
    List,
    /// Take a drive from the kernel, so that it can be read directly.
    Bind {
        /// The drive's PCI address, such as 0000:3b:00.0.
        #[arg(value_name = "BDF")]
        address: PciAddress,
    },
    /// Give a drive back to the kernel.
    Unbind {
        /// The drive's PCI address, such as 0000:3b:00.0.
        #[arg(value_name = "BDF")]
        address: PciAddress,
    },
    /// Lay a model on a raw drive. What was there is lost.
    Write(WriteArgs),
    /// Read a model on a raw drive and check that it is whole.
    Verify(VerifyArgs),
    /// Measure how fast a drive is read directly.
    Bench(BenchArgs),
}

/// Which drive, and where on it.
#[derive(Debug, clap::Args)]
pub struct PlaceArgs {
    /// The drive's PCI address (0000:3b:00.0) or block device (/dev/nvme1n1).
    #[arg(value_name = "BDF|DEVICE")]
    pub drive: String,
    /// The namespace, where the drive is given by its PCI address. The only one if absent.
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u32).range(1..))]
    pub namespace: Option<u32>,
    /// Logical block that the model begins at.
    #[arg(long, value_name = "BLOCK", default_value_t = 0)]
    pub lba: u64,
}

/// Arguments of `ntransformer nvme write`.
#[derive(Debug, clap::Args)]
pub struct WriteArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// The GGUF file; of a split model, any part.
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// The drive's serial number, to say that this drive is meant; it is asked for if absent.
    #[arg(long, value_name = "NUMBER")]
    serial: Option<String>,
}

/// Arguments of `ntransformer nvme verify`.
#[derive(Debug, clap::Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// Compare with this model, byte by byte. Without it, checksums are compared.
    #[arg(value_name = "MODEL")]
    model: Option<PathBuf>,
}

/// Arguments of `ntransformer nvme bench`.
#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    /// The drive's PCI address. It has to be taken from the kernel (bind).
    #[arg(value_name = "BDF")]
    address: PciAddress,
    /// The namespace. The only one if absent.
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u32).range(1..))]
    namespace: Option<u32>,
    /// Reads in flight.
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_values_t = [1, 8, 32], value_parser = clap::value_parser!(u32).range(1..=1023))]
    depth: Vec<u32>,
    /// Bytes of a read.
    #[arg(long, value_name = "SIZE,...", value_delimiter = ',', default_values_t = [ByteSize::kib(4), ByteSize::kib(128), ByteSize::mib(1)])]
    size: Vec<ByteSize>,
    /// Seconds of each measurement.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
}

/// Runs a subcommand on this machine.
///
/// # Errors
/// What the user is to be told, once.
pub fn run(args: &NvmeArgs) -> anyhow::Result<()> {
    let system = System::live();
    match &args.command {
        Command::List => list::print(&system, &mut io::stdout().lock()),
        Command::Bind { address } => bind(&system, *address),
        Command::Unbind { address } => {
            match system.unbind(*address)? {
                Some(driver) => say(&format!("{address}: the driver {driver} has it")),
                None => say(&format!("{address}: the kernel has no driver for it; as root: modprobe nvme")),
            }
            Ok(())
        }
        Command::Write(args) => write(&system, args),
        Command::Verify(args) => verify(&system, args),
        Command::Bench(args) => {
            let options = bench::Options {
                namespace: args.namespace,
                depths: args.depth.clone(),
                sizes: args.size.iter().map(|size| size.0).collect(),
                time: Duration::from_secs(args.seconds),
            };
            bench::print(&nvme::open(&system, args.address)?, &options, &mut io::stdout().lock())
        }
    }
}

fn bind(system: &System, address: PciAddress) -> anyhow::Result<()> {
    match system.bind(address)? {
        Bound::Vfio => say(&format!("{address}: vfio-pci has it, and the IOMMU guards memory")),
        Bound::Nothing => {
            say(&format!("{address}: no driver has it. There is no IOMMU: the drive can reach all of the memory."));
            say("Memory for it has to be huge pages. If there are none, as root: sysctl vm.nr_hugepages=512 (1 GiB)");
            say(
                "With an IOMMU it would be safer: switch it on in the firmware, and boot with intel_iommu=on or amd_iommu=on",
            );
        }
    }
    say(&format!("`ntransformer nvme unbind {address}` gives it back; so does a restart"));
    Ok(())
}

fn write(system: &System, args: &WriteArgs) -> anyhow::Result<()> {
    let gguf = Gguf::open(&args.model)?;
    let mut target = Target::open(system, &args.place.drive, args.place.namespace)?;
    let start = target.start(args.place.lba)?;
    let contents = target.contents();
    refuse_contents(&target.name, &contents)?;
    confirm(&target.name, &target.serial, &contents, args.serial.as_deref())?;
    let bar = bar(gguf.file_bytes())?;
    let layout = write::write(&mut *target.storage, start, &gguf, &mut |done| bar.set_position(done))?;
    bar.finish_and_clear();
    let (bytes, lba) = (ByteSize(layout.bytes()), args.place.lba);
    say(&format!(
        "{}: {} is there, {bytes} from block {lba} on; `ntransformer nvme verify` reads it back",
        target.name,
        gguf.name()
    ));
    target.close()
}

fn verify(system: &System, args: &VerifyArgs) -> anyhow::Result<()> {
    let gguf = args.model.as_deref().map(Gguf::open).transpose()?;
    let mut target = Target::open(system, &args.place.drive, args.place.namespace)?;
    let start = target.start(args.place.lba)?;
    let bar = bar(0)?;
    let verified = write::verify(&mut *target.storage, start, gguf.as_ref(), &mut |done, all| {
        bar.set_length(all);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let verified = verified.with_context(|| target.name.clone())?;
    println!("{}: {} of {} are as they should be", target.name, ByteSize(verified.bytes), verified.what);
    target.close()
}

/// What belongs to something larger is not overwritten.
fn refuse_contents(name: &str, contents: &[Content]) -> anyhow::Result<()> {
    let kept: Vec<_> = contents.iter().filter(|content| content.keep).map(|content| content.name.as_str()).collect();
    ensure!(
        kept.is_empty(),
        "{name} holds {}; if that is not needed any more, wipe it first (wipefs -a)",
        kept.join(" and ")
    );
    Ok(())
}

/// Has the user say that this drive is meant.
fn confirm(name: &str, serial: &str, contents: &[Content], given: Option<&str>) -> anyhow::Result<()> {
    let typed = match given {
        Some(given) => given.to_owned(),
        None if !io::stdin().is_terminal() => {
            bail!("{name}: everything on it will be lost; --serial NUMBER says that it is meant")
        }
        None => {
            let names: Vec<_> = contents.iter().map(|content| content.name.as_str()).collect();
            let holds = if names.is_empty() { "nothing that is known".into() } else { names.join(", ") };
            let mut err = io::stderr().lock();
            write!(
                err,
                "{name} (serial number {serial}) holds {holds}.\nAll of it will be lost. To go on, type the serial number: "
            )?;
            err.flush()?;
            let mut line = String::new();
            io::stdin().read_line(&mut line)?;
            line
        }
    };
    ensure!(typed.trim() == serial, "{name} has the serial number {serial}, not {}; nothing was written", typed.trim());
    Ok(())
}

/// Hides itself where standard error is no terminal.
fn bar(len: u64) -> anyhow::Result<ProgressBar> {
    Ok(ProgressBar::new(len).with_style(ProgressStyle::with_template(
        "{wide_bar} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left",
    )?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_serial_number_has_to_be_right() {
        assert!(confirm("d", "S1", &[], Some("S1")).is_ok());
        assert!(confirm("d", "S1", &[], Some(" S1\n")).is_ok());
        for wrong in ["", "S", "S12", "s1"] {
            let error = confirm("d", "S1", &[], Some(wrong)).unwrap_err().to_string();
            assert!(error.contains("nothing was written"), "{error}");
        }
    }

    #[test]
    fn members_of_groups_are_not_overwritten() {
        let content = |name: &str, keep| Content { name: name.into(), keep };
        assert!(refuse_contents("d", &[content("a GGUF model", false)]).is_ok());
        let error = refuse_contents("d", &[content("x", false), content("a member of a ZFS pool", true)]).unwrap_err();
        assert!(error.to_string().starts_with("d holds a member of a ZFS pool;"), "{error}");
    }
}
