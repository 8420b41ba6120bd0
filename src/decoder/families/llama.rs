//! Llama 1 to 3 and the many models that kept its layout.

use super::super::config::Activation;
use super::super::keys::Keys;
use super::super::names::Names;
use super::super::rope::Rope;
use super::super::{Config, DecoderError};

/// Defaults are those of transformers' `LlamaConfig`, which older checkpoints rely on.
pub(super) fn read(keys: Keys<'_>) -> Result<Config, DecoderError> {
    keys.one_of("hidden_act", "silu", &["silu"])?;
    let (hidden, heads) = (keys.size("hidden_size")?, keys.size("num_attention_heads")?);
    Ok(Config {
        architecture: "llama".to_owned(),
        hidden,
        feed_forward: keys.size("intermediate_size")?,
        layers: keys.size("num_hidden_layers")?,
        heads,
        kv_heads: keys.size_or("num_key_value_heads", heads)?,
        head_dim: keys.size_or("head_dim", (hidden / heads).max(1))?,
        vocabulary: keys.size("vocab_size")?,
        max_positions: keys.size_or("max_position_embeddings", 2048)?,
        norm_epsilon: keys.number_or("rms_norm_eps", 1e-6)?,
        rope: Rope::read(keys, 10_000.0)?,
        activation: Activation::Silu,
        attention_bias: keys.flag_or("attention_bias", false)?,
        mlp_bias: keys.flag_or("mlp_bias", false)?,
        tied: keys.flag_or("tie_word_embeddings", false)?,
        names: Names { prefix: "model.", head: "lm_head.weight" },
    })
}
