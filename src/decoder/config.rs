//! What config.json says about a network.

use serde_json::{Map, Value};

use super::families::FAMILIES;
use super::head::LOGITS;
use super::keys::Keys;
use super::matrix::BLOCK;
use super::names::Names;
use super::rope::Rope;
use super::weights::Weights;
use super::{DecoderError, PASS_TOKENS, Projection, Site};
use crate::checkpoint::Checkpoint;
use crate::tensor::TensorName;

/// Sequences whose logits exist at one time while they are answered.
const ANSWERED: usize = 64;

/// The dimensions and parts of a decoder. A family (`families/`) reads it from its own dialect of config.json.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The architecture, by `model_type` of the language decoder.
    pub architecture: String,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Neurons of a feed-forward part: rows of a gate or up projection.
    pub feed_forward: usize,
    /// Rows of the embedding.
    pub vocabulary: usize,
    /// The longest sequence, in tokens: `max_position_embeddings`, or what positions are stretched to.
    pub max_positions: usize,
    /// What the embedding is multiplied by.
    pub embedding_scale: f32,
    /// The norms.
    pub norms: Norms,
    /// The attention parts.
    pub attention: AttentionShape,
    /// The layers, from the first.
    pub layers: Vec<LayerKind>,
    /// Rotary positions; a layer names one of them.
    pub ropes: Vec<Rope>,
    /// The function between gate and up.
    pub activation: Activation,
    /// Gate, up and down projections have biases.
    pub mlp_bias: bool,
    /// Logits are squeezed into ± this by a hyperbolic tangent.
    pub logit_softcap: Option<f32>,
    /// Whether the head is the embedding where the checkpoint has no head; open where config.json leaves it open.
    pub(super) tied: Option<bool>,
    /// What the tensors are called.
    pub(super) names: Names,
}

/// How a network normalises.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Norms {
    /// Added to the mean square.
    pub epsilon: f32,
    /// Added to the stored weights: 1 where they are stored less 1.
    pub offset: f32,
    /// Each half of a layer also normalises what it adds to the residual stream.
    pub after: bool,
}

/// The shape of the attention parts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// What scores are multiplied by.
    pub scale: f32,
    /// Scores are squeezed into ± this by a hyperbolic tangent.
    pub softcap: Option<f32>,
    /// Each query and key head is normalised.
    pub head_norms: bool,
    /// Query, key and value projections have biases.
    pub bias: bool,
    /// The output projection has a bias.
    pub output_bias: bool,
}

impl AttentionShape {
    /// Width of all query heads together.
    pub fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key heads, or all value heads, together.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

/// How layers differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LayerKind {
    /// A token sees only itself and so many tokens before it less one; all of them where there is no window.
    pub window: Option<usize>,
    /// Which of the network's rotary positions it uses.
    pub rope: usize,
}

/// The function that a gate passes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x / (1 + e^-x)
    Silu,
    /// x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))
    GeluTanh,
}

impl Activation {
    /// The name that transformers gives it, at `key`.
    pub(super) fn read(keys: &Keys<'_>, key: &str, default: &'static str) -> Result<Self, DecoderError> {
        match keys.one_of(key, default, &["silu", "swish", "gelu_pytorch_tanh", "gelu_new"])? {
            "silu" | "swish" => Ok(Self::Silu),
            _ => Ok(Self::GeluTanh),
        }
    }
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
    /// Reads a checkpoint's config.json and finds out what its tensors are called.
    ///
    /// # Errors
    /// As [`Self::from_json`] and [`Self::located`].
    pub fn from_checkpoint(checkpoint: &Checkpoint) -> Result<Self, DecoderError> {
        Self::from_json(checkpoint.config())?.located(checkpoint)
    }

    /// Reads config.json.
    ///
    /// # Errors
    /// An architecture, activation, kind of attention or kind of position that is not supported, by name; a value
    /// missing or senseless.
    pub fn from_json(config: &Map<String, Value>) -> Result<Self, DecoderError> {
        let keys = Keys::top(config);
        let model_type = keys.text("model_type")?.ok_or_else(|| keys.absent("model_type", "a text"))?;
        if keys.get("quantization_config").is_some() {
            return Err(keys.unsupported("quantization_config", "unquantised weights", "quantised weights"));
        }
        let Some((_, read)) = FAMILIES.iter().find(|(name, _)| *name == model_type) else {
            // A decoder's own type, as it stands inside a multimodal checkpoint, tells nobody anything.
            let known = FAMILIES.iter().map(|(name, _)| *name).filter(|name| !name.ends_with("_vl_text"));
            let expected = format!("one of {}", known.collect::<Vec<_>>().join(", "));
            return Err(keys.unsupported("model_type", expected, model_type));
        };
        read(&keys)?.checked(&keys)
    }

    fn checked(self, keys: &Keys<'_>) -> Result<Self, DecoderError> {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.attention;
        if !heads.is_multiple_of(kv_heads) {
            let expected = format!("a divisor of num_attention_heads, {heads}");
            return Err(keys.wrong("num_key_value_heads", &expected, &kv_heads.into()));
        }
        if !head_dim.is_multiple_of(2) {
            return Err(keys.wrong("head_dim", "an even number", &head_dim.into()));
        }
        let longest = self.ropes.iter().map(|rope| rope.scaling.longest(self.max_positions)).max();
        Ok(Self { max_positions: longest.unwrap_or(self.max_positions), ..self })
    }

    /// The same network with the tensor names of a checkpoint, where the family has been stored under several.
    ///
    /// # Errors
    /// None of the family's names is there.
    pub fn located(self, weights: &dyn Weights) -> Result<Self, DecoderError> {
        let names = self.names.located(weights)?;
        let has_head = weights.describe(&names.head()?).is_some();
        // A head that is stored is used whatever config.json says, as transformers 5 has it: tuned copies may differ.
        Ok(Self { tied: Some(self.tied.unwrap_or(true) && !has_head), names, ..self })
    }

    /// Whether the head is the embedding.
    pub(super) fn is_tied(&self) -> bool {
        self.tied == Some(true)
    }

    /// Refuses sequences that are longer than the network allows.
    ///
    /// # Errors
    /// The first such sequence, by its place.
    pub fn check_lengths(&self, mut lengths: impl Iterator<Item = usize>) -> Result<(), DecoderError> {
        let most = self.max_positions;
        let mut sequence = 0;
        let found = lengths.find(|length| {
            sequence += 1;
            *length > most
        });
        found.map_or(Ok(()), |found| {
            let expected = format!("at most {most} tokens (max_position_embeddings)");
            Err(DecoderError::Batch { sequence: sequence - 1, expected, found: found.to_string() })
        })
    }

    /// The tensor and rows of a site.
    ///
    /// # Errors
    /// A layer that the network does not have.
    pub fn site_tensor(&self, site: Site) -> Result<SiteTensor, DecoderError> {
        if site.layer >= self.layers.len() {
            let (expected, found) = (format!("a layer below {}", self.layers.len()), site.layer.to_string());
            return Err(DecoderError::Deltas { site, expected, found });
        }
        let Some((leaf, first)) = self.names.site(site.projection) else {
            let found = format!("gate and up in two, as {} has them", self.architecture);
            return Err(DecoderError::Deltas { site, expected: "a network with both in one tensor".to_owned(), found });
        };
        let name = self.names.layer(site.layer, &format!("{leaf}.weight"))?;
        Ok(SiteTensor { name, first: first * self.feed_forward, rows: self.width(site.projection) })
    }

    /// Neurons of a site.
    pub fn width(&self, projection: Projection) -> usize {
        match projection {
            Projection::Gate | Projection::Up => self.feed_forward,
            Projection::GateUp => 2 * self.feed_forward,
        }
    }

    /// Bytes that a pass and its way back need at most, traces and weights aside, where there are `tokens` in all and no
    /// sequence is longer than `longest` tokens.
    pub fn pass_bytes(&self, tokens: usize, longest: usize) -> u64 {
        let tokens = tokens.min(PASS_TOKENS).max(longest);
        // Each thread holds the scores of the query heads that share a key head, their gradient and a copy.
        let group = self.attention.heads / self.attention.kv_heads.max(1);
        let scores = 3 * rayon::current_num_threads() * group * longest * longest;
        // On the way back every layer's two inputs are there.
        let inputs = 2 * self.layers.len() * self.hidden;
        let attention = 4 * (self.attention.query_width() + self.attention.kv_width());
        let token = 6 * self.feed_forward + 12 * self.hidden + attention + inputs;
        // Logits, and what a soft cap keeps of them; blocks of weights as they are widened.
        let logits = LOGITS.max(ANSWERED * self.vocabulary) * if self.logit_softcap.is_some() { 2 } else { 1 };
        4 * (tokens * token + scores + logits + 4 * BLOCK) as u64
    }

    /// Bytes of keys and values of a sequence of `length` tokens.
    pub fn cache_bytes(&self, length: usize) -> u64 {
        8 * (self.layers.len() * self.attention.kv_width() * length) as u64
    }

    /// All sites, layer by layer, gate before up, fused tensors in halves.
    pub fn sites(&self) -> impl Iterator<Item = Site> + use<> {
        (0..self.layers.len()).flat_map(|layer| Projection::HALVES.map(|projection| Site { layer, projection }))
    }
}
