//! Captured passes.

use std::{ptr, rc::Rc};

use cuda_dlopen::raw;
use cust::sys::{CUgraph, CUgraphExec, CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED};

use super::{gpu::Gpu, modules::Modules};
use crate::device::DeviceError;

type Result<T> = std::result::Result<T, DeviceError>;

/// What a fault in a replay names, where one of a launch names the kernel.
const NAME: &str = "of a captured pass";

/// What a capture recorded, ready to be started.
pub struct Graph {
    executable: CUgraphExec,
    gpu: Rc<Gpu>,
    /// Holds the code of its kernels.
    _modules: Rc<Modules>,
}

/// Why there is no graph.
pub(super) enum Failed {
    /// What was to be captured failed.
    Body(DeviceError),
    /// The driver could not record it, or make a graph of it. Nothing of it has run.
    Recording(DeviceError),
}

impl Failed {
    /// What an error of the calls that record means.
    fn recording(error: DeviceError) -> Self {
        match error {
            // A kernel launched earlier has crashed, and nothing will work any more.
            DeviceError::Kernel { .. } => Failed::Body(error),
            _ => Failed::Recording(error),
        }
    }
}

impl Graph {
    /// Records what `f` puts into the compute queue.
    ///
    /// The mode is "relaxed": a kernel's first launch loads its module, which allocates, and the stricter modes end a capture
    /// for that. What they are to protect from, calls that depend on the captured queue, `Capturing` refuses.
    pub(super) fn capture(
        gpu: &Rc<Gpu>,
        modules: &Rc<Modules>,
        f: &mut dyn FnMut() -> Result<()>,
    ) -> std::result::Result<Graph, Failed> {
        // SAFETY: the queue is alive, and nobody is capturing it (the caller has asked `Capturing`).
        let begun = unsafe { raw::cuStreamBeginCapture_v2(gpu.compute.as_inner(), CU_STREAM_CAPTURE_MODE_RELAXED) };
        gpu.check("cuStreamBeginCapture", begun).map_err(Failed::recording)?;
        let mut recording = Recording { gpu, last_kernel: gpu.last_kernel.get(), ended: false };
        let done = gpu.capturing.during(f);
        let recorded = match (done, recording.end()) {
            (Ok(()), recorded) => recorded.map_err(Failed::recording)?,
            // Where the driver has given up recording, launches fail for that.
            (Err(DeviceError::Driver { .. } | DeviceError::Kernel { .. }), Err(error)) => {
                return Err(Failed::recording(error));
            }
            (Err(error), _) => return Err(Failed::Body(error)),
        };
        let mut executable = ptr::null_mut();
        // SAFETY: the graph is alive, the result a local.
        let made = unsafe { raw::cuGraphInstantiateWithFlags(&mut executable, recorded.0, 0) };
        gpu.check("cuGraphInstantiateWithFlags", made).map_err(Failed::recording)?;
        Ok(Graph { executable, gpu: gpu.clone(), _modules: modules.clone() })
    }

    /// Starts it on the compute queue.
    ///
    /// # Safety
    /// As for `Driver::replay`.
    pub(super) unsafe fn replay(&self, gpu: &Gpu) -> Result<()> {
        // SAFETY: graph and queue are alive, the rest is the caller's promise.
        let started = unsafe { raw::cuGraphLaunch(self.executable, gpu.compute.as_inner()) };
        gpu.check("cuGraphLaunch", started)?;
        gpu.last_kernel.set(Some(NAME));
        Ok(())
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // It may still run. A failure is that of earlier work, and the next call returns it again.
        let _ = self.gpu.activate();
        let _ = self.gpu.wait(&self.gpu.compute);
        // SAFETY: made by `capture`, destroyed once.
        let _ = unsafe { raw::cuGraphExecDestroy(self.executable) };
    }
}

/// A capture under way, which ends with it also when the captured code panics.
struct Recording<'a> {
    gpu: &'a Gpu,
    /// The kernel launched last before: what is captured has not run.
    last_kernel: Option<&'static str>,
    ended: bool,
}

impl Recording<'_> {
    fn end(&mut self) -> Result<Recorded> {
        self.ended = true;
        self.gpu.last_kernel.set(self.last_kernel);
        // The captured code may have used another GPU.
        self.gpu.activate()?;
        let mut graph = ptr::null_mut();
        // SAFETY: the queue is alive, the result a local.
        let ended = unsafe { raw::cuStreamEndCapture(self.gpu.compute.as_inner(), &mut graph) };
        let recorded = Recorded(graph);
        self.gpu.check("cuStreamEndCapture", ended)?;
        Ok(recorded)
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.end();
        }
    }
}

/// What was recorded, or null.
struct Recorded(CUgraph);

impl Drop for Recorded {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: made by a capture, destroyed once.
            let _ = unsafe { raw::cuGraphDestroy(self.0) };
        }
    }
}
