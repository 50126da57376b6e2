//! Runs kernels built for the host: grids, blocks, barriers and warps as coroutines.
//!
//! An [`Emulator`] is a GPU of the sm_80 baseline as kernels and launches see it. Device memory is host memory that is
//! poisoned with 0xFF bytes (NaN as a float of any width) when it is allocated. A launch runs every thread of a block as
//! a stackful coroutine that gives way at barriers and in warp collectives; blocks run in parallel on rayon's threads.
//! Whenever several threads of a block could go on, their order is drawn from a random generator seeded by the
//! emulator's seed, the number of the launch and the number of the block: one program run twice gives the same orders,
//! another seed gives others.
//!
//! A launch ends with a [`LaunchError`] on: a shape or an amount of shared memory that the driver would refuse; an access
//! through `cuda_std::mem` that is misaligned, or outside the live allocations and the block's shared memory; threads
//! that wait for each other (some at the barrier, some in a warp collective) or for lanes that have exited; a write just
//! past a shared array; a panic.
//!
//! # What it costs
//! On one core of a server that was busy with other work (`cargo run --release -p cuda_emu --example speed`): 40 million
//! threads of an empty kernel a second, 23 million shuffles by a lane, 28 million waits at a barrier; 3.5 ns for a checked
//! load; 7.5 us for the launch of one block of 256 threads.
//!
//! # What it cannot see
//! - Races: no happens-before is tracked. A missing barrier shows as a result that differs between seeds, or not at all,
//!   since threads give way at barriers and collectives only, never between two memory accesses. compute-sanitizer's
//!   racecheck on a GPU does that job.
//! - What the PTX compiler does to the code: a barrier that it duplicates or moves into a branch. Collectives are told
//!   apart by their mask only: two lanes that meet in a shuffle and in a ballot of the same mask go through.
//! - Accesses that don't go through `cuda_std::mem`: raw dereferences, and shared memory more than a kilobyte beyond its
//!   array's ends. A thread that spins on a value another thread of the GPU should write spins for ever. (One that waits for the host or a
//!   device, by `cuda_std::system`, does not: those are other threads of the system.) A kernel that needs more
//!   than 128 KiB of stack ends the process.
//! - Accesses to another block's shared memory before it has started or after its end: that is looked at when an address is mapped
//!   (`cluster::map`), not when what it gave is used. A missing barrier before shows where the seed lets a cluster's blocks start one
//!   after the other, as it does with every second cluster.
//! - Reads of lanes outside a collective's mask give 0 where hardware gives anything.
//! - Speed, occupancy, bank conflicts, coalescing, approximate arithmetic.

mod block;
mod error;
mod launch;
mod memory;
mod shared;

pub use error::{LaunchError, Nearest, Place, Wait, Waiting};
pub use launch::Emulator;
pub use memory::{Allocation, MemoryError};
