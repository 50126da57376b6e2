//! Typed copies for the tests.

use cuda_emu::{Allocation, Emulator};
use cuda_std::kernel::Grid;

/// Device memory of `values`' bytes.
pub fn upload(emulator: &Emulator, values: &[u32]) -> Allocation {
    let memory = emulator.alloc(values.len() * 4).unwrap();
    memory.write(0, &values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>()).unwrap();
    memory
}

/// The whole allocation.
pub fn download(memory: &Allocation) -> Vec<u32> {
    let mut bytes = vec![0; memory.len()];
    memory.read(0, &mut bytes).unwrap();
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// A launch's geometry, without clusters.
pub fn shape(blocks: [u32; 3], threads: [u32; 3], shared: u32) -> Grid {
    Grid { blocks, threads, shared, cluster: [1; 3] }
}
