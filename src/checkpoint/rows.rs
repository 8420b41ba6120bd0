//! Single vectors of a tensor: read, written, and laid over bytes that stream by.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::{Checkpoint, CheckpointError, TensorInfo, disk};
use crate::format::Edit;
use crate::format::edit::Span;

/// Where a vector's bytes lie in its tensor: `count` pieces of `size` bytes, `stride` bytes from one to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cells {
    pub(super) offset: u64,
    pub(super) size: usize,
    pub(super) stride: u64,
    pub(super) count: usize,
}

impl Cells {
    /// The cells of a span of elements that take `element` bytes each. A contiguous vector is one cell.
    pub fn new(span: Span, element: usize) -> Self {
        let bytes = element as u64;
        let offset = span.start.saturating_mul(bytes);
        match span.stride {
            1 => Self { offset, size: span.len.saturating_mul(element), stride: 0, count: 1 },
            stride => Self { offset, size: element, stride: stride.saturating_mul(bytes), count: span.len },
        }
    }

    /// Bytes of the whole vector.
    pub fn bytes(self) -> usize {
        self.size.saturating_mul(self.count)
    }

    /// Whether all of it lies in a tensor of `length` bytes.
    pub(super) fn fits(self, length: u64) -> bool {
        let last = (self.count as u64).checked_sub(1).and_then(|steps| self.stride.checked_mul(steps));
        let end = last.and_then(|last| self.offset.checked_add(last)?.checked_add(self.size as u64));
        end.is_some_and(|end| end <= length)
    }

    /// Byte offset of each cell in the tensor.
    pub(super) fn offsets(self) -> impl Iterator<Item = u64> {
        (0..self.count as u64).map(move |step| self.offset + self.stride * step)
    }

    /// Copies the part of `vector` that falls into `piece`, the tensor's bytes from `begin` on. Cells are never cut
    /// within an element as long as pieces hold whole elements.
    pub fn overlay(self, vector: &[u8], begin: u64, piece: &mut [u8]) {
        let end = begin + piece.len() as u64;
        let first = match self.stride {
            0 => 0,
            stride => begin.saturating_sub(self.offset).saturating_sub(self.size as u64 - 1).div_ceil(stride),
        };
        let cells = self.offsets().zip(vector.chunks_exact(self.size)).skip(first as usize);
        for (offset, cell) in cells.take_while(|(offset, _)| *offset < end) {
            let (from, to) = (offset.max(begin), (offset + cell.len() as u64).min(end));
            if from < to {
                let source = cell.get((from - offset) as usize..(to - offset) as usize);
                let target = piece.get_mut((from - begin) as usize..(to - begin) as usize);
                if let (Some(source), Some(target)) = (source, target) {
                    target.copy_from_slice(source);
                }
            }
        }
    }
}

impl Checkpoint {
    /// Reads one vector of a tensor, gathered; `buffer` takes its length.
    ///
    /// # Errors
    /// The vector lies outside the tensor, or reading fails.
    fn read_vector(&self, tensor: &TensorInfo, cells: Cells, buffer: &mut Vec<u8>) -> Result<(), CheckpointError> {
        if !cells.fits(tensor.length) {
            return Err(self.out_of_bounds(tensor, format!("a vector at byte {}", cells.offset)));
        }
        buffer.resize(cells.bytes(), 0);
        let mut parts = cells.offsets().zip(buffer.chunks_exact_mut(cells.size));
        parts.try_for_each(|(offset, part)| self.read_at(tensor, offset, part))
    }
}

/// Bytes of vectors that are held at a time where they lie scattered.
const BATCH: usize = 4 << 20;

impl Checkpoint {
    /// Passes each vector that an edit touches to `visit`, gathered, in the order of its rows.
    ///
    /// # Errors
    /// As [`Checkpoint::read_vectors`].
    pub fn each_vector<E: From<CheckpointError>>(
        &self,
        tensor: &TensorInfo,
        edit: &Edit,
        mut visit: impl FnMut(Vector<'_>, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let cells = |span| Cells::new(span, edit.dtype().size());
        let mut changes = edit.changes();
        self.read_vectors(tensor, edit.changes().map(|(_, span, _)| cells(span)), |bytes| match changes.next() {
            Some((row, span, delta)) => visit(Vector { row, cells: cells(span), delta }, bytes),
            None => Ok(()),
        })
    }

    /// Passes vectors of a tensor to `visit`, gathered, in their order, which ascends.
    ///
    /// Columns are read many at a time: each stretch of a matrix row that holds cells of several is read once.
    ///
    /// # Errors
    /// A vector lies outside the tensor, or reading fails; those of `visit`.
    pub fn read_vectors<E: From<CheckpointError>>(
        &self,
        tensor: &TensorInfo,
        vectors: impl IntoIterator<Item = Cells>,
        mut visit: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut vectors = vectors.into_iter().peekable();
        let (mut batch, mut gathered, mut buffer) = (Vec::new(), Vec::new(), Vec::new());
        while let Some(first) = vectors.next() {
            if first.count <= 1 {
                self.read_vector(tensor, first, &mut buffer)?;
                visit(&buffer)?;
                continue;
            }
            let most = (BATCH / first.bytes().max(1)).max(1);
            batch.clear();
            batch.push(first);
            let same_row = |next: &Cells| next.offset < first.offset.saturating_add(first.stride);
            while let Some(next) = vectors.next_if(|next| batch.len() < most && same_row(next)) {
                batch.push(next);
            }
            self.read_columns(tensor, &batch, &mut gathered)?;
            gathered.chunks_exact(first.bytes()).try_for_each(&mut visit)?;
        }
        Ok(())
    }

    /// Reads vectors of one matrix whose cells lie in the same rows of it, one vector after the other.
    fn read_columns(
        &self,
        tensor: &TensorInfo,
        columns: &[Cells],
        gathered: &mut Vec<u8>,
    ) -> Result<(), CheckpointError> {
        let (Some(first), Some(last)) = (columns.first(), columns.last()) else { return Ok(()) };
        if !last.fits(tensor.length) {
            return Err(self.out_of_bounds(tensor, format!("a vector at byte {}", last.offset)));
        }
        gathered.resize(columns.len() * first.bytes(), 0);
        let mut stretch = vec![0; (last.offset - first.offset) as usize + first.size];
        for (step, offset) in first.offsets().enumerate() {
            self.read_at(tensor, offset, &mut stretch)?;
            for (column, vector) in columns.iter().zip(gathered.chunks_exact_mut(first.bytes())) {
                let (from, to) = ((column.offset - first.offset) as usize, step * first.size);
                let cell = (stretch.get(from..from + first.size), vector.get_mut(to..to + first.size));
                if let (Some(from), Some(to)) = cell {
                    to.copy_from_slice(from);
                }
            }
        }
        Ok(())
    }
}

/// One vector that an edit touches.
#[derive(Debug, Clone, Copy)]
pub struct Vector<'e> {
    /// Its row, in the words of the format: a row or a column of the tensor.
    pub row: u32,
    /// Where it lies.
    pub cells: Cells,
    /// What is added to it.
    pub delta: &'e [f32],
}

/// Writes one gathered vector of a tensor into an open shard.
pub(super) fn write(
    file: &File,
    path: &Path,
    tensor: &TensorInfo,
    cells: Cells,
    bytes: &[u8],
) -> Result<(), CheckpointError> {
    if !cells.fits(tensor.length) || bytes.len() != cells.bytes() {
        let (dir, name, shape) = (path.to_owned(), tensor.name.clone(), tensor.shape.clone());
        return Err(CheckpointError::Bounds { dir, tensor: name, shape, what: "a vector to write".to_owned() });
    }
    scatter(file, path, tensor.begin, cells, bytes)
}

/// Reads a vector at absolute offsets of a file, gathered; `buffer` takes its length.
pub(super) fn gather(file: &File, path: &Path, cells: Cells, buffer: &mut Vec<u8>) -> Result<(), CheckpointError> {
    buffer.resize(cells.bytes(), 0);
    let mut parts = cells.offsets().zip(buffer.chunks_exact_mut(cells.size));
    parts.try_for_each(|(offset, part)| file.read_exact_at(part, offset)).map_err(CheckpointError::io("read", path))
}

/// Writes a gathered vector to its cells, offsets counted from `base`.
pub(super) fn scatter(file: &File, path: &Path, base: u64, cells: Cells, bytes: &[u8]) -> Result<(), CheckpointError> {
    let mut parts = cells.offsets().zip(bytes.chunks_exact(cells.size));
    parts.try_for_each(|(offset, part)| disk::write_at(file, path, part, base + offset))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Overlaying piece by piece is the same as scattering into the whole, however the pieces are cut.
        #[test]
        fn overlay_is_scatter(
            element in prop_oneof![Just(2_usize), Just(4)],
            start in 0_u64..9, stride in 1_u64..6, len in 1_usize..9, cut in 1_usize..20,
        ) {
            let span = Span { start, stride, len };
            let cells = Cells::new(span, element);
            let elements = (start + stride * len as u64) as usize + 3;
            let vector: Vec<u8> = (1..=(len * element) as u8).collect();
            let mut expected = vec![0; elements * element];
            for (index, value) in vector.chunks(element).enumerate() {
                let at = (start + stride * index as u64) as usize * element;
                expected[at..at + element].copy_from_slice(value);
            }
            let mut found = vec![0; elements * element];
            let mut begin = 0;
            for piece in found.chunks_mut(cut * element) {
                let length = piece.len() as u64;
                cells.overlay(&vector, begin, piece);
                begin += length;
            }
            prop_assert!(cells.fits(expected.len() as u64));
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn what_does_not_fit_is_noticed(start in 0_u64..9, stride in 1_u64..6, len in 1_usize..9) {
            let cells = Cells::new(Span { start, stride, len }, 2);
            let end = (start + stride * (len as u64 - 1) + 1) * 2;
            prop_assert!(cells.fits(end));
            prop_assert!(!cells.fits(end - 1));
        }
    }
}
