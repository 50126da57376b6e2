//! Two ways for layers to reach the forward pass: all of them resident on the device, or streamed through it.

mod place;
mod resident;
pub mod ring;
mod streamed;

pub use place::{Progress, place_head};
pub use resident::Resident;
pub use streamed::Streamed;
