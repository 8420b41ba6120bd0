//! Writing a changed checkpoint into a new folder: all of it or none of it.
//!
//! It is built beside its place, as `.NAME.partial-XXXXXXXX`, and renamed when every byte is on the disk. A failure
//! removes it; what a killed process left is removed by the next one that writes to the same place, which knows by the
//! lock that nobody is building it any more.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::disk::{self, Syncer};
use super::lock::Lock;
use super::rows::{self, Cells};
use super::tree::{self, Item};
use super::{Checkpoint, CheckpointError, Progress, STATE_FOLDER, TensorInfo};

/// How shards that the change does not touch come into the new folder. All other files are copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Untouched {
    /// As files of their own.
    #[default]
    Copy,
    /// As hard links to the source's, which take no space but are one file with them: whoever writes into one writes
    /// into both. Copied where the file system cannot link, and where the source is a symbolic link.
    Link,
}

/// A copy of a checkpoint under construction.
#[derive(Debug)]
pub struct Staged {
    target: PathBuf,
    temporary: PathBuf,
    items: Vec<Item>,
    open: BTreeMap<String, Arc<File>>,
    linked: Vec<String>,
    syncer: Option<Syncer>,
    committed: bool,
    _lock: Lock,
}

/// Bytes that a copy of the folder takes where blocks cannot be shared.
///
/// # Errors
/// Something in the folder cannot be copied.
pub fn copied_bytes(checkpoint: &Checkpoint) -> Result<u64, CheckpointError> {
    Ok(tree::list(checkpoint.dir())?.iter().map(Item::length).sum())
}

/// Checks that `target` can become a copy of the checkpoint; gives the folder that will hold it.
///
/// # Errors
/// It exists, has no name, its parent does not exist, or it lies inside the checkpoint.
pub fn check_target(checkpoint: &Checkpoint, target: &Path) -> Result<PathBuf, CheckpointError> {
    if fs::symlink_metadata(target).is_ok() {
        return Err(CheckpointError::Exists { path: target.to_owned() });
    }
    let (Some(parent), Some(_)) = (target.parent(), target.file_name()) else {
        return Err(CheckpointError::Target { path: target.to_owned(), what: "it needs a name of its own" });
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let real = |path: &Path| fs::canonicalize(path).map_err(CheckpointError::io("find", path));
    if real(parent)?.starts_with(real(checkpoint.dir())?) {
        let what = "it lies inside the checkpoint that it is made from";
        return Err(CheckpointError::Target { path: target.to_owned(), what });
    }
    Ok(parent.to_owned())
}

impl Staged {
    /// Copies everything in the checkpoint's folder beside `target`; the shards of `tensors` stay open for writing, the
    /// others come as `untouched` says.
    ///
    /// # Errors
    /// Those of [`check_target`]; a file that cannot be read or written. Nothing is left behind.
    pub fn begin(
        checkpoint: &Checkpoint,
        target: &Path,
        tensors: &[&TensorInfo],
        untouched: Untouched,
        progress: &dyn Progress,
    ) -> Result<Self, CheckpointError> {
        let parent = check_target(checkpoint, target)?;
        let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
        sweep(&parent, &name)?;
        let items = tree::list(checkpoint.dir())?;
        let nonce = getrandom::u32().unwrap_or_else(|_| std::process::id());
        let temporary = parent.join(format!(".{name}.partial-{nonce:08x}"));
        disk::create_dir(&temporary)?;
        // Shared, so that the copy can be opened to read it back; enough to keep others from sweeping it away.
        let lock = Lock::shared(&temporary).inspect_err(|_| drop(fs::remove_dir(&temporary)))?;
        let (target, open, linked) = (target.to_owned(), BTreeMap::new(), Vec::new());
        let mut staged = Self { target, temporary, items, open, linked, syncer: None, committed: false, _lock: lock };
        let syncer = Syncer::start(&staged.temporary)?;
        let touched: BTreeSet<&str> = tensors.iter().map(|tensor| checkpoint.shard_of(tensor)).collect();
        let mut shards: BTreeSet<&str> = checkpoint.shard_names().collect();
        shards.retain(|name| untouched == Untouched::Link && !touched.contains(name));
        staged.copy_all(checkpoint.dir(), (&touched, &shards), &syncer, progress)?;
        staged.syncer = Some(syncer);
        Ok(staged)
    }

    fn copy_all(
        &mut self,
        from: &Path,
        (touched, to_link): (&BTreeSet<&str>, &BTreeSet<&str>),
        syncer: &Syncer,
        progress: &dyn Progress,
    ) -> Result<(), CheckpointError> {
        progress.stage("copying", self.items.iter().map(Item::length).sum());
        for item in &self.items {
            let (from, to) = (from.join(&item.path), self.temporary.join(&item.path));
            if item.folder {
                disk::create_dir(&to)?;
                continue;
            }
            let named = |names: &BTreeSet<&str>| item.path.to_str().filter(|name| names.contains(name));
            if let Some(name) = named(to_link)
                && tree::link_file(item, &from, &to)?
            {
                self.linked.push(name.to_owned());
                progress.advance(item.length());
                continue;
            }
            let copy = tree::copy_file(item, (&from, &to), syncer, progress)?;
            match named(touched) {
                Some(name) => {
                    // The rows are yet to come, but all around them need not wait for them.
                    syncer.sync_early(&copy, &to);
                    self.open.insert(name.to_owned(), copy);
                }
                None => {
                    tree::copy_mode(item, &to)?;
                    syncer.sync(&copy, &to)?;
                }
            }
        }
        Ok(())
    }

    /// The shards that are hard links to the source's, ascending.
    pub fn linked(&self) -> &[String] {
        &self.linked
    }

    /// Where the copy is being built.
    pub fn path(&self) -> &Path {
        &self.temporary
    }

    /// Overwrites one vector of a tensor in the copy.
    pub fn write(
        &self,
        checkpoint: &Checkpoint,
        tensor: &TensorInfo,
        cells: Cells,
        bytes: &[u8],
    ) -> Result<(), CheckpointError> {
        let name = checkpoint.shard_of(tensor);
        match self.open.get(name) {
            Some(file) => rows::write(file, &self.temporary.join(name), tensor, cells, bytes),
            None => Err(CheckpointError::NoTensor { dir: self.temporary.clone(), tensor: tensor.name.clone() }),
        }
    }

    /// Forces the written shards to the disk, so that what is read back is what will be there. May run on a thread of
    /// its own beside the reading, if nothing else is done to the copy until both are over.
    pub fn sync_shards(&self) -> Result<(), CheckpointError> {
        self.open.iter().try_for_each(|(name, file)| disk::sync(file, &self.temporary.join(name)))
    }

    /// Adds a file to the copy's `nestpatch` folder.
    pub fn add_state(&self, name: &str, bytes: &[u8]) -> Result<(), CheckpointError> {
        let folder = self.temporary.join(STATE_FOLDER);
        if !folder.exists() {
            disk::create_dir(&folder)?;
        }
        disk::create_with(&folder.join(name), bytes)
    }

    /// Removes files from the copy's `nestpatch` folder, and the folder when nothing is left in it.
    pub fn remove_state(&self, names: &[String]) -> Result<(), CheckpointError> {
        let folder = self.temporary.join(STATE_FOLDER);
        names.iter().try_for_each(|name| disk::remove(&folder.join(name)))?;
        disk::remove_empty_dir(&folder).map(drop)
    }

    /// Puts the copy in its place.
    ///
    /// # Errors
    /// The place was taken meanwhile, or the system refused; the copy is then removed.
    pub fn commit(mut self) -> Result<(), CheckpointError> {
        self.syncer.take().map_or(Ok(()), Syncer::finish)?;
        for item in self.items.iter().rev() {
            let path = self.temporary.join(&item.path);
            // A removed record is listed but gone.
            if !path.exists() {
                continue;
            }
            if item.folder {
                disk::sync_dir(&path)?;
            }
            if item.folder || item.path.to_str().is_some_and(|name| self.open.contains_key(name)) {
                tree::copy_mode(item, &path)?;
            }
        }
        let state = self.temporary.join(STATE_FOLDER);
        if state.exists() {
            disk::sync_dir(&state)?;
        }
        disk::sync_dir(&self.temporary)?;
        disk::rename(&self.temporary, &self.target)?;
        self.committed = true;
        let parent = self.target.parent().filter(|parent| !parent.as_os_str().is_empty());
        disk::sync_dir(parent.unwrap_or(Path::new(".")))
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.committed {
            let _ = fs::remove_dir_all(&self.temporary);
        }
    }
}

/// Removes what killed processes left of the same output.
fn sweep(parent: &Path, name: &str) -> Result<(), CheckpointError> {
    let prefix = format!(".{name}.partial-");
    let listing = fs::read_dir(parent).map_err(CheckpointError::io("list", parent))?;
    for entry in listing.flatten() {
        let file_name = entry.file_name();
        let nonce = file_name.to_str().and_then(|name| name.strip_prefix(&prefix));
        let left = nonce.is_some_and(|nonce| nonce.len() == 8 && nonce.bytes().all(|digit| digit.is_ascii_hexdigit()));
        let folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if left && folder && Lock::exclusive(&entry.path()).is_ok() {
            fs::remove_dir_all(entry.path()).map_err(CheckpointError::io("remove", &entry.path()))?;
        }
    }
    Ok(())
}
