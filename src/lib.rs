//! Signed, compressed, auditable safety patches for open language models.

pub mod checkpoint;
pub mod digest;
pub mod fold;
pub mod format;
pub mod tensor;
pub mod trust;
