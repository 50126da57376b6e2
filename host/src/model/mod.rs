//! A model: its configuration, its weights' names, and the forward pass.

mod arch;
mod config;
mod error;
mod flowed;
mod forward;
mod keys;
mod layers;
mod rope;
mod weights;

use std::sync::Arc;

pub use arch::{Architecture, Traits};
pub use config::{Config, LayerKind};
pub use error::ModelError;
pub use flowed::{Cause, Flowed, Lane, Span, Trace};
pub use forward::{Embedding, State, Weights, forward};
pub use layers::{Compute, ComputeHead, Layers};
pub use rope::Rope;
pub use weights::Tensors;

use crate::{
    device::Batch,
    gguf::{Gguf, GgufError},
    pack::{Image, TensorId},
};

/// A model file that was found to be complete and consistent.
pub struct Model {
    /// The file.
    pub gguf: Arc<Gguf>,
    /// Its sizes.
    pub config: Config,
    /// Its tensors by role.
    pub tensors: Tensors,
}

impl Model {
    /// Reads the configuration and finds all tensors. No weight is read yet.
    ///
    /// # Errors
    /// What is missing, contradictory or not supported, by name.
    pub fn new(gguf: Arc<Gguf>, context: Option<usize>, default_context: usize) -> Result<Self, ModelError> {
        let config = Config::new(&gguf, context, default_context)?;
        let tensors = Tensors::new(&gguf, &config)?;
        Ok(Model { gguf, config, tensors })
    }

    /// The output matrix is the embedding table.
    pub fn tied(&self) -> bool {
        self.tensors.head.output.weight.tensor == self.tensors.embedding
    }

    /// The tensors of layer `i`, each once.
    pub fn layer_tensors(&self, i: usize) -> Vec<TensorId> {
        let mut ids = Vec::new();
        let _ = self.tensors.layers[i].map(|part| {
            if !ids.contains(&part.tensor) {
                ids.push(part.tensor);
            }
        });
        ids
    }

    /// The tensors of the head.
    pub fn head_tensors(&self) -> Vec<TensorId> {
        let mut ids = Vec::new();
        let _ = self.tensors.head.map(|part| ids.push(part.tensor));
        ids
    }

    /// The layout of layer `i` in memory.
    ///
    /// # Errors
    /// When a tensor's type is not supported.
    pub fn layer_image(&self, i: usize) -> Result<Image, GgufError> {
        Image::new(format!("layer {i}"), &self.gguf, &self.layer_tensors(i))
    }

    /// The layout of the head in memory.
    ///
    /// # Errors
    /// When a tensor's type is not supported.
    pub fn head_image(&self) -> Result<Image, GgufError> {
        Image::new("the output head".into(), &self.gguf, &self.head_tensors())
    }

    /// The embeddings of `tokens`, `[tokens x hidden]`, decoded from the file and scaled. Read and not mapped, so that a file that was
    /// truncated meanwhile is an error instead of a signal.
    ///
    /// # Errors
    /// When the file cannot be read.
    ///
    /// # Panics
    /// When a token is outside the vocabulary: callers check.
    pub fn embed(&self, tokens: &[u32]) -> Result<Vec<f32>, GgufError> {
        let TensorId(index) = self.tensors.embedding;
        let info = &self.gguf.tensors()[index];
        let ty = self.gguf.supported_type(info).expect("checked when found");
        let mut row = vec![0; info.bytes as usize / self.config.dims.vocab];
        let mut out = vec![0.0; tokens.len() * self.config.dims.hidden];
        for (&token, out) in tokens.iter().zip(out.chunks_exact_mut(self.config.dims.hidden)) {
            self.gguf.read(info, token as usize * row.len(), &mut row)?;
            quant::decode_row(ty, &row, out).expect("the reader checked the tensor's length");
        }
        out.iter_mut().for_each(|x| *x *= self.config.dims.embedding_scale);
        Ok(out)
    }

    /// A pass over `tokens` at the positions from `start` on, with logits of the tokens `want`.
    pub fn batch(&self, tokens: &[u32], start: usize, want: Vec<u32>) -> Batch {
        let positions: Vec<u32> = (start as u32..).take(tokens.len()).collect();
        let rotations = self.config.ropes.iter().map(|rope| rope.angles(&positions)).collect();
        Batch { tokens: tokens.to_vec(), positions, rotations, want }
    }
}
