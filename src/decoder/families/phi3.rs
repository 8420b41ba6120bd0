//! Phi 3 and 4: query, key and value in one tensor, gate and up in one tensor, and heads of which a part turns.

use super::super::config::Activation;
use super::super::keys::Keys;
use super::super::rope::RopeScaling;
use super::super::{Config, DecoderError};
use super::{Defaults, LLAMA, dense};

const DEFAULTS: Defaults = Defaults { max_positions: 4096, epsilon: 1e-5, partial_rotary: true, ..LLAMA };

pub(super) fn read(keys: &Keys<'_>) -> Result<Config, DecoderError> {
    let mut config = dense(keys, &DEFAULTS)?;
    config.activation = Activation::read(keys, "hidden_act", "silu")?;
    config.names = config.names.fused();
    match config.ropes.first().map(|rope| &rope.scaling) {
        // Within the object transformers does not look for it.
        Some(RopeScaling::LongRope { .. }) => _ = keys.size("original_max_position_embeddings")?,
        None | Some(RopeScaling::None) => (),
        Some(other) => {
            return Err(keys.unsupported("rope_scaling", "longrope or default positions", &format!("{other:?}")));
        }
    }
    let window = keys.optional_size("sliding_window")?;
    config.layers.iter_mut().for_each(|layer| layer.window = window);
    Ok(config)
}
