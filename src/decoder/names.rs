//! What a checkpoint calls its tensors.

use crate::tensor::{TensorError, TensorName};

/// Tensor names of a decoder that lies under one prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Names {
    /// "model.": what precedes `embed_tokens`, `layers` and `norm`.
    pub(super) prefix: &'static str,
    /// The head, where it is not tied to the embedding.
    pub(super) head: &'static str,
}

impl Names {
    pub(super) fn embedding(&self) -> Result<TensorName, TensorError> {
        TensorName::new(format!("{}embed_tokens.weight", self.prefix))
    }

    pub(super) fn norm(&self) -> Result<TensorName, TensorError> {
        TensorName::new(format!("{}norm.weight", self.prefix))
    }

    pub(super) fn head(&self) -> Result<TensorName, TensorError> {
        TensorName::new(self.head)
    }

    pub(super) fn layer(&self, layer: usize, leaf: &str) -> Result<TensorName, TensorError> {
        TensorName::new(format!("{}layers.{layer}.{leaf}", self.prefix))
    }
}
