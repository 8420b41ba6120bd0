//! The in-toto Statement v1: subjects, and a predicate of a type. Manifests, status feeds and apply records are ones.

use serde::{Deserialize, Serialize};

/// `_type` of every Statement.
pub const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";

/// A Statement on subjects of the form `S`.
#[derive(Serialize, Deserialize)]
pub(crate) struct Statement<S, P> {
    #[serde(rename = "_type")]
    kind: String,
    /// What it is about.
    pub(crate) subject: Vec<S>,
    #[serde(rename = "predicateType")]
    predicate_type: String,
    /// What it says.
    pub(crate) predicate: P,
}

/// A member that says that a Statement is another one.
pub(crate) struct Fault<'a> {
    /// Which member.
    pub(crate) what: &'static str,
    /// What it must be.
    pub(crate) expected: &'a str,
    /// The beginning of what is there.
    pub(crate) found: String,
}

impl<S, P> Statement<S, P> {
    pub(crate) fn new(predicate_type: &str, subject: Vec<S>, predicate: P) -> Self {
        let (kind, predicate_type) = (STATEMENT_TYPE.to_owned(), predicate_type.to_owned());
        Self { kind, subject, predicate_type, predicate }
    }

    /// What makes it another Statement than one of `predicate_type`.
    pub(crate) fn fault<'a>(&self, predicate_type: &'a str) -> Option<Fault<'a>> {
        let members = [("_type", STATEMENT_TYPE, &self.kind), ("predicateType", predicate_type, &self.predicate_type)];
        let (what, expected, found) = members.into_iter().find(|(_, expected, found)| expected != found)?;
        Some(Fault { what, expected, found: found.chars().take(80).collect() })
    }
}
