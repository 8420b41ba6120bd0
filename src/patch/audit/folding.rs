//! The fold of a tensor that streams by: no row is held, whatever the layout.

use std::ops::Range;

use super::rows::Geometry;
use crate::checkpoint::TensorInfo;
use crate::fold::{FoldError, fold_row};
use crate::format::{Edit, Span};

/// Turns the bytes of a base tensor into those of the patched one, piece by piece.
pub(super) struct Folding<'a> {
    edit: &'a Edit,
    geometry: Geometry,
    /// The elements of one touched row that lie in the piece.
    part: Vec<u8>,
    /// The first touched row that cannot be folded.
    pub(super) failed: Option<(u32, FoldError)>,
}

impl<'a> Folding<'a> {
    pub(super) fn new(tensor: &TensorInfo, edit: &'a Edit) -> Self {
        Self { edit, geometry: Geometry::new(tensor, Some(edit)), part: Vec::new(), failed: None }
    }

    /// Adds the deltas to what lies in `piece`, the base tensor's bytes from `begin` on; pieces hold whole elements.
    pub(super) fn fold(&mut self, begin: u64, piece: &mut [u8]) {
        let size = self.edit.dtype().size() as u64;
        let elements = begin / size..(begin + piece.len() as u64) / size;
        let candidates = self.geometry.rows(begin..begin + piece.len() as u64);
        let all = self.edit.rows();
        let from = all.partition_point(|row| u64::from(*row) < candidates.start);
        let to = all.partition_point(|row| u64::from(*row) < candidates.end);
        for (row, span, delta) in self.edit.changes().skip(from).take(to - from) {
            if let Err(error) = self.fold_part(&elements, piece, span, delta) {
                self.failed.get_or_insert((row, error));
            }
        }
    }

    /// Folds the elements of one row that lie in the piece.
    fn fold_part(
        &mut self,
        elements: &Range<u64>,
        piece: &mut [u8],
        span: Span,
        delta: &[f32],
    ) -> Result<(), FoldError> {
        let index = |element: u64| (element.saturating_sub(span.start).div_ceil(span.stride) as usize).min(span.len);
        let (first, last) = (index(elements.start), index(elements.end));
        let (Some(delta), true) = (delta.get(first..last), first < last) else { return Ok(()) };
        let size = self.edit.dtype().size();
        let start = (span.start + first as u64 * span.stride - elements.start) as usize;
        let stride = span.stride as usize;
        self.part.clear();
        cells(piece, size, start, stride).take(delta.len()).for_each(|cell| self.part.extend_from_slice(cell));
        fold_row(self.edit.dtype(), &mut self.part, delta).map_err(|error| within_row(error, first))?;
        let folded = self.part.chunks_exact(size);
        cells(piece, size, start, stride).zip(folded).for_each(|(cell, folded)| cell.copy_from_slice(folded));
        Ok(())
    }
}

/// Every `stride`-th element from `start` on.
fn cells(piece: &mut [u8], size: usize, start: usize, stride: usize) -> impl Iterator<Item = &mut [u8]> {
    piece.chunks_exact_mut(size).skip(start).step_by(stride)
}

/// The same error with its column counted from the beginning of the row.
fn within_row(error: FoldError, first: usize) -> FoldError {
    match error {
        FoldError::NotFinite { column, what, value } => FoldError::NotFinite { column: column + first, what, value },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{Deltas, EditParts, Layout, Vectors};
    use crate::tensor::{Dtype, Shape, TensorName};
    use half::bf16;
    use proptest::prelude::*;

    fn edit(columns: bool, shape: [u64; 3], rows: Vec<u32>) -> Option<Edit> {
        let layout = if columns { Layout::Columns } else { Layout::Rows };
        let shape = Shape::new(shape).unwrap();
        let vectors = Vectors::new(layout, &shape).unwrap();
        let rows: Vec<u32> = rows.into_iter().filter(|row| u64::from(*row) < vectors.count()).collect();
        let (clusters, values) = (vec![0; rows.len()], (1..=vectors.len()).map(|value| value as f32).collect());
        let deltas = Deltas::new(Dtype::F32, vectors.len(), values).unwrap();
        let tensor = TensorName::new("w").unwrap();
        Edit::new(EditParts { tensor, dtype: Dtype::Bf16, shape, layout, rows, clusters, deltas }).ok()
    }

    fn geometry(edit: &Edit) -> Geometry {
        Geometry::of(edit.layout(), 16, edit.shape())
    }

    /// The slow twin: each row gathered from the whole tensor, folded and scattered.
    fn folded_whole(edit: &Edit, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for (_, span, delta) in edit.changes() {
            let at = |i: usize| (span.start as usize + i * span.stride as usize) * 2;
            let mut row: Vec<u8> = (0..span.len).flat_map(|i| [bytes[at(i)], bytes[at(i) + 1]]).collect();
            fold_row(Dtype::Bf16, &mut row, delta).unwrap();
            (0..span.len).for_each(|i| bytes[at(i)..at(i) + 2].copy_from_slice(&row[i * 2..i * 2 + 2]));
        }
        bytes
    }

    proptest! {
        #[test]
        fn pieces_give_what_whole_rows_give(
            columns: bool, shape in [1_u64..3, 1_u64..6, 1_u64..6],
            rows in prop::collection::btree_set(0_u32..12, 1..6), cut in 1_usize..9,
        ) {
            let Some(edit) = edit(columns, shape, rows.into_iter().collect()) else { return Ok(()) };
            let values = 0..edit.shape().elements();
            let mut bytes: Vec<u8> =
                values.flat_map(|value| bf16::from_f32(value as f32 * 0.5).to_le_bytes()).collect();
            let expected = folded_whole(&edit, &bytes);
            let mut folding = Folding { edit: &edit, geometry: geometry(&edit), part: vec![], failed: None };
            let mut begin = 0;
            for piece in bytes.chunks_mut(cut * 2) {
                folding.fold(begin, piece);
                begin += piece.len() as u64;
            }
            prop_assert_eq!(bytes, expected);
            prop_assert!(folding.failed.is_none());
        }
    }

    #[test]
    fn a_weight_that_is_not_finite_is_named_by_its_place_in_the_row() {
        let edit = edit(false, [1, 2, 3], vec![1]).unwrap();
        let mut folding = Folding { edit: &edit, geometry: geometry(&edit), part: vec![], failed: None };
        let mut piece = [bf16::ZERO.to_le_bytes(), bf16::NAN.to_le_bytes()].concat();
        folding.fold(8, &mut piece);
        let (row, error) = folding.failed.unwrap();
        assert!(row == 1 && matches!(error, FoldError::NotFinite { column: 2, .. }), "{row} {error}");
    }
}
