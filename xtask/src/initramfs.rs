//! The first file system of a Linux machine: an archive in cpio's "newc" format (Documentation/driver-api/early-userspace/
//! buffer-format.rst in Linux), and the modules that it carries.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// An archive.
#[derive(Default)]
pub struct Archive(Vec<u8>);

const FOLDER: u32 = 0o040755;
const FILE: u32 = 0o100000;

impl Archive {
    /// Adds an empty folder.
    pub fn folder(&mut self, name: &str) {
        self.entry(name, FOLDER, &[]);
    }

    /// Adds a file with these permissions.
    pub fn file(&mut self, name: &str, bytes: &[u8], permissions: u32) {
        self.entry(name, FILE | permissions, bytes);
    }

    /// The archive's bytes.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.0
    }

    fn entry(&mut self, name: &str, mode: u32, bytes: &[u8]) {
        let inode = self.0.len() as u32 + 1;
        // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check.
        let fields = [inode, mode, 0, 0, 1, 0, bytes.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
        self.0.extend(b"070701");
        fields.iter().for_each(|field| self.0.extend(format!("{field:08x}").into_bytes()));
        self.0.extend(name.as_bytes());
        self.0.push(0);
        self.pad();
        self.0.extend(bytes);
        self.pad();
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

/// The modules `names` and all that they depend on, in an order in which they can be loaded. What is built into the kernel is none.
pub fn modules(folder: &Path, names: &[&str]) -> Result<Vec<PathBuf>> {
    let (mut files, mut ordered) = (HashMap::new(), Vec::new());
    find(&folder.join("kernel"), &mut files)?;
    names.iter().try_for_each(|name| add(name, &files, &mut ordered))?;
    Ok(ordered)
}

/// Modules by their names, in which `-` and `_` are the same.
fn find(folder: &Path, files: &mut HashMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            find(&path, files)?;
        } else if let Some(name) = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".ko")) {
            files.insert(name.replace('-', "_"), path.clone());
        }
    }
    Ok(())
}

fn add(name: &str, files: &HashMap<String, PathBuf>, ordered: &mut Vec<PathBuf>) -> Result<()> {
    let file = files.get(&name.replace('-', "_")).with_context(|| format!("the kernel has no module {name}"))?;
    if ordered.contains(file) {
        return Ok(());
    }
    let bytes = fs::read(file).with_context(|| file.display().to_string())?;
    // What modinfo(8) shows: texts in the file, each with a zero at its end.
    let mut texts = bytes.split(|&byte| byte == 0).filter_map(|text| std::str::from_utf8(text).ok());
    let depends = texts.find_map(|text| text.strip_prefix("depends=")).unwrap_or_default();
    depends.split(',').filter(|name| !name.is_empty()).try_for_each(|name| add(name, files, ordered))?;
    ordered.push(file.clone());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_behind_what_they_need() {
        let folder = tempfile::tempdir().unwrap();
        let module = |path: &str, depends: &str| {
            let path = folder.path().join("kernel").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("\x7fELF\0license=GPL\0depends={depends}\0rest")).unwrap();
        };
        module("a/nvme.ko", "nvme-core");
        module("a/nvme_core.ko", "t10-pi,crc64");
        module("b/t10-pi.ko", "crc64");
        module("b/crc64.ko", "");
        let found = modules(folder.path(), &["nvme", "crc64"]).unwrap();
        let names: Vec<_> = found.iter().map(|path| path.file_stem().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["crc64", "t10-pi", "nvme_core", "nvme"]);
        assert!(modules(folder.path(), &["vfio"]).unwrap_err().to_string().contains("no module vfio"));
    }

    #[test]
    fn archives() {
        let mut archive = Archive::default();
        archive.file("init", b"hello", 0o755);
        let bytes = archive.finish();
        // A header of 110 bytes and "init\0" are 115, 116 with padding; the file takes 8.
        let header = String::from_utf8_lossy(&bytes[..110]).into_owned();
        assert!(header.starts_with("07070100000001000081ed"), "{header}");
        assert!(header.ends_with("0000000500000000"), "{header}");
        assert_eq!(&bytes[116..124], b"hello\0\0\0");
        assert_eq!(&bytes[124..130], b"070701");
        assert!(bytes.len().is_multiple_of(4));
    }
}
