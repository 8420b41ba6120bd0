//! One changed tensor: its rows are read, and become an edit that is checked to give the tuned ones bit for bit.

use super::clusters;
use super::differences::Difference;
use super::interval::{Interval, intervals};
use super::{Changed, ExtractError, Omitted, Reason};
use crate::checkpoint::{Cells, Checkpoint};
use crate::fold::fold_row;
use crate::format::float;
use crate::format::{Deltas, Edit, EditParts, Layout, Span, Vectors};
use crate::patch::PatchError;
use crate::tensor::Dtype;

/// Which part of a tensor changed: its vectors before and after.
struct Rows {
    old: Vec<Vec<u8>>,
    new: Vec<Vec<u8>>,
}

/// The edit that takes one tensor to the other, or why there is none.
pub(super) fn solve(
    base: &Checkpoint,
    tuned: &Checkpoint,
    difference: &Difference<'_>,
) -> Result<Result<(Edit, Changed), Omitted>, ExtractError> {
    let Difference { base: tensor, changed, vectors: Some((layout, indices)), .. } = difference else {
        return Ok(Err(omitted(difference, Reason::NotFeedForward)));
    };
    let Some(dtype) = tensor.dtype.editable() else {
        return Ok(Err(omitted(difference, Reason::Type { found: tensor.dtype })));
    };
    let rows = read(base, tuned, difference, dtype, (*layout, indices))?;
    let intervals = match bounds(dtype, indices, &rows) {
        Ok(intervals) => intervals,
        Err(reason) => return Ok(Err(omitted(difference, reason))),
    };
    let columns = intervals.first().map_or(0, Vec::len);
    let solution = clusters::solve(dtype, &intervals);
    drop(intervals);
    let edit = Edit::new(EditParts {
        tensor: tensor.name.clone(),
        dtype,
        shape: tensor.shape.clone(),
        layout: *layout,
        rows: indices.clone(),
        clusters: solution.clusters,
        deltas: Deltas::new(solution.stored, columns, solution.deltas)?,
    })?;
    check(&edit, rows)?;
    Ok(Ok((edit, *changed)))
}

fn omitted(difference: &Difference<'_>, reason: Reason) -> Omitted {
    Omitted { tensor: difference.base.name.clone(), reason, changed: Some(difference.changed) }
}

fn read(
    base: &Checkpoint,
    tuned: &Checkpoint,
    difference: &Difference<'_>,
    dtype: Dtype,
    (layout, indices): (Layout, &[u32]),
) -> Result<Rows, ExtractError> {
    let vectors = Vectors::new(layout, &difference.base.shape)?;
    let spans: Vec<Span> = indices.iter().filter_map(|index| vectors.span(*index)).collect();
    let vectors = |checkpoint: &Checkpoint, tensor| {
        let mut rows = Vec::with_capacity(spans.len());
        let cells = spans.iter().map(|span| Cells::new(*span, dtype.size()));
        checkpoint.read_vectors(tensor, cells, |bytes| {
            rows.push(bytes.to_vec());
            Ok::<_, ExtractError>(())
        })?;
        Ok::<_, ExtractError>(rows)
    };
    Ok(Rows { old: vectors(base, difference.base)?, new: vectors(tuned, difference.tuned)? })
}

/// In which intervals the deltas of each row lie.
fn bounds(dtype: Dtype, indices: &[u32], rows: &Rows) -> Result<Vec<Vec<Interval>>, Reason> {
    let rows = indices.iter().zip(&rows.old).zip(&rows.new);
    rows.map(|((vector, old), new)| {
        let (olds, news) = (float::read_all(dtype, old), float::read_all(dtype, new));
        let finite = |(old, new): (&f32, &f32)| old.is_finite() && new.is_finite();
        if let Some(element) = olds.iter().zip(&news).position(|pair| !finite(pair)) {
            return Err(Reason::NotFinite { vector: *vector, element });
        }
        intervals(dtype, old, new).map_err(|element| {
            let at = |values: &[f32]| values.get(element).copied().unwrap_or(f32::NAN);
            Reason::NoDelta { vector: *vector, element, base: at(&olds), tuned: at(&news) }
        })
    })
    .collect()
}

/// The arithmetic of the format has the last word.
fn check(edit: &Edit, rows: Rows) -> Result<(), ExtractError> {
    for (((row, _, delta), mut old), new) in edit.changes().zip(rows.old).zip(rows.new) {
        let tensor = || edit.tensor().clone();
        fold_row(edit.dtype(), &mut old, delta).map_err(|source| PatchError::Fold { tensor: tensor(), row, source })?;
        if old != new {
            return Err(ExtractError::Row { tensor: tensor(), row });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Shape, TensorName};

    #[test]
    fn a_delta_that_does_not_give_the_row_is_noticed() {
        let parts = EditParts {
            tensor: TensorName::new("w").unwrap(),
            dtype: Dtype::F32,
            shape: Shape::new([1, 1]).unwrap(),
            layout: Layout::Rows,
            rows: vec![0],
            clusters: vec![0],
            deltas: Deltas::new(Dtype::F32, 1, vec![0.5]).unwrap(),
        };
        let edit = Edit::new(parts).unwrap();
        let rows = |new: f32| Rows { old: vec![1.0_f32.to_le_bytes().to_vec()], new: vec![new.to_le_bytes().to_vec()] };
        assert!(check(&edit, rows(1.5)).is_ok());
        assert!(matches!(check(&edit, rows(1.25)), Err(ExtractError::Row { row: 0, .. })));
    }
}
