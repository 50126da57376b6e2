//! Admin commands.

use super::{CompletionQueue, Model, SubmissionQueue};
use crate::{BusAddr, Command, Status, admin, command::NUMBER_OF_QUEUES};

const INVALID_OPCODE: Status = Status::new(0, 0x01, false);
const INVALID_FIELD: Status = Status::new(0, 0x02, false);
const INVALID_NAMESPACE: Status = Status::new(0, 0x0b, false);
const COMPLETION_QUEUE_INVALID: Status = Status::new(1, 0x00, false);
const INVALID_QUEUE: Status = Status::new(1, 0x01, false);
const INVALID_SIZE: Status = Status::new(1, 0x02, false);
const INVALID_DELETION: Status = Status::new(1, 0x0c, false);
const ABORT_REQUESTED: Status = Status::new(0, 0x07, true);

impl Model {
    /// Executes an admin command.
    pub(super) fn admin(&mut self, command: &Command) -> (u32, Status) {
        if let Some((_, status)) = self.refused.take_if(|&mut (opcode, _)| opcode == command.opcode()) {
            return (0, status);
        }
        let [d10, d11] = [command.0[10], command.0[11]];
        let prp1 = BusAddr(u64::from(command.0[7]) << 32 | u64::from(command.0[6]));
        let (id, depth) = (d10 as u16, (d10 >> 16) + 1);
        let status = match command.opcode() {
            admin::IDENTIFY => self.identify(d10 & 0xff, command.0[1], prp1),
            admin::CREATE_COMPLETION_QUEUE => self.create_completions(id, depth, d11, prp1),
            admin::CREATE_SUBMISSION_QUEUE => self.create_submissions(id, depth, d11, prp1),
            admin::DELETE_SUBMISSION_QUEUE if id > 0 => match self.submissions.remove(&id) {
                Some(_) => {
                    // Its commands are aborted: they touch no memory any more (Base Specification, section 5.7).
                    self.fetched.retain(|fetched| fetched.queue != id);
                    self.missing.retain(|&(queue, _)| queue != id);
                    Status::SUCCESS
                }
                None => INVALID_QUEUE,
            },
            admin::DELETE_COMPLETION_QUEUE if id > 0 => {
                let in_use = self.submissions.values().any(|queue| queue.completions == id);
                let deleted = !in_use && self.completions.remove(&id).is_some();
                if deleted { Status::SUCCESS } else { INVALID_DELETION }
            }
            admin::SET_FEATURES if d10 & 0xff == u32::from(NUMBER_OF_QUEUES) => {
                let given = u32::from(self.traits.queues - 1);
                return (given << 16 | given, Status::SUCCESS);
            }
            admin::ABORT => return (self.abort(id, (d10 >> 16) as u16), Status::SUCCESS),
            admin::SET_FEATURES => INVALID_FIELD,
            _ => INVALID_OPCODE,
        };
        (0, status)
    }

    fn create_completions(&mut self, id: u16, depth: u32, flags: u32, base: BusAddr) -> Status {
        match self.check(id, depth, flags, base, self.completions.contains_key(&id)) {
            Status::SUCCESS => {
                // A new queue's doorbell is 0, whatever was written there before.
                self.words.store(self.cap().completion_doorbell(id), 0);
                self.completions.insert(id, CompletionQueue { base, depth, tail: 0, phase: true });
                Status::SUCCESS
            }
            status => status,
        }
    }

    fn create_submissions(&mut self, id: u16, depth: u32, flags: u32, base: BusAddr) -> Status {
        let completions = (flags >> 16) as u16;
        if completions == 0 || !self.completions.contains_key(&completions) {
            return COMPLETION_QUEUE_INVALID;
        }
        match self.check(id, depth, flags, base, self.submissions.contains_key(&id)) {
            Status::SUCCESS => {
                self.words.store(self.cap().submission_doorbell(id), 0);
                self.submissions.insert(id, SubmissionQueue { base, depth, head: 0, completions });
                Status::SUCCESS
            }
            status => status,
        }
    }

    fn check(&self, id: u16, depth: u32, flags: u32, base: BusAddr, exists: bool) -> Status {
        match () {
            _ if id == 0 || id > self.traits.queues || exists => INVALID_QUEUE,
            _ if depth < 2 || depth > self.traits.max_queue_entries => INVALID_SIZE,
            // Physically contiguous, as CAP.CQR demands; no interrupts.
            _ if flags & 3 != 1 || !base.0.is_multiple_of(self.page as u64) => INVALID_FIELD,
            _ => Status::SUCCESS,
        }
    }

    /// Bit 0 of the answer: the command was not aborted.
    fn abort(&mut self, queue: u16, cid: u16) -> u32 {
        let found = self.missing.iter().position(|&command| command == (queue, cid));
        let Some(found) = found.filter(|_| self.traits.aborts) else { return 1 };
        self.missing.remove(found);
        let head = self.submissions.get(&queue).map_or(0, |queue| queue.head);
        u32::from(!self.post(queue, queue, head, cid, 0, ABORT_REQUESTED))
    }

    fn identify(&mut self, cns: u32, namespace: u32, into: BusAddr) -> Status {
        let mut data = [0u8; 4096];
        match cns {
            0 => {
                let Some(media) = (namespace as usize).checked_sub(1).and_then(|index| self.media.get(index)) else {
                    return INVALID_NAMESPACE;
                };
                data[..8].copy_from_slice(&media.blocks().to_le_bytes());
                data[130] = media.block_bytes.ilog2() as u8;
            }
            1 => {
                data[4..24].copy_from_slice(b"MODEL-1             ");
                data[24..64].copy_from_slice(b"A controller in plain Rust              ");
                data[64..72].copy_from_slice(b"1.0     ");
                data[77] = self.traits.mdts;
                data[80..84].copy_from_slice(&self.traits.version.to_le_bytes());
                (data[512], data[513]) = (0x66, 0x44);
                data[516..520].copy_from_slice(&(self.media.len() as u32).to_le_bytes());
            }
            2 => {
                let ids = (1..=self.media.len() as u32).filter(|&id| id > namespace);
                for (entry, id) in data.as_chunks_mut::<4>().0.iter_mut().zip(ids) {
                    *entry = id.to_le_bytes();
                }
            }
            _ => return INVALID_FIELD,
        }
        let Some(memory) = self.bus.resolve(into, data.len()) else { return INVALID_FIELD };
        // SAFETY: the bus gave 4096 bytes, which are the device's while the command has them.
        unsafe { memory.as_ptr().copy_from_nonoverlapping(data.as_ptr(), data.len()) };
        Status::SUCCESS
    }
}
