//! Matrices that are not in page-locked memory: their pieces are read ahead of their use, into page-locked buffers and copied from
//! there, or straight to where they belong by a source that writes the device's memory by itself.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use readahead::{BufferId, HostBuf, Options, Piece, Place, ReadAhead, ReadError, Source, Span};

use super::lent::Lent;
use crate::device::{DeviceError, Transfer};

/// Buffers through which what every pass reads goes: some are read into, others on their way to the device.
const BUFFERS: usize = 16;
/// The longest and the shortest read. Drives want 1 to 4 MiB.
const PIECE: (usize, usize) = (1 << 20, 4 << 20);

/// Buffers through which weights are loaded that stay on the device.
pub(super) struct Loading {
    /// Bytes of the longest read.
    pub piece: usize,
    buffers: usize,
}

/// Copies of 4 MiB run at nearly the link's full speed, and cost the host little. All threads read the parts of a few pieces while others are copied:
/// 8B from the page cache comes at 83 % of the link's speed with these, 71 % with 6 of 8 MiB, 75 % with 40 of 1 MiB (docs/streaming.md).
pub(super) const LOADING: Loading = Loading { piece: 4 << 20, buffers: 16 };

impl Loading {
    pub const fn bytes(&self) -> u64 {
        (self.piece * self.buffers) as u64
    }
}

/// The thread that reads, and what it reads into.
pub(super) struct Staging<D: Transfer> {
    // Dropped first: behind it, nothing is written by reads any more.
    ahead: ReadAhead,
    memory: Memory<D>,
    /// Ends a wait for data.
    cancel: Arc<AtomicBool>,
}

enum Memory<D: Transfer> {
    /// Page-locked buffers, each with the first of its bytes that is lent.
    Buffers {
        buffers: Lent<(D::Pinned, usize)>,
        /// Buffers that are being copied to the device, in the order of the copies, with the end of each.
        busy: VecDeque<(BufferId, D::Event)>,
        bytes: u64,
    },
    /// Places in the device's memory, which stays as long as a read may write it.
    Places { _device: Lent<D::Buf> },
}

/// Pieces are whole numbers of this, but for a matrix's first and last one, so that no two pieces share a block of a drive.
const WHOLE: usize = 64 << 10;

/// The longest piece where the buffers together have `bytes` bytes.
pub(super) fn piece_bytes(bytes: u64) -> usize {
    (bytes as usize / BUFFERS).clamp(PIECE.0, PIECE.1) / WHOLE * WHOLE
}

impl<D: Transfer> Staging<D> {
    /// Begins to read `pieces`, a cycle, into buffers of `bytes` bytes together, or a little more; where there is no RAM for so many,
    /// into one at least. No more than `bytes` where the pieces are read once, by a source that reads any bytes.
    ///
    /// # Errors
    /// The device's, and those of starting to read.
    pub fn start(
        dev: &D,
        source: Box<dyn Source>,
        pieces: Vec<Piece>,
        bytes: u64,
        options: Options,
        cancel: Arc<AtomicBool>,
    ) -> Result<Self, DeviceError> {
        let longest = pieces.iter().map(|piece| piece.len).max().unwrap_or(0);
        // Direct reads want whole blocks of memory, too.
        let (room, block) = (source.room(longest), source.block());
        // What flows needs one to be read into while another is copied.
        let (least, most) = if options.once { (1, LOADING.buffers) } else { (2, BUFFERS) };
        let mut count = (bytes as usize / longest.max(1)).clamp(least, most);
        let buffers = loop {
            match dev.pinned_parts("the buffers for reads", room + block - 1, count) {
                Err(e) if e.is_out_of_memory() && count > 1 => count /= 2,
                answer => break answer?,
            }
        };
        let with_start = |buffer: D::Pinned| {
            let start = buffer.as_ref().as_ptr().align_offset(block);
            (buffer, start)
        };
        let buffers: Vec<_> = buffers.into_iter().map(with_start).collect();
        let bytes = buffers.iter().map(|(buffer, _)| buffer.as_ref().len() as u64).sum();
        let mut buffers = Lent::new(buffers);
        let lent = (0..buffers.len()).flat_map(|index| {
            let start = buffers[index].1;
            // SAFETY: page-locked memory does not move. The bytes are read by copies only, between `take` and `give_back`.
            let lent =
                unsafe { buffers.lend(index, |(buffer, _)| buffer.as_mut(), std::iter::once(start..start + room)) };
            // SAFETY: the device says so.
            let page_locked = |lent: HostBuf| if dev.locks_pages() { unsafe { lent.page_locked() } } else { lent };
            lent.into_iter().map(page_locked)
        });
        let lent = lent.collect();
        let ahead = ReadAhead::start(source, pieces, lent, options)?;
        Ok(Staging { ahead, memory: Memory::Buffers { buffers, busy: VecDeque::new(), bytes }, cancel })
    }

    /// Begins to read `pieces`, a cycle, into their places in `device`, which `source` has been prepared for: each when it is
    /// [permitted](Self::permit).
    ///
    /// # Safety
    /// As for [`ReadAhead::start_in_place`], but that the memory stays: places may be used by others until a piece is permitted, and from
    /// when it has [arrived](Self::arrived) on.
    ///
    /// # Errors
    /// Those of starting to read.
    pub unsafe fn in_place(
        device: Lent<D::Buf>,
        source: Box<dyn Source>,
        pieces: Vec<Piece>,
        places: Vec<Place>,
        options: Options,
        cancel: Arc<AtomicBool>,
    ) -> Result<Self, DeviceError> {
        // SAFETY: the caller's promise; the memory is kept as long as there is a share of the owner.
        let ahead = unsafe { ReadAhead::start_in_place(source, pieces, places, device.share(), options)? };
        Ok(Staging { ahead, memory: Memory::Places { _device: device }, cancel })
    }

    /// Whether pieces are read straight to where they belong.
    pub fn is_in_place(&self) -> bool {
        matches!(self.memory, Memory::Places { .. })
    }

    /// Page-locked memory.
    pub fn bytes(&self) -> u64 {
        match self.memory {
            Memory::Buffers { bytes, .. } => bytes,
            Memory::Places { .. } => 0,
        }
    }

    /// One line: how it is read.
    pub fn describe(&self) -> &str {
        self.ahead.describe()
    }

    /// Lets one more piece be read into its place: the first, or the one that was sought, or the one behind the last that was permitted.
    pub fn permit(&self) {
        self.ahead.permit();
    }

    /// Whether `piece` is in its place; waits for that for `patience` at most.
    ///
    /// # Errors
    /// Those of reading.
    pub fn arrived(&self, piece: usize, patience: Duration) -> Result<bool, DeviceError> {
        Ok(self.ahead.take_within(&self.cancel, piece, patience)?.is_some())
    }

    /// Starts to copy `piece` to `ring[offset..]` once `after` has passed, and returns the copy's end. None where the piece has not been
    /// read yet, unless `wait`.
    ///
    /// # Errors
    /// The device's, and those of reading.
    pub fn upload(
        &mut self,
        dev: &D,
        piece: usize,
        wait: bool,
        ring: &D::Buf,
        offset: usize,
        after: Option<&D::Event>,
    ) -> Result<Option<D::Event>, DeviceError> {
        let Self { ahead, memory: Memory::Buffers { buffers, busy, .. }, cancel } = self else {
            unreachable!("what is read into its place is not copied")
        };
        let give_back = |busy: &mut VecDeque<(BufferId, D::Event)>| {
            if let Some((buffer, _)) = busy.pop_front() {
                ahead.give_back(buffer);
            }
        };
        while let Some((_, end)) = busy.front() {
            if !dev.reached(end)? {
                break;
            }
            give_back(busy);
        }
        let filled = loop {
            match if wait { ahead.take_unless(cancel, piece).map(Some) } else { ahead.try_take(piece) } {
                Ok(Some(filled)) => break filled,
                Ok(None) => return Ok(None),
                Err(ReadError::AllTaken { .. }) if !busy.is_empty() => {
                    dev.host_waits(&busy[0].1)?;
                    give_back(busy);
                }
                Err(e) => return Err(e.into()),
            }
        };
        let (buffer, start) = &buffers[filled.buffer.index()];
        let range = start + filled.begin..start + filled.begin + filled.len;
        let result = dev.upload(buffer, range, ring, offset, after);
        // A copy that failed may have begun; the next point of the queue is behind it.
        let end = match &result {
            Ok(end) => end.clone(),
            Err(_) => dev.mark_copies()?,
        };
        busy.push_back((filled.buffer, end));
        result.map(Some)
    }

    /// The next piece to be asked for is `piece`, whatever came before. Where pieces have places, behind this nothing is written there
    /// that was begun before.
    ///
    /// # Errors
    /// A read that may still write does not come back.
    pub fn seek(&mut self, piece: usize) -> Result<(), DeviceError> {
        self.ahead.seek(piece);
        if self.is_in_place() {
            self.ahead.drained(&self.cancel)?;
        }
        Ok(())
    }

    /// The reads that have ended since this was last asked.
    pub fn reads(&self, f: &mut dyn FnMut(Span)) {
        self.ahead.spans(f);
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use readahead::{
        Dst, HostBuf, Memory, MemoryRange,
        testing::{Fault, Faulty},
    };

    use super::*;
    use crate::device::cpu::{CpuBuf, CpuDevice};

    const PIECES: usize = 64;
    const LEN: usize = 1000;
    const THREADS: usize = 8;

    /// Eight reads at once, of which each takes 40 ms and every eighth 160: beside other tests, a thread may wait for its turn for many
    /// milliseconds.
    fn source(bytes: &Arc<Vec<u8>>) -> Box<dyn Source> {
        let range = MemoryRange { name: "memory".into(), bytes: bytes.clone() };
        let memory = Memory::new(vec![range], THREADS).unwrap();
        let late = |nth| Fault::Late(Duration::from_millis(if nth % 8 == 3 { 160 } else { 40 }));
        Box::new(Faulty::new(memory, move |nth, _| Some(late(nth))))
    }

    /// How long it takes to load all of `bytes`, which are right then.
    fn loaded(bytes: &Arc<Vec<u8>>, pieces: &[Piece]) -> Duration {
        let dev = CpuDevice::new();
        let buf = dev.alloc("test", bytes.len()).unwrap();
        let begin = Instant::now();
        let options = Options { once: true, ..Options::default() };
        let mut staging =
            Staging::start(&dev, source(bytes), pieces.to_vec(), LOADING.bytes(), options, Arc::default()).unwrap();
        let mut end = None;
        for piece in 0..PIECES {
            end = staging.upload(&dev, piece, true, &buf, piece * LEN, None).unwrap();
        }
        dev.host_waits(&end.unwrap()).unwrap();
        let took = begin.elapsed();
        let CpuBuf::Owned(memory) = &buf else { panic!("memory of its own") };
        assert!(memory.read("test", 0..bytes.len()).unwrap()[..] == bytes[..]);
        took
    }

    /// Reads that take longer hold up nobody but who needs them, so that all of it takes as long as the reads' sum divided by as many as
    /// are made at once. If eight were waited for together, as long as the longest of each eight.
    #[test]
    fn loading_does_not_wait_for_stragglers() {
        let bytes: Arc<Vec<u8>> = Arc::new((0..PIECES * LEN).map(|i| (i / LEN * 7 + i) as u8).collect());
        let pieces: Vec<_> = Piece::cut(0, 0, (PIECES * LEN) as u64, LEN).collect();
        // What else the machine does makes it slower, and never faster.
        let pipeline = (0..3).map(|_| loaded(&bytes, &pieces)).min().unwrap();

        let mut source = source(&bytes);
        let begin = Instant::now();
        for (number, eight) in pieces.chunks(THREADS).enumerate() {
            for (index, piece) in eight.iter().enumerate() {
                let id = (number * THREADS + index) as u64;
                source.submit(id, piece, Dst::Host(HostBuf::allocate(LEN, 1))).unwrap();
            }
            let mut done = Vec::new();
            while done.len() < THREADS {
                source.wait(Duration::from_secs(1), &mut done).unwrap();
            }
        }
        let barriers = begin.elapsed();
        println!("{pipeline:?}, with barriers {barriers:?}");
        assert!(barriers > pipeline.mul_f64(1.25), "{pipeline:?}, with barriers {barriers:?}");
    }
}
