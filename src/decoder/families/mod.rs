//! One file an architecture: how it reads config.json, and how its parts differ from Llama's.
//!
//! [`dense`] reads what all of them share; a family changes what differs. What a family cannot compute it refuses by the
//! key and value that ask for it.

mod gemma;
mod gemma2;
mod gemma3;
mod llama;
mod mistral;
mod multimodal;
mod phi3;
mod qwen2;
mod qwen3;

use super::config::{Activation, AttentionShape, LayerKind, Norms};
use super::keys::Keys;
use super::names::{Names, TEXT};
use super::rope::{Rope, RopeDefaults};
use super::{Config, DecoderError};

/// Reads a family's config.json.
type Read = fn(&Keys<'_>) -> Result<Config, DecoderError>;

/// Supported architectures by `model_type`. Those that hold a decoder of another type are in `multimodal`.
pub(super) const FAMILIES: [(&str, Read); 21] = [
    ("llama", llama::read),
    ("mistral", mistral::read),
    ("qwen2", qwen2::read),
    ("qwen3", qwen3::read),
    ("phi3", phi3::read),
    ("gemma", gemma::read),
    ("gemma2", gemma2::read),
    ("gemma3_text", gemma3::read),
    ("gemma3", multimodal::read),
    ("qwen2_vl_text", qwen2::read),
    ("qwen2_vl", multimodal::read),
    ("qwen2_5_vl_text", qwen2::read),
    ("qwen2_5_vl", multimodal::read),
    ("qwen3_vl_text", qwen3::read),
    ("qwen3_vl", multimodal::read),
    ("llava", multimodal::read),
    ("llava_next", multimodal::read),
    ("mistral3", multimodal::read),
    ("internvl", multimodal::read),
    ("idefics3", multimodal::read),
    ("smolvlm", multimodal::read),
];

/// What a family takes for granted where config.json is silent, as transformers' class for it does.
#[derive(Debug, Clone, Copy)]
struct Defaults {
    /// Only inside a multimodal checkpoint, whose files leave out what is as it is here.
    sizes: Sizes,
    /// As many as query heads unless told otherwise.
    kv_heads: Option<usize>,
    /// The hidden size over the heads unless told otherwise.
    head_dim: Option<usize>,
    max_positions: usize,
    epsilon: f32,
    /// `None` where it must be written down.
    theta: Option<f32>,
    partial_rotary: bool,
    tied: bool,
}

#[derive(Debug, Clone, Copy)]
struct Sizes {
    hidden: usize,
    feed_forward: usize,
    layers: usize,
    heads: usize,
    vocabulary: usize,
}

/// Defaults of transformers' `LlamaConfig`, which the others vary.
const LLAMA: Defaults = Defaults {
    sizes: Sizes { hidden: 4096, feed_forward: 11_008, layers: 32, heads: 32, vocabulary: 32_000 },
    kv_heads: None,
    head_dim: None,
    max_positions: 2048,
    epsilon: 1e-6,
    theta: Some(10_000.0),
    partial_rotary: false,
    tied: false,
};

/// A decoder as Llama has it: what all families share. `hidden_act` is not read.
fn dense(keys: &Keys<'_>, defaults: &Defaults) -> Result<Config, DecoderError> {
    refuse_two_ropes(keys)?;
    let size = |key: &str, default| if keys.is_nested() { keys.size_or(key, default) } else { keys.size(key) };
    let sizes = &defaults.sizes;
    let (hidden, heads) = (size("hidden_size", sizes.hidden)?, size("num_attention_heads", sizes.heads)?);
    let head_dim = keys.size_or("head_dim", defaults.head_dim.unwrap_or((hidden / heads).max(1)))?;
    let max_positions = keys.size_or("max_position_embeddings", defaults.max_positions)?;
    let (theta, partial) = (defaults.theta, defaults.partial_rotary);
    Ok(Config {
        architecture: keys.text("model_type")?.unwrap_or_default().to_owned(),
        hidden,
        feed_forward: size("intermediate_size", sizes.feed_forward)?,
        vocabulary: size("vocab_size", sizes.vocabulary)?,
        max_positions,
        embedding_scale: 1.0,
        norms: Norms { epsilon: keys.number_or("rms_norm_eps", defaults.epsilon)?, offset: 0.0, after: false },
        attention: AttentionShape {
            heads,
            kv_heads: keys.size_or("num_key_value_heads", defaults.kv_heads.unwrap_or(heads))?,
            head_dim,
            scale: 1.0 / (head_dim as f32).sqrt(),
            softcap: None,
            head_norms: false,
            bias: false,
            output_bias: false,
        },
        layers: vec![LayerKind::default(); size("num_hidden_layers", sizes.layers)?],
        ropes: match keys.object("rope_parameters")? {
            // One object for each kind of layer: the family reads them.
            Some(nested) if nested.get("full_attention").is_some() => Vec::new(),
            _ => vec![Rope::read(keys, RopeDefaults { theta, head_dim, partial, max_positions })?],
        },
        activation: Activation::Silu,
        mlp_bias: false,
        logit_softcap: None,
        tied: Some(keys.flag_or("tie_word_embeddings", defaults.tied)?),
        names: Names::new(TEXT),
    })
}

/// Which layers see a window only: `layer_types` where it is written down, else what `otherwise` says of each layer.
fn windowed(keys: &Keys<'_>, layers: usize, otherwise: impl Fn(usize) -> bool) -> Result<Vec<bool>, DecoderError> {
    let Some(kinds) = keys.texts("layer_types", &["full_attention", "sliding_attention"])? else {
        return Ok((0..layers).map(otherwise).collect());
    };
    if kinds.len() != layers {
        let expected = format!("one entry for each of {layers} layers");
        return Err(keys.wrong("layer_types", &expected, &kinds.len().into()));
    }
    Ok(kinds.iter().map(|kind| *kind == "sliding_attention").collect())
}

/// Refuses two dialects that say different things: versions of transformers disagree on whose word counts.
fn refuse_two_ropes(keys: &Keys<'_>) -> Result<(), DecoderError> {
    match (keys.object("rope_parameters")?, keys.object("rope_scaling")?) {
        (Some(_), Some(scaling)) if !scaling.is_empty() && keys.get("rope_parameters") != keys.get("rope_scaling") => {
            let found = keys.get("rope_scaling").map(ToString::to_string).unwrap_or_default();
            Err(keys.unsupported("rope_scaling", "nothing beside rope_parameters", &found))
        }
        _ => Ok(()),
    }
}

/// Refuses a key that asks for something unless it is null.
fn refuse_present(keys: &Keys<'_>, key: &str) -> Result<(), DecoderError> {
    keys.get(key).map_or(Ok(()), |found| Err(keys.unsupported(key, "null", &found.to_string())))
}

/// Refuses a Gemma that looks ahead, as embedding models made from it do.
fn refuse_looking_ahead(keys: &Keys<'_>) -> Result<(), DecoderError> {
    match keys.optional_flag("use_bidirectional_attention")? {
        Some(true) => Err(keys.unsupported("use_bidirectional_attention", "false", "true")),
        _ => Ok(()),
    }
}
