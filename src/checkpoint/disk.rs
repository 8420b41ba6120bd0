//! Every call that changes the disk, in one place.
//!
//! So each names its file when it fails, and a test can fail or kill the process at each.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use super::CheckpointError;

type Result<T> = std::result::Result<T, CheckpointError>;

/// Creates a file that must not exist, for reading and writing.
pub(crate) fn create(path: &Path) -> Result<File> {
    fault::step("create", path)
        .and_then(|()| OpenOptions::new().read(true).write(true).create_new(true).open(path))
        .map_err(failed("create", path))
}

/// Creates a file with these bytes and forces them to the disk.
pub(crate) fn create_with(path: &Path, bytes: &[u8]) -> Result<()> {
    let file = create(path)?;
    write_at(&file, path, bytes, 0)?;
    sync(&file, path)
}

/// Writes a new file whole or not at all: to a temporary name beside it, forced to the disk, then renamed.
///
/// # Errors
/// The file exists, or the disk refuses. Nothing is left behind.
pub fn write_new(path: &Path, bytes: &[u8]) -> Result<()> {
    if path.symlink_metadata().is_ok() {
        return Err(CheckpointError::Exists { path: path.to_owned() });
    }
    write_beside(path, bytes, |partial| rename(partial, path))?;
    let synced = sync_dir(folder_of(path));
    if synced.is_err() {
        remove(path)?;
    }
    synced
}

/// Replaces a file, whole or not at all, keeping its permissions; of a link, what it leads to.
///
/// # Errors
/// The disk refuses. The file is the old one, or the new one if only its name could not be forced to the disk.
fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let path = &fs::canonicalize(path).map_err(failed("find", path))?;
    write_beside(path, bytes, |partial| {
        set_mode(partial, fs::metadata(path).map_err(failed("read", path))?.permissions())?;
        fault::step("rename", path).and_then(|()| fs::rename(partial, path)).map_err(failed("rename to", path))
    })?;
    sync_dir(folder_of(path))
}

fn write_beside(path: &Path, bytes: &[u8], place: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let partial = path.with_file_name(format!(".{name}.partial-{}", std::process::id()));
    // Not ours to remove if it cannot be created.
    let file = create(&partial)?;
    let written =
        write_at(&file, &partial, bytes, 0).and_then(|()| sync(&file, &partial)).and_then(|()| place(&partial));
    if written.is_err() {
        remove(&partial)?;
    }
    written
}

/// A file that is read, changed and written while no other process does the same in its folder. The folder is what is
/// locked, as files are replaced, not changed; waiting ends when the other's amendment is dropped.
pub struct Amendment<'p> {
    path: &'p Path,
    is_new: bool,
    _lock: File,
}

impl<'p> Amendment<'p> {
    /// Takes the file at `path`, which need not be there.
    ///
    /// # Errors
    /// The folder cannot be opened or locked.
    pub fn of(path: &'p Path) -> Result<Self> {
        let followed = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let folder = folder_of(&followed);
        let lock = File::open(folder).map_err(failed("open", folder))?;
        lock.lock().map_err(failed("lock", folder))?;
        // A link that leads nowhere is a disk that is not there, not a new file.
        let is_new = path.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        Ok(Self { path, is_new, _lock: lock })
    }

    /// Whether the file is yet to be made.
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// The disk refuses, or a new file is there by now. It is the old one, or the new one if only its name could not be
    /// forced to the disk.
    pub fn write(&self, bytes: &[u8]) -> Result<()> {
        if self.is_new { write_new(self.path, bytes) } else { replace(self.path, bytes) }
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Bytes that this user may still write in the file system of a folder.
///
/// # Errors
/// The system does not tell.
pub fn free_bytes(folder: &Path) -> Result<u64> {
    let found = rustix::fs::statvfs(folder).map_err(|error| failed("look at", folder)(error.into()))?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// Makes `to`, a new file, a clone of `from` that shares its blocks; `false` where the file system cannot.
#[cfg(target_os = "linux")]
pub(crate) fn clone_blocks(from: &File, to: &File, path: &Path) -> Result<bool> {
    fault::step("write", path).map_err(failed("write", path))?;
    Ok(rustix::fs::ioctl_ficlone(to, from).is_ok())
}

/// Makes `to`, a new file, a clone of `from` that shares its blocks; `false` where the file system cannot.
#[cfg(not(target_os = "linux"))]
pub(crate) fn clone_blocks(_: &File, _: &File, _: &Path) -> Result<bool> {
    Ok(false)
}

/// Appends the next `length` bytes of `from` to `to`; gives how many there were.
pub(crate) fn append(from: &File, to: &File, path: &Path, length: u64) -> Result<u64> {
    let (mut from, mut to) = (from.take(length), to);
    fault::step("write", path).and_then(|()| io::copy(&mut from, &mut to)).map_err(failed("copy to", path))
}

/// Sets a file's or folder's permission bits.
pub(crate) fn set_mode(path: &Path, permissions: Permissions) -> Result<()> {
    fault::step("mode", path)
        .and_then(|()| fs::set_permissions(path, permissions))
        .map_err(failed("set the mode of", path))
}

/// Opens an existing file for reading and writing, never through a symbolic link.
pub(crate) fn open_rw(path: &Path) -> Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    fault::step("open", path)
        .and_then(|()| OpenOptions::new().read(true).write(true).custom_flags(flags).open(path))
        .map_err(failed("open for writing", path))
}

/// Writes all of `bytes` at `offset`.
pub(crate) fn write_at(file: &File, path: &Path, bytes: &[u8], offset: u64) -> Result<()> {
    fault::tear(|| {
        // As a killed process or a lost supply of power leaves it: whole blocks of the file.
        let end = (offset + bytes.len() as u64 / 2) / super::journal::BLOCK * super::journal::BLOCK;
        let half = bytes.get(..end.saturating_sub(offset) as usize).unwrap_or_default();
        let _ = file.write_all_at(half, offset);
    });
    fault::step("write", path).and_then(|()| file.write_all_at(bytes, offset)).map_err(failed("write", path))
}

/// Forces a file's bytes to the disk.
pub(crate) fn sync(file: &File, path: &Path) -> Result<()> {
    fault::step("sync", path).and_then(|()| file.sync_all()).map_err(failed("sync", path))
}

/// Files that may wait for it: each is held open.
const MAX_WAITING: usize = 64;

/// Forces files to the disk on a thread of its own, while the caller writes the next. The caller's calls are the steps
/// that a test can strike at; the thread has none, so their order stays the same. Dropped unfinished, it ends by itself.
#[derive(Debug)]
pub(crate) struct Syncer {
    queue: SyncSender<(Arc<File>, PathBuf)>,
    waiting: Arc<AtomicUsize>,
    thread: JoinHandle<Result<()>>,
    /// What it was for.
    folder: PathBuf,
}

impl Syncer {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system has none to give; `path` is what it was for.
    pub(crate) fn start(path: &Path) -> Result<Self> {
        let (queue, files) = sync_channel(MAX_WAITING);
        let waiting = Arc::new(AtomicUsize::new(0));
        let left = Arc::clone(&waiting);
        let thread = thread::Builder::new().spawn(move || sync_each(&files, &left)).map_err(failed("sync", path))?;
        Ok(Self { queue, waiting, thread, folder: path.to_owned() })
    }

    /// Forces what a file holds by now to the disk, unless there is enough to do. Its last bytes need [`Syncer::sync`].
    pub(crate) fn sync_early(&self, file: &Arc<File>, path: &Path) {
        if self.waiting.load(Ordering::Relaxed) == 0 {
            self.push(file, path);
        }
    }

    /// Forces a file to the disk, at the latest before [`Syncer::finish`] returns.
    pub(crate) fn sync(&self, file: &Arc<File>, path: &Path) -> Result<()> {
        fault::step("sync", path).map_err(failed("sync", path))?;
        self.push(file, path);
        Ok(())
    }

    fn push(&self, file: &Arc<File>, path: &Path) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        // A thread that is gone has failed: `finish` tells.
        let _ = self.queue.send((Arc::clone(file), path.to_owned()));
    }

    /// Waits for all of them.
    ///
    /// # Errors
    /// The first file that could not be forced to the disk.
    pub(crate) fn finish(self) -> Result<()> {
        drop(self.queue);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        fault::step("finish", &self.folder).map_err(failed("sync", &self.folder))
    }
}

fn sync_each(files: &Receiver<(Arc<File>, PathBuf)>, waiting: &AtomicUsize) -> Result<()> {
    files.iter().try_for_each(|(file, path)| {
        waiting.fetch_sub(1, Ordering::Relaxed);
        file.sync_all().map_err(failed("sync", &path))
    })
}

/// Forces a folder's entries to the disk.
pub(crate) fn sync_dir(path: &Path) -> Result<()> {
    fault::step("sync", path).and_then(|()| File::open(path)?.sync_all()).map_err(failed("sync", path))
}

/// Creates a folder that must not exist.
pub(crate) fn create_dir(path: &Path) -> Result<()> {
    fault::step("create", path).and_then(|()| fs::create_dir(path)).map_err(failed("create", path))
}

/// Gives a file a second name, `to`, which must not exist; `false` where the system cannot.
pub(crate) fn link(from: &Path, to: &Path) -> Result<bool> {
    use rustix::io::Errno;
    const CANNOT: [Errno; 6] = [Errno::XDEV, Errno::PERM, Errno::ACCESS, Errno::MLINK, Errno::OPNOTSUPP, Errno::NOSYS];
    match fault::step("link", to).and_then(|()| fs::hard_link(from, to)) {
        Ok(()) => Ok(true),
        Err(error) if CANNOT.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error())) => Ok(false),
        Err(error) => Err(failed("link to", to)(error)),
    }
}

/// Renames within a file system; `to` must not exist.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    fault::step("rename", to).and_then(|()| rename_new(from, to)).map_err(|error| match error.kind() {
        // Another process was faster.
        io::ErrorKind::AlreadyExists => CheckpointError::Exists { path: to.to_owned() },
        _ => failed("rename to", to)(error),
    })
}

/// Removes a file; one that is not there is fine.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match fault::step("remove", path).and_then(|()| fs::remove_file(path)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(failed("remove", path)),
    }
}

/// Removes a folder if it is empty; says whether it is gone.
pub(crate) fn remove_empty_dir(path: &Path) -> Result<bool> {
    match fault::step("remove", path).and_then(|()| fs::remove_dir(path)) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(false),
        Err(error) => Err(failed("remove", path)(error)),
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CheckpointError {
    CheckpointError::io(action, path)
}

#[cfg(target_os = "linux")]
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => rename_checked(from, to),
        other => Ok(other?),
    }
}

#[cfg(not(target_os = "linux"))]
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    rename_checked(from, to)
}

/// For file systems that cannot refuse to replace: a look before the leap.
fn rename_checked(from: &Path, to: &Path) -> io::Result<()> {
    match fs::symlink_metadata(to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::rename(from, to),
        Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
        Err(error) => Err(error),
    }
}

/// Faults on demand, for tests of the debug build: `NESTPATCH_FAULT=KIND@N` strikes at the N-th call above, counted
/// from 1. `kill` ends the process there, after half of a write; `enospc`, `eio` and `eacces` fail that call; `log@0` only
/// writes each call to stderr.
#[cfg(debug_assertions)]
mod fault {
    use std::io;
    use std::path::Path;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    static CALLS: AtomicU64 = AtomicU64::new(0);
    static PLAN: OnceLock<Option<(String, u64)>> = OnceLock::new();

    fn plan() -> Option<&'static (String, u64)> {
        PLAN.get_or_init(|| {
            let text = std::env::var("NESTPATCH_FAULT").ok()?;
            let (kind, at) = text.split_once('@')?;
            Some((kind.to_owned(), at.parse().ok()?))
        })
        .as_ref()
    }

    pub(super) fn tear(half: impl FnOnce()) {
        let next = CALLS.load(Ordering::SeqCst) + 1;
        if plan().is_some_and(|(kind, at)| kind == "kill" && *at == next) {
            half();
        }
    }

    pub(super) fn step(action: &str, path: &Path) -> io::Result<()> {
        let call = CALLS.fetch_add(1, Ordering::SeqCst) + 1;
        if plan().is_some_and(|(kind, _)| kind == "log") {
            eprintln!("disk: {action} {}", path.display());
        }
        let Some((kind, _)) = plan().filter(|(_, at)| *at == call) else { return Ok(()) };
        match kind.as_str() {
            "kill" => {
                eprintln!("killed at call {call}: {}", path.display());
                std::process::abort();
            }
            "enospc" => Err(io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error())),
            "eacces" => Err(io::Error::from_raw_os_error(rustix::io::Errno::ACCESS.raw_os_error())),
            _ => Err(io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error())),
        }
    }
}

#[cfg(not(debug_assertions))]
mod fault {
    use std::io;
    use std::path::Path;

    pub(super) fn tear(_: impl FnOnce()) {}

    pub(super) fn step(_: &str, _: &Path) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_synced_in_the_background_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("good");
        let good = Arc::new(create(&path).unwrap());
        // A device that takes bytes and cannot be synced.
        let bad = Arc::new(File::open("/dev/null").unwrap());
        let syncer = Syncer::start(&path).unwrap();
        syncer.sync(&good, &path).unwrap();
        syncer.finish().unwrap();
        for early in [false, true] {
            let syncer = Syncer::start(&path).unwrap();
            match early {
                true => syncer.sync_early(&bad, Path::new("bad")),
                false => syncer.sync(&bad, Path::new("bad")).unwrap(),
            }
            // The thread may be gone by now.
            syncer.sync(&good, &path).unwrap();
            assert_eq!(syncer.finish().unwrap_err().to_string(), "cannot sync bad");
        }
    }
}
