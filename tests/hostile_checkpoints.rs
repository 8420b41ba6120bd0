//! Checkpoints that lie: whatever is wrong with one, every verb says so and writes nothing; what is odd but harmless works.
//!
//! One row a situation. The real program runs each verb on a base that was made so and on a patched one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Ran, run};
use nestpatch::checkpoint::{BindError, Checkpoint, CheckpointError};
use nestpatch::patch::PatchError;
use nestpatch::patch::apply::{Options, Target, apply};
use nestpatch::patch::bind::{Accept, bind};
use nestpatch::patch::verify::verify;

const INDEX: &str = "model.safetensors.index.json";
const SECOND: &str = "model-00002-of-00003.safetensors";
const CONFIG: &str = "config.json";

const TO_OUT: &[&str] = &["apply", "p.nestpatch", "base", "--key", "key.pub", "-o", "out"];
const IN_PLACE: &[&str] = &["apply", "p.nestpatch", "base", "--key", "key.pub", "--in-place"];
const DRY: &[&str] = &["apply", "p.nestpatch", "base", "--key", "key.pub", "--in-place", "--dry-run"];
const VERIFY: &[&str] = &["verify", "p.nestpatch", "--key", "key.pub", "--checkpoint", "base"];
const STATUS: &[&str] = &["status", "base"];
const STATUS_PATCHED: &[&str] = &["status", "patched"];
const BACK_TO_OUT: &[&str] = &["revert", "patched", "-o", "out"];
const BACK_IN_PLACE: &[&str] = &["revert", "patched", "--in-place"];

/// All that may write or judge, in an order in which nothing that works spoils the next.
const VERBS: [&[&str]; 8] = [DRY, VERIFY, STATUS, STATUS_PATCHED, TO_OUT, BACK_TO_OUT, IN_PLACE, BACK_IN_PLACE];

/// What the verbs make of a checkpoint.
#[derive(Clone, Copy)]
enum Outcome {
    /// Every verb refuses it with this exit code.
    Refused(i32),
    /// Reading and copying work, changing in place is refused.
    NotInPlace,
    /// Changing in place works, copying is refused with this exit code.
    NotCopied(i32),
    /// All is well, or at least harmless.
    Works,
}

use Outcome::{NotCopied, NotInPlace, Refused, Works};

type Edit = fn(&Path);

/// What a file or folder is, without waiting for what a pipe might say.
fn look(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let kind = fs::symlink_metadata(&path).unwrap().file_type();
            let what = match () {
                () if kind.is_symlink() => format!("link to {}", fs::read_link(&path).unwrap().display()),
                () if kind.is_file() => nestpatch::digest::Blake3::of(&fs::read(&path).unwrap()).to_string(),
                () if kind.is_dir() => "folder".to_owned(),
                () => format!("special {}", kind.is_fifo()),
            };
            if kind.is_dir() {
                folders.push(path.clone());
            }
            found.insert(path, what);
        }
    }
    found
}

/// `base` and `patched`, as good checkpoints.
fn good() -> tempfile::TempDir {
    let world = common::world();
    let dir = world.path();
    common::succeeds(dir, TO_OUT);
    fs::rename(dir.join("out"), dir.join("patched")).unwrap();
    world
}

fn copy(from: &Path, to: &Path) {
    for (path, bytes) in common::snapshot(from) {
        let to = to.join(&path);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        match path.to_str().unwrap().ends_with('/') {
            true => fs::create_dir_all(&to).unwrap(),
            false => fs::write(&to, bytes).unwrap(),
        }
    }
}

/// Runs every verb on checkpoints that were made so.
fn check(good: &Path, case: &str, edit: Edit, outcome: Outcome, words: &[&str]) {
    for verb in VERBS {
        let place = common::folder();
        let dir = place.path();
        copy(good, dir);
        edit(&dir.join("base"));
        edit(&dir.join("patched"));
        let before = look(dir);
        let ran = run(dir, verb);
        let in_place = [DRY, IN_PLACE, BACK_IN_PLACE].contains(&verb);
        let copies = [TO_OUT, BACK_TO_OUT].contains(&verb);
        let refused = match outcome {
            Refused(code) => Some(code),
            NotInPlace => in_place.then_some(6),
            NotCopied(code) => copies.then_some(code),
            Works => None,
        };
        let told = format!("{case}: {verb:?}: {ran:?}");
        match refused {
            Some(code) => refuses(&ran, code, words, &told),
            None => assert_eq!(ran.code, Some(0), "{told}"),
        }
        let mut after = look(dir);
        if refused.is_none() && copies {
            after.retain(|path, _| !path.starts_with(dir.join("out")));
        }
        let changes = refused.is_none() && in_place && verb != DRY;
        assert!(changes || after == before, "{told}: something was written");
    }
}

fn refuses(ran: &Ran, code: i32, words: &[&str], told: &str) {
    assert_eq!(ran.code, Some(code), "{told}");
    assert!(ran.stdout.is_empty() && ran.stderr.starts_with("Error: "), "{told}");
    assert!(ran.stderr.lines().count() <= 4, "{told}");
    for word in words {
        assert!(ran.stderr.contains(word), "{told} lacks {word:?}");
    }
}

fn check_all(cases: &[(&str, Edit, Outcome, &[&str])]) {
    let good = good();
    for (case, edit, outcome, words) in cases {
        check(good.path(), case, *edit, *outcome, words);
    }
}

/// Replaces text in a file; every occurrence, and there must be one.
fn replace(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{from} is not in {text}");
    fs::write(path, text.replace(from, to)).unwrap();
}

/// Replaces text in the second shard's header, and nothing in its data.
fn header(dir: &Path, from: &str, to: &str) {
    rewrite(dir, |text| {
        assert!(text.contains(from), "{from} is not in {text}");
        text.replace(from, to).into_bytes()
    });
}

fn rewrite(dir: &Path, change: impl FnOnce(&str) -> Vec<u8>) {
    let path = dir.join(SECOND);
    let bytes = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let text = change(std::str::from_utf8(&bytes[8..8 + length]).unwrap().trim_end());
    fs::write(path, [&(text.len() as u64).to_le_bytes()[..], &text, &bytes[8 + length..]].concat()).unwrap();
}

/// One more tensor in the second shard and in the index.
fn add(dir: &Path, entry: &str, data: &[u8]) {
    header(dir, "{\"__metadata__\"", &format!("{{\"model.more\":{{{entry}}},\"__metadata__\""));
    let bytes = fs::read(dir.join(SECOND)).unwrap();
    fs::write(dir.join(SECOND), [&bytes, data].concat()).unwrap();
    index(dir, "\"model.step\"", &format!("\"model.more\":\"{SECOND}\",\"model.step\""));
}

fn index(dir: &Path, from: &str, to: &str) {
    replace(&dir.join(INDEX), from, to);
}

/// Puts something else in the place of a file.
fn instead(path: PathBuf, make: impl FnOnce(&Path)) {
    fs::remove_file(&path).unwrap();
    make(&path);
}

fn fifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

fn length_field(dir: &Path, length: u64) {
    let mut bytes = fs::read(dir.join(SECOND)).unwrap();
    bytes[..8].copy_from_slice(&length.to_le_bytes());
    fs::write(dir.join(SECOND), bytes).unwrap();
}

#[test]
fn headers_that_lie() {
    const GATE: &str =
        "\"model.layers.1.mlp.gate_proj.weight\":{\"dtype\":\"F16\",\"shape\":[24,16],\"data_offsets\":[768,1536]}";
    const UP: &str = "\"data_offsets\":[1536,2304]";
    check_all(&[
        ("a tensor twice", |dir| header(dir, GATE, &format!("{GATE},{GATE}")), Refused(6), &[SECOND, "appears twice"]),
        (
            "a tensor twice, once in escapes",
            |dir| header(dir, GATE, &format!("{GATE},{}", GATE.replacen("gate", "\\u0067ate", 1))),
            Refused(6),
            &[SECOND, "appears twice"],
        ),
        ("metadata twice", |dir| header(dir, "{\"__m", "{\"__metadata__\":{},\"__m"), Refused(6), &["appears twice"]),
        ("a field twice", |dir| header(dir, UP, &format!("{UP},{UP}")), Refused(6), &[SECOND, "duplicate field"]),
        ("a field that is not known", |dir| header(dir, UP, &format!("{UP},\"x\":1")), Refused(6), &["unknown field"]),
        ("a field missing", |dir| header(dir, &format!(",{UP}"), ""), Refused(6), &["missing field"]),
        ("overlap", |dir| header(dir, "[768,1536]", "[700,1468]"), Refused(6), &["begin at 700", "ends at 768"]),
        (
            "the same bytes twice",
            |dir| header(dir, "[768,1536]", "[0,768]"),
            Refused(6),
            &["begin at 0", "ends at 768"],
        ),
        ("a gap", |dir| header(dir, "[1536,2304]", "[1538,2306]"), Refused(6), &["begin at 1538", "ends at 1536"]),
        ("backwards", |dir| header(dir, "[768,1536]", "[1536,768]"), Refused(6), &["begin at 768", "ends at 1536"]),
        (
            "beyond the file",
            |dir| header(dir, "[24,16],\"data_offsets\":[1536,2304]", "[48,16],\"data_offsets\":[1536,3072]"),
            Refused(6),
            &["take 3072 bytes", "holds 2304"],
        ),
        (
            "at the end of all numbers",
            |dir| {
                let far = "[768],\"data_offsets\":[18446744073709550079,18446744073709551615]";
                header(dir, "[24,16],\"data_offsets\":[1536,2304]", far);
            },
            Refused(6),
            &["begin at 18446744073709550079"],
        ),
        ("no whole number", |dir| header(dir, "[768,1536]", "[768.0,1536]"), Refused(6), &["not a JSON object"]),
        ("below zero", |dir| header(dir, "[768,1536]", "[-768,0]"), Refused(6), &["not a JSON object"]),
        ("one offset", |dir| header(dir, "[768,1536]", "[768]"), Refused(6), &["not a JSON object"]),
        ("three offsets", |dir| header(dir, "[768,1536]", "[768,1536,1]"), Refused(6), &["not a JSON object"]),
        ("a wide type", |dir| header(dir, GATE, &GATE.replace("F16", "F32")), Refused(6), &["gate_proj", "12288 bits"]),
        ("no such type", |dir| header(dir, GATE, &GATE.replace("F16", "F17")), Refused(6), &["unknown element type"]),
        (
            "a shape without end",
            |dir| header(dir, GATE, &GATE.replace("[24,16]", "[4294967296,4294967296,4294967296]")),
            Refused(6),
            &["gate_proj"],
        ),
        (
            "nine dimensions",
            |dir| header(dir, GATE, &GATE.replace("[24,16]", "[24,16,1,1,1,1,1,1,1]")),
            Refused(6),
            &["gate_proj", "8 dimensions"],
        ),
        ("a control character", |dir| header(dir, "gate", "ga\\u001bte"), Refused(6), &["tensor \"model.layers.1"]),
        ("a name too long", |dir| header(dir, "gate", &"g".repeat(5000)), Refused(6), &["tensor \"model.layers.1"]),
        ("a list", |dir| rewrite(dir, |text| format!("[{text}]").into_bytes()), Refused(6), &["not a JSON object"]),
        (
            "two objects",
            |dir| rewrite(dir, |text| format!("{text}{{}}").into_bytes()),
            Refused(6),
            &["not a JSON object"],
        ),
        ("no text", |dir| rewrite(dir, |text| text.replace("gate", "g\0te").into_bytes()), Refused(6), &["not a JSON"]),
        (
            "no UTF-8",
            |dir| rewrite(dir, |text| [&text.as_bytes()[..40], &[0xff], &text.as_bytes()[41..]].concat()),
            Refused(6),
            &[SECOND, "not a JSON object"],
        ),
        ("a length of all ones", |dir| length_field(dir, u64::MAX), Refused(6), &["claims 18446744073709551615 bytes"]),
        ("a length above the cap", |dir| length_field(dir, 100_000_001), Refused(6), &["at most 100000000"]),
        ("a length at the cap", |dir| length_field(dir, 100_000_000), Refused(6), &["too few"]),
        ("a length of none", |dir| length_field(dir, 0), Refused(6), &["not a JSON object"]),
        ("a length into the data", |dir| length_field(dir, 1200), Refused(6), &["not a JSON object"]),
        (
            "a byte more",
            |dir| {
                let bytes = fs::read(dir.join(SECOND)).unwrap();
                fs::write(dir.join(SECOND), [&bytes[..], b"x"].concat()).unwrap();
            },
            Refused(6),
            &["take 2304 bytes", "holds 2305"],
        ),
        (
            "a byte less",
            |dir| {
                let bytes = fs::read(dir.join(SECOND)).unwrap();
                fs::write(dir.join(SECOND), &bytes[..bytes.len() - 1]).unwrap();
            },
            Refused(6),
            &["take 2304 bytes", "holds 2303"],
        ),
    ]);
}

#[test]
fn odd_headers_that_are_sound() {
    check_all(&[
        (
            "padded with a megabyte",
            |dir| rewrite(dir, |text| format!("{text}{}", " ".repeat(1 << 20)).into_bytes()),
            Works,
            &[],
        ),
        ("metadata of null", |dir| header(dir, "{\"format\":\"pt\"}", "null"), Works, &[]),
        ("no elements", |dir| add(dir, r#""dtype":"F32","shape":[0,16],"data_offsets":[2304,2304]"#, b""), Works, &[]),
        ("no elements, first", |dir| add(dir, r#""dtype":"F32","shape":[0],"data_offsets":[0,0]"#, b""), Works, &[]),
        (
            "no elements, amid others",
            |dir| add(dir, r#""dtype":"BF16","shape":[3,0,4294967295],"data_offsets":[768,768]"#, b""),
            Works,
            &[],
        ),
        ("a scalar", |dir| add(dir, r#""dtype":"F32","shape":[],"data_offsets":[2304,2308]"#, &[1; 4]), Works, &[]),
        ("half a byte", |dir| add(dir, r#""dtype":"F4","shape":[2],"data_offsets":[2304,2305]"#, &[1]), Works, &[]),
        (
            "no elements within another",
            |dir| add(dir, r#""dtype":"F32","shape":[0],"data_offsets":[100,100]"#, b""),
            Refused(6),
            &["model.more", "begin at 100"],
        ),
        (
            "no elements beyond the end",
            |dir| add(dir, r#""dtype":"F32","shape":[0],"data_offsets":[2308,2308]"#, b""),
            Refused(6),
            &["model.more", "begin at 2308"],
        ),
        (
            "no elements, but bytes",
            |dir| add(dir, r#""dtype":"F32","shape":[0],"data_offsets":[2304,2308]"#, &[1; 4]),
            Refused(6),
            &["model.more", "takes 0 bits"],
        ),
    ]);
}

#[test]
fn indices_that_lie() {
    check_all(&[
        (
            "a tensor in two shards",
            |dir| index(dir, "\"model.step\"", &format!("\"model.step\":\"{SECOND}\",\"model.step\"")),
            Refused(6),
            &[INDEX, "\"model.step\" appears twice"],
        ),
        (
            "two maps",
            |dir| index(dir, "\"weight_map\"", "\"weight_map\":{},\"weight_map\""),
            Refused(6),
            &[INDEX, "appears twice"],
        ),
        (
            "a tensor that both shards hold",
            |dir| header(dir, "model.layers.1.mlp.gate_proj", "model.layers.2.mlp.gate_proj"),
            Refused(6),
            &["model.layers.2.mlp.gate_proj.weight is in", SECOND, "the index says model-00003"],
        ),
        (
            "a tensor mapped elsewhere",
            |dir| {
                let wrong = format!("\"model.step\":\"{SECOND}\"");
                index(dir, "\"model.step\":\"model-00001-of-00003.safetensors\"", &wrong);
            },
            Refused(6),
            &["model.step is in model-00001", "the index says model-00002"],
        ),
        (
            "a tensor that no shard holds",
            |dir| index(dir, "\"model.step\"", &format!("\"model.more\":\"{SECOND}\",\"model.step\"")),
            Refused(6),
            &["model.more", "does not hold it"],
        ),
        (
            "a tensor unlisted",
            |dir| index(dir, "model.step", "model.stop"),
            Refused(6),
            &["model.step", "nothing of it"],
        ),
        (
            "a shard absent",
            |dir| fs::remove_file(dir.join(SECOND)).unwrap(),
            Refused(6),
            &["1 of 3 shards missing", SECOND],
        ),
        (
            "a shard in the parent",
            |dir| index(dir, SECOND, "../config.json"),
            Refused(6),
            &["../config.json", "plain file name"],
        ),
        ("the parent", |dir| index(dir, SECOND, ".."), Refused(6), &["\"..\"", "plain file name"]),
        ("an absolute shard", |dir| index(dir, SECOND, "/etc/passwd"), Refused(6), &["/etc/passwd", "plain file name"]),
        ("a shard behind a backslash", |dir| index(dir, SECOND, "..\\\\x"), Refused(6), &["x\"", "plain file name"]),
        ("a shard in a folder", |dir| index(dir, SECOND, "original/x"), Refused(6), &["original/x", "plain file name"]),
        (
            "a shard that is called a template",
            |dir| index(dir, SECOND, "chat_template.jinja"),
            Refused(6),
            &["ends in .safetensors"],
        ),
        ("a hidden shard", |dir| index(dir, SECOND, ".x"), Refused(6), &["\".x\"", "plain file name"]),
        ("no name", |dir| index(dir, SECOND, ""), Refused(6), &["\"\"", "plain file name"]),
        (
            "a NUL",
            |dir| index(dir, SECOND, "x\\u0000.safetensors"),
            Refused(6),
            &["x\\0.safetensors", "plain file name"],
        ),
        ("an escape", |dir| index(dir, SECOND, "x\\u001b[2J"), Refused(6), &["x\\u{1b}[2J", "plain file name"]),
        ("a name too long", |dir| index(dir, SECOND, &"x".repeat(256)), Refused(6), &["plain file name"]),
        ("no string", |dir| index(dir, &format!("\"{SECOND}\""), "[]"), Refused(6), &["file names"]),
        ("no map", |dir| index(dir, "weight_map", "weight_maps"), Refused(6), &["\"weight_map\""]),
        ("a list", |dir| fs::write(dir.join(INDEX), "[]").unwrap(), Refused(6), &["\"weight_map\""]),
        ("no JSON", |dir| fs::write(dir.join(INDEX), "{").unwrap(), Refused(6), &[INDEX, "malformed JSON"]),
        ("too deep", |dir| fs::write(dir.join(INDEX), "[".repeat(1 << 20)).unwrap(), Refused(6), &["malformed JSON"]),
        (
            "both layouts",
            |dir| assert!(fs::copy(dir.join(SECOND), dir.join("model.safetensors")).is_ok()),
            Refused(6),
            &["both model.safetensors and", "ambiguous"],
        ),
        (
            "both layouts, one of them a link to nowhere",
            |dir| symlink("nowhere", dir.join("model.safetensors")).unwrap(),
            NotCopied(1),
            &["model.safetensors", "No such file"],
        ),
    ]);
}

#[test]
fn configurations_that_lie() {
    check_all(&[
        (
            "a key twice",
            |dir| replace(&dir.join(CONFIG), "{\"arch", "{\"model_type\":1,\"arch"),
            Refused(6),
            &["twice"],
        ),
        ("a list", |dir| fs::write(dir.join(CONFIG), "[]").unwrap(), Refused(6), &[CONFIG, "a JSON object"]),
        ("no number", |dir| replace(&dir.join(CONFIG), "0.00001", "NaN"), Refused(6), &[CONFIG, "malformed JSON"]),
        (
            "too deep",
            |dir| fs::write(dir.join(CONFIG), "{\"a\":".repeat(1000)).unwrap(),
            Refused(6),
            &["malformed JSON"],
        ),
        (
            "too large",
            |dir| fs::write(dir.join(CONFIG), " ".repeat((16 << 20) + 1)).unwrap(),
            Refused(6),
            &["16777217 bytes", "at most 16777216"],
        ),
        ("empty", |dir| fs::write(dir.join(CONFIG), "").unwrap(), Refused(6), &[CONFIG, "malformed JSON"]),
    ]);
}

#[test]
fn files_that_are_none() {
    check_all(&[
        ("a pipe as shard", |dir| instead(dir.join(SECOND), fifo), Refused(6), &[SECOND, "regular file"]),
        ("a pipe as index", |dir| instead(dir.join(INDEX), fifo), Refused(6), &[INDEX, "regular file"]),
        ("a pipe as configuration", |dir| instead(dir.join(CONFIG), fifo), Refused(6), &[CONFIG, "regular file"]),
        (
            "a device as shard",
            |dir| instead(dir.join(SECOND), |path| symlink("/dev/zero", path).unwrap()),
            Refused(6),
            &[SECOND, "regular file"],
        ),
        (
            "a device as configuration",
            |dir| instead(dir.join(CONFIG), |path| symlink("/dev/zero", path).unwrap()),
            Refused(6),
            &[CONFIG, "regular file"],
        ),
        (
            "a folder as shard",
            |dir| instead(dir.join(SECOND), |path| fs::create_dir(path).unwrap()),
            Refused(6),
            &[SECOND, "regular file"],
        ),
        (
            "a link to nowhere as shard",
            |dir| instead(dir.join(SECOND), |path| symlink("nowhere", path).unwrap()),
            Refused(6),
            &["1 of 3 shards missing", SECOND],
        ),
        (
            "a link to itself as shard",
            |dir| instead(dir.join(SECOND), |path| symlink(SECOND, path).unwrap()),
            Refused(6),
            &["1 of 3 shards missing", SECOND],
        ),
        (
            "a shard that is a link",
            |dir| {
                fs::rename(dir.join(SECOND), dir.join("blob")).unwrap();
                symlink("blob", dir.join(SECOND)).unwrap();
            },
            NotInPlace,
            &[SECOND, "symbolic link", "Hint", "-o"],
        ),
        (
            "a shard with two names",
            |dir| fs::hard_link(dir.join(SECOND), dir.join("again")).unwrap(),
            NotInPlace,
            &[SECOND, "another hard link", "Hint", "-o"],
        ),
        ("a pipe beside", |dir| fifo(&dir.join("pipe")), NotCopied(6), &["pipe: neither a file nor a folder"]),
        (
            "a link to nowhere beside",
            |dir| symlink("nowhere", dir.join("gone")).unwrap(),
            NotCopied(1),
            &["gone", "No such file"],
        ),
        (
            "a link to a folder beside",
            |dir| symlink("/", dir.join("all")).unwrap(),
            NotCopied(6),
            &["all: a symbolic link to a folder", "Hint"],
        ),
        (
            "folders without end",
            |dir| fs::create_dir_all(dir.join("d/".repeat(20))).unwrap(),
            NotCopied(6),
            &["nested too deep"],
        ),
    ]);
}

/// A base that was bound and then changed by somebody: what the verbs do next is tried on it.
fn changed_after_binding(change: Edit, target: fn(&Path) -> Target<'_>) -> (tempfile::TempDir, PatchError) {
    let world = common::world();
    let (dir, base) = (world.path().to_owned(), world.path().join("base"));
    let patch = verify(fs::read(dir.join("p.nestpatch")).unwrap(), &common::policy()).unwrap();
    let checkpoint = Checkpoint::open(&base).unwrap();
    let bound = bind(&patch, &checkpoint, &Accept::exact(), &()).unwrap();
    change(&base);
    let before = look(&dir);
    let error = apply(&patch, &bound, Options::new(target(&dir.join("out"))), &()).unwrap_err();
    assert!(look(&dir) == before, "{error}");
    (world, error)
}

fn cut(dir: &Path) {
    let file = fs::OpenOptions::new().write(true).open(dir.join(SECOND)).unwrap();
    file.set_len(file.metadata().unwrap().len() - 100).unwrap();
}

/// Another shard of the same header and length takes its place, as a download does.
fn exchange(dir: &Path) {
    common::write_shard(&dir.join("new"), &common::tensors(2)[SECOND]);
    assert_eq!(fs::metadata(dir.join("new")).unwrap().len(), fs::metadata(dir.join(SECOND)).unwrap().len());
    fs::rename(dir.join("new"), dir.join(SECOND)).unwrap();
}

#[test]
fn a_shard_cut_while_it_is_read() {
    let world = common::world();
    let checkpoint = Checkpoint::open(&world.path().join("base")).unwrap();
    cut(checkpoint.dir());
    let patch = verify(fs::read(world.path().join("p.nestpatch")).unwrap(), &common::policy()).unwrap();
    let error = bind(&patch, &checkpoint, &Accept::exact(), &()).unwrap_err();
    let PatchError::Bind(BindError::Checkpoint(CheckpointError::Changed { path, expected, found })) = error else {
        panic!("{error}")
    };
    assert!(path.ends_with(SECOND) && expected == found + 100);
}

#[test]
fn a_shard_cut_or_exchanged_between_binding_and_writing() {
    let (_world, error) = changed_after_binding(cut, |out| Target::NewFolder(out));
    assert!(error.to_string().contains("malformed") || error.to_string().contains("changed while"), "{error}");
    let (_world, error) = changed_after_binding(exchange, |out| Target::NewFolder(out));
    assert!(error.to_string().contains("another file has its name"), "{error}");
    let (_world, error) = changed_after_binding(exchange, |_| Target::InPlace);
    assert!(error.to_string().contains("another file has its name"), "{error}");
    let (_world, error) = changed_after_binding(cut, |_| Target::InPlace);
    assert!(error.to_string().contains("changed while"), "{error}");
}

/// Megabytes of header and index that make much of little, and the program's whole memory.
#[cfg(target_os = "linux")]
#[test]
fn large_headers_take_memory_in_proportion() {
    const MEGABYTES: usize = 4;
    let fill = |text: &str| text.repeat((MEGABYTES << 20) / text.len());
    let many = |entry: &dyn Fn(usize) -> String| {
        let entries: Vec<String> = (0..(MEGABYTES << 20) / entry(0).len()).map(entry).collect();
        entries.join(",")
    };
    let shard =
        |header: String| ("model.safetensors", [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat());
    let index = |text: String| (INDEX, text.into_bytes());
    let cases = [
        ("padding", shard(format!("{{}}{}", fill(" "))), 0, ""),
        (
            "a shape",
            shard(format!(r#"{{"a":{{"dtype":"U8","shape":[{}1],"data_offsets":[0,1]}}}}"#, fill("1,"))),
            6,
            "shape",
        ),
        (
            "tensors",
            shard(format!(
                "{{{}}}",
                many(&|n| format!(r#""{n:08}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#))
            )),
            0,
            "",
        ),
        ("metadata", shard(format!(r#"{{"__metadata__":{{{}}}}}"#, many(&|n| format!(r#""{n:08}":"""#)))), 0, ""),
        (
            "a name",
            shard(format!(r#"{{"{}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}}}"#, fill("\\u0001"))),
            6,
            "tensor",
        ),
        ("a list", index(format!(r#"{{"x":[{}0]}}"#, fill("0,"))), 6, "weight_map"),
        (
            "a map",
            index(format!(r#"{{"weight_map":{{{}}}}}"#, many(&|n| format!(r#""{n:08}":"m.safetensors""#)))),
            6,
            "missing",
        ),
        (
            "shards",
            index(format!(r#"{{"weight_map":{{{}}}}}"#, many(&|n| format!(r#""{n:08}":"{n:08}.safetensors""#)))),
            6,
            "missing",
        ),
    ];
    for (case, (name, bytes), code, words) in cases {
        let place = common::folder();
        let dir = place.path();
        fs::create_dir(dir.join("base")).unwrap();
        fs::write(dir.join("base").join(CONFIG), "{}").unwrap();
        fs::write(dir.join("base").join(name), bytes).unwrap();
        // Forty bytes of memory for each of the file, and 16 MiB for the program; half a byte for each is too little.
        let run = |mebibytes: usize| {
            let limit = format!("ulimit -d {} && exec \"$@\"", mebibytes << 10);
            let nestpatch = env!("CARGO_BIN_EXE_nestpatch");
            Command::new("sh")
                .args(["-c", &limit, "sh", nestpatch, "status", "base"])
                .current_dir(dir)
                .output()
                .unwrap()
        };
        let ran = run(16 + 40 * MEGABYTES);
        let stderr = String::from_utf8_lossy(&ran.stderr);
        assert_eq!(ran.status.code(), Some(code), "{case}: {stderr:.1000}");
        assert!(stderr.contains(words) && stderr.len() < 2000, "{case}: {stderr:.1000}");
        assert_ne!(run(MEGABYTES / 2).status.code(), Some(code), "{case}: the limit does not bite");
    }
}
