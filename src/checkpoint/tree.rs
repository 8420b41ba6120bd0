//! A folder and everything below it, listed once and copied file by file.

use std::fs::{self, File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{CheckpointError, Progress, disk};

/// How deep folders may nest. A checkpoint has one or two levels.
const MAX_DEPTH: usize = 16;
/// Bytes copied between two progress reports.
const STEP: u64 = 64 << 20;

/// A file or folder below a root; links are listed as what they point to.
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
/// Something neither file nor folder, a dangling link, a folder inside itself.
pub(super) fn list(root: &Path) -> Result<Vec<Item>, CheckpointError> {
    let mut items = Vec::new();
    let above = vec![identity(&look(root)?)];
    walk(root, Path::new(""), &above, &mut items)?;
    Ok(items)
}

fn walk(root: &Path, below: &Path, above: &[(u64, u64)], items: &mut Vec<Item>) -> Result<(), CheckpointError> {
    let folder = root.join(below);
    let listing = fs::read_dir(&folder).map_err(CheckpointError::io("list", &folder))?;
    let mut names = Vec::new();
    for entry in listing {
        names.push(entry.map_err(CheckpointError::io("list", &folder))?.file_name());
    }
    names.sort();
    for name in names {
        let path = below.join(name);
        let metadata = look(&root.join(&path))?;
        if metadata.is_dir() {
            let mut above = above.to_vec();
            if above.contains(&identity(&metadata)) || above.len() > MAX_DEPTH {
                return refuse(root.join(path), "a folder inside itself, or nested too deep");
            }
            above.push(identity(&metadata));
            items.push(Item { path: path.clone(), folder: true, metadata });
            walk(root, &path, &above, items)?;
        } else if metadata.is_file() {
            items.push(Item { path, folder: false, metadata });
        } else {
            return refuse(root.join(path), "neither a file nor a folder, so it cannot be copied");
        }
    }
    Ok(())
}

fn look(path: &Path) -> Result<Metadata, CheckpointError> {
    fs::metadata(path).map_err(CheckpointError::io("read", path))
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

fn refuse<T>(path: PathBuf, what: &'static str) -> Result<T, CheckpointError> {
    Err(CheckpointError::Unsupported { path, what })
}

/// Copies one file's bytes to a new file at `to`, sharing blocks where the file system can; not yet synced.
pub(super) fn copy_file(item: &Item, from: &Path, to: &Path, progress: &dyn Progress) -> Result<File, CheckpointError> {
    let source = File::open(from).map_err(CheckpointError::io("open", from))?;
    let copy = disk::create(to)?;
    if disk::clone_blocks(&source, &copy, to)? {
        progress.advance(item.length());
    } else {
        loop {
            let copied = disk::append(&source, &copy, to, STEP)?;
            if copied == 0 {
                break;
            }
            progress.advance(copied);
        }
    }
    let (expected, found) = (item.length(), copy.metadata().map_err(CheckpointError::io("read", to))?.len());
    if expected == found { Ok(copy) } else { Err(CheckpointError::Changed { path: from.to_owned(), expected, found }) }
}

/// Gives the copy at `to` the permission bits of its original.
pub(super) fn copy_mode(item: &Item, to: &Path) -> Result<(), CheckpointError> {
    disk::set_mode(to, item.metadata.permissions())
}
