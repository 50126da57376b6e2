//! ntransformer's C API. The header `include/ntransformer.h` is made from this crate, its comments included, so public
//! comments here speak to C programmers; `docs/c-api.md` has the rules that all functions share.
//!
//! Every function is a thin shell: it checks what C passed, and leaves the work to [`engine::nt_engine`], whose model lives
//! on a thread of its own. No panic crosses the border.

mod engine;
mod error;
mod input;
mod options;
mod result;
mod text;

pub use engine::*;
pub use error::*;
pub use options::*;
pub use result::*;
pub use text::*;
