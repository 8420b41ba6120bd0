//! Audit: whether a checkpoint is a base with a patch and nothing else, tensor by tensor (`spec/audit.md`).
//!
//! Both checkpoints are read once, in pieces, several tensors at a time. What is held does not grow with them: 2 MiB for
//! each thread, and what there is to say.

mod files;
mod folding;
mod rows;
mod statement;
mod tensors;

use std::collections::BTreeMap;

use serde::Serialize;

use super::record::SignedBy;
use super::{PatchError, VerifiedPatch};
use crate::checkpoint::{Checkpoint, Progress, TensorInfo, in_parallel};
use crate::digest::{Blake3, Sha256};
use crate::format::binding::CheckpointHasher;
use crate::tensor::TensorName;

pub use files::{ConfigFinding, FileDifference, FileFinding, Files};
pub use rows::{MAX_NAMED, Rows, Unit};
pub use statement::{AUDIT_PREDICATE_TYPE, CHECKPOINT_DIGEST_NAME, statement};
pub use tensors::{Finding, Form};

use tensors::{Compared, Item, Pair, Touch};

/// How much is claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The tensors, config.json and all other files.
    Everything,
    /// The tensors; other files are listed as not compared.
    TensorsOnly,
}

/// The outcome of an audit; it decides the exit code.
#[must_use = "a checkpoint is the base with the patch only if this says so"]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Every tensor is what base and patch give, and every other file is the base's.
    Proven,
    /// Every tensor is what base and patch give; other files were not compared.
    TensorsProven,
    /// Every tensor is what base and patch give, but config.json or other files differ.
    FilesDiffer,
    /// Every tensor is the base's, the touched ones too.
    NotApplied,
    /// The base has the patch, and the patched checkpoint has not.
    Swapped,
    /// Some tensor is not what base and patch give.
    Differs,
}

/// What an audit found.
#[derive(Debug, Clone, Serialize)]
pub struct Audit {
    /// The outcome.
    pub verdict: Verdict,
    /// The patch.
    pub patch: AuditedPatch,
    /// The checkpoint that the patch was to be applied to.
    pub base: AuditedCheckpoint,
    /// The checkpoint that was to be the outcome.
    pub patched: AuditedCheckpoint,
    /// What was compared.
    pub compared: Counts,
    /// The touched tensors, and whether they are the publisher's.
    pub touched: Vec<TouchedTensor>,
    /// Every tensor that is not what base and patch give.
    pub findings: Vec<TensorFinding>,
    /// Files other than the weights.
    pub files: Files,
}

/// The patch of an audit.
#[derive(Debug, Clone, Serialize)]
pub struct AuditedPatch {
    /// Its id.
    pub id: Sha256,
    /// Its name.
    pub name: String,
    /// The series it belongs to.
    pub series: String,
    /// Its number in the series.
    pub sequence: u64,
    /// Whose signatures hold and count.
    pub signers: Vec<SignedBy>,
}

/// One side of an audit.
#[derive(Debug, Clone, Serialize)]
pub struct AuditedCheckpoint {
    /// The checkpoint digest.
    pub digest: Blake3,
    /// How many tensors it has.
    pub tensors: u64,
    /// Their length in bytes.
    pub bytes: u64,
    /// What the touched tensors are.
    pub holds: Holds,
}

/// Which of the publisher's digests the touched tensors of a checkpoint have, all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Holds {
    /// Those of the base that the patch was made for.
    Base,
    /// Those of the patched checkpoint.
    Result,
    /// Neither.
    Other,
}

/// What was compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Different names of tensors in base, patched checkpoint and patch.
    pub tensors: u64,
    /// Tensors that the patch touches.
    pub touched_tensors: u64,
    /// Rows that the patch touches.
    pub touched_rows: u64,
    /// The most rows that are named of a tensor, of each kind.
    pub most_rows_named: u64,
}

/// A tensor that the patch touches.
#[derive(Debug, Clone, Serialize)]
pub struct TouchedTensor {
    /// The tensor.
    pub tensor: TensorName,
    /// Touched rows.
    pub rows: u64,
    /// Whether the base's has the publisher's digest of the base.
    pub is_publishers_base: bool,
    /// Whether the patched one has the publisher's digest of the result.
    pub is_publishers_result: bool,
}

/// A tensor that is not what base and patch give.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TensorFinding {
    /// The tensor.
    pub tensor: TensorName,
    /// Why not.
    #[serde(flatten)]
    pub finding: Finding,
}

/// Compares every tensor of `patched` with what `base` and the patch give, and the other files with the base's.
///
/// # Errors
/// A checkpoint cannot be read, or a weight file changed meanwhile. Whatever differs is a finding, not an error.
pub fn audit(
    patch: &VerifiedPatch,
    base: &Checkpoint,
    patched: &Checkpoint,
    scope: Scope,
    progress: &dyn Progress,
) -> Result<Audit, PatchError> {
    patch.contents().require_understood()?;
    let items = items(patch, base, patched);
    progress.stage("comparing tensors", items.iter().map(Item::bytes).sum());
    let pair = Pair { base, patched, progress };
    let compared = in_parallel(&items, |item| pair.compare(item))?;
    let files = files::compare(base, patched, scope, progress)?;
    for checkpoint in [base, patched] {
        checkpoint.check_unchanged()?;
    }
    Ok(Audit::new(patch, &items, &compared, files))
}

/// The tensors of both checkpoints and of the patch, in the order of their names.
fn items<'a>(patch: &'a VerifiedPatch, base: &'a Checkpoint, patched: &'a Checkpoint) -> Vec<Item<'a>> {
    let contents = patch.contents();
    let sides = contents.manifest.base.tensors.iter().zip(&contents.manifest.result.tensors);
    let touches = contents.edits.iter().zip(sides).map(|(edit, (base, result))| Touch { edit, base, result });
    let mut items: BTreeMap<&TensorName, Item<'a>> = BTreeMap::new();
    let empty = |name| Item { name, base: None, patched: None, touch: None };
    for tensor in base.tensors() {
        items.entry(&tensor.name).or_insert_with_key(|name| empty(name)).base = Some(tensor);
    }
    for tensor in patched.tensors() {
        items.entry(&tensor.name).or_insert_with_key(|name| empty(name)).patched = Some(tensor);
    }
    for touch in touches {
        items.entry(touch.edit.tensor()).or_insert_with_key(|name| empty(name)).touch = Some(touch);
    }
    items.into_values().collect()
}

impl Audit {
    fn new(patch: &VerifiedPatch, items: &[Item<'_>], compared: &[Compared], files: Files) -> Self {
        let both = || items.iter().zip(compared);
        let findings: Vec<TensorFinding> = both()
            .filter_map(|(item, compared)| {
                Some(TensorFinding { tensor: item.name.clone(), finding: compared.finding.clone()? })
            })
            .collect();
        let base = AuditedCheckpoint::of(both().map(|(item, compared)| (item, item.base, compared.base)));
        let patched = AuditedCheckpoint::of(both().map(|(item, compared)| (item, item.patched, compared.patched)));
        let touched: Vec<TouchedTensor> = both().filter_map(|(item, compared)| item.touched(compared)).collect();
        let same = both().all(|(_, compared)| compared.base == compared.patched);
        let verdict = match (findings.is_empty(), base.holds, patched.holds) {
            (true, ..) => files.verdict(),
            (false, Holds::Result, Holds::Base) => Verdict::Swapped,
            _ if same => Verdict::NotApplied,
            _ => Verdict::Differs,
        };
        let count = |number: usize| number as u64;
        let compared = Counts {
            tensors: count(items.len()),
            touched_tensors: count(touched.len()),
            touched_rows: touched.iter().map(|one| one.rows).sum(),
            most_rows_named: count(MAX_NAMED),
        };
        Self { verdict, patch: AuditedPatch::of(patch), base, patched, compared, touched, findings, files }
    }
}

impl AuditedPatch {
    fn of(patch: &VerifiedPatch) -> Self {
        let manifest = &patch.contents().manifest;
        Self {
            id: patch.contents().id(),
            name: manifest.name.clone(),
            series: manifest.series.clone(),
            sequence: manifest.sequence,
            signers: patch.signers().iter().map(SignedBy::from).collect(),
        }
    }
}

impl AuditedCheckpoint {
    /// Of its tensors, in the order of their names, with their content digests.
    fn of<'a>(tensors: impl Iterator<Item = (&'a Item<'a>, Option<&'a TensorInfo>, Option<Blake3>)>) -> Self {
        let mut hasher = CheckpointHasher::default();
        let (mut count, mut bytes, mut is_base, mut is_result) = (0, 0, true, true);
        for (item, tensor, content) in tensors {
            if let (Some(tensor), Some(content)) = (tensor, content) {
                hasher.add(&tensor.name, tensor.dtype.as_str(), &tensor.shape, content);
                count += 1;
                bytes += tensor.length;
            }
            if let Some(touch) = item.touch {
                is_base &= content == Some(touch.base.blake3);
                is_result &= content == Some(touch.result.blake3);
            }
        }
        let holds = match (is_base, is_result) {
            (true, _) => Holds::Base,
            (false, true) => Holds::Result,
            (false, false) => Holds::Other,
        };
        Self { digest: hasher.finish(), tensors: count, bytes, holds }
    }
}

impl Item<'_> {
    fn touched(&self, compared: &Compared) -> Option<TouchedTensor> {
        let touch = self.touch?;
        Some(TouchedTensor {
            tensor: self.name.clone(),
            rows: touch.edit.rows().len() as u64,
            is_publishers_base: compared.base == Some(touch.base.blake3),
            is_publishers_result: compared.patched == Some(touch.result.blake3),
        })
    }
}
