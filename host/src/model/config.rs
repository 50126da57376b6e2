//! A model's hyperparameters, from its metadata.

use super::{
    ModelError,
    arch::{Architecture, Traits},
    keys::Keys,
    rope::{self, Rope},
};
use crate::{device::Dims, gguf::Gguf};

/// Heads wider than this have no kernel.
const MAX_HEAD_DIM: usize = gpu::ops::MAX_HEAD_DIM as usize;

/// A model's sizes and constants.
#[derive(Clone, Debug)]
pub struct Config {
    /// `general.architecture`.
    pub arch: Architecture,
    /// The model's file, for messages.
    pub file: String,
    /// `general.name`, where there is one.
    pub name: Option<String>,
    /// Number of layers.
    pub layers: usize,
    /// The context it was trained for, in tokens.
    pub trained_context: usize,
    /// The longest context it can be run with, in tokens: more than that where the file scales positions for more.
    pub max_context: usize,
    /// What the device computes with. `dims.context` is the context of this run.
    pub dims: Dims,
    /// How positions become rotations: `dims.rotations` ways.
    pub ropes: Vec<Rope>,
    /// The layers' kinds, in order.
    pub kinds: Vec<LayerKind>,
}

/// What is a layer's own, beside its weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerKind {
    /// Positions that a token sees, its own included; none: all of them.
    pub window: Option<u32>,
    /// Which of the model's ropes turns the queries.
    pub q_rotation: usize,
    /// Which of them turns the keys.
    pub k_rotation: usize,
}

impl Config {
    /// Reads and checks the metadata. `context` limits the KV cache; none means min(the model's, `default_context`).
    ///
    /// # Errors
    /// An architecture or feature that is not supported, or metadata that make no sense.
    pub fn new(gguf: &Gguf, context: Option<usize>, default_context: usize) -> Result<Self, ModelError> {
        let arch = Architecture::of(gguf)?;
        let traits = arch.traits();
        let keys = Keys { gguf, prefix: traits.name };
        let size = |key: &str, max: usize| keys.require(key).and_then(|v| keys.within(key, v, 1, max));
        let size_in_all = |key: &str, layers: usize, max: usize| match keys.same_in_all(key, layers)? {
            Some(size) => keys.within(key, size, 1, max),
            None => size(key, max),
        };

        if gguf.tensors().is_empty() {
            return Err(keys.unsupported("a file without tensors (a vocabulary, say)".into()));
        }
        let layers = size("block_count", gguf.tensors().len())?;
        let hidden = size("embedding_length", 1 << 20)?;
        let heads = size_in_all("attention.head_count", layers, 1 << 14)?;
        let kv_heads = keys.same_in_all("attention.head_count_kv", layers)?.unwrap_or(heads);
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(keys.bad("attention.head_count_kv", format!("{kv_heads} does not divide {heads} query heads")));
        }
        let head_dim = match keys.size("attention.key_length")? {
            Some(stated) => stated,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                return Err(
                    keys.bad("attention.head_count", format!("{heads} does not divide embedding_length {hidden}"))
                );
            }
        };
        keys.within("attention.key_length", head_dim, 2, MAX_HEAD_DIM)?;
        let value_dim = keys.or("attention.value_length", head_dim)?;
        if value_dim != head_dim {
            return Err(keys.unsupported(format!("attention.value_length {value_dim} unlike key_length {head_dim}")));
        }
        if !head_dim.is_multiple_of(2) {
            return Err(keys.unsupported(format!("attention.key_length {head_dim}, an odd number,")));
        }
        let rope_dims = keys.or("rope.dimension_count", head_dim)?;
        keys.within("rope.dimension_count", rope_dims, 2, head_dim)?;
        if !rope_dims.is_multiple_of(2) {
            return Err(keys.bad("rope.dimension_count", format!("{rope_dims} is odd")));
        }
        if keys.or("expert_count", 0)? > 0 {
            return Err(keys.unsupported("a mixture of experts (expert_count)".into()));
        }
        let eps = keys.gguf.metadata().require_f32(&keys.key("attention.layer_norm_rms_epsilon"))?;
        if !(eps.is_finite() && eps >= 0.0) {
            return Err(keys.bad("attention.layer_norm_rms_epsilon", format!("{eps} is not a number of 0 or more")));
        }
        let ffn = size_in_all("feed_forward_length", layers, 1 << 22)?;
        let trained_context = size("context_length", rope::MAX_CONTEXT)?;
        let max_context = rope::longest_context(&keys, trained_context)?;
        let context = context.unwrap_or(trained_context.min(default_context));
        if context == 0 || context > max_context {
            return Err(keys.bad(
                "context_length",
                format!(
                    "the model was trained for {trained_context} tokens; -c {context} is outside 1..={max_context}"
                ),
            ));
        }
        let vocab = gguf.require("token_embd.weight")?.rows() as usize;
        // Products of sizes then fit 64 bits with room to spare, and counts of elements 32.
        if vocab > 1 << 22 {
            return Err(keys.unsupported(format!("a vocabulary of {vocab} tokens")));
        }

        let (ropes, kinds) = layer_kinds(&keys, &traits, layers, rope_dims, head_dim, trained_context, context)?;
        let cap = |key: &str, default: Option<f32>| -> Result<Option<f32>, ModelError> {
            match keys.float(key)? {
                None => Ok(default),
                Some(_) => Ok(keys.positive_or_off(key)?.map(|cap| cap as f32)),
            }
        };
        let scaled_width = match traits.layers_of_the_model_scaled_by_width == Some(layers) {
            true => hidden / heads,
            false => head_dim,
        };
        let dims = Dims {
            hidden,
            heads,
            kv_heads,
            head_dim,
            ffn,
            vocab,
            rope_dims,
            pairing: traits.pairing,
            rotations: ropes.len(),
            activation: traits.activation,
            embedding_scale: if traits.scaled_embeddings { (hidden as f32).sqrt() } else { 1.0 },
            attention_scale: 1.0 / (scaled_width as f32).sqrt(),
            attention_cap: cap("attn_logit_softcapping", traits.attention_cap)?,
            logit_cap: cap("final_logit_softcapping", traits.logit_cap)?,
            eps,
            context,
        };
        let name = gguf.metadata().str("general.name")?.map(str::to_owned);
        let file = gguf.name().to_owned();
        Ok(Config { arch, file, name, layers, trained_context, max_context, dims, ropes, kinds })
    }
}

/// The ropes of the model, and what each layer sees and turns by.
fn layer_kinds(
    keys: &Keys<'_>,
    traits: &Traits,
    layers: usize,
    rope_dims: usize,
    head_dim: usize,
    trained: usize,
    context: usize,
) -> Result<(Vec<Rope>, Vec<LayerKind>), ModelError> {
    const PATTERN: &str = "attention.sliding_window_pattern";
    let window = match keys.size("attention.sliding_window")? {
        None => traits.window,
        Some(0) => None,
        Some(stated) => u32::try_from(stated).ok(),
    };
    let windowed = match keys.bools(PATTERN, layers)? {
        Some(stated) => stated,
        None => {
            let period = match keys.gguf.metadata().get(&keys.key(PATTERN)) {
                Some(_) => keys.or(PATTERN, 0)?,
                None => traits.window_period as usize,
            };
            (0..layers).map(|i| period == 0 || !(i + 1).is_multiple_of(period)).collect()
        }
    };

    let mut ropes = vec![Rope::new(keys, rope_dims, trained, context)?];
    let local_base = keys.positive("rope.freq_base_swa")?.or(traits.window_rope_base.map(f64::from));
    let local = local_base.filter(|_| window.is_some()).map(|base| {
        ropes.push(Rope::plain(base, rope_dims));
        ropes.len() - 1
    });
    // Queries that grow with their position are turned by longer cosines and sines.
    let query = match keys.positive_or_off("attention.temperature_scale")? {
        None => 0,
        Some(_) if rope_dims != head_dim => {
            let what = format!("{} with heads that turn in part", keys.key("attention.temperature_scale"));
            return Err(keys.unsupported(what));
        }
        Some(beta) => {
            let period = keys.require("rope.scaling.original_context_length")?;
            ropes.push(ropes[0].with_temperature(beta, period));
            ropes.len() - 1
        }
    };
    let kind = |windowed: bool| {
        let (q_rotation, k_rotation) = local.filter(|_| windowed).map_or((query, 0), |local| (local, local));
        LayerKind { window: window.filter(|_| windowed), q_rotation, k_rotation }
    };
    Ok((ropes, windowed.into_iter().map(kind).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::Writer;

    /// A file of `arch` with heads of 16 in a width of 48, and what `set` adds.
    fn config(arch: &str, layers: u32, set: impl Fn(&mut Writer)) -> Result<Config, ModelError> {
        config_with(arch, layers, None, &[], set)
    }

    /// The same for a context, without the sizes that are `left_out`.
    fn config_with(
        arch: &str,
        layers: u32,
        context: Option<usize>,
        left_out: &[&str],
        set: impl Fn(&mut Writer),
    ) -> Result<Config, ModelError> {
        let mut writer = Writer::new();
        writer.set("general.architecture", arch).unwrap();
        let sizes = [
            ("block_count", layers),
            ("context_length", 64),
            ("embedding_length", 48),
            ("feed_forward_length", 32),
            ("attention.head_count", 2),
            ("attention.key_length", 16),
            ("attention.value_length", 16),
        ];
        for (key, value) in sizes.into_iter().filter(|(key, _)| !left_out.contains(key)) {
            writer.set(&format!("{arch}.{key}"), &value).unwrap();
        }
        writer.set(&format!("{arch}.attention.layer_norm_rms_epsilon"), &1e-5f32).unwrap();
        set(&mut writer);
        writer.tensor("token_embd.weight", &[48, 1], quant::TensorType::F32).unwrap();
        for i in 1..layers {
            writer.tensor(&format!("unread.{i}"), &[1], quant::TensorType::F32).unwrap();
        }
        let mut data = writer.begin(Vec::new()).unwrap();
        data.write(&[0; 48 * 4]).unwrap();
        for _ in 1..layers {
            data.write(&[0; 4]).unwrap();
        }
        Config::new(&Gguf::from_vec("test", data.finish().unwrap()).unwrap(), context, 64)
    }

    /// The context of the file is 64 tokens.
    #[test]
    fn the_context_is_limited_by_what_positions_are_scaled_for() {
        let check = |kind: Option<&str>, factor: Option<f32>, original: Option<u32>, limit: usize| {
            let open = |context: Option<usize>| {
                config_with("qwen2", 1, context, &[], |w| {
                    let scaling = |key: &str| format!("qwen2.rope.scaling.{key}");
                    if let Some(kind) = kind {
                        w.set(&scaling("type"), kind).unwrap();
                    }
                    if let Some(factor) = factor {
                        w.set(&scaling("factor"), &factor).unwrap();
                    }
                    if let Some(original) = original {
                        w.set(&scaling("original_context_length"), &original).unwrap();
                    }
                })
            };
            let case = format!("{kind:?} {factor:?} {original:?}");
            let config = open(None).unwrap();
            assert_eq!((config.dims.context, config.trained_context, config.max_context), (64, 64, limit), "{case}");
            assert_eq!(open(Some(limit)).unwrap().dims.context, limit, "{case}");
            let message = open(Some(limit + 1)).unwrap_err().to_string();
            assert!(message.contains("64 tokens") && message.contains(&format!("1..={limit}")), "{case}: {message}");
        };
        check(None, None, None, 64);
        check(Some("yarn"), Some(4.0), Some(64), 256);
        check(Some("yarn"), Some(4.0), None, 256);
        check(Some("yarn"), Some(4.0), Some(16), 64);
        check(Some("yarn"), Some(2.5), Some(51), 128);
        check(Some("linear"), Some(4.0), Some(64), 256);
        check(Some("linear"), Some(4.0), None, 64);
        check(None, Some(4.0), Some(64), 256);
        check(Some("none"), Some(4.0), Some(64), 64);
        check(Some("yarn"), Some(f32::MAX), Some(64), 1 << 31);
    }

    /// Some converters state sizes for each layer.
    #[test]
    fn sizes_of_each_layer_have_to_be_the_same() {
        let (mut heads, mut kv_heads, mut ffn) = ([2u32; 3], [1u32; 3], [32u32; 3]);
        let keys = ["attention.head_count", "attention.head_count_kv", "feed_forward_length"];
        let open = |values: [&[u32]; 3]| {
            config_with("llama", 3, None, &keys, |w| {
                for (key, value) in keys.iter().zip(values) {
                    w.set(&format!("llama.{key}"), value).unwrap();
                }
            })
        };
        let dims = open([&heads, &kv_heads, &ffn]).unwrap().dims;
        assert_eq!((dims.heads, dims.kv_heads, dims.ffn), (2, 1, 32));
        let message = open([&heads, &kv_heads[..2], &ffn]).unwrap_err().to_string();
        assert!(message.contains("llama.attention.head_count_kv") && message.contains("3 layers"), "{message}");
        let refused = |values: [&[u32]; 3], key: &str| {
            let message = open(values).unwrap_err().to_string();
            assert!(message.contains(&format!("layers of different sizes (llama.{key})")), "{message}");
        };
        ffn[2] = 16;
        refused([&heads, &kv_heads, &ffn], "feed_forward_length");
        kv_heads[1] = 2;
        refused([&heads, &kv_heads, &ffn], "attention.head_count_kv");
        heads[0] = 4;
        refused([&heads, &kv_heads, &ffn], "attention.head_count");
    }

    fn windows(config: &Config) -> Vec<Option<u32>> {
        config.kinds.iter().map(|kind| kind.window).collect()
    }

    /// Gemma's 27B models scale attention by their width, all others by their heads; only the number of layers tells.
    #[test]
    fn attention_is_scaled_by_the_width_in_one_model_of_a_family() {
        let scale = |arch: &str, layers: u32| config(arch, layers, |_| ()).unwrap().dims.attention_scale;
        for (arch, layers) in [("gemma2", 46), ("gemma3", 62)] {
            assert_eq!(scale(arch, layers), 1.0 / 24f32.sqrt());
            assert_eq!(scale(arch, layers - 4), 0.25);
        }
        assert_eq!(scale("gemma", 46), 0.25);
        assert_eq!(scale("llama", 62), 0.25);
    }

    #[test]
    fn windows_are_those_of_the_architecture_unless_the_file_says() {
        let gemma2 = config("gemma2", 4, |_| ()).unwrap();
        assert_eq!(windows(&gemma2), [Some(4096), None, Some(4096), None]);
        assert_eq!(
            (gemma2.dims.attention_cap, gemma2.dims.logit_cap, gemma2.dims.rotations),
            (Some(50.0), Some(30.0), 1)
        );
        let set = |key: &'static str, value: u32| {
            move |w: &mut Writer| {
                w.set(key, &value).unwrap();
            }
        };
        assert_eq!(windows(&config("llama", 2, |_| ()).unwrap()), [None, None]);
        let llama = config("llama", 2, set("llama.attention.sliding_window", 7)).unwrap();
        assert_eq!(windows(&llama), [Some(7), Some(7)]);
        let phi3 = config("phi3", 2, set("phi3.attention.sliding_window", 0)).unwrap();
        assert_eq!(windows(&phi3), [None, None]);
        let patterned = |pattern: &dyn Fn(&mut Writer)| {
            config("gemma3", 3, |w| {
                w.set("gemma3.attention.sliding_window", &9u32).unwrap();
                pattern(w);
            })
        };
        let every_second = patterned(&set("gemma3.attention.sliding_window_pattern", 2)).unwrap();
        assert_eq!(windows(&every_second), [Some(9), None, Some(9)]);
        let listed = |list: Vec<bool>| {
            patterned(&move |w: &mut Writer| {
                w.set("gemma3.attention.sliding_window_pattern", &list).unwrap();
            })
        };
        assert_eq!(windows(&listed(vec![false, true, false]).unwrap()), [None, Some(9), None]);
        let message = listed(vec![false, true]).unwrap_err().to_string();
        assert!(message.contains("sliding_window_pattern") && message.contains("3 layers"), "{message}");
    }

    /// Gemma 3's layers with a window turn by 10,000 unscaled, whatever the others do, and by another base where stated.
    #[test]
    fn layers_with_a_window_turn_by_a_base_of_their_own() {
        let gemma3 = |local: Option<f32>| {
            let config = config("gemma3", 7, |w| {
                w.set("gemma3.attention.sliding_window", &9u32).unwrap();
                w.set("gemma3.rope.freq_base", &1e6f32).unwrap();
                w.set("gemma3.rope.scaling.type", "linear").unwrap();
                w.set("gemma3.rope.scaling.factor", &8f32).unwrap();
                if let Some(base) = local {
                    w.set("gemma3.rope.freq_base_swa", &base).unwrap();
                }
            });
            config.unwrap()
        };
        for (stated, base) in [(None, 10_000.0), (Some(500f32), 500.0)] {
            let config = gemma3(stated);
            assert_eq!(config.ropes.len(), 2);
            assert_eq!(config.ropes[1], Rope::plain(base, 16));
            let turns: Vec<_> = config.kinds.iter().map(|kind| (kind.q_rotation, kind.k_rotation)).collect();
            assert_eq!(turns, [(1, 1), (1, 1), (1, 1), (1, 1), (1, 1), (0, 0), (1, 1)]);
        }
    }

    #[test]
    fn queries_that_grow_turn_whole() {
        let part = config("mistral3", 1, |w| {
            w.set("mistral3.rope.dimension_count", &8u32).unwrap();
            w.set("mistral3.attention.temperature_scale", &0.1f32).unwrap();
        });
        assert!(part.unwrap_err().to_string().contains("mistral3.attention.temperature_scale"));
    }
}
