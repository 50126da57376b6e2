//! The kernels against a naive f64 reference, on fresh random data, whoever runs them.
//!
//! Each case is a function generic over the [`Driver`], and a macro makes two tests of it: one in the emulator, and one in
//! the module `gpu`, which is ignored unless asked for (`cargo test --release -- --ignored kernels::gpu`). Outputs lie
//! between guard words and hold NaN before the launch, unless the kernel reads them; inputs fill their allocation, so
//! that the emulator sees every read beyond them.

mod bench;
mod decode;
mod driver;
mod gemv;
mod ops;
mod sample;

use std::fmt::Debug;

use cuda_std::kernel::{Grid, Kernel};
use ntransformer::device::cuda::{cust::CustDriver, driver::Driver, emulator::EmulatorDriver};
use rand::{Rng, SeedableRng, rngs::SmallRng};

/// Makes two tests of each case.
macro_rules! cases {
    ($($area:ident::$case:ident,)*) => {
        mod gpu {
            use super::*;

            $(
                #[test]
                #[ignore = "needs a GPU"]
                fn $case() {
                    let driver = CustDriver::open(0, |line| eprintln!("{line}")).unwrap();
                    eprintln!("{}: {}", driver.name(), stringify!($case));
                    $area::$case(&mut Lab::new(&driver, stringify!($case)));
                }
            )*
        }

        $(
            #[test]
            fn $case() {
                $area::$case(&mut Lab::new(&EmulatorDriver::new(7), stringify!($case)));
            }
        )*
    };
}

cases! {
    driver::struct_as_parameter,
    driver::dynamic_shared,
    gemv::gemv_shapes,
    gemv::gemv_wide,
    gemv::gemv_beside,
    gemv::gemv_starts,
    gemv::gemv_tokens,
    gemv::gemv_matrices,
    gemv::gemv_extremes,
    gemv::gemv_vocabulary,
    gemv::glu,
    gemv::embed,
    driver::dependent_launches,
    driver::replays,
    driver::failed_capture,
    driver::profile,
    ops::rms_norm,
    ops::rope_adjacent,
    ops::rope_half,
    ops::kv_append,
    ops::attention_decode,
    ops::attention_prefill,
    ops::attention_long,
    ops::attention_window,
    ops::attention_cap,
    decode::decode_heads,
    decode::decode_edges,
    decode::decode_splits,
    decode::decode_windows,
    decode::decode_caps,
    decode::decode_norms_and_rotations,
    decode::decode_long,
    ops::swiglu,
    ops::geglu,
    ops::scale,
    ops::soft_cap,
    ops::gather_rows,
    sample::argmax,
    sample::top_k_of_rows,
    sample::top_k_of_vocabularies,
    bench::read,
    bench::barriers,
}

/// Bytes of guard before and after an output: as many as keep its 256-byte alignment.
const GUARD: usize = 256;
const GUARD_BYTE: u8 = 0xA5;

/// A number as it lies in device memory.
pub trait Number: Copy + Debug + PartialEq {
    /// What an output holds before it is written: NaN, or an unlikely integer.
    const POISON: Self;
    /// Little endian.
    fn bytes(self) -> Vec<u8>;
    /// From as many bytes as [`Number::bytes`] gives.
    fn from_bytes(bytes: &[u8]) -> Self;
}

macro_rules! number {
    ($($ty:ty = $poison:expr;)*) => {$(
        impl Number for $ty {
            const POISON: Self = $poison;
            fn bytes(self) -> Vec<u8> {
                self.to_le_bytes().to_vec()
            }
            fn from_bytes(bytes: &[u8]) -> Self {
                Self::from_le_bytes(bytes.try_into().unwrap())
            }
        }
    )*};
}
number! {
    u8 = 0xDE;
    u16 = 0x7E5A;
    u32 = 0xDEAD_BEEF;
    f32 = f32::NAN;
}

fn to_bytes<T: Number>(values: &[T]) -> Vec<u8> {
    values.iter().flat_map(|value| value.bytes()).collect()
}

/// A driver, and the random numbers of a case.
pub struct Lab<'a, D: Driver> {
    driver: &'a D,
    rng: SmallRng,
}

impl<'a, D: Driver> Lab<'a, D> {
    fn new(driver: &'a D, case: &str) -> Self {
        let seed = case.bytes().fold(0, |seed: u64, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
        Lab { driver, rng: SmallRng::seed_from_u64(seed) }
    }

    /// `n` floats, uniform in -1..1.
    fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.rng.random_range(-1.0..1.0)).collect()
    }

    /// Device memory that holds `values` and nothing else.
    fn input<T: Number>(&self, values: &[T]) -> D::Mem {
        let bytes = to_bytes(values);
        let mem = self.driver.alloc("a test's input", bytes.len()).unwrap();
        self.driver.write(&mem, 0, &bytes).unwrap();
        mem
    }

    /// Guarded device memory that holds `values`.
    fn output<T: Number>(&self, values: &[T]) -> Output<D> {
        let guard = [GUARD_BYTE; GUARD];
        let bytes = [&guard[..], &to_bytes(values), &guard].concat();
        let mem = self.driver.alloc("a test's output", bytes.len()).unwrap();
        self.driver.write(&mem, 0, &bytes).unwrap();
        Output(mem)
    }

    /// Guarded device memory for `n` numbers, poisoned.
    fn poisoned<T: Number>(&self, n: usize) -> Output<D> {
        self.output(&vec![T::POISON; n])
    }

    /// What a kernel left in an output.
    ///
    /// # Panics
    /// If it wrote beside it.
    fn read<T: Number>(&self, output: &Output<D>) -> Vec<T> {
        let mut bytes = vec![0; D::len(&output.0)];
        self.driver.read(&output.0, 0, &mut bytes).unwrap();
        let (before, rest) = bytes.split_at(GUARD);
        let (values, after) = rest.split_at(rest.len() - GUARD);
        assert!(before.iter().all(|&byte| byte == GUARD_BYTE), "the kernel wrote before its output");
        assert!(after.iter().all(|&byte| byte == GUARD_BYTE), "the kernel wrote past its output");
        values.chunks_exact(size_of::<T>()).map(T::from_bytes).collect()
    }

    fn launch<K: Kernel>(&self, grid: Grid, args: K::Args) {
        // SAFETY: each case passes buffers of the extents that the kernel documents.
        unsafe { self.driver.launch::<K>(grid, args) }.unwrap_or_else(|e| panic!("{e}"));
    }
}

/// Device memory between guards.
pub struct Output<D: Driver>(D::Mem);

impl<D: Driver> Output<D> {
    fn pointer<T>(&self) -> *mut T {
        (D::address(&self.0) + GUARD as u64) as *mut T
    }
}

fn pointer<D: Driver, T>(mem: &D::Mem) -> *const T {
    D::address(mem) as *const T
}

/// Fails, naming `what`, unless `found` is within `error` of `expected`. NaN never is.
#[track_caller]
fn assert_close(found: f32, expected: f64, error: f64, what: impl Fn() -> String) {
    let off = (f64::from(found) - expected).abs();
    assert!(off <= error, "{}: {found} instead of {expected}: off by {off:e}, the budget is {error:e}", what());
}
