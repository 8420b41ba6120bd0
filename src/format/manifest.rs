//! The manifest: an in-toto Statement that says what a patch holds, what it is for, and what it gives.
//!
//! A parsed manifest is never written again: its bytes are what was signed (`spec/format.md`, *Manifest*).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::digest::{Blake3, Sha256};
use crate::format::json::{self, NotStrict};
use crate::format::limits::MAX_MANIFEST_BYTES;
pub use crate::format::names::{Codec, Kind, Level};
use crate::format::rules;
pub use crate::format::statement::STATEMENT_TYPE;
use crate::format::statement::{Fault, Statement};
use crate::format::timestamp::Timestamp;
use crate::tensor::{Dtype, Shape, TensorName};

/// `predicateType` of the Statement.
pub const PREDICATE_TYPE: &str = "urn:nestpatch:safety-patch:v1";
/// Domain of the content root.
pub const CONTENT_ROOT_CONTEXT: &str = "nestpatch v1 2026-11-24 content root";

/// Why manifest bytes are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Too many bytes.
    #[error("manifest: expected at most {MAX_MANIFEST_BYTES} bytes, found {found}")]
    TooLong {
        /// Its length.
        found: u64,
    },
    /// Not strict JSON.
    #[error("manifest: not strict JSON: {0}")]
    Json(#[from] NotStrict),
    /// Strict JSON of another structure: a member missing or of another type.
    #[error("manifest: {reason}")]
    Structure {
        /// What the JSON reader says, with line and column.
        reason: String,
    },
    /// A member that breaks a rule.
    #[error("manifest: {what}: expected {expected}, found {found}")]
    Rule {
        /// Which member.
        what: String,
        /// The rule.
        expected: String,
        /// What is there.
        found: String,
    },
}

/// Versions of the format, repeated from the header so that they are signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FormatVersion {
    /// Readers of another major version must refuse.
    pub major: u16,
    /// The lowest minor version of a reader that may apply the patch.
    pub min_reader_minor: u16,
    /// The minor version it was written to.
    pub writer_minor: u16,
}

impl FormatVersion {
    /// What this version writes; it reads every `min_reader_minor` up to its own `writer_minor`.
    pub const CURRENT: Self = Self { major: 1, min_reader_minor: 0, writer_minor: 0 };

    /// Whether this reader may read it.
    pub fn is_readable(self) -> bool {
        self.major == Self::CURRENT.major && (0..=Self::CURRENT.writer_minor).contains(&self.min_reader_minor)
    }
}

/// The program that made a patch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// A section's bytes as they lie in the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// How many bytes.
    pub length: u64,
    /// Their digest.
    pub blake3: Blake3,
}

/// A section's bytes once decoded: its identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// How many bytes.
    pub length: u64,
    /// Their digest.
    pub blake3: Blake3,
    /// Their digest for in-toto, OCI and model hubs.
    pub sha256: Sha256,
}

/// One line of the section table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SectionEntry {
    /// Unique within the patch; the subject's name.
    pub name: String,
    /// What it holds.
    pub kind: Kind,
    /// Whether a reader that does not know the kind must refuse to apply.
    pub critical: bool,
    /// How it is stored.
    pub codec: Codec,
    /// Its bytes in the payload.
    pub stored: Stored,
    /// Its bytes decoded.
    pub content: Content,
}

/// What fixes the base's forward pass.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Architecture {
    /// `model_type` of the base's config.json.
    pub model_type: String,
    /// Configuration key to value: [`crate::format::binding::architecture_config`].
    pub config: BTreeMap<String, String>,
}

/// One touched tensor of the base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseTensor {
    /// Its name.
    pub name: TensorName,
    /// Its element type.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Shape,
    /// [`crate::format::binding::TensorHasher`] over all of it.
    pub blake3: Blake3,
    /// [`crate::format::binding::RowsHasher`] over its touched rows.
    pub rows: Blake3,
}

/// What the patch is made for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Base {
    /// The base's name, for people.
    pub name: String,
    /// What fixes its forward pass.
    pub architecture: Architecture,
    /// Binding levels that the publisher permits; always `exact`.
    pub levels: Vec<Level>,
    /// Touched tensors, in the order of the edits.
    pub tensors: Vec<BaseTensor>,
    /// Members that this version does not know.
    #[serde(flatten)]
    pub extensions: Map<String, Value>,
}

/// One touched tensor once patched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResultTensor {
    /// Its name.
    pub name: TensorName,
    /// [`crate::format::binding::TensorHasher`] over all of it.
    pub blake3: Blake3,
    /// [`crate::format::binding::RowsHasher`] over its touched rows.
    pub rows: Blake3,
}

/// What applying the patch to the exact base gives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResultBinding {
    /// Touched tensors, in the order of the edits.
    pub tensors: Vec<ResultTensor>,
}

/// The predicate: everything a patch says about itself. Checked by [`Manifest::parse`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Versions of the format.
    pub format: FormatVersion,
    /// Its name, for people.
    pub name: String,
    /// The line of patches that it belongs to: sequence numbers count within it.
    pub series: String,
    /// Its place in the series, from 1.
    pub sequence: u64,
    /// Ids of the patches that it replaces.
    pub supersedes: Vec<Sha256>,
    /// When it was made, as the publisher says.
    pub created: Timestamp,
    /// What made it.
    pub tool: Tool,
    /// Rules beyond this version that a reader must know in order to apply; none are defined yet.
    pub requires: Vec<String>,
    /// The payload's sections, in order.
    pub sections: Vec<SectionEntry>,
    /// Digest over the decoded sections: equal content, whatever the compression, prose or signatures.
    pub content_root: Blake3,
    /// What it is made for.
    pub base: Base,
    /// What it gives.
    pub result: ResultBinding,
    /// How it was made: data for auditors, without floats.
    pub creation: Map<String, Value>,
    /// Members that this version does not know: signed, listed, without effect.
    #[serde(flatten)]
    pub extensions: Map<String, Value>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Subject {
    name: String,
    digest: SubjectDigest,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SubjectDigest {
    blake3: Blake3,
    sha256: Sha256,
}

impl Manifest {
    /// Reads manifest bytes: strict JSON, then structure, then every rule that needs nothing but the manifest.
    ///
    /// The result says what the bytes say, not that anybody signed them: see `trust::verify`.
    ///
    /// # Errors
    /// The first rule broken.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() as u64 > MAX_MANIFEST_BYTES {
            return Err(ManifestError::TooLong { found: bytes.len() as u64 });
        }
        json::check(bytes)?;
        let statement: Statement<Subject, Self> =
            serde_json::from_slice(bytes).map_err(|error| ManifestError::Structure { reason: error.to_string() })?;
        if let Some(Fault { what, expected, found }) = statement.fault(PREDICATE_TYPE) {
            return Err(rules::broken(what, &format!("{expected:?}"), &format!("{found:?}")));
        }
        let manifest = statement.predicate;
        manifest.check()?;
        if statement.subject != manifest.subjects() {
            return Err(rules::broken("subject", "the name and digests of each section, in order", "another list"));
        }
        Ok(manifest)
    }

    /// Writes the manifest's bytes and reads them back, so that nothing is written that would be refused.
    ///
    /// # Errors
    /// The first rule broken.
    pub fn to_bytes(&self) -> Result<Vec<u8>, ManifestError> {
        let statement = Statement::new(PREDICATE_TYPE, self.subjects(), self);
        let bytes =
            serde_json::to_vec(&statement).map_err(|error| ManifestError::Structure { reason: error.to_string() })?;
        match Self::parse(&bytes)? == *self {
            true => Ok(bytes),
            false => Err(rules::broken("extensions", "members with names of their own", "a name already in use")),
        }
    }

    /// The first section of `kind`.
    pub fn section(&self, kind: &Kind) -> Option<&SectionEntry> {
        self.sections.iter().find(|entry| entry.kind == *kind)
    }

    /// Everything that this version does not understand but must in order to apply the patch.
    pub fn not_understood(&self) -> Vec<String> {
        let required = self.requires.iter().map(|rule| format!("rule {rule:?}"));
        let unknown = |entry: &&SectionEntry| entry.critical && !(entry.kind.is_known() && entry.codec.is_known());
        let sections = self.sections.iter().filter(unknown).map(|entry| {
            let (kind, codec) = (entry.kind.as_str(), entry.codec.as_str());
            format!("critical section {:?} of kind {kind:?}, codec {codec:?}", entry.name)
        });
        required.chain(sections).collect()
    }

    /// The content root of these sections.
    pub fn compute_content_root(sections: &[SectionEntry]) -> Blake3 {
        let mut hasher = blake3::Hasher::new_derive_key(CONTENT_ROOT_CONTEXT);
        hasher.update(&(sections.len() as u64).to_le_bytes());
        for entry in sections {
            for text in [&entry.name, entry.kind.as_str()] {
                hasher.update(&(text.len() as u64).to_le_bytes());
                hasher.update(text.as_bytes());
            }
            hasher.update(&entry.content.length.to_le_bytes());
            hasher.update(entry.content.blake3.as_bytes());
        }
        hasher.finalize().into()
    }

    fn subjects(&self) -> Vec<Subject> {
        let digest = |content: &Content| SubjectDigest { blake3: content.blake3, sha256: content.sha256 };
        let subject = |entry: &SectionEntry| Subject { name: entry.name.clone(), digest: digest(&entry.content) };
        self.sections.iter().map(subject).collect()
    }
}
