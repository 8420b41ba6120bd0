//! Revert: give every touched row its old bytes back, through the signed residual; never by subtracting alone.

use std::path::PathBuf;

use serde::Serialize;

use super::apply::Target;
use super::record::{Record, RecordError, records};
use super::rewrite::Rewrite;
use super::{Contents, MAX_FILE_BYTES, PatchError};
use crate::checkpoint::{BoundBase, Checkpoint, Intent, Progress, STATE_FOLDER, Side, read_bounded};
use crate::digest::{Blake3, Sha256};
use crate::format::residual::Residual;

/// The newest patch on a checkpoint, with the copy that lies beside its record.
#[derive(Debug)]
pub struct Newest {
    record: Record,
    contents: Contents,
    residual: Residual,
}

/// What reverting did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Reverted {
    /// The patch that was taken back.
    pub patch: Sha256,
    /// Its name.
    pub name: String,
    /// The checkpoint.
    pub checkpoint: PathBuf,
    /// Where the result is; the checkpoint itself for a change in place.
    pub output: PathBuf,
    /// Tensors whose rows were restored.
    pub tensors: u64,
    /// Rows restored.
    pub rows: u64,
    /// Elements whose bits changed.
    pub changed: u64,
    /// Patches that remain applied.
    pub remaining: u32,
}

/// Reads the newest record of a checkpoint and the patch beside it.
///
/// # Errors
/// Nothing is applied, or the copy is not the patch that the record names.
pub fn newest(checkpoint: &Checkpoint) -> Result<Newest, PatchError> {
    let none = || RecordError::None { dir: checkpoint.dir().to_owned() };
    let record = records(checkpoint.dir())?.pop().ok_or_else(none)?;
    let contents = recorded_patch(checkpoint, &record)?;
    let residual = match (record.residual, &contents.residual) {
        (Some(expected), _) => {
            let bytes = recorded(checkpoint, &record.residual_name(), expected)?;
            Residual::from_bytes(&contents.edits, &bytes)?
        }
        (None, Some(residual)) => residual.clone(),
        (None, None) => return Err(PatchError::NoResidual),
    };
    Ok(Newest { record, contents, residual })
}

/// The patch beside a record, if it is the one that was applied.
pub(super) fn recorded_patch(checkpoint: &Checkpoint, record: &Record) -> Result<Contents, PatchError> {
    Contents::read_whole(recorded(checkpoint, &record.patch_name(), record.patch.blake3)?)
}

fn recorded(checkpoint: &Checkpoint, name: &str, expected: Blake3) -> Result<Vec<u8>, PatchError> {
    let path = checkpoint.dir().join(STATE_FOLDER).join(name);
    let bytes = read_bounded(&path, MAX_FILE_BYTES)?;
    let found = Blake3::of(&bytes);
    if found == expected { Ok(bytes) } else { Err(PatchError::Recorded { path, expected, found }) }
}

impl Newest {
    /// The record.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// The patch.
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// Checks that every touched tensor still is what the patch made of it.
    ///
    /// # Errors
    /// Every tensor that differs: reverting would not give the base.
    pub fn bind<'c>(&self, checkpoint: &'c Checkpoint, progress: &dyn Progress) -> Result<BoundBase<'c>, PatchError> {
        let Contents { manifest, edits, .. } = &self.contents;
        Ok(BoundBase::exact(checkpoint, manifest, edits, Side::Result, progress)?)
    }
}

/// Restores the bytes that the newest patch changed, and removes its record.
///
/// For a change in place, call [`Checkpoint::lock_for_change`] before binding.
///
/// # Errors
/// The restored tensors are not the base, the output exists, or the disk refuses. The checkpoint is then as it was.
pub fn revert(
    newest: &Newest,
    bound: &BoundBase<'_>,
    target: Target<'_>,
    progress: &dyn Progress,
) -> Result<Reverted, PatchError> {
    let Newest { record, contents, residual } = newest;
    let obsolete = record.files();
    let rewrite = Rewrite::new(bound, contents, residual);
    let (output, changed) = match target {
        Target::NewFolder(out) => {
            let changed = rewrite.to_new_folder(out, |staged| Ok(staged.remove_state(&obsolete)?), progress)?;
            (out, changed)
        }
        Target::InPlace => {
            let (patch, created) = (contents.id().to_string(), vec![]);
            let intent = Intent { verb: "revert", patch, created, obsolete };
            (bound.checkpoint().dir(), rewrite.in_place(&intent, |_| Ok(()), progress)?)
        }
    };
    Ok(Reverted {
        patch: contents.id(),
        name: contents.manifest.name.clone(),
        checkpoint: bound.checkpoint().dir().to_owned(),
        output: output.to_owned(),
        tensors: contents.edits.len() as u64,
        rows: contents.edits.rows() as u64,
        changed,
        remaining: record.number - 1,
    })
}
