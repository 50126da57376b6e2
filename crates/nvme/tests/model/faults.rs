//! Drives that fail, and what becomes of the transfers.

use crate::setup::{bytes, drive, media, options};
use nvme::{
    Controller, Done, Door, Drive, Error, Operation, Options, Status, Transfer,
    model::{Fault, ModelDoor, Traits},
};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use std::time::Duration;

const MEDIA_ERROR: Status = Status::new(2, 0x81, false);
const BUSY: Status = Status::new(0, 0x21, true);

/// 64 reads of a block, with faults for the commands of these numbers. How each ended, and retries, resets, strays.
fn reads(traits: Traits, faults: &[(u64, Fault)]) -> (Vec<Result<(), Error>>, [u64; 3]) {
    let (media, faults) = (media(5, 4096, 64), faults.to_vec());
    let (door, mut drive) = drive(traits, Options { depth: 8, ..options() }, &media);
    let find = move |nth, _: &_| faults.iter().find(|&&(number, _)| number == nth).map(|&(_, fault)| fault);
    door.model().faults(Box::new(find));
    let data = door.allocate_runs(64 * 4096, 4096);
    for id in 0..64 {
        let memory = data.bus().clone();
        let at = id as usize * 4096;
        drive.submit(Transfer { id, operation: Operation::Read, lba: id, blocks: 1, memory, at }).unwrap();
    }
    let mut results: Vec<_> = (0..64).map(|_| None).collect();
    let mut done = Vec::new();
    while drive.pending() > 0 {
        drive.wait(Duration::from_secs(10), &mut done).unwrap();
        for Done { id, result } in done.drain(..) {
            assert!(results[id as usize].replace(result).is_none(), "transfer {id} ended twice");
        }
    }
    let expected = media.bytes();
    let results: Vec<_> = results.into_iter().map(|result| result.expect("all transfers have ended")).collect();
    for (index, result) in results.iter().enumerate() {
        let range = index * 4096..index * 4096 + 4096;
        assert!(result.is_err() || bytes(&data, range.start, 4096) == expected[range], "block {index}");
    }
    let counts = [drive.retries(), drive.controller().resets(), drive.controller().strays()];
    drive.close().unwrap();
    assert_eq!(door.bus().misses(), 0);
    (results, counts)
}

fn failed(results: &[Result<(), Error>]) -> Vec<(usize, String)> {
    results.iter().enumerate().filter_map(|(i, result)| Some((i, result.as_ref().err()?.to_string()))).collect()
}

#[test]
fn errors_that_pass_are_tried_again() {
    let (results, counts) = reads(Traits::default(), &[(3, Fault::Status(BUSY)), (30, Fault::Status(BUSY))]);
    assert_eq!((failed(&results), counts), (vec![], [2, 0, 0]));
}

#[test]
fn errors_that_stay_are_told_with_their_names() {
    let (results, counts) = reads(Traits::default(), &[(3, Fault::Status(MEDIA_ERROR))]);
    let expected = "model: Read of 1 blocks from block 3 on failed: Unrecovered Read Error (media and data integrity, \
                    type 2h code 81h, not to be tried again) (attempt 1)";
    assert_eq!((failed(&results), counts), (vec![(3, expected.to_owned())], [0, 0, 0]));
}

#[test]
fn errors_that_stay_although_they_might_pass() {
    // In order, a command that is issued again is the eighth behind its last try: seven are in flight.
    let again: Vec<_> = (0..4000).map(|nth| (nth, Fault::Status(BUSY))).collect();
    let (results, [retries, resets, _]) = reads(Traits::default(), &again);
    assert_eq!((failed(&results).len(), retries, resets), (64, 3 * 64, 0));
    assert!(failed(&results)[0].1.ends_with("(attempt 4)"), "{:?}", failed(&results)[0]);
}

#[test]
fn missing_completions_are_aborted() {
    let (results, counts) = reads(Traits::default(), &[(10, Fault::Missing)]);
    assert_eq!((failed(&results), counts), (vec![], [1, 0, 0]));
}

#[test]
fn where_an_abort_does_not_help_the_controller_is_reset() {
    let (results, counts) =
        reads(Traits { aborts: false, shuffle: Some(3), ..Traits::default() }, &[(10, Fault::Missing)]);
    assert_eq!((failed(&results), counts), (vec![], [0, 1, 0]));
}

#[test]
fn a_drive_that_never_answers_is_given_up() {
    let never: Vec<_> = (0..4000).map(|nth| (nth, Fault::Missing)).collect();
    let (results, [_, resets, _]) = reads(Traits { aborts: false, ..Traits::default() }, &never);
    let failed = failed(&results);
    assert_eq!(failed.len(), 64);
    assert!(failed[0].1.contains("did not complete within 50ms (4 attempts)"), "{}", failed[0].1);
    assert!(resets >= 4);
}

#[test]
fn late_completions() {
    // In time, late but before the abort's timeout, and after it: that ends with a reset.
    for (steps, resets) in [(100, 0), (600, 0), (5000, 1)] {
        let (results, counts) = reads(Traits::default(), &[(20, Fault::Late(steps))]);
        assert_eq!((failed(&results), counts), (vec![], [0, resets, 0]), "{steps} steps");
    }
}

#[test]
fn duplicates_are_noticed_and_do_no_harm() {
    // At once, when another command has the first one's slot, and at the end.
    for steps in [0, 1, 2, 5] {
        let faults = [(0, Fault::Duplicate(steps)), (9, Fault::Duplicate(steps)), (20, Fault::Duplicate(steps))];
        let (results, counts) = reads(Traits::default(), &faults);
        assert_eq!((failed(&results), counts), (vec![], [0, 0, 3]), "{steps} steps");
    }
}

#[test]
fn a_fatal_status_is_survived() {
    let fatal = [(0, Fault::Fatal), (12, Fault::Fatal), (40, Fault::Fatal)];
    let (results, counts) = reads(Traits { shuffle: Some(9), ..Traits::default() }, &fatal);
    assert_eq!((failed(&results), counts), (vec![], [0, 3, 0]));
}

/// Everything at once: each transfer ends once, with the right bytes or an error that the faults explain.
#[test]
fn any_faults_in_any_order() {
    let mut failures = 0;
    for seed in 0..60 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut faults = Vec::new();
        for nth in 0..400 {
            if rng.random_ratio(1, 12) {
                let fault = match rng.random_range(0..6) {
                    0 => Fault::Status(BUSY),
                    1 => Fault::Status(MEDIA_ERROR),
                    2 => Fault::Late(rng.random_range(1..3000)),
                    3 => Fault::Missing,
                    4 => Fault::Duplicate(rng.random_range(0..10)),
                    _ => Fault::Fatal,
                };
                faults.push((nth, fault));
            }
        }
        let traits = Traits { aborts: rng.random(), shuffle: Some(seed), ..Traits::default() };
        let (results, _) = reads(traits, &faults);
        let explained = |text: &str| {
            ["Unrecovered Read Error", "did not complete", "Command Interrupted", "Abort"]
                .iter()
                .any(|&e| text.contains(e))
        };
        for (index, text) in failed(&results) {
            assert!(explained(&text), "seed {seed}, block {index}: {text}");
            failures += 1;
        }
    }
    assert!((20..500).contains(&failures), "{failures} of 3840 failed");
}

#[test]
fn an_error_ends_the_rest_of_its_transfer() {
    let media = media(5, 512, 4096);
    let (door, mut drive) = drive(Traits { mdts: 1, ..Traits::default() }, Options { depth: 3, ..options() }, &media);
    door.model().faults(Box::new(|nth, _| (nth == 5).then_some(Fault::Status(MEDIA_ERROR))));
    let data = door.allocate(2 << 20).unwrap();
    let error = drive.run(Operation::Read, 0, 4096, data.bus(), 0).unwrap_err();
    assert!(error.to_string().contains("Read of 16 blocks from block 80 on failed"), "{error}");
    assert!(door.model().commands() < 12, "{} commands of 256", door.model().commands());
    drive.run(Operation::Read, 80, 16, data.bus(), 0).unwrap();
}

#[test]
fn resets_in_mid_flight() {
    let media = media(6, 512, 8192);
    let traits = Traits { mdts: 1, shuffle: Some(1), ..Traits::default() };
    let (door, mut drive) = drive(traits, Options { depth: 6, queues: 2, ..options() }, &media);
    let data = door.allocate(4 << 20).unwrap();
    let read = Transfer { id: 1, operation: Operation::Read, lba: 0, blocks: 8192, memory: data.bus().clone(), at: 0 };
    drive.submit(read).unwrap();
    let mut done = Vec::new();
    // More often than a command is tried.
    for _ in 0..10 {
        drive.wait(Duration::from_micros(300), &mut done).unwrap();
        drive.reset().unwrap();
    }
    assert!(done.is_empty(), "all was read before the last reset");
    while done.is_empty() {
        drive.wait(Duration::from_secs(1), &mut done).unwrap();
    }
    assert!(matches!(done[..], [Done { id: 1, result: Ok(()) }]), "{done:?}");
    assert_eq!((drive.controller().resets(), drive.retries()), (10, 0));
    assert_eq!(bytes(&data, 0, 4 << 20), media.bytes());
}

/// A driver of the kernel's that comes back while commands are outstanding has the queues: nothing is rung any more. Until that driver has reset the
/// controller, it may write our memory.
#[test]
fn a_driver_that_comes_back_is_left_alone() {
    let media = media(6, 4096, 64);
    let (door, mut drive) = drive(Traits::default(), options(), &media);
    door.model().faults(Box::new(|_, _| Some(Fault::Late(500))));
    let data = door.allocate_runs(4096, 4096);
    let transfer = Transfer { id: 1, operation: Operation::Read, lba: 3, blocks: 1, memory: data.bus().clone(), at: 0 };
    drive.submit(transfer).unwrap();
    drive.wait(Duration::from_millis(1), &mut Vec::new()).unwrap();
    door.take();
    let registers = || (0..door.words().len()).step_by(4).map(|at| door.words().load(at)).collect::<Vec<_>>();
    let before = registers();
    let error = drive.wait(Duration::from_secs(10), &mut Vec::new()).unwrap_err().to_string();
    assert!(error.contains("the driver nvme is bound to it"), "{error}");
    drop((drive, data));
    assert_eq!(registers(), before, "it was written to");
    (0..1000).for_each(|_| {
        door.model().step();
    });
    assert_eq!(door.bus().misses(), 0, "it writes memory that was freed");
}

/// A process that ended with reads in flight has kept its drive from the bus. Who opens it then resets it before it lets it back (the model fails
/// otherwise): those reads would go on, into memory that is others' by now.
#[test]
fn what_was_in_flight_is_forgotten_before_the_bus_is_open() {
    let media = media(6, 4096, 64);
    let (door, mut drive) = drive(Traits::default(), options(), &media);
    door.model().faults(Box::new(|_, _| Some(Fault::Late(u32::MAX))));
    let data = door.allocate_runs(4096, 4096);
    let transfer = Transfer { id: 1, operation: Operation::Read, lba: 3, blocks: 1, memory: data.bus().clone(), at: 0 };
    drive.submit(transfer).unwrap();
    drive.wait(Duration::from_millis(1), &mut Vec::new()).unwrap();
    assert_eq!(door.model().commands(), 1);
    std::mem::forget(drive);
    door.set_bus_master(false).unwrap();
    door.model().faults(Box::new(|_, _| None));
    let mut drive = Drive::open(Controller::open(door.clone(), options()).unwrap(), 1).unwrap();
    assert!(door.is_bus_master());
    drive.run(Operation::Read, 3, 1, data.bus(), 0).unwrap();
    assert_eq!(bytes(&data, 0, 4096), media.bytes()[3 * 4096..4 * 4096]);
}

/// A command that the controller dies of is given up, and the others are not.
#[test]
fn a_command_that_is_always_fatal() {
    let media = media(5, 4096, 64);
    let (door, mut drive) = drive(Traits::default(), Options { depth: 8, ..options() }, &media);
    door.model().faults(Box::new(|_, command| (command.0[10] == 20).then_some(Fault::Fatal)));
    let data = door.allocate(64 * 4096).unwrap();
    for id in 0..64 {
        let (memory, at) = (data.bus().clone(), id as usize * 4096);
        drive.submit(Transfer { id, operation: Operation::Read, lba: id, blocks: 1, memory, at }).unwrap();
    }
    let mut done = Vec::new();
    while drive.pending() > 0 {
        drive.wait(Duration::from_secs(10), &mut done).unwrap();
    }
    let failed: Vec<_> = done.iter().filter(|done| done.result.is_err()).map(|done| done.id).collect();
    // Those that were behind it in the queue could be the culprit just as well.
    assert!(failed.contains(&20) && failed.len() <= 7, "{failed:?}");
    assert!(drive.controller().resets() <= 6, "{} resets", drive.controller().resets());
}

#[test]
fn a_device_that_is_gone_is_said_to_be() {
    let (door, mut drive) = drive(Traits::default(), options(), &media(1, 512, 100));
    let data = door.allocate(64 << 10).unwrap();
    door.model().faults(Box::new(|_, _| Some(Fault::Missing)));
    let memory = data.bus().clone();
    drive.submit(Transfer { id: 1, operation: Operation::Read, lba: 0, blocks: 1, memory, at: 0 }).unwrap();
    let csts = 0x1c;
    door.words().store(csts, u32::MAX);
    let error = drive.wait(Duration::from_secs(1), &mut Vec::new()).unwrap_err();
    assert!(matches!(error, Error::Gone { .. }), "{error}");
    assert!(matches!(drive.close(), Err(Error::Gone { .. })));
    assert!(!door.is_bus_master(), "a device that cannot be stopped is kept from the bus");
}

#[test]
fn controllers_that_do_not_start() {
    let stuck = ModelDoor::new(Traits { ready_steps: 1 << 30, ..Traits::default() }, vec![]);
    let error = Controller::open(stuck, options()).unwrap_err().to_string();
    assert_eq!(error, "model: the controller did not become ready (CSTS.RDY 1) within 500ms");
    let broken = ModelDoor::new(Traits { pages: [2, 1], ..Traits::default() }, vec![]);
    assert!(Controller::open(broken, options()).unwrap_err().to_string().contains("too large"));
}

/// A driver that was bound meanwhile keeps the device as it has it.
#[test]
fn a_device_that_has_a_driver_is_left_alone() {
    let (door, mut drive) = drive(Traits::default(), options(), &media(1, 512, 100));
    let cc = door.words().load(0x14);
    door.take();
    assert_eq!(drive.reset().unwrap_err().to_string(), "model: the driver nvme is bound to it");
    assert!(drive.close().is_err());
    assert_eq!((door.words().load(0x14), door.is_bus_master()), (cc, true));
    let door = ModelDoor::new(Traits::default(), vec![]);
    door.take();
    assert!(Controller::open(door.clone(), options()).is_err());
    assert_eq!((door.words().load(0x14), door.is_bus_master()), (0, false));
}
