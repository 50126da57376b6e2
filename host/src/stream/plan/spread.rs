//! Choosing which units stay and which travel, so that what travels is spread evenly.

use std::cmp::Reverse;

/// Shares that are tried at least.
const STEPS: u64 = 64;

/// Which of the units, `bytes` each, in the order of a pass, stay: as many bytes as possible, `cap` at most, the others spread
/// evenly. `left` says how much room there is beside those that stay and whatever the others need, or none where they do not
/// fit; it may not shrink when one more unit stays and its own bytes are taken off. None where nothing fits.
///
/// Each share from all to nothing is tried with `spread`, and what is left of the room, but no more than one unit's bytes, is then
/// filled with the largest units that fit. More room never makes fewer bytes stay: that holds for each share, and so for the best.
pub fn most(bytes: &[u64], cap: u64, left: impl Fn(&[bool]) -> Option<u64>) -> Option<Vec<bool>> {
    let total: u64 = bytes.iter().sum();
    let largest = bytes.iter().copied().max().unwrap_or(0);
    // Units of equal size in an order that is itself spread, so that filling does not pile up at the beginning of the pass.
    let mut by_size: Vec<usize> = (0..bytes.len()).collect();
    by_size.sort_by_key(|&i| (Reverse(bytes[i]), i.reverse_bits()));
    let steps = STEPS.max(2 * bytes.len() as u64);
    let mut best: Option<(u64, Vec<bool>)> = None;
    for step in (0..=steps).rev() {
        let mut stays = spread(bytes, total - (u128::from(total) * u128::from(step) / u128::from(steps)) as u64);
        let mut kept: u64 = stays.iter().zip(bytes).filter(|(stays, _)| **stays).map(|(_, b)| b).sum();
        let Some((room, cap)) = left(&stays).zip(cap.checked_sub(kept)) else { continue };
        let mut room = room.min(cap).min(largest);
        for &i in &by_size {
            if !stays[i] && bytes[i] <= room {
                stays[i] = true;
                room -= bytes[i];
                kept += bytes[i];
            }
        }
        if best.as_ref().is_none_or(|(most, _)| kept > *most) {
            best = Some((kept, stays));
        }
    }
    best.map(|(_, stays)| stays)
}

/// Which of the units stay so that about `travel` bytes do not: whichever stretch of them is looked at, the bytes that travel are
/// the same share of it, but for one unit's (error diffusion).
fn spread(bytes: &[u64], travel: u64) -> Vec<bool> {
    let total: u128 = bytes.iter().map(|&b| u128::from(b)).sum();
    // Bytes that should have travelled so far less those that do, times `total`.
    let mut owed: i128 = 0;
    let stays = |&b: &u64| {
        owed += (u128::from(travel) * u128::from(b)) as i128;
        let unit = (total * u128::from(b)) as i128;
        let travels = 2 * owed >= unit && travel > 0;
        owed -= if travels { unit } else { 0 };
        !travels
    };
    bytes.iter().map(stays).collect()
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng, rngs::SmallRng};

    use super::*;

    /// Any stretch of units has its share of what travels, to within the largest unit.
    #[test]
    fn what_travels_is_spread_evenly() {
        let mut rng = SmallRng::seed_from_u64(1);
        for _ in 0..300 {
            let bytes: Vec<u64> = (0..rng.random_range(1..60)).map(|_| rng.random_range(1..1000)).collect();
            let (total, largest) = (bytes.iter().sum::<u64>(), bytes.iter().copied().max().unwrap());
            let travel = rng.random_range(0..=total);
            let stays = spread(&bytes, travel);
            for from in 0..bytes.len() {
                let (mut all, mut travelling) = (0, 0);
                for i in from..bytes.len() {
                    all += bytes[i];
                    travelling += if stays[i] { 0 } else { bytes[i] };
                    let share = all as f64 * travel as f64 / total as f64;
                    assert!((travelling as f64 - share).abs() <= largest as f64 + 1e-6, "{travelling}, not {share}");
                }
            }
        }
        assert_eq!(spread(&[5, 7, 9], 0), [true; 3]);
        assert_eq!(spread(&[5, 7, 9], 21), [false; 3]);
    }

    /// What is left over is less than the smallest unit that travels, within the cap.
    #[test]
    fn room_is_filled() {
        let mut rng = SmallRng::seed_from_u64(2);
        for _ in 0..300 {
            let bytes: Vec<u64> = (0..rng.random_range(1..40)).map(|_| rng.random_range(1..1000)).collect();
            let sum =
                |stays: &[bool]| stays.iter().zip(&bytes).filter(|(stays, _)| **stays).map(|(_, b)| b).sum::<u64>();
            let limit = rng.random_range(0..=bytes.iter().sum());
            let cap = if rng.random_bool(0.5) { u64::MAX } else { rng.random_range(0..=limit) };
            let stays = most(&bytes, cap, |stays| limit.checked_sub(sum(stays))).unwrap();
            let left = limit.min(cap) - sum(&stays);
            let travels = |(i, &b): (usize, &u64)| (!stays[i]).then_some(b);
            assert!(
                bytes.iter().enumerate().filter_map(travels).all(|b| b > left),
                "{left} left of {limit}, {bytes:?}"
            );
        }
        assert_eq!(most(&[3, 4], u64::MAX, |_| None), None);
        assert_eq!(most(&[], 0, |_| Some(0)), Some(vec![]));
    }
}
