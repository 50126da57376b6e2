//! Passes that are captured and replayed.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;

#[test]
fn a_captured_pass_is_repeated_by_each_replay() {
    let name = here!("a_captured_pass_is_repeated_by_each_replay");
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
    // What the pass itself cannot do is no reason to try it again.
    let mut runs = 0;
    let error = driver.capture(&mut || {
        runs += 1;
        Err(DeviceError::Unsupported("no such pass".into()))
    });
    assert_eq!((error.err().unwrap().to_string().as_str(), runs), ("no such pass", 1));
    // A panic ends it too.
    let panicked = catch_unwind(AssertUnwindSafe(|| driver.capture(&mut || panic!("in a capture")).map(drop)));
    assert!(panicked.is_err());
    assert_eq!(fetch(&driver, &mem), [9; 64]);
    two_fills(&driver, &mem, 3).unwrap();
    assert_eq!(fetch(&driver, &mem), [[4; 32], [3; 32]].concat());
    assert!(driver.capture(&mut || two_fills(&driver, &mem, 1)).unwrap().is_some());
}

/// A driver that cannot record does not keep a pass from being computed, and it is said once.
#[test]
fn a_pass_that_cannot_be_recorded_is_run_with_a_warning() {
    // To free memory is something that no capture can record, and that this driver does not refuse.
    const FREED: &str = "freed in the capture";
    // What fails, and what the warning says of it.
    let cases = [
        ("cuStreamBeginCapture_v2=900", "cuStreamBeginCapture failed: "),
        ("cuGraphInstantiateWithFlags=2", "cuGraphInstantiateWithFlags failed: out of memory "),
        (FREED, "cuStreamEndCapture failed: "),
    ];
    for (fails, said) in cases {
        let name = here!("a_pass_that_cannot_be_recorded_is_run_with_a_warning");
        if let Some(stderr) = fake::outer_with_driver(&name, &[("FAKE_CUDA_FAIL", fails), ("FAKE_CUDA_TRACE", "1")]) {
            let warning = format!("warning: passes cannot be captured as CUDA graphs: {said}");
            assert_eq!(stderr.matches("warning: ").count(), 1, "{stderr}");
            assert!(stderr.contains(&warning) && stderr.contains("NT_NO_GRAPH=1"), "{warning:?} is not in {stderr}");
            assert!(!stderr.contains("launch a graph"), "{stderr}");
            continue;
        }
        let driver = open();
        let mem = driver.alloc("mem", 64).unwrap();
        let mut freed = Some(driver.alloc("freed", 64).unwrap());
        let frees = std::env::var("FAKE_CUDA_FAIL").unwrap() == FREED;
        for value in [1, 5] {
            let captured = driver.capture(&mut || {
                freed = freed.take().filter(|_| !frees);
                two_fills(&driver, &mem, value)
            });
            assert!(captured.unwrap().is_none());
            assert_eq!(fetch(&driver, &mem), [[value as u8 + 1; 32], [value as u8; 32]].concat());
        }
        return;
    }
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
