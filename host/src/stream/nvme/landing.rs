//! Memory that reads go into, as a drive sees it.
//!
//! The buffers that the streamer lends are made known to the drive, so that data lands in them without a copy. Where that is refused
//! (without an IOMMU, of memory that no device's driver has page-locked), reads go by way of memory of the driver's own.

use std::{ptr::NonNull, sync::Arc};

use nvme::{BusMemory, DmaBuf, Door};
use readahead::{HostBuf, SourceError};

/// Bytes of a page. Buffers begin and end at pages, since that is what can be made known.
pub(super) const PAGE: usize = 4096;

/// Buffers, and where they are on the bus.
pub struct Landing {
    door: Arc<dyn Door>,
    known: Vec<Known>,
    own: Option<Own>,
    /// Why not all buffers are known to the drive.
    unknown: Option<String>,
    /// Why there is no memory of the driver's own.
    none: Option<String>,
}

/// A buffer that the drive can write.
struct Known {
    address: usize,
    len: usize,
    bus: Arc<BusMemory>,
}

/// Memory of the driver's own, in slots of the largest read's size.
struct Own {
    memory: DmaBuf,
    slot: usize,
    slots: usize,
    free: Vec<usize>,
}

/// Where a read lands.
#[derive(Debug)]
pub struct Place {
    /// The memory.
    pub bus: Arc<BusMemory>,
    /// The read's first byte in it.
    pub at: usize,
    /// The slot of the driver's own memory that it is.
    slot: Option<usize>,
}

impl Landing {
    /// No buffers yet; the drive is behind `door`.
    pub fn new(door: Arc<dyn Door>) -> Self {
        Landing { door, known: Vec::new(), own: None, unknown: None, none: None }
    }

    /// Makes `buffers` known to the drive. For those that cannot be, there will be memory for up to `depth` reads.
    pub fn prepare(&mut self, buffers: &[HostBuf], depth: usize) {
        let (mut count, mut longest) = (0, 0);
        for buffer in buffers {
            match self.make_known(buffer) {
                Ok(known) => self.known.push(known),
                Err(why) => {
                    self.unknown.get_or_insert(why);
                    (count, longest) = (count + 1, longest.max(buffer.len()));
                }
            }
        }
        if count > 0 {
            self.allocate(count.min(depth), longest);
        }
    }

    fn make_known(&self, buffer: &HostBuf) -> Result<Known, String> {
        let (address, len) = (buffer.address(), buffer.len());
        let owner = buffer.owner().ok_or("their memory may go while the drive writes it")?;
        if !self.door.holds() && !buffer.is_page_locked() {
            return Err("without an IOMMU their pages could move, since no GPU's driver has locked them".into());
        }
        if !address.is_multiple_of(PAGE) || !len.is_multiple_of(PAGE) {
            return Err(format!("{len} bytes at {address:#x} are no whole pages"));
        }
        let ptr = NonNull::new(buffer.as_ptr()).expect("memory has an address");
        // SAFETY: the owner keeps the memory (`HostBuf::new`), and the pages stay where they are, by the door or by `page_locked`.
        // Whoever lends a buffer uses it between reads only.
        let bus = unsafe { self.door.map(ptr, len, Box::new(owner)) };
        Ok(Known { address, len, bus: Arc::new(bus.map_err(|e| e.to_string())?) })
    }

    /// Takes memory for `count` reads of `len` bytes, or for fewer where there is not enough.
    fn allocate(&mut self, mut count: usize, len: usize) {
        let slot = len.next_multiple_of(PAGE);
        while count > 0 {
            match self.door.allocate(count * slot) {
                Ok(memory) => {
                    self.own = Some(Own { memory, slot, slots: count, free: (0..count).collect() });
                    return;
                }
                Err(e) => self.none = Some(e.to_string()),
            }
            count /= 2;
        }
    }

    /// Reads that may be in flight at most; none: as many as the drive takes.
    pub fn depth(&self) -> Option<usize> {
        self.own.as_ref().map(|own| own.slots)
    }

    /// Where a read of `len` bytes into `dst` goes, to be given back by [`Self::arrived`].
    ///
    /// # Errors
    /// If there is no memory that the drive can write, with what to do.
    pub fn place(&mut self, dst: &HostBuf, len: usize) -> Result<Place, SourceError> {
        let (address, end) = (dst.address(), dst.address() + len);
        if let Some(known) = self.known.iter().find(|k| k.address <= address && end <= k.address + k.len) {
            return Ok(Place { bus: known.bus.clone(), at: address - known.address, slot: None });
        }
        if self.own.is_none() && self.none.is_none() {
            self.allocate(1, dst.len());
        }
        match &mut self.own {
            Some(own) if own.slot < len => Err(SourceError::Small { len: own.slot, need: len, block: PAGE }),
            Some(own) => {
                let slot = own.free.pop().ok_or(SourceError::Full { depth: own.slots })?;
                Ok(Place { bus: own.memory.bus().clone(), at: slot * own.slot, slot: Some(slot) })
            }
            None => {
                let [unknown, none] = [&self.unknown, &self.none].map(|why| why.as_deref().unwrap_or("unknown"));
                let why = format!(
                    "the drive cannot write the buffers ({unknown}), and there is no memory for it to write instead: {none}"
                );
                Err(SourceError::Device(why.into()))
            }
        }
    }

    /// Takes in that a read has ended. If it brought something, `wanted`, it is in `dst` from then on.
    pub fn arrived(&mut self, place: Place, dst: &mut HostBuf, wanted: Option<std::ops::Range<usize>>) {
        let (Some(slot), Some(own)) = (place.slot, &mut self.own) else { return };
        if let Some(range) = wanted {
            own.memory.copy_to(place.at + range.start, &mut dst.bytes()[range]);
        }
        own.free.push(slot);
    }

    /// For the user: where data lands.
    pub fn describe(&self) -> String {
        match (&self.unknown, &self.own) {
            (None, _) => "straight into the buffers".into(),
            (Some(why), Some(own)) => {
                let bytes = bytesize::ByteSize((own.slot * own.slots) as u64);
                format!("by way of {bytes} of the driver's own, since the drive cannot write the buffers ({why})")
            }
            (Some(why), None) => format!("the drive cannot write the buffers ({why})"),
        }
    }
}
