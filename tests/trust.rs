//! Who is believed, by the real program: co-signatures, roles, series, time, status feeds, memory.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{fails, run, run_with, snapshot, succeeds};
use nestpatch::checkpoint::Checkpoint;
use nestpatch::digest::Sha256;
use nestpatch::format::{Container, Envelope, FeedEntry, PatchStatus, StatusFeed, Timestamp};
use nestpatch::patch::assemble::{About, assemble, sign};
use nestpatch::trust::{KeyPairPaths, SecretKey, create_key_pair};
use serde_json::Value;

const LATER: &str = "2040-01-01T00:00:00Z";

fn key(seed: u8) -> SecretKey {
    SecretKey::from_seed(&[seed; 32])
}

fn line(seed: u8) -> String {
    key(seed).public().unwrap().to_line()
}

/// A folder with `base`, `one.nestpatch` and `two.nestpatch` (numbers 1 and 2 of series `tests`, signed by key 1), and
/// the key pairs `1` to `4`.
fn world() -> tempfile::TempDir {
    let root = common::folder();
    let dir = root.path();
    common::checkpoint(&dir.join("base"));
    for (number, name) in [(1, "one"), (2, "two")] {
        fs::write(dir.join(name).with_extension("nestpatch"), patch(dir, number)).unwrap();
    }
    for seed in 1..=4 {
        create_key_pair(&key(seed), &KeyPairPaths::new(&dir.join(seed.to_string())), None).unwrap();
    }
    root
}

fn patch(dir: &Path, number: u64) -> Vec<u8> {
    let checkpoint = Checkpoint::open(&dir.join("base")).unwrap();
    let edits = common::edits(&checkpoint, number);
    let about = About { sequence: number, ..About::new(format!("patch {number}"), "tests", "synthetic") };
    sign(&assemble(&checkpoint, &edits, about, &()).unwrap(), &key(1)).unwrap()
}

fn id(dir: &Path, patch: &str) -> Sha256 {
    Container::parse(&fs::read(dir.join(patch)).unwrap()).unwrap().patch_id()
}

fn trust(dir: &Path, head: &str, people: &[(&str, u8, &str)]) {
    let mut text = format!("version = 1\n{head}\n");
    for (name, seed, rest) in people {
        text += &format!("[[people]]\nname = \"{name}\"\nkeys = [\"{}\"]\n{rest}\n", line(*seed));
    }
    fs::write(dir.join("trust.toml"), text).unwrap();
}

fn verify(dir: &Path, more: &[&str]) -> (i32, Value) {
    let ran = run(dir, &[&["verify", "--json", "--trust", "trust.toml"], more].concat());
    let report = serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"));
    (ran.code.unwrap(), report)
}

/// The detail of the first claim about `about`, and how it stands.
fn claim<'a>(report: &'a Value, about: &str) -> (&'a str, &'a str) {
    let claims = report["claims"].as_array().unwrap();
    let claim = claims.iter().find(|claim| claim["about"] == about).unwrap_or_else(|| panic!("{about}: {report}"));
    (claim["standing"].as_str().unwrap(), claim["detail"].as_str().unwrap())
}

#[test]
fn a_second_person_signs_and_nothing_else_changes() {
    let world = world();
    let dir = world.path();
    let (before, old) = (id(dir, "one.nestpatch"), fs::read(dir.join("one.nestpatch")).unwrap());
    trust(dir, "threshold = 2", &[("Ada", 1, ""), ("Grace", 2, "")]);
    let (code, report) = verify(dir, &["one.nestpatch"]);
    assert_eq!((code, report["verdict"].as_str().unwrap()), (3, "untrusted"));
    assert!(claim(&report, "signature").1.contains("expected 2 different trusted people, found \"Ada\""), "{report}");

    let said = succeeds(dir, &["sign", "one.nestpatch", "--key", "2.key"]).stdout;
    for word in ["Signed patch 1", "tests, number 1", "synthetic", &before.to_string(), "claimed by"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    assert_eq!(id(dir, "one.nestpatch"), before);
    let (code, report) = verify(dir, &["one.nestpatch", "--checkpoint", "base"]);
    assert_eq!((code, report["verdict"].as_str().unwrap()), (0, "trusted"), "{report}");
    let signers = claim(&report, "signature").1;
    assert!(signers.contains("Ada (key ") && signers.contains("Grace (key "), "{report}");
    let new = fs::read(dir.join("one.nestpatch")).unwrap();
    let (old, new) = (Container::parse(&old).unwrap(), Container::parse(&new).unwrap());
    assert_eq!((old.manifest(), old.payload()), (new.manifest(), new.payload()));
    assert_eq!(new.signatures().len(), 2);
    fails(dir, &["sign", "one.nestpatch", "--key", "2.key"], 7, &["has signed the patch already"]);
}

#[test]
fn what_is_not_understood_is_not_signed() {
    let world = world();
    let dir = world.path();
    let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/vectors");
    for name in ["apply-refused-requires-unknown", "apply-refused-critical-unknown-section"] {
        fs::copy(vectors.join(name).with_extension("nestpatch"), dir.join("new.nestpatch")).unwrap();
        fails(dir, &["sign", "new.nestpatch", "--key", "2.key"], 4, &["needs what this version does not know"]);
    }
}

#[test]
fn a_broken_patch_is_not_signed() {
    let world = world();
    let dir = world.path();
    let mut bytes = fs::read(dir.join("one.nestpatch")).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(dir.join("bad.nestpatch"), bytes).unwrap();
    fails(dir, &["sign", "bad.nestpatch", "--key", "2.key"], 4, &["malformed patch"]);
    fails(dir, &["sign", "none.nestpatch", "--key", "2.key"], 1, &["none.nestpatch"]);
    fails(dir, &["sign", "one.nestpatch", "--key", "2.pub"], 7, &["2.pub"]);
    fails(dir, &["sign", "one.nestpatch", "--key", "two.nestpatch"], 7, &["expected a text", "no UTF-8"]);
    fails(dir, &["sign", "one.nestpatch", "--key", "none.key"], 1, &["none.key"]);
    fails(dir, &["sign", "one.nestpatch", "--key", "2.key", "-o", "two.nestpatch"], 1, &["two.nestpatch"]);
    succeeds(dir, &["sign", "one.nestpatch", "--key", "2.key", "-o", "both.nestpatch"]);
    assert_eq!(id(dir, "both.nestpatch"), id(dir, "one.nestpatch"));
}

#[test]
fn a_file_is_replaced_whole_or_not_at_all() {
    let world = world();
    let dir = world.path();
    let sign = ["sign", "one.nestpatch", "--key", "2.key"];
    let before = snapshot(dir);
    let mut failed = 0;
    loop {
        let ran = run_with(dir, Some(&format!("enospc@{}", failed + 1)), &sign);
        if ran.code == Some(0) {
            break;
        }
        failed += 1;
        assert!(ran.stderr.contains("No space left"), "{ran:?}");
        if snapshot(dir) != before {
            // Only the last call, which forces the name to the disk, comes after the new file is in its place.
            assert_eq!(Container::parse(&fs::read(dir.join("one.nestpatch")).unwrap()).unwrap().signatures().len(), 2);
            break;
        }
        assert!(failed < 20);
    }
    assert!(failed >= 4, "create, write, sync and rename, not {failed}");
    assert_eq!(snapshot(dir).len(), before.len());
}

#[test]
fn a_passphrase_comes_from_a_file_or_a_descriptor() {
    let world = world();
    let dir = world.path();
    let shell = |script: &str| {
        let program = env!("CARGO_BIN_EXE_nestpatch");
        let run = Command::new("sh").args(["-c", script, "sh", program]).current_dir(dir).output().unwrap();
        (run.status.code(), String::from_utf8(run.stderr).unwrap())
    };
    let (code, said) = shell("echo secret | \"$1\" keygen -o five --passphrase-file /dev/stdin");
    assert_eq!(code, Some(0), "{said}");
    assert!(fs::read_to_string(dir.join("five.key")).unwrap().contains("ENCRYPTED"));
    let sign = "\"$1\" sign one.nestpatch --key five.key -o signed.nestpatch --passphrase-file";
    let (code, said) = shell(&format!("exec 3<<X\nsecre\nX\n{sign} /dev/fd/3"));
    assert!(code == Some(7) && said.contains("the passphrase is wrong"), "{said}");
    let (code, said) = shell(&format!("exec 3<<X\nsecret\nX\n{sign} /dev/fd/3"));
    assert_eq!(code, Some(0), "{said}");
    fs::write(dir.join("long"), vec![b'x'; 5000]).unwrap();
    fails(
        dir,
        &["sign", "one.nestpatch", "--key", "five.key", "--passphrase-file", "long"],
        7,
        &["at most 4096 bytes"],
    );
    fails(dir, &["sign", "one.nestpatch", "--key", "five.key", "--passphrase-file", "base"], 7, &["base"]);
}

#[test]
fn roles_are_asked_for() {
    let world = world();
    let dir = world.path();
    let people = [("Ada", 1, "roles = [\"author\"]"), ("Grace", 2, "roles = [\"auditor\"]"), ("Bob", 3, "")];
    trust(dir, "require = { auditor = 1 }", &people);
    let (code, report) = verify(dir, &["one.nestpatch"]);
    assert_eq!(code, 3);
    assert!(claim(&report, "signature").1.contains("1 different people with the role auditor, found none"), "{report}");
    succeeds(dir, &["sign", "one.nestpatch", "--key", "3.key"]);
    assert_eq!(verify(dir, &["one.nestpatch"]).0, 3, "no role, no auditor");
    succeeds(dir, &["sign", "one.nestpatch", "--key", "2.key"]);
    let (code, report) = verify(dir, &["one.nestpatch"]);
    assert_eq!(code, 0);
    assert!(claim(&report, "signature").1.contains("Grace (auditor, key "), "{report}");
}

#[test]
fn a_person_signs_only_their_series() {
    let world = world();
    let dir = world.path();
    trust(dir, "", &[("Ada", 1, "series = [\"other\"]"), ("Grace", 2, "series = [\"tests\"]")]);
    let (code, report) = verify(dir, &["one.nestpatch"]);
    assert_eq!(code, 3);
    let detail = claim(&report, "signature").1;
    assert!(detail.contains("\"Ada\"") && detail.contains("may not sign series \"tests\""), "{report}");
    succeeds(dir, &["sign", "one.nestpatch", "--key", "2.key"]);
    assert_eq!(verify(dir, &["one.nestpatch"]).0, 0);
}

#[test]
fn who_may_not_sign_a_series_counts_for_nothing_in_it() {
    let world = world();
    let dir = world.path();
    succeeds(dir, &["sign", "one.nestpatch", "--key", "2.key"]);
    let people = [("Ada", 1, "roles = [\"author\"]"), ("Grace", 2, "roles = [\"auditor\"]\nseries = [\"other\"]")];
    trust(dir, "threshold = 2", &people);
    let (code, report) = verify(dir, &["one.nestpatch"]);
    assert_eq!(code, 3);
    assert!(claim(&report, "signature").1.contains("expected 2 different trusted people, found \"Ada\""), "{report}");
    trust(dir, "require = { auditor = 1 }", &people);
    let (code, report) = verify(dir, &["one.nestpatch"]);
    assert_eq!(code, 3);
    assert!(claim(&report, "signature").1.contains("with the role auditor, found none"), "{report}");
}

#[test]
fn a_feed_is_good_until_it_expires_and_by_keys_that_count() {
    let world = world();
    let dir = world.path();
    trust(dir, "", &[("Rel", 1, "roles = [\"release\"]")]);
    let add = ["feed", "add", "f.json", "--name", "f", "--patch", "one.nestpatch", "--status", "active", "--key"];
    succeeds(dir, &[&add[..], &["1.key"]].concat());
    let shown = succeeds(dir, &["feed", "show", "f.json", "--trust", "trust.toml", "--json"]).stdout;
    let shown: Value = serde_json::from_str(&shown).unwrap();
    let expires: Timestamp = shown["expires"].as_str().unwrap().parse().unwrap();
    let using = |at: u64| {
        let at = Timestamp::from_unix(at).to_string();
        run(dir, &["verify", "one.nestpatch", "--trust", "trust.toml", "--status-feed", "f.json", "--at", &at]).code
    };
    assert_eq!((using(expires.to_unix() - 1), using(expires.to_unix())), (Some(0), Some(3)));
    let late = format!(
        "version = 1\n[[people]]\nname = \"Rel\"\nroles = [\"release\"]\n\
         keys = [{{ key = \"{}\", until = \"2020-01-01T00:00:00Z\" }}, \"{}\"]\n",
        line(1),
        line(2)
    );
    fs::write(dir.join("trust.toml"), late).unwrap();
    let using = ["verify", "one.nestpatch", "--trust", "trust.toml", "--status-feed", "f.json"];
    fails(dir, &using, 3, &["valid only until 2020"]);
    let renew = ["feed", "renew", "f.json", "--trust", "trust.toml", "--key", "1.key"];
    fails(dir, &renew, 3, &["no feed counts that it signs now"]);
    // A wrong signature of somebody trusted is an error beside enough right ones.
    trust(dir, "", &[("Rel", 1, "roles = [\"release\"]"), ("Lea", 2, "roles = [\"release\"]")]);
    succeeds(dir, &["feed", "sign", "f.json", "--key", "2.key"]);
    let mut envelope = Envelope::parse(&fs::read(dir.join("f.json")).unwrap()).unwrap();
    let lea = key(2).public().unwrap().id();
    envelope.signatures.iter_mut().filter(|one| one.key_id == lea).for_each(|one| one.signature[40] ^= 1);
    fs::write(dir.join("f.json"), envelope.to_json()).unwrap();
    fails(dir, &using, 3, &["\"Lea\"", "is wrong"]);
}

#[test]
fn a_feed_takes_no_signature_that_it_could_not_be_read_with() {
    let world = world();
    let dir = world.path();
    succeeds(
        dir,
        &["feed", "add", "f.json", "--name", "f", "--patch", "one.nestpatch", "--status", "active", "--key", "1.key"],
    );
    let mut envelope = Envelope::parse(&fs::read(dir.join("f.json")).unwrap()).unwrap();
    for seed in 10..73 {
        envelope.signatures.push(key(seed).sign(&envelope.statement).unwrap());
    }
    fs::write(dir.join("f.json"), envelope.to_json()).unwrap();
    fails(dir, &["feed", "sign", "f.json", "--key", "2.key"], 7, &["expected 1 to 64, found 65"]);
}

#[test]
fn keys_count_in_their_time() {
    let world = world();
    let dir = world.path();
    let key = format!("keys = [{{ key = \"{}\", from = \"2020-01-01T00:00:00Z\", until = \"{LATER}\" }}]", line(1));
    fs::write(dir.join("trust.toml"), format!("version = 1\n[[people]]\nname = \"Ada\"\n{key}\n")).unwrap();
    assert_eq!(verify(dir, &["one.nestpatch"]).0, 0);
    for (at, word) in [(LATER, "valid only until 2040"), ("2019-12-31T23:59:59Z", "valid only from 2020")] {
        let (code, report) = verify(dir, &["one.nestpatch", "--at", at]);
        assert_eq!(code, 3, "{at}");
        assert!(claim(&report, "signature").1.contains(word), "{report}");
    }
    fails(dir, &["apply", "one.nestpatch", "base", "-o", "out", "--trust", "trust.toml", "--at", LATER], 3, &["2040"]);
    let checked = succeeds(dir, &["trust", "check", "trust.toml"]).stdout;
    assert!(checked.contains("Ada (no role)") && checked.contains("until 2040"), "{checked}");
    let soon = succeeds(dir, &["trust", "check", "trust.toml", "--at", "2039-12-15T00:00:00Z"]).stdout;
    assert!(soon.contains("Remarks") && soon.contains("counts only until 2040"), "{soon}");
    let over = run(dir, &["trust", "check", "trust.toml", "--at", LATER]);
    assert_eq!(over.code, Some(7), "{over:?}");
    assert!(over.stdout.contains("people who may sign any one series: 1 needed, 0 have a key that counts"), "{over:?}");
}

#[test]
fn the_trust_file_sets_a_least_number() {
    let world = world();
    let dir = world.path();
    trust(dir, "series = [{ name = \"tests\", minimum = 2 }]", &[("Ada", 1, "")]);
    let (code, report) = verify(dir, &["one.nestpatch"]);
    assert_eq!((code, report["verdict"].as_str().unwrap()), (3, "outdated"));
    assert!(claim(&report, "current").1.contains("expected number 2 or later"), "{report}");
    let refused = ["apply", "one.nestpatch", "base", "-o", "out", "--trust", "trust.toml"];
    fails(dir, &refused, 3, &["expected number 2 or later", "Hint: get the newest"]);
    let (code, report) = verify(dir, &["two.nestpatch"]);
    assert_eq!((code, claim(&report, "current").0), (0, "proven"), "{report}");
}

#[test]
fn what_was_seen_is_not_taken_back() {
    let world = world();
    let dir = world.path();
    trust(dir, "", &[("Ada", 1, "")]);
    let seen = ["--seen", "seen.json"];
    let with = |patch: &'static str| [&[patch][..], &seen].concat();
    assert_eq!(verify(dir, &with("one.nestpatch")).0, 0);
    assert_eq!(verify(dir, &with("two.nestpatch")).0, 0);
    let (code, report) = verify(dir, &with("one.nestpatch"));
    assert_eq!((code, report["verdict"].as_str().unwrap()), (3, "outdated"));
    assert!(claim(&report, "current").1.contains("an old one is being passed off"), "{report}");
    let apply = ["apply", "one.nestpatch", "base", "-o", "out", "--trust", "trust.toml", "--seen", "seen.json"];
    fails(dir, &apply, 3, &["expected number 2 or later, which was seen before"]);

    // Another patch with the same number.
    fs::write(dir.join("twin.nestpatch"), twin(dir)).unwrap();
    let (code, report) = verify(dir, &with("twin.nestpatch"));
    assert_eq!(code, 3);
    assert!(claim(&report, "current").1.contains("two were signed with one number"), "{report}");

    // A patch that is not trusted is not remembered, and a file that is no memory is not overwritten.
    let before = fs::read(dir.join("seen.json")).unwrap();
    fs::write(dir.join("none.toml"), fs::read_to_string(dir.join("trust.toml")).unwrap().replace(&line(1), &line(4)))
        .unwrap();
    let ran = run(dir, &["verify", "two.nestpatch", "--trust", "none.toml", "--seen", "seen.json"]);
    assert_eq!(ran.code, Some(3));
    assert_eq!(fs::read(dir.join("seen.json")).unwrap(), before);
    let other = ["verify", "two.nestpatch", "--trust", "trust.toml", "--seen", "trust.toml"];
    fails(dir, &other, 7, &["expected what this program has seen before"]);
    fails(dir, &["verify", "two.nestpatch", "--seen", "seen.json"], 3, &["no key", "--trust"]);
}

fn twin(dir: &Path) -> Vec<u8> {
    let checkpoint = Checkpoint::open(&dir.join("base")).unwrap();
    let about = About { sequence: 2, ..About::new("another", "tests", "synthetic") };
    sign(&assemble(&checkpoint, &common::edits(&checkpoint, 9), about, &()).unwrap(), &key(1)).unwrap()
}

#[test]
fn a_feed_takes_a_patch_out_of_use() {
    let world = world();
    let dir = world.path();
    trust(dir, "status = { feed = \"status\" }", &[("Ada", 1, ""), ("Rel", 2, "roles = [\"release\"]")]);
    let (code, report) = verify(dir, &["one.nestpatch"]);
    assert_eq!((code, report["verdict"].as_str().unwrap()), (3, "status_unknown"));
    let apply = ["apply", "one.nestpatch", "base", "-o", "out", "--trust", "trust.toml"];
    fails(dir, &apply, 3, &["expected the status feed \"status\"", "--status-feed"]);

    let add = |patch: &'static str, status: &'static str| {
        vec!["feed", "add", "feed.json", "--patch", patch, "--status", status, "--key", "2.key"]
    };
    fails(dir, &add("one.nestpatch", "active"), 1, &["there is no such feed yet", "--name"]);
    succeeds(dir, &[add("one.nestpatch", "active"), vec!["--name", "status"]].concat());
    let with = ["one.nestpatch", "--status-feed", "feed.json", "--seen", "seen.json"];
    let (code, report) = verify(dir, &with);
    assert_eq!((code, claim(&report, "status").0), (0, "proven"), "{report}");
    assert!(claim(&report, "status").1.contains("active since"), "{report}");
    fs::copy(dir.join("feed.json"), dir.join("old.json")).unwrap();

    // Superseded: refused unless allowed.
    let two = id(dir, "two.nestpatch").to_string();
    succeeds(dir, &[add("one.nestpatch", "superseded"), vec!["--by", "two.nestpatch"]].concat());
    let (code, report) = verify(dir, &with);
    assert_eq!((code, report["verdict"].as_str().unwrap()), (3, "outdated"));
    assert!(claim(&report, "status").1.contains("superseded since"), "{report}");
    assert!(claim(&report, "status").1.contains(&two), "{report}");
    assert_eq!(verify(dir, &[&with[..], &["--allow-superseded"]].concat()).0, 0);

    // Withdrawn: refused, whatever is allowed, and it never comes back.
    succeeds(dir, &[add("one.nestpatch", "withdrawn"), vec!["--reason", "refuses too much"]].concat());
    let (code, report) = verify(dir, &[&with[..], &["--allow-superseded"]].concat());
    assert_eq!((code, report["verdict"].as_str().unwrap()), (3, "withdrawn"));
    assert!(claim(&report, "status").1.contains("refuses too much"), "{report}");
    fails(dir, &[&apply[..], &["--status-feed", "feed.json"]].concat(), 3, &["withdrawn since", "revert"]);
    fails(dir, &add("one.nestpatch", "active"), 2, &["something graver than withdrawn"]);

    // The old issue is known to be old.
    let old = ["verify", "one.nestpatch", "--trust", "trust.toml", "--status-feed", "old.json", "--seen", "seen.json"];
    fails(dir, &old, 3, &["old.json", "expected number 3 or later, which was seen before"]);
    assert!(succeeds(dir, &["feed", "show", "feed.json", "--trust", "trust.toml"]).stdout.contains(": trusted"));
}

#[test]
fn a_feed_counts_by_its_signatures_alone() {
    let world = world();
    let dir = world.path();
    let rel = "roles = [\"release\"]";
    let status = "status = { feed = \"status\", threshold = 2 }";
    trust(dir, status, &[("Ada", 1, "roles = [\"author\"]"), ("Rel", 2, rel), ("Lea", 3, rel)]);
    let start = |file: &'static str, name: &'static str, key: &'static str| {
        vec!["feed", "add", file, "--patch", "one.nestpatch", "--status", "active", "--name", name, "--key", key]
    };
    let using = |file: &'static str| vec!["verify", "two.nestpatch", "--trust", "trust.toml", "--status-feed", file];
    succeeds(dir, &start("author.json", "status", "1.key"));
    fails(dir, &using("author.json"), 3, &["2 different people with the role release, found none"]);
    succeeds(dir, &start("stranger.json", "status", "4.key"));
    fails(dir, &using("stranger.json"), 3, &["which nobody has called trusted"]);
    succeeds(dir, &start("feed.json", "status", "2.key"));
    fails(dir, &using("feed.json"), 3, &["2 different people with the role release, found \"Rel\""]);
    succeeds(dir, &["feed", "sign", "feed.json", "--key", "3.key"]);
    succeeds(dir, &using("feed.json"));
    fails(dir, &["feed", "sign", "feed.json", "--key", "3.key"], 7, &["has signed this issue already"]);

    // Another name, a changed statement, an expired issue.
    succeeds(dir, &start("other.json", "another", "2.key"));
    succeeds(dir, &["feed", "sign", "other.json", "--key", "3.key"]);
    fails(dir, &using("other.json"), 3, &["expected \"status\"", "found \"another\""]);
    let mut envelope = Envelope::parse(&fs::read(dir.join("feed.json")).unwrap()).unwrap();
    let text = String::from_utf8(envelope.statement).unwrap();
    envelope.statement = text.replace("active", "withdrawn").into_bytes();
    fs::write(dir.join("changed.json"), envelope.to_json()).unwrap();
    fails(dir, &using("changed.json"), 3, &["is wrong"]);
    fails(dir, &[using("feed.json"), vec!["--at", LATER]].concat(), 3, &["was good until", "is being kept back"]);
    fails(dir, &using("trust.toml"), 7, &["trust.toml", "not strict JSON"]);

    // Nobody adds to a feed that somebody else slipped in.
    let mut add = start("stranger.json", "status", "2.key");
    fails(dir, &add, 3, &["stranger.json", "nobody has called trusted"]);
    add[2] = "feed.json";
    succeeds(dir, &["feed", "renew", "feed.json", "--key", "2.key", "--trust", "trust.toml", "--days", "1"]);
    let shown = run(dir, &["feed", "show", "feed.json", "--json"]);
    assert_eq!(shown.code, Some(3), "nobody vouches for it here: {shown:?}");
    let shown: Value = serde_json::from_str(&shown.stdout).unwrap();
    assert_eq!((&shown["number"], &shown["trusted"]), (&2.into(), &Value::Null));
}

#[test]
fn a_feed_that_was_believed_is_remembered_though_it_forbids_the_patch() {
    let world = world();
    let dir = world.path();
    trust(dir, "", &[("Ada", 1, "roles = [\"release\"]")]);
    let other = "11".repeat(32);
    let start = ["feed", "add", "feed.json", "--name", "status", "--key", "1.key", "--status", "withdrawn", "--patch"];
    succeeds(dir, &[&start[..], &[&other]].concat());
    fs::copy(dir.join("feed.json"), dir.join("old.json")).unwrap();
    succeeds(dir, &[&start[..], &["one.nestpatch"]].concat());
    let using = |feed: &'static str| ["one.nestpatch", "--status-feed", feed, "--seen", "seen.json"];
    assert_eq!(verify(dir, &using("feed.json")).1["verdict"], "withdrawn");
    let old = [&["verify", "--trust", "trust.toml"][..], &using("old.json")].concat();
    fails(dir, &old, 3, &["expected number 2 or later, which was seen before", "--seen file"]);
}

#[test]
fn nothing_is_applied_that_could_not_be_remembered() {
    let world = world();
    let dir = world.path();
    trust(dir, "", &[("Ada", 1, "")]);
    let apply = ["apply", "one.nestpatch", "base", "-o", "out", "--trust", "trust.toml", "--seen"];
    fails(dir, &[&apply[..], &["no/such/seen.json"]].concat(), 1, &["no/such"]);
    fails(dir, &[&apply[..], &["base"]].concat(), 1, &["expected a regular file"]);
    // A link that leads nowhere is a disk that is not there, not a memory of nothing.
    symlink("gone/seen.json", dir.join("seen.json")).unwrap();
    let ran = run(dir, &[&apply[..], &["seen.json"]].concat());
    assert!(ran.code == Some(1) && ran.stderr.contains("seen.json"), "{ran:?}");
    assert!(!dir.join("out").exists());
}

#[test]
fn a_patch_that_is_believed_is_remembered_whatever_the_checkpoint() {
    let world = world();
    let dir = world.path();
    trust(dir, "", &[("Ada", 1, "")]);
    succeeds(dir, &["apply", "one.nestpatch", "base", "-o", "other", "--trust", "trust.toml"]);
    let (code, report) = verify(dir, &["two.nestpatch", "--seen", "seen.json", "--checkpoint", "other"]);
    assert_eq!((code, report["verdict"].as_str().unwrap()), (5, "wrong_base"));
    assert_eq!(verify(dir, &["one.nestpatch", "--seen", "seen.json"]).1["verdict"], "outdated");
}

#[test]
fn the_memory_may_lie_in_the_checkpoint() {
    let world = world();
    let dir = world.path();
    trust(dir, "", &[("Ada", 1, "")]);
    let seen = ["--trust", "trust.toml", "--seen", "base/seen.json"];
    succeeds(dir, &[&["verify", "one.nestpatch", "--checkpoint", "base"][..], &seen].concat());
    succeeds(dir, &[&["apply", "one.nestpatch", "base", "--in-place"][..], &seen].concat());
    assert!(fs::read_to_string(dir.join("base/seen.json")).unwrap().contains("\"tests\""));
}

#[test]
fn of_two_patches_with_one_number_one_is_believed_at_once() {
    let world = world();
    let dir = world.path();
    fs::write(dir.join("twin.nestpatch"), twin(dir)).unwrap();
    trust(dir, "", &[("Ada", 1, "")]);
    for round in 0..10 {
        let seen = format!("seen-{round}.json");
        let start = |patch: &str| {
            let arguments = ["verify", patch, "--trust", "trust.toml", "--seen", &seen];
            let mut command = Command::new(env!("CARGO_BIN_EXE_nestpatch"));
            command.args(arguments).current_dir(dir).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        };
        let codes = ["two.nestpatch", "twin.nestpatch"].map(start).map(|mut one| one.wait().unwrap().code().unwrap());
        assert_eq!(codes.iter().sum::<i32>(), 3, "{codes:?}: one is refused with 3");
    }
}

#[test]
fn people_at_once_all_get_their_say() {
    let world = world();
    let dir = world.path();
    let all = |commands: Vec<Vec<String>>| {
        let program = env!("CARGO_BIN_EXE_nestpatch");
        let start = |command: Vec<String>| {
            Command::new(program).args(command).current_dir(dir).stdout(Stdio::null()).spawn().unwrap()
        };
        let running: Vec<_> = commands.into_iter().map(start).collect();
        running.into_iter().for_each(|mut one| assert!(one.wait().unwrap().success()));
    };
    let words = |text: String| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    for seed in 5..=20 {
        create_key_pair(&key(seed), &KeyPairPaths::new(&dir.join(seed.to_string())), None).unwrap();
    }
    all((2..=20).map(|seed| words(format!("sign one.nestpatch --key {seed}.key"))).collect());
    assert_eq!(Container::parse(&fs::read(dir.join("one.nestpatch")).unwrap()).unwrap().signatures().len(), 20);
    all((1..=4).map(|seed| words(format!("trust add new.toml --name P{seed} --key {seed}.pub"))).collect());
    assert!(succeeds(dir, &["trust", "list", "new.toml"]).stdout.contains("P4"));
    assert_eq!(fs::read_to_string(dir.join("new.toml")).unwrap().matches("[[people]]").count(), 4);
    let id = |seed: u8| format!("{seed:02}").repeat(32);
    let add = |seed: u8| words(format!("feed add f.json --name f --key 1.key --status withdrawn --patch {}", id(seed)));
    all((1..=4).map(add).collect());
    let feed = succeeds_or(dir, &["feed", "show", "f.json", "--json"], 3);
    assert_eq!((feed["number"].as_u64(), feed["entries"].as_array().unwrap().len()), (Some(4), 4));
}

fn succeeds_or(dir: &Path, arguments: &[&str], code: i32) -> Value {
    let ran = run(dir, arguments);
    assert_eq!(ran.code, Some(code), "{ran:?}");
    serde_json::from_str(&ran.stdout).unwrap()
}

#[test]
fn a_link_stays_a_link() {
    let world = world();
    let dir = world.path();
    symlink("one.nestpatch", dir.join("link.nestpatch")).unwrap();
    succeeds(dir, &["sign", "link.nestpatch", "--key", "2.key"]);
    assert!(dir.join("link.nestpatch").is_symlink());
    assert_eq!(Container::parse(&fs::read(dir.join("one.nestpatch")).unwrap()).unwrap().signatures().len(), 2);
    trust(dir, "", &[("Ada", 1, "")]);
    fs::write(dir.join("real.json"), "{\"schema\":\"nestpatch/seen/1\",\"series\":{},\"feeds\":{}}").unwrap();
    symlink("real.json", dir.join("seen.json")).unwrap();
    succeeds(dir, &["verify", "one.nestpatch", "--trust", "trust.toml", "--seen", "seen.json"]);
    assert!(dir.join("seen.json").is_symlink());
    assert!(fs::read_to_string(dir.join("real.json")).unwrap().contains("\"tests\""));
}

#[test]
fn only_those_whose_feed_counts_add_to_it() {
    let world = world();
    let dir = world.path();
    let status = "status = { feed = \"status\", threshold = 2 }";
    trust(dir, status, &[("Rel", 1, "roles = [\"release\"]"), ("Lea", 2, "roles = [\"release\"]"), ("Ada", 3, "")]);
    let add = |key: &'static str| {
        let add = ["feed", "add", "f.json", "--name", "status", "--patch", "one.nestpatch", "--status", "active"];
        [&add[..], &["--trust", "trust.toml", "--key", key]].concat()
    };
    fails(dir, &add("3.key"), 3, &["no feed counts that it signs now", "role release"]);
    fails(dir, &add("4.key"), 3, &["no feed counts that it signs now", "role release"]);
    let other = [&add("1.key")[..4], &["another"], &add("1.key")[5..]].concat();
    fails(dir, &other, 7, &["expected the feed \"status\"", "found \"another\""]);
    let ran = succeeds(dir, &add("1.key"));
    assert!(ran.stderr.contains("counts only with 1 more signature"), "{ran:?}");
    // A signature that somebody spoilt is noticed by those who look, and its owner can make it good.
    let mut envelope = Envelope::parse(&fs::read(dir.join("f.json")).unwrap()).unwrap();
    envelope.signatures[0].signature[5] ^= 1;
    fs::write(dir.join("f.json"), envelope.to_json()).unwrap();
    fails(dir, &["feed", "sign", "f.json", "--key", "2.key", "--trust", "trust.toml"], 3, &["\"Rel\"", "is wrong"]);
    succeeds(dir, &["feed", "sign", "f.json", "--key", "1.key"]);
    succeeds(dir, &["feed", "sign", "f.json", "--key", "2.key", "--trust", "trust.toml"]);
    succeeds(dir, &["verify", "one.nestpatch", "--key", "1.pub", "--status-feed", "f.json"]);
}

#[test]
fn a_spoilt_signature_is_made_good_by_its_owner() {
    let world = world();
    let dir = world.path();
    let bytes = fs::read(dir.join("one.nestpatch")).unwrap();
    let container = Container::parse(&bytes).unwrap();
    let mut record = container.signatures()[0].clone();
    record.signature[5] ^= 1;
    let spoilt = container.with_signature(record).unwrap();
    fs::write(dir.join("one.nestpatch"), spoilt).unwrap();
    trust(dir, "", &[("Ada", 1, "")]);
    assert_eq!(verify(dir, &["one.nestpatch"]).0, 3);
    succeeds(dir, &["sign", "one.nestpatch", "--key", "1.key"]);
    assert_eq!(fs::read(dir.join("one.nestpatch")).unwrap(), bytes);
}

#[test]
fn a_trust_file_by_which_nothing_can_be_believed_is_noticed() {
    let world = world();
    let dir = world.path();
    trust(dir, "threshold = 2", &[("Ada", 1, "series = [\"x\"]"), ("Grace", 2, "series = [\"y\"]")]);
    let ran = run(dir, &["trust", "check", "trust.toml"]);
    assert!(ran.code == Some(7) && ran.stdout.contains("2 needed, 0 have a key"), "{ran:?}");
    trust(dir, "threshold = 2", &[("Ada", 1, "series = [\"x\", \"y\"]"), ("Grace", 2, "series = [\"y\"]")]);
    succeeds(dir, &["trust", "check", "trust.toml"]);
}

#[test]
fn key_files_may_have_any_name_and_come_twice() {
    let world = world();
    let dir = world.path();
    let long = format!("{}/{}.pub", "a".repeat(150), "b\n".repeat(60));
    fs::create_dir(dir.join("a".repeat(150))).unwrap();
    fs::copy(dir.join("1.pub"), dir.join(&long)).unwrap();
    succeeds(dir, &["verify", "one.nestpatch", "--key", &long]);
    succeeds(dir, &["verify", "one.nestpatch", "--key", "1.pub", "--key", "./1.pub"]);
}

#[test]
fn a_rewritten_feed_is_noticed() {
    let world = world();
    let dir = world.path();
    trust(dir, "", &[("Ada", 1, "roles = [\"author\", \"release\"]")]);
    let issue = |number, patches: &[u8]| {
        let (issued, expires) = (Timestamp::from_unix(1_700_000_000), LATER.parse().unwrap());
        let entry = |seed: &u8| FeedEntry {
            patch: Sha256::from_bytes([*seed; 32]),
            status: PatchStatus::Compromised,
            since: issued,
            reason: String::new(),
            by: None,
        };
        let entries = patches.iter().map(entry).collect();
        let feed = StatusFeed { feed: "status".to_owned(), number, issued, expires, entries };
        let statement = feed.to_bytes().unwrap();
        let signature = key(1).sign(&statement).unwrap();
        fs::write(dir.join("feed.json"), Envelope::new(statement, vec![signature]).to_json()).unwrap();
    };
    let using =
        ["verify", "one.nestpatch", "--trust", "trust.toml", "--status-feed", "feed.json", "--seen", "seen.json"];
    issue(1, &[5, 6]);
    succeeds(dir, &using);
    issue(2, &[5]);
    fails(dir, &using, 3, &["expected the 2 entries that were seen before", "rewritten"]);
    issue(2, &[6, 5, 7]);
    fails(dir, &using, 3, &["rewritten"]);
    issue(1, &[5, 6, 7]);
    fails(dir, &using, 3, &["two were signed with one number"]);
    issue(3, &[5, 6, 7]);
    succeeds(dir, &using);
}

#[test]
fn a_withdrawn_patch_can_still_be_taken_back() {
    let world = world();
    let dir = world.path();
    let before = snapshot(&dir.join("base"));
    trust(dir, "", &[("Ada", 1, "roles = [\"author\", \"release\"]")]);
    succeeds(dir, &["apply", "one.nestpatch", "base", "--in-place", "--trust", "trust.toml"]);
    trust(
        dir,
        "series = [{ name = \"tests\", minimum = 9 }]\nstatus = { feed = \"status\" }",
        &[("Ada", 1, "roles = [\"author\", \"release\"]")],
    );
    succeeds(dir, &["revert", "base", "--in-place", "--trust", "trust.toml"]);
    assert!(snapshot(&dir.join("base")) == before);
}

#[test]
fn people_are_added_and_listed() {
    let world = world();
    let dir = world.path();
    succeeds(dir, &["trust", "add", "t.toml", "--name", "Ada \"A\" L", "--key", "1.pub", "--role", "author"]);
    let text = fs::read_to_string(dir.join("t.toml")).unwrap() + "# a remark that stays";
    fs::write(dir.join("t.toml"), text).unwrap();
    let grace = ["trust", "add", "t.toml", "--name", "Grace", "--key", "2.pub", "--key", "3.pub", "--series", "tests"];
    let more = ["--role", "auditor", "--role", "release", "--from", "2020-01-01T00:00:00Z", "--until", LATER];
    succeeds(dir, &[&grace[..], &more].concat());
    assert!(fs::read_to_string(dir.join("t.toml")).unwrap().contains("# a remark that stays"));
    let listed = succeeds(dir, &["trust", "list", "t.toml"]).stdout;
    for word in ["Ada \"A\" L (author)", "Grace (auditor, release; only series tests)", "until 2040", "1 person"] {
        assert!(listed.contains(word), "{word}: {listed}");
    }
    let listed = succeeds(dir, &["trust", "list", "t.toml", "--json"]).stdout;
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed["people"][1]["keys"].as_array().unwrap().len(), 2);
    succeeds(dir, &["verify", "one.nestpatch", "--trust", "t.toml"]);

    fails(dir, &grace, 7, &["\"Grace\" is there already"]);
    fails(dir, &["trust", "add", "t.toml", "--name", "Eve", "--key", "1.pub"], 7, &["each key once"]);
    fails(dir, &["trust", "add", "t.toml", "--name", "", "--key", "4.pub"], 7, &["printable text"]);
    fails(dir, &["trust", "add", "t.toml", "--name", "Eve", "--key", "4.key"], 7, &["4.key"]);
    let king = run(dir, &["trust", "add", "t.toml", "--name", "Eve", "--key", "4.pub", "--role", "king"]);
    assert!(king.code == Some(2) && king.stderr.contains("author, auditor, release"), "{king:?}");
    fails(dir, &["trust", "list", "none.toml"], 1, &["none.toml"]);
    fails(dir, &["trust", "list", "1.pub"], 7, &["1.pub", "trust file"]);
}
