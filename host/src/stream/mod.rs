//! Where a model's weights are between passes, and how those that are not on the device get there in time.

mod flow;
mod lent;
mod load;
mod log;
pub mod nvme;
mod place;
mod placing;
pub mod plan;
mod reads;
pub mod ring;
mod staging;
mod streamed;

pub use place::Progress;
pub use placing::Streams;
pub use reads::{DiskReads, Reading, Reads};
pub use streamed::{Streamed, disk_rate};
