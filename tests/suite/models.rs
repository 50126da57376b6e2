//! Whole models on every device: against each other, streamed against resident, and against HF transformers.
//!
//! With NT_TEST_GPU=1 the GPU is one of the devices, and its absence a failure.

mod perplexity;

use std::sync::Arc;

use ntransformer::{
    cli::synth::{Quant, Shape},
    device::MAX_TOP_K,
    engine::{self, DeviceChoice, EncodeOptions, LoadOptions, Runner, Tokenizer},
    gguf::{Gguf, TensorInfo, Writer},
    model::{Architecture, Model},
    stream::Progress,
};
use quant::TensorType;
use rayon::prelude::*;
use serde_json::Value;

use super::{reference, setup::root, synth};

/// Largest difference of logits over the largest logit that is put down to the order of sums: F32 arithmetic, with keys
/// and values rounded to F16.
pub const ROUNDING: f64 = 1e-3;

/// The same where activations are quantised to signed bytes in blocks of 32, which the GPU's kernels do for all weights but
/// floats. An activation is off by d / sqrt(12) in the mean square, with d = (the largest of its block) / 127. The largest of 32
/// normal numbers is 2.1 standard deviations, so a product's input, and with it its output, has a relative error of 2.1 / 127 /
/// sqrt(12) = 0.5 %, and about 1 % where the input has been gated, which is further from normal. The models here have four layers or
/// eight, so a logit takes up nine such errors or 17, independent ones: 1.5 to 4 % of what they are errors of. Measured: 1.2 to
/// 2.4 %. The largest error
/// among all logits is as many of its standard deviations as the largest logit is of its own, so that is also the ratio of the largest.
const INT8: f64 = 3e-2;

/// What is put down to rounding when `device` computes with these weights.
fn tolerance(device: DeviceChoice, gguf: &Gguf) -> f64 {
    let floats = [TensorType::F32, TensorType::F16, TensorType::BF16];
    let matrices = gguf.tensors().iter().filter(|tensor| tensor.rows() > 1);
    let exact = matrices.map(|tensor| gguf.supported_type(tensor).unwrap()).all(|ty| floats.contains(&ty));
    if device == DeviceChoice::Cpu || exact { ROUNDING } else { INT8 }
}

/// Tokens of context, where the model allows as many.
const CONTEXT: usize = 64;

pub fn devices() -> Vec<DeviceChoice> {
    let mut devices = vec![DeviceChoice::Cpu, DeviceChoice::Emulator];
    if std::env::var_os("NT_TEST_GPU").is_some_and(|value| value == "1") {
        devices.push(DeviceChoice::Cuda(0));
    }
    devices
}

pub fn open(device: DeviceChoice, gguf: &Arc<Gguf>, vram_budget: Option<u64>) -> Box<dyn Runner> {
    open_with(device, gguf, None, vram_budget, &mut |_| ())
}

pub fn open_with(
    device: DeviceChoice,
    gguf: &Arc<Gguf>,
    context: Option<usize>,
    vram_budget: Option<u64>,
    progress: Progress<'_>,
) -> Box<dyn Runner> {
    let model = Model::new(gguf.clone(), context, CONTEXT).unwrap();
    let options = LoadOptions {
        streaming: vram_budget.is_some(),
        vram_budget: vram_budget.map(Into::into),
        wanted: CONTEXT,
        ..Default::default()
    };
    engine::open(device, model, &options, &mut |line| eprintln!("{line}"), progress)
        .unwrap_or_else(|e| panic!("{device:?}: {e}"))
}

/// Logits of every position, `[tokens x vocab]`, computed in passes of up to `batch` tokens.
fn logits(runner: &mut dyn Runner, tokens: &[u32], batch: usize) -> Vec<f32> {
    logits_of_passes(runner, tokens.chunks(batch))
}

/// Logits of every position of the tokens that `passes` are, one after the other.
pub fn logits_of_passes<'a>(runner: &mut dyn Runner, passes: impl IntoIterator<Item = &'a [u32]>) -> Vec<f32> {
    let (mut all, mut position) = (Vec::new(), 0);
    for pass in passes {
        runner.pass(pass, position, pass.len()).unwrap();
        all.extend(runner.logits().unwrap());
        position += pass.len();
    }
    assert_eq!(all.len(), position * runner.config().dims.vocab);
    assert!(all.iter().all(|l| l.is_finite()));
    all
}

/// The largest difference over the largest magnitude of what is expected.
pub fn difference(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0, |max: f32, e| max.max(e.abs()));
    let apart = found.iter().zip(expected).fold(0.0, |max: f32, (f, e)| max.max((f - e).abs()));
    f64::from(apart) / f64::from(largest)
}

const TOKENS: [u32; 6] = [5, 301, 77, 1999, 3, 1024];

/// [`TOKENS`] as a prompt and two tokens after it: both ways of computing, in as few steps as the emulator's pace suggests.
const PASSES: [&[u32]; 3] = [&[5, 301, 77, 1999], &[3], &[1024]];

/// The fewest tokens that are computed in both ways: what the emulator's pace allows for every type of weights. That any
/// number of tokens gives the same is for `kernels::gemm`; the window of the Phi-3 shape takes more of them.
const FEW: [&[u32]; 2] = [&[5, 301], &[77]];

/// The model with its weights decoded, all F32.
fn decoded(gguf: &Gguf) -> Arc<Gguf> {
    with_matrices(gguf, TensorType::F32)
}

/// The model with its matrices decoded and encoded in `ty`, the vectors in F32.
///
/// # Panics
/// If a matrix has columns that are no multiple of the type's block.
fn with_matrices(gguf: &Gguf, ty: TensorType) -> Arc<Gguf> {
    let mut writer = Writer::new();
    for (key, value) in gguf.metadata().iter() {
        writer.set_value(key, value).unwrap();
    }
    let tensors = gguf.tensors();
    let ty_of = |tensor: &TensorInfo| if tensor.rows() > 1 { ty } else { TensorType::F32 };
    for tensor in tensors {
        writer.tensor(&tensor.name, &tensor.dims, ty_of(tensor)).unwrap();
    }
    let encoded = |tensor: &TensorInfo| {
        let (ty, elems) = (ty_of(tensor), tensor.elems() as usize);
        let mut values = vec![f32::NAN; elems];
        quant::decode_row(gguf.supported_type(tensor).unwrap(), gguf.bytes(tensor), &mut values).unwrap();
        let mut bytes = vec![0; ty.row_bytes(elems).unwrap()];
        quant::encode_row(ty, &values, &mut bytes).unwrap();
        bytes
    };
    let mut data = writer.begin(Vec::new()).unwrap();
    for bytes in tensors.par_iter().map(encoded).collect::<Vec<_>>() {
        data.write(&bytes).unwrap();
    }
    Arc::new(Gguf::from_vec(&format!("matrices in {ty}"), data.finish().unwrap()).unwrap())
}

/// All devices compute the same for every type of weights, and for matrices that are parts of others: what the F32 model
/// computes that has the weights' values.
#[test]
fn devices_agree() {
    let llama = TensorType::ALL.iter().map(|&ty| (Shape::Tiny, Quant::pure(ty)));
    let qwen2 = ["F32", "Q4_K_M", "IQ4_XS"].map(|quant| (Shape::TinyQwen2, quant.parse().unwrap()));
    let phi3 = ["F16", "Q8_0", "Q4_K_M"].map(|quant| (Shape::TinyPhi3, quant.parse().unwrap()));
    for (shape, quant) in llama.chain(qwen2).chain(phi3) {
        let gguf = synth::model(shape, quant, 9);
        let expected = logits(&mut *open(DeviceChoice::Cpu, &decoded(&gguf), None), &TOKENS, TOKENS.len());
        for device in devices() {
            let passes = if device == DeviceChoice::Emulator && shape != Shape::TinyPhi3 { &FEW[..] } else { &PASSES };
            let found = logits_of_passes(&mut *open(device, &gguf, None), passes.iter().copied());
            let positions: usize = passes.iter().map(|pass| pass.len()).sum();
            let apart = difference(&found, &expected[..positions * (expected.len() / TOKENS.len())]);
            println!("{shape:?} {} {device:?}: {apart:.1e}", quant.name());
            assert!(apart < tolerance(device, &gguf), "{shape:?} {} {device:?}: {apart:e}", quant.name());
        }
    }
}

/// Device memory in which so many layers' worth of matrices stay, beside a ring as large as two layers.
pub fn budget(runner: &dyn Runner, gguf: &Arc<Gguf>, resident: u64) -> u64 {
    let model = Model::new(gguf.clone(), None, CONTEXT).unwrap();
    let layer = model.layer_image(0).unwrap().bytes() as u64;
    let memory = runner.memory();
    memory.kv + memory.activations + model.head_image().unwrap().bytes() as u64 + (resident + 2) * layer
}

/// Where the weights come from makes no difference, to the bit, as long as the passes are the same.
#[test]
fn streamed_is_resident_to_the_bit() {
    let shapes =
        [(Shape::Tiny, TensorType::Q8_0), (Shape::TinyQwen2, TensorType::Q4_K), (Shape::TinyPhi3, TensorType::Q6_K)];
    for (shape, ty) in shapes {
        let gguf = synth::model(shape, Quant::pure(ty), 4);
        for device in devices() {
            let mut whole = open(device, &gguf, None);
            assert_eq!(whole.memory().streamed_per_pass, 0);
            let expected = logits_of_passes(&mut *whole, PASSES);
            let best = whole.argmax().unwrap();
            let logits = whole.logits().unwrap();
            let row = &logits[logits.len() - whole.config().dims.vocab..];
            assert_eq!(best, Some(reference::argmax(row)));
            for k in [1, 40, MAX_TOP_K] {
                assert_eq!(whole.top_k(k).unwrap(), reference::top_k(row, k), "{device:?}");
            }
            let [none, one] = [0, 1].map(|resident| budget(&*whole, &gguf, resident));
            let check = |budget: u64, streams: bool| {
                let mut runner = open(device, &gguf, Some(budget));
                let memory = runner.memory();
                assert_eq!(
                    (memory.resident_layers < 4.0, memory.streamed_per_pass > 0),
                    (streams, streams),
                    "{device:?}"
                );
                let taken = memory.device_weights + memory.kv + memory.activations;
                assert!(taken <= budget, "{device:?} takes {taken} bytes of {budget}");
                let found = logits_of_passes(&mut *runner, PASSES);
                let same = found.iter().zip(&expected).all(|(f, e)| f.to_bits() == e.to_bits());
                assert!(same, "{shape:?} {device:?}, {budget} bytes: the logits are others");
                assert_eq!(runner.argmax().unwrap(), best);
                memory.streamed_per_pass
            };
            let all = check(none, true);
            // The emulator's pace allows the rest once: what is resident has nothing to do with the shape.
            if device != DeviceChoice::Emulator || shape == Shape::Tiny {
                assert!(check(one, true) < all);
                check(u64::MAX, false);
            }
        }
    }
}

fn golden(area: &str) -> Vec<Value> {
    let path = root().join("tests/data/golden.json");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let json: Value = serde_json::from_str(&text).unwrap();
    json[area].as_array().unwrap().clone()
}

/// What HF transformers makes of a model (tools/golden).
struct Golden {
    name: String,
    gguf: Arc<Gguf>,
    tokens: Vec<u32>,
    /// The context to run it with, where it matters.
    context: Option<usize>,
    /// `[tokens x vocab]`
    logits: Vec<f32>,
}

impl Golden {
    fn read(entry: &Value) -> Self {
        let text = |key: &str| entry[key].as_str().unwrap();
        let bytes = std::fs::read(root().join(text("logits"))).unwrap();
        let logits: Vec<f32> = match text("dtype") {
            "f32" => bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
            "f16" => bytes.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            other => panic!("{other}"),
        };
        let tokens: Vec<u32> = entry["tokens"].as_array().unwrap().iter().map(|t| t.as_u64().unwrap() as u32).collect();
        assert_eq!(logits.len() as u64, tokens.len() as u64 * entry["n_vocab"].as_u64().unwrap());
        let gguf = Arc::new(Gguf::open(&root().join(text("gguf"))).unwrap());
        let context = entry["context"].as_u64().map(|tokens| tokens as usize);
        Golden { name: text("name").to_owned(), gguf, tokens, context, logits }
    }

    fn vocab(&self) -> usize {
        self.logits.len() / self.tokens.len()
    }
}

/// Ways to cut a text into passes: at once, in sevens, token by token. The emulator's pace allows one, with some of each.
fn ways(device: DeviceChoice, tokens: &[u32]) -> Vec<Vec<&[u32]>> {
    if device == DeviceChoice::Emulator {
        let (prompt, rest) = tokens.split_at(tokens.len() - 9);
        let (seven, two) = rest.split_at(7);
        return vec![[prompt, seven].into_iter().chain(two.chunks(1)).collect()];
    }
    [tokens.len(), 7, 1].map(|length| tokens.chunks(length).collect()).to_vec()
}

/// Small models of each kind, F32: every device computes the logits of HF transformers, whether the prompt comes in one
/// pass, in several, or token by token.
#[test]
fn small_models_match_transformers() {
    let models: Vec<_> = golden("models").iter().map(Golden::read).filter(|golden| golden.name != "demo").collect();
    assert!(models.len() >= 17, "{} golden models", models.len());
    for arch in Architecture::ALL {
        let of_arch =
            |golden: &&Golden| golden.gguf.metadata().str("general.architecture").unwrap() == Some(arch.name());
        assert!(models.iter().any(|golden| of_arch(&golden)), "no golden model of {arch:?}");
    }
    for golden in &models {
        for device in devices() {
            let mut runner = open_with(device, &golden.gguf, golden.context, None, &mut |_| ());
            for passes in ways(device, &golden.tokens) {
                let lengths: Vec<usize> = passes.iter().map(|pass| pass.len()).collect();
                let apart = difference(&logits_of_passes(&mut *runner, passes), &golden.logits);
                println!("{} {device:?}, passes of {lengths:?}: {apart:.1e}", golden.name);
                assert!(apart < ROUNDING, "{} {device:?}, passes of {lengths:?}: {apart:e}", golden.name);
            }
        }
    }
}

/// Largest difference of the demo model's logits over the largest logit, at least. Measured: 3.2e-4 on the CPU, from keys and values rounded to F16 and from the F16 that the golden logits are stored in, which alone makes up to 4.9e-4.
const DEMO_BUDGET: f64 = 1e-3;

fn argmax(row: &[f32]) -> usize {
    (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap()
}

/// Positions of the demo model's text in the emulator, whose pace allows no more: passes of the matrix kernels over all the
/// tokens that they take at once, and one over fewer. No position knows of those after it.
const DEMO_EMULATED: usize = 20;

/// The demo model, 64 positions of a text: logits within a budget, and the same most likely tokens wherever the best two
/// are further apart than it.
#[test]
fn the_demo_model_matches_transformers() {
    let golden = golden("models").iter().map(Golden::read).find(|golden| golden.name == "demo").unwrap();
    let (positions, vocab) = (golden.tokens.len(), golden.vocab());
    assert_eq!(positions, 64);
    let largest = golden.logits.iter().fold(0.0, |max: f32, l| max.max(l.abs()));
    let lead = |p: usize| {
        let row = &golden.logits[p * vocab..][..vocab];
        let best = argmax(row);
        let second = (0..vocab).filter(|&i| i != best).map(|i| row[i]).fold(f32::NEG_INFINITY, f32::max);
        f64::from(row[best] - second) / f64::from(largest)
    };
    for device in devices() {
        let budget = tolerance(device, &golden.gguf).max(DEMO_BUDGET);
        let positions = if device == DeviceChoice::Emulator { DEMO_EMULATED } else { positions };
        let clear: Vec<usize> = (0..positions).filter(|&p| lead(p) > budget).collect();
        assert!(clear.len() > positions / 2, "{device:?}: only {} positions have a clear winner", clear.len());
        let mut runner = open(device, &golden.gguf, None);
        let found = logits(&mut *runner, &golden.tokens[..positions], positions);
        let apart = difference(&found, &golden.logits[..positions * vocab]);
        println!("{device:?}: {apart:.1e}, {} clear positions", clear.len());
        assert!(apart < budget, "{device:?}: {apart:e}");
        for &p in &clear {
            let row = |logits: &[f32]| argmax(&logits[p * vocab..][..vocab]);
            assert_eq!(row(&found), row(&golden.logits), "{device:?}, position {p}");
        }
        // The device's own choice, which generation uses.
        assert_eq!(runner.argmax().unwrap(), Some(argmax(&found[(positions - 1) * vocab..]) as u32), "{device:?}");
    }
}

/// Perplexity of the held-out text by the same protocol: that of HF transformers within 0.5 %.
#[test]
fn perplexity_matches_transformers() {
    let entries = golden("perplexity");
    assert_eq!(entries.len(), 2);
    for entry in entries {
        let text = |key: &str| entry[key].as_str().unwrap();
        let number = |key: &str| entry[key].as_u64().unwrap() as usize;
        let gguf = Arc::new(Gguf::open(&root().join(text("model"))).unwrap());
        let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
        let held_out = std::fs::read_to_string(root().join(text("text"))).unwrap();
        let tokens = tokenizer.encode(&held_out, EncodeOptions { bos: true, special: false }).unwrap();
        assert_eq!(tokens.len(), number("tokens"), "{}", text("text"));

        let window = number("context");
        let model = Model::new(gguf, Some(window), window).unwrap();
        let options = LoadOptions { wanted: window, ..Default::default() };
        let mut runner = engine::open(DeviceChoice::Cpu, model, &options, &mut |_| (), &mut |_| ()).unwrap();
        let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
        let found = engine::perplexity(&mut *runner, &tokens, window, bos, &mut |_| true).unwrap();
        let expected = entry["perplexity"].as_f64().unwrap();
        println!("{}: {:.6}, transformers {expected:.6}", text("model"), found.value());
        assert_eq!(found.scored, number("scored"));
        approx::assert_relative_eq!(found.value(), expected, max_relative = 0.005);
    }
}
