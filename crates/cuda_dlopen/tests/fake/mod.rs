//! Tests against a stand-in for the driver, `libcuda.c`, compiled by the C compiler that Rust links with anyway.

use std::{
    env, fs,
    path::PathBuf,
    process::{self, Command},
    sync::OnceLock,
};

/// Says that this process is the inner run of a test, and which.
const INNER: &str = "FAKE_CUDA_TEST";

/// Runs the body of the test `name` (its full path) in a process of its own, with the variables `settings` in its
/// environment: a driver is found once per process. Returns what it wrote to stderr.
///
/// Call it first in the test: it comes back in the outer process, with `Some`, when the inner one has passed, and in the
/// inner one at once, with `None`.
pub fn outer(name: &str, settings: &[(&str, &str)]) -> Option<String> {
    if env::var(INNER).as_deref() == Ok(name) {
        return None;
    }
    let out = Command::new(env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(INNER, name)
        .envs(settings.iter().copied())
        .output()
        .unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{name} failed in its process:\n{stdout}\n{stderr}");
    assert!(stdout.contains("1 passed"), "{name} is not the test's path:\n{stdout}");
    Some(stderr.into_owned())
}

/// As [`outer`], with the stand-in as the driver.
pub fn outer_with_driver(name: &str, settings: &[(&str, &str)]) -> Option<String> {
    if env::var(INNER).as_deref() == Ok(name) {
        return None;
    }
    let library = library();
    let mut all = vec![("NT_LIBCUDA", library.to_str().unwrap())];
    all.extend_from_slice(settings);
    outer(name, &all)
}

/// The compiled stand-in, made once per process.
fn library() -> &'static PathBuf {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        // Beside the test program, in the build's own folder.
        let program = env::current_exe().unwrap();
        let folder = program.with_extension(format!("fake-{}", process::id()));
        fs::create_dir_all(&folder).unwrap();
        let source = folder.join("libcuda.c");
        fs::write(&source, include_str!("libcuda.c")).unwrap();
        let library = folder.join("libcuda_fake.so");
        let out = Command::new("cc")
            .args(["-shared", "-fPIC", "-std=gnu11", "-O1", "-o"])
            .args([&library, &source])
            .output()
            .expect("cc, which Rust also links with");
        assert!(out.status.success(), "cc: {}", String::from_utf8_lossy(&out.stderr));
        library
    })
}
