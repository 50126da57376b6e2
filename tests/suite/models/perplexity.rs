//! What quantised arithmetic costs in perplexity, for each tensor type.

use ntransformer::{
    device::top_k::Candidate,
    engine::{EngineError, MemoryReport},
    model::Config,
};

use super::*;

/// Largest relative difference of a perplexity from that of the same weights in F32, on the CPU.
const BUDGET: f64 = 0.005;

/// A runner whose passes are over one token each, as they are in generation.
struct OneByOne(Box<dyn Runner>);

impl Runner for OneByOne {
    fn config(&self) -> &Config {
        self.0.config()
    }

    fn device(&self) -> &str {
        self.0.device()
    }

    fn max_batch(&self) -> usize {
        1
    }

    fn memory(&self) -> MemoryReport {
        self.0.memory()
    }

    fn pass(&mut self, tokens: &[u32], start: usize, wanted: usize) -> Result<(), EngineError> {
        self.0.pass(tokens, start, wanted)
    }

    fn logits(&mut self) -> Result<Vec<f32>, EngineError> {
        self.0.logits()
    }

    fn argmax(&mut self) -> Result<Option<u32>, EngineError> {
        self.0.argmax()
    }

    fn top_k(&mut self, k: usize) -> Result<Vec<Candidate>, EngineError> {
        self.0.top_k(k)
    }
}

/// Compares the perplexity of the demo model with its matrices in each type with that of the same values in F32 on the CPU, over
/// `windows` windows of the held-out text, of `window` tokens each. The second half of a window is scored.
///
/// The model's matrices have 256 or 1024 columns, so that there is no type that they cannot have.
fn compare(device: DeviceChoice, window: usize, windows: usize) {
    let demo = Gguf::open(&root().join("assets/demo.gguf")).unwrap();
    let tokenizer = Tokenizer::from_gguf(&demo).unwrap();
    let held_out = std::fs::read_to_string(root().join("assets/heldout.txt")).unwrap();
    let tokens = tokenizer.encode(&held_out, EncodeOptions { bos: true, special: false }).unwrap();
    let tokens = &tokens[..window * windows];
    let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
    let open = |device, gguf: &Arc<Gguf>| {
        let model = Model::new(gguf.clone(), Some(window), window).unwrap();
        let options = LoadOptions { wanted: window, ..LoadOptions::default() };
        engine::open(device, model, &options, &mut |line| eprintln!("{line}"), &mut |_| ()).unwrap()
    };
    let perplexity = |runner: &mut dyn Runner| {
        let result = engine::perplexity(runner, tokens, window, bos, &mut |_| true).unwrap();
        assert_eq!(result.scored, windows * (window / 2 - 1));
        result.value()
    };
    for &ty in TensorType::ALL {
        let gguf = with_matrices(&demo, ty);
        let expected = perplexity(&mut *open(DeviceChoice::Cpu, &decoded(&gguf)));
        let mut ways = vec![("prompts", perplexity(&mut *open(device, &gguf)))];
        if device != DeviceChoice::Cpu {
            ways.push(("token by token", perplexity(&mut OneByOne(open(device, &gguf)))));
        }
        for (way, found) in ways {
            let off = found / expected - 1.0;
            println!("{ty} {device:?}, {way}: {found:.5}, in F32 {expected:.5}: off by {:.4} %", 100.0 * off);
            assert!(off.abs() < BUDGET, "{ty} {device:?}, {way}: {found} instead of {expected}");
        }
    }
}

/// On the CPU, whose activations have 15 bits: a short text will do.
///
/// The emulator takes minutes for a text in which [`BUDGET`] is more than chance (with seven tokens scored, the errors of 8-bit
/// activations make up to 2 %); `devices_agree` compares its logits, type by type.
#[test]
fn every_type_keeps_the_perplexity() {
    compare(DeviceChoice::Cpu, 64, 4);
}

mod gpu {
    use super::*;

    #[test]
    #[ignore = "needs a GPU"]
    fn every_type_keeps_the_perplexity() {
        compare(DeviceChoice::Cuda(0), 256, 16);
    }
}
