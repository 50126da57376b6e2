//! Drives that fail, lie, or do not answer, and lists that are ended early.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use ::gpu::nvme::{ALL_ENDED, List, Queue, Report, STOPPED, TIMED_OUT};
use ::nvme::{Command, Status, model::Fault};
use ntransformer::device::{
    DeviceError,
    cuda::{
        beside::SharedMem,
        driver::Driver,
        nvme::{GpuQueue, MODULE, Progress, ReadKernel, Settings, Stop},
    },
};
use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::{Kind, Ram, Rig, Wanted, assert_bytes, assert_good};

const MEDIA_ERROR: Status = Status::new(2, 0x81, false);
const BUSY: Status = Status::new(0, 0x21, true);
const GOOD: Progress = Progress::Ended(Status::SUCCESS);

/// Reads of a block each, one behind the other.
fn blocks(count: usize) -> Vec<Wanted> {
    (0..count).map(|i| Wanted { lba: (i * 7 % 2048) as u64, blocks: 1, at: i * 512 }).collect()
}

fn rig<D: Driver>(driver: &D, depth: u32, patience: Duration) -> Rig<D> {
    let settings = Settings { depth, patience, ..Settings::default() };
    Rig::new(driver, &Kind { settings, ..Kind::default() })
}

/// Faults of commands by the block that they read; each as often as that block is read.
fn at(faults: impl IntoIterator<Item = (u64, Fault)>) -> ::nvme::model::Choose {
    let faults: Vec<_> = faults.into_iter().collect();
    let lba = |command: &Command| u64::from(command.0[11]) << 32 | u64::from(command.0[10]);
    Box::new(move |_, command| faults.iter().find(|(block, _)| *block == lba(command)).map(|&(_, fault)| fault))
}

/// Data is where it should be for reads that succeeded, and poison for all others. What was outstanding may have been read before the
/// queues were taken back.
#[track_caller]
fn assert_data<D: Driver>(rig: &Rig<D>, progress: &[Progress], ram: &Ram, reads: &[Wanted], what: &str) {
    let which = |wanted: Progress| reads.iter().zip(progress).filter(move |(_, p)| **p == wanted).map(|(read, _)| read);
    let (found, mut expected) = (ram.bytes(), rig.expected(ram.len, which(GOOD)));
    for read in which(Progress::Outstanding) {
        let range = read.at..read.at + read.blocks as usize * rig.namespace.block_bytes;
        expected[range.clone()].copy_from_slice(&found[range]);
    }
    assert_bytes(&found, &expected, what);
}

/// Errors are told of the reads that had them, with what the drive said, and end no other.
pub fn statuses<D: Driver>(driver: &D) {
    let mut rig = rig(driver, 8, Duration::from_secs(20));
    let reads = blocks(100);
    let wrong = [(3, MEDIA_ERROR), (40, BUSY), (99, Status(0x3fff))];
    let faults = wrong.map(|(index, status): (usize, Status)| (reads[index].lba, Fault::Status(status)));
    // More (M) is no error.
    let more = (reads[50].lba, Fault::Status(Status(0x2000)));
    rig.played.with(|model| model.faults(at(faults.into_iter().chain([more]))));
    let ram = rig.ram(100 * 512, 4096, 0);
    let report = rig.run(&reads, &ram);
    let first = wrong.iter().find(|&&(index, _)| index as u32 == report.first_failed).expect("one of them").1;
    let expected =
        Report { commands: 100, errors: 3, first_error: first.0.into(), first_failed: report.first_failed, ..report };
    assert_eq!((report, report.strays, report.outstanding, report.why), (expected, 0, 0, ALL_ENDED));
    for (index, progress) in rig.progress(100).into_iter().enumerate() {
        let failed = wrong.iter().find(|&&(failed, _)| failed == index);
        let status = failed.map_or(if index == 50 { Status(0x2000) } else { Status::SUCCESS }, |&(_, status)| status);
        assert_eq!(progress, Progress::Ended(status), "read {index}");
    }
    assert_data(&rig, &rig.progress(100), &ram, &reads, "beside errors");
}

/// Completions that are of no command end none, whatever is in them, and the queues go on.
pub fn completions_of_nothing<D: Driver>(driver: &D) {
    let mut rig = rig(driver, 8, Duration::from_secs(20));
    let reads = blocks(200);
    let id = 2;
    let mut nth = 0;
    let mut strays = 0;
    let faults = move |_: u64, command: &Command| {
        nth += 1;
        let cid = command.cid();
        let nonsense = |queue, head, cid, late| Some(Fault::Nonsense { queue, head, cid, late });
        match nth % 10 {
            // The command's own identifier in another queue's name.
            1 => nonsense(1, 0, cid, 20_000),
            3 => nonsense(0xffff, 0xffff, cid, 20_000),
            // Another generation's, a slot that is free or that there is none of, and what is kept for other uses.
            5 => nonsense(id, 3, cid ^ 1 << 9, 200),
            7 => nonsense(id, 0xffff, cid & !0x3f | 0x3f, 200),
            9 => nonsense(id, 0, 0xffff, 200),
            // The right command, and an absurd head.
            0 => Some(Fault::Head(0xffff)),
            _ => None,
        }
    };
    rig.played.with(|model| model.faults(Box::new(faults)));
    for _ in 0..2 {
        let ram = rig.ram(200 * 512, 4096, 0);
        let report = rig.run(&reads, &ram);
        strays += report.strays;
        assert_good(Report { strays: 0, ..report }, 200);
        assert_data(&rig, &rig.progress(200), &ram, &reads, "beside nonsense");
    }
    // A completion of nothing is left out where the completion queue is full.
    assert!((100..=200).contains(&strays), "{strays} strays");
}

/// Completions that come late and twice.
pub fn late_and_twice<D: Driver>(driver: &D) {
    for depth in [1, 8, 60] {
        let mut rig = rig(driver, depth, Duration::from_secs(20));
        let reads = blocks(200);
        let mut rng = SmallRng::seed_from_u64(depth.into());
        let fault = move |_: u64, _: &Command| match rng.random_range(0..6) {
            0 => Some(Fault::Late(rng.random_range(1..200))),
            1 => Some(Fault::Duplicate(rng.random_range(0..200))),
            _ => None,
        };
        rig.played.with(|model| model.faults(Box::new(fault)));
        let mut strays = 0;
        for list in 0..3 {
            let ram = rig.ram(200 * 512, 4096, 0);
            let report = rig.run(&reads, &ram);
            strays += report.strays;
            assert_good(Report { strays: 0, ..report }, 200);
            assert_data(&rig, &rig.progress(200), &ram, &reads, &format!("depth {depth}, list {list}"));
        }
        // Some 100; what comes after a list's end is found by the next one.
        assert!((50..170).contains(&strays), "{strays} strays at depth {depth}");
    }
}

/// The second completion of a list's last command comes while the next list is read: it is not one of that list's.
pub fn late_for_the_next_list<D: Driver>(driver: &D) {
    let mut rig = rig(driver, 1, Duration::from_secs(20));
    let reads = blocks(1);
    let fault = |nth: u64, _: &Command| Some(if nth == 0 { Fault::Duplicate(2000) } else { Fault::Late(50_000) });
    rig.played.with(|model| model.faults(Box::new(fault)));
    for strays in [0, 1] {
        let ram = rig.ram(512, 4096, 0);
        let report = rig.run(&reads, &ram);
        assert_eq!(report.strays, strays);
        assert_good(Report { strays: 0, ..report }, 1);
        assert_data(&rig, &rig.progress(1), &ram, &reads, "beside what is late");
    }
}

/// A command that does not complete is outstanding, and nothing else is wrong; behind the queues' renewal all goes on.
pub fn missing<D: Driver>(driver: &D) {
    for depth in [1, 8] {
        let mut rig = rig(driver, depth, Duration::from_millis(500));
        let reads = blocks(60);
        // One never completes, and one so late that it would be after the end of its list: it must not write any more then.
        rig.played.with(|model| {
            model.faults(at([(reads[30].lba, Fault::Missing), (reads[31].lba, Fault::Late(u32::MAX))]));
        });
        let ram = rig.ram(60 * 512, 4096, 0);
        let report = rig.run(&reads, &ram);
        let left = if depth == 1 { 1 } else { 2 };
        let submitted = if depth == 1 { 31 } else { 60 };
        let expected = Report {
            commands: submitted,
            outstanding: left,
            why: TIMED_OUT,
            number: report.number,
            ..Report::default()
        };
        assert_eq!(report, expected);
        for (index, progress) in rig.progress(60).into_iter().enumerate() {
            let expected = match index {
                30 => Progress::Outstanding,
                31.. if depth == 1 => Progress::Waiting,
                31 => Progress::Outstanding,
                _ => GOOD,
            };
            assert_eq!(progress, expected, "read {index} at depth {depth}");
        }
        assert_data(&rig, &rig.progress(60), &ram, &reads, "beside what is missing");
        assert!(!rig.queue.renew(&mut rig.controller).unwrap(), "a reset");
        rig.played.with(|model| model.faults(Box::new(|_, _| None)));
        let again = rig.ram(60 * 512, 4096, 0);
        let report = rig.run(&reads, &again);
        assert_good(report, 60);
        assert_data(&rig, &rig.progress(60), &again, &reads, "behind the renewal");
        // Nobody has written the old memory since.
        let before = reads.iter().enumerate().filter(|&(i, _)| if depth == 1 { i < 30 } else { i != 30 && i != 31 });
        assert_bytes(&ram.bytes(), &rig.expected(ram.len, before.map(|(_, read)| read)), "the old memory");
    }
}

/// Where the controller does not give queues back, it is reset.
pub fn queues_that_are_not_given_back<D: Driver>(driver: &D) {
    let mut rig = rig(driver, 8, Duration::from_millis(100));
    let reads = blocks(60);
    rig.played.with(|model| model.faults(at([(reads[30].lba, Fault::Fatal)])));
    let ram = rig.ram(60 * 512, 4096, 0);
    let report = rig.run(&reads, &ram);
    assert!(report.why == TIMED_OUT && report.outstanding > 0, "{report:?}");
    rig.played.with(|model| model.faults(Box::new(|_, _| None)));
    assert!(rig.queue.renew(&mut rig.controller).unwrap(), "no reset");
    let ram = rig.ram(60 * 512, 4096, 0);
    let report = rig.run(&reads, &ram);
    assert_good(report, 60);
    assert_data(&rig, &rig.progress(60), &ram, &reads, "behind the reset");
}

/// A list that is stopped: what is in flight is waited for, or not.
pub fn stop<D: Driver>(driver: &D) {
    for how in [Stop::Drain, Stop::Leave] {
        let mut rig = rig(driver, 8, Duration::from_secs(20));
        let reads = blocks(2000);
        // From the hundredth on they take some time (a step of the controller takes a microsecond or less), or never end.
        let steps = if how == Stop::Drain { 200_000 } else { u32::MAX };
        let late = move |nth: u64, _: &Command| (nth >= 100).then_some(Fault::Late(steps));
        rig.played.with(|model| model.faults(Box::new(late)));
        let ram = rig.ram(2000 * 512, 65536, 0);
        rig.start(&reads, &ram.pages, ram.first);
        while rig.queue.progress(99) == Progress::Waiting {
            std::thread::yield_now();
        }
        rig.queue.stop(how);
        let report = rig.end();
        let progress = rig.progress(2000);
        let count = |wanted: Progress| progress.iter().filter(|&&progress| progress == wanted).count();
        assert_eq!(report.commands as usize, count(GOOD) + count(Progress::Outstanding), "{report:?}");
        assert!(report.why == STOPPED && report.commands < 2000, "{report:?}");
        match how {
            Stop::Drain => assert_eq!((report.outstanding, count(Progress::Outstanding)), (0, 0)),
            Stop::Leave => {
                assert_eq!(report.outstanding as usize, count(Progress::Outstanding));
                assert!(report.outstanding > 0, "it waited for what takes its time");
                assert!(!rig.queue.renew(&mut rig.controller).unwrap());
            }
        }
        assert_data(&rig, &progress, &ram, &reads, "what was done");
        rig.played.with(|model| model.faults(Box::new(|_, _| None)));
        let ram = rig.ram(2000 * 512, 65536, 0);
        let report = rig.run(&reads, &ram);
        assert_good(report, 2000);
        assert_data(&rig, &rig.progress(2000), &ram, &reads, "behind the stop");
    }
}

/// All faults at once, by many seeds: each read ends once, as what it is, and only those that succeeded have written.
pub fn random_faults<D: Driver>(driver: &D) {
    for seed in 0..8 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let depth = [1, 2, 5, 60][seed as usize % 4];
        let mut rig = rig(driver, depth, Duration::from_millis(60));
        let mut chosen = SmallRng::seed_from_u64(seed);
        let missing = seed % 2 == 1;
        rig.played.with(|model| {
            model.faults(Box::new(move |_, command| match chosen.random_range(0..40) {
                0 => Some(Fault::Status(BUSY)),
                1 => Some(Fault::Status(MEDIA_ERROR)),
                2 => Some(Fault::Late(chosen.random_range(0..300))),
                3 => Some(Fault::Duplicate(chosen.random_range(0..300))),
                4 => Some(Fault::Nonsense { queue: 2, head: chosen.random(), cid: command.cid() ^ 0x40, late: 20 }),
                5 => Some(Fault::Head(chosen.random())),
                6 if missing => Some(Fault::Missing),
                _ => None,
            }));
        });
        for list in 0..4 {
            let reads = rig.random_reads(&mut rng, 80, 100, list % 2 == 1);
            let ram = rig.ram(super::room(&reads, 512), 4096, 4 * rng.random_range(0..1000usize));
            let report = rig.run(&reads, &ram);
            let progress = rig.progress(80);
            let count = |f: &dyn Fn(Progress) -> bool| progress.iter().filter(|&&p| f(p)).count() as u32;
            let errors = count(&|p| matches!(p, Progress::Ended(status) if !status.is_success()));
            let (waiting, outstanding) = (count(&|p| p == Progress::Waiting), count(&|p| p == Progress::Outstanding));
            assert_eq!(
                (report.errors, report.outstanding, report.commands),
                (errors, outstanding, 80 - waiting),
                "seed {seed}"
            );
            assert_eq!(report.why, if outstanding > 0 { TIMED_OUT } else { ALL_ENDED }, "seed {seed}");
            if outstanding > 0 {
                rig.queue.renew(&mut rig.controller).unwrap();
            }
            assert_data(&rig, &progress, &ram, &reads, &format!("seed {seed}, list {list}"));
        }
        assert_eq!(rig.door().bus().misses(), 0, "seed {seed}");
    }
}

/// A kernel that is started and gone.
struct Gone {
    gpu: Box<dyn ReadKernel>,
    shared: Mutex<Vec<SharedMem>>,
    /// The word of the head's doorbell, since the start.
    head: Arc<Mutex<Option<(SharedMem, usize)>>>,
    /// How often the driver was asked for it.
    asked: Arc<AtomicU32>,
}

impl ReadKernel for Gone {
    fn name(&self) -> &str {
        self.gpu.name()
    }

    fn shared(&self, what: &str, bytes: usize) -> Result<SharedMem, DeviceError> {
        let memory = self.gpu.shared(what, bytes)?;
        self.shared.lock().unwrap().push(memory.clone());
        Ok(memory)
    }

    unsafe fn start(&mut self, queue: Queue, _: List) -> Result<(), DeviceError> {
        let address = queue.head as u64;
        let at = |memory: &SharedMem| address.checked_sub(memory.address(0)).filter(|&at| at < memory.len() as u64);
        let shared = self.shared.lock().unwrap();
        let found = shared.iter().find_map(|memory| Some((memory.clone(), at(memory)? as usize)));
        *self.head.lock().unwrap() = found;
        Ok(())
    }

    fn is_idle(&mut self) -> Result<bool, DeviceError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.gpu.is_idle()
    }
}

/// A kernel that ends without a report is found out when nothing completes any more. Before, the driver is not asked for it: that may take as
/// long as the list.
pub fn a_kernel_that_is_gone<D: Driver>(driver: &D) {
    let mut rig = rig(driver, 8, Duration::from_secs(20));
    let (head, asked) = (Arc::default(), Arc::<AtomicU32>::default());
    let gpu = Box::new(driver.beside(MODULE).unwrap());
    let gone = Box::new(Gone { gpu, shared: Mutex::default(), head: Arc::clone(&head), asked: asked.clone() });
    rig.queue.give_back(&mut rig.controller).unwrap();
    rig.queue = GpuQueue::new(gone, &mut rig.controller, rig.namespace, *rig.queue.settings()).unwrap();
    let ram = rig.ram(512, 4096, 0);
    rig.start(&blocks(1), &ram.pages, 0);
    let (words, at) = head.lock().unwrap().take().expect("the doorbell is in shared memory");
    let mut slow = 0;
    for completed in 1..=20 {
        let begin = Instant::now();
        words.store(at, completed % 2);
        assert!(rig.queue.poll().unwrap().is_none() && rig.queue.poll().unwrap().is_none());
        slow += u32::from(begin.elapsed() > Duration::from_millis(40));
        thread::sleep(Duration::from_millis(10));
    }
    // Where this thread did not get to it in time, some time has passed.
    assert!(asked.swap(0, Ordering::SeqCst) <= slow, "the driver was asked while commands completed");
    let begin = Instant::now();
    let error = loop {
        match rig.queue.poll() {
            Ok(report) => assert_eq!(report, None),
            Err(error) => break error.to_string(),
        }
        assert!(begin.elapsed() < Duration::from_secs(10), "nobody notices");
    };
    assert!(error.contains("ended without a report"), "{error}");
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}
