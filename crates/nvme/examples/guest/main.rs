//! The program that `cargo xtask qemu` starts as the first and only one of a virtual machine, to drive QEMU's NVMe devices.
//!
//! `guest image FILE BYTES DRIVE NAMESPACE` writes what the machine expects a namespace to hold.

mod checks;
mod engine;
mod pattern;
mod shm;

use anyhow::{Context, Result, bail};
use std::{ffi::CString, fs, path::Path};

/// What ends the machine's output if all is well.
const PASSED: &str = "guest: passed";

fn main() {
    let args: Vec<_> = std::env::args().skip(1).collect();
    if std::process::id() != 1 {
        if let Err(error) = image(&args) {
            eprintln!("error: {error:#}");
            std::process::exit(1);
        }
        return;
    }
    match boot().and_then(|()| checks::run()) {
        Ok(()) => println!("{PASSED}"),
        Err(error) => println!("guest: FAILED: {error:#}"),
    }
    // SAFETY: nothing is left to be saved.
    unsafe {
        libc::sync();
        libc::reboot(libc::RB_POWER_OFF);
    }
}

fn image(args: &[String]) -> Result<()> {
    let [command, file, bytes, drive, namespace] = args else { bail!("usage: image FILE BYTES DRIVE NAMESPACE") };
    if command != "image" {
        bail!("unknown command {command}");
    }
    pattern::write(Path::new(file), bytes.parse()?, drive.parse()?, namespace.parse()?).with_context(|| file.clone())
}

/// What a first process has to do.
fn boot() -> Result<()> {
    for (kind, place) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        fs::create_dir_all(place)?;
        let [kind, place] = [kind, place].map(|text| CString::new(text).expect("no zeros"));
        // SAFETY: C strings, and no data.
        let result = unsafe { libc::mount(kind.as_ptr(), place.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) };
        if result != 0 {
            return Err(std::io::Error::last_os_error()).with_context(|| format!("mounting {place:?}"));
        }
    }
    // In the order of their names, which begin with numbers.
    let mut modules: Vec<_> = fs::read_dir("/modules")?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    modules.sort();
    for module in modules {
        let image = fs::read(&module)?;
        // SAFETY: the bytes and a C string, which the kernel copies.
        let result = unsafe { libc::syscall(libc::SYS_init_module, image.as_ptr(), image.len(), c"".as_ptr()) };
        if result != 0 {
            return Err(std::io::Error::last_os_error()).with_context(|| format!("loading {}", module.display()));
        }
    }
    Ok(())
}
