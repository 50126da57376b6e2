//! Finding a device's buffer behind a window, whatever the window does with it.

use nvme::{BusMemory, Door, Error, PEER_PAGE, Run, Unproven, Window, prove};
use rand::{Rng, SeedableRng, rngs::SmallRng, seq::SliceRandom};
use std::{
    any::Any,
    collections::HashMap,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

const BUDGET: Duration = Duration::from_secs(20);

/// Where the pages of a window lead.
struct Fake {
    bytes: u64,
    /// By its number, each page's number in the device's buffer.
    pages: Mutex<HashMap<u64, usize>>,
    /// What is behind some of the others.
    other: Mutex<HashMap<u64, Vec<u8>>>,
    buffer: Mutex<Vec<u8>>,
    reads: AtomicU64,
}

impl Window for Fake {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read64(&self, at: u64) -> u64 {
        assert!(at.is_multiple_of(8) && at < self.bytes, "{at:#x} is read");
        self.reads.fetch_add(1, Ordering::Relaxed);
        let (page, inside) = (at / PEER_PAGE as u64, at as usize % PEER_PAGE);
        let word = |bytes: &[u8]| u64::from_le_bytes(bytes[inside..inside + 8].try_into().unwrap());
        if let Some(&page) = self.pages.lock().unwrap().get(&page) {
            return word(&self.buffer.lock().unwrap()[page * PEER_PAGE..][..PEER_PAGE]);
        }
        self.other.lock().unwrap().get(&page).map_or(0, |bytes| word(bytes))
    }

    unsafe fn map(&self, _: &dyn Door, _: u64, _: usize, _: Box<dyn Any + Send + Sync>) -> Result<BusMemory, Error> {
        unreachable!("nothing is mapped to find out where it is")
    }
}

impl Fake {
    /// A window of `bytes` bytes that leads to the buffer's pages in their order at `places`, page numbers of the window.
    fn new(bytes: u64, places: impl IntoIterator<Item = u64>) -> Fake {
        let pages: HashMap<u64, usize> = places.into_iter().zip(0..).collect();
        let buffer = Mutex::new(vec![0xa5; pages.len() * PEER_PAGE]);
        Fake { bytes, pages: pages.into(), other: Mutex::default(), buffer, reads: AtomicU64::new(0) }
    }

    fn len(&self) -> usize {
        self.buffer.lock().unwrap().len()
    }

    /// Looks for the buffer; `before` is told of each portion that is about to be written.
    fn prove_with(&self, mut before: impl FnMut(usize)) -> Result<Vec<Run>, Unproven> {
        let mut write = |at: usize, bytes: &[u8]| {
            before(at);
            self.buffer.lock().unwrap()[at..at + bytes.len()].copy_from_slice(bytes);
            Ok(())
        };
        prove(self, self.len(), &mut write, BUDGET)
    }

    fn prove(&self) -> Result<Vec<Run>, Unproven> {
        self.prove_with(|_| ())
    }

    /// The runs that there are in truth.
    fn truth(&self) -> Vec<Run> {
        let mut pages: Vec<_> = self.pages.lock().unwrap().iter().map(|(&at, &page)| (page, at)).collect();
        pages.sort_unstable();
        let mut runs = Vec::<Run>::new();
        for (page, at) in pages {
            let (offset, at) = (page * PEER_PAGE, at * PEER_PAGE as u64);
            match runs.last_mut() {
                Some(run) if run.at + run.len as u64 == at => run.len += PEER_PAGE,
                _ => runs.push(Run { offset, at, len: PEER_PAGE }),
            }
        }
        runs
    }
}

/// Pages of 4 KiB in 2 MiB, and in 64 KiB.
const HUGE: u64 = 512;
const BIG: u64 = 16;

#[test]
fn a_buffer_in_one_piece_is_found_in_few_reads() {
    let window = Fake::new(256 << 30, 1000 * HUGE..1000 * HUGE + 3 * HUGE + 5);
    assert_eq!(window.prove().unwrap(), [Run { offset: 0, at: 1000 << 21, len: (3 << 21) + 5 * PEER_PAGE }]);
    // A word for each 2 MiB of the window, and twice three lines of eight words for each page.
    let (steps, pages) = ((256 << 30) >> 21, 3 * HUGE + 5);
    let reads = window.reads.load(Ordering::Relaxed);
    // And a million words for pages that are there twice.
    assert!(reads < steps + 2 * 24 * (pages + 4) + (1 << 20) + 100, "{reads} reads");
}

#[test]
fn pages_are_found_wherever_they_are() {
    let mut rng = SmallRng::seed_from_u64(1);
    for round in 0..40 {
        // Runs of so many pages, at multiples of so many.
        let grain = [HUGE, BIG, 1, 3][round % 4];
        let count = rng.random_range(1..9);
        let mut slots: Vec<u64> = (0..(4 * HUGE) / grain).collect();
        slots.shuffle(&mut rng);
        let runs = slots[..count.min(slots.len())].iter();
        let mut places: Vec<u64> = runs.flat_map(|&slot| slot * grain..(slot + 1) * grain).collect();
        // The buffer begins and ends within its first and last run.
        let cut = rng.random_range(0..grain.min(places.len() as u64)) as usize;
        places.drain(..cut);
        places.truncate(rng.random_range(1..=places.len()));
        let window = Fake::new(4 * HUGE * PEER_PAGE as u64, places);
        assert_eq!(window.prove().as_ref(), Ok(&window.truth()), "round {round}");
    }
    let downwards = Fake::new(64 << 20, (100..140).rev());
    assert_eq!(downwards.prove().unwrap().len(), 40);
}

#[test]
fn a_page_that_is_not_there_is_missed() {
    for (absent, first) in [(0, 0), (7, 7), (HUGE + 1, HUGE + 1), (2 * HUGE - 1, 2 * HUGE - 1)] {
        let window = Fake::new(16 << 20, 0..2 * HUGE);
        window.pages.lock().unwrap().remove(&absent);
        let missing =
            Unproven::Missing { missing: 1, pages: 2 * HUGE as usize, first: first as usize, window: 16 << 20 };
        assert_eq!(window.prove(), Err(missing));
    }
    // A window onto something else.
    let window = Fake::new(16 << 20, 0..HUGE);
    window.pages.lock().unwrap().clear();
    let error = window.prove().unwrap_err().to_string();
    assert_eq!(error, "512 of 512 pages are nowhere in its 16777216 bytes (the first is page 0)");
}

#[test]
fn a_page_that_is_there_twice_is_refused() {
    for (page, again) in [(0, 3 * HUGE), (HUGE as usize, 3 * HUGE), (0, HUGE)] {
        let window = Fake::new(16 << 20, 0..HUGE + 3);
        window.pages.lock().unwrap().insert(again, page);
        let result = window.prove();
        // Where it stands in another page's place, that one is missing, too.
        let twice = matches!(result, Err(Unproven::Twice { page: found, .. }) if found == page);
        assert!(twice, "{page} at {again}: {result:?}");
    }
    // Whatever the page, if the window is not too large to look at all of it.
    for (bytes, seen) in [(16 << 20, true), (4 << 30, true), (8 << 30, false)] {
        let window = Fake::new(bytes, 3..40);
        window.pages.lock().unwrap().insert(77, 5);
        assert_eq!(matches!(window.prove(), Err(Unproven::Twice { page: 5, .. })), seen, "{bytes}");
    }
}

#[test]
fn a_window_that_moves_is_refused() {
    const PAGES: u64 = 2 * HUGE;
    for (page, becomes) in [(0, Some(1)), (700, Some(0)), (PAGES as usize - 1, None)] {
        let window = Fake::new(32 << 20, HUGE..HUGE + PAGES);
        let mut writes = 0;
        let result = window.prove_with(|at| {
            writes += usize::from(at == 0);
            // From the second pattern on.
            if writes == 2 {
                let mut pages = window.pages.lock().unwrap();
                let place = HUGE + page as u64;
                match becomes {
                    Some(other) => pages.insert(place, other),
                    None => pages.remove(&place),
                };
            }
        });
        assert_eq!(result, Err(Unproven::Moved { page, at: (HUGE + page as u64) * PEER_PAGE as u64 }));
    }
}

#[test]
fn a_page_that_only_looks_like_it_is_none() {
    // What another attempt left behind elsewhere, and copies of single lines of this one.
    let window = Fake::new(32 << 20, HUGE..2 * HUGE);
    window.prove().unwrap();
    for page in 0..HUGE as usize {
        let stale = window.buffer.lock().unwrap()[page * PEER_PAGE..][..PEER_PAGE].to_vec();
        window.other.lock().unwrap().insert(4 * HUGE + page as u64, stale);
    }
    assert_eq!(window.prove().unwrap(), window.truth());

    for line in [0..64, PEER_PAGE - 64..PEER_PAGE, 64..PEER_PAGE - 64] {
        let window = Fake::new(32 << 20, HUGE..2 * HUGE);
        let missing = window.prove_with(|_| ());
        assert_eq!(missing.unwrap(), window.truth());
        // The begin of the buffer is elsewhere, and one of its lines is not what it should be.
        let lines = line.clone();
        let window = Fake::new(32 << 20, HUGE..2 * HUGE);
        window.pages.lock().unwrap().remove(&HUGE);
        let broken = Broken { window: &window, at: HUGE * PEER_PAGE as u64, lines };
        let mut write = |at: usize, bytes: &[u8]| {
            window.buffer.lock().unwrap()[at..at + bytes.len()].copy_from_slice(bytes);
            Ok(())
        };
        let result = prove(&broken, window.len(), &mut write, BUDGET);
        assert!(matches!(result, Err(Unproven::Missing { missing: 1, first: 0, .. })), "{line:?}: {result:?}");
    }
}

/// Page 0 is at `at`, but for some of its bytes.
struct Broken<'a> {
    window: &'a Fake,
    at: u64,
    lines: std::ops::Range<usize>,
}

impl Window for Broken<'_> {
    fn bytes(&self) -> u64 {
        self.window.bytes
    }

    fn read64(&self, at: u64) -> u64 {
        match at.checked_sub(self.at) {
            Some(inside) if inside < PEER_PAGE as u64 && !self.lines.contains(&(inside as usize)) => {
                let inside = inside as usize;
                u64::from_le_bytes(self.window.buffer.lock().unwrap()[inside..inside + 8].try_into().unwrap())
            }
            _ => self.window.read64(at),
        }
    }

    unsafe fn map(&self, _: &dyn Door, _: u64, _: usize, _: Box<dyn Any + Send + Sync>) -> Result<BusMemory, Error> {
        unreachable!("nothing is mapped to find out where it is")
    }
}

#[test]
fn looking_ends_in_time() {
    // 2^34 words at the last step.
    let window = Fake::new(1 << 46, [5]);
    let begin = Instant::now();
    let mut write = |_: usize, _: &[u8]| Ok(());
    let result = prove(&window, PEER_PAGE, &mut write, Duration::from_millis(50));
    assert_eq!(result, Err(Unproven::Late { window: 1 << 46, budget: Duration::from_millis(50) }));
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
}

#[test]
fn what_makes_no_sense_is_refused() {
    let window = Fake::new(1 << 20, 0..4);
    let mut fails = |_: usize, _: &[u8]| Err("it is gone".to_owned());
    let result = prove(&window, window.len(), &mut fails, BUDGET);
    assert_eq!(result, Err(Unproven::Write("it is gone".into())));
    for bytes in [0, 100] {
        assert_eq!(prove(&window, bytes, &mut fails, BUDGET), Err(Unproven::NoPages { bytes: bytes as u64 }));
        assert_eq!(
            prove(&Fake::new(bytes as u64, []), PEER_PAGE, &mut fails, BUDGET),
            Err(Unproven::NoPages { bytes: bytes as u64 })
        );
    }
}
