//! Public Ed25519 vectors, run through key import and verification as patches use them.
//!
//! Every verdict is fixed, not only the totals, by a rule on what the suite says of a vector. With ed25519-dalek 3.0.0 the
//! totals are those of `verify_strict` in 2.2.0; refusing keys at import moves refusals forward and changes no verdict.

#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

use std::collections::BTreeMap;

use nestpatch::trust::{KeyError, PublicKey};
use serde::Deserialize;

/// What becomes of a vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Accepted,
    /// The key is of small order.
    WeakKey,
    /// The key is another encoding of its point.
    KeyNotCanonical,
    /// The key may be trusted, the signature is wrong.
    BadSignature,
}

use Outcome::{Accepted, BadSignature, KeyNotCanonical, WeakKey};

fn hex(text: &str) -> Vec<u8> {
    text.as_bytes().chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn outcome(key: &str, message: &[u8], signature: &str) -> Outcome {
    match PublicKey::from_bytes(&hex(key).try_into().unwrap()) {
        Err(KeyError::Weak) => WeakKey,
        Err(KeyError::NotCanonical) => KeyNotCanonical,
        Err(error) => panic!("{key}: {error}"),
        Ok(key) if key.verifies(message, &hex(signature)) => Accepted,
        Ok(_) => BadSignature,
    }
}

fn count<T: Ord>(items: impl IntoIterator<Item = T>) -> BTreeMap<T, usize> {
    items.into_iter().fold(BTreeMap::new(), |mut counts, item| {
        *counts.entry(item).or_default() += 1;
        counts
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wycheproof {
    number_of_tests: usize,
    test_groups: Vec<Group>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Group {
    public_key: GroupKey,
    tests: Vec<Test>,
}

#[derive(Deserialize)]
struct GroupKey {
    pk: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Test {
    tc_id: u32,
    flags: Vec<String>,
    msg: String,
    sig: String,
    result: String,
}

/// Every verdict is the suite's own: nothing it calls valid is refused, nothing invalid accepted.
#[test]
fn wycheproof_is_followed_to_the_letter() {
    let suite: Wycheproof = serde_json::from_str(include_str!("../fixtures/ed25519/wycheproof.json")).unwrap();
    let mut found = Vec::new();
    for group in &suite.test_groups {
        for test in &group.tests {
            let outcome = outcome(&group.public_key.pk, &hex(&test.msg), &test.sig);
            let expected = if test.result == "valid" { Accepted } else { BadSignature };
            assert_eq!(outcome, expected, "test {}", test.tc_id);
            let [flag] = &test.flags[..] else { panic!("test {}: {:?}", test.tc_id, test.flags) };
            found.push((outcome, flag.as_str()));
        }
    }
    assert_eq!((found.len(), suite.number_of_tests), (151, 151));
    let expected = [
        ((Accepted, "Ktv"), 38),
        ((Accepted, "TinkOverflow"), 32),
        ((Accepted, "Valid"), 18),
        ((BadSignature, "CompressedSignature"), 4),
        ((BadSignature, "InvalidEncoding"), 22),
        ((BadSignature, "InvalidKtv"), 1),
        ((BadSignature, "InvalidSignature"), 20),
        ((BadSignature, "SignatureMalleability"), 8),
        ((BadSignature, "SignatureWithGarbage"), 5),
        ((BadSignature, "TruncatedSignature"), 3),
    ];
    assert_eq!(count(found), BTreeMap::from(expected), "88 accepted, 63 refused");
}

#[derive(Deserialize)]
struct Cctv {
    number: u32,
    key: String,
    sig: String,
    msg: String,
    flags: Option<Vec<String>>,
}

/// These vectors carry no verdict, only flags; RFC 8032 leaves most of them open. All come from points with a part of
/// small order, which no honest signer makes.
///
/// Refused: points that are wholly of small order; points not canonically encoded (here all of small order too); and a
/// small-order residue, which only an equation with cofactor hides. Accepted: the one plain vector, and 42 whose key (and
/// R) have a small-order part that cancels out: no verifier can tell those keys from others without a scalar
/// multiplication, and their holder alone can sign.
#[test]
fn cctv_is_accepted_only_where_small_orders_cancel_out() {
    let suite: Vec<Cctv> = serde_json::from_str(include_str!("../fixtures/ed25519/cctv.json")).unwrap();
    let mut found = Vec::new();
    for vector in &suite {
        let flags = vector.flags.clone().unwrap_or_default();
        let has = |flag: &str| flags.iter().any(|one| one == flag);
        let expected = match () {
            () if has("non_canonical_A") => KeyNotCanonical,
            () if has("low_order_A") => WeakKey,
            () if ["low_order_R", "non_canonical_R", "low_order_residue", "reencoded_k"]
                .iter()
                .any(|flag| has(flag)) =>
            {
                BadSignature
            }
            () => Accepted,
        };
        let outcome = outcome(&vector.key, vector.msg.as_bytes(), &vector.sig);
        assert_eq!(outcome, expected, "vector {}: {flags:?}", vector.number);
        if outcome == Accepted {
            found.push((outcome, flags.join(" ")));
        } else {
            found.push((outcome, String::new()));
        }
    }
    let expected = [
        ((Accepted, ""), 1),
        ((Accepted, "low_order_component_A"), 7),
        ((Accepted, "low_order_component_R low_order_component_A"), 35),
        ((WeakKey, ""), 300),
        ((KeyNotCanonical, ""), 226),
        ((BadSignature, ""), 345),
    ];
    let expected = expected.map(|((outcome, flags), count)| ((outcome, flags.to_owned()), count));
    assert_eq!(count(found), BTreeMap::from(expected), "43 of 914 accepted");
}

#[derive(Deserialize)]
struct SpecCheck {
    message: String,
    pub_key: String,
    signature: String,
}

/// The cases as the suite's README describes them. Case 3 is right without cofactor, and its key and R are of mixed order:
/// the same sort as the 42 of CCTV.
#[test]
fn speccheck_is_accepted_in_case_3_only() {
    let suite: Vec<SpecCheck> = serde_json::from_str(include_str!("../fixtures/ed25519/speccheck.json")).unwrap();
    let found = suite.iter().map(|case| outcome(&case.pub_key, &hex(&case.message), &case.signature));
    let expected = [
        WeakKey,         // small A and R
        WeakKey,         // small A
        BadSignature,    // small R
        Accepted,        // mixed A and R
        BadSignature,    // right with cofactor only
        BadSignature,    // right with cofactor only, if 8h is not reduced first
        BadSignature,    // S over the order
        BadSignature,    // S far over the order
        BadSignature,    // small R, not canonical, reduced for the hash
        BadSignature,    // small R, not canonical
        KeyNotCanonical, // small A, not canonical, reduced for the hash
        KeyNotCanonical, // small A, not canonical
    ];
    assert_eq!(found.collect::<Vec<_>>(), expected);
}
