//! What streaming did: sums for people, spans for traces.

/// What is done beside each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// The drive reads into RAM.
    Disk,
    /// The link copies to the device.
    Link,
    /// The device computes.
    Compute,
}

/// Something that took time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    /// Who did it.
    pub lane: Lane,
    /// The layer that it was for; the number of layers stands for the head.
    pub group: usize,
    /// Seconds from the beginning of the log to its own.
    pub begin: f64,
    /// Seconds that it took.
    pub seconds: f64,
    /// Bytes that were moved; 0 for computations.
    pub bytes: u64,
}

/// Sums over a time, in seconds and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Flowed {
    /// Bytes that the link copied.
    pub link_bytes: u64,
    /// The link copied.
    pub link_busy: f64,
    /// The link waited until there was room in the ring: for the computation.
    pub link_waits_for_room: f64,
    /// The link waited for something to copy: for the drive, or for the host to ask.
    pub link_waits_for_data: f64,
    /// Bytes that the drive read.
    pub disk_bytes: u64,
    /// The time of all reads, one after the other: several are in flight at once.
    pub disk_reads: f64,
    /// The device waited for weights.
    pub compute_waits: f64,
    /// The device computed streamed layers.
    pub compute_busy: f64,
}
