//! The sizes of real models, and the tensors that they are made of.

use std::f64::consts::TAU;

use quant::TensorType;

use super::recipe::{Quant, Role};
use crate::model::Architecture;

/// Which model's sizes to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Shape {
    /// Llama 3.2 1B
    #[value(name = "1b")]
    Llama1b,
    /// Llama 3.1 8B
    #[value(name = "8b")]
    Llama8b,
    /// Llama 3.1 70B
    #[value(name = "70b")]
    Llama70b,
    /// Qwen2.5 0.5B: rows of 896, no multiple of the K types' 256
    #[value(name = "0.5b-qwen2")]
    Qwen05b,
    /// Qwen2.5 32B
    #[value(name = "32b-qwen2")]
    Qwen32b,
    /// Four layers of 256, for tests; as many tokens as the tokenizer has
    Tiny,
    /// As tiny, with Qwen2's biases and rotary pairs
    TinyQwen2,
}

/// The numbers of a model card.
#[derive(Clone, Debug)]
pub struct Sizes {
    /// GGUF's architecture.
    pub arch: Architecture,
    /// For `general.name`.
    pub name: &'static str,
    /// Width of the residual stream.
    pub hidden: u32,
    /// Number of layers.
    pub layers: u32,
    /// Query heads.
    pub heads: u32,
    /// Key and value heads.
    pub kv_heads: u32,
    /// Elements of a head.
    pub head_dim: u32,
    /// Width of the feed-forward layer.
    pub ffn: u32,
    /// Rows of the embedding; none stands for as many as the tokenizer has tokens.
    pub vocab: Option<usize>,
    /// The output matrix is the embedding.
    pub tied: bool,
    /// Positions it was trained for.
    pub context: u32,
    /// Base of the rotary frequencies.
    pub rope_base: f32,
    /// Llama 3.1's `factor`, by which slow rotations are slowed down further.
    pub rope_factor: Option<f64>,
}

impl Shape {
    /// Its sizes, from the `config.json` of the models on their publishers' pages.
    pub fn sizes(self) -> Sizes {
        let llama3 = Sizes {
            arch: Architecture::Llama,
            name: "Llama 3.1 8B",
            hidden: 4096,
            layers: 32,
            heads: 32,
            kv_heads: 8,
            head_dim: 128,
            ffn: 14336,
            vocab: Some(128_256),
            tied: false,
            context: 131_072,
            rope_base: 500_000.0,
            rope_factor: Some(8.0),
        };
        let qwen25 = Sizes {
            arch: Architecture::Qwen2,
            name: "Qwen2.5 32B",
            hidden: 5120,
            layers: 64,
            heads: 40,
            ffn: 27648,
            vocab: Some(152_064),
            context: 32_768,
            rope_base: 1e6,
            rope_factor: None,
            ..llama3
        };
        let tiny = |sizes| Sizes {
            hidden: 256,
            layers: 4,
            heads: 8,
            kv_heads: 2,
            head_dim: 32,
            ffn: 512,
            vocab: None,
            context: 512,
            ..sizes
        };
        match self {
            Shape::Llama1b => Sizes {
                name: "Llama 3.2 1B",
                hidden: 2048,
                layers: 16,
                head_dim: 64,
                ffn: 8192,
                tied: true,
                rope_factor: Some(32.0),
                ..llama3
            },
            Shape::Llama8b => llama3,
            Shape::Llama70b => {
                Sizes { name: "Llama 3.1 70B", hidden: 8192, layers: 80, heads: 64, ffn: 28672, ..llama3 }
            }
            Shape::Qwen05b => Sizes {
                name: "Qwen2.5 0.5B",
                hidden: 896,
                layers: 24,
                heads: 14,
                kv_heads: 2,
                head_dim: 64,
                ffn: 4864,
                vocab: Some(151_936),
                tied: true,
                ..qwen25
            },
            Shape::Qwen32b => qwen25,
            Shape::Tiny => Sizes { name: "tiny", ..tiny(llama3) },
            Shape::TinyQwen2 => Sizes { name: "tiny qwen2", ..tiny(qwen25) },
        }
    }
}

/// What a tensor is filled with.
#[derive(Clone, Debug)]
pub enum Fill {
    /// Random values of mean zero and this standard deviation.
    Random(f32),
    /// These values, F32.
    Values(Vec<f32>),
}

/// A tensor to be written.
#[derive(Clone, Debug)]
pub struct Planned {
    /// Its name in the file.
    pub name: String,
    /// ggml's order: the length of a row first.
    pub dims: Vec<u64>,
    /// Its type.
    pub ty: TensorType,
    /// Its values.
    pub fill: Fill,
}

/// Standard deviation of biases: small beside the unit variance of what they are added to.
const BIAS_SIGMA: f32 = 0.1;

impl Sizes {
    /// All tensors in the order of the file.
    ///
    /// A matrix gets the standard deviation 1 / sqrt(inputs), so that unit variance in is unit variance out. Each half of a
    /// layer starts with a norm and adds a variance of about 1 or less to the residual stream, which after 80 layers is
    /// some ten times its width: far from any limit, and the last norm makes the logits' variance 1 again.
    pub fn tensors(&self, quant: &Quant, vocab: usize) -> Vec<Planned> {
        let (hidden, ffn) = (u64::from(self.hidden), u64::from(self.ffn));
        let (q, kv) = (u64::from(self.heads * self.head_dim), u64::from(self.kv_heads * self.head_dim));
        let matrix = |name: String, role: Role, cols: u64, rows: u64| Planned {
            name,
            dims: vec![cols, rows],
            ty: quant.tensor_type(role, cols, self),
            fill: Fill::Random((cols as f32).sqrt().recip()),
        };
        let vector = |name: String, len: u64, fill: Fill| Planned { name, dims: vec![len], ty: TensorType::F32, fill };
        let ones = |name: String| vector(name, hidden, Fill::Values(vec![1.0; hidden as usize]));

        let mut tensors = Vec::new();
        if let Some(factor) = self.rope_factor {
            let factors = self.rope_factors(factor);
            tensors.push(vector("rope_freqs.weight".into(), factors.len() as u64, Fill::Values(factors)));
        }
        tensors.push(matrix("token_embd.weight".into(), Role::Embedding, hidden, vocab as u64));
        for i in 0..self.layers {
            let name = |rest: &str| format!("blk.{i}.{rest}");
            tensors.push(ones(name("attn_norm.weight")));
            for (part, role, rows) in
                [("attn_q", Role::Plain, q), ("attn_k", Role::Plain, kv), ("attn_v", Role::V(i), kv)]
            {
                tensors.push(matrix(name(&format!("{part}.weight")), role, hidden, rows));
                if self.arch == Architecture::Qwen2 {
                    tensors.push(vector(name(&format!("{part}.bias")), rows, Fill::Random(BIAS_SIGMA)));
                }
            }
            tensors.push(matrix(name("attn_output.weight"), Role::AttnOutput, q, hidden));
            tensors.push(ones(name("ffn_norm.weight")));
            tensors.push(matrix(name("ffn_gate.weight"), Role::Plain, hidden, ffn));
            tensors.push(matrix(name("ffn_up.weight"), Role::Plain, hidden, ffn));
            tensors.push(matrix(name("ffn_down.weight"), Role::FfnDown(i), ffn, hidden));
        }
        tensors.push(ones("output_norm.weight".into()));
        if !self.tied {
            tensors.push(matrix("output.weight".into(), Role::Output, hidden, vocab as u64));
        }
        tensors
    }

    /// What divides the rotary frequencies in Llama 3.1 and later, one for each pair: 1 for rotations much faster than the
    /// 8192 positions of its pre-training, `factor` for those slower, and a smooth way between (`rope_type` "llama3" of HF
    /// transformers).
    fn rope_factors(&self, factor: f64) -> Vec<f32> {
        const TRAINED: f64 = 8192.0;
        const SLOW: f64 = 1.0;
        const FAST: f64 = 4.0;
        let of_pair = |i: u32| {
            let wavelength = TAU * f64::from(self.rope_base).powf(f64::from(2 * i) / f64::from(self.head_dim));
            let fast = ((TRAINED / wavelength - SLOW) / (FAST - SLOW)).clamp(0.0, 1.0);
            ((1.0 - fast) / factor + fast).recip() as f32
        };
        (0..self.head_dim / 2).map(of_pair).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against `_compute_llama3_parameters` of HF transformers.
    #[test]
    fn rope_factors_are_those_of_llama_3() {
        let check = |shape: Shape, around: std::ops::Range<usize>, expected: &[f32]| {
            let sizes = shape.sizes();
            let factors = sizes.rope_factors(sizes.rope_factor.unwrap());
            assert_eq!(factors.len(), sizes.head_dim as usize / 2);
            for (factor, expected) in factors[around.clone()].iter().zip(expected) {
                assert!((factor - expected).abs() < 2e-5 * expected, "{shape:?}: {factor}, expected {expected}");
            }
            assert!(factors[..around.start].iter().all(|&f| f == 1.0));
            assert!(factors[around.end..].iter().all(|&f| Some(f64::from(f)) == sizes.rope_factor));
        };
        check(Shape::Llama8b, 29..35, &[1.20748, 1.55341, 2.02631, 2.69453, 3.68425, 5.25733]);
        check(Shape::Llama1b, 15..18, &[1.65133, 3.29226, 9.66673]);
    }
}
