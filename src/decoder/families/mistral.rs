//! Mistral: Llama with a window in every layer.

use super::super::config::Activation;
use super::super::keys::Keys;
use super::super::{Config, DecoderError};
use super::{Defaults, LLAMA, Sizes, dense, windowed};

const DEFAULTS: Defaults = Defaults {
    sizes: Sizes { feed_forward: 14_336, ..LLAMA.sizes },
    kv_heads: Some(8),
    max_positions: 131_072,
    ..LLAMA
};

pub(super) fn read(keys: &Keys<'_>) -> Result<Config, DecoderError> {
    let mut config = dense(keys, &DEFAULTS)?;
    config.activation = Activation::read(keys, "hidden_act", "silu")?;
    // The first Mistral had a window and files that leave it out; later ones write null.
    let window = match keys.written("sliding_window") {
        true => keys.optional_size("sliding_window")?,
        false => Some(4096),
    };
    let windowed = windowed(keys, config.layers.len(), |_| true)?;
    if windowed.contains(&false) {
        return Err(keys.unsupported("layer_types", "sliding_attention in every layer", "full_attention"));
    }
    config.layers.iter_mut().for_each(|layer| layer.window = window);
    Ok(config)
}
