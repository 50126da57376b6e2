//! The PTX kept beside a kernel crate, and the manifest that says what it was made from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::builder::{CudaBuilder, CudaBuilderError};
use crate::compiler::DeviceCompiler;
use crate::sources;

/// The manifest's name in the folder of PTX files.
const MANIFEST: &str = "manifest.toml";

/// What the files in `ptx/` were made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`DeviceCompiler::version`].
    pub compiler: String,
    /// SHA-256 of the kernel crate's sources, of those of the workspace crates under it, and of the flags.
    pub sources: String,
    /// SHA-256 of each module's PTX.
    pub modules: BTreeMap<String, String>,
}

/// A kernel crate whose features are its PTX modules (all but `default`), kept as `ptx/FEATURE.ptx` in the crate.
#[derive(Clone, Debug)]
pub struct KernelSet {
    kernels: PathBuf,
    modules: Vec<String>,
    crates: Vec<PathBuf>,
}

/// Why a kernel set could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum KernelSetError {
    /// A file or folder could not be used.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What went wrong with it.
        source: std::io::Error,
    },
    /// A file is no TOML, or not the TOML expected.
    #[error("{}: {source}", .path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<toml::de::Error>,
    },
}

impl KernelSetError {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_path_buf(), source }
    }
}

/// How the kept PTX differs from what the sources would give.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stale {
    /// There is none, or its manifest cannot be read.
    #[error("there is no usable manifest: {0}")]
    NoManifest(String),
    /// Sources or flags have changed.
    #[error("the kernels' sources have changed since")]
    Sources,
    /// A module is missing or is not what the manifest names.
    #[error("{0}.ptx is missing, or is not the one that the manifest names")]
    Module(String),
    /// The crate has no such module any more.
    #[error("the manifest names {0}, which is no feature of the kernel crate")]
    Unknown(String),
}

impl KernelSet {
    /// Reads the manifests of the crate in folder `kernels` and of those it depends on.
    ///
    /// # Errors
    /// When one of them cannot be read.
    pub fn open(kernels: impl AsRef<Path>) -> Result<Self, KernelSetError> {
        let kernels = kernels.as_ref();
        let kernels = kernels.canonicalize().map_err(|source| KernelSetError::io(kernels, source))?;
        let manifest = sources::read_toml(&kernels.join("Cargo.toml"))?;
        let features = manifest.get("features").and_then(toml::Value::as_table);
        let modules =
            features.into_iter().flat_map(toml::Table::keys).filter(|name| *name != "default").cloned().collect();
        let crates = sources::crates(&kernels)?;
        Ok(Self { kernels, modules, crates })
    }

    /// The modules' names.
    pub fn modules(&self) -> &[String] {
        &self.modules
    }

    /// Where the PTX of `module` is kept.
    pub fn kept(&self, module: &str) -> PathBuf {
        self.folder().join(format!("{module}.ptx"))
    }

    /// All that a build script must watch.
    pub fn watched(&self) -> impl Iterator<Item = PathBuf> {
        let sources = self.crates.iter().flat_map(|folder| [folder.join("Cargo.toml"), folder.join("src")]);
        sources.chain([self.folder()])
    }

    /// A builder of one module.
    pub fn builder(&self, module: &str) -> CudaBuilder {
        CudaBuilder::new(&self.kernels).features([module])
    }

    /// Compiles all modules into `folder`. `progress` is called with each module's name beforehand. They share one
    /// `target_dir`, so that core is compiled once.
    ///
    /// # Errors
    /// As [`CudaBuilder::build`].
    pub fn compile(
        &self,
        compiler: &DeviceCompiler,
        target_dir: &Path,
        folder: &Path,
        mut progress: impl FnMut(&str),
    ) -> Result<(), CudaBuilderError> {
        std::fs::create_dir_all(folder)
            .map_err(|source| CudaBuilderError::Io { path: folder.to_path_buf(), source })?;
        for module in &self.modules {
            progress(module);
            let builder = self.builder(module).compiler(compiler.clone()).target_dir(target_dir);
            builder.copy_to(folder.join(format!("{module}.ptx"))).build()?;
        }
        Ok(())
    }

    /// The manifest of the kept PTX.
    ///
    /// # Errors
    /// When it is missing or malformed.
    pub fn manifest(&self) -> Result<Manifest, KernelSetError> {
        let path = self.folder().join(MANIFEST);
        let text = std::fs::read_to_string(&path).map_err(|source| KernelSetError::io(&path, source))?;
        toml::from_str(&text).map_err(|source| KernelSetError::Toml { path, source: Box::new(source) })
    }

    /// Writes the manifest of the PTX files that `compiler` has just made in `ptx/`, and removes files of other modules.
    ///
    /// # Errors
    /// When a file cannot be read, written or removed.
    pub fn write_manifest(&self, compiler: &DeviceCompiler) -> Result<(), KernelSetError> {
        let mut modules = BTreeMap::new();
        for module in &self.modules {
            let path = self.kept(module);
            let content = std::fs::read(&path).map_err(|source| KernelSetError::io(&path, source))?;
            modules.insert(module.clone(), sources::text_hash(&content));
        }
        let folder = self.folder();
        for entry in folder.read_dir().map_err(|source| KernelSetError::io(&folder, source))? {
            let path = entry.map_err(|source| KernelSetError::io(&folder, source))?.path();
            let ours = self.modules.iter().any(|module| path == self.kept(module));
            if path.extension().is_some_and(|extension| extension == "ptx") && !ours {
                std::fs::remove_file(&path).map_err(|source| KernelSetError::io(&path, source))?;
            }
        }
        let manifest = Manifest { compiler: compiler.version().to_owned(), sources: self.hash()?, modules };
        let body = toml::to_string(&manifest).expect("strings and a map of strings are TOML");
        let text =
            format!("# Written by `cargo xtask ptx`, which remakes all of this folder. See docs/ptx.md.\n{body}");
        let path = folder.join(MANIFEST);
        std::fs::write(&path, text).map_err(|source| KernelSetError::io(&path, source))
    }

    /// Whether the kept PTX is what the sources would give; `None` when it is.
    ///
    /// # Errors
    /// When the sources cannot be read.
    pub fn stale(&self) -> Result<Option<Stale>, KernelSetError> {
        let manifest = match self.manifest() {
            Ok(manifest) => manifest,
            Err(error) => return Ok(Some(Stale::NoManifest(error.to_string()))),
        };
        if manifest.sources != self.hash()? {
            return Ok(Some(Stale::Sources));
        }
        for module in &self.modules {
            let found = std::fs::read(self.kept(module)).ok().map(|content| sources::text_hash(&content));
            if found.is_none() || found.as_ref() != manifest.modules.get(module) {
                return Ok(Some(Stale::Module(module.clone())));
            }
        }
        Ok(manifest.modules.into_keys().find(|module| !self.modules.contains(module)).map(Stale::Unknown))
    }

    fn folder(&self) -> PathBuf {
        self.kernels.join("ptx")
    }

    fn hash(&self) -> Result<String, KernelSetError> {
        sources::hash(&self.crates, &CudaBuilder::new(&self.kernels).recipe())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel crate with one module, `one`, whose PTX and manifest are in place.
    fn kept() -> (tempfile::TempDir, KernelSet) {
        let folder = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("Cargo.toml", "[package]\nname = \"kernels\"\n[features]\ndefault = [\"one\"]\none = []\n[workspace]\n");
        write("src/lib.rs", "// kernels\n");
        write("ptx/one.ptx", "// one\n");
        let kernels = KernelSet::open(folder.path()).unwrap();
        let modules = BTreeMap::from([("one".to_owned(), sources::text_hash(b"// one\n"))]);
        let manifest = Manifest { compiler: "rustc".to_owned(), sources: kernels.hash().unwrap(), modules };
        write("ptx/manifest.toml", &toml::to_string(&manifest).unwrap());
        (folder, kernels)
    }

    #[test]
    fn what_is_in_place_is_not_stale() {
        let (folder, kernels) = kept();
        assert_eq!(kernels.modules(), ["one"]);
        assert_eq!(kernels.stale().unwrap(), None);
        std::fs::write(folder.path().join("ptx/one.ptx"), "// one\r\n").unwrap();
        assert_eq!(kernels.stale().unwrap(), None, "line ends do not matter");
    }

    #[test]
    fn each_kind_of_staleness_is_told() {
        let (folder, kernels) = kept();
        let write = |path: &str, text: &str| std::fs::write(folder.path().join(path), text).unwrap();
        write("ptx/one.ptx", "// two\n");
        assert_eq!(kernels.stale().unwrap(), Some(Stale::Module("one".to_owned())));
        std::fs::remove_file(folder.path().join("ptx/one.ptx")).unwrap();
        assert_eq!(kernels.stale().unwrap(), Some(Stale::Module("one".to_owned())));
        write("src/lib.rs", "// other kernels\n");
        assert_eq!(kernels.stale().unwrap(), Some(Stale::Sources));
        write("ptx/manifest.toml", "compiler = 1\n");
        assert!(matches!(kernels.stale().unwrap(), Some(Stale::NoManifest(_))));
        std::fs::remove_file(folder.path().join("ptx/manifest.toml")).unwrap();
        assert!(matches!(kernels.stale().unwrap(), Some(Stale::NoManifest(_))));
    }
}
