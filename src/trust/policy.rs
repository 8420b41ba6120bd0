//! Who is believed, on what conditions, as of when, and knowing what.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::digest::Sha256;
use crate::format::limits::MAX_LABEL_BYTES;
use crate::format::{StatusFeed, Timestamp, text_fault};
use crate::trust::{KeyError, PublicKey, Seen};

/// People in one trust file, keys of one person, series of one person or file.
const MAX_PEOPLE: usize = 1000;

/// Why keys or a trust file make no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Not TOML, a member missing, unknown, or of another type.
    #[error("trust file: {reason}")]
    Toml {
        /// What the reader says, with the place.
        reason: String,
    },
    /// A version that this reader must not guess at.
    #[error("trust file: version: expected 1, found {found}: a newer nestpatch may read it")]
    Version {
        /// The version.
        found: u32,
    },
    /// A key that cannot be trusted.
    #[error("trust file: key {index} of {person:?}: {error}")]
    Key {
        /// Whose.
        person: String,
        /// Zero-based.
        index: usize,
        /// Why not.
        #[source]
        error: KeyError,
    },
    /// A rule broken.
    #[error("trust: {what}: expected {expected}, found {found}")]
    Rule {
        /// What about.
        what: String,
        /// The rule.
        expected: String,
        /// What is there.
        found: String,
    },
}

/// What somebody's signature stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Made the patch.
    Author,
    /// Examined it.
    Auditor,
    /// Decides what is in use: also signs the status feed.
    Release,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 3] = [Self::Author, Self::Auditor, Self::Release];

    /// The word of the trust file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Author => "author",
            Self::Auditor => "auditor",
            Self::Release => "release",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A key, and when its signatures count. The time is the reader's: the one in a patch is its signer's word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustedKey {
    /// The key.
    pub key: PublicKey,
    /// Not before.
    pub from: Option<Timestamp>,
    /// Not from this time on.
    pub until: Option<Timestamp>,
}

impl TrustedKey {
    /// A key that counts at any time.
    pub fn always(key: PublicKey) -> Self {
        Self { key, from: None, until: None }
    }

    /// Why the key does not count at a time, if it does not.
    pub fn is_out_of_time(&self, at: Timestamp) -> Option<String> {
        match (self.from.filter(|from| at < *from), self.until.filter(|until| *until <= at)) {
            (Some(from), _) => Some(format!("valid only from {from}")),
            (None, Some(until)) => Some(format!("valid only until {until}")),
            (None, None) => None,
        }
    }
}

/// Somebody whose signatures count. Several keys of one person count once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Person {
    /// The name shown.
    pub name: String,
    /// Their keys.
    pub keys: Vec<TrustedKey>,
    /// What their signatures stand for.
    pub roles: BTreeSet<Role>,
    /// The series whose patches they may sign; any if there is no list.
    pub series: Option<BTreeSet<String>>,
}

impl Person {
    /// Whether they may sign patches of a series.
    pub fn may_sign(&self, series: &str) -> bool {
        self.series.as_ref().is_none_or(|names| names.contains(series))
    }
}

/// The status feed without which no patch is believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusRule {
    /// Its name.
    pub feed: String,
    /// How many different people with the role `release` must have signed it.
    pub threshold: usize,
}

/// What it takes besides right signatures by people who are believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conditions {
    /// How many different people it takes.
    pub threshold: usize,
    /// How many of them with a role.
    pub require: BTreeMap<Role, usize>,
    /// Series to the least sequence number believed.
    pub minimum: BTreeMap<String, u64>,
    /// The feed that must be at hand, if any.
    pub status: Option<StatusRule>,
}

impl Conditions {
    /// Any one person is enough.
    pub fn one() -> Self {
        Self { threshold: 1, require: BTreeMap::new(), minimum: BTreeMap::new(), status: None }
    }
}

/// Whose signatures are believed, on what conditions, as of when, and knowing what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    people: Vec<Person>,
    conditions: Conditions,
    at: Timestamp,
    pub(super) feed: Option<StatusFeed>,
    pub(super) seen: Option<Seen>,
    allows_superseded: bool,
}

impl Policy {
    /// Believes any one of `keys`, each shown by what its holder is called, whatever their role.
    ///
    /// # Errors
    /// No keys, or one key twice.
    pub fn from_keys(keys: impl IntoIterator<Item = (String, PublicKey)>) -> Result<Self, PolicyError> {
        let person = |(name, key)| {
            let (keys, roles) = (vec![TrustedKey::always(key)], BTreeSet::from(Role::ALL));
            Person { name, keys, roles, series: None }
        };
        Self::new(keys.into_iter().map(person).collect(), Conditions::one())
    }

    /// Checks people and conditions. The policy is as of now, and knows of no status feed and nothing seen before.
    ///
    /// # Errors
    /// Nobody, somebody twice or without keys or a name, a key twice, more asked for than there are people.
    pub fn new(people: Vec<Person>, conditions: Conditions) -> Result<Self, PolicyError> {
        if people.is_empty() || people.len() > MAX_PEOPLE {
            return Err(rule("people", format!("1 to {MAX_PEOPLE}"), people.len()));
        }
        let (mut names, mut ids) = (BTreeSet::new(), BTreeSet::new());
        for person in &people {
            if !names.insert(&person.name) {
                return Err(rule("people", "each name once", format!("{:?} twice", person.name)));
            }
            check_person(person, &mut ids)?;
        }
        check_conditions(&people, &conditions)?;
        Ok(Self { people, conditions, at: Timestamp::now(), feed: None, seen: None, allows_superseded: false })
    }

    /// The same as of another time.
    #[must_use]
    pub fn at(self, at: Timestamp) -> Self {
        Self { at, ..self }
    }

    /// The same, believing patches that the status feed calls superseded too.
    #[must_use]
    pub fn allowing_superseded(self) -> Self {
        Self { allows_superseded: true, ..self }
    }

    /// The same, refusing what is older than what was seen before, patches and status feeds alike.
    #[must_use]
    pub fn remembering(self, seen: Seen) -> Self {
        Self { seen: Some(seen), ..self }
    }

    /// The same people and keys without the conditions that only decide whether a patch should come into use.
    #[must_use]
    pub fn signatures_only(mut self) -> Self {
        (self.conditions.status, self.feed, self.seen) = (None, None, None);
        self.conditions.minimum.clear();
        self
    }

    /// The people believed.
    pub fn people(&self) -> &[Person] {
        &self.people
    }

    /// What it takes.
    pub fn conditions(&self) -> &Conditions {
        &self.conditions
    }

    /// The time as of which keys and status feeds are looked at.
    pub fn time(&self) -> Timestamp {
        self.at
    }

    /// The status feed known to be right, if one was read.
    pub fn status_feed(&self) -> Option<&StatusFeed> {
        self.feed.as_ref()
    }

    /// What was seen before, if that is remembered.
    pub fn seen(&self) -> Option<&Seen> {
        self.seen.as_ref()
    }

    pub(super) fn allows_superseded(&self) -> bool {
        self.allows_superseded
    }

    /// Every key with its holder.
    pub fn keys(&self) -> impl Iterator<Item = (&Person, &TrustedKey)> {
        self.people.iter().flat_map(|person| person.keys.iter().map(move |key| (person, key)))
    }

    /// The holder and key of this id.
    pub fn find(&self, key_id: Sha256) -> Option<(&Person, &TrustedKey)> {
        self.keys().find(|(_, key)| key.key.id() == key_id)
    }
}

fn check_person(person: &Person, ids: &mut BTreeSet<Sha256>) -> Result<(), PolicyError> {
    let name = &person.name;
    check_label("name", name)?;
    let of = |what: &str| format!("{what} of {name:?}");
    if person.keys.is_empty() || person.keys.len() > MAX_PEOPLE {
        return Err(rule(&of("keys"), format!("1 to {MAX_PEOPLE}"), person.keys.len()));
    }
    for key in &person.keys {
        if !ids.insert(key.key.id()) {
            return Err(rule(&of("keys"), "each key once", format!("{} twice", key.key.id())));
        }
        if let (Some(from), Some(until)) = (key.from, key.until)
            && until <= from
        {
            return Err(rule(&of("a key"), format!("until after from, {from}"), until));
        }
    }
    if let Some(series) = &person.series {
        if series.is_empty() || series.len() > MAX_PEOPLE {
            return Err(rule(&of("series"), format!("1 to {MAX_PEOPLE}, or no list"), series.len()));
        }
        series.iter().try_for_each(|series| check_label(&of("series"), series))?;
    }
    Ok(())
}

fn check_conditions(people: &[Person], conditions: &Conditions) -> Result<(), PolicyError> {
    let all = people.len();
    let holding = |role: Role| people.iter().filter(|person| person.roles.contains(&role)).count();
    let within = |what: &str, found: usize, most: usize, of: &str| match (1..=most).contains(&found) {
        true => Ok(()),
        false if most == 0 => Err(rule(what, format!("none, as there are no {of}"), found)),
        false => Err(rule(what, format!("1 to {most} (the {of})"), found)),
    };
    within("threshold", conditions.threshold, all, "people")?;
    for (role, count) in &conditions.require {
        within(&format!("require.{role}"), *count, holding(*role), &format!("people with the role {role}"))?;
    }
    if conditions.minimum.len() > MAX_PEOPLE {
        return Err(rule("series", format!("at most {MAX_PEOPLE}"), conditions.minimum.len()));
    }
    for (series, minimum) in &conditions.minimum {
        check_label("series", series)?;
        if *minimum == 0 {
            return Err(rule(&format!("minimum of series {series:?}"), "a number from 1", minimum));
        }
    }
    if let Some(status) = &conditions.status {
        check_label("status.feed", &status.feed)?;
        within("status.threshold", status.threshold, holding(Role::Release), "people with the role release")?;
    }
    Ok(())
}

fn check_label(what: &str, text: &str) -> Result<(), PolicyError> {
    match text_fault(text, 1, MAX_LABEL_BYTES) {
        None => Ok(()),
        Some((expected, found)) => Err(rule(what, expected, found)),
    }
}

pub(super) fn rule(what: &str, expected: impl ToString, found: impl ToString) -> PolicyError {
    PolicyError::Rule { what: what.to_owned(), expected: expected.to_string(), found: found.to_string() }
}
