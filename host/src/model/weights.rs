//! Which tensors a model consists of, found by name and checked against its sizes.

use std::collections::HashSet;

use super::{Config, ModelError};
use crate::{
    device::{Attn, Ffn, Head, Layer, Linear},
    gguf::Gguf,
    pack::{TensorId, TensorPart},
};

/// A model's tensors by role.
#[derive(Clone, Debug)]
pub struct Tensors {
    /// `[vocab x hidden]`, one row per token.
    pub embedding: TensorId,
    /// The layers in order.
    pub layers: Vec<Layer<TensorPart>>,
    /// The head. Its output is the embedding itself where the file has no `output.weight` (tied embeddings).
    pub head: Head<TensorPart>,
}

/// Tensors that are read with the configuration.
const ROPE_FACTORS: [&str; 3] = ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"];

impl Tensors {
    /// Finds every tensor and checks its shape and type.
    ///
    /// # Errors
    /// Names the tensor that is missing, of another shape or of a type that is not supported, or that the architecture has
    /// no use for: without it the model would be another one.
    pub fn new(gguf: &Gguf, config: &Config) -> Result<Self, ModelError> {
        let finder = Finder { gguf };
        let (d, arch) = (&config.dims, config.arch.traits());
        let embedding = finder.matrix("token_embd.weight", d.vocab, d.hidden)?;
        let output = finder.optional("output.weight", d.vocab, d.hidden)?.unwrap_or(embedding);
        let output_bias = finder.optional("output.bias", 1, d.vocab)?;
        let head = Head {
            norm: finder.vector("output_norm.weight", d.hidden)?,
            output: Linear { weight: output.into(), bias: output_bias.map(TensorPart::from) },
        };
        let layer = |i: usize| {
            let name = |part: &str| format!("blk.{i}.{part}");
            let linear = |part: &str, outputs: usize, inputs: usize| finder.linear(&name(part), outputs, inputs);
            let norm = |part: &str, len: usize| finder.vector(&name(&format!("{part}.weight")), len);
            let norm_if = |wanted: bool, part: &str, len: usize| wanted.then(|| norm(part, len)).transpose();
            let kind = config.kinds[i];
            let [q, k, v] = finder.linears(
                &name("attn_qkv"),
                [("attn_q", d.q_width()), ("attn_k", d.kv_width()), ("attn_v", d.kv_width())]
                    .map(|(part, outputs)| (name(part), outputs)),
                d.hidden,
            )?;
            let [gate, up] =
                finder.linears(&name("ffn_up"), [(name("ffn_gate"), d.ffn), (name("ffn_up"), d.ffn)], d.hidden)?;
            Ok::<_, ModelError>(Layer {
                attn: Attn {
                    norm: norm("attn_norm", d.hidden)?,
                    q,
                    k,
                    v,
                    q_norm: norm_if(arch.head_norms, "attn_q_norm", d.head_dim)?,
                    k_norm: norm_if(arch.head_norms, "attn_k_norm", d.head_dim)?,
                    out: linear("attn_output", d.hidden, d.q_width())?,
                    post_norm: norm_if(arch.post_norms, "post_attention_norm", d.hidden)?,
                    q_rotation: kind.q_rotation,
                    k_rotation: kind.k_rotation,
                    window: kind.window,
                },
                ffn: Ffn {
                    norm: norm("ffn_norm", d.hidden)?,
                    gate,
                    up,
                    down: linear("ffn_down", d.hidden, d.ffn)?,
                    post_norm: norm_if(arch.post_norms, "post_ffw_norm", d.hidden)?,
                },
            })
        };
        let layers = (0..config.layers).map(layer).collect::<Result<_, _>>()?;
        let tensors = Tensors { embedding, layers, head };
        tensors.check_all_used(gguf, arch.name)?;
        Ok(tensors)
    }

    fn check_all_used(&self, gguf: &Gguf, arch: &str) -> Result<(), ModelError> {
        let mut used = HashSet::from([self.embedding]);
        for layer in &self.layers {
            let _ = layer.map(|part| used.insert(part.tensor));
        }
        let _ = self.head.map(|part| used.insert(part.tensor));
        let unused = |&(i, name): &(usize, &str)| !used.contains(&TensorId(i)) && !ROPE_FACTORS.contains(&name);
        let mut names = gguf.tensors().iter().map(|info| info.name.as_str()).enumerate();
        match names.find(unused) {
            None => Ok(()),
            Some((_, name)) => {
                let what = format!("tensor `{name}`, which architecture `{arch}` does not have,");
                Err(ModelError::Unsupported { file: gguf.name().to_owned(), what })
            }
        }
    }
}

struct Finder<'a> {
    gguf: &'a Gguf,
}

impl Finder<'_> {
    fn linear(&self, name: &str, outputs: usize, inputs: usize) -> Result<Linear<TensorPart>, ModelError> {
        Ok(Linear {
            weight: self.matrix(&format!("{name}.weight"), outputs, inputs)?.into(),
            bias: self.optional(&format!("{name}.bias"), 1, outputs)?.map(TensorPart::from),
        })
    }

    /// Matrices of the same input, by name and number of outputs: each a tensor, or all of them one after the other in
    /// the rows of `fused`. That may be the name of a part, too: it is the part where it has as many rows.
    fn linears<const N: usize>(
        &self,
        fused: &str,
        parts: [(String, usize); N],
        inputs: usize,
    ) -> Result<[Linear<TensorPart>; N], ModelError> {
        let has = |name: &str| self.gguf.tensor(&format!("{name}.weight")).is_some();
        let is_part = |(name, outputs): &(String, usize)| {
            let rows = self.gguf.tensor(&format!("{name}.weight")).map(|info| info.rows());
            name == fused && rows == Some(*outputs as u64)
        };
        let separate = has(&parts[0].0) || !has(fused) || parts.iter().any(is_part);
        let whole = match separate {
            true => None,
            false => Some(self.linear(fused, parts.iter().map(|(_, outputs)| outputs).sum(), inputs)?),
        };
        let mut end = 0;
        let mut linears = Vec::with_capacity(N);
        for (name, outputs) in parts {
            let range = end..end + outputs;
            end = range.end;
            linears.push(match &whole {
                None => self.linear(&name, outputs, inputs)?,
                Some(Linear { weight, bias }) => {
                    let part = |whole: &TensorPart| TensorPart { outputs: Some(range.clone()), ..whole.clone() };
                    Linear { weight: part(weight), bias: bias.as_ref().map(part) }
                }
            });
        }
        Ok(linears.try_into().unwrap_or_else(|_| unreachable!("one for each of the parts")))
    }

    fn vector(&self, name: &str, len: usize) -> Result<TensorPart, ModelError> {
        self.matrix(name, 1, len).map(TensorPart::from)
    }

    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<TensorId, ModelError> {
        self.gguf.require(name)?;
        Ok(self.optional(name, rows, cols)?.expect("it was just found"))
    }

    fn optional(&self, name: &str, rows: usize, cols: usize) -> Result<Option<TensorId>, ModelError> {
        let Some(index) = self.gguf.tensor_index(name) else { return Ok(None) };
        let info = &self.gguf.tensors()[index];
        self.gguf.supported_type(info)?;
        if (info.rows(), info.cols()) != (rows as u64, cols as u64) {
            return Err(ModelError::Shape {
                file: self.gguf.name().to_owned(),
                tensor: name.to_owned(),
                found: format!("{:?}", info.dims),
                expected: format!("[{cols}, {rows}]"),
            });
        }
        Ok(Some(TensorId(index)))
    }
}
