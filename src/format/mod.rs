//! The patch file as values: container, manifest, sections, limits. No files, no keys, no arithmetic.
//!
//! `spec/format.md` is the normative text; module and section names are the same.

pub mod binding;
pub mod edit;
pub(crate) mod float;
pub mod json;
pub mod limits;
pub mod manifest;
pub mod timestamp;

pub use edit::{Deltas, Edit, EditError, EditParts, Edits, Layout, Span, Vectors};
pub use manifest::{Codec, Kind, Level, Manifest, ManifestError};
pub use timestamp::Timestamp;
