//! Loading big ranges of files once, at full depth.

use crate::{Dst, HostBuf, Options, Piece, ReadError, Source, SourceError, source::leave};
use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// Bytes of one read.
const PIECE: usize = 4 << 20;
/// How often progress is told and `cancel` is looked at, if nothing else happens.
const TICK: Duration = Duration::from_millis(100);

/// A range of a file, and where it belongs.
#[derive(Debug)]
pub struct Target {
    /// Which file, as an index into the source's list.
    pub file: usize,
    /// The range's first byte in the file.
    pub offset: u64,
    /// Where it goes; as many bytes are read as there are. It is read straight into if its address and the offset have the same rest
    /// modulo 4096, and by way of a small buffer otherwise.
    pub dst: HostBuf,
}

/// A read that has not succeeded yet.
struct Job {
    piece: Piece,
    dst: HostBuf,
    attempts: u32,
    /// When it was given to the system, as far as was seen.
    since: Instant,
}

/// Fills all targets from `source`, whose block has to be 1 ([`loader`](crate::loader), [`Memory`](crate::Memory)).
///
/// `progress` is called with the bytes that are there, again and again, on this thread. When `cancel` becomes true no read is begun any
/// more. Returns when all reads have come back; where all targets' memory has an owner ([`HostBuf::new`]), it gives up on those that
/// are older than [`Options::stall`].
///
/// # Errors
/// The first read that failed after its retries, [`ReadError::Stalled`], or [`ReadError::Cancelled`]. What the targets hold is
/// undefined then.
pub fn fill(
    mut source: Box<dyn Source>,
    targets: &[Target],
    options: &Options,
    cancel: &AtomicBool,
    progress: &mut dyn FnMut(u64),
) -> Result<(), ReadError> {
    if source.block() != 1 {
        let why = format!("a source that reads blocks of {} bytes cannot fill ranges without gaps", source.block());
        return Err(ReadError::Start(why));
    }
    let mut pieces = targets.iter().flat_map(|target| {
        Piece::cut(target.file, target.offset, target.dst.len() as u64, PIECE).map(|piece| Job {
            piece,
            dst: target.dst.part((piece.offset - target.offset) as usize, piece.len),
            attempts: 0,
            since: Instant::now(),
        })
    });
    let owned = targets.iter().all(|target| target.dst.is_owned());
    let mut again = VecDeque::new();
    let mut in_flight = HashMap::<u64, Job>::new();
    let (mut ids, mut bytes, mut done) = (0, 0, Vec::new());
    let mut failed = None;
    loop {
        if cancel.load(Ordering::Relaxed) {
            failed.get_or_insert(ReadError::Cancelled);
        }
        while failed.is_none() && in_flight.len() < source.depth() {
            let Some(mut job) = again.pop_front().or_else(|| pieces.next()) else { break };
            ids += 1;
            (job.attempts, job.since) = (job.attempts + 1, Instant::now());
            match source.submit(ids, &job.piece, Dst::Host(job.dst.share())) {
                Ok(()) => drop(in_flight.insert(ids, job)),
                Err(error) if error.is_transient() && job.attempts <= options.retries => again.push_back(job),
                Err(error) => failed = Some(error_of(&*source, &job, error)),
            }
        }
        if in_flight.is_empty() {
            return failed.map_or(Ok(()), Err);
        }
        let result = source.wait(TICK, &mut done);
        if result.is_err() {
            // It returned at once, and there is nothing else to wait for.
            thread::sleep(TICK);
        }
        for completion in done.drain(..) {
            let Some(job) = in_flight.remove(&completion.id) else { continue };
            let len = job.piece.len;
            let result = completion.result.and_then(|landed| match landed.len == len {
                true => Ok(()),
                false => Err(SourceError::Short { got: landed.len, len }),
            });
            match result {
                Ok(()) => bytes += len as u64,
                Err(error) if error.is_transient() && job.attempts <= options.retries => again.push_back(job),
                Err(error) => drop(failed.get_or_insert_with(|| error_of(&*source, &job, error))),
            }
        }
        progress(bytes);
        for (id, job) in &mut in_flight {
            if source.is_queued(*id) {
                job.since = Instant::now();
            }
        }
        let oldest = in_flight.values().min_by_key(|job| job.since);
        let stuck = oldest.filter(|job| job.since.elapsed() >= options.stall);
        let error = match (result, stuck, oldest) {
            (Err(error), _, Some(job)) => Some(error_of(&*source, job, error)),
            (_, Some(job), _) => Some(stalled(&*source, job)),
            _ => None,
        };
        if let Some(error) = error {
            let error = failed.get_or_insert(error).clone();
            let all_stuck = in_flight.values().all(|job| job.since.elapsed() >= options.stall);
            if owned && all_stuck {
                leave(source);
                return Err(error);
            }
        }
    }
}

fn error_of(source: &dyn Source, job: &Job, error: SourceError) -> ReadError {
    let Piece { file, offset, len } = job.piece;
    ReadError::Failed { name: source.name(file), offset, len, attempts: job.attempts, cause: Arc::new(error) }
}

fn stalled(source: &dyn Source, job: &Job) -> ReadError {
    let Piece { file, offset, len } = job.piece;
    ReadError::Stalled { name: source.name(file), offset, len, seconds: job.since.elapsed().as_secs_f64() }
}
