//! What users and files can get wrong: one message on stderr that names the thing and the way out, exit code 1; 2 for
//! flags. Never a panic.

use std::{
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use ntransformer::{
    demo,
    gguf::{Encode, Gguf, Writer},
};
use rand::{Rng, SeedableRng, rngs::SmallRng};

use crate::setup;

/// The command with `args`, in 4 GiB of address space.
fn command(args: &[&str]) -> Command {
    command_within(4 << 20, args)
}

/// The command with `args`, in `kib` KiB of address space.
///
/// Two threads, since each thread's stack and heap reserve addresses; the CPU, since a GPU's driver reserves more than that
/// for itself.
fn command_within(kib: u64, args: &[&str]) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit -v {kib} && exec \"$0\" \"$@\"")]).arg(setup::ntransformer());
    command.args(args).env("RAYON_NUM_THREADS", "2").env("RUST_BACKTRACE", "0").stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Runs with -q and expects exit code 1, nothing on stdout, and one line on stderr with each of `parts`.
#[track_caller]
fn refused(args: &[&str], parts: &[&str]) {
    assert_refused(&run(&[&["-q"], args].concat()), args, parts);
}

#[track_caller]
fn assert_refused(output: &Output, args: &[&str], parts: &[&str]) {
    let message = stderr(output);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {message}");
    assert!(output.stdout.is_empty(), "{args:?}: {:?} on stdout", String::from_utf8_lossy(&output.stdout));
    assert!(message.starts_with("error: ") && message.trim_end().lines().count() == 1, "{args:?}: {message}");
    for part in parts {
        assert!(message.contains(part), "{args:?}: {message:?} lacks {part:?}");
    }
}

/// A folder with damaged models.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// Expects an error that names the file, too.
    #[track_caller]
    fn refused(&self, name: &str, bytes: &[u8], parts: &[&str]) {
        let path = self.file(name, bytes);
        refused(&["-m", path.to_str().unwrap(), "--device", "cpu", "-n", "2"], &[&[name], parts].concat());
    }
}

/// The demo model with each metadata entry that `change` has not written itself, those tensors that are to be kept, and perhaps one more.
fn rewritten(change: impl Fn(&mut Writer, &str) -> bool, keep: impl Fn(&str) -> bool, more: Option<&str>) -> Vec<u8> {
    let demo = demo::gguf().unwrap();
    let mut writer = Writer::new();
    for (key, value) in demo.metadata().iter() {
        if !change(&mut writer, key) {
            writer.set_value(key, value).unwrap();
        }
    }
    let kept = || demo.tensors().iter().filter(|tensor| keep(&tensor.name));
    for tensor in kept() {
        writer.tensor(&tensor.name, &tensor.dims, tensor.ty).unwrap();
    }
    if let Some(name) = more {
        writer.tensor(name, &[4], quant::TensorType::F32).unwrap();
    }
    let mut data = writer.begin(Vec::new()).unwrap();
    for tensor in kept() {
        data.write(demo.bytes(tensor)).unwrap();
    }
    if more.is_some() {
        data.write(&[0; 16]).unwrap();
    }
    data.finish().unwrap()
}

/// The demo model with each metadata entry that `change` has not written itself.
fn edited(change: impl Fn(&mut Writer, &str) -> bool) -> Vec<u8> {
    rewritten(change, |_| true, None)
}

/// The demo model without a tensor.
fn without(name: &str) -> Vec<u8> {
    rewritten(|_, _| false, |tensor| tensor != name, None)
}

/// The demo model with one more tensor.
fn extended(name: &str) -> Vec<u8> {
    rewritten(|_, _| false, |_| true, Some(name))
}

/// The demo model with the number `ty` as the type of the matrix `name`.
fn retyped(name: &str, ty: u32) -> Vec<u8> {
    let mut bytes = demo::BYTES.to_vec();
    let found = bytes.windows(name.len()).position(|window| window == name.as_bytes()).unwrap();
    // The name is followed by the number of dimensions, the two dimensions, and the type.
    let at = found + name.len() + 4 + 2 * 8;
    bytes[at..at + 4].copy_from_slice(&ty.to_le_bytes());
    bytes
}

/// The demo model with one entry changed.
fn with<T: Encode + ?Sized>(key: &str, value: &T) -> Vec<u8> {
    edited(|writer, name| {
        if name == key {
            writer.set(key, value).unwrap();
        }
        name == key
    })
}

#[test]
fn the_demo_model_itself_runs() {
    let folder = Folder::new();
    let path = folder.file("copy.gguf", &edited(|_, _| false));
    let output = run(&["-m", path.to_str().unwrap(), "--device", "cpu", "-q", "-n", "2"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(output.stderr.is_empty(), "{}", stderr(&output));
    assert!(!output.stdout.is_empty());
}

#[test]
fn files_that_are_no_models() {
    let folder = Folder::new();
    let path = folder.0.path();
    refused(&["-m", path.join("missing.gguf").to_str().unwrap()], &["missing.gguf", "No such file"]);
    refused(&["-m", path.to_str().unwrap()], &[path.to_str().unwrap(), "is not a regular file"]);
    folder.refused("empty.gguf", b"", &["is not a GGUF file"]);
    folder.refused("text.gguf", b"Once upon a time there was a file.", &["is not a GGUF file"]);
    folder.refused("half.gguf", &demo::BYTES[..demo::BYTES.len() / 2], &["truncated", "tensor"]);
    folder.refused("head.gguf", &demo::BYTES[..100], &["metadata", "the file has only 76 more bytes"]);
    folder.refused("old.gguf", b"GGUF\x01\0\0\0\0\0\0\0\0\0\0\0", &["version 1 is not supported"]);
    let none = Writer::new().begin(Vec::new()).unwrap().finish().unwrap();
    folder.refused("nothing.gguf", &none, &["has no metadata"]);
    for command in ["inspect", "tokenize", "perplexity"] {
        let missing = path.join("missing.gguf");
        let flags = match command {
            "inspect" => vec![missing.to_str().unwrap()],
            "tokenize" => vec!["-m", missing.to_str().unwrap()],
            _ => vec!["-m", missing.to_str().unwrap(), "-f", "/dev/null"],
        };
        let output = run(&[&[command], &*flags].concat());
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{command}: {message}");
        assert!(message.starts_with("error: ") && message.contains("missing.gguf"), "{command}: {message}");
    }
}

#[test]
fn models_that_are_not_supported() {
    let folder = Folder::new();
    let gptj = with("general.architecture", "gptj");
    folder.refused("gptj.gguf", &gptj, &["architecture `gptj` is not supported", "llama", "qwen2"]);
    let q8_1 = retyped("blk.0.ffn_up.weight", 9);
    folder.refused("q8_1.gguf", &q8_1, &["blk.0.ffn_up.weight", "Q8_1", "supported: F32 F16"]);
    let unknown = retyped("blk.0.ffn_up.weight", 77);
    folder.refused("unknown.gguf", &unknown, &["blk.0.ffn_up.weight", "77", "supported: F32 F16"]);
    let tokenizer = with("tokenizer.ggml.model", "words");
    folder.refused("words.gguf", &tokenizer, &["words", "supported: gpt2 llama"]);
    let pre = with("tokenizer.ggml.pre", "unheard-of");
    folder.refused("pre.gguf", &pre, &["unheard-of", "supported"]);
    let extra = extended("blk.0.attn_q_norm.weight");
    folder.refused("extra.gguf", &extra, &["blk.0.attn_q_norm.weight", "architecture `llama` does not have"]);
    // Where matrices may be fused, too, the missing one is named, not another's shape.
    for part in ["attn_q", "attn_k", "ffn_gate", "ffn_up"] {
        let name = format!("blk.1.{part}.weight");
        folder.refused("missing.gguf", &without(&name), &[&format!("has no tensor {name}")]);
    }
    let dynamic = edited(|writer, key| {
        if key == "llama.block_count" {
            writer.set("llama.rope.scaling.type", "dynamic").unwrap();
        }
        false
    });
    folder.refused("dynamic.gguf", &dynamic, &["rope scaling `dynamic`", "llama.rope.scaling.type"]);
}

#[test]
fn metadata_that_make_no_sense() {
    let folder = Folder::new();
    let demo = demo::gguf().unwrap();
    let dims = ntransformer::model::Config::new(&demo, None, 4096).unwrap().dims;
    for (key, value) in [
        ("attention.head_count", 0),
        ("attention.head_count", u32::MAX),
        ("attention.head_count_kv", 0),
        ("attention.head_count_kv", dims.heads as u32 - 1),
        ("attention.key_length", 1 << 20),
        ("block_count", 0),
        ("block_count", u32::MAX),
        ("context_length", 0),
        ("embedding_length", 0),
        ("embedding_length", u32::MAX),
        ("feed_forward_length", 0),
        ("rope.dimension_count", dims.head_dim as u32 - 1),
        ("rope.dimension_count", dims.head_dim as u32 * 2),
    ] {
        let key = format!("llama.{key}");
        folder.refused("absurd.gguf", &with(&key, &value), &[&key]);
    }
    // A size that contradicts the tensors names one of them, and both shapes.
    let wide = with("llama.feed_forward_length", &(dims.ffn as u32 * 2));
    folder.refused("wide.gguf", &wide, &["blk.0.ffn_", &format!("{}", dims.ffn), &format!("{}", dims.ffn * 2)]);
    let epsilon = with("llama.attention.layer_norm_rms_epsilon", "small");
    folder.refused("epsilon.gguf", &epsilon, &["layer_norm_rms_epsilon", "expected a number"]);
    for value in [f32::NAN, f32::INFINITY, -1e-5] {
        let epsilon = with("llama.attention.layer_norm_rms_epsilon", &value);
        folder.refused("epsilon.gguf", &epsilon, &["layer_norm_rms_epsilon", "is not a number of 0 or more"]);
    }
    let uneven = edited(|writer, name| match name {
        "llama.attention.head_count" => writer.set(name, &3u32).is_ok(),
        "llama.attention.head_count_kv" => writer.set(name, &3u32).is_ok(),
        // Left out, so that the size of a head follows from the others.
        _ => name.starts_with("llama.attention.key_length") || name.starts_with("llama.attention.value_length"),
    });
    folder.refused("uneven.gguf", &uneven, &["llama.attention.head_count", "3 does not divide"]);
    let base = with("llama.rope.freq_base", &f32::NAN);
    folder.refused("base.gguf", &base, &["llama.rope.freq_base", "NaN is not a positive number"]);
    let text = with("llama.block_count", "two");
    folder.refused("text.gguf", &text, &["llama.block_count", "expected an integer"]);
    let bos = with("tokenizer.ggml.bos_token_id", &u32::MAX);
    folder.refused("bos.gguf", &bos, &["tokenizer.ggml.bos_token_id", "tokens"]);
}

/// Both ways of choosing a token notice it, on the CPU and in the kernel.
#[test]
fn weights_that_are_no_numbers() {
    let folder = Folder::new();
    let demo = demo::gguf().unwrap();
    let norm = demo.require("output_norm.weight").unwrap();
    let start = demo.tensor_file_offset(norm) as usize;
    let mut bytes = demo::BYTES.to_vec();
    bytes[start..start + norm.bytes as usize].fill(0xff);
    let path = folder.file("nan.gguf", &bytes);
    for (device, temperature) in [("cpu", "0"), ("cpu", "0.8"), ("emulator", "0")] {
        let args = ["-m", path.to_str().unwrap(), "--device", device, "-n", "2", "-c", "32", "-t", temperature];
        refused(&args, &["nan.gguf: ", "logits", "are not numbers"]);
    }
    let text = setup::root().join("assets/heldout.txt");
    let output = run(&[
        "perplexity",
        "-q",
        "-m",
        path.to_str().unwrap(),
        "--device",
        "cpu",
        "-c",
        "16",
        "-f",
        text.to_str().unwrap(),
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("nan.gguf: the model's logits at position 8 are not numbers"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn requests_that_cannot_be_met() {
    let folder = Folder::new();
    // Also on machines that have a GPU, there is none now.
    let output = command(&["-q", "--device", "cuda"]).env("CUDA_VISIBLE_DEVICES", "").output().unwrap();
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.starts_with("error: no CUDA device") && message.trim_end().lines().count() == 1, "{message}");
    assert!(message.contains("--device cpu"), "no way out: {message}");

    let cpu = ["--device", "cpu"];
    let trained = Gguf::from_static("demo", demo::BYTES).unwrap().metadata().u32("llama.context_length").unwrap();
    let trained = trained.unwrap().to_string();
    refused(&[&cpu[..], &["-c", "1000000"]].concat(), &["-c 1000000", &trained]);
    refused(&[&cpu[..], &["-c", "0"]].concat(), &["-c 0", &trained]);
    let long = "a story ".repeat(100);
    refused(&[&cpu[..], &["-c", "64", "-n", "8", "-p", &long]].concat(), &["context of 64", "-c"]);
    refused(&[&cpu[..], &["-c", "64", "-n", "65"]].concat(), &["context of 64", "-c"]);
    refused(&["--device", "emulator", "--vram-budget", "64KiB"], &["emulator", "64.0 KiB", "--vram-budget"]);
    refused(&["--device", "emulator", "--vram-budget", "64KiB", "--streaming"], &["emulator", "64.0 KiB"]);
    let latin1 = folder.file("latin1.txt", b"gr\xfc\xdfe");
    let latin1 = latin1.to_str().unwrap();
    let texts: [&[&str]; 4] =
        [&["-f"], &["--grammar-file"], &["--json-schema-file"], &["--chat", "--chat-template-file"]];
    for flags in texts {
        refused(&[&cpu[..], flags, &[latin1]].concat(), &["latin1.txt: not UTF-8 at byte 2"]);
        refused(&[&cpu[..], flags, &["no-such-text"]].concat(), &["no-such-text: cannot be read"]);
    }
    let short = folder.file("short.txt", b"Once.");
    let output = run(&["perplexity", "-q", "--device", "cpu", "-f", short.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("give a longer text or a smaller -c"), "{}", stderr(&output));
}

/// Memory that the machine lacks, or the limit on address space does not allow: an error, not an abort.
#[test]
fn memory_that_does_not_suffice() {
    let folder = Folder::new();
    let path = folder.file("long.gguf", &with("llama.context_length", &(1u32 << 30)));
    let path = path.to_str().unwrap();
    for device in ["cpu", "emulator"] {
        // The first is more than the address space, of which all is touched before that shows: little of it, then. The
        // other is more than any machine's memory.
        for (context, why) in [("300000", "not enough memory for"), ("1000000000", "the model needs 3.7 TiB")] {
            let args = ["-q", "-m", path, "--device", device, "-c", context];
            let output = command_within(1 << 20, &args).output().unwrap();
            assert_refused(&output, &args, &[why, "KV cache", "context"]);
        }
    }
}

#[test]
fn usage_errors() {
    for args in [
        &["--no-such-flag"][..],
        &["-t", "hot"],
        &["-t", "-1"],
        &["--top-p", "0"],
        &["--device", "abacus"],
        &["--device", "cuda:x"],
        &["-n", "-1"],
        &["-c", "many"],
        &["--vram-budget", "much"],
        &["--vram-budget", "101%"],
        &["--ram-budget", "half"],
        &["--n-buffers", "0"],
        &["--n-buffers", "few"],
        &["--ram-access", "slow"],
        &["--link-limit", "0GB/s"],
        &["--link-limit", "fast"],
        &["--plan", "--benchmark"],
        &["-p", "a", "-f", "b"],
        &["-q", "-v"],
        &["inspect"],
        &["perplexity"],
        &["synth", "--shape", "9b", "--quant", "Q8_0", "x.gguf"],
        &["synth", "--shape", "tiny", "--quant", "Q9_0", "x.gguf"],
    ] {
        let output = run(args);
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {message}");
        assert!(message.starts_with("error: ") && message.contains("--help"), "{args:?}: {message}");
        // Whatever is wrong with a flag, its name is in the message's first line.
        let named = message.lines().next().unwrap().contains(args[0]);
        assert!(named || !args[0].starts_with("--"), "{args:?}: {message}");
        assert!(output.stdout.is_empty());
    }
}

/// Longer than any sound run under load, and short enough to see that one hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a model for two tokens; its exit code and stderr.
fn try_model(path: &Path, temperature: &str) -> (Option<i32>, String) {
    let mut child =
        command(&["-m", path.to_str().unwrap(), "--device", "cpu", "-n", "2", "-q", "--seed", "1", "-t", temperature])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
    // Messages are short, so the pipe cannot fill up before the process has ended.
    let started = Instant::now();
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if started.elapsed() > PATIENCE => {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("{}: still running after {PATIENCE:?}", path.display());
            }
            None => thread::sleep(Duration::from_millis(2)),
        }
    };
    let mut message = Vec::new();
    child.stderr.take().unwrap().read_to_end(&mut message).unwrap();
    (status.code(), String::from_utf8_lossy(&message).into_owned())
}

/// Damages `bytes` in one or two places: mostly in the hyperparameters and tensor descriptions, where a byte means most.
/// Says what was done.
fn mutate(bytes: &mut Vec<u8>, rng: &mut SmallRng) -> String {
    let (start, tensors) = {
        let demo = demo::gguf().unwrap();
        let start = demo.tensors().iter().map(|tensor| demo.tensor_file_offset(tensor)).min().unwrap() as usize;
        (start, 80 * demo.tensors().len())
    };
    let mut done = Vec::new();
    for _ in 0..rng.random_range(1..3) {
        let area = match rng.random_range(0..10) {
            0..4 => 0..2048,
            4..7 => start - tensors..start,
            7 => 0..start,
            _ => start..bytes.len().max(start + 1),
        };
        let at = rng.random_range(area).min(bytes.len() - 1);
        match rng.random_range(0..10) {
            0..5 => bytes[at] ^= 1 << rng.random_range(0..8),
            5..7 => bytes[at] = rng.random(),
            7..9 => {
                let value = [0, 1, u64::MAX, 1 << 31, 1 << 40, 1 << 63][rng.random_range(0..6)].to_le_bytes();
                let end = bytes.len().min(at + 8);
                bytes[at..end].copy_from_slice(&value[..end - at]);
            }
            _ => bytes.truncate(at.max(1)),
        }
        done.push(format!("byte {at} of {}", bytes.len()));
    }
    done.join(", ")
}

#[test]
fn damaged_models_never_panic() {
    const RUNS: u64 = 200;
    const WORKERS: u64 = 2;
    let folder = Folder::new();
    let worker = |worker: u64| {
        let (mut fine, mut refused) = (0, 0);
        for seed in (worker..RUNS).step_by(WORKERS as usize) {
            let mut bytes = demo::BYTES.to_vec();
            let what = mutate(&mut bytes, &mut SmallRng::seed_from_u64(seed));
            // Both ways of choosing a token have to notice logits that are not numbers.
            let temperature = if seed % 4 < 2 { "0" } else { "0.8" };
            let (code, message) = try_model(&folder.file(&format!("{worker}.gguf"), &bytes), temperature);
            assert!(!message.contains("panicked"), "seed {seed}, {what}: {message}");
            match code {
                Some(0) => fine += 1,
                Some(1) => {
                    refused += 1;
                    assert!(message.starts_with("error: "), "seed {seed}, {what}: {message}");
                }
                code => panic!("seed {seed}, {what}: exit code {code:?}: {message}"),
            }
        }
        (fine, refused)
    };
    let counts: Vec<(u32, u32)> = thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS).map(|i| scope.spawn(move || worker(i))).collect();
        workers.into_iter().map(|worker| worker.join().unwrap_or_else(|e| std::panic::resume_unwind(e))).collect()
    });
    let (fine, refused) = counts.iter().fold((0, 0), |sum, count| (sum.0 + count.0, sum.1 + count.1));
    println!("{fine} ran, {refused} were refused");
    assert!(fine >= 20 && refused >= 20, "the mutations test one side only: {fine} ran, {refused} were refused");
}
