//! The specification's constants and examples, read out of its text and held against the code.

#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

use std::collections::BTreeMap;

use nestpatch::fold;
use nestpatch::format::binding::{ROWS_CONTEXT, TENSOR_CONTEXT};
use nestpatch::format::container::{Container, HEADER_BYTES, MAGIC, PAYLOAD_TYPE};
use nestpatch::format::manifest::{CONTENT_ROOT_CONTEXT, PREDICATE_TYPE, STATEMENT_TYPE};
use nestpatch::format::residual::LANES;
use nestpatch::format::sketch::{PROJECTIONS, SIGNS_CONTEXT};
use nestpatch::format::status_feed::{FEED_ENTRIES_CONTEXT, FEED_PREDICATE_TYPE};
use nestpatch::format::{
    Deltas, Edit, EditParts, Edits, Layout, Manifest, ResidualBuilder, Sketch, TensorSketcher, limits,
};
use nestpatch::tensor::{Dtype, Shape, TensorName};
use nestpatch::trust::{Policy, Role, SecretKey};

const SPEC: &str = include_str!("../spec/format.md");
const TRUST: &str = include_str!("../spec/trust.md");
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
