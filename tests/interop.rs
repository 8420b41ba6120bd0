//! `nestpatch export`: what it refuses, and what programs that are not ours make of its files. Each of those must accept
//! an export and refuse a changed one; where it is not installed, the test says so.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{KEY_SEED, fails, run, run_with, snapshot, succeeds, world};
use nestpatch::digest::Sha256;
use nestpatch::format::Container;
use nestpatch::trust::SecretKey;
use serde_json::Value;

/// A world with the private key as `key.key`, encrypted, and its passphrase.
fn signing_world() -> tempfile::TempDir {
    let world = world();
    let pem = SecretKey::from_seed(&KEY_SEED).to_pem(Some("correct horse")).unwrap();
    fs::write(world.path().join("key.key"), pem.as_str()).unwrap();
    fs::write(world.path().join("pass"), "correct horse\n").unwrap();
    world
}

fn key_id() -> String {
    SecretKey::from_seed(&KEY_SEED).public().unwrap().id().to_string()
}

/// Signs the patch with a second key, whose public half is `other.pub`.
fn sign_again(dir: &Path) {
    let other = SecretKey::from_seed(&[9; 32]);
    let bytes = fs::read(dir.join("p.nestpatch")).unwrap();
    let container = Container::parse(&bytes).unwrap();
    let twice = container.with_signature(other.sign(container.manifest()).unwrap()).unwrap();
    fs::write(dir.join("p.nestpatch"), twice).unwrap();
    fs::write(dir.join("other.pub"), other.public().unwrap().to_pem()).unwrap();
}

fn export<'a>(format: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec!["export", "p.nestpatch", "--format", format];
    if matches!(format, "minisig" | "sshsig") {
        arguments.extend(["--key", "key.key", "--passphrase-file", "pass"]);
    }
    arguments.extend(more);
    arguments
}

#[test]
fn files_get_their_usual_names_in_a_folder() {
    let world = signing_world();
    let dir = world.path();
    let bundle = format!("p.{}.sigstore.json", &key_id()[..16]);
    for (format, names) in [
        ("dsse", vec!["p.dsse.json"]),
        ("sigstore-bundle", vec![&bundle]),
        ("intoto", vec!["p.intoto.json"]),
        ("minisig", vec!["p.nestpatch.minisig", "p.nestpatch.minisig.pub"]),
        ("sshsig", vec!["p.nestpatch.sig", "p.nestpatch.sig.allowed_signers"]),
    ] {
        fs::create_dir(dir.join(format)).unwrap();
        let ran = succeeds(dir, &export(format, &["-o", format, "--json"]));
        let data: Value = serde_json::from_str(&ran.stdout).unwrap();
        assert_eq!((&data["schema"], &data["format"]), (&"nestpatch/export/1".into(), &format.into()));
        let found: Vec<PathBuf> = snapshot(&dir.join(format)).into_keys().collect();
        assert_eq!(found, names.iter().map(PathBuf::from).collect::<Vec<_>>(), "{format}");
        for (file, name) in data["files"].as_array().unwrap().iter().zip(names) {
            let bytes = fs::read(dir.join(format).join(name)).unwrap();
            assert_eq!(file["path"], format!("{format}/{name}"));
            assert_eq!(
                (&file["bytes"], &file["sha256"]),
                (&bytes.len().into(), &Sha256::of(&bytes).to_string().into())
            );
        }
        // The same text as a file of another name, and on stdout, to the byte.
        let first = fs::read_to_string(dir.join(format).join(&found[0])).unwrap();
        let one = format!("{format}.one");
        succeeds(dir, &export(format, &["-o", &one]));
        assert_eq!(fs::read_to_string(dir.join(one)).unwrap(), first);
        assert_eq!(succeeds(dir, &export(format, &[])).stdout, first);
    }
    let manifest = Container::parse(&fs::read(dir.join("p.nestpatch")).unwrap()).unwrap().manifest().to_vec();
    assert_eq!(fs::read(dir.join("intoto.one")).unwrap(), manifest);
}

#[test]
fn a_bundle_is_one_signers() {
    let world = signing_world();
    let dir = world.path();
    sign_again(dir);
    fails(dir, &export("sigstore-bundle", &[]), 2, &["2 keys signed", "--signer", "folder"]);
    fails(dir, &export("sigstore-bundle", &["-o", "new"]), 2, &["2 keys signed"]);
    fails(dir, &export("sigstore-bundle", &["--signer", "zz"]), 2, &["exactly one key id", &key_id()]);
    let mine = succeeds(dir, &export("sigstore-bundle", &["--signer", &key_id()[..6].to_uppercase()])).stdout;
    assert_eq!(mine.matches(&key_id()).count(), 2, "{mine}");
    fs::create_dir(dir.join("all")).unwrap();
    succeeds(dir, &export("sigstore-bundle", &["-o", "all"]));
    assert_eq!(snapshot(&dir.join("all")).len(), 2);
}

#[test]
fn command_lines_that_make_no_sense_are_refused() {
    let world = signing_world();
    let dir = world.path();
    for format in ["minisig", "sshsig"] {
        fails(dir, &["export", "p.nestpatch", "--format", format], 2, &["Error: ", format, "--key"]);
    }
    for format in ["dsse", "sigstore-bundle", "intoto"] {
        fails(dir, &export(format, &["--key", "key.key"]), 2, &["needs no private key"]);
        fails(dir, &export(format, &["--json"]), 2, &["-o"]);
    }
    fails(dir, &export("dsse", &["--signer", "ab"]), 2, &["--signer", "only sigstore-bundle"]);
    for (arguments, word) in [
        (export("intoto", &["--passphrase-file", "pass"]), "--key"),
        (vec!["export", "p.nestpatch"], "--format"),
        (vec!["export", "p.nestpatch", "--format", "pgp"], "possible values: dsse"),
    ] {
        let ran = run(dir, &arguments);
        assert!(ran.code == Some(2) && ran.stderr.contains(word), "{arguments:?}: {ran:?}");
    }
    let help = succeeds(dir, &["export", "--help"]).stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(help.contains("Nothing is overwritten, and either all files are written or none."), "{help}");
}

#[test]
fn nothing_malformed_or_unsigned_is_exported() {
    let world = signing_world();
    let dir = world.path();
    let good = fs::read(dir.join("p.nestpatch")).unwrap();
    let longer = [&good[..], b"x"].concat();
    for (bad, words) in
        [(&good[..good.len() - 1], "file: expected"), (&longer, "file: expected"), (b"", "not a patch file")]
    {
        fs::write(dir.join("p.nestpatch"), bad).unwrap();
        for format in ["dsse", "sigstore-bundle", "intoto", "minisig", "sshsig"] {
            fails(dir, &export(format, &["-o", "out"]), 4, &["malformed patch", words]);
        }
    }
    let mut flipped = good;
    *flipped.last_mut().unwrap() ^= 1;
    fs::write(dir.join("p.nestpatch"), flipped).unwrap();
    fails(dir, &export("dsse", &["-o", "out"]), 4, &["malformed patch"]);

    let checkpoint = nestpatch::checkpoint::Checkpoint::open(&dir.join("base")).unwrap();
    let edits = common::edits(&checkpoint, 7);
    drop(checkpoint);
    let unsigned = common::unsigned(&dir.join("base"), 7, &edits).seal(&[]).unwrap();
    fs::write(dir.join("p.nestpatch"), unsigned).unwrap();
    fails(dir, &export("dsse", &["-o", "out"]), 3, &["at least one by an Ed25519 key"]);
    fails(dir, &export("sigstore-bundle", &[]), 3, &["at least one by an Ed25519 key"]);
    succeeds(dir, &export("intoto", &[]));
    succeeds(dir, &export("sshsig", &[]));
}

#[test]
fn keys_that_cannot_sign_are_refused() {
    let world = signing_world();
    let dir = world.path();
    let with = |key| ["export", "p.nestpatch", "--format", "sshsig", "--key", key, "--passphrase-file", "pass"];
    fails(dir, &with("key.pub"), 7, &["key.pub", "found a public key"]);
    fails(dir, &with("nowhere"), 1, &["nowhere"]);
    fs::write(dir.join("pass"), "wrong\n").unwrap();
    fails(dir, &with("key.key"), 7, &["passphrase is wrong"]);
}

#[test]
fn keys_of_other_programs_are_trusted() {
    let world = signing_world();
    let dir = world.path();
    fs::create_dir(dir.join("out")).unwrap();
    succeeds(dir, &export("minisig", &["-o", "out"]));
    succeeds(dir, &export("sshsig", &["-o", "out"]));
    let line = fs::read_to_string(dir.join("out/p.nestpatch.sig.allowed_signers")).unwrap();
    let ssh = line.split_once("\" ").unwrap().1.trim();
    fs::write(dir.join("ssh.pub"), format!("{ssh} maintainer@example\n")).unwrap();
    for key in ["ssh.pub", "out/p.nestpatch.minisig.pub"] {
        succeeds(dir, &["verify", "p.nestpatch", "--key", key]);
    }
    let trust = format!("version = 1\n[[people]]\nname = \"Ada\"\nkeys = [\"{ssh} ada@example\"]\n");
    fs::write(dir.join("trust.toml"), trust).unwrap();
    let ran = succeeds(dir, &["verify", "p.nestpatch", "--trust", "trust.toml"]);
    assert!(ran.stdout.contains("valid, by Ada"), "{ran:?}");
    let private = ["verify", "p.nestpatch", "--key", "key.key"];
    fails(dir, &private, 7, &["key.key", "found a private key (PEM \"ENCRYPTED PRIVATE KEY\")"]);
    let signers = "out/p.nestpatch.sig.allowed_signers";
    fails(dir, &["verify", "p.nestpatch", "--key", signers], 7, &["a line (of an allowed_signers"]);
}

#[test]
fn nothing_is_overwritten_and_all_files_are_written_or_none() {
    let world = signing_world();
    let dir = world.path();
    fs::write(dir.join("there"), "mine").unwrap();
    fails(dir, &export("dsse", &["-o", "there"]), 1, &["there already exists", "Hint"]);
    fs::write(dir.join("new.pub"), "mine").unwrap();
    fails(dir, &export("minisig", &["-o", "new"]), 1, &["new.pub already exists"]);
    fails(dir, &export("dsse", &["-o", "no/such/folder"]), 1, &["no/such"]);
    fs::remove_file(dir.join("new.pub")).unwrap();
    // Each call that changes the disk fails once, until none is left to fail.
    let arguments = export("minisig", &["-o", "new"]);
    let before = snapshot(dir);
    let mut failed = 0;
    while run_with(dir, Some(&format!("enospc@{}", failed + 1)), &arguments).code != Some(0) {
        assert!(snapshot(dir) == before, "call {} left something behind", failed + 1);
        failed += 1;
        assert!(failed < 50);
    }
    assert!(failed >= 8, "two files take four calls each, not {failed}");
    assert_eq!(snapshot(dir).len(), before.len() + 2);
}

/// Says that a program is missing, which is an error where all of them must be there, as in CI.
fn skip(what: &str) {
    assert!(std::env::var_os("NESTPATCH_REQUIRE_INTEROP").is_none(), "{what}");
    eprintln!("skipped: {what}");
}

/// Runs another program; nothing if it is not installed.
fn program(dir: &Path, name: &str, arguments: &[&str], stdin: Option<&str>) -> Option<(i32, String)> {
    let stdin = stdin.map_or_else(Stdio::null, |file| fs::File::open(dir.join(file)).unwrap().into());
    match Command::new(name).args(arguments).current_dir(dir).stdin(stdin).output() {
        Ok(output) => {
            let text = [output.stdout, output.stderr].concat();
            Some((output.status.code().unwrap(), String::from_utf8_lossy(&text).into_owned()))
        }
        Err(error) => {
            skip(&format!("{name}: {error}"));
            None
        }
    }
}

/// The patch with one bit changed, as `bad.nestpatch`.
fn tampered(dir: &Path) {
    let mut bytes = fs::read(dir.join("p.nestpatch")).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(dir.join("bad.nestpatch"), bytes).unwrap();
}

#[test]
fn ssh_keygen_verifies_sshsig() {
    let world = signing_world();
    let dir = world.path();
    succeeds(dir, &export("sshsig", &["-o", "sig"]));
    tampered(dir);
    let id = &key_id()[..16];
    let verify = |namespace: &str, file: &str| {
        let arguments = ["-Y", "verify", "-f", "sig.allowed_signers", "-I", id, "-n", namespace, "-s", "sig"];
        program(dir, "ssh-keygen", &arguments, Some(file))
    };
    let Some((code, text)) = verify("nestpatch", "p.nestpatch") else { return };
    assert!(code == 0 && text.contains("Good \"nestpatch\" signature"), "{code}: {text}");
    for (namespace, file) in [("nestpatch", "bad.nestpatch"), ("file", "p.nestpatch")] {
        let (code, text) = verify(namespace, file).unwrap();
        assert!(code != 0 && !text.contains("Good"), "{namespace} {file}: {text}");
    }
}

#[test]
fn minisign_verifies_minisig() {
    let world = signing_world();
    let dir = world.path();
    succeeds(dir, &export("minisig", &["-o", "sig"]));
    tampered(dir);
    let verify =
        |file: &str, sig: &str| program(dir, "minisign", &["-V", "-H", "-m", file, "-x", sig, "-p", "sig.pub"], None);
    let Some((code, text)) = verify("p.nestpatch", "sig") else { return };
    let patch_id = Container::parse(&fs::read(dir.join("p.nestpatch")).unwrap()).unwrap().patch_id();
    let comment = format!("nestpatch patch_id:{patch_id}");
    assert!(code == 0 && text.contains(&format!("Trusted comment: {comment}")), "{code}: {text}");
    let changed = fs::read_to_string(dir.join("sig")).unwrap().replace("comment: nestpatch", "comment: nestpatcH");
    fs::write(dir.join("changed"), changed).unwrap();
    for (file, sig, words) in [
        ("bad.nestpatch", "sig", "Signature verification failed"),
        ("p.nestpatch", "changed", "Comment signature verification failed"),
    ] {
        let (code, text) = verify(file, sig).unwrap();
        assert!(code != 0 && text.contains(words), "{file} {sig}: {text}");
    }
}

/// What the Python libraries make of a file: whether they accept it, or nothing if they are not installed.
fn python(dir: &Path, kind: &str, file: &str, keys: &[&str]) -> Option<bool> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let chosen = std::env::var_os("NESTPATCH_INTEROP_PYTHON").map(PathBuf::from);
    let python = chosen.unwrap_or_else(|| root.join("target/interop-venv/bin/python"));
    let script = root.join("tests/interop/check.py");
    let arguments = [&[script.to_str().unwrap(), kind, file], keys].concat();
    let (code, text) = program(dir, python.to_str().unwrap(), &arguments, None)?;
    match code {
        0 => Some(true),
        4 => Some(false),
        3 => {
            skip(text.trim_end());
            None
        }
        _ => panic!("{kind} {file}: {code}: {text}"),
    }
}

/// Writes `file` again as `changed`, with this part of it replaced.
fn change(dir: &Path, file: &str, from: &str, to: &str) {
    let text = fs::read_to_string(dir.join(file)).unwrap();
    assert!(text.contains(from), "{from}: {text}");
    fs::write(dir.join("changed"), text.replacen(from, to, 1)).unwrap();
}

#[test]
fn securesystemslib_verifies_envelopes() {
    let world = signing_world();
    let dir = world.path();
    sign_again(dir);
    succeeds(dir, &export("dsse", &["-o", "envelope"]));
    let both = ["key.pub", "other.pub"];
    let Some(accepted) = python(dir, "dsse", "envelope", &both) else { return };
    assert!(accepted);
    let third = SecretKey::from_seed(&[1; 32]).public().unwrap().to_pem();
    fs::write(dir.join("third.pub"), third).unwrap();
    assert_eq!(python(dir, "dsse", "envelope", &["key.pub", "third.pub"]), Some(false));
    // `{"_` in Base64; then a type of the same length.
    for (from, to) in [("\"payload\":\"eyJf", "\"payload\":\"eyJg"), ("vnd.in-toto+json", "vnd.in-toto+jsoN")] {
        change(dir, "envelope", from, to);
        assert_eq!(python(dir, "dsse", "changed", &both), Some(false), "{from}");
    }
}

#[test]
fn sigstore_models_and_securesystemslib_take_bundles() {
    let world = signing_world();
    let dir = world.path();
    succeeds(dir, &export("sigstore-bundle", &["-o", "bundle"]));
    let Some(accepted) = python(dir, "bundle", "bundle", &["key.pub"]) else { return };
    assert!(accepted);
    for (from, to) in [
        ("bundle.v0.3+json", "bundle.v9.9+json"),
        ("\"publicKey\"", "\"nothing\""),
        ("\"hint\":\"", "\"hint\":\"0"),
        ("\"payload\":\"eyJf", "\"payload\":\"eyJg"),
    ] {
        change(dir, "bundle", from, to);
        assert_eq!(python(dir, "bundle", "changed", &["key.pub"]), Some(false), "{from}");
    }
}

#[test]
fn in_toto_attestation_validates_statements() {
    let world = signing_world();
    let dir = world.path();
    succeeds(dir, &export("intoto", &["-o", "statement"]));
    let Some(accepted) = python(dir, "intoto", "statement", &[]) else { return };
    assert!(accepted);
    for (from, to) in [
        ("in-toto.io/Statement/v1", "in-toto.io/Statement/v0"),
        ("\"predicateType\"", "\"predicateTypes\""),
        ("\"subject\":[", "\"subject\":[{},"),
    ] {
        change(dir, "statement", from, to);
        assert_eq!(python(dir, "intoto", "changed", &[]), Some(false), "{from}");
    }
}
