//! What a patch cannot say, and why.

use std::fmt;

use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::checkpoint::StoredType;
use crate::format::limits::{MAX_EDITS, MAX_ROWS};
use crate::tensor::{Shape, TensorName};

/// How much of a tensor differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Changed {
    /// Rows of its last dimension.
    pub rows: u64,
    /// Elements; bytes where an element has less than one.
    pub elements: u64,
}

/// A tensor whose difference is not in the patch.
#[derive(Debug, Clone, PartialEq)]
pub struct Omitted {
    /// The tensor.
    pub tensor: TensorName,
    /// Why.
    pub reason: Reason,
    /// How much of it differs; absent where the two cannot be compared.
    pub changed: Option<Changed>,
}

/// Why a difference is not in the patch.
#[derive(Debug, Clone, PartialEq)]
pub enum Reason {
    /// The tuned checkpoint lacks the tensor.
    OnlyInBase,
    /// The base lacks the tensor.
    OnlyInTuned,
    /// The two have other element types.
    OtherType {
        /// That of the base.
        base: StoredType,
        /// That of the tuned one.
        tuned: StoredType,
    },
    /// The two have other dimensions.
    OtherShape {
        /// Those of the base.
        base: Shape,
        /// Those of the tuned one.
        tuned: Shape,
    },
    /// An element type that patches cannot touch.
    Type {
        /// The type.
        found: StoredType,
    },
    /// Fewer than two dimensions: a norm or a bias.
    NoMatrix {
        /// Its dimensions.
        shape: Shape,
    },
    /// By its name no feed-forward projection.
    NotFeedForward,
    /// More than half of its rows changed and more than half of its columns, or its vectors are too long for a patch.
    Dense {
        /// Its dimensions.
        shape: Shape,
    },
    /// The patch has as many rows or tensors as it may without it.
    Full,
    /// NaN or infinity in a changed row.
    NotFinite {
        /// The row, or column where those are what changed.
        vector: u32,
        /// The element within it.
        element: usize,
    },
    /// No finite delta takes the one weight to the other.
    NoDelta {
        /// The row, or column where those are what changed.
        vector: u32,
        /// The element within it.
        element: usize,
        /// The base's weight.
        base: f32,
        /// The tuned one.
        tuned: f32,
    },
}

impl Reason {
    /// One word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::OnlyInBase => "only_in_base",
            Self::OnlyInTuned => "only_in_tuned",
            Self::OtherType { .. } => "other_type",
            Self::OtherShape { .. } => "other_shape",
            Self::Type { .. } => "type",
            Self::NoMatrix { .. } => "no_matrix",
            Self::NotFeedForward => "not_feed_forward",
            Self::Dense { .. } => "dense",
            Self::Full => "full",
            Self::NotFinite { .. } => "not_finite",
            Self::NoDelta { .. } => "no_delta",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OnlyInBase => f.write_str("only in the base"),
            Self::OnlyInTuned => f.write_str("only in the tuned checkpoint"),
            Self::OtherType { base, tuned } => write!(f, "element type {base} in the base, {tuned} in the tuned one"),
            Self::OtherShape { base, tuned } => write!(f, "shape {base} in the base, {tuned} in the tuned one"),
            Self::Type { found } => write!(f, "element type {found}: expected BF16, F16 or F32"),
            Self::NoMatrix { shape } => write!(f, "shape {shape}: expected two dimensions or more"),
            Self::NotFeedForward => f.write_str("by its name no feed-forward projection"),
            Self::Dense { shape } => {
                write!(f, "shape {shape}: most rows and most columns changed, or they are too long, so no row patch")
            }
            Self::Full => write!(f, "expected at most {MAX_ROWS} rows and {MAX_EDITS} tensors in one patch"),
            Self::NotFinite { vector, element } => {
                write!(f, "vector {vector}, element {element}: expected a finite weight, found NaN or infinity")
            }
            Self::NoDelta { vector, element, base, tuned } => {
                write!(f, "vector {vector}, element {element}: no delta takes {base:e} to {tuned:e}")
            }
        }
    }
}

impl fmt::Display for Omitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.tensor, self.reason)?;
        match self.changed {
            Some(Changed { rows, elements }) => write!(f, " (changed: rows {rows}, elements {elements})"),
            None => Ok(()),
        }
    }
}

impl Serialize for Omitted {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("tensor", &self.tensor)?;
        map.serialize_entry("reason", self.reason.code())?;
        map.serialize_entry("explanation", &self.reason.to_string())?;
        if let Some(Changed { rows, elements }) = self.changed {
            map.serialize_entry("rows", &rows)?;
            map.serialize_entry("elements", &elements)?;
        }
        map.end()
    }
}
