//! The file of `--seen`: what was believed before, kept under a lock.

use std::path::Path;

use super::failure::{Exit, Failure};
use super::trusted::read_input;
use crate::checkpoint::{Amendment, CheckpointError};
use crate::trust::{NotAMemory, Seen};

/// The longest memory file, in bytes: some fifty thousand series.
const MAX_BYTES: u64 = 16 << 20;

/// Changes a memory by `change`, whole or not at all, while no other process does. A file that is not there is an empty
/// memory. It is written even if nothing is new, so that what can be read can also be written later.
pub(super) fn update<T>(path: &Path, change: impl FnOnce(&mut Seen) -> Result<T, Failure>) -> Result<T, Failure> {
    let file = Amendment::of(path)?;
    let wrong = |error: NotAMemory| {
        Failure::message(Exit::Input, format!("{}: {error}", path.display()))
            .hint("give --seen a file of its own; a new one is made")
    };
    let mut seen = match file.is_new() {
        true => Seen::default(),
        false => Seen::parse(&read_input(path, MAX_BYTES, Exit::Input)?).map_err(wrong)?,
    };
    let value = change(&mut seen)?;
    let text = seen.to_text().map_err(wrong)?;
    if text.len() as u64 > MAX_BYTES {
        let (path, found) = (path.to_owned(), text.len() as u64);
        return Err(Failure::new(Exit::Input, &CheckpointError::TooLarge { path, found, limit: MAX_BYTES }));
    }
    file.write(text.as_bytes())?;
    Ok(value)
}
