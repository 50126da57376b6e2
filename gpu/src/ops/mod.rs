//! Kernels on activations: PTX module `ops`. Activations are `[tokens][width]` in F32.

mod block;
mod elementwise;
mod kv;
mod largest;
mod norm;
mod rank;
mod rope;
mod sample;

pub use elementwise::*;
pub use kv::*;
pub use largest::*;
pub use norm::*;
pub use rope::*;
pub use sample::*;
