//! Kernels: their modules, parameters, shared memory, faults and times.

use std::time::Instant;

use super::*;

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
        let name = here!("a_long_compilation_is_announced");
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
    let name = here!("modules_are_compiled_at_the_same_time_and_once");
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
        let name = here!("kernels_that_wait_themselves_start_early");
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

#[test]
fn blocks_are_launched_in_clusters() {
    let name = here!("blocks_are_launched_in_clusters");
    if let Some(stderr) = fake::outer_with_driver(&name, &[("FAKE_CUDA_TRACE", "1")]) {
        let launches: Vec<_> = stderr.lines().filter(|line| line.starts_with("launch")).collect();
        let expected = [
            "launch fill, programmatic, clusters of 2x1x1",
            "launch fill, clusters of 1x4x1",
            "launch fill, programmatic, clusters of 3x1x1",
            "launch fill, clusters of 1x2x4",
        ];
        assert_eq!(launches, expected);
        return;
    }
    let driver = open();
    let mem = driver.alloc("mem", 64).unwrap();
    let start = CustDriver::address(&mem) as *mut u8;
    let clusters = |width, height, cluster| Grid::new(width, height, 32).with_cluster(cluster);
    // SAFETY: all of `mem`, or less.
    unsafe {
        driver.launch::<DependentFill>(clusters(6, 4, [2, 1, 1]), (start, 3, 64)).unwrap();
        // Of a module without programmatic launches, a cluster is the only attribute; as with a profile on.
        driver.launch::<Fill>(clusters(6, 4, [1, 4, 1]), (start, 4, 32)).unwrap();
        let error = driver.launch::<DependentFill>(clusters(6, 4, [4, 1, 1]), (start, 5, 64)).unwrap_err();
        assert!(matches!(error, DeviceError::Kernel { kernel: "fill", .. }), "{error:?}");
        assert!(error.to_string().contains("6x4x1 blocks of 32x1x1 threads cannot start"), "{error}");
        driver.launch::<DependentFill>(clusters(6, 4, [3, 1, 1]), (start, 6, 16)).unwrap();
        driver.profile(true);
        let deep = Grid { blocks: [1, 2, 4], ..clusters(1, 1, [1, 2, 4]) };
        driver.launch::<DependentFill>(deep, (start, 7, 8)).unwrap();
    }
    assert_eq!(driver.take_profile().unwrap().len(), 1);
    assert_eq!(fetch(&driver, &mem), [&[7; 8][..], &[6; 8], &[4; 16], &[3; 32]].concat());
}

#[test]
fn a_profile_has_the_time_of_each_launch() {
    let name = here!("a_profile_has_the_time_of_each_launch");
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
