//! A model's weights where the plan wants them: on the device to stay, or flowing through its ring.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use readahead::{OpenError, Piece};

use super::{
    flow::Flow,
    load::inputs,
    place::Progress,
    placing::{Filled, Placing, Streams, Taken},
    plan::Tier,
    reads::{Reading, Reads},
    staging::piece_bytes,
};
use crate::{
    device::{Device, DeviceError, Head, Layer, Weight},
    model::{Compute, ComputeHead, Flowed, Layers, Model, Trace},
    pack::TensorPart,
};

/// A model's weights, placed.
pub struct Streamed<D: Device> {
    layers: Vec<Layer<Weight<D>>>,
    head: Head<Weight<D>>,
    /// The number in the flow of each layer, and of the head behind them; none where all of it is on the device.
    flowing: Vec<Option<usize>>,
    flow: Option<Flow<D>>,
    streamed_bytes: u64,
    zero_copy_bytes: u64,
    taken: Taken,
    cancel: Arc<AtomicBool>,
}

impl<D: Device> Streamed<D> {
    /// Puts all weights in their places.
    ///
    /// # Errors
    /// The device's, and those of reading the file; [`DeviceError::Cancelled`].
    pub fn load(
        dev: &D,
        model: &Model,
        streams: &Streams,
        reading: &Reading<'_>,
        progress: Progress<'_>,
    ) -> Result<Self, DeviceError> {
        progress(0);
        let count = model.config.layers;
        let mut placing = Placing::new(dev, model, streams);
        for group in 0..=count {
            reading.wanted()?;
            placing.group(group, progress).map_err(|e| e.in_group(group, count))?;
        }
        let ring = placing.ring(reading)?;
        // Behind all that takes memory, so that a lack of it shows before anything is read.
        let Filled { tensors, flowing, flow, taken } = placing.fill(ring, reading, progress)?;
        let bytes_in = |of: fn(Tier) -> bool| -> u64 {
            let elsewhere = streams.elsewhere.iter().filter(|(_, tier)| of(**tier));
            elsewhere.map(|(id, _)| model.gguf.tensors()[id.0].bytes).sum()
        };
        let (streamed_bytes, zero_copy_bytes) = (bytes_in(Tier::is_streamed), bytes_in(Tier::is_zero_copy));
        let get = |part: &TensorPart| {
            let whole = &tensors[&part.tensor];
            match &part.outputs {
                None => whole.clone(),
                Some(outputs) => whole.part(outputs.clone()).expect("parts were checked when the tensor was found"),
            }
        };
        Ok(Streamed {
            layers: model.tensors.layers.iter().map(|layer| layer.map(get)).collect(),
            head: model.tensors.head.map(get),
            flowing,
            flow,
            streamed_bytes,
            zero_copy_bytes,
            taken,
            cancel: reading.cancel.clone(),
        })
    }

    /// Why RAM could not be page-locked, if any could not: what was to be there is read through the page cache.
    pub fn pageable(&self) -> Option<&str> {
        self.taken.pageable.as_deref()
    }

    /// Why RAM could not be had, if some could not: what was to be there is read from disk.
    pub fn missing(&self) -> Option<&str> {
        self.taken.missing.as_deref()
    }

    /// How what is on disk is read, if anything is.
    pub fn reads_by(&self) -> Option<&str> {
        self.flow.as_ref().and_then(Flow::reads_by)
    }

    /// Which way it takes from there, where the source might be able to write the device's memory by itself; and if it cannot, why not.
    pub fn lands(&self) -> Option<&str> {
        self.taken.way.as_deref()
    }

    /// Bytes of the streamed ones that every pass reads from the model's files.
    pub fn read_bytes(&self) -> u64 {
        self.taken.read_bytes
    }

    /// Bytes of the streamed ones that every pass reads over the link where they are in RAM.
    pub fn zero_copy_bytes(&self) -> u64 {
        self.zero_copy_bytes
    }

    /// The output matrix, where it is always on the device.
    pub fn output(&self) -> &Weight<D> {
        &self.head.output.weight
    }

    /// Runs `f` when group `id` is there.
    fn with_group(
        &mut self,
        dev: &mut D,
        id: usize,
        mut f: impl FnMut(&mut D, &Layer<Weight<D>>, &Head<Weight<D>>) -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        if self.cancel.load(Ordering::Relaxed) {
            return Err(DeviceError::Cancelled);
        }
        let Streamed { layers, head, flowing, flow, .. } = self;
        let layer = &layers[id.min(layers.len() - 1)];
        if let (0, Some(flow)) = (id, &mut *flow) {
            flow.begin_pass();
        }
        match (flow, flowing[id]) {
            (Some(flow), Some(group)) => flow.with(dev, group, &mut |dev| f(dev, layer, head)),
            (Some(flow), None) => flow.beside(dev, id, &mut |dev| f(dev, layer, head)),
            (None, _) => f(dev, layer, head),
        }
    }
}

/// How much of the largest file is read to find out how fast it can be read, and for how long.
const MEASURED: (u64, Duration) = (256 << 20, Duration::from_millis(60));

/// How much longer the measurement may take before the drive counts as one that does not answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes a second that `reads` gets of the model's largest file. None where that cannot be measured.
///
/// # Errors
/// A drive that cannot be read, or holds something else: whoever names a drive wants to know.
pub fn disk_rate(model: &Model, reads: &dyn Reads) -> Result<Option<f64>, DeviceError> {
    match measure(model, reads) {
        Err(e) if matches!(e, DeviceError::Open(OpenError::Device(_))) || reads.drive().is_some() => Err(e),
        result => Ok(result.ok()),
    }
}

fn measure(model: &Model, reads: &dyn Reads) -> Result<f64, DeviceError> {
    let source = reads.ahead(inputs(model)?, false)?;
    let lengths = model.gguf.parts().iter().map(|part| part.bytes().len() as u64).enumerate();
    let (file, len) = lengths.max_by_key(|(_, len)| *len).unwrap_or_default();
    let pieces: Vec<Piece> = Piece::cut(file, 0, len.min(MEASURED.0), piece_bytes(u64::MAX)).collect();
    Ok(readahead::sequential_rate(source, &pieces, MEASURED.1, PATIENCE)?.bytes_per_second())
}

impl<D: Device> Layers<D> for Streamed<D> {
    fn with(&mut self, dev: &mut D, id: usize, f: Compute<'_, D>) -> Result<(), DeviceError> {
        self.with_group(dev, id, |dev, layer, _| f(dev, layer))
    }

    fn with_head(&mut self, dev: &mut D, f: ComputeHead<'_, D>) -> Result<(), DeviceError> {
        self.with_group(dev, self.layers.len(), |dev, _, head| f(dev, head))
    }

    fn resident(&self) -> bool {
        self.flow.is_none()
    }

    fn streamed_bytes(&self) -> u64 {
        self.streamed_bytes
    }

    fn device_bytes(&self) -> u64 {
        self.taken.device_bytes
    }

    fn pinned_bytes(&self) -> u64 {
        self.taken.pinned_bytes
    }

    fn flowed(&mut self, dev: &D) -> Result<Option<Flowed>, DeviceError> {
        // What kernels read over the link is not seen here.
        let beside = (self.zero_copy_bytes > 0).then(Flowed::default);
        self.flow.as_mut().map(|flow| flow.flowed(dev)).transpose().map(|flowed| flowed.or(beside))
    }

    fn trace(&mut self, on: bool) {
        if let Some(flow) = &mut self.flow {
            flow.trace(on);
        }
    }

    fn take_trace(&mut self, dev: &D) -> Result<Trace, DeviceError> {
        self.flow.as_mut().map_or(Ok(Trace::default()), |flow| flow.take_trace(dev))
    }
}
