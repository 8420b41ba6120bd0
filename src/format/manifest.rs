//! The manifest: an in-toto Statement that says what a patch holds, what it is for, and what it gives.
//!
//! A parsed manifest is never written again: its bytes are what was signed (`spec/format.md`, *Manifest*).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::digest::{Blake3, Sha256};
use crate::format::json::{self, NotStrict};
use crate::format::limits::*;
use crate::format::timestamp::Timestamp;
use crate::tensor::{Dtype, Shape, TensorName};

/// `_type` of the Statement.
pub const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
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

/// Names known to this version, and any other name, kept: an open enumeration.
macro_rules! open_enum {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(from = "String", into = "String")]
        pub enum $name {
            $($(#[$doc])* $variant,)*
            /// A name that this version does not know.
            Other(String),
        }

        impl $name {
            /// The name as written.
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$variant => $text,)*
                    Self::Other(name) => name,
                }
            }

            /// Whether this version knows it.
            pub fn is_known(&self) -> bool {
                !matches!(self, Self::Other(_))
            }
        }

        impl From<String> for $name {
            fn from(name: String) -> Self {
                match name.as_str() {
                    $($text => Self::$variant,)*
                    _ => Self::Other(name),
                }
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.as_str().to_owned()
            }
        }
    };
}

open_enum! {
    /// What a section holds.
    Kind {
        /// Which rows of which tensors change, and their clusters. Critical.
        Rows = "rows",
        /// The shared deltas. Critical.
        Deltas = "deltas",
        /// What undoes the fold on the exact base. Not critical.
        Residual = "residual",
    }
}

open_enum! {
    /// How a section is stored.
    Codec {
        /// As it is.
        Raw = "raw",
        /// One zstd frame.
        Zstd = "zstd",
        /// Two byte planes, the most significant first, then one zstd frame.
        Planes2Zstd = "planes2+zstd",
        /// Four byte planes, then one zstd frame.
        Planes4Zstd = "planes4+zstd",
        /// 16-bit words rotated left by one bit, then as `planes2+zstd`.
        Float2Zstd = "float2+zstd",
        /// 32-bit words rotated left by one bit, then as `planes4+zstd`.
        Float4Zstd = "float4+zstd",
    }
}

open_enum! {
    /// How closely a checkpoint must match the base.
    Level {
        /// Every touched tensor is the base's, byte for byte.
        Exact = "exact",
        /// A fine-tuned child of the base, within a signed tolerance.
        Descendant = "descendant",
        /// Any checkpoint of the base's architecture.
        Architecture = "architecture",
    }
}

impl Kind {
    /// Whether a reader must understand sections of this kind to apply the patch; `None` where the writer decides.
    pub fn critical(&self) -> Option<bool> {
        match self {
            Self::Rows | Self::Deltas => Some(true),
            Self::Residual => Some(false),
            Self::Other(_) => None,
        }
    }
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

/// The in-toto Statement round a manifest.
#[derive(Serialize, Deserialize)]
struct Statement<M> {
    _type: String,
    subject: Vec<Subject>,
    #[serde(rename = "predicateType")]
    predicate_type: String,
    predicate: M,
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
        let statement: Statement<Self> =
            serde_json::from_slice(bytes).map_err(|error| ManifestError::Structure { reason: error.to_string() })?;
        rule("_type", STATEMENT_TYPE, &statement._type)?;
        rule("predicateType", PREDICATE_TYPE, &statement.predicate_type)?;
        let manifest = statement.predicate;
        manifest.check()?;
        if statement.subject != manifest.subjects() {
            return Err(broken("subject", "the name and digests of each section, in order", "another list"));
        }
        Ok(manifest)
    }

    /// Writes the manifest's bytes and reads them back, so that nothing is written that would be refused.
    ///
    /// # Errors
    /// The first rule broken.
    pub fn to_bytes(&self) -> Result<Vec<u8>, ManifestError> {
        let statement = Statement {
            _type: STATEMENT_TYPE.to_owned(),
            subject: self.subjects(),
            predicate_type: PREDICATE_TYPE.to_owned(),
            predicate: self,
        };
        let bytes =
            serde_json::to_vec(&statement).map_err(|error| ManifestError::Structure { reason: error.to_string() })?;
        match Self::parse(&bytes)? == *self {
            true => Ok(bytes),
            false => Err(broken("extensions", "members with names of their own", "a name already in use")),
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

    fn check(&self) -> Result<(), ManifestError> {
        if !self.format.is_readable() {
            let FormatVersion { major, writer_minor, .. } = FormatVersion::CURRENT;
            let found = format!("major {}, min_reader_minor {}", self.format.major, self.format.min_reader_minor);
            return Err(broken("format", &format!("major {major}, min_reader_minor up to {writer_minor}"), &found));
        }
        label("name", &self.name)?;
        label("series", &self.series)?;
        label("tool.name", &self.tool.name)?;
        label("tool.version", &self.tool.version)?;
        if self.sequence == 0 {
            return Err(broken("sequence", "a number from 1", "0"));
        }
        at_most("supersedes", MAX_SUPERSEDES, self.supersedes.len())?;
        distinct("supersedes", self.supersedes.iter())?;
        self.requires.iter().try_for_each(|rule| label("requires", rule))?;
        distinct("requires", self.requires.iter())?;
        let creation = serde_json::to_vec(&self.creation).map_or(usize::MAX, |bytes| bytes.len());
        at_most("bytes of creation", MAX_CREATION_BYTES, creation)?;
        self.check_sections()?;
        self.check_base()
    }

    fn check_sections(&self) -> Result<(), ManifestError> {
        at_most("sections", MAX_SECTIONS, self.sections.len())?;
        distinct("section names", self.sections.iter().map(|entry| &entry.name))?;
        self.sections.iter().try_for_each(check_section)?;
        let known = self.sections.iter().map(|entry| &entry.kind).filter(|kind| kind.is_known());
        distinct("section kinds", known)?;
        for kind in [Kind::Rows, Kind::Deltas] {
            if self.section(&kind).is_none() {
                return Err(broken("sections", &format!("one of kind {:?}", kind.as_str()), "none"));
            }
        }
        let root = Self::compute_content_root(&self.sections);
        rule("content_root", &root.to_string(), &self.content_root.to_string())
    }

    fn check_base(&self) -> Result<(), ManifestError> {
        label("base.name", &self.base.name)?;
        label("base.architecture.model_type", &self.base.architecture.model_type)?;
        at_most("base.architecture.config", MAX_CONFIG_KEYS, self.base.architecture.config.len())?;
        for (key, value) in &self.base.architecture.config {
            label("base.architecture.config", key)?;
            at_most("bytes of a base.architecture.config value", MAX_CONFIG_VALUE_BYTES, value.len())?;
        }
        self.base.levels.iter().try_for_each(|level| label("base.levels", level.as_str()))?;
        distinct("base.levels", self.base.levels.iter())?;
        if !self.base.levels.contains(&Level::Exact) {
            return Err(broken("base.levels", "a list with \"exact\"", &format!("{:?}", self.base.levels)));
        }
        let names = |tensors: &[BaseTensor]| tensors.iter().map(|tensor| tensor.name.clone()).collect::<Vec<_>>();
        let names = names(&self.base.tensors);
        at_most("base.tensors", MAX_EDITS, names.len())?;
        if names.is_empty() || !names.is_sorted_by(|before, name| before < name) {
            return Err(broken("base.tensors", "at least one, by strictly ascending name", "another order or none"));
        }
        match names.iter().eq(self.result.tensors.iter().map(|tensor| &tensor.name)) {
            true => Ok(()),
            false => Err(broken("result.tensors", "the tensors of base.tensors, in order", "another list")),
        }
    }
}

fn check_section(entry: &SectionEntry) -> Result<(), ManifestError> {
    label("section name", &entry.name)?;
    label("section kind", entry.kind.as_str())?;
    label("section codec", entry.codec.as_str())?;
    let what = |field: &str| format!("section {:?}: {field}", entry.name);
    if entry.kind.critical().is_some_and(|critical| critical != entry.critical) {
        return Err(broken(&what("critical"), &(!entry.critical).to_string(), &entry.critical.to_string()));
    }
    for (field, length) in [("stored.length", entry.stored.length), ("content.length", entry.content.length)] {
        if length > MAX_SECTION_BYTES {
            return Err(broken(&what(field), &format!("at most {MAX_SECTION_BYTES}"), &length.to_string()));
        }
    }
    let same = (entry.stored.length, entry.stored.blake3) == (entry.content.length, entry.content.blake3);
    if entry.codec == Codec::Raw && !same {
        return Err(broken(&what("stored"), "the length and digest of content, as codec is raw", "others"));
    }
    Ok(())
}

fn label(what: &str, text: &str) -> Result<(), ManifestError> {
    if !text.is_empty() && text.len() <= MAX_LABEL_BYTES && !text.chars().any(char::is_control) {
        return Ok(());
    }
    let found: String = text.chars().take(80).collect();
    Err(broken(what, &format!("1 to {MAX_LABEL_BYTES} bytes of printable text"), &format!("{found:?}")))
}

fn distinct<T: Ord + std::fmt::Debug>(what: &str, items: impl Iterator<Item = T>) -> Result<(), ManifestError> {
    let mut seen = BTreeSet::new();
    for item in items {
        let found = format!("{item:?} twice");
        if !seen.insert(item) {
            return Err(broken(what, "each once", &found));
        }
    }
    Ok(())
}

fn at_most(what: &str, limit: usize, found: usize) -> Result<(), ManifestError> {
    if found <= limit { Ok(()) } else { Err(broken(what, &format!("at most {limit}"), &found.to_string())) }
}

fn rule(what: &str, expected: &str, found: &str) -> Result<(), ManifestError> {
    let cut: String = found.chars().take(80).collect();
    if expected == found { Ok(()) } else { Err(broken(what, &format!("{expected:?}"), &format!("{cut:?}"))) }
}

fn broken(what: &str, expected: &str, found: &str) -> ManifestError {
    ManifestError::Rule { what: what.to_owned(), expected: expected.to_owned(), found: found.to_owned() }
}
