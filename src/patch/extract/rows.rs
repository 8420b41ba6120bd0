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
    let mut rows = Rows { old: vec![Vec::new(); spans.len()], new: vec![Vec::new(); spans.len()] };
    if layout == Layout::Columns {
        // One pass over the tensor: reading element by element takes longer.
        base.stream_beside(difference.base, (tuned, difference.tuned), &(), |begin, ours, theirs| {
            gather(&spans, dtype.size(), begin, ours, &mut rows.old);
            gather(&spans, dtype.size(), begin, theirs, &mut rows.new);
        })?;
        return Ok(rows);
    }
    for ((span, old), new) in spans.into_iter().zip(&mut rows.old).zip(&mut rows.new) {
        let cells = Cells::new(span, dtype.size());
        base.read_vector(difference.base, cells, old)?;
        tuned.read_vector(difference.tuned, cells, new)?;
    }
    Ok(rows)
}

/// Appends to each vector the elements of it that lie in `piece`, the tensor's bytes from `begin` on. Pieces come in order
/// and hold whole elements.
fn gather(spans: &[Span], size: usize, begin: u64, piece: &[u8], vectors: &mut [Vec<u8>]) {
    for (span, vector) in spans.iter().zip(vectors) {
        let (start, stride) = (span.start * size as u64, span.stride * size as u64);
        let first = begin.saturating_sub(start).div_ceil(stride);
        let offsets = (first..span.len as u64).map(|step| start + step * stride - begin);
        let elements = offsets.map_while(|at| piece.get(usize::try_from(at).ok()?..)?.get(..size));
        elements.for_each(|element| vector.extend(element));
    }
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
    use proptest::prelude::*;

    use super::*;
    use crate::tensor::Shape;

    proptest! {
        /// Columns gathered piece by piece are the columns, at any rank, however the pieces are cut.
        #[test]
        fn gathered_columns_are_the_columns(
            matrices in 1..3_u64, height in 1..6_u64, width in 1..6_u64, size in prop::sample::select(vec![2_usize, 4]),
            cut in 1..30_usize,
        ) {
            let shape = Shape::new([matrices, height, width]).unwrap();
            let vectors = Vectors::new(Layout::Columns, &shape).unwrap();
            let spans: Vec<Span> = (0..vectors.count() as u32).map(|index| vectors.span(index).unwrap()).collect();
            let bytes: Vec<u8> = (0..shape.elements() as usize * size).map(|byte| byte as u8).collect();
            let mut found = vec![Vec::new(); spans.len()];
            for (number, piece) in bytes.chunks(cut * size).enumerate() {
                gather(&spans, size, (number * cut * size) as u64, piece, &mut found);
            }
            for (span, found) in spans.iter().zip(found) {
                let at = |step: usize| (span.start as usize + step * span.stride as usize) * size;
                let expected: Vec<u8> = (0..span.len).flat_map(|step| bytes[at(step)..at(step) + size].to_vec()).collect();
                prop_assert_eq!(found, expected);
            }
        }
    }
}
