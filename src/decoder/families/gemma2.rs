//! Gemma 2: norms after each half of a layer, soft caps, and a window in every other layer.

use super::super::keys::Keys;
use super::super::{Config, DecoderError};
use super::gemma::gemma;
use super::{Defaults, LLAMA, windowed};

const DEFAULTS: Defaults =
    Defaults { kv_heads: Some(4), head_dim: Some(256), max_positions: 8192, tied: true, ..LLAMA };

pub(super) fn read(keys: &Keys<'_>) -> Result<Config, DecoderError> {
    let mut config = gemma(keys, &DEFAULTS)?;
    config.norms.after = true;
    config.attention.scale = 1.0 / keys.number_or("query_pre_attn_scalar", 256.0)?.sqrt();
    config.attention.softcap = softcap(keys, "attn_logit_softcapping", 50.0)?;
    config.logit_softcap = softcap(keys, "final_logit_softcapping", 30.0)?;
    let window = keys.size_or("sliding_window", 4096)?;
    let windowed = windowed(keys, config.layers.len(), |layer| layer.is_multiple_of(2))?;
    for (layer, windowed) in config.layers.iter_mut().zip(windowed) {
        layer.window = windowed.then_some(window);
    }
    Ok(config)
}

/// A cap, `default` where nothing is written down and none where null is.
fn softcap(keys: &Keys<'_>, key: &str, default: f32) -> Result<Option<f32>, DecoderError> {
    if keys.written(key) { keys.optional_number(key) } else { Ok(Some(default)) }
}
