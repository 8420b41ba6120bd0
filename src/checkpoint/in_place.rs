//! Changing a checkpoint where it lies, so that a crash at any point leaves the old one or the new one.
//!
//! Under an exclusive lock: (1) the old bytes go to `journal.tmp`, synced, renamed to `journal`; (2) rows are written,
//! records added, both synced; (3) `journal` is renamed to `journal.done`, which is the commit; (4) what is obsolete goes.
//! Whoever finds `journal.tmp` removes it, `journal` plays it back, `journal.done` finishes (4).

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::journal::{Header, Reader, ShardName, Writer};
use super::layout::is_plain;
use super::lock::Lock;
use super::rows::{self, Cells};
use super::{Checkpoint, CheckpointError, STATE_FOLDER, TensorInfo, disk};

const UNFINISHED: &str = "journal.tmp";
const ACTIVE: &str = "journal";
const COMMITTED: &str = "journal.done";

/// What a change in place is for and which files of the state folder come and go with it.
#[derive(Debug, Clone)]
pub struct Intent {
    /// `apply` or `revert`.
    pub verb: &'static str,
    /// The id of the patch.
    pub patch: String,
    /// Plain names of the files that the change adds.
    pub created: Vec<String>,
    /// Plain names of the files that it removes.
    pub obsolete: Vec<String>,
}

/// What was done about a change that was interrupted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recovery {
    /// It had not touched a weight; its unfinished journal was removed.
    Discarded,
    /// It had left no more than an empty folder, which was removed.
    Tidied,
    /// Its writes were undone.
    RolledBack {
        /// `apply` or `revert`.
        verb: String,
        /// The id of the patch.
        patch: String,
        /// Vectors whose old bytes were written back.
        vectors: u64,
    },
    /// It was complete; what it had left to remove was removed.
    Completed {
        /// `apply` or `revert`.
        verb: String,
        /// The id of the patch.
        patch: String,
    },
}

impl fmt::Display for Recovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = |patch: &str| patch.chars().take(12).collect::<String>();
        match self {
            Self::Discarded => f.write_str("an interrupted change had not touched any weight; its journal was removed"),
            Self::Tidied => write!(f, "an empty folder {STATE_FOLDER}, left by an interrupted change, was removed"),
            Self::RolledBack { verb, patch, vectors } => {
                write!(f, "an interrupted {verb} of patch {} was undone: {vectors} rows restored", short(patch))
            }
            Self::Completed { verb, patch } => {
                write!(f, "an interrupted {verb} of patch {} was complete; its journal was removed", short(patch))
            }
        }
    }
}

/// Whether an interrupted change waits to be mended.
pub fn is_interrupted(dir: &Path) -> bool {
    let state = dir.join(STATE_FOLDER);
    let left = [UNFINISHED, ACTIVE, COMMITTED].iter().any(|name| fs::symlink_metadata(state.join(name)).is_ok());
    left || is_empty(&state)
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

/// Mends a checkpoint whose last change in place was interrupted; `None` if there was none.
///
/// # Errors
/// Another process holds the checkpoint, the journal is damaged, or the system refuses; it can be tried again.
pub fn recover(dir: &Path) -> Result<Option<Recovery>, CheckpointError> {
    if !is_interrupted(dir) {
        return Ok(None);
    }
    let _lock = Lock::exclusive(dir)?;
    let state = state_folder(dir)?;
    // Looked at again: the process that held the lock until now may have been the one at work.
    if state.join(COMMITTED).exists() {
        let Header { verb, patch, obsolete, .. } = Reader::open(&state.join(COMMITTED))?.header;
        finish(dir, &state, &obsolete)?;
        Ok(Some(Recovery::Completed { verb, patch }))
    } else if state.join(ACTIVE).exists() {
        roll_back(dir, &state).map(Some)
    } else if state.join(UNFINISHED).exists() {
        discard(dir, &state)?;
        Ok(Some(Recovery::Discarded))
    } else if is_empty(&state) {
        leave(dir, &state)?;
        Ok(Some(Recovery::Tidied))
    } else {
        Ok(None)
    }
}

/// Takes every vector that is about to be written.
pub struct Saver {
    journal: Writer,
    shards: BTreeMap<usize, usize>,
}

impl Saver {
    /// Puts a vector's present bytes into the journal, and what tells the bytes that they are about to become.
    pub fn save(&mut self, tensor: &TensorInfo, cells: Cells, old: &[u8], new: &[u8]) -> Result<(), CheckpointError> {
        let shard = self.shards.get(&tensor.shard).copied().unwrap_or(usize::MAX);
        let absolute = Cells { offset: cells.offset + tensor.begin, ..cells };
        self.journal.add(shard, absolute, old, new)
    }
}

/// Writes into the shards, once the journal is on the disk.
pub struct Changer {
    shards: BTreeMap<usize, (PathBuf, File)>,
    state: PathBuf,
}

impl Changer {
    /// Overwrites one vector. It must have been saved.
    pub fn write(&self, tensor: &TensorInfo, cells: Cells, bytes: &[u8]) -> Result<(), CheckpointError> {
        match self.shards.get(&tensor.shard) {
            Some((path, file)) => rows::write(file, path, tensor, cells, bytes),
            None => Err(CheckpointError::NoTensor { dir: self.state.clone(), tensor: tensor.name.clone() }),
        }
    }

    /// Forces the written shards to the disk.
    fn sync_shards(&self) -> Result<(), CheckpointError> {
        self.shards.values().try_for_each(|(path, file)| disk::sync(file, path))
    }

    /// Adds a file to the state folder. It must be among the intent's created files.
    pub fn add_state(&self, name: &str, bytes: &[u8]) -> Result<(), CheckpointError> {
        disk::create_with(&self.state.join(name), bytes)
    }
}

impl Checkpoint {
    /// Takes the checkpoint for this process alone, before anything is checked that a change will rely on.
    ///
    /// # Errors
    /// Another process reads or changes it, or the file system has no locks.
    pub fn lock_for_change(&self) -> Result<(), CheckpointError> {
        self.lock.upgrade()
    }

    /// Changes vectors of `tensors` in place: `save` journals each, `change`, given what `save` found, writes them. If
    /// `change` fails, the old bytes are put back and its error is returned.
    ///
    /// # Errors
    /// Those of the closures; a shard that is a link; [`CheckpointError::Torn`] when undoing failed as well.
    pub fn change_in_place<S, T, E: From<CheckpointError>>(
        &self,
        intent: &Intent,
        tensors: &[&TensorInfo],
        save: impl FnOnce(&mut Saver) -> Result<S, E>,
        change: impl FnOnce(&Changer, S) -> Result<T, E>,
    ) -> Result<T, E> {
        self.lock_for_change()?;
        let shards = self.open_for_writing(tensors)?;
        let state = self.make_state_folder()?;
        // What is undone is removed: so nothing that was there before may bear such a name.
        let taken = intent.created.iter().map(|name| state.join(name)).find(|path| path.symlink_metadata().is_ok());
        if let Some(path) = taken {
            return Err(CheckpointError::Exists { path }.into());
        }
        let journaled = self.write_journal(intent, &shards, &state, save);
        let saved = journaled.inspect_err(|_| drop(roll_back(&self.dir, &state)))?;
        let changer = Changer { shards, state };
        let state = &changer.state;
        let changed = change(&changer, saved).and_then(|value| {
            changer.sync_shards()?;
            disk::sync_dir(state)?;
            disk::rename(&state.join(ACTIVE), &state.join(COMMITTED))?;
            Ok(value)
        });
        match changed {
            Ok(value) => {
                let tidied = disk::sync_dir(state).and_then(|()| finish(&self.dir, state, &intent.obsolete));
                let untidy = |source| CheckpointError::Untidy { dir: self.dir.clone(), source: Box::new(source) };
                tidied.map_err(untidy)?;
                Ok(value)
            }
            Err(error) => match roll_back(&self.dir, state) {
                Ok(_) => Err(error),
                Err(source) => Err(CheckpointError::Torn { dir: self.dir.clone(), source: Box::new(source) }.into()),
            },
        }
    }

    /// What [`Checkpoint::change_in_place`] would refuse before it writes.
    ///
    /// # Errors
    /// A shard that is a link or cannot be opened for writing; something else where the journal would lie.
    pub fn check_change_in_place(&self, tensors: &[&TensorInfo]) -> Result<(), CheckpointError> {
        self.open_for_writing(tensors)?;
        state_folder(&self.dir)?;
        Ok(())
    }

    fn open_for_writing(&self, tensors: &[&TensorInfo]) -> Result<BTreeMap<usize, (PathBuf, File)>, CheckpointError> {
        let mut open = BTreeMap::new();
        for tensor in tensors {
            if let (false, Some(shard)) = (open.contains_key(&tensor.shard), self.shards.get(tensor.shard)) {
                let path = self.dir.join(&shard.name);
                let file = open_own(&path, shard.length)?;
                open.insert(tensor.shard, (path, file));
            }
        }
        Ok(open)
    }

    fn make_state_folder(&self) -> Result<PathBuf, CheckpointError> {
        let state = state_folder(&self.dir)?;
        if !state.exists() {
            disk::create_dir(&state)?;
        }
        Ok(state)
    }

    fn write_journal<S, E: From<CheckpointError>>(
        &self,
        intent: &Intent,
        shards: &BTreeMap<usize, (PathBuf, File)>,
        state: &Path,
        save: impl FnOnce(&mut Saver) -> Result<S, E>,
    ) -> Result<S, E> {
        let named = shards.keys().filter_map(|index| self.shards.get(*index));
        let header = Header {
            verb: intent.verb.to_owned(),
            patch: intent.patch.clone(),
            shards: named.map(|shard| ShardName { name: shard.name.clone(), length: shard.length }).collect(),
            created: intent.created.clone(),
            obsolete: intent.obsolete.clone(),
        };
        let numbers = shards.keys().enumerate().map(|(number, index)| (*index, number)).collect();
        let journal = Writer::create(state.join(UNFINISHED), &header)?;
        let mut saver = Saver { journal, shards: numbers };
        let saved = save(&mut saver)?;
        saver.journal.finish()?;
        disk::rename(&state.join(UNFINISHED), &state.join(ACTIVE))?;
        disk::sync_dir(state)?;
        disk::sync_dir(&self.dir)?;
        Ok(saved)
    }
}

/// Opens a shard for writing if it is a file of its own: a link would carry the change to somewhere else.
fn open_own(path: &Path, expected: u64) -> Result<File, CheckpointError> {
    let look = fs::symlink_metadata(path).map_err(CheckpointError::io("read", path))?;
    let refuse = |what| Err(CheckpointError::Unsupported { path: path.to_owned(), what });
    if look.is_symlink() {
        return refuse("a symbolic link, as in a hub cache: writing would change the file it points to");
    }
    if look.nlink() > 1 {
        return refuse("the file has another hard link, whose holder would see the change");
    }
    let file = disk::open_rw(path)?;
    let found = file.metadata().map_err(CheckpointError::io("read", path))?.len();
    match found == expected {
        true => Ok(file),
        false => Err(CheckpointError::Changed { path: path.to_owned(), expected, found }),
    }
}

fn state_folder(dir: &Path) -> Result<PathBuf, CheckpointError> {
    let state = dir.join(STATE_FOLDER);
    match fs::symlink_metadata(&state) {
        Ok(found) if !found.is_dir() => {
            let what = "expected a folder of this tool's own, not a file or link";
            Err(CheckpointError::Unsupported { path: state, what })
        }
        _ => Ok(state),
    }
}

/// Writes the journal's bytes back and removes what the change added. Can be repeated.
fn roll_back(dir: &Path, state: &Path) -> Result<Recovery, CheckpointError> {
    let path = state.join(ACTIVE);
    if !path.exists() {
        discard(dir, state)?;
        return Ok(Recovery::Discarded);
    }
    let mut journal = Reader::open(&path)?;
    let vectors = play_back(dir, &path, &mut journal)?;
    journal.header.created.iter().try_for_each(|name| disk::remove(&state.join(name)))?;
    disk::sync_dir(state)?;
    disk::remove(&path)?;
    leave(dir, state)?;
    let Header { verb, patch, .. } = journal.header;
    Ok(Recovery::RolledBack { verb, patch, vectors })
}

/// Writes every entry of the journal to its shard, once all of them were found to be old or new there; gives how many
/// there were. So a journal is not played into files that are no longer those it was written for.
fn play_back(dir: &Path, path: &Path, journal: &mut Reader) -> Result<u64, CheckpointError> {
    let names = journal.header.shards.iter().map(|shard| &shard.name).chain(&journal.header.created);
    if !names.into_iter().all(|name| is_plain(name)) {
        return Err(CheckpointError::Journal { path: path.to_owned(), what: "it names a file outside the folder" });
    }
    let open = |shard: &ShardName| {
        let path = dir.join(&shard.name);
        match open_own(&path, shard.length) {
            Err(CheckpointError::Changed { path, expected, found }) => {
                Err(CheckpointError::Stranger { path, offset: expected.min(found) })
            }
            file => Ok((file?, path)),
        }
    };
    let shards = journal.header.shards.iter().map(open).collect::<Result<Vec<_>, CheckpointError>>()?;
    let mut present = Vec::new();
    while let Some((entry, (file, path))) = journal.next_of(&shards)? {
        rows::gather(file, path, entry.cells, &mut present)?;
        if let Some(offset) = entry.stranger(&present) {
            return Err(CheckpointError::Stranger { path: path.clone(), offset });
        }
    }
    let (mut journal, mut vectors) = (Reader::open(path)?, 0);
    while let Some((entry, (file, path))) = journal.next_of(&shards)? {
        rows::scatter(file, path, 0, entry.cells, &entry.old)?;
        vectors += 1;
    }
    shards.iter().try_for_each(|(file, path)| disk::sync(file, path))?;
    Ok(vectors)
}

/// After the commit: removes what is obsolete, then the journal. Can be repeated.
fn finish(dir: &Path, state: &Path, obsolete: &[String]) -> Result<(), CheckpointError> {
    let path = state.join(COMMITTED);
    if !obsolete.iter().all(|name| is_plain(name)) {
        return Err(CheckpointError::Journal { path, what: "it names a file outside the folder" });
    }
    obsolete.iter().try_for_each(|name| disk::remove(&state.join(name)))?;
    disk::sync_dir(state)?;
    disk::remove(&path)?;
    leave(dir, state)
}

/// Before anything was written: removes the unfinished journal.
fn discard(dir: &Path, state: &Path) -> Result<(), CheckpointError> {
    disk::remove(&state.join(UNFINISHED))?;
    leave(dir, state)
}

/// Removes the state folder if nothing is left in it.
fn leave(dir: &Path, state: &Path) -> Result<(), CheckpointError> {
    if !disk::remove_empty_dir(state)? {
        disk::sync_dir(state)?;
    }
    disk::sync_dir(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARD: &str = "model.safetensors";

    /// A folder with a one-tensor shard and a journal that names `shard` and `created` and writes at `offset`.
    fn interrupted(shard: &str, created: &str, offset: u64) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let (state, outside) = (dir.path().join("c").join(STATE_FOLDER), dir.path().join("outside"));
        fs::create_dir_all(&state).unwrap();
        let shard_bytes = [7; 16];
        fs::write(dir.path().join("c").join(SHARD), shard_bytes).unwrap();
        fs::write(outside, shard_bytes).unwrap();
        let header = Header {
            verb: "apply".to_owned(),
            patch: "p".to_owned(),
            shards: vec![ShardName { name: shard.to_owned(), length: 16 }],
            created: vec![created.to_owned()],
            obsolete: vec![],
        };
        let mut journal = Writer::create(state.join(ACTIVE), &header).unwrap();
        journal.add(0, Cells { offset, size: 4, stride: 0, count: 1 }, &[1, 2, 3, 4], &[7; 4]).unwrap();
        journal.finish().unwrap();
        dir
    }

    #[test]
    fn a_sound_journal_is_played_back() {
        let root = interrupted(SHARD, "0001.json", 12);
        let dir = root.path().join("c");
        let (verb, patch) = ("apply".to_owned(), "p".to_owned());
        assert_eq!(recover(&dir).unwrap(), Some(Recovery::RolledBack { verb, patch, vectors: 1 }));
        assert_eq!(fs::read(dir.join(SHARD)).unwrap(), [7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 1, 2, 3, 4]);
        assert!(!dir.join(STATE_FOLDER).exists());
        assert_eq!(recover(&dir).unwrap(), None);
    }

    /// Someone put other files there after the crash: they are not touched.
    #[test]
    fn a_journal_is_not_played_into_other_files() {
        let root = interrupted(SHARD, "x", 12);
        let dir = root.path().join("c");
        let mut other = [7; 16];
        other[13] = 8;
        fs::write(dir.join(SHARD), other).unwrap();
        let error = recover(&dir).unwrap_err();
        assert!(matches!(error, CheckpointError::Stranger { offset: 12, .. }), "{error}");
        assert_eq!(fs::read(dir.join(SHARD)).unwrap(), other);
        assert!(is_interrupted(&dir), "and the journal stays, for when the right files are back");
        fs::write(dir.join(SHARD), [7; 16]).unwrap();
        assert!(matches!(recover(&dir), Ok(Some(Recovery::RolledBack { .. }))));
    }

    /// A journal comes with the folder, so whoever made the folder may have made it up.
    #[test]
    fn a_hostile_journal_reaches_nothing_outside() {
        for (shard, created, offset) in
            [("../outside", "x", 0), (SHARD, "../../outside", 0), (SHARD, "x", 13), (SHARD, "x", u64::MAX)]
        {
            let root = interrupted(shard, created, offset);
            let error = recover(&root.path().join("c")).unwrap_err();
            assert!(matches!(error, CheckpointError::Journal { .. }), "{error}");
            assert_eq!(fs::read(root.path().join("outside")).unwrap(), [7; 16]);
            assert_eq!(fs::read(root.path().join("c").join(SHARD)).unwrap(), [7; 16]);
        }
    }

    #[test]
    fn a_journal_does_not_lead_through_links() {
        let root = interrupted(SHARD, "x", 0);
        let dir = root.path().join("c");
        fs::remove_file(dir.join(SHARD)).unwrap();
        std::os::unix::fs::symlink(root.path().join("outside"), dir.join(SHARD)).unwrap();
        assert!(matches!(recover(&dir), Err(CheckpointError::Unsupported { .. })));
        fs::rename(dir.join(STATE_FOLDER), root.path().join("elsewhere")).unwrap();
        std::os::unix::fs::symlink(root.path().join("elsewhere"), dir.join(STATE_FOLDER)).unwrap();
        assert!(matches!(recover(&dir), Err(CheckpointError::Unsupported { .. })));
        assert!(root.path().join("elsewhere").join(ACTIVE).exists());
        assert_eq!(fs::read(root.path().join("outside")).unwrap(), [7; 16]);
    }
}
