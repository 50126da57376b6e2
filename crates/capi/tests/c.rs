//! The C API from C: programs that are compiled by the C compiler which Rust links with anyway.

use std::{
    env,
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use ntransformer::{DeviceChoice, Engine, EngineOptions, GenerateOptions, Sampling};

/// What a program needs beside the static library: what Rust's standard library uses.
const SYSTEM_LIBRARIES: [&str; 4] = ["-lpthread", "-ldl", "-lm", "-lgcc_s"];

/// Where cargo put the libraries that this crate is built into: beside the tests.
fn built() -> PathBuf {
    env::current_exe().unwrap().parent().unwrap().to_owned()
}

fn library(name: &str) -> PathBuf {
    let path = built().join(name);
    assert!(path.is_file(), "{}: not there", path.display());
    path
}

fn succeeded(output: Output) -> String {
    let (out, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{out}\n{log}", output.status);
    out.into_owned()
}

/// Compiles `source` against `library` into `folder`.
fn compile(source: &str, library: &Path, folder: &Path) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = folder.join("program");
    let warnings = ["-std=gnu11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-O1", "-g"];
    let mut cc = Command::new("cc");
    cc.args(warnings).arg("-I").arg(root.join("include")).arg(root.join(source)).arg(library);
    cc.arg(format!("-Wl,-rpath,{}", built().display())).args(SYSTEM_LIBRARIES).arg("-o").arg(&program);
    let output = cc.output().expect("cc, which Rust also links with");
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    succeeded(output);
    program
}

/// How the demo model goes on, as the Rust API has it.
fn expected() -> String {
    let mut engine = Engine::demo(&EngineOptions { device: DeviceChoice::Cpu, ..Default::default() }).unwrap();
    let prompt = engine.tokenize("Once upon a time").unwrap();
    let options = GenerateOptions { max_new: Some(24), sampling: Sampling::greedy(), ..Default::default() };
    engine.generate(&prompt, &options, |_| ControlFlow::Continue(())).unwrap().text
}

#[test]
fn a_c_program_uses_the_shared_library_and_the_static_one() {
    let expected = expected();
    for name in ["libntransformer_c.so", "libntransformer_c.a"] {
        let folder = tempfile::tempdir().unwrap();
        let program = compile("tests/c/api.c", &library(name), folder.path());
        let output = succeeded(Command::new(program).arg(&expected).output().unwrap());
        assert_eq!(output, "ok\n", "{name}");
    }
}

#[test]
fn the_example_tells_a_story() {
    let folder = tempfile::tempdir().unwrap();
    let program = compile("examples/generate.c", &library("libntransformer_c.so"), folder.path());
    let story = succeeded(Command::new(&program).output().unwrap());
    assert!(story.starts_with("Once upon a time") && story.split_whitespace().count() > 50, "{story}");
    let refused = Command::new(program).arg("/nonexistent/model.gguf").output().unwrap();
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && message.starts_with("error: /nonexistent/model.gguf"), "{message}");
}

#[test]
fn the_header_is_cpp_too() {
    let header = Path::new(env!("CARGO_MANIFEST_DIR")).join("include/ntransformer.h");
    let output = Command::new("c++").args(["-fsyntax-only", "-Wall", "-Werror", "-x", "c++"]).arg(header).output();
    match output {
        Ok(output) => drop(succeeded(output)),
        // A C compiler comes without.
        Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::NotFound),
    }
}

/// The engine defines the CUDA driver's functions; a program that links the real ones must not find these.
#[test]
fn only_the_api_is_exported() {
    let exported = succeeded(
        Command::new("nm").args(["-D", "--defined-only"]).arg(library("libntransformer_c.so")).output().unwrap(),
    );
    let names: Vec<_> = exported.lines().filter_map(|line| line.split(' ').next_back()).collect();
    let others: Vec<_> = names.iter().filter(|name| !name.starts_with("nt_")).collect();
    assert!(others.is_empty(), "exported: {others:?}");
    let header = include_str!("../include/ntransformer.h");
    let declared = names.iter().filter(|name| header.contains(&format!("{name}("))).count();
    assert!(declared == names.len() && declared > 20, "{names:?} and the header differ");
}
