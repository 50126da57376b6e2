//! Copies from global to shared memory that run beside the thread that asked for them.
//!
//! A warp fills a stage of shared memory and later waits for it. On sm_80 every lane copies 16 bytes at a time (`cp.async`) and
//! waits for groups of its own copies; on sm_90 one lane asks for a whole run of bytes (`cp.async.bulk`), and a barrier in
//! shared memory counts the bytes that have arrived. On the host a copy is complete when it is asked for.
//! PTX ISA 8.0, "Data Movement and Conversion Instructions: Asynchronous copy".

use crate::warp;

/// The most stages of a warp.
pub const MAX_STAGES: u32 = 3;

/// What the places of a run in global and in shared memory have in common: their offsets from a multiple of this. Bulk copies are slower
/// where they differ.
pub const LINE: usize = 128;

/// The stages of one warp, each with room for `N` runs of bytes, which are filled and awaited in turn.
#[derive(Clone, Copy)]
pub struct Stages<const N: usize> {
    base: *mut u8,
    /// Where the ring begins, in bytes behind `base`.
    ring: u32,
    room: u32,
    #[cfg_attr(any(not(target_arch = "nvptx64"), cuda_sm = "90"), allow(dead_code))]
    count: u32,
    /// A barrier for each stage, as an address inside shared memory.
    #[cfg(all(target_arch = "nvptx64", cuda_sm = "90"))]
    barriers: u32,
    /// The base, as such an address. Converted anew for each copy, it would take a way through the lanes' registers.
    #[cfg(target_arch = "nvptx64")]
    base_address: u32,
    /// For each stage, where its runs begin, in bytes behind `base`. They would take registers of each lane.
    starts: *mut [u32; N],
    align: u32,
}

impl<const N: usize> Stages<N> {
    /// `count` stages in a ring, 2 to [`MAX_STAGES`], with room for `room` bytes for each run. A run lies in its stage as in memory, in those bits of
    /// the address that `align` has: those below a [`LINE`], or below 16.
    ///
    /// # Safety
    /// `base` is shared memory, aligned to 16 bytes, `ring` bytes behind it are `count * N * room` bytes, aligned to a [`LINE`], and `barriers` and
    /// `starts` have `count` elements in it, of this warp alone; `room` is a multiple of 16; all lanes are here.
    #[inline(always)]
    #[cfg_attr(not(all(target_arch = "nvptx64", cuda_sm = "90")), allow(unused_variables))]
    pub unsafe fn new(
        base: *mut u8,
        ring: u32,
        room: u32,
        count: u32,
        align: u32,
        barriers: *mut u64,
        starts: *mut [u32; N],
    ) -> Self {
        #[cfg(all(target_arch = "nvptx64", cuda_sm = "90"))]
        let barriers = crate::nvptx::in_shared(barriers);
        #[cfg(all(target_arch = "nvptx64", cuda_sm = "90"))]
        // SAFETY: the caller's promise.
        unsafe {
            if warp::lane_id() == 0 {
                let mut i = 0;
                while i < count {
                    crate::nvptx::barrier_init(barriers + 8 * i);
                    i += 1;
                }
                crate::nvptx::barrier_init_fence();
            }
            warp::sync_warp(warp::FULL_MASK);
        }
        Stages {
            base,
            ring,
            room,
            count,
            starts,
            align,
            #[cfg(all(target_arch = "nvptx64", cuda_sm = "90"))]
            barriers,
            #[cfg(target_arch = "nvptx64")]
            base_address: crate::nvptx::in_shared(base),
        }
    }

    /// Where the runs of stage `stage` begin, in bytes behind the base.
    ///
    /// # Safety
    /// It has been waited for, and all lanes have been at a barrier since it was filled.
    #[inline(always)]
    pub unsafe fn runs(self, stage: u32) -> [u32; N] {
        // SAFETY: written by `fill`, before that barrier.
        unsafe { self.starts.wrapping_add(stage as usize).read() }
    }

    /// Starts to fill stage `stage` with the `bytes` bytes from each of `sources` on: copies go from the multiple of 16 before a run to the one
    /// behind it.
    ///
    /// # Safety
    /// All lanes are here, with the same arguments, and none reads the stage any more. `bytes` is not 0, and there is room for it behind
    /// where a run begins in its stage. What is copied is global memory that nobody writes until the stage has been waited for.
    #[inline(always)]
    pub unsafe fn fill(self, stage: u32, sources: [*const u8; N], bytes: u32) {
        let odd = sources.map(|source| source.addr() as u32 & 15);
        let starts: [u32; N] = core::array::from_fn(|i| {
            let place = self.ring + (stage * N as u32 + i as u32) * self.room;
            place + (sources[i].addr() as u32 & (self.align | 15))
        });
        let lengths = odd.map(|odd| (bytes + odd).next_multiple_of(16));
        let sources: [*const u8; N] = core::array::from_fn(|i| sources[i].wrapping_sub(odd[i] as usize));
        #[cfg(all(target_arch = "nvptx64", cuda_sm = "90"))]
        // SAFETY: the caller's promise.
        unsafe {
            if warp::elect() {
                self.starts.wrapping_add(stage as usize).write(starts);
                let barrier = self.barriers + 8 * stage;
                let mut all = 0;
                for i in 0..N {
                    all += lengths[i];
                }
                crate::nvptx::barrier_expect(barrier, all);
                for i in 0..N {
                    let target = self.base_address + (starts[i] & !15);
                    crate::nvptx::bulk_copy(target, sources[i], lengths[i], barrier);
                }
            }
        }
        #[cfg(not(all(target_arch = "nvptx64", cuda_sm = "90")))]
        // SAFETY: the caller's promise: each lane has its own pieces of a run.
        unsafe {
            if warp::lane_id() == 0 {
                self.starts.wrapping_add(stage as usize).write(starts);
            }
            for i in 0..N {
                let mut at = 16 * warp::lane_id();
                let place = starts[i] & !15;
                while at < lengths[i] {
                    #[cfg(target_arch = "nvptx64")]
                    {
                        let target = self.base_address + place + at;
                        crate::nvptx::copy16(target, sources[i].add(at as usize));
                    }
                    #[cfg(not(target_arch = "nvptx64"))]
                    {
                        let target = self.base.add((place + at) as usize).cast::<crate::mem::F32x4>();
                        target.write(crate::mem::load(sources[i].add(at as usize).cast()));
                    }
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

    /// Waits until stage `stage` is full for the `round`th time (from 0 on): then all lanes may read it. There have been
    /// as many turns since it was filled as there are other stages.
    ///
    /// # Safety
    /// All lanes are here with the same arguments.
    #[inline(always)]
    #[cfg_attr(not(all(target_arch = "nvptx64", cuda_sm = "90")), allow(unused_variables))]
    pub unsafe fn wait(self, stage: u32, round: u32) {
        #[cfg(all(target_arch = "nvptx64", cuda_sm = "90"))]
        // SAFETY: the caller's promise.
        unsafe {
            while !crate::nvptx::barrier_try_wait(self.barriers + 8 * stage, round & 1) {}
        }
        #[cfg(not(all(target_arch = "nvptx64", cuda_sm = "90")))]
        // SAFETY: the caller's promise.
        unsafe {
            #[cfg(target_arch = "nvptx64")]
            match self.count {
                2 => crate::nvptx::copy_wait::<1>(),
                _ => crate::nvptx::copy_wait::<2>(),
            }
            warp::sync_warp(warp::FULL_MASK);
        }
    }
}
