//! Dot products of weight rows with activations: what a matrix product consists of.
//!
//! Every type has a [`Kernel`], which says how a step of 256 values of a row adds to the products with up to four columns. The
//! kernels are written in the operations of [`simd::Simd`], once for all instruction sets.
//!
//! A product's bits depend on the row and the column alone: not on the instruction set, nor on the number of columns or
//! threads. Each of eight lanes adds up its share of a step, steps follow one another, and the lanes are added last.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod columns;
mod float;
mod formats;
mod integer;
mod product;
mod simd;

use std::fmt;

#[cfg(target_arch = "x86_64")]
use avx2::Avx2;
use columns::Step;
pub use product::{Matrix, Workspace, multiply};
use simd::{Portable, Simd, Task};

/// Values of a step.
const STEP: usize = 256;
/// How a type's rows are multiplied.
trait Kernel {
    /// 256 activations.
    type Step: Step;
    /// Bytes of 256 weights.
    const STEP_BYTES: usize;
    /// Adds to `sums` the products of up to 256 weights with each of the columns, in eight lanes.
    fn add<S: Simd, const N: usize>(s: S, w: &[u8], x: [&Self::Step; N], sums: &mut [S::Floats; N]);
}

/// The bytes from `at` on. Bounds checks go away where the block's length is known.
#[inline(always)]
fn bytes<const N: usize>(block: &[u8], at: usize) -> &[u8; N] {
    block[at..].first_chunk().expect("a block has the length of its format")
}

/// The instructions that the kernels use.
#[derive(Clone, Copy)]
pub enum InstructionSet {
    /// Those that every CPU of the target has.
    Portable,
    /// AVX2 and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
}

impl InstructionSet {
    /// The fastest that this CPU has.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if let Some(avx2) = Avx2::detect() {
            return Self::Avx2(avx2);
        }
        Self::Portable
    }

    fn run<T: Task>(self, task: T) -> T::Out {
        match self {
            Self::Portable => task.run(Portable),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(avx2) => avx2.run(task),
        }
    }
}

impl fmt::Display for InstructionSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => "AVX2",
        })
    }
}
