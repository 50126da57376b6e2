//! ntransformer.
