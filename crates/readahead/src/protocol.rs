//! Who may touch a buffer when, and which read is next: the state behind [`ReadAhead`](crate::ReadAhead), without threads and clocks.
//!
//! ```text
//!   free -> reading -> filled -> taken -> free
//!              |  ^
//!              v  |  an attempt failed
//!             again
//! ```
//!
//! Each piece to be read gets a ticket, and tickets are read and taken in order. A buffer belongs to a ticket from `reading` to
//! `taken`. A ticket is void when the consumer has gone elsewhere (seek), or it or an earlier one has failed. A read whose ticket is void keeps
//! its buffer until the source returns it, and nobody sees what it brought.
//!
//! Instead of buffers, pieces may have places, each its own, in the device's memory. Places overlap: what comes next lies where
//! something else is still computed with. So the consumer permits one ticket after the other, when nothing in its place is needed any
//! more, and who takes a piece has given nothing away: the buffers here only count the reads. A read of a void ticket may write what is
//! another's by then, so nothing is begun, and the consumer puts nothing there by other means, before all such reads have come back
//! (`drained`).
//!
//! Why nothing waits for ever: buffers go to tickets in order, so the ticket that is taken next has one before any later ticket does.
//! It is being read, or some buffer is free, or else all are taken (the consumer's to give back) or in reads of void tickets, which
//! come back or count as stalled. Each of these is an answer to `take`.

use crate::{Landed, Piece, ReadError, SourceError};
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

/// How a [`ReadAhead`](crate::ReadAhead) deals with faults.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How often a read that failed, or came back short, is tried again.
    pub retries: u32,
    /// A read that has not come back for so long is an error.
    pub stall: Duration,
    /// The pieces are read once. Reading ends behind the last one, for good.
    pub once: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { retries: 3, stall: Duration::from_secs(30), once: false }
    }
}

/// A buffer that the consumer has. There is one value of it, so that a buffer is given back once.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a buffer that is not given back is never read into again"]
pub struct BufferId(usize);

impl BufferId {
    /// Its index in the list that [`ReadAhead::start`](crate::ReadAhead::start) got.
    pub fn index(&self) -> usize {
        self.0
    }
}

/// A piece that is there.
#[derive(Debug, PartialEq, Eq)]
pub struct Filled {
    /// Which piece.
    pub piece: usize,
    /// The buffer that it is in, to be given back.
    pub buffer: BufferId,
    /// Where its bytes begin in the buffer.
    pub begin: usize,
    /// How many they are: all of the piece.
    pub len: usize,
}

/// A read that succeeded, for traces and figures.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    /// Which piece.
    pub piece: usize,
    /// When its read was handed to the source, or by that to the system, if it had to queue there; the last attempt's, if there were
    /// several.
    pub begin: Instant,
    /// When the source returned it.
    pub end: Instant,
    /// Bytes of the piece.
    pub bytes: usize,
    /// How often it was tried: 1 if nothing went wrong.
    pub attempts: u32,
}

/// Spans that are kept until somebody asks. Older ones are dropped.
const SPANS: usize = 1 << 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ticket {
    number: u64,
    piece: usize,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Free,
    Reading { ticket: Ticket, id: u64, since: Instant, attempts: u32 },
    Again { ticket: Ticket, attempts: u32 },
    Filled { ticket: Ticket, begin: usize },
    Taken,
}

/// A read for the source.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Read {
    pub(crate) id: u64,
    pub(crate) piece: Piece,
    /// The piece's number.
    pub(crate) number: usize,
    pub(crate) buffer: usize,
}

/// Where a piece is read into, in the device's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The device address of the first whole block that has some of the piece.
    pub address: u64,
    /// Bytes of the whole blocks.
    pub len: usize,
    /// Where the piece begins in them.
    pub begin: usize,
}

/// What the reading thread does next.
#[derive(Debug)]
pub(crate) enum Step {
    /// Hands these to the source.
    Read(Vec<Read>),
    /// Waits for the source.
    Wait,
    /// Waits for the consumer.
    Sleep,
    /// Ends.
    Exit,
}

pub(crate) struct Protocol {
    pieces: Vec<Piece>,
    /// The names of the pieces' files, by index.
    names: HashMap<usize, String>,
    options: Options,
    /// Reads in flight at most.
    depth: usize,
    /// Where each piece has a place of its own: the first ticket that may not be read yet.
    permitted: Option<u64>,
    buffers: Vec<State>,
    /// The next ticket to be read; not before `take`.
    read: Ticket,
    /// The next ticket to be taken.
    take: Ticket,
    /// The first ticket that failed. It stays until a seek.
    failure: Option<(u64, ReadError)>,
    /// The source as a whole failed. It is asked again after a seek.
    broken: bool,
    ids: u64,
    spans: VecDeque<Span>,
    stopped: bool,
    ended: bool,
}

impl Protocol {
    /// There are pieces and `buffers`, and `names` has all of the pieces' files.
    pub(crate) fn new(
        pieces: Vec<Piece>,
        names: HashMap<usize, String>,
        buffers: usize,
        depth: usize,
        options: Options,
    ) -> Self {
        let first = Ticket { number: 0, piece: 0 };
        Self {
            pieces,
            names,
            options,
            depth: depth.max(1),
            permitted: None,
            buffers: vec![State::Free; buffers],
            read: first,
            take: first,
            failure: None,
            broken: false,
            ids: 0,
            spans: VecDeque::new(),
            stopped: false,
            ended: false,
        }
    }

    /// The same where each piece is read into a place of its own, once it is permitted; at most so many pieces ahead.
    pub(crate) fn in_place(self) -> Self {
        Self { permitted: Some(0), ..self }
    }

    // ---- the reading thread's side

    /// What the reading thread does next. Reads that are returned count as in flight.
    pub(crate) fn next(&mut self, now: Instant) -> Step {
        let mut in_flight = self.buffers.iter().filter(|state| matches!(state, State::Reading { .. })).count();
        if self.stopped {
            return if in_flight > 0 && !self.broken { Step::Wait } else { Step::Exit };
        }
        let depth = if self.permitted.is_some() && self.void_reads().next().is_some() { 0 } else { self.depth };
        let mut reads = Vec::new();
        for index in 0..self.buffers.len() {
            if let State::Again { ticket, attempts } = self.buffers[index] {
                if self.is_void(ticket) {
                    self.buffers[index] = State::Free;
                } else if in_flight < depth {
                    reads.push(self.begin(index, ticket, attempts, now));
                    in_flight += 1;
                }
            }
        }
        while in_flight < depth && self.failure.is_none() && !self.is_done() {
            let ticket = self.read;
            if self.permitted.is_some_and(|permitted| ticket.number >= permitted) {
                break;
            }
            let Some(index) = self.buffers.iter().position(|state| matches!(state, State::Free)) else { break };
            self.read = self.after(ticket);
            reads.push(self.begin(index, ticket, 0, now));
            in_flight += 1;
        }
        match (reads.is_empty(), in_flight > 0 && !self.broken) {
            (true, false) if self.is_done() && self.failure.is_none() => Step::Exit,
            (false, _) => Step::Read(reads),
            (true, true) => Step::Wait,
            (true, false) => Step::Sleep,
        }
    }

    /// Nothing is left to be begun.
    fn is_done(&self) -> bool {
        self.options.once && self.read.number >= self.pieces.len() as u64
    }

    /// Reads in flight that bring what nobody will take, and when they were begun.
    fn void_reads(&self) -> impl Iterator<Item = (Ticket, Instant)> {
        self.buffers.iter().filter_map(|state| match *state {
            State::Reading { ticket, since, .. } if self.is_void(ticket) => Some((ticket, since)),
            _ => None,
        })
    }

    fn begin(&mut self, buffer: usize, ticket: Ticket, attempts: u32, since: Instant) -> Read {
        self.ids += 1;
        let id = self.ids;
        self.buffers[buffer] = State::Reading { ticket, id, since, attempts: attempts + 1 };
        Read { id, piece: self.pieces[ticket.piece], number: ticket.piece, buffer }
    }

    /// The piece of a read that is in flight.
    pub(crate) fn piece_of(&self, id: u64) -> Option<usize> {
        self.buffers.iter().find_map(|state| match *state {
            State::Reading { ticket, id: its, .. } if its == id => Some(ticket.piece),
            _ => None,
        })
    }

    /// Reads of which `is_queued` is true have not been given to the system yet: they are not late.
    pub(crate) fn queued(&mut self, is_queued: &mut dyn FnMut(u64) -> bool, now: Instant) {
        for state in &mut self.buffers {
            if let State::Reading { id, since, .. } = state
                && is_queued(*id)
            {
                *since = now;
            }
        }
    }

    /// Takes in the end of a read. An id that is not in flight is ignored.
    pub(crate) fn completed(&mut self, id: u64, result: Result<Landed, SourceError>, now: Instant) {
        let in_flight = self.buffers.iter().enumerate().find_map(|(index, state)| match *state {
            State::Reading { ticket, id: its, since, attempts } if its == id => Some((index, ticket, since, attempts)),
            _ => None,
        });
        let Some((index, ticket, since, attempts)) = in_flight else { return };
        if self.is_void(ticket) {
            self.buffers[index] = State::Free;
            return;
        }
        let piece = self.pieces[ticket.piece];
        let result = result.and_then(|landed| match landed.len == piece.len {
            true => Ok(landed.begin),
            false => Err(SourceError::Short { got: landed.len, len: piece.len }),
        });
        self.buffers[index] = match result {
            Ok(begin) => {
                if self.spans.len() == SPANS {
                    self.spans.pop_front();
                }
                let span = Span { piece: ticket.piece, begin: since, end: now, bytes: piece.len, attempts };
                self.spans.push_back(span);
                State::Filled { ticket, begin }
            }
            Err(error) if error.is_transient() && attempts <= self.options.retries => State::Again { ticket, attempts },
            Err(error) => {
                self.fail(ticket, attempts, error);
                State::Free
            }
        };
    }

    /// Takes in that the source does not work at all: the first piece that is not there fails.
    pub(crate) fn broke(&mut self, error: SourceError) {
        self.broken = true;
        let waiting = self.buffers.iter().filter_map(|state| match *state {
            State::Reading { ticket, attempts, .. } | State::Again { ticket, attempts } if !self.is_void(ticket) => {
                Some((ticket, attempts))
            }
            _ => None,
        });
        let (ticket, attempts) = waiting.min_by_key(|(ticket, _)| ticket.number).unwrap_or((self.read, 1));
        self.fail(ticket, attempts, error);
    }

    /// Fails reads that have not come back in time. Returns whether there are such.
    pub(crate) fn expire(&mut self, now: Instant) -> bool {
        let mut any = false;
        for index in 0..self.buffers.len() {
            if let State::Reading { ticket, since, .. } = self.buffers[index]
                && now.saturating_duration_since(since) >= self.options.stall
            {
                any = true;
                self.set_failure(ticket, self.stalled(ticket, since, now));
            }
        }
        any
    }

    /// The reading thread is about to end.
    pub(crate) fn end(&mut self) {
        self.ended = true;
    }

    // ---- the consumer's side

    /// The piece, if it is there; nothing, if it is on its way.
    pub(crate) fn take(&mut self, piece: usize, now: Instant) -> Result<Option<Filled>, ReadError> {
        self.expire(now);
        if piece != self.take.piece {
            return Err(ReadError::OutOfOrder { asked: piece, next: self.take.piece });
        }
        let number = self.take.number;
        if let Some((failed, error)) = &self.failure
            && *failed == number
        {
            return Err(error.clone());
        }
        for (index, state) in self.buffers.iter_mut().enumerate() {
            if let State::Filled { ticket, begin } = *state
                && ticket.number == number
            {
                *state = if self.permitted.is_some() { State::Free } else { State::Taken };
                self.take = self.after(ticket);
                let len = self.pieces[piece].len;
                return Ok(Some(Filled { piece, buffer: BufferId(index), begin, len }));
            }
        }
        if self.ended {
            return Err(ReadError::Ended);
        }
        self.starved(now).map_or(Ok(None), Err)
    }

    /// Why no buffer can come to be read into unless the consumer gives one back, if that is so.
    fn starved(&self, now: Instant) -> Option<ReadError> {
        if let Some(permitted) = self.permitted {
            let Ticket { number, piece } = self.take;
            return self.stuck(now).or((number >= permitted).then_some(ReadError::NotPermitted { piece }));
        }
        let (mut taken, mut stuck) = (false, None);
        for state in &self.buffers {
            match *state {
                State::Taken => taken = true,
                State::Reading { ticket, since, .. }
                    if self.is_void(ticket) && now.saturating_duration_since(since) >= self.options.stall =>
                {
                    stuck = Some(self.stalled(ticket, since, now));
                }
                _ => return None,
            }
        }
        stuck.filter(|_| !taken).or(Some(ReadError::AllTaken { buffers: self.buffers.len() }))
    }

    /// Takes a buffer back. One that is not taken belongs to another reader: nothing happens.
    pub(crate) fn give_back(&mut self, buffer: BufferId) {
        if let Some(state @ State::Taken) = self.buffers.get_mut(buffer.0) {
            *state = State::Free;
        }
    }

    /// One more piece may be read into its place: the next one behind those that are permitted, in the cycle.
    pub(crate) fn permit(&mut self) {
        if let Some(permitted) = &mut self.permitted {
            *permitted += 1;
        }
    }

    /// Whether all reads have come back that bring what nobody will take.
    pub(crate) fn drained(&self, now: Instant) -> Result<bool, ReadError> {
        match (&self.failure, self.void_reads().next()) {
            (_, None) => Ok(true),
            // The source as a whole: it will not say when they come back.
            (Some((_, error)), _) if self.broken => Err(error.clone()),
            _ if self.ended => Err(ReadError::Ended),
            _ => self.stuck(now).map_or(Ok(false), Err),
        }
    }

    /// The error of a read that nobody wants, and that does not come back.
    fn stuck(&self, now: Instant) -> Option<ReadError> {
        let mut late =
            self.void_reads().filter(|(_, since)| now.saturating_duration_since(*since) >= self.options.stall);
        late.next().map(|(ticket, since)| self.stalled(ticket, since, now))
    }

    /// Goes on at `piece`, in the cycle: beyond the last one it begins again.
    pub(crate) fn seek(&mut self, piece: usize) {
        // All tickets before this one are void now.
        self.read.piece = piece % self.pieces.len();
        self.take = self.read;
        self.failure = None;
        self.broken = false;
        self.permitted = self.permitted.map(|_| self.read.number);
        for state in &mut self.buffers {
            if matches!(state, State::Filled { .. } | State::Again { .. }) {
                *state = State::Free;
            }
        }
    }

    pub(crate) fn spans(&mut self) -> VecDeque<Span> {
        std::mem::take(&mut self.spans)
    }

    /// Nothing is read any more.
    pub(crate) fn stop(&mut self) {
        self.stopped = true;
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Whether reads are in flight, and all of them count as stalled.
    pub(crate) fn is_stuck(&self, now: Instant) -> bool {
        let mut ages = self.buffers.iter().filter_map(|state| match state {
            State::Reading { since, .. } => Some(now.saturating_duration_since(*since)),
            _ => None,
        });
        ages.next().is_some_and(|first| first.min(ages.min().unwrap_or(first)) >= self.options.stall)
    }

    // ---- tickets

    fn after(&self, ticket: Ticket) -> Ticket {
        Ticket { number: ticket.number + 1, piece: (ticket.piece + 1) % self.pieces.len() }
    }

    /// Whether nobody will take what a read with this ticket brings.
    fn is_void(&self, ticket: Ticket) -> bool {
        ticket.number < self.take.number || self.failure.as_ref().is_some_and(|(failed, _)| ticket.number >= *failed)
    }

    fn fail(&mut self, ticket: Ticket, attempts: u32, error: SourceError) {
        let (name, offset, len) = self.place(ticket);
        self.set_failure(ticket, ReadError::Failed { name, offset, len, attempts, cause: Arc::new(error) });
    }

    fn set_failure(&mut self, ticket: Ticket, error: ReadError) {
        if !self.is_void(ticket) {
            self.failure = Some((ticket.number, error));
        }
    }

    fn stalled(&self, ticket: Ticket, since: Instant, now: Instant) -> ReadError {
        let (name, offset, len) = self.place(ticket);
        let seconds = now.saturating_duration_since(since).as_secs_f64();
        ReadError::Stalled { name, offset, len, seconds }
    }

    fn place(&self, ticket: Ticket) -> (String, u64, usize) {
        let piece = self.pieces[ticket.piece];
        (self.names[&piece.file].clone(), piece.offset, piece.len)
    }
}
