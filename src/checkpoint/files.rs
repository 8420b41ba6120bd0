//! The files of a checkpoint's folder that are not its weights.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::layout::{CONFIG, INDEX};
use super::{Checkpoint, CheckpointError, Progress, STATE_FOLDER, tree};

/// Bytes compared at a time.
const CHUNK: usize = 1 << 20;

/// A file beside the weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherFile {
    /// Its path from the checkpoint's folder.
    pub path: PathBuf,
    /// Its length in bytes.
    pub length: u64,
}

impl Checkpoint {
    /// All files below the folder, by path, without those that make up the checkpoint (weights, index, config.json), apply
    /// records ([`is_state_file`]), and what version control and downloads keep in `.git` and `.cache`. Links count as what
    /// they lead to.
    ///
    /// # Errors
    /// Something that is no file, a link to nowhere, a folder inside itself.
    pub fn other_files(&self) -> Result<Vec<OtherFile>, CheckpointError> {
        let own = |path: &Path| {
            let named = |name: &str| path == Path::new(name);
            let kept_by_others = [".git", ".cache"].iter().any(|folder| path.starts_with(folder) && !named(folder));
            let record = path.strip_prefix(STATE_FOLDER).is_ok_and(is_state_file);
            record || kept_by_others || named(CONFIG) || named(INDEX) || self.shard_names().any(named)
        };
        let items = tree::list(self.dir())?.into_iter().filter(|item| !item.folder && !own(&item.path));
        Ok(items.map(|item| OtherFile { length: item.length(), path: item.path }).collect())
    }
}

/// Whether a path below the state folder is what this tool puts there: `NNNN.` and a known ending, or a journal.
pub fn is_state_file(path: &Path) -> bool {
    let Some(name) = path.to_str() else { return false };
    let (number, ending) = name.split_once('.').unwrap_or((name, ""));
    let numbered = number.len() >= 4 && number.bytes().all(|digit| digit.is_ascii_digit());
    let kinds = ["json", "nestpatch", "marks", "residual", "dsse.json"];
    (numbered && kinds.contains(&ending)) || matches!(name, "journal" | "journal.tmp" | "journal.done")
}

/// Whether two files hold the same bytes; reports those of one of them.
pub fn same_bytes(one: &Path, other: &Path, progress: &dyn Progress) -> Result<bool, CheckpointError> {
    let open = |path: &Path| File::open(path).map_err(CheckpointError::io("open", path));
    let (mut one_file, mut other_file) = (open(one)?, open(other)?);
    let (mut ours, mut theirs) = (Vec::with_capacity(CHUNK), Vec::with_capacity(CHUNK));
    loop {
        fill(&mut one_file, &mut ours).map_err(CheckpointError::io("read", one))?;
        fill(&mut other_file, &mut theirs).map_err(CheckpointError::io("read", other))?;
        progress.advance(ours.len() as u64);
        if ours != theirs || ours.is_empty() {
            return Ok(ours == theirs);
        }
    }
}

/// The next bytes of a file: fewer than a chunk only at its end.
fn fill(file: &mut File, buffer: &mut Vec<u8>) -> io::Result<()> {
    buffer.clear();
    file.take(CHUNK as u64).read_to_end(buffer).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_records_and_journals_are_the_tools_own() {
        for own in
            ["0001.json", "0012.marks", "12345.dsse.json", "0001.residual", "0002.nestpatch", "journal", "journal.tmp"]
        {
            assert!(is_state_file(Path::new(own)), "{own}");
        }
        for other in
            ["", "evil.py", "0001.py", "1.json", "0001", "0001.json/x", "a/0001.json", "journals", "x0001.json"]
        {
            assert!(!is_state_file(Path::new(other)), "{other}");
        }
    }

    #[test]
    fn every_byte_counts() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (dir.path().join("one"), dir.path().join("other"));
        let bytes = vec![7; CHUNK + 3];
        let mut last = bytes.clone();
        last[CHUNK + 2] = 8;
        let cases = [
            (&bytes[..], &bytes[..], true),
            (&[], &[], true),
            (&bytes, &last, false),
            (&bytes, &bytes[..CHUNK], false),
            (&bytes[..CHUNK], &bytes, false),
        ];
        for (ours, theirs, same) in cases {
            std::fs::write(&one, ours).unwrap();
            std::fs::write(&other, theirs).unwrap();
            assert_eq!(same_bytes(&one, &other, &()).unwrap(), same);
        }
    }
}
