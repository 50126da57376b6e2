//! Attention of one token over the KV cache, on a GPU.

use std::ptr;

use cuda_std::{F16, kernel::Kernel};
use gpu::attention::{self, Decode, DecodeShape, DecodeVisitor, visit_decode};
use ntransformer::device::cuda::driver::Driver;
use quant::TensorType;

use crate::{Result, cuda, report::Report};

/// Heads of a model of 8B parameters: four queries share a key.
const KV_HEADS: u32 = 8;
const HEADS: u32 = 4 * KV_HEADS;
const HEAD_DIM: u32 = 128;
/// Positions that are attended to.
pub const CONTEXTS: [u32; 4] = [512, 4096, 32768, 131072];
/// As many as an emulator computes in a moment.
pub const FEW: [u32; 2] = [8, 40];

/// Measures one layer's attention at each of `contexts`, where percentages are of `rate` bytes a second.
pub fn measure<D: Driver>(driver: &D, contexts: &[u32], rate: f64, report: &mut Report) -> Result<()> {
    println!(
        "attention of a token over a cache in F16, {KV_HEADS} KV heads of {HEAD_DIM}, {} queries each, launched alike:",
        HEADS / KV_HEADS
    );
    let columns: Vec<_> = contexts.iter().map(u32::to_string).collect();
    let mut table = report.table(driver.name(), "attention", &columns, rate);
    table.row("KV");
    for &context in contexts {
        let seconds = visit_decode(HEAD_DIM, Attention { driver, context })?;
        table.cell("KV", cache_bytes(context), seconds);
    }
    Ok(())
}

/// Bytes of a layer's keys and values.
fn cache_bytes(context: u32) -> usize {
    2 * (KV_HEADS * context * HEAD_DIM) as usize * size_of::<F16>()
}

/// Measures the attention at the last position of a cache.
struct Attention<'a, D> {
    driver: &'a D,
    context: u32,
}

impl<D: Driver> DecodeVisitor for Attention<'_, D> {
    type Out = Result<f64>;

    fn visit<K: Kernel<Args = (Decode,)>>(self) -> Result<f64> {
        let Attention { driver, context } = self;
        let bytes = cache_bytes(context);
        let layers = cuda::copies(driver, bytes);
        let caches = driver.alloc("KV caches", layers * bytes)?;
        cuda::fill(driver, &caches, TensorType::F16)?;
        let gpu = driver.properties();
        let long = DecodeShape::new(HEADS, KV_HEADS, HEAD_DIM, context, gpu.multiprocessors);
        let short = DecodeShape::short(HEADS, KV_HEADS, HEAD_DIM, gpu.multiprocessors, gpu.cluster);
        let shape = short.filter(|_| context <= attention::SHORT).unwrap_or(long);
        let zeros = vec![0; shape.workspace_bytes()];
        let workspace = driver.alloc("attention's workspace", zeros.len())?;
        driver.write(&workspace, 0, &zeros)?;
        // Queries, keys, values and angles: their values make no difference to the time.
        let width = HEADS as usize * HEAD_DIM as usize * size_of::<f32>();
        let [x, y] = [driver.alloc("x", width)?, driver.alloc("y", width)?];
        driver.write(&x, 0, &vec![0; width])?;
        let position = driver.alloc("a position", size_of::<u32>())?;
        driver.write(&position, 0, &(context - 1).to_le_bytes())?;

        let x = D::address(&x) as *const f32;
        let launch = |turn: usize| {
            let cache = D::address(&caches) + (turn % layers * bytes) as u64;
            let decode = Decode {
                q: x,
                k: x,
                v: x,
                q_norm: ptr::null(),
                k_norm: ptr::null(),
                q_cos: x,
                q_sin: x,
                k_cos: x,
                k_sin: x,
                k_cache: cache as *mut F16,
                v_cache: (cache + bytes as u64 / 2) as *mut F16,
                position: D::address(&position) as *const u32,
                y: D::address(&y) as *mut f32,
                workspace: D::address(&workspace) as *mut u32,
                heads: HEADS,
                kv_heads: KV_HEADS,
                head_dim: HEAD_DIM,
                context,
                rope_dims: HEAD_DIM,
                pairing: attention::HALF,
                window: u32::MAX,
                splits: shape.splits(),
                scale: 0.1,
                cap: 0.0,
                eps: 1e-5,
                overlap: 1,
            };
            // SAFETY: a layer's caches inside `caches`, the position inside those; vectors are as wide as all queries, which no
            // other is wider than; the workspace is the shape's and began with zeros.
            unsafe { driver.launch::<K>(shape.grid(), (decode,)) }
        };
        cuda::time(driver, cuda::recorded(driver, bytes, layers), launch)
    }
}
