//! Where the vectors ("rows") of a tensor lie, row-major or transposed, at any rank.

use std::fmt;

use serde::Serialize;

use crate::format::edit::EditError;
use crate::format::limits::MAX_COLS;
use crate::tensor::Shape;

/// How the vectors ("rows") of a tensor lie in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// `[.., n, d]`: vector `i` is row `i` of the matrix `[prod(leading) * n, d]`. Linear layers, fused experts.
    Rows,
    /// `[.., d, n]`: vector `e * n + j` is column `j` of matrix `e`. Transposed linear layers.
    Columns,
}

impl Layout {
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Rows => 0,
            Self::Columns => 1,
        }
    }

    pub(crate) fn of(code: u8) -> Option<Self> {
        [Self::Rows, Self::Columns].into_iter().find(|layout| layout.code() == code)
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rows => "rows",
            Self::Columns => "columns",
        })
    }
}

/// Where one vector lies in its tensor, in elements: `start`, `start + stride`, .. `len` of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Element offset of the first.
    pub start: u64,
    /// Elements from one to the next: 1 means contiguous.
    pub stride: u64,
    /// How many.
    pub len: usize,
}

/// The vectors of a tensor of some shape and layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vectors {
    layout: Layout,
    count: u64,
    len: usize,
    per_matrix: u64,
}

impl Vectors {
    /// The vectors of a tensor of `shape`.
    ///
    /// # Errors
    /// Fewer than two dimensions, a zero dimension, vectors longer than [`MAX_COLS`], more than 2^32 vectors.
    pub fn new(layout: Layout, shape: &Shape) -> Result<Self, EditError> {
        let refuse = || EditError::Shape { tensor: String::new(), shape: shape.clone(), layout };
        let [leading @ .., outer, inner] = shape.dims() else { return Err(refuse()) };
        let (per_matrix, len) = match layout {
            Layout::Rows => (*outer, *inner),
            Layout::Columns => (*inner, *outer),
        };
        let count = leading.iter().try_fold(per_matrix, |count, dim| count.checked_mul(*dim)).ok_or_else(refuse)?;
        let len = usize::try_from(len).ok().filter(|len| (1..=MAX_COLS).contains(len)).ok_or_else(refuse)?;
        if count == 0 || count > 1 << 32 {
            return Err(refuse());
        }
        Ok(Self { layout, count, len, per_matrix })
    }

    /// How they lie.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// How many vectors the tensor has.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// How many vectors each matrix of the tensor has; all of them where the tensor is one matrix.
    pub fn per_matrix(&self) -> u64 {
        self.per_matrix
    }

    /// How many matrices the tensor is a stack of: the product of the leading dimensions.
    pub fn matrices(&self) -> u64 {
        self.count / self.per_matrix
    }

    /// Elements of one vector.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Always false: a tensor without vectors is refused by [`Vectors::new`].
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Where vector `index` lies, or `None` past the last.
    pub fn span(&self, index: u32) -> Option<Span> {
        let (index, len) = (u64::from(index), self.len as u64);
        if index >= self.count {
            return None;
        }
        Some(match self.layout {
            Layout::Rows => Span { start: index * len, stride: 1, len: self.len },
            Layout::Columns => {
                let (matrix, column) = (index / self.per_matrix, index % self.per_matrix);
                Span { start: matrix * len * self.per_matrix + column, stride: self.per_matrix, len: self.len }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every element belongs to exactly one vector, in either layout, at any rank.
    #[test]
    fn spans_cover_the_tensor_once() {
        for (layout, shape) in [
            (Layout::Rows, vec![3, 5]),
            (Layout::Columns, vec![3, 5]),
            (Layout::Rows, vec![2, 3, 4]),
            (Layout::Columns, vec![2, 3, 4]),
        ] {
            let shape = Shape::new(shape).unwrap();
            let vectors = Vectors::new(layout, &shape).unwrap();
            let mut seen: Vec<u64> = (0..vectors.count() as u32)
                .map(|index| vectors.span(index).unwrap())
                .flat_map(|span| (0..span.len as u64).map(move |i| span.start + i * span.stride))
                .collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..shape.elements()).collect::<Vec<_>>(), "{layout} {shape}");
            assert_eq!(vectors.span(vectors.count() as u32), None);
        }
    }

    #[test]
    fn columns_are_those_of_each_matrix() {
        let vectors = Vectors::new(Layout::Columns, &Shape::new([2, 3, 4]).unwrap()).unwrap();
        assert_eq!((vectors.count(), vectors.len(), vectors.matrices(), vectors.per_matrix()), (8, 3, 2, 4));
        assert_eq!(vectors.span(5), Some(Span { start: 12 + 1, stride: 4, len: 3 }));
    }
}
