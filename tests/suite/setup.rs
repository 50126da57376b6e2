//! What the tests need of their surroundings: the repository's files and the command. The executables may have been
//! carried to another machine (`cargo xtask gpu-bundle`), where the paths of the build do not exist.

use std::path::PathBuf;

/// The repository's root, or what is laid out like it: NT_ROOT, else where this was built, else the working directory.
pub fn root() -> PathBuf {
    let built = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    match std::env::var_os("NT_ROOT") {
        Some(named) => named.into(),
        None if built.is_dir() => built,
        None => PathBuf::from("."),
    }
}

/// The `ntransformer` command's executable: NT_BIN, or the one that was built with the tests.
pub fn ntransformer() -> PathBuf {
    let built = || env!("CARGO_BIN_EXE_ntransformer").into();
    std::env::var_os("NT_BIN").unwrap_or_else(built).into()
}
