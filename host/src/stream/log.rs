//! What happened when: copies, computations and reads on one clock, from the events that order them.

use std::{collections::VecDeque, time::Instant};

use readahead::Span as Read;

use crate::{
    device::{DeviceError, Transfer},
    model::{Cause, Flowed, Lane, Span, Trace},
};

/// Spans that are kept for a trace until somebody takes them: 100 MB, and some thousand passes of a large model.
const SPANS: usize = 1 << 20;

/// Seconds by which the point that times are told from is in the past: more than the time between what is done beside each other.
const LAG: f64 = 5.0;

/// A copy whose end may not have been reached.
pub(super) struct Copied<E> {
    pub group: usize,
    /// The pass that it is for.
    pub pass: u64,
    pub bytes: u64,
    /// It is of bytes that the drive read.
    pub staged: bool,
    /// Where the copies had come to when it was asked for.
    pub asked: E,
    /// The computation that left it room.
    pub after: Option<E>,
    pub end: E,
}

/// A computation whose end may not have been reached.
pub(super) struct Computed<E> {
    pub group: usize,
    pub pass: u64,
    /// When it was asked for and the one before had ended; none for one that waits for no weights.
    pub idle: Option<E>,
    /// When its weights were there, too.
    pub begin: E,
    pub end: E,
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
    copies: VecDeque<Copied<D::Event>>,
    computations: VecDeque<Computed<D::Event>>,
    /// The end of the last copy, and of the last computation.
    copied: f64,
    computed: f64,
    /// Waits before this do not count.
    since: f64,
    sums: Flowed,
    trace: Option<Trace>,
}

impl<D: Transfer> Log<D> {
    pub fn new(dev: &D) -> Result<Self, DeviceError> {
        let base = dev.mark_copies()?;
        dev.host_waits(&base)?;
        Ok(Log {
            base: (base, 0.0),
            next: None,
            began: Instant::now(),
            copies: VecDeque::new(),
            computations: VecDeque::new(),
            copied: 0.0,
            computed: 0.0,
            since: 0.0,
            sums: Flowed::default(),
            trace: None,
        })
    }

    /// A copy was asked for.
    pub fn copy(&mut self, copy: Copied<D::Event>) {
        self.copies.push_back(copy);
    }

    /// A computation was asked for.
    pub fn compute(&mut self, computation: Computed<D::Event>) {
        self.computations.push_back(computation);
    }

    /// A read by the drive.
    pub fn read(&mut self, group: usize, read: &Read) {
        let seconds = read.end.saturating_duration_since(read.begin).as_secs_f64();
        let (later, earlier) =
            (read.begin.saturating_duration_since(self.began), self.began.saturating_duration_since(read.begin));
        let begin = later.as_secs_f64() - earlier.as_secs_f64();
        self.sums.disk_bytes += read.bytes as u64;
        self.sums.disk_reads += seconds;
        self.keep(Span { lane: Lane::Disk, group, pass: None, waits: None, begin, seconds, bytes: read.bytes as u64 });
    }

    fn keep(&mut self, span: Span) {
        match &mut self.trace {
            Some(trace) if trace.spans.len() < SPANS => trace.spans.push(span),
            Some(trace) => trace.dropped += 1,
            None => (),
        }
    }

    /// Works out what has ended by now.
    pub fn settle(&mut self, dev: &D) -> Result<(), DeviceError> {
        while let Some(copy) = self.copies.front()
            && dev.reached(&copy.end)?
        {
            let copy = self.copies.pop_front().expect("it was just looked at");
            self.settle_copy(dev, copy)?;
        }
        while let Some(computation) = self.computations.front()
            && dev.reached(&computation.end)?
        {
            let computation = self.computations.pop_front().expect("it was just looked at");
            self.settle_computation(dev, computation)?;
        }
        Ok(())
    }

    fn settle_copy(&mut self, dev: &D, copy: Copied<D::Event>) -> Result<(), DeviceError> {
        let Copied { group, pass, bytes, staged, asked, after, end } = copy;
        let free = self.copied;
        let room = after.map_or(Ok(free), |after| self.at(dev, &after))?.max(free);
        let begin = self.at(dev, &asked)?.max(room);
        let ended = self.at(dev, &end)?.max(begin);
        let late = if staged { Cause::Data } else { Cause::Host };
        for (cause, from, to) in [(Cause::Room, free, room), (late, room, begin)] {
            let from = from.max(self.since);
            if to > from {
                match cause {
                    Cause::Room => self.sums.link_waits_for_room += to - from,
                    Cause::Data => self.sums.link_waits_for_data += to - from,
                    _ => self.sums.link_waits_for_host += to - from,
                }
                let (lane, pass, waits) = (Lane::Link, Some(pass), Some(cause));
                self.keep(Span { lane, group, pass, waits, begin: from, seconds: to - from, bytes: 0 });
            }
        }
        let seconds = ended - begin;
        self.sums.link_bytes += bytes;
        self.sums.link_busy += seconds;
        self.keep(Span { lane: Lane::Link, group, pass: Some(pass), waits: None, begin, seconds, bytes });
        self.copied = ended;
        self.rebase(end, ended);
        Ok(())
    }

    fn settle_computation(&mut self, dev: &D, computation: Computed<D::Event>) -> Result<(), DeviceError> {
        let Computed { group, pass, idle, begin, end } = computation;
        let (lane, pass, bytes) = (Lane::Compute, Some(pass), 0);
        let begin = self.at(dev, &begin)?.max(self.computed);
        let ended = self.at(dev, &end)?.max(begin);
        if let Some(idle) = idle {
            let from = self.at(dev, &idle)?.max(self.computed);
            let seconds = begin - from;
            if seconds > 0.0 {
                self.sums.compute_waits += seconds;
                self.keep(Span { lane, group, pass, waits: Some(Cause::Weights), begin: from, seconds, bytes });
            }
            self.sums.compute_busy += ended - begin;
        }
        self.keep(Span { lane, group, pass, waits: None, begin, seconds: ended - begin, bytes });
        self.computed = ended;
        self.rebase(end, ended);
        Ok(())
    }

    /// Seconds from the log's beginning to `event`, which is reached.
    fn at(&self, dev: &D, event: &D::Event) -> Result<f64, DeviceError> {
        Ok(self.base.1 + dev.seconds(&self.base.0, event)?)
    }

    /// Moves the base on towards `event`, which was reached `at` seconds after the beginning.
    fn rebase(&mut self, event: D::Event, at: f64) {
        if self.next.as_ref().is_none_or(|(_, next)| at > next + LAG)
            && let Some(reached) = self.next.replace((event, at))
        {
            self.base = reached;
        }
    }

    /// Begins or ends a trace.
    pub fn trace(&mut self, on: bool) {
        self.trace = on.then(Trace::default);
    }

    /// Whether there is a trace.
    pub fn traces(&self) -> bool {
        self.trace.is_some()
    }

    /// The sums so far. Nobody may use the device until the next pass, which is no wait: what is waited for counts from now on.
    pub fn sums(&mut self) -> Flowed {
        self.since = self.began.elapsed().as_secs_f64();
        self.sums
    }

    /// The trace since the last time.
    pub fn take(&mut self) -> Trace {
        self.trace.as_mut().map(std::mem::take).unwrap_or_default()
    }
}
