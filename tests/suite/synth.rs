//! Models with random weights.

use std::{collections::HashSet, path::Path, process::Command, sync::Arc};

use ntransformer::{
    cli::synth::{Quant, Shape, write},
    demo,
    device::cpu::CpuDevice,
    engine::{LoadOptions, Runner, Session, Tokenizer},
    gguf::Gguf,
    model::Model,
};
use quant::TensorType;

use crate::setup;

/// A model of random weights in memory, with the demo model's tokenizer.
pub fn model(shape: Shape, quant: Quant, seed: u64) -> Arc<Gguf> {
    Arc::new(Gguf::from_vec("random weights", bytes(shape, quant, seed)).unwrap())
}

fn bytes(shape: Shape, quant: Quant, seed: u64) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("model.gguf");
    let mut last = (0, 1);
    let len = write(shape, quant, seed, &demo::gguf().unwrap(), &out, &mut |done, of| {
        assert!(last.0 <= done && done <= of, "progress goes from {last:?} to {:?}", (done, of));
        last = (done, of);
    });
    assert_eq!(last.0, last.1, "progress does not end with everything");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1, "something but the file is left");
    let bytes = std::fs::read(&out).unwrap();
    assert_eq!(len.unwrap(), bytes.len() as u64);
    bytes
}

fn variance(values: &[f32]) -> f64 {
    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / values.len() as f64;
    values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / values.len() as f64
}

/// Every type and mixture makes a model that loads and computes, with logits of the variance 1 that the weights are scaled
/// for, and different ones for different positions.
#[test]
fn every_type_makes_a_model_that_runs() {
    let pure = TensorType::ALL.iter().map(|&ty| (Shape::Tiny, Quant::pure(ty)));
    let mixed = ["Q4_1", "Q5_1", "IQ4_NL", "IQ4_XS", "Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M"]
        .map(|mix| (Shape::TinyQwen2, mix.parse().unwrap()));
    for (shape, quant) in pure.chain(mixed) {
        let gguf = model(shape, quant, 3);
        Tokenizer::from_gguf(&gguf).unwrap();
        let options = LoadOptions { wanted: 3, ..Default::default() };
        let model = Model::new(gguf, None, 4096).unwrap();
        let mut session = Session::load(CpuDevice::new(), model, &options, &mut |_| ()).unwrap();
        session.pass(&[7, 300, 5], 0, 3).unwrap();
        let logits = session.logits().unwrap();
        assert_eq!(logits.len(), 3 * session.config().dims.vocab);
        let rows: Vec<_> = logits.chunks_exact(logits.len() / 3).collect();
        for row in &rows {
            let variance = variance(row);
            assert!((0.7..1.4).contains(&variance), "{shape:?} {}: logits of variance {variance}", quant.name());
        }
        let apart: Vec<f32> = rows[0].iter().zip(rows[2]).map(|(a, b)| a - b).collect();
        assert!(variance(&apart) > 0.2, "{shape:?} {}: the positions' logits are alike", quant.name());
    }
}

#[test]
fn bytes_depend_on_the_seed_alone() {
    let quant = Quant::pure(TensorType::F32);
    let with_threads = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| bytes(Shape::Tiny, quant, 5))
    };
    let first = with_threads(1);
    assert!(first == with_threads(3), "the bytes depend on the number of threads");

    // No stretch of 64 bytes occurs twice: not in a tensor, not in two, and not with two seeds.
    let mut seen = HashSet::new();
    for gguf in [Arc::new(Gguf::from_vec("5", first).unwrap()), model(Shape::Tiny, quant, 6)] {
        for tensor in gguf.tensors().iter().filter(|tensor| tensor.rows() > 1) {
            for stretch in gguf.bytes(tensor).chunks_exact(64) {
                assert!(seen.insert(stretch.to_vec()), "{} repeats something", tensor.name);
            }
        }
    }
    assert!(seen.len() > 100_000, "{}", seen.len());
}

/// The tokenizer encodes as the original, and reaches the shape's vocabulary.
#[test]
fn the_tokenizer_is_filled_up() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("1b.gguf");
    let demo = demo::gguf().unwrap();
    write(Shape::Llama1b, "Q2_K".parse().unwrap(), 0, &demo, &out, &mut |_, _| ()).unwrap();
    let gguf = Arc::new(Gguf::open(&out).unwrap());
    let tokens = gguf.metadata().strings("tokenizer.ggml.tokens").unwrap().unwrap();
    assert_eq!(tokens.len(), 128_256);
    let text = "Once upon a time <|unused_7|>, there was ...";
    let ids = |gguf| Tokenizer::from_gguf(gguf).unwrap().encode(text, Default::default()).unwrap();
    assert_eq!(ids(&gguf), ids(&demo));
    let model = Model::new(gguf.clone(), None, 4096).unwrap();
    assert!(model.tied());
    assert_eq!((model.config.layers, model.config.dims.vocab, model.config.trained_context), (16, 128_256, 131_072));
}

#[test]
fn failures_leave_nothing_behind() {
    let demo = demo::gguf().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let write = |shape, tokenizer: &Gguf, out: &Path| {
        let error = write(shape, Quant::pure(TensorType::Q8_0), 0, tokenizer, out, &mut |_, _| ()).unwrap_err();
        format!("{error:#}")
    };
    // Complete, but its name is taken by a folder.
    let taken = folder.path().join("taken");
    std::fs::create_dir(&taken).unwrap();
    let error = write(Shape::Tiny, &demo, &taken);
    assert!(error.contains("taken cannot be written: Is a directory"), "{error}");
    let missing = folder.path().join("missing/model.gguf");
    let error = write(Shape::Tiny, &demo, &missing);
    assert!(error.contains("missing: cannot be written to: No such file"), "{error}");
    let none =
        Gguf::from_vec("without.gguf", ntransformer::gguf::Writer::new().begin(Vec::new()).unwrap().finish().unwrap())
            .unwrap();
    let error = write(Shape::Tiny, &none, &folder.path().join("model.gguf"));
    assert!(error.contains("without.gguf: has no tokenizer"), "{error}");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1, "an unfinished file is left");
}

/// A file is replaced only if that is asked for, and a folder never.
#[test]
fn what_is_there_is_not_lost() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.gguf");
    let run = |to: &Path, force: &[&str]| {
        let mut command = Command::new(setup::ntransformer());
        command.args(["synth", "--shape", "tiny", "--quant", "Q8_0"]).args(force).arg(to);
        let output = command.output().unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    std::fs::write(&out, "mine").unwrap();
    let (done, said) = run(&out, &[]);
    assert!(!done && said.contains("out.gguf exists already; --force replaces it"), "{said}");
    assert_eq!(std::fs::read(&out).unwrap(), b"mine");
    let (done, said) = run(&out, &["--force"]);
    assert!(done && Gguf::open(&out).is_ok(), "{said}");
    for force in [&[][..], &["--force"]] {
        let (done, said) = run(folder.path(), force);
        assert!(!done && said.contains("is a folder: name a file in it"), "{said}");
    }
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
}
