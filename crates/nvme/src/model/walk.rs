//! How a controller finds a command's data: NVM Express Base Specification 2.0, section 4.1.1. Written without a look at the driver's
//! side of it.

use super::{Bus, bus::read_dwords};
use crate::{BusAddr, Status};

/// PRP Offset Invalid.
const OFFSET_INVALID: Status = Status::new(0, 0x13, false);
/// Data Transfer Error.
const TRANSFER_ERROR: Status = Status::new(0, 0x04, true);

/// The pieces of `len` bytes of data that PRP1 and PRP2 describe.
///
/// # Errors
/// The status that a command with such PRPs has.
pub fn walk(bus: &dyn Bus, prps: [u64; 2], len: usize, page: usize) -> Result<Vec<(BusAddr, usize)>, Status> {
    let [prp1, prp2] = prps;
    if prp1 % 4 != 0 {
        return Err(OFFSET_INVALID);
    }
    let mut rest = len;
    let mut pieces = Vec::new();
    let mut take = |address: u64, room: usize, rest: &mut usize| {
        let bytes = room.min(*rest);
        pieces.push((BusAddr(address), bytes));
        *rest -= bytes;
    };
    take(prp1, page - prp1 as usize % page, &mut rest);
    if rest == 0 {
        return Ok(pieces);
    }
    if rest <= page {
        if !(prp2 as usize).is_multiple_of(page) {
            return Err(OFFSET_INVALID);
        }
        take(prp2, page, &mut rest);
        return Ok(pieces);
    }
    // A list may begin within a page; it ends with that page.
    let mut entry = prp2;
    if entry % 8 != 0 {
        return Err(OFFSET_INVALID);
    }
    loop {
        let [low, high] = read_dwords(bus, BusAddr(entry)).ok_or(TRANSFER_ERROR)?;
        let value = u64::from(high) << 32 | u64::from(low);
        if !(value as usize).is_multiple_of(page) {
            return Err(OFFSET_INVALID);
        }
        let is_last_of_page = (entry as usize + 8).is_multiple_of(page);
        if is_last_of_page && rest > page {
            entry = value;
            continue;
        }
        take(value, page, &mut rest);
        if rest == 0 {
            return Ok(pieces);
        }
        entry += 8;
    }
}
