//! One file an architecture: how it reads config.json, and how its parts differ.

mod llama;

use super::keys::Keys;
use super::{Config, DecoderError};

/// Reads a family's config.json.
type Read = fn(Keys<'_>) -> Result<Config, DecoderError>;

/// Supported architectures by `model_type`.
pub(super) const FAMILIES: [(&str, Read); 1] = [("llama", llama::read)];
