//! What a patch changes: per tensor, which rows, which cluster each belongs to, and one shared delta per cluster.
//!
//! Everything here is checked when built, so that code behind it need not ask again.

use crate::format::float;
use crate::format::limits::{MAX_COLS, MAX_EDITS, MAX_ROWS};
pub use crate::format::vectors::{Layout, Span, Vectors};
use crate::tensor::{Dtype, Shape, TensorName};

/// Why a set of edits is refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum EditError {
    /// A patch that edits nothing.
    #[error("{what}: expected at least one, found none")]
    Empty {
        /// What is missing: `edits`, or `rows of NAME`.
        what: String,
    },
    /// A count over its cap in [`crate::format::limits`].
    #[error("{what}: expected at most {limit}, found {found}")]
    TooMany {
        /// What is counted.
        what: String,
        /// The cap.
        limit: usize,
        /// The count.
        found: usize,
    },
    /// A shape that has no rows or no columns.
    #[error(
        "tensor {tensor:?}: expected a shape of at least two dimensions, none zero, with at most {MAX_COLS} elements to a vector and 2^32 vectors, found {shape} ({layout})"
    )]
    Shape {
        /// The tensor, or empty where only a shape was given.
        tensor: String,
        /// Its shape.
        shape: Shape,
        /// How its vectors lie.
        layout: Layout,
    },
    /// A row or tensor out of order or twice.
    #[error("{what}: expected strictly ascending order, found {found} after {before}")]
    Order {
        /// Which list.
        what: String,
        /// The element before.
        before: String,
        /// The element that does not come after it.
        found: String,
    },
    /// A row index outside the tensor.
    #[error("tensor {tensor:?}: expected row indices under {count}, found {found}")]
    OutOfRange {
        /// The tensor.
        tensor: String,
        /// Vectors that the tensor has.
        count: u64,
        /// The index.
        found: u32,
    },
    /// Two lists that must have one length.
    #[error("tensor {tensor:?}: {what}: expected {expected}, found {found}")]
    Length {
        /// The tensor.
        tensor: String,
        /// Which list.
        what: &'static str,
        /// Elements it must have.
        expected: usize,
        /// Elements it has.
        found: usize,
    },
    /// Cluster ids that are not numbered by first use.
    #[error(
        "tensor {tensor:?}: expected clusters numbered in the order of first use, found {found} when {expected} were in use"
    )]
    Clusters {
        /// The tensor.
        tensor: String,
        /// Clusters in use before.
        expected: u32,
        /// The cluster found.
        found: u32,
    },
    /// A delta that is NaN, infinite, negative zero, or not a number of its element type.
    #[error("delta {index} is {value:?}, expected a finite number that {dtype} holds exactly (zero without a sign)")]
    Delta {
        /// Position in the row-major matrix.
        index: usize,
        /// The value.
        value: f32,
        /// The declared element type.
        dtype: Dtype,
    },
}

/// Shared deltas: a `k x cols` matrix, row-major, every value exact in the stored element type.
#[derive(Debug, Clone, PartialEq)]
pub struct Deltas {
    dtype: Dtype,
    cols: usize,
    values: Vec<f32>,
}

impl Deltas {
    /// Takes values that `dtype` holds exactly.
    ///
    /// # Errors
    /// A value that is NaN, infinite, `-0.0` or not exact in `dtype`; a length that is no multiple of `cols`.
    pub fn new(dtype: Dtype, cols: usize, values: Vec<f32>) -> Result<Self, EditError> {
        if cols == 0 || values.is_empty() || !values.len().is_multiple_of(cols) {
            let expected = cols.max(1).saturating_mul(values.len().div_ceil(cols.max(1)).max(1));
            return Err(EditError::Length {
                tensor: String::new(),
                what: "values of the delta matrix",
                expected,
                found: values.len(),
            });
        }
        let exact = |value: f32| value.is_finite() && float::rounded(dtype, value).to_bits() == value.to_bits();
        match values.iter().position(|value| !exact(*value) || value.to_bits() == (-0.0_f32).to_bits()) {
            Some(index) => {
                Err(EditError::Delta { index, value: values.get(index).copied().unwrap_or(f32::NAN), dtype })
            }
            None => Ok(Self { dtype, cols, values }),
        }
    }

    /// Rounds trained values to `dtype` first; `-0.0` becomes `0.0`.
    ///
    /// # Errors
    /// As [`Deltas::new`]; also a value that overflows `dtype`.
    pub fn rounded(dtype: Dtype, cols: usize, values: &[f32]) -> Result<Self, EditError> {
        // Adding positive zero turns -0.0 into 0.0 and changes nothing else.
        Self::new(dtype, cols, values.iter().map(|value| float::rounded(dtype, *value) + 0.0).collect())
    }

    /// The element type they are stored in.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Elements of one delta.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// How many deltas.
    pub fn k(&self) -> usize {
        self.values.len() / self.cols
    }

    /// All values, row-major.
    pub fn values(&self) -> &[f32] {
        &self.values
    }
}

/// The parts of an [`Edit`], before they are checked.
#[derive(Debug, Clone)]
pub struct EditParts {
    /// The tensor to change.
    pub tensor: TensorName,
    /// Its element type in the base.
    pub dtype: Dtype,
    /// Its shape in the base.
    pub shape: Shape,
    /// How its vectors lie.
    pub layout: Layout,
    /// Indices of the vectors to change, strictly ascending.
    pub rows: Vec<u32>,
    /// The cluster of each of `rows`, numbered in the order of first use.
    pub clusters: Vec<u32>,
    /// One delta per cluster.
    pub deltas: Deltas,
}

/// One tensor's change, checked: rows in bounds and ascending, every cluster used, deltas as long as a vector.
#[derive(Debug, Clone, PartialEq)]
pub struct Edit {
    tensor: TensorName,
    dtype: Dtype,
    shape: Shape,
    vectors: Vectors,
    rows: Vec<u32>,
    clusters: Vec<u32>,
    deltas: Deltas,
}

impl Edit {
    /// Checks the parts against each other.
    ///
    /// # Errors
    /// The first rule of [`EditError`] that they break.
    pub fn new(parts: EditParts) -> Result<Self, EditError> {
        let EditParts { tensor, dtype, shape, layout, rows, clusters, deltas } = parts;
        let name = || tensor.as_str().to_owned();
        let vectors = Vectors::new(layout, &shape).map_err(|_| EditError::Shape {
            tensor: name(),
            shape: shape.clone(),
            layout,
        })?;
        check_rows(tensor.as_str(), &rows, vectors.count())?;
        let length = |what, expected, found| match expected == found {
            true => Ok(()),
            false => Err(EditError::Length { tensor: name(), what, expected, found }),
        };
        length("cluster ids", rows.len(), clusters.len())?;
        length("deltas", count_clusters(tensor.as_str(), &clusters)?, deltas.k())?;
        length("columns of the deltas", vectors.len(), deltas.cols())?;
        Ok(Self { tensor, dtype, shape, vectors, rows, clusters, deltas })
    }

    /// The tensor to change.
    pub fn tensor(&self) -> &TensorName {
        &self.tensor
    }

    /// Its element type in the base.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Its shape in the base.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// How its vectors lie.
    pub fn layout(&self) -> Layout {
        self.vectors.layout()
    }

    /// Its vectors: how many, how long, where.
    pub fn vectors(&self) -> Vectors {
        self.vectors
    }

    /// Indices of the vectors to change, strictly ascending.
    pub fn rows(&self) -> &[u32] {
        &self.rows
    }

    /// The cluster of each of [`Edit::rows`].
    pub fn clusters(&self) -> &[u32] {
        &self.clusters
    }

    /// The shared deltas.
    pub fn deltas(&self) -> &Deltas {
        &self.deltas
    }

    /// How many clusters.
    pub fn k(&self) -> usize {
        self.deltas.k()
    }

    /// The delta of `cluster`, or an empty slice past the last.
    pub fn delta(&self, cluster: u32) -> &[f32] {
        self.deltas.values.chunks_exact(self.deltas.cols).nth(cluster as usize).unwrap_or_default()
    }

    /// Each row to change: its index, where it lies, and what to add.
    pub fn changes(&self) -> impl ExactSizeIterator<Item = (u32, Span, &[f32])> {
        let nowhere = Span { start: 0, stride: 1, len: 0 };
        self.rows
            .iter()
            .zip(&self.clusters)
            .map(move |(row, cluster)| (*row, self.vectors.span(*row).unwrap_or(nowhere), self.delta(*cluster)))
    }

    /// Bytes of one row in the base.
    pub fn row_bytes(&self) -> usize {
        self.vectors.len() * self.dtype.size()
    }

    /// Bytes of all touched rows in the base.
    pub fn touched_bytes(&self) -> u64 {
        self.rows.len() as u64 * self.row_bytes() as u64
    }
}

/// All edits of a patch: at least one, sorted by tensor name, each tensor once.
#[derive(Debug, Clone, PartialEq)]
pub struct Edits(Vec<Edit>);

impl Edits {
    /// Checks order and counts. The order is that of the names' bytes.
    ///
    /// # Errors
    /// None, too many, or out of order.
    pub fn new(edits: Vec<Edit>) -> Result<Self, EditError> {
        if edits.is_empty() {
            return Err(EditError::Empty { what: "edits".to_owned() });
        }
        at_most("edited tensors", MAX_EDITS, edits.len())?;
        at_most("edited rows", MAX_ROWS, edits.iter().map(|edit| edit.rows.len()).sum())?;
        for (before, edit) in edits.iter().zip(edits.iter().skip(1)) {
            if before.tensor >= edit.tensor {
                return Err(EditError::Order {
                    what: "edited tensors".to_owned(),
                    before: format!("{:?}", before.tensor.as_str()),
                    found: format!("{:?}", edit.tensor.as_str()),
                });
            }
        }
        Ok(Self(edits))
    }

    /// The edits in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Edit> {
        self.0.iter()
    }

    /// How many tensors are edited.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Always false: [`Edits::new`] refuses none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The edit of `tensor`.
    pub fn get(&self, tensor: &TensorName) -> Option<&Edit> {
        self.0.binary_search_by(|edit| edit.tensor.cmp(tensor)).ok().and_then(|index| self.0.get(index))
    }

    /// Rows over all tensors.
    pub fn rows(&self) -> usize {
        self.iter().map(|edit| edit.rows.len()).sum()
    }

    /// Delta values over all tensors: the trained parameters.
    pub fn parameters(&self) -> usize {
        self.iter().map(|edit| edit.deltas.values.len()).sum()
    }

    /// Bytes of all touched rows in the base: the residual's length.
    pub fn touched_bytes(&self) -> u64 {
        self.iter().map(Edit::touched_bytes).sum()
    }
}

impl<'a> IntoIterator for &'a Edits {
    type Item = &'a Edit;
    type IntoIter = std::slice::Iter<'a, Edit>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

fn check_rows(tensor: &str, rows: &[u32], count: u64) -> Result<(), EditError> {
    let Some(last) = rows.last() else { return Err(EditError::Empty { what: format!("rows of {tensor:?}") }) };
    for (before, row) in rows.iter().zip(rows.iter().skip(1)) {
        if before >= row {
            let what = format!("rows of {tensor:?}");
            return Err(EditError::Order { what, before: before.to_string(), found: row.to_string() });
        }
    }
    if u64::from(*last) >= count {
        return Err(EditError::OutOfRange { tensor: tensor.to_owned(), count, found: *last });
    }
    Ok(())
}

/// How many clusters there are. Numbering by first use makes the encoding of one grouping unique, and every cluster used.
pub(crate) fn count_clusters(tensor: &str, clusters: &[u32]) -> Result<usize, EditError> {
    let used = clusters.iter().try_fold(0_u32, |used, cluster| match *cluster {
        cluster if cluster < used => Ok(used),
        cluster if cluster == used => Ok(used + 1),
        found => Err(EditError::Clusters { tensor: tensor.to_owned(), expected: used, found }),
    })?;
    Ok(used as usize)
}

fn at_most(what: &str, limit: usize, found: usize) -> Result<(), EditError> {
    if found <= limit { Ok(()) } else { Err(EditError::TooMany { what: what.to_owned(), limit, found }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts() -> EditParts {
        EditParts {
            tensor: TensorName::new("t").unwrap(),
            dtype: Dtype::Bf16,
            shape: Shape::new([8, 2]).unwrap(),
            layout: Layout::Rows,
            rows: vec![1, 3, 7],
            clusters: vec![0, 1, 0],
            deltas: Deltas::new(Dtype::Bf16, 2, vec![1.0, 2.0, 3.0, 0.0]).unwrap(),
        }
    }

    #[test]
    fn each_rule_refuses_by_its_own_error() {
        assert!(Edit::new(parts()).is_ok());
        let refused = |change: fn(&mut EditParts)| {
            let mut parts = parts();
            change(&mut parts);
            Edit::new(parts).unwrap_err().to_string()
        };
        type Change = fn(&mut EditParts);
        let cases: [(Change, &str); 9] = [
            (|p| p.rows = vec![], "rows of \"t\": expected at least one"),
            (|p| p.rows = vec![1, 3, 3], "strictly ascending order, found 3 after 3"),
            (|p| p.rows = vec![1, 3, 8], "expected row indices under 8, found 8"),
            (|p| p.clusters = vec![0, 1], "cluster ids: expected 3, found 2"),
            (|p| p.clusters = vec![1, 0, 1], "numbered in the order of first use, found 1 when 0"),
            (|p| p.clusters = vec![0, 0, 0], "deltas: expected 1, found 2"),
            (|p| p.shape = Shape::new([16]).unwrap(), "at least two dimensions"),
            (|p| p.shape = Shape::new([8, 0]).unwrap(), "none zero"),
            (|p| p.shape = Shape::new([8, 4]).unwrap(), "columns of the deltas: expected 4, found 2"),
        ];
        for (change, message) in cases {
            let found = refused(change);
            assert!(found.contains(message), "{found}");
        }
    }

    #[test]
    fn deltas_are_finite_exact_and_without_negative_zero() {
        for wrong in [f32::NAN, f32::INFINITY, -0.0, 1.001, 1e-45] {
            assert!(Deltas::new(Dtype::Bf16, 1, vec![wrong]).is_err(), "{wrong}");
        }
        assert!(Deltas::new(Dtype::F32, 1, vec![1.001]).is_ok());
        let rounded = Deltas::rounded(Dtype::Bf16, 2, &[1.001, -1e-45]).unwrap();
        assert_eq!(rounded.values().iter().map(|value| value.to_bits()).collect::<Vec<_>>(), [0x3f80_0000, 0]);
        assert!(Deltas::rounded(Dtype::F16, 1, &[70_000.0]).is_err(), "overflow");
        assert!(Deltas::new(Dtype::F32, 2, vec![1.0; 3]).is_err());
        assert!(Deltas::new(Dtype::F32, 0, vec![]).is_err());
    }

    #[test]
    fn edits_are_sorted_and_unique() {
        let named = |name: &str| Edit::new(EditParts { tensor: TensorName::new(name).unwrap(), ..parts() }).unwrap();
        assert!(Edits::new(vec![]).is_err());
        assert!(Edits::new(vec![named("a"), named("a")]).is_err());
        assert!(Edits::new(vec![named("b"), named("a")]).is_err());
        let edits = Edits::new(vec![named("a"), named("b")]).unwrap();
        assert_eq!((edits.rows(), edits.parameters(), edits.touched_bytes()), (6, 8, 24));
        assert_eq!(edits.get(&TensorName::new("b").unwrap()).map(Edit::k), Some(2));
        assert_eq!(edits.get(&TensorName::new("c").unwrap()), None);
    }
}
