//! What an edit does to a tensor of a checkpoint, worked out without writing anything.

use crate::checkpoint::{BindError, Checkpoint, CheckpointError, Progress, TensorInfo, Vector, in_parallel};
use crate::fold::{FoldError, fold_row, residual_row};
use crate::format::binding::{LengthError, RowsHasher, TensorHasher};
use crate::format::manifest::{BaseTensor, ResultTensor};
use crate::format::residual::{Residual, ResidualBuilder, ResidualError};
use crate::format::{Edit, Edits, Sketch, SketchError, TensorSketcher, Tolerance};
use crate::tensor::TensorName;

/// Why an effect cannot be worked out.
#[derive(Debug, thiserror::Error)]
pub enum EffectError {
    /// A weight, delta or result that cannot be folded.
    #[error("tensor {tensor}, row {row}")]
    Fold {
        /// The tensor.
        tensor: TensorName,
        /// The row.
        row: u32,
        /// What is wrong with it.
        source: FoldError,
    },
    /// The checkpoint cannot be read.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The residual does not fit the edits.
    #[error(transparent)]
    Residual(#[from] ResidualError),
    /// The base's touched rows have no sketch.
    #[error(transparent)]
    Sketch(#[from] SketchError),
}

impl From<LengthError> for EffectError {
    fn from(error: LengthError) -> Self {
        Self::Bind(error.into())
    }
}

impl From<CheckpointError> for EffectError {
    fn from(error: CheckpointError) -> Self {
        Self::Bind(error.into())
    }
}

/// Both sides of one edit.
#[derive(Debug)]
pub(super) struct Effect {
    /// The tensor as it is.
    pub(super) base: BaseTensor,
    /// The tensor once folded.
    pub(super) result: ResultTensor,
}

/// Works out both sides of an edit. Reads the tensor once; holds its touched rows.
pub(super) fn sides(
    checkpoint: &Checkpoint,
    tensor: &TensorInfo,
    edit: &Edit,
    progress: &dyn Progress,
) -> Result<Effect, EffectError> {
    let mut vectors = Vec::new();
    let (mut old_rows, mut new_rows) = (RowsHasher::new(edit), RowsHasher::new(edit));
    each_fold(checkpoint, tensor, edit, |vector, old, new| {
        old_rows.update(old);
        new_rows.update(new);
        vectors.push((vector.cells, new.to_vec()));
        Ok(())
    })?;
    let hasher = TensorHasher::new(edit.tensor(), edit.dtype(), edit.shape());
    let (mut before, mut after) = (hasher.clone(), hasher);
    checkpoint.stream(tensor, progress, |begin, piece| {
        before.update(piece);
        vectors.iter().for_each(|(cells, vector)| cells.overlay(vector, begin, piece));
        after.update(piece);
    })?;
    let (name, dtype, shape) = (edit.tensor().clone(), edit.dtype(), edit.shape().clone());
    let (blake3, rows) = (before.finish()?, old_rows.finish()?);
    let base = BaseTensor { name: name.clone(), dtype, shape, blake3, rows };
    let (blake3, rows) = (after.finish()?, new_rows.finish()?);
    Ok(Effect { base, result: ResultTensor { name, blake3, rows } })
}

/// What reverts `edits` on this checkpoint, in the order of `tensors`. Reads only the touched rows.
pub(super) fn residual(
    checkpoint: &Checkpoint,
    tensors: &[&TensorInfo],
    edits: &Edits,
) -> Result<Residual, EffectError> {
    let mut builder = ResidualBuilder::new();
    for (tensor, edit) in tensors.iter().zip(edits) {
        each_fold(checkpoint, tensor, edit, |vector, old, new| {
            residual_row(edit.dtype(), old, new, vector.delta, &mut builder)
        })?;
    }
    Ok(builder.finish(edits)?)
}

/// What tells how far another checkpoint is from this one. Reads only the touched rows.
pub(super) fn sketch(
    checkpoint: &Checkpoint,
    tensors: &[&TensorInfo],
    edits: &Edits,
    tolerance: Tolerance,
) -> Result<Sketch, EffectError> {
    let pairs: Vec<_> = tensors.iter().zip(edits).collect();
    let sketches = in_parallel(&pairs, |(tensor, edit)| {
        let mut sketcher = TensorSketcher::new(edit);
        checkpoint.each_vector(tensor, edit, |_, row| Ok::<_, EffectError>(sketcher.push(row)?))?;
        Ok::<_, EffectError>(sketcher.finish()?)
    })?;
    Ok(Sketch::new(edits, tolerance, sketches)?)
}

/// Folds row by row, and shows each as it was and as it becomes.
fn each_fold(
    checkpoint: &Checkpoint,
    tensor: &TensorInfo,
    edit: &Edit,
    mut visit: impl FnMut(&Vector<'_>, &[u8], &[u8]) -> Result<(), FoldError>,
) -> Result<(), EffectError> {
    let mut new = Vec::new();
    checkpoint.each_vector(tensor, edit, |vector, old| {
        new.clear();
        new.extend_from_slice(old);
        let wrong = |source| EffectError::Fold { tensor: edit.tensor().clone(), row: vector.row, source };
        fold_row(edit.dtype(), &mut new, vector.delta).map_err(wrong)?;
        visit(&vector, old, &new).map_err(wrong)
    })
}
