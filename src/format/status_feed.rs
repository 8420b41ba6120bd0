//! The status feed: an in-toto Statement in which a publisher says which patches are no longer to be used.
//!
//! `spec/trust.md`, *Status feed*. Structure only: whose signatures count is `trust`'s to say.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Deserializer, Serialize};

use crate::digest::{Blake3, Sha256};
use crate::format::json::{self, NotStrict};
use crate::format::limits::{
    MAX_ENVELOPE_BYTES, MAX_FEED_ENTRIES, MAX_JSON_INTEGER, MAX_LABEL_BYTES, MAX_REASON_BYTES,
};
use crate::format::rules::text_fault;
use crate::format::statement::{Fault, Statement};
use crate::format::timestamp::Timestamp;

/// `predicateType` of a status feed.
pub const FEED_PREDICATE_TYPE: &str = "urn:nestpatch:status-feed:v1";
/// Domain of the digest over a feed's first entries.
pub const FEED_ENTRIES_CONTEXT: &str = "nestpatch v1 2026-11-24 status entries";

/// Why bytes are no status feed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StatusFeedError {
    /// Not strict JSON.
    #[error("status feed: not strict JSON: {0}")]
    Json(#[from] NotStrict),
    /// Strict JSON of another structure.
    #[error("status feed: {reason}")]
    Structure {
        /// What the JSON reader says.
        reason: String,
    },
    /// A member that breaks a rule.
    #[error("status feed: {what}: expected {expected}, found {found}")]
    Rule {
        /// Which member.
        what: String,
        /// The rule.
        expected: String,
        /// What is there.
        found: String,
    },
}

/// How a patch stands. The order is that of gravity, and a patch never comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PatchStatus {
    /// In use.
    Active,
    /// Another is to be used instead.
    Superseded,
    /// Not to be used: it does not do what it should.
    Withdrawn,
    /// Not to be used: it, or a key that signed it, is an attacker's.
    Compromised,
}

impl PatchStatus {
    /// The word of the feed.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Superseded => "superseded",
            Self::Withdrawn => "withdrawn",
            Self::Compromised => "compromised",
        }
    }
}

/// One line of the feed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeedEntry {
    /// The patch.
    pub patch: Sha256,
    /// How it stands from here on.
    pub status: PatchStatus,
    /// Since when, as the publisher says.
    pub since: Timestamp,
    /// Why, for people; may be empty.
    pub reason: String,
    /// The patch to use instead, of one that is superseded.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub by: Option<Sha256>,
}

/// The feed: entries are only ever added, each issue has a greater number and its own expiry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusFeed {
    /// Its name.
    pub feed: String,
    /// From 1; a later issue has a greater one.
    pub number: u64,
    /// When this issue was made, as the publisher says.
    pub issued: Timestamp,
    /// From when on it proves nothing: a reader who gets no newer issue is being kept from it.
    pub expires: Timestamp,
    /// Everything that was ever said, in order.
    pub entries: Vec<FeedEntry>,
}

#[derive(PartialEq, Eq, Serialize, Deserialize)]
struct Subject {
    digest: SubjectDigest,
}

#[derive(PartialEq, Eq, Serialize, Deserialize)]
struct SubjectDigest {
    sha256: Sha256,
}

impl StatusFeed {
    /// Reads a Statement's bytes.
    ///
    /// # Errors
    /// The first rule broken.
    pub fn parse(bytes: &[u8]) -> Result<Self, StatusFeedError> {
        json::check(bytes)?;
        let statement: Statement<Subject, Self> =
            serde_json::from_slice(bytes).map_err(|error| StatusFeedError::Structure { reason: error.to_string() })?;
        if let Some(Fault { what, expected, found }) = statement.fault(FEED_PREDICATE_TYPE) {
            return Err(rule(what, &format!("{expected:?}"), &format!("{found:?}")));
        }
        statement.predicate.check()?;
        if statement.subject != statement.predicate.subjects() {
            return Err(rule(
                "subject",
                "the id of each patch of the entries, in order of first mention",
                "another list",
            ));
        }
        Ok(statement.predicate)
    }

    /// Writes the Statement's bytes; what is written reads back.
    ///
    /// # Errors
    /// The first rule broken.
    pub fn to_bytes(&self) -> Result<Vec<u8>, StatusFeedError> {
        self.check()?;
        let statement = Statement::new(FEED_PREDICATE_TYPE, self.subjects(), self);
        let bytes =
            serde_json::to_vec(&statement).map_err(|error| StatusFeedError::Structure { reason: error.to_string() })?;
        // Base64 takes four bytes for three, and the envelope some more.
        let (limit, found) = (MAX_ENVELOPE_BYTES / 4 * 3 - 16_384, bytes.len());
        if found > limit {
            return Err(rule("bytes", &format!("at most {limit}"), &found.to_string()));
        }
        Ok(bytes)
    }

    /// The last word on a patch; none where the feed does not mention it.
    pub fn status_of(&self, patch: Sha256) -> Option<&FeedEntry> {
        self.entries.iter().rev().find(|entry| entry.patch == patch)
    }

    /// The digest of the first `count` entries, by which a later issue shows that it left none out.
    pub fn entries_digest(&self, count: usize) -> Blake3 {
        let mut hasher = blake3::Hasher::new_derive_key(FEED_ENTRIES_CONTEXT);
        for entry in self.entries.iter().take(count) {
            hasher.update(entry.patch.as_bytes());
            for text in [entry.status.as_str(), &entry.since.to_string(), &entry.reason] {
                hasher.update(&(text.len() as u64).to_le_bytes());
                hasher.update(text.as_bytes());
            }
            hasher.update(&[u8::from(entry.by.is_some())]);
            if let Some(by) = entry.by {
                hasher.update(by.as_bytes());
            }
        }
        hasher.finalize().into()
    }

    fn subjects(&self) -> Vec<Subject> {
        let mut mentioned = BTreeSet::new();
        let first = self.entries.iter().filter(|entry| mentioned.insert(entry.patch));
        first.map(|entry| Subject { digest: SubjectDigest { sha256: entry.patch } }).collect()
    }

    fn check(&self) -> Result<(), StatusFeedError> {
        text("feed", &self.feed, 1, MAX_LABEL_BYTES)?;
        if self.number == 0 || self.number >= MAX_JSON_INTEGER {
            return Err(rule("number", "a number from 1, under 2^53", &self.number.to_string()));
        }
        if self.expires <= self.issued {
            let expected = format!("a time after issued, {}", self.issued);
            return Err(rule("expires", &expected, &self.expires.to_string()));
        }
        if self.entries.is_empty() || self.entries.len() > MAX_FEED_ENTRIES {
            return Err(rule("entries", &format!("1 to {MAX_FEED_ENTRIES}"), &self.entries.len().to_string()));
        }
        let mut last = BTreeMap::new();
        for (index, entry) in self.entries.iter().enumerate() {
            text(&format!("entries[{index}].reason"), &entry.reason, 0, MAX_REASON_BYTES)?;
            if entry.by.is_some() && entry.status != PatchStatus::Superseded {
                return Err(rule(&format!("entries[{index}].by"), "none, as it is not superseded", "a patch"));
            }
            if entry.by == Some(entry.patch) {
                return Err(rule(&format!("entries[{index}].by"), "another patch", "the patch itself"));
            }
            if let Some(before) = last.insert(entry.patch, entry.status).filter(|before| *before >= entry.status) {
                let expected = format!("something graver than {}, which was said before", before.as_str());
                return Err(rule(&format!("entries[{index}].status"), &expected, entry.status.as_str()));
            }
        }
        Ok(())
    }
}

/// A member that is there or not: `null` is neither.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Sha256>, D::Error> {
    Sha256::deserialize(deserializer).map(Some)
}

fn text(what: &str, value: &str, least: usize, most: usize) -> Result<(), StatusFeedError> {
    match text_fault(value, least, most) {
        None => Ok(()),
        Some((expected, found)) => Err(rule(what, &expected, &found)),
    }
}

fn rule(what: &str, expected: &str, found: &str) -> StatusFeedError {
    StatusFeedError::Rule { what: what.to_owned(), expected: expected.to_owned(), found: found.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(patch: u8, status: PatchStatus) -> FeedEntry {
        let since = Timestamp::from_unix(1_800_000_000);
        FeedEntry { patch: Sha256::from_bytes([patch; 32]), status, since, reason: "why".to_owned(), by: None }
    }

    fn feed() -> StatusFeed {
        StatusFeed {
            feed: "toy".to_owned(),
            number: 2,
            issued: Timestamp::from_unix(1_800_000_000),
            expires: Timestamp::from_unix(1_800_086_400),
            entries: vec![
                entry(1, PatchStatus::Active),
                FeedEntry { by: Some(Sha256::from_bytes([2; 32])), ..entry(1, PatchStatus::Superseded) },
                entry(2, PatchStatus::Active),
                entry(1, PatchStatus::Compromised),
            ],
        }
    }

    #[test]
    fn golden_bytes() {
        let mut feed = feed();
        feed.entries.truncate(2);
        let (one, two) = ("01".repeat(32), "02".repeat(32));
        let expected = format!(
            "{{\"_type\":\"https://in-toto.io/Statement/v1\",\"subject\":[{{\"digest\":{{\"sha256\":\"{one}\"}}}}],\
             \"predicateType\":\"urn:nestpatch:status-feed:v1\",\"predicate\":{{\"feed\":\"toy\",\"number\":2,\
             \"issued\":\"2027-01-15T08:00:00Z\",\"expires\":\"2027-01-16T08:00:00Z\",\"entries\":[\
             {{\"patch\":\"{one}\",\"status\":\"active\",\"since\":\"2027-01-15T08:00:00Z\",\"reason\":\"why\"}},\
             {{\"patch\":\"{one}\",\"status\":\"superseded\",\"since\":\"2027-01-15T08:00:00Z\",\"reason\":\"why\",\
             \"by\":\"{two}\"}}]}}}}"
        );
        let bytes = feed.to_bytes().unwrap();
        assert_eq!(String::from_utf8(bytes.clone()).unwrap(), expected);
        assert_eq!(StatusFeed::parse(&bytes), Ok(feed));
    }

    #[test]
    fn the_last_word_counts() {
        let feed = feed();
        let status = |patch| feed.status_of(Sha256::from_bytes([patch; 32])).map(|entry| entry.status);
        assert_eq!(status(1), Some(PatchStatus::Compromised));
        assert_eq!(status(2), Some(PatchStatus::Active));
        assert_eq!(status(3), None);
    }

    #[test]
    fn the_digest_covers_every_member_of_the_first_entries() {
        let (whole, mut changed) = (feed(), feed());
        changed.entries[3].reason.push('x');
        assert_eq!(whole.entries_digest(3), changed.entries_digest(3));
        assert_ne!(whole.entries_digest(4), changed.entries_digest(4));
        let changes: [fn(&mut FeedEntry); 5] = [
            |entry| entry.patch = Sha256::from_bytes([9; 32]),
            |entry| entry.status = PatchStatus::Withdrawn,
            |entry| entry.since = Timestamp::from_unix(0),
            |entry| entry.reason.clear(),
            |entry| entry.by = None,
        ];
        for change in changes {
            let mut changed = feed();
            change(&mut changed.entries[1]);
            assert_ne!(whole.entries_digest(4), changed.entries_digest(4));
        }
    }

    #[test]
    fn each_rule_refuses() {
        type Change = fn(&mut StatusFeed);
        let cases: [(Change, &str); 11] = [
            (|feed| feed.feed.clear(), "feed: expected 1 to 200 bytes"),
            (|feed| feed.feed = "a\u{1b}b".to_owned(), "feed: expected 1 to 200 bytes"),
            (|feed| feed.number = 0, "number: expected a number from 1"),
            (|feed| feed.number = 1 << 53, "number: expected a number from 1, under 2^53"),
            (|feed| feed.expires = feed.issued, "expires: expected a time after issued"),
            (|feed| feed.entries.clear(), "entries: expected 1 to 16384, found 0"),
            (|feed| feed.entries[0].reason = "x".repeat(501), "entries[0].reason: expected 0 to 500 bytes"),
            (|feed| feed.entries[0].by = Some(Sha256::from_bytes([2; 32])), "entries[0].by: expected none"),
            (|feed| feed.entries[1].by = Some(feed.entries[1].patch), "entries[1].by: expected another patch"),
            (|feed| feed.entries.push(entry(2, PatchStatus::Active)), "graver than active, which was said before"),
            (
                |feed| feed.entries.push(entry(1, PatchStatus::Active)),
                "entries[4].status: expected something graver than compromised, which was said before, found active",
            ),
        ];
        for (change, message) in cases {
            let mut feed = feed();
            change(&mut feed);
            let found = feed.to_bytes().unwrap_err().to_string();
            assert!(found.contains(message), "{message}: {found}");
        }
        let bytes = String::from_utf8(feed().to_bytes().unwrap()).unwrap();
        let cases = [
            (bytes.replace("Statement/v1", "Statement/v0.1"), "_type: expected"),
            (bytes.replace("status-feed:v1", "safety-patch:v1"), "predicateType: expected"),
            (
                bytes.replace("\"withdrawn\"", "\"gone\"").replace("\"compromised\"", "\"gone\""),
                "unknown variant `gone`",
            ),
            (bytes.replacen(&"02".repeat(32), &"03".repeat(32), 1), "subject: expected"),
            (bytes.replacen("{", "{\"_type\":1,", 1), "twice"),
            (bytes.replacen("\"reason\":\"why\"}", "\"reason\":\"why\",\"by\":null}", 1), "invalid type: null"),
        ];
        for (text, message) in cases {
            let found = StatusFeed::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(found.contains(message), "{message}: {found}");
        }
    }
}
