//! Checkpoints that hold a language decoder beside other networks, which text does not touch.
//!
//! Their config.json keeps the decoder's under `text_config`; old files of Qwen2-VL keep it at the top.

use super::super::keys::Keys;
use super::super::names::MULTIMODAL;
use super::super::{Config, DecoderError};
use super::{FAMILIES, gemma3, qwen2, qwen3};

pub(super) fn read(keys: &Keys<'_>) -> Result<Config, DecoderError> {
    let model_type = keys.text("model_type")?.unwrap_or_default();
    let text = keys.object("text_config")?;
    let mut config = match (model_type, &text) {
        ("gemma3", Some(text)) => gemma3::read(text)?,
        ("qwen3_vl", Some(text)) => qwen3::read(text)?,
        ("qwen2_vl" | "qwen2_5_vl", text) => qwen2::read(text.as_ref().unwrap_or(keys))?,
        (_, Some(text)) => by_type(text)?,
        (_, None) => return Err(keys.absent("text_config", "an object")),
    };
    if config.architecture.is_empty() {
        model_type.clone_into(&mut config.architecture);
    }
    config.tied = tied(keys, text.as_ref())?;
    config.names = config.names.within(MULTIMODAL);
    Ok(config)
}

/// A decoder of the type that it names.
fn by_type(text: &Keys<'_>) -> Result<Config, DecoderError> {
    let model_type = text.text("model_type")?.ok_or_else(|| text.absent("model_type", "a text"))?;
    let plain = ["llama", "mistral", "qwen2", "qwen3"];
    match FAMILIES.iter().find(|(name, _)| *name == model_type && plain.contains(name)) {
        Some((_, read)) => read(text),
        None => Err(text.unsupported("model_type", plain.join(" or "), model_type)),
    }
}

/// Versions disagree on whose word counts where the two differ or are silent: then the tensors say.
fn tied(keys: &Keys<'_>, text: Option<&Keys<'_>>) -> Result<Option<bool>, DecoderError> {
    let outer = keys.optional_flag("tie_word_embeddings")?;
    let inner = text.map(|text| text.optional_flag("tie_word_embeddings")).transpose()?.flatten();
    Ok(if outer == inner { outer } else { None })
}
