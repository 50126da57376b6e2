//! Reading and writing.

use crate::setup::{bytes, drive, media, noise, options};
use nvme::{
    Controller, Done, Door, Drive, Error, Operation, Options, Transfer,
    model::{ModelDoor, Traits},
};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use std::{collections::HashMap, sync::atomic::AtomicBool, time::Duration};

/// Drives move to the thread that reads ahead.
const _: fn() = || {
    fn is_send<T: Send>() {}
    is_send::<Drive>();
};

/// Random transfers, as many as fit at once, compared byte by byte.
fn exercise(traits: Traits, options: Options, block_bytes: usize, seed: u64) {
    let what = format!("{traits:?} {options:?} {block_bytes}");
    let media = media(seed, block_bytes, (8 << 20) / block_bytes);
    let (door, mut drive) = drive(traits, options, &media);
    exercise_drive(&door, &mut drive, seed, &what);
    drive.close().expect("a sound controller");
    assert!(!door.is_bus_master());
    assert_eq!(door.bus().misses(), 0, "{what}");
}

fn exercise_drive(door: &ModelDoor, drive: &mut Drive, seed: u64, what: &str) {
    let (block, blocks) = (drive.namespace().block_bytes, drive.namespace().blocks);
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut expected = noise(seed, block * blocks as usize);
    let page = 4096 << if what.contains("pages: [1") { 1 } else { 0 };
    let data = door.allocate_runs(8 << 20, page);
    for round in 0..12 {
        // Regions of the drive and of memory that do not overlap, so that any order is right.
        let (mut lba, mut at, mut reads, mut pending) = (0, 0, HashMap::new(), 0);
        for id in 0..20 {
            lba += rng.random_range(0..20);
            at += 4 * rng.random_range(0..500);
            let most = [1, 9, 300, 3000][rng.random_range(0..4)];
            let count = rng.random_range(1..=most);
            let (start, len) = (lba as usize * block, count as usize * block);
            if lba + count > blocks || at + len > data.len() {
                break;
            }
            let operation = if rng.random() { Operation::Read } else { Operation::Write };
            match operation {
                Operation::Read => {
                    data.fill(at, len, 0xee);
                    reads.insert(id, (at, start, len));
                }
                _ => {
                    let new = noise(seed + 100 * round + id, len);
                    data.copy_from(at, &new);
                    expected[start..start + len].copy_from_slice(&new);
                }
            }
            drive.submit(Transfer { id, operation, lba, blocks: count, memory: data.bus().clone(), at }).unwrap();
            pending += 1;
            (lba, at) = (lba + count, at + len);
        }
        let mut done = Vec::new();
        while pending > 0 {
            drive.wait(Duration::from_secs(10), &mut done).unwrap();
            for Done { id, result } in done.drain(..) {
                result.unwrap_or_else(|e| panic!("{what}: {e}"));
                pending -= 1;
                if let Some((at, start, len)) = reads.remove(&id) {
                    assert!(bytes(&data, at, len) == expected[start..start + len], "{what}: transfer {id}");
                }
            }
        }
        assert!(reads.is_empty() && drive.pending() == 0);
    }
    drive.run(Operation::Flush, 0, 0, data.bus(), 0).unwrap();
    assert_eq!((drive.retries(), drive.controller().resets(), drive.controller().strays()), (0, 0, 0), "{what}");
}

#[test]
fn controllers_of_all_kinds() {
    let usual = Traits::default();
    let kinds = [
        usual.clone(),
        Traits { shuffle: Some(1), ..usual.clone() },
        Traits { mdts: 0, shuffle: Some(2), ..usual.clone() },
        Traits { mdts: 1, shuffle: Some(3), doorbell_stride: 3, ..usual.clone() },
        Traits { mdts: 7, max_queue_entries: 16, shuffle: Some(4), queues: 1, ..usual.clone() },
        Traits { pages: [1, 4], mdts: 4, shuffle: Some(5), version: 0x0001_0000, ..usual.clone() },
    ];
    for (index, traits) in kinds.into_iter().enumerate() {
        for (queues, depth, max_transfer) in [(1, 2, 1 << 20), (1, 3, 64 << 10), (3, 8, 5 << 20), (1, 1024, 1 << 20)] {
            for block_bytes in [512, 4096] {
                let options = Options { queues, depth, max_transfer, ..options() };
                exercise(traits.clone(), options, block_bytes, index as u64);
            }
        }
    }
}

/// The controller runs on a thread of its own, as a device does.
#[test]
fn beside_the_driver() {
    for seed in 0..4 {
        let traits = Traits { mdts: 3, shuffle: Some(seed), ..Traits::default() };
        let door = ModelDoor::threaded(traits, vec![media(seed, 512, 16384)]);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| door.model().run(&stop));
            let options = Options { depth: 5, ..Options::default() };
            let mut drive = Drive::open(Controller::open(door.clone(), options).unwrap(), 1).unwrap();
            exercise_drive(&door, &mut drive, seed, "threaded");
            drive.close().unwrap();
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        assert_eq!(door.bus().misses(), 0);
    }
}

#[test]
fn queues_are_used_in_turn_and_fill() {
    let media = media(1, 512, 4096);
    let (door, mut drive) =
        drive(Traits { mdts: 1, ..Traits::default() }, Options { queues: 2, depth: 4, ..options() }, &media);
    assert_eq!(drive.controller().queues(), (2, 4));
    let data = door.allocate(1 << 20).unwrap();
    let read = Transfer { id: 7, operation: Operation::Read, lba: 0, blocks: 2048, memory: data.bus().clone(), at: 0 };
    drive.submit(read).unwrap();
    // Three of each queue's four entries are in use, and nothing was executed.
    let mut done = Vec::new();
    drive.wait(Duration::ZERO, &mut done).unwrap();
    assert!(done.is_empty() && drive.pending() == 1);
    door.model().step();
    assert_eq!(door.model().commands(), 6);
    while done.is_empty() {
        drive.wait(Duration::from_secs(1), &mut done).unwrap();
    }
    assert_eq!((done[0].id, door.model().commands()), (7, 128));
    assert_eq!(bytes(&data, 0, 1 << 20), media.bytes()[..1 << 20]);
}

#[test]
fn several_namespaces() {
    let (small, large) = (media(1, 512, 100), media(2, 4096, 50));
    let door = ModelDoor::new(Traits::default(), vec![small.clone(), large.clone()]);
    let mut controller = Controller::open(door.clone(), options()).unwrap();
    assert_eq!(controller.namespaces().unwrap(), [1, 2]);
    assert_eq!(controller.identity().serial, "MODEL-1");
    assert_eq!(controller.namespace(1).unwrap().bytes(), 51200);
    let refused = controller.namespace(3).unwrap_err().to_string();
    let expected = "model: Identify (namespace) failed: Invalid Namespace or Format (generic, type 0h code 0Bh, \
                    not to be tried again) (attempt 1)";
    assert_eq!(refused, expected);
    let mut drive = Drive::open(controller, 2).unwrap();
    let data = door.allocate(1 << 20).unwrap();
    drive.run(Operation::Read, 3, 40, data.bus(), 8).unwrap();
    assert_eq!(bytes(&data, 8, 40 * 4096), large.bytes()[3 * 4096..43 * 4096]);
    // What is not there leaves the drive where it was.
    for id in [0, 3, u32::MAX] {
        assert!(drive.select(id).is_err());
        assert_eq!(drive.namespace().id, 2);
    }
    drive.select(1).unwrap();
    drive.run(Operation::Read, 60, 40, data.bus(), 0).unwrap();
    assert_eq!(bytes(&data, 0, 40 * 512), small.bytes()[60 * 512..]);
    assert!(drive.run(Operation::Read, 61, 40, data.bus(), 0).is_err(), "the size is the other's");
}

#[test]
fn transfers_outside_are_refused() {
    let (door, mut drive) = drive(Traits::default(), options(), &media(1, 512, 100));
    let data = door.allocate(64 << 10).unwrap();
    let mut refuse = |lba, blocks, at| {
        let memory = data.bus().clone();
        let transfer = Transfer { id: 0, operation: Operation::Read, lba, blocks, memory, at };
        drive.submit(transfer).unwrap_err().to_string()
    };
    assert_eq!(refuse(99, 2, 0), "model: blocks 99 + 2 are outside of the namespace's 100");
    assert!(refuse(u64::MAX, 1, 0).contains("outside") && refuse(0, 0, 0).contains("outside"));
    assert!(refuse(0, 100, 20000).contains("bytes 20000..71200 are outside of memory of 65536"));
    assert_eq!(drive.pending(), 0);
    // An address that PRPs cannot hold ends the transfer.
    let error = drive.run(Operation::Read, 0, 1, data.bus(), 2).unwrap_err();
    assert!(matches!(error, Error::Prp { .. }), "{error}");
    drive.run(Operation::Read, 0, 1, data.bus(), 4).unwrap();
}

#[test]
fn impossible_depths_are_refused() {
    let door = ModelDoor::new(Traits::default(), vec![]);
    let open = |depth, max_transfer| {
        let options = Options { depth, max_transfer, ..options() };
        Controller::open(door.clone(), options).unwrap_err().to_string()
    };
    assert_eq!(open(1, 4096), "model: a queue has 2 to 65536 entries, not 1");
    // Runs of 64 KiB hold 1024 entries of 64 bytes.
    assert!(open(1025, 4096).contains("a queue of 1025 entries is not contiguous on the bus"));
}
