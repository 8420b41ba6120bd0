//! Whether a checkpoint is what a patch was made for, or what it gives.

use std::fmt;

use super::{Cells, Checkpoint, CheckpointError, Progress, StoredType, TensorInfo};
use crate::digest::Blake3;
use crate::format::binding::{LengthError, RowsHasher, TensorHasher, architecture_value};
use crate::format::manifest::{BaseTensor, ResultTensor};
use crate::format::{Edit, Edits, Level, Manifest};
use crate::tensor::{Dtype, Shape, TensorName};

/// The state of a checkpoint that is asked for: before the patch, or after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// What the patch was made for.
    Base,
    /// What it gives.
    Result,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Base => "base",
            Self::Result => "result",
        })
    }
}

/// A checkpoint whose touched tensors were found to be those of a manifest. Only [`BoundBase::exact`] makes one.
#[derive(Debug)]
pub struct BoundBase<'c> {
    checkpoint: &'c Checkpoint,
    tensors: Vec<&'c TensorInfo>,
    side: Side,
    level: Level,
}

/// Why a checkpoint was not bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// It cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// It is another one.
    #[error("{} of {tensors} touched tensors differ from the patch's {side}: {}", mismatches.len(), list(mismatches))]
    Mismatch {
        /// Tensors that the patch touches.
        tensors: usize,
        /// The state that was asked for.
        side: Side,
        /// Every tensor that differs.
        mismatches: Vec<Mismatch>,
    },
    /// The edits and the manifest do not belong together.
    #[error(transparent)]
    Length(#[from] LengthError),
}

impl BindError {
    /// Whether the checkpoint holds weights that are not numbers.
    pub fn is_damage(&self) -> bool {
        let not_finite = |mismatch: &Mismatch| matches!(mismatch.kind, MismatchKind::NotFinite { .. });
        matches!(self, Self::Mismatch { mismatches, .. } if mismatches.iter().any(not_finite))
    }
}

/// A touched tensor that is not as expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// The tensor.
    pub tensor: TensorName,
    /// How it differs.
    pub kind: MismatchKind,
}

/// How a touched tensor differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MismatchKind {
    /// The checkpoint has none of that name.
    Missing,
    /// Another element type.
    Dtype {
        /// That of the manifest.
        expected: Dtype,
        /// That of the checkpoint.
        found: StoredType,
    },
    /// Other dimensions.
    Shape {
        /// Those of the manifest.
        expected: Shape,
        /// Those of the checkpoint.
        found: Shape,
    },
    /// Other bytes in the rows that the patch touches.
    Rows {
        /// The rows' digest in the manifest.
        expected: Blake3,
        /// That of the checkpoint.
        found: Blake3,
        /// Whether they hold the patch's other side: its result where its base is asked for, or the other way round.
        other_side: bool,
    },
    /// The touched rows are as expected, bytes outside them are not.
    Elsewhere {
        /// The tensor's digest in the manifest.
        expected: Blake3,
        /// That of the checkpoint.
        found: Blake3,
    },
    /// NaN or infinity in a touched row.
    NotFinite {
        /// The row.
        row: u32,
        /// The element within it.
        column: usize,
    },
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.tensor)?;
        match &self.kind {
            MismatchKind::Missing => f.write_str("not in the checkpoint"),
            MismatchKind::Dtype { expected, found } => write!(f, "expected element type {expected}, found {found}"),
            MismatchKind::Shape { expected, found } => write!(f, "expected shape {expected}, found {found}"),
            MismatchKind::Rows { expected, found, other_side } => {
                let holds = if *other_side { " (the other side of this patch)" } else { "" };
                let (expected, found) = (expected.short(), found.short());
                write!(f, "expected touched rows with BLAKE3 {expected}, found {found}{holds}")
            }
            MismatchKind::Elsewhere { expected, found } => {
                let (expected, found) = (expected.short(), found.short());
                write!(
                    f,
                    "touched rows as expected, but not the rows around them: expected BLAKE3 {expected}, found {found}"
                )
            }
            MismatchKind::NotFinite { row, column } => {
                write!(f, "row {row}, column {column}: expected a finite weight, found NaN or infinity")
            }
        }
    }
}

/// The first three in words, and how many more.
fn list(mismatches: &[Mismatch]) -> String {
    let shown: Vec<String> = mismatches.iter().take(3).map(Mismatch::to_string).collect();
    let more = mismatches.len().saturating_sub(shown.len());
    if more == 0 { shown.join("; ") } else { format!("{}; and {more} more", shown.join("; ")) }
}

impl<'c> BoundBase<'c> {
    /// Binds at the level `exact`: every touched tensor has the name, element type, shape and bytes of that side of
    /// the manifest. Reads each touched tensor once.
    ///
    /// # Errors
    /// Every tensor that differs, or the first that cannot be read.
    pub fn exact(
        checkpoint: &'c Checkpoint,
        manifest: &Manifest,
        edits: &Edits,
        side: Side,
        progress: &dyn Progress,
    ) -> Result<Self, BindError> {
        let tensors = find_touched(checkpoint, edits, side)?;
        progress.stage(&format!("checking the {side}"), tensors.iter().map(|tensor| tensor.length).sum());
        let mut mismatches = Vec::new();
        for ((tensor, edit), expected) in tensors.iter().zip(edits).zip(expectations(manifest, side)) {
            let found = checkpoint.digest(tensor, edit.dtype(), progress)?;
            if found != expected.whole || checkpoint.rows_digest(tensor, edit)?.0 != expected.rows {
                let kind = checkpoint.explain(tensor, edit, &expected, found)?;
                mismatches.push(Mismatch { tensor: tensor.name.clone(), kind });
            }
        }
        refuse(edits, side, mismatches)?;
        Ok(Self { checkpoint, tensors, side, level: Level::Exact })
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

    /// How closely it was compared.
    pub fn level(&self) -> &Level {
        &self.level
    }
}

/// Compares only the touched rows: quick, and blind to what lies around them.
///
/// # Errors
/// Every tensor whose rows differ, or the first that cannot be read.
pub fn check_rows(checkpoint: &Checkpoint, manifest: &Manifest, edits: &Edits, side: Side) -> Result<(), BindError> {
    let tensors = find_touched(checkpoint, edits, side)?;
    let mut mismatches = Vec::new();
    for ((tensor, edit), expected) in tensors.iter().zip(edits).zip(expectations(manifest, side)) {
        let (found, _) = checkpoint.rows_digest(tensor, edit)?;
        if found != expected.rows {
            let kind = MismatchKind::Rows { expected: expected.rows, found, other_side: found == expected.other };
            mismatches.push(Mismatch { tensor: tensor.name.clone(), kind });
        }
    }
    refuse(edits, side, mismatches)
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

impl Checkpoint {
    /// The binding digest of a whole tensor.
    pub fn digest(&self, tensor: &TensorInfo, dtype: Dtype, progress: &dyn Progress) -> Result<Blake3, BindError> {
        let mut hasher = TensorHasher::new(&tensor.name, dtype, &tensor.shape);
        self.stream(tensor, progress, |_, piece| hasher.update(piece))?;
        Ok(hasher.finish()?)
    }

    /// The binding digest of the touched rows, and the first entry that is not finite: (row, column).
    pub fn rows_digest(&self, tensor: &TensorInfo, edit: &Edit) -> Result<(Blake3, Option<(u32, usize)>), BindError> {
        let (mut hasher, mut buffer, mut wrong) = (RowsHasher::new(edit), Vec::new(), None);
        for (row, span, _) in edit.changes() {
            self.read_vector(tensor, Cells::new(span, edit.dtype().size()), &mut buffer)?;
            hasher.update(&buffer);
            wrong = wrong.or_else(|| Some((row, first_not_finite(edit.dtype(), &buffer)?)));
        }
        Ok((hasher.finish()?, wrong))
    }

    fn explain(
        &self,
        tensor: &TensorInfo,
        edit: &Edit,
        expected: &Expected,
        found: Blake3,
    ) -> Result<MismatchKind, BindError> {
        let (rows, not_finite) = self.rows_digest(tensor, edit)?;
        Ok(match not_finite {
            Some((row, column)) => MismatchKind::NotFinite { row, column },
            None if rows == expected.rows => MismatchKind::Elsewhere { expected: expected.whole, found },
            None => MismatchKind::Rows { expected: expected.rows, found: rows, other_side: rows == expected.other },
        })
    }
}

struct Expected {
    whole: Blake3,
    rows: Blake3,
    /// The rows on the other side.
    other: Blake3,
}

fn expectations(manifest: &Manifest, side: Side) -> impl Iterator<Item = Expected> {
    let both = manifest.base.tensors.iter().zip(&manifest.result.tensors);
    both.map(move |(base, result): (&BaseTensor, &ResultTensor)| match side {
        Side::Base => Expected { whole: base.blake3, rows: base.rows, other: result.rows },
        Side::Result => Expected { whole: result.blake3, rows: result.rows, other: base.rows },
    })
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
            Err(_) => MismatchKind::Missing,
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
