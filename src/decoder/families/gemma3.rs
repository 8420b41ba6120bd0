//! Gemma 3, text: normalised heads, and five layers with a window and positions of their own to one without.
//!
//! The files of Google's models leave most of config.json to these defaults.

use super::super::keys::Keys;
use super::super::rope::{Rope, RopeDefaults, RopeScaling};
use super::super::{Config, DecoderError};
use super::gemma::gemma;
use super::{Defaults, LLAMA, Sizes, refuse_present, windowed};

const DEFAULTS: Defaults = Defaults {
    sizes: Sizes { hidden: 2304, feed_forward: 9216, layers: 26, heads: 8, vocabulary: 262_208 },
    kv_heads: Some(4),
    head_dim: Some(256),
    max_positions: 131_072,
    theta: Some(1e6),
    tied: true,
    ..LLAMA
};
/// The base of the layers with a window.
const LOCAL_THETA: f32 = 10_000.0;

pub(super) fn read(keys: &Keys<'_>) -> Result<Config, DecoderError> {
    let mut config = gemma(keys, &DEFAULTS)?;
    config.norms.after = true;
    config.attention.head_norms = true;
    config.attention.scale = 1.0 / keys.number_or("query_pre_attn_scalar", 256.0)?.sqrt();
    // transformers reads the first and does not use it; the second it uses in text models alone.
    refuse_present(keys, "attn_logit_softcapping")?;
    if keys.is_nested() {
        refuse_present(keys, "final_logit_softcapping")?;
    }
    config.logit_softcap = keys.optional_number("final_logit_softcapping")?;
    config.ropes = ropes(keys, &config)?;
    let window = keys.size_or("sliding_window", 4096)?;
    let pattern = match keys.optional_size("sliding_window_pattern")? {
        Some(pattern) => pattern,
        None => keys.size_or("_sliding_window_pattern", 6)?,
    };
    let windowed = windowed(keys, config.layers.len(), |layer| !(layer + 1).is_multiple_of(pattern))?;
    for (layer, windowed) in config.layers.iter_mut().zip(windowed) {
        (layer.window, layer.rope) = if windowed { (Some(window), 1) } else { (None, 0) };
    }
    Ok(config)
}

/// Refuses what versions of transformers read differently: one object for layers of two kinds, a type without `rope_type`.
fn refuse_ambiguous(keys: &Keys<'_>) -> Result<(), DecoderError> {
    if let Some(flat) = keys.object("rope_parameters")? {
        return Err(flat.absent("full_attention", "an object for each kind of layer"));
    }
    match keys.object("rope_scaling")? {
        Some(own) if own.get("type").is_some() && own.get("rope_type").is_none() => {
            Err(own.absent("rope_type", "a text beside type"))
        }
        _ => Ok(()),
    }
}

/// Positions of the layers without a window, and of those with one, in either dialect.
fn ropes(keys: &Keys<'_>, config: &Config) -> Result<Vec<Rope>, DecoderError> {
    let head_dim = config.attention.head_dim;
    let defaults = |theta| RopeDefaults { theta, head_dim, partial: false, max_positions: config.max_positions };
    let parameters = keys.object("rope_parameters")?;
    let part = |kind: &str| parameters.as_ref().map(|all| all.object(kind)).transpose().map(Option::flatten);
    let full = match part("full_attention")? {
        Some(own) => Rope::read_nested(&own, keys, defaults(DEFAULTS.theta))?,
        None => {
            refuse_ambiguous(keys)?;
            Rope::read(keys, defaults(DEFAULTS.theta))?
        }
    };
    let local = match part("sliding_attention")? {
        Some(own) => Rope::read_nested(&own, keys, defaults(Some(LOCAL_THETA)))?,
        None => {
            let theta = keys.number_or("rope_local_base_freq", LOCAL_THETA)?;
            Rope { theta, width: head_dim, scaling: RopeScaling::None }
        }
    };
    Ok(vec![full, local])
}
