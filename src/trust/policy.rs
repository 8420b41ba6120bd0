//! Who is believed: keys given one by one, or a trust file that names people.

use std::collections::BTreeSet;

use serde::Deserialize;

use crate::digest::Sha256;
use crate::trust::{KeyError, PublicKey};

/// People in one trust file, and keys of one person.
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

/// Somebody whose signatures count. Several keys of one person count once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Person {
    /// The name shown.
    pub name: String,
    /// Their keys.
    pub keys: Vec<PublicKey>,
}

/// Whose signatures are believed, and how many people it takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    people: Vec<Person>,
    threshold: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TrustFile {
    #[serde(rename = "version")]
    _version: u32,
    #[serde(default = "one")]
    threshold: usize,
    people: Vec<TrustFilePerson>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TrustFilePerson {
    name: String,
    keys: Vec<String>,
}

/// Only what decides whether the rest may be read.
#[derive(Deserialize)]
struct TrustFileVersion {
    version: u32,
}

fn one() -> usize {
    1
}

impl Policy {
    /// Believes any one of `keys`, each shown by what its holder is called.
    ///
    /// # Errors
    /// No keys, or one key twice.
    pub fn from_keys(keys: impl IntoIterator<Item = (String, PublicKey)>) -> Result<Self, PolicyError> {
        Self::new(keys.into_iter().map(|(name, key)| Person { name, keys: vec![key] }).collect(), 1)
    }

    /// Reads a trust file (TOML): `version = 1`, `threshold` (default 1), and `[[people]]` with `name` and `keys`.
    ///
    /// # Errors
    /// The first rule broken. Unknown members are refused: a rule that is not understood must not be skipped.
    pub fn from_trust_file(text: &str) -> Result<Self, PolicyError> {
        let toml = |error: toml::de::Error| PolicyError::Toml { reason: error.to_string() };
        let TrustFileVersion { version } = toml::from_str(text).map_err(toml)?;
        if version != 1 {
            return Err(PolicyError::Version { found: version });
        }
        let TrustFile { threshold, people, .. } = toml::from_str(text).map_err(toml)?;
        let person = |TrustFilePerson { name, keys }| {
            let parse = |(index, text): (usize, &String)| {
                PublicKey::parse(text).map_err(|error| PolicyError::Key { person: name.clone(), index, error })
            };
            let keys = keys.iter().enumerate().map(parse).collect::<Result<_, _>>()?;
            Ok(Person { name, keys })
        };
        Self::new(people.into_iter().map(person).collect::<Result<_, PolicyError>>()?, threshold)
    }

    /// Checks people and threshold.
    ///
    /// # Errors
    /// Nobody, somebody twice or without keys or a name, a key twice, a threshold of zero or over the people.
    pub fn new(people: Vec<Person>, threshold: usize) -> Result<Self, PolicyError> {
        if people.is_empty() || people.len() > MAX_PEOPLE {
            return Err(rule("people", format!("1 to {MAX_PEOPLE}"), people.len()));
        }
        if threshold == 0 || threshold > people.len() {
            return Err(rule("threshold", format!("1 to {} (the people)", people.len()), threshold));
        }
        let (mut names, mut ids) = (BTreeSet::new(), BTreeSet::new());
        for person in &people {
            let name = &person.name;
            if name.is_empty() || name.len() > 200 || name.chars().any(char::is_control) {
                return Err(rule("name", "1 to 200 bytes of printable text", format!("{name:?}")));
            }
            if !names.insert(name.clone()) {
                return Err(rule("people", "each name once", format!("{name:?} twice")));
            }
            if person.keys.is_empty() || person.keys.len() > MAX_PEOPLE {
                return Err(rule(&format!("keys of {name:?}"), format!("1 to {MAX_PEOPLE}"), person.keys.len()));
            }
            if let Some(key) = person.keys.iter().find(|key| !ids.insert(key.id())) {
                return Err(rule(&format!("keys of {name:?}"), "each key once", format!("{} twice", key.id())));
            }
        }
        Ok(Self { people, threshold })
    }

    /// How many different people it takes.
    pub fn threshold(&self) -> usize {
        self.threshold
    }

    /// The people believed.
    pub fn people(&self) -> &[Person] {
        &self.people
    }

    /// Every key with the name of its holder.
    pub fn keys(&self) -> impl Iterator<Item = (&str, &PublicKey)> {
        self.people.iter().flat_map(|person| person.keys.iter().map(|key| (person.name.as_str(), key)))
    }

    /// The holder and key of this id.
    pub fn find(&self, key_id: Sha256) -> Option<(&str, &PublicKey)> {
        self.keys().find(|(_, key)| key.id() == key_id)
    }
}

fn rule(what: &str, expected: impl ToString, found: impl ToString) -> PolicyError {
    PolicyError::Rule { what: what.to_owned(), expected: expected.to_string(), found: found.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::SecretKey;

    fn line(seed: u8) -> String {
        SecretKey::from_seed(&[seed; 32]).public().unwrap().to_line()
    }

    fn refused(text: &str) -> String {
        Policy::from_trust_file(text).unwrap_err().to_string()
    }

    #[test]
    fn a_trust_file_names_people() {
        let pem = SecretKey::from_seed(&[3; 32]).public().unwrap().to_pem();
        let text = format!(
            "version = 1\nthreshold = 2\n[[people]]\nname = \"Ada\"\nkeys = [\"{}\", \"{}\"]\n\
             [[people]]\nname = \"Grace\"\nkeys = [\"\"\"\n{pem}\"\"\"]\n",
            line(1),
            line(2)
        );
        let policy = Policy::from_trust_file(&text).unwrap();
        assert_eq!((policy.threshold(), policy.people().len(), policy.keys().count()), (2, 2, 3));
        let grace = SecretKey::from_seed(&[3; 32]).public().unwrap();
        assert_eq!(policy.find(grace.id()), Some(("Grace", &grace)));
        assert_eq!(policy.find(Sha256::of(b"")), None);
    }

    #[test]
    fn each_rule_refuses() {
        let one = format!("[[people]]\nname = \"Ada\"\nkeys = [\"{}\"]\n", line(1));
        let cases = [
            ("".to_owned(), "missing field `version`"),
            ("version = 2\nroles = 1\n".to_owned(), "version: expected 1, found 2"),
            ("version = 1\npeople = []\n".to_owned(), "people: expected 1 to 1000, found 0"),
            (format!("version = 1\nrole = 3\n{one}"), "unknown field `role`"),
            (format!("version = 1\n{one}email = \"x\"\n"), "unknown field `email`"),
            (format!("version = 1\nthreshold = 0\n{one}"), "threshold: expected 1 to 1 (the people), found 0"),
            (format!("version = 1\nthreshold = 2\n{one}"), "threshold: expected 1 to 1 (the people), found 2"),
            (format!("version = 1\n{one}{one}"), "each name once"),
            (format!("version = 1\n{one}{}", one.replace("Ada", "Bob")), "each key once"),
            (format!("version = 1\n{}", one.replace("Ada", "")), "printable text"),
            (format!("version = 1\n{}", one.replace(&line(1), "AAAA")), "key 0 of \"Ada\""),
            ("version = 1\n[[people]]\nname = \"Ada\"\nkeys = []\n".to_owned(), "keys of \"Ada\": expected 1"),
        ];
        for (text, message) in cases {
            let found = refused(&text);
            assert!(found.contains(message), "{text}: {found}");
        }
    }
}
