//! Signed, compressed, auditable safety patches for open language models.

pub mod checkpoint;
#[cfg(feature = "create")]
pub mod decoder;
pub mod digest;
#[cfg(feature = "create")]
pub mod eval;
pub mod fold;
pub mod format;
#[cfg(feature = "create")]
pub mod nest;
pub mod tensor;
pub mod trust;
