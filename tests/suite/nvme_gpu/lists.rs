//! Reads that succeed.

use std::{sync::Arc, time::Duration};

use ::nvme::{
    Controller, Options, PrpError,
    model::{Media, ModelDoor, Traits},
};
use ntransformer::device::cuda::{
    driver::Driver,
    nvme::{GpuQueue, MODULE, Pages, QueueError, Read, Settings},
};
use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::{Kind, Rig, Target, Vram, Wanted, assert_bytes, assert_good, room};

/// Several lists of reads at random places, into memory that begins anywhere in a page, and what is around them stays as it was.
fn random_lists<D: Driver>(rig: &mut Rig<D>, seed: u64, lists: usize, count: usize, most: u32, what: &str) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let block = rig.namespace.block_bytes;
    for list in 0..lists {
        let reads = rig.random_reads(&mut rng, count, most, list % 3 == 2);
        let run = [4096, 8192, 65536][list % 3].max(rig.controller.page());
        let ram = rig.ram(room(&reads, block) + 100, run, 4 * rng.random_range(0..2000usize));
        let report = rig.run(&reads, &ram);
        assert_good(report, reads.len());
        assert_bytes(&ram.bytes(), &rig.expected(ram.len, &reads), &format!("{what}, list {list}"));
    }
    assert_eq!(rig.door().bus().misses(), 0, "{what}");
}

pub fn depths_and_blocks<D: Driver>(driver: &D) {
    for (seed, (depth, block, mdts, shuffle)) in [
        (1, 512, 0, None),
        (1, 4096, 1, Some(1)),
        (2, 512, 1, Some(2)),
        (2, 4096, 5, None),
        (8, 512, 5, Some(3)),
        (8, 4096, 0, Some(4)),
        (60, 512, 0, Some(5)),
        (60, 4096, 5, Some(6)),
        (60, 512, 9, None),
        (64, 4096, 9, Some(7)),
    ]
    .into_iter()
    .enumerate()
    {
        let kind = Kind {
            traits: Traits { mdts, shuffle, ..Traits::default() },
            block,
            bytes: 2 << 20,
            settings: Settings { depth, patience: Duration::from_secs(20), ..Settings::default() },
            ..Kind::default()
        };
        let mut rig = Rig::new(driver, &kind);
        assert_eq!(rig.queue.settings().depth, depth);
        let (lists, count) = if depth < 8 { (3, 30) } else { (6, 100) };
        random_lists(
            &mut rig,
            seed as u64,
            lists,
            count,
            (128 << 10) / block as u32,
            &format!("{kind:?}", kind = (depth, block, mdts)),
        );
    }
}

/// One page, two, lists of one page and more, full and with one entry in the last one.
pub fn lists_of_pages<D: Driver>(driver: &D) {
    let kind = Kind {
        traits: Traits { mdts: 0, ..Traits::default() },
        block: 4096,
        bytes: 5 << 20,
        max_transfer: 5 << 20,
        settings: Settings { depth: 7, patience: Duration::from_secs(20), ..Settings::default() },
        ..Kind::default()
    };
    let mut rig = Rig::new(driver, &kind);
    // Entries of a list page are 512, the last of which is a link if more than one page remains.
    let blocks = [1, 2, 3, 32, 33, 64, 511, 512, 513, 514, 515, 1022, 1023, 1024, 1025, 1026, 1279, 1280];
    for first in [0, 4, 2048, 4092] {
        let mut at = 0;
        let reads: Vec<_> = blocks
            .iter()
            .map(|&blocks| {
                let read = Wanted { lba: u64::from(1280 - blocks), blocks, at };
                at += blocks as usize * 4096 + if first == 0 { 0 } else { 4096 };
                read
            })
            .collect();
        let ram = rig.ram(at, 4096, first);
        let report = rig.run(&reads, &ram);
        assert_good(report, reads.len());
        assert_bytes(&ram.bytes(), &rig.expected(ram.len, &reads), &format!("from byte {first} of a page"));
    }
    assert_eq!(rig.door().bus().misses(), 0);
}

/// Controllers whose pages are larger, and doorbells further apart.
pub fn pages_of_other_sizes<D: Driver>(driver: &D) {
    for (pages, doorbell_stride) in [(1, 2), (3, 1)] {
        let kind = Kind {
            traits: Traits { pages: [pages, 4], doorbell_stride, mdts: 6, shuffle: Some(9), ..Traits::default() },
            bytes: 2 << 20,
            ..Kind::default()
        };
        let mut rig = Rig::new(driver, &kind);
        assert_eq!(rig.controller.page(), 4096 << pages);
        let mut rng = SmallRng::seed_from_u64(3);
        let reads = rig.random_reads(&mut rng, 60, 512, false);
        let ram = rig.ram(room(&reads, 512), 65536, 4 * 77);
        let report = rig.run(&reads, &ram);
        assert_good(report, reads.len());
        assert_bytes(&ram.bytes(), &rig.expected(ram.len, &reads), "large pages");
    }
}

/// Queues that are hardly deeper than what is in flight come round many times, and so do the numbers of commands.
pub fn rings_that_wrap<D: Driver>(driver: &D) {
    for depth in [1, 3] {
        let settings = Settings { depth, patience: Duration::from_secs(20), ..Settings::default() };
        let mut rig = Rig::new(driver, &Kind { settings, ..Kind::default() });
        for list in 0..2 {
            // More commands than there are identifiers of a slot, from the second list on.
            let count = 600;
            let reads: Vec<_> = (0..count)
                .map(|i| Wanted { lba: (i * 37 + list * 11) as u64 % 2048, blocks: 1, at: i * 512 })
                .collect();
            let ram = rig.ram(count * 512, 65536, 0);
            let report = rig.run(&reads, &ram);
            assert_good(report, count);
            assert_bytes(&ram.bytes(), &rig.expected(ram.len, &reads), &format!("depth {depth}, list {list}"));
        }
    }
}

/// Doorbells that the kernel writes by itself.
pub fn doorbells_of_the_gpus_own<D: Driver>(driver: &D) {
    let mut rig = Rig::new(driver, &Kind { mapped: true, ..Kind::default() });
    random_lists(&mut rig, 4, 4, 100, 64, "mapped doorbells");
}

/// Data that goes into the GPU's memory, page by page where that is scattered on the bus.
pub fn into_the_gpus_memory<D: Vram>(driver: &D) {
    let mut rig = Rig::new(driver, &Kind { block: 512, ..Kind::default() });
    let mut rng = SmallRng::seed_from_u64(8);
    for run in [4096, 65536, 0] {
        let reads = rig.random_reads(&mut rng, 60, 200, run == 4096);
        let len = room(&reads, 512).next_multiple_of(4096);
        let memory = Target::new(driver.alloc("a drive's destination", len).unwrap());
        driver.write(&memory, 0, &vec![super::POISON; len]).unwrap();
        let bus = rig.vram.clone().insert(driver, D::address(&memory), len, run);
        let pages = Pages::new(&rig.beside, &bus, 4096).unwrap();
        rig.start(&reads, &pages, 0);
        let report = rig.end();
        assert_good(report, reads.len());
        let mut found = vec![0; len];
        driver.read(&memory, 0, &mut found).unwrap();
        assert_bytes(&found, &rig.expected(len, &reads), &format!("runs of {run}"));
    }
}

/// What the kernel cannot do is refused before it starts.
pub fn what_no_command_can_do<D: Driver>(driver: &D) {
    let kind = Kind { traits: Traits { mdts: 1, ..Traits::default() }, ..Kind::default() };
    let kind = Kind { settings: Settings { reads: 4, ..kind.settings }, ..kind };
    let mut rig = Rig::new(driver, &kind);
    let ram = rig.ram(64 << 10, 65536, 0);
    let read = |blocks, at| Read { lba: 0, blocks, pages: &ram.pages, at };
    let mut refused = |reads: &[Read<'_>]| {
        // SAFETY: it does not start, or it is waited for.
        unsafe { rig.queue.start(reads) }.unwrap_err()
    };
    assert!(matches!(refused(&[read(0, 0)]), QueueError::List(_)));
    assert!(
        refused(&[read(1, 0), read(17, 0)]).to_string().contains("17 blocks in one command, which takes 8192 bytes")
    );
    assert!(matches!(refused(&[read(1, 2)]), QueueError::Pages(PrpError::Unaligned { .. })));
    assert!(matches!(refused(&[read(2, (64 << 10) - 512)]), QueueError::Pages(PrpError::Outside { .. })));
    assert!(matches!(refused(&[read(1, usize::MAX)]), QueueError::Pages(PrpError::Outside { .. })));
    assert!(matches!(refused(&[read(1, 0); 5]), QueueError::List(_)));
    let pages = Pages::new(&rig.beside, ram.buf.bus(), 8192).unwrap();
    let error = refused(&[Read { lba: 0, blocks: 1, pages: &pages, at: 0 }]).to_string();
    assert!(error.contains("pages of 8192 bytes, and not the controller's"), "{error}");
    let report = rig.run(&[], &ram);
    assert_good(report, 0);
    let report = rig.run(&[Wanted { lba: 3, blocks: 16, at: 0 }; 4], &ram);
    assert_good(report, 4);
}

/// A drive with one queue pair, which the driver has for itself, has none for a kernel.
pub fn a_drive_without_a_queue_to_spare<D: Driver>(driver: &D) {
    let traits = Traits { queues: 1, ..Traits::default() };
    let media = vec![Arc::new(Media::new(512, vec![0; 4096]))];
    let door = ModelDoor::new(traits, media);
    let mut controller = Controller::open(door, Options { spare: 1, ..Options::default() }).unwrap();
    let namespace = controller.namespace(1).unwrap();
    let gpu = Box::new(driver.beside(MODULE).unwrap());
    let error = GpuQueue::new(gpu, &mut controller, namespace, Settings::default()).err().unwrap().to_string();
    let expected = "model: the controller gives 1 I/O queues, and all are in use; a GPU needs one for itself: leave the commands to the CPU";
    assert!(error.starts_with(expected), "{error}");
}
