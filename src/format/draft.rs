//! Writing: a draft and its edits become manifest and payload bytes, ready to be signed.
//!
//! Everything is read back before it leaves, so that no file is written that a reader would refuse.

use serde_json::{Map, Value};

use crate::digest::Sha256;
use crate::format::container::{Container, ContainerError, SignatureRecord, patch_id, signing_input};
use crate::format::edit::Edits;
use crate::format::manifest::{Base, FormatVersion, Manifest, ManifestError, ResultBinding, SectionEntry, Tool};
use crate::format::payload::{Payload, PayloadError};
use crate::format::residual::Residual;
use crate::format::sketch::Sketch;
use crate::format::timestamp::Timestamp;

/// Why a patch cannot be written.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum WriteError {
    /// The draft breaks a rule.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The edits, the residual or the sketch break a rule.
    #[error(transparent)]
    Payload(#[from] PayloadError),
    /// The parts do not fit a container.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// What was written reads back as something else.
    #[error("the patch written does not read back as what was to be written")]
    ReadBack,
}

/// What a patch says about itself, but for what follows from its content.
#[derive(Debug, Clone, PartialEq)]
pub struct Draft {
    /// Its name, for people.
    pub name: String,
    /// The line of patches that it belongs to.
    pub series: String,
    /// Its place in the series, from 1.
    pub sequence: u64,
    /// Ids of the patches that it replaces.
    pub supersedes: Vec<Sha256>,
    /// When it was made.
    pub created: Timestamp,
    /// What made it.
    pub tool: Tool,
    /// What it is made for; tensors in the order of the edits.
    pub base: Base,
    /// What it gives; tensors in the order of the edits.
    pub result: ResultBinding,
    /// How it was made: no floats, write them as strings.
    pub creation: Map<String, Value>,
}

/// A patch without signatures, ready to be signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsigned {
    manifest: Vec<u8>,
    payload: Vec<u8>,
}

impl Draft {
    /// Encodes everything and reads it back. A sketch goes with the level `descendant`.
    ///
    /// # Errors
    /// The first rule broken, as a reader would report it.
    pub fn assemble(
        self,
        edits: &Edits,
        residual: Option<&Residual>,
        sketch: Option<&Sketch>,
    ) -> Result<Unsigned, WriteError> {
        self.assemble_from(Payload::write(edits, residual, sketch)?, edits, residual, sketch)
    }

    /// The same with the section table and payload that [`Payload::write`] gave.
    ///
    /// # Errors
    /// As [`Draft::assemble`].
    pub fn assemble_from(
        self,
        (sections, payload): (Vec<SectionEntry>, Vec<u8>),
        edits: &Edits,
        residual: Option<&Residual>,
        sketch: Option<&Sketch>,
    ) -> Result<Unsigned, WriteError> {
        let Self { name, series, sequence, supersedes, created, tool, base, result, creation } = self;
        let manifest = Manifest {
            format: FormatVersion::CURRENT,
            name,
            series,
            sequence,
            supersedes,
            created,
            tool,
            requires: Vec::new(),
            content_root: Manifest::compute_content_root(&sections),
            sections,
            base,
            result,
            creation,
            extensions: Map::new(),
        };
        let bytes = manifest.to_bytes()?;
        let back = Payload::read(&manifest, &payload)?;
        match (&back.edits, back.residual.as_ref(), back.sketch.as_ref()) == (edits, residual, sketch) {
            true => Ok(Unsigned { manifest: bytes, payload }),
            false => Err(WriteError::ReadBack),
        }
    }
}

impl Unsigned {
    /// The manifest's bytes.
    pub fn manifest(&self) -> &[u8] {
        &self.manifest
    }

    /// What signatures are to be made over.
    pub fn signing_input(&self) -> Vec<u8> {
        signing_input(&self.manifest)
    }

    /// The patch's name for machines, whoever signs it.
    pub fn patch_id(&self) -> Sha256 {
        patch_id(&self.manifest)
    }

    /// The patch file.
    ///
    /// # Errors
    /// Two records of one key, or a part over its cap.
    pub fn seal(&self, signatures: &[SignatureRecord]) -> Result<Vec<u8>, ContainerError> {
        Container::write(&self.manifest, signatures, &self.payload, FormatVersion::CURRENT)
    }
}
