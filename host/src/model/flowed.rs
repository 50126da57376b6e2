//! What streaming did: sums for people, spans for traces.

/// What is done beside each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// The drive reads into RAM, several pieces at once.
    Disk,
    /// The link copies to the device, one segment after the other.
    Link,
    /// The device computes.
    Compute,
}

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Room in the ring: what lay there had not been computed yet.
    Room,
    /// Bytes that the drive had not read yet.
    Data,
    /// The host, which had not asked yet.
    Host,
    /// Weights that were not in the ring yet.
    Weights,
}

/// Something that took time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    /// Who did it.
    pub lane: Lane,
    /// The layer that it was for; the number of layers stands for the head.
    pub group: usize,
    /// The pass that it was for, counted from 1; none for reads, which run on from one into the next.
    pub pass: Option<u64>,
    /// Nothing was done: what for. None: the lane's work.
    pub waits: Option<Cause>,
    /// Seconds from the beginning of the log to its own; negative if it was under way before that.
    pub begin: f64,
    /// Seconds that it took.
    pub seconds: f64,
    /// Bytes that were moved; 0 for computations and waits.
    pub bytes: u64,
}

/// What happened when, each lane in the order of the ends.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trace {
    /// The spans, the first ones of a long run.
    pub spans: Vec<Span>,
    /// Later ones that were not kept.
    pub dropped: u64,
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
    /// The link had room, and waited for the drive.
    pub link_waits_for_data: f64,
    /// The link had room and data, and waited for the host to ask.
    pub link_waits_for_host: f64,
    /// Bytes that the drive read.
    pub disk_bytes: u64,
    /// The time of all reads, one after the other: several are in flight at once.
    pub disk_reads: f64,
    /// The device waited for weights.
    pub compute_waits: f64,
    /// The device computed what has streamed weights.
    pub compute_busy: f64,
}

impl Flowed {
    /// What came since `before`, an earlier sum of the same kind.
    pub fn since(&self, before: &Flowed) -> Flowed {
        Flowed {
            link_bytes: self.link_bytes - before.link_bytes,
            link_busy: self.link_busy - before.link_busy,
            link_waits_for_room: self.link_waits_for_room - before.link_waits_for_room,
            link_waits_for_data: self.link_waits_for_data - before.link_waits_for_data,
            link_waits_for_host: self.link_waits_for_host - before.link_waits_for_host,
            disk_bytes: self.disk_bytes - before.disk_bytes,
            disk_reads: self.disk_reads - before.disk_reads,
            compute_waits: self.compute_waits - before.compute_waits,
            compute_busy: self.compute_busy - before.compute_busy,
        }
    }
}
