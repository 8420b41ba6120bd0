//! One tensor of two checkpoints: its content digests, and whether the patched one is the base's with the patch.

use serde::Serialize;

use super::folding::Folding;
use super::rows::{Differences, Geometry, Rows, Unit};
use crate::checkpoint::{BindError, Checkpoint, Progress, TensorInfo};
use crate::digest::Blake3;
use crate::format::binding::{LengthError, TensorHasher};
use crate::format::manifest::{BaseTensor, ResultTensor};
use crate::format::{Edit, Layout};
use crate::tensor::{Shape, TensorName};

/// Why a tensor is not what the base and the patch give.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "is")]
pub enum Finding {
    /// The patched checkpoint lacks it.
    Missing,
    /// The base lacks it.
    Extra,
    /// The patch touches it, and neither has it.
    Absent,
    /// Another element type or other dimensions than the base's.
    Form {
        /// Those of the base.
        base: Form,
        /// Those of the patched checkpoint.
        patched: Form,
    },
    /// The patch touches a tensor of this name, with another element type or other dimensions.
    OtherBase {
        /// Those that the patch is for.
        patch: Form,
        /// Those of the base.
        base: Form,
    },
    /// A weight of the base to which the patch's delta cannot be added.
    NotFoldable {
        /// The row.
        row: u32,
        /// Why.
        reason: String,
    },
    /// Other bytes.
    Bytes {
        /// What is counted.
        unit: Unit,
        /// Which vectors of the tensor the rows are.
        layout: Layout,
        /// Its dimensions.
        shape: Shape,
        /// Touched rows that are not the fold of the base's.
        touched: Rows,
        /// Rows around them, or of a tensor that the patch does not touch, that are not the base's.
        others: Rows,
    },
}

/// Element type and dimensions of a tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Form {
    /// The element type as safetensors calls it.
    pub dtype: &'static str,
    /// The dimensions.
    pub shape: Shape,
}

impl Form {
    fn of(tensor: &TensorInfo) -> Self {
        Self { dtype: tensor.dtype.as_str(), shape: tensor.shape.clone() }
    }
}

/// What there is of a tensor in the two checkpoints and the patch.
pub(super) struct Item<'a> {
    pub(super) name: &'a TensorName,
    pub(super) base: Option<&'a TensorInfo>,
    pub(super) patched: Option<&'a TensorInfo>,
    pub(super) touch: Option<Touch<'a>>,
}

/// An edit, and what the publisher says of its tensor before and after.
#[derive(Clone, Copy)]
pub(super) struct Touch<'a> {
    pub(super) edit: &'a Edit,
    pub(super) base: &'a BaseTensor,
    pub(super) result: &'a ResultTensor,
}

/// What was found.
pub(super) struct Compared {
    /// Content digest of the base's tensor.
    pub(super) base: Option<Blake3>,
    /// That of the patched checkpoint's.
    pub(super) patched: Option<Blake3>,
    pub(super) finding: Option<Finding>,
}

/// Two checkpoints being compared.
pub(super) struct Pair<'a> {
    pub(super) base: &'a Checkpoint,
    pub(super) patched: &'a Checkpoint,
    pub(super) progress: &'a dyn Progress,
}

impl Item<'_> {
    /// Bytes that comparing it goes through, as progress is reported.
    pub(super) fn bytes(&self) -> u64 {
        let length = |tensor: Option<&TensorInfo>| tensor.map_or(0, |tensor| tensor.length);
        match (self.base, self.patched) {
            (Some(base), Some(patched)) if same_form(base, patched) => base.length,
            (base, patched) => length(base) + length(patched),
        }
    }
}

impl Pair<'_> {
    /// Compares one tensor; reads it once on each side.
    pub(super) fn compare(&self, item: &Item<'_>) -> Result<Compared, BindError> {
        let (base, patched) = match (item.base, item.patched) {
            (Some(base), Some(patched)) if same_form(base, patched) => {
                return self.beside(base, patched, item.touch.map(|touch| touch.edit));
            }
            sides => sides,
        };
        let finding = Some(match (base, patched) {
            (Some(base), Some(patched)) => Finding::Form { base: Form::of(base), patched: Form::of(patched) },
            (Some(_), None) => Finding::Missing,
            (None, Some(_)) => Finding::Extra,
            (None, None) => Finding::Absent,
        });
        let digest = |checkpoint: &Checkpoint, tensor: Option<&TensorInfo>| {
            tensor.map(|tensor| checkpoint.digest(tensor, self.progress)).transpose()
        };
        Ok(Compared { base: digest(self.base, base)?, patched: digest(self.patched, patched)?, finding })
    }

    fn beside(&self, base: &TensorInfo, patched: &TensorInfo, edit: Option<&Edit>) -> Result<Compared, BindError> {
        // Rows lie as the patch says only in a tensor that it is for.
        let fits = |edit: &&Edit| base.dtype.editable() == Some(edit.dtype()) && base.shape == *edit.shape();
        let fitting = edit.filter(fits);
        let mut digests = Digests { base: base.hasher(), patched: None };
        let mut folding = fitting.map(|edit| Folding::new(base, edit));
        let mut differences = Differences::new(Geometry::new(base, fitting), fitting);
        self.base.stream_beside(base, (self.patched, patched), self.progress, |begin, ours, theirs| {
            digests.update(ours, theirs);
            if let Some(folding) = &mut folding {
                folding.fold(begin, ours);
            }
            differences.compare(begin, ours, theirs);
        })?;
        let finding = match (edit, folding.and_then(|folding| folding.failed)) {
            (Some(edit), _) if fitting.is_none() => Some(Finding::OtherBase {
                patch: Form { dtype: edit.dtype().as_str(), shape: edit.shape().clone() },
                base: Form::of(base),
            }),
            (_, Some((row, error))) => Some(Finding::NotFoldable { row, reason: error.to_string() }),
            _ => differences.finding(&base.shape),
        };
        let (base, patched) = digests.finish()?;
        Ok(Compared { base: Some(base), patched: Some(patched), finding })
    }
}

impl Differences<'_> {
    fn finding(self, shape: &Shape) -> Option<Finding> {
        let Self { geometry, touched, others, .. } = self;
        let (unit, layout, shape) = (geometry.unit, geometry.layout, shape.clone());
        (touched.count + others.count > 0).then_some(Finding::Bytes { unit, layout, shape, touched, others })
    }
}

fn same_form(one: &TensorInfo, other: &TensorInfo) -> bool {
    one.dtype == other.dtype && one.shape == other.shape
}

/// Content digests of both sides: one hasher as long as they are the same.
struct Digests {
    base: TensorHasher,
    patched: Option<TensorHasher>,
}

impl Digests {
    fn update(&mut self, ours: &[u8], theirs: &[u8]) {
        if self.patched.is_none() && ours != theirs {
            self.patched = Some(self.base.clone());
        }
        self.base.update(ours);
        if let Some(patched) = &mut self.patched {
            patched.update(theirs);
        }
    }

    fn finish(self) -> Result<(Blake3, Blake3), LengthError> {
        let base = self.base.finish()?;
        Ok((base, self.patched.map_or(Ok(base), TensorHasher::finish)?))
    }
}
