//! A folder and everything below it, listed once and copied file by file.

use std::fs::{self, File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::disk::{self, Syncer};
use super::{CheckpointError, Progress};

/// How deep folders may nest. A checkpoint has one or two levels.
const MAX_DEPTH: usize = 16;
/// Bytes copied between two progress reports.
const STEP: u64 = 64 << 20;

/// A file or folder below a root; a link to a file is listed as the file.
#[derive(Debug)]
pub(super) struct Item {
    /// Its path from the root.
    pub(super) path: PathBuf,
    /// Whether it is a folder. Folders come before what they hold.
    pub(super) folder: bool,
    metadata: Metadata,
}

impl Item {
    /// Bytes of a file; 0 for a folder.
    pub(super) fn length(&self) -> u64 {
        if self.folder { 0 } else { self.metadata.len() }
    }
}

/// Lists everything below `root`, sorted by path.
///
/// # Errors
/// Something neither file nor folder, a dangling link, a link to a folder, folders nested too deep.
pub(super) fn list(root: &Path) -> Result<Vec<Item>, CheckpointError> {
    let mut items = Vec::new();
    walk(root, Path::new(""), 0, &mut items)?;
    Ok(items)
}

fn walk(root: &Path, below: &Path, depth: usize, items: &mut Vec<Item>) -> Result<(), CheckpointError> {
    let folder = root.join(below);
    let listing = fs::read_dir(&folder).map_err(CheckpointError::io("list", &folder))?;
    let mut names = Vec::new();
    for entry in listing {
        names.push(entry.map_err(CheckpointError::io("list", &folder))?.file_name());
    }
    names.sort();
    for name in names {
        let path = below.join(name);
        let full = root.join(&path);
        let metadata = fs::metadata(&full).map_err(CheckpointError::io("read", &full))?;
        if metadata.is_dir() {
            if full.is_symlink() {
                // It may lead to anything, the whole disk included.
                return Err(CheckpointError::LinkedFolder { path: full });
            }
            if depth >= MAX_DEPTH {
                return refuse(full, "folders are nested too deep");
            }
            items.push(Item { path: path.clone(), folder: true, metadata });
            walk(root, &path, depth + 1, items)?;
        } else if metadata.is_file() {
            items.push(Item { path, folder: false, metadata });
        } else {
            return refuse(full, "neither a file nor a folder, so it cannot be copied");
        }
    }
    Ok(())
}

fn refuse<T>(path: PathBuf, what: &'static str) -> Result<T, CheckpointError> {
    Err(CheckpointError::Unsupported { path, what })
}

/// Copies one file's bytes to a new file at `to`, sharing blocks where the file system can; all but the last of them
/// may be synced already.
pub(super) fn copy_file(
    item: &Item,
    (from, to): (&Path, &Path),
    syncer: &Syncer,
    progress: &dyn Progress,
) -> Result<Arc<File>, CheckpointError> {
    let source = File::open(from).map_err(CheckpointError::io("open", from))?;
    let copy = Arc::new(disk::create(to)?);
    if disk::clone_blocks(&source, &copy, to)? {
        progress.advance(item.length());
    } else {
        loop {
            let copied = disk::append(&source, &copy, to, STEP)?;
            if copied == 0 {
                break;
            }
            progress.advance(copied);
            if copied == STEP {
                syncer.sync_early(&copy, to);
            }
        }
    }
    let found = copy.metadata().map_err(CheckpointError::io("read", to))?.len();
    unchanged(item, from, found)?;
    Ok(copy)
}

/// Makes `to` a second name of the file at `from`; `false` where that cannot be, or `from` is itself a link.
pub(super) fn link_file(item: &Item, from: &Path, to: &Path) -> Result<bool, CheckpointError> {
    if from.is_symlink() || !disk::link(from, to)? {
        return Ok(false);
    }
    let linked = fs::symlink_metadata(to).map_err(CheckpointError::io("read", to))?;
    let identity = |metadata: &Metadata| (metadata.dev(), metadata.ino());
    if identity(&linked) != identity(&item.metadata) {
        let what = "another file took its place while the folder was being copied";
        return refuse(from.to_owned(), what);
    }
    unchanged(item, from, linked.len())?;
    Ok(true)
}

fn unchanged(item: &Item, from: &Path, found: u64) -> Result<(), CheckpointError> {
    let expected = item.length();
    if expected == found { Ok(()) } else { Err(CheckpointError::Changed { path: from.to_owned(), expected, found }) }
}

/// Gives the copy at `to` the permission bits of its original.
pub(super) fn copy_mode(item: &Item, to: &Path) -> Result<(), CheckpointError> {
    disk::set_mode(to, item.metadata.permissions())
}
