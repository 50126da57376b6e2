//! io_uring: one thread, many reads in flight (io_uring(7), io_uring_enter(2), io_uring_register(2)).

use crate::{
    Completion, Dst, HostBuf, Piece, Source, SourceError,
    files::{Files, Progress},
};
use io_uring::{IoUring, opcode, squeue, types};
use std::{io, os::fd::AsRawFd, thread, time::Duration};

/// One read: at once or, where it comes back short, in several turns.
struct Flight {
    id: u64,
    piece: Piece,
    dst: HostBuf,
    progress: Progress,
}

/// A [`Source`] over io_uring.
pub(crate) struct Uring {
    ring: IoUring,
    files: Files,
    /// Reads in flight. A read's index is its `user_data`.
    flights: Vec<Option<Flight>>,
    /// Buffers that the kernel knows, by their index there.
    registered: Vec<HostBuf>,
    /// What became of registering, for the description.
    buffers: String,
}

impl Uring {
    /// Makes a ring. Gives the files back, and says why, where there is none to be had: containers often forbid io_uring (seccomp),
    /// administrators too (`kernel.io_uring_disabled`), and before Linux 5.11 it cannot wait with a timeout.
    pub(crate) fn new(files: Files, depth: usize) -> Result<Self, (Files, String)> {
        let depth = depth.clamp(1, 4096);
        let ring = match IoUring::new(depth as u32) {
            Ok(ring) => ring,
            Err(error) => return Err((files, format!("io_uring is refused: {error}"))),
        };
        if !ring.params().is_feature_ext_arg() {
            return Err((files, "io_uring needs Linux 5.11".to_owned()));
        }
        let flights = (0..depth).map(|_| None).collect();
        Ok(Self { ring, files, flights, registered: Vec::new(), buffers: "unregistered buffers".to_owned() })
    }

    /// Hands the rest of a read to the kernel. After an error it has not got it.
    fn start(&mut self, slot: usize) -> Result<(), SourceError> {
        let Some(Flight { piece, dst, progress, .. }) = &self.flights[slot] else { return Ok(()) };
        let file = self.files.of(piece)?;
        let from = file.direct.as_ref().unwrap_or(&file.cached);
        let fd = types::Fd(from.as_raw_fd());
        // A read of more than 4 GiB would come back short anyway (read(2)) and go on.
        let len = u32::try_from(progress.want - progress.got).unwrap_or(1 << 30);
        let to = dst.as_ptr().wrapping_add(progress.got);
        let known = self.registered.iter().position(|buffer| {
            buffer.address() <= dst.address() && dst.address() + dst.len() <= buffer.address() + buffer.len()
        });
        let read = match known {
            Some(index) => opcode::ReadFixed::new(fd, to, len, index as u16).offset(progress.offset()).build(),
            None => opcode::Read::new(fd, to, len).offset(progress.offset()).build(),
        };
        // Without O_DIRECT, what is in the page cache would be copied by the thread that submits: let the kernel's threads do it.
        let flags = if file.direct.is_some() { squeue::Flags::empty() } else { squeue::Flags::ASYNC };
        let read = read.user_data(slot as u64).flags(flags);
        // SAFETY: the flight keeps the buffer until the completion has come, also when this is dropped; the file outlives the ring,
        // which `drop` empties.
        unsafe { self.ring.submission().push(&read) }.map_err(|_| SourceError::Full { depth: self.flights.len() })?;
        // The entry is queued, whatever the answer: if the kernel is short of something it goes out with the next call, and if the ring
        // is broken `wait` says so.
        let _ = self.ring.submit();
        Ok(())
    }

    /// Takes in the kernel's answers.
    fn collect(&mut self, done: &mut Vec<Completion>) {
        let answers: Vec<(usize, i32)> =
            self.ring.completion().map(|entry| (entry.user_data() as usize, entry.result())).collect();
        for (slot, result) in answers {
            let Some(flight) = self.flights.get_mut(slot).and_then(Option::as_mut) else { continue };
            let result = match result {
                error if error < 0 => match -error {
                    libc::EINTR | libc::EAGAIN => None,
                    code => Some(Err(io::Error::from_raw_os_error(code).into())),
                },
                count => flight.progress.arrived(count as usize).map(Ok),
            };
            let (id, file) = (flight.id, flight.piece.file);
            let result = match result {
                Some(Ok(landed)) => self.files.verify(file).map(|()| landed),
                Some(Err(error)) => Err(error),
                None => match self.start(slot) {
                    Ok(()) => continue,
                    Err(error) => Err(error),
                },
            };
            self.flights[slot] = None;
            done.push(Completion { id, result });
        }
    }

    fn in_flight(&self) -> usize {
        self.flights.iter().flatten().count()
    }
}

impl Source for Uring {
    fn submit(&mut self, id: u64, piece: &Piece, dst: Dst) -> Result<(), SourceError> {
        let dst = dst.host()?;
        let progress = self.files.plan(piece, &dst)?;
        let full = SourceError::Full { depth: self.flights.len() };
        let slot = self.flights.iter().position(Option::is_none).ok_or(full)?;
        self.flights[slot] = Some(Flight { id, piece: *piece, dst, progress });
        self.start(slot).inspect_err(|_| self.flights[slot] = None)
    }

    fn wait(&mut self, timeout: Duration, done: &mut Vec<Completion>) -> Result<(), SourceError> {
        let before = done.len();
        self.collect(done);
        if done.len() > before || self.in_flight() == 0 {
            return Ok(());
        }
        let time = types::Timespec::from(timeout);
        match self.ring.submitter().submit_with_args(1, &types::SubmitArgs::new().timespec(&time)) {
            Ok(_) => {}
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY)) => {}
            Err(error) => return Err(error.into()),
        }
        self.collect(done);
        Ok(())
    }

    fn depth(&self) -> usize {
        self.flights.len()
    }

    fn block(&self) -> usize {
        self.files.block()
    }

    fn prepare(&mut self, buffers: &[HostBuf]) {
        if !self.registered.is_empty() || buffers.is_empty() || self.in_flight() > 0 {
            return;
        }
        let vectors: Vec<_> = buffers
            .iter()
            .map(|buffer| libc::iovec { iov_base: buffer.as_ptr().cast(), iov_len: buffer.len() })
            .collect();
        // SAFETY: the memory is lent as long as this source is there, and the kernel holds its pages by itself.
        self.buffers = match unsafe { self.ring.submitter().register_buffers(&vectors) } {
            Ok(()) => {
                self.registered = buffers.iter().map(HostBuf::share).collect();
                "registered buffers".to_owned()
            }
            Err(error) => {
                let bytes: usize = buffers.iter().map(HostBuf::len).sum();
                format!("unregistered buffers ({error}; {})", memlock(bytes))
            }
        };
    }

    fn name(&self, file: usize) -> String {
        self.files.name(file)
    }

    fn describe(&self) -> String {
        format!("io_uring, {}, {} reads in flight, {}", self.files.describe(), self.flights.len(), self.buffers)
    }
}

/// What limits registered buffers (io_uring_register(2): they count as locked memory).
fn memlock(bytes: usize) -> String {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
    let limit = limit.map_or_else(|| "unlimited".to_owned(), |bytes| format!("{} KiB", bytes >> 10));
    format!("{} KiB to register, ulimit -l is {limit}", bytes >> 10)
}

impl Drop for Uring {
    /// Closing a ring does not end its reads at once, and they would write into memory that is no longer lent.
    fn drop(&mut self) {
        let mut done = Vec::new();
        while self.in_flight() > 0 {
            if self.wait(Duration::from_secs(1), &mut done).is_err() {
                thread::sleep(Duration::from_millis(10));
            }
        }
    }
}
