//! PCI: a function's address, its command register, and its registers in memory.

use crate::{Error, Registers, mapping::Mapping};
use rustix::mm::ProtFlags;
use std::{
    fmt,
    fs::File,
    io,
    os::unix::fs::FileExt,
    str::FromStr,
    sync::atomic::{Ordering, fence},
};

/// Domain, bus, device and function, as the kernel writes them: `0000:3b:00.0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{}", self.domain, self.bus, self.device, self.function)
    }
}

/// What is not a PCI address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no PCI address; one looks like 0000:3b:00.0 or 3b:00.0")]
pub struct NoPciAddress(String);

impl FromStr for PciAddress {
    type Err = NoPciAddress;

    /// With the domain or without it, in capitals or not.
    fn from_str(text: &str) -> Result<Self, NoPciAddress> {
        let parse = || {
            let (rest, function) = text.rsplit_once('.')?;
            let (rest, device) = rest.rsplit_once(':')?;
            let (domain, bus) = rest.rsplit_once(':').unwrap_or(("0", rest));
            let hex = |digits: &str, max: u32| {
                let number = u32::from_str_radix(digits, 16).ok()?;
                (digits.bytes().all(|byte| byte.is_ascii_hexdigit()) && number <= max).then_some(number)
            };
            Some(PciAddress {
                domain: hex(domain, u32::MAX)?,
                bus: hex(bus, 0xff)? as u8,
                device: hex(device, 0x1f)? as u8,
                function: hex(function, 7)? as u8,
            })
        };
        parse().ok_or_else(|| NoPciAddress(text.to_owned()))
    }
}

/// The command register in a function's configuration space, and its bit that lets the function use the bus (PCI Local Bus
/// Specification 3.0, section 6.2.2).
const COMMAND: u64 = 4;
const BUS_MASTER: u16 = 1 << 2;

/// Sets or clears the bus master bit. `config` has the function's configuration space at `base`.
pub(crate) fn set_bus_master(config: &File, base: u64, on: bool) -> io::Result<()> {
    let mut command = [0; 2];
    config.read_exact_at(&mut command, base + COMMAND)?;
    let command = u16::from_le_bytes(command);
    let set = if on { command | BUS_MASTER } else { command & !BUS_MASTER };
    config.write_all_at(&set.to_le_bytes(), base + COMMAND)
}

/// A PCI BAR that is mapped, of registers.
pub(crate) struct Bar(Mapping);

impl Bar {
    /// Maps `len` bytes of `file` from `offset` on, a BAR.
    pub fn map(file: &File, offset: u64, len: usize) -> Result<Bar, Error> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        Ok(Bar(Mapping::new(file, offset, len, protection, ("mapping the device's registers", ""))?))
    }
}

impl Registers for Bar {
    fn bytes(&self) -> usize {
        self.0.len()
    }

    fn read32(&self, offset: usize) -> u32 {
        // SAFETY: `at` checks range and alignment.
        u32::from_le(unsafe { self.0.at::<u32>(offset).read_volatile() })
    }

    fn write32(&self, offset: usize, value: u32) {
        // What was written to memory goes first: x86-64 keeps that order by itself, other CPUs do not.
        fence(Ordering::SeqCst);
        // SAFETY: `at` checks range and alignment.
        unsafe { self.0.at::<u32>(offset).write_volatile(value.to_le()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let parse = |text: &str| text.parse::<PciAddress>().map(|address| address.to_string());
        assert_eq!(parse("0000:3B:00.0").as_deref(), Ok("0000:3b:00.0"));
        assert_eq!(parse("3b:1f.7").as_deref(), Ok("0000:3b:1f.7"));
        assert_eq!(parse("00010000:01:00.0").as_deref(), Ok("10000:01:00.0"));
        for wrong in ["", "3b", "3b:00", "3b:20.0", "3b:00.8", "+3b:00.0", "3b:00.0/../..", "0:0:0:0.0", "/dev/nvme0n1"]
        {
            let error = parse(wrong).unwrap_err().to_string();
            assert!(error.contains("is no PCI address"), "{wrong}: {error}");
        }
    }

    #[test]
    fn the_bus_master_bit() {
        let config = tempfile::tempfile().unwrap();
        config.write_all_at(&[0x86, 0x80, 0x45, 0x58, 0x02, 0x01, 0x10, 0x00], 64).unwrap();
        let read = || {
            let mut command = [0; 2];
            config.read_exact_at(&mut command, 68).unwrap();
            u16::from_le_bytes(command)
        };
        set_bus_master(&config, 64, true).unwrap();
        assert_eq!(read(), 0x0106);
        set_bus_master(&config, 64, false).unwrap();
        assert_eq!(read(), 0x0102);
    }
}
