//! Queues that somebody else drives: here a loop that knows nothing but memory and doorbells, as a GPU's kernel does.

use crate::setup::{bytes, media, options};
use nvme::{
    Command, Completion, Controller, DmaBuf, Door, Drive, Error, LentQueue, Operation, Options, Registers, Status,
    admin,
    model::{ModelDoor, Traits},
};
use std::sync::Arc;

/// What who drives a queue keeps of it.
struct Driver<'a> {
    queue: &'a LentQueue,
    door: &'a ModelDoor,
    tail: u32,
    head: u32,
    phase: bool,
}

impl<'a> Driver<'a> {
    fn new(queue: &'a LentQueue, door: &'a ModelDoor) -> Self {
        Driver { queue, door, tail: 0, head: 0, phase: true }
    }

    fn submit(&mut self, command: Command) {
        let [submissions, _] = self.queue.offsets();
        let at = submissions + self.tail as usize * nvme::SUBMISSION_BYTES;
        command.0.iter().enumerate().for_each(|(i, &dword)| self.queue.memory().write32(at + 4 * i, dword));
        self.tail = (self.tail + 1) % self.queue.depth();
        self.door.write32(self.queue.doorbells()[0], self.tail);
    }

    fn complete(&mut self) -> Completion {
        let [_, completions] = self.queue.offsets();
        let at = completions + self.head as usize * nvme::COMPLETION_BYTES;
        for _ in 0..1000 {
            let entry = Completion([0, 4, 8, 12].map(|dword| self.queue.memory().read32(at + dword)));
            if entry.phase() == self.phase {
                self.head = (self.head + 1) % self.queue.depth();
                self.phase ^= self.head == 0;
                self.door.write32(self.queue.doorbells()[1], self.head);
                return entry;
            }
            self.door.pause();
        }
        panic!("no completion")
    }

    /// Reads `blocks` blocks, one by one, some at once; they complete in any order.
    fn read(&mut self, namespace: u32, blocks: u16, block: usize, data: &DmaBuf) {
        for first in (0..blocks).step_by(self.queue.depth() as usize - 1) {
            let count = (self.queue.depth() as u16 - 1).min(blocks - first);
            for lba in first..first + count {
                let (bus, _) = data.bus().resolve(usize::from(lba) * block).unwrap();
                self.submit(Command::read(namespace, lba.into(), 1).with_prps([bus.0, 0]).with_cid(lba));
            }
            let mut seen: Vec<_> = (0..count)
                .map(|_| self.complete())
                .inspect(|c| assert!(c.status().is_success()))
                .map(|c| c.cid())
                .collect();
            seen.sort_unstable();
            assert_eq!(seen, (first..first + count).collect::<Vec<_>>());
        }
    }
}

fn controller(spare: u16) -> (Arc<ModelDoor>, Controller, Vec<u8>) {
    let media = media(3, 4096, 100);
    let door = ModelDoor::new(Traits { shuffle: Some(4), queues: 3, ..Traits::default() }, vec![media.clone()]);
    let controller = Controller::open(door.clone(), Options { spare, ..options() }).unwrap();
    (door, controller, media.bytes())
}

#[test]
fn a_lent_queue_works_beside_the_drivers_own() {
    let (door, mut controller, expected) = controller(1);
    let memory = door.allocate(LentQueue::bytes(7, controller.page())).unwrap();
    let queue = controller.lend(7, memory).unwrap();
    assert_eq!((queue.id(), queue.depth(), queue.doorbells()), (2, 7, [0x1010, 0x1014]));
    let mut drive = Drive::open(controller, 1).unwrap();
    let data = door.allocate_runs(100 * 4096, 4096);
    Driver::new(&queue, &door).read(1, 100, 4096, &data);
    assert_eq!(bytes(&data, 0, 100 * 4096), expected);
    // A reset empties the queue; its driver begins anew.
    drive.reset().unwrap();
    data.fill(0, data.len(), 0);
    Driver::new(&queue, &door).read(1, 100, 4096, &data);
    assert_eq!(bytes(&data, 0, 100 * 4096), expected);
    drive.run(Operation::Read, 0, 50, data.bus(), 0).unwrap();
    drive.close().unwrap();
    assert_eq!(door.bus().misses(), 0);
}

/// A queue pair of four entries.
fn lend(door: &ModelDoor, controller: &mut Controller) -> Result<LentQueue, Error> {
    controller.lend(4, door.allocate(LentQueue::bytes(4, 4096)).unwrap())
}

#[test]
fn queues_are_taken_back_and_lent_again() {
    let (door, mut controller, _) = controller(2);
    let lend = |controller: &mut Controller| lend(&door, controller);
    let (first, second) = (lend(&mut controller).unwrap(), lend(&mut controller).unwrap());
    assert_eq!((first.id(), second.id()), (2, 3));
    assert!(matches!(lend(&mut controller), Err(Error::NoQueue { given: 3, .. })));
    controller.take_back(&first).unwrap();
    let error = controller.take_back(&first).unwrap_err().to_string();
    assert!(error.contains("Delete I/O Submission Queue failed: Invalid Queue Identifier"), "{error}");
    assert_eq!(lend(&mut controller).unwrap().id(), 2);
}

/// A queue pair of which the controller refuses the second half leaves nothing behind.
#[test]
fn half_a_queue_is_taken_back() {
    let (door, mut controller, _) = controller(1);
    let invalid_field = Status::new(0, 0x02, false);
    door.model().refuse(admin::CREATE_SUBMISSION_QUEUE, invalid_field);
    let error = lend(&door, &mut controller).unwrap_err().to_string();
    assert!(error.contains("Create I/O Submission Queue failed: Invalid Field"), "{error}");
    assert_eq!(lend(&door, &mut controller).unwrap().id(), 2);
}

#[test]
fn what_cannot_be_lent() {
    let (door, mut controller, _) = controller(1);
    let memory = |bytes| door.allocate_runs(bytes, 4096);
    assert!(matches!(controller.lend(1, memory(8192)), Err(Error::Depth { .. })));
    assert!(matches!(controller.lend(1 << 17, memory(8192)), Err(Error::Depth { .. })));
    assert!(matches!(controller.lend(64, memory(4096)), Err(Error::Scattered { .. })), "too small");
    assert!(matches!(controller.lend(65, memory(1 << 20)), Err(Error::Scattered { .. })), "in two pages");
    controller.lend(64, memory(8192)).unwrap();
}
