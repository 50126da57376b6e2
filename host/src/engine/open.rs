//! Choosing a device for a model.

use std::str::FromStr;

use super::{EngineError, LoadOptions, Runner, Session};
use crate::{
    device::{
        Device, DeviceError,
        cpu::CpuDevice,
        cuda::{CudaDevice, cust::CustDriver, emulator::EmulatorDriver},
    },
    model::Model,
    stream::Progress,
};

/// What the user asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first GPU if there is one, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of that number.
    Cuda(usize),
    /// The CUDA device without a GPU, its kernels run by the emulator. Slow; for tests.
    Emulator,
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match (s, s.strip_prefix("cuda:").map(str::parse)) {
            ("auto", _) => Ok(DeviceChoice::Auto),
            ("cpu", _) => Ok(DeviceChoice::Cpu),
            ("emulator", _) => Ok(DeviceChoice::Emulator),
            ("cuda", _) => Ok(DeviceChoice::Cuda(0)),
            (_, Some(Ok(index))) => Ok(DeviceChoice::Cuda(index)),
            _ => Err("expected auto, cpu, cuda, cuda:N or emulator".into()),
        }
    }
}

/// Loads `model` on the device that was asked for. `say` is told which it is, and with `Auto` why.
///
/// # Errors
/// When there is no such device, or the model does not fit on it.
pub fn open(
    choice: DeviceChoice,
    model: Model,
    options: &LoadOptions,
    say: &mut dyn FnMut(&str),
    progress: Progress<'_>,
) -> Result<Box<dyn Runner>, EngineError> {
    let cuda = |index| CustDriver::open(index, options.announce).map(CudaDevice::new);
    match choice {
        DeviceChoice::Cpu => load(CpuDevice::new(), "", model, options, say, progress),
        DeviceChoice::Cuda(index) => load(cuda(index)?, "", model, options, say, progress),
        DeviceChoice::Emulator => {
            let dev = CudaDevice::new(EmulatorDriver::new(0));
            load(dev, " (slow: every GPU thread is run in turn; for tests)", model, options, say, progress)
        }
        DeviceChoice::Auto => match cuda(0) {
            Ok(dev) => load(dev, " (auto: the first GPU)", model, options, say, progress),
            Err(DeviceError::Unavailable { why }) => {
                load(CpuDevice::new(), &format!(" (auto: no usable GPU: {why})"), model, options, say, progress)
            }
            Err(e) => Err(e.into()),
        },
    }
}

fn load<D: Device + 'static>(
    dev: D,
    why: &str,
    model: Model,
    options: &LoadOptions,
    say: &mut dyn FnMut(&str),
    progress: Progress<'_>,
) -> Result<Box<dyn Runner>, EngineError> {
    say(&format!("device: {}{why}", dev.name()));
    Ok(Box::new(Session::load(dev, model, options, progress)?))
}
