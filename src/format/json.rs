//! Strict JSON: what two readers could understand differently is refused before anything is read from it.
//!
//! One object; no duplicate keys, no floats, no integer of 2^53 or more, bounded depth and member counts, no byte
//! order mark, nothing before or after the braces. (serde_json alone lets duplicate keys and trailing spaces pass.)

use std::collections::BTreeSet;
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::format::limits::{MAX_JSON_DEPTH, MAX_JSON_INTEGER, MAX_JSON_MEMBERS};

/// Why a text is not strict JSON, with line and column where known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct NotStrict {
    reason: String,
}

/// Checks that `bytes` are one strict JSON object.
///
/// # Errors
/// The first rule broken.
pub fn check(bytes: &[u8]) -> Result<(), NotStrict> {
    if bytes.first() != Some(&b'{') || bytes.last() != Some(&b'}') {
        let reason = "expected one JSON object, first byte `{` and last byte `}`".to_owned();
        return Err(NotStrict { reason });
    }
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let checked = Strict { depth: 0 }.deserialize(&mut deserializer).and_then(|()| deserializer.end());
    checked.map_err(|error| NotStrict { reason: error.to_string() })
}

/// Visits a value of any kind at `depth`, keeping nothing but the keys of the objects it is in.
#[derive(Clone, Copy)]
struct Strict {
    depth: usize,
}

impl Strict {
    fn deeper<E: de::Error>(self) -> Result<Self, E> {
        let depth = self.depth + 1;
        match depth <= MAX_JSON_DEPTH {
            true => Ok(Self { depth }),
            false => Err(E::custom(format_args!("expected at most {MAX_JSON_DEPTH} levels of nesting, found more"))),
        }
    }
}

fn check_count<E: de::Error>(count: usize) -> Result<(), E> {
    match count <= MAX_JSON_MEMBERS {
        true => Ok(()),
        false => Err(E::custom(format_args!("expected at most {MAX_JSON_MEMBERS} members, found more"))),
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value without floats")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<(), E> {
        match value < MAX_JSON_INTEGER {
            true => Ok(()),
            false => Err(E::custom(format_args!("expected integers under 2^53, found {value}"))),
        }
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<(), E> {
        match value.unsigned_abs() < MAX_JSON_INTEGER {
            true => Ok(()),
            false => Err(E::custom(format_args!("expected integers over -2^53, found {value}"))),
        }
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<(), E> {
        Err(E::custom(format_args!("expected integers or strings, found the float {value:?}")))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let inner = self.deeper()?;
        let mut count = 0;
        while items.next_element_seed(inner)?.is_some() {
            count += 1;
            check_count(count)?;
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let inner = self.deeper()?;
        let mut keys = BTreeSet::new();
        while let Some(key) = members.next_key::<String>()? {
            if keys.contains(&key) {
                return Err(de::Error::custom(format_args!("expected every key once, found {key:?} twice")));
            }
            keys.insert(key);
            check_count(keys.len())?;
            members.next_value_seed(inner)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strict_json_passes() {
        for text in ["{}", r#"{"a":[1,-1,null,true,"x",{}],"b":{"a":9007199254740991}}"#, "{ \"a\" : [ ] }"] {
            assert_eq!(check(text.as_bytes()), Ok(()), "{text}");
        }
    }

    #[test]
    fn each_rule_refuses() {
        let cases = [
            ("", "first byte"),
            ("[]", "first byte"),
            ("\u{feff}{}", "first byte"),
            (" {}", "first byte"),
            ("{}\n", "first byte"),
            ("{}{}", "trailing characters"),
            (r#"{"a":1,"a":1}"#, r#"found "a" twice"#),
            (r#"{"a":1,"\u0061":1}"#, r#"found "a" twice"#),
            (r#"{"x":[{"b":1,"c":2,"b":3}]}"#, r#"found "b" twice"#),
            (r#"{"a":1.0}"#, "the float 1.0"),
            (r#"{"a":1e3}"#, "the float 1000.0"),
            (r#"{"a":-0}"#, "the float -0.0"),
            (r#"{"a":9007199254740992}"#, "under 2^53"),
            (r#"{"a":-9007199254740992}"#, "over -2^53"),
            (r#"{"a":18446744073709551616}"#, "the float"),
            (r#"{"a":01}"#, "invalid number"),
            (r#"{"a":"\ud800"}"#, "hex escape"),
            (r#"{"a":NaN}"#, "expected value"),
            (r#"{"a":1,}"#, "trailing comma"),
            ("{\"a\":\"\u{1}\"}", "control character"),
        ];
        for (text, reason) in cases {
            let found = check(text.as_bytes()).unwrap_err().to_string();
            assert!(found.contains(reason), "{text}: {found}");
        }
        assert!(check(b"{\"a\":\"\xff\"}").is_err(), "UTF-8");
    }

    #[test]
    fn depth_is_bounded_before_the_stack_is() {
        let nested = |depth: usize| format!("{{\"a\":{}1{}}}", "[".repeat(depth - 1), "]".repeat(depth - 1));
        assert_eq!(check(nested(MAX_JSON_DEPTH).as_bytes()), Ok(()));
        for depth in [MAX_JSON_DEPTH + 1, 100_000] {
            assert!(check(nested(depth).as_bytes()).unwrap_err().to_string().contains("16 levels"), "{depth}");
        }
    }

    #[test]
    fn members_are_bounded() {
        let list = format!("{{\"a\":[0{}]}}", ",0".repeat(MAX_JSON_MEMBERS));
        assert!(check(list.as_bytes()).unwrap_err().to_string().contains("65536 members"));
    }
}
