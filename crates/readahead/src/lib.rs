//! Reads pieces of files ahead of who needs them, into buffers that are lent.
//!
//! - A [`Source`] has several reads in flight. [`open()`] chooses between two for files: io_uring, and where that is refused a pool of
//!   threads that call `pread`. Both read past the page cache (`O_DIRECT`) where the filesystem lets them. [`Memory`] copies from memory.
//!   A driver that reads a drive by itself is a further source.
//! - [`ReadAhead`] reads a list of pieces in a cycle, in order, on a thread of its own, and hands each out once it is there, whole: in a
//!   buffer, or in the device's memory, where the source writes that by itself.
//! - [`fill()`] loads big ranges once, from the page cache where that has them ([`loader`]).
//! - [`sequential_rate`] measures.
//!
//! Nothing here knows what the bytes mean. Sizes, offsets and addresses are in bytes throughout.

mod ahead;
mod error;
mod files;
mod fill;
mod forward;
mod memory;
mod open;
mod pool;
mod protocol;
mod rate;
mod source;
mod sync;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(target_os = "linux")]
mod uring;

#[cfg(test)]
mod tests;

pub use ahead::ReadAhead;
pub use error::{OpenError, ReadError, SourceError};
pub use files::Input;
pub use fill::{Target, fill};
pub use memory::{Memory, MemoryRange};
pub use open::{ReadBy, SourceOptions, loader, open};
pub use protocol::{BufferId, Filled, Options, Place, Span};
pub use rate::{Rate, sequential_rate};
pub use source::{Completion, DeviceMemory, Dst, HostBuf, Landed, Piece, Source};
