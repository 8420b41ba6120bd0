//! What a reader has seen before, against being shown something older (`spec/trust.md`, *Memory*).

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::digest::{Blake3, Sha256};
use crate::format::StatusFeed;
use crate::format::json;

/// The longest memory file read, in bytes.
const MAX_SEEN_BYTES: u64 = 16 << 20;

/// Why a patch or feed is refused for what was seen before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SeenError {
    /// A lower number.
    #[error(
        "{what}: expected number {seen} or later, which was seen before, found {found}: an old one is being passed off"
    )]
    Rollback {
        /// Series or feed.
        what: String,
        /// The greatest number seen.
        seen: u64,
        /// The number here.
        found: u64,
    },
    /// The same number with other content.
    #[error("{what}: number {number} is not the one that was seen before: two were signed with one number")]
    Twice {
        /// Series or feed.
        what: String,
        /// The number.
        number: u64,
    },
    /// A feed that no longer says what it said.
    #[error(
        "{what}: expected the {count} entries that were seen before and more, found others: the feed was rewritten"
    )]
    Rewritten {
        /// The feed.
        what: String,
        /// How many entries were seen.
        count: usize,
    },
}

/// Why the memory cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SeenFileError {
    /// The system refuses.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// Not a memory file.
    #[error("{}: expected what this program has seen before, found another kind of file: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// The greatest number seen of each series and status feed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seen {
    schema: Schema,
    series: BTreeMap<String, SeenPatch>,
    feeds: BTreeMap<String, SeenFeed>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
enum Schema {
    #[default]
    #[serde(rename = "nestpatch/seen/1")]
    One,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SeenPatch {
    number: u64,
    patch: Sha256,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SeenFeed {
    number: u64,
    entries: usize,
    digest: Blake3,
}

impl Seen {
    /// Refuses a patch that is older than one of its series seen before, or another with the same number.
    ///
    /// # Errors
    /// As said.
    pub fn check_patch(&self, series: &str, number: u64, patch: Sha256) -> Result<(), SeenError> {
        let Some(seen) = self.series.get(series) else { return Ok(()) };
        let what = format!("series {series:?}");
        match number.cmp(&seen.number) {
            std::cmp::Ordering::Less => Err(SeenError::Rollback { what, seen: seen.number, found: number }),
            std::cmp::Ordering::Equal if patch != seen.patch => Err(SeenError::Twice { what, number }),
            _ => Ok(()),
        }
    }

    /// Refuses a feed that is older than one seen before, or leaves out what that one said.
    ///
    /// # Errors
    /// As said.
    pub fn check_feed(&self, feed: &StatusFeed) -> Result<(), SeenError> {
        let Some(seen) = self.feeds.get(&feed.feed) else { return Ok(()) };
        let what = format!("status feed {:?}", feed.feed);
        if feed.number < seen.number {
            return Err(SeenError::Rollback { what, seen: seen.number, found: feed.number });
        }
        if feed.entries.len() < seen.entries || feed.entries_digest(seen.entries) != seen.digest {
            return Err(SeenError::Rewritten { what, count: seen.entries });
        }
        if feed.number == seen.number && feed.entries.len() != seen.entries {
            return Err(SeenError::Twice { what, number: feed.number });
        }
        Ok(())
    }

    /// Remembers a patch, if it is the newest of its series.
    pub fn note_patch(&mut self, series: &str, number: u64, patch: Sha256) {
        if self.series.get(series).is_none_or(|seen| seen.number < number) {
            self.series.insert(series.to_owned(), SeenPatch { number, patch });
        }
    }

    /// Remembers a feed, if it is the newest of its name.
    pub fn note_feed(&mut self, feed: &StatusFeed) {
        if self.feeds.get(&feed.feed).is_none_or(|seen| seen.number < feed.number) {
            let (number, entries) = (feed.number, feed.entries.len());
            self.feeds.insert(feed.feed.clone(), SeenFeed { number, entries, digest: feed.entries_digest(entries) });
        }
    }

    /// Reads a memory file; one that is not there yet is an empty memory.
    ///
    /// # Errors
    /// A file that cannot be read, or is none.
    pub fn load(path: &Path) -> Result<Self, SeenFileError> {
        let failed = |source| SeenFileError::Io { path: path.to_owned(), action: "read", source };
        let format = |reason: String| SeenFileError::Format { path: path.to_owned(), reason };
        let mut bytes = Vec::new();
        match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Ok(metadata) if !metadata.is_file() => return Err(format("expected a regular file".to_owned())),
            _ => File::open(path).and_then(|file| file.take(MAX_SEEN_BYTES + 1).read_to_end(&mut bytes)),
        }
        .map_err(failed)?;
        if bytes.len() as u64 > MAX_SEEN_BYTES {
            return Err(format(format!("expected at most {MAX_SEEN_BYTES} bytes")));
        }
        let bytes = bytes.trim_ascii();
        json::check(bytes).map_err(|error| format(error.to_string()))?;
        serde_json::from_slice(bytes).map_err(|error| format(error.to_string()))
    }

    /// Changes a memory file by `note`, whole or not at all; two programs at once both get their say. The file is
    /// written even if nothing is new, so whoever calls this first knows that it can be written later.
    ///
    /// # Errors
    /// A file that cannot be read or written, or is none.
    pub fn update(path: &Path, note: impl FnOnce(&mut Self)) -> Result<Self, SeenFileError> {
        // A link stays a link: what it leads to is replaced.
        let followed = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let path = followed.as_path();
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let failed = |action| move |source| SeenFileError::Io { path: path.to_owned(), action, source };
        // The folder is what is locked: the file itself is replaced.
        let lock = File::open(folder).map_err(failed("open the folder of"))?;
        lock.lock().map_err(failed("lock the folder of"))?;
        let mut seen = Self::load(path)?;
        note(&mut seen);
        let text = serde_json::to_string_pretty(&seen).map_err(|error| failed("write")(error.into()))? + "\n";
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let partial = path.with_file_name(format!(".{name}.partial-{}", std::process::id()));
        let written = OpenOptions::new().write(true).create_new(true).open(&partial).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&partial, path)?;
            lock.sync_all()
        });
        written.inspect_err(|_| drop(fs::remove_file(&partial))).map_err(failed("write"))?;
        Ok(seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{FeedEntry, PatchStatus, Timestamp};

    fn patch(number: u8) -> Sha256 {
        Sha256::from_bytes([number; 32])
    }

    fn feed(number: u64, patches: &[u8]) -> StatusFeed {
        let (issued, expires) = (Timestamp::from_unix(0), Timestamp::from_unix(9));
        let entry = |id: &u8| FeedEntry {
            patch: patch(*id),
            status: PatchStatus::Withdrawn,
            since: issued,
            reason: String::new(),
            by: None,
        };
        StatusFeed { feed: "f".to_owned(), number, issued, expires, entries: patches.iter().map(entry).collect() }
    }

    #[test]
    fn numbers_only_rise() {
        let mut seen = Seen::default();
        assert_eq!(seen.check_patch("s", 1, patch(1)), Ok(()));
        seen.note_patch("s", 2, patch(2));
        seen.note_patch("s", 1, patch(1));
        assert!(matches!(seen.check_patch("s", 1, patch(1)), Err(SeenError::Rollback { seen: 2, found: 1, .. })));
        assert_eq!(seen.check_patch("s", 2, patch(2)), Ok(()));
        assert!(matches!(seen.check_patch("s", 2, patch(3)), Err(SeenError::Twice { number: 2, .. })));
        assert_eq!(seen.check_patch("s", 3, patch(3)), Ok(()));
        assert_eq!(seen.check_patch("other", 1, patch(1)), Ok(()));
    }

    #[test]
    fn a_feed_keeps_what_it_said() {
        let mut seen = Seen::default();
        seen.note_feed(&feed(2, &[1, 2]));
        assert_eq!(seen.check_feed(&feed(2, &[1, 2])), Ok(()));
        assert_eq!(seen.check_feed(&feed(3, &[1, 2])), Ok(()));
        assert_eq!(seen.check_feed(&feed(3, &[1, 2, 3])), Ok(()));
        assert!(matches!(seen.check_feed(&feed(1, &[1, 2])), Err(SeenError::Rollback { seen: 2, found: 1, .. })));
        assert!(matches!(seen.check_feed(&feed(3, &[1])), Err(SeenError::Rewritten { count: 2, .. })));
        assert!(matches!(seen.check_feed(&feed(3, &[1, 3, 2])), Err(SeenError::Rewritten { count: 2, .. })));
        assert!(matches!(seen.check_feed(&feed(2, &[1, 2, 3])), Err(SeenError::Twice { number: 2, .. })));
    }

    #[test]
    fn the_file_is_replaced_whole_and_merged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("seen.json");
        assert_eq!(Seen::load(&path).unwrap(), Seen::default());
        Seen::update(&path, |seen| seen.note_patch("s", 2, patch(2))).unwrap();
        Seen::update(&path, |seen| seen.note_patch("s", 1, patch(1))).unwrap();
        Seen::update(&path, |seen| seen.note_feed(&feed(4, &[1]))).unwrap();
        let mut expected = Seen::default();
        expected.note_patch("s", 2, patch(2));
        expected.note_feed(&feed(4, &[1]));
        assert_eq!(Seen::load(&path).unwrap(), expected);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn another_file_is_refused_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("seen.json");
        for text in ["", "{}", "[]", "{\"schema\":\"nestpatch/seen/2\",\"series\":{},\"feeds\":{}}"] {
            fs::write(&path, text).unwrap();
            let error = Seen::update(&path, |seen| seen.note_patch("s", 1, patch(1))).unwrap_err();
            assert!(matches!(error, SeenFileError::Format { .. }), "{text}: {error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        assert!(matches!(Seen::load(folder.path()), Err(SeenFileError::Format { .. })));
    }
}
