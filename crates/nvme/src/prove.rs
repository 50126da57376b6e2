//! Where a buffer of another device is behind a window, proved by data, page by page.
//!
//! No interface tells where a GPU's memory is on the bus, and arithmetic from one address that is known fails wherever pages are not next
//! to each other. So the device writes a pattern into each page of the buffer, and it is looked for:
//!
//! 1. In each page there are three lines of 64 bytes, at its begin, at its end and somewhere in between, unlike those of all other pages
//!    and of all other attempts. The first word says which page it is.
//! 2. The window is looked through in steps of 2 MiB, what GPUs place memory in, a word each: that finds the begin of most runs. From
//!    there on each page is tried where its neighbour's neighbour would be, and counts as found when all three lines are there. For what is
//!    missing then, the steps are 64 KiB, and in the end 4 KiB.
//! 3. The window is looked through once more for pages that are in two places, in steps as fine as a million words allow: all pages of a
//!    window of 4 GiB, each 64th of 256 GiB.
//! 4. The device writes other lines, and all pages have to have those in the same places.
//!
//! A page that is not found, one that is in two places, one that has not changed with the second pattern: in each case the answer is no.

use crate::{PEER_PAGE, Window};
use std::{
    hash::{BuildHasher, Hasher, RandomState},
    time::{Duration, Instant},
};

/// Bytes of a line, and where the words of a page's lines are.
const LINE: usize = 64;
const LINES: usize = 3;

/// Steps in which windows are looked through.
const STEPS: [usize; 3] = [2 << 20, 64 << 10, PEER_PAGE];

/// Words that are read to see whether a page is in two places: a second, with a microsecond each.
const WORDS: u64 = 1 << 20;

/// Bytes that the device is made to write at once.
const PORTION: usize = 4 << 20;

/// Reads between two looks at the clock.
const LOOK: usize = 4096;

/// A part of the buffer that is in one piece behind the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First byte, in the buffer.
    pub offset: usize,
    /// First byte, in the window.
    pub at: u64,
    /// How many bytes.
    pub len: usize,
}

/// Why it is not known where the buffer is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unproven {
    /// The buffer, or the window, is not whole pages.
    #[error("{bytes} bytes are no whole pages of {PEER_PAGE}")]
    NoPages {
        /// How many.
        bytes: u64,
    },
    /// Some pages were not found.
    #[error("{missing} of {pages} pages are nowhere in its {window} bytes (the first is page {first})")]
    Missing {
        /// How many.
        missing: usize,
        /// Of how many.
        pages: usize,
        /// The first of them.
        first: usize,
        /// The window's bytes.
        window: u64,
    },
    /// A page was found twice.
    #[error("page {page} is in two places, {at:#x} and {and:#x}, and nobody knows which of them stays")]
    Twice {
        /// Which.
        page: usize,
        /// Where.
        at: u64,
        /// Where else.
        and: u64,
    },
    /// A page is not where it was any more.
    #[error("page {page} was at {at:#x}, and something else is there now: the window moves")]
    Moved {
        /// Which.
        page: usize,
        /// Where it was.
        at: u64,
    },
    /// It took too long.
    #[error("looking through its {window} bytes takes longer than {budget:?}")]
    Late {
        /// The window's bytes.
        window: u64,
        /// How long it may take.
        budget: Duration,
    },
    /// The device did not write the pattern.
    #[error("the device cannot write what is looked for: {0}")]
    Write(String),
}

/// Writes bytes to the buffer, from a byte of it on: they are there on return.
pub type Write<'a> = &'a mut dyn FnMut(usize, &[u8]) -> Result<(), String>;

/// Where a buffer of `len` bytes, whole pages, is behind `window`. What it holds is overwritten. It takes `budget` at most, and some
/// microseconds for each page.
///
/// # Errors
/// Why that is not known for certain.
pub fn prove(window: &dyn Window, len: usize, write: Write<'_>, budget: Duration) -> Result<Vec<Run>, Unproven> {
    for bytes in [len as u64, window.bytes()] {
        if bytes == 0 || !bytes.is_multiple_of(PEER_PAGE as u64) {
            return Err(Unproven::NoPages { bytes });
        }
    }
    let random = RandomState::new();
    let attempt = |number: u64| {
        let mut hasher = random.build_hasher();
        hasher.write_u64(number);
        Pattern { attempt: hasher.finish() }
    };
    let mut search = Search {
        window,
        pattern: attempt(1),
        places: vec![None; len / PEER_PAGE],
        until: Instant::now() + budget,
        budget,
    };
    search.pattern.write(search.places.len(), write)?;
    search.find()?;
    search.pattern = attempt(2);
    search.pattern.write(search.places.len(), write)?;
    for (page, at) in search.places.iter().enumerate() {
        let at = at.expect("all were found");
        if !search.is_at(page, at) {
            return Err(Unproven::Moved { page, at });
        }
    }
    Ok(search.runs())
}

/// What one attempt writes.
#[derive(Clone, Copy)]
struct Pattern {
    attempt: u64,
}

/// Mixes bits (the finaliser of splitmix64).
fn mix(mut bits: u64) -> u64 {
    for (shift, factor) in [(30, 0xbf58_476d_1ce4_e5b9), (27, 0x94d0_49bb_1331_11eb)] {
        bits = (bits ^ bits >> shift).wrapping_mul(factor);
    }
    bits ^ bits >> 31
}

impl Pattern {
    /// Where the lines of a page begin.
    fn lines(self, page: usize) -> [usize; LINES] {
        let between = (PEER_PAGE / LINE - 2) as u64;
        [0, LINE * (1 + (mix(self.attempt ^ !(page as u64)) % between) as usize), PEER_PAGE - LINE]
    }

    /// The words of a page's lines.
    fn words(self, page: usize) -> impl Iterator<Item = (usize, u64)> {
        let word = move |line: usize, index: usize| match (line, index) {
            (0, 0) => self.attempt ^ page as u64,
            _ => mix(mix(self.attempt ^ mix(page as u64)).wrapping_add((line * LINE + index) as u64)),
        };
        let lines = self.lines(page).into_iter().enumerate();
        lines.flat_map(move |(line, at)| (0..LINE / 8).map(move |index| (at + 8 * index, word(line, index))))
    }

    /// The page whose first word this is.
    fn page(self, word: u64, pages: usize) -> Option<usize> {
        usize::try_from(word ^ self.attempt).ok().filter(|&page| page < pages)
    }

    fn write(self, pages: usize, write: Write<'_>) -> Result<(), Unproven> {
        let each = PORTION / PEER_PAGE;
        let mut bytes = vec![0; PORTION.min(pages * PEER_PAGE)];
        for first in (0..pages).step_by(each) {
            let count = each.min(pages - first);
            let bytes = &mut bytes[..count * PEER_PAGE];
            for (page, bytes) in (first..).zip(bytes.chunks_exact_mut(PEER_PAGE)) {
                bytes.fill(0);
                for (at, word) in self.words(page) {
                    bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
                }
            }
            write(first * PEER_PAGE, bytes).map_err(Unproven::Write)?;
        }
        Ok(())
    }
}

struct Search<'a> {
    window: &'a dyn Window,
    pattern: Pattern,
    /// Where each page is.
    places: Vec<Option<u64>>,
    until: Instant,
    budget: Duration,
}

impl Search<'_> {
    fn find(&mut self) -> Result<(), Unproven> {
        for step in STEPS {
            self.look(step as u64)?;
            self.follow();
            if self.places.iter().all(Option::is_some) {
                let fine = self.window.bytes().div_ceil(WORDS).next_power_of_two().max(PEER_PAGE as u64);
                return if fine < step as u64 { self.look(fine) } else { Ok(()) };
            }
        }
        let missing = self.places.iter().filter(|place| place.is_none()).count();
        let first = self.places.iter().position(Option::is_none).expect("one is missing");
        Err(Unproven::Missing { missing, pages: self.places.len(), first, window: self.window.bytes() })
    }

    /// Looks at the window in steps, a word each, for the begins of pages.
    fn look(&mut self, step: u64) -> Result<(), Unproven> {
        for (count, at) in (0..self.window.bytes()).step_by(step as usize).enumerate() {
            if count % LOOK == LOOK - 1 && Instant::now() > self.until {
                return Err(Unproven::Late { window: self.window.bytes(), budget: self.budget });
            }
            let Some(page) = self.pattern.page(self.window.read64(at), self.places.len()) else { continue };
            match self.places[page] {
                Some(other) if other != at && self.is_at(page, at) => {
                    return Err(Unproven::Twice { page, at: other, and: at });
                }
                None if self.is_at(page, at) => self.places[page] = Some(at),
                _ => {}
            }
        }
        Ok(())
    }

    /// Tries each page that was not found behind the one before it, and before the one behind it.
    fn follow(&mut self) {
        let step = PEER_PAGE as u64;
        for page in 1..self.places.len() {
            self.try_at(page, self.places[page - 1].and_then(|at| at.checked_add(step)));
        }
        for page in (1..self.places.len()).rev() {
            self.try_at(page - 1, self.places[page].and_then(|at| at.checked_sub(step)));
        }
    }

    fn try_at(&mut self, page: usize, at: Option<u64>) {
        if self.places[page].is_none() && at.is_some_and(|at| self.is_at(page, at)) {
            self.places[page] = at;
        }
    }

    /// Whether all lines of a page are there.
    fn is_at(&self, page: usize, at: u64) -> bool {
        let inside = at.checked_add(PEER_PAGE as u64).is_some_and(|end| end <= self.window.bytes());
        inside && self.pattern.words(page).all(|(offset, word)| self.window.read64(at + offset as u64) == word)
    }

    fn runs(&self) -> Vec<Run> {
        let mut runs = Vec::<Run>::new();
        for (page, at) in self.places.iter().enumerate() {
            let at = at.expect("all were found");
            match runs.last_mut() {
                Some(run) if run.at + run.len as u64 == at => run.len += PEER_PAGE,
                _ => runs.push(Run { offset: page * PEER_PAGE, at, len: PEER_PAGE }),
            }
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// No page's line is another's, nor that of another attempt, so that pages that were exchanged, or have old lines, do not pass.
    #[test]
    fn lines_are_unlike() {
        let (mut words, mut places) = (HashSet::new(), HashSet::new());
        for attempt in [1, 2, mix(3)] {
            for page in (0..1000).chain([1 << 26]) {
                let pattern = Pattern { attempt };
                for (at, word) in pattern.words(page) {
                    // The first word is the attempt and the page, which small attempts here have in common.
                    assert!(at == 0 || words.insert(word), "attempt {attempt}, page {page}, byte {at}");
                    assert!(at.is_multiple_of(8) && at + 8 <= PEER_PAGE);
                }
                let [first, between, last] = pattern.lines(page);
                assert!(first == 0 && between >= LINE && between + LINE <= last && last + LINE == PEER_PAGE);
                places.insert(between);
                assert_eq!(pattern.page(attempt ^ page as u64, page + 1), Some(page));
                assert_eq!(pattern.page(attempt ^ page as u64, page), None);
            }
        }
        assert_eq!(places.len(), PEER_PAGE / LINE - 2, "lines in between are everywhere");
    }
}
