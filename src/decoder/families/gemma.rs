//! Gemma: norm weights stored less 1, a scaled embedding, GELU, and a head tied to the embedding.

use super::super::config::Activation;
use super::super::keys::Keys;
use super::super::{Config, DecoderError};
use super::{Defaults, LLAMA, dense, refuse_looking_ahead};

const DEFAULTS: Defaults = Defaults { head_dim: Some(256), max_positions: 8192, tied: true, ..LLAMA };

pub(super) fn read(keys: &Keys<'_>) -> Result<Config, DecoderError> {
    // The first files say "gelu" and mean the approximation by a hyperbolic tangent, as transformers has it.
    keys.one_of("hidden_act", "gelu_pytorch_tanh", &["gelu", "gelu_pytorch_tanh"])?;
    // transformers 5 goes by `hidden_act` alone, 4 by this one.
    keys.one_of("hidden_activation", "gelu_pytorch_tanh", &["gelu_pytorch_tanh"])?;
    gemma(keys, &DEFAULTS)
}

/// What all Gemmas share.
pub(super) fn gemma(keys: &Keys<'_>, defaults: &Defaults) -> Result<Config, DecoderError> {
    refuse_looking_ahead(keys)?;
    let mut config = dense(keys, defaults)?;
    config.activation = Activation::read(keys, "hidden_activation", "gelu_pytorch_tanh")?;
    config.embedding_scale = (config.hidden as f32).sqrt();
    config.norms.offset = 1.0;
    config.attention.bias = keys.flag_or("attention_bias", false)?;
    config.attention.output_bias = config.attention.bias;
    Ok(config)
}
