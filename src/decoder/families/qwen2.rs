//! Qwen 2 and 2.5, and the decoders of Qwen2-VL and Qwen2.5-VL: biases at query, key and value.
//!
//! The positions of the vision models have three axes, which agree for text.

use super::super::config::Activation;
use super::super::keys::Keys;
use super::super::{Config, DecoderError};
use super::{Defaults, LLAMA, Sizes, dense, windowed};

pub(super) const DEFAULTS: Defaults = Defaults {
    sizes: Sizes { feed_forward: 22_016, vocabulary: 151_936, ..LLAMA.sizes },
    max_positions: 32_768,
    ..LLAMA
};
const VISION: Defaults = Defaults { kv_heads: Some(8), epsilon: 1e-5, theta: Some(1e6), ..DEFAULTS };

pub(super) fn read(keys: &Keys<'_>) -> Result<Config, DecoderError> {
    let vision = keys.text("model_type")? != Some("qwen2");
    let mut config = dense(keys, if vision { &VISION } else { &DEFAULTS })?;
    config.activation = Activation::read(keys, "hidden_act", "silu")?;
    config.attention.bias = true;
    set_windows(keys, &mut config, if vision { 80 } else { 28 })?;
    Ok(config)
}

/// Windows in the layers from `max_window_layers` on, if `use_sliding_window` says so.
pub(super) fn set_windows(keys: &Keys<'_>, config: &mut Config, first: usize) -> Result<(), DecoderError> {
    let window = match keys.flag_or("use_sliding_window", false)? {
        true if keys.written("sliding_window") => keys.optional_size("sliding_window")?,
        true => Some(4096),
        false => None,
    };
    let first = keys.count_or("max_window_layers", first)?;
    let windowed = windowed(keys, config.layers.len(), |layer| window.is_some() && layer >= first)?;
    for (layer, windowed) in config.layers.iter_mut().zip(windowed) {
        layer.window = window.filter(|_| windowed);
    }
    Ok(())
}
