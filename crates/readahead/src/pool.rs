//! Threads that read, each one piece at a time.

use crate::{
    Completion, Dst, HostBuf, Input, Landed, OpenError, Piece, Source, SourceError,
    files::{Aligned, Files, Progress},
};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// What a pool's threads do.
pub(crate) trait Reader: Send + Sync + 'static {
    /// Looks whether the read can be done at all, before it is queued.
    fn check(&self, piece: &Piece, dst: &HostBuf) -> Result<(), SourceError>;
    /// Reads a piece. `bounce` is the thread's own memory.
    fn read(&self, piece: &Piece, dst: &mut HostBuf, bounce: &mut Bounce) -> Result<Landed, SourceError>;
    /// [`Source::block`].
    fn block(&self) -> usize;
    /// [`Source::name`].
    fn name(&self, file: usize) -> String;
}

/// Memory of a thread's own, made when it is first needed.
pub(crate) type Bounce = Option<Aligned>;

struct Job {
    part: Piece,
    dst: HostBuf,
    read: Arc<Read>,
}

/// A read, whose parts several threads may do.
struct Read {
    id: u64,
    piece: Piece,
    parts: Mutex<Parts>,
}

struct Parts {
    /// How many are not done.
    left: usize,
    /// What came of the others.
    ended: Vec<(Piece, Result<Landed, SourceError>)>,
}

impl Read {
    /// Notes the end of a part. Behind the last one, what came of all of it: as many bytes as there are without a gap, or the first error
    /// behind these.
    fn ended(&self, part: Piece, result: Result<Landed, SourceError>) -> Option<Completion> {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.ended.push((part, result));
        parts.left -= 1;
        if parts.left > 0 {
            return None;
        }
        let mut ended = std::mem::take(&mut parts.ended);
        ended.sort_by_key(|(part, _)| part.offset);
        let mut whole = None;
        let result = ended.into_iter().try_for_each(|(part, result)| {
            let landed = result?;
            let whole = whole.get_or_insert(Landed { len: 0, ..landed });
            // Nothing behind a part that came back short.
            if self.piece.offset + whole.len as u64 == part.offset {
                whole.len += landed.len;
            }
            Ok(())
        });
        Some(Completion { id: self.id, result: result.and_then(|()| whole.ok_or(SourceError::Ended)) })
    }
}

/// A [`Source`] of threads.
pub(crate) struct Pool<R> {
    reader: Arc<R>,
    /// Gone when the pool is dropped: the threads end.
    jobs: Option<Sender<Job>>,
    done: Receiver<Completion>,
    threads: Vec<JoinHandle<()>>,
    in_flight: usize,
    depth: usize,
    part: usize,
    /// The last reads that were submitted, the latest first: as many as there may be in flight.
    latest: VecDeque<u64>,
    /// How many of those no thread has begun. Threads take them in their order.
    waiting: Arc<AtomicUsize>,
    description: String,
}

impl<R: Reader> Pool<R> {
    /// Starts `threads` threads, one at least, and takes so many reads at once, or `ahead` more: a thread that is done finds its next one
    /// there, and does not wait until somebody has heard of its last one.
    pub(crate) fn new(reader: R, threads: usize, ahead: usize, description: String) -> Result<Self, OpenError> {
        let threads = threads.max(1);
        let reader = Arc::new(reader);
        let (jobs, queue) = unbounded::<Job>();
        let (completions, done) = unbounded();
        let mut pool = Self {
            reader,
            jobs: Some(jobs),
            done,
            threads: Vec::new(),
            in_flight: 0,
            depth: threads + ahead,
            part: usize::MAX,
            latest: VecDeque::new(),
            waiting: Arc::default(),
            description,
        };
        for index in 0..threads {
            let (reader, queue, completions) = (pool.reader.clone(), queue.clone(), completions.clone());
            let waiting = pool.waiting.clone();
            let work = move || {
                let mut bounce = None;
                while let Ok(mut job) = queue.recv() {
                    // Parts are taken in their order.
                    if job.part.offset == job.read.piece.offset {
                        waiting.fetch_sub(1, Ordering::Relaxed);
                    }
                    let result = reader.read(&job.part, &mut job.dst, &mut bounce);
                    drop(job.dst);
                    if let Some(completion) = job.read.ended(job.part, result) {
                        // Nobody listens once the pool is dropped.
                        let _ = completions.send(completion);
                    }
                }
            };
            let name = format!("read {index}");
            pool.threads.push(
                thread::Builder::new().name(name).spawn(work).map_err(|cause| OpenError::Threads { threads, cause })?,
            );
        }
        Ok(pool)
    }

    /// Has several threads do the parts of `part` bytes of a longer read, so that the one that is needed first is there first. For readers
    /// whose block is 1.
    fn divided(mut self, part: usize) -> Self {
        self.part = part;
        self
    }
}

impl<R: Reader> Source for Pool<R> {
    fn submit(&mut self, id: u64, piece: &Piece, dst: Dst) -> Result<(), SourceError> {
        let dst = dst.host()?;
        if self.in_flight == self.depth() {
            return Err(SourceError::Full { depth: self.depth() });
        }
        self.reader.check(piece, &dst)?;
        let jobs = self.jobs.as_ref().ok_or(SourceError::Ended)?;
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let parts: Vec<usize> = (0..piece.len.max(1)).step_by(self.part).collect();
        let left = Parts { left: parts.len(), ended: Vec::new() };
        let read = Arc::new(Read { id, piece: *piece, parts: Mutex::new(left) });
        for start in parts {
            let (offset, len) = (piece.offset + start as u64, self.part.min(piece.len - start));
            let dst = if self.part < piece.len { dst.part(start, len) } else { dst.share() };
            let job = Job { part: Piece { offset, len, ..*piece }, dst, read: read.clone() };
            jobs.send(job).map_err(|_| SourceError::Ended)?;
        }
        self.in_flight += 1;
        self.latest.push_front(id);
        self.latest.truncate(self.depth);
        Ok(())
    }

    fn wait(&mut self, timeout: Duration, done: &mut Vec<Completion>) -> Result<(), SourceError> {
        if self.in_flight == 0 {
            return Ok(());
        }
        let before = done.len();
        match self.done.recv_timeout(timeout) {
            Ok(completion) => done.push(completion),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(SourceError::Ended),
        }
        done.extend(self.done.try_iter());
        self.in_flight -= done.len() - before;
        Ok(())
    }

    fn depth(&self) -> usize {
        self.depth
    }

    fn is_queued(&self, id: u64) -> bool {
        self.latest.iter().take(self.waiting.load(Ordering::Relaxed)).any(|waits| *waits == id)
    }

    fn block(&self) -> usize {
        self.reader.block()
    }

    fn name(&self, file: usize) -> String {
        self.reader.name(file)
    }

    fn describe(&self) -> String {
        self.description.clone()
    }
}

impl<R> Drop for Pool<R> {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // A thread that panicked has already said so, and reads nothing any more.
            let _ = thread.join();
        }
    }
}

/// Reads files by `pread`, the blocks around each piece.
pub(crate) struct Pread(pub(crate) Files);

impl Reader for Pread {
    fn check(&self, piece: &Piece, dst: &HostBuf) -> Result<(), SourceError> {
        self.0.plan(piece, dst).map(drop)
    }

    fn read(&self, piece: &Piece, dst: &mut HostBuf, _: &mut Bounce) -> Result<Landed, SourceError> {
        self.0.read(piece, self.0.plan(piece, dst)?, dst.bytes())
    }

    fn block(&self) -> usize {
        self.0.block()
    }

    fn name(&self, file: usize) -> String {
        self.0.name(file)
    }
}

/// Bytes that a thread reads directly at once where they cannot go straight to their destination. It stays in the CPU's cache for
/// the copy that follows, and is enough for a drive when 16 threads do the same.
const BOUNCE: usize = 1 << 20;

/// Bytes that a thread loads at once: enough for a drive, and few enough that 16 threads have 8 MiB in a fraction of a millisecond.
const PART: usize = 1 << 20;

/// Reads files from the page cache as far as that has them, and past it where not. What lands is exactly the piece.
pub(crate) struct Cached(pub(crate) Files);

impl Cached {
    /// What of the piece is in the page cache, from its beginning on: up to the first byte that is not. Returns how many bytes.
    #[cfg(target_os = "linux")]
    fn read_cached(&self, piece: &Piece, dst: &mut [u8]) -> Result<usize, SourceError> {
        use rustix::io::{Errno, ReadWriteFlags, preadv2};
        let file = &self.0.of(piece)?.cached;
        let mut got = 0;
        while got < dst.len() {
            let slice = &mut [io::IoSliceMut::new(&mut dst[got..])];
            // preadv2(2), RWF_NOWAIT: reads what is there, and nothing that would have to be waited for.
            match preadv2(file, slice, piece.offset + got as u64, ReadWriteFlags::NOWAIT) {
                Ok(0) | Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => break,
                Ok(count) => got += count,
                Err(Errno::INTR) => {}
                Err(error) => return Err(SourceError::Io(error.into())),
            }
        }
        Ok(got)
    }

    #[cfg(not(target_os = "linux"))]
    fn read_cached(&self, _: &Piece, _: &mut [u8]) -> Result<usize, SourceError> {
        Ok(0)
    }

    /// Reads through the page cache, waiting. Returns how many bytes there are.
    fn buffered(&self, piece: &Piece, dst: &mut [u8]) -> Result<usize, SourceError> {
        use std::os::unix::fs::FileExt;
        let file = &self.0.of(piece)?.cached;
        let mut got = 0;
        while got < dst.len() {
            match file.read_at(&mut dst[got..], piece.offset + got as u64) {
                Ok(0) => break,
                Ok(count) => got += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(got)
    }

    /// Reads past the page cache: whole blocks straight to their places if these are aligned as the file is, else by way of
    /// `bounce`. Returns how many bytes there are.
    fn direct(&self, piece: &Piece, dst: &mut [u8], bounce: &mut Bounce) -> Result<usize, SourceError> {
        let block = self.0.block();
        let mut got = 0;
        while got < dst.len() {
            let offset = piece.offset + got as u64;
            let to_block = offset.next_multiple_of(block as u64) - offset;
            let to_block = usize::try_from(to_block).unwrap_or(usize::MAX);
            let (whole, address) =
                ((dst.len() - got).saturating_sub(to_block) / block * block, dst[got..].as_ptr() as usize);
            let straight = to_block == 0 && whole > 0 && address.is_multiple_of(block);
            let len = match straight {
                true => whole,
                // Up to where it can go on straight, if it can.
                false if whole > 0 && (address + to_block).is_multiple_of(block) => to_block,
                // To the end of a block, so that none is read twice.
                false => (dst.len() - got).min(BOUNCE - (offset % block as u64) as usize),
            };
            let part = Piece { file: piece.file, offset, len };
            let place = &mut dst[got..got + len];
            let progress = Progress::new(&part, block);
            let landed = match straight {
                true => self.0.read(&part, progress, place)?,
                false => {
                    let bounce = bounce.get_or_insert_with(|| Aligned::new(BOUNCE + 2 * block, block)).bytes();
                    let landed = self.0.read(&part, progress, bounce)?;
                    place[..landed.len].copy_from_slice(&bounce[landed.begin..landed.begin + landed.len]);
                    landed
                }
            };
            got += landed.len;
            if landed.len < len {
                break;
            }
        }
        Ok(got)
    }
}

impl Reader for Cached {
    fn check(&self, piece: &Piece, dst: &HostBuf) -> Result<(), SourceError> {
        self.0.of(piece)?;
        if dst.len() < piece.len {
            return Err(SourceError::Small { len: dst.len(), need: piece.len, block: 1 });
        }
        Ok(())
    }

    fn read(&self, piece: &Piece, dst: &mut HostBuf, bounce: &mut Bounce) -> Result<Landed, SourceError> {
        let dst = &mut dst.bytes()[..piece.len];
        let cached = self.read_cached(piece, dst)?;
        let rest = Piece { offset: piece.offset + cached as u64, len: piece.len - cached, ..*piece };
        let read = match self.0.of(piece)?.direct.is_some() {
            true => self.direct(&rest, &mut dst[cached..], bounce)?,
            false => self.buffered(&rest, &mut dst[cached..])?,
        };
        self.0.verify(piece.file)?;
        Ok(Landed { begin: 0, len: cached + read })
    }

    fn block(&self) -> usize {
        1
    }

    fn name(&self, file: usize) -> String {
        self.0.name(file)
    }
}

/// [`Pread`] in a pool of `depth` threads. `why` says why it is not io_uring.
pub(crate) fn pread(files: Files, depth: usize, why: &str) -> Result<Pool<Pread>, OpenError> {
    let description = format!("pread, {}, {} threads ({why})", files.describe(), depth.max(1));
    Pool::new(Pread(files), depth, 0, description)
}

/// [`Cached`] in a pool.
pub(crate) fn cached(inputs: Vec<Input>, threads: usize, direct: bool) -> Result<Pool<Cached>, OpenError> {
    let files = Files::open(inputs, direct)?;
    let description = format!("page cache first, then pread, {}, {} threads", files.describe(), threads.max(1));
    Ok(Pool::new(Cached(files), threads, threads, description)?.divided(PART))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that are their offsets, but for those of one part.
    struct Odd {
        offset: u64,
        result: fn(usize) -> Result<Landed, SourceError>,
    }

    impl Reader for Odd {
        fn check(&self, _: &Piece, _: &HostBuf) -> Result<(), SourceError> {
            Ok(())
        }

        fn read(&self, part: &Piece, dst: &mut HostBuf, _: &mut Bounce) -> Result<Landed, SourceError> {
            // The parts end in no particular order.
            thread::sleep(Duration::from_micros(part.offset * 7 % 50));
            let bytes = dst.bytes();
            assert_eq!(bytes.len(), part.len);
            (0..).zip(bytes).for_each(|(i, byte)| *byte = (part.offset + i) as u8);
            match part.offset == self.offset {
                true => (self.result)(part.len),
                false => Ok(Landed { begin: 0, len: part.len }),
            }
        }

        fn block(&self) -> usize {
            1
        }

        fn name(&self, file: usize) -> String {
            file.to_string()
        }
    }

    #[test]
    fn the_parts_of_a_read_end_together() {
        let whole = |len| Ok(Landed { begin: 0, len });
        // Of 100 bytes from 5 on, in parts of 16: what becomes of one part, and what of the read.
        type Part = fn(usize) -> Result<Landed, SourceError>;
        let cases: [(u64, Part, Result<usize, ()>); 5] = [
            (5, whole, Ok(100)),
            (5, |_| Ok(Landed { begin: 0, len: 3 }), Ok(3)),
            (37, |_| Ok(Landed { begin: 0, len: 0 }), Ok(32)),
            (101, |_| Ok(Landed { begin: 0, len: 1 }), Ok(97)),
            (53, |_| Err(SourceError::Changed), Err(())),
        ];
        for (offset, result, expected) in cases {
            let mut pool = Pool::new(Odd { offset, result }, 3, 3, "odd".into()).unwrap().divided(16);
            assert_eq!(pool.depth(), 6);
            let buffer = HostBuf::allocate(100, 1);
            let mut done = Vec::new();
            for id in 0..20 {
                pool.submit(id, &Piece { file: 0, offset: 5, len: 100 }, Dst::Host(buffer.share())).unwrap();
                while done.is_empty() {
                    pool.wait(Duration::from_secs(1), &mut done).unwrap();
                }
                let Completion { id: ended, result } = done.pop().unwrap();
                assert_eq!((ended, done.len()), (id, 0));
                match result {
                    Ok(landed) => assert_eq!((landed.begin, Ok(landed.len)), (0, expected), "{offset}"),
                    Err(error) => assert!(matches!(error, SourceError::Changed) && expected.is_err(), "{error}"),
                }
            }
            assert!((5u8..).zip(crate::tests::content(&buffer)).all(|(right, byte)| byte == right));
        }
    }
}
