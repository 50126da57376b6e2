//! Files from strangers: small valid ones to start from, and all that is read of a file before it computes. The fuzz targets
//! (`fuzz/`) use this module too.

use std::sync::Arc;

use ntransformer::{
    device::Rotation,
    engine::tokenizer::{EncodeOptions, Tokenizer},
    gguf::{GgmlType, Gguf, GgufFault, Value, Writer},
    model::{Config, Model, Tensors},
    pack::{Image, TensorId},
};

/// How far a file got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reached {
    /// It is refused.
    Nothing,
    /// It is sound GGUF.
    File,
    /// And a model of which all tensors are there.
    Model,
}

/// Opens a file and reads everything in it: metadata, tensors, configuration, vocabulary.
///
/// # Panics
/// When a part of the engine does, or what was read is not consistent.
pub fn read_all(bytes: Vec<u8>) -> Reached {
    let len = bytes.len();
    let gguf = match Gguf::from_vec("untrusted", bytes) {
        Ok(gguf) => Arc::new(gguf),
        Err(error) => {
            assert!(error.to_string().starts_with("untrusted: "), "{error}");
            return Reached::Nothing;
        }
    };
    assert_eq!((gguf.parts().len(), gguf.file_bytes()), (1, len as u64));
    read_metadata(&gguf);
    read_tensors(&gguf);
    read_vocabulary(&gguf);
    match Config::new(&gguf, None, 4096).and_then(|config| Ok((Tensors::new(&gguf, &config)?, config))) {
        Ok((tensors, config)) => {
            read_model(&gguf, &config, &tensors);
            Reached::Model
        }
        Err(error) => {
            assert!(error.to_string().starts_with("untrusted: "), "{error}");
            Reached::File
        }
    }
}

/// Bytes that reading a file of `len` bytes may take: regular expressions and tables, and so many times the file.
pub fn allowed(len: usize) -> usize {
    (2 << 20) + 32 * len
}

fn read_metadata(gguf: &Gguf) {
    fn walk(value: Value<'_>) {
        if let Value::Array(array) = value {
            assert_eq!(array.iter().count(), array.len());
            array.iter().for_each(walk);
        }
    }
    let metadata = gguf.metadata();
    assert_eq!(metadata.iter().count(), metadata.len());
    for (key, value) in metadata.iter() {
        assert_eq!(metadata.get(key).map(|value| value.ty()), Some(value.ty()), "{key}");
        walk(value);
        let _ = (metadata.u32(key).is_ok(), metadata.u64(key).is_ok(), metadata.f32(key).is_ok());
        let _ = (metadata.bool(key).is_ok(), metadata.str(key).is_ok(), metadata.strings(key).is_ok());
        let _ = (metadata.i32s(key).is_ok(), metadata.u32s(key).is_ok(), metadata.f32s(key).is_ok());
    }
}

fn read_tensors(gguf: &Gguf) {
    for (index, tensor) in gguf.tensors().iter().enumerate() {
        assert_eq!(gguf.tensor_index(&tensor.name), Some(index));
        let bytes = gguf.bytes(tensor);
        assert_eq!(bytes.len() as u64, tensor.bytes);
        let file = gguf.part(tensor).bytes();
        let start = gguf.tensor_file_offset(tensor) as usize;
        assert!(std::ptr::eq(bytes, &file[start..start + bytes.len()]), "{}", tensor.name);
        assert_eq!(tensor.rows().checked_mul(tensor.cols()), Some(tensor.elems()), "{}", tensor.name);
        if let GgmlType::Supported(ty) = tensor.ty {
            assert_eq!(gguf.supported_type(tensor).unwrap(), ty);
            // The first row and the last one; tensors may overlap, so all of all would not be bounded by the file's size.
            let row_bytes = ty.row_bytes(tensor.cols() as usize).expect("the reader checked the row's length");
            assert_eq!(row_bytes as u64 * tensor.rows(), tensor.bytes);
            let mut row = vec![0.0; tensor.cols() as usize];
            for bytes in [&bytes[..row_bytes], &bytes[bytes.len() - row_bytes..]] {
                quant::decode_row(ty, bytes, &mut row).expect("the lengths fit");
            }
        } else {
            assert!(gguf.supported_type(tensor).is_err());
        }
    }
}

fn read_vocabulary(gguf: &Gguf) {
    let Ok(tokenizer) = Tokenizer::from_gguf(gguf) else { return };
    let size = tokenizer.vocab_size() as u32;
    assert!(size > 0);
    for special in [false, true] {
        let options = EncodeOptions { bos: false, special };
        if let Ok(ids) = tokenizer.encode("ab  ba\n<s>\u{fc} 12", options) {
            assert!(ids.iter().all(|&id| id < size), "{ids:?} of {size}");
            tokenizer.decode(&ids);
        }
    }
    for id in (0..size.min(64)).chain([size - 1, size, u32::MAX]) {
        let _ = (tokenizer.token_bytes(id), tokenizer.is_end(id));
    }
}

fn read_model(gguf: &Arc<Gguf>, config: &Config, tensors: &Tensors) {
    let d = &config.dims;
    assert_eq!(tensors.layers.len(), config.layers);
    assert!(d.hidden > 0 && d.heads > 0 && d.kv_heads > 0 && d.heads.is_multiple_of(d.kv_heads) && d.vocab > 0);
    assert!(d.rope_dims <= d.head_dim && d.context > 0 && d.context <= config.trained_context);
    assert!(config.trained_context <= config.max_context);
    assert_eq!(config.ropes.len(), d.rotations);
    for rope in &config.ropes {
        let Rotation { cos, sin } = rope.angles(&[0, d.context as u32 - 1]);
        assert_eq!((cos.len(), sin.len()), (d.rope_dims, d.rope_dims));
    }
    for layer in &tensors.layers {
        assert!(layer.attn.q_rotation < d.rotations && layer.attn.k_rotation < d.rotations);
        assert!(layer.attn.window != Some(0));
        let _ = layer.map(|part| {
            let tensor = &gguf.tensors()[part.tensor.0];
            let outputs = if tensor.rows() == 1 { tensor.cols() } else { tensor.rows() } as usize;
            assert!(part.outputs.as_ref().is_none_or(|range| range.start <= range.end && range.end <= outputs));
        });
    }
    let model = Model::new(gguf.clone(), None, 4096).expect("its parts were found sound");
    let image = |image: Image| {
        for placed in image.tensors() {
            assert!(placed.range.end <= image.bytes());
            assert_eq!(placed.data(gguf).len(), placed.range.len());
            if let Some((part, range)) = placed.file_range(gguf) {
                assert_eq!(part.bytes()[range], *placed.data(gguf));
            }
        }
    };
    image(model.head_image().expect("its types are supported"));
    // As many layers as the file has tensors are possible, each of them all of the file.
    (0..config.layers.min(4)).for_each(|layer| image(model.layer_image(layer).expect("its types are supported")));
    assert_eq!(model.embed(&[0, d.vocab as u32 - 1]).unwrap().len(), 2 * d.hidden);
    let TensorId(embedding) = tensors.embedding;
    assert_eq!(gguf.tensors()[embedding].rows(), d.vocab as u64);
}

/// Small valid files: all types of metadata and tensors, and a model of each architecture and kind of vocabulary.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let file = |build: fn(&mut Writer) -> Result<(), GgufFault>| {
        let mut writer = Writer::new();
        build(&mut writer).expect("the seed is valid");
        let tensors = writer.tensors().to_vec();
        let mut data = writer.begin(Vec::new()).unwrap();
        for tensor in &tensors {
            // Small halves and integers in every type; as F32, tiny numbers.
            data.write(&(0..tensor.bytes).map(|i| (i * 7 % 61) as u8).collect::<Vec<_>>()).unwrap();
        }
        data.finish().unwrap()
    };
    vec![
        ("values", file(values)),
        ("llama", file(llama)),
        ("qwen2", file(qwen2)),
        ("phi3", file(phi3)),
        ("gemma3", file(gemma3)),
        ("tokens", file(tokens)),
    ]
}

fn values(w: &mut Writer) -> Result<(), GgufFault> {
    w.set("general.architecture", "llama")?.set("general.alignment", &64u32)?;
    w.set("u8", &200u8)?.set("i8", &-3i8)?.set("u16", &60000u16)?.set("i16", &-30000i16)?;
    w.set("u32", &4_000_000_000u32)?.set("i32", &-5i32)?.set("u64", &u64::MAX)?.set("i64", &i64::MIN)?;
    w.set("f32", &1.5f32)?.set("f64", &0.1f64)?.set("yes", &true)?.set("no", &false)?;
    w.set("text", "gr\u{fc}\u{df}e")?.set("words", &vec!["a", "", "bc"])?.set("floats", &vec![0.5f32, -1.0])?;
    w.set("doubles", &vec![0.5f64])?.set("bytes", &vec![1u8, 2])?.set("signed", &vec![-1i8])?;
    w.set("shorts", &vec![1u16])?
        .set("negative", &vec![-1i16])?
        .set("longs", &vec![1u64])?
        .set("deep", &vec![-1i64])?;
    w.set("ints", &vec![1i32, -2, 3])?.set("flags", &vec![true, false])?.set("none", &Vec::<u32>::new())?;
    w.set("nested", &vec![vec![vec!["x"], vec![]], vec![], vec![vec!["y", "z"]]])?;
    // ggml's types up to 41, less those that it removed.
    let removed = |id: &u32| matches!(id, 4 | 5 | 31..=33 | 36..=38);
    for id in (0..=41).filter(|id| !removed(id)) {
        w.tensor(&format!("type.{id}"), &[256, 2], GgmlType::from_id(id))?;
    }
    w.tensor("cube", &[32, 1, 2, 3], quant::TensorType::Q8_0)?;
    Ok(())
}

/// Sizes that all the small models share.
fn model(w: &mut Writer, arch: &str, vocab: u64, bias: bool) -> Result<(), GgufFault> {
    use quant::TensorType::{BF16, F16, F32, Q8_0};
    w.set("general.architecture", arch)?.set("general.name", "small")?;
    let key = |key: &str| format!("{arch}.{key}");
    for (name, value) in [
        ("block_count", 1u32),
        ("context_length", 64),
        ("embedding_length", 32),
        ("feed_forward_length", 64),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 1),
        ("rope.dimension_count", 16),
    ] {
        w.set(&key(name), &value)?;
    }
    w.set(&key("attention.layer_norm_rms_epsilon"), &1e-5f32)?.set(&key("rope.freq_base"), &1e4f32)?;
    w.tensor("token_embd.weight", &[32, vocab], F16)?;
    for norm in ["output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"] {
        w.tensor(&format!("{norm}.weight"), &[32], F32)?;
    }
    let separate: &[(&str, [u64; 2], quant::TensorType)] = &[
        ("attn_q", [32, 32], Q8_0),
        ("attn_k", [32, 16], Q8_0),
        ("attn_v", [32, 16], BF16),
        ("ffn_gate", [32, 64], Q8_0),
        ("ffn_up", [32, 64], Q8_0),
    ];
    let fused: &[(&str, [u64; 2], quant::TensorType)] = &[("attn_qkv", [32, 64], Q8_0), ("ffn_up", [32, 128], BF16)];
    let inputs = if arch == "phi3" { fused } else { separate };
    let outputs = [("attn_output", [32, 32], Q8_0), ("ffn_down", [64, 32], Q8_0)];
    for &(name, dims, ty) in inputs.iter().chain(&outputs) {
        w.tensor(&format!("blk.0.{name}.weight"), &dims, ty)?;
        if bias && matches!(name, "attn_q" | "attn_k" | "attn_v") {
            w.tensor(&format!("blk.0.{name}.bias"), &dims[1..], F32)?;
        }
    }
    Ok(())
}

fn spm(w: &mut Writer) -> Result<usize, GgufFault> {
    let tokens = ["<unk>", "<s>", "</s>", "<0x0A>", "\u{2581}", "a", "b", "ab", "\u{2581}a", "1", "<user>", "\u{fc}"];
    w.set("tokenizer.ggml.model", "llama")?.set("tokenizer.ggml.tokens", &tokens[..])?;
    w.set("tokenizer.ggml.token_type", &[2i32, 3, 3, 6, 1, 1, 1, 1, 1, 1, 4, 1][..])?;
    w.set("tokenizer.ggml.scores", &(0..tokens.len()).map(|i| -(i as f32)).collect::<Vec<_>>())?;
    w.set("tokenizer.ggml.bos_token_id", &1u32)?.set("tokenizer.ggml.eos_token_id", &2u32)?;
    w.set("tokenizer.ggml.unknown_token_id", &0u32)?.set("tokenizer.ggml.add_bos_token", &true)?;
    w.set("tokenizer.ggml.add_space_prefix", &true)?;
    Ok(tokens.len())
}

fn bpe(w: &mut Writer) -> Result<usize, GgufFault> {
    let tokens =
        ["a", "b", "\u{120}", "\u{10a}", "ab", "\u{120}a", "1", "<s>", "\u{c3}", "\u{bc}", "<|im_end|>", "<user>"];
    w.set("tokenizer.ggml.model", "gpt2")?.set("tokenizer.ggml.pre", "qwen2")?;
    w.set("tokenizer.ggml.tokens", &tokens[..])?;
    w.set("tokenizer.ggml.token_type", &[1i32, 1, 1, 1, 1, 1, 1, 3, 1, 1, 3, 4][..])?;
    w.set("tokenizer.ggml.merges", &["a b", "\u{120} a"][..])?;
    w.set("tokenizer.ggml.bos_token_id", &7u32)?.set("tokenizer.ggml.eos_token_id", &10u32)?;
    Ok(tokens.len())
}

fn llama(w: &mut Writer) -> Result<(), GgufFault> {
    let vocab = spm(w)? as u64;
    model(w, "llama", vocab, false)?;
    w.tensor("output.weight", &[32, vocab], quant::TensorType::Q8_0)?;
    w.tensor("rope_freqs.weight", &[8], quant::TensorType::F16)?;
    Ok(())
}

fn qwen2(w: &mut Writer) -> Result<(), GgufFault> {
    let vocab = spm(w)? as u64;
    model(w, "qwen2", vocab, true)
}

/// Fused matrices, LongRoPE, heads that turn in part.
fn phi3(w: &mut Writer) -> Result<(), GgufFault> {
    let vocab = spm(w)? as u64;
    w.set("phi3.rope.scaling.original_context_length", &32u32)?.set("phi3.rope.scaling.attn_factor", &1.1f32)?;
    w.set("phi3.attention.sliding_window", &9u32)?;
    model(w, "phi3", vocab, false)?;
    for length in ["long", "short"] {
        w.tensor(&format!("rope_factors_{length}.weight"), &[8], quant::TensorType::F32)?;
    }
    Ok(())
}

/// Norms wherever they can be, two ropes, caps.
fn gemma3(w: &mut Writer) -> Result<(), GgufFault> {
    let vocab = spm(w)? as u64;
    w.set("gemma3.attention.sliding_window", &9u32)?.set("gemma3.rope.freq_base_swa", &1e3f32)?;
    w.set("gemma3.attention.sliding_window_pattern", &vec![true])?.set("gemma3.final_logit_softcapping", &30f32)?;
    w.set("gemma3.rope.scaling.type", "yarn")?.set("gemma3.rope.scaling.factor", &4f32)?;
    w.set("gemma3.attention.temperature_scale", &0.1f32)?;
    w.set("gemma3.rope.scaling.original_context_length", &16u32)?;
    model(w, "gemma3", vocab, false)?;
    for (norm, len) in [("attn_q_norm", 16), ("attn_k_norm", 16), ("post_attention_norm", 32), ("post_ffw_norm", 32)] {
        w.tensor(&format!("blk.0.{norm}.weight"), &[len], quant::TensorType::F32)?;
    }
    Ok(())
}

fn tokens(w: &mut Writer) -> Result<(), GgufFault> {
    w.set("general.architecture", "qwen2")?;
    bpe(w).map(drop)
}
