//! How far a checkpoint's touched rows are from those that a sketch describes.

use super::binding::find_touched;
use super::mismatch::{BindError, Mismatch, MismatchKind, Side};
use super::{Checkpoint, TensorInfo, in_parallel};
use crate::format::binding::LengthError;
use crate::format::{Edit, Edits, Sketch, SketchError, TensorSketch, TensorSketcher};
use crate::tensor::TensorName;

/// One touched tensor's distance from the base, as a share of the norm of the base's rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Distance {
    /// The tensor.
    pub tensor: TensorName,
    /// An estimate; 0 where every touched row is the base's, infinite where numbers overflow or the base's rows are zero.
    pub distance: f64,
    /// Touched rows: the fewer, the rougher the estimate.
    pub rows: usize,
}

/// The distance of every touched tensor, in the order of the edits. Reads only the touched rows.
///
/// # Errors
/// Every tensor that is missing, of another type or shape, or has a touched row with NaN or infinity; the first that cannot
/// be read; a sketch of other edits.
pub fn distances(checkpoint: &Checkpoint, edits: &Edits, sketch: &Sketch) -> Result<Vec<Distance>, BindError> {
    let tensors = find_touched(checkpoint, edits, Side::Base)?;
    let mut touched = Vec::with_capacity(edits.len());
    for (index, (tensor, edit)) in tensors.into_iter().zip(edits).enumerate() {
        touched.push((tensor, edit, sketch_of(edit, sketch.tensors().get(index))?));
    }
    let (mut distances, mut mismatches) = (Vec::new(), Vec::new());
    for found in in_parallel(&touched, |(tensor, edit, base)| measure(checkpoint, tensor, edit, base))? {
        match found {
            Ok(distance) => distances.push(distance),
            Err(mismatch) => mismatches.push(mismatch),
        }
    }
    match mismatches.is_empty() {
        true => Ok(distances),
        false => Err(BindError::Mismatch { tensors: edits.len(), side: Side::Base, mismatches }),
    }
}

fn sketch_of<'s>(edit: &Edit, sketch: Option<&'s TensorSketch>) -> Result<&'s TensorSketch, LengthError> {
    let rows = sketch.map_or(0, TensorSketch::rows);
    let bytes = |rows: usize| rows as u64 * edit.row_bytes() as u64;
    let other =
        || LengthError { tensor: edit.tensor().to_string(), expected: bytes(edit.rows().len()), found: bytes(rows) };
    sketch.filter(|_| rows == edit.rows().len()).ok_or_else(other)
}

/// The distance of one tensor, or what keeps it from having one.
fn measure(
    checkpoint: &Checkpoint,
    tensor: &TensorInfo,
    edit: &Edit,
    base: &TensorSketch,
) -> Result<Result<Distance, Mismatch>, BindError> {
    let mut sketcher = TensorSketcher::new(edit);
    let mut wrong = None;
    checkpoint.each_vector(tensor, edit, |_, bytes| match sketcher.push(bytes) {
        Err(SketchError::NotFinite { row, column, .. }) => {
            wrong = wrong.take().or(Some(MismatchKind::NotFinite { row, column }));
            Ok(())
        }
        other => other.map_err(|_| BindError::from(short(edit, bytes.len()))),
    })?;
    if let Some(kind) = wrong {
        return Ok(Err(Mismatch { tensor: tensor.name.clone(), kind }));
    }
    let found = sketcher.finish().map_err(|_| short(edit, 0))?;
    let (tensor, rows) = (tensor.name.clone(), edit.rows().len());
    Ok(Ok(Distance { tensor, distance: base.distance(&found), rows }))
}

/// A row of another length than the edit's: an edit that does not fit its own shape.
fn short(edit: &Edit, found: usize) -> LengthError {
    LengthError { tensor: edit.tensor().to_string(), expected: edit.row_bytes() as u64, found: found as u64 }
}
