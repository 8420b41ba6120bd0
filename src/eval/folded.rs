//! A model's weights with edits folded in, in memory.

use crate::decoder::{DecoderError, Weights};
use crate::fold;
use crate::format::{Edit, Edits};
use crate::tensor::{Shape, TensorName};

use super::EvalError;

/// Weights as they would be after a patch is applied: same arithmetic, nothing written.
pub struct Folded<'a> {
    base: &'a dyn Weights,
    edits: &'a Edits,
}

impl<'a> Folded<'a> {
    /// The weights of `base` with `edits` folded in when they are read.
    pub fn new(base: &'a dyn Weights, edits: &'a Edits) -> Self {
        Self { base, edits }
    }
}

impl Weights for Folded<'_> {
    fn names(&self) -> Vec<TensorName> {
        self.base.names()
    }

    fn describe(&self, name: &TensorName) -> Option<(String, Shape)> {
        self.base.describe(name)
    }

    fn read(&self, name: &TensorName) -> Result<Vec<u8>, DecoderError> {
        let mut bytes = self.base.read(name)?;
        for edit in self.edits.iter().filter(|edit| edit.tensor() == name) {
            let failed = |error: EvalError| DecoderError::Read { name: name.clone(), source: Box::new(error) };
            fold_tensor(&mut bytes, edit).map_err(failed)?;
        }
        Ok(bytes)
    }
}

/// Folds an edit into all bytes of its tensor; returns how many elements changed.
pub(crate) fn fold_tensor(bytes: &mut [u8], edit: &Edit) -> Result<usize, EvalError> {
    let size = edit.dtype().size();
    let mut changed = 0;
    let mut vector = Vec::with_capacity(edit.row_bytes());
    for (row, span, delta) in edit.changes() {
        let places = (0..span.len).map(|index| (span.start + index as u64 * span.stride) as usize * size);
        vector.clear();
        for place in places.clone() {
            vector.extend_from_slice(bytes.get(place..place + size).unwrap_or_default());
        }
        let failed = |source| EvalError::Fold { tensor: edit.tensor().clone(), row, source };
        changed += fold::fold_row(edit.dtype(), &mut vector, delta).map_err(failed)?;
        for (place, element) in places.zip(vector.chunks_exact(size)) {
            if let Some(into) = bytes.get_mut(place..place + size) {
                into.copy_from_slice(element);
            }
        }
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{Deltas, EditParts, Layout};
    use crate::tensor::Dtype;

    fn edit(layout: Layout, rows: Vec<u32>, clusters: Vec<u32>, values: Vec<f32>) -> Edit {
        let deltas = Deltas::new(Dtype::F32, 2, values).unwrap();
        let shape = Shape::new(if layout == Layout::Rows { [3, 2] } else { [2, 3] }).unwrap();
        let tensor = TensorName::new("w").unwrap();
        Edit::new(EditParts { tensor, dtype: Dtype::F32, shape, layout, rows, clusters, deltas }).unwrap()
    }

    fn folded(edit: &Edit) -> (usize, Vec<f32>) {
        let mut bytes: Vec<u8> = [0.0_f32, 1.0, 2.0, 3.0, 4.0, 5.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        let changed = fold_tensor(&mut bytes, edit).unwrap();
        (changed, bytes.chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect())
    }

    #[test]
    fn rows_and_columns_take_their_cluster_delta() {
        let rows = edit(Layout::Rows, vec![0, 2], vec![0, 1], vec![10.0, 0.0, 0.5, 0.25]);
        assert_eq!(folded(&rows), (3, vec![10.0, 1.0, 2.0, 3.0, 4.5, 5.25]));
        let columns = edit(Layout::Columns, vec![1], vec![0], vec![10.0, 20.0]);
        assert_eq!(folded(&columns), (2, vec![0.0, 11.0, 2.0, 3.0, 24.0, 5.0]));
    }
}
