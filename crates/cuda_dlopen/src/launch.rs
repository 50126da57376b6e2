//! The arguments of `cuLaunchKernelEx` (CUDA 11.8), which is younger than cust's headers.

use std::ffi::c_uint;

use cust_raw::CUstream;

/// `CUlaunchConfig`.
#[derive(Debug)]
#[repr(C)]
pub struct LaunchConfig {
    /// Blocks along x, y, z.
    pub blocks: [c_uint; 3],
    /// Threads of a block along x, y, z.
    pub threads: [c_uint; 3],
    /// Bytes of dynamic shared memory of a block.
    pub shared_bytes: c_uint,
    /// The stream.
    pub stream: CUstream,
    /// `attribute_count` attributes.
    pub attributes: *mut LaunchAttribute,
    /// How many.
    pub attribute_count: c_uint,
}

/// `CUlaunchAttribute`: an id, and a union of 64 bytes, of which the attributes here use the first twelve.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub struct LaunchAttribute {
    id: c_uint,
    padding: [u8; 4],
    value: [c_uint; 3],
    rest: [u8; 52],
}

const _: () = assert!(size_of::<LaunchConfig>() == 56 && size_of::<LaunchAttribute>() == 72);

impl LaunchAttribute {
    /// `CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION`, allowed: the kernel may start before the one before it in its
    /// stream has finished, and waits for that itself (CUDA C++ Programming Guide, "Programmatic Dependent Launch").
    pub const PROGRAMMATIC_STREAM_SERIALIZATION: Self = LaunchAttribute::new(6, [1, 0, 0]);

    /// `CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION`: blocks of a cluster along x, y, z (same guide, "Thread Block Clusters").
    pub const fn cluster_dimension(blocks: [c_uint; 3]) -> Self {
        LaunchAttribute::new(4, blocks)
    }

    const fn new(id: c_uint, value: [c_uint; 3]) -> Self {
        LaunchAttribute { id, padding: [0; 4], value, rest: [0; 52] }
    }
}
