//! The header is what the sources give. `cargo xtask header` writes it, by running this test with NT_HEADER=write.

use std::{fs, path::Path};

fn generated(folder: &Path) -> String {
    let config = cbindgen::Config::from_file(folder.join("cbindgen.toml")).unwrap();
    let builder = cbindgen::Builder::new().with_config(config).with_src(folder.join("src/lib.rs"));
    let bindings = builder.generate().unwrap();
    let mut header = Vec::new();
    bindings.write(&mut header);
    String::from_utf8(header).unwrap()
}

#[test]
fn the_header_is_what_the_sources_give() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (file, header) = (folder.join("include/ntransformer.h"), generated(folder));
    if std::env::var("NT_HEADER").as_deref() == Ok("write") {
        fs::write(&file, &header).unwrap();
    }
    let kept = fs::read_to_string(&file).unwrap_or_default();
    assert!(kept == header, "{} is out of date: run `cargo xtask header`", file.display());
}
