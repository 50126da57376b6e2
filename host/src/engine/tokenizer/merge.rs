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

/// Merges adjacent `symbols` until `find` knows no pair any more: of all pairs the one with the lowest rank first, of
/// equal ranks the leftmost. `symbols` cover the text without gaps; the result does too. O(n log n) for n symbols.
pub(super) fn merge(mut symbols: Vec<Symbol>, find: impl Fn(&Symbol, &Symbol) -> Option<Merge>) -> Vec<Symbol> {
    // Positions of a symbol's neighbours; one that was merged into its left neighbour has an empty text.
    let end = symbols.len();
    let mut next: Vec<usize> = (1..=end).collect();
    let mut prev: Vec<Option<usize>> = (0..end).map(|i| i.checked_sub(1)).collect();

    // Ordered by rank, then position. The end of the right symbol's text tells later whether it is still the same.
    let mut queue = BinaryHeap::new();
    let candidate = |symbols: &[Symbol], left: usize, right: usize| {
        let Merge { rank, id } = find(&symbols[left], &symbols[right])?;
        Some(Reverse((rank, left, right, symbols[right].text.end, id)))
    };
    queue.extend((1..end).filter_map(|right| candidate(&symbols, right - 1, right)));

    while let Some(Reverse((_, left, right, right_end, id))) = queue.pop() {
        let stale =
            symbols[left].text.is_empty() || symbols[right].text.is_empty() || symbols[right].text.end != right_end;
        if stale {
            continue;
        }
        symbols[left] = Symbol { text: symbols[left].text.start..right_end, id: Some(id) };
        symbols[right].text = right_end..right_end;
        next[left] = next[right];
        if let Some(before) = prev[left] {
            queue.extend(candidate(&symbols, before, left));
        }
        if next[left] < end {
            prev[next[left]] = Some(left);
            queue.extend(candidate(&symbols, left, next[left]));
        }
    }
    symbols.retain(|symbol| !symbol.text.is_empty());
    symbols
}
