//! What can go wrong with a launch.

use std::fmt;

/// Why a launch failed. What its kernel wrote before is in memory.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The grid has an extent that the driver refuses.
    #[error("kernel `{kernel}`: a grid of {grid:?} blocks: extents are 1 to 2147483647, 1 to 65535 and 1 to 65535")]
    Grid {
        /// The kernel.
        kernel: &'static str,
        /// Blocks along x, y, z.
        grid: [u32; 3],
    },
    /// The block has an extent that the driver refuses, or too many threads.
    #[error(
        "kernel `{kernel}`: a block of {block:?} threads: extents are 1 to 1024, 1 to 1024 and 1 to 64, 1024 in all"
    )]
    Block {
        /// The kernel.
        kernel: &'static str,
        /// Threads along x, y, z.
        block: [u32; 3],
    },
    /// Clusters that do not divide the grid, or of more blocks than every GPU can do.
    #[error(
        "kernel `{kernel}`: clusters of {cluster:?} blocks in a grid of {grid:?}: they divide it, and have 8 blocks at most"
    )]
    Cluster {
        /// The kernel.
        kernel: &'static str,
        /// Blocks along x, y, z.
        grid: [u32; 3],
        /// Blocks of a cluster.
        cluster: [u32; 3],
    },
    /// A pointer into another block's shared memory was asked for before that block had started or made the array, or after its end.
    #[error(
        "{place} maps an address to block {rank} of its cluster, which has not begun, has ended or has no such array: a barrier of \
         the cluster is missing, or it is no address of shared memory"
    )]
    ClusterMap {
        /// Who did it.
        place: Place,
        /// The other block's number in the cluster.
        rank: u32,
    },
    /// More shared memory than a block can have.
    #[error("kernel `{kernel}`: {bytes} bytes of {kind} shared memory: a block has at most {limit}")]
    SharedMemory {
        /// The kernel.
        kernel: &'static str,
        /// `static`, or `static and dynamic`.
        kind: &'static str,
        /// The bytes asked for.
        bytes: usize,
        /// The bytes there are.
        limit: usize,
    },
    /// An access outside the live allocations and the block's shared memory.
    #[error("{place} {} {bytes} bytes at {address:#x}, {}", verb(*.write), Around(nearest))]
    OutOfBounds {
        /// Who did it.
        place: Place,
        /// A write, or else a read.
        write: bool,
        /// The address of its first byte.
        address: usize,
        /// Its length.
        bytes: usize,
        /// The live allocation that is closest, if any is live.
        nearest: Option<Nearest>,
    },
    /// An access at an address that is no multiple of the value's alignment.
    #[error("{place} {} {bytes} bytes at {address:#x}, which is not {align}-byte aligned", verb(*.write))]
    Misaligned {
        /// Who did it.
        place: Place,
        /// A write, or else a read.
        write: bool,
        /// The address of its first byte.
        address: usize,
        /// Its length.
        bytes: usize,
        /// The alignment it needs.
        align: usize,
    },
    /// A lane called a warp collective whose mask leaves it out.
    #[error("{place} calls a warp collective of mask {mask:#010x}, which does not name its own lane")]
    NotInMask {
        /// Who called it.
        place: Place,
        /// The lanes named.
        mask: u32,
    },
    /// A warp collective waits for lanes that will never come.
    #[error("{place} waits in a warp collective of mask {mask:#010x}, but lanes {exited:#010x} of it have exited")]
    ExitedLanes {
        /// The first of those that wait.
        place: Place,
        /// The lanes named.
        mask: u32,
        /// Those that have exited.
        exited: u32,
    },
    /// Nobody in the block can go on: some wait at the barrier, some in warp collectives.
    #[error("kernel `{kernel}`, block {block:?}: divergence, no thread can go on: {}", List(waiting))]
    Divergence {
        /// The kernel.
        kernel: &'static str,
        /// `blockIdx`.
        block: [u32; 3],
        /// Who waits where. Threads of the block that are not listed have exited.
        waiting: Vec<Waiting>,
    },
    /// Something was written just before or after a shared array, or the block's dynamic shared memory.
    #[error("kernel `{kernel}`, block {block:?}: wrote past an end of its {kind} shared memory of {bytes} bytes")]
    SharedOverrun {
        /// The kernel.
        kernel: &'static str,
        /// `blockIdx`.
        block: [u32; 3],
        /// `static` (one array) or `dynamic`.
        kind: &'static str,
        /// Length of the array.
        bytes: usize,
    },
    /// The kernel panicked: an index out of bounds, an overflow, an assertion.
    #[error("{place} panicked: {message}")]
    Panic {
        /// Who panicked.
        place: Place,
        /// The panic's message.
        message: String,
    },
    /// The host has no memory left for the stacks of the threads, or for shared memory.
    #[error("kernel `{kernel}`: the host has no memory for {what}")]
    OutOfMemory {
        /// The kernel.
        kernel: &'static str,
        /// What the memory was for.
        what: &'static str,
    },
}

/// A thread of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The kernel.
    pub kernel: &'static str,
    /// `blockIdx`.
    pub block: [u32; 3],
    /// `threadIdx`.
    pub thread: [u32; 3],
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "kernel `{}`, block {:?}, thread {:?}", self.kernel, self.block, self.thread)
    }
}

/// The live allocation that is closest to a bad address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nearest {
    /// Its address.
    pub start: usize,
    /// Its length in bytes.
    pub size: usize,
    /// The bad address minus `start`: negative before the allocation, `size` or more behind it.
    pub offset: isize,
}

struct Around<'a>(&'a Option<Nearest>);

impl fmt::Display for Around<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.0 {
            None => write!(f, "and nothing is allocated"),
            Some(Nearest { start, size, offset }) => {
                write!(f, "offset {offset} of the nearest allocation, {size} bytes at {start:#x}")
            }
        }
    }
}

fn verb(write: bool) -> &'static str {
    if write { "writes" } else { "reads" }
}

/// What a thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// The block's barrier.
    Barrier,
    /// The cluster's barrier.
    Cluster,
    /// A warp collective of these lanes.
    Collective {
        /// The lanes named.
        mask: u32,
    },
}

/// Threads that wait for the same thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// What they wait for.
    pub at: Wait,
    /// Their indices in the block (x fastest), ascending.
    pub threads: Vec<u32>,
}

struct List<'a>(&'a [Waiting]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for (i, Waiting { at, threads }) in self.0.iter().enumerate() {
            f.write_str(if i == 0 { "threads" } else { "; threads" })?;
            for run in threads.chunk_by(|a, b| a + 1 == *b) {
                match run {
                    [one] => write!(f, " {one}")?,
                    run => write!(f, " {}-{}", run[0], run[run.len() - 1])?,
                }
            }
            match at {
                Wait::Barrier => f.write_str(" wait at the barrier")?,
                Wait::Cluster => f.write_str(" wait at the cluster's barrier")?,
                Wait::Collective { mask } => write!(f, " wait in a warp collective of mask {mask:#010x}")?,
            }
        }
        Ok(())
    }
}
