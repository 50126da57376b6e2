//! Kernels on activations: PTX module `ops`. Activations are `[tokens][width]` in F32.

mod block;
mod elementwise;
mod kv;
mod norm;
mod rope;
mod sample;

pub use elementwise::*;
pub use kv::*;
pub use norm::*;
pub use rope::*;
pub use sample::*;
