//! Faults at every call that changes the disk: a killed process leaves the old checkpoint or the new one, a failed call
//! leaves the old one, and nothing else stays.
//!
//! Needs the debug build, whose program takes faults from the environment.
#![cfg(debug_assertions)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use common::{run, run_with};

type Files = BTreeMap<PathBuf, Vec<u8>>;

const APPLY: &[&str] = &["apply", "p.nestpatch", "model", "--key", "key.pub", "--in-place", "-q"];
const REVERT: &[&str] = &["revert", "model", "--in-place", "-q"];
const APPLY_TO: &[&str] = &["apply", "p.nestpatch", "model", "--key", "key.pub", "-o", "out", "-q"];
const REVERT_TO: &[&str] = &["revert", "model", "-o", "out", "-q"];

/// On another base than the exact one, with a residual that is kept and a record that is signed.
const APPLY_LOOSE: &[&str] = &[
    "apply",
    "p.nestpatch",
    "model",
    "--key",
    "key.pub",
    "--in-place",
    "-q",
    "--level",
    "architecture",
    "--override-binding",
    "a test",
    "--sign-with",
    "me.key",
];
/// From below another patch.
const REVERT_BELOW: &[&str] = &["revert", "model", "--in-place", "-q", "--record", "1"];

/// A folder to start from: `model` as it is before the verb.
struct Start {
    root: tempfile::TempDir,
}

impl Start {
    /// The base, or the base with the patch applied.
    fn new(patched: bool) -> Self {
        let root = common::folder();
        let model = root.path().join("model");
        common::checkpoint(&model);
        fs::write(root.path().join("p.nestpatch"), common::small_patch(&model)).unwrap();
        common::public_key(&root.path().join("key.pub"));
        if patched {
            assert_eq!(run(root.path(), APPLY).code, Some(0));
        }
        Self { root }
    }

    /// A child of the base: one weight of a touched row is another.
    fn loose() -> Self {
        let start = Self::new(false);
        let model = start.root.path().join("model");
        let mut shards = common::tensors(1);
        let tensor = shards.values_mut().find_map(|shard| shard.get_mut(&common::projection(0, "gate"))).unwrap();
        tensor.bytes[common::HIDDEN + 1] ^= 1;
        common::checkpoint_of(&model, &shards);
        assert_eq!(run(start.root.path(), &["keygen", "-o", "me", "--no-passphrase", "-q"]).code, Some(0));
        start
    }

    /// The patch, and another on top that touches other rows.
    fn stacked() -> Self {
        let start = Self::new(false);
        let root = start.root.path();
        fs::write(root.join("q.nestpatch"), common::other_small_patch(&root.join("model"))).unwrap();
        assert_eq!(run(root, APPLY).code, Some(0));
        let second = run(root, &["apply", "q.nestpatch", "model", "--key", "key.pub", "--in-place", "-q"]);
        assert_eq!(second.code, Some(0), "{second:?}");
        start
    }

    /// A copy to work in.
    fn copy(&self) -> tempfile::TempDir {
        let copy = common::folder();
        for (path, bytes) in common::snapshot(self.root.path()) {
            let to = copy.path().join(&path);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            if path.to_str().unwrap().ends_with('/') {
                fs::create_dir_all(&to).unwrap()
            } else {
                fs::write(&to, bytes).unwrap()
            }
        }
        copy
    }
}

/// The files below a folder; times in records, and so signatures on them, are left out, and nothing at all if it does not
/// exist.
fn look(dir: &Path) -> Option<Files> {
    let mut files = if dir.exists() { common::snapshot(dir) } else { return None };
    for (path, bytes) in &mut files {
        if path.to_str().is_some_and(|path| path.ends_with(".dsse.json")) {
            bytes.clear();
        } else if path.starts_with("nestpatch") && path.extension().is_some_and(|extension| extension == "json") {
            let mut record: serde_json::Value = serde_json::from_slice(bytes).unwrap();
            record["predicate"]["applied"] = "".into();
            *bytes = record.to_string().into_bytes();
        }
    }
    Some(files)
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Strikes at call 1, 2, .. of a change in place until one run is over before the fault comes.
fn in_place(start: &Start, verb: &[&str], kind: &str) {
    let old = look(&start.root.path().join("model"));
    let done = start.copy();
    assert_eq!(run(done.path(), verb).code, Some(0));
    let new = look(&done.path().join("model"));
    assert!(old != new);
    let mut outcomes = [0, 0];
    for call in 1.. {
        let place = start.copy();
        let model = place.path().join("model");
        let ran = run_with(place.path(), Some(&format!("{kind}@{call}")), verb);
        if ran.code == Some(0) {
            assert!(call > 30, "{kind}: only {call} calls were tried");
            break;
        }
        if kind != "kill" {
            let untidy = ran.stderr.contains("the change is complete");
            assert_eq!(ran.code, Some(1), "{kind}@{call}: {}", ran.stderr);
            assert!(untidy || look(&model) == old, "{kind}@{call}: {}", ran.stderr);
        }
        let status = run(place.path(), &["status", "model"]);
        assert_eq!(status.code, Some(0), "{kind}@{call}: {}", status.stderr);
        let found = look(&model);
        assert!(found == old || found == new, "{kind}@{call}: torn; {}", status.stderr);
        outcomes[usize::from(found == new)] += 1;
        assert_eq!(run(place.path(), &["status", "model"]).stderr, "", "{kind}@{call}: mended once");
        if found == old && call % 4 == 0 {
            assert_eq!(run(place.path(), verb).code, Some(0), "{kind}@{call}: works again");
            assert!(look(&model) == new, "{kind}@{call}: works again");
        }
    }
    assert!(outcomes[0] > 20 && outcomes[1] > 0, "{kind}: {outcomes:?}");
}

/// The same for a new folder: it is there as a whole or not at all, and the source stays as it is.
fn to_new_folder(patched: bool, verb: &[&str], kind: &str) {
    let start = Start::new(patched);
    let old = look(&start.root.path().join("model"));
    let done = start.copy();
    assert_eq!(run(done.path(), verb).code, Some(0));
    let new = look(&done.path().join("out"));
    for call in 1.. {
        let place = start.copy();
        let ran = run_with(place.path(), Some(&format!("{kind}@{call}")), verb);
        assert!(look(&place.path().join("model")) == old, "{kind}@{call}");
        if ran.code == Some(0) {
            assert!(call > 60, "{kind}: only {call} calls were tried");
            break;
        }
        let out = look(&place.path().join("out"));
        assert!(out.is_none() || out == new, "{kind}@{call}: half an output");
        if kind != "kill" {
            assert_eq!(ran.code, Some(1), "{kind}@{call}: {}", ran.stderr);
            assert!(out.is_some() || names(place.path()) == ["key.pub", "model", "p.nestpatch"], "{kind}@{call}");
        }
        if out.is_none() {
            assert_eq!(run(place.path(), verb).code, Some(0), "{kind}@{call}: works again");
            assert!(look(&place.path().join("out")) == new, "{kind}@{call}: works again");
        }
        assert_eq!(names(place.path()), ["key.pub", "model", "out", "p.nestpatch"], "{kind}@{call}: swept");
    }
}

#[test]
fn apply_in_place_killed() {
    in_place(&Start::new(false), APPLY, "kill");
}

#[test]
fn revert_in_place_killed() {
    in_place(&Start::new(true), REVERT, "kill");
}

#[test]
fn apply_in_place_on_a_full_disk() {
    in_place(&Start::new(false), APPLY, "enospc");
}

#[test]
fn revert_in_place_with_failing_writes() {
    in_place(&Start::new(true), REVERT, "eio");
}

#[test]
fn apply_to_a_child_with_a_signed_record_killed() {
    in_place(&Start::loose(), APPLY_LOOSE, "kill");
}

#[test]
fn revert_from_below_killed() {
    in_place(&Start::stacked(), REVERT_BELOW, "kill");
}

#[test]
fn revert_from_below_with_failing_writes() {
    in_place(&Start::stacked(), REVERT_BELOW, "eio");
}

#[test]
fn apply_to_a_new_folder_killed() {
    to_new_folder(false, APPLY_TO, "kill");
}

#[test]
fn revert_to_a_new_folder_on_a_full_disk() {
    to_new_folder(true, REVERT_TO, "enospc");
}

/// Recovery is itself killed at each of its calls, and still ends in the old checkpoint.
#[test]
fn recovery_killed() {
    let start = Start::new(false);
    let old = look(&start.root.path().join("model"));
    let torn = start.copy();
    let model = torn.path().join("model");
    let call = (10..).find(|call| {
        fs::remove_dir_all(&model).unwrap();
        copy_into(&start.root.path().join("model"), &model);
        run_with(torn.path(), Some(&format!("kill@{call}")), APPLY);
        let shards = |dir: &Path| common::snapshot(dir).into_iter().filter(|(path, _)| !path.starts_with("nestpatch"));
        shards(&model).ne(shards(&start.root.path().join("model")))
    });
    assert!(call.is_some() && model.join("nestpatch/journal").exists());
    for call in 1.. {
        let place = common::folder();
        copy_into(&model, &place.path().join("model"));
        let ran = run_with(place.path(), Some(&format!("kill@{call}")), &["status", "model"]);
        if ran.code == Some(0) {
            assert!(call > 10, "only {call} calls were tried");
            break;
        }
        assert_eq!(run(place.path(), &["status", "model"]).code, Some(0));
        assert_eq!(look(&place.path().join("model")), old, "kill@{call}");
    }
}

fn copy_into(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for (path, bytes) in common::snapshot(from) {
        let to = to.join(&path);
        if path.to_str().unwrap().ends_with('/') {
            fs::create_dir_all(&to).unwrap()
        } else {
            fs::write(&to, bytes).unwrap()
        }
    }
}

/// What a run does to the disk, call by call: (action, path).
fn calls(start: &Start, verb: &[&str]) -> Vec<(String, PathBuf)> {
    let place = start.copy();
    let ran = run_with(place.path(), Some("log@0"), verb);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let lines = ran.stderr.lines().filter_map(|line| line.strip_prefix("disk: ")?.split_once(' '));
    lines.map(|(action, path)| (action.to_owned(), PathBuf::from(path))).collect()
}

fn position(calls: &[(String, PathBuf)], action: &str, end: &str) -> usize {
    let found = calls.iter().position(|(what, path)| what == action && path.ends_with(end));
    found.unwrap_or_else(|| panic!("no {action} of {end} in {calls:#?}"))
}

/// Everything created or written before call `at` is synced between its last change and `at`, and so is the folder that
/// its name is in; but for what was removed or renamed, and what is yet to be renamed.
fn synced(calls: &[(String, PathBuf)], at: usize) {
    let before = &calls[..at];
    let last = |actions: &[&str], path: &Path| {
        before.iter().rposition(|(action, other)| actions.contains(&action.as_str()) && other == path)
    };
    let changes = before.iter().filter(|(action, _)| ["create", "write"].contains(&action.as_str()));
    for (action, path) in
        changes.filter(|(_, path)| last(&["remove"], path).is_none() && !path.ends_with("journal.tmp"))
    {
        let changed = last(&["create", "write"], path);
        assert!(last(&["sync"], path) > changed, "{action} {} is not on the disk: {before:#?}", path.display());
        let (folder, made) = (path.parent().unwrap(), last(&["create"], path));
        let named = made.is_none() || folder == Path::new(".") || last(&["sync"], folder) > made;
        assert!(named, "the name of {} is not on the disk: {before:#?}", path.display());
    }
}

/// A killed process shows none of this, as the system keeps what it wrote: only the order of calls does.
#[test]
fn what_a_step_relies_on_is_on_the_disk_before_it() {
    for (start, verb) in [
        (Start::new(false), APPLY),
        (Start::new(true), REVERT),
        (Start::loose(), APPLY_LOOSE),
        (Start::stacked(), REVERT_BELOW),
    ] {
        let calls = calls(&start, verb);
        let (active, committed) = (position(&calls, "rename", "journal"), position(&calls, "rename", "journal.done"));
        let journal = position(&calls, "sync", "journal.tmp");
        let written = calls.iter().rposition(|(action, path)| action == "write" && path.ends_with("journal.tmp"));
        assert!(written < Some(journal) && journal < active);
        let row = calls
            .iter()
            .position(|(action, path)| action == "write" && path.extension().is_some_and(|end| end == "safetensors"));
        let row = row.unwrap();
        for folder in ["nestpatch", "model"] {
            let entered = calls[active..row].iter().any(|(action, path)| action == "sync" && path.ends_with(folder));
            assert!(entered, "the journal's name is not on the disk before a row is written: {calls:#?}");
        }
        synced(&calls, committed);
        let removed =
            calls.iter().position(|(action, path)| action == "remove" && path.ends_with("nestpatch/journal.done"));
        let kept = calls[committed..removed.unwrap()]
            .iter()
            .any(|(action, path)| action == "sync" && path.ends_with("nestpatch"));
        assert!(kept, "the commit is not on the disk before its journal goes: {calls:#?}");
    }
    for (start, verb) in [(Start::new(false), APPLY_TO), (Start::new(true), REVERT_TO)] {
        let calls = calls(&start, verb);
        let placed = position(&calls, "rename", "out");
        synced(&calls, placed);
        // What another thread syncs is there once that has finished.
        let finished = calls.iter().position(|(action, _)| action == "finish");
        let last = calls[..placed].iter().rposition(|(action, _)| action == "write");
        assert!(finished > last && finished < Some(placed), "{calls:#?}");
        assert!(calls[placed..].iter().any(|(action, path)| action == "sync" && path == Path::new(".")), "{calls:#?}");
    }
}
