//! Signed, compressed, auditable safety patches for open language models.

pub mod checkpoint;
#[cfg(feature = "create")]
pub mod decoder;
pub mod digest;
pub mod fold;
pub mod format;
pub mod tensor;
pub mod trust;
