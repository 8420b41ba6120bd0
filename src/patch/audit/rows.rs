//! Which rows of a tensor differ, found piece by piece.

use std::ops::Range;

use serde::Serialize;

use crate::checkpoint::TensorInfo;
use crate::format::{Edit, Layout};
use crate::tensor::Shape;

/// The most rows that are named of a tensor, of each kind; all are counted.
pub const MAX_NAMED: usize = 16;
/// Bits of the set of columns seen: 1 MiB. Columns further on share a bit, so that some may not be counted.
const SET_BITS: u64 = 1 << 23;

/// What the numbers of [`Rows`] count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Rows as a patch has them.
    Row,
    /// Elements, of a tensor with fewer than two dimensions.
    Element,
}

/// Some rows of a tensor.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Rows {
    /// How many.
    pub count: u64,
    /// The lowest, ascending: at most [`MAX_NAMED`].
    pub first: Vec<u64>,
}

impl Rows {
    /// Counts a row that was not counted before.
    fn add(&mut self, row: u64) {
        self.count += 1;
        if let Err(at) = self.first.binary_search(&row) {
            self.first.insert(at, row);
            self.first.truncate(MAX_NAMED);
        }
    }
}

/// How the rows of a tensor lie: as `spec/format.md` has it (6.1); elements where there are fewer than two dimensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Geometry {
    pub(super) layout: Layout,
    pub(super) unit: Unit,
    bits: u64,
    /// Elements of a row.
    len: u64,
    /// Rows of one matrix.
    per_matrix: u64,
}

impl Geometry {
    /// Of a tensor that an edit touches, or that none does.
    pub(super) fn new(tensor: &TensorInfo, edit: Option<&Edit>) -> Self {
        Self::of(edit.map_or(Layout::Rows, Edit::layout), tensor.dtype.bits(), &tensor.shape)
    }

    /// Of a tensor of this shape, with elements of so many bits.
    pub(super) fn of(layout: Layout, bits: u64, shape: &Shape) -> Self {
        let (unit, outer, inner) = match shape.dims() {
            [.., outer, inner] => (Unit::Row, *outer, *inner),
            dims => (Unit::Element, dims.iter().product(), 1),
        };
        let (per_matrix, len) = match layout {
            Layout::Rows => (outer, inner),
            Layout::Columns => (inner, outer),
        };
        Self { layout, unit, bits, len: len.max(1), per_matrix: per_matrix.max(1) }
    }

    /// The elements of which some bits lie in these bytes.
    fn elements(&self, bytes: Range<u64>) -> Range<u64> {
        let bits = u128::from(self.bits);
        let first = u128::from(bytes.start) * 8 / bits;
        first as u64..(u128::from(bytes.end) * 8).div_ceil(bits) as u64
    }

    /// A range that holds every row with an element in these bytes, and maybe others.
    pub(super) fn rows(&self, bytes: Range<u64>) -> Range<u64> {
        let elements = self.elements(bytes);
        match self.layout {
            Layout::Rows => elements.start / self.len..elements.end.div_ceil(self.len),
            Layout::Columns => {
                let matrix = self.len * self.per_matrix;
                elements.start / matrix * self.per_matrix..elements.end.div_ceil(matrix) * self.per_matrix
            }
        }
    }

    /// The bytes of a row that lies in one piece.
    fn bytes(&self, row: u64) -> Range<u64> {
        let bits = u128::from(self.len) * u128::from(self.bits);
        let first = u128::from(row) * bits;
        (first / 8) as u64..(first + bits).div_ceil(8) as u64
    }
}

/// The rows that were found to differ, by whether the patch touches them.
pub(super) struct Differences<'a> {
    pub(super) geometry: Geometry,
    edit: Option<&'a Edit>,
    /// Touched rows that are not the fold of the base's.
    pub(super) touched: Rows,
    /// Rows around them that are not the base's.
    pub(super) others: Rows,
    /// The last row counted, of rows that lie in one piece.
    last: Option<u64>,
    seen: Seen,
}

impl<'a> Differences<'a> {
    pub(super) fn new(geometry: Geometry, edit: Option<&'a Edit>) -> Self {
        let (touched, others) = Default::default();
        Self { geometry, edit, touched, others, last: None, seen: Seen::default() }
    }

    /// Compares the tensor's bytes from `begin` on with what is expected there. Pieces come in order.
    pub(super) fn compare(&mut self, begin: u64, expected: &[u8], found: &[u8]) {
        if expected == found {
            return;
        }
        match self.geometry.layout {
            Layout::Rows => self.compare_rows(begin, expected, found),
            Layout::Columns => self.compare_columns(begin, expected, found),
        }
    }

    fn compare_rows(&mut self, begin: u64, expected: &[u8], found: &[u8]) {
        let end = begin + expected.len() as u64;
        for row in self.geometry.rows(begin..end) {
            let Range { start, end } = self.geometry.bytes(row);
            let within = start.saturating_sub(begin) as usize..(end - begin).min(expected.len() as u64) as usize;
            if expected.get(within.clone()) != found.get(within) && self.last < Some(row) {
                self.last = Some(row);
                self.add(row);
            }
        }
    }

    fn compare_columns(&mut self, begin: u64, expected: &[u8], found: &[u8]) {
        let Geometry { bits, len, per_matrix, .. } = self.geometry;
        let size = (bits / 8) as usize;
        let pairs = expected.chunks_exact(size).zip(found.chunks_exact(size));
        for (element, _) in (begin / size as u64..).zip(pairs).filter(|(_, (expected, found))| expected != found) {
            let (matrix, column) = (element / (len * per_matrix), element % per_matrix);
            if self.seen.is_new(matrix, column, per_matrix) {
                self.add(matrix * per_matrix + column);
            }
        }
    }

    fn add(&mut self, row: u64) {
        let is_touched = |edit: &Edit| u32::try_from(row).is_ok_and(|row| edit.rows().binary_search(&row).is_ok());
        match self.edit.is_some_and(is_touched) {
            true => self.touched.add(row),
            false => self.others.add(row),
        }
    }
}

/// The columns of one matrix that were counted, as bits.
#[derive(Default)]
struct Seen {
    matrix: u64,
    bits: Vec<u64>,
}

impl Seen {
    /// Whether this column was not asked for before, of `count` in the matrix; matrices come in order.
    fn is_new(&mut self, matrix: u64, column: u64, count: u64) -> bool {
        if self.matrix != matrix {
            self.bits.clear();
            self.matrix = matrix;
        }
        if self.bits.is_empty() {
            self.bits.resize(count.min(SET_BITS).div_ceil(64) as usize, 0);
        }
        let bit = column % SET_BITS;
        let Some(word) = self.bits.get_mut((bit / 64) as usize) else { return false };
        let mask = 1 << (bit % 64);
        let is_new = *word & mask == 0;
        *word |= mask;
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Vectors;
    use proptest::prelude::*;

    fn rows(rows: impl IntoIterator<Item = u64>) -> Rows {
        let mut all = Rows::default();
        rows.into_iter().for_each(|row| all.add(row));
        all
    }

    #[test]
    fn the_lowest_rows_are_named_and_all_are_counted() {
        let found = rows((0..40).rev());
        assert_eq!((found.count, found.first), (40, (0..16).collect()));
    }

    #[test]
    fn a_byte_of_narrow_elements_belongs_to_every_row_in_it() {
        // Rows of three elements of 4 bits: the second byte is shared by rows 0 and 1.
        let geometry = Geometry::of(Layout::Rows, 4, &Shape::new([4, 3]).unwrap());
        let mut differences = Differences::new(geometry, None);
        differences.compare(0, &[0, 0, 0, 0, 0, 0], &[0, 1, 0, 0, 0, 0]);
        assert_eq!(differences.others, rows([0, 1]));
    }

    #[test]
    fn rows_beyond_four_gibibytes_are_found() {
        let shape = Shape::new([1 << 20, 4096]).unwrap();
        let begin = 6 << 30;
        for (layout, row) in [(Layout::Rows, begin / 8192), (Layout::Columns, 7)] {
            let mut differences = Differences::new(Geometry::of(layout, 16, &shape), None);
            let mut found = [0; 64];
            found[15] = 1;
            differences.compare(begin, &[0; 64], &found);
            assert_eq!(differences.others, rows([row]));
        }
    }

    proptest! {
        /// However the pieces are cut: the rows that differ are those with an element that differs.
        #[test]
        fn rows_are_those_of_the_format(
            columns: bool, leading in 1_u64..3, outer in 1_u64..5, inner in 1_u64..5,
            size in prop_oneof![Just(2_usize), Just(4)], cut in 1_usize..9,
            changed in prop::collection::vec((any::<prop::sample::Index>(), 1_u8..), 0..4),
        ) {
            let layout = if columns { Layout::Columns } else { Layout::Rows };
            let shape = Shape::new([leading, outer, inner]).unwrap();
            let vectors = Vectors::new(layout, &shape).unwrap();
            let expected = vec![0; shape.elements() as usize * size];
            let mut found = expected.clone();
            for (at, value) in changed {
                let at = at.index(found.len());
                found[at] = value;
            }
            let differs = |row: &u64| {
                let span = vectors.span(*row as u32).unwrap();
                (0..span.len as u64).any(|i| {
                    let at = (span.start + i * span.stride) as usize * size;
                    found[at..at + size] != expected[at..at + size]
                })
            };
            let geometry = Geometry::of(layout, size as u64 * 8, &shape);
            let mut differences = Differences::new(geometry, None);
            let pieces = expected.chunks(cut * size).zip(found.chunks(cut * size));
            let mut begin = 0;
            for (expected, found) in pieces {
                differences.compare(begin, expected, found);
                begin += found.len() as u64;
            }
            prop_assert_eq!(differences.others, rows((0..vectors.count()).filter(differs)));
        }
    }
}
