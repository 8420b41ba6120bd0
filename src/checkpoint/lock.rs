//! One advisory lock per checkpoint, so that no process reads or writes under another's feet.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use super::CheckpointError;

/// A lock on the checkpoint's folder itself, so that nothing is left behind. Released when dropped or killed.
#[derive(Debug)]
pub(crate) struct Lock {
    folder: File,
    dir: PathBuf,
}

impl Lock {
    /// For reading: any number of processes at once. Without locks on the file system, reading goes on unlocked.
    pub(crate) fn shared(dir: &Path) -> Result<Self, CheckpointError> {
        let lock = Self::open(dir)?;
        match lock.folder.try_lock_shared() {
            Err(TryLockError::WouldBlock) => Err(CheckpointError::Busy { dir: dir.to_owned() }),
            Ok(()) | Err(TryLockError::Error(_)) => Ok(lock),
        }
    }

    /// For changing in place: this process alone.
    pub(crate) fn exclusive(dir: &Path) -> Result<Self, CheckpointError> {
        let lock = Self::open(dir)?;
        lock.upgrade()?;
        Ok(lock)
    }

    /// From reading to changing.
    pub(crate) fn upgrade(&self) -> Result<(), CheckpointError> {
        self.folder.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => CheckpointError::Busy { dir: self.dir.clone() },
            TryLockError::Error(source) => CheckpointError::Io { action: "lock", path: self.dir.clone(), source },
        })
    }

    fn open(dir: &Path) -> Result<Self, CheckpointError> {
        let folder = File::open(dir).map_err(CheckpointError::io("open", dir))?;
        Ok(Self { folder, dir: dir.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_share_and_a_writer_stands_alone() {
        let dir = tempfile::tempdir().expect("folder");
        let reader = Lock::shared(dir.path()).expect("first reader");
        let other = Lock::shared(dir.path()).expect("second reader");
        assert!(matches!(Lock::exclusive(dir.path()), Err(CheckpointError::Busy { .. })));
        drop(other);
        reader.upgrade().expect("the last reader may write");
        assert!(matches!(Lock::shared(dir.path()), Err(CheckpointError::Busy { .. })));
        drop(reader);
        Lock::exclusive(dir.path()).expect("free again");
    }
}
