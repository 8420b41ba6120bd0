//! From trained deltas to the edits of a patch: deltas rounded once to the type they are stored in.

use std::collections::BTreeMap;

use super::NestError;
use crate::decoder::{Config, SharedDeltas, SiteDeltas, Weights};
use crate::eval::fold_tensor;
use crate::format::{Deltas, Edit, EditParts, Edits, Layout};
use crate::tensor::{Dtype, Shape, TensorName};

/// How many elements of the selected rows change when edits are folded in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FoldCount {
    /// Elements whose bits change.
    pub changed: usize,
    /// Elements in all selected rows.
    pub elements: usize,
}

impl FoldCount {
    /// Changed over all, 0 to 1. A small delta can vanish in the rounding of a 16-bit weight.
    pub fn share(self) -> f64 {
        self.changed as f64 / self.elements as f64
    }
}

/// Turns shared deltas into edits: gate and up rows of every tuned layer, one tensor each.
///
/// `stored` is the type deltas are kept in; without one that is the checkpoint's own for BF16 and F16, F32 for F32.
/// Clusters whose delta is zero after rounding keep their rows in the edit; a site with nothing but zeros is left out.
///
/// # Errors
/// No delta that is not zero, one that overflows its type, or a tensor that is not there or cannot be edited.
pub fn edits(
    config: &Config,
    weights: &dyn Weights,
    deltas: &SharedDeltas,
    stored: Option<Dtype>,
) -> Result<Edits, NestError> {
    let mut tensors: BTreeMap<TensorName, Rows> = BTreeMap::new();
    for (site, deltas) in deltas.iter() {
        let tensor = config.site_tensor(site)?;
        tensors.entry(tensor.name).or_default().append(tensor.first as u32, deltas);
    }
    let mut edits = Vec::with_capacity(tensors.len());
    for (name, rows) in tensors {
        let (dtype, shape) = described(weights, &name)?;
        let deltas = Deltas::rounded(stored.unwrap_or(dtype), config.hidden, &rows.values)?;
        if deltas.values().iter().any(|value| *value != 0.0) {
            edits.push(Edit::new(EditParts {
                tensor: name,
                dtype,
                shape,
                layout: Layout::Rows,
                rows: rows.rows,
                clusters: rows.clusters,
                deltas,
            })?);
        }
    }
    if edits.is_empty() {
        return Err(NestError::NothingChanged);
    }
    Ok(Edits::new(edits)?)
}

/// Folds edits in memory, tensor by tensor, and counts what changes.
///
/// # Errors
/// A tensor that cannot be read, a weight that is not finite, a sum that overflows.
pub fn count_changes(weights: &dyn Weights, edits: &Edits) -> Result<FoldCount, NestError> {
    let mut count = FoldCount::default();
    for edit in edits.iter() {
        let mut bytes = weights.read(edit.tensor())?;
        count.changed += fold_tensor(&mut bytes, edit)?;
        count.elements += edit.rows().len() * edit.vectors().len();
    }
    Ok(count)
}

fn described(weights: &dyn Weights, name: &TensorName) -> Result<(Dtype, Shape), NestError> {
    let missing = || crate::decoder::DecoderError::Missing { name: name.clone() };
    let (dtype, shape) = weights.describe(name).ok_or_else(missing)?;
    let dtype = dtype.parse().map_err(crate::decoder::DecoderError::from)?;
    Ok((dtype, shape))
}

/// The rows of one tensor, from one site or, where projections are fused, from two.
#[derive(Default)]
struct Rows {
    rows: Vec<u32>,
    clusters: Vec<u32>,
    values: Vec<f32>,
    count: u32,
}

impl Rows {
    fn append(&mut self, first: u32, deltas: &SiteDeltas) {
        self.rows.extend(deltas.rows().iter().map(|row| first + row));
        self.clusters.extend(deltas.clusters().iter().map(|cluster| self.count + cluster));
        self.values.extend_from_slice(deltas.values());
        self.count += deltas.count() as u32;
    }
}

#[cfg(test)]
mod tests;
