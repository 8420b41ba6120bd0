//! The patch file as values: container, manifest, sections, limits. No files, no keys, no arithmetic.
//!
//! `spec/format.md` is the normative text; module and section names are the same.

pub mod binding;
pub(crate) mod codec;
pub mod container;
pub mod edit;
pub(crate) mod float;
pub mod frame;
pub mod json;
pub mod limits;
pub mod manifest;
pub(crate) mod reader;
pub mod residual;
pub mod timestamp;

pub use container::{Container, ContainerError, SignatureRecord};
pub use edit::{Deltas, Edit, EditError, EditParts, Edits, Layout, Span, Vectors};
pub use manifest::{Codec, Kind, Level, Manifest, ManifestError};
pub use residual::{Residual, ResidualBuilder, ResidualRow};
pub use timestamp::Timestamp;
