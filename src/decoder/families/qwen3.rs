//! Qwen 3 and the decoder of Qwen3-VL: query and key heads are normalised.

use super::super::config::Activation;
use super::super::keys::Keys;
use super::super::{Config, DecoderError};
use super::{Defaults, dense, qwen2};

const DEFAULTS: Defaults = Defaults { head_dim: Some(128), ..qwen2::DEFAULTS };
/// Versions of transformers disagree on the base where none is written down.
const VISION: Defaults = Defaults { theta: None, max_positions: 128_000, ..DEFAULTS };

pub(super) fn read(keys: &Keys<'_>) -> Result<Config, DecoderError> {
    let vision = keys.text("model_type")? != Some("qwen3");
    let mut config = dense(keys, if vision { &VISION } else { &DEFAULTS })?;
    config.activation = Activation::read(keys, "hidden_act", "silu")?;
    config.attention.head_norms = true;
    config.attention.bias = keys.flag_or("attention_bias", false)?;
    config.attention.output_bias = config.attention.bias;
    if !vision {
        qwen2::set_windows(keys, &mut config, 28)?;
    }
    Ok(config)
}
