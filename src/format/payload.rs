//! The payload: sections back to back, each checked as stored, decoded, checked as decoded, then read.
//!
//! Give it only a manifest that is trusted: nothing here asks who signed.

use crate::digest::{Blake3, Sha256};
use crate::format::edit::Edits;
use crate::format::frame::{self, FrameError};
use crate::format::manifest::{BaseTensor, Codec, Content, Kind, Manifest, SectionEntry, Stored};
use crate::format::reader::Reader;
use crate::format::residual::Residual;
use crate::format::section::{self, SectionError};
use crate::tensor::Dtype;

/// Why a payload is refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PayloadError {
    /// Bytes missing or left over.
    #[error("payload: expected {expected} bytes, found {found}")]
    Length {
        /// What the manifest's sections add up to.
        expected: u64,
        /// What is there.
        found: u64,
    },
    /// A section whose bytes are not those that were signed.
    #[error("section {section:?}: {what}: expected {expected}, found {found}")]
    Digest {
        /// The section's name.
        section: String,
        /// `stored blake3`, `content blake3` or `content sha256`.
        what: &'static str,
        /// The manifest's.
        expected: String,
        /// The bytes'.
        found: String,
    },
    /// A section whose stored bytes do not decode.
    #[error("section {section:?}: {error}")]
    Frame {
        /// The section's name.
        section: String,
        /// Why not.
        error: FrameError,
    },
    /// A section whose content breaks a rule.
    #[error(transparent)]
    Section(#[from] SectionError),
    /// Edits of other tensors than those the manifest binds.
    #[error("edit {index}: expected the tensor of base.tensors {expected}, found {found}")]
    Base {
        /// Zero-based.
        index: usize,
        /// The manifest's tensor.
        expected: String,
        /// The edit's tensor.
        found: String,
    },
    /// A section that must be there.
    #[error("payload: expected a section of kind {kind:?}, found none")]
    Missing {
        /// The kind.
        kind: &'static str,
    },
}

/// What this version reads from a payload.
#[derive(Debug, Clone, PartialEq)]
pub struct Payload {
    /// What the patch changes.
    pub edits: Edits,
    /// What undoes it on the exact base, if the publisher ships it.
    pub residual: Option<Residual>,
}

impl Payload {
    /// Reads the payload that `manifest` describes. Sections of unknown kinds are checked as stored and left alone.
    ///
    /// # Errors
    /// The first rule broken.
    pub fn read(manifest: &Manifest, payload: &[u8]) -> Result<Self, PayloadError> {
        let sections = cut(manifest, payload)?;
        let find = |kind: &Kind| sections.iter().find(|(entry, _)| entry.kind == *kind);
        let content = |kind: &Kind| find(kind).map(|(entry, stored)| load(entry, stored)).transpose();
        let rows = content(&Kind::Rows)?.ok_or(PayloadError::Missing { kind: "rows" })?;
        let deltas = content(&Kind::Deltas)?.ok_or(PayloadError::Missing { kind: "deltas" })?;
        let edits = section::read_edits(&rows, &deltas)?;
        check_base(&manifest.base.tensors, &edits)?;
        // Ancillary: in a codec of a later version it is ignored, but for its stored digest.
        let readable = manifest.section(&Kind::Residual).is_some_and(|entry| entry.codec.is_known());
        let residual = readable
            .then(|| content(&Kind::Residual))
            .transpose()?
            .flatten()
            .map(|bytes| Residual::from_bytes(&edits, &bytes).map_err(SectionError::from))
            .transpose()?;
        Ok(Self { edits, residual })
    }

    /// The section table and the payload's bytes.
    ///
    /// # Errors
    /// Content over a cap.
    pub fn write(edits: &Edits, residual: Option<&Residual>) -> Result<(Vec<SectionEntry>, Vec<u8>), PayloadError> {
        let (rows, deltas) = section::write_edits(edits)?;
        let widths = |mut dtypes: Box<dyn Iterator<Item = Dtype> + '_>| dtypes.all(|dtype| dtype.size() == 4);
        let float = match widths(Box::new(edits.iter().map(|edit| edit.deltas().dtype()))) {
            true => Codec::Float4Zstd,
            false => Codec::Float2Zstd,
        };
        let planes = match widths(Box::new(edits.iter().map(|edit| edit.dtype()))) {
            true => Codec::Planes4Zstd,
            false => Codec::Planes2Zstd,
        };
        let mut sections = vec![(Kind::Rows, Codec::Zstd, rows), (Kind::Deltas, float, deltas)];
        sections.extend(residual.map(|residual| (Kind::Residual, planes, residual.to_bytes())));
        let (mut table, mut payload) = (Vec::new(), Vec::new());
        for (kind, codec, content) in sections {
            let (entry, stored) = store(kind, codec, &content)?;
            table.push(entry);
            payload.extend(stored);
        }
        Ok((table, payload))
    }
}

/// Each section of `manifest` with its stored bytes, their digests checked.
///
/// # Errors
/// Bytes missing or left over; a digest that differs.
pub fn cut<'m, 'p>(
    manifest: &'m Manifest,
    payload: &'p [u8],
) -> Result<Vec<(&'m SectionEntry, &'p [u8])>, PayloadError> {
    let expected = manifest.sections.iter().map(|entry| entry.stored.length).sum();
    let length = PayloadError::Length { expected, found: payload.len() as u64 };
    let mut reader = Reader::new(payload);
    let mut sections = Vec::with_capacity(manifest.sections.len());
    for entry in &manifest.sections {
        let stored = reader.sub(entry.stored.length).ok_or_else(|| length.clone())?;
        same(entry, "stored blake3", &entry.stored.blake3, &Blake3::of(stored))?;
        sections.push((entry, stored));
    }
    if reader.is_empty() { Ok(sections) } else { Err(length) }
}

/// A section's content, from its stored bytes.
///
/// # Errors
/// An unknown codec, a frame that breaks a rule, a digest that differs.
pub fn load(entry: &SectionEntry, stored: &[u8]) -> Result<Vec<u8>, PayloadError> {
    let content = frame::load(&entry.codec, stored, entry.content.length)
        .map_err(|error| PayloadError::Frame { section: entry.name.clone(), error })?;
    same(entry, "content blake3", &entry.content.blake3, &Blake3::of(&content))?;
    same(entry, "content sha256", &entry.content.sha256, &Sha256::of(&content))?;
    Ok(content)
}

/// A section's table line and stored bytes, from its content. Its name is its kind's.
///
/// # Errors
/// A codec that does not suit the content.
pub fn store(kind: Kind, codec: Codec, content: &[u8]) -> Result<(SectionEntry, Vec<u8>), PayloadError> {
    let name = kind.as_str().to_owned();
    let stored = frame::store(&codec, content).map_err(|error| PayloadError::Frame { section: name.clone(), error })?;
    let entry = SectionEntry {
        critical: kind.critical().unwrap_or(false),
        name,
        kind,
        codec,
        stored: Stored { length: stored.len() as u64, blake3: Blake3::of(&stored) },
        content: Content { length: content.len() as u64, blake3: Blake3::of(content), sha256: Sha256::of(content) },
    };
    Ok((entry, stored))
}

fn same<T: PartialEq + ToString>(
    entry: &SectionEntry,
    what: &'static str,
    expected: &T,
    found: &T,
) -> Result<(), PayloadError> {
    if expected == found {
        return Ok(());
    }
    let (expected, found) = (expected.to_string(), found.to_string());
    Err(PayloadError::Digest { section: entry.name.clone(), what, expected, found })
}

/// The manifest binds exactly the tensors that are edited.
fn check_base(tensors: &[BaseTensor], edits: &Edits) -> Result<(), PayloadError> {
    let tensors = tensors.iter().map(|tensor| (tensor.name.as_str(), tensor.dtype, &tensor.shape));
    let edits = edits.iter().map(|edit| (edit.tensor().as_str(), edit.dtype(), edit.shape()));
    let show = |tensor: Option<(&str, Dtype, &crate::tensor::Shape)>| match tensor {
        Some((name, dtype, shape)) => format!("{name:?} {dtype} {shape}"),
        None => "none".to_owned(),
    };
    let (mut tensors, mut edits) = (tensors, edits);
    for index in 0.. {
        match (tensors.next(), edits.next()) {
            (None, None) => break,
            (expected, found) if expected != found => {
                return Err(PayloadError::Base { index, expected: show(expected), found: show(found) });
            }
            _ => {}
        }
    }
    Ok(())
}
