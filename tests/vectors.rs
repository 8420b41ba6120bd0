//! The vectors that the reference implementation wrote, through the library: the same class, and the same bytes.

// A test says what it expects by panicking; clippy.toml allows that inside test functions, this in their helpers.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use nestpatch::checkpoint::{Checkpoint, Depth, config_differences, distances};
use nestpatch::patch::PatchError;
use nestpatch::patch::apply::{Options, Target, apply};
use nestpatch::patch::bind::{Accept, bind};
use nestpatch::patch::revert::{Which, find, revert};
use nestpatch::patch::verify::{VerifiedPatch, verify};
use nestpatch::trust::{Policy, PublicKey, TrustError};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Index {
    vectors: Vec<Vector>,
    keys: Vec<Key>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Vector {
    file: String,
    rule: String,
    section: String,
    class: String,
    base: Option<String>,
    trust: Option<String>,
    level: Option<String>,
    apply: Option<String>,
    revert: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Key {
    rule: String,
    key: String,
    refused: bool,
}

const CLASSES: [&str; 6] = ["ok", "container", "signature", "manifest", "payload", "base"];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/vectors")
}

fn index() -> Index {
    serde_json::from_slice(&fs::read(folder().join("index.json")).unwrap()).unwrap()
}

/// The classes of spec/format.md, section 9.
fn class_of(error: &PatchError) -> &'static str {
    match error {
        PatchError::Container(_) => "container",
        PatchError::Trust(TrustError::Manifest(_) | TrustError::Contradiction(_)) | PatchError::Manifest(_) => {
            "manifest"
        }
        PatchError::Trust(_) => "signature",
        PatchError::Payload(_) => "payload",
        PatchError::Residual { .. } => "revert",
        PatchError::NotUnderstood { .. } => "refuse",
        PatchError::Bind(_) | PatchError::Effect(_) | PatchError::Fold { .. } | PatchError::Outcome { .. } => "base",
        other => panic!("an error without a class: {other}"),
    }
}

/// Applies to a new folder, takes that back into another, and compares the touched tensors with the base's.
fn apply_and_revert(patch: &VerifiedPatch, base: &Path) -> Result<(), PatchError> {
    let (scratch, contents) = (tempfile::tempdir().unwrap(), patch.contents());
    let (patched, back) = (scratch.path().join("patched"), scratch.path().join("back"));
    let checkpoint = Checkpoint::open(base)?;
    let bound = bind(patch, &checkpoint, &Accept::exact(), &())?;
    apply(patch, &bound, Options::new(Target::NewFolder(&patched)), &())?;
    let changed = Checkpoint::open(&patched)?;
    let newest = find(&changed, Which::Newest, None)?;
    let bound = newest.bind(&changed, Depth::Tensors, false, &())?;
    revert(&bound, Target::NewFolder(&back), Depth::Tensors, &())?;
    let restored = Checkpoint::open(&back)?;
    for edit in &contents.edits {
        assert_eq!(restored.read(edit.tensor()).unwrap(), checkpoint.read(edit.tensor()).unwrap(), "{}", edit.tensor());
    }
    Ok(())
}

/// A level but `exact`: whether the publisher permits it, and what the library says differs.
fn matches(patch: &VerifiedPatch, level: &str, base: &Path) -> bool {
    let (contents, checkpoint) = (patch.contents(), Checkpoint::open(base).unwrap());
    let permitted = contents.manifest.base.levels.iter().any(|permitted| permitted.as_str() == level);
    let near = || {
        let sketch = contents.sketch.as_ref()?;
        let found = distances(&checkpoint, &contents.edits, sketch).ok()?;
        assert_eq!(found.len(), contents.edits.len());
        Some(found.iter().all(|tensor| sketch.tolerance().permits(tensor.distance)))
    };
    let same_config = config_differences(&checkpoint, &contents.manifest).is_empty();
    permitted && same_config && (level == "architecture" || near().unwrap_or(false))
}

/// What the library makes of a vector, in the words of the index: the class, or what is refused after verifying.
fn outcome(vector: &Vector) -> String {
    let trust = folder().join(vector.trust.as_deref().unwrap_or("trust.toml"));
    let policy = Policy::from_trust_file(&fs::read_to_string(trust).unwrap()).unwrap();
    let patch = match verify(fs::read(folder().join(&vector.file)).unwrap(), &policy) {
        Ok(patch) => patch,
        Err(error) => return class_of(&error).to_owned(),
    };
    let Some(base) = vector.base.as_ref().map(|base| folder().join("bases").join(base)) else { return "ok".to_owned() };
    if let Some(level) = &vector.level {
        return if matches(&patch, level, &base) { "ok" } else { "base" }.to_owned();
    }
    match apply_and_revert(&patch, &base) {
        Ok(()) => "ok".to_owned(),
        Err(error) => class_of(&error).to_owned(),
    }
}

/// Apply refuses at once where the reference implementation only finds out when it reverts.
fn expected(vector: &Vector) -> &str {
    match (vector.apply.as_deref(), vector.revert.as_deref()) {
        (Some(apply), _) => apply,
        (None, Some("base")) => "revert",
        _ => &vector.class,
    }
}

#[test]
fn every_vector_has_the_outcome_that_the_reference_implementation_gives_it() {
    let disagreements: Vec<String> = index()
        .vectors
        .iter()
        .map(|vector| (vector, outcome(vector)))
        .filter(|(vector, found)| found != expected(vector))
        .map(|(vector, found)| {
            format!(
                "{} (section {}: {}): expected {}, found {found}",
                vector.file,
                vector.section,
                vector.rule,
                expected(vector)
            )
        })
        .collect();
    assert!(disagreements.is_empty(), "{}", disagreements.join("\n"));
}

#[test]
fn every_key_is_imported_or_refused() {
    for Key { rule, key, refused } in index().keys {
        assert_eq!(PublicKey::parse(&key).is_err(), refused, "{rule}: {key}");
    }
}

#[test]
fn the_index_lists_every_file_once_and_every_class() {
    let index = index();
    let listed: BTreeSet<&str> = index.vectors.iter().map(|vector| vector.file.as_str()).collect();
    assert!(index.vectors.len() >= 160, "{} vectors", index.vectors.len());
    assert_eq!(listed.len(), index.vectors.len(), "a name twice");
    let names = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let files: BTreeSet<String> = names.filter(|name| name.ends_with(".nestpatch")).collect();
    assert_eq!(files.iter().map(String::as_str).collect::<BTreeSet<_>>(), listed);
    let classes: BTreeSet<&str> = index.vectors.iter().map(|vector| vector.class.as_str()).collect();
    assert_eq!(classes, BTreeSet::from(CLASSES));
}
