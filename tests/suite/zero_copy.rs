//! Weights that are read over the link where they are in RAM: the same results beside all other ways, and what is said about it.

use std::{
    process::{Command, Output, Stdio},
    sync::Arc,
};

use ntransformer::{
    cli::synth::{Quant, Shape},
    device::{
        Device, DeviceError, Transfer,
        cpu::CpuDevice,
        cuda::{CudaDevice, cust::CustDriver, emulator::EmulatorDriver},
    },
    engine::{self, DeviceChoice, LoadOptions},
    gguf::Gguf,
    model::{Embedding, Model, State, Weights, forward},
    stream::{
        Reading, Streamed, Streams,
        plan::{Access, RamAccess, Tier},
        ring,
    },
};
use quant::TensorType;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use serde_json::Value;

use super::{models, placement::Small, setup, synth};

/// A prompt and tokens after it, so that all ways of computing are gone.
pub const PASSES: [&[u32]; 4] = [&[1, 5, 9, 14, 200], &[3], &[77], &[4]];
const PROMPT: usize = PASSES[0].len();

/// Each matrix on the device, copied from RAM, read in RAM, or copied from the file: at random.
fn mixed(model: &Model, seed: u64) -> Streams {
    const WAYS: [Option<Tier>; 4] = [
        None,
        Some(Tier::Ram { device: 0, access: Access::Copy }),
        Some(Tier::Ram { device: 0, access: Access::ZeroCopy }),
        Some(Tier::Disk { device: 0 }),
    ];
    let mut rng = SmallRng::seed_from_u64(seed);
    let layers = model.config.layers;
    let mut streams = Streams { staging_bytes: 16 << 20, ..Streams::default() };
    let mut groups = Vec::new();
    for group in 0..=layers {
        let ids = if group < layers { model.layer_tensors(group) } else { model.head_tensors() };
        let matrices = ids.into_iter().filter(|id| model.gguf.tensors()[id.0].rows() > 1);
        let mut copied = Vec::new();
        for id in matrices {
            let Some(tier) = WAYS[rng.random_range(0..WAYS.len())] else { continue };
            streams.elsewhere.insert(id, tier);
            copied.extend(tier.is_copied().then(|| model.gguf.tensors()[id.0].bytes));
        }
        groups.push(copied);
    }
    assert!(WAYS.iter().flatten().all(|way| streams.elsewhere.values().any(|tier| tier == way)), "seed {seed}");
    streams.ring_bytes = ring::least(&groups) + rng.random_range(0..400_000);
    streams
}

/// The logits of [`PASSES`], of a model that is mixed by `seed`, and the bytes that are read in RAM and those that cross the link.
pub fn logits<D: Device + 'static>(
    mut dev: D,
    gguf: Arc<Gguf>,
    seed: u64,
    reading: &Reading<'_>,
) -> (Vec<f32>, [u64; 2]) {
    let model = Model::new(gguf, None, 64).unwrap();
    let dims = &model.config.dims;
    dev.prepare(dims, PROMPT).unwrap();
    let mut state = State::new(&dev, dims, model.config.layers, PROMPT, PROMPT).unwrap();
    let layers = Streamed::load(&dev, &model, &mixed(&model, seed), reading, &mut |_| ()).unwrap();
    let bytes = [layers.zero_copy_bytes(), ntransformer::model::Layers::streamed_bytes(&layers)];
    let mut weights = Weights::new(Embedding::Host, Box::new(layers));
    let (mut all, mut start) = (Vec::new(), 0);
    for tokens in PASSES {
        let batch = model.batch(tokens, start, (0..tokens.len() as u32).collect());
        forward(&mut dev, &model, &mut weights, &mut state, &batch).unwrap();
        all.extend(dev.fetch(state.logits(), tokens.len(), dims.vocab).unwrap());
        start += tokens.len();
    }
    (all, bytes)
}

/// Whatever is read in RAM, copied from there or from the file, or resident, matrix by matrix in one layer: the logits are those of the
/// resident model, to the bit.
#[test]
fn any_mix_is_resident_to_the_bit() {
    for quant in ["Q8_0", "Q4_K_M"] {
        let small = Small::of(quant);
        let gguf = Arc::new(Gguf::open(&small.path).unwrap());
        for device in models::devices() {
            let expected = models::logits_of_passes(&mut *models::open(device, &gguf, None), PASSES);
            // The emulator's pace allows one.
            for seed in 1..=if device == DeviceChoice::Emulator { 1 } else { 5 } {
                let (gguf, files) = (gguf.clone(), Reading::default());
                let (found, [zero_copy, streamed]) = match device {
                    DeviceChoice::Cpu => logits(CpuDevice::new(), gguf, seed, &files),
                    DeviceChoice::Emulator => logits(CudaDevice::new(EmulatorDriver::new(seed)), gguf, seed, &files),
                    _ => {
                        let driver = CustDriver::open(0, |line| eprintln!("{line}")).unwrap();
                        logits(CudaDevice::new(driver), gguf, seed, &files)
                    }
                };
                assert!(0 < zero_copy && zero_copy < streamed, "{zero_copy} of {streamed} bytes");
                let same = found.iter().zip(&expected).all(|(f, e)| f.to_bits() == e.to_bits());
                assert!(same && found.len() == expected.len(), "{quant} {device:?} seed {seed}: the logits are others");
            }
        }
    }
}

/// Where no ring fits, kernels read in RAM, and take no device memory for it; also where they are told to although one would fit.
#[test]
fn a_model_without_a_ring_is_resident_to_the_bit() {
    let gguf = synth::model(Shape::Tiny, Quant::pure(TensorType::Q8_0), 4);
    for device in models::devices() {
        let mut whole = models::open(device, &gguf, None);
        let expected = models::logits_of_passes(&mut *whole, PASSES);
        let memory = whole.memory();
        let layer = Model::new(gguf.clone(), None, 64).unwrap().layer_image(0).unwrap().bytes() as u64;
        let half = memory.kv + memory.activations + layer / 2;
        let (full, zero_copy) = (models::budget(&*whole, &gguf, 1), RamAccess::Only(Access::ZeroCopy));
        let mut all = u64::MAX;
        for (budget, ram_access) in [(half, RamAccess::Auto), (full, zero_copy)] {
            let model = Model::new(gguf.clone(), None, 64).unwrap();
            let options = LoadOptions {
                streaming: true,
                vram_budget: Some(budget.into()),
                ram_access,
                wanted: 64,
                ..Default::default()
            };
            let mut runner = engine::open(device, model, &options, &mut |_| (), &mut |_| ()).unwrap();
            let found = runner.memory();
            assert!(found.zero_copy_per_pass > 0 && found.zero_copy_per_pass == found.streamed_per_pass, "{found:?}");
            assert!(found.zero_copy_per_pass < all, "more memory, and no less is read in RAM");
            all = found.zero_copy_per_pass;
            assert!((all..all + (8 << 10)).contains(&found.pinned), "{found:?}");
            assert!(found.device_weights + found.kv + found.activations <= budget, "{found:?} in {budget}");
            // On the CPU, what stays is read in the file's map.
            let stays = found.read_per_pass - all;
            assert!(device == DeviceChoice::Cpu || found.device_weights <= stays + (32 << 10), "{found:?}");
            let logits = models::logits_of_passes(&mut *runner, PASSES);
            assert!(logits.iter().zip(&expected).all(|(f, e)| f.to_bits() == e.to_bits()), "{device:?} {ram_access:?}");
            assert!(runner.flowed().unwrap().is_some_and(|flowed| flowed.link_bytes == 0), "nothing is copied");
        }
        // With room for the ring, copies are preferred.
        assert_eq!(models::open(device, &gguf, Some(full)).memory().zero_copy_per_pass, 0);
    }
}

/// Kernels read 16 bytes at once: memory that ends in the middle of them is refused.
#[test]
fn memory_that_kernels_would_read_beyond_is_refused() {
    let dev = CudaDevice::new(EmulatorDriver::new(0));
    let refused = |bytes| dev.zero_copy(dev.pinned("weights", bytes).unwrap()).err();
    assert!(matches!(refused(17), Some(DeviceError::OutOfRange { what: "zero-copy", end: 32, len: 17, .. })));
    assert!(refused(32).is_none());
}

fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } =
        Command::new(setup::ntransformer()).args(args).stdin(Stdio::null()).output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

fn json(args: &[&str]) -> (Value, String) {
    let (code, stdout, stderr) = run(&[args, &["--json"]].concat());
    assert_eq!(code, Some(0), "{stderr}");
    (serde_json::from_str(&stdout).unwrap(), stderr)
}

/// The plan says how the device gets at what is in RAM; the least memory is less where it may read there.
#[test]
fn the_plan_says_so() {
    let small = Small::of("Q8_0");
    let small = ["-m", small.path.to_str().unwrap(), "-c", "64", "--device", "emulator", "--streaming", "--plan"];
    let plan = |rest: &[&str]| json(&[&small, rest].concat()).0;
    let least = |rest: &[&str]| plan(rest)["vram_least_bytes"].as_u64().unwrap();
    let [auto, copy, zero_copy] = ["auto", "copy", "zero-copy"].map(|how| least(&["--ram-access", how]));
    let fixed =
        plan(&[])["fixed_bytes"].as_object().unwrap().values().map(|bytes| bytes.as_u64().unwrap()).sum::<u64>();
    assert!(auto == fixed && zero_copy == fixed && copy > fixed, "{auto}, {copy}, {zero_copy}, of them fixed {fixed}");
    assert_eq!(least(&["--link-limit", "1GB/s"]), copy, "only copies can be slowed down");

    let below = (copy - 1).to_string();
    let made = plan(&["--vram-budget", &below]);
    let tier = |plan: &Value, name: &str| {
        plan["tiers"].as_array().unwrap().iter().find(|tier| tier["tier"] == name).cloned().unwrap_or_default()
    };
    assert_eq!((&tier(&made, "ram")["access"], &tier(&made, "vram")["access"]), (&"zero-copy".into(), &Value::Null));
    assert_eq!((&made["ring_bytes"], &made["zero_copy_bytes_per_token"]), (&0.into(), &tier(&made, "ram")["bytes"]));
    assert_eq!(made["link_bytes_per_token"], made["zero_copy_bytes_per_token"]);
    let copied = plan(&["--vram-budget", &copy.to_string()]);
    assert_eq!((&tier(&copied, "ram")["access"], &copied["zero_copy_bytes_per_token"]), (&"copy".into(), &0.into()));

    let (_, table, _) = run(&[&small[..], &["--vram-budget", &below]].concat());
    for part in ["in RAM, zero-copy", "no ring to copy through has room", " over the link by zero-copy"] {
        assert!(table.contains(part), "no {part:?} in:\n{table}");
    }
    for (args, part) in [
        (&["--vram-budget", &below, "--link-limit", "1GB/s"][..], "--link-limit and --ram-access copy rule out less"),
        (&["--vram-budget", &below, "--ram-access", "copy"], "--link-limit and --ram-access copy rule out less"),
        (&["--link-limit", "1GB/s", "--ram-access", "zero-copy"], "leave out --link-limit or --ram-access zero-copy"),
    ] {
        let (code, _, message) = run(&[&small[..], args].concat());
        assert_eq!(code, Some(1), "{message}");
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
}

/// What a run says: why, how much, and how fast where that is known; that a trace has nothing to show.
#[test]
fn a_run_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace.json");
    let demo = ["--device", "cpu", "-c", "128", "-t", "0", "-n", "8", "-p", "Once upon a time", "-v", "--streaming"];
    let traced = ["--trace", trace.to_str().unwrap(), "--vram-budget"];
    let text = json(&demo).0["text"].clone();
    // The ring would take 1 MiB; all else takes 3.8.
    let (report, log) = json(&[&demo[..], &traced, &["4500KB"]].concat());
    assert_eq!(report["text"], text);
    let memory = &report["memory"];
    assert!(memory["zero_copy_per_pass"].as_u64() > Some(0), "{report:#}");
    assert_eq!(memory["zero_copy_per_pass"], memory["streamed_per_pass"]);
    for part in [
        "device memory has no room for a ring",
        "are read in RAM (zero-copy) in each pass",
        "over the link by zero-copy, at ",
        "nothing in it, since nothing is copied",
    ] {
        assert!(log.contains(part), "no {part:?} in:\n{log}");
    }
    assert!(!log.contains("for room in the ring"), "{log}");
    // How often kernels read the weights for a prompt's tokens, nobody counts.
    let rate = |of: &str| &report[of]["streamed"]["link_bytes_per_second"];
    assert!(rate("decode").as_f64() > Some(0.0) && rate("prompt").is_null(), "{report:#}");
    // Who asks for it is not told why.
    let (report, log) = json(&[&demo[..], &["--vram-budget", "6MiB", "--ram-access", "zero-copy"]].concat());
    assert!(report["text"] == text && report["memory"]["zero_copy_per_pass"].as_u64() > Some(0), "{report:#}");
    assert!(!log.contains("has no room"), "{log}");
}
