//! A Hugging Face checkpoint on disk: config.json and its tensors in one or more safetensors files.
//!
//! Reads are positioned and buffers bounded: nothing here holds more than one tensor, and only [`Checkpoint::read`]
//! holds a whole one. Changes go either to a new folder ([`Staged`]) or in place under a rollback journal
//! ([`Checkpoint::change_in_place`]).

mod binding;
mod disk;
mod distance;
mod error;
mod files;
pub mod header;
mod hub;
mod in_place;
mod journal;
mod json;
mod layout;
mod lock;
mod mismatch;
mod progress;
mod renamed;
mod rows;
mod shard;
mod staged;
mod stream;
mod tree;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

pub use binding::{BoundBase, Depth, Digests, Sides, compare, config_differences, find_touched};
pub use disk::{Amendment, free_bytes, write_new};
pub use distance::{Distance, distances};
pub use error::CheckpointError;
pub use files::{OtherFile, is_state_file, same_bytes};
pub use header::StoredType;
pub use hub::{HubSnapshot, hub_snapshot};
pub use in_place::{Changer, Intent, Recovery, Saver, is_interrupted, recover};
pub(crate) use layout::read_bounded;
pub use mismatch::{BindError, Mismatch, MismatchKind, Side};
pub use progress::Progress;
pub use rows::{Cells, Vector};
pub use staged::{Staged, Untouched, check_target, copied_bytes};
pub use stream::in_parallel;

use lock::Lock;
use shard::Shard;

use crate::tensor::{Shape, TensorName};

/// The folder inside a checkpoint where apply records and the rollback journal lie.
pub const STATE_FOLDER: &str = "nestpatch";

/// An open checkpoint: every header checked, no weight read. Holds a shared lock on its folder.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    config: Map<String, Value>,
    shards: Vec<Shard>,
    tensors: BTreeMap<TensorName, TensorInfo>,
    strays: Vec<String>,
    lock: Lock,
}

/// Where a tensor is and what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name.
    pub name: TensorName,
    /// Its element type.
    pub dtype: StoredType,
    /// Its dimensions, outermost first.
    pub shape: Shape,
    /// Its length in bytes.
    pub length: u64,
    shard: usize,
    begin: u64,
}

impl Checkpoint {
    /// Opens a folder with config.json and either model.safetensors or an index with its shards.
    ///
    /// Symbolic links are followed for reading, so a snapshot in a hub cache works.
    ///
    /// # Errors
    /// Another process is changing it, a change was interrupted, a file is missing or malformed.
    pub fn open(dir: &Path) -> Result<Self, CheckpointError> {
        if !dir.is_dir() {
            return Err(CheckpointError::NotAFolder { dir: dir.to_owned() });
        }
        let lock = Lock::shared(dir)?;
        if is_interrupted(dir) {
            return Err(CheckpointError::Interrupted { dir: dir.to_owned() });
        }
        Self::open_locked(dir, lock)
    }

    fn open_locked(dir: &Path, lock: Lock) -> Result<Self, CheckpointError> {
        let layout = layout::find(dir)?;
        let config = layout::read_config(dir)?;
        let strays = layout::strays(dir, &layout.shards);
        let mut opened = Self { dir: dir.to_owned(), config, shards: vec![], tensors: BTreeMap::new(), strays, lock };
        for name in &layout.shards {
            opened.add_shard(name, layout.weight_map.as_ref())?;
        }
        opened.check_map(layout.weight_map.unwrap_or_default())?;
        Ok(opened)
    }

    fn add_shard(&mut self, name: &str, map: Option<&BTreeMap<TensorName, String>>) -> Result<(), CheckpointError> {
        let (shard, entries) = Shard::open(&self.dir, name)?;
        for entry in entries {
            let listed = map.map(|map| map.get(&entry.name).map(String::as_str));
            if listed.is_some_and(|listed| listed != Some(name)) {
                let listed = listed.flatten().map(str::to_owned);
                let (dir, shard) = (self.dir.clone(), name.to_owned());
                return Err(CheckpointError::Unlisted { dir, tensor: entry.name, shard, listed });
            }
            let info = TensorInfo {
                name: entry.name.clone(),
                dtype: entry.dtype,
                shape: entry.shape,
                length: entry.length,
                shard: self.shards.len(),
                begin: shard.data + entry.begin,
            };
            self.tensors.insert(entry.name, info);
        }
        self.shards.push(shard);
        Ok(())
    }

    fn check_map(&self, map: BTreeMap<TensorName, String>) -> Result<(), CheckpointError> {
        match map.into_iter().find(|(tensor, _)| !self.tensors.contains_key(tensor)) {
            Some((tensor, shard)) => Err(CheckpointError::NotInShard { dir: self.dir.clone(), tensor, shard }),
            None => Ok(()),
        }
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// config.json, every key once.
    pub fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    /// The architecture as config.json names it: "llama".
    pub fn model_type(&self) -> Option<&str> {
        self.config.get("model_type").and_then(Value::as_str)
    }

    /// All tensors, by name.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &TensorInfo> {
        self.tensors.values()
    }

    /// One tensor.
    ///
    /// # Errors
    /// The checkpoint has none of that name.
    pub fn tensor(&self, name: &TensorName) -> Result<&TensorInfo, CheckpointError> {
        let missing = || CheckpointError::NoTensor { dir: self.dir.clone(), tensor: name.clone() };
        self.tensors.get(name).ok_or_else(missing)
    }

    /// Names of the weight files, ascending.
    pub fn shard_names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.shards.iter().map(|shard| shard.name.as_str())
    }

    /// The file that holds a tensor.
    pub fn shard_of(&self, tensor: &TensorInfo) -> &str {
        self.shards.get(tensor.shard).map_or("", |shard| &shard.name)
    }

    /// Files in the folder that hold weights in another form; programs may load these instead.
    pub fn strays(&self) -> &[String] {
        &self.strays
    }

    /// All bytes of a tensor, row-major, little-endian.
    pub fn read(&self, name: &TensorName) -> Result<Vec<u8>, CheckpointError> {
        let info = self.tensor(name)?;
        let length = usize::try_from(info.length).map_err(|_| self.out_of_bounds(info, "its length"))?;
        let mut bytes = vec![0; length];
        self.read_at(info, 0, &mut bytes)?;
        Ok(bytes)
    }

    /// Fills `buffer` with a tensor's bytes from byte `offset` of the tensor.
    pub fn read_at(&self, tensor: &TensorInfo, offset: u64, buffer: &mut [u8]) -> Result<(), CheckpointError> {
        let end = offset.checked_add(buffer.len() as u64);
        match self.shards.get(tensor.shard) {
            Some(shard) if end.is_some_and(|end| end <= tensor.length) => shard.read_at(buffer, tensor.begin + offset),
            _ => Err(self.out_of_bounds(tensor, format!("bytes {offset} and {} more", buffer.len()))),
        }
    }

    /// Whether every weight file is still the one that was opened: the same file, length and time of the last write. What
    /// was read is worth no more than this. A write that sets the time back is not noticed.
    ///
    /// # Errors
    /// The first file that changed or is gone.
    pub fn check_unchanged(&self) -> Result<(), CheckpointError> {
        self.shards.iter().try_for_each(Shard::check_unchanged)
    }

    fn out_of_bounds(&self, tensor: &TensorInfo, what: impl Into<String>) -> CheckpointError {
        let (name, shape) = (tensor.name.clone(), tensor.shape.clone());
        CheckpointError::Bounds { dir: self.dir.clone(), tensor: name, shape, what: what.into() }
    }
}
