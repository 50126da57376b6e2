//! `ntransformer synth`: a model file with random weights and the shape of a real model, to measure speed with.

mod recipe;
mod shape;

pub use recipe::Quant;
pub use shape::Shape;

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use bytesize::ByteSize;
use indicatif::{ProgressBar, ProgressStyle};
use quant::TensorType;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use shape::{Fill, Planned, Sizes};

use crate::{
    demo,
    gguf::{DataWriter, Gguf, Writer},
};

/// RMSNorm's epsilon of all these models.
const EPSILON: f32 = 1e-5;

/// Bytes that are made with one stream of random numbers, about.
const CHUNK: usize = 1 << 20;

/// Bytes that are made while the last ones are written, about: enough for each of many cores to make a few chunks.
const PIECE: usize = 64 * CHUNK;

/// Arguments of `ntransformer synth`.
#[derive(Debug, clap::Args)]
pub struct SynthArgs {
    /// The model whose sizes to take.
    #[arg(long, value_enum)]
    pub shape: Shape,
    /// The matrices' type (F32, F16, BF16, Q8_0, Q3_K to Q6_K) or one of llama.cpp's mixtures (Q4_0, Q4_1, Q5_0, Q5_1, IQ4_NL,
    /// IQ4_XS, Q2_K, Q3_K_M, Q4_K_M, Q5_K_M).
    #[arg(long, value_name = "TYPE")]
    pub quant: Quant,
    /// No mixture: all matrices of the same type.
    #[arg(long)]
    pub pure: bool,
    /// The same seed gives the same bytes.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// A GGUF file whose tokenizer to take; that of the built-in demo model if absent.
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
    /// Replace OUT if it exists.
    #[arg(long)]
    pub force: bool,
    /// The file to write. It is written as OUT.tmp and gets its name when it is complete.
    #[arg(value_name = "OUT")]
    pub out: PathBuf,
}

/// Writes the file.
///
/// # Errors
/// If it exists already, the disk is too small, or writing fails.
pub fn run(args: &SynthArgs) -> anyhow::Result<()> {
    let out = &args.out;
    ensure!(!out.is_dir(), "{} is a folder: name a file in it", out.display());
    ensure!(args.force || !out.exists(), "{} exists already; --force replaces it", out.display());
    let quant = if args.pure { Quant::pure(args.quant.base()) } else { args.quant };
    let tokenizer = args.tokenizer.as_deref().map_or_else(demo::gguf, Gguf::open)?;
    // Hides itself where standard error is no terminal.
    let bar = ProgressBar::no_length().with_style(ProgressStyle::with_template(
        "{wide_bar} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left",
    )?);
    let written = write(args.shape, quant, args.seed, &tokenizer, out, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    super::open::say(&format!("{}: {} ({}, seed {})", out.display(), ByteSize(written), quant.name(), args.seed));
    Ok(())
}

/// Writes a model of `shape` with random weights to `out`, replacing it, and returns its length in bytes. The bytes depend
/// on `shape`, `quant`, `seed` and `tokenizer` alone. `progress` is told of the bytes of weights written so far, and of all.
///
/// The tokenizer is that of the file `tokenizer`, filled up to the shape's vocabulary with unused tokens.
///
/// # Errors
/// If the disk has too little room, writing fails, or the tokenizer has more tokens than the shape.
pub fn write(
    shape: Shape,
    quant: Quant,
    seed: u64,
    tokenizer: &Gguf,
    out: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> anyhow::Result<u64> {
    let (writer, tensors) = plan(shape, quant, seed, tokenizer)?;
    let bytes: u64 = writer.tensors().iter().map(|tensor| tensor.bytes).sum();
    check_space(out, bytes)?;

    let mut unfinished = out.as_os_str().to_owned();
    unfinished.push(".tmp");
    let unfinished = PathBuf::from(unfinished);
    let fill = || -> anyhow::Result<u64> {
        let mut data = writer.begin(BufWriter::new(File::create(&unfinished)?))?;
        fill(&tensors, seed, &mut data, &mut |done| progress(done, bytes))?;
        // Not synced: what a power failure takes is made again from its seed.
        let len = data.finish()?.get_ref().metadata()?.len();
        std::fs::rename(&unfinished, out)?;
        Ok(len)
    };
    fill().map_err(|error| {
        // Where even this fails, the file's name says that it is not complete.
        let _ = std::fs::remove_file(&unfinished);
        error.context(format!("{} cannot be written", out.display()))
    })
}

/// The file's metadata and table of tensors, and what to fill them with.
fn plan(shape: Shape, quant: Quant, seed: u64, tokenizer: &Gguf) -> anyhow::Result<(Writer, Vec<Planned>)> {
    let sizes = shape.sizes();
    let mut writer = Writer::new();
    let name = format!("Random weights, the shape of {}, {}, seed {seed}", sizes.name, quant.name());
    hyperparameters(&sizes, &name, &mut writer)?;
    let vocab = copy_tokenizer(tokenizer, sizes.vocab, &mut writer)?;
    let tensors = sizes.tensors(&quant, vocab);
    for tensor in &tensors {
        writer.tensor(&tensor.name, &tensor.dims, tensor.ty)?;
    }
    Ok((writer, tensors))
}

fn hyperparameters(sizes: &Sizes, name: &str, writer: &mut Writer) -> anyhow::Result<()> {
    let arch = sizes.arch.name();
    writer.set("general.architecture", arch)?.set("general.name", name)?.set("general.quantization_version", &2u32)?;
    let mut set = |key: &str, value: u32| writer.set(&format!("{arch}.{key}"), &value).map(drop);
    set("context_length", sizes.context)?;
    set("embedding_length", sizes.hidden)?;
    set("block_count", sizes.layers)?;
    set("feed_forward_length", sizes.ffn)?;
    set("attention.head_count", sizes.heads)?;
    set("attention.head_count_kv", sizes.kv_heads)?;
    set("attention.key_length", sizes.head_dim)?;
    set("attention.value_length", sizes.head_dim)?;
    set("rope.dimension_count", sizes.head_dim)?;
    sizes.window.map_or(Ok(()), |window| set("attention.sliding_window", window))?;
    writer.set(&format!("{arch}.rope.freq_base"), &sizes.rope_base)?;
    writer.set(&format!("{arch}.attention.layer_norm_rms_epsilon"), &EPSILON)?;
    Ok(())
}

/// Copies the tokenizer, filled up to `vocab` tokens where given, and returns its number of tokens.
fn copy_tokenizer(from: &Gguf, vocab: Option<usize>, writer: &mut Writer) -> anyhow::Result<usize> {
    const TOKENS: &str = "tokenizer.ggml.tokens";
    const TYPES: &str = "tokenizer.ggml.token_type";
    const SCORES: &str = "tokenizer.ggml.scores";
    // ggml's numbers of token types (`llama_token_type`).
    const NORMAL: i32 = 1;
    const UNUSED: i32 = 5;
    // What llama.cpp's converter gives to tokens that no text contains.
    const UNUSED_SCORE: f32 = -1000.0;

    let metadata = from.metadata();
    let Some(tokens) = metadata.strings(TOKENS)? else { bail!("{}: has no tokenizer ({TOKENS})", from.name()) };
    let vocab = vocab.unwrap_or(tokens.len());
    let have = tokens.len();
    ensure!(have <= vocab, "{}: its tokenizer has {have} tokens, but the shape only {vocab}", from.name());
    let unused = (0..vocab - have).map(|i| format!("<|unused_{i}|>"));
    let tokens: Vec<String> = tokens.into_iter().map(str::to_owned).chain(unused).collect();
    let mut types = metadata.i32s(TYPES)?.unwrap_or_else(|| vec![NORMAL; have]);
    types.resize(vocab, UNUSED);

    for (key, value) in metadata.iter().filter(|(key, _)| key.starts_with("tokenizer.")) {
        if ![TOKENS, TYPES, SCORES].contains(&key) {
            writer.set_value(key, value)?;
        }
    }
    writer.set(TOKENS, &tokens)?.set(TYPES, &types)?;
    if let Some(mut scores) = metadata.f32s(SCORES)? {
        scores.resize(vocab, UNUSED_SCORE);
        writer.set(SCORES, &scores)?;
    }
    Ok(vocab)
}

/// An error unless `out`'s disk has room for `bytes` bytes of weights.
fn check_space(out: &Path, bytes: u64) -> anyhow::Result<()> {
    let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let stat = rustix::fs::statvfs(folder).with_context(|| format!("{}: cannot be written to", folder.display()))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    ensure!(
        bytes <= free,
        "{}: the model takes {} and its disk has {} free; choose another disk, shape or type",
        out.display(),
        ByteSize(bytes),
        ByteSize(free),
    );
    Ok(())
}

/// Bytes that are made at once: a part of one tensor.
struct Piece<'a> {
    tensor: &'a Planned,
    bytes: usize,
    /// Of the first chunk; the others count on.
    stream: u64,
}

/// Bytes of a chunk of `ty`: whole blocks.
fn chunk_bytes(ty: TensorType) -> usize {
    CHUNK / ty.block_bytes() * ty.block_bytes()
}

/// Writes the tensors' data: each piece is made by all cores while the one before is written.
fn fill<W: Write + Send>(
    tensors: &[Planned],
    seed: u64,
    data: &mut DataWriter<W>,
    progress: &mut dyn FnMut(u64),
) -> anyhow::Result<()> {
    let (mut made, mut next) = (Vec::new(), Vec::new());
    let (mut stream, mut done) = (0, 0);
    for tensor in tensors {
        let elements = tensor.dims.iter().product::<u64>() as usize;
        let chunk = chunk_bytes(tensor.ty);
        let mut rest = elements / tensor.ty.block_elems() * tensor.ty.block_bytes();
        while rest > 0 {
            let piece = Piece { tensor, bytes: rest.min(PIECE / CHUNK * chunk), stream };
            let (written, ()) = rayon::join(|| data.write(&made), || piece.make(seed, &mut next));
            written?;
            done += made.len() as u64;
            progress(done);
            stream += piece.bytes.div_ceil(chunk) as u64;
            rest -= piece.bytes;
            std::mem::swap(&mut made, &mut next);
        }
    }
    data.write(&made)?;
    progress(done + made.len() as u64);
    Ok(())
}

impl Piece<'_> {
    /// Replaces `out` by the piece's bytes. Each chunk has a stream of random numbers of its own, so the bytes do not depend
    /// on who makes which.
    fn make(&self, seed: u64, out: &mut Vec<u8>) {
        match &self.tensor.fill {
            Fill::Values(values) => {
                out.clear();
                out.extend(values.iter().flat_map(|v| v.to_le_bytes()));
            }
            &Fill::Random(sigma) => {
                out.resize(self.bytes, 0);
                let ty = self.tensor.ty;
                out.par_chunks_mut(chunk_bytes(ty)).enumerate().for_each(|(i, chunk)| {
                    let mut rng = ChaCha8Rng::seed_from_u64(seed);
                    rng.set_stream(self.stream + i as u64);
                    quant::fill_random(ty, &mut || rng.next_u64(), sigma, chunk).expect("chunks are whole blocks");
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::FileExt, sync::Arc};

    use clap::ValueEnum;

    use super::*;
    use crate::model::Model;

    /// Parameters that the publishers count, or none for the shapes of tests.
    fn published(shape: Shape) -> Option<u64> {
        match shape {
            Shape::Llama1b => Some(1_235_814_400),
            Shape::Llama8b => Some(8_030_261_248),
            Shape::Llama70b => Some(70_553_706_496),
            Shape::Qwen05b => Some(494_032_768),
            Shape::Qwen32b => Some(32_763_876_352),
            Shape::Qwen3_8b => Some(8_190_735_360),
            Shape::Phi3Mini => Some(3_821_079_552),
            // The text part, less 64 rows of the embedding (262,208) that are no tokens.
            Shape::Gemma3_4b => Some(3_880_263_168 - 64 * 2560),
            Shape::Tiny | Shape::TinyQwen2 | Shape::TinyPhi3 => None,
        }
    }

    /// Each shape is a model that opens, with as many parameters as the real one. The weights are a hole in the file.
    #[test]
    fn every_shape_is_a_model() {
        let (demo, folder) = (demo::gguf().unwrap(), tempfile::tempdir().unwrap());
        for &shape in Shape::value_variants() {
            let (writer, tensors) = plan(shape, "Q4_K_M".parse().unwrap(), 0, &demo).unwrap();
            let places = writer.tensors().to_vec();
            let mut head = Vec::new();
            writer.begin(&mut head).unwrap();
            let start = head.len() as u64;
            let path = folder.path().join("model.gguf");
            let file = File::create(&path).unwrap();
            file.write_all_at(&head, 0).unwrap();
            let last = places.last().unwrap();
            file.set_len(start + last.offset + last.bytes).unwrap();
            // The only values that are read: factors of 0 would be refused.
            for (tensor, place) in tensors.iter().zip(&places).filter(|(tensor, _)| tensor.name == "rope_freqs.weight")
            {
                let Fill::Values(values) = &tensor.fill else { panic!("{shape:?}: random rotary factors") };
                let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                file.write_all_at(&bytes, start + place.offset).unwrap();
            }

            let model = Model::new(Arc::new(Gguf::open(&path).unwrap()), None, 4096)
                .unwrap_or_else(|e| panic!("{shape:?}: {e}"));
            let sizes = shape.sizes();
            assert_eq!((model.config.arch, model.config.layers), (sizes.arch, sizes.layers as usize), "{shape:?}");
            assert_eq!((model.tied(), model.config.trained_context), (sizes.tied, sizes.context as usize), "{shape:?}");
            let windowed = model.config.kinds.iter().any(|kind| kind.window.is_some());
            assert_eq!(windowed, sizes.window.is_some(), "{shape:?}");
            let weights = model.gguf.tensors().iter().filter(|tensor| tensor.name != "rope_freqs.weight");
            let parameters: u64 = weights.map(|tensor| tensor.elems()).sum();
            if let Some(published) = published(shape) {
                assert_eq!(parameters, published, "{shape:?}");
            }
        }
    }
}
