//! A controller's registers: NVM Express Base Specification 2.0, section 3.1.3 ("Controller Properties").

use std::{
    fmt,
    time::{Duration, Instant},
};

/// Controller Capabilities (CAP), 64 bits.
pub const CAP: usize = 0x00;
/// Version (VS).
pub const VS: usize = 0x08;
/// Controller Configuration (CC).
pub const CC: usize = 0x14;
/// Controller Status (CSTS).
pub const CSTS: usize = 0x1c;
/// Admin Queue Attributes (AQA).
pub const AQA: usize = 0x24;
/// Admin Submission Queue Base Address (ASQ), 64 bits.
pub const ASQ: usize = 0x28;
/// Admin Completion Queue Base Address (ACQ), 64 bits.
pub const ACQ: usize = 0x30;
/// The first doorbell (NVMe over PCIe Transport Specification 1.0, section 3.1.2).
pub const DOORBELLS: usize = 0x1000;

/// Registers of a controller, by their byte offset in BAR0.
///
/// Time is here too, since a driver only looks at registers and memory and waits: a test's controller may step on while it is
/// waited for, by a clock of its own.
pub trait Registers: Send + Sync {
    /// Bytes of registers. From 4096 on, they are doorbells.
    fn bytes(&self) -> usize;

    /// Reads 32 bits.
    fn read32(&self, offset: usize) -> u32;

    /// Writes 32 bits. All that was written to memory before is seen by the device when it sees this.
    fn write32(&self, offset: usize, value: u32);

    /// Reads 64 bits, as two halves: not every platform has 64-bit MMIO.
    fn read64(&self, offset: usize) -> u64 {
        u64::from(self.read32(offset)) | u64::from(self.read32(offset + 4)) << 32
    }

    /// Writes 64 bits, lower half first.
    fn write64(&self, offset: usize, value: u64) {
        self.write32(offset, value as u32);
        self.write32(offset + 4, (value >> 32) as u32);
    }

    /// Lets some time pass between two looks at what the device has to change.
    fn pause(&self) {
        std::thread::yield_now();
    }

    /// The clock that timeouts count by.
    fn now(&self) -> Instant {
        Instant::now()
    }
}

/// Controller Capabilities: section 3.1.3.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cap(pub u64);

impl Cap {
    /// Entries that an I/O queue may have, 2 to 65,536 (MQES, which counts from 0).
    pub fn max_queue_entries(self) -> u32 {
        (self.0 & 0xffff) as u32 + 1
    }

    /// Whether queues have to be contiguous on the bus (CQR).
    pub fn contiguous_queues(self) -> bool {
        self.0 >> 16 & 1 == 1
    }

    /// How long CSTS.RDY may take to follow CC.EN (TO, in units of 500 ms).
    pub fn ready_timeout(self) -> Duration {
        Duration::from_millis(500) * (self.0 >> 24 & 0xff) as u32
    }

    /// Bytes from one doorbell to the next (DSTRD).
    pub fn doorbell_stride(self) -> usize {
        4 << (self.0 >> 32 & 0xf)
    }

    /// Whether the NVM command set is supported (CSS, bit 37).
    pub fn nvm_command_set(self) -> bool {
        self.0 >> 37 & 1 == 1
    }

    /// The smallest memory page that the controller can be set to, in bytes (MPSMIN).
    pub fn min_page(self) -> usize {
        1 << (12 + (self.0 >> 48 & 0xf))
    }

    /// The largest (MPSMAX).
    pub fn max_page(self) -> usize {
        1 << (12 + (self.0 >> 52 & 0xf))
    }

    /// Where the tail doorbell of submission queue `queue` is.
    pub fn submission_doorbell(self, queue: u16) -> usize {
        DOORBELLS + 2 * usize::from(queue) * self.doorbell_stride()
    }

    /// Where the head doorbell of completion queue `queue` is.
    pub fn completion_doorbell(self, queue: u16) -> usize {
        DOORBELLS + (2 * usize::from(queue) + 1) * self.doorbell_stride()
    }
}

/// Version: section 3.1.3.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version(pub u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0 >> 16, self.0 >> 8 & 0xff, self.0 & 0xff)
    }
}

/// Controller Configuration: section 3.1.3.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cc(pub u32);

impl Cc {
    /// Enabled, with the NVM command set, memory pages of `page` bytes, entries of 64 and 16 bytes (IOSQES 6, IOCQES 4).
    pub fn enabled(page: usize) -> Cc {
        Cc(4 << 20 | 6 << 16 | (page.ilog2() - 12) << 7 | 1)
    }

    /// Whether the controller is to process commands (EN).
    pub fn is_enabled(self) -> bool {
        self.0 & 1 == 1
    }

    /// The same without EN: the controller resets.
    pub fn disabled(self) -> Cc {
        Cc(self.0 & !1)
    }

    /// The same with a normal shutdown asked for (SHN 01b).
    pub fn shutting_down(self) -> Cc {
        Cc(self.0 & !(3 << 14) | 1 << 14)
    }

    /// Bytes of a memory page (MPS).
    pub fn page(self) -> usize {
        1 << (12 + (self.0 >> 7 & 0xf))
    }
}

/// Controller Status: section 3.1.3.6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Csts(pub u32);

impl Csts {
    /// Whether commands are processed (RDY).
    pub fn is_ready(self) -> bool {
        self.0 & 1 == 1
    }

    /// Whether the controller has failed and can do nothing but reset (CFS).
    pub fn is_fatal(self) -> bool {
        self.0 >> 1 & 1 == 1
    }

    /// Whether a shutdown is complete (SHST 10b).
    pub fn is_shut_down(self) -> bool {
        self.0 >> 2 & 3 == 2
    }

    /// Whether nobody answers at this address: PCI reads of a device that is gone, or of which memory access is off, give ones.
    pub fn is_gone(self) -> bool {
        self.0 == u32::MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities() {
        // MQES 2047, CQR, TO 15 s, DSTRD 1, CSS NVM, MPSMIN 0, MPSMAX 4.
        let cap = Cap(4 << 52 | 1 << 37 | 1 << 32 | 30 << 24 | 1 << 16 | 2047);
        assert_eq!(cap.max_queue_entries(), 2048);
        assert!(cap.contiguous_queues() && cap.nvm_command_set());
        assert_eq!(cap.ready_timeout(), Duration::from_secs(15));
        assert_eq!((cap.min_page(), cap.max_page()), (4096, 65536));
        assert_eq!((cap.submission_doorbell(0), cap.completion_doorbell(0)), (0x1000, 0x1008));
        assert_eq!((cap.submission_doorbell(3), cap.completion_doorbell(3)), (0x1030, 0x1038));
    }

    #[test]
    fn configuration() {
        let cc = Cc::enabled(4096);
        assert_eq!(cc.0, 0x0046_0001);
        assert_eq!(Cc::enabled(16384).page(), 16384);
        assert_eq!(cc.disabled().0, 0x0046_0000);
        assert_eq!(cc.shutting_down().0, 0x0046_4001);
        assert_eq!(Version(0x0001_0400).to_string(), "1.4.0");
    }
}
