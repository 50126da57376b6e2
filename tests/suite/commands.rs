//! The commands `inspect` and `tokenize`, run as a user runs them.

use ntransformer::gguf::Writer;
use quant::TensorType;
use std::{
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
};

use crate::setup;

fn run(args: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(setup::ntransformer())
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that fails early does not read its input.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

fn stdout(output: &Output) -> &str {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::str::from_utf8(&output.stdout).unwrap()
}

/// The message of a failed command: exit code 1, nothing on standard output, no panic.
fn failure(output: &Output) -> &str {
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(1), &[][..]));
    std::str::from_utf8(&output.stderr).unwrap()
}

/// A vocabulary of three letters and a control token, with two tensors.
fn write_model(path: &Path) {
    let mut writer = Writer::new();
    writer.set("tokenizer.ggml.model", "gpt2").unwrap().set("tokenizer.ggml.pre", "gpt-2").unwrap();
    writer.set("tokenizer.ggml.tokens", &["a", "b", "ab", "Ċ", "<|eot_id|>", "<", "Ġ"][..]).unwrap();
    writer.set("tokenizer.ggml.token_type", &[1, 1, 1, 1, 3, 1, 1][..]).unwrap();
    writer.set("tokenizer.ggml.merges", &["a b"][..]).unwrap();
    writer.set("tokenizer.ggml.bos_token_id", &4u32).unwrap();
    writer.set("eps", &1e-5f32).unwrap();
    writer.tensor("blk.10.attn_q.weight", &[32, 2], TensorType::Q8_0).unwrap();
    writer.tensor("output_norm.weight", &[3], TensorType::F32).unwrap();
    let mut data = writer.begin(std::fs::File::create(path).unwrap()).unwrap();
    data.write(&[1; 68]).unwrap();
    data.write(&[2; 12]).unwrap();
    data.finish().unwrap();
}

#[test]
fn inspect_lists_metadata_tensors_and_sums() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    write_model(&path);
    let file = path.to_str().unwrap();

    let output = run(&["inspect", file, "--json"], b"");
    let json: serde_json::Value = serde_json::from_str(stdout(&output)).unwrap();
    assert_eq!((&json["file"], &json["version"]), (&file.into(), &3.into()));
    assert_eq!(json["metadata"]["eps"].as_f64(), Some(1e-5));
    assert_eq!(json["metadata"]["tokenizer.ggml.tokens"][2], "ab");
    let data_start = json["tensors"][0]["offset"].as_u64().unwrap();
    assert_eq!(
        json["tensors"],
        serde_json::json!([
            { "name": "blk.10.attn_q.weight", "type": "Q8_0", "dims": [32, 2], "bytes": 68, "part": 1, "offset": data_start },
            { "name": "output_norm.weight", "type": "F32", "dims": [3], "bytes": 12, "part": 1, "offset": data_start + 96 },
        ])
    );
    assert_eq!(std::fs::read(&path).unwrap()[data_start as usize..][..68], [1; 68]);
    assert_eq!(json["bytes_by_layer"]["blk.10"], serde_json::json!({ "tensors": 1, "bytes": 68 }));
    assert_eq!(json["bytes_by_layer"]["rest"]["bytes"], 12);
    assert_eq!(json["bytes_by_type"]["F32"]["bytes"], 12);
    assert_eq!(json["total_bytes"], 80);

    let output = run(&["inspect", file], b"");
    let text = stdout(&output);
    for part in [
        "GGUF version 3",
        r#"tokenizer.ggml.tokens = ["a", "b", "ab", "Ċ", "<|eot_id|>", "<", ...] (7 x string)"#,
        "eps = 0.00001",
        "32 x 2",
        "blk.10        1 tensors              68 bytes",
        "total         2 tensors              80 bytes",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
}

#[test]
fn inspect_says_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cut.gguf");
    write_model(&path);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    let output = run(&["inspect", path.to_str().unwrap()], b"");
    let message = failure(&output);
    assert!(message.contains("cut.gguf: truncated: tensor output_norm.weight needs bytes"), "{message}");
}

#[test]
fn tokenize_takes_text_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    write_model(&path);
    let model = path.to_str().unwrap();
    assert_eq!(stdout(&run(&["tokenize", "-m", model], b" ab\n")), "6 2 3\n");
    assert_eq!(stdout(&run(&["tokenize", "-m", model], b"")), "\n");
    assert_eq!(stdout(&run(&["tokenize", "-m", model, "--special", "--bos"], b"a<|eot_id|>")), "4 0 4\n");
    let text = dir.path().join("text");
    std::fs::write(&text, "b\n\n").unwrap();
    assert_eq!(stdout(&run(&["tokenize", "-m", model, "-f", text.to_str().unwrap()], b"a")), "1 3 3\n");

    let message = |args: &[&str], input: &[u8]| failure(&run(args, input)).to_owned();
    let not_utf8 = message(&["tokenize", "-m", model], b"a\xff");
    assert!(not_utf8.contains("standard input: not UTF-8 at byte 1"), "{not_utf8}");
    let special = message(&["tokenize", "-m", model], b"a<|eot_id|>");
    assert!(special.contains("model.gguf: the text has the byte 0x7c"), "{special}");
    let missing = message(&["tokenize", "-m", model, "-f", "/nonexistent/text"], b"");
    assert!(missing.contains("/nonexistent/text: cannot be read: No such file"), "{missing}");
}
