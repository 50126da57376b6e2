//! What can go wrong on a device.

/// An error of a device or its driver. Each message names the call, kernel or buffer, and what to do where that is known.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// There is no such device, or its driver cannot be used.
    #[error("no CUDA device: {why}; --device cpu runs without a GPU")]
    Unavailable {
        /// The reason.
        why: String,
    },
    /// An allocation did not fit.
    #[error("{device}: not enough memory for {what}: it needs {need} bytes and {free} are free; {advice}")]
    OutOfMemory {
        /// The device's name.
        device: String,
        /// What was to be stored.
        what: String,
        /// Bytes asked for.
        need: u64,
        /// Bytes available.
        free: u64,
        /// The way out.
        advice: &'static str,
    },
    /// A driver call failed.
    #[error("{call} failed: {message}")]
    Driver {
        /// The driver's function.
        call: &'static str,
        /// The driver's own words for its error code.
        message: String,
    },
    /// A kernel could not be loaded, launched or finished.
    #[error("kernel {kernel}: {message}")]
    Kernel {
        /// The kernel's name.
        kernel: &'static str,
        /// What happened.
        message: String,
    },
    /// A range lies outside its buffer: a bug in the caller, reported instead of executed.
    #[error("{what}: bytes {start}..{end} are outside a buffer of {len} bytes")]
    OutOfRange {
        /// The operation.
        what: &'static str,
        /// First byte.
        start: usize,
        /// One past the last byte.
        end: usize,
        /// The buffer's length.
        len: usize,
    },
    /// Bytes that were to be copied could not be had, e.g. read.
    #[error("{0}")]
    Source(Box<dyn std::error::Error + Send + Sync>),
    /// Something that a capture cannot record was asked for during one: a bug in the caller.
    #[error("{0} inside of a captured pass, which would not be repeated when the pass is replayed")]
    Captured(&'static str),
    /// The model needs something that the device's kernels do not do.
    #[error("{0}")]
    Unsupported(String),
    /// Weights could not be read.
    #[error(transparent)]
    Read(#[from] readahead::ReadError),
    /// A model's file could not be opened for reading weights.
    #[error(transparent)]
    Open(#[from] readahead::OpenError),
    /// Nobody wants it any more.
    #[error("interrupted")]
    Cancelled,
    /// An error while a certain layer was computed or transferred.
    #[error("layer {layer}: {source}")]
    Layer {
        /// The layer's index.
        layer: usize,
        /// The error itself.
        source: Box<DeviceError>,
    },
    /// The same with the output head, behind the last layer.
    #[error("the output head: {0}")]
    Head(Box<DeviceError>),
}

impl DeviceError {
    /// Memory did not suffice, wherever that was noticed.
    pub fn is_out_of_memory(&self) -> bool {
        match self {
            DeviceError::OutOfMemory { .. } => true,
            DeviceError::Layer { source, .. } | DeviceError::Head(source) => source.is_out_of_memory(),
            _ => false,
        }
    }

    /// Somebody asked to stop.
    pub fn is_cancelled(&self) -> bool {
        match self {
            DeviceError::Cancelled | DeviceError::Read(readahead::ReadError::Cancelled) => true,
            DeviceError::Layer { source, .. } | DeviceError::Head(source) => source.is_cancelled(),
            _ => false,
        }
    }

    /// The same error, naming the layer it happened in.
    pub fn in_layer(self, layer: usize) -> Self {
        DeviceError::Layer { layer, source: Box::new(self) }
    }

    /// The same error, naming the group that it happened in: one of so many layers, or the head behind them.
    pub fn in_group(self, group: usize, layers: usize) -> Self {
        if group < layers { self.in_layer(group) } else { DeviceError::Head(Box::new(self)) }
    }
}

impl DeviceError {
    /// What a device without kernels answers to who asks for their times.
    pub(crate) fn no_launches(device: &str) -> Self {
        DeviceError::Unsupported(format!("{device} launches no kernels: a profile takes a GPU (--device cuda)"))
    }
}
