//! What a driver promises of launches, whoever runs them.

use cuda_std::kernel::Grid;
use gpu::probe;
use ntransformer::device::{DeviceError, cuda::driver::Driver};

use super::{Lab, Output, pointer};

/// Numbers of the counting kernel: many blocks on any GPU.
const COUNTERS: usize = 1 << 16;

/// Adds one to each counter, `times` times.
fn count<D: Driver>(lab: &Lab<D>, counters: &Output<D>, times: usize) {
    for _ in 0..times {
        lab.launch::<probe::increment>(Grid::new(COUNTERS as u32 / 256, 1, 256), (counters.pointer(),));
    }
}

fn assert_counted<D: Driver>(lab: &Lab<D>, counters: &Output<D>, expected: u32) {
    let found = lab.read::<u32>(counters);
    let wrong = found.iter().position(|&count| count != expected);
    assert_eq!(wrong, None, "counter {:?} is not {expected}", wrong.map(|at| found[at]));
}

/// A struct arrives as it is, and so does the parameter behind it.
pub fn struct_as_parameter<D: Driver>(lab: &mut Lab<D>) {
    let x = lab.floats(40);
    let (input, output) = (lab.input(&x), lab.output(&[0f32; 40]));
    let job = probe::Scaled { x: pointer::<D, _>(&input), y: output.pointer(), factors: [2.0, 10.0], n: 40, more: -3 };
    lab.launch::<probe::struct_as_parameter>(Grid::new(1, 1, 64), (job, 0.5));
    // Twice x is exact, so there is one rounding to an order of the additions.
    let expected: Vec<f32> = x.iter().map(|x| x * 2.0 + 10.0 + -3.0 + 0.5).collect();
    assert_eq!(lab.read::<f32>(&output), expected);
}

/// All of the dynamic shared memory that a block can have is there, in steps across 48 KiB, and no more.
pub fn dynamic_shared<D: Driver>(lab: &mut Lab<D>) {
    const THREADS: u32 = 256;
    let most = lab.driver.properties().shared_per_block;
    assert!(most > 48 << 10, "{most}");
    for bytes in [THREADS * 4, 48 << 10, (48 << 10) + THREADS * 4, most, 4 << 10, most] {
        let x = lab.floats(THREADS as usize);
        let y = lab.output(&x);
        let grid = Grid::new(1, 1, THREADS).with_shared(bytes);
        lab.launch::<probe::reverse_in_dynamic_shared>(grid, (y.pointer(), bytes / 4 / THREADS));
        assert!(lab.read::<f32>(&y).iter().eq(x.iter().rev()), "{bytes} bytes");
    }
    let y = lab.output(&[0f32; THREADS as usize]);
    let grid = Grid::new(1, 1, THREADS).with_shared(most + 1);
    // SAFETY: the kernel stays in `y` and in less shared memory than that, and it does not start.
    let result = unsafe { lab.driver.launch::<probe::reverse_in_dynamic_shared>(grid, (y.pointer(), 1)) };
    let error = result.unwrap_err().to_string();
    assert!(error.contains("reverse_in_dynamic_shared") && error.contains("shared memory"), "{error}");
}

/// Each launch sees all that the one before it stored, although it may start before that one's end.
pub fn dependent_launches<D: Driver>(lab: &mut Lab<D>) {
    let counters = lab.output(&vec![0u32; COUNTERS]);
    count(lab, &counters, 100);
    assert_counted(lab, &counters, 100);
}

/// A replay does what the launches do, in their order, as often as it is asked to; a driver that cannot record runs them.
pub fn replays<D: Driver>(lab: &mut Lab<D>) {
    let counters = lab.output(&vec![0u32; COUNTERS]);
    let (x, copied) = (lab.floats(64), lab.poisoned::<f32>(64));
    let reversed = lab.output(&x);
    let mut pass = || {
        count(lab, &counters, 20);
        let grid = Grid::new(1, 1, 64).with_shared(256);
        lab.launch::<probe::reverse_in_dynamic_shared>(grid, (reversed.pointer(), 1));
        lab.driver.copy(&reversed.0, &copied.0, D::len(&copied.0))
    };
    pass().unwrap();
    assert_counted(lab, &counters, 20);
    let graph = lab.driver.capture(&mut pass).unwrap();
    // What is recorded has not run.
    let mut passes = if graph.is_some() { 1 } else { 2 };
    assert_counted(lab, &counters, 20 * passes);
    for others in 1..=4 {
        match &graph {
            // SAFETY: this driver's, and the buffers are alive.
            Some(graph) => unsafe { lab.driver.replay(graph) }.unwrap(),
            None => pass().unwrap(),
        }
        // Launches of their own between the replays are in order with them.
        count(lab, &counters, 1);
        passes += 1;
        assert_counted(lab, &counters, 20 * passes + others);
        let found = lab.read::<f32>(&copied);
        let reversed = passes % 2 == 1;
        assert!(if reversed { found.iter().eq(x.iter().rev()) } else { found == x }, "pass {passes}");
    }
}

/// What a replay would not repeat is refused in a capture, and a capture that fails has done nothing to the queue.
pub fn failed_capture<D: Driver>(lab: &mut Lab<D>) {
    let counters = lab.output(&vec![0u32; COUNTERS]);
    let driver = lab.driver;
    count(lab, &counters, 1);
    let event = driver.mark().unwrap();
    let pinned = driver.pinned("a source", 4).unwrap();
    type Refused<'a> = (&'a str, Box<dyn Fn() -> Result<(), DeviceError> + 'a>);
    let refused: Vec<Refused> = vec![
        ("an allocation", Box::new(|| driver.alloc("memory", 4).map(drop))),
        ("an allocation", Box::new(|| driver.pinned("memory", 4).map(drop))),
        ("a write", Box::new(|| driver.write(&counters.0, 0, &[0; 4]))),
        ("a read", Box::new(|| driver.read(&counters.0, 0, &mut [0; 4]))),
        ("an upload", Box::new(|| driver.upload(&pinned, 0..4, &counters.0, 0, None).map(drop))),
        ("a mark", Box::new(|| driver.mark().map(drop))),
        ("a wait", Box::new(|| driver.compute_waits(&event))),
        ("a wait", Box::new(|| driver.host_waits(&event))),
        ("a profile", Box::new(|| driver.take_profile().map(drop))),
        ("a capture", Box::new(|| driver.capture(&mut || Ok(())).map(drop))),
    ];
    for (what, call) in &refused {
        let error = driver.capture(&mut || call()).err().unwrap();
        assert!(matches!(error, DeviceError::Captured(found) if found == *what), "{what}: {error}");
    }
    // In a driver that cannot record, what came before the error has happened.
    let failing = driver.capture(&mut || Err(DeviceError::Unsupported("no such pass".into())));
    assert!(failing.is_err_and(|error| error.to_string() == "no such pass"));
    count(lab, &counters, 1);
    assert_counted(lab, &counters, 2);
}

/// One entry for each launch, in order, with its label, and bytes counted once; a capture runs its launches then.
pub fn profile<D: Driver>(lab: &mut Lab<D>) {
    let counters = lab.output(&vec![0u32; COUNTERS]);
    let driver = lab.driver;
    count(lab, &counters, 1);
    driver.label("not measured", 5);
    driver.profile(true);
    count(lab, &counters, 1);
    driver.label("two", 1000);
    count(lab, &counters, 2);
    driver.label("captured", 0);
    let captured = driver.capture(&mut || {
        count(lab, &counters, 1);
        Ok(())
    });
    assert!(captured.unwrap().is_none(), "a profile of a capture would be of nothing");
    driver.profile(false);
    count(lab, &counters, 1);

    let launches = driver.take_profile().unwrap();
    let found: Vec<_> = launches.iter().map(|launch| (launch.kernel, launch.label.as_str(), launch.bytes)).collect();
    let expected = [("", 0), ("two", 1000), ("two", 0), ("captured", 0)];
    assert_eq!(found, expected.map(|(label, bytes)| ("increment", label, bytes)));
    for launch in &launches {
        assert!(launch.seconds > 0.0 && launch.seconds < 1.0, "{launch:?}");
    }
    assert_counted(lab, &counters, 6);
    assert!(driver.take_profile().unwrap().is_empty());
}
