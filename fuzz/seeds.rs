//! `seeds open|blocks FOLDER`: writes what fuzzing that target starts from.

use std::{env, fs, path::Path};

#[path = "../tests/suite/untrusted.rs"]
#[allow(dead_code, reason = "reading is what the target does")]
mod untrusted;

fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    let [target, folder] = &args[..] else { panic!("usage: seeds open|blocks FOLDER") };
    let files = match target.as_str() {
        "open" => untrusted::seeds(),
        "blocks" => blocks(),
        other => panic!("there is no target {other}"),
    };
    fs::create_dir_all(folder).expect("the folder can be made");
    for (name, bytes) in files {
        fs::write(Path::new(folder).join(name), bytes).expect("the seed can be written");
    }
}

/// A block of each type, behind the byte that chooses it.
fn blocks() -> Vec<(&'static str, Vec<u8>)> {
    let block = |(index, ty): (usize, &quant::TensorType)| {
        let mut bytes = vec![index as u8; 1 + ty.block_bytes()];
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut random = || {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            state
        };
        quant::fill_random(*ty, &mut random, 1.0, &mut bytes[1..]).expect("one block");
        (ty.name(), bytes)
    };
    quant::TensorType::ALL.iter().enumerate().map(block).collect()
}
