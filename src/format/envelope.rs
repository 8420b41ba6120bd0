//! A DSSE v1 envelope in JSON: a Statement with its signatures, for what does not lie in a container.

use std::collections::BTreeSet;

use base64ct::{Base64, Encoding as _};
use serde::{Deserialize, Serialize, Serializer};

use crate::digest::Sha256;
use crate::format::container::{PAYLOAD_TYPE, SignatureRecord};
use crate::format::json::{self, NotStrict};
use crate::format::limits::{MAX_ENVELOPE_BYTES, MAX_SIGNATURES};

/// Why bytes are no envelope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// Too many bytes.
    #[error("envelope: expected at most {MAX_ENVELOPE_BYTES} bytes, found {found}")]
    TooLong {
        /// How many.
        found: usize,
    },
    /// Not strict JSON.
    #[error("envelope: not strict JSON: {0}")]
    Json(#[from] NotStrict),
    /// Strict JSON of another structure.
    #[error("envelope: {reason}")]
    Structure {
        /// What the JSON reader says.
        reason: String,
    },
    /// A member that breaks a rule.
    #[error("envelope: {what}: expected {expected}, found {found}")]
    Rule {
        /// Which member.
        what: &'static str,
        /// The rule.
        expected: String,
        /// What is there.
        found: String,
    },
}

/// A Statement's bytes and the Ed25519 signatures over their pre-authentication encoding, by ascending key id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// The Statement, as signed.
    pub statement: Vec<u8>,
    /// The signatures; a key signs once.
    pub signatures: Vec<SignatureRecord>,
}

#[derive(Serialize, Deserialize)]
struct Outer {
    payload: String,
    #[serde(rename = "payloadType")]
    payload_type: String,
    signatures: Vec<OuterSignature>,
}

#[derive(Serialize, Deserialize)]
struct OuterSignature {
    keyid: Sha256,
    sig: String,
}

impl Envelope {
    /// Reads an envelope; white space round it is ignored. Says nothing about whose signatures are right.
    ///
    /// # Errors
    /// The first rule broken.
    pub fn parse(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        if bytes.len() > MAX_ENVELOPE_BYTES {
            return Err(EnvelopeError::TooLong { found: bytes.len() });
        }
        let bytes = bytes.trim_ascii();
        json::check(bytes)?;
        let outer: Outer =
            serde_json::from_slice(bytes).map_err(|error| EnvelopeError::Structure { reason: error.to_string() })?;
        if outer.payload_type != PAYLOAD_TYPE {
            let found: String = outer.payload_type.chars().take(80).collect();
            return Err(rule("payloadType", format!("{PAYLOAD_TYPE:?}"), format!("{found:?}")));
        }
        if outer.signatures.is_empty() || outer.signatures.len() > MAX_SIGNATURES {
            return Err(rule("signatures", format!("1 to {MAX_SIGNATURES}"), outer.signatures.len().to_string()));
        }
        let distinct: BTreeSet<Sha256> = outer.signatures.iter().map(|one| one.keyid).collect();
        if distinct.len() != outer.signatures.len() {
            return Err(rule("signatures", "each key once".to_owned(), "a keyid twice".to_owned()));
        }
        let statement = decode("payload", &outer.payload)?;
        let signature = |one: &OuterSignature| {
            let signature = decode("sig", &one.sig)?;
            Ok(SignatureRecord { key_id: one.keyid, algorithm: SignatureRecord::ED25519, signature })
        };
        let signatures = outer.signatures.iter().map(signature).collect::<Result<_, EnvelopeError>>()?;
        Ok(Self::new(statement, signatures))
    }

    /// A Statement with these signatures.
    pub fn new(statement: Vec<u8>, mut signatures: Vec<SignatureRecord>) -> Self {
        signatures.sort_by_key(|record| record.key_id);
        Self { statement, signatures }
    }

    /// The envelope on one line.
    pub fn to_json(&self) -> String {
        // Strings and a list of pairs of strings: writing them cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl Serialize for Envelope {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let signature =
            |record: &SignatureRecord| OuterSignature { keyid: record.key_id, sig: encode(&record.signature) };
        let payload_type = PAYLOAD_TYPE.to_owned();
        let signatures = self.signatures.iter().map(signature).collect();
        Outer { payload: encode(&self.statement), payload_type, signatures }.serialize(serializer)
    }
}

fn encode(bytes: &[u8]) -> String {
    Base64::encode_string(bytes)
}

fn decode(what: &'static str, text: &str) -> Result<Vec<u8>, EnvelopeError> {
    Base64::decode_vec(text).map_err(|_| {
        let found: String = text.chars().take(40).collect();
        rule(what, "padded Base64 (RFC 4648 section 4) in its one encoding".to_owned(), format!("{found:?}"))
    })
}

fn rule(what: &'static str, expected: String, found: String) -> EnvelopeError {
    EnvelopeError::Rule { what, expected, found }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope() -> Envelope {
        let record = |key: u8| SignatureRecord {
            key_id: Sha256::from_bytes([key; 32]),
            algorithm: SignatureRecord::ED25519,
            signature: vec![key; 64],
        };
        Envelope::new(b"{\"a\":1}".to_vec(), vec![record(2), record(1)])
    }

    #[test]
    fn golden_text() {
        let (one, two) = ("01".repeat(32), "02".repeat(32));
        let (sig_one, sig_two) = (encode(&[1; 64]), encode(&[2; 64]));
        let expected = format!(
            "{{\"payload\":\"eyJhIjoxfQ==\",\"payloadType\":\"application/vnd.in-toto+json\",\"signatures\":[\
             {{\"keyid\":\"{one}\",\"sig\":\"{sig_one}\"}},{{\"keyid\":\"{two}\",\"sig\":\"{sig_two}\"}}]}}"
        );
        assert_eq!(envelope().to_json(), expected);
        assert_eq!(Envelope::parse(format!("\n{expected}\n").as_bytes()), Ok(envelope()));
    }

    #[test]
    fn each_rule_refuses() {
        let text = envelope().to_json();
        let cases = [
            (text.replace("\"payload\"", "\"payloads\""), "missing field `payload`"),
            (text.replace("vnd.in-toto", "vnd.other"), "payloadType: expected"),
            (text.replace(&"02".repeat(32), &"01".repeat(32)), "each key once"),
            (text.replace(&"02".repeat(32), "02"), "64 lower-case hexadecimal digits"),
            (text.replace("eyJhIjoxfQ==", "eyJhIjoxfQ"), "payload: expected padded Base64"),
            (text.replace("eyJhIjoxfQ==", "eyJhIjoxfR=="), "payload: expected padded Base64"),
            (text.replace("eyJhIjoxfQ==", "eyJh_joxfQ=="), "payload: expected padded Base64"),
            (format!("{text}{text}"), "trailing characters"),
            (r#"{"payload":"","payloadType":"application/vnd.in-toto+json","signatures":[]}"#.to_owned(), "1 to 64"),
        ];
        for (text, message) in cases {
            let found = Envelope::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(found.contains(message), "{text}: {found}");
        }
        let long = vec![b' '; MAX_ENVELOPE_BYTES + 1];
        assert_eq!(Envelope::parse(&long), Err(EnvelopeError::TooLong { found: MAX_ENVELOPE_BYTES + 1 }));
    }
}
