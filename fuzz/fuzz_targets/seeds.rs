//! What fuzzing starts from. Each target makes its own, so that no corpus has to be kept.

use std::{env, fs, path::Path};

/// Writes `files` into the folder that NT_FUZZ_SEEDS names, if it does.
pub fn write(files: Vec<(&str, Vec<u8>)>) {
    let Some(folder) = env::var_os("NT_FUZZ_SEEDS") else { return };
    fs::create_dir_all(&folder).expect("the folder of NT_FUZZ_SEEDS can be made");
    for (name, bytes) in files {
        fs::write(Path::new(&folder).join(name), bytes).expect("the seed can be written");
    }
}
