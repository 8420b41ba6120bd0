//! What an edit does to a tensor of a checkpoint, worked out without writing anything.

use crate::checkpoint::{BindError, Cells, Checkpoint, CheckpointError, Progress, TensorInfo, Vector};
use crate::fold::{FoldError, fold_row, residual_row};
use crate::format::binding::{LengthError, RowsHasher, TensorHasher};
use crate::format::manifest::{BaseTensor, ResultTensor};
use crate::format::residual::{Residual, ResidualBuilder, ResidualError};
use crate::format::{Edit, Edits, SketchError, TensorSketcher};
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

/// Works out both sides of an edit, and adds its rows to `residual` and to the sketch, if there is one. Reads the tensor once; holds its touched rows.
pub(super) fn measure(
    checkpoint: &Checkpoint,
    tensor: &TensorInfo,
    edit: &Edit,
    (residual, mut sketch): (&mut ResidualBuilder, Option<&mut TensorSketcher<'_>>),
    progress: &dyn Progress,
) -> Result<Effect, EffectError> {
    let mut vectors = Vec::new();
    let (mut old_rows, mut new_rows) = (RowsHasher::new(edit), RowsHasher::new(edit));
    each_fold(checkpoint, tensor, edit, residual, |cells, old, new| {
        old_rows.update(old);
        new_rows.update(new);
        vectors.push((cells, new.to_vec()));
        sketch.as_mut().map_or(Ok(()), |sketch| sketch.push(old))
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
        each_fold(checkpoint, tensor, edit, &mut builder, |_, _, _| Ok(()))?;
    }
    Ok(builder.finish(edits)?)
}

fn each_fold(
    checkpoint: &Checkpoint,
    tensor: &TensorInfo,
    edit: &Edit,
    residual: &mut ResidualBuilder,
    mut visit: impl FnMut(Cells, &[u8], &[u8]) -> Result<(), SketchError>,
) -> Result<(), EffectError> {
    let mut new = Vec::new();
    checkpoint.each_vector(tensor, edit, |Vector { row, cells, delta }, old| {
        new.clear();
        new.extend_from_slice(old);
        let wrong = |source| EffectError::Fold { tensor: edit.tensor().clone(), row, source };
        fold_row(edit.dtype(), &mut new, delta).map_err(wrong)?;
        residual_row(edit.dtype(), old, &new, delta, residual).map_err(wrong)?;
        Ok(visit(cells, old, &new)?)
    })
}
