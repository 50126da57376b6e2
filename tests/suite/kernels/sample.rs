//! The kernels that choose among logits.

use std::ops::Range;

use gpu::ops;
use ntransformer::device::cuda::driver::Driver;
use rand::{Rng, seq::SliceRandom};

use super::{Lab, Output, pointer};
use crate::reference;

/// Rows of `n` numbers that are hard to choose from, and their names.
fn rows<D: Driver>(lab: &mut Lab<D>, n: usize) -> Vec<(&'static str, Vec<f32>)> {
    let random = lab.floats(n);
    let mut ties: Vec<f32> = (0..n).map(|i| (i / 3) as f32).collect();
    ties.shuffle(&mut lab.rng);
    let with = |range: Range<usize>, value: f32| {
        let mut row = random.clone();
        row[range].fill(value);
        row
    };
    let mut mostly_nan = vec![f32::NAN; n];
    mostly_nan[n - 1] = f32::NEG_INFINITY;
    let mut one_number = vec![f32::NEG_INFINITY; n];
    one_number[n / 2] = f32::MIN;
    let few = (0..n).map(|_| [-1.0, 0.0, -0.0, 2.5][lab.rng.random_range(0..4)]).collect();
    let all_sizes = (0..n).map(|_| f32::from_bits(lab.rng.random())).collect();
    vec![
        ("first", with(0..1, 2.0)),
        ("last", with(n - 1..n, 2.0)),
        ("a run of ties", with(n / 3..n - n / 3, 2.0)),
        ("ties", ties),
        ("few different", few),
        ("equal", vec![0.5; n]),
        ("zeros of both signs", (0..n).map(|i| if i % 2 == 0 { -0.0 } else { 0.0 }).collect()),
        ("rising", (0..n).map(|i| i as f32).collect()),
        ("falling", (0..n).map(|i| -(i as f32)).collect()),
        ("any bits", all_sizes),
        ("infinite", with(n / 2..n / 2 + 1, f32::INFINITY)),
        ("minus infinity", vec![f32::NEG_INFINITY; n]),
        ("a NaN", with(n / 3..n / 3 + 1, f32::NAN)),
        ("a negative NaN", with(n / 3..n / 3 + 1, -f32::NAN)),
        ("NaN but one", mostly_nan),
        ("one number", one_number),
        ("NaN", vec![f32::NAN; n]),
        ("random", random),
    ]
}

/// All rows at once and, of those of a real size, one by itself, which many blocks share. Twice, because the second launch
/// finds what the first one left.
pub fn argmax<D: Driver>(lab: &mut Lab<D>) {
    let check = |lab: &mut Lab<D>, rows: &[(&str, Vec<f32>)], n: usize| {
        let x: Vec<f32> = rows.iter().flat_map(|(_, row)| row.clone()).collect();
        let parts = lab.poisoned::<u32>(2 * ops::argmax_parts(rows.len()));
        let (x, arrived) = (lab.input(&x), lab.output(&vec![0u32; rows.len()]));
        for launch in ["first", "second"] {
            let out = lab.poisoned::<u32>(rows.len());
            let grid = ops::argmax_grid(rows.len() as u32, n as u32);
            let args = (pointer::<D, _>(&x), out.pointer(), n as u32, parts.pointer(), arrived.pointer());
            lab.launch::<ops::argmax>(grid, args);
            for ((name, row), found) in rows.iter().zip(lab.read::<u32>(&out)) {
                assert_eq!(found, reference::argmax(row), "{name}, {n} elements, {launch} launch");
            }
            lab.read::<u32>(&parts);
            assert_eq!(lab.read::<u32>(&arrived), vec![0; rows.len()]);
        }
    };
    for n in [1, 2, 3, 31, 33, 511, 2049, 5001] {
        let rows = rows(lab, n);
        check(lab, &rows, n);
    }
    for n in [128_256, 256_000] {
        assert!(ops::argmax_grid(1, n as u32).blocks[0] > 60);
        let random = lab.floats(n);
        // In blocks from the first to the last, so that none can be forgotten.
        for at in [0, n / 4, n / 2, n / 4 * 3, n - 1] {
            let mut row = random.clone();
            row[at] = 2.0;
            check(lab, &[("one in some block", row)], n);
        }
        check(lab, &[("random", random)], n);
    }
    let many: Vec<_> = (0..140).map(|_| ("one of many", lab.floats(9))).collect();
    check(lab, &many, 9);
}

/// What the kernels leave each other, as numbers: the floor, the list's length, the counter.
const STATE: usize = size_of::<ops::TopKState>() / size_of::<u32>();

/// The `k` best of the row that starts `offset` elements behind `x`.
fn top_k<D: Driver>(lab: &Lab<D>, x: &D::Mem, offset: usize, n: usize, k: usize, state: &Output<D>) -> Vec<(u32, f32)> {
    let (list, out) = (lab.poisoned::<u32>(n), lab.poisoned::<u32>(2 * k));
    // SAFETY: the row is inside of `x`.
    let x = unsafe { pointer::<D, f32>(x).add(offset) };
    let (grid, n, length) = (ops::top_k_grid(n as u32), n as u32, k as u32);
    lab.launch::<ops::top_k_floor>(grid, (x, n, length, list.pointer(), state.pointer()));
    lab.launch::<ops::top_k>(grid, (x, n, length, list.pointer(), state.pointer(), out.pointer()));
    lab.read::<u32>(&list);
    let pairs = lab.read::<u32>(&out);
    let pairs = pairs.chunks_exact(2).map(|pair| (pair[0], f32::from_bits(pair[1])));
    let found: Vec<_> = pairs.clone().take_while(|pair| pair.0 != u32::MAX).collect();
    assert!(pairs.skip(found.len()).all(|pair| pair.0 == u32::MAX), "numbers behind the end");
    found
}

/// The bits, so that zeros of both signs differ.
fn bits(pairs: &[(u32, f32)]) -> Vec<(u32, u32)> {
    pairs.iter().map(|pair| (pair.0, pair.1.to_bits())).collect()
}

/// Rows of every kind, which begin at every place between 16-byte boundaries.
pub fn top_k_of_rows<D: Driver>(lab: &mut Lab<D>) {
    let state = lab.output(&[0u32; STATE]);
    for (n, ks) in [(1, &[1, 40][..]), (2, &[1, 2]), (31, &[1, 5, 31, 32]), (1000, &[1, 40, 1000]), (5003, &[3, 104])] {
        let rows = rows(lab, n);
        let x = lab.input(&rows.iter().flat_map(|(_, row)| row.clone()).collect::<Vec<_>>());
        for (i, (name, row)) in rows.iter().enumerate() {
            for &k in ks {
                let found = top_k(lab, &x, i * n, n, k, &state);
                assert_eq!(bits(&found), bits(&reference::top_k(row, k)), "{name}, {k} of {n} elements");
            }
        }
    }
    assert_eq!(lab.read::<u32>(&state)[STATE - 1], 0);
}

/// Vocabularies of real models, in many blocks; the inputs whose largest elements are all in few groups, too.
pub fn top_k_of_vocabularies<D: Driver>(lab: &mut Lab<D>) {
    let state = lab.output(&[0u32; STATE]);
    for (n, k, name) in [
        (32_000, ops::MAX_TOP_K as usize, "random"),
        (128_256, 1, "random"),
        (128_256, 104, "random"),
        (128_256, 104, "equal"),
        (128_256, 40, "rising"),
        (256_000, 40, "random"),
    ] {
        let rows = rows(lab, n);
        let row = &rows.iter().find(|row| row.0 == name).unwrap().1;
        let found = top_k(lab, &lab.input(row), 0, n, k, &state);
        assert_eq!(bits(&found), bits(&reference::top_k(row, k)), "{name}, {k} of {n} elements");
    }
}
