//! The flow of streamed matrices through the ring: copies run ahead of the computation as far as the ring has room, pass after pass.
//!
//! Time is counted in turns: one group's computation each. Turn t computes the streamed group t modulo their number, so passes follow
//! each other without a seam: while the last groups of one are computed, the first ones of the next are copied. Only events order
//! copies and computations. A group that is asked for out of turn (a skipped layer, an error before) starts the flow anew there.
//!
//! What a source writes into the ring by itself is ordered by the host: such a piece is permitted when the event has passed that a copy
//! would wait for, and a group is computed when its pieces have arrived.

use std::time::Duration;

use readahead::Piece;

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
    /// In a file: the first of its pieces, and where in its first segment the matrix begins, whose place may have room for whole blocks.
    Staged(usize, usize),
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
    /// A piece, and where in its segment it begins.
    Piece(usize, usize),
}

/// How long is waited for a piece before it is looked whether others can be permitted: a layer of one token takes a GPU some 200 us.
const GLANCE: Duration = Duration::from_micros(200);

/// The same if none waits for a computation.
const LOOK: Duration = Duration::from_millis(100);

/// The ring in use.
pub(super) struct Flow<D: Transfer> {
    ring: D::Buf,
    /// A cycle's copies, in their order.
    copies: Vec<Copy>,
    /// The first copy of each group.
    first: Vec<usize>,
    /// What each group is called in the log.
    names: Vec<usize>,
    /// The group and the bytes of each piece.
    pieces: Vec<(usize, u64)>,
    /// Page-locked memory that is copied from.
    rams: Vec<D::Pinned>,
    staging: Option<Staging<D>>,
    /// The turn to be computed next.
    turn: u64,
    /// The copy to be made next, and the turn that it is for.
    next: (u64, usize),
    /// The first copy that is not made, nor permitted to be read into its place, and the turn that it is for.
    room: (u64, usize),
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
    /// A flow of `layout`'s segments through `ring`; `origins` are each group's name in the log and where its matrices come from, those
    /// in files as `pieces`.
    ///
    /// # Errors
    /// The device's.
    pub fn new(
        dev: &D,
        ring: D::Buf,
        layout: Layout,
        origins: Vec<(usize, Vec<Origin>)>,
        rams: Vec<D::Pinned>,
        pieces: &[Piece],
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
                    Origin::Staged(first, lead) => {
                        let begins = segment.range.start == 0;
                        piece = if begins { first } else { piece + 1 };
                        From::Piece(piece, if begins { lead } else { 0 })
                    }
                };
                Copy { from, last: last(i, &layout.segments), segment }
            })
            .collect();
        let first = (0..groups)
            .map(|group| copies.iter().position(|copy| copy.segment.group == group).expect("every group streams"))
            .collect();
        let of_piece = |copy: &Copy| match copy.from {
            From::Piece(piece, _) => Some((copy.segment.group, pieces[piece].len as u64)),
            From::Pinned(..) => None,
        };
        let pieces = copies.iter().filter_map(of_piece).collect();
        let (computed, copied) = (vec![None; groups], vec![None; groups]);
        let mut flow = Flow {
            ring,
            copies,
            first,
            names: origins.into_iter().map(|(name, _)| name).collect(),
            pieces,
            rams,
            staging,
            turn: 0,
            next: (0, 0),
            room: (0, 0),
            pass: (0, 0),
            began: 0,
            before: None,
            computed,
            copied,
            stopped: false,
            log: Log::new(dev)?,
        };
        flow.permit(dev, false)?;
        Ok(flow)
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
        self.stopped |= self.permit(dev, false).is_err();
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
            staging.reads(&mut |read| self.log.read(self.names[self.pieces[read.piece].0], &read));
        }
    }

    /// Starts anew with `group`: what is in the ring, or under way, is not used.
    fn restart(&mut self, dev: &D, group: usize) -> Result<(), DeviceError> {
        self.stopped = true;
        self.before = Some(dev.mark()?);
        self.turn = (self.turn / self.groups() + 1) * self.groups() + group as u64;
        self.began = self.turn;
        self.next = (self.turn, self.first[group]);
        self.room = self.next;
        self.pass.1 = self.turn;
        if let Some(staging) = &mut self.staging {
            let following = self.copies[self.first[group]..].iter().chain(&self.copies);
            let piece = following.into_iter().find_map(|copy| match copy.from {
                From::Piece(piece, _) => Some(piece),
                From::Pinned(..) => None,
            });
            staging.seek(piece.unwrap_or(0))?;
            if staging.is_in_place() {
                // Copies that nobody waits for any more order themselves with later ones, but not with reads.
                dev.host_waits(&dev.mark_copies()?)?;
            }
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
        if self.staging.as_ref().is_some_and(Staging::is_in_place) {
            dev.acquire()?;
        }
        Ok((idle, dev.mark()?))
    }

    /// Makes the next copy, if it has room and data: whether it did. With `wait`, waits for its data; there is room for the group whose
    /// turn it is.
    fn copy(&mut self, dev: &D, wait: bool) -> Result<bool, DeviceError> {
        let ((turn, index), groups) = (self.next, self.groups());
        let Copy { segment, from, last } = &self.copies[index];
        let (group, last) = (segment.group, *last);
        let in_place = self.staging.as_ref().is_some_and(Staging::is_in_place);
        let end = if let (From::Piece(piece, _), true) = (*from, in_place) {
            if !self.arrived(dev, piece, wait)? {
                return Ok(false);
            }
            // Behind the copies of its group that were made before.
            if last { Some(dev.mark_copies()?) } else { None }
        } else {
            let Some(after) = self.after(self.next) else { return Ok(false) };
            let asked = dev.mark_copies()?;
            let (len, offset) = ((segment.range.end - segment.range.start) as usize, segment.offset as usize);
            let (end, bytes) = match *from {
                From::Pinned(ram, start) => {
                    (dev.upload(&self.rams[ram], start..start + len, &self.ring, offset, after)?, len as u64)
                }
                From::Piece(piece, lead) => {
                    let after = after.cloned();
                    let staging = self.staging.as_mut().expect("pieces are staged");
                    match staging.upload(dev, piece, wait, &self.ring, offset + lead, after.as_ref())? {
                        Some(end) => (end, self.pieces[piece].1),
                        None => return Ok(false),
                    }
                }
            };
            self.log.copy(Copied {
                group: self.names[group],
                pass: self.pass.0 + (turn / groups - self.pass.1 / groups),
                bytes,
                staged: matches!(from, From::Piece(..)),
                asked,
                after: self.after(self.next).flatten().cloned(),
                end: end.clone(),
            });
            Some(end)
        };
        if last {
            self.copied[group] = end;
        }
        self.next = self.behind(self.next);
        Ok(true)
    }

    /// The copy behind another.
    fn behind(&self, (turn, index): (u64, usize)) -> (u64, usize) {
        let last = self.copies[index].last;
        if index + 1 == self.copies.len() { (turn + 1, 0) } else { (turn + u64::from(last), index + 1) }
    }

    /// What a copy has to wait for: the computation with what lies in its place, if there is one. None: it has not been asked for yet.
    fn after(&self, (turn, index): (u64, usize)) -> Option<Option<&D::Event>> {
        let after = turn.checked_sub(self.copies[index].segment.after as u64).filter(|&after| after >= self.began);
        match after {
            None => Some(self.before.as_ref()),
            Some(after) if after < self.turn => Some(self.computed[(after % self.groups()) as usize].as_ref()),
            Some(_) => None,
        }
    }

    /// Whether the piece that is next is in its place; with `wait`, waits for that. Others are permitted meanwhile.
    fn arrived(&mut self, dev: &D, piece: usize, wait: bool) -> Result<bool, DeviceError> {
        loop {
            let more = self.permit(dev, wait)?;
            let patience = match (wait, more) {
                (false, _) => Duration::ZERO,
                (true, true) => GLANCE,
                (true, false) => LOOK,
            };
            if self.room <= self.next {
                return Ok(false);
            }
            let staging = self.staging.as_ref().expect("pieces are staged");
            if staging.arrived(piece, patience)? {
                return Ok(true);
            }
            if !wait {
                return Ok(false);
            }
        }
    }

    /// Permits pieces to be read into their places, as far as what lies there has been computed with; if `wait`, the next one for certain.
    /// Whether one more only waits for a computation to end that has been asked for.
    fn permit(&mut self, dev: &D, wait: bool) -> Result<bool, DeviceError> {
        let Some(staging) = self.staging.as_ref().filter(|staging| staging.is_in_place()) else { return Ok(false) };
        // As many as there are: from then on each waits for a computation that is to come.
        loop {
            if let From::Piece(..) = self.copies[self.room.1].from {
                let Some(after) = self.after(self.room) else { return Ok(false) };
                if let Some(after) = after
                    && !dev.reached(after)?
                {
                    if !wait || self.room != self.next {
                        return Ok(true);
                    }
                    dev.host_waits(after)?;
                }
                staging.permit();
            }
            self.room = self.behind(self.room);
        }
    }
}
