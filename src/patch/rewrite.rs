//! Apply and revert are one engine run in opposite directions: every touched row of a bound checkpoint becomes the row
//! of the other side, in a new folder or in place, and what is on the disk afterwards is read back and compared.

use std::collections::BTreeSet;
use std::path::Path;

use super::{Contents, PatchError};
use crate::checkpoint::{
    BindError, BoundBase, Cells, Changer, Checkpoint, Depth, Digests, Intent, Mismatch, MismatchKind, Progress, Side,
    Sides, Staged, TensorInfo, Untouched, Vector, compare,
};
use crate::digest::Blake3;
use crate::fold::{FoldError, fold_row, unfold_row};
use crate::format::Edit;
use crate::format::binding::RowsHasher;
use crate::format::residual::{Residual, ResidualRow};

/// A bound checkpoint, the patch that takes it to the other side, and the residual that takes it back.
pub(super) struct Rewrite<'a> {
    pub(super) bound: &'a BoundBase<'a>,
    pub(super) contents: &'a Contents,
    pub(super) residual: &'a Residual,
    /// Rows that stay as they are: the number of the edit and the row.
    pub(super) left: &'a BTreeSet<(usize, u32)>,
    /// How much of the outcome is read back and compared.
    pub(super) check: Depth,
}

/// What a rewrite comes to.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// Elements whose bits change.
    pub(super) changed: u64,
    /// Digests of the touched rows as they are, by edit.
    pub(super) here: Vec<Blake3>,
    /// Digests of the touched rows as they become, by edit.
    pub(super) there: Vec<Blake3>,
    /// What tells each folded row: [`mark`], one after the other; none of rows that are taken back.
    pub(super) marks: Vec<u8>,
}

/// Bytes of a mark.
pub(super) const MARK: usize = 8;

/// Tells a row from any other: the first bytes of its BLAKE3.
pub(super) fn mark(row: &[u8]) -> [u8; MARK] {
    Blake3::of(row).as_bytes().first_chunk().copied().unwrap_or_default()
}

impl Rewrite<'_> {
    /// The side that the rewritten checkpoint will hold.
    fn target(&self) -> Side {
        self.bound.side().other()
    }

    /// Copies the checkpoint to `out` with every touched row rewritten; `finish` may add to or remove from the copy
    /// before it is put in its place.
    pub(super) fn to_new_folder(
        &self,
        (out, untouched): (&Path, Untouched),
        finish: impl FnOnce(&Staged, &Outcome) -> Result<(), PatchError>,
        progress: &dyn Progress,
    ) -> Result<Outcome, PatchError> {
        let checkpoint = self.bound.checkpoint();
        let outcome = self.plan(|_, _, _| Ok(()))?;
        let staged = Staged::begin(checkpoint, out, self.bound.tensors(), untouched, progress)?;
        self.perform(|row, new| Ok(staged.write(checkpoint, row.tensor, row.cells, new)?))?;
        staged.sync_shards()?;
        checkpoint.check_unchanged()?;
        let copy = Checkpoint::open(staged.path())?;
        self.check(&copy, &outcome, progress).map_err(|error| self.blame_source(error, progress))?;
        drop(copy);
        finish(&staged, &outcome)?;
        staged.commit()?;
        Ok(outcome)
    }

    /// An outcome may be wrong because of what lies around the touched rows, which were all that was looked at before.
    fn blame_source(&self, error: PatchError, progress: &dyn Progress) -> PatchError {
        let (checkpoint, edits) = (self.bound.checkpoint(), &self.contents.edits);
        let whole = compare(checkpoint, edits, self.bound.sides(), self.bound.side(), self.check, progress);
        match whole {
            Err(source) => source.into(),
            Ok(_) => error,
        }
    }

    /// Rewrites every touched row where it lies; `finish` may add records before the change is committed.
    pub(super) fn in_place(
        &self,
        intent: &Intent,
        finish: impl FnOnce(&Changer, &Outcome) -> Result<(), PatchError>,
        progress: &dyn Progress,
    ) -> Result<Outcome, PatchError> {
        let checkpoint = self.bound.checkpoint();
        checkpoint.change_in_place(
            intent,
            self.bound.tensors(),
            |saver| {
                progress.stage("writing the journal", self.contents.edits.touched_bytes());
                let outcome = self.plan(|row, old, new| {
                    progress.advance(row.cells.bytes() as u64);
                    Ok(saver.save(row.tensor, row.cells, old, new)?)
                })?;
                checkpoint.check_unchanged()?;
                Ok(outcome)
            },
            |changer, outcome| {
                self.perform(|row, new| Ok(changer.write(row.tensor, row.cells, new)?))?;
                // What was planned, so that the journal holds what was overwritten.
                self.check(checkpoint, &outcome, progress)?;
                finish(changer, &outcome)?;
                Ok(outcome)
            },
        )
    }

    /// Works out every row of the other side, makes sure that it can be taken back, and compares both sides with what is
    /// known of them; `visit` sees each row as it is and as it becomes. Writes nothing.
    pub(super) fn plan(
        &self,
        mut visit: impl FnMut(&Row<'_>, &[u8], &[u8]) -> Result<(), PatchError>,
    ) -> Result<Outcome, PatchError> {
        let (mut outcome, mut back) = (Outcome::default(), Vec::new());
        for (number, edit) in self.contents.edits.iter().enumerate() {
            let (mut before, mut after) = (RowsHasher::new(edit), RowsHasher::new(edit));
            self.each_row(number, edit, |row, old, new| {
                if !row.left {
                    outcome.changed += row.rewrite(self.bound.side(), new)? as u64;
                }
                if self.bound.side() == Side::Base {
                    back.clone_from(new);
                    row.restores(old, &mut back)?;
                    outcome.marks.extend(mark(new));
                }
                before.update(old);
                after.update(new);
                if row.left { Ok(()) } else { visit(row, old, new) }
            })?;
            let (before, after) = (before.finish().map_err(BindError::from)?, after.finish().map_err(BindError::from)?);
            self.same(number, edit, before, after)?;
            outcome.here.push(before);
            outcome.there.push(after);
        }
        Ok(outcome)
    }

    /// Passes every row of the other side to `write`.
    fn perform(&self, mut write: impl FnMut(&Row<'_>, &[u8]) -> Result<(), PatchError>) -> Result<(), PatchError> {
        for (number, edit) in self.contents.edits.iter().enumerate() {
            self.each_row(number, edit, |row, _, new| {
                if row.left {
                    return Ok(());
                }
                row.rewrite(self.bound.side(), new)?;
                write(row, new)
            })?;
        }
        Ok(())
    }

    /// Passes every touched row of an edit to `work`, as it is and as a copy to be changed.
    fn each_row(
        &self,
        number: usize,
        edit: &Edit,
        mut work: impl FnMut(&Row<'_>, &[u8], &mut Vec<u8>) -> Result<(), PatchError>,
    ) -> Result<(), PatchError> {
        let checkpoint = self.bound.checkpoint();
        let (tensor, mut new) = (checkpoint.tensor(edit.tensor())?, Vec::new());
        let mut residuals = self.residual.rows(number, edit);
        checkpoint.each_vector(tensor, edit, |Vector { row, cells, delta }, old| {
            let left = self.left.contains(&(number, row));
            let row = Row { edit, tensor, index: row, cells, delta, residual: residuals.next(), left };
            new.clear();
            new.extend_from_slice(old);
            work(&row, old, &mut new)
        })
    }

    /// What was read is still what was bound, and what it becomes is what was signed.
    fn same(&self, number: usize, edit: &Edit, before: Blake3, after: Blake3) -> Result<(), PatchError> {
        let known = |side| self.bound.sides().of(side).get(number).and_then(|digests: &Digests| digests.rows);
        if known(self.bound.side()).is_some_and(|expected| expected != before) {
            let path = self.bound.checkpoint().dir().to_owned();
            return Err(PatchError::ChangedMeanwhile { path, tensor: edit.tensor().clone() });
        }
        match known(self.target()) {
            Some(expected) if expected != after => {
                let (tensor, side) = (edit.tensor().clone(), self.target());
                Err(PatchError::Outcome { tensor, side, expected, found: after })
            }
            _ => Ok(()),
        }
    }

    /// Reads back what is on the disk, as deep as was asked for: the touched rows are what they were to become, and the
    /// touched tensors what was signed.
    fn check(&self, written: &Checkpoint, outcome: &Outcome, progress: &dyn Progress) -> Result<(), PatchError> {
        let signed = self.bound.sides().of(self.target()).iter().map(|digests| digests.whole);
        let rows = outcome.there.iter().map(|rows| Some(*rows));
        let expected: Vec<_> = rows.zip(signed).map(|(rows, whole)| Digests { rows, whole }).collect();
        let sides = Sides { base: expected.clone(), result: expected };
        match compare(written, &self.contents.edits, &sides, self.target(), self.check, progress) {
            Err(error) => Err(self.wrong_outcome(error)),
            Ok(_) => Ok(()),
        }
    }

    fn wrong_outcome(&self, error: BindError) -> PatchError {
        let side = self.target();
        match &error {
            BindError::Mismatch { mismatches, .. } => match mismatches.first() {
                Some(Mismatch {
                    tensor,
                    kind: MismatchKind::Rows { expected, found, .. } | MismatchKind::Elsewhere { expected, found },
                }) => PatchError::Outcome { tensor: tensor.clone(), side, expected: *expected, found: *found },
                _ => error.into(),
            },
            _ => error.into(),
        }
    }
}

/// One touched row.
pub(super) struct Row<'a> {
    edit: &'a Edit,
    tensor: &'a TensorInfo,
    /// Its index in the tensor.
    index: u32,
    cells: Cells,
    delta: &'a [f32],
    residual: Option<ResidualRow<'a>>,
    /// Whether it stays as it is.
    left: bool,
}

impl Row<'_> {
    /// Takes a row from `side` to the other; gives how many elements changed.
    fn rewrite(&self, side: Side, row: &mut [u8]) -> Result<usize, PatchError> {
        match side {
            Side::Base => fold_row(self.edit.dtype(), row, self.delta).map_err(|source| self.wrong(source)),
            Side::Result => self.unfold(row),
        }
    }

    /// Makes sure that the residual takes `new`, a folded row, back to `old`: else it could not be reverted.
    fn restores(&self, old: &[u8], new: &mut [u8]) -> Result<(), PatchError> {
        match self.unfold(new) {
            Ok(_) if new == old => Ok(()),
            _ => Err(PatchError::Residual { tensor: self.tensor.name.clone(), row: self.index }),
        }
    }

    fn unfold(&self, row: &mut [u8]) -> Result<usize, PatchError> {
        let missing = || PatchError::NoResidual;
        let residual = self.residual.ok_or_else(missing)?;
        unfold_row(self.edit.dtype(), row, self.delta, residual).map_err(|source| self.wrong(source))
    }

    fn wrong(&self, source: FoldError) -> PatchError {
        PatchError::Fold { tensor: self.tensor.name.clone(), row: self.index, source }
    }
}
