//! What a kernel crate is made from: its own sources and those of the workspace crates it depends on.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use toml::{Table, Value};

use crate::KernelSetError;

/// The parts of a manifest that decide what is compiled.
const DECISIVE: [&str; 6] = ["features", "dependencies", "build-dependencies", "target", "lib", "profile"];

/// The crate folders under the kernel crate, itself first, by path dependencies (also those inherited from the workspace).
///
/// Registry dependencies are left out: what the device runs has none (procedural macros have, but a new `syn` does not
/// change what they write).
pub(crate) fn crates(kernels: &Path) -> Result<Vec<PathBuf>, KernelSetError> {
    let workspace = workspace(kernels)?;
    let mut found = Vec::new();
    let mut open = vec![kernels.to_path_buf()];
    let mut seen = BTreeSet::new();
    while let Some(folder) = open.pop() {
        if !seen.insert(folder.clone()) {
            continue;
        }
        let manifest = read_toml(&folder.join("Cargo.toml"))?;
        for (name, dependency) in dependencies(&manifest) {
            let inherited = dependency.get("workspace").and_then(Value::as_bool) == Some(true);
            let (base, declared) = match &workspace {
                Some((root, table)) if inherited => (root.as_path(), table.get(name).unwrap_or(dependency)),
                _ => (folder.as_path(), dependency),
            };
            if let Some(path) = declared.get("path").and_then(Value::as_str) {
                open.push(normal(&base.join(path)));
            }
        }
        found.push(folder);
    }
    Ok(found)
}

/// A hash of all sources of `crates`, the same on every machine: names are relative, line ends are `\n`, and manifests count
/// only by what decides the compilation.
pub(crate) fn hash(crates: &[PathBuf], recipe: &str) -> Result<String, KernelSetError> {
    let mut entries = Vec::new();
    for folder in crates {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut manifest = read_toml(&folder.join("Cargo.toml"))?;
        let edition = manifest.get("package").and_then(|package| package.get("edition")).cloned();
        manifest.retain(|key, _| DECISIVE.contains(&key));
        manifest.extend(edition.map(|edition| ("edition".to_owned(), edition)));
        entries.push((format!("{name}/Cargo.toml"), canonical(&Value::Table(manifest)).into_bytes()));
        for file in files(&folder.join("src"), "rs")? {
            let content = std::fs::read(&file).map_err(|source| KernelSetError::io(&file, source))?;
            let relative: Vec<_> =
                file.strip_prefix(folder).unwrap_or(&file).iter().map(|part| part.to_string_lossy()).collect();
            entries.push((format!("{name}/{}", relative.join("/")), content));
        }
    }
    entries.sort();
    let mut hash = Sha256::new();
    for (name, content) in [("recipe".to_owned(), recipe.as_bytes().to_vec())].into_iter().chain(entries) {
        let content = unix_lines(&content);
        for part in [name.as_bytes(), &content] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
    }
    Ok(hex(hash))
}

/// The hash of one text file, whatever line ends git gave it.
pub(crate) fn text_hash(content: &[u8]) -> String {
    hex(Sha256::new_with_prefix(unix_lines(content)))
}

pub(crate) fn read_toml(path: &Path) -> Result<Table, KernelSetError> {
    let text = std::fs::read_to_string(path).map_err(|source| KernelSetError::io(path, source))?;
    text.parse().map_err(|source| KernelSetError::Toml { path: path.to_path_buf(), source: Box::new(source) })
}

/// The workspace that `folder` belongs to, and its `[workspace.dependencies]`.
fn workspace(folder: &Path) -> Result<Option<(PathBuf, Table)>, KernelSetError> {
    for parent in folder.ancestors() {
        let manifest = parent.join("Cargo.toml");
        if !manifest.is_file() {
            continue;
        }
        if let Some(workspace) = read_toml(&manifest)?.get("workspace").and_then(Value::as_table) {
            let dependencies = workspace.get("dependencies").and_then(Value::as_table).cloned().unwrap_or_default();
            return Ok(Some((parent.to_path_buf(), dependencies)));
        }
    }
    Ok(None)
}

/// Normal and build dependencies, also those of `[target.'…']`.
fn dependencies(manifest: &Table) -> impl Iterator<Item = (&String, &Value)> {
    let targets = manifest.get("target").and_then(Value::as_table).into_iter().flat_map(Table::values);
    std::iter::once(manifest)
        .chain(targets.filter_map(Value::as_table))
        .flat_map(|table| ["dependencies", "build-dependencies"].map(|kind| table.get(kind)))
        .flatten()
        .filter_map(Value::as_table)
        .flatten()
}

/// All files under `folder` whose names end in `.{extension}`, in no particular order.
pub(crate) fn files(folder: &Path, extension: &str) -> Result<Vec<PathBuf>, KernelSetError> {
    let mut found = Vec::new();
    for entry in folder.read_dir().map_err(|source| KernelSetError::io(folder, source))? {
        let path = entry.map_err(|source| KernelSetError::io(folder, source))?.path();
        if path.is_dir() {
            found.extend(files(&path, extension)?);
        } else if path.extension().is_some_and(|end| end == extension) {
            found.push(path);
        }
    }
    Ok(found)
}

/// A TOML value with its tables' keys in order.
fn canonical(value: &Value) -> String {
    match value {
        Value::Table(table) => {
            let mut entries: Vec<_> =
                table.iter().map(|(key, value)| format!("{key:?}:{}", canonical(value))).collect();
            entries.sort();
            format!("{{{}}}", entries.join(","))
        }
        Value::Array(array) => format!("[{}]", array.iter().map(canonical).collect::<Vec<_>>().join(",")),
        plain => plain.to_string(),
    }
}

/// Takes `.` and `..` out, so that one crate has one path.
fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::CurDir => {}
            std::path::Component::ParentDir => {
                out.pop();
            }
            part => out.push(part),
        }
    }
    out
}

fn unix_lines(content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len());
    for (i, &byte) in content.iter().enumerate() {
        if !(byte == b'\r' && content.get(i + 1) == Some(&b'\n')) {
            out.push(byte);
        }
    }
    out
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes a workspace: `kernels` depends on `shared`, which is inherited, and on `../near`; `apart` is no one's.
    fn workspace_in(folder: &Path, line_end: &str) {
        let write = |path: &str, text: &str| {
            let path = folder.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text.replace('\n', line_end)).unwrap();
        };
        write(
            "Cargo.toml",
            "[workspace]\nmembers = []\n[workspace.dependencies]\nshared = { path = \"libs/shared\" }\n",
        );
        write(
            "kernels/Cargo.toml",
            "[package]\nname = \"kernels\"\ndescription = \"a\"\n[features]\none = []\n[dependencies]\nshared.workspace = true\n\
             [target.'cfg(any())'.dependencies]\nnear = { path = \"../near\" }\n",
        );
        write("libs/shared/Cargo.toml", "[package]\nname = \"shared\"\n");
        write("near/Cargo.toml", "[package]\nname = \"near\"\n");
        write("apart/Cargo.toml", "[package]\nname = \"apart\"\n");
        for name in ["kernels", "libs/shared", "near", "apart"] {
            write(&format!("{name}/src/lib.rs"), "// one\n// two\n");
        }
    }

    fn hash_of(folder: &Path) -> String {
        hash(&crates(&folder.join("kernels")).unwrap(), "recipe").unwrap()
    }

    #[test]
    fn path_dependencies_are_followed() {
        let folder = tempfile::tempdir().unwrap();
        workspace_in(folder.path(), "\n");
        let mut found = crates(&folder.path().join("kernels")).unwrap();
        found.sort();
        assert_eq!(found, ["kernels", "libs/shared", "near"].map(|name| folder.path().join(name)));
    }

    #[test]
    fn the_hash_sees_sources_and_nothing_else() {
        let (unix, dos) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        workspace_in(unix.path(), "\n");
        workspace_in(dos.path(), "\r\n");
        let first = hash_of(unix.path());
        assert_eq!(first, hash_of(dos.path()), "line ends and folders do not matter");

        let edit = |path: &str, from: &str, to: &str| {
            let path = unix.path().join(path);
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.contains(from));
            std::fs::write(path, text.replace(from, to)).unwrap();
        };
        edit("apart/src/lib.rs", "two", "three");
        edit("kernels/Cargo.toml", "\"a\"", "\"b\"");
        std::fs::create_dir_all(unix.path().join("kernels/target")).unwrap();
        assert_eq!(first, hash_of(unix.path()), "other crates and descriptions do not matter");
        edit("near/src/lib.rs", "two", "three");
        let second = hash_of(unix.path());
        assert_ne!(first, second, "a dependency's source matters");
        edit("kernels/Cargo.toml", "one = []", "one = [\"x\"]");
        let third = hash_of(unix.path());
        assert_ne!(second, third, "features matter");
        std::fs::write(unix.path().join("kernels/src/new.rs"), "").unwrap();
        assert_ne!(third, hash_of(unix.path()), "a new file matters");
    }
}
