//! A userspace NVMe driver. It knows nothing of what is on the drives.
//!
//! - A [`Door`] is a way to a device: its [`Registers`], and memory that it can reach. [`vfio`] goes through an IOMMU; [`unbound`] takes a
//!   device that no driver is bound to, by its files in sysfs.
//! - [`DmaBuf`] is memory that knows its addresses on the bus; [`BusMemory`] is the part of it that a device needs, which may be something else
//!   than RAM. `prp` describes it in commands.
//! - A [`Controller`] is reset, enabled, asked who it is, and given queues. A [`Drive`] reads and writes one of its namespaces, and sees to what
//!   fails. A [`LentQueue`] is for somebody else to drive, such as a GPU.
//! - A [`Window`] shows memory of another device, such as a GPU's, to the bus; [`prove()`] finds a buffer in it.
//! - [`System`] is what the kernel knows of drives: their drivers, and what they are used for.
//! - `model` (with the feature `testing`) is a controller in plain Rust, for tests.
//!
//! The specifications that are cited: NVM Express Base 2.0, NVM Command Set 1.0, NVMe over PCIe Transport 1.0. All numbers are
//! little-endian. Sizes are in bytes, unless they are said to be in blocks.

mod bind;
mod command;
mod contents;
mod controller;
mod dma;
mod door;
mod drive;
mod ending;
mod error;
mod hugepage;
mod identify;
mod iova;
mod lent;
mod mapping;
#[cfg(feature = "testing")]
pub mod model;
mod pci;
mod peer;
mod prove;
mod prp;
mod queue;
mod registers;
mod status;
mod system;
pub mod unbound;
mod usage;
pub mod vfio;

pub use bind::Bound;
pub use command::{COMPLETION_BYTES, Cns, Command, Completion, SUBMISSION_BYTES, admin, io};
pub use contents::{Content, contents};
pub use controller::{Controller, Options};
pub use dma::{BusAddr, BusMemory, DmaBuf};
pub use door::{Door, open};
pub use drive::{Done, Drive, Operation, Transfer};
pub use error::Error;
pub use identify::{ControllerIdentity, Namespace};
pub use lent::LentQueue;
pub use pci::{NoPciAddress, PciAddress};
pub use peer::{DmaBufWindow, PEER_PAGE, PeerBar, Window};
pub use prove::{Run, Unproven, prove};
pub use prp::{PrpError, PrpList};
pub use registers::{Cap, Cc, Csts, Registers, Version};
pub use status::Status;
pub use system::{Group, Link, PciDevice, System};
pub use usage::block_name;
