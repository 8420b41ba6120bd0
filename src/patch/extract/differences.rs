//! Where two checkpoints differ: which tensors, and which of their vectors, without keeping any weight.

use std::collections::BTreeSet;

use super::{Changed, Omitted, Reason};
use crate::checkpoint::{Checkpoint, CheckpointError, Progress, TensorInfo, in_parallel};
use crate::format::{Layout, Vectors};
use crate::tensor::{Shape, TensorName};

/// A tensor of both checkpoints whose bytes differ.
#[derive(Debug)]
pub(super) struct Difference<'c> {
    pub(super) base: &'c TensorInfo,
    pub(super) tuned: &'c TensorInfo,
    pub(super) changed: Changed,
    /// The changed vectors in the layout that touches fewer elements; `None` where most of them changed in either.
    pub(super) vectors: Option<(Layout, Vec<u32>)>,
}

/// Compares all tensors; those that cannot be compared are omitted, with the reason.
pub(super) fn compare<'c>(
    base: &'c Checkpoint,
    tuned: &'c Checkpoint,
    progress: &dyn Progress,
) -> Result<(Vec<Difference<'c>>, Vec<Omitted>), CheckpointError> {
    let names: BTreeSet<&TensorName> = base.tensors().chain(tuned.tensors()).map(|tensor| &tensor.name).collect();
    let (mut pairs, mut omitted) = (Vec::new(), Vec::new());
    for name in names {
        match pair(base.tensor(name).ok(), tuned.tensor(name).ok()) {
            Ok(pair) => pairs.push(pair),
            Err(reason) => omitted.push(Omitted { tensor: name.clone(), reason, changed: None }),
        }
    }
    progress.stage("comparing", pairs.iter().map(|(base, _)| base.length).sum());
    let compared = in_parallel(&pairs, |(one, other)| {
        let mut scan = Scan::new(one);
        base.stream_beside(one, (tuned, other), progress, |at, ours, theirs| scan.piece(at, ours, theirs))?;
        Ok::<_, CheckpointError>(scan.finish(one, other))
    })?;
    Ok((compared.into_iter().flatten().collect(), omitted))
}

fn pair<'c>(
    base: Option<&'c TensorInfo>,
    tuned: Option<&'c TensorInfo>,
) -> Result<(&'c TensorInfo, &'c TensorInfo), Reason> {
    match (base, tuned) {
        (None, _) => Err(Reason::OnlyInTuned),
        (_, None) => Err(Reason::OnlyInBase),
        (Some(base), Some(tuned)) if base.dtype != tuned.dtype => {
            Err(Reason::OtherType { base: base.dtype, tuned: tuned.dtype })
        }
        (Some(base), Some(tuned)) if base.shape != tuned.shape => {
            Err(Reason::OtherShape { base: base.shape.clone(), tuned: tuned.shape.clone() })
        }
        (Some(base), Some(tuned)) => Ok((base, tuned)),
    }
}

/// What is known of a tensor while it streams by.
struct Scan {
    /// Bytes of an element; 1 where several share a byte.
    size: usize,
    /// Elements of a row.
    width: usize,
    /// Rows of one matrix.
    height: u64,
    changed: Changed,
    last_row: Option<u64>,
    rows: Marks,
    columns: Marks,
}

impl Scan {
    fn new(tensor: &TensorInfo) -> Self {
        let size = tensor.length.checked_div(tensor.shape.elements()).unwrap_or(1).max(1);
        let (height, width) = match tensor.shape.dims() {
            [.., height, width] => (*height, *width),
            _ => (1, tensor.length / size),
        };
        Self {
            size: size as usize,
            width: usize::try_from(width).unwrap_or(usize::MAX).max(1),
            height: height.max(1),
            changed: Changed { rows: 0, elements: 0 },
            last_row: None,
            rows: Marks::new(Layout::Rows, &tensor.shape),
            columns: Marks::new(Layout::Columns, &tensor.shape),
        }
    }

    /// Takes the bytes of both from byte `offset` on.
    fn piece(&mut self, offset: u64, ours: &[u8], theirs: &[u8]) {
        if ours == theirs {
            return;
        }
        let first = offset / self.size as u64;
        let (mut row, mut column) = (first / self.width as u64, (first % self.width as u64) as usize);
        let (mut ours, mut theirs) = (ours, theirs);
        while !ours.is_empty() {
            let length = (self.width - column).saturating_mul(self.size).min(ours.len());
            let (Some((one, rest)), Some((other, others))) =
                (ours.split_at_checked(length), theirs.split_at_checked(length))
            else {
                return;
            };
            if one != other {
                self.part(row, column, one, other);
            }
            (ours, theirs, row, column) = (rest, others, row + 1, 0);
        }
    }

    /// Part of a row, from `column` on, that differs.
    fn part(&mut self, row: u64, column: usize, ours: &[u8], theirs: &[u8]) {
        if self.last_row.replace(row) != Some(row) {
            self.changed.rows += 1;
            self.rows.add(row);
        }
        self.changed.elements += match self.columns.is_full() {
            true => count(self.size, ours, theirs),
            false => {
                let first = row / self.height * self.width as u64 + column as u64;
                let pairs = ours.chunks(self.size).zip(theirs.chunks(self.size));
                let differing = pairs.zip(first..).filter(|((one, other), _)| one != other);
                differing.map(|(_, column)| self.columns.add(column)).count() as u64
            }
        };
    }

    fn finish<'c>(self, base: &'c TensorInfo, tuned: &'c TensorInfo) -> Option<Difference<'c>> {
        let vectors = match (self.rows.listed(), self.columns.listed()) {
            (Some(rows), Some(columns)) if columns.0 < rows.0 => Some((Layout::Columns, columns.1)),
            (Some(rows), _) => Some((Layout::Rows, rows.1)),
            (None, Some(columns)) => Some((Layout::Columns, columns.1)),
            (None, None) => None,
        };
        (self.changed.elements > 0).then_some(Difference { base, tuned, changed: self.changed, vectors })
    }
}

/// How many elements of `size` bytes differ.
fn count(size: usize, ours: &[u8], theirs: &[u8]) -> u64 {
    fn differing<const N: usize>(ours: &[u8], theirs: &[u8]) -> usize {
        let pairs = ours.as_chunks::<N>().0.iter().zip(theirs.as_chunks::<N>().0);
        pairs.map(|(one, other)| usize::from(one != other)).sum()
    }
    let differing = match size {
        2 => differing::<2>(ours, theirs),
        4 => differing::<4>(ours, theirs),
        size => ours.chunks(size).zip(theirs.chunks(size)).filter(|(one, other)| one != other).count(),
    };
    differing as u64
}

/// The changed vectors of one layout, until they are too many.
struct Marks {
    vectors: Option<Vectors>,
    bits: Vec<u64>,
    count: u64,
}

impl Marks {
    fn new(layout: Layout, shape: &Shape) -> Self {
        Self { vectors: Vectors::new(layout, shape).ok(), bits: Vec::new(), count: 0 }
    }

    /// Whether more than half of the vectors changed, or there are none in this layout: nothing need be added.
    fn is_full(&self) -> bool {
        self.vectors.is_none_or(|vectors| self.count > vectors.count() / 2)
    }

    fn add(&mut self, vector: u64) {
        let (word, bit) = ((vector / 64) as usize, 1 << (vector % 64));
        if self.is_full() {
            return;
        }
        if self.bits.len() <= word {
            self.bits.resize(word + 1, 0);
        }
        if let Some(word) = self.bits.get_mut(word) {
            self.count += u64::from(*word & bit == 0);
            *word |= bit;
        }
    }

    /// How many elements the marked vectors have, and which they are.
    fn listed(&self) -> Option<(u64, Vec<u32>)> {
        let vectors = self.vectors.filter(|_| !self.is_full())?;
        let set = |(word, bits): (usize, &u64)| {
            let (word, bits) = (word as u32 * 64, *bits);
            (0..64).filter(move |bit| bits >> bit & 1 == 1).map(move |bit| word + bit)
        };
        Some((self.count * vectors.len() as u64, self.bits.iter().enumerate().flat_map(set).collect()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scan(dims: &[u64], size: usize) -> Scan {
        let shape = Shape::new(dims).unwrap();
        let (rows, columns) = (Marks::new(Layout::Rows, &shape), Marks::new(Layout::Columns, &shape));
        let [.., height, width] = *dims else { panic!("two dimensions") };
        let changed = Changed { rows: 0, elements: 0 };
        Scan { size, width: width as usize, height, changed, last_row: None, rows, columns }
    }

    proptest! {
        /// However the bytes are cut, the changed rows, columns and elements are those of the plain definition.
        #[test]
        fn pieces_add_up(
            matrices in 1..3_u64, height in 1..9_u64, width in 1..9_u64, size in prop::sample::select(vec![1_usize, 2, 4]),
            changes in prop::collection::vec(any::<prop::sample::Index>(), 0..6), cut in 1..40_usize,
        ) {
            let elements = (matrices * height * width) as usize;
            let ours = vec![7_u8; elements * size];
            let mut theirs = ours.clone();
            let changed: BTreeSet<usize> = changes.iter().map(|index| index.index(elements)).collect();
            changed.iter().for_each(|element| theirs[element * size + size - 1] = 9);
            let mut scan = scan(&[matrices, height, width], size);
            for (number, (one, other)) in ours.chunks(cut * size).zip(theirs.chunks(cut * size)).enumerate() {
                scan.piece((number * cut * size) as u64, one, other);
            }
            let (height, width) = (height as usize, width as usize);
            let rows: BTreeSet<u32> = changed.iter().map(|element| (element / width) as u32).collect();
            let columns = changed.iter().map(|element| element / (height * width) * width + element % width);
            let columns: BTreeSet<u32> = columns.map(|column| column as u32).collect();
            prop_assert_eq!(scan.changed, Changed { rows: rows.len() as u64, elements: changed.len() as u64 });
            let few = |found: usize, all: usize| found <= all / 2;
            let (all_rows, all_columns) = (matrices as usize * height, matrices as usize * width);
            let listed = few(rows.len(), all_rows).then(|| ((rows.len() * width) as u64, rows.iter().copied().collect()));
            prop_assert_eq!(scan.rows.listed(), listed);
            let listed = few(columns.len(), all_columns);
            let listed = listed.then(|| ((columns.len() * height) as u64, columns.iter().copied().collect()));
            prop_assert_eq!(scan.columns.listed(), listed);
        }
    }
}
