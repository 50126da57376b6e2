//! Damaged files: opening one, and reading all that is in it, is an error or a consistent model, in bounded memory.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{Arc, Mutex},
};

use ntransformer::{
    device::cpu::CpuDevice,
    engine::{
        EngineError, LoadOptions, Runner, Session,
        tokenizer::{EncodeOptions, Tokenizer},
    },
    gguf::{Gguf, GgufFault, Writer},
    model::Model,
};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use rayon::prelude::*;

use crate::{
    allocations, setup,
    untrusted::{Reached, allowed, read_all, seeds},
};

/// Of the damaged files that are models, one in so many is computed with.
const COMPUTED: u32 = 20;

/// Damaged files in all.
const FILES: u64 = 100_000;

/// The files that are damaged: small hand-made ones, and the models whose logits are compared with transformers'.
fn originals() -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<_> = seeds().into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect();
    let folder = setup::root().join("tests/data");
    let files = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = files.filter(|path| path.extension().is_some_and(|ext| ext == "gguf")).collect();
    files.sort();
    assert!(files.len() >= 5, "{}: no models", folder.display());
    all.extend(files.iter().map(|path| (path.display().to_string(), std::fs::read(path).unwrap())));
    all
}

/// Which original the file of `seed` is made from. The small ones mostly: more is tried in the same time. Vocabularies of
/// byte-level BPE are rare, since each compiles a regular expression.
fn choose(seed: u64, originals: usize) -> usize {
    match seed % 100 {
        0 => 5,
        1 | 2 => 6 + (seed / 100) as usize % (originals - 6),
        other => (other % 5) as usize,
    }
}

/// Damages `bytes` in one to four places.
fn mutate(bytes: &mut Vec<u8>, rng: &mut SmallRng) {
    // Weights have no structure. Where they begin is not worth parsing for: 4 KiB hold most of what describes them.
    let head = bytes.len().min(4096);
    for _ in 0..rng.random_range(1..5) {
        let at = if rng.random_bool(0.8) { rng.random_range(0..head) } else { rng.random_range(0..bytes.len().max(1)) };
        let at = at.min(bytes.len().saturating_sub(1));
        let end = bytes.len().min(at + rng.random_range(1..40));
        match rng.random_range(0..16) {
            _ if bytes.is_empty() => {}
            0..5 => bytes[at] ^= 1 << rng.random_range(0..8),
            5..8 => bytes[at] = rng.random(),
            8..11 => {
                let numbers = [0u64, 1, 9, 1 << 16, u64::from(u32::MAX), 1 << 31, 1 << 40, 1 << 61, 1 << 63, u64::MAX];
                let number = numbers[rng.random_range(0..numbers.len())].to_le_bytes();
                let width = [1, 2, 4, 8][rng.random_range(0..4)].min(bytes.len() - at);
                bytes[at..at + width].copy_from_slice(&number[..width]);
            }
            // Bytes left out, doubled, or put in another place.
            11 => drop(bytes.drain(at..end)),
            12 => {
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            13 => {
                let to = rng.random_range(0..head).min(bytes.len() - (end - at));
                bytes.copy_within(at..end, to);
            }
            14 => bytes.truncate(at),
            _ => bytes.truncate(rng.random_range(0..=bytes.len())),
        }
    }
}

/// A pass over two tokens, on the CPU: whether it gave numbers, or an error. The file bounds every size but the context.
fn compute(bytes: Vec<u8>) -> Result<bool, EngineError> {
    // For a context unlike that of reading, LongRoPE takes other factors, which may be damaged.
    let model = Model::new(Arc::new(Gguf::from_vec("untrusted", bytes)?), None, 8)?;
    let (vocab, tokens) = (model.config.dims.vocab, model.config.dims.context.min(2));
    let options = LoadOptions { wanted: tokens, ..Default::default() };
    let mut session = Session::load(CpuDevice::new(), model, &options, &mut |_| ())?;
    session.pass(&[0, vocab as u32 - 1][..tokens], 0, tokens)?;
    let logits = session.logits()?;
    assert_eq!(logits.len(), tokens * vocab);
    let (best, numbers) = (session.argmax()?, logits.iter().all(|logit| logit.is_finite()));
    assert!(best.is_none_or(|best| (best as usize) < vocab) && (!numbers || best.is_some()));
    Ok(numbers)
}

#[test]
fn damaged_files_are_errors_or_consistent() {
    let originals = originals();
    // Files of each kind that were refused, sound, and models; and the highest use of memory.
    let counts = Mutex::new((vec![[0u64; 3]; originals.len()], 0.0f64));
    let sample = Mutex::new(Vec::new());
    (0..FILES).into_par_iter().for_each(|seed| {
        let mut rng = SmallRng::seed_from_u64(seed);
        let which = choose(seed, originals.len());
        let (name, original) = &originals[which];
        let mut bytes = original.clone();
        mutate(&mut bytes, &mut rng);
        let len = bytes.len();
        let chosen = rng.random_ratio(1, COMPUTED).then(|| bytes.clone());
        let (reached, peak) =
            catch_unwind(AssertUnwindSafe(|| allocations::peak(|| read_all(bytes)))).unwrap_or_else(|panic| {
                eprintln!("the panic is of seed {seed}, which damages {name}");
                resume_unwind(panic)
            });
        assert!(peak <= allowed(len), "seed {seed}, which damages {name}: {peak} bytes for a file of {len}");
        if let Some(bytes) = chosen.filter(|_| reached == Reached::Model) {
            sample.lock().unwrap().push((seed, bytes));
        }
        let mut counts = counts.lock().unwrap();
        counts.0[which][reached as usize] += 1;
        counts.1 = counts.1.max(peak as f64 / allowed(len) as f64);
    });
    let (counts, used) = counts.into_inner().unwrap();
    for ((name, _), [refused, files, models]) in originals.iter().zip(&counts) {
        println!("{name}: {refused} refused, {files} sound, {models} models");
        // One side alone would prove little.
        assert!(*refused > 10 && files + models > 10, "{name}: {refused} refused, {files} sound, {models} models");
    }
    // Apart from the reading above, whose memory is counted by thread.
    let sample = sample.into_inner().unwrap();
    let files = sample.len();
    let numbers = sample.into_par_iter().filter_map(|(seed, bytes)| {
        let numbers = catch_unwind(AssertUnwindSafe(|| compute(bytes))).unwrap_or_else(|panic| {
            eprintln!("the panic is of computing with seed {seed}");
            resume_unwind(panic)
        });
        numbers.ok().filter(|&numbers| numbers)
    });
    let numbers = numbers.count();
    println!("computed: {files}, {numbers} of them with finite logits");
    assert!(numbers > 200, "{numbers} of {files} computed");
    println!("memory: {:.0} % of what is allowed at most", 100.0 * used);
    assert!(counts[1][Reached::Model as usize] > 1000 && counts[2][Reached::Model as usize] > 1000);
}

/// Each file at each length: hand-made ones byte by byte.
#[test]
fn truncated_files_are_refused() {
    for (name, original) in originals() {
        let step = original.len().div_ceil(4096);
        assert!(read_all(original.clone()) > Reached::Nothing, "{name}");
        (0..original.len()).into_par_iter().step_by(step).for_each(|len| {
            let reached = read_all(original[..len].to_vec());
            // A file without tensors ends with its padding, which nobody misses.
            assert!(reached == Reached::Nothing || name == "tokens", "{name}: {len} of {} bytes", original.len());
        });
    }
}

/// A token that is matched as a whole may be long, and is not worth a table of a row per byte.
#[test]
fn long_special_tokens_take_bounded_memory() {
    let long: String = (0..200_000u32).filter_map(|i| char::from_u32(0x100 + i * 7919 % 0x600)).collect();
    let mut writer = Writer::new();
    let fill = |w: &mut Writer| -> Result<(), GgufFault> {
        w.set("tokenizer.ggml.model", "llama")?.set("tokenizer.ggml.tokens", &["a", "b", &*long][..])?;
        w.set("tokenizer.ggml.scores", &[0f32, -1.0, -2.0][..])?.set("tokenizer.ggml.token_type", &[1i32, 1, 4][..])?;
        w.set("tokenizer.ggml.add_space_prefix", &false)?;
        Ok(())
    };
    fill(&mut writer).unwrap();
    let bytes = writer.begin(Vec::new()).unwrap().finish().unwrap();
    let len = bytes.len();
    let gguf = Gguf::from_vec("long", bytes).unwrap();
    let (tokenizer, peak) = allocations::peak(|| Tokenizer::from_gguf(&gguf).unwrap());
    println!("{} bytes per byte of the file", peak / len);
    assert!(peak < 256 * len, "{peak} bytes for a file of {len}");
    let ids = tokenizer.encode(&format!("ab{long}ba"), EncodeOptions::default()).unwrap();
    assert_eq!(ids, [0, 1, 2, 1, 0]);
}

/// The counter sees what is allocated, or the test above could not fail.
#[test]
fn allocations_are_counted() {
    let (_, peak) = allocations::peak(|| {
        drop(std::hint::black_box(vec![0u8; 3 << 20]));
        std::hint::black_box(vec![1u8; 1 << 20])
    });
    assert_eq!(peak, 3 << 20);
}
