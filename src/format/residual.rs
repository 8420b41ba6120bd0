//! The residual: per touched element, what separates the old bits from the best guess that subtraction gives.
//!
//! Elements are stored in lanes. How wrong a guess can be depends on how much larger the new weight is than the guess
//! and on whether it is even; elements alike in that go into one lane, where they compress to about half of what they
//! take in row order. Each row's count per lane is stored too, so that a reader can start at any row and skip any.

use crate::format::edit::{Edit, Edits};
use crate::format::reader::Reader;

/// How many lanes.
pub const LANES: usize = 15;

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
        Ok(Residual { counts: self.counts, lanes: self.lanes, starts })
    }
}

impl Residual {
    /// The content of a `residual` section: counts per lane and row, low halves before high halves; then the lanes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let columns = || (0..LANES).flat_map(|lane| self.counts.iter().filter_map(move |row| row.get(lane)));
        let low = columns().flat_map(|count| (*count as u16).to_le_bytes());
        let high = columns().flat_map(|count| ((count >> 16) as u16).to_le_bytes());
        let mut out: Vec<u8> = low.chain(high).collect();
        self.lanes.iter().for_each(|lane| out.extend(lane));
        out
    }

    /// Reads the content of a `residual` section.
    ///
    /// # Errors
    /// Rows, elements or bytes missing or left over.
    pub fn from_bytes(edits: &Edits, bytes: &[u8]) -> Result<Self, ResidualError> {
        let mut reader = Reader::new(bytes);
        let (rows, found) = (edits.rows(), bytes.len() as u64);
        let head = (rows * LANES * 4) as u64;
        let short = ResidualError::Length { expected: head.saturating_add(edits.touched_bytes()), found };
        let (low, high) = (reader.sub(head / 2), reader.sub(head / 2));
        let (Some(low), Some(high)) = (low, high) else { return Err(short) };
        let mut counts = vec![[0; LANES]; rows];
        let halves = low.as_chunks::<2>().0.iter().zip(high.as_chunks::<2>().0);
        for (index, (low, high)) in halves.enumerate() {
            let count = u32::from(u16::from_le_bytes(*low)) | u32::from(u16::from_le_bytes(*high)) << 16;
            if let Some(cell) = counts.get_mut(index % rows).and_then(|row| row.get_mut(index / rows)) {
                *cell = count;
            }
        }
        let starts = locate(edits, &counts)?;
        let mut lanes: [Vec<u8>; LANES] = Default::default();
        for (lane, length) in lanes.iter_mut().zip(lane_bytes(edits, &counts)) {
            *lane = reader.sub(length as u64).ok_or_else(|| short.clone())?.to_vec();
        }
        if reader.is_empty() { Ok(Self { counts, lanes, starts }) } else { Err(short) }
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
