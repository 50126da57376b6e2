//! The flow of streamed matrices through the ring: copies run ahead of the computation as far as the ring has room, pass after pass.
//!
//! Time is counted in turns: one group's computation each. Turn t computes the streamed group t modulo their number, so passes follow
//! each other without a seam: while the last groups of one are computed, the first ones of the next are copied. Only events order
//! copies and computations. A group that is asked for out of turn (a skipped layer, an error before) starts the flow anew there.

use super::{
    log::{Computed, Copied, Log},
    ring::{Layout, Segment},
    staging::Staging,
};
use crate::{
    device::{DeviceError, Transfer},
    model::{Flowed, Trace},
};

/// Where a streamed matrix is when it is not in the ring.
#[derive(Clone, Copy)]
pub(super) enum Origin {
    /// In page-locked memory of this number, from this byte on.
    Pinned(usize, usize),
    /// Behind the staging buffers: the first of its pieces.
    Staged(usize),
}

/// A segment of the layout, and what it is copied from.
struct Copy {
    segment: Segment,
    from: From,
    /// It is its group's last one.
    last: bool,
}

#[derive(Clone, Copy)]
enum From {
    Pinned(usize, usize),
    Piece(usize),
}

/// The ring in use.
pub(super) struct Flow<D: Transfer> {
    ring: D::Buf,
    /// A cycle's copies, in their order.
    copies: Vec<Copy>,
    /// The first copy of each group.
    first: Vec<usize>,
    /// What each group is called in the log.
    names: Vec<usize>,
    /// The group of each piece.
    pieces: Vec<usize>,
    /// Page-locked memory that is copied from.
    rams: Vec<D::Pinned>,
    staging: Option<Staging<D>>,
    /// The turn to be computed next.
    turn: u64,
    /// The copy to be made next, and the turn that it is for.
    next: (u64, usize),
    /// The number of this pass, and the turn at which its cycle begins.
    pass: (u64, u64),
    /// The turn with which the flow began.
    began: u64,
    /// What had been asked to be computed then: copies wait for it instead of turns before. None: nothing had.
    before: Option<D::Event>,
    /// The end of each group's last computation.
    computed: Vec<Option<D::Event>>,
    /// The end of each group's last copy.
    copied: Vec<Option<D::Event>>,
    /// Something failed, so that nobody knows what is in the ring.
    stopped: bool,
    log: Log<D>,
}

impl<D: Transfer> Flow<D> {
    /// A flow of `layout`'s segments through `ring`; `origins` are each group's name in the log and where its matrices come from.
    ///
    /// # Errors
    /// The device's.
    pub fn new(
        dev: &D,
        ring: D::Buf,
        layout: Layout,
        origins: Vec<(usize, Vec<Origin>)>,
        rams: Vec<D::Pinned>,
        staging: Option<Staging<D>>,
    ) -> Result<Self, DeviceError> {
        let groups = origins.len();
        let last = |i: usize, segments: &[Segment]| segments.get(i + 1).is_none_or(|s| s.group != segments[i].group);
        let mut piece = 0;
        let copies: Vec<Copy> = (0..layout.segments.len())
            .map(|i| {
                let segment = layout.segments[i].clone();
                let from = match origins[segment.group].1[segment.unit] {
                    Origin::Pinned(ram, start) => From::Pinned(ram, start + segment.range.start as usize),
                    Origin::Staged(first) => {
                        piece = if segment.range.start == 0 { first } else { piece + 1 };
                        From::Piece(piece)
                    }
                };
                Copy { from, last: last(i, &layout.segments), segment }
            })
            .collect();
        let first = (0..groups)
            .map(|group| copies.iter().position(|copy| copy.segment.group == group).expect("every group streams"))
            .collect();
        let pieces =
            copies.iter().filter(|copy| matches!(copy.from, From::Piece(_))).map(|copy| copy.segment.group).collect();
        let (computed, copied) = (vec![None; groups], vec![None; groups]);
        Ok(Flow {
            ring,
            copies,
            first,
            names: origins.into_iter().map(|(name, _)| name).collect(),
            pieces,
            rams,
            staging,
            turn: 0,
            next: (0, 0),
            pass: (0, 0),
            began: 0,
            before: None,
            computed,
            copied,
            stopped: false,
            log: Log::new(dev)?,
        })
    }

    /// How what is on disk is read, if anything is.
    pub fn reads_by(&self) -> Option<&str> {
        self.staging.as_ref().map(Staging::describe)
    }

    /// What has been copied so far, and what was waited for. Between this and the next computation nothing is waited for.
    pub fn flowed(&mut self, dev: &D) -> Result<Flowed, DeviceError> {
        self.settle(dev)?;
        Ok(self.log.sums())
    }

    /// Keeps a trace from now on, or no longer.
    pub fn trace(&mut self, on: bool) {
        self.note_reads();
        self.log.trace(on);
    }

    /// The trace since the last time.
    pub fn take_trace(&mut self, dev: &D) -> Result<Trace, DeviceError> {
        self.settle(dev)?;
        Ok(self.log.take())
    }

    /// A pass begins.
    pub fn begin_pass(&mut self) {
        self.pass = (self.pass.0 + 1, self.turn);
    }

    fn groups(&self) -> u64 {
        self.first.len() as u64
    }

    /// Brings `group` into the ring, runs `f` on it behind the copies, and keeps its place until what `f` asked for has ended, also
    /// when `f` fails.
    pub fn with(
        &mut self,
        dev: &mut D,
        group: usize,
        f: &mut dyn FnMut(&mut D) -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        if self.stopped || self.turn % self.groups() != group as u64 {
            self.restart(dev, group)?;
        }
        let (idle, begin) = match self.fetch(dev) {
            Ok(marks) => marks,
            Err(e) => {
                self.stopped = true;
                return Err(e);
            }
        };
        let result = f(dev);
        match dev.mark() {
            Ok(end) => {
                let (group_name, pass, idle) = (self.names[group], self.pass.0, Some(idle));
                self.log.compute(Computed { group: group_name, pass, idle, begin, end: end.clone() });
                self.computed[group] = Some(end);
            }
            Err(e) => {
                // Until a later mark succeeds, nobody knows when the ring may be written again.
                self.stopped = true;
                return result.and(Err(e));
            }
        }
        self.turn += 1;
        self.run_ahead(dev);
        result?;
        self.settle(dev)
    }

    /// Runs `f`, the computation of a group of this name that is always on the device, and lets copies run ahead.
    pub fn beside(
        &mut self,
        dev: &mut D,
        name: usize,
        f: &mut dyn FnMut(&mut D) -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        // Marks would keep the kernels of one layer from overlapping those of the next: only a trace is worth it.
        let begin = if self.log.traces() { Some(dev.mark()?) } else { None };
        let mut result = f(dev);
        if let Some(begin) = begin {
            match dev.mark() {
                Ok(end) => self.log.compute(Computed { group: name, pass: self.pass.0, idle: None, begin, end }),
                Err(e) => result = result.and(Err(e)),
            }
        }
        self.run_ahead(dev);
        result
    }

    /// Makes the copies that have room and data by now. One that fails is made again when its group's turn comes, and fails then.
    fn run_ahead(&mut self, dev: &D) {
        while !self.stopped {
            match self.copy(dev, false) {
                Ok(true) => (),
                Ok(false) => return,
                Err(_) => self.stopped = true,
            }
        }
    }

    /// Takes down what has ended by now.
    fn settle(&mut self, dev: &D) -> Result<(), DeviceError> {
        self.note_reads();
        self.log.settle(dev)
    }

    fn note_reads(&mut self) {
        if let Some(staging) = &self.staging {
            staging.reads(&mut |read| self.log.read(self.names[self.pieces[read.piece]], &read));
        }
    }

    /// Starts anew with `group`: what is in the ring, or under way, is not used.
    fn restart(&mut self, dev: &D, group: usize) -> Result<(), DeviceError> {
        self.before = Some(dev.mark()?);
        self.turn = (self.turn / self.groups() + 1) * self.groups() + group as u64;
        self.began = self.turn;
        self.next = (self.turn, self.first[group]);
        self.pass.1 = self.turn;
        if let Some(staging) = &mut self.staging {
            let following = self.copies[self.first[group]..].iter().chain(&self.copies);
            let piece = following.into_iter().find_map(|copy| match copy.from {
                From::Piece(piece) => Some(piece),
                From::Pinned(..) => None,
            });
            staging.seek(piece.unwrap_or(0));
        }
        self.stopped = false;
        Ok(())
    }

    /// Makes all copies of this turn's group, and lets the computation wait for the last one. Where the computation had come to before
    /// that, and behind it.
    fn fetch(&mut self, dev: &D) -> Result<(D::Event, D::Event), DeviceError> {
        let idle = dev.mark()?;
        while self.next.0 <= self.turn {
            self.copy(dev, true)?;
        }
        if let Some(copied) = &self.copied[(self.turn % self.groups()) as usize] {
            dev.compute_waits(copied)?;
        }
        Ok((idle, dev.mark()?))
    }

    /// Makes the next copy, if it has room and data: whether it did. With `wait`, waits for its data; there is room for the group whose
    /// turn it is.
    fn copy(&mut self, dev: &D, wait: bool) -> Result<bool, DeviceError> {
        let ((turn, index), groups) = (self.next, self.groups());
        let Copy { segment, from, last } = &self.copies[index];
        let after = turn.checked_sub(segment.after as u64).filter(|&after| after >= self.began);
        let after = match after {
            None => self.before.as_ref(),
            Some(after) if after < self.turn => self.computed[(after % groups) as usize].as_ref(),
            Some(_) => return Ok(false),
        };
        let asked = dev.mark_copies()?;
        let (len, offset) = ((segment.range.end - segment.range.start) as usize, segment.offset as usize);
        let end = match *from {
            From::Pinned(ram, start) => dev.upload(&self.rams[ram], start..start + len, &self.ring, offset, after)?,
            From::Piece(piece) => {
                let staging = self.staging.as_mut().expect("pieces are staged");
                match staging.upload(dev, piece, wait, &self.ring, offset, after)? {
                    Some(end) => end,
                    None => return Ok(false),
                }
            }
        };
        self.log.copy(Copied {
            group: self.names[segment.group],
            pass: self.pass.0 + (turn / groups - self.pass.1 / groups),
            bytes: len as u64,
            staged: matches!(from, From::Piece(_)),
            asked,
            after: after.cloned(),
            end: end.clone(),
        });
        if *last {
            self.copied[segment.group] = Some(end);
        }
        self.next = if index + 1 == self.copies.len() { (turn + 1, 0) } else { (turn + u64::from(*last), index + 1) };
        Ok(true)
    }
}
