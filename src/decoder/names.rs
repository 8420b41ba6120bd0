//! What a checkpoint calls its tensors.

use super::Projection;
use super::error::DecoderError;
use super::weights::Weights;
use crate::tensor::{TensorError, TensorName};

/// Tensor names of a decoder that lies under one prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Names {
    /// Where the family's checkpoints keep the decoder: the first that a checkpoint has is its own.
    places: &'static [Place],
    /// Query, key and value projections are one tensor, as are gate and up.
    fused: bool,
}

/// A prefix and a head, as some version of transformers has written them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// What precedes `embed_tokens`, `layers` and `norm`.
    prefix: &'static str,
    /// The head, where it is not tied to the embedding.
    head: &'static str,
}

/// A language model by itself.
pub(super) const TEXT: &[Place] = &[Place { prefix: "model.", head: "lm_head.weight" }];

/// A language model beside a vision tower: in memory since transformers 4.52, on disk before and since.
pub(super) const MULTIMODAL: &[Place] = &[
    Place { prefix: "model.language_model.", head: "lm_head.weight" },
    Place { prefix: "language_model.model.", head: "language_model.lm_head.weight" },
    Place { prefix: "model.text_model.", head: "lm_head.weight" },
    Place { prefix: "model.", head: "lm_head.weight" },
];

impl Names {
    pub(super) const fn new(places: &'static [Place]) -> Self {
        Self { places, fused: false }
    }

    /// The same with query, key and value in one tensor, and gate and up.
    pub(super) const fn fused(self) -> Self {
        Self { fused: true, ..self }
    }

    pub(super) fn is_fused(&self) -> bool {
        self.fused
    }

    /// The same, somewhere else.
    pub(super) fn within(self, places: &'static [Place]) -> Self {
        Self { places, ..self }
    }

    /// Only the place that a checkpoint uses.
    pub(super) fn located(self, weights: &dyn Weights) -> Result<Self, DecoderError> {
        for (index, place) in self.places.iter().enumerate() {
            let name = TensorName::new(format!("{}embed_tokens.weight", place.prefix))?;
            if weights.describe(&name).is_some() {
                let places = self.places.get(index..=index).unwrap_or_default();
                return Ok(Self { places, ..self });
            }
        }
        let names = self.places.iter().map(|place| format!("{}embed_tokens.weight", place.prefix));
        Err(DecoderError::Nowhere { names: names.collect::<Vec<_>>().join(" or ") })
    }

    pub(super) fn prefix(&self) -> &'static str {
        self.places.first().map_or("", |place| place.prefix)
    }

    pub(super) fn embedding(&self) -> Result<TensorName, TensorError> {
        TensorName::new(format!("{}embed_tokens.weight", self.prefix()))
    }

    pub(super) fn norm(&self) -> Result<TensorName, TensorError> {
        TensorName::new(format!("{}norm.weight", self.prefix()))
    }

    pub(super) fn head(&self) -> Result<TensorName, TensorError> {
        TensorName::new(self.places.first().map_or("", |place| place.head))
    }

    pub(super) fn layer(&self, layer: usize, leaf: &str) -> Result<TensorName, TensorError> {
        TensorName::new(format!("{}layers.{layer}.{leaf}", self.prefix()))
    }

    /// The module that holds a projection, and in which half of it that begins; nothing where no module holds it.
    pub(super) fn site(&self, projection: Projection) -> Option<(&'static str, usize)> {
        match (self.fused, projection) {
            (true, Projection::Gate | Projection::GateUp) => Some(("mlp.gate_up_proj", 0)),
            (true, Projection::Up) => Some(("mlp.gate_up_proj", 1)),
            (false, Projection::Gate) => Some(("mlp.gate_proj", 0)),
            (false, Projection::Up) => Some(("mlp.up_proj", 0)),
            (false, Projection::GateUp) => None,
        }
    }
}
