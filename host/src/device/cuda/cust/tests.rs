//! The driver without a GPU: what it says where there is none, and its transfers over a stand-in for NVIDIA's library.

use std::{
    env,
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use cuda_std::kernel::Kernel;

use super::*;

#[path = "../../../../../crates/cuda_dlopen/tests/fake/mod.rs"]
mod fake;

/// This module's path for the test runner.
const HERE: &str = "device::cuda::cust::tests::";

/// Runs the rest of the test once per line of settings, in processes of their own with the stand-in as the driver.
/// Evaluates to the stderr of each in the outer process, which is done then.
macro_rules! with_driver {
    ($name:literal $(, $variable:literal = $value:expr)*) => {
        if fake::outer_with_driver(&format!("{HERE}{}", $name), &[$(($variable, $value)),*]).is_some() {
            return;
        }
    };
}

/// The stand-in's kernel that stores `value` in `count` bytes.
enum Fill {}
impl Kernel for Fill {
    const NAME: &'static str = "fill";
    const MODULE: &'static str = "good";
    type Args = (*mut u8, u32, u32);
    unsafe fn run(_: Self::Args) {}
}

/// The same kernel, compiled for compute capability 9.0.
enum DependentFill {}
impl Kernel for DependentFill {
    const NAME: &'static str = "fill";
    const MODULE: &'static str = "dependent";
    type Args = (*mut u8, u32, u32);
    unsafe fn run(_: Self::Args) {}
}

/// Kernels whose launch fails, each in its way.
macro_rules! kernel {
    ($type:ident, $name:literal in $module:literal) => {
        enum $type {}
        impl Kernel for $type {
            const NAME: &'static str = $name;
            const MODULE: &'static str = $module;
            type Args = ();
            unsafe fn run(_: Self::Args) {}
        }
    };
}
kernel!(Crash, "crash" in "good");
kernel!(Absent, "absent" in "good");
kernel!(Unreadable, "fill" in "bad");
kernel!(Unknown, "fill" in "unheard_of");

fn modules(name: &str, _capability: (u32, u32)) -> Option<&'static str> {
    match name {
        "good" => Some(".version 7.4\n.target sm_80\n.entry fill\n.entry crash\n"),
        "dependent" => Some(".version 8.0\n.target sm_90\n.entry fill\n"),
        "feature" => Some(".version 8.0\n.target sm_90a\n.entry fill\n"),
        "bad" => Some("nonsense"),
        _ => None,
    }
}

fn open() -> CustDriver {
    CustDriver::with_modules(0, modules, |line| eprintln!("{line}")).unwrap()
}

fn why(result: Result<CustDriver>) -> String {
    match result {
        Err(error @ DeviceError::Unavailable { .. }) => error.to_string(),
        Err(error) => panic!("not Unavailable: {error}"),
        Ok(_) => panic!("it opened"),
    }
}

/// Bytes in which a displaced or missing piece shows.
fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| ((i * 31 + i / 251 + i / 65_537 + seed * 17) % 256) as u8).collect()
}

fn fetch(driver: &CustDriver, mem: &Mem) -> Vec<u8> {
    let mut bytes = vec![0; mem.len];
    driver.read(mem, 0, &mut bytes).unwrap();
    bytes
}

#[test]
fn no_driver_is_said_with_the_way_out() {
    let settings = [("NT_LIBCUDA", "/nonexistent/libcuda.so.1")];
    if fake::outer(&format!("{HERE}no_driver_is_said_with_the_way_out"), &settings).is_some() {
        return;
    }
    let message = why(CustDriver::open(0, |_| ()));
    for part in ["not installed or not visible", "/nonexistent/libcuda.so.1", "--device cpu"] {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(CustDriver::count().unwrap_err().to_string(), message);
}

#[test]
fn unusable_devices_are_named_with_the_reason() {
    let cases: &[(&str, &str, &[&str])] = &[
        ("FAKE_CUDA_VERSION", "11020", &["too old", "CUDA 11.2", "CUDA 11.4", "PTX 7.4", "update"]),
        ("FAKE_CUDA_DEVICES", "0", &["sees no GPU"]),
        ("FAKE_CUDA_CAPABILITY", "75", &["cuda:0 Fake 0", "compute capability 7.5", "8.0"]),
        ("FAKE_CUDA_FAIL", "cuInit=803", &["cuInit", "unsupported display driver / cuda driver combination"]),
        ("FAKE_CUDA_FAIL", "cuDevicePrimaryCtxRetain=46", &["cuda:0 Fake 0", "busy or unavailable"]),
        ("FAKE_CUDA_FAIL", "cuStreamCreateWithPriority=2", &["cuStreamCreate", "out of memory"]),
        ("FAKE_CUDA_FAIL", "cuDeviceGetCount=4242", &["cuDeviceGetCount", "CUDA error 4242"]),
    ];
    for (number, (variable, value, _)) in cases.iter().enumerate() {
        let name = format!("{HERE}unusable_devices_are_named_with_the_reason");
        if fake::outer_with_driver(&name, &[("CASE", &number.to_string()), (variable, value)]).is_none() {
            let message = why(CustDriver::open(0, |_| ()));
            let case: usize = env::var("CASE").unwrap().parse().unwrap();
            for part in cases[case].2.iter().chain(&["no CUDA device: ", "--device cpu"]) {
                assert!(message.contains(part), "{part:?} is not in {message:?}");
            }
            return;
        }
    }
}

#[test]
fn an_index_beyond_the_devices_is_said_with_their_number() {
    with_driver!("an_index_beyond_the_devices_is_said_with_their_number", "FAKE_CUDA_DEVICES" = "2");
    assert_eq!(CustDriver::count().unwrap(), 2);
    assert_eq!(CustDriver::open(1, |_| ()).unwrap().name(), "cuda:1 Fake 1");
    let message = why(CustDriver::open(2, |_| ()));
    assert!(message.contains("no cuda:2") && message.contains("2 are visible"), "{message}");
    assert!(why(CustDriver::open(usize::MAX, |_| ())).contains("no cuda:18446744073709551615"));
}

#[test]
fn memory_that_does_not_fit_is_said_with_the_numbers() {
    with_driver!("memory_that_does_not_fit_is_said_with_the_numbers", "FAKE_CUDA_MEMORY" = "1000000");
    let driver = open();
    let first = driver.alloc("the first", 600_000).unwrap();
    assert_eq!(driver.memory().unwrap(), MemoryInfo { free: 400_000, total: 1_000_000 });
    let Err(error) = driver.alloc("the second", 400_001) else { panic!("it fitted") };
    assert!(matches!(error, DeviceError::OutOfMemory { need: 400_001, free: 400_000, .. }), "{error}");
    assert!(error.to_string().contains("cuda:0 Fake 0: not enough memory for the second"), "{error}");
    drop(first);
    driver.alloc("the second again", 400_001).unwrap();
    driver.alloc("nothing", 0).unwrap();
}

#[test]
fn pinning_that_does_not_fit_is_refused() {
    with_driver!("pinning_that_does_not_fit_is_refused", "FAKE_CUDA_FAIL" = "cuMemHostRegister_v2=2");
    let driver = open();
    for bytes in [4096, 1 << 60] {
        let Err(error) = driver.pinned("a layer", bytes) else { panic!("it fitted") };
        assert!(matches!(error, DeviceError::OutOfMemory { need, .. } if need == bytes as u64), "{error}");
        assert!(error.to_string().contains("page-locked host memory: not enough memory for a layer"), "{error}");
    }
}

#[test]
fn ranges_outside_buffers_are_refused() {
    with_driver!("ranges_outside_buffers_are_refused");
    let driver = open();
    let (mem, pinned) = (driver.alloc("mem", 100).unwrap(), driver.pinned("pinned", 100).unwrap());
    let mut bytes = [0; 51];
    let refused = [
        driver.write(&mem, 50, &bytes),
        driver.write(&mem, usize::MAX, &bytes),
        driver.read(&mem, 101, &mut bytes[..0]),
        driver.copy(&mem, &mem, 101),
        driver.upload(&pinned, 0..101, &mem, 0, None).map(drop),
        driver.upload(&pinned, 50..100, &mem, 51, None).map(drop),
        #[expect(clippy::reversed_empty_ranges)]
        driver.upload(&pinned, 2..1, &mem, 0, None).map(drop),
    ];
    for (case, result) in refused.into_iter().enumerate() {
        assert!(matches!(result, Err(DeviceError::OutOfRange { .. })), "case {case}: {result:?}");
    }
    driver.write(&mem, 100, &[]).unwrap();
    driver.upload(&pinned, 100..100, &mem, 100, None).unwrap();
}

#[test]
fn writes_of_every_size_arrive_although_their_source_is_reused() {
    with_driver!("writes_of_every_size_arrive_although_their_source_is_reused");
    let driver = open();
    // Three and a bit staging buffers in one write, then sizes around their ends, so that each is used several times.
    let sizes = [3 * memory::STAGE + 7, 1, 63, 65, memory::STAGE - 1, memory::STAGE, memory::STAGE + 1, 5];
    let mems: Vec<Mem> = sizes.iter().map(|&size| driver.alloc("target", size + 3).unwrap()).collect();
    let mut source = Vec::new();
    for (seed, (&size, mem)) in sizes.iter().zip(&mems).enumerate() {
        source.clear();
        source.extend(pattern(size, seed));
        driver.write(mem, 3, &source).unwrap();
    }
    // From page-locked memory too, where the driver itself would read later.
    let mut pinned = driver.pinned("source", 1000).unwrap();
    let last = driver.alloc("target", 1000).unwrap();
    pinned.as_mut().copy_from_slice(&pattern(1000, 99));
    driver.write(&last, 0, pinned.as_ref()).unwrap();
    pinned.as_mut().fill(0);

    for (seed, (&size, mem)) in sizes.iter().zip(&mems).enumerate() {
        assert!(fetch(&driver, mem)[3..] == pattern(size, seed), "write {seed} of {size} bytes");
    }
    assert!(fetch(&driver, &last) == pattern(1000, 99));
}

#[test]
fn uploads_and_kernels_keep_the_order_of_their_events() {
    with_driver!("uploads_and_kernels_keep_the_order_of_their_events");
    let driver = open();
    let (slot, kept) = (driver.alloc("slot", 256).unwrap(), driver.alloc("kept", 256).unwrap());
    let mut pinned = driver.pinned("layers", 512).unwrap();
    assert!(pinned.as_ref().iter().all(|&byte| byte == 0) && (pinned.as_ref().as_ptr() as usize).is_multiple_of(4096));
    pinned.as_mut().copy_from_slice(&pattern(512, 1));

    // The compute queue uses a layer once it is there. `fetch` waits for that queue alone.
    let there = driver.upload(&pinned, 0..256, &slot, 0, None).unwrap();
    driver.compute_waits(&there).unwrap();
    driver.copy(&slot, &kept, 256).unwrap();
    assert!(fetch(&driver, &kept) == pattern(512, 1)[..256]);

    // The next layer gets into the slot once that use is over. The host waits for the copy queue alone.
    driver.write(&kept, 0, &[0; 256]).unwrap();
    driver.copy(&slot, &kept, 256).unwrap();
    let used = driver.mark().unwrap();
    let next = driver.upload(&pinned, 256..512, &slot, 0, Some(&used)).unwrap();
    driver.host_waits(&next.clone()).unwrap();
    assert!(fetch(&driver, &kept) == pattern(512, 1)[..256]);
    assert!(fetch(&driver, &slot) == pattern(512, 1)[256..]);

    // Memory and events dropped while their work is still queued.
    let event = driver.upload(&pinned, 0..256, &slot, 0, None).unwrap();
    driver.compute_waits(&event).unwrap();
    drop((event, pinned));
    driver.copy(&slot, &kept, 256).unwrap();
    drop(slot);
    assert!(fetch(&driver, &kept) == pattern(512, 1)[..256]);
}

/// The stand-in's queues run when something waits for them, and its clock counts pieces of work; the host's is what is slow.
#[test]
fn a_slow_link_is_slow_in_the_queue() {
    with_driver!("a_slow_link_is_slow_in_the_queue");
    let driver = open();
    let (vram, mut ram) = (driver.alloc("vram", 4096).unwrap(), driver.pinned("ram", 4096).unwrap());
    ram.as_mut().copy_from_slice(&pattern(4096, 5));
    // 10 ms a copy.
    driver.limit_link(Some(4096.0 * 100.0));
    let begin = Instant::now();
    let ends = [(); 4].map(|()| driver.upload(&ram, 0..4096, &vram, 0, None).unwrap());
    assert!(begin.elapsed() < Duration::from_millis(30), "the caller does not wait");
    assert!(!driver.reached(&ends[0]).unwrap());
    for end in &ends {
        driver.host_waits(end).unwrap();
        assert!(driver.reached(end).unwrap());
    }
    let took = begin.elapsed();
    assert!(took >= Duration::from_millis(39), "{took:?}");
    assert!(fetch(&driver, &vram) == pattern(4096, 5));
    driver.limit_link(None);
    let begin = Instant::now();
    driver.host_waits(&driver.upload(&ram, 0..4096, &vram, 0, None).unwrap()).unwrap();
    assert!(begin.elapsed() < Duration::from_millis(9), "{:?}", begin.elapsed());
}

#[test]
fn a_driver_without_host_functions_has_no_slow_link() {
    with_driver!("a_driver_without_host_functions_has_no_slow_link", "FAKE_CUDA_FAIL" = "cuLaunchHostFunc=500");
    let driver = open();
    let (vram, ram) = (driver.alloc("vram", 64).unwrap(), driver.pinned("ram", 64).unwrap());
    driver.upload(&ram, 0..64, &vram, 0, None).unwrap();
    driver.limit_link(Some(1e9));
    let error = driver.upload(&ram, 0..64, &vram, 0, None).map(drop).unwrap_err();
    assert!(error.to_string().contains("cuLaunchHostFunc failed"), "{error}");
}

/// What a source brings arrives, also in many pieces, and where it fails the error comes out and later writes go on.
#[test]
fn bytes_that_a_source_brings_arrive() {
    with_driver!("bytes_that_a_source_brings_arrive");
    let driver = open();
    let len = 5 * memory::STAGE + 12_345;
    let (mem, expected) = (driver.alloc("target", len + 10).unwrap(), pattern(len, 3));
    for round in 0..2 {
        driver
            .fill(&mem, 10, len, &|at, piece| {
                piece.copy_from_slice(&expected[at..at + piece.len()]);
                Ok(())
            })
            .unwrap();
        assert!(fetch(&driver, &mem)[10..] == expected, "round {round}");
        let failing = driver.fill(&mem, 0, len, &|at, piece| {
            if (at..at + piece.len()).contains(&(3 * memory::STAGE)) {
                return Err(DeviceError::Source("the disk is gone".into()));
            }
            Ok(())
        });
        assert_eq!(failing.unwrap_err().to_string(), "the disk is gone");
    }
    assert!(matches!(driver.fill(&mem, 11, len, &|_, _| Ok(())), Err(DeviceError::OutOfRange { .. })));
}

/// Some systems do not page-lock as much as there is RAM.
#[test]
fn memory_that_is_not_locked_is_an_answer() {
    for (code, answer) in [("0", "pinned"), ("1", "error"), ("2", "pageable"), ("304", "pageable"), ("801", "pageable")]
    {
        let name = format!("{HERE}memory_that_is_not_locked_is_an_answer");
        let settings = [("FAKE_CUDA_FAIL", &*format!("cuMemHostRegister_v2={code}")), ("ANSWER", answer)];
        if fake::outer_with_driver(&name, &settings).is_none() {
            let driver = open();
            let found = match driver.try_pinned("a layer", 4096) {
                Ok(HostMemory::Pinned(_)) => "pinned",
                Ok(HostMemory::Pageable { why }) => {
                    assert!(why.contains("cuda:0 Fake 0 refuses to page-lock 4096 bytes for a layer"), "{why}");
                    "pageable"
                }
                Err(error) => {
                    assert!(error.to_string().contains("cuMemHostRegister"), "{error}");
                    "error"
                }
            };
            assert_eq!(found, env::var("ANSWER").unwrap());
            assert!(driver.try_pinned("a layer", 1 << 60).is_err(), "more than there is");
            return;
        }
    }
}

#[test]
fn handles_outlive_their_driver() {
    with_driver!("handles_outlive_their_driver");
    let driver = open();
    let (mem, pinned) = (driver.alloc("mem", 64).unwrap(), driver.pinned("pinned", 64).unwrap());
    let event = driver.upload(&pinned, 0..64, &mem, 0, None).unwrap();
    // The stand-in ends the process when the context goes before its memory.
    drop((driver, mem, event, pinned));
}

#[test]
fn kernels_get_their_arguments_in_order() {
    with_driver!("kernels_get_their_arguments_in_order");
    let driver = open();
    let mem = driver.alloc("mem", 64).unwrap();
    assert_eq!(CustDriver::address(&mem) % 256, 0);
    let at = |offset: u64| (CustDriver::address(&mem) + offset) as *mut u8;
    let before = driver.mark().unwrap();
    // SAFETY: both ranges lie in `mem`.
    unsafe {
        driver.launch::<Fill>(Grid::new(1, 1, 32), (at(0), 7, 64)).unwrap();
        driver.launch::<Fill>(Grid::new(1, 1, 32), (at(10), 9, 20)).unwrap();
    }
    let after = driver.mark().unwrap();
    assert!(driver.seconds(&before, &after).is_err(), "not reached yet");
    let expected: Vec<u8> = (0..64).map(|i| if (10..30).contains(&i) { 9 } else { 7 }).collect();
    assert_eq!(fetch(&driver, &mem), expected);
    // The stand-in counts a millisecond per piece of work.
    assert!((driver.seconds(&before, &after).unwrap() - 2e-3).abs() < 1e-9);
}

#[test]
fn kernels_that_cannot_start_say_why() {
    with_driver!("kernels_that_cannot_start_say_why");
    let driver = open();
    let (null, grid) = (ptr::null_mut(), Grid::new(1, 1, 32));
    // SAFETY: none of them starts.
    let results = unsafe {
        [
            (driver.launch::<Unreadable>(grid, ()), "PTX JIT compilation failed"),
            (driver.launch::<Unreadable>(grid, ()), "ptxas fatal   : Missing .version directive"),
            (driver.launch::<Unknown>(grid, ()), "contains no kernel module unheard_of"),
            (driver.launch::<Absent>(grid, ()), "not found in the kernel module good"),
            (driver.launch::<Fill>(Grid::new(1, 1, 2048), (null, 0, 0)), "1x1x1 blocks of 2048x1x1 threads"),
        ]
    };
    for (result, part) in results {
        let error = result.unwrap_err();
        assert!(matches!(error, DeviceError::Kernel { .. }), "{error:?}");
        assert!(error.to_string().contains(part), "{part:?} is not in {error}");
    }
}

#[test]
fn launches_get_the_shared_memory_that_they_ask_for() {
    with_driver!("launches_get_the_shared_memory_that_they_ask_for");
    let driver = open();
    let most = driver.properties().shared_per_block;
    assert_eq!(most, 227 << 10);
    let mem = driver.alloc("mem", 64).unwrap();
    for (value, shared) in [1024, most, 0, 64 << 10, most].into_iter().enumerate() {
        let args = (CustDriver::address(&mem) as *mut u8, value as u32, 64);
        // SAFETY: all of `mem`. The stand-in refuses a launch that asks for more than its kernel was allowed.
        unsafe { driver.launch::<Fill>(Grid::new(1, 1, 32).with_shared(shared), args) }.unwrap();
        assert_eq!(fetch(&driver, &mem), [value as u8; 64], "{shared} bytes of shared memory");
    }
    for shared in [most + 1, u32::MAX] {
        // SAFETY: it does not start.
        let result = unsafe { driver.launch::<Fill>(Grid::new(1, 1, 32).with_shared(shared), (ptr::null_mut(), 0, 0)) };
        let error = result.unwrap_err();
        assert!(matches!(error, DeviceError::Kernel { kernel: "fill", .. }), "{error:?}");
        let part = format!("{shared} bytes of dynamic shared memory a block, where a block has 232448 in all");
        assert!(error.to_string().contains(&part), "{error}");
    }
}

#[test]
fn the_properties_are_the_devices() {
    with_driver!("the_properties_are_the_devices", "FAKE_CUDA_CAPABILITY" = "103");
    let expected = Properties {
        multiprocessors: 4,
        shared_per_block: 227 << 10,
        shared_per_multiprocessor: 228 << 10,
        shared_reserved: 1 << 10,
        compute_capability: (10, 3),
        l2_bytes: 1 << 20,
    };
    assert_eq!(*open().properties(), expected);
}

#[test]
fn a_fault_names_the_kernel_launched_last() {
    with_driver!("a_fault_names_the_kernel_launched_last");
    let driver = open();
    let mem = driver.alloc("mem", 64).unwrap();
    // SAFETY: the fault is the stand-in's own doing.
    unsafe { driver.launch::<Crash>(Grid::new(1, 1, 32), ()) }.unwrap();
    let mark = driver.mark().unwrap();
    // SAFETY: never runs.
    let later = |driver: &CustDriver| unsafe { driver.launch::<Fill>(Grid::new(1, 1, 1), (ptr::null_mut(), 0, 0)) };
    let errors =
        [driver.read(&mem, 0, &mut [0; 8]), driver.host_waits(&mark), driver.write(&mem, 0, &[0; 8]), later(&driver)];
    for error in errors.map(|result| result.unwrap_err()) {
        assert!(matches!(error, DeviceError::Kernel { kernel: "crash", .. }), "{error:?}");
        assert!(error.to_string().contains("illegal memory access"), "{error}");
        assert!(error.to_string().contains("in this kernel or in one launched before it"), "{error}");
    }
}

#[test]
fn a_long_compilation_is_announced() {
    for (milliseconds, announced) in [("1300", true), ("0", false)] {
        let name = format!("{HERE}a_long_compilation_is_announced");
        match fake::outer_with_driver(&name, &[("FAKE_CUDA_JIT_MS", milliseconds)]) {
            Some(stderr) => {
                let line = "compiling GPU kernels for cuda:0 Fake 0 (first run only): 1 module ...";
                assert_eq!(stderr.contains(line), announced, "{stderr}");
            }
            None => {
                let driver = open();
                let mem = driver.alloc("mem", 1).unwrap();
                // SAFETY: one byte of `mem`.
                unsafe { driver.launch::<Fill>(Grid::new(1, 1, 1), (CustDriver::address(&mem) as *mut u8, 1, 1)) }
                    .unwrap();
                return;
            }
        }
    }
}

#[test]
fn modules_are_compiled_at_the_same_time_and_once() {
    let name = format!("{HERE}modules_are_compiled_at_the_same_time_and_once");
    if let Some(stderr) = fake::outer_with_driver(&name, &[("FAKE_CUDA_JIT_MS", "1300")]) {
        assert_eq!(stderr.matches("compiling").count(), 1, "{stderr}");
        assert!(stderr.contains("(first run only): 3 modules ..."), "{stderr}");
        return;
    }
    let driver = open();
    let start = Instant::now();
    driver.load_modules(&["good", "dependent", "good", "feature"]).unwrap();
    // One after the other, they would take 3.9 s.
    let once = start.elapsed().as_secs_f64();
    assert!((1.3..2.6).contains(&once), "{once} s");
    driver.load_modules(&["feature", "good"]).unwrap();
    let mem = driver.alloc("mem", 1).unwrap();
    // SAFETY: one byte of `mem`.
    unsafe { driver.launch::<Fill>(Grid::new(1, 1, 1), (CustDriver::address(&mem) as *mut u8, 1, 1)) }.unwrap();
    assert!(start.elapsed().as_secs_f64() - once < 1.0, "compiled again");
}

#[test]
fn modules_that_cannot_be_loaded_say_why() {
    with_driver!("modules_that_cannot_be_loaded_say_why");
    let driver = open();
    let error = driver.load_modules(&["good", "bad", "dependent"]).unwrap_err();
    assert!(matches!(error, DeviceError::Kernel { kernel: "bad", .. }), "{error:?}");
    assert!(error.to_string().contains("ptxas fatal   : Missing .version directive"), "{error}");
    let error = driver.load_modules(&["good", "unheard_of"]).unwrap_err();
    assert!(error.to_string().contains("contains no kernel module unheard_of"), "{error}");
    // The others are there; all are unloaded with the driver.
    driver.load_modules(&["good", "dependent"]).unwrap();
}

#[test]
fn kernels_that_wait_themselves_start_early() {
    // Settings, and whether the launch is programmatic: NVIDIA's rules, and ours for measuring.
    let cases: &[(&[(&str, &str)], bool)] = &[
        (&[], true),
        (&[("FAKE_CUDA_CAPABILITY", "120")], true),
        (&[("NT_NO_PDL", "0")], true),
        (&[("NT_NO_PDL", "1")], false),
        (&[("FAKE_CUDA_CAPABILITY", "89")], false),
        (&[("FAKE_CUDA_VERSION", "12020")], false),
    ];
    for (settings, programmatic) in cases {
        let name = format!("{HERE}kernels_that_wait_themselves_start_early");
        match fake::outer_with_driver(&name, &[&[("FAKE_CUDA_TRACE", "1")], *settings].concat()) {
            Some(stderr) => {
                let first = if *programmatic { "launch fill, programmatic\n" } else { "launch fill\n" };
                // The second is of a module for older GPUs, which has no instruction to wait.
                assert!(stderr.contains(&format!("{first}launch fill\n")), "{settings:?}: {stderr}");
            }
            None => {
                let driver = open();
                let mem = driver.alloc("mem", 64).unwrap();
                let start = CustDriver::address(&mem) as *mut u8;
                // SAFETY: all of `mem`.
                unsafe {
                    driver.launch::<DependentFill>(Grid::new(1, 1, 32).with_shared(64 << 10), (start, 3, 64)).unwrap();
                    driver.launch::<Fill>(Grid::new(1, 1, 32), (start, 4, 32)).unwrap();
                }
                assert_eq!(fetch(&driver, &mem), [[4; 32], [3; 32]].concat());
                return;
            }
        }
    }
}

/// Fills `mem` with `value`, and then its first half with the next.
fn two_fills(driver: &CustDriver, mem: &Mem, value: u32) -> Result<()> {
    let (start, len) = (CustDriver::address(mem) as *mut u8, mem.len as u32);
    // SAFETY: all of `mem`.
    unsafe {
        driver.launch::<DependentFill>(Grid::new(1, 1, 32), (start, value, len))?;
        driver.launch::<Fill>(Grid::new(1, 1, 32), (start, value + 1, len / 2))
    }
}

#[test]
fn a_captured_pass_is_repeated_by_each_replay() {
    let name = format!("{HERE}a_captured_pass_is_repeated_by_each_replay");
    if let Some(stderr) = fake::outer_with_driver(&name, &[("FAKE_CUDA_TRACE", "1")]) {
        let expected = "launch fill, programmatic\nlaunch fill\nlaunch a graph of 2\nlaunch a graph of 2\n";
        assert!(stderr.contains(expected), "{stderr}");
        return;
    }
    let driver = open();
    let mem = driver.alloc("mem", 64).unwrap();
    driver.write(&mem, 0, &[9; 64]).unwrap();
    let graph = driver.capture(&mut || two_fills(&driver, &mem, 1)).unwrap().unwrap();
    assert_eq!(fetch(&driver, &mem), [9; 64], "it has run");
    for value in [7, 8] {
        driver.write(&mem, 0, &[value; 64]).unwrap();
        // SAFETY: this driver's, and `mem` is alive.
        unsafe { driver.replay(&graph) }.unwrap();
        assert_eq!(fetch(&driver, &mem), [[2; 32], [1; 32]].concat());
    }
    // SAFETY: as above; it is destroyed while it is still queued, and after its driver.
    unsafe { driver.replay(&graph) }.unwrap();
    drop((driver, graph, mem));
}

#[test]
fn a_pass_that_cannot_be_captured_is_run() {
    with_driver!("a_pass_that_cannot_be_captured_is_run", "NT_NO_GRAPH" = "1");
    let driver = open();
    let mem = driver.alloc("mem", 64).unwrap();
    assert!(driver.capture(&mut || two_fills(&driver, &mem, 1)).unwrap().is_none());
    assert_eq!(fetch(&driver, &mem), [[2; 32], [1; 32]].concat());
    // What a capture refuses is refused here too.
    let error = driver.capture(&mut || driver.write(&mem, 0, &[1])).err().unwrap();
    assert!(matches!(error, DeviceError::Captured("a write")), "{error}");
}

#[test]
fn a_failed_capture_leaves_the_queue_usable() {
    with_driver!("a_failed_capture_leaves_the_queue_usable");
    let driver = open();
    let mem = driver.alloc("mem", 64).unwrap();
    driver.write(&mem, 0, &[9; 64]).unwrap();
    let error = driver.capture(&mut || {
        two_fills(&driver, &mem, 1)?;
        driver.mark().map(drop)
    });
    assert!(matches!(error, Err(DeviceError::Captured("a mark"))));
    // Something that the capture cannot know of ends it too.
    let mut dropped = Some(driver.alloc("dropped", 64).unwrap());
    let error = driver.capture(&mut || {
        dropped = None;
        two_fills(&driver, &mem, 1)
    });
    assert!(error.err().unwrap().to_string().contains("cuStreamEndCapture"));
    // And a panic.
    let panicked = catch_unwind(AssertUnwindSafe(|| driver.capture(&mut || panic!("in a capture")).map(drop)));
    assert!(panicked.is_err());
    assert_eq!(fetch(&driver, &mem), [9; 64]);
    two_fills(&driver, &mem, 3).unwrap();
    assert_eq!(fetch(&driver, &mem), [[4; 32], [3; 32]].concat());
    assert!(driver.capture(&mut || two_fills(&driver, &mem, 1)).unwrap().is_some());
}

#[test]
fn a_graph_that_cannot_be_made_says_why() {
    with_driver!("a_graph_that_cannot_be_made_says_why", "FAKE_CUDA_FAIL" = "cuGraphInstantiateWithFlags=2");
    let driver = open();
    let mem = driver.alloc("mem", 64).unwrap();
    let error = driver.capture(&mut || two_fills(&driver, &mem, 1)).err().unwrap().to_string();
    assert!(error.contains("cuGraphInstantiateWithFlags failed: out of memory"), "{error}");
}

#[test]
fn a_fault_in_a_replay_says_so() {
    with_driver!("a_fault_in_a_replay_says_so");
    let driver = open();
    let mem = driver.alloc("mem", 64).unwrap();
    // SAFETY: the fault is the stand-in's own doing.
    let graph = driver.capture(&mut || unsafe { driver.launch::<Crash>(Grid::new(1, 1, 32), ()) }).unwrap().unwrap();
    two_fills(&driver, &mem, 1).unwrap();
    // SAFETY: as above.
    unsafe { driver.replay(&graph) }.unwrap();
    let error = driver.read(&mem, 0, &mut [0; 8]).unwrap_err().to_string();
    assert!(error.starts_with("kernel of a captured pass: an illegal memory access was encountered"), "{error}");
}

#[test]
fn a_profile_has_the_time_of_each_launch() {
    let name = format!("{HERE}a_profile_has_the_time_of_each_launch");
    if let Some(stderr) = fake::outer_with_driver(&name, &[("FAKE_CUDA_TRACE", "1")]) {
        assert!(stderr.contains("launch fill\n") && !stderr.contains("programmatic"), "{stderr}");
        return;
    }
    let driver = open();
    let mem = driver.alloc("mem", 64).unwrap();
    driver.profile(true);
    driver.label("first", 64);
    // More launches than events are made at a time.
    for _ in 0..200 {
        two_fills(&driver, &mem, 1).unwrap();
        driver.label("later", 0);
    }
    let launches = driver.take_profile().unwrap();
    assert_eq!(launches.len(), 400);
    // The stand-in counts a millisecond per piece of work, and each launch is one.
    assert!(launches.iter().all(|launch| launch.kernel == "fill" && (launch.seconds - 1e-3).abs() < 1e-9));
    let first: Vec<_> = launches.iter().filter(|l| l.label == "first").map(|launch| launch.bytes).collect();
    assert_eq!(first, [64, 0]);
    assert!(launches[2..].iter().all(|launch| launch.label == "later" && launch.bytes == 0));
}

#[test]
fn writes_wait_for_nothing_while_there_is_room() {
    with_driver!("writes_wait_for_nothing_while_there_is_room");
    let driver = open();
    let mem = driver.alloc("mem", 8192).unwrap();
    let before = driver.mark().unwrap();
    for _ in 0..100 {
        driver.write(&mem, 0, &[1; 8192]).unwrap();
    }
    let after = driver.mark().unwrap();
    assert!(driver.seconds(&before, &after).is_err(), "it has waited");
    driver.host_waits(&after).unwrap();
    // One piece of work each.
    assert!((driver.seconds(&before, &after).unwrap() - 0.1).abs() < 1e-9);
}

#[test]
fn reads_of_every_size_arrive() {
    with_driver!("reads_of_every_size_arrive");
    let driver = open();
    for size in [1, 4, memory::LANDING - 1, memory::LANDING, memory::LANDING + 1, 300_000] {
        let mem = driver.alloc("source", size + 3).unwrap();
        driver.write(&mem, 3, &pattern(size, size)).unwrap();
        let mut bytes = vec![0; size];
        driver.read(&mem, 3, &mut bytes).unwrap();
        assert!(bytes == pattern(size, size), "{size} bytes");
    }
}
