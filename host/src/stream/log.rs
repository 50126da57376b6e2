//! What happened when: copies, computations and reads on one clock, from the events that order them.

use std::{collections::VecDeque, time::Instant};

use readahead::Span as Read;

use crate::{
    device::{DeviceError, Transfer},
    model::{Flowed, Lane, Span},
};

/// Spans that are kept for a trace until somebody takes them: hours of decoding.
const SPANS: usize = 1 << 20;

/// Seconds by which the point that times are told from is in the past: more than the time between what is done beside each other.
const LAG: f64 = 5.0;

/// A copy or a computation whose end may not have been reached.
enum Job<E> {
    Copy { group: usize, bytes: u64, asked: E, after: Option<E>, end: E },
    Compute { group: usize, idle: E, begin: E, end: E },
}

/// Events, and what became of them.
pub(super) struct Log<D: Transfer> {
    /// A point of the device's time, and the seconds from the log's beginning to it. It moves on, because the time between events
    /// is told in single precision, but stays [`LAG`] behind, so that it is before all others.
    base: (D::Event, f64),
    /// The next base.
    next: Option<(D::Event, f64)>,
    /// The log's beginning by the host's clock.
    began: Instant,
    jobs: VecDeque<Job<D::Event>>,
    /// The end of the last copy.
    copied: f64,
    sums: Flowed,
    spans: Option<Vec<Span>>,
}

impl<D: Transfer> Log<D> {
    pub fn new(dev: &D) -> Result<Self, DeviceError> {
        let base = dev.mark_copies()?;
        dev.host_waits(&base)?;
        Ok(Log {
            base: (base, 0.0),
            next: None,
            began: Instant::now(),
            jobs: VecDeque::new(),
            copied: 0.0,
            sums: Flowed::default(),
            spans: None,
        })
    }

    /// A copy was asked for when the copies had come to `asked`, and could begin behind `after`.
    pub fn copy(&mut self, group: usize, bytes: u64, asked: D::Event, after: Option<D::Event>, end: D::Event) {
        self.jobs.push_back(Job::Copy { group, bytes, asked, after, end });
    }

    /// A computation: the device had nothing to do from `idle` on, and its weights from `begin` on.
    pub fn compute(&mut self, group: usize, idle: D::Event, begin: D::Event, end: D::Event) {
        self.jobs.push_back(Job::Compute { group, idle, begin, end });
    }

    /// A read by the drive.
    pub fn read(&mut self, group: usize, read: &Read) {
        let seconds = read.end.saturating_duration_since(read.begin).as_secs_f64();
        let begin = read.begin.saturating_duration_since(self.began).as_secs_f64();
        self.sums.disk_bytes += read.bytes as u64;
        self.sums.disk_reads += seconds;
        self.keep(Span { lane: Lane::Disk, group, begin, seconds, bytes: read.bytes as u64 });
    }

    fn keep(&mut self, span: Span) {
        if let Some(spans) = self.spans.as_mut().filter(|spans| spans.len() < SPANS) {
            spans.push(span);
        }
    }

    /// Works out what has ended by now.
    pub fn settle(&mut self, dev: &D) -> Result<(), DeviceError> {
        while let Some(job) = self.jobs.front() {
            let (Job::Copy { end, .. } | Job::Compute { end, .. }) = job;
            if !dev.reached(end)? {
                break;
            }
            let (base, start) = (&self.base.0, self.base.1);
            let at = |event: &D::Event| Ok::<f64, DeviceError>(start + dev.seconds(base, event)?);
            let (span, ended) = match self.jobs.pop_front().expect("it was just looked at") {
                Job::Copy { group, bytes, asked, after, end } => {
                    let asked = at(&asked)?.max(self.copied);
                    let begin = after.as_ref().map(at).transpose()?.map_or(asked, |after| after.max(asked));
                    let ended = at(&end)?;
                    self.sums.link_bytes += bytes;
                    self.sums.link_busy += ended - begin;
                    self.sums.link_waits_for_room += begin - asked;
                    self.sums.link_waits_for_data += asked - self.copied;
                    self.copied = ended;
                    (Span { lane: Lane::Link, group, begin, seconds: ended - begin, bytes }, (end, ended))
                }
                Job::Compute { group, idle, begin, end } => {
                    let (idle, begin, ended) = (at(&idle)?, at(&begin)?, at(&end)?);
                    self.sums.compute_waits += begin - idle;
                    self.sums.compute_busy += ended - begin;
                    (Span { lane: Lane::Compute, group, begin, seconds: ended - begin, bytes: 0 }, (end, ended))
                }
            };
            self.keep(span);
            if self.next.as_ref().is_none_or(|(_, next)| ended.1 > next + LAG) {
                let reached = self.next.replace(ended);
                self.base = reached.unwrap_or_else(|| self.base.clone());
            }
        }
        Ok(())
    }

    /// Keeps spans from now on, or no longer.
    pub fn trace(&mut self, on: bool) {
        self.spans = on.then(Vec::new);
    }

    /// The sums so far.
    pub fn sums(&self) -> Flowed {
        self.sums
    }

    /// The spans since the last time.
    pub fn spans(&mut self) -> Vec<Span> {
        self.spans.as_mut().map(std::mem::take).unwrap_or_default()
    }
}
