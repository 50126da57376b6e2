//! How much of a memory may be used.

use std::str::FromStr;

use bytesize::ByteSize;

/// An amount of memory, or a share of all there is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// So many bytes.
    Bytes(u64),
    /// So many per cent of the memory's total, from 0 to 100.
    Percent(f64),
}

impl Budget {
    /// In bytes, of a memory of `total` bytes.
    pub fn of(self, total: u64) -> u64 {
        match self {
            Budget::Bytes(bytes) => bytes,
            Budget::Percent(percent) => (total as f64 * (percent / 100.0)) as u64,
        }
    }
}

impl From<u64> for Budget {
    fn from(bytes: u64) -> Self {
        Budget::Bytes(bytes)
    }
}

impl FromStr for Budget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_suffix('%') {
            Some(percent) => percent
                .trim_end()
                .parse()
                .ok()
                .filter(|percent| (0.0..=100.0).contains(percent))
                .map(Budget::Percent)
                .ok_or("expected a share from 0% to 100%".into()),
            None => text
                .parse::<ByteSize>()
                .map(|size| Budget::Bytes(size.0))
                .map_err(|_| "expected a size such as 8GiB or 500MB, or a share such as 50%".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_shares() {
        let of = |text: &str| text.parse::<Budget>().map(|budget| budget.of(1 << 30));
        assert_eq!(of("8GiB"), Ok(8 << 30));
        assert_eq!(of("500MB"), Ok(500_000_000));
        assert_eq!(of("0"), Ok(0));
        assert_eq!(of("50%"), Ok(1 << 29));
        assert_eq!(of("12.5 %"), Ok(1 << 27));
        assert_eq!((of("0%"), of("100%")), (Ok(0), Ok(1 << 30)));
        for wrong in ["", "%", "much", "-1", "-1%", "101%", "nan%", "inf%", "5%%", "8GiB%"] {
            assert!(of(wrong).is_err(), "{wrong:?} is {:?}", of(wrong));
        }
    }
}
