//! Apply: fold a verified patch into a checkpoint that is its base, and leave a record.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::assemble::this_tool;
use super::effect::{self, measure};
use super::record::{AppliedPatch, Record, SignedBy, next_number};
use super::rewrite::Rewrite;
use super::status::{StatusEntry, status};
use super::{Contents, PatchError, VerifiedPatch};
use crate::checkpoint::{
    BoundBase, Changer, Checkpoint, Intent, Progress, STATE_FOLDER, Side, Staged, check_target, copied_bytes,
};
use crate::digest::{Blake3, Sha256};
use crate::format::residual::{Residual, ResidualBuilder};
use crate::format::{Level, Timestamp};

/// Where the changed checkpoint goes.
#[derive(Debug, Clone, Copy)]
pub enum Target<'a> {
    /// A new folder; everything in the checkpoint's folder comes along.
    NewFolder(&'a Path),
    /// Where it lies, under a rollback journal.
    InPlace,
}

/// What applying did, or would do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Applied {
    /// Whether nothing was written.
    pub dry_run: bool,
    /// The patch.
    pub patch: Sha256,
    /// Its name.
    pub name: String,
    /// Who signed it.
    pub signers: Vec<SignedBy>,
    /// The checkpoint.
    pub checkpoint: PathBuf,
    /// Where the result is; the checkpoint itself for a change in place.
    pub output: PathBuf,
    /// How closely the base was compared.
    pub level: Level,
    /// Touched tensors.
    pub tensors: u64,
    /// Touched rows.
    pub rows: u64,
    /// Bytes of the touched rows.
    pub bytes: u64,
    /// Elements whose bits change.
    pub changed: u64,
    /// Elements of the touched rows.
    pub elements: u64,
    /// Bytes of disk that the change needs at most.
    pub disk_needed: u64,
    /// Whether the result is what the publisher signed: true, or the command fails.
    pub result_matches: bool,
    /// The record's number within the checkpoint.
    pub record: u32,
}

/// Applies a patch to the checkpoint it was bound to.
///
/// For a change in place, call [`crate::checkpoint::Checkpoint::lock_for_change`] before binding.
///
/// # Errors
/// The result is not what the publisher signed, the output exists, or the disk refuses. The checkpoint is then as it
/// was and no output is left behind.
pub fn apply(
    patch: &VerifiedPatch,
    base: &BoundBase<'_>,
    target: Target<'_>,
    progress: &dyn Progress,
) -> Result<Applied, PatchError> {
    let mut applied = plan(patch, base, target)?;
    let contents = patch.contents();
    let (residual, kept) = residual_for(contents, base)?;
    let record = record_for(patch, base, applied.record, kept.as_deref());
    let mut files = vec![(record.patch_name(), contents.bytes().to_vec())];
    files.extend(kept.map(|bytes| (record.residual_name(), bytes)));
    files.push((record.file_name(), record.to_bytes(contents.digests(Side::Result))?));
    let rewrite = Rewrite::new(base, contents, &residual);
    applied.changed = match target {
        Target::NewFolder(out) => {
            let add = |staged: &Staged| files.iter().try_for_each(|(name, bytes)| staged.add_state(name, bytes));
            rewrite.to_new_folder(out, |staged| Ok(add(staged)?), progress)?
        }
        Target::InPlace => {
            let created = files.iter().map(|(name, _)| name.clone()).collect();
            let intent = Intent { verb: "apply", patch: contents.id().to_string(), created, obsolete: vec![] };
            let add = |changer: &Changer| files.iter().try_for_each(|(name, bytes)| changer.add_state(name, bytes));
            rewrite.in_place(&intent, |changer| Ok(add(changer)?), progress)?
        }
    };
    Ok(applied)
}

/// Works out what [`apply`] would do, the result's digests included, and writes nothing.
///
/// # Errors
/// Those that `apply` would meet, short of a failing disk.
pub fn dry_run(
    patch: &VerifiedPatch,
    base: &BoundBase<'_>,
    target: Target<'_>,
    progress: &dyn Progress,
) -> Result<Applied, PatchError> {
    let mut applied = plan(patch, base, target)?;
    applied.dry_run = true;
    let contents = patch.contents();
    progress.stage("working out the result", base.tensors().iter().map(|tensor| tensor.length).sum());
    let expected = contents.manifest.result.tensors.iter();
    for ((edit, tensor), expected) in contents.edits.iter().zip(base.tensors()).zip(expected) {
        let effect = measure(base.checkpoint(), tensor, edit, &mut ResidualBuilder::new(), progress)?;
        if effect.result != *expected {
            let (tensor, expected, found) = (edit.tensor().clone(), expected.blake3, effect.result.blake3);
            return Err(PatchError::Outcome { tensor, side: Side::Result, expected, found });
        }
    }
    let (residual, _) = residual_for(contents, base)?;
    applied.changed = Rewrite::new(base, contents, &residual).rehearse()?;
    Ok(applied)
}

/// A new record on top of one that no longer holds could never be taken back.
fn refuse_stale_records(checkpoint: &Checkpoint) -> Result<(), PatchError> {
    let stale = |entry: StatusEntry| (!entry.is_sound()).then_some(entry.record);
    match status(checkpoint)?.applied.into_iter().find_map(stale) {
        None => Ok(()),
        Some(record) => Err(PatchError::StaleRecord {
            path: checkpoint.dir().join(STATE_FOLDER).join(record.file_name()),
            name: record.patch.name,
        }),
    }
}

/// What takes the patch back: what it carries, or, where it carries none, what is worked out here; the latter with the
/// bytes to keep.
fn residual_for(contents: &Contents, base: &BoundBase<'_>) -> Result<(Residual, Option<Vec<u8>>), PatchError> {
    match &contents.residual {
        Some(residual) => Ok((residual.clone(), None)),
        None => {
            let residual = effect::residual(base.checkpoint(), base.tensors(), &contents.edits)?;
            let bytes = residual.to_bytes();
            Ok((residual, Some(bytes)))
        }
    }
}

/// Every check that needs no write, and what the change comes to.
fn plan(patch: &VerifiedPatch, base: &BoundBase<'_>, target: Target<'_>) -> Result<Applied, PatchError> {
    let (contents, checkpoint) = (patch.contents(), base.checkpoint());
    refuse_stale_records(checkpoint)?;
    contents.require_understood()?;
    let touched = contents.edits.touched_bytes();
    let records = contents.bytes().len() as u64;
    let (output, needed) = match target {
        Target::NewFolder(out) => {
            check_target(checkpoint, out)?;
            (out, copied_bytes(checkpoint)?)
        }
        Target::InPlace => {
            checkpoint.check_change_in_place(base.tensors())?;
            (checkpoint.dir(), touched)
        }
    };
    Ok(Applied {
        dry_run: false,
        patch: contents.id(),
        name: contents.manifest.name.clone(),
        signers: patch.signers().iter().map(SignedBy::from).collect(),
        checkpoint: checkpoint.dir().to_owned(),
        output: output.to_owned(),
        level: base.level().clone(),
        tensors: contents.edits.len() as u64,
        rows: contents.edits.rows() as u64,
        bytes: touched,
        changed: 0,
        elements: contents.edits.iter().map(|edit| (edit.rows().len() * edit.vectors().len()) as u64).sum(),
        disk_needed: needed + records,
        result_matches: true,
        record: next_number(checkpoint.dir())?,
    })
}

fn record_for(patch: &VerifiedPatch, base: &BoundBase<'_>, number: u32, residual: Option<&[u8]>) -> Record {
    let contents: &Contents = patch.contents();
    let Contents { manifest, .. } = contents;
    Record {
        number,
        applied: Timestamp::now(),
        tool: this_tool(),
        level: base.level().clone(),
        patch: AppliedPatch {
            id: contents.id(),
            name: manifest.name.clone(),
            series: manifest.series.clone(),
            sequence: manifest.sequence,
            length: contents.bytes().len() as u64,
            blake3: Blake3::of(contents.bytes()),
        },
        signers: patch.signers().iter().map(SignedBy::from).collect(),
        base: contents.digests(Side::Base),
        residual: residual.map(Blake3::of),
    }
}
