//! Signed, compressed, auditable safety patches for open language models.

pub mod digest;
pub mod fold;
pub mod format;
pub mod tensor;
pub mod trust;
