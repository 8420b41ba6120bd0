//! What can go wrong between a checkpoint and a gradient.

use crate::tensor::{Shape, TensorError, TensorName};

use super::Site;

/// Why a network cannot be built or run.
#[derive(Debug, thiserror::Error)]
pub enum DecoderError {
    /// config.json lacks a value or holds one that makes no sense.
    #[error("config.json: {key}: expected {expected}, found {found}")]
    Config {
        /// The key, with its parents.
        key: String,
        /// What it may hold.
        expected: String,
        /// What it holds.
        found: String,
    },
    /// The checkpoint asks for something that would be computed wrongly.
    #[error("config.json: {key}: {found} is not supported; expected {expected}")]
    Unsupported {
        /// The key that names it.
        key: String,
        /// What is supported.
        expected: String,
        /// What the checkpoint names.
        found: String,
    },
    /// A weight is not there.
    #[error("the checkpoint has no tensor {name}, which its config.json calls for")]
    Missing {
        /// The tensor.
        name: TensorName,
    },
    /// The decoder lies under none of the names that its family has been stored under.
    #[error("the checkpoint has no tensor {names}, where its config.json says the language decoder is")]
    Nowhere {
        /// The embeddings that were looked for.
        names: String,
    },
    /// A weight has another element type or shape than the configuration says.
    #[error("tensor {name}: expected {expected}, found {found}")]
    Tensor {
        /// The tensor.
        name: TensorName,
        /// Element types or shape expected.
        expected: String,
        /// What the checkpoint holds.
        found: String,
    },
    /// A weight that this network would ignore, so that its answers would differ from the model's.
    #[error("tensor {name}: not part of a {architecture} decoder; its config.json does not call for it")]
    Surplus {
        /// The tensor.
        name: TensorName,
        /// The architecture by its `model_type`.
        architecture: String,
    },
    /// A weight that is not a number.
    #[error("tensor {name}: element {index} is {value}; expected finite numbers")]
    NotFinite {
        /// The tensor.
        name: TensorName,
        /// Position in row-major order.
        index: usize,
        /// The element.
        value: f32,
    },
    /// A weight could not be read.
    #[error("tensor {name} cannot be read")]
    Read {
        /// The tensor.
        name: TensorName,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A name that no tensor can have.
    #[error(transparent)]
    Name(#[from] TensorError),
    /// A sequence of tokens that cannot be run.
    #[error("sequence {sequence}: expected {expected}, found {found}")]
    Batch {
        /// Position in the batch.
        sequence: usize,
        /// What it may be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// Shared deltas that do not fit the network.
    #[error("shared deltas at {site}: expected {expected}, found {found}")]
    Deltas {
        /// The site.
        site: Site,
        /// What fits.
        expected: String,
        /// What was given.
        found: String,
    },
    /// The network produced something that is not a number.
    #[error("{what} is {value}; expected a finite number")]
    Diverged {
        /// What was computed.
        what: &'static str,
        /// Its value.
        value: f64,
    },
    /// Matrices that cannot be multiplied: a fault of the library.
    #[error("cannot multiply {left} by {right} into {into}")]
    Product {
        /// Rows and columns of the left one.
        left: String,
        /// Rows and columns of the right one.
        right: String,
        /// Rows and columns of the result.
        into: String,
    },
    /// A device without kernels for this network.
    #[error("device {found}: expected cpu")]
    Device {
        /// The device.
        found: String,
    },
    /// The tensor library failed.
    #[error("tensor arithmetic failed")]
    Candle(#[from] candle_core::Error),
}

/// What may be a [`DecoderError`].
pub(super) type Result<T> = std::result::Result<T, DecoderError>;

impl DecoderError {
    /// A weight of another shape than expected.
    pub(super) fn shape(name: &TensorName, expected: &[u64], found: &Shape) -> Self {
        Self::Tensor { name: name.clone(), expected: format!("{expected:?}"), found: found.to_string() }
    }
}
