//! Which tensors a model consists of, found by name and checked against its sizes.

use super::{Config, ModelError};
use crate::{
    device::{Attn, Ffn, Head, Layer, Linear},
    gguf::Gguf,
    pack::TensorId,
};

/// A model's tensors by role.
#[derive(Clone, Debug)]
pub struct Tensors {
    /// `[vocab x hidden]`, one row per token.
    pub embedding: TensorId,
    /// The layers in order.
    pub layers: Vec<Layer<TensorId>>,
    /// The head. Its output is the embedding itself where the file has no `output.weight` (tied embeddings).
    pub head: Head<TensorId>,
}

impl Tensors {
    /// Finds every tensor and checks its shape and type.
    ///
    /// # Errors
    /// Names the tensor that is missing, of another shape or of a type that is not supported.
    pub fn new(gguf: &Gguf, config: &Config) -> Result<Self, ModelError> {
        let finder = Finder { gguf };
        let d = &config.dims;
        let embedding = finder.matrix("token_embd.weight", d.vocab, d.hidden)?;
        let output = finder.optional("output.weight", d.vocab, d.hidden)?.unwrap_or(embedding);
        let head = Head {
            norm: finder.vector("output_norm.weight", d.hidden)?,
            output: Linear { weight: output, bias: finder.optional("output.bias", 1, d.vocab)? },
        };
        let layer = |i: usize| {
            let linear =
                |name: &str, outputs: usize, inputs: usize| finder.linear(&format!("blk.{i}.{name}"), outputs, inputs);
            let norm = |name: &str| finder.vector(&format!("blk.{i}.{name}.weight"), d.hidden);
            Ok::<_, ModelError>(Layer {
                attn: Attn {
                    norm: norm("attn_norm")?,
                    q: linear("attn_q", d.q_width(), d.hidden)?,
                    k: linear("attn_k", d.kv_width(), d.hidden)?,
                    v: linear("attn_v", d.kv_width(), d.hidden)?,
                    out: linear("attn_output", d.hidden, d.q_width())?,
                },
                ffn: Ffn {
                    norm: norm("ffn_norm")?,
                    gate: linear("ffn_gate", d.ffn, d.hidden)?,
                    up: linear("ffn_up", d.ffn, d.hidden)?,
                    down: linear("ffn_down", d.hidden, d.ffn)?,
                },
            })
        };
        Ok(Tensors { embedding, layers: (0..config.layers).map(layer).collect::<Result<_, _>>()?, head })
    }
}

struct Finder<'a> {
    gguf: &'a Gguf,
}

impl Finder<'_> {
    fn linear(&self, name: &str, outputs: usize, inputs: usize) -> Result<Linear<TensorId>, ModelError> {
        Ok(Linear {
            weight: self.matrix(&format!("{name}.weight"), outputs, inputs)?,
            bias: self.optional(&format!("{name}.bias"), 1, outputs)?,
        })
    }

    fn vector(&self, name: &str, len: usize) -> Result<TensorId, ModelError> {
        self.matrix(name, 1, len)
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
