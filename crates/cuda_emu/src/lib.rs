//! Runs kernels built for the host: grids, blocks, barriers and warps as coroutines.
