//! How fast a file is read from its disk.

use std::{
    fs::OpenOptions,
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use rustix::fs::OFlags;

/// A read's bytes, and how many are in flight: what a disk needs to run at full speed.
const READ: u64 = 1 << 20;
const DEPTH: usize = 8;
/// What direct reads have to be a multiple of, in memory and in the file.
const ALIGN: usize = 4096;
/// How long is measured.
const TIME: Duration = Duration::from_millis(40);

/// Bytes a second, past the page cache (O_DIRECT).
///
/// # Errors
/// A file that cannot be read that way: some file systems cannot; one shorter than a read.
pub fn disk_rate(path: &Path) -> io::Result<f64> {
    let file = OpenOptions::new().read(true).custom_flags(OFlags::DIRECT.bits() as i32).open(path)?;
    let reads = file.metadata()?.len() / READ;
    if reads == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let (next, done) = (AtomicU64::new(0), AtomicU64::new(0));
    let started = Instant::now();
    let work = || -> io::Result<()> {
        let mut memory = vec![0u8; READ as usize + ALIGN];
        let start = memory.as_ptr().align_offset(ALIGN);
        let buffer = &mut memory[start..start + READ as usize];
        while started.elapsed() < TIME {
            let at = next.fetch_add(1, Ordering::Relaxed) % reads * READ;
            file.read_exact_at(buffer, at)?;
            done.fetch_add(READ, Ordering::Relaxed);
        }
        Ok(())
    };
    thread::scope(|scope| {
        let spawn = |_| thread::Builder::new().spawn_scoped(scope, work);
        let threads = (0..DEPTH).map(spawn).collect::<io::Result<Vec<_>>>()?;
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|e| std::panic::resume_unwind(e)))
    })?;
    Ok(done.into_inner() as f64 / started.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_of_files() {
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR").to_owned() + "/../target").unwrap();
        let path = folder.path().join("data");
        std::fs::write(&path, vec![7u8; 3 << 20]).unwrap();
        match disk_rate(&path) {
            Ok(rate) => assert!(rate > 1e6, "{rate} bytes a second"),
            Err(e) => assert_eq!(
                e.kind(),
                io::ErrorKind::InvalidInput,
                "{e}: only a file system without direct reads refuses"
            ),
        }
        std::fs::write(&path, [7u8; 100]).unwrap();
        assert!(disk_rate(&path).is_err());
        assert!(disk_rate(&folder.path().join("none")).is_err());
    }
}
