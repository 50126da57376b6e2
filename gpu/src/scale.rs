//! A first kernel.
use cuda_std::prelude::*;

/// Multiplies `n` floats by `factor` in place; one thread an element.
///
/// # Safety
/// `x` is a device address of `n` floats.
#[kernel("ops")]
pub unsafe fn scale(x: *mut f32, factor: f32, n: u32) {
    let i = thread::index_1d();
    if i < n {
        // SAFETY: inside the `n` floats.
        unsafe { mem::store(x.add(i as usize), mem::load(x.add(i as usize)) * factor) }
    }
}
/// .
#[kernel("ops")]
pub unsafe fn sumsq(x: *const f32, y: *mut f32, n: u32) {
    let red = shared_array!(RED: [f32; 32]);
    let mut i = thread::thread_idx_x() * 4;
    let mut acc = 0.0;
    while i < n {
        let v = unsafe { mem::load4(x.add(i as usize)) };
        for a in v { acc = float::fma(a, a, acc); }
        i += thread::block_dim_x() * 4;
    }
    unsafe {
    let s = warp::sum(acc);
    if warp::lane_id() == 0 { red.add(warp::warp_id() as usize).write(s); }
    thread::sync_threads();
    let s = warp::sum(if warp::lane_id() < thread::block_dim_x() / 32 { red.add(warp::lane_id() as usize).read() } else { 0.0 });
    let v = warp::warp_vote_ballot(!0, s > 1.0);
    let m = warp::max(acc);
    if thread::thread_idx_x() == 0 { mem::store(y, float::rsqrt(s)); mem::store(y.add(1), v as f32 * m + float::exp(m) + float::F16::from_f32(m).to_f32()); }
    }
}
/// .
#[kernel("ops")]
pub unsafe fn bounds(x: *const f32, y: *mut f32, n: u32) {
    let a = unsafe { mem::load4(x) };
    unsafe { mem::store(y, a[(n+3) as usize]/ ((10/n) as f32).max(0.3)) }
}
