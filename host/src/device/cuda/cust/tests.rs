//! The driver without a GPU: what it says where there is none, and its transfers over a stand-in for NVIDIA's library.

use cuda_std::kernel::Kernel;

use super::*;

#[path = "../../../../../crates/cuda_dlopen/tests/fake/mod.rs"]
mod fake;

/// A test's path for the test runner.
macro_rules! here {
    ($name:literal) => {
        format!("{}::{}", module_path!().split_once("::").expect("a crate's module").1, $name)
    };
}

/// Runs the rest of the test once per line of settings, in processes of their own with the stand-in as the driver.
/// Evaluates to the stderr of each in the outer process, which is done then.
macro_rules! with_driver {
    ($name:literal $(, $variable:literal = $value:expr)*) => {
        if fake::outer_with_driver(&here!($name), &[$(($variable, $value)),*]).is_some() {
            return;
        }
    };
}

mod beside;
mod captures;
mod launches;
mod link;
mod opening;
mod transfers;

/// The stand-in's kernel that stores `value` in `count` bytes.
enum Fill {}
impl Kernel for Fill {
    const NAME: &'static str = "fill";
    const MODULE: &'static str = "good";
    type Args = (*mut u8, u32, u32);
    unsafe fn run(_: Self::Args) {}
}

/// The same kernel, compiled for compute capability 9.0.
enum DependentFill {}
impl Kernel for DependentFill {
    const NAME: &'static str = "fill";
    const MODULE: &'static str = "dependent";
    type Args = (*mut u8, u32, u32);
    unsafe fn run(_: Self::Args) {}
}

/// Kernels whose launch fails, each in its way.
macro_rules! kernel {
    ($type:ident, $name:literal in $module:literal) => {
        enum $type {}
        impl Kernel for $type {
            const NAME: &'static str = $name;
            const MODULE: &'static str = $module;
            type Args = ();
            unsafe fn run(_: Self::Args) {}
        }
    };
}
kernel!(Crash, "crash" in "good");
kernel!(Absent, "absent" in "good");
kernel!(Unreadable, "fill" in "bad");
kernel!(Unknown, "fill" in "unheard_of");

fn modules(name: &str, _capability: (u32, u32)) -> Option<&'static str> {
    match name {
        "good" => Some(".version 7.4\n.target sm_80\n.entry fill\n.entry crash\n"),
        "dependent" => Some(".version 8.0\n.target sm_90\n.entry fill\n"),
        "feature" => Some(".version 8.0\n.target sm_90a\n.entry fill\n"),
        "bad" => Some("nonsense"),
        _ => None,
    }
}

fn open() -> CustDriver {
    CustDriver::with_modules(0, modules, |line| eprintln!("{line}")).unwrap()
}

/// Bytes in which a displaced or missing piece shows.
fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| ((i * 31 + i / 251 + i / 65_537 + seed * 17) % 256) as u8).collect()
}

fn fetch(driver: &CustDriver, mem: &Mem) -> Vec<u8> {
    let mut bytes = vec![0; mem.len];
    driver.read(mem, 0, &mut bytes).unwrap();
    bytes
}

/// Fills `mem` with `value`, and then its first half with the next.
fn two_fills(driver: &CustDriver, mem: &Mem, value: u32) -> Result<()> {
    let (start, len) = (CustDriver::address(mem) as *mut u8, mem.len as u32);
    // SAFETY: all of `mem`.
    unsafe {
        driver.launch::<DependentFill>(Grid::new(1, 1, 32), (start, value, len))?;
        driver.launch::<Fill>(Grid::new(1, 1, 32), (start, value + 1, len / 2))
    }
}
