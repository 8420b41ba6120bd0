//! The patch file as values: container, manifest, sections, limits. No files, no keys, no arithmetic.
//!
//! `spec/format.md` is the normative text; module and section names are the same.

pub mod binding;
pub mod codec;
pub mod container;
pub mod draft;
pub mod edit;
pub mod envelope;
pub(crate) mod float;
pub mod frame;
pub mod json;
pub mod limits;
pub mod manifest;
mod names;
pub mod payload;
pub(crate) mod reader;
pub mod residual;
mod rules;
pub mod section;
pub mod sketch;
pub(crate) mod statement;
pub mod status_feed;
pub mod timestamp;
pub mod tolerance;
pub mod vectors;

pub use container::{Container, ContainerError, SignatureRecord};
pub use draft::{Draft, Unsigned, WriteError};
pub use edit::{Deltas, Edit, EditError, EditParts, Edits};
pub use envelope::{Envelope, EnvelopeError};
pub use manifest::{Codec, Kind, Level, Manifest, ManifestError};
pub use payload::{Payload, PayloadError};
pub use residual::{Residual, ResidualBuilder, ResidualRow};
pub(crate) use rules::{about as check_about, label as check_label, text_fault};
pub use sketch::{Sketch, SketchError, TensorSketch, TensorSketcher};
pub use status_feed::{FeedEntry, PatchStatus, StatusFeed, StatusFeedError};
pub use timestamp::Timestamp;
pub use tolerance::{NotATolerance, Tolerance};
pub use vectors::{Layout, Span, Vectors};
