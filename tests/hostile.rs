// `ulimit -d` counts what a program allocates on Linux only.
#![cfg(target_os = "linux")]
//! Small files that ask for much: the real program, given 64 MiB of memory and one second of processor time.
//!
//! The system keeps the limits, so no test holds a clock. Two controls show that honest files pass and that the limits bite.

#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, ExitStatus};

use nestpatch::digest::{Blake3, Sha256};
use nestpatch::format::manifest::{FormatVersion, SectionEntry};
use nestpatch::format::section::write_edits;
use nestpatch::format::{
    Codec, Container, Deltas, Edit, EditParts, Edits, Envelope, Layout, Manifest, Payload, SignatureRecord, frame,
    limits,
};
use nestpatch::tensor::{Dtype, Shape, TensorName};
use nestpatch::trust::{KeyError, SecretKey};
use serde_json::{Value, json};

const TINY: &[u8] = include_bytes!("../fixtures/format/tiny.nestpatch");
/// 64 MiB of data, in KiB; one second of processor time.
const LIMITS: &str = "ulimit -d 65536 && ulimit -t 1 && exec \"$@\"";
const GIB: u64 = 1 << 30;

struct Ran {
    status: ExitStatus,
    stderr: String,
}

/// Runs a command under the limits in `dir`.
fn limited(dir: &Path, command: &[&str]) -> Ran {
    let output = Command::new("sh").args(["-c", LIMITS, "sh"]).args(command).current_dir(dir).output().unwrap();
    Ran { status: output.status, stderr: String::from_utf8(output.stderr).unwrap() }
}

fn nestpatch(dir: &Path, arguments: &[&str]) -> Ran {
    limited(dir, &[&[env!("CARGO_BIN_EXE_nestpatch")], arguments].concat())
}

/// Refused with this exit code, in few and short lines that hold `words`.
#[track_caller]
fn refuses(dir: &Path, arguments: &[&str], code: i32, words: &str) {
    let Ran { status, stderr } = nestpatch(dir, arguments);
    assert_eq!(status.code(), Some(code), "{arguments:?}: {status}: {stderr:.2000}");
    assert!(stderr.starts_with("Error: ") && stderr.contains(words), "{arguments:?} lacks {words:?}: {stderr:.2000}");
    let lines = stderr.lines().count();
    let longest = stderr.lines().map(|line| line.chars().count()).max();
    // TOML's errors show the place in five lines.
    assert!(
        lines <= if arguments.contains(&"--trust") { 5 } else { 3 } && longest <= Some(1050),
        "{arguments:?}: {lines} lines, the longest of {longest:?} letters"
    );
}

fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("key.pub"), key().public().unwrap().to_pem()).unwrap();
    dir
}

fn key() -> SecretKey {
    SecretKey::from_seed(&[1; 32])
}

/// A file of these parts, signed by the trusted key or not at all.
fn file(manifest: &[u8], payload: &[u8], signed: bool) -> Vec<u8> {
    let records: Vec<SignatureRecord> = signed.then(|| key().sign(manifest).unwrap()).into_iter().collect();
    Container::write(manifest, &records, payload, FormatVersion::CURRENT).unwrap()
}

/// `verify --key` refuses the signed file, `inspect` the unsigned one, both as malformed.
#[track_caller]
fn malformed(manifest: &[u8], payload: &[u8], words: &str) {
    let dir = folder();
    let write = |signed| fs::write(dir.path().join("p"), file(manifest, payload, signed)).unwrap();
    write(true);
    refuses(dir.path(), &["verify", "p", "--key", "key.pub"], 4, words);
    write(false);
    refuses(dir.path(), &["inspect", "p"], 4, words);
    refuses(dir.path(), &["verify", "p"], 4, words);
}

/// A section as the attacker puts it: stored bytes, and what they are said to decode to.
struct Section {
    kind: &'static str,
    codec: &'static str,
    stored: Vec<u8>,
    length: u64,
    digests: (Blake3, Sha256),
}

impl Section {
    fn raw(kind: &'static str, bytes: Vec<u8>) -> Self {
        Self { codec: "raw", length: bytes.len() as u64, ..Self::zstd(kind, bytes, 0) }
    }

    /// Digests of the content are compared last, so those of the stored bytes will mostly do.
    fn zstd(kind: &'static str, stored: Vec<u8>, length: u64) -> Self {
        let digests = (Blake3::of(&stored), Sha256::of(&stored));
        Self { kind, codec: "zstd", stored, length, digests }
    }

    /// Right in every way.
    fn compressed(kind: &'static str, content: &[u8]) -> Self {
        let stored = frame::store(&Codec::Zstd, content).unwrap();
        let digests = (Blake3::of(content), Sha256::of(content));
        Self { digests, ..Self::zstd(kind, stored, content.len() as u64) }
    }

    fn entry(&self) -> SectionEntry {
        let (blake3, sha256) = (self.digests.0.to_string(), self.digests.1.to_string());
        let stored = Blake3::of(&self.stored).to_string();
        let entry = json!({
            "name": self.kind, "kind": self.kind, "critical": self.kind != "residual", "codec": self.codec,
            "stored": {"length": self.stored.len(), "blake3": stored},
            "content": {"length": self.length, "blake3": blake3, "sha256": sha256},
        });
        serde_json::from_value(entry).unwrap()
    }
}

fn honest() -> Value {
    serde_json::from_slice(Container::parse(TINY).unwrap().manifest()).unwrap()
}

/// The example's manifest about other sections, and their payload.
fn with_sections(sections: &[Section]) -> (Vec<u8>, Vec<u8>) {
    let entries: Vec<SectionEntry> = sections.iter().map(Section::entry).collect();
    let mut manifest = honest();
    let subject = |entry: &SectionEntry| {
        let digest = json!({"blake3": entry.content.blake3, "sha256": entry.content.sha256});
        json!({"name": entry.name, "digest": digest})
    };
    manifest["subject"] = entries.iter().map(subject).collect();
    manifest["predicate"]["content_root"] = Manifest::compute_content_root(&entries).to_string().into();
    manifest["predicate"]["sections"] = serde_json::to_value(&entries).unwrap();
    let payload = sections.iter().flat_map(|section| section.stored.clone()).collect();
    (manifest.to_string().into_bytes(), payload)
}

fn honest_edits() -> Edits {
    let container = Container::parse(TINY).unwrap();
    Payload::read(&container.read_manifest().unwrap(), container.payload()).unwrap().edits
}

fn honest_rows() -> Section {
    Section::raw("rows", write_edits(&honest_edits()).unwrap().0)
}

fn honest_deltas() -> Section {
    Section::raw("deltas", write_edits(&honest_edits()).unwrap().1)
}

/// A frame of zeros: four bytes for each 128 KiB. Its header says `window` (RFC 8878 section 3.1.1.1.2).
fn bomb(length: u64, window: u8) -> Vec<u8> {
    let mut out = [&0xfd2f_b528_u32.to_le_bytes()[..], &[0xc0, window], &length.to_le_bytes()].concat();
    let blocks = length.div_ceil(1 << 17);
    for index in 0..blocks {
        let size = (length - (index << 17)).min(1 << 17) as u32;
        let header = size << 3 | 1 << 1 | u32::from(index + 1 == blocks);
        out.extend([&header.to_le_bytes()[..3], &[0]].concat());
    }
    out
}

const WINDOW_8_MIB: u8 = 13 << 3;

/// Rows that rightly ask for a gigabyte of deltas: 512 rows of 2^20 elements, each a cluster of its own.
fn wide_rows() -> Section {
    let mut rows = 1_u64.to_le_bytes().to_vec();
    let list = || [&512_u64.to_le_bytes()[..], &(0..512_u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>()].concat();
    for part in [&1_u64.to_le_bytes()[..], b"w", &[1], &2_u64.to_le_bytes(), &512_u64.to_le_bytes()] {
        rows.extend(part);
    }
    rows.extend([&(1_u64 << 20).to_le_bytes()[..], &[0, 1], &list(), &list()].concat());
    Section::raw("rows", rows)
}

#[test]
fn honest_files_pass_under_the_limits() {
    let dir = folder();
    fs::write(dir.path().join("p"), TINY).unwrap();
    let trust =
        format!("version = 1\n[[people]]\nname = \"Ada\"\nkeys = [\"{}\"]\n", key().public().unwrap().to_line());
    fs::write(dir.path().join("trust.toml"), trust).unwrap();
    for arguments in [
        &["inspect", "p"][..],
        &["inspect", "p", "--json"],
        &["verify", "p", "--key", "key.pub"],
        &["verify", "p", "--trust", "trust.toml"],
    ] {
        let Ran { status, stderr } = nestpatch(dir.path(), arguments);
        assert!(status.success() && stderr.is_empty(), "{arguments:?}: {status}: {stderr}");
    }
}

#[test]
fn the_limits_bite() {
    let dir = folder();
    // What a trusted person signed may take a gigabyte, and does.
    let (manifest, payload) = with_sections(&[wide_rows(), Section::zstd("deltas", bomb(GIB, WINDOW_8_MIB), GIB)]);
    fs::write(dir.path().join("p"), file(&manifest, &payload, true)).unwrap();
    let Ran { status, stderr } = nestpatch(dir.path(), &["verify", "p", "--key", "key.pub"]);
    assert!(status.code().is_none() && stderr.contains("memory allocation"), "{status}: {stderr}");
    let Ran { status, .. } = limited(dir.path(), &["sh", "-c", "while :; do :; done"]);
    assert!(status.signal().is_some(), "{status}");
}

/// Under 40 kB that nobody signed, and everything in them agrees: 160 MiB, a gigabyte, a gigabyte twice.
#[test]
fn bombs_of_strangers_are_not_decoded() {
    let dir = folder();
    fs::write(dir.path().join("own.key"), key().to_pem(None).unwrap().as_str()).unwrap();
    let rows_cap = limits::MAX_ROWS_SECTION_BYTES as u64;
    let deltas = || Section::zstd("deltas", bomb(GIB, WINDOW_8_MIB), GIB);
    let rows = || Section::zstd("rows", bomb(rows_cap, WINDOW_8_MIB), rows_cap);
    for (sections, words) in [
        (vec![wide_rows(), deltas()], "\"deltas\" decodes to 1073741824 bytes: expected at most 8388608"),
        (vec![rows(), honest_deltas()], "\"rows\" decodes to 167772160 bytes: expected at most 8388608"),
        (vec![rows(), deltas()], "as nobody vouches for the patch"),
    ] {
        let (manifest, payload) = with_sections(&sections);
        let file = file(&manifest, &payload, false);
        assert!(file.len() < 48 << 10, "{} bytes", file.len());
        fs::write(dir.path().join("p"), file).unwrap();
        refuses(dir.path(), &["inspect", "p"], 3, words);
        refuses(dir.path(), &["verify", "p"], 3, words);
        refuses(dir.path(), &["diff", "p", "p"], 3, words);
        refuses(dir.path(), &["sign", "p", "--key", "own.key"], 3, words);
        // A key changes nothing where it has not signed; the report is no error, and short.
        assert_eq!(nestpatch(dir.path(), &["verify", "p", "--key", "key.pub"]).status.code(), Some(3));
    }
}

/// Just under what a stranger's section may decode to: still refused by its content, and within the limits.
#[test]
fn the_most_that_is_decoded_for_a_stranger_fits() {
    let dir = folder();
    let most = limits::MAX_UNVERIFIED_BYTES;
    // As many edits as there may be, and then more bytes: all of it is decoded before it is refused.
    let rows = [&(limits::MAX_EDITS as u64).to_le_bytes()[..], &vec![0; most as usize - 8]].concat();
    let (manifest, payload) = with_sections(&[Section::compressed("rows", &rows), honest_deltas()]);
    fs::write(dir.path().join("p"), file(&manifest, &payload, false)).unwrap();
    refuses(dir.path(), &["inspect", "p"], 4, "section rows: expected 1146888 bytes, found 8388608");
    // A whole patch of 4 rows of 2^20 zeros: everything in it is right, so it is shown.
    let edits = edits_of_zeros(4);
    assert_eq!(write_edits(&edits).unwrap().1.len() as u64, most);
    fs::write(dir.path().join("p"), unsigned(&edits)).unwrap();
    let Ran { status, stderr } = nestpatch(dir.path(), &["inspect", "p"]);
    assert!(status.success(), "{status}: {stderr}");
}

/// A whole patch of one tensor, its digests borrowed, and nobody's.
fn unsigned(edits: &Edits) -> Vec<u8> {
    let container = Container::parse(TINY).unwrap();
    let (sections, payload) = Payload::write(edits, None, None).unwrap();
    let mut manifest = container.read_manifest().unwrap();
    manifest.content_root = Manifest::compute_content_root(&sections);
    manifest.sections = sections;
    let edit = edits.iter().next().unwrap();
    let (base, result) = (&mut manifest.base.tensors, &mut manifest.result.tensors);
    base.truncate(1);
    result.truncate(1);
    (base[0].name, base[0].dtype, base[0].shape) = (edit.tensor().clone(), edit.dtype(), edit.shape().clone());
    result[0].name = edit.tensor().clone();
    file(&manifest.to_bytes().unwrap(), &payload, false)
}

/// A stack of a million matrices, a row of each touched: taken for one tensor, not for a million experts.
#[test]
fn a_million_matrices_are_not_listed() {
    let (dir, count) = (folder(), 1_040_000);
    let edit = EditParts {
        tensor: TensorName::new("model.layers.0.mlp.experts.gate_up_proj").unwrap(),
        dtype: Dtype::Bf16,
        shape: Shape::new([count, 2, 1]).unwrap(),
        layout: Layout::Rows,
        rows: (0..count as u32).map(|matrix| matrix * 2).collect(),
        clusters: vec![0; count as usize],
        deltas: Deltas::new(Dtype::Bf16, 1, vec![1.0]).unwrap(),
    };
    fs::write(dir.path().join("p"), unsigned(&Edits::new(vec![Edit::new(edit).unwrap()]).unwrap())).unwrap();
    for arguments in [&["inspect", "p"][..], &["inspect", "p", "--json"]] {
        let Ran { status, stderr } = nestpatch(dir.path(), arguments);
        assert!(status.success(), "{status}: {stderr}");
    }
}

fn edits_of_zeros(rows: u32) -> Edits {
    let cols = limits::MAX_COLS;
    let edit = EditParts {
        tensor: TensorName::new("w").unwrap(),
        dtype: Dtype::Bf16,
        shape: Shape::new([u64::from(rows), cols as u64]).unwrap(),
        layout: Layout::Rows,
        rows: (0..rows).collect(),
        clusters: (0..rows).collect(),
        deltas: Deltas::new(Dtype::Bf16, cols, vec![0.0; rows as usize * cols]).unwrap(),
    };
    Edits::new(vec![Edit::new(edit).unwrap()]).unwrap()
}

/// Signed or not, `rows` says how long the others are before they are decoded.
#[test]
fn lengths_that_rows_do_not_imply_are_refused_before_decoding() {
    let (edits, rows) = (honest_edits(), honest_rows);
    let residual = edits.touched_bytes() + edits.rows() as u64 * 60;
    let deltas = honest_deltas().length;
    let long = |kind| Section::zstd(kind, bomb(GIB, WINDOW_8_MIB), GIB);
    let check = |sections: &[Section], words: &str| {
        let (manifest, payload) = with_sections(sections);
        malformed(&manifest, &payload, words);
    };
    let words = format!("residual: expected {residual} bytes, found {GIB}");
    check(&[rows(), honest_deltas(), long("residual")], &words);
    check(&[long("rows"), honest_deltas()], "expected at most 167772160 bytes decoded, found 1073741824");
    // A stranger's is refused for its length alone.
    let dir = folder();
    let (manifest, payload) = with_sections(&[rows(), long("deltas")]);
    fs::write(dir.path().join("p"), file(&manifest, &payload, true)).unwrap();
    let words = format!("section deltas: expected {deltas} bytes, found {GIB}");
    refuses(dir.path(), &["verify", "p", "--key", "key.pub"], 4, &words);
    refuses(dir.path(), &["inspect", "p"], 3, "decodes to 1073741824 bytes");
}

#[test]
fn frames_that_are_not_plain_are_refused() {
    let length = honest_deltas().length;
    let frame = bomb(length, WINDOW_8_MIB);
    let skippable = [&0x184d_2a50_u32.to_le_bytes()[..], &u32::MAX.to_le_bytes(), &[0; 64]].concat();
    let dictionary = {
        let mut frame = frame.clone();
        frame[4] |= 1;
        frame.insert(6, 7);
        frame
    };
    for (stored, words) in [
        (bomb(length, 21 << 3), "window: expected at most 2^23 bytes, found 2147483648"),
        (bomb(length, 0xff), "window: expected at most 2^23 bytes"),
        (Vec::new(), "zstd frame: header"),
        (bomb(GIB, WINDOW_8_MIB), "declared content size"),
        ([&frame[..], &bomb(GIB, WINDOW_8_MIB)].concat(), "frames: expected one"),
        ([&frame[..], &skippable].concat(), "frames: expected one"),
        ([&skippable[..], &frame].concat(), "magic"),
        (dictionary, "dictionary: expected none"),
    ] {
        let (manifest, payload) = with_sections(&[honest_rows(), Section::zstd("deltas", stored, length)]);
        malformed(&manifest, &payload, words);
    }
}

/// Counts and lengths within `rows` that nothing backs. The second asked bincode for 160 MiB before it read a byte.
#[test]
fn counts_in_rows_are_not_believed() {
    let word = |value: u64| value.to_le_bytes().to_vec();
    let head = [word(1), word(1), b"w".to_vec(), vec![1]].concat();
    let shape = [&head[..], &word(2), &word(1 << 20), &word(2), &[0, 1]].concat();
    let tall = [word(1), word(1), b"w".to_vec(), vec![1], word(7000), vec![1; 56000]].concat();
    for (rows, words) in [
        (word(u64::MAX), "edited tensors: expected at most 32768"),
        ([word(1), word((160 << 20) - 16)].concat(), "cannot be decoded"),
        ([word(1), word(1 << 60)].concat(), "cannot be decoded"),
        ([word(32_768), vec![0; 1000]].concat(), "section rows"),
        ([&head[..], &word(1 << 60)].concat(), "cannot be decoded"),
        ([&shape[..], &word(1 << 24)].concat(), "cannot be decoded"),
        ([&shape[..], &word(u64::MAX)].concat(), "cannot be decoded"),
        ([&tall[..], &[0, 1], &word(0), &word(0)].concat(), "expected at most 8 dimensions"),
    ] {
        let (manifest, payload) = with_sections(&[Section::raw("rows", rows), honest_deltas()]);
        malformed(&manifest, &payload, words);
    }
}

/// Half a million edits in two kilobytes: each would take three times its bytes in memory.
#[test]
fn edits_are_counted_before_they_are_decoded() {
    let content = [&500_000_u64.to_le_bytes()[..], &vec![0; 20_000_000]].concat();
    let (manifest, payload) = with_sections(&[Section::compressed("rows", &content), honest_deltas()]);
    let dir = folder();
    fs::write(dir.path().join("p"), file(&manifest, &payload, true)).unwrap();
    let words = "edited tensors: expected at most 32768, found 500000";
    refuses(dir.path(), &["verify", "p", "--key", "key.pub"], 4, words);
}

#[test]
fn lengths_in_the_header_are_not_believed() {
    let dir = folder();
    let caps = [limits::MAX_MANIFEST_BYTES, limits::MAX_SIGNATURES_BYTES, limits::MAX_PAYLOAD_BYTES];
    for (at, cap) in [24, 32, 16].into_iter().zip([caps[1], caps[2], caps[0]]) {
        for (length, words) in [(u64::MAX, "expected at most"), (cap + 1, "expected at most"), (cap, "file: expected")]
        {
            let mut file = TINY.to_vec();
            file[at..at + 8].copy_from_slice(&length.to_le_bytes());
            fs::write(dir.path().join("p"), file).unwrap();
            refuses(dir.path(), &["verify", "p", "--key", "key.pub"], 4, words);
            refuses(dir.path(), &["inspect", "p"], 4, words);
        }
    }
}

#[test]
fn signature_records_are_bounded() {
    let dir = folder();
    let container = Container::parse(TINY).unwrap();
    let record = |key: u8, length: u32| {
        let id = [key; 32];
        [&7_u16.to_le_bytes()[..], &[0, 0], &length.to_le_bytes(), &id, &vec![0; length.min(8) as usize]].concat()
    };
    for (records, words) in [
        ((0..=64).flat_map(|key| record(key, 8)).collect::<Vec<u8>>(), "signatures: expected at most 64, found 65"),
        (record(1, u32::MAX), "signature record: expected"),
        (record(1, 50_001), "signature record: expected"),
        ((0..64).flat_map(|_| record(1, 0)).collect(), "strictly ascending"),
    ] {
        let mut file = TINY[..24].to_vec();
        file.extend((records.len() as u64).to_le_bytes());
        file.extend(&TINY[32..64]);
        [container.manifest(), &records[..], container.payload()].iter().for_each(|part| file.extend(*part));
        fs::write(dir.path().join("p"), file).unwrap();
        refuses(dir.path(), &["verify", "p", "--key", "key.pub"], 4, words);
        refuses(dir.path(), &["inspect", "p"], 4, words);
    }
}

#[test]
fn json_is_bounded() {
    let deep = |open: &str, close: &str| format!("{{\"a\":{}0{}}}", open.repeat(100_000), close.repeat(100_000));
    let many = |item: &str, count: usize| vec![item; count].join(",");
    let members = (0..65_537).map(|index| format!("\"{index}\":0")).collect::<Vec<_>>().join(",");
    let mut long = honest();
    long["predicate"]["sequence"] = "x".repeat(60_000).into();
    let long = long.to_string();
    let mut wide = honest();
    wide["predicate"]["sections"] = vec![wide["predicate"]["sections"][0].clone(); 100].into();
    for (manifest, words) in [
        (deep("[", "]"), "16 levels of nesting"),
        (deep("{\"a\":", "}"), "16 levels of nesting"),
        (format!("{{\"a\":{}", "[".repeat(100_000)) + "}", "16 levels of nesting"),
        (format!("{{{members}}}"), "expected at most 65536 members"),
        (format!("{{\"sections\":[{}]}}", many("{}", 1_000_000)), "expected at most 65536 members"),
        (format!("{{\"a\":\"{}\"}}", "\\u0000".repeat(10_000)), "missing field"),
        (format!("{{\"{}\":0,\"a\":{}}}", "k".repeat(60_000), "9".repeat(400)), "number"),
        (long, "invalid type: string"),
        (wide.to_string(), "sections: expected at most 64, found 100"),
    ] {
        malformed(manifest.as_bytes(), b"", words);
    }
}

#[test]
fn keys_and_trust_files_are_bounded() {
    let dir = folder();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("p"), TINY).unwrap();
    let line = key().public().unwrap().to_line();
    let person = |index: usize| format!("[[people]]\nname = \"{index}\"\nkeys = [\"{line}\"]\n");
    let pem = key().public().unwrap().to_pem();
    for (key, words) in [
        ("A".repeat(5 << 20), "found 16385 bytes"),
        (pem.replace('\n', &"\n".repeat(1 << 20)), "found 16385 bytes"),
        ("-----BEGIN PUBLIC KEY-----\n".repeat(600), "public key: expected"),
        (String::from(&*SecretKey::from_seed(&[1; 32]).to_pem(None).unwrap()), "public key: expected"),
    ] {
        fs::write(path("big.pub"), key).unwrap();
        refuses(dir.path(), &["verify", "p", "--key", "big.pub"], 7, words);
    }
    for (trust, words) in [
        ("#".repeat(5 << 20), "at most 524288"),
        (
            format!("version = 1\n{}", (0..1001).map(person).collect::<String>()),
            "people: expected 1 to 1000, found 1001",
        ),
        (
            format!("version = 1\n[[people]]\nname = \"a\"\nkeys = [{}]", format!("\"{line}\",").repeat(1001)),
            "1 to 1000",
        ),
        (format!("version = 1\npeople = {}", "[".repeat(100_000)), "trust"),
        (format!("version = 1\n{}", "a.".repeat(100_000)), "trust"),
        (format!("version = {}", "1".repeat(500 << 10)), "trust"),
        (format!("version = 1\n{} = 1", "k".repeat(500 << 10)), "trust"),
        // What takes the TOML reader most memory for its bytes.
        (format!("version = 1\nx = [{}]", "1,".repeat(250 << 10)), "trust"),
        (format!("version = 1\npeople = [{}]", "{},".repeat(170 << 10)), "trust"),
        (format!("version = 1\n{}", "[[people]]\n".repeat(47_000)), "trust"),
    ] {
        fs::write(path("trust.toml"), trust).unwrap();
        refuses(dir.path(), &["verify", "p", "--trust", "trust.toml"], 7, words);
    }
}

#[test]
fn status_feeds_are_bounded() {
    let dir = folder();
    fs::write(dir.path().join("p"), TINY).unwrap();
    let envelope = |statement: &[u8]| {
        let signature = key().sign(statement).unwrap();
        Envelope::new(statement.to_vec(), vec![signature]).to_json()
    };
    let predicate = |text: &str| {
        let head = "{\"_type\":\"https://in-toto.io/Statement/v1\",\"subject\":[],\
                    \"predicateType\":\"urn:nestpatch:status-feed:v1\",\"predicate\":";
        envelope(format!("{head}{text}}}").as_bytes())
    };
    let times = "\"issued\":\"2026-01-01T00:00:00Z\",\"expires\":\"2040-01-01T00:00:00Z\"";
    let entries = vec!["{}"; 20_000].join(",");
    for (feed, words) in [
        ("[".repeat(60_000), "first byte"),
        (format!("{{\"payload\":{}", "[".repeat(60_000)) + "}", "16 levels"),
        (" ".repeat(25 << 20), "at most 25165824"),
        (format!("{{\"payload\":\"{}\"}}", "A".repeat(60_000)), "missing field"),
        (envelope(format!("{{\"a\":{}", "[".repeat(40_000)).as_bytes()), "first byte"),
        (envelope(format!("{{\"a\":{}1{}}}", "[".repeat(20_000), "]".repeat(20_000)).as_bytes()), "16 levels"),
        (predicate(&format!("{{\"feed\":\"f\",\"number\":1,{times},\"entries\":[{entries}]}}")), "missing field"),
        (predicate(&format!("{{\"feed\":\"{}\",\"number\":1,{times},\"entries\":[]}}", "f".repeat(40_000))), "feed"),
    ] {
        fs::write(dir.path().join("feed"), feed).unwrap();
        refuses(dir.path(), &["verify", "p", "--key", "key.pub", "--status-feed", "feed"], 7, words);
    }
}

#[test]
fn a_checkpoint_header_is_not_believed() {
    let dir = folder();
    let base = dir.path().join("base");
    fs::create_dir(&base).unwrap();
    fs::write(dir.path().join("p"), TINY).unwrap();
    fs::write(base.join("config.json"), r#"{"model_type":"llama"}"#).unwrap();
    let deep = format!("{{\"a\":{}", "[".repeat(50_000));
    let file = |length: u64, header: &str| [&length.to_le_bytes()[..], header.as_bytes()].concat();
    for (bytes, words) in [
        (file(1 << 60, "{}"), "claims 1152921504606846976 bytes"),
        (file(u64::MAX, "{}"), "claims 18446744073709551615 bytes"),
        (file(100_000_000, "{}"), "too few for a safetensors header"),
        (file(deep.len() as u64, &deep), "not a JSON object of tensors"),
        (
            file(89, r#"{"a":{"dtype":"F32","shape":[1152921504606846976],"data_offsets":[0,4611686018427387904]}}"#),
            "base",
        ),
    ] {
        fs::write(base.join("model.safetensors"), bytes).unwrap();
        refuses(dir.path(), &["verify", "p", "--key", "key.pub", "--checkpoint", "base"], 6, words);
    }
}

/// PKCS#8 whose scrypt would take a pebibyte, 64 GiB, or hours: refused before the passphrase is asked for.
#[test]
fn a_key_of_monstrous_cost_is_refused() {
    for (n, r, p) in [(1_u64 << 40, 8, 1), (1 << 14, 1 << 15, 1), (1 << 14, 8, 1 << 15)] {
        let error = SecretKey::parse(&encrypted(n, r, p), || panic!("asked for a passphrase")).unwrap_err();
        assert!(matches!(error, KeyError::Cost { .. }), "{n} {r} {p}: {error}");
    }
    let error = SecretKey::parse(&encrypted(1 << 14, 8, 1), || None).unwrap_err();
    assert_eq!(error, KeyError::Encrypted, "the structure is right, the cost was the fault");
}

fn encrypted(n: u64, r: u64, p: u64) -> String {
    let tlv = |tag: u8, content: &[u8]| {
        let length = match content.len() {
            short @ 0..128 => vec![short as u8],
            long => vec![0x81, long as u8],
        };
        [&[tag][..], &length, content].concat()
    };
    let integer = |value: u64| {
        let bytes = value.to_be_bytes();
        let first = bytes.iter().position(|byte| *byte != 0).unwrap();
        tlv(2, &[&[0][..usize::from(bytes[first] >> 7)], &bytes[first..]].concat())
    };
    let oid = |bytes: &[u8]| tlv(6, bytes);
    let cost = [tlv(4, &[0; 16]), integer(n), integer(r), integer(p)].concat();
    let kdf = tlv(0x30, &[oid(&[0x2b, 6, 1, 4, 1, 0xda, 0x47, 4, 11]), tlv(0x30, &cost)].concat());
    let aes = tlv(0x30, &[oid(&[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 1, 0x2a]), tlv(4, &[0; 16])].concat());
    let pbes2 = [oid(&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 5, 0x0d]), tlv(0x30, &[kdf, aes].concat())].concat();
    let der = tlv(0x30, &[tlv(0x30, &pbes2), tlv(4, &[0; 64])].concat());
    let lines: Vec<String> =
        base64(&der).as_bytes().chunks(64).map(|line| String::from_utf8(line.to_vec()).unwrap()).collect();
    let label = "ENCRYPTED PRIVATE KEY";
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |group: &[u8]| {
        let bits = (0..3).fold(0, |bits, index| bits << 8 | u32::from(group.get(index).copied().unwrap_or(0)));
        (0..4)
            .map(|index| match index <= group.len() {
                true => char::from(LETTERS[(bits >> (18 - 6 * index) & 63) as usize]),
                false => '=',
            })
            .collect::<String>()
    };
    bytes.chunks(3).map(group).collect()
}
