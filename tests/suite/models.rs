//! Whole models on every device: against each other, streamed against resident, and against HF transformers.
//!
//! With NT_TEST_GPU=1 the GPU is one of the devices, and its absence a failure.

use std::sync::Arc;

use ntransformer::{
    cli::synth::{Quant, Shape},
    engine::{self, DeviceChoice, LoadOptions, Runner},
    gguf::Gguf,
    model::Model,
};
use quant::TensorType;

use super::synth;

/// Largest difference of logits over the largest logit that is put down to the order of sums: F32 arithmetic, with keys
/// and values rounded to F16.
const ROUNDING: f64 = 1e-3;

fn devices() -> Vec<DeviceChoice> {
    let mut devices = vec![DeviceChoice::Cpu, DeviceChoice::Emulator];
    if std::env::var_os("NT_TEST_GPU").is_some_and(|value| value == "1") {
        devices.push(DeviceChoice::Cuda(0));
    }
    devices
}

fn open(device: DeviceChoice, gguf: &Arc<Gguf>, vram_budget: Option<u64>) -> Box<dyn Runner> {
    let model = Model::new(gguf.clone(), Some(128), 4096).unwrap();
    let options = LoadOptions { streaming: vram_budget.is_some(), vram_budget, wanted: 128 };
    engine::open(device, model, &options, &mut |line| eprintln!("{line}"), &mut |_| ())
        .unwrap_or_else(|e| panic!("{device:?}: {e}"))
}

/// Logits of every position, `[tokens x vocab]`, computed in passes of up to `batch` tokens.
fn logits(runner: &mut dyn Runner, tokens: &[u32], batch: usize) -> Vec<f32> {
    let mut all = Vec::new();
    for (i, chunk) in tokens.chunks(batch).enumerate() {
        runner.pass(chunk, i * batch, chunk.len()).unwrap();
        all.extend(runner.logits().unwrap());
    }
    assert_eq!(all.len(), tokens.len() * runner.config().dims.vocab);
    assert!(all.iter().all(|l| l.is_finite()));
    all
}

/// The largest difference over the largest magnitude of what is expected.
fn difference(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0, |max: f32, e| max.max(e.abs()));
    let apart = found.iter().zip(expected).fold(0.0, |max: f32, (f, e)| max.max((f - e).abs()));
    f64::from(apart) / f64::from(largest)
}

const TOKENS: [u32; 9] = [5, 301, 77, 1999, 3, 301, 42, 1024, 8];

/// All devices compute the same, in one pass and token by token, for every type of weights and both architectures.
#[test]
fn devices_agree() {
    let llama = TensorType::ALL.iter().map(|&ty| (Shape::Tiny, Quant::pure(ty)));
    let qwen2 = ["F32", "Q4_K_M"].map(|quant| (Shape::TinyQwen2, quant.parse().unwrap()));
    for (shape, quant) in llama.chain(qwen2) {
        let gguf = synth::model(shape, quant, 9);
        let expected = logits(&mut *open(DeviceChoice::Cpu, &gguf, None), &TOKENS, TOKENS.len());
        for device in devices() {
            let mut runner = open(device, &gguf, None);
            for batch in [TOKENS.len(), 4, 1] {
                let apart = difference(&logits(&mut *runner, &TOKENS, batch), &expected);
                println!("{shape:?} {} {device:?}, {batch} at a time: {apart:.1e}", quant.name());
                assert!(apart < ROUNDING, "{shape:?} {} {device:?}, {batch} at a time: {apart:e}", quant.name());
            }
        }
    }
}

/// Device memory that holds `resident` layers and two slots.
fn budget(runner: &dyn Runner, gguf: &Arc<Gguf>, resident: u64) -> u64 {
    let model = Model::new(gguf.clone(), Some(128), 4096).unwrap();
    let layer = model.layer_image(0).unwrap().bytes() as u64;
    let memory = runner.memory();
    memory.kv + memory.activations + model.head_image().unwrap().bytes() as u64 + (resident + 2) * layer
}

/// Where the weights come from makes no difference, to the bit, as long as the passes are the same.
#[test]
fn streamed_is_resident_to_the_bit() {
    for (shape, ty) in [(Shape::Tiny, TensorType::Q8_0), (Shape::TinyQwen2, TensorType::Q4_K)] {
        let gguf = synth::model(shape, Quant::pure(ty), 4);
        for device in devices() {
            let mut whole = open(device, &gguf, None);
            assert_eq!(whole.memory().streamed_per_pass, 0);
            for resident in [0, 1] {
                let mut streamed = open(device, &gguf, Some(budget(&*whole, &gguf, resident)));
                let memory = streamed.memory();
                assert_eq!(memory.resident_layers as u64, resident);
                assert!(memory.streamed_per_pass > 0, "{device:?} with {resident} layers resident streams nothing");
                for batch in [TOKENS.len(), 4, 1] {
                    let expected = logits(&mut *whole, &TOKENS, batch);
                    let found = logits(&mut *streamed, &TOKENS, batch);
                    let same = found.iter().zip(&expected).all(|(f, e)| f.to_bits() == e.to_bits());
                    assert!(same, "{shape:?} {device:?}, {resident} layers resident, {batch} tokens at a time");
                    assert_eq!(streamed.argmax().unwrap(), whole.argmax().unwrap());
                }
            }
            let mut all = open(device, &gguf, Some(u64::MAX));
            assert_eq!((all.memory().resident_layers, all.memory().streamed_per_pass), (4, 0));
            assert_eq!(logits(&mut *all, &TOKENS, 4), logits(&mut *whole, &TOKENS, 4));
        }
    }
}
