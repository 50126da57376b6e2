//! Loading big ranges of files once, at full depth.

use crate::{
    Dst, HostBuf, Options, Piece, ReadError, Source,
    ahead::{AHEAD, names, waited},
    protocol::{Protocol, Step},
    source::leave,
    sync::now,
};
use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
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

/// Fills all targets from `source`, whose block has to be 1 ([`loader`](crate::loader), [`Memory`](crate::Memory)).
///
/// `progress` is called with the bytes that are there without a gap, again and again, on this thread. When `cancel` becomes true no read is
/// begun any more. Returns when all reads have come back; where all targets' memory has an owner ([`HostBuf::new`]), it gives up on those
/// that are older than [`Options::stall`].
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
    let (mut pieces, mut places) = (Vec::new(), Vec::new());
    for Target { file, offset, dst } in targets {
        for piece in Piece::cut(*file, *offset, dst.len() as u64, PIECE) {
            places.push(dst.part((piece.offset - offset) as usize, piece.len));
            pieces.push(piece);
        }
    }
    let owned = targets.iter().all(|target| target.dst.is_owned());
    let options = Options { once: true, ..*options };
    let names = names(&*source, &pieces);
    // Who takes the pieces is this thread, which wants all of them.
    let mut protocol = Protocol::new(pieces, names, AHEAD, source.depth(), options).in_place();
    places.iter().for_each(|_| protocol.permit());
    let (mut next, mut bytes, mut done) = (0, 0, Vec::new());
    let (mut failed, mut broken) = (None, false);
    loop {
        if cancel.load(Ordering::Relaxed) {
            failed.get_or_insert(ReadError::Cancelled);
            protocol.stop();
        }
        while failed.is_none() && next < places.len() {
            match protocol.take(next, now()) {
                Ok(Some(filled)) => (next, bytes) = (next + 1, bytes + filled.len as u64),
                Ok(None) => break,
                Err(error) => failed = Some(error),
            }
        }
        progress(bytes);
        if owned && failed.is_some() && protocol.is_stuck(now()) {
            break;
        }
        match protocol.next(now()) {
            Step::Read(reads) => {
                for read in reads {
                    let dst = Dst::Host(places[read.number].share());
                    if let Err(error) = source.submit(read.id, &read.piece, dst) {
                        protocol.completed(read.id, Err(error), now());
                    }
                }
            }
            Step::Wait => {
                let result = source.wait(TICK, &mut done);
                broken |= result.is_err();
                waited(&mut protocol, &*source, &mut done, result);
            }
            Step::Sleep | Step::Exit => break,
        }
    }
    if owned && (broken || protocol.is_stuck(now())) {
        // It may never give back what is in flight.
        leave(source);
    }
    failed.map_or(Ok(()), Err)
}
