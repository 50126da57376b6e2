//! The PTX kept beside a kernel crate, and the manifest that says what it was made from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::builder::{CudaBuilder, CudaBuilderError, NvvmArch};
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
    /// SHA-256 of each file, by [`Variant`].
    pub files: BTreeMap<String, String>,
}

/// One module compiled for one architecture. Written out, it is the file that the PTX is kept in: `sm_80/ops.ptx`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variant<'a> {
    /// The oldest GPU that it runs on.
    pub arch: NvvmArch,
    /// The module's name.
    pub module: &'a str,
}

impl std::fmt::Display for Variant<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}.ptx", self.arch, self.module)
    }
}

/// A kernel crate whose features are its PTX modules (all but `default`), each kept as its [`Variant`]s in the crate's `ptx`.
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
    /// A file is missing or is not what the manifest names.
    #[error("{0} is missing, or is not the one that the manifest names")]
    File(String),
    /// The crate has no such module any more, or the architecture is no longer compiled for.
    #[error("the manifest names {0}, which the kernel crate does not give")]
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

    /// Every module for every architecture: the oldest architecture first, then by name.
    pub fn variants(&self) -> impl Iterator<Item = Variant<'_>> {
        NvvmArch::ALL.into_iter().flat_map(|arch| self.modules.iter().map(move |module| Variant { arch, module }))
    }

    /// The folder that the PTX is kept in.
    pub fn folder(&self) -> PathBuf {
        self.kernels.join("ptx")
    }

    /// Where the PTX of `variant` is kept.
    pub fn kept(&self, variant: Variant<'_>) -> PathBuf {
        self.folder().join(variant.to_string())
    }

    /// All that a build script must watch.
    pub fn watched(&self) -> impl Iterator<Item = PathBuf> {
        let sources = self.crates.iter().flat_map(|folder| [folder.join("Cargo.toml"), folder.join("src")]);
        sources.chain([self.folder()])
    }

    /// Compiles all variants into `folder`. `progress` is called with each variant beforehand, from any thread.
    ///
    /// The architectures are compiled at the same time. Each has a folder of its own in `target_dir`, where its modules
    /// share one core: one folder would hold the runs of cargo up at its lock.
    ///
    /// # Errors
    /// As [`CudaBuilder::build`].
    pub fn compile(
        &self,
        compiler: &DeviceCompiler,
        target_dir: &Path,
        folder: &Path,
        progress: impl Fn(Variant<'_>) + Sync,
    ) -> Result<(), CudaBuilderError> {
        let compile = |arch: NvvmArch| {
            let io = |path: &Path, source| CudaBuilderError::Io { path: path.to_path_buf(), source };
            let to = folder.join(arch.to_string());
            std::fs::create_dir_all(&to).map_err(|source| io(&to, source))?;
            for variant in self.variants().filter(|variant| variant.arch == arch) {
                progress(variant);
                let builder = CudaBuilder::new(&self.kernels).arch(arch).features([variant.module]);
                let builder = builder.compiler(compiler.clone()).target_dir(target_dir.join(arch.to_string()));
                builder.copy_to(folder.join(variant.to_string())).build()?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let running = NvvmArch::ALL.map(|arch| scope.spawn(move || compile(arch)));
            running.into_iter().try_for_each(|thread| thread.join().expect("a thread that does not panic"))
        })
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

    /// Writes the manifest of the PTX files that `compiler` has just made in `ptx/`, and removes all others from there.
    ///
    /// # Errors
    /// When a file cannot be read, written or removed.
    pub fn write_manifest(&self, compiler: &DeviceCompiler) -> Result<(), KernelSetError> {
        let mut files = BTreeMap::new();
        for variant in self.variants() {
            let path = self.kept(variant);
            let content = std::fs::read(&path).map_err(|source| KernelSetError::io(&path, source))?;
            files.insert(variant.to_string(), sources::text_hash(&content));
        }
        self.remove_others()?;
        let manifest = Manifest { compiler: compiler.version().to_owned(), sources: self.hash()?, files };
        let body = toml::to_string(&manifest).expect("strings and a map of strings are TOML");
        let text =
            format!("# Written by `cargo xtask ptx`, which remakes all of this folder. See docs/ptx.md.\n{body}");
        let path = self.folder().join(MANIFEST);
        std::fs::write(&path, text).map_err(|source| KernelSetError::io(&path, source))
    }

    /// Removes PTX files that are of no variant.
    fn remove_others(&self) -> Result<(), KernelSetError> {
        for path in sources::files(&self.folder(), "ptx")? {
            if !self.variants().any(|variant| path == self.kept(variant)) {
                std::fs::remove_file(&path).map_err(|source| KernelSetError::io(&path, source))?;
            }
        }
        Ok(())
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
        for variant in self.variants() {
            let found = std::fs::read(self.kept(variant)).ok().map(|content| sources::text_hash(&content));
            if found.is_none() || found.as_ref() != manifest.files.get(&variant.to_string()) {
                return Ok(Some(Stale::File(variant.to_string())));
            }
        }
        let known = |file: &String| self.variants().any(|variant| variant.to_string() == *file);
        Ok(manifest.files.into_keys().find(|file| !known(file)).map(Stale::Unknown))
    }

    fn hash(&self) -> Result<String, KernelSetError> {
        let recipes = NvvmArch::ALL.map(|arch| CudaBuilder::new(&self.kernels).arch(arch).recipe());
        sources::hash(&self.crates, &recipes.join("\n"))
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
        let files = ["sm_80/one.ptx", "sm_90/one.ptx"];
        for file in files {
            write(&format!("ptx/{file}"), "// one\n");
        }
        let kernels = KernelSet::open(folder.path()).unwrap();
        let files = BTreeMap::from(files.map(|file| (file.to_owned(), sources::text_hash(b"// one\n"))));
        let manifest = Manifest { compiler: "rustc".to_owned(), sources: kernels.hash().unwrap(), files };
        write("ptx/manifest.toml", &toml::to_string(&manifest).unwrap());
        (folder, kernels)
    }

    #[test]
    fn what_is_in_place_is_not_stale() {
        let (folder, kernels) = kept();
        let variants: Vec<_> = kernels.variants().map(|variant| variant.to_string()).collect();
        assert_eq!(variants, ["sm_80/one.ptx", "sm_90/one.ptx"]);
        assert_eq!(kernels.stale().unwrap(), None);
        std::fs::write(folder.path().join("ptx/sm_90/one.ptx"), "// one\r\n").unwrap();
        assert_eq!(kernels.stale().unwrap(), None, "line ends do not matter");
    }

    #[test]
    fn files_of_no_variant_are_removed() {
        let (folder, kernels) = kept();
        for stray in ["one.ptx", "sm_90/two.ptx"] {
            std::fs::write(folder.path().join("ptx").join(stray), "").unwrap();
        }
        kernels.remove_others().unwrap();
        let mut left = sources::files(&kernels.folder(), "ptx").unwrap();
        left.sort();
        assert_eq!(left, kernels.variants().map(|variant| kernels.kept(variant)).collect::<Vec<_>>());
        assert_eq!(kernels.stale().unwrap(), None);
    }

    #[test]
    fn each_kind_of_staleness_is_told() {
        let (folder, kernels) = kept();
        let write = |path: &str, text: &str| std::fs::write(folder.path().join(path), text).unwrap();
        let manifest = std::fs::read_to_string(folder.path().join("ptx/manifest.toml")).unwrap();
        write("ptx/manifest.toml", &manifest.replace("[files]", "[files]\n\"sm_70/one.ptx\" = \"\""));
        assert_eq!(kernels.stale().unwrap(), Some(Stale::Unknown("sm_70/one.ptx".to_owned())));
        write("ptx/manifest.toml", &manifest);
        write("ptx/sm_90/one.ptx", "// two\n");
        assert_eq!(kernels.stale().unwrap(), Some(Stale::File("sm_90/one.ptx".to_owned())));
        std::fs::remove_file(folder.path().join("ptx/sm_80/one.ptx")).unwrap();
        assert_eq!(kernels.stale().unwrap(), Some(Stale::File("sm_80/one.ptx".to_owned())));
        write("src/lib.rs", "// other kernels\n");
        assert_eq!(kernels.stale().unwrap(), Some(Stale::Sources));
        write("ptx/manifest.toml", "compiler = 1\n");
        assert!(matches!(kernels.stale().unwrap(), Some(Stale::NoManifest(_))));
        std::fs::remove_file(folder.path().join("ptx/manifest.toml")).unwrap();
        assert!(matches!(kernels.stale().unwrap(), Some(Stale::NoManifest(_))));
    }
}
