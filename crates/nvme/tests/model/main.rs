//! The driver against a controller in plain Rust.

mod drive;
mod faults;
mod lent;
mod prove;
mod prp;
mod setup;
