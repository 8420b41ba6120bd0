//! Reads the reference checkpoints and their outputs.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

/// The folder with the reference models: `$NESTPATCH_ORACLE`, or `../shared/oracle/models` beside the crate.
pub(crate) fn folder() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/oracle/models");
    let folder = std::env::var_os("NESTPATCH_ORACLE").map_or(beside, PathBuf::from);
    if folder.is_dir() {
        return Some(folder);
    }
    println!("skipped: no reference checkpoints at {}", folder.display());
    None
}

/// The models to check, by name; `$NESTPATCH_ORACLE_ONLY` picks one.
pub(crate) fn models() -> Vec<(String, PathBuf)> {
    let only = std::env::var("NESTPATCH_ORACLE_ONLY").ok();
    let Some(folder) = folder() else { return vec![] };
    let entries = fs::read_dir(&folder).expect("the folder can be listed");
    let mut models: Vec<(String, PathBuf)> = entries
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.join("ckpt").is_dir())
        .map(|path| (path.file_name().expect("a name").to_string_lossy().into_owned(), path))
        .filter(|(name, _)| only.as_ref().is_none_or(|only| only == name))
        .collect();
    models.sort();
    models
}

pub(crate) fn json(path: &Path) -> Map<String, Value> {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
