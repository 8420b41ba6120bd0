//! The residual: per touched element, what separates the old bits from the best guess that subtraction gives.
//!
//! Elements are stored in lanes. How wrong a guess can be depends on how much larger the new weight is than the guess
//! and on whether it is even; elements alike in that go into one lane, where they compress to about half of what they
//! take in row order. Each row's count per lane is stored too, so that a reader can start at any row and skip any.

use crate::format::edit::{Edit, Edits};
use crate::format::reader::Reader;

/// How many lanes.
pub const LANES: usize = 15;
/// Bytes of a row's counts: one of 32 bits for each lane.
pub(crate) const COUNTS_BYTES_A_ROW: u64 = 4 * LANES as u64;

/// Why a residual does not fit its edits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResidualError {
    /// Rows missing or left over.
    #[error("residual: expected {expected} rows, found {found}")]
    Rows {
        /// Rows of the edits.
        expected: usize,
        /// Rows given.
        found: usize,
    },
    /// A row whose lanes do not hold one value per element.
    #[error("residual of row {row} of tensor {tensor:?}: expected {expected} values, found {found}")]
    Columns {
        /// The tensor.
        tensor: String,
        /// The row's index in the tensor.
        row: u32,
        /// Elements of the row.
        expected: usize,
        /// Values in all lanes.
        found: u64,
    },
    /// Bytes missing or left over.
    #[error("residual: expected {expected} bytes, found {found}")]
    Length {
        /// Bytes that the counts ask for.
        expected: u64,
        /// Bytes given.
        found: u64,
    },
}

type Counts = [u32; LANES];

/// The residual of all touched rows of a patch, in the order of the edits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Residual {
    counts: Vec<Counts>,
    lanes: [Vec<u8>; LANES],
    /// Where each edit begins: its first row, and its first byte in each lane.
    starts: Vec<(usize, [usize; LANES])>,
}

/// One row's values, lane by lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResidualRow<'a> {
    lanes: [&'a [u8]; LANES],
}

impl ResidualRow<'_> {
    /// The next value of `lane`: `N` bytes.
    pub(crate) fn take<const N: usize>(&mut self, lane: usize) -> Option<[u8; N]> {
        let lane = self.lanes.get_mut(lane)?;
        let (value, rest) = lane.split_first_chunk::<N>()?;
        *lane = rest;
        Some(*value)
    }

    /// Whether every value has been taken.
    pub(crate) fn is_empty(&self) -> bool {
        self.lanes.iter().all(|lane| lane.is_empty())
    }
}

/// Collects a residual row by row; `fold::residual_row` fills it.
#[derive(Debug, Clone, Default)]
pub struct ResidualBuilder {
    counts: Vec<Counts>,
    row: Counts,
    lanes: [Vec<u8>; LANES],
}

impl ResidualBuilder {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    pub(crate) fn push(&mut self, lane: usize, value: &[u8]) {
        if let (Some(bytes), Some(count)) = (self.lanes.get_mut(lane), self.row.get_mut(lane)) {
            bytes.extend(value);
            *count += 1;
        }
    }

    pub(crate) fn end_row(&mut self) {
        self.counts.push(std::mem::take(&mut self.row));
    }

    /// The residual, if there is one row for each touched row of `edits`.
    ///
    /// # Errors
    /// Rows or elements missing or left over.
    pub fn finish(self, edits: &Edits) -> Result<Residual, ResidualError> {
        let starts = locate(edits, &self.counts)?;
        let Self { counts, mut lanes, .. } = self;
        lanes.iter_mut().for_each(Vec::shrink_to_fit);
        Ok(Residual { counts, lanes, starts })
    }
}

impl Residual {
    /// The content of a `residual` section: the lanes; then each row's count per lane, low halves before high halves.
    pub fn to_bytes(&self) -> Vec<u8> {
        let lanes: usize = self.lanes.iter().map(Vec::len).sum();
        // Room for all of it at once: growing would take as much again for a moment.
        let mut out = Vec::with_capacity(lanes + 4 * LANES * self.counts.len());
        self.lanes.iter().for_each(|lane| out.extend_from_slice(lane));
        let counts = || (0..LANES).flat_map(|lane| self.counts.iter().filter_map(move |row| row.get(lane)));
        out.extend(counts().flat_map(|count| (*count as u16).to_le_bytes()));
        out.extend(counts().flat_map(|count| ((count >> 16) as u16).to_le_bytes()));
        out
    }

    /// Reads the content of a `residual` section.
    ///
    /// # Errors
    /// Rows, elements or bytes missing or left over.
    pub fn from_bytes(edits: &Edits, bytes: &[u8]) -> Result<Self, ResidualError> {
        let half = (edits.rows() * LANES * 2) as u64;
        let expected = edits.touched_bytes().saturating_add(2 * half);
        let length = ResidualError::Length { expected, found: bytes.len() as u64 };
        let mut reader = Reader::new(bytes);
        let (Some(mut values), Some(low), Some(high)) =
            (reader.sub(edits.touched_bytes()).map(Reader::new), reader.sub(half), reader.sub(half))
        else {
            return Err(length);
        };
        if !reader.is_empty() {
            return Err(length);
        }
        let counts = read_counts(edits.rows(), low, high);
        let starts = locate(edits, &counts)?;
        let mut lanes: [Vec<u8>; LANES] = Default::default();
        for (lane, bytes) in lanes.iter_mut().zip(lane_bytes(edits, &counts)) {
            *lane = values.sub(bytes as u64).ok_or_else(|| length.clone())?.to_vec();
        }
        Ok(Self { counts, lanes, starts })
    }

    /// The residuals of the rows of `edits[index]`, in order; nothing past the last edit.
    ///
    /// `edit` must be that edit of the [`Edits`] it was made for.
    pub fn rows<'a>(&'a self, index: usize, edit: &Edit) -> impl Iterator<Item = ResidualRow<'a>> {
        let size = edit.dtype().size();
        let (first, mut at) = self.starts.get(index).copied().unwrap_or((self.counts.len(), [0; LANES]));
        self.counts.iter().skip(first).take(edit.rows().len()).map(move |counts| {
            let mut row = ResidualRow { lanes: [&[]; LANES] };
            for (((out, lane), at), count) in row.lanes.iter_mut().zip(&self.lanes).zip(&mut at).zip(counts) {
                let end = *at + *count as usize * size;
                *out = lane.get(*at..end).unwrap_or_default();
                *at = end;
            }
            row
        })
    }
}

fn read_counts(rows: usize, low: &[u8], high: &[u8]) -> Vec<Counts> {
    let mut counts = vec![[0; LANES]; rows];
    let halves = low.as_chunks::<2>().0.iter().zip(high.as_chunks::<2>().0);
    for (index, (low, high)) in halves.enumerate() {
        let count = u32::from(u16::from_le_bytes(*low)) | u32::from(u16::from_le_bytes(*high)) << 16;
        if let Some(cell) = counts.get_mut(index % rows).and_then(|row| row.get_mut(index / rows)) {
            *cell = count;
        }
    }
    counts
}

/// Where each edit begins, once every row is known to have one value per element.
fn locate(edits: &Edits, counts: &[Counts]) -> Result<Vec<(usize, [usize; LANES])>, ResidualError> {
    let mismatch = ResidualError::Rows { expected: edits.rows(), found: counts.len() };
    if counts.len() != edits.rows() {
        return Err(mismatch);
    }
    let (mut starts, mut first, mut at) = (Vec::with_capacity(edits.len()), 0, [0; LANES]);
    let mut rows = counts.iter();
    for edit in edits {
        starts.push((first, at));
        first += edit.rows().len();
        for row in edit.rows() {
            let counts = rows.next().ok_or_else(|| mismatch.clone())?;
            let (expected, found) = (edit.vectors().len(), counts.iter().map(|count| u64::from(*count)).sum::<u64>());
            if found != expected as u64 {
                return Err(ResidualError::Columns { tensor: edit.tensor().to_string(), row: *row, expected, found });
            }
            at.iter_mut().zip(counts).for_each(|(at, count)| *at += *count as usize * edit.dtype().size());
        }
    }
    Ok(starts)
}

fn lane_bytes(edits: &Edits, counts: &[Counts]) -> [usize; LANES] {
    let sizes = edits.iter().flat_map(|edit| edit.rows().iter().map(|_| edit.dtype().size()));
    counts.iter().zip(sizes).fold([0; LANES], |mut total, (counts, size)| {
        total.iter_mut().zip(counts).for_each(|(total, count)| *total += *count as usize * size);
        total
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{Deltas, EditParts, Layout};
    use crate::tensor::{Dtype, Shape, TensorName};

    fn edits() -> Edits {
        let edit = |name: &str, dtype: Dtype| {
            Edit::new(EditParts {
                tensor: TensorName::new(name).unwrap(),
                dtype,
                shape: Shape::new([9, 2]).unwrap(),
                layout: Layout::Rows,
                rows: vec![4, 7],
                clusters: vec![0, 0],
                deltas: Deltas::new(Dtype::Bf16, 2, vec![1.0, 2.0]).unwrap(),
            })
            .unwrap()
        };
        Edits::new(vec![edit("a", Dtype::Bf16), edit("b", Dtype::F32)]).unwrap()
    }

    fn residual() -> ResidualBuilder {
        let mut builder = ResidualBuilder::new();
        for (lanes, value) in [([0, 3], &[1, 2][..]), ([3, 3], &[3, 4]), ([3, 0], &[5, 6, 7, 8]), ([14, 0], &[9; 4])] {
            lanes.iter().for_each(|lane| builder.push(*lane, value));
            builder.end_row();
        }
        builder
    }

    #[test]
    fn golden_bytes() {
        let bytes = residual().finish(&edits()).unwrap().to_bytes();
        let lane0 = [1, 2, 5, 6, 7, 8, 9, 9, 9, 9];
        let lane3 = [1, 2, 3, 4, 3, 4, 5, 6, 7, 8];
        let lane14 = [9, 9, 9, 9];
        assert_eq!(bytes[..24], [&lane0[..], &lane3, &lane14].concat());
        let counts: Vec<u16> = bytes[24..].as_chunks().0.iter().map(|bytes| u16::from_le_bytes(*bytes)).collect();
        assert_eq!(counts.len(), 2 * 15 * 4);
        assert_eq!(counts[..4], [1, 0, 1, 1], "lane 0");
        assert_eq!(counts[3 * 4..4 * 4], [1, 2, 1, 0], "lane 3");
        assert_eq!(counts[14 * 4..15 * 4], [0, 0, 0, 1], "lane 14");
        assert_eq!(counts[15 * 4..], [0; 60], "high halves");
    }

    #[test]
    fn rows_can_be_had_alone() {
        let edits = edits();
        let residual = Residual::from_bytes(&edits, &residual().finish(&edits).unwrap().to_bytes()).unwrap();
        let edit = edits.iter().nth(1).unwrap();
        let mut row = residual.rows(1, edit).nth(1).unwrap();
        assert_eq!(row.take::<4>(3), None);
        assert_eq!((row.take::<4>(14), row.take::<4>(0)), (Some([9; 4]), Some([9; 4])));
        assert!(row.is_empty());
        assert_eq!(residual.rows(0, edits.iter().next().unwrap()).count(), 2);
        assert_eq!(residual.rows(2, edit).count(), 0);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let edits = edits();
        let bytes = residual().finish(&edits).unwrap().to_bytes();
        let refused = |bytes: &[u8]| Residual::from_bytes(&edits, bytes).unwrap_err();
        assert!(matches!(refused(&bytes[1..]), ResidualError::Length { expected: 264, found: 263 }));
        assert!(matches!(refused(&[&bytes[..], &[0]].concat()), ResidualError::Length { found: 265, .. }));
        let mut more = bytes.clone();
        more[24] = 2;
        assert!(matches!(refused(&more), ResidualError::Columns { row: 4, expected: 2, found: 3, .. }));
        let mut huge = bytes.clone();
        huge[24 + 120 + 1] = 0xff;
        assert!(matches!(refused(&huge), ResidualError::Columns { .. }));
        let mut builder = residual();
        builder.end_row();
        assert_eq!(builder.finish(&edits), Err(ResidualError::Rows { expected: 4, found: 5 }));
    }
}
