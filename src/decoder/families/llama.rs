//! Llama 1 to 3 and the many models that kept its layout.

use super::super::config::Activation;
use super::super::keys::Keys;
use super::super::{Config, DecoderError};
use super::{LLAMA, dense};

pub(super) fn read(keys: &Keys<'_>) -> Result<Config, DecoderError> {
    let mut config = dense(keys, &LLAMA)?;
    config.activation = Activation::read(keys, "hidden_act", "silu")?;
    config.attention.bias = keys.flag_or("attention_bias", false)?;
    config.attention.output_bias = config.attention.bias;
    config.mlp_bias = keys.flag_or("mlp_bias", false)?;
    Ok(config)
}
