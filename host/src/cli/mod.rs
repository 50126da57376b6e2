//! The command line.

pub mod inspect;
pub mod tokenize;
