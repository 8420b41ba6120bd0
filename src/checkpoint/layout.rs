//! Which files of a folder hold its weights, and which tensor is in which.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::CheckpointError;
use super::json;
use crate::tensor::TensorName;

/// The only weights file of an unsharded checkpoint.
const SINGLE: &str = "model.safetensors";
/// How the names of weight files end.
const ENDING: &str = ".safetensors";
/// The index of a sharded checkpoint.
pub(super) const INDEX: &str = "model.safetensors.index.json";
/// The configuration.
pub(super) const CONFIG: &str = "config.json";
/// The longest index accepted, in bytes. One of 140,000 expert tensors takes half of it; as values it takes far more.
const MAX_INDEX_BYTES: u64 = 32 << 20;
/// The longest config.json accepted, in bytes. Real ones stay under 100 kB.
const MAX_CONFIG_BYTES: u64 = 16 << 20;
/// Endings of files that hold weights in other forms.
const WEIGHT_ENDINGS: [&str; 6] = [".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5"];

/// Where the weights are.
pub(super) struct Layout {
    /// Plain file names of the shards, ascending.
    pub(super) shards: BTreeSet<String>,
    /// The shard of every tensor, where an index says so.
    pub(super) weight_map: Option<BTreeMap<TensorName, String>>,
}

/// Finds the weights of a checkpoint folder.
pub(super) fn find(dir: &Path) -> Result<Layout, CheckpointError> {
    match (dir.join(SINGLE).exists(), dir.join(INDEX).exists()) {
        (true, false) => Ok(Layout { shards: BTreeSet::from([SINGLE.to_owned()]), weight_map: None }),
        (false, true) => read_index(dir),
        (true, true) => Err(CheckpointError::TwoLayouts { dir: dir.to_owned() }),
        // A dangling link of a hub cache does not exist, but its name is there.
        (false, false) if dir.join(SINGLE).is_symlink() => Err(missing(dir, 1, vec![SINGLE.to_owned()])),
        (false, false) => Err(CheckpointError::NoWeights { dir: dir.to_owned() }),
    }
}

/// Reads config.json.
pub(super) fn read_config(dir: &Path) -> Result<Map<String, Value>, CheckpointError> {
    let path = dir.join(CONFIG);
    match read_json(&path, MAX_CONFIG_BYTES)? {
        Value::Object(config) => Ok(config),
        _ => Err(CheckpointError::Content { path, expected: "a JSON object" }),
    }
}

/// Files that hold weights but are not part of the checkpoint: a patch does not reach them.
pub(super) fn strays(dir: &Path, shards: &BTreeSet<String>) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut strays: Vec<String> = names
        .filter(|name| WEIGHT_ENDINGS.iter().any(|ending| name.ends_with(ending)) && !shards.contains(name))
        .filter(|name| name != "training_args.bin")
        .collect();
    strays.sort();
    strays
}

fn read_index(dir: &Path) -> Result<Layout, CheckpointError> {
    let path = dir.join(INDEX);
    let index = read_json(&path, MAX_INDEX_BYTES)?;
    let Some(map) = index.get("weight_map").and_then(Value::as_object).filter(|map| !map.is_empty()) else {
        return Err(CheckpointError::Content { path, expected: "an object \"weight_map\" from tensor to shard" });
    };
    let mut weight_map = BTreeMap::new();
    for (tensor, shard) in map {
        let (Ok(tensor), Some(shard)) = (TensorName::new(tensor.as_str()), shard.as_str()) else {
            return Err(CheckpointError::Content { path, expected: "printable tensor names mapped to file names" });
        };
        // Any other name would be read as something else by whoever loads the folder.
        if !is_plain(shard) || !shard.ends_with(ENDING) {
            return Err(CheckpointError::ShardName { index: path, name: shard.chars().take(80).collect() });
        }
        weight_map.insert(tensor, shard.to_owned());
    }
    let shards: BTreeSet<String> = weight_map.values().cloned().collect();
    let gone: Vec<String> = shards.iter().filter(|name| !dir.join(name).exists()).cloned().collect();
    if gone.is_empty() {
        Ok(Layout { shards, weight_map: Some(weight_map) })
    } else {
        Err(missing(dir, shards.len(), gone))
    }
}

fn missing(dir: &Path, listed: usize, missing: Vec<String>) -> CheckpointError {
    CheckpointError::MissingShards { dir: dir.to_owned(), listed, missing }
}

/// One visible name in this folder: no path, no parent, nothing hidden, nothing unprintable.
pub(super) fn is_plain(name: &str) -> bool {
    let clean = !name.chars().any(|c| c.is_control() || matches!(c, '/' | '\\'));
    clean && !name.is_empty() && name.len() <= 255 && !name.starts_with('.')
}

fn read_json(path: &Path, limit: u64) -> Result<Value, CheckpointError> {
    let bytes = read_bounded(path, limit)?;
    json::from_slice(&bytes).map_err(|source| CheckpointError::Json { path: path.to_owned(), source })
}

/// Reads a regular file of at most `limit` bytes.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, CheckpointError> {
    let failed = || CheckpointError::io("read", path);
    let metadata = fs::metadata(path).map_err(failed())?;
    if !metadata.is_file() {
        return Err(CheckpointError::Unsupported { path: PathBuf::from(path), what: "expected a regular file" });
    }
    let mut bytes = Vec::new();
    let mut file = File::open(path).map_err(failed())?.take(limit + 1);
    file.read_to_end(&mut bytes).map_err(failed())?;
    let found = bytes.len() as u64;
    if found > limit {
        Err(CheckpointError::TooLarge { path: path.to_owned(), found: metadata.len().max(found), limit })
    } else {
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_are_shards() {
        assert!(is_plain("model-00001-of-00002.safetensors"));
        for name in ["", "..", "../x", "/etc/passwd", "a/b", "a\\b", ".hidden", "a\u{1b}[2J", "a\nb"] {
            assert!(!is_plain(name), "{name:?}");
        }
    }
}
