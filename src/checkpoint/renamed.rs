//! A checkpoint that stores the tensors of a patch under other names: the same model, saved by another program or version.

use std::collections::BTreeMap;

use super::binding::Digests;
use super::mismatch::{BindError, Mismatch, MismatchKind};
use super::{Checkpoint, TensorInfo};
use crate::digest::Blake3;
use crate::format::{Edit, Edits};
use crate::tensor::{Shape, TensorName};

/// Adds to tensors that are missing under which name their touched rows are there, if they are. The digests tell, which
/// hold for any tensor's rows under the name that was signed; names and shapes only say where to look. What cannot be read
/// is not found.
pub(super) fn find_renamed(
    mut error: BindError,
    checkpoint: &Checkpoint,
    edits: &Edits,
    [one, other]: [&[Digests]; 2],
) -> BindError {
    let BindError::Mismatch { mismatches, .. } = &mut error else { return error };
    let known = one.iter().zip(other).map(|(one, other)| [one.rows, other.rows]);
    let known: BTreeMap<&TensorName, _> = edits.iter().map(Edit::tensor).zip(edits.iter().zip(known)).collect();
    let mut places: BTreeMap<_, Vec<&TensorInfo>> = BTreeMap::new();
    checkpoint.tensors().for_each(|tensor| places.entry(place(&tensor.name, &tensor.shape)).or_default().push(tensor));
    for Mismatch { tensor, kind } in mismatches {
        if let (MismatchKind::Missing { renamed }, Some((edit, rows))) = (kind, known.get(tensor)) {
            let near = places.get(&place(tensor, edit.shape())).into_iter().flatten();
            *renamed = near.copied().find(|near| holds(checkpoint, near, edit, rows)).map(|near| near.name.clone());
        }
    }
    error
}

/// Where to look: at tensors of the same layer and expert, which are the numbers in a name. In a large model all others
/// would be read for each one that is missing.
fn place<'s>(name: &TensorName, shape: &'s Shape) -> (&'s Shape, Vec<u64>) {
    (shape, name.as_str().split('.').filter_map(|part| part.parse().ok()).collect())
}

fn holds(checkpoint: &Checkpoint, tensor: &TensorInfo, edit: &Edit, known: &[Option<Blake3>]) -> bool {
    let same_type = tensor.dtype.editable() == Some(edit.dtype());
    let rows = || checkpoint.rows_digest(tensor, edit).ok().map(|(rows, _)| rows);
    let is_known = known.iter().any(Option::is_some);
    same_type && is_known && rows().is_some_and(|rows| known.contains(&Some(rows)))
}
