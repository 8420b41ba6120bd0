//! Extract: two checkpoints that differ in rows with shared deltas become a patch, whatever program added the deltas.
//!
//! Nothing but the two checkpoints is needed. Each changed weight says in which interval its delta lies
//! (`interval.rs`); rows whose intervals have common numbers in every column got the same delta (`clusters.rs`), and any
//! such number gives every row bit for bit. What no row patch says is omitted and listed, never dropped in silence.

mod clusters;
mod differences;
mod feed_forward;
mod files;
mod interval;
mod omitted;
mod rows;

use std::fmt;

use serde_json::{Map, Value, json};

use super::PatchError;
use super::assemble::{About, assemble};
use crate::checkpoint::{Checkpoint, CheckpointError, Progress, in_parallel};
use crate::digest::Blake3;
use crate::format::limits::{MAX_EDITS, MAX_ROWS};
use crate::format::{Edit, EditError, Edits, Manifest, ManifestError, Unsigned};
use crate::tensor::TensorName;
use differences::{Difference, compare};
use feed_forward::is_feed_forward;

pub use omitted::{Changed, Omitted, Reason};

/// Why nothing was extracted.
#[derive(Debug, thiserror::Error)]
pub enum ExtractError {
    /// The checkpoints hold the same tensors.
    #[error("the two checkpoints do not differ: {tensors} tensors, all the same")]
    Same {
        /// Tensors of each.
        tensors: usize,
    },
    /// Some differences are no row patch, and leaving them out was not asked for.
    #[error("{}", Refusal { omitted, tensors: *tensors })]
    NotExpressed {
        /// Every tensor whose difference cannot be in the patch.
        omitted: Vec<Omitted>,
        /// How many others changed.
        tensors: usize,
    },
    /// The edits break a rule of the format.
    #[error(transparent)]
    Edit(#[from] EditError),
    /// A checkpoint or the patch.
    #[error(transparent)]
    Patch(#[from] PatchError),
    /// A recovered delta does not give the tuned row. A fault of this program.
    #[error("tensor {tensor}, row {row}: the recovered delta does not give the tuned row")]
    Row {
        /// The tensor.
        tensor: TensorName,
        /// The row.
        row: u32,
    },
    /// The recovered edits do not give the tuned checkpoint. A fault of this program.
    #[error("tensor {tensor}: the recovered deltas give BLAKE3 {}, the tuned checkpoint has {}", found.short(), expected.short())]
    Outcome {
        /// The tensor.
        tensor: TensorName,
        /// The tuned checkpoint's digest.
        expected: Blake3,
        /// What the patch gives.
        found: Blake3,
    },
}

impl From<CheckpointError> for ExtractError {
    fn from(error: CheckpointError) -> Self {
        Self::Patch(error.into())
    }
}

impl From<ManifestError> for ExtractError {
    fn from(error: ManifestError) -> Self {
        Self::Patch(PatchError::Write(error.into()))
    }
}

/// A refusal in a sentence.
struct Refusal<'a> {
    omitted: &'a [Omitted],
    tensors: usize,
}

impl fmt::Display for Refusal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (omitted, all) = (self.omitted.len(), self.omitted.len() + self.tensors);
        write!(f, "{omitted} of {all} differing tensors cannot be in a patch of shared row deltas")
    }
}

/// What is done about differences that no row patch expresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inexpressible {
    /// They are an error.
    Refuse,
    /// They are left out, and listed.
    Omit,
}

/// What was extracted.
#[derive(Debug)]
pub struct Extracted {
    /// The patch, unsigned.
    pub patch: Unsigned,
    /// What it changes.
    pub edits: Edits,
    /// Changed elements, in the order of the edits.
    pub changed: Vec<Changed>,
    /// What it leaves out.
    pub omitted: Vec<Omitted>,
}

/// Finds the shared deltas that take `base` to `tuned`, and makes an unsigned patch of them. Writes nothing.
///
/// `tuned_name` and the counts go into `about.creation`, replacing what was there. Reads both checkpoints once, and the
/// touched tensors of both again; holds changed rows only, of one tensor a thread, at about six times their size.
///
/// # Errors
/// No difference; differences that cannot be expressed, unless they are to be omitted; those of [`assemble()`].
pub fn extract(
    base: &Checkpoint,
    tuned: &Checkpoint,
    inexpressible: Inexpressible,
    (about, tuned_name): (About, &str),
    progress: &dyn Progress,
) -> Result<Extracted, ExtractError> {
    let (differences, mut omitted) = compare(base, tuned, progress)?;
    if differences.is_empty() && omitted.is_empty() {
        return Err(ExtractError::Same { tensors: base.tensors().len() });
    }
    let solved = in_parallel(&select(differences, &mut omitted), |difference| rows::solve(base, tuned, difference))?;
    let (mut edits, mut changed) = (Vec::new(), Vec::new());
    for solved in solved {
        match solved {
            Ok((edit, count)) => (edits.push(edit), changed.push(count)).0,
            Err(reason) => omitted.push(reason),
        }
    }
    omitted.sort_by(|one, other| one.tensor.cmp(&other.tensor));
    if edits.is_empty() || (inexpressible == Inexpressible::Refuse && !omitted.is_empty()) {
        return Err(ExtractError::NotExpressed { omitted, tensors: edits.len() });
    }
    let edits = Edits::new(edits)?;
    let creation = creation(tuned_name, &edits, &changed, &omitted);
    let patch = assemble(base, &edits, About { creation, ..about }, progress)?;
    check_outcome(tuned, &patch, &edits, progress)?;
    Ok(Extracted { patch, edits, changed, omitted })
}

/// The names of files beside the weights that the two folders do not have alike; no patch carries them.
///
/// # Errors
/// A folder or file cannot be read.
pub fn other_files(base: &Checkpoint, tuned: &Checkpoint) -> Result<Vec<String>, CheckpointError> {
    files::differing(base, tuned)
}

/// Keeps what may be rows with shared deltas; the rest is omitted.
fn select<'c>(differences: Vec<Difference<'c>>, omitted: &mut Vec<Omitted>) -> Vec<Difference<'c>> {
    let (mut kept, mut rows) = (Vec::new(), 0);
    for difference in differences {
        let more = difference.vectors.as_ref().map_or(0, |(_, rows)| rows.len());
        let full = rows + more > MAX_ROWS || kept.len() >= MAX_EDITS;
        let reason = reason(&difference).or_else(|| full.then_some(Reason::Full));
        match reason {
            None => {
                rows += more;
                kept.push(difference);
            }
            Some(reason) => omitted.push(Omitted {
                tensor: difference.base.name.clone(),
                reason,
                changed: Some(difference.changed),
            }),
        }
    }
    kept
}

fn reason(difference: &Difference<'_>) -> Option<Reason> {
    let tensor = difference.base;
    if tensor.dtype.editable().is_none() {
        return Some(Reason::Type { found: tensor.dtype });
    }
    if tensor.shape.dims().len() < 2 {
        return Some(Reason::NoMatrix { shape: tensor.shape.clone() });
    }
    if !is_feed_forward(&tensor.name) {
        return Some(Reason::NotFeedForward);
    }
    difference.vectors.is_none().then_some(Reason::Dense { shape: tensor.shape.clone() })
}

fn creation(tuned: &str, edits: &Edits, changed: &[Changed], omitted: &[Omitted]) -> Map<String, Value> {
    let clusters: usize = edits.iter().map(Edit::k).sum();
    let elements: u64 = changed.iter().map(|changed| changed.elements).sum();
    let creation = json!({
        "method": "extract",
        "tuned": tuned,
        "tensors": edits.len(),
        "rows": edits.rows(),
        "clusters": clusters,
        "changed_elements": elements,
        "omitted": omitted,
    });
    creation.as_object().cloned().unwrap_or_default()
}

/// The patched tensors must be the tuned ones, whatever went before.
fn check_outcome(
    tuned: &Checkpoint,
    patch: &Unsigned,
    edits: &Edits,
    progress: &dyn Progress,
) -> Result<(), ExtractError> {
    let manifest = Manifest::parse(patch.manifest())?;
    let pairs: Vec<_> = edits.iter().zip(&manifest.result.tensors).collect();
    let tensors = pairs.iter().map(|(edit, _)| tuned.tensor(edit.tensor()));
    let length = tensors.map(|tensor| tensor.map_or(0, |tensor| tensor.length)).sum();
    progress.stage("checking the outcome", length);
    in_parallel(&pairs, |(edit, result)| {
        let tensor = tuned.tensor(edit.tensor())?;
        let expected = tuned.digest(tensor, progress).map_err(PatchError::from)?;
        match expected == result.blake3 {
            true => Ok(()),
            false => Err(ExtractError::Outcome { tensor: tensor.name.clone(), expected, found: result.blake3 }),
        }
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{Deltas, EditParts, Layout};
    use crate::tensor::{Dtype, Shape};

    /// A checkpoint of one tensor, and an edit of one of its rows.
    fn base() -> (tempfile::TempDir, Edit) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), "{\"model_type\": \"llama\"}").unwrap();
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![2, 2], &[0; 16]).unwrap();
        let bytes = safetensors::serialize([("m.mlp.w", view)], None).unwrap();
        std::fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
        let parts = EditParts {
            tensor: TensorName::new("m.mlp.w").unwrap(),
            dtype: Dtype::F32,
            shape: Shape::new([2, 2]).unwrap(),
            layout: Layout::Rows,
            rows: vec![1],
            clusters: vec![0],
            deltas: Deltas::new(Dtype::F32, 2, vec![1.0, 0.0]).unwrap(),
        };
        (dir, Edit::new(parts).unwrap())
    }

    /// The last check before anything leaves: whatever the edits, the patched tensor must be the tuned one.
    #[test]
    fn a_patch_that_gives_something_else_is_noticed() {
        let (dir, edit) = base();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let edits = Edits::new(vec![edit]).unwrap();
        let patch = assemble(&checkpoint, &edits, About::new("a", "a", "a"), &()).unwrap();
        let outcome = check_outcome(&checkpoint, &patch, &edits, &());
        assert!(matches!(outcome, Err(ExtractError::Outcome { .. })), "{outcome:?}");
    }

    #[test]
    fn what_is_beyond_a_patchs_size_is_omitted() {
        let (dir, _) = base();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let tensor = checkpoint.tensors().next().unwrap();
        let difference = |rows: usize| Difference {
            base: tensor,
            tuned: tensor,
            changed: Changed { rows: 1, elements: 1 },
            vectors: Some((Layout::Rows, vec![0; rows])),
        };
        let mut omitted = Vec::new();
        let kept = select(vec![difference(MAX_ROWS - 1), difference(2), difference(1)], &mut omitted);
        assert_eq!((kept.len(), omitted.len()), (2, 1));
        assert_eq!(omitted[0].reason, Reason::Full);
    }
}
