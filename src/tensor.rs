//! Words for tensors: name, element type, shape. No files, no arithmetic.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest tensor name accepted, in bytes. Real names stay under 200.
pub const MAX_NAME_BYTES: usize = 512;
/// The most dimensions a tensor may have.
pub const MAX_RANK: usize = 8;

/// Why a text or list is not a tensor name, element type or shape.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// Empty, too long, or holding a control character.
    #[error("tensor name {name:?}: expected 1 to {MAX_NAME_BYTES} bytes of printable text")]
    Name {
        /// The name, cut for display.
        name: String,
    },
    /// An element type that a patch cannot touch.
    #[error("element type {found:?}: expected BF16, F16 or F32")]
    Dtype {
        /// The type as written.
        found: String,
    },
    /// Too many dimensions, or more elements than 2^63.
    #[error("shape {found:?}: expected at most {MAX_RANK} dimensions and fewer than 2^63 elements")]
    Shape {
        /// The dimensions, cut for display.
        found: Vec<u64>,
    },
}

/// The name of a tensor in a checkpoint, as written in its safetensors header.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TensorName(String);

impl TensorName {
    /// Checks length and characters.
    pub fn new(name: impl Into<String>) -> Result<Self, TensorError> {
        let name = name.into();
        let printable = !name.is_empty() && !name.chars().any(char::is_control);
        if printable && name.len() <= MAX_NAME_BYTES {
            Ok(Self(name))
        } else {
            Err(TensorError::Name { name: name.chars().take(80).collect() })
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TensorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for TensorName {
    type Error = TensorError;

    fn try_from(name: String) -> Result<Self, TensorError> {
        Self::new(name)
    }
}

impl From<TensorName> for String {
    fn from(name: TensorName) -> Self {
        name.0
    }
}

/// The element type of a tensor that a patch can touch: an IEEE 754 or bfloat16 format, little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Dtype {
    /// bfloat16: 1 sign, 8 exponent, 7 fraction bits.
    Bf16,
    /// IEEE 754 binary16.
    F16,
    /// IEEE 754 binary32.
    F32,
}

impl Dtype {
    /// Bytes an element takes.
    pub const fn size(self) -> usize {
        match self {
            Self::Bf16 | Self::F16 => 2,
            Self::F32 => 4,
        }
    }

    /// The name safetensors gives it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bf16 => "BF16",
            Self::F16 => "F16",
            Self::F32 => "F32",
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Dtype {
    type Err = TensorError;

    fn from_str(text: &str) -> Result<Self, TensorError> {
        [Self::Bf16, Self::F16, Self::F32]
            .into_iter()
            .find(|dtype| dtype.as_str() == text)
            .ok_or_else(|| TensorError::Dtype { found: text.chars().take(40).collect() })
    }
}

/// The dimensions of a tensor, outermost first; elements are stored row-major.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<u64>", into = "Vec<u64>")]
pub struct Shape(Vec<u64>);

impl Shape {
    /// Checks the number of dimensions and that the element count stays under 2^63.
    pub fn new(dims: impl Into<Vec<u64>>) -> Result<Self, TensorError> {
        let dims = dims.into();
        let count = dims.iter().try_fold(1_u64, |count, dim| count.checked_mul(*dim));
        match count {
            Some(count) if count < 1 << 63 && dims.len() <= MAX_RANK => Ok(Self(dims)),
            _ => Err(TensorError::Shape { found: dims.into_iter().take(MAX_RANK + 1).collect() }),
        }
    }

    /// The dimensions, outermost first.
    pub fn dims(&self) -> &[u64] {
        &self.0
    }

    /// The number of elements.
    pub fn elements(&self) -> u64 {
        self.0.iter().product()
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (index, dim) in self.0.iter().enumerate() {
            write!(f, "{}{dim}", if index == 0 { "" } else { ", " })?;
        }
        f.write_str("]")
    }
}

impl TryFrom<Vec<u64>> for Shape {
    type Error = TensorError;

    fn try_from(dims: Vec<u64>) -> Result<Self, TensorError> {
        Self::new(dims)
    }
}

impl From<Shape> for Vec<u64> {
    fn from(shape: Shape) -> Self {
        shape.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bounded_and_printable() {
        assert!(TensorName::new("model.layers.0.mlp.gate_proj.weight").is_ok());
        for wrong in ["", "a\nb", "\u{1b}[31m", &"x".repeat(513)] {
            assert!(TensorName::new(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn shapes_do_not_overflow() {
        assert_eq!(Shape::new([3, 5]).map(|shape| shape.elements()), Ok(15));
        assert!(Shape::new([u64::MAX, 2]).is_err());
        assert!(Shape::new([1; 9]).is_err());
    }

    #[test]
    fn dtype_names_are_those_of_safetensors() {
        for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32] {
            assert_eq!(dtype.as_str().parse(), Ok(dtype));
            assert_eq!(serde_json::to_value(dtype).ok(), Some(dtype.as_str().into()));
        }
        assert!("bf16".parse::<Dtype>().is_err());
    }
}
