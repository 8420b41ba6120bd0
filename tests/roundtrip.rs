//! Apply and revert give back every byte: in a new folder and in place, alone and stacked.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use nestpatch::checkpoint::{BindError, Checkpoint, Depth, MismatchKind};
use nestpatch::digest::Blake3;
use nestpatch::format::{Draft, Layout, Residual, Vectors};
use nestpatch::patch::apply::{Applied, Options, Target, apply, dry_run};
use nestpatch::patch::assemble::sign;
use nestpatch::patch::bind::{Accept, bind};
use nestpatch::patch::revert::{Which, find, revert};
use nestpatch::patch::status::{State, status};
use nestpatch::patch::verify::verify;
use nestpatch::patch::{PatchError, VerifiedPatch};
use nestpatch::trust::SecretKey;

fn verified(patch: Vec<u8>) -> VerifiedPatch {
    verify(patch, &common::policy()).unwrap()
}

fn try_apply(patch: &VerifiedPatch, dir: &Path, target: Target<'_>) -> Result<Applied, PatchError> {
    let checkpoint = Checkpoint::open(dir)?;
    let bound = bind(patch, &checkpoint, &Accept::exact(), &())?;
    apply(patch, &bound, Options::new(target), &())
}

fn try_revert(dir: &Path, target: Target<'_>) -> Result<u32, PatchError> {
    let checkpoint = Checkpoint::open(dir)?;
    let newest = find(&checkpoint, Which::Newest, None)?;
    let bound = newest.bind(&checkpoint, Depth::Tensors, false, &())?;
    revert(&bound, target, Depth::Tensors, &()).map(|done| done.remaining)
}

fn base() -> (tempfile::TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("base");
    common::checkpoint(&dir);
    (root, dir)
}

#[test]
fn a_new_folder_and_back() {
    let (root, dir) = base();
    let before = common::snapshot(&dir);
    let patch = verified(common::patch(&dir, 7));
    let (out, back) = (root.path().join("out"), root.path().join("back"));
    let done = try_apply(&patch, &dir, Target::NewFolder(&out)).unwrap();
    assert!(done.changed > 0 && done.changed < done.elements, "{done:?}");
    assert_eq!(common::snapshot(&dir), before);
    assert_only_touched_vectors_differ(&patch, &dir, &out);
    assert_eq!(try_revert(&out, Target::NewFolder(&back)).unwrap(), 0);
    assert_eq!(common::snapshot(&back), before);
    let names: BTreeSet<_> = fs::read_dir(root.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["back", "base", "out"].map(Into::into).into(), "no temporary folder stays");
}

fn assert_only_touched_vectors_differ(patch: &VerifiedPatch, before: &Path, after: &Path) {
    let (before, after) = (Checkpoint::open(before).unwrap(), Checkpoint::open(after).unwrap());
    for info in before.tensors() {
        let (old, new) = (before.read(&info.name).unwrap(), after.read(&info.name).unwrap());
        let Some(edit) = patch.contents().edits.get(&info.name) else {
            assert_eq!(old, new, "{}", info.name);
            continue;
        };
        assert_ne!(old, new, "{}", info.name);
        let vectors = Vectors::new(edit.layout(), &info.shape).unwrap();
        let size = edit.dtype().size();
        for (element, (old, new)) in old.chunks(size).zip(new.chunks(size)).enumerate() {
            let vector = match edit.layout() {
                Layout::Rows => element / vectors.len(),
                Layout::Columns => element % vectors.count() as usize,
            };
            assert!(old == new || edit.rows().contains(&(vector as u32)), "{} element {element}", info.name);
        }
    }
}

#[test]
fn in_place_and_back() {
    let (root, dir) = base();
    let before = common::snapshot(&dir);
    let patch = verified(common::patch(&dir, 7));
    let out = root.path().join("out");
    try_apply(&patch, &dir, Target::NewFolder(&out)).unwrap();
    try_apply(&patch, &dir, Target::InPlace).unwrap();
    assert_same_but_for_time(&dir, &out);
    assert_eq!(try_revert(&dir, Target::InPlace).unwrap(), 0);
    assert_eq!(common::snapshot(&dir), before);
}

fn assert_same_but_for_time(one: &Path, other: &Path) {
    let (mut one, mut other) = (common::snapshot(one), common::snapshot(other));
    let record = Path::new("nestpatch/0001.json");
    assert!(one.remove(record).is_some() && other.remove(record).is_some());
    assert_eq!(one, other);
}

#[test]
fn patches_stack_and_come_off_in_order() {
    let (_root, dir) = base();
    let mut states = vec![common::snapshot(&dir)];
    for seed in [7, 8, 9] {
        let patch = verified(common::patch(&dir, seed));
        try_apply(&patch, &dir, Target::InPlace).unwrap();
        states.push(common::snapshot(&dir));
    }
    let found = status(&Checkpoint::open(&dir).unwrap(), Depth::Rows, None, &()).unwrap();
    let state: Vec<_> = found.applied.into_iter().map(|entry| entry.state).collect();
    assert_eq!(state, [State::Covered { by: 2 }, State::Covered { by: 3 }, State::Holds]);
    states.pop();
    for (remaining, state) in states.into_iter().enumerate().rev() {
        assert_eq!(try_revert(&dir, Target::InPlace).unwrap() as usize, remaining);
        assert_eq!(common::snapshot(&dir), state);
    }
    assert!(matches!(try_revert(&dir, Target::InPlace), Err(PatchError::Record(_))));
}

#[test]
fn a_dry_run_writes_nothing_and_knows_the_outcome() {
    let (root, dir) = base();
    let before = common::snapshot(root.path());
    let patch = verified(common::patch(&dir, 7));
    let out = root.path().join("out");
    for target in [Target::NewFolder(&out), Target::InPlace] {
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let bound = bind(&patch, &checkpoint, &Accept::exact(), &()).unwrap();
        let planned = dry_run(&patch, &bound, Options::new(target), &()).unwrap();
        assert_eq!(common::snapshot(root.path()), before);
        drop(bound);
        drop(checkpoint);
        if let Target::NewFolder(_) = target {
            let done = try_apply(&patch, &dir, target).unwrap();
            let disk_free = planned.disk_free;
            assert_eq!(Applied { dry_run: true, disk_free, ..done }, planned);
            fs::remove_dir_all(&out).unwrap();
        }
    }
}

#[test]
fn the_binding_survives_resharding_and_metadata() {
    let (root, dir) = base();
    let patch = verified(common::patch(&dir, 7));
    let shards = common::tensors(1);
    let all = shards.values().flatten().map(|(name, tensor)| (name.clone(), tensor.clone())).collect();
    let other = root.path().join("other");
    common::checkpoint_of(&other, &[("model-00001-of-00001.safetensors".to_owned(), all)].into());
    try_apply(&patch, &other, Target::InPlace).unwrap();
    try_revert(&other, Target::InPlace).unwrap();
}

#[test]
fn another_base_is_refused_and_the_tensor_named() {
    let (_root, dir) = base();
    let patch = verified(common::patch(&dir, 7));
    let touched = patch.contents().edits.iter().next().unwrap().clone();
    let outside = (0..).find(|row| !touched.rows().contains(row)).unwrap() as usize;
    let inside = *touched.rows().last().unwrap() as usize;
    for (row, rows_differ) in [(inside, true), (outside, false)] {
        let mut shards = common::tensors(1);
        let tensor = shards.values_mut().find_map(|shard| shard.get_mut(touched.tensor().as_str())).unwrap();
        tensor.bytes[row * touched.row_bytes() + 2] ^= 1;
        common::checkpoint_of(&dir, &shards);
        let before = common::snapshot(&dir);
        let error = try_apply(&patch, &dir, Target::InPlace).unwrap_err();
        let PatchError::Bind(BindError::Mismatch { mismatches, .. }) = error else { panic!("{error}") };
        assert_eq!(mismatches.len(), 1);
        assert_eq!(mismatches[0].tensor, *touched.tensor());
        assert_eq!(matches!(mismatches[0].kind, MismatchKind::Rows { .. }), rows_differ);
        assert_eq!(matches!(mismatches[0].kind, MismatchKind::Elsewhere { .. }), !rows_differ);
        assert_eq!(common::snapshot(&dir), before);
    }
}

#[test]
fn what_was_edited_after_apply_is_not_reverted() {
    let (_root, dir) = base();
    let patch = verified(common::patch(&dir, 7));
    try_apply(&patch, &dir, Target::InPlace).unwrap();
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let touched = patch.contents().edits.iter().next().unwrap();
    let shard = dir.join(checkpoint.shard_of(checkpoint.tensor(touched.tensor()).unwrap()));
    let old = checkpoint.read(touched.tensor()).unwrap();
    drop(checkpoint);
    let mut bytes = fs::read(&shard).unwrap();
    let at = bytes.windows(old.len()).position(|window| window == old).unwrap();
    bytes[at + touched.rows()[0] as usize * touched.row_bytes() + 1] ^= 1;
    fs::write(&shard, bytes).unwrap();
    let before = common::snapshot(&dir);
    let found = status(&Checkpoint::open(&dir).unwrap(), Depth::Rows, None, &()).unwrap();
    assert!(!found.is_sound());
    let error = try_revert(&dir, Target::InPlace).unwrap_err();
    assert!(error.to_string().contains(touched.tensor().as_str()), "{error}");
    assert_eq!(common::snapshot(&dir), before);
}

/// The same patch, differently told: what a publisher who errs or lies might sign.
fn retold(patch: &VerifiedPatch, residual: Option<&Residual>, change: impl FnOnce(&mut Draft)) -> VerifiedPatch {
    let manifest = patch.contents().manifest.clone();
    let mut draft = Draft {
        name: manifest.name,
        series: manifest.series,
        sequence: manifest.sequence,
        supersedes: manifest.supersedes,
        created: manifest.created,
        tool: manifest.tool,
        base: manifest.base,
        result: manifest.result,
        creation: manifest.creation,
    };
    change(&mut draft);
    let unsigned = draft.assemble(&patch.contents().edits, residual, None).unwrap();
    verified(sign(&unsigned, &SecretKey::from_seed(&common::KEY_SEED)).unwrap())
}

#[test]
fn without_a_residual_in_the_patch_apply_keeps_one() {
    let (root, dir) = base();
    let before = common::snapshot(&dir);
    let patch = retold(&verified(common::patch(&dir, 7)), None, |_| ());
    assert!(patch.contents().residual.is_none());
    let (out, back) = (root.path().join("out"), root.path().join("back"));
    try_apply(&patch, &dir, Target::NewFolder(&out)).unwrap();
    assert!(out.join("nestpatch/0001.residual").exists());
    try_revert(&out, Target::NewFolder(&back)).unwrap();
    assert!(common::snapshot(&back) == before);
    try_apply(&patch, &dir, Target::InPlace).unwrap();
    let kept = dir.join("nestpatch/0001.residual");
    let good = fs::read(&kept).unwrap();
    fs::write(&kept, &good[1..]).unwrap();
    assert!(matches!(try_revert(&dir, Target::InPlace), Err(PatchError::Recorded { .. })));
    fs::write(&kept, good).unwrap();
    try_revert(&dir, Target::InPlace).unwrap();
    assert!(common::snapshot(&dir) == before);
}

#[test]
fn a_signed_residual_that_restores_something_else_is_not_applied() {
    let (root, dir) = base();
    let patch = verified(common::patch(&dir, 7));
    let other = root.path().join("other");
    common::checkpoint_of(&other, &common::tensors(2));
    let edits = patch.contents().edits.clone();
    let foreign = verified(common::patch_of(&other, 1, &edits)).contents().residual.clone();
    refused_everywhere(&retold(&patch, foreign.as_ref(), |_| ()), &dir, |error| {
        matches!(error, PatchError::Residual { .. })
    });
}

#[test]
fn a_signed_result_that_does_not_follow_is_not_applied() {
    let (_root, dir) = base();
    let patch = verified(common::patch(&dir, 7));
    let lie = retold(&patch, patch.contents().residual.as_ref(), |draft| {
        draft.result.tensors[3].blake3 = Blake3::of(b"something else");
    });
    refused_everywhere(&lie, &dir, |error| matches!(error, PatchError::Outcome { .. }));
}

/// Where only the rows are looked at, what is signed of them is all that speaks.
#[test]
fn signed_rows_that_do_not_follow_are_not_written() {
    let (_root, dir) = base();
    let patch = verified(common::patch(&dir, 7));
    let lie = retold(&patch, patch.contents().residual.as_ref(), |draft| {
        draft.result.tensors[3].rows = Blake3::of(b"something else");
    });
    refused_everywhere(&lie, &dir, |error| matches!(error, PatchError::Outcome { .. }));
    let before = common::snapshot(&dir);
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let bound = bind(&lie, &checkpoint, &Accept::exact().comparing(Depth::Rows), &()).unwrap();
    let options = Options { check: Depth::Rows, ..Options::new(Target::InPlace) };
    let error = apply(&lie, &bound, options, &()).unwrap_err();
    assert!(matches!(error, PatchError::Outcome { .. }), "{error}");
    assert!(common::snapshot(&dir) == before);
}

fn refused_everywhere(patch: &VerifiedPatch, dir: &Path, expected: impl Fn(&PatchError) -> bool) {
    let root = dir.parent().unwrap();
    let before = common::snapshot(root);
    let out = root.join("out");
    for target in [Target::InPlace, Target::NewFolder(&out)] {
        let error = try_apply(patch, dir, target).unwrap_err();
        assert!(expected(&error), "{error}");
        assert!(common::snapshot(root) == before, "{target:?}");
        let checkpoint = Checkpoint::open(dir).unwrap();
        let bound = bind(patch, &checkpoint, &Accept::exact(), &()).unwrap();
        let error = dry_run(patch, &bound, Options::new(target), &()).unwrap_err();
        assert!(expected(&error), "{error}");
    }
}
