//! Files beside the weights.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::checkpoint::{Checkpoint, CheckpointError, same_bytes};

/// Files that only one of the folders has, or that differ; weights and their index are compared as tensors.
pub(super) fn differing(base: &Checkpoint, tuned: &Checkpoint) -> Result<Vec<String>, CheckpointError> {
    let (ours, theirs) = (paths(base)?, paths(tuned)?);
    let mut differing = Vec::new();
    for path in ours.union(&theirs) {
        let both = ours.contains(path) && theirs.contains(path);
        if !both || !same_bytes(&base.dir().join(path), &tuned.dir().join(path), &())? {
            differing.push(path.display().to_string());
        }
    }
    Ok(differing)
}

fn paths(checkpoint: &Checkpoint) -> Result<BTreeSet<PathBuf>, CheckpointError> {
    let others = checkpoint.other_files()?.into_iter().map(|file| file.path);
    Ok(others.chain([Path::new("config.json").to_owned()]).collect())
}
