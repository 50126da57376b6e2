//! Copies from global to shared memory that run beside the thread that asked for them.
//!
//! A warp fills a stage of shared memory and later waits for it. On sm_80 every lane copies 16 bytes at a time (`cp.async`) and
//! waits for groups of its own copies; on sm_90 one lane asks for a whole run of bytes (`cp.async.bulk`), and a barrier in
//! shared memory counts the bytes that have arrived. On the host a copy is complete when it is asked for.
//! PTX ISA 8.0, "Data Movement and Conversion Instructions: Asynchronous copy".

use crate::warp;

/// The copies of one warp into `DEPTH` stages, which are filled and awaited in turn.
#[derive(Clone, Copy)]
pub struct Stages<const DEPTH: usize> {
    /// `DEPTH` barriers in shared memory, one a stage.
    #[cfg_attr(not(cuda_sm = "90"), allow(dead_code))]
    barriers: *mut u64,
}

impl<const DEPTH: usize> Stages<DEPTH> {
    /// Makes the barriers ready.
    ///
    /// # Safety
    /// `barriers` are `DEPTH` words of shared memory of this warp alone; all lanes are here.
    #[inline(always)]
    pub unsafe fn new(barriers: *mut u64) -> Self {
        #[cfg(all(target_arch = "nvptx64", cuda_sm = "90"))]
        // SAFETY: the caller's promise.
        unsafe {
            if warp::lane_id() == 0 {
                for i in 0..DEPTH {
                    crate::nvptx::barrier_init(barriers.add(i));
                }
                crate::nvptx::barrier_init_fence();
            }
            warp::sync_warp(warp::FULL_MASK);
        }
        Stages { barriers }
    }

    /// Starts to fill stage `stage` with `N` runs of bytes, each from its source to its target.
    ///
    /// # Safety
    /// All lanes are here, with the same arguments, and none reads the stage any more. Addresses and lengths are multiples of
    /// 16, no length is 0; the sources are global memory that nobody writes until the copy has been waited for, the targets shared memory of this warp.
    #[inline(always)]
    pub unsafe fn fill<const N: usize>(self, stage: usize, targets: [*mut u8; N], sources: [*const u8; N], bytes: [u32; N]) {
        #[cfg(all(target_arch = "nvptx64", cuda_sm = "90"))]
        // SAFETY: the caller's promise.
        unsafe {
            if warp::lane_id() == 0 {
                let barrier = self.barriers.add(stage);
                let mut all = 0;
                for i in 0..N {
                    all += bytes[i];
                }
                crate::nvptx::barrier_expect(barrier, all);
                for i in 0..N {
                    crate::nvptx::bulk_copy(targets[i], sources[i], bytes[i], barrier);
                }
            }
        }
        #[cfg(not(all(target_arch = "nvptx64", cuda_sm = "90")))]
        // SAFETY: the caller's promise: each lane has its own pieces of the run.
        unsafe {
            let _ = stage;
            for i in 0..N {
                let mut at = 16 * warp::lane_id();
                while at < bytes[i] {
                    copy16(targets[i].add(at as usize), sources[i].add(at as usize));
                    at += 16 * 32;
                }
            }
            self.commit();
        }
    }

    /// Ends a turn in which there was nothing to fill: every turn has a `fill` or a `skip`.
    #[inline(always)]
    pub fn skip(self) {
        #[cfg(not(all(target_arch = "nvptx64", cuda_sm = "90")))]
        self.commit();
    }

    #[cfg(not(all(target_arch = "nvptx64", cuda_sm = "90")))]
    #[inline(always)]
    fn commit(self) {
        #[cfg(target_arch = "nvptx64")]
        crate::nvptx::copy_commit();
    }

    /// Waits until stage `stage` is full, with the `round`th filling of it (from 0 on); then all lanes may read it. There have been
    /// `DEPTH - 1` turns since.
    ///
    /// # Safety
    /// All lanes are here with the same arguments.
    #[inline(always)]
    pub unsafe fn wait(self, stage: usize, round: u32) {
        #[cfg(all(target_arch = "nvptx64", cuda_sm = "90"))]
        // SAFETY: the caller's promise.
        unsafe {
            let barrier = self.barriers.add(stage);
            while !crate::nvptx::barrier_try_wait(barrier, round & 1) {}
        }
        #[cfg(not(all(target_arch = "nvptx64", cuda_sm = "90")))]
        // SAFETY: the caller's promise.
        unsafe {
            let _ = (stage, round);
            #[cfg(target_arch = "nvptx64")]
            crate::nvptx::copy_wait::<DEPTH>();
            warp::sync_warp(warp::FULL_MASK);
        }
    }
}

/// 16 bytes.
#[cfg(not(all(target_arch = "nvptx64", cuda_sm = "90")))]
#[inline(always)]
unsafe fn copy16(target: *mut u8, source: *const u8) {
    #[cfg(target_arch = "nvptx64")]
    // SAFETY: the caller's promise.
    unsafe {
        crate::nvptx::copy16(target, source)
    }
    #[cfg(not(target_arch = "nvptx64"))]
    // SAFETY: the caller's promise; `load` checks the source.
    unsafe {
        target.cast::<crate::mem::F32x4>().write(crate::mem::load(source.cast()))
    }
}
