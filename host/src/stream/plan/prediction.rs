//! How long a token will take.

/// The share of the rate at which a device reads its memory that a token's products attain: what 70B Q4_K_M reaches on an H200, 8B
/// Q8_0 reaches 0.68 (docs/performance.md).
const ATTAINED: f64 = 0.6;

/// How fast bytes travel, in bytes a second, as far as it is known.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// From page-locked RAM to the device, by copies.
    pub link: Option<f64>,
    /// The same by kernels that read there.
    pub zero_copy: Option<f64>,
    /// From the model's files to RAM.
    pub disk: Option<f64>,
    /// From the device's memory to whatever computes.
    pub vram: Option<f64>,
}

/// What one token makes travel, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Matrices that cross the link.
    pub link_bytes: u64,
    /// Of these, matrices that kernels read over the link, where they are in RAM.
    pub zero_copy_bytes: u64,
    /// Matrices that are read from the model's files before that.
    pub disk_bytes: u64,
    /// All matrices, each of which is read where it is computed with.
    pub weight_bytes: u64,
    /// The ring that copied matrices go through.
    pub ring_bytes: u64,
    /// The most that one group takes of the ring.
    pub largest_group: u64,
}

/// What can limit the speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Bytes from RAM to the device.
    Link,
    /// Bytes from the model's files.
    Disk,
    /// Bytes from the device's memory.
    Vram,
}

impl Bound {
    /// `link`, `disk` or `vram`.
    pub fn name(self) -> &'static str {
        match self {
            Bound::Link => "link",
            Bound::Disk => "disk",
            Bound::Vram => "vram",
        }
    }
}

/// How long a token takes, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// All of it.
    pub seconds: f64,
    /// What takes the most of it.
    pub bound: Bound,
    /// The link's part.
    pub link: f64,
    /// The disk's part.
    pub disk: f64,
    /// The part of reading the weights from the device's memory.
    pub vram: f64,
    /// The part of the last one during which the link has to wait, because the ring has no room.
    pub waiting: f64,
}

/// The rates that a prediction lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unknown(pub Vec<Bound>);

impl Load {
    /// The longest of what goes on at the same time, and what cannot: while a group is computed, the link goes on as far as the ring
    /// has room beside that group. What kernels read over the link takes their time and the link's.
    ///
    /// # Errors
    /// The rates that this load depends on and that are not known.
    pub fn predict(&self, rates: &Rates) -> Result<Prediction, Unknown> {
        let known = |rate: Option<f64>| rate.filter(|rate| rate.is_finite() && *rate > 0.0);
        let (copied, on_device) = (self.link_bytes - self.zero_copy_bytes, self.weight_bytes - self.zero_copy_bytes);
        let parts = [
            (Bound::Link, copied, known(rates.link)),
            (Bound::Link, self.zero_copy_bytes, known(rates.zero_copy)),
            (Bound::Disk, self.disk_bytes, known(rates.disk)),
            (Bound::Vram, on_device, known(rates.vram).map(|rate| ATTAINED * rate)),
        ];
        let mut unknown: Vec<_> =
            parts.iter().filter(|(_, bytes, rate)| *bytes > 0 && rate.is_none()).map(|part| part.0).collect();
        unknown.dedup();
        if !unknown.is_empty() {
            return Err(Unknown(unknown));
        }
        let seconds = |bytes: u64, part: usize| parts[part].2.map_or(0.0, |rate| bytes as f64 / rate);
        let [copies, zero_copies, disk, vram] = [0, 1, 2, 3].map(|part| seconds(parts[part].1, part));
        let link = copies + zero_copies;
        let (computed, ahead) =
            (seconds(self.largest_group, 3), seconds(self.ring_bytes.saturating_sub(self.largest_group), 0));
        let waits = if computed > ahead { 1.0 - ahead / computed } else { 0.0 };
        let waiting = vram * waits * copied as f64 / on_device.max(1) as f64;
        let computing = if zero_copies > vram { Bound::Link } else { Bound::Vram };
        let (bound, longest) = [(Bound::Link, link), (Bound::Disk, disk), (computing, vram + zero_copies - waiting)]
            .into_iter()
            .max_by(|a, b| a.1.total_cmp(&b.1))
            .expect("three of them");
        Ok(Prediction { seconds: longest + waiting, bound, link, disk, vram, waiting })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOAD: Load = Load {
        link_bytes: 600,
        zero_copy_bytes: 0,
        disk_bytes: 100,
        weight_bytes: 1200,
        ring_bytes: 40,
        largest_group: 20,
    };

    fn rates(link: f64, disk: f64, vram: f64) -> Rates {
        Rates { link: Some(link), disk: Some(disk), vram: Some(vram / ATTAINED), ..Rates::default() }
    }

    #[track_caller]
    fn check(load: Load, rates: Rates, seconds: f64, bound: Bound) {
        let prediction = load.predict(&rates).unwrap();
        assert!((prediction.seconds - seconds).abs() < 1e-9 && prediction.bound == bound, "{prediction:?}");
    }

    #[test]
    fn the_slowest_part_bounds() {
        check(LOAD, rates(60.0, 100.0, 600.0), 10.0, Bound::Link);
        check(LOAD, rates(60.0, 5.0, 600.0), 20.0, Bound::Disk);
        check(LOAD, rates(200.0, 100.0, 240.0), 5.0, Bound::Vram);
    }

    /// Half of the weights are streamed. With a ring of a single group the link waits while those are computed; where a group's
    /// bytes are computed four times as fast as they are copied, a ring with room for a quarter more lets it go on.
    #[test]
    fn a_small_ring_makes_the_link_wait() {
        for (ring_bytes, seconds) in [(20, 12.5), (22, 11.5), (25, 10.0), (40, 10.0)] {
            check(Load { ring_bytes, ..LOAD }, rates(60.0, 100.0, 240.0), seconds, Bound::Link);
        }
    }

    /// What kernels read over the link is computed with at that speed, and the rest of the weights before and after it.
    #[test]
    fn kernels_that_read_over_the_link_do_nothing_else() {
        let load = Load { zero_copy_bytes: 600, disk_bytes: 0, ring_bytes: 0, largest_group: 0, ..LOAD };
        let rates = |zero_copy| Rates { zero_copy: Some(zero_copy), ..rates(60.0, 100.0, 240.0) };
        check(load, rates(50.0), 12.0 + 2.5, Bound::Link);
        check(load, rates(400.0), 1.5 + 2.5, Bound::Vram);
        // Half of what crosses the link is copied meanwhile.
        let both = Load { zero_copy_bytes: 300, ring_bytes: 40, largest_group: 20, ..load };
        check(both, rates(50.0), 6.0 + 5.0, Bound::Link);
        let unknown = both.predict(&Rates { zero_copy: None, ..rates(1.0) });
        assert_eq!(unknown, Err(Unknown(vec![Bound::Link])));
    }

    #[test]
    fn without_a_rate_that_matters_there_is_none() {
        let vram_only = Rates { vram: Some(1e9), ..Rates::default() };
        assert_eq!(LOAD.predict(&vram_only), Err(Unknown(vec![Bound::Link, Bound::Disk])));
        let resident = Load { link_bytes: 0, disk_bytes: 0, ring_bytes: 0, ..LOAD };
        assert_eq!(resident.predict(&vram_only).unwrap().bound, Bound::Vram);
        assert_eq!(resident.predict(&Rates::default()), Err(Unknown(vec![Bound::Vram])));
        assert_eq!(resident.predict(&Rates { vram: Some(f64::NAN), ..vram_only }), Err(Unknown(vec![Bound::Vram])));
    }
}
