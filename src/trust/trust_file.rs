//! The trust file: people, keys and conditions in TOML, made to be read and committed (`spec/trust.md`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, Visitor};

use crate::format::Timestamp;
use crate::trust::policy::{Conditions, Person, Policy, PolicyError, Role, StatusRule, TrustedKey, rule};
use crate::trust::{KeyError, PublicKey};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TrustFile {
    #[serde(rename = "version")]
    _version: u32,
    #[serde(default = "one")]
    threshold: usize,
    #[serde(default)]
    require: BTreeMap<Role, usize>,
    status: Option<Status>,
    people: Vec<FilePerson>,
    #[serde(default)]
    series: Vec<FileSeries>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Status {
    feed: String,
    #[serde(default = "one")]
    threshold: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileSeries {
    name: String,
    minimum: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FilePerson {
    name: String,
    keys: Vec<FileKey>,
    #[serde(default)]
    roles: Vec<Role>,
    series: Option<Vec<String>>,
}

/// A key as a text, or as a table with its time.
struct FileKey {
    key: String,
    from: Option<Timestamp>,
    until: Option<Timestamp>,
}

/// Only what decides whether the rest may be read.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

fn one() -> usize {
    1
}

impl<'de> Deserialize<'de> for FileKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FileKeyVisitor)
    }
}

struct FileKeyVisitor;

impl<'de> Visitor<'de> for FileKeyVisitor {
    type Value = FileKey;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key as text, or a table with `key` and, if wanted, `from` and `until`")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<FileKey, E> {
        Ok(FileKey { key: key.to_owned(), from: None, until: None })
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<FileKey, A::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            key: String,
            from: Option<Timestamp>,
            until: Option<Timestamp>,
        }
        let Table { key, from, until } = Table::deserialize(MapAccessDeserializer::new(map))?;
        Ok(FileKey { key, from, until })
    }
}

impl Policy {
    /// Reads a trust file (TOML): `version = 1`, `threshold`, `require`, `status`, `[[people]]`, `[[series]]`.
    ///
    /// # Errors
    /// The first rule broken. Unknown members are refused: a rule that is not understood must not be skipped.
    pub fn from_trust_file(text: &str) -> Result<Self, PolicyError> {
        let toml = |error: toml::de::Error| PolicyError::Toml { reason: error.to_string() };
        let Version { version } = toml::from_str(text).map_err(toml)?;
        if version != 1 {
            return Err(PolicyError::Version { found: version });
        }
        let file: TrustFile = toml::from_str(text).map_err(toml)?;
        let people = file.people.into_iter().map(person).collect::<Result<_, _>>()?;
        let mut minimum = BTreeMap::new();
        for FileSeries { name, minimum: least } in file.series {
            if minimum.insert(name.clone(), least).is_some() {
                return Err(rule("series", "each name once", format!("{name:?} twice")));
            }
        }
        let status = file.status.map(|Status { feed, threshold }| StatusRule { feed, threshold });
        Self::new(people, Conditions { threshold: file.threshold, require: file.require, minimum, status })
    }
}

fn person(file: FilePerson) -> Result<Person, PolicyError> {
    let FilePerson { name, keys, roles, series } = file;
    let distinct = |what: &str, given: usize, kept: usize| match given == kept {
        true => Ok(()),
        false => Err(rule(&format!("{what} of {name:?}"), "each once", "one twice")),
    };
    let key = |(index, file): (usize, FileKey)| {
        let wrong = |error: KeyError| PolicyError::Key { person: name.clone(), index, error };
        let key = PublicKey::parse(&file.key).map_err(wrong)?;
        Ok(TrustedKey { key, from: file.from, until: file.until })
    };
    let keys = keys.into_iter().enumerate().map(key).collect::<Result<_, PolicyError>>()?;
    let given = (roles.len(), series.as_ref().map_or(0, Vec::len));
    let roles = BTreeSet::from_iter(roles);
    let series = series.map(BTreeSet::from_iter);
    distinct("roles", given.0, roles.len())?;
    distinct("series", given.1, series.as_ref().map_or(0, BTreeSet::len))?;
    Ok(Person { name, keys, roles, series })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Sha256;
    use crate::trust::SecretKey;

    fn key(seed: u8) -> PublicKey {
        SecretKey::from_seed(&[seed; 32]).public().unwrap()
    }

    fn line(seed: u8) -> String {
        key(seed).to_line()
    }

    #[test]
    fn a_trust_file_names_people_and_conditions() {
        let pem = key(3).to_pem();
        let text = format!(
            "version = 1\nthreshold = 2\nrequire = {{ auditor = 1 }}\nstatus = {{ feed = \"toy status\" }}\n\
             [[people]]\nname = \"Ada\"\nkeys = [\"{}\", {{ key = \"{}\", from = \"2026-01-01T00:00:00Z\", \
             until = \"2027-01-01T00:00:00Z\" }}]\nroles = [\"author\", \"release\"]\nseries = [\"toy\"]\n\
             [[people]]\nname = \"Grace\"\nkeys = [\"\"\"\n{pem}\"\"\"]\nroles = [\"auditor\"]\n\
             [[series]]\nname = \"toy\"\nminimum = 3\n",
            line(1),
            line(2)
        );
        let policy = Policy::from_trust_file(&text).unwrap();
        let conditions = Conditions {
            threshold: 2,
            require: BTreeMap::from([(Role::Auditor, 1)]),
            minimum: BTreeMap::from([("toy".to_owned(), 3)]),
            status: Some(StatusRule { feed: "toy status".to_owned(), threshold: 1 }),
        };
        assert_eq!(policy.conditions(), &conditions);
        assert_eq!((policy.people().len(), policy.keys().count()), (2, 3));
        let (ada, second) = policy.find(key(2).id()).unwrap();
        assert_eq!(ada.name, "Ada");
        assert_eq!(ada.roles, BTreeSet::from([Role::Author, Role::Release]));
        assert!(ada.may_sign("toy") && !ada.may_sign("other"));
        let times = [second.from, second.until].map(|time| time.map(|time| time.to_string()));
        assert_eq!(times, [Some("2026-01-01T00:00:00Z".to_owned()), Some("2027-01-01T00:00:00Z".to_owned())]);
        let (grace, _) = policy.find(key(3).id()).unwrap();
        assert!(grace.name == "Grace" && grace.may_sign("anything"));
        assert_eq!(policy.find(Sha256::of(b"")), None);
    }

    #[test]
    fn time_is_from_inclusive_until_exclusive() {
        let time = |text: &str| text.parse::<Timestamp>().unwrap();
        let (from, until) = (time("2026-01-01T00:00:00Z"), time("2027-01-01T00:00:00Z"));
        let key = TrustedKey { key: key(1), from: Some(from), until: Some(until) };
        assert_eq!(key.is_out_of_time(time("2025-12-31T23:59:59Z")).unwrap(), format!("valid only from {from}"));
        assert_eq!(key.is_out_of_time(from), None);
        assert_eq!(key.is_out_of_time(time("2026-12-31T23:59:59Z")), None);
        assert_eq!(key.is_out_of_time(until).unwrap(), format!("valid only until {until}"));
    }

    #[test]
    fn each_rule_refuses() {
        let one = format!("[[people]]\nname = \"Ada\"\nkeys = [\"{}\"]\n", line(1));
        let head = |head: &str| format!("version = 1\n{head}\n{one}");
        let ada = |rest: &str| format!("version = 1\n{one}{rest}\n");
        let keys = |keys: &str| format!("version = 1\n[[people]]\nname = \"Ada\"\nkeys = [{keys}]\n");
        let timed = |rest: &str| keys(&format!("{{ key = \"{}\", {rest} }}", line(1)));
        let cases = [
            ("".to_owned(), "missing field `version`"),
            ("version = 2\nanything = 1\n".to_owned(), "version: expected 1, found 2"),
            ("version = 1\npeople = []\n".to_owned(), "people: expected 1 to 1000, found 0"),
            (head("role = 3"), "unknown field `role`"),
            (ada("email = \"x\""), "unknown field `email`"),
            (head("threshold = 0"), "threshold: expected 1 to 1 (the people), found 0"),
            (head("threshold = 2"), "threshold: expected 1 to 1 (the people), found 2"),
            (head("require = { auditor = 1 }"), "require.auditor: expected none, as there are no people with the role"),
            (head("require = { admin = 1 }"), "unknown variant `admin`"),
            (
                head("status = { feed = \"x\" }"),
                "status.threshold: expected none, as there are no people with the role",
            ),
            (head("status = { feed = \"\" }"), "status.feed: expected 1 to 200 bytes"),
            (head("status = { feed = \"x\", url = \"y\" }"), "unknown field `url`"),
            (ada("roles = [\"author\", \"author\"]"), "roles of \"Ada\": expected each once"),
            (ada("roles = [\"admin\"]"), "unknown variant `admin`"),
            (ada("series = []"), "series of \"Ada\": expected 1 to 1000, or no list, found 0"),
            (ada("series = [\"a\", \"a\"]"), "series of \"Ada\": expected each once"),
            (ada("series = [\"\"]"), "series of \"Ada\": expected 1 to 200 bytes"),
            (ada("[[series]]\nname = \"a\"\nminimum = 0"), "minimum of series \"a\": expected a number from 1"),
            (ada("[[series]]\nname = \"a\"\nminimum = 1\n[[series]]\nname = \"a\"\nminimum = 2"), "\"a\" twice"),
            (format!("version = 1\n{one}{one}"), "each name once"),
            (format!("version = 1\n{one}{}", one.replace("Ada", "Bob")), "each key once"),
            (format!("version = 1\n{}", one.replace("Ada", "")), "printable text"),
            (keys("\"AAAA\""), "key 0 of \"Ada\""),
            (keys(""), "keys of \"Ada\": expected 1"),
            (keys("3"), "expected a key as text, or a table"),
            (timed("note = \"x\""), "unknown field `note`"),
            (timed("from = \"2026\""), "expected a time like"),
            (timed("from = \"2026-01-02T00:00:00Z\", until = \"2026-01-02T00:00:00Z\""), "until after from"),
        ];
        for (text, message) in cases {
            let found = Policy::from_trust_file(&text).unwrap_err().to_string();
            assert!(found.contains(message), "{text}: {found}");
        }
    }
}
