//! Whether a checkpoint is what a patch was made for, or what it gives.

use serde::{Deserialize, Serialize};

use super::mismatch::{BindError, Mismatch, MismatchKind, Side};
use super::renamed::find_renamed;
use super::{Checkpoint, Progress, TensorInfo, Vector, in_parallel};
use crate::digest::Blake3;
use crate::format::binding::{RowsHasher, TensorHasher, architecture_value};
use crate::format::{Edit, Edits, Level, Manifest};
use crate::tensor::{Dtype, TensorName};

/// How much of each touched tensor is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Depth {
    /// The touched rows: all that a patch changes, and quick.
    Rows,
    /// The touched tensors as a whole.
    Tensors,
}

impl Depth {
    /// Its name on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rows => "rows",
            Self::Tensors => "tensors",
        }
    }
}

/// What a touched tensor holds, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Digests {
    /// Digest of its touched rows.
    pub rows: Option<Blake3>,
    /// Digest of all of it.
    pub whole: Option<Blake3>,
}

/// What the touched tensors hold before and after a patch, in the order of the edits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sides {
    /// Before.
    pub base: Vec<Digests>,
    /// After.
    pub result: Vec<Digests>,
}

impl Sides {
    /// What the publisher signed.
    pub fn signed(manifest: &Manifest) -> Self {
        let digests = |rows, whole| Digests { rows: Some(rows), whole: Some(whole) };
        let base = manifest.base.tensors.iter().map(|tensor| digests(tensor.rows, tensor.blake3)).collect();
        let result = manifest.result.tensors.iter().map(|tensor| digests(tensor.rows, tensor.blake3)).collect();
        Self { base, result }
    }

    /// Nothing known of `tensors` tensors: any base will do, and what becomes of it is seen when it is done.
    pub fn unknown(tensors: usize) -> Self {
        Self { base: vec![Digests::default(); tensors], result: vec![Digests::default(); tensors] }
    }

    /// Forgets the digests of whole tensors where `of` says so, for tensors in the order of `edits`; those of rows stay.
    pub fn forget_whole(&mut self, edits: &Edits, of: impl Fn(&TensorName) -> bool) {
        let both = self.base.iter_mut().zip(&mut self.result);
        for (_, (base, result)) in edits.iter().zip(both).filter(|(edit, _)| of(edit.tensor())) {
            (base.whole, result.whole) = (None, None);
        }
    }

    /// What is known of one side.
    pub fn of(&self, side: Side) -> &[Digests] {
        match side {
            Side::Base => &self.base,
            Side::Result => &self.result,
        }
    }
}

/// A checkpoint whose touched tensors were found to be what a patch can be folded into, or taken back from.
#[derive(Debug)]
pub struct BoundBase<'c> {
    checkpoint: &'c Checkpoint,
    tensors: Vec<&'c TensorInfo>,
    sides: Sides,
    side: Side,
    level: Level,
    depth: Depth,
}

impl<'c> BoundBase<'c> {
    /// Binds at the level `exact`: every touched tensor has the name, element type, shape and bytes of that side of
    /// the manifest, looked at as deep as `depth` says.
    ///
    /// # Errors
    /// Every tensor that differs, or the first that cannot be read.
    pub fn exact(
        checkpoint: &'c Checkpoint,
        manifest: &Manifest,
        edits: &Edits,
        side: Side,
        depth: Depth,
        progress: &dyn Progress,
    ) -> Result<Self, BindError> {
        Self::known(checkpoint, edits, Sides::signed(manifest), side, (Level::Exact, depth), progress)
    }

    /// Binds to what is known of both sides from elsewhere, and says at which level that was.
    ///
    /// # Errors
    /// As [`BoundBase::exact`].
    pub fn known(
        checkpoint: &'c Checkpoint,
        edits: &Edits,
        sides: Sides,
        side: Side,
        (level, depth): (Level, Depth),
        progress: &dyn Progress,
    ) -> Result<Self, BindError> {
        let tensors = compare(checkpoint, edits, &sides, side, depth, progress)?;
        checkpoint.check_unchanged()?;
        Ok(Self { checkpoint, tensors, sides, side, level, depth })
    }

    /// The checkpoint that was checked.
    pub fn checkpoint(&self) -> &'c Checkpoint {
        self.checkpoint
    }

    /// The touched tensors, in the order of the edits.
    pub fn tensors(&self) -> &[&'c TensorInfo] {
        &self.tensors
    }

    /// The side that the checkpoint holds.
    pub fn side(&self) -> Side {
        self.side
    }

    /// What is known of the touched tensors on both sides.
    pub fn sides(&self) -> &Sides {
        &self.sides
    }

    /// How closely it was compared.
    pub fn level(&self) -> &Level {
        &self.level
    }

    /// How much of it was compared.
    pub fn depth(&self) -> Depth {
        self.depth
    }
}

/// Compares the touched tensors with what is known of one side of a patch; gives them in the order of the edits. At
/// depth `rows` only the touched rows are read, and what lies around them may be anything.
///
/// # Errors
/// Every tensor that differs, or the first that cannot be read.
pub fn compare<'c>(
    checkpoint: &'c Checkpoint,
    edits: &Edits,
    sides: &Sides,
    side: Side,
    depth: Depth,
    progress: &dyn Progress,
) -> Result<Vec<&'c TensorInfo>, BindError> {
    let both = [sides.of(side), sides.of(side.other())];
    let tensors =
        find_touched(checkpoint, edits, side).map_err(|error| find_renamed(error, checkpoint, edits, both))?;
    let bytes = |tensor: &&TensorInfo| if depth == Depth::Tensors { tensor.length } else { 0 };
    progress.stage(&format!("checking the {side}"), tensors.iter().map(bytes).sum());
    let [here, there] = both;
    let pairs: Vec<_> = tensors.iter().zip(edits).zip(here.iter().zip(there)).collect();
    let found = in_parallel(&pairs, |((tensor, edit), (here, there))| {
        let whole = here.whole.filter(|_| depth == Depth::Tensors);
        checkpoint.difference(tensor, edit, side, (Digests { whole, ..**here }, there), progress)
    })?;
    let named = pairs.iter().zip(found).filter_map(|(((tensor, _), _), kind)| Some((tensor.name.clone(), kind?)));
    refuse(edits, side, named.map(|(tensor, kind)| Mismatch { tensor, kind }).collect())?;
    Ok(tensors)
}

/// Keys of config.json that fix the forward pass and differ from the base's: (key, base's value, found).
pub fn config_differences(checkpoint: &Checkpoint, manifest: &Manifest) -> Vec<(String, String, String)> {
    let config = serde_json::Value::Object(checkpoint.config().clone());
    let compared = manifest.base.architecture.config.iter();
    compared
        .map(|(key, expected)| (key.clone(), expected.clone(), architecture_value(&config, key)))
        .filter(|(_, expected, found)| expected != found)
        .collect()
}

impl TensorInfo {
    /// What takes its bytes and gives its binding digest.
    pub fn hasher(&self) -> TensorHasher {
        TensorHasher::of_type(&self.name, self.dtype.as_str(), &self.shape, self.length)
    }
}

impl Checkpoint {
    /// The binding digest of a whole tensor, of any element type.
    pub fn digest(&self, tensor: &TensorInfo, progress: &dyn Progress) -> Result<Blake3, BindError> {
        let mut hasher = tensor.hasher();
        self.stream(tensor, progress, |_, piece| hasher.update(piece))?;
        Ok(hasher.finish()?)
    }

    /// The binding digest of the touched rows, and the first entry that is not finite: (row, column).
    pub fn rows_digest(&self, tensor: &TensorInfo, edit: &Edit) -> Result<(Blake3, Option<(u32, usize)>), BindError> {
        let (mut hasher, mut wrong) = (RowsHasher::new(edit), None);
        self.each_vector(tensor, edit, |Vector { row, .. }, bytes| {
            hasher.update(bytes);
            wrong = wrong.or_else(|| Some((row, first_not_finite(edit.dtype(), bytes)?)));
            Ok::<_, BindError>(())
        })?;
        Ok((hasher.finish()?, wrong))
    }

    /// How a touched tensor differs from what is known of it, if it does.
    fn difference(
        &self,
        tensor: &TensorInfo,
        edit: &Edit,
        side: Side,
        (here, there): (Digests, &Digests),
        progress: &dyn Progress,
    ) -> Result<Option<MismatchKind>, BindError> {
        let (found, not_finite) = self.rows_digest(tensor, edit)?;
        if here.rows != Some(found) {
            // What a patch made is finite; what somebody else made of it since is a difference like any other.
            if let Some((row, column)) = not_finite.filter(|_| side == Side::Base) {
                return Ok(Some(MismatchKind::NotFinite { row, column }));
            }
            if let Some(expected) = here.rows {
                let other_side = there.rows == Some(found);
                return Ok(Some(MismatchKind::Rows { expected, found, other_side, edited: vec![] }));
            }
        }
        let Some(expected) = here.whole else { return Ok(None) };
        let found = self.digest(tensor, progress)?;
        Ok((found != expected).then_some(MismatchKind::Elsewhere { expected, found }))
    }
}

/// The touched tensors in the order of the edits, if all are there with the type and shape that the edits expect.
///
/// # Errors
/// Every tensor that is missing or of another type or shape.
pub fn find_touched<'c>(
    checkpoint: &'c Checkpoint,
    edits: &Edits,
    side: Side,
) -> Result<Vec<&'c TensorInfo>, BindError> {
    let (mut found, mut mismatches) = (Vec::new(), Vec::new());
    for edit in edits {
        let kind = match checkpoint.tensor(edit.tensor()) {
            Err(_) => MismatchKind::Missing { renamed: None },
            Ok(tensor) if tensor.dtype.editable() != Some(edit.dtype()) => {
                MismatchKind::Dtype { expected: edit.dtype(), found: tensor.dtype }
            }
            Ok(tensor) if tensor.shape != *edit.shape() => {
                MismatchKind::Shape { expected: edit.shape().clone(), found: tensor.shape.clone() }
            }
            Ok(tensor) => {
                found.push(tensor);
                continue;
            }
        };
        mismatches.push(Mismatch { tensor: edit.tensor().clone(), kind });
    }
    refuse(edits, side, mismatches)?;
    Ok(found)
}

fn refuse(edits: &Edits, side: Side, mismatches: Vec<Mismatch>) -> Result<(), BindError> {
    let tensors = edits.len();
    if mismatches.is_empty() { Ok(()) } else { Err(BindError::Mismatch { tensors, side, mismatches }) }
}

/// The first element with all exponent bits set.
fn first_not_finite(dtype: Dtype, row: &[u8]) -> Option<usize> {
    let mask: u32 = match dtype {
        Dtype::Bf16 => 0x7f80,
        Dtype::F16 => 0x7c00,
        Dtype::F32 => 0x7f80_0000,
    };
    row.chunks_exact(dtype.size()).position(|element| {
        let bits = element.iter().rev().fold(0, |bits, byte| bits << 8 | u32::from(*byte));
        bits & mask == mask
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn not_finite_is_found_in_each_type() {
        let encode = |dtype, value: f32| match dtype {
            Dtype::Bf16 => half::bf16::from_f32(value).to_le_bytes().to_vec(),
            Dtype::F16 => half::f16::from_f32(value).to_le_bytes().to_vec(),
            Dtype::F32 => value.to_le_bytes().to_vec(),
        };
        for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32] {
            for (value, expected) in [(f32::NAN, Some(1)), (f32::NEG_INFINITY, Some(1)), (-1.5, None), (6e4, None)] {
                assert_eq!(
                    first_not_finite(dtype, &[encode(dtype, 0.0), encode(dtype, value)].concat()),
                    expected,
                    "{dtype} {value}"
                );
            }
        }
    }
}
