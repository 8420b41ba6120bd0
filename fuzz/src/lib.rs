//! What several targets share: edits to decode deltas and residuals against, and rows to fold.

use std::sync::LazyLock;

use nestpatch::fold;
use nestpatch::format::section::{Rows, write_edits};
use nestpatch::format::{Deltas, Edit, EditParts, Edits, Layout, ResidualBuilder};
use nestpatch::tensor::{Dtype, Shape, TensorName};

/// Edits of every element type and both layouts, small enough for an input to reach every byte of their sections.
pub static EDITS: LazyLock<Edits> = LazyLock::new(|| {
    let edit = |name: &str, dtype: Dtype, delta_dtype, shape: [u64; 2], layout, rows: &[u32], clusters: &[u32]| {
        let cols = (if layout == Layout::Rows { shape[1] } else { shape[0] }) as usize;
        let k = clusters.iter().max().map_or(0, |last| *last as usize + 1);
        let values: Vec<f32> = (0..k * cols).map(|index| index as f32 * 0.25 - 0.5).collect();
        Edit::new(EditParts {
            tensor: TensorName::new(name).expect("a name"),
            dtype,
            shape: Shape::new(shape).expect("a shape"),
            layout,
            rows: rows.to_vec(),
            clusters: clusters.to_vec(),
            deltas: Deltas::rounded(delta_dtype, cols, &values).expect("deltas"),
        })
        .expect("an edit")
    };
    let edits = vec![
        edit("a", Dtype::Bf16, Dtype::Bf16, [4, 3], Layout::Rows, &[0, 3], &[0, 0]),
        edit("b", Dtype::F16, Dtype::F32, [2, 3], Layout::Columns, &[0, 2], &[0, 1]),
        edit("c", Dtype::F32, Dtype::Bf16, [3, 2], Layout::Rows, &[1], &[0]),
    ];
    Edits::new(edits).expect("edits")
});

/// The content of a `rows` section for [`EDITS`].
pub static ROWS: LazyLock<Rows> = LazyLock::new(|| {
    let (rows, _) = write_edits(&EDITS).expect("sections");
    Rows::from_bytes(&rows).expect("what was written is read")
});

/// Folds rows made of `bytes` (over and over, if too few) and takes them back: bit for bit, or an error on the way there.
pub fn fold_and_unfold(edits: &Edits, bytes: &[u8]) {
    if bytes.is_empty() {
        return;
    }
    let mut source = bytes.iter().cycle().copied();
    let (mut builder, mut rows) = (ResidualBuilder::new(), Vec::new());
    for edit in edits {
        for (_, _, delta) in edit.changes() {
            let old: Vec<u8> = source.by_ref().take(edit.row_bytes()).collect();
            let mut new = old.clone();
            if fold::fold_row(edit.dtype(), &mut new, delta).is_err() {
                return;
            }
            fold::residual_row(edit.dtype(), &old, &new, delta, &mut builder).expect("a folded row has a residual");
            rows.push((old, new));
        }
    }
    let residual = builder.finish(edits).expect("a residual for every row");
    let mut rows = rows.into_iter();
    for (index, edit) in edits.iter().enumerate() {
        for ((_, _, delta), residual) in edit.changes().zip(residual.rows(index, edit)) {
            let (old, mut new) = rows.next().expect("a row for every change");
            fold::unfold_row(edit.dtype(), &mut new, delta, residual).expect("what was folded is unfolded");
            assert_eq!(new, old);
        }
    }
}
