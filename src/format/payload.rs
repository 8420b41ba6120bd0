//! The payload: sections back to back, each checked as stored, decoded, checked as decoded, then read.
//!
//! Nothing here asks who signed: [`Payload::read`] is for a manifest that is trusted, [`Payload::read_unverified`] for
//! any.

use std::{panic, thread};

use crate::digest::{Blake3, Sha256};
use crate::format::edit::Edits;
use crate::format::frame::{self, FrameError};
use crate::format::limits::{MAX_ROWS_SECTION_BYTES, MAX_UNVERIFIED_BYTES, MAX_UNVERIFIED_RATIO};
use crate::format::manifest::{BaseTensor, Codec, Content, Kind, Manifest, SectionEntry, Stored};
use crate::format::reader::Reader;
use crate::format::residual::{Residual, ResidualError};
use crate::format::section::{self, Rows, SectionError};
use crate::format::sketch::{Sketch, SketchError};
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
    /// A section over its kind's cap.
    #[error("section {section:?}: expected at most {limit} bytes decoded, found {found}")]
    TooLong {
        /// The section's name.
        section: String,
        /// The cap.
        limit: u64,
        /// What the section table says.
        found: u64,
    },
    /// A section that a few bytes make large, in a patch that nobody vouches for.
    #[error("section {section:?} decodes to {found} bytes: expected at most {limit}, as nobody vouches for the patch")]
    Unverified {
        /// The section's name.
        section: String,
        /// What its stored length allows.
        limit: u64,
        /// What it would decode to.
        found: u64,
    },
}

/// What this version reads from a payload.
#[derive(Debug, Clone, PartialEq)]
pub struct Payload {
    /// What the patch changes.
    pub edits: Edits,
    /// What undoes it on the exact base, if the publisher ships it.
    pub residual: Option<Residual>,
    /// By which a descendant of the base is told, if the publisher permits any.
    pub sketch: Option<Sketch>,
}

impl Payload {
    /// Reads the payload that `manifest` describes. Sections of unknown kinds are checked as stored and left alone.
    ///
    /// A few bytes may decode to as much as [`crate::format::limits`] allow, 1 GiB a section: for signed patches only.
    ///
    /// # Errors
    /// The first rule broken.
    pub fn read(manifest: &Manifest, payload: &[u8]) -> Result<Self, PayloadError> {
        Self::of(manifest, &cut(manifest, payload)?)
    }

    /// The same of a payload that nobody vouches for yet: all but the residual is bounded by what is stored.
    ///
    /// # Errors
    /// The first rule broken; also a section that decodes to far more than is stored.
    pub fn read_bounded(manifest: &Manifest, payload: &[u8]) -> Result<Self, PayloadError> {
        let sections = cut(manifest, payload)?;
        check_expansions(&sections)?;
        Self::of(manifest, &sections)
    }

    fn of(manifest: &Manifest, sections: &[Section<'_, '_>]) -> Result<Self, PayloadError> {
        let shown = Self::without_residual(manifest, sections)?;
        let residual = find_known(sections, &Kind::Residual)
            .map(|(entry, stored)| Residual::from_bytes(&shown.edits, &load(entry, stored)?).map_err(section_error))
            .transpose()?;
        Ok(Self { residual, ..shown })
    }

    fn without_residual(manifest: &Manifest, sections: &[Section<'_, '_>]) -> Result<Self, PayloadError> {
        let edits = read_edits(manifest, sections)?;
        let sketch = find_known(sections, &Kind::Sketch)
            .map(|(entry, stored)| Sketch::from_bytes(&edits, &load(entry, stored)?).map_err(section_error))
            .transpose()?;
        Ok(Self { edits, residual: None, sketch })
    }

    /// Reads the edits of a payload that nobody vouches for. A `residual` is checked as stored and not decoded.
    ///
    /// # Errors
    /// The first rule broken; also a section that decodes to far more than is stored.
    pub fn read_unverified(manifest: &Manifest, payload: &[u8]) -> Result<Edits, PayloadError> {
        Ok(Self::read_shown(manifest, payload)?.edits)
    }

    /// The same with the sketch: all that is shown of a patch that nobody vouches for.
    ///
    /// # Errors
    /// The first rule broken; also a section that decodes to far more than is stored.
    pub fn read_shown(manifest: &Manifest, payload: &[u8]) -> Result<Self, PayloadError> {
        let sections = cut(manifest, payload)?;
        check_expansions(&sections)?;
        Self::without_residual(manifest, &sections)
    }

    /// The section table and the payload's bytes.
    ///
    /// # Errors
    /// Content over a cap.
    pub fn write(
        edits: &Edits,
        residual: Option<&Residual>,
        sketch: Option<&Sketch>,
    ) -> Result<(Vec<SectionEntry>, Vec<u8>), PayloadError> {
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
        sections.extend(sketch.map(|sketch| (Kind::Sketch, Codec::Float4Zstd, sketch.to_bytes())));
        let (mut table, mut payload) = (Vec::new(), Vec::new());
        for section in store_all(sections) {
            let (entry, stored) = section?;
            table.push(entry);
            payload.extend(stored);
        }
        Ok((table, payload))
    }
}

/// Stores each section on a thread of its own: compressing the residual takes longer than everything else.
fn store_all(sections: Vec<(Kind, Codec, Vec<u8>)>) -> Vec<Result<(SectionEntry, Vec<u8>), PayloadError>> {
    thread::scope(|scope| {
        let sections = sections.into_iter();
        let threads: Vec<_> =
            sections.map(|(kind, codec, content)| scope.spawn(move || store(kind, codec, &content))).collect();
        threads.into_iter().map(|one| one.join().unwrap_or_else(|panic| panic::resume_unwind(panic))).collect()
    })
}

/// A line of the section table with its stored bytes.
pub type Section<'m, 'p> = (&'m SectionEntry, &'p [u8]);

fn find<'m, 'p>(sections: &[Section<'m, 'p>], kind: &Kind) -> Option<Section<'m, 'p>> {
    sections.iter().find(|(entry, _)| entry.kind == *kind).copied()
}

/// The same if its codec is known: in one of a later version, residual and sketch are ignored but for their stored digest.
fn find_known<'m, 'p>(sections: &[Section<'m, 'p>], kind: &Kind) -> Option<Section<'m, 'p>> {
    find(sections, kind).filter(|(entry, _)| entry.codec.is_known())
}

/// `rows` first: it fixes the lengths of the others before they are decoded.
fn read_edits(manifest: &Manifest, sections: &[Section<'_, '_>]) -> Result<Edits, PayloadError> {
    let required = |kind: Kind, name| find(sections, &kind).ok_or(PayloadError::Missing { kind: name });
    let (rows, stored_rows) = required(Kind::Rows, "rows")?;
    let (deltas, stored_deltas) = required(Kind::Deltas, "deltas")?;
    check_rows_length(rows)?;
    let rows = Rows::from_bytes(&load(rows, stored_rows)?)?;
    let (expected, found) = (rows.deltas_length(), deltas.content.length);
    if expected != found {
        return Err(SectionError::DeltasLength { expected, found }.into());
    }
    if let Some((entry, _)) = find_known(sections, &Kind::Residual) {
        let (expected, found) = (rows.residual_length(), entry.content.length);
        if expected != found {
            return Err(section_error(ResidualError::Length { expected, found }));
        }
    }
    if let Some((entry, _)) = find_known(sections, &Kind::Sketch) {
        let (expected, found) = (rows.sketch_length(), entry.content.length);
        if expected != found {
            return Err(section_error(SketchError::Length { expected, found }));
        }
    }
    let edits = rows.with_deltas(&load(deltas, stored_deltas)?)?;
    check_base(&manifest.base.tensors, &edits)?;
    Ok(edits)
}

fn check_rows_length(rows: &SectionEntry) -> Result<(), PayloadError> {
    let (limit, found) = (MAX_ROWS_SECTION_BYTES as u64, rows.content.length);
    match found <= limit {
        true => Ok(()),
        false => Err(PayloadError::TooLong { section: rows.name.clone(), limit, found }),
    }
}

/// What `rows`, `deltas` and `sketch` may decode to while nobody vouches for them.
fn check_expansions(sections: &[Section<'_, '_>]) -> Result<(), PayloadError> {
    find(sections, &Kind::Rows).map_or(Ok(()), |(entry, _)| check_rows_length(entry))?;
    let bounded = [Kind::Rows, Kind::Deltas].iter().filter_map(|kind| find(sections, kind));
    let bounded = bounded.chain(find_known(sections, &Kind::Sketch));
    bounded.map(|(entry, _)| entry).try_for_each(check_expansion)
}

/// Stops a bomb: nobody has signed for what it would take.
fn check_expansion(entry: &SectionEntry) -> Result<(), PayloadError> {
    let limit = MAX_UNVERIFIED_BYTES.max(entry.stored.length.saturating_mul(MAX_UNVERIFIED_RATIO));
    let found = entry.content.length;
    match found <= limit {
        true => Ok(()),
        false => Err(PayloadError::Unverified { section: entry.name.clone(), limit, found }),
    }
}

fn section_error(error: impl Into<SectionError>) -> PayloadError {
    error.into().into()
}

/// Each section of `manifest` with its stored bytes, their digests checked.
///
/// # Errors
/// Bytes missing or left over; a digest that differs.
pub fn cut<'m, 'p>(manifest: &'m Manifest, payload: &'p [u8]) -> Result<Vec<Section<'m, 'p>>, PayloadError> {
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
