//! Files beside the weights.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::Path;

use crate::checkpoint::{Checkpoint, CheckpointError, STATE_FOLDER};

/// Names of files that only one of the folders has, or that differ; shards and their index are compared as tensors.
pub(super) fn differing(base: &Checkpoint, tuned: &Checkpoint) -> Result<Vec<String>, CheckpointError> {
    let (ours, theirs) = (names(base)?, names(tuned)?);
    let mut differing = Vec::new();
    for name in ours.union(&theirs) {
        let both = ours.contains(name) && theirs.contains(name);
        if !both || !same(&base.dir().join(name), &tuned.dir().join(name))? {
            differing.push(name.clone());
        }
    }
    Ok(differing)
}

fn names(checkpoint: &Checkpoint) -> Result<BTreeSet<String>, CheckpointError> {
    let dir = checkpoint.dir();
    let weights: BTreeSet<&str> =
        checkpoint.shard_names().chain(["model.safetensors.index.json", STATE_FOLDER]).collect();
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(dir).map_err(CheckpointError::io("list", dir))? {
        let entry = entry.map_err(CheckpointError::io("list", dir))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_file() && !weights.contains(name.as_str()) {
            names.insert(name);
        }
    }
    Ok(names)
}

fn same(one: &Path, other: &Path) -> Result<bool, CheckpointError> {
    let open = |path: &Path| File::open(path).map_err(CheckpointError::io("open", path));
    let (mut ours, mut theirs) = (open(one)?, open(other)?);
    let lengths = ours.metadata().and_then(|ours| Ok((ours.len(), theirs.metadata()?.len())));
    let (mine, yours) = lengths.map_err(CheckpointError::io("read", one))?;
    if mine != yours {
        return Ok(false);
    }
    let (mut first, mut second) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        let read = fill(&mut ours, &mut first).map_err(CheckpointError::io("read", one))?;
        let also = fill(&mut theirs, &mut second).map_err(CheckpointError::io("read", other))?;
        if first.get(..read) != second.get(..also) {
            return Ok(false);
        }
        if read == 0 {
            return Ok(true);
        }
    }
}

/// Reads until the buffer is full or the file ends.
fn fill(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read(rest)? {
            0 => break,
            more => filled += more,
        }
    }
    Ok(filled)
}
