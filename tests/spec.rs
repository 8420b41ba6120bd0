//! The specification's constants and examples, read out of its text and held against the code.

#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use nestpatch::digest::{Blake3, Sha256};
use nestpatch::fold;
use nestpatch::format::binding::{CHECKPOINT_CONTEXT, CheckpointHasher, ROWS_CONTEXT, TENSOR_CONTEXT, TensorHasher};
use nestpatch::format::container::{Container, HEADER_BYTES, MAGIC, PAYLOAD_TYPE};
use nestpatch::format::manifest::{CONTENT_ROOT_CONTEXT, PREDICATE_TYPE, STATEMENT_TYPE};
use nestpatch::format::residual::LANES;
use nestpatch::format::sketch::{PROJECTIONS, SIGNS_CONTEXT};
use nestpatch::format::status_feed::{FEED_ENTRIES_CONTEXT, FEED_PREDICATE_TYPE};
use nestpatch::format::{
    Deltas, Edit, EditParts, Edits, Layout, Manifest, ResidualBuilder, Sketch, TensorSketcher, Timestamp, Vectors,
    json, limits,
};
use nestpatch::patch::audit::{
    AUDIT_PREDICATE_TYPE, Audit, AuditedCheckpoint, AuditedPatch, CHECKPOINT_DIGEST_NAME, ConfigFinding, Counts,
    FileDifference, FileFinding, Files, Finding, Form, Holds, MAX_NAMED, Rows, TensorFinding, TouchedTensor, Unit,
    Verdict, statement,
};
use nestpatch::patch::record::SignedBy;
use nestpatch::tensor::{Dtype, Shape, TensorName};
use nestpatch::trust::{Policy, Role, SecretKey};
use serde_json::Value;

const SPEC: &str = include_str!("../spec/format.md");
const TRUST: &str = include_str!("../spec/trust.md");
const AUDIT: &str = include_str!("../spec/audit.md");
const TINY: &[u8] = include_bytes!("../fixtures/format/tiny.nestpatch");

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The rest of the one line that begins with `start`, without spaces.
fn after(start: &str) -> String {
    let lines: Vec<&str> = SPEC.lines().filter_map(|line| line.trim().strip_prefix(start)).collect();
    assert_eq!(lines.len(), 1, "{start}: {lines:?}");
    lines[0].chars().filter(|letter| !letter.is_whitespace()).collect()
}

#[test]
fn limits_are_those_of_the_code() {
    let mut table: BTreeMap<&str, u64> = [SPEC, TRUST]
        .iter()
        .flat_map(|text| text.lines())
        .filter_map(|line| line.strip_prefix("| `MAX_"))
        .map(|line| {
            let mut cells = line.split(['`', '|']).map(str::trim).filter(|cell| !cell.is_empty());
            (cells.next().unwrap(), cells.next().unwrap().parse().unwrap())
        })
        .collect();
    let code = [
        ("MANIFEST_BYTES", limits::MAX_MANIFEST_BYTES),
        ("JSON_DEPTH", limits::MAX_JSON_DEPTH as u64),
        ("JSON_MEMBERS", limits::MAX_JSON_MEMBERS as u64),
        ("JSON_INTEGER", limits::MAX_JSON_INTEGER),
        ("CREATION_BYTES", limits::MAX_CREATION_BYTES as u64),
        ("LABEL_BYTES", limits::MAX_LABEL_BYTES as u64),
        ("SUPERSEDES", limits::MAX_SUPERSEDES as u64),
        ("REQUIRES", limits::MAX_REQUIRES as u64),
        ("CONFIG_KEYS", limits::MAX_CONFIG_KEYS as u64),
        ("CONFIG_VALUE_BYTES", limits::MAX_CONFIG_VALUE_BYTES as u64),
        ("SIGNATURES", limits::MAX_SIGNATURES as u64),
        ("SIGNATURE_BYTES", limits::MAX_SIGNATURE_BYTES as u64),
        ("SECTIONS", limits::MAX_SECTIONS as u64),
        ("SECTION_BYTES", limits::MAX_SECTION_BYTES),
        ("PAYLOAD_BYTES", limits::MAX_PAYLOAD_BYTES),
        ("ROWS_SECTION_BYTES", limits::MAX_ROWS_SECTION_BYTES as u64),
        ("UNVERIFIED_BYTES", limits::MAX_UNVERIFIED_BYTES),
        ("UNVERIFIED_RATIO", limits::MAX_UNVERIFIED_RATIO),
        ("WINDOW_LOG", limits::MAX_WINDOW_LOG.into()),
        ("EDITS", limits::MAX_EDITS as u64),
        ("ROWS", limits::MAX_ROWS as u64),
        ("COLS", limits::MAX_COLS as u64),
        ("TOLERANCE", limits::MAX_TOLERANCE.into()),
        ("ENVELOPE_BYTES", limits::MAX_ENVELOPE_BYTES as u64),
        ("FEED_ENTRIES", limits::MAX_FEED_ENTRIES as u64),
        ("REASON_BYTES", limits::MAX_REASON_BYTES as u64),
    ];
    for (name, value) in code {
        assert_eq!(table.remove(name), Some(value), "{name}");
    }
    assert!(table.is_empty(), "limits that the code does not have: {table:?}");
}

#[test]
fn names_and_domains_are_those_of_the_code() {
    for text in [STATEMENT_TYPE, PREDICATE_TYPE, CONTENT_ROOT_CONTEXT, TENSOR_CONTEXT, ROWS_CONTEXT, SIGNS_CONTEXT] {
        assert_eq!(SPEC.matches(text).count(), 1, "{text}");
    }
    assert!(SPEC.contains(&format!("\"DSSEv1 {} {PAYLOAD_TYPE} \"", PAYLOAD_TYPE.len())));
    assert!(after("0       8      magic:").eq_ignore_ascii_case(&hex(&MAGIC)));
}

#[test]
fn the_trust_file_example_reads_as_described() {
    let start = TRUST.find("    version = 1\n").unwrap();
    let text: String = TRUST[start..]
        .lines()
        .take_while(|line| line.is_empty() || line.starts_with("    "))
        .map(|line| format!("{}\n", line.trim()))
        .collect();
    let policy = Policy::from_trust_file(&text).unwrap();
    let conditions = policy.conditions();
    assert_eq!((conditions.threshold, conditions.require[&Role::Auditor]), (2, 1));
    assert_eq!(conditions.status.as_ref().unwrap().feed, "toy status");
    assert_eq!(conditions.minimum["toy"], 3);
    let people: Vec<_> = policy.keys().map(|(person, key)| (person.name.as_str(), key.until.is_some())).collect();
    assert_eq!(people, [("Ada", false), ("Grace", true)]);
    for (seed, name) in [(1, "Ada"), (2, "Grace")] {
        let key = SecretKey::from_seed(&[seed; 32]).public().unwrap();
        assert_eq!(policy.find(key.id()).unwrap().0.name, name);
    }
    for text in [FEED_PREDICATE_TYPE, FEED_ENTRIES_CONTEXT] {
        assert_eq!(TRUST.matches(text).count(), 1, "{text}");
    }
}

#[test]
fn the_audits_digests_are_those_of_the_code() {
    for text in [AUDIT_PREDICATE_TYPE, CHECKPOINT_DIGEST_NAME, CHECKPOINT_CONTEXT, TENSOR_CONTEXT] {
        assert_eq!(AUDIT.matches(text).count(), 1, "{text}");
    }
    let (name, shape) = (TensorName::new("w").unwrap(), Shape::new([2, 2]).unwrap());
    let mut hasher = TensorHasher::of_type(&name, "BF16", &shape, 8);
    hasher.update(&[1, 2, 3, 4, 5, 6, 7, 8]);
    let content = hasher.finish().unwrap();
    let mut hasher = CheckpointHasher::default();
    hasher.add(&name, "BF16", &shape, content);
    for (what, digest) in [("content      ", content), ("checkpoint   ", hasher.finish())] {
        assert!(AUDIT.contains(&format!("\n    {what}{digest}\n")), "{what}{digest}");
    }
}

/// An audit with a finding of each kind.
fn audit_of_everything() -> Audit {
    let form = || Form { dtype: "BF16", shape: Shape::new([2, 2]).unwrap() };
    let rows = || Rows { count: 1, first: vec![0] };
    let shape = || Shape::new([2, 2]).unwrap();
    let bytes = |unit, layout| Finding::Bytes { unit, layout, shape: shape(), touched: rows(), others: rows() };
    let (row, reason) = (1, "NaN".to_owned());
    let findings = [
        Finding::Missing,
        Finding::Extra,
        Finding::Absent,
        Finding::Form { base: form(), patched: form() },
        Finding::OtherBase { patch: form(), base: form() },
        Finding::NotFoldable { row, reason },
        bytes(Unit::Row, Layout::Columns),
        bytes(Unit::Element, Layout::Rows),
    ];
    let tensor = || TensorName::new("w").unwrap();
    let side = |holds| AuditedCheckpoint { digest: Blake3::of(b""), tensors: 1, bytes: 8, holds };
    let signers = vec![SignedBy { person: "Ada".to_owned(), key_id: Sha256::of(b"") }];
    let (name, series) = ("a".to_owned(), "b".to_owned());
    let file = |is| FileFinding { path: "x".to_owned(), is };
    let config = ConfigFinding { at: "/x".to_owned(), base: None, patched: Some("1".to_owned()) };
    Audit {
        verdict: Verdict::Differs,
        patch: AuditedPatch { id: Sha256::of(b""), name, series, sequence: 1, signers },
        base: side(Holds::Base),
        patched: side(Holds::Other),
        compared: Counts { tensors: 1, touched_tensors: 1, touched_rows: 1, most_rows_named: MAX_NAMED as u64 },
        touched: vec![TouchedTensor {
            tensor: tensor(),
            rows: 1,
            is_publishers_base: true,
            is_publishers_result: false,
        }],
        findings: findings.into_iter().map(|finding| TensorFinding { tensor: tensor(), finding }).collect(),
        files: Files {
            compared: true,
            names: vec![],
            config: vec![config],
            findings: [FileDifference::Missing, FileDifference::Extra, FileDifference::Different].map(file).into(),
            strays: vec![],
        },
    }
}

/// Every member of every object in a value, and every `is`, `unit` and `layout`.
fn words(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| words(item, found)),
        Value::Object(members) => {
            for (key, value) in members {
                found.insert(key.clone());
                found.extend(
                    value.as_str().filter(|_| ["is", "unit", "layout"].contains(&key.as_str())).map(str::to_owned),
                );
                words(value, found);
            }
        }
        _ => {}
    }
}

#[test]
fn the_audits_members_are_those_of_the_code() {
    let bytes = statement(&audit_of_everything(), "model", Timestamp::from_unix(0)).unwrap();
    json::check(&bytes).unwrap();
    let statement: Value = serde_json::from_slice(&bytes).unwrap();
    let mut code = BTreeSet::new();
    words(&statement["predicate"], &mut code);
    // The verdicts and what a side holds: all there are.
    for verdict in [
        Verdict::Proven,
        Verdict::TensorsProven,
        Verdict::FilesDiffer,
        Verdict::NotApplied,
        Verdict::Swapped,
        Verdict::Differs,
    ] {
        code.insert(serde_json::to_value(verdict).unwrap().as_str().unwrap().to_owned());
    }
    for holds in [Holds::Base, Holds::Result, Holds::Other] {
        code.insert(serde_json::to_value(holds).unwrap().as_str().unwrap().to_owned());
    }
    // Of the text: what stands in quotes, or in code and is one word, in the sections on findings, verdicts and members.
    let text = &AUDIT[AUDIT.find("## 3").unwrap()..];
    let is_word =
        |word: &&str| !word.is_empty() && word.chars().all(|letter| letter.is_ascii_lowercase() || letter == '_');
    let quoted = text.split('"').skip(1).step_by(2);
    let in_code = text.split('`').skip(1).step_by(2);
    let mut spec: BTreeSet<String> = quoted.chain(in_code).filter(is_word).map(str::to_owned).collect();
    // What the text names besides: a name of JSON.
    assert!(spec.remove("null"));
    assert_eq!(spec, code);
    assert!(text.contains(&format!("at most {MAX_NAMED}.")));
}

#[test]
fn the_example_file_is_as_described() {
    let container = Container::parse(TINY).unwrap();
    assert!(SPEC.contains("`fixtures/format/tiny.nestpatch`, 3,657 bytes") && TINY.len() == 3657);
    assert_eq!(after("header").replace("00x24", &"00".repeat(24)), hex(&TINY[..HEADER_BYTES]));
    assert_eq!(after("key id       "), SecretKey::from_seed(&[1; 32]).public().unwrap().id().to_string());
    assert_eq!(after("patch_id"), container.patch_id().to_string());
    let manifest = Manifest::parse(container.manifest()).unwrap();
    assert_eq!(after("content_root"), manifest.content_root.to_string());
}

#[test]
fn the_examples_of_rows_in_a_stack_are_as_described() {
    let text = SPEC.split_whitespace().collect::<Vec<_>>().join(" ");
    for (shape, layout, words) in [
        ([8, 176, 64], Layout::Rows, "with layout 0, row 1000 is row 120 of expert 5 (1000 = 5 * 176 + 120)"),
        ([8, 64, 176], Layout::Columns, "with layout 1, row 1000 is column 120 of expert 5"),
    ] {
        let shape = Shape::new(shape).unwrap();
        let vectors = Vectors::new(layout, &shape).unwrap();
        assert_eq!((1000 / vectors.per_matrix(), 1000 % vectors.per_matrix()), (5, 120));
        let span = vectors.span(1000).unwrap();
        let element = |at: u64| span.start + at * span.stride;
        let elements = match layout {
            Layout::Rows => format!("elements {} to {}", element(0), element(span.len as u64 - 1)),
            Layout::Columns => format!("elements {}, {}, .. {}", element(0), element(1), element(span.len as u64 - 1)),
        };
        let example = format!("tacked as {shape} {words}: {elements}.");
        assert!(text.contains(&example), "{example}");
    }
}

#[test]
fn the_fold_example_is_as_described() {
    assert!(SPEC.contains("old 3f80 (1), delta 3b80 (0.00390625)") && SPEC.contains("new = 3f80"));
    let (old, delta) = (0x3f80_u16.to_le_bytes(), [0.003_906_25]);
    let mut new = old;
    fold::fold_row(Dtype::Bf16, &mut new, &delta).unwrap();
    assert_eq!(new, 0x3f80_u16.to_le_bytes());
    let mut builder = ResidualBuilder::new();
    fold::residual_row(Dtype::Bf16, &old, &new, &delta, &mut builder).unwrap();
    let edit = EditParts {
        tensor: TensorName::new("w").unwrap(),
        dtype: Dtype::Bf16,
        shape: Shape::new([1, 1]).unwrap(),
        layout: Layout::Rows,
        rows: vec![0],
        clusters: vec![0],
        deltas: Deltas::new(Dtype::Bf16, 1, delta.to_vec()).unwrap(),
    };
    let edits = Edits::new(vec![Edit::new(edit).unwrap()]).unwrap();
    let bytes = builder.finish(&edits).unwrap().to_bytes();
    assert!(SPEC.contains("value 2;") && SPEC.contains("lane 3."));
    assert_eq!(bytes[..2], 2_u16.to_le_bytes());
    let counts: Vec<u8> = bytes[2..].iter().step_by(2).copied().collect();
    assert_eq!(counts.iter().position(|count| *count == 1), Some(3));
    assert!(SPEC.contains(&format!("for each of {LANES} lanes")));
}

#[test]
fn the_sketch_example_is_as_described() {
    assert!(
        SPEC.contains("3f80 4000 4080 4100 (1, 2, 4, 8)")
            && SPEC.contains("the distance is 0.0625 / 9.219544410705566")
    );
    assert!(SPEC.contains(&format!("{PROJECTIONS} x f32  projections")));
    let edit = EditParts {
        tensor: TensorName::new("w").unwrap(),
        dtype: Dtype::Bf16,
        shape: Shape::new([1, 4]).unwrap(),
        layout: Layout::Rows,
        rows: vec![0],
        clusters: vec![0],
        deltas: Deltas::new(Dtype::Bf16, 4, vec![1.0; 4]).unwrap(),
    };
    let edits = Edits::new(vec![Edit::new(edit).unwrap()]).unwrap();
    let sketch = |row: [u16; 4]| {
        let mut sketcher = TensorSketcher::new(edits.iter().next().unwrap());
        sketcher.push(&row.map(u16::to_le_bytes).concat()).unwrap();
        sketcher.finish().unwrap()
    };
    let base = sketch([0x3f80, 0x4000, 0x4080, 0x4100]);
    assert_eq!(base.distance(&sketch([0x3f80, 0x4000, 0x4080, 0x4101])), 0.0625 / 9.219544410705566);
    let content = Sketch::new(&edits, "0.05".parse().unwrap(), vec![base]).unwrap().to_bytes();
    assert_eq!(after("sketch       "), hex(&content));
}
