//! What can go wrong, with the device's name where there is one.

use crate::{PrpError, Status};
use std::{io, path::PathBuf, time::Duration};

/// What can go wrong between opening a drive and its last command.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of the system could not be used.
    #[error("{}: {what} failed: {cause}{}", path.display(), advice(cause))]
    Io {
        /// Which.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The system's words.
        cause: io::Error,
    },
    /// A system call failed.
    #[error("{what} failed: {cause}{advice}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's words.
        cause: io::Error,
        /// What to do, with what leads up to it; may be empty.
        advice: &'static str,
    },
    /// It cannot be done with this device as it is now, and why.
    #[error("{device}: {reason}")]
    Refused {
        /// The device's address.
        device: String,
        /// Why, and what to do.
        reason: String,
    },
    /// No bytes, or bytes beyond the end of the bus's addresses.
    #[error("there is no memory of {len} bytes at bus address {bus:#x}")]
    BusRange {
        /// First address.
        bus: u64,
        /// Number of bytes.
        len: usize,
    },
    /// A queue is not contiguous on the bus.
    #[error("{device}: a queue of {depth} entries is not contiguous on the bus; take fewer entries")]
    Scattered {
        /// The device's address.
        device: String,
        /// The queue's entries.
        depth: u32,
    },
    /// A queue's depth is none that the controller takes.
    #[error("{device}: a queue has 2 to {max} entries, not {asked}")]
    Depth {
        /// The device's address.
        device: String,
        /// What was asked for.
        asked: u32,
        /// The most.
        max: u32,
    },
    /// The controller has no more queues to give.
    #[error("{device}: the controller gives {given} I/O queues, and all are in use")]
    NoQueue {
        /// The device's address.
        device: String,
        /// How many there are.
        given: usize,
    },
    /// Nobody answers at the device's registers.
    #[error("{device}: the device does not answer (its registers read as ones): it was removed, or has lost its power")]
    Gone {
        /// The device's address.
        device: String,
    },
    /// The controller has failed by its own account.
    #[error("{device}: the controller reports a fatal error (CSTS.CFS)")]
    Fatal {
        /// The device's address.
        device: String,
    },
    /// The controller did not do in time what its registers ask for.
    #[error("{device}: the controller did not {what} within {timeout:?}")]
    Stuck {
        /// The device's address.
        device: String,
        /// What it should do.
        what: &'static str,
        /// How long was waited.
        timeout: Duration,
    },
    /// A command did not complete, also when it was issued again behind a reset.
    #[error("{device}: {command} did not complete within {timeout:?} ({attempts} attempts)")]
    Timeout {
        /// The device's address.
        device: String,
        /// Which command.
        command: String,
        /// How long each attempt was waited for.
        timeout: Duration,
        /// How often it was tried.
        attempts: u32,
    },
    /// A command failed.
    #[error("{device}: {command} failed: {status} (attempt {attempts})")]
    Command {
        /// The device's address.
        device: String,
        /// Which command.
        command: String,
        /// The controller's answer.
        status: Status,
        /// How often it was tried.
        attempts: u32,
    },
    /// A transfer is outside of its namespace, or not in whole blocks.
    #[error("{device}: blocks {lba} + {blocks} are outside of the namespace's {size}")]
    OutOfRange {
        /// The device's address.
        device: String,
        /// First block.
        lba: u64,
        /// Number of blocks.
        blocks: u64,
        /// Blocks of the namespace.
        size: u64,
    },
    /// The memory of a transfer cannot be described to the controller.
    #[error("{device}: {cause}")]
    Prp {
        /// The device's address.
        device: String,
        /// Why.
        cause: PrpError,
    },
}

/// What to do against an error of a file.
fn advice(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::PermissionDenied => "; start as root, or let this user read and write that file",
        io::ErrorKind::ResourceBusy => "; another process has it, end that first",
        _ => "",
    }
}

impl Error {
    /// What makes a failed system call's error, with what to do against it.
    pub(crate) fn system(what: &'static str, advice: &'static str) -> impl FnOnce(rustix::io::Errno) -> Error {
        move |cause| Error::System { what, cause: cause.into(), advice }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_files_say_what_to_do() {
        let text = |kind: io::ErrorKind| {
            Error::Io { path: "/dev/vfio/7".into(), what: "opening", cause: kind.into() }.to_string()
        };
        assert!(text(io::ErrorKind::ResourceBusy).ends_with("; another process has it, end that first"));
        assert!(text(io::ErrorKind::PermissionDenied).contains("; start as root"));
        assert!(text(io::ErrorKind::NotFound).starts_with("/dev/vfio/7: opening failed: "));
    }
}
