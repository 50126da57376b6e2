//! Submission and completion queue entries: NVM Express Base Specification 2.0, sections 3.3.3.1 and 3.3.3.2.

use crate::{BusAddr, Status};

/// Bytes of a submission queue entry.
pub const SUBMISSION_BYTES: usize = 64;
/// Bytes of a completion queue entry.
pub const COMPLETION_BYTES: usize = 16;

/// Opcodes of the admin commands that this driver sends (Base Specification, section 5).
pub mod admin {
    /// Delete I/O Submission Queue.
    pub const DELETE_SUBMISSION_QUEUE: u8 = 0x00;
    /// Create I/O Submission Queue.
    pub const CREATE_SUBMISSION_QUEUE: u8 = 0x01;
    /// Delete I/O Completion Queue.
    pub const DELETE_COMPLETION_QUEUE: u8 = 0x04;
    /// Create I/O Completion Queue.
    pub const CREATE_COMPLETION_QUEUE: u8 = 0x05;
    /// Identify.
    pub const IDENTIFY: u8 = 0x06;
    /// Abort.
    pub const ABORT: u8 = 0x08;
    /// Set Features.
    pub const SET_FEATURES: u8 = 0x09;
}

/// Opcodes of the I/O commands that this driver sends (NVM Command Set Specification 1.0, section 3.2).
pub mod io {
    /// Flush.
    pub const FLUSH: u8 = 0x00;
    /// Write.
    pub const WRITE: u8 = 0x01;
    /// Read.
    pub const READ: u8 = 0x02;
}

/// Feature of Set Features: Number of Queues (Base Specification, section 5.27.1.5).
pub const NUMBER_OF_QUEUES: u8 = 0x07;

/// What Identify tells of (CNS; Base Specification, section 5.17).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cns {
    /// One namespace (00h).
    Namespace = 0,
    /// The controller (01h).
    Controller = 1,
    /// The active namespaces' ids above the one given (02h).
    ActiveNamespaces = 2,
}

/// A submission queue entry: 16 dwords.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command(pub [u32; 16]);

impl Command {
    fn new(opcode: u8) -> Command {
        let mut dwords = [0; 16];
        dwords[0] = u32::from(opcode);
        Command(dwords)
    }

    /// The opcode.
    pub fn opcode(&self) -> u8 {
        self.0[0] as u8
    }

    /// The command identifier (CID).
    pub fn cid(&self) -> u16 {
        (self.0[0] >> 16) as u16
    }

    /// The same with this identifier.
    pub fn with_cid(mut self, cid: u16) -> Command {
        self.0[0] = self.0[0] & 0xffff | u32::from(cid) << 16;
        self
    }

    /// The same with these data pointers (PRP1, PRP2).
    pub fn with_prps(mut self, [prp1, prp2]: [u64; 2]) -> Command {
        self.0[6..10].copy_from_slice(&[prp1 as u32, (prp1 >> 32) as u32, prp2 as u32, (prp2 >> 32) as u32]);
        self
    }

    /// Identify, into the page at `into`.
    pub fn identify(cns: Cns, namespace: u32, into: BusAddr) -> Command {
        let mut command = Command::new(admin::IDENTIFY).with_prps([into.0, 0]);
        (command.0[1], command.0[10]) = (namespace, cns as u32);
        command
    }

    /// Asks for `queues` I/O queues of each kind.
    pub fn set_number_of_queues(queues: u16) -> Command {
        let mut command = Command::new(admin::SET_FEATURES);
        let from_0 = u32::from(queues - 1);
        (command.0[10], command.0[11]) = (u32::from(NUMBER_OF_QUEUES), from_0 << 16 | from_0);
        command
    }

    /// Creates completion queue `queue` of `depth` entries, contiguous (PC), without interrupts.
    pub fn create_completion_queue(queue: u16, depth: u32, at: BusAddr) -> Command {
        let mut command = Command::new(admin::CREATE_COMPLETION_QUEUE).with_prps([at.0, 0]);
        (command.0[10], command.0[11]) = ((depth - 1) << 16 | u32::from(queue), 1);
        command
    }

    /// Creates submission queue `queue`, contiguous (PC), whose completions go to the completion queue of the same number.
    pub fn create_submission_queue(queue: u16, depth: u32, at: BusAddr) -> Command {
        let mut command = Command::new(admin::CREATE_SUBMISSION_QUEUE).with_prps([at.0, 0]);
        (command.0[10], command.0[11]) = ((depth - 1) << 16 | u32::from(queue), u32::from(queue) << 16 | 1);
        command
    }

    /// Deletes submission queue `queue`.
    pub fn delete_submission_queue(queue: u16) -> Command {
        let mut command = Command::new(admin::DELETE_SUBMISSION_QUEUE);
        command.0[10] = u32::from(queue);
        command
    }

    /// Deletes completion queue `queue`, whose submission queue is gone.
    pub fn delete_completion_queue(queue: u16) -> Command {
        let mut command = Command::new(admin::DELETE_COMPLETION_QUEUE);
        command.0[10] = u32::from(queue);
        command
    }

    /// Asks to abort command `cid` of submission queue `queue`.
    pub fn abort(queue: u16, cid: u16) -> Command {
        let mut command = Command::new(admin::ABORT);
        command.0[10] = u32::from(cid) << 16 | u32::from(queue);
        command
    }

    /// Reads `blocks` logical blocks (1 to 65,536) from `lba` on.
    pub fn read(namespace: u32, lba: u64, blocks: u32) -> Command {
        Command::transfer(io::READ, namespace, lba, blocks)
    }

    /// Writes them.
    pub fn write(namespace: u32, lba: u64, blocks: u32) -> Command {
        Command::transfer(io::WRITE, namespace, lba, blocks)
    }

    /// Makes what was written to the namespace lasting.
    pub fn flush(namespace: u32) -> Command {
        let mut command = Command::new(io::FLUSH);
        command.0[1] = namespace;
        command
    }

    fn transfer(opcode: u8, namespace: u32, lba: u64, blocks: u32) -> Command {
        debug_assert!((1..=0x1_0000).contains(&blocks));
        let mut command = Command::new(opcode);
        command.0[1] = namespace;
        command.0[10..13].copy_from_slice(&[lba as u32, (lba >> 32) as u32, blocks - 1]);
        command
    }
}

/// A completion queue entry: 4 dwords.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion(pub [u32; 4]);

impl Completion {
    /// The command's result (dword 0).
    pub fn result(&self) -> u32 {
        self.0[0]
    }

    /// Which submission queue the command was in (SQID).
    pub fn queue(&self) -> u16 {
        (self.0[2] >> 16) as u16
    }

    /// Which command (CID).
    pub fn cid(&self) -> u16 {
        self.0[3] as u16
    }

    /// The phase tag, which changes with each round of the queue.
    pub fn phase(&self) -> bool {
        self.0[3] >> 16 & 1 == 1
    }

    /// What came of it.
    pub fn status(&self) -> Status {
        Status((self.0[3] >> 17) as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_the_specification_has_them() {
        let read = Command::read(7, 0x1_2345_6789, 0x1_0000).with_cid(0xbeef).with_prps([0x1_0000_0004, 0x2_0000_1000]);
        let expected = [0xbeef_0002, 7, 0, 0, 0, 0, 4, 1, 0x1000, 2, 0x2345_6789, 1, 0xffff, 0, 0, 0];
        assert_eq!((read.0, read.opcode(), read.cid()), (expected, io::READ, 0xbeef));
        assert_eq!(Command::create_completion_queue(3, 1024, BusAddr(0x5000)).0[10..12], [0x03ff_0003, 1]);
        assert_eq!(Command::create_submission_queue(3, 2, BusAddr(0x5000)).0[10..12], [0x0001_0003, 0x0003_0001]);
        assert_eq!(Command::set_number_of_queues(4).0[10..12], [7, 0x0003_0003]);
        assert_eq!(Command::abort(2, 9).0[10], 0x0009_0002);
        let done = Completion([1, 0, 0x0002_0010, 0x8503_0000 | 0x1234]);
        assert_eq!((done.result(), done.queue(), done.cid(), done.phase()), (1, 2, 0x1234, true));
        assert_eq!(done.status(), Status(0x4281));
    }
}
