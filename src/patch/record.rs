//! Apply records: what was applied to a checkpoint, kept inside it.
//!
//! `nestpatch/NNNN.json` is an in-toto Statement whose subjects are the touched tensors once patched; beside it,
//! `NNNN.nestpatch` is the patch itself, so that reverting needs nothing else (and `NNNN.residual`, where the patch has
//! no residual of its own). Numbers count from 1 without gaps: the
//! records are a stack.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::checkpoint::{CheckpointError, STATE_FOLDER, read_bounded};
use crate::digest::{Blake3, Sha256};
use crate::format::manifest::Tool;
use crate::format::statement::{Fault, Statement};
use crate::format::{Level, Timestamp};
use crate::tensor::TensorName;
use crate::trust::Signer;

/// `predicateType` of an apply record.
pub const PREDICATE_TYPE: &str = "urn:nestpatch:apply-record:v1";
/// The longest record accepted, in bytes: two digests for each of 32,768 tensors with long names.
const MAX_BYTES: u64 = 32 << 20;
/// The most records on one checkpoint.
const MAX_RECORDS: u32 = 9999;

/// Why the records of a checkpoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// A file cannot be read or written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A record is not what this tool writes.
    #[error("{}: not an apply record", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// A member of a record is wrong.
    #[error("{}: {what}: expected {expected}, found {found}", path.display())]
    Rule {
        /// The file.
        path: PathBuf,
        /// Which member.
        what: &'static str,
        /// What it must be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// No patch is applied.
    #[error("{}: no patch is applied", dir.display())]
    None {
        /// The checkpoint.
        dir: PathBuf,
    },
    /// The stack is full.
    #[error("{}: expected at most {MAX_RECORDS} applied patches", dir.display())]
    Full {
        /// The checkpoint.
        dir: PathBuf,
    },
}

/// One applied patch. A record is a note, not a proof: what it says is checked against the weights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its place in the stack, from 1.
    pub number: u32,
    /// When it was applied.
    pub applied: Timestamp,
    /// By which program.
    pub tool: Tool,
    /// How closely the base was compared.
    pub level: Level,
    /// The patch.
    pub patch: AppliedPatch,
    /// Whose signatures held when it was applied.
    pub signers: Vec<SignedBy>,
    /// The touched tensors as they were before.
    pub base: Vec<TensorDigest>,
    /// Digest of `NNNN.residual` beside the record, where the patch itself carries no residual.
    pub residual: Option<Blake3>,
}

/// The patch that was applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppliedPatch {
    /// Its id.
    pub id: Sha256,
    /// Its name.
    pub name: String,
    /// The series it belongs to.
    pub series: String,
    /// Its number in the series.
    pub sequence: u64,
    /// Bytes of the copy beside the record.
    pub length: u64,
    /// Digest of the copy beside the record.
    pub blake3: Blake3,
}

/// A trusted person and the key they signed with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedBy {
    /// The name by which the one who applied knew them.
    pub person: String,
    /// The key's id.
    pub key_id: Sha256,
}

impl From<&Signer> for SignedBy {
    fn from(signer: &Signer) -> Self {
        Self { person: signer.person.clone(), key_id: signer.key_id }
    }
}

impl fmt::Display for SignedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (key {})", self.person, self.key_id.short())
    }
}

/// A tensor and its binding digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorDigest {
    /// The tensor.
    pub name: TensorName,
    /// Its digest.
    pub blake3: Blake3,
}

#[derive(Serialize, Deserialize)]
struct Subject {
    name: TensorName,
    digest: SubjectDigest,
}

#[derive(Serialize, Deserialize)]
struct SubjectDigest {
    blake3: Blake3,
}

impl Record {
    /// The plain name of the record's file.
    pub fn file_name(&self) -> String {
        file_name(self.number)
    }

    /// The plain name of the patch beside it.
    pub fn patch_name(&self) -> String {
        format!("{:04}.nestpatch", self.number)
    }

    /// The plain name of the residual beside it.
    pub fn residual_name(&self) -> String {
        format!("{:04}.residual", self.number)
    }

    /// The plain names of all its files.
    pub(super) fn files(&self) -> Vec<String> {
        let residual = self.residual.map(|_| self.residual_name());
        residual.into_iter().chain([self.patch_name(), self.file_name()]).collect()
    }

    /// The record's bytes; `result` are the touched tensors once patched.
    pub(super) fn to_bytes(&self, result: Vec<TensorDigest>) -> Result<Vec<u8>, RecordError> {
        let subject =
            |tensor: TensorDigest| Subject { name: tensor.name, digest: SubjectDigest { blake3: tensor.blake3 } };
        let subject = result.into_iter().map(subject).collect();
        let statement = Statement::new(PREDICATE_TYPE, subject, self);
        let failed = |source| RecordError::Json { path: PathBuf::from(self.file_name()), source };
        let mut bytes = serde_json::to_vec_pretty(&statement).map_err(failed)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    fn read(path: PathBuf, number: u32) -> Result<Self, RecordError> {
        let bytes = read_bounded(&path, MAX_BYTES)?;
        let parsed = serde_json::from_slice::<Statement<Subject, Self>>(&bytes);
        let statement = parsed.map_err(|source| RecordError::Json { path: path.clone(), source })?;
        let rule = |what, expected: &str, found: String| {
            let expected = expected.to_owned();
            Err(RecordError::Rule { path: path.clone(), what, expected, found })
        };
        if let Some(Fault { what, expected, found }) = statement.fault(PREDICATE_TYPE) {
            return rule(what, expected, found);
        }
        if statement.predicate.number != number {
            return rule("number", &number.to_string(), statement.predicate.number.to_string());
        }
        Ok(statement.predicate)
    }
}

/// The records of a checkpoint folder, oldest first.
///
/// # Errors
/// One cannot be read, or is missing in between.
pub fn records(dir: &Path) -> Result<Vec<Record>, RecordError> {
    let state = dir.join(STATE_FOLDER);
    let last = last_number(&state)?;
    (1..=last).map(|number| Record::read(state.join(file_name(number)), number)).collect()
}

/// The number of the next record.
pub(super) fn next_number(dir: &Path) -> Result<u32, RecordError> {
    match last_number(&dir.join(STATE_FOLDER))? {
        last if last < MAX_RECORDS => Ok(last + 1),
        _ => Err(RecordError::Full { dir: dir.to_owned() }),
    }
}

fn last_number(state: &Path) -> Result<u32, RecordError> {
    if !state.is_dir() {
        return Ok(0);
    }
    let listing = fs::read_dir(state).map_err(CheckpointError::io("list", state))?;
    let mut last = 0;
    for entry in listing {
        let name = entry.map_err(CheckpointError::io("list", state))?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".json")?.parse::<u32>().ok());
        last = last.max(number.filter(|number| file_name(*number).as_str() == name).unwrap_or(0));
    }
    Ok(last)
}

fn file_name(number: u32) -> String {
    format!("{number:04}.json")
}
