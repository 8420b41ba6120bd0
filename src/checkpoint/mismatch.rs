//! How a checkpoint differs from what a patch was made for, or from what it gives.

use std::fmt;

use super::{CheckpointError, StoredType};
use crate::digest::Blake3;
use crate::format::binding::LengthError;
use crate::tensor::{Dtype, Shape, TensorName};

/// The state of a checkpoint that is asked for: before the patch, or after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// What the patch was made for.
    Base,
    /// What it gives.
    Result,
}

impl Side {
    /// Where a patch leads from here, or where it is taken back to.
    pub fn other(self) -> Self {
        match self {
            Self::Base => Self::Result,
            Self::Result => Self::Base,
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Base => "base",
            Self::Result => "result",
        })
    }
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
    Missing {
        /// The name under which it has its touched rows, before or after the patch.
        renamed: Option<TensorName>,
    },
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
        /// The rows that were changed since the patch was applied, where the apply record tells.
        edited: Vec<u32>,
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
            MismatchKind::Missing { renamed: None } => f.write_str("not in the checkpoint"),
            MismatchKind::Missing { renamed: Some(name) } => {
                write!(f, "not in the checkpoint, which has its rows as {name}")
            }
            MismatchKind::Dtype { expected, found } => write!(f, "expected element type {expected}, found {found}"),
            MismatchKind::Shape { expected, found } => write!(f, "expected shape {expected}, found {found}"),
            MismatchKind::Rows { expected, found, other_side, edited } => {
                let holds = if *other_side { " (the other side of this patch)" } else { "" };
                let (expected, found) = (expected.short(), found.short());
                write!(f, "expected touched rows with BLAKE3 {expected}, found {found}{holds}")?;
                match edited.as_slice() {
                    [] => Ok(()),
                    [row] => write!(f, "; row {row} was changed since"),
                    rows => write!(f, "; rows {} were changed since", few(rows)),
                }
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

/// The first eight rows, and how many more.
fn few(rows: &[u32]) -> String {
    let shown: Vec<String> = rows.iter().take(8).map(u32::to_string).collect();
    match rows.len().saturating_sub(shown.len()) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// The first three in words, and how many more.
fn list(mismatches: &[Mismatch]) -> String {
    let shown: Vec<String> = mismatches.iter().take(3).map(Mismatch::to_string).collect();
    let more = mismatches.len().saturating_sub(shown.len());
    if more == 0 { shown.join("; ") } else { format!("{}; and {more} more", shown.join("; ")) }
}
