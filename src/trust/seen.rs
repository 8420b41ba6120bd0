//! What a reader has seen before, against being shown something older (`spec/trust.md`, *Memory*).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::{Blake3, Sha256};
use crate::format::StatusFeed;
use crate::format::json;

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

/// A text that is no memory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected what this program has seen before, found another kind of file: {reason}")]
pub struct NotAMemory {
    reason: String,
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

    /// Reads the text of a memory; white space round it is ignored.
    ///
    /// # Errors
    /// Not a memory, or one of a later version.
    pub fn parse(bytes: &[u8]) -> Result<Self, NotAMemory> {
        let bytes = bytes.trim_ascii();
        json::check(bytes).map_err(|error| NotAMemory { reason: error.to_string() })?;
        serde_json::from_slice(bytes).map_err(|error| NotAMemory { reason: error.to_string() })
    }

    /// Writes the text; what is written reads back.
    ///
    /// # Errors
    /// More names than one JSON object may have.
    pub fn to_text(&self) -> Result<String, NotAMemory> {
        let text = serde_json::to_string_pretty(self).map_err(|error| NotAMemory { reason: error.to_string() })?;
        Self::parse(text.as_bytes()).map(|_| text + "\n")
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
    fn a_memory_reads_back_and_nothing_else_is_one() {
        let mut seen = Seen::default();
        seen.note_patch("s", 2, patch(2));
        seen.note_feed(&feed(4, &[1]));
        assert_eq!(Seen::parse(seen.to_text().unwrap().as_bytes()), Ok(seen));
        for text in ["", "{}", "[]", "{\"schema\":\"nestpatch/seen/2\",\"series\":{},\"feeds\":{}}"] {
            assert!(Seen::parse(text.as_bytes()).unwrap_err().to_string().contains("another kind of file"), "{text}");
        }
    }
}
