//! [`Door`]: all that the driver needs of the way to a device.

use crate::{DmaBuf, Error, Registers};

/// A way to a PCI device: its registers, and memory that it can reach.
pub trait Door: Registers {
    /// The device's address, for messages.
    fn name(&self) -> &str;

    /// One line for the user: which way it is.
    fn describe(&self) -> String;

    /// New memory of zeros, `len` bytes at least, that begins at a page of both sides. It need not be contiguous on the bus; whole
    /// pages of 64 KiB, and of 2 MiB where there are huge pages, are.
    ///
    /// # Errors
    /// If there is no such memory, and what to do.
    fn allocate(&self, len: usize) -> Result<DmaBuf, Error>;

    /// Lets the device use the bus by itself, or keeps it from that. When it is off, the device writes no memory.
    ///
    /// # Errors
    /// If the device's configuration cannot be written.
    fn set_bus_master(&self, on: bool) -> Result<(), Error>;
}
