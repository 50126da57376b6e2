//! What can be wrong with a model.

use crate::gguf::GgufError;

/// A model file that is valid GGUF but not a model this engine runs. Each message names the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The file itself.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// An architecture without a forward pass here.
    #[error("{file}: architecture `{arch}` is not supported; supported are: {supported}")]
    Architecture {
        /// The model file.
        file: String,
        /// `general.architecture`.
        arch: String,
        /// The architectures there are.
        supported: String,
    },
    /// A feature of a known architecture that is missing here.
    #[error("{file}: {what} is not supported")]
    Unsupported {
        /// The model file.
        file: String,
        /// The feature and the metadata that asks for it.
        what: String,
    },
    /// Metadata that contradict themselves or make no sense.
    #[error("{file}: metadata `{key}`: {why}")]
    Metadata {
        /// The model file.
        file: String,
        /// The metadata key.
        key: String,
        /// What is wrong with its value.
        why: String,
    },
    /// A tensor whose shape is not what the metadata imply.
    #[error("{file}: tensor `{tensor}` is {found}, but the metadata imply {expected}")]
    Shape {
        /// The model file.
        file: String,
        /// The tensor's name.
        tensor: String,
        /// Its shape.
        found: String,
        /// The shape it should have.
        expected: String,
    },
}
