//! Tests. [`model`] is the proof of the buffers' protocol; the others run real threads on real files.

mod ahead;
mod fill;
mod in_place;
mod model;
mod protocol;
mod sources;

use crate::{HostBuf, Input, ReadBy};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use std::{fs::File, io::Write};
use tempfile::NamedTempFile;

/// A file of random bytes beside this executable, because the folder for temporary files may be in memory, without direct I/O.
fn random_file(len: usize, seed: u64) -> (NamedTempFile, Vec<u8>) {
    let mut bytes = vec![0; len];
    SmallRng::seed_from_u64(seed).fill(&mut bytes[..]);
    let mut file = NamedTempFile::new_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap();
    file.write_all(&bytes).unwrap();
    file.as_file().sync_all().unwrap();
    (file, bytes)
}

fn input(file: &NamedTempFile) -> Input {
    Input { path: file.path().to_owned(), file: File::open(file.path()).unwrap() }
}

fn by(io_uring: bool) -> ReadBy {
    if io_uring { ReadBy::Any } else { ReadBy::Threads }
}

/// What is in a buffer that nothing is reading into.
pub(crate) fn content(buffer: &HostBuf) -> Vec<u8> {
    buffer.share().bytes().to_vec()
}
