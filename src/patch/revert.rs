//! Revert: give every touched row its old bytes back, through the residual; never by subtracting alone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::Serialize;

use super::apply::Target;
use super::record::{Record, RecordError, SignedBy, files_of, records};
use super::rewrite::{MARK, Rewrite, mark};
use super::status::overlap;
use super::verify::verify;
use super::{Contents, MAX_FILE_BYTES, PatchError, VerifiedPatch};
use crate::checkpoint::{
    BindError, BoundBase, Checkpoint, Depth, Digests, Intent, Mismatch, MismatchKind, Progress, STATE_FOLDER, Side,
    Sides, Vector, read_bounded,
};
use crate::digest::{Blake3, Sha256};
use crate::format::residual::Residual;
use crate::format::{Edits, Level};
use crate::tensor::TensorName;
use crate::trust::Policy;

/// Which patch to take back.
#[derive(Debug, Clone, Copy)]
pub enum Which<'a> {
    /// That of the newest record.
    Newest,
    /// That of the record with this number; newer ones must not touch its rows.
    Record(u32),
    /// This one, whether or not the checkpoint has a record of it.
    Patch(&'a VerifiedPatch),
}

/// A patch on a checkpoint, with what takes it back.
#[derive(Debug)]
pub struct Revertible {
    record: Option<Record>,
    record_signers: Vec<SignedBy>,
    contents: Contents,
    residual: Residual,
    /// What tells the rows, or why it is not there; nothing without a record.
    marks: Option<Result<Vec<u8>, PatchError>>,
    sides: Sides,
    level: Level,
}

/// A checkpoint that a patch can be taken back from. Only [`Revertible::bind`] makes one.
#[derive(Debug)]
pub struct Bound<'a> {
    base: BoundBase<'a>,
    applied: &'a Revertible,
    left: BTreeSet<(usize, u32)>,
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
    /// How closely the base had been compared when the patch was applied. At others than `exact` what the rows were
    /// before is known from the record alone.
    pub level: Level,
    /// Who is trusted and signed the record; nobody without a policy.
    pub record_signers: Vec<SignedBy>,
    /// How much of the touched tensors was compared, before and after.
    pub compared: Depth,
    /// Tensors whose rows were restored.
    pub tensors: u64,
    /// Rows restored.
    pub rows: u64,
    /// Rows that were changed since the patch was applied, and so were left as they are. Of the other rows of their tensors
    /// no digest is known to compare with; marks tell them, which nobody signed.
    pub left: BTreeMap<TensorName, Vec<u32>>,
    /// Elements whose bits changed.
    pub changed: u64,
    /// Patches that remain applied.
    pub remaining: u32,
}

/// Finds a patch on a checkpoint. Where it comes from the checkpoint's own records, a policy that is given must trust
/// it before it is decoded.
///
/// # Errors
/// It is not applied; a newer patch touches its rows; the copy is not what the record names, or not trusted; nothing
/// takes it back.
pub fn find(checkpoint: &Checkpoint, which: Which<'_>, policy: Option<&Policy>) -> Result<Revertible, PatchError> {
    let dir = checkpoint.dir().to_owned();
    let (all, number) = match which {
        Which::Patch(patch) => return of_patch(checkpoint, patch),
        Which::Record(number) => (records(&dir)?, number),
        Which::Newest => {
            let all = records(&dir)?;
            let Some(newest) = all.last().map(|record| record.number) else {
                return Err(RecordError::None { dir }.into());
            };
            (all, newest)
        }
    };
    let Some(record) = all.iter().find(|record| record.number == number) else {
        return Err(RecordError::NoSuch { dir, number }.into());
    };
    let mut found = of_record(checkpoint, record, policy)?;
    for other in all.iter().filter(|other| other.number != number) {
        let other_edits = recorded_patch(checkpoint, other)?.edits;
        if other.number > number && overlap(&found.contents.edits, &other_edits) {
            let (name, by) = (record.patch.name.clone(), other.number);
            return Err(PatchError::Covered { dir, name, number, by });
        }
        forget_shared(&mut found.sides, &found.contents.edits, &other_edits);
    }
    Ok(found)
}

/// A tensor that another patch touches too is not what either of them alone would make of it: of such ones only the rows
/// are known.
pub(super) fn forget_shared(sides: &mut Sides, edits: &Edits, other: &Edits) {
    sides.forget_whole(edits, |tensor| other.get(tensor).is_some());
}

/// By the word of its publisher alone: whatever records say, they may have come with the checkpoint. That of the same patch
/// goes with it; one of another patch on the same rows is in the way.
fn of_patch(checkpoint: &Checkpoint, patch: &VerifiedPatch) -> Result<Revertible, PatchError> {
    let contents = patch.contents().clone();
    let residual = contents.residual.clone().ok_or(PatchError::NoResidual)?;
    let mut sides = Sides::signed(&contents.manifest);
    let mut own = None;
    // Records that cannot be read say nothing, which is what they count for here.
    for record in records(checkpoint.dir()).unwrap_or_default() {
        if record.patch.id == contents.id() {
            own = Some(record);
            continue;
        }
        let Ok(other) = recorded_patch(checkpoint, &record) else { continue };
        if overlap(&contents.edits, &other.edits) {
            let (dir, name) = (checkpoint.dir().to_owned(), record.patch.name);
            return Err(PatchError::AlsoRecorded { dir, name, number: record.number });
        }
        forget_shared(&mut sides, &contents.edits, &other.edits);
    }
    Ok(Revertible { record: own, record_signers: vec![], contents, residual, marks: None, sides, level: Level::Exact })
}

fn of_record(checkpoint: &Checkpoint, record: &Record, policy: Option<&Policy>) -> Result<Revertible, PatchError> {
    let bytes = recorded(checkpoint, &record.patch_name(), record.patch.blake3)?;
    let contents = match policy {
        // An outdated or withdrawn patch is just what one takes back.
        Some(policy) => verify(bytes, &policy.clone().signatures_only())?.contents().clone(),
        None => Contents::read_whole(bytes)?,
    };
    let record_signers = match (policy, &record.signed) {
        (Some(policy), Some(envelope)) => {
            policy.check_signatures(envelope)?.signers.iter().map(SignedBy::from).collect()
        }
        _ => vec![],
    };
    if record.level != Level::Exact && record_signers.is_empty() {
        let path = checkpoint.dir().join(STATE_FOLDER).join(record.file_name());
        record.refuse_doubt(&contents.manifest, &path)?;
    }
    let residual = match (record.residual, &contents.residual) {
        (Some(expected), _) if record.level != Level::Exact || contents.residual.is_none() => {
            let bytes = recorded(checkpoint, &record.residual_name(), expected)?;
            Residual::from_bytes(&contents.edits, &bytes)?
        }
        (_, Some(residual)) => residual.clone(),
        (_, None) => return Err(PatchError::NoResidual),
    };
    let marks = Some(recorded(checkpoint, &record.marks_name(), record.marks));
    let (sides, level) = (sides_of(checkpoint, record, &contents)?, record.level.clone());
    Ok(Revertible { record: Some(record.clone()), record_signers, contents, residual, marks, sides, level })
}

/// What the touched tensors held and hold: for the exact base by the publisher's word, else by the record's.
pub(super) fn sides_of(checkpoint: &Checkpoint, record: &Record, contents: &Contents) -> Result<Sides, PatchError> {
    let names = |list: &[super::record::RowsDigest]| {
        contents.edits.iter().map(|edit| edit.tensor()).eq(list.iter().map(|tensor| &tensor.name))
    };
    let permitted = contents.manifest.base.levels.contains(&record.level) || record.override_binding.is_some();
    match (&record.level, names(&record.base) && names(&record.result)) {
        (Level::Exact, _) => {
            let mut sides = Sides::signed(&contents.manifest);
            sides.forget_whole(&contents.edits, |tensor| record.shared.contains(tensor));
            Ok(sides)
        }
        (level, _) if !permitted => {
            let permitted = contents.manifest.base.levels.clone();
            Err(PatchError::LevelNotPermitted { level: level.clone(), permitted })
        }
        (_, true) => Ok(record.sides()),
        (_, false) => {
            let path = checkpoint.dir().join(STATE_FOLDER).join(record.file_name());
            Err(RecordError::Tensors { path }.into())
        }
    }
}

/// The patch beside a record, if it is the one that was applied. Its residual is not decoded, nor anything that would take
/// far more than its length: nobody vouches for a record folder.
pub(super) fn recorded_patch(checkpoint: &Checkpoint, record: &Record) -> Result<Contents, PatchError> {
    Contents::read(recorded(checkpoint, &record.patch_name(), record.patch.blake3)?)
}

pub(super) fn recorded(checkpoint: &Checkpoint, name: &str, expected: Blake3) -> Result<Vec<u8>, PatchError> {
    let path = checkpoint.dir().join(STATE_FOLDER).join(name);
    let bytes = read_bounded(&path, MAX_FILE_BYTES)?;
    let found = Blake3::of(&bytes);
    if found == expected { Ok(bytes) } else { Err(PatchError::Recorded { path, expected, found }) }
}

/// The rows that are not what `marks` tells: (number of the edit, row).
pub(super) fn edited_rows(
    checkpoint: &Checkpoint,
    edits: &Edits,
    marks: &[u8],
) -> Result<BTreeSet<(usize, u32)>, PatchError> {
    let (mut marks, mut edited) = (marks.chunks_exact(MARK), BTreeSet::new());
    for (number, edit) in edits.iter().enumerate() {
        checkpoint.each_vector(checkpoint.tensor(edit.tensor())?, edit, |Vector { row, .. }, bytes| {
            if marks.next() != Some(mark(bytes).as_slice()) {
                edited.insert((number, row));
            }
            Ok::<_, PatchError>(())
        })?;
    }
    Ok(edited)
}

/// Adds to a mismatch which rows were changed since the patch was applied.
pub(super) fn name_rows(mut error: BindError, edits: &Edits, edited: &BTreeSet<(usize, u32)>) -> BindError {
    if let BindError::Mismatch { mismatches, .. } = &mut error {
        for Mismatch { tensor, kind } in mismatches {
            let number = edits.iter().position(|edit| edit.tensor() == tensor);
            if let MismatchKind::Rows { edited: rows, .. } = kind {
                *rows = edited.iter().filter(|(edit, _)| Some(*edit) == number).map(|(_, row)| *row).collect();
            }
        }
    }
    error
}

impl Revertible {
    /// The patch.
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// The record, if the checkpoint has one.
    pub fn record(&self) -> Option<&Record> {
        self.record.as_ref()
    }

    /// Checks that the checkpoint still is what the patch made of it, as deep as `depth` says. With `leave_edited`, rows
    /// that were changed since are taken note of and stay as they are.
    ///
    /// # Errors
    /// Every tensor that differs, and where the record tells, which rows; reverting would not give the base.
    pub fn bind<'a>(
        &'a self,
        checkpoint: &'a Checkpoint,
        depth: Depth,
        leave_edited: bool,
        progress: &dyn Progress,
    ) -> Result<Bound<'a>, PatchError> {
        let edits = &self.contents.edits;
        let bind =
            |sides| BoundBase::known(checkpoint, edits, sides, Side::Result, (self.level.clone(), depth), progress);
        let error = match bind(self.sides.clone()) {
            Ok(base) => return Ok(Bound { base, applied: self, left: BTreeSet::new() }),
            Err(error) => error,
        };
        let edited = match (&error, &self.marks) {
            (BindError::Mismatch { .. }, Some(Ok(marks))) => edited_rows(checkpoint, edits, marks)?,
            (BindError::Mismatch { .. }, _) if leave_edited => return Err(PatchError::NoMarks),
            _ => return Err(error.into()),
        };
        if !leave_edited || edited.is_empty() {
            return Err(name_rows(error, edits, &edited).into());
        }
        let base = bind(self.sides_without(&edited))?;
        Ok(Bound { base, applied: self, left: edited })
    }

    /// Nothing is known of tensors with rows that were changed by somebody else.
    fn sides_without(&self, edited: &BTreeSet<(usize, u32)>) -> Sides {
        let changed: BTreeSet<usize> = edited.iter().map(|(number, _)| *number).collect();
        let known = |digests: &[Digests]| {
            let known = |(number, digests): (usize, &Digests)| {
                if changed.contains(&number) { Digests::default() } else { *digests }
            };
            digests.iter().enumerate().map(known).collect()
        };
        Sides { base: known(&self.sides.base), result: known(&self.sides.result) }
    }
}

/// Restores the bytes that a patch changed, and removes its record.
///
/// For a change in place, call [`Checkpoint::lock_for_change`] before binding.
///
/// # Errors
/// The restored tensors are not the base, the output exists, or the disk refuses. The checkpoint is then as it was.
pub fn revert(
    bound: &Bound<'_>,
    target: Target<'_>,
    check: Depth,
    progress: &dyn Progress,
) -> Result<Reverted, PatchError> {
    let Revertible { record, contents, residual, .. } = bound.applied;
    let checkpoint = bound.base.checkpoint();
    let check = if *bound.base.level() == Level::Exact { check } else { Depth::Rows };
    let obsolete = match record {
        Some(record) => files_of(checkpoint.dir(), record.number)?,
        None => vec![],
    };
    let rewrite = Rewrite { bound: &bound.base, contents, residual, left: &bound.left, check };
    let (output, outcome) = match target.folder() {
        Some(folder) => {
            let outcome = rewrite.to_new_folder(folder, |staged, _| Ok(staged.remove_state(&obsolete)?), progress)?;
            (folder.0, outcome)
        }
        None => {
            let (patch, created) = (contents.id().to_string(), vec![]);
            let intent = Intent { verb: "revert", patch, created, obsolete };
            (checkpoint.dir(), rewrite.in_place(&intent, |_, _| Ok(()), progress)?)
        }
    };
    let before = records(checkpoint.dir()).unwrap_or_default().len();
    let removed = usize::from(record.is_some() && target.folder().is_some());
    Ok(Reverted {
        patch: contents.id(),
        name: contents.manifest.name.clone(),
        checkpoint: checkpoint.dir().to_owned(),
        output: output.to_owned(),
        level: bound.base.level().clone(),
        record_signers: bound.applied.record_signers.clone(),
        compared: check,
        tensors: contents.edits.len() as u64,
        rows: (contents.edits.rows() - bound.left.len()) as u64,
        left: bound.left_by_tensor(),
        changed: outcome.changed,
        remaining: (before - removed) as u32,
    })
}

impl Bound<'_> {
    fn left_by_tensor(&self) -> BTreeMap<TensorName, Vec<u32>> {
        let mut left = BTreeMap::<TensorName, Vec<u32>>::new();
        for (number, row) in &self.left {
            if let Some(tensor) = self.base.tensors().get(*number) {
                left.entry(tensor.name.clone()).or_default().push(*row);
            }
        }
        left
    }
}
