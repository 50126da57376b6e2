//! How fast a source reads.

use crate::{Dst, HostBuf, Piece, ReadError, Source, SourceError, source::leave};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// What was measured.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    /// Bytes of the pieces that were read.
    pub bytes: u64,
    /// Seconds from the first read's begin to the last one's end.
    pub seconds: f64,
}

impl Rate {
    /// Bytes per second.
    pub fn bytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.seconds.max(1e-9)
    }
}

/// Reads `pieces` in order, at the source's depth, until all are read or `budget` is spent, and says how fast that went. Reads begun
/// within the budget are waited for and count. What was read is thrown away.
///
/// With a source that reads past the page cache ([`open`](crate::open())) it is the drive's rate, else possibly the memory's.
/// [`Piece::cut`] makes pieces; 64 MiB or more in all are worth measuring, of the size that will be read later.
///
/// # Errors
/// The first read that failed, without retries, or that there were no pieces; [`ReadError::Stalled`] where reads are not back so long
/// after the budget as `patience` says.
pub fn sequential_rate(
    mut source: Box<dyn Source>,
    pieces: &[Piece],
    budget: Duration,
    patience: Duration,
) -> Result<Rate, ReadError> {
    let Some(longest) = pieces.iter().map(|piece| piece.len).max() else {
        return Err(ReadError::Start("no pieces".to_owned()));
    };
    let (depth, block) = (source.depth().min(pieces.len()), source.block());
    let mut free: Vec<_> = (0..depth).map(|_| HostBuf::allocate(source.room(longest), block.max(4096))).collect();
    // Touched, so that the first reads don't wait for memory.
    free.iter_mut().for_each(|buffer| buffer.bytes().fill(1));
    source.prepare(&free);
    // A source that has to bring its own memory may have less of that.
    free.truncate(source.depth());
    let mut in_flight: Vec<(u64, HostBuf)> = Vec::new();
    let (mut next, mut bytes, mut done) = (0, 0, Vec::new());
    let mut failed = None;
    let start = Instant::now();
    let mut last = start;
    loop {
        while next < pieces.len() && failed.is_none() && (next == 0 || start.elapsed() < budget) {
            let Some(buffer) = free.pop() else { break };
            let piece = &pieces[next];
            match source.submit(next as u64, piece, Dst::Host(buffer.share())) {
                Ok(()) => in_flight.push((next as u64, buffer)),
                Err(error) => failed = Some(error_of(&*source, piece, error)),
            }
            next += 1;
        }
        if in_flight.is_empty() {
            break;
        }
        if let Err(error) = source.wait(Duration::from_millis(10), &mut done) {
            return Err(error_of(&*source, &pieces[in_flight[0].0 as usize], error));
        }
        for completion in done.drain(..) {
            let Some(index) = in_flight.iter().position(|(id, _)| *id == completion.id) else { continue };
            let (id, buffer) = in_flight.swap_remove(index);
            free.push(buffer);
            let piece = &pieces[id as usize];
            last = Instant::now();
            match completion.result {
                Ok(landed) if landed.len == piece.len => bytes += piece.len as u64,
                Ok(landed) => {
                    let error = SourceError::Short { got: landed.len, len: piece.len };
                    failed = Some(error_of(&*source, piece, error));
                }
                Err(error) => failed = Some(error_of(&*source, piece, error)),
            }
        }
        if let Some((id, _)) = in_flight.first()
            && start.elapsed() > budget + patience
        {
            let Piece { file, offset, len } = pieces[*id as usize];
            let seconds = start.elapsed().as_secs_f64();
            let stalled = ReadError::Stalled { name: source.name(file), offset, len, seconds };
            leave(source);
            return Err(stalled);
        }
    }
    match failed {
        Some(error) => Err(error),
        None => Ok(Rate { bytes, seconds: (last - start).as_secs_f64() }),
    }
}

fn error_of(source: &dyn Source, piece: &Piece, error: SourceError) -> ReadError {
    let Piece { file, offset, len } = *piece;
    ReadError::Failed { name: source.name(file), offset, len, attempts: 1, cause: Arc::new(error) }
}
