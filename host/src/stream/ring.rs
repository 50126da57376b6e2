//! Where streamed matrices lie in the ring: device memory that they take turns in, in the order of a pass, pass after pass.
//!
//! Each matrix has one place in the ring, the same in every pass, so that each layer can be recorded once. Places follow each other;
//! a matrix that would cross the end starts at the beginning. It is copied in segments, each of which may overwrite its place
//! as soon as whoever lay there has been computed.

use std::{num::NonZeroUsize, ops::Range};

use crate::pack::TENSOR_ALIGN;

/// How large the ring is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Buffers {
    /// As large as keeps the link busy while one token is computed.
    #[default]
    Auto,
    /// So many times what the largest group streams.
    Count(NonZeroUsize),
}

/// Bytes that can be copied while a group is computed, beyond what its successor's first matrix takes. A layer of a 70B model takes
/// an H200 0.2 ms for one token, in which its link moves 11 MB.
const SLACK: u64 = 64 << 20;

/// The least ring for `groups`, the bytes of each group's streamed matrices: the largest group's, since a group is computed at once.
pub fn least(groups: &[Vec<u64>]) -> u64 {
    groups.iter().map(|units| taken(units)).max().unwrap_or(0)
}

/// The ring's size for `groups`. `Auto` takes two of the largest groups, or less where that is enough to go on copying while a
/// group is computed: matrices that cross the end leave at most one of them unused.
pub fn capacity(groups: &[Vec<u64>], buffers: Buffers) -> u64 {
    let least = least(groups);
    match buffers {
        Buffers::Count(n) => least.saturating_mul(n.get() as u64),
        Buffers::Auto => {
            let largest = groups.iter().flatten().copied().max().unwrap_or(0);
            (2 * least).min(least + place(largest) + SLACK)
        }
    }
}

fn place(bytes: u64) -> u64 {
    bytes.next_multiple_of(TENSOR_ALIGN as u64)
}

fn taken(units: &[u64]) -> u64 {
    units.iter().map(|&bytes| place(bytes)).sum()
}

/// A part of a matrix that is copied at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The group it belongs to.
    pub group: usize,
    /// Which of the group's matrices.
    pub unit: usize,
    /// Its bytes in the matrix.
    pub range: Range<u64>,
    /// Its first byte in the ring.
    pub offset: u64,
    /// How many groups before its own, in the cycle of passes, the last one is that lies in its place: from 1, the group right
    /// before, to the number of groups, which is itself a pass ago.
    pub after: usize,
}

/// The places of all matrices in a ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The first byte in the ring of each group's matrices.
    pub offsets: Vec<Vec<u64>>,
    /// In the order in which they are copied.
    pub segments: Vec<Segment>,
}

/// Beginnings and gaps that are tried, each with each: the cycle of passes should close where it leaves room to copy.
const BEGINNINGS: u64 = 32;
const GAPS: u64 = 4;

/// Lays `groups` out in a ring of `capacity` bytes: each group's matrices, by their bytes and by how many of them are copied at once.
/// Each group must have one at least. None where the ring is smaller than the [`least`].
///
/// Groups follow each other. Where the first one begins, and a small gap between groups, are chosen so that as much as possible can
/// always be copied while a group is computed: also the first group's matrices, while the last group is.
pub fn lay(groups: &[Vec<(u64, u64)>], capacity: u64) -> Option<Layout> {
    let align = |bytes: u64| bytes / TENSOR_ALIGN as u64 * TENSOR_ALIGN as u64;
    let gaps = (0..GAPS).map(|i| align(i * SLACK / 2 / GAPS));
    let ways = gaps.flat_map(|gap| (0..BEGINNINGS).map(move |i| (align(i * capacity / BEGINNINGS), gap)));
    let layouts = ways.filter_map(|(first, gap)| lay_from(groups, capacity, first, gap));
    // Of equally good ones the first, which has the smallest gap.
    let rated = layouts.map(|layout| (layout.ahead(groups.len()), layout));
    rated.reduce(|a, b| if b.0 > a.0 { b } else { a }).map(|(_, layout)| layout)
}

impl Layout {
    /// The bytes that can at least be copied while a group is computed.
    fn ahead(&self, groups: usize) -> u64 {
        let mut starts = vec![0; groups];
        for (i, segment) in self.segments.iter().enumerate().rev() {
            starts[segment.group] = i;
        }
        let bytes = |group: usize| {
            let next = starts[(group + 1) % groups];
            let following = self.segments[next..].iter().chain(&self.segments[..next]);
            let distance = |s: &Segment| (s.group + groups - group - 1) % groups + 1;
            following.take_while(|s| s.after > distance(s)).map(|s| s.range.end - s.range.start).sum()
        };
        (0..groups).map(bytes).min().unwrap_or(0)
    }
}

fn lay_from(groups: &[Vec<(u64, u64)>], capacity: u64, first: u64, gap: u64) -> Option<Layout> {
    let mut cursor = first;
    let offsets: Vec<Vec<u64>> = groups
        .iter()
        .map(|units| {
            let bytes: Vec<u64> = units.iter().map(|&(bytes, _)| bytes).collect();
            // A group that would meet its own beginning starts anew.
            let offsets = follow(&bytes, cursor, capacity).or_else(|| follow(&bytes, 0, capacity))?;
            cursor = offsets.last().zip(bytes.last()).map_or(cursor, |(last, &bytes)| last + place(bytes) + gap);
            Some(offsets)
        })
        .collect::<Option<_>>()?;

    let place = |group: usize, unit: usize| offsets[group][unit]..offsets[group][unit] + groups[group][unit].0;
    let meets = |group: usize, range: &Range<u64>| {
        (0..groups[group].len()).any(|unit| {
            let other = place(group, unit);
            other.start < range.end && range.start < other.end
        })
    };
    let mut segments = Vec::new();
    for (group, units) in groups.iter().enumerate() {
        for (unit, &(bytes, step)) in units.iter().enumerate() {
            let mut start = 0;
            while start < bytes {
                let range = start..bytes.min(start + step.max(1));
                start = range.end;
                let offset = offsets[group][unit] + range.start;
                let ring = offset..offset + (range.end - range.start);
                let before = |back: usize| (group + groups.len() - back) % groups.len();
                let after = (1..=groups.len()).find(|&back| meets(before(back), &ring)).expect("itself lies there");
                segments.push(Segment { group, unit, range, offset, after });
            }
        }
    }
    Some(Layout { offsets, segments })
}

/// Places for the matrices of one group from `start` on, none overlapping another. None where there is no room.
fn follow(units: &[u64], start: u64, capacity: u64) -> Option<Vec<u64>> {
    let (mut cursor, mut wrapped) = (start, false);
    let mut offsets = Vec::with_capacity(units.len());
    for &bytes in units {
        if !wrapped && cursor + place(bytes) > capacity {
            (cursor, wrapped) = (0, true);
        }
        let end = cursor + place(bytes);
        if end > if wrapped { start.min(capacity) } else { capacity } {
            return None;
        }
        offsets.push(cursor);
        cursor = end;
    }
    Some(offsets)
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng, rngs::SmallRng};

    use super::*;

    fn groups(rng: &mut SmallRng) -> Vec<Vec<u64>> {
        let unit = |rng: &mut SmallRng| rng.random_range(1..5000);
        let count = rng.random_range(1..8);
        (0..count).map(|_| (0..rng.random_range(1..6)).map(|_| unit(rng)).collect()).collect()
    }

    fn with_steps(groups: &[Vec<u64>], step: u64) -> Vec<Vec<(u64, u64)>> {
        groups.iter().map(|units| units.iter().map(|&bytes| (bytes, step)).collect()).collect()
    }

    /// Runs the cycle twice over a ring whose every byte knows who wrote it: each group finds its own bytes when it is computed, and a
    /// segment overwrites nothing that has not been computed, nor waits for longer than it must.
    #[test]
    fn a_ring_holds_what_is_computed_next() {
        let mut rng = SmallRng::seed_from_u64(5);
        for round in 0..2000 {
            let groups = groups(&mut rng);
            let least = least(&groups);
            let capacity = least + if round % 3 == 0 { 0 } else { rng.random_range(0..2 * least) };
            let step = rng.random_range(1..3000);
            let layout = lay(&with_steps(&groups, step), capacity).expect("the least is enough");
            let count = groups.len();
            // Who lies in each byte, as the number of its turn.
            let mut ring: Vec<Option<usize>> = vec![None; capacity as usize];
            for turn in 0..2 * count {
                let group = turn % count;
                for segment in layout.segments.iter().filter(|s| s.group == group) {
                    let len = (segment.range.end - segment.range.start) as usize;
                    assert_eq!(segment.offset, layout.offsets[group][segment.unit] + segment.range.start);
                    assert!(len as u64 <= step && segment.after >= 1 && segment.after <= count);
                    let place = &mut ring[segment.offset as usize..][..len];
                    let last = place.iter().flatten().max();
                    if turn >= count {
                        assert_eq!(last, Some(&(turn - segment.after)), "round {round}: {segment:?}");
                    }
                    assert!(last.is_none_or(|&last| last + segment.after <= turn), "round {round}: {segment:?}");
                    place.fill(Some(turn));
                }
                for (&offset, &bytes) in layout.offsets[group].iter().zip(&groups[group]) {
                    let place = &ring[offset as usize..][..bytes as usize];
                    assert!(place.iter().all(|&by| by == Some(turn)), "round {round}: group {group} is not whole");
                    assert!(offset.is_multiple_of(TENSOR_ALIGN as u64));
                }
                let copied: u64 =
                    layout.segments.iter().filter(|s| s.group == group).map(|s| s.range.end - s.range.start).sum();
                assert_eq!(copied, groups[group].iter().sum::<u64>());
            }
        }
    }

    #[test]
    fn less_than_the_least_is_refused() {
        let mut rng = SmallRng::seed_from_u64(6);
        for _ in 0..500 {
            let groups = groups(&mut rng);
            assert_eq!(lay(&with_steps(&groups, 1000), least(&groups) - 1), None);
        }
    }

    /// While a layer of Llama's shapes is computed, the last one included, the link has something to do: also where some matrices of
    /// some layers are resident.
    #[test]
    fn an_automatic_ring_leaves_room_to_copy() {
        let mut rng = SmallRng::seed_from_u64(7);
        let layer =
            |hidden: u64, kv: u64, ffn: u64| [hidden, kv, kv, hidden, ffn, ffn, ffn].map(|rows| rows * hidden * 9 / 16);
        for (count, layer) in
            [(32, layer(4096, 1024, 14336)), (80, layer(8192, 1024, 28672)), (16, layer(2048, 512, 8192))]
        {
            for resident in [0, 10, 30, 50, 70].repeat(10) {
                let mut groups: Vec<Vec<u64>> = (0..count)
                    .map(|_| layer.into_iter().filter(|_| rng.random_range(0..100) >= resident).collect())
                    .collect();
                groups.retain(|units| !units.is_empty());
                let capacity = capacity(&groups, Buffers::Auto);
                assert!(capacity >= least(&groups) && capacity <= 2 * least(&groups));
                let layout = lay(&with_steps(&groups, 16 << 20), capacity).unwrap();
                let (ahead, enough) = (layout.ahead(groups.len()), SLACK.min(layer[0]) / 2);
                assert!(ahead >= enough, "{ahead} bytes ahead of {count} layers, {resident} % resident");
            }
        }
    }
}
