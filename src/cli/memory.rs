//! The file of `--seen`: what was believed before, kept under a lock.

use std::io;
use std::path::Path;

use super::failure::{Exit, Failure};
use super::trusted::read_input;
use crate::checkpoint::{CheckpointError, lock_folder_of, replace, write_new};
use crate::trust::{NotAMemory, Seen};

/// The longest memory file, in bytes: some fifty thousand series.
const MAX_BYTES: u64 = 16 << 20;

/// Changes a memory by `change`, whole or not at all, while no other process does; gives the new one. A file that is not
/// there is an empty memory. It is written even if nothing is new, so that what can be read can also be written later.
pub(super) fn update(path: &Path, change: impl FnOnce(&mut Seen) -> Result<(), Failure>) -> Result<Seen, Failure> {
    let _lock = lock_folder_of(path)?;
    // A link that leads nowhere is a disk that is not there, not a memory of nothing.
    let is_new = path.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    let wrong = |error: NotAMemory| {
        Failure::message(Exit::Input, format!("{}: {error}", path.display()))
            .hint("give --seen a file of its own; a new one is made")
    };
    let mut seen = match is_new {
        true => Seen::default(),
        false => Seen::parse(&read_input(path, MAX_BYTES, Exit::Input)?).map_err(wrong)?,
    };
    change(&mut seen)?;
    let text = seen.to_text().map_err(wrong)?;
    if text.len() as u64 > MAX_BYTES {
        let (path, found) = (path.to_owned(), text.len() as u64);
        return Err(Failure::new(Exit::Input, &CheckpointError::TooLarge { path, found, limit: MAX_BYTES }));
    }
    match is_new {
        true => write_new(path, text.as_bytes())?,
        false => replace(path, text.as_bytes())?,
    }
    Ok(seen)
}
