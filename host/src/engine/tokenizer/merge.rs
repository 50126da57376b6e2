//! The merging of adjacent symbols that both models share: byte-pair encoding.

use std::{cmp::Reverse, collections::BinaryHeap, ops::Range};

/// A piece of the text, and its token if there is one.
#[derive(Clone, Debug)]
pub(super) struct Symbol {
    pub(super) text: Range<usize>,
    pub(super) id: Option<u32>,
}

/// What two adjacent symbols become, and how early: the lowest rank is merged first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Merge {
    pub(super) rank: u32,
    pub(super) id: u32,
}

/// Two neighbours that can be merged. The lowest rank goes first, of equal ranks the leftmost.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    rank: u32,
    left: usize,
    /// Where the right symbol's text ends: tells later whether both are still the same.
    end: usize,
    id: u32,
}

/// Merges symbols; keeps its memory from one word to the next.
#[derive(Debug, Default)]
pub(super) struct Merger {
    symbols: Vec<Symbol>,
    /// Positions of each symbol's neighbours. One that was merged into its left neighbour has an empty text.
    next: Vec<usize>,
    prev: Vec<Option<usize>>,
    queue: BinaryHeap<Reverse<Candidate>>,
}

impl Merger {
    /// Merges adjacent `symbols`, which cover the text without gaps, until `find` knows no pair any more; the result
    /// covers it too. Takes O(n log n) steps for n symbols.
    pub(super) fn merge(
        &mut self,
        symbols: impl Iterator<Item = Symbol>,
        find: impl Fn(&Symbol, &Symbol) -> Option<Merge>,
    ) -> impl Iterator<Item = &Symbol> {
        let Self { symbols: list, next, prev, queue } = self;
        list.clear();
        list.extend(symbols);
        let end = list.len();
        next.clear();
        next.extend(1..=end);
        prev.clear();
        prev.extend((0..end).map(|i| i.checked_sub(1)));

        let candidate = |list: &[Symbol], left: usize, right: usize| {
            let Merge { rank, id } = find(&list[left], &list[right])?;
            Some(Reverse(Candidate { rank, left, end: list[right].text.end, id }))
        };
        queue.clear();
        queue.extend((1..end).filter_map(|right| candidate(list, right - 1, right)));
        while let Some(Reverse(Candidate { left, end: text_end, id, .. })) = queue.pop() {
            let right = next[left];
            let stale = list[left].text.is_empty() || right == end || list[right].text.end != text_end;
            if stale {
                continue;
            }
            list[left] = Symbol { text: list[left].text.start..text_end, id: Some(id) };
            list[right].text = text_end..text_end;
            next[left] = next[right];
            if let Some(before) = prev[left] {
                queue.extend(candidate(list, before, left));
            }
            if next[left] < end {
                prev[next[left]] = Some(left);
                queue.extend(candidate(list, left, next[left]));
            }
        }
        self.symbols.iter().filter(|symbol| !symbol.text.is_empty())
    }
}
