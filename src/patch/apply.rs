//! Apply: fold a verified patch into a checkpoint that is its base, and leave a record.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::assemble::this_tool;
use super::bind::Bound;
use super::effect;
use super::record::{
    AppliedPatch, MARKS, PATCH, RECORD, RESIDUAL, Record, RecordError, RowsDigest, SIGNED, SignedBy, named, next_number,
};
use super::rewrite::{MARK, Outcome, Rewrite};
use super::status::{Status, status};
use super::{Contents, PatchError, VerifiedPatch};
use crate::checkpoint::{
    Checkpoint, Depth, Intent, Progress, STATE_FOLDER, Side, Untouched, check_target, copied_bytes, free_bytes,
};
use crate::digest::{Blake3, Sha256};
use crate::format::limits::{MAX_ENVELOPE_BYTES, MAX_JSON_INTEGER};
use crate::format::residual::Residual;
use crate::format::{Edit, Edits, Envelope, EnvelopeError, Layout, Level, Timestamp};
use crate::tensor::TensorName;
use crate::trust::SecretKey;

/// Where the changed checkpoint goes.
#[derive(Debug, Clone, Copy)]
pub enum Target<'a> {
    /// A new folder; everything in the checkpoint's folder comes along.
    NewFolder(&'a Path),
    /// The same, but that shards without touched rows become hard links to the checkpoint's, where that can be.
    LinkedFolder(&'a Path),
    /// Where it lies, under a rollback journal.
    InPlace,
}

impl<'a> Target<'a> {
    /// The new folder, if there is one, and how untouched shards come there.
    pub fn folder(self) -> Option<(&'a Path, Untouched)> {
        match self {
            Self::NewFolder(out) => Some((out, Untouched::Copy)),
            Self::LinkedFolder(out) => Some((out, Untouched::Link)),
            Self::InPlace => None,
        }
    }
}

/// How a patch is to be applied.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// Where the result goes.
    pub target: Target<'a>,
    /// How much of the outcome is read back and compared with what the publisher signed.
    pub check: Depth,
    /// What signs the record.
    pub record_key: Option<&'a SecretKey>,
}

impl<'a> Options<'a> {
    /// All of the touched tensors compared, the record not signed.
    pub fn new(target: Target<'a>) -> Self {
        Self { target, check: Depth::Tensors, record_key: None }
    }

    /// What of them can be had at a level: only of the exact base are whole tensors known.
    fn at(self, level: &Level) -> Self {
        Self { check: if *level == Level::Exact { self.check } else { Depth::Rows }, ..self }
    }
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
    /// How much of it, and of the outcome.
    pub compared: Depth,
    /// Why the publisher's word on bases was set aside.
    #[serde(rename = "override")]
    pub override_binding: Option<String>,
    /// How far the touched tensors are from the publisher's, in millionths of their length; empty at level `exact`.
    pub distances: BTreeMap<TensorName, u64>,
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
    /// Bytes of disk that are free where it goes.
    pub disk_free: u64,
    /// Whether the result is what the publisher signed: at level `exact` it is, or the command fails; at others the
    /// publisher signed none.
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
    bound: &Bound<'_>,
    options: Options<'_>,
    progress: &dyn Progress,
) -> Result<Applied, PatchError> {
    let options = options.at(bound.base.level());
    let contents = patch.contents();
    let shared = refuse_records(contents, bound.base.checkpoint())?;
    let mut applied = plan(patch, bound, options)?;
    let residual = residual_for(contents, bound)?;
    // What was worked out here is nowhere else, and so must be kept.
    let kept = match &residual {
        Cow::Owned(residual) => Some(residual),
        Cow::Borrowed(_) => None,
    };
    let note = Note { patch, bound, options, number: applied.record, kept, shared };
    let left = BTreeSet::new();
    let rewrite = Rewrite { bound: &bound.base, contents, residual: &residual, left: &left, check: options.check };
    let outcome = match options.target.folder() {
        Some(folder) => rewrite.to_new_folder(
            folder,
            |staged, outcome| note.write(outcome, |name, bytes| Ok(staged.add_state(name, bytes)?)),
            progress,
        )?,
        None => {
            let (verb, patch) = ("apply", contents.id().to_string());
            let intent = Intent { verb, patch, created: note.files(), obsolete: vec![] };
            rewrite.in_place(
                &intent,
                |changer, outcome| note.write(outcome, |name, bytes| Ok(changer.add_state(name, bytes)?)),
                progress,
            )?
        }
    };
    applied.changed = outcome.changed;
    Ok(applied)
}

/// Works out what [`apply`] would do, the result's digests included, and writes nothing.
///
/// # Errors
/// Those that `apply` would meet, short of a failing disk.
pub fn dry_run(
    patch: &VerifiedPatch,
    bound: &Bound<'_>,
    options: Options<'_>,
    progress: &dyn Progress,
) -> Result<Applied, PatchError> {
    let options = options.at(bound.base.level());
    let contents = patch.contents();
    refuse_records(contents, bound.base.checkpoint())?;
    let mut applied = plan(patch, bound, options)?;
    applied.dry_run = true;
    if options.check == Depth::Tensors {
        expect_signed_tensors(contents, bound, progress)?;
    }
    let (residual, left) = (residual_for(contents, bound)?, BTreeSet::new());
    let rewrite = Rewrite { bound: &bound.base, contents, residual: &residual, left: &left, check: options.check };
    applied.changed = rewrite.plan(|_, _, _| Ok(()))?.changed;
    Ok(applied)
}

fn expect_signed_tensors(contents: &Contents, bound: &Bound<'_>, progress: &dyn Progress) -> Result<(), PatchError> {
    let base = &bound.base;
    progress.stage("working out the result", base.tensors().iter().map(|tensor| tensor.length).sum());
    let expected = contents.manifest.result.tensors.iter();
    for ((edit, tensor), expected) in contents.edits.iter().zip(base.tensors()).zip(expected) {
        let effect = effect::sides(base.checkpoint(), tensor, edit, progress)?;
        if effect.result != *expected {
            let (tensor, expected, found) = (edit.tensor().clone(), expected.blake3, effect.result.blake3);
            return Err(PatchError::Outcome { tensor, side: Side::Result, expected, found });
        }
    }
    Ok(())
}

/// A new record on top of one that no longer holds could never be taken back. Gives the tensors that both touch.
fn refuse_records(contents: &Contents, checkpoint: &Checkpoint) -> Result<BTreeSet<TensorName>, PatchError> {
    let Status { applied, .. } = status(checkpoint, Depth::Rows, None, &())?;
    let path = |record: &Record| checkpoint.dir().join(STATE_FOLDER).join(record.file_name());
    let mut shared = BTreeSet::new();
    for entry in applied {
        if !entry.is_sound() {
            return Err(PatchError::StaleRecord { path: path(&entry.record), name: entry.record.patch.name });
        }
        if entry.record.patch.id == contents.id() {
            return Err(PatchError::AlreadyApplied { path: path(&entry.record), name: entry.record.patch.name });
        }
        shared.extend(entry.record.result.into_iter().map(|touched| touched.name));
    }
    shared.retain(|tensor| contents.edits.get(tensor).is_some());
    Ok(shared)
}

/// What takes the patch back: on the exact base what it carries; where that is another or it carries none, what is
/// worked out here.
fn residual_for<'p>(contents: &'p Contents, bound: &Bound<'_>) -> Result<Cow<'p, Residual>, PatchError> {
    let base = &bound.base;
    match carried(contents, bound) {
        Some(residual) => Ok(Cow::Borrowed(residual)),
        None => Ok(Cow::Owned(effect::residual(base.checkpoint(), base.tensors(), &contents.edits)?)),
    }
}

/// The patch's own residual, where it is of use: on the exact base.
fn carried<'p>(contents: &'p Contents, bound: &Bound<'_>) -> Option<&'p Residual> {
    contents.residual.as_ref().filter(|_| *bound.base.level() == Level::Exact)
}

/// Every check that needs no write, and what the change comes to.
fn plan(patch: &VerifiedPatch, bound: &Bound<'_>, options: Options<'_>) -> Result<Applied, PatchError> {
    let (contents, checkpoint) = (patch.contents(), bound.base.checkpoint());
    contents.require_understood()?;
    let touched = contents.edits.touched_bytes();
    let (output, needed, place) = match options.target.folder() {
        Some((out, _)) => (out, copied_bytes(checkpoint)?, check_target(checkpoint, out)?),
        None => {
            checkpoint.check_change_in_place(bound.base.tensors())?;
            (checkpoint.dir(), journal_bytes(&contents.edits), checkpoint.dir().to_owned())
        }
    };
    Ok(Applied {
        dry_run: false,
        patch: contents.id(),
        name: contents.manifest.name.clone(),
        signers: patch.signers().iter().map(SignedBy::from).collect(),
        checkpoint: checkpoint.dir().to_owned(),
        output: output.to_owned(),
        level: bound.base.level().clone(),
        compared: options.check,
        override_binding: bound.override_binding.clone(),
        distances: millionths(bound),
        tensors: contents.edits.len() as u64,
        rows: contents.edits.rows() as u64,
        bytes: touched,
        changed: 0,
        elements: contents.edits.iter().map(|edit| (edit.rows().len() * edit.vectors().len()) as u64).sum(),
        disk_needed: needed + record_bytes(contents, bound),
        disk_free: free_bytes(&place)?,
        result_matches: *bound.base.level() == Level::Exact,
        record: next_number(checkpoint.dir())?,
    })
}

/// What a rollback journal takes at most: rows and their marks, which for elements that lie apart are as long as these.
fn journal_bytes(edits: &Edits) -> u64 {
    let rows = |edit: &Edit| match edit.layout() {
        Layout::Rows => edit.touched_bytes() + edit.touched_bytes() / 32,
        Layout::Columns => 2 * edit.touched_bytes(),
    };
    edits.iter().map(rows).sum::<u64>() + 64 * edits.rows() as u64 + (64 << 10)
}

/// What a record takes at most, with all that lies beside it: twice as text, in case it is signed.
fn record_bytes(contents: &Contents, bound: &Bound<'_>) -> u64 {
    let (edits, rows) = (&contents.edits, contents.edits.rows() as u64);
    let names = |edit: &Edit| edit.tensor().as_str().len() as u64;
    let text: u64 = edits.iter().map(|edit| 4 * names(edit) + 600).sum::<u64>() + (64 << 10);
    let kept = match carried(contents, bound) {
        Some(_) => 0,
        None => edits.touched_bytes() + 64 * rows,
    };
    contents.bytes().len() as u64 + MARK as u64 * rows + 3 * text + kept
}

fn millionths(bound: &Bound<'_>) -> BTreeMap<TensorName, u64> {
    bound
        .distances
        .iter()
        .map(|far| (far.tensor.clone(), ((far.distance * 1e6).round() as u64).min(MAX_JSON_INTEGER - 1)))
        .collect()
}

/// What is written down about a patch that is being applied.
struct Note<'a> {
    patch: &'a VerifiedPatch,
    bound: &'a Bound<'a>,
    options: Options<'a>,
    number: u32,
    kept: Option<&'a Residual>,
    /// Tensors that earlier patches touch too.
    shared: BTreeSet<TensorName>,
}

impl Note<'_> {
    /// The plain names of the files.
    fn files(&self) -> Vec<String> {
        let mut files = vec![PATCH, MARKS, RECORD];
        files.extend(self.kept.map(|_| RESIDUAL));
        files.extend(self.options.record_key.map(|_| SIGNED));
        files.into_iter().map(|ending| named(self.number, ending)).collect()
    }

    fn write(&self, outcome: &Outcome, add: impl Fn(&str, &[u8]) -> Result<(), PatchError>) -> Result<(), PatchError> {
        let names: Vec<&TensorName> = self.patch.contents().edits.iter().map(|edit| edit.tensor()).collect();
        let digests = |rows: &[Blake3]| {
            let rows = names.iter().zip(rows);
            rows.map(|(name, rows)| RowsDigest { name: (*name).clone(), rows: *rows }).collect::<Vec<_>>()
        };
        let mut record = self.record(&digests(&outcome.here), &digests(&outcome.there));
        record.marks = Blake3::of(&outcome.marks);
        if self.options.record_key.is_none() {
            record.refuse_doubt(&self.patch.contents().manifest, Path::new(&record.file_name()))?;
        }
        add(&record.patch_name(), self.patch.contents().bytes())?;
        add(&record.marks_name(), &outcome.marks)?;
        if let Some(residual) = self.kept {
            let bytes = residual.to_bytes();
            record.residual = Some(Blake3::of(&bytes));
            add(&record.residual_name(), &bytes)?;
        }
        let bytes = record.to_bytes()?;
        if let Some(key) = self.options.record_key {
            let envelope = Envelope::new(bytes.clone(), vec![key.sign(&bytes)?]).to_json() + "\n";
            if envelope.len() > MAX_ENVELOPE_BYTES {
                let (path, source) = (record.signed_name().into(), EnvelopeError::TooLong { found: envelope.len() });
                return Err(RecordError::Envelope { path, source }.into());
            }
            add(&record.signed_name(), envelope.as_bytes())?;
        }
        add(&record.file_name(), &bytes)
    }

    /// The record, but for the digests of the files beside it.
    fn record(&self, base: &[RowsDigest], result: &[RowsDigest]) -> Record {
        let contents = self.patch.contents();
        let manifest = &contents.manifest;
        Record {
            number: self.number,
            applied: Timestamp::now(),
            tool: this_tool(),
            level: self.bound.base.level().clone(),
            compared: self.options.check,
            override_binding: self.bound.override_binding.clone(),
            distances: millionths(self.bound),
            patch: AppliedPatch {
                id: contents.id(),
                name: manifest.name.clone(),
                series: manifest.series.clone(),
                sequence: manifest.sequence,
                length: contents.bytes().len() as u64,
                blake3: Blake3::of(contents.bytes()),
            },
            signers: self.patch.signers().iter().map(SignedBy::from).collect(),
            base: base.to_vec(),
            shared: self.shared.clone(),
            residual: None,
            marks: Blake3::of(&[]),
            result: result.to_vec(),
            signed: None,
        }
    }
}
