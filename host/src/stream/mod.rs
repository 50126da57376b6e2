//! Where a model's weights are between passes, and how those that are not on the device get there in time.

mod flow;
mod place;
pub mod ring;
mod streamed;

pub use place::Progress;
pub use streamed::{Elsewhere, Streamed, Streams};
