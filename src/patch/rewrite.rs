//! Apply and revert are one engine run in opposite directions: every touched row of a bound checkpoint becomes the row
//! of the other side, in a new folder or in place, and what is on the disk afterwards is read back and compared.

use std::path::Path;

use super::record::TensorDigest;
use super::{Contents, PatchError};
use crate::checkpoint::{
    BoundBase, Cells, Changer, Checkpoint, Intent, Progress, Side, Staged, TensorInfo, check_rows,
};
use crate::fold::{FoldError, fold_row, unfold_row};
use crate::format::Edit;
use crate::format::residual::{Residual, ResidualRow};

/// A bound checkpoint, the patch that takes it to the other side, and the residual that takes it back.
pub(super) struct Rewrite<'a> {
    bound: &'a BoundBase<'a>,
    contents: &'a Contents,
    residual: &'a Residual,
}

impl<'a> Rewrite<'a> {
    pub(super) fn new(bound: &'a BoundBase<'a>, contents: &'a Contents, residual: &'a Residual) -> Self {
        Self { bound, contents, residual }
    }

    /// The side that the rewritten checkpoint will hold.
    fn target(&self) -> Side {
        match self.bound.side() {
            Side::Base => Side::Result,
            Side::Result => Side::Base,
        }
    }

    /// Copies the checkpoint to `out` with every touched row rewritten; `finish` may add to or remove from the copy
    /// before it is put in its place.
    pub(super) fn to_new_folder(
        &self,
        out: &Path,
        finish: impl FnOnce(&Staged) -> Result<(), PatchError>,
        progress: &dyn Progress,
    ) -> Result<u64, PatchError> {
        let checkpoint = self.bound.checkpoint();
        let staged = Staged::begin(checkpoint, out, self.bound.tensors(), progress)?;
        let changed = self.rewrite(|tensor, cells, new| Ok(staged.write(checkpoint, tensor, cells, new)?))?;
        staged.sync_shards()?;
        let copy = Checkpoint::open(staged.path())?;
        self.check(&copy, progress)?;
        drop(copy);
        finish(&staged)?;
        staged.commit()?;
        Ok(changed)
    }

    /// Rewrites every touched row where it lies; `finish` may add records before the change is committed.
    pub(super) fn in_place(
        &self,
        intent: &Intent,
        finish: impl FnOnce(&Changer) -> Result<(), PatchError>,
        progress: &dyn Progress,
    ) -> Result<u64, PatchError> {
        let checkpoint = self.bound.checkpoint();
        checkpoint.change_in_place(
            intent,
            self.bound.tensors(),
            |saver| {
                progress.stage("writing the journal", self.contents.edits.touched_bytes());
                self.each_row(|row| {
                    progress.advance(row.cells.bytes() as u64);
                    Ok(saver.save(row.tensor, row.cells)?)
                })
            },
            |changer| {
                let changed = self.rewrite(|tensor, cells, new| Ok(changer.write(tensor, cells, new)?))?;
                changer.sync_shards()?;
                self.check(checkpoint, progress)?;
                finish(changer)?;
                Ok(changed)
            },
        )
    }

    /// Works out every row of the other side and writes none; gives how many elements would change.
    pub(super) fn rehearse(&self) -> Result<u64, PatchError> {
        self.rewrite(|_, _, _| Ok(()))
    }

    /// Passes every touched row of the other side to `write`; gives how many elements change.
    fn rewrite(
        &self,
        mut write: impl FnMut(&TensorInfo, Cells, &[u8]) -> Result<(), PatchError>,
    ) -> Result<u64, PatchError> {
        let (mut old, mut new, mut changed) = (Vec::new(), Vec::new(), 0);
        self.each_row(|row| {
            self.bound.checkpoint().read_vector(row.tensor, row.cells, &mut old)?;
            new.clone_from(&old);
            changed += match self.bound.side() {
                Side::Base => row.fold(&old, &mut new)?,
                Side::Result => row.unfold(&mut new)?,
            } as u64;
            write(row.tensor, row.cells, &new)
        })?;
        Ok(changed)
    }

    fn each_row(&self, mut visit: impl FnMut(&Row<'_>) -> Result<(), PatchError>) -> Result<(), PatchError> {
        for ((number, edit), tensor) in self.contents.edits.iter().enumerate().zip(self.bound.tensors()) {
            let mut residuals = self.residual.rows(number, edit);
            for (index, span, delta) in edit.changes() {
                let cells = Cells::new(span, edit.dtype().size());
                let residual = residuals.next();
                visit(&Row { edit, tensor, index, cells, delta, residual })?;
            }
        }
        Ok(())
    }

    /// Reads the touched tensors back from the disk and compares them with what the publisher signed.
    fn check(&self, written: &Checkpoint, progress: &dyn Progress) -> Result<(), PatchError> {
        let lengths = self.bound.tensors().iter().map(|tensor| tensor.length).sum();
        progress.stage(&format!("checking the {}", self.target()), lengths);
        for (edit, expected) in self.contents.edits.iter().zip(self.contents.digests(self.target())) {
            let tensor = written.tensor(edit.tensor())?;
            let found = written.digest(tensor, edit.dtype(), progress)?;
            if found != expected.blake3 {
                let (tensor, side, expected) = (expected.name, self.target(), expected.blake3);
                return Err(PatchError::Outcome { tensor, side, expected, found });
            }
        }
        check_rows(written, &self.contents.manifest, &self.contents.edits, self.target())?;
        Ok(())
    }
}

/// One touched row.
struct Row<'a> {
    edit: &'a Edit,
    tensor: &'a TensorInfo,
    /// Its index in the tensor.
    index: u32,
    cells: Cells,
    delta: &'a [f32],
    residual: Option<ResidualRow<'a>>,
}

impl Row<'_> {
    /// Folds, and makes sure that the patch's residual gives the old bytes back: else it could not be reverted.
    fn fold(&self, old: &[u8], new: &mut [u8]) -> Result<usize, PatchError> {
        let changed = fold_row(self.edit.dtype(), new, self.delta).map_err(|source| self.wrong(source))?;
        let mut back = new.to_vec();
        match self.unfold(&mut back) {
            Ok(_) if back == old => Ok(changed),
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

impl Contents {
    /// The digests that the manifest gives for one side, in the order of the edits.
    pub(super) fn digests(&self, side: Side) -> Vec<TensorDigest> {
        let base = self.manifest.base.tensors.iter();
        match side {
            Side::Base => {
                base.map(|tensor| TensorDigest { name: tensor.name.clone(), blake3: tensor.blake3 }).collect()
            }
            Side::Result => {
                let result = self.manifest.result.tensors.iter();
                result.map(|tensor| TensorDigest { name: tensor.name.clone(), blake3: tensor.blake3 }).collect()
            }
        }
    }
}
