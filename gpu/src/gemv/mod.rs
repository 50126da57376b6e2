//! Matrix times vector at the memory's speed.

mod dot;
mod staged;

use cuda_std::{async_copy::Stages, kernel::Grid, prelude::*};
pub use dot::Dot;
use staged::Staged;

/// Warps of a block.
pub const WARPS: usize = 16;
const THREADS: u32 = 32 * WARPS as u32;
/// Stages of a warp.
pub const DEPTH: usize = 3;
/// Rows that a warp computes side by side.
const ROWS: usize = 1;
/// Loads of activations in flight.
const BATCH: usize = 4;

/// Quantised activations in shared memory.
#[derive(Clone, Copy)]
struct Acts {
    q: *mut u32,
    d: *mut f32,
    sums: *mut f32,
}

impl Acts {
    const fn bytes(cols: usize) -> usize {
        cols + cols / 32 * 4 + cols / 16 * 4
    }

    #[inline(always)]
    fn at(base: *mut u8, cols: usize) -> Self {
        let d = base.wrapping_add(cols);
        Acts { q: base.cast(), d: d.cast(), sums: d.wrapping_add(cols / 8).cast() }
    }

    /// Four consecutive numbers of each of `BATCH` parts of a vector.
    #[inline(always)]
    unsafe fn batch(x: *const f32, cols: usize, first: usize) -> [[f32; 4]; BATCH] {
        core::array::from_fn(|k| {
            let at = first + k * 4 * THREADS as usize;
            if at < cols { unsafe { mem::load4(x.add(at)) } } else { [0.0; 4] }
        })
    }

    #[inline(always)]
    unsafe fn quantise(self, x: *const f32, norm: *const f32, cols: usize, eps: f32) {
        let thread = thread::thread_idx_x() as usize;
        let lane = warp::lane_id() as usize;
        const ALL: usize = BATCH * 4 * THREADS as usize;
        unsafe {
            let mut first = 4 * thread;
            let whole = warp::lane_id() as usize * 4;
            let weights = if norm.is_null() { [[1.0; 4]; BATCH] } else { Self::batch(norm, cols, first) };
            grid::wait();
            let mut values = Self::batch(x, cols, first);
            let mut scale = 1.0;
            if !norm.is_null() {
                let mut squares = 0.0;
                let [a, b, c, d] = values;
                for i in 0..4 {
                    squares = float::fma(a[i], a[i], squares);
                    squares = float::fma(b[i], b[i], squares);
                    squares = float::fma(c[i], c[i], squares);
                    squares = float::fma(d[i], d[i], squares);
                }
                let mut at = first + ALL;
                while at < cols {
                    let more = mem::load4(x.add(at));
                    for i in 0..4 {
                        squares = float::fma(more[i], more[i], squares);
                    }
                    at += 4 * THREADS as usize;
                }
                let partial = shared_array!(GEMV_SQUARES: [f32; WARPS]);
                let sum = warp::sum(squares);
                if lane == 0 {
                    partial.add(thread / 32).write(sum);
                }
                thread::sync_threads();
                let mut sum = 0.0;
                for i in 0..WARPS {
                    sum += partial.add(i).read();
                }
                scale = float::rsqrt(sum / cols as f32 + eps);
            }
            self.put(values, weights, scale, first, cols, lane);
            first += ALL;
            while first - whole < cols {
                values = Self::batch(x, cols, first);
                let weights = if norm.is_null() { [[1.0; 4]; BATCH] } else { Self::batch(norm, cols, first) };
                self.put(values, weights, scale, first, cols, lane);
                first += ALL;
            }
        }
    }

    #[inline(always)]
    unsafe fn put(
        self,
        values: [[f32; 4]; BATCH],
        weights: [[f32; 4]; BATCH],
        scale: f32,
        first: usize,
        cols: usize,
        lane: usize,
    ) {
        unsafe {
            let put = |values: [f32; 4], weights: [f32; 4], k: usize| {
                let at = first + k * 4 * THREADS as usize;
                let v = [0, 1, 2, 3].map(|i| weights[i] * (values[i] * scale));
                self.quantise4(v, at, at < cols, lane);
            };
            put(values[0], weights[0], 0);
            put(values[1], weights[1], 1);
            put(values[2], weights[2], 2);
            put(values[3], weights[3], 3);
        }
    }

    #[inline(always)]
    unsafe fn quantise4(self, v: [f32; 4], at: usize, inside: bool, lane: usize) {
        unsafe {
            let mut most = v[0].abs().max(v[1].abs()).max(v[2].abs().max(v[3].abs()));
            most = most.max(warp::warp_shuffle_xor(warp::FULL_MASK, most, 1));
            most = most.max(warp::warp_shuffle_xor(warp::FULL_MASK, most, 2));
            most = most.max(warp::warp_shuffle_xor(warp::FULL_MASK, most, 4));
            let d = most * (1.0 / 127.0);
            let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
            let mut word = 0;
            let mut sum = 0;
            for i in 0..4 {
                let q = simd::round_to_int(v[i] * inverse);
                sum += q;
                word |= (q as u32 & 0xff) << (8 * i);
            }
            sum += warp::warp_shuffle_xor(warp::FULL_MASK, sum, 1);
            sum += warp::warp_shuffle_xor(warp::FULL_MASK, sum, 2);
            if inside {
                self.q.add(at / 4).write(word);
                if lane % 8 == 0 {
                    self.d.add(at / 32).write(d);
                }
                if lane % 4 == 0 {
                    self.sums.add(at / 16).write(d * sum as f32);
                }
            }
        }
    }

    /// The `4 W` activations from `at` on.
    #[inline(always)]
    unsafe fn run<const W: usize, const OFFSET: bool>(self, at: usize) -> ([u32; 8], f32, f32) {
        unsafe {
            let place = Staged::new(self.q.cast::<u8>().cast_const().add(at));
            let mut q = [0; 8];
            if W == 8 {
                q = place.words::<8, 16>(0);
            } else {
                let words = place.words::<4, 16>(0);
                for i in 0..4 {
                    q[i] = words[i];
                }
            }
            let sums = if !OFFSET {
                0.0
            } else if W == 8 {
                self.sums.add(at / 16).read() + self.sums.add(at / 16 + 1).read()
            } else {
                self.sums.add(at / 16).read()
            };
            (q, self.d.add(at / 32).read(), sums)
        }
    }
}

/// A matrix of the launch.
#[derive(Clone, Copy)]
struct Rows {
    w: *const u8,
    y: *mut f32,
    rows: u32,
    row_bytes: usize,
    accumulate: bool,
}

/// The rows that a warp computes, and how their bytes are fetched.
struct Walk {
    /// Groups of rows that are left.
    groups: u32,
    /// Pieces of a row.
    pieces: u32,
    /// Bytes of a piece, and of a row's last one.
    piece_bytes: u32,
    last_bytes: u32,
    /// From a row's last piece to the first one of the warp's next row.
    jump: usize,
    /// From a row to the other one of its group.
    delta: usize,
}

/// A place in the walk.
struct Cursor {
    at: *const u8,
    piece: u32,
}

impl Cursor {
    #[inline(always)]
    fn advance(&mut self, walk: &Walk) {
        self.piece += 1;
        let last = self.piece == walk.pieces;
        self.at = self.at.wrapping_add(if last { walk.jump } else { walk.piece_bytes as usize });
        if last {
            self.piece = 0;
        }
    }
}

#[inline(always)]
unsafe fn gemv<D: Dot>(
    m: Rows,
    x: *const f32,
    norm: *const f32,
    cols: usize,
    eps: f32,
    piece_blocks: usize,
    stage_bytes: usize,
) {
    let (lane, warp) = (warp::lane_id(), warp::warp_id());
    let shared = dynamic_shared!(GEMV_SHARED: [u8]);
    let acts = Acts::at(shared, cols);
    let stride = Acts::bytes(cols).next_multiple_of(16);
    unsafe {
        let barriers = shared.add(stride).cast::<u64>().add(warp as usize * DEPTH);
        let ring = shared.add(stride + 8 * DEPTH * WARPS + warp as usize * DEPTH * ROWS * stage_bytes);
        let stages = Stages::<DEPTH>::new(barriers);

        let groups = m.rows.div_ceil(ROWS as u32);
        let (block, grid) = (thread::block_idx_x(), thread::grid_dim_x());
        let first_group = warp * grid + block;
        let step = grid * WARPS as u32;
        let mine = if first_group < groups { (groups - first_group).div_ceil(step) } else { 0 };
        let blocks = (cols / D::ELEMS) as u32;
        let pieces = blocks.div_ceil(piece_blocks as u32);
        let piece_bytes = (piece_blocks * D::BYTES) as u32;
        let before_last = (pieces - 1) as usize * piece_bytes as usize;
        let walk = Walk {
            groups: mine,
            pieces,
            piece_bytes,
            last_bytes: (m.row_bytes - before_last) as u32,
            jump: step as usize * ROWS * m.row_bytes - before_last,
            delta: m.row_bytes,
        };
        let start = m.w.wrapping_add(first_group as usize * ROWS * m.row_bytes);
        let mut next = Cursor { at: start, piece: 0 };
        let mut to_fetch = walk.groups * walk.pieces;
        let mut fetch = |stage: usize| {
            if to_fetch == 0 {
                stages.skip();
                return;
            }
            to_fetch -= 1;
            let bytes = if next.piece + 1 == walk.pieces { walk.last_bytes } else { walk.piece_bytes };
            let mut sources = [next.at; ROWS];
            let mut targets = [ring; ROWS];
            for r in 0..ROWS {
                let source = next.at.wrapping_add(r * walk.delta);
                sources[r] = if D::BYTES % 16 == 0 { source } else { source.wrapping_sub(source.addr() & 15) };
                targets[r] = ring.add((stage * ROWS + r) * stage_bytes);
            }
            let bytes = if D::BYTES % 16 == 0 { bytes } else { bytes.next_multiple_of(16) + 16 };
            stages.fill(stage, targets, sources, bytes);
            next.advance(&walk);
        };
        grid::launch_dependents();
        for stage in 0..DEPTH {
            fetch(stage);
        }
        acts.quantise(x, norm, cols, eps);
        thread::sync_threads();

        let part = lane as usize % D::LANES;
        let mut here = Cursor { at: start, piece: 0 };
        let mut stage = 0usize;
        let mut round = 0u32;
        for group in 0..walk.groups {
            let mut sums = [0.0f32; ROWS];
            let mut at = (lane as usize / D::LANES) * D::ELEMS;
            for piece in 0..walk.pieces {
                let bytes = if piece + 1 == walk.pieces { walk.last_bytes } else { walk.piece_bytes };
                stages.wait(stage, round);
                let mut rows = [Staged::new(ring); ROWS];
                for r in 0..ROWS {
                    let source = here.at.wrapping_add(r * walk.delta);
                    let skew = if D::BYTES % 16 == 0 { 0 } else { source.addr() & 15 };
                    rows[r] = Staged::new(ring.add((stage * ROWS + r) * stage_bytes + skew));
                }
                here.advance(&walk);
                let mut offset = (lane / D::LANES as u32) * D::BYTES as u32;
                while offset < bytes {
                    let mut bits = [D::bits(rows[0].skip(offset as usize), part); ROWS];
                    for r in 1..ROWS {
                        bits[r] = D::bits(rows[r].skip(offset as usize), part);
                    }
                    for run in 0..D::PARTS {
                        let at = at + D::first(part, run);
                        let (x, d, sum) = if D::W == 8 {
                            if D::SUMS != 0 { acts.run::<8, true>(at) } else { acts.run::<8, false>(at) }
                        } else {
                            acts.run::<4, true>(at)
                        };
                        for r in 0..ROWS {
                            let w = D::run(&bits[r], part, run);
                            let mut dot = 0;
                            for i in 0..D::W {
                                dot = simd::dp4a(w.q[i], x[i], dot);
                            }
                            sums[r] = float::fma(w.scale, d * dot as f32, sums[r]);
                            if D::SUMS != 0 {
                                sums[r] = float::fma(w.offset, sum, sums[r]);
                            }
                        }
                    }
                    offset += (32 / D::LANES * D::BYTES) as u32;
                    at += 32 / D::LANES * D::ELEMS;
                }
                // Whole pieces but the last are whole steps, so `at` goes on where the next piece begins.
                warp::sync_warp(warp::FULL_MASK);
                fetch(stage);
                stage += 1;
                if stage == DEPTH {
                    stage = 0;
                    round += 1;
                }
            }
            warp::sums(&mut sums);
            let sum = if lane == 0 || ROWS == 1 { sums[0] } else { sums[ROWS - 1] };
            let row = ROWS as u32 * (first_group + group * step) + lane;
            if lane < ROWS as u32 && row < m.rows {
                let y = m.y.add(row as usize);
                mem::store(y, if m.accumulate { mem::load(y) + sum } else { sum });
            }
        }
    }
}

macro_rules! kernels {
    ($($module:literal $format:ident $gemv:ident;)*) => {$(
        /// Prototype.
        ///
        /// # Safety
        /// Prototype.
        #[cfg(feature = $module)]
        #[kernel($module)]
        pub unsafe fn $gemv(
            w: *const u8, x: *const f32, norm: *const f32, y: *mut f32, rows: u32, cols: u32, row_bytes: u32, accumulate: u32,
            piece_blocks: u32, stage_bytes: u32
        ) {
            let m = Rows { w, y, rows, row_bytes: row_bytes as usize, accumulate: accumulate != 0 };
            unsafe { gemv::<quant::formats::$format>(m, x, norm, cols as usize, 1e-5, piece_blocks as usize, stage_bytes as usize) }
        }
    )*};
}

kernels! {
    "q8_0" Q8_0 gemv2_q8_0;
    "q4_k" Q4_K gemv2_q4_k;
    "q6_k" Q6_K gemv2_q6_k;
    "q4_0" Q4_0 gemv2_q4_0;
    "q4_1" Q4_1 gemv2_q4_1;
    "q5_0" Q5_0 gemv2_q5_0;
    "q5_1" Q5_1 gemv2_q5_1;
    "iq4_nl" IQ4_NL gemv2_iq4_nl;
    "iq4_xs" IQ4_XS gemv2_iq4_xs;
}

/// The grid.
pub const fn grid(multiprocessors: u32) -> Grid {
    Grid::new(multiprocessors, 1, THREADS)
}
