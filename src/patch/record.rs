//! Apply records: what was applied to a checkpoint, kept inside it.
//!
//! `nestpatch/NNNN.json` is an in-toto Statement whose subjects are the touched tensors once patched; beside it,
//! `NNNN.nestpatch` is the patch itself, so that reverting needs nothing else, `NNNN.marks` tells every patched row,
//! `NNNN.residual` takes them back where the patch has no residual for this base, and `NNNN.dsse.json` is the record
//! signed, if that was asked for. Numbers count from 1: the records are a stack, with gaps where one was taken out.
//! `spec/records.md` has the members.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::checkpoint::{CheckpointError, Depth, Digests, STATE_FOLDER, Sides, is_state_file, read_bounded};
use crate::digest::{Blake3, Sha256};
use crate::format::limits::MAX_ENVELOPE_BYTES;
use crate::format::manifest::{Manifest, Tool};
use crate::format::statement::{Fault, Statement};
use crate::format::{Envelope, EnvelopeError, Level, Timestamp};
use crate::tensor::TensorName;
use crate::trust::Signer;

/// `predicateType` of an apply record.
pub const PREDICATE_TYPE: &str = "urn:nestpatch:apply-record:v1";
/// Ending of the record's own name, and of what lies beside it.
pub(super) const RECORD: &str = "json";
/// The patch as it was applied.
pub(super) const PATCH: &str = "nestpatch";
/// What tells the patched rows.
pub(super) const MARKS: &str = "marks";
/// What takes the rows back, where the patch does not.
pub(super) const RESIDUAL: &str = "residual";
/// The record, signed.
pub(super) const SIGNED: &str = "dsse.json";
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
    /// A signed record is no envelope.
    #[error("{}: not a signed record", path.display())]
    Envelope {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: EnvelopeError,
    },
    /// It is longer than a reader accepts.
    #[error("{}: {found} bytes, at most {limit} are allowed", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Its length.
        found: usize,
        /// The cap.
        limit: usize,
    },
    /// It says that a tensor was not the base's, and it is what the publisher's result is: then the record's word alone
    /// decides what is restored.
    #[error(
        "{}: says that {tensor} was not the publisher's base, though it became the publisher's result, and nobody who is trusted signed that",
        path.display()
    )]
    Doubtful {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: TensorName,
    },
    /// Its tensors are not those of the patch beside it.
    #[error("{}: expected the tensors that the patch beside it touches, found others", path.display())]
    Tensors {
        /// The file.
        path: PathBuf,
    },
    /// No patch is applied.
    #[error("{}: no patch is applied", dir.display())]
    None {
        /// The checkpoint.
        dir: PathBuf,
    },
    /// No record of that number.
    #[error("{}: no record {number}", dir.display())]
    NoSuch {
        /// The checkpoint.
        dir: PathBuf,
        /// The number.
        number: u32,
    },
    /// The stack is full.
    #[error("{}: expected at most {MAX_RECORDS} applied patches", dir.display())]
    Full {
        /// The checkpoint.
        dir: PathBuf,
    },
}

/// One applied patch. A record is a note, not a proof: what it says is checked against the weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Its place in the stack, from 1.
    pub number: u32,
    /// When it was applied.
    pub applied: Timestamp,
    /// By which program.
    pub tool: Tool,
    /// How closely the base was compared.
    pub level: Level,
    /// How much of it was.
    pub compared: Depth,
    /// Why the patch was applied to a base that its publisher does not permit, in the words of whoever did.
    #[serde(rename = "override")]
    pub override_binding: Option<String>,
    /// How far the touched tensors were from the publisher's, in millionths, where that was estimated.
    pub distances: BTreeMap<TensorName, u64>,
    /// The patch.
    pub patch: AppliedPatch,
    /// Whose signatures held when it was applied.
    pub signers: Vec<SignedBy>,
    /// The touched rows as they were before.
    pub base: Vec<RowsDigest>,
    /// Touched tensors that earlier patches touched too: as a whole they are what none of the patches alone makes of them.
    pub shared: BTreeSet<TensorName>,
    /// Digest of `NNNN.residual`, where there is one.
    pub residual: Option<Blake3>,
    /// Digest of `NNNN.marks`.
    pub marks: Blake3,
    /// The touched rows once patched: the Statement's subjects.
    #[serde(skip)]
    pub result: Vec<RowsDigest>,
    /// The same record signed, if that was asked for.
    #[serde(skip)]
    pub signed: Option<Envelope>,
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

/// A tensor and the digest of its touched rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowsDigest {
    /// The tensor.
    pub name: TensorName,
    /// Digest of the rows that the patch touches.
    pub rows: Blake3,
}

#[derive(Serialize, Deserialize)]
struct Subject {
    name: TensorName,
    digest: SubjectDigest,
}

#[derive(Serialize, Deserialize)]
struct SubjectDigest {
    /// As in `base.tensors` of a manifest, and no digest of a file: hence a name of its own.
    nestpatch_rows_v1: Blake3,
}

impl Record {
    /// The plain name of the record's file.
    pub fn file_name(&self) -> String {
        named(self.number, RECORD)
    }

    /// The plain name of the patch beside it.
    pub fn patch_name(&self) -> String {
        named(self.number, PATCH)
    }

    /// The plain name of the residual beside it.
    pub fn residual_name(&self) -> String {
        named(self.number, RESIDUAL)
    }

    /// The plain name of the file that tells the patched rows.
    pub fn marks_name(&self) -> String {
        named(self.number, MARKS)
    }

    /// The plain name of the signed record.
    pub fn signed_name(&self) -> String {
        named(self.number, SIGNED)
    }

    /// What it says the touched rows held on both sides.
    pub(super) fn sides(&self) -> Sides {
        let digests = |list: &[RowsDigest]| {
            list.iter().map(|tensor| Digests { rows: Some(tensor.rows), whole: None }).collect::<Vec<_>>()
        };
        Sides { base: digests(&self.base), result: digests(&self.result) }
    }

    /// Refuses a tensor that was another than the publisher's base and became the publisher's result: whoever can write
    /// records could have what they like restored, on a checkpoint that is what was signed.
    pub(super) fn refuse_doubt(&self, manifest: &Manifest, path: &Path) -> Result<(), RecordError> {
        let signed = manifest.base.tensors.iter().zip(&manifest.result.tensors);
        let doubtful = signed
            .zip(self.base.iter().zip(&self.result))
            .find(|((base, result), (was, became))| became.rows == result.rows && was.rows != base.rows);
        match doubtful {
            None => Ok(()),
            Some((_, (was, _))) => Err(RecordError::Doubtful { path: path.to_owned(), tensor: was.name.clone() }),
        }
    }

    /// The record's bytes.
    pub(super) fn to_bytes(&self) -> Result<Vec<u8>, RecordError> {
        let digest = |nestpatch_rows_v1| SubjectDigest { nestpatch_rows_v1 };
        let subject = |tensor: &RowsDigest| Subject { name: tensor.name.clone(), digest: digest(tensor.rows) };
        let statement = Statement::new(PREDICATE_TYPE, self.result.iter().map(subject).collect(), self);
        let failed = |source| RecordError::Json { path: PathBuf::from(self.file_name()), source };
        let mut bytes = serde_json::to_vec_pretty(&statement).map_err(failed)?;
        bytes.push(b'\n');
        let (found, limit) = (bytes.len(), MAX_BYTES as usize);
        match found <= limit {
            true => Ok(bytes),
            false => Err(RecordError::TooLong { path: PathBuf::from(self.file_name()), found, limit }),
        }
    }

    fn read(state: &Path, number: u32) -> Result<Self, RecordError> {
        let path = state.join(named(number, RECORD));
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
        let rows = |subject: Subject| RowsDigest { name: subject.name, rows: subject.digest.nestpatch_rows_v1 };
        let result = statement.subject.into_iter().map(rows).collect();
        let record = Self { result, ..statement.predicate };
        let signed = read_signed(&state.join(record.signed_name()), &bytes)?;
        Ok(Self { signed, ..record })
    }
}

/// The envelope at `path`, if there is one: it must hold the very bytes of the record.
fn read_signed(path: &Path, record: &[u8]) -> Result<Option<Envelope>, RecordError> {
    if path.symlink_metadata().is_err() {
        return Ok(None);
    }
    let envelope = Envelope::parse(&read_bounded(path, MAX_ENVELOPE_BYTES as u64)?)
        .map_err(|source| RecordError::Envelope { path: path.to_owned(), source })?;
    if envelope.statement == record {
        return Ok(Some(envelope));
    }
    let (expected, found) = ("the bytes of the record beside it".to_owned(), "others".to_owned());
    Err(RecordError::Rule { path: path.to_owned(), what: "payload", expected, found })
}

/// The records of a checkpoint folder, oldest first.
///
/// # Errors
/// One cannot be read.
pub fn records(dir: &Path) -> Result<Vec<Record>, RecordError> {
    let state = dir.join(STATE_FOLDER);
    numbers(&state)?.into_iter().map(|number| Record::read(&state, number)).collect()
}

/// The number of the next record: above every file that bears one, for a record may have been lost.
pub(super) fn next_number(dir: &Path) -> Result<u32, RecordError> {
    let last = names(&dir.join(STATE_FOLDER))?.iter().filter_map(|name| number_of(name)).max();
    match last.unwrap_or(0) {
        last if last < MAX_RECORDS => Ok(last + 1),
        _ => Err(RecordError::Full { dir: dir.to_owned() }),
    }
}

/// The plain names of all files of a record.
pub(super) fn files_of(dir: &Path, number: u32) -> Result<Vec<String>, RecordError> {
    let mut names = names(&dir.join(STATE_FOLDER))?;
    names.retain(|name| is_state_file(Path::new(name)) && number_of(name) == Some(number));
    Ok(names)
}

/// Plain names of files in the state folder that belong to no record and no journal.
pub(super) fn unrecorded(dir: &Path) -> Result<Vec<String>, RecordError> {
    let state = dir.join(STATE_FOLDER);
    let recorded = numbers(&state)?;
    let mut names = names(&state)?;
    let lost = |name: &str| number_of(name).is_some_and(|number| !recorded.contains(&number));
    names.retain(|name| !is_state_file(Path::new(name)) || lost(name));
    Ok(names)
}

/// The number that a file's name begins with.
fn number_of(name: &str) -> Option<u32> {
    let (number, _) = name.split_once('.')?;
    number.parse().ok().filter(|parsed: &u32| format!("{parsed:04}") == number)
}

fn numbers(state: &Path) -> Result<BTreeSet<u32>, RecordError> {
    let number = |name: String| name.strip_suffix(".json")?.parse::<u32>().ok().filter(|it| named(*it, RECORD) == name);
    Ok(names(state)?.into_iter().filter_map(number).filter(|number| (1..=MAX_RECORDS).contains(number)).collect())
}

fn names(state: &Path) -> Result<Vec<String>, RecordError> {
    if !state.is_dir() {
        return Ok(vec![]);
    }
    let listing = fs::read_dir(state).map_err(CheckpointError::io("list", state))?;
    let mut names = Vec::new();
    for entry in listing {
        let name = entry.map_err(CheckpointError::io("list", state))?.file_name();
        names.extend(name.into_string());
    }
    names.sort();
    Ok(names)
}

/// The plain name of a record's file with this ending.
pub(super) fn named(number: u32, ending: &str) -> String {
    format!("{number:04}.{ending}")
}
