//! A model whose layers all lie on a drive that a kernel reads, while other kernels compute.

use std::{fs::File, path::Path, sync::Arc, time::Instant};

use ::nvme::{
    Options,
    model::{Media, ModelDoor, Traits},
};
use memmap2::{Mmap, MmapOptions};
use ntransformer::{
    device::{
        Device, Transfer,
        cpu::CpuDevice,
        cuda::{CudaDevice, nvme::Settings},
    },
    engine::{Budget, LoadOptions, Runner, Session},
    gguf::Gguf,
    model::Model,
    stream::{DiskReads, nvme::NvmeReads},
};

use super::{Played, Vram};
use crate::{models, placement::Small, setup};

/// Tokens that are generated.
const TOKENS: usize = 6;

fn load<D: Device + 'static>(dev: D, gguf: &Arc<Gguf>, on: Option<(u64, &NvmeReads)>) -> Box<dyn Runner> {
    let model = Model::new(gguf.clone(), Some(64), 64).unwrap();
    let options = LoadOptions {
        streaming: on.is_some(),
        vram_budget: on.map(|(budget, _)| budget.into()),
        ram_budget: on.map(|_| Budget::Bytes(0)),
        wanted: 64,
        ..LoadOptions::default()
    };
    Box::new(match on {
        None => Session::load(dev, model, &options, &mut |_| ()).unwrap(),
        Some((_, reads)) => Session::load_by(dev, model, &options, reads, &mut |_| ()).unwrap(),
    })
}

/// The likeliest tokens behind a prompt, and the seconds that each took.
fn tokens(runner: &mut dyn Runner) -> (Vec<u32>, Vec<f64>) {
    let (mut found, mut seconds) = (Vec::new(), Vec::new());
    let mut next = vec![1, 5, 9, 14];
    let mut position = 0;
    for _ in 0..TOKENS {
        let begin = Instant::now();
        runner.pass(&next, position, 1).unwrap();
        position += next.len();
        let logits = runner.logits().unwrap();
        let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32;
        seconds.push(begin.elapsed().as_secs_f64());
        found.push(best);
        next = vec![best];
    }
    (found, seconds)
}

/// The file as a namespace of whole blocks: what is behind its end is zeros, up to the page's end.
fn mapped(path: &Path) -> Mmap {
    let file = File::open(path).unwrap();
    let len = file.metadata().unwrap().len().next_multiple_of(4096);
    // SAFETY: nobody changes the file while the test runs.
    unsafe { MmapOptions::new().len(len as usize).map(&file) }.unwrap()
}

/// Streams `path` on the device that `open` makes, by a kernel of the driver that `D` opens.
fn stream<D: Vram, V: Device + 'static>(path: &Path, open: impl Fn() -> V, block: usize) {
    let gguf = Arc::new(Gguf::open(path).unwrap());
    let mut resident = load(open(), &gguf, None);
    let (expected, _) = tokens(&mut *resident);
    let budget = models::budget(&*resident, &gguf, 0);
    drop(resident);

    let media = Arc::new(Media::shared(block, mapped(path)));
    let played = Played::new(ModelDoor::threaded(Traits::default(), vec![media]));
    let door = played.door.clone();
    let reads = NvmeReads::through(Box::new(move || Ok(door.clone())), 0, DiskReads::Auto, Options::default());
    let kernels = CudaDevice::new(D::again()).read_kernels().expect("a GPU");
    let gpu = kernels().unwrap().name().to_owned();
    let reads = reads.by_gpu(kernels, Settings::default());
    let mut streamed = load(open(), &gguf, Some((budget, &reads)));
    let memory = streamed.memory();
    assert!(memory.disk_per_pass > 0 && memory.disk_per_pass == memory.streamed_per_pass, "not all is on the drive");
    let (found, seconds) = tokens(&mut *streamed);
    assert_eq!(found, expected);
    let (name, bytes) = (streamed.device().to_owned(), memory.disk_per_pass as f64);
    let mean = seconds[1..].iter().sum::<f64>() / (TOKENS - 1) as f64;
    eprintln!(
        "{name}, {} on a played drive, read by a kernel of {gpu}: {mean:.3} s a token, {:.2} GB each, {:.2} GB/s",
        path.display(),
        bytes / 1e9,
        bytes / mean / 1e9
    );
    drop(streamed);
    assert!(played.door.bus().misses() == 0);
}

/// The same tokens as from a resident model. On a GPU, the model is that of NT_NVME_MODEL, or the demo's.
pub fn tokens_of_a_model_on_a_drive<D: Vram>(driver: &D) {
    if driver.is_emulated() {
        let small = Small::of("Q4_K_M");
        stream::<D, _>(&small.path, CpuDevice::new, 512);
        return stream::<D, _>(&small.path, || CudaDevice::new(D::again()), 4096);
    }
    let demo = || setup::root().join("assets/demo.gguf");
    let path = std::env::var_os("NT_NVME_MODEL").map_or_else(demo, Into::into);
    stream::<D, _>(&path, || CudaDevice::new(D::again()), 512);
}
