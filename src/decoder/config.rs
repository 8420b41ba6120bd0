//! What config.json says about a network.

use serde_json::{Map, Value};

use super::families::FAMILIES;
use super::keys::Keys;
use super::names::Names;
use super::rope::Rope;
use super::{DecoderError, Projection, Site};
use crate::checkpoint::Checkpoint;
use crate::tensor::TensorName;

/// The dimensions and parts of a decoder. A family (`families/`) reads it from its own dialect of config.json.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The architecture, by `model_type`.
    pub architecture: String,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Neurons of a feed-forward part: rows of a gate or up projection.
    pub feed_forward: usize,
    /// The number of layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocabulary: usize,
    /// The longest sequence, in tokens.
    pub max_positions: usize,
    /// Added to the mean square in a norm.
    pub norm_epsilon: f32,
    /// Rotary positions.
    pub rope: Rope,
    /// The function between gate and up.
    pub activation: Activation,
    /// Query, key, value and output projections have biases.
    pub attention_bias: bool,
    /// Gate, up and down projections have biases.
    pub mlp_bias: bool,
    /// The head is the embedding.
    pub tied: bool,
    /// What the tensors are called.
    pub(super) names: Names,
}

/// The function that a gate passes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x / (1 + e^-x)
    Silu,
}

/// The rows of a tensor that a site's neurons are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteTensor {
    /// The tensor.
    pub name: TensorName,
    /// Neuron i is row `first + i`.
    pub first: usize,
    /// The number of neurons.
    pub rows: usize,
}

impl Config {
    /// Reads a checkpoint's config.json.
    ///
    /// # Errors
    /// As [`Self::from_json`].
    pub fn from_checkpoint(checkpoint: &Checkpoint) -> Result<Self, DecoderError> {
        Self::from_json(checkpoint.config())
    }

    /// Reads config.json.
    ///
    /// # Errors
    /// An architecture, activation or kind of position that is not supported, by name; a value missing or senseless.
    pub fn from_json(config: &Map<String, Value>) -> Result<Self, DecoderError> {
        let keys = Keys::top(config);
        let model_type = keys.text("model_type")?.ok_or_else(|| keys.absent("model_type", "a text"))?;
        if keys.get("quantization_config").is_some() {
            return Err(keys.unsupported("quantization_config", "unquantised weights", "quantised weights"));
        }
        let Some((_, read)) = FAMILIES.iter().find(|(name, _)| *name == model_type) else {
            let known: Vec<&str> = FAMILIES.iter().map(|(name, _)| *name).collect();
            return Err(keys.unsupported("model_type", known.join(" or "), model_type));
        };
        read(keys)?.checked(keys)
    }

    fn checked(self, keys: Keys<'_>) -> Result<Self, DecoderError> {
        if !self.heads.is_multiple_of(self.kv_heads) {
            let expected = format!("a divisor of num_attention_heads, {}", self.heads);
            return Err(keys.wrong("num_key_value_heads", &expected, &self.kv_heads.into()));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(keys.wrong("head_dim", "an even number", &self.head_dim.into()));
        }
        Ok(self)
    }

    /// The tensor and rows of a site.
    ///
    /// # Errors
    /// A layer that the network does not have.
    pub fn site_tensor(&self, site: Site) -> Result<SiteTensor, DecoderError> {
        if site.layer >= self.layers {
            let (expected, found) = (format!("a layer below {}", self.layers), site.layer.to_string());
            return Err(DecoderError::Deltas { site, expected, found });
        }
        let name = self.names.layer(site.layer, &format!("mlp.{}_proj.weight", site.projection))?;
        Ok(SiteTensor { name, first: 0, rows: self.feed_forward })
    }

    /// All sites, layer by layer, gate before up.
    pub fn sites(&self) -> impl Iterator<Item = Site> + use<> {
        (0..self.layers).flat_map(|layer| Projection::ALL.map(|projection| Site { layer, projection }))
    }

    /// Width of all query heads together.
    pub(super) fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key heads, or all value heads, together.
    pub(super) fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}
