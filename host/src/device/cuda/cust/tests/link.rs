//! The link: slowed down, and what is not page-locked for it.

use std::{
    env,
    time::{Duration, Instant},
};

use super::*;

/// The stand-in's queues run when something waits for them, and its clock counts pieces of work; the host's is what is slow.
#[test]
fn a_slow_link_is_slow_in_the_queue() {
    with_driver!("a_slow_link_is_slow_in_the_queue");
    let driver = open();
    let (vram, mut ram) = (driver.alloc("vram", 4096).unwrap(), driver.pinned("ram", 4096).unwrap());
    ram.as_mut().copy_from_slice(&pattern(4096, 5));
    // 50 ms a copy.
    driver.limit_link(Some(4096.0 * 20.0));
    let begin = Instant::now();
    let ends = [(); 4].map(|()| driver.upload(&ram, 0..4096, &vram, 0, None).unwrap());
    assert!(begin.elapsed() < Duration::from_millis(150), "the caller does not wait");
    assert!(!driver.reached(&ends[0]).unwrap());
    for end in &ends {
        driver.host_waits(end).unwrap();
        assert!(driver.reached(end).unwrap());
    }
    let took = begin.elapsed();
    assert!(took >= Duration::from_millis(199), "{took:?}");
    assert!(fetch(&driver, &vram) == pattern(4096, 5));
    driver.limit_link(None);
    let begin = Instant::now();
    driver.host_waits(&driver.upload(&ram, 0..4096, &vram, 0, None).unwrap()).unwrap();
    assert!(begin.elapsed() < Duration::from_millis(45), "{:?}", begin.elapsed());
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

/// Some systems do not page-lock as much as there is RAM.
#[test]
fn memory_that_is_not_locked_is_an_answer() {
    for (code, answer) in [("0", "pinned"), ("1", "error"), ("2", "pageable"), ("304", "pageable"), ("801", "pageable")]
    {
        let name = here!("memory_that_is_not_locked_is_an_answer");
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
