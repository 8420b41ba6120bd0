//! The patch file from edits to bytes and back, and everything that must be refused on the way.

// A test says what it expects by panicking; clippy.toml allows that inside test functions, this in their helpers.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::unwrap_used)]

use std::collections::BTreeMap;

use nestpatch::digest::Blake3;
use nestpatch::fold;
use nestpatch::format::binding::{RowsHasher, TensorHasher};
use nestpatch::format::manifest::FormatVersion;
use nestpatch::format::manifest::{Architecture, Base, BaseTensor, ResultBinding, ResultTensor, Tool};
use nestpatch::format::{
    Codec, Container, Deltas, Draft, Edit, EditParts, Edits, Kind, Layout, Level, Manifest, Payload, PayloadError,
    Residual, ResidualBuilder, Timestamp, Unsigned,
};
use nestpatch::tensor::{Dtype, Shape, TensorName};
use nestpatch::trust::{self, Policy, SecretKey, TrustError};
use proptest::prelude::*;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Map, Value, json};

/// Tensors before and after, each with the edit that leads there.
struct World {
    edits: Edits,
    before: Vec<Vec<u8>>,
    after: Vec<Vec<u8>>,
    residual: Residual,
}

fn edit(tensor: &str, dtype: Dtype, shape: &[u64], layout: Layout, rows: &[u32], clusters: &[u32]) -> Edit {
    let cols = match layout {
        Layout::Rows => shape[shape.len() - 1],
        Layout::Columns => shape[shape.len() - 2],
    } as usize;
    let k = clusters.iter().max().unwrap() + 1;
    let values: Vec<f32> = (0..k as usize * cols).map(|index| (index as f32 - 2.0) * 0.31).collect();
    Edit::new(EditParts {
        tensor: TensorName::new(tensor).unwrap(),
        dtype,
        shape: Shape::new(shape.to_vec()).unwrap(),
        layout,
        rows: rows.to_vec(),
        clusters: clusters.to_vec(),
        deltas: Deltas::rounded(dtype, cols, &values).unwrap(),
    })
    .unwrap()
}

fn weights(edit: &Edit) -> Vec<u8> {
    (0..edit.shape().elements())
        .flat_map(|index| {
            let value = ((index * 37 % 101) as f32 - 50.0) * 0.013;
            match edit.dtype() {
                Dtype::Bf16 => half::bf16::from_f32(value).to_le_bytes().to_vec(),
                Dtype::F16 => half::f16::from_f32(value).to_le_bytes().to_vec(),
                Dtype::F32 => value.to_le_bytes().to_vec(),
            }
        })
        .collect()
}

/// Where each element of a vector begins, in bytes.
fn offsets(edit: &Edit, row: u32) -> Vec<usize> {
    let (span, size) = (edit.vectors().span(row).unwrap(), edit.dtype().size());
    (0..span.len).map(|index| (span.start as usize + index * span.stride as usize) * size).collect()
}

fn gather(edit: &Edit, tensor: &[u8], row: u32) -> Vec<u8> {
    offsets(edit, row).into_iter().flat_map(|at| tensor[at..at + edit.dtype().size()].to_vec()).collect()
}

fn scatter(edit: &Edit, tensor: &mut [u8], row: u32, bytes: &[u8]) {
    let size = edit.dtype().size();
    for (at, element) in offsets(edit, row).into_iter().zip(bytes.chunks(size)) {
        tensor[at..at + size].copy_from_slice(element);
    }
}

fn world(edits: Vec<Edit>) -> World {
    let edits = Edits::new(edits).unwrap();
    let before: Vec<_> = edits.iter().map(weights).collect();
    let mut after = before.clone();
    let mut builder = ResidualBuilder::new();
    for (edit, tensor) in edits.iter().zip(&mut after) {
        for (row, _, delta) in edit.changes() {
            let old = gather(edit, tensor, row);
            let mut new = old.clone();
            fold::fold_row(edit.dtype(), &mut new, delta).unwrap();
            fold::residual_row(edit.dtype(), &old, &new, delta, &mut builder).unwrap();
            scatter(edit, tensor, row, &new);
        }
    }
    let residual = builder.finish(&edits).unwrap();
    World { edits, before, after, residual }
}

fn tiny() -> World {
    world(vec![
        edit("a.weight", Dtype::Bf16, &[4, 3], Layout::Rows, &[0, 3], &[0, 0]),
        edit("b.weight", Dtype::F16, &[2, 3, 2], Layout::Columns, &[1, 2, 3], &[0, 1, 0]),
        edit("c.weight", Dtype::F32, &[3, 2], Layout::Rows, &[1], &[0]),
    ])
}

fn digests(edit: &Edit, tensor: &[u8]) -> (Blake3, Blake3) {
    let mut whole = TensorHasher::new(edit.tensor(), edit.dtype(), edit.shape());
    whole.update(tensor);
    let mut rows = RowsHasher::new(edit);
    edit.rows().iter().for_each(|row| rows.update(&gather(edit, tensor, *row)));
    (whole.finish().unwrap(), rows.finish().unwrap())
}

fn draft(world: &World) -> Draft {
    let base = |(edit, tensor): (&Edit, &Vec<u8>)| {
        let (blake3, rows) = digests(edit, tensor);
        let (name, shape) = (edit.tensor().clone(), edit.shape().clone());
        BaseTensor { name, dtype: edit.dtype(), shape, blake3, rows }
    };
    let result = |(edit, tensor): (&Edit, &Vec<u8>)| {
        let (blake3, rows) = digests(edit, tensor);
        ResultTensor { name: edit.tensor().clone(), blake3, rows }
    };
    let creation = json!({"method": "nest", "seed": 7, "auc": ["0.97", "0.99"]});
    Draft {
        name: "tiny".to_owned(),
        series: "tests".to_owned(),
        sequence: 1,
        supersedes: vec![],
        created: Timestamp::from_unix(1_795_491_660),
        tool: Tool { name: "nestpatch".to_owned(), version: "0.1.0".to_owned() },
        base: Base {
            name: "toy".to_owned(),
            architecture: Architecture {
                model_type: "llama".to_owned(),
                config: BTreeMap::from([("hidden_size".to_owned(), "3".to_owned())]),
            },
            levels: vec![Level::Exact, Level::Architecture],
            tensors: world.edits.iter().zip(&world.before).map(base).collect(),
            extensions: Map::new(),
        },
        result: ResultBinding { tensors: world.edits.iter().zip(&world.after).map(result).collect() },
        creation: creation.as_object().unwrap().clone(),
    }
}

fn assemble(world: &World) -> Unsigned {
    draft(world).assemble(&world.edits, Some(&world.residual), None).unwrap()
}

fn key(seed: u8) -> SecretKey {
    SecretKey::from_seed(&[seed; 32])
}

fn sign(unsigned: &Unsigned, seeds: &[u8]) -> Vec<u8> {
    let records: Vec<_> = seeds.iter().map(|seed| key(*seed).sign(unsigned.manifest()).unwrap()).collect();
    unsigned.seal(&records).unwrap()
}

fn policy(seeds: &[u8]) -> Policy {
    Policy::from_keys(seeds.iter().map(|seed| (format!("person {seed}"), key(*seed).public().unwrap()))).unwrap()
}

/// Everything that verify does with a file, and the class of what it refuses.
fn read(file: &[u8], policy: &Policy) -> Result<Payload, &'static str> {
    let container = Container::parse(file).map_err(|_| "container")?;
    let manifest = trust::verify(&container, policy).map_err(|error| match error {
        TrustError::Manifest(_) | TrustError::Contradiction(_) => "manifest",
        _ => "signature",
    })?;
    Payload::read(&manifest, container.payload()).map_err(|_| "payload")
}

#[test]
fn a_patch_reads_back_and_undoes_itself() {
    let world = tiny();
    let file = sign(&assemble(&world), &[1]);
    let payload = read(&file, &policy(&[1])).unwrap();
    assert_eq!(payload.edits, world.edits);
    assert_eq!(payload.residual.as_ref(), Some(&world.residual));
    let residual = payload.residual.unwrap();
    for (index, edit) in payload.edits.iter().enumerate() {
        let mut tensor = world.after[index].clone();
        for ((row, _, delta), residual) in edit.changes().zip(residual.rows(index, edit)) {
            let mut bytes = gather(edit, &tensor, row);
            fold::unfold_row(edit.dtype(), &mut bytes, delta, residual).unwrap();
            scatter(edit, &mut tensor, row, &bytes);
        }
        assert_eq!(tensor, world.before[index], "{}", edit.tensor());
        assert_ne!(world.after[index], world.before[index], "{}", edit.tensor());
    }
}

#[test]
fn every_flipped_bit_is_refused() {
    let file = sign(&assemble(&tiny()), &[1]);
    let policy = policy(&[1]);
    let mut classes = BTreeMap::new();
    for bit in 0..file.len() * 8 {
        let mut flipped = file.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let class = read(&flipped, &policy).expect_err(&format!("bit {bit}"));
        *classes.entry(class).or_insert(0) += 1;
    }
    // A flipped bit cannot reach the manifest's rules past the signature, but for the header's writer_minor.
    assert_eq!(classes.keys().copied().collect::<Vec<_>>(), ["container", "manifest", "payload", "signature"]);
    assert_eq!(classes["manifest"], 16);
}

#[test]
fn every_truncation_and_extension_is_refused() {
    let file = sign(&assemble(&tiny()), &[1]);
    let policy = policy(&[1]);
    for length in 0..file.len() {
        assert_eq!(read(&file[..length], &policy), Err("container"), "{length}");
    }
    assert_eq!(read(&[&file[..], &[0]].concat(), &policy), Err("container"));
}

#[test]
fn a_key_in_the_file_is_not_trust() {
    let unsigned = assemble(&tiny());
    let refused = |seeds: &[u8]| {
        let file = sign(&unsigned, seeds);
        trust::verify(&Container::parse(&file).unwrap(), &policy(&[1, 2])).map(|_| ()).unwrap_err()
    };
    assert_eq!(refused(&[]), TrustError::Unsigned { threshold: 1 });
    assert!(matches!(refused(&[3, 4]), TrustError::Untrusted { .. }));

    // A stranger's signature under a trusted key id.
    let mut record = key(3).sign(unsigned.manifest()).unwrap();
    record.key_id = key(1).public().unwrap().id();
    let file = unsigned.seal(&[record]).unwrap();
    let error = trust::verify(&Container::parse(&file).unwrap(), &policy(&[1, 2])).unwrap_err();
    assert!(matches!(error, TrustError::Wrong { ref person, .. } if person == "person 1"), "{error}");
}

#[test]
fn thresholds_count_people_and_strangers_are_listed() {
    let unsigned = assemble(&tiny());
    let [one, two, three] = [1, 2, 3].map(|seed| key(seed).public().unwrap().to_line());
    let people = format!(
        "version = 1\nthreshold = 2\n[[people]]\nname = \"Ada\"\nkeys = [\"{one}\", \"{two}\"]\n\
         [[people]]\nname = \"Grace\"\nkeys = [\"{three}\"]\n"
    );
    let policy = Policy::from_trust_file(&people).unwrap();
    let verify = |seeds: &[u8]| trust::verify(&Container::parse(&sign(&unsigned, seeds)).unwrap(), &policy);
    let error = verify(&[1, 2]).map(|_| ()).unwrap_err();
    assert_eq!(error, TrustError::Threshold { threshold: 2, people: vec!["Ada".to_owned()], passed_over: vec![] });
    let verified = verify(&[1, 3, 9]).unwrap();
    let mut names: Vec<_> = verified.signers().iter().map(|signer| signer.person.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["Ada", "Grace"]);
    assert_eq!(verified.strangers(), [key(9).public().unwrap().id()]);
    assert_eq!(verified.patch_id(), unsigned.patch_id());
}

#[test]
fn a_second_signature_changes_nothing_else() {
    let unsigned = assemble(&tiny());
    let once = sign(&unsigned, &[1]);
    let twice = Container::parse(&once).unwrap().with_signature(key(2).sign(unsigned.manifest()).unwrap()).unwrap();
    assert_eq!(twice, sign(&unsigned, &[2, 1]));
    assert!(read(&twice, &policy(&[2])).is_ok());
    assert_eq!(Container::parse(&twice).unwrap().patch_id(), unsigned.patch_id());
}

#[test]
fn sixty_four_signatures_fit_and_no_more() {
    let unsigned = assemble(&tiny());
    let seeds: Vec<u8> = (1..=65).collect();
    assert!(read(&sign(&unsigned, &seeds[..64]), &policy(&[64])).is_ok());
    let records: Vec<_> = seeds.iter().map(|seed| key(*seed).sign(unsigned.manifest()).unwrap()).collect();
    assert!(unsigned.seal(&records).is_err());
}

/// The tiny patch with its manifest changed, signed again by a key that is trusted.
fn resigned(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let unsigned = assemble(&tiny());
    let mut statement: Value = serde_json::from_slice(unsigned.manifest()).unwrap();
    change(&mut statement);
    let file = sign(&unsigned, &[1]);
    seal(&serde_json::to_vec(&statement).unwrap(), Container::parse(&file).unwrap().payload())
}

fn seal(manifest: &[u8], payload: &[u8]) -> Vec<u8> {
    let record = key(1).sign(manifest).unwrap();
    Container::write(manifest, &[record], payload, FormatVersion::CURRENT).unwrap()
}

fn refusal(file: &[u8]) -> String {
    let container = Container::parse(file).unwrap();
    match trust::verify(&container, &policy(&[1])) {
        Err(error) => error.to_string(),
        Ok(manifest) => Payload::read(&manifest, container.payload()).map(|_| ()).unwrap_err().to_string(),
    }
}

/// What a trusted but careless or compromised publisher might sign.
#[test]
fn signed_manifests_that_break_a_rule_are_refused() {
    type Change = fn(&mut Value);
    let cases: [(Change, &str); 22] = [
        (|m| m["_type"] = "https://in-toto.io/Statement/v0.1".into(), "_type: expected"),
        (|m| m["predicateType"] = "urn:other".into(), "predicateType: expected"),
        (|m| m["subject"][0]["name"] = "x".into(), "subject: expected"),
        (|m| m["predicate"]["format"]["min_reader_minor"] = 1.into(), "format: expected"),
        (|m| m["predicate"]["format"]["writer_minor"] = 1.into(), "manifest and header disagree on format"),
        (|m| m["predicate"]["name"] = "".into(), "name: expected 1 to 200"),
        (|m| m["predicate"]["name"] = "a\u{1b}[2Jb".into(), "name: expected 1 to 200"),
        (|m| m["predicate"]["sequence"] = 0.into(), "sequence: expected a number from 1"),
        (|m| m["predicate"]["sequence"] = "1".into(), "invalid type: string"),
        (|m| m["predicate"]["supersedes"] = json!(["00"]), "64 lower-case hexadecimal digits"),
        (|m| m["predicate"]["created"] = "yesterday".into(), "expected a time like"),
        (|m| m["predicate"]["creation"] = json!({"loss": 0.5}), "the float 0.5"),
        (|m| m["predicate"]["sections"][1]["critical"] = false.into(), "critical: expected true, found false"),
        (|m| m["predicate"]["sections"][1]["kind"] = "rows".into(), "section kinds: expected each once"),
        (|m| m["predicate"]["sections"][1]["name"] = "rows".into(), "section names: expected each once"),
        (
            |m| m["predicate"]["sections"][0]["stored"]["length"] = (1_u64 << 31).into(),
            "stored.length: expected at most",
        ),
        (|m| m["predicate"]["sections"][0]["codec"] = "raw".into(), "as codec is raw"),
        (|m| m["predicate"]["content_root"] = "00".repeat(32).into(), "content_root: expected"),
        (|m| m["predicate"]["base"]["levels"] = json!(["architecture"]), "a list with \"exact\""),
        (|m| m["predicate"]["base"]["tensors"][0]["name"] = "z".into(), "by strictly ascending name"),
        (|m| m["predicate"]["base"]["tensors"][0]["dtype"] = "F8".into(), "unknown variant"),
        (|m| m["predicate"]["result"]["tensors"][0]["name"] = "z".into(), "result.tensors: expected"),
    ];
    for (change, message) in cases {
        let found = refusal(&resigned(change));
        assert!(found.contains(message), "expected {message}: {found}");
    }
}

#[test]
fn signed_bytes_that_are_not_strict_json_are_refused() {
    let file = sign(&assemble(&tiny()), &[1]);
    let container = Container::parse(&file).unwrap();
    let text = String::from_utf8(container.manifest().to_vec()).unwrap();
    let deep = format!("{}{}", "[".repeat(20), "]".repeat(20));
    for (manifest, message) in [
        (text.replacen("\"sequence\":1", "\"sequence\":1,\"sequence\":2", 1), "found \"sequence\" twice"),
        (text.replacen("\"seed\":7", "\"seed\":7,\"seed\":7", 1), "found \"seed\" twice"),
        (text.replacen("\"seed\":7", &format!("\"seed\":{deep}"), 1), "at most 16 levels"),
        (format!("{text}\n"), "last byte"),
        (format!("\u{feff}{text}"), "first byte"),
    ] {
        let found = refusal(&seal(manifest.as_bytes(), container.payload()));
        assert!(found.contains(message), "expected {message}: {found}");
    }
}

#[test]
fn payloads_other_than_the_signed_one_are_refused() {
    let file = sign(&assemble(&tiny()), &[1]);
    let container = Container::parse(&file).unwrap();
    let manifest = Manifest::parse(container.manifest()).unwrap();
    let refused = |payload: &[u8]| Payload::read(&manifest, payload).unwrap_err();
    assert!(matches!(refused(&[container.payload(), &[0]].concat()), PayloadError::Length { .. }));
    assert!(matches!(refused(&container.payload()[1..]), PayloadError::Digest { what: "stored blake3", .. }));

    let found = refusal(&resigned(|m| {
        let other = "11".repeat(32);
        m["predicate"]["sections"][0]["content"]["sha256"] = other.clone().into();
        m["subject"][0]["digest"]["sha256"] = other.into();
    }));
    assert!(found.contains("section \"rows\": content sha256: expected 1111"), "{found}");
    let found = refusal(&resigned(|m| m["predicate"]["base"]["tensors"][0]["shape"] = json!([3, 4])));
    assert!(found.contains("edit 0: expected the tensor of base.tensors \"a.weight\" BF16 [3, 4], found"), "{found}");
}

/// A payload with one more section, as a later version may write.
fn with_section(kind: &str, critical: bool, codec: &str) -> Vec<u8> {
    let content = b"later";
    let unsigned = assemble(&tiny());
    let file = sign(&unsigned, &[1]);
    let container = Container::parse(&file).unwrap();
    let mut manifest = Manifest::parse(container.manifest()).unwrap();
    let kind = Kind::from(kind.to_owned());
    let (mut entry, stored) = nestpatch::format::payload::store(kind, Codec::Raw, content).unwrap();
    (entry.critical, entry.codec) = (critical, Codec::from(codec.to_owned()));
    manifest.sections.push(entry);
    manifest.content_root = Manifest::compute_content_root(&manifest.sections);
    seal(&manifest.to_bytes().unwrap(), &[container.payload(), &stored].concat())
}

#[test]
fn later_sections_are_listed_and_critical_ones_stop_apply() {
    let verify = |file: &[u8]| {
        let container = Container::parse(file).unwrap();
        let manifest = trust::verify(&container, &policy(&[1])).unwrap();
        assert_eq!(Payload::read(&manifest, container.payload()).unwrap().edits, tiny().edits);
        (manifest.sections.len(), manifest.not_understood())
    };
    assert_eq!(verify(&with_section("later", false, "raw")), (4, vec![]));
    assert_eq!(verify(&with_section("later", false, "brotli")), (4, vec![]));
    let (_, missing) = verify(&with_section("later", true, "raw"));
    assert_eq!(missing, ["critical section \"later\" of kind \"later\", codec \"raw\""]);
}

#[test]
fn later_members_are_kept_and_later_rules_stop_apply() {
    let file = resigned(|m| {
        m["predicate"]["audit"] = json!({"by": "someone"});
        m["predicate"]["base"]["descendant"] = json!({"section": "later"});
        m["predicate"]["requires"] = json!(["quorum"]);
        m["later"] = 1.into();
    });
    let manifest = trust::verify(&Container::parse(&file).unwrap(), &policy(&[1])).unwrap();
    assert_eq!(manifest.extensions["audit"], json!({"by": "someone"}));
    assert_eq!(manifest.base.extensions["descendant"], json!({"section": "later"}));
    assert_eq!(manifest.not_understood(), ["rule \"quorum\""]);
    let mut levels = manifest.base.clone();
    levels.levels.push(Level::Other("cousin".to_owned()));
    assert!(!levels.levels[2].is_known());
}

#[test]
fn drafts_that_would_be_refused_are_not_written() {
    let world = tiny();
    let refused = |change: fn(&mut Draft)| {
        let mut draft = draft(&world);
        change(&mut draft);
        draft.assemble(&world.edits, Some(&world.residual), None).unwrap_err().to_string()
    };
    assert!(refused(|draft| draft.creation = json!({"auc": 0.9}).as_object().unwrap().clone()).contains("float"));
    assert!(refused(|draft| draft.series = String::new()).contains("series"));
    assert!(refused(|draft| draft.base.tensors.truncate(1)).contains("result.tensors"));
    let fewer = |draft: &mut Draft| {
        draft.base.tensors.truncate(1);
        draft.result.tensors.truncate(1);
    };
    assert!(refused(fewer).contains("edit 1: expected the tensor of base.tensors none"));
    assert!(
        refused(|draft| draft.base.extensions = json!({"levels": 1}).as_object().unwrap().clone()).contains("level")
    );
}

/// A patch kept since the first version: readers must always take it. `NESTPATCH_UPDATE=1` writes it anew.
#[test]
fn the_golden_patch_still_reads() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/format/tiny.nestpatch");
    if std::env::var_os("NESTPATCH_UPDATE").is_some() {
        std::fs::write(path, sign(&assemble(&tiny()), &[1])).unwrap();
    }
    let file = std::fs::read(path).unwrap();
    let container = Container::parse(&file).unwrap();
    let manifest = trust::verify(&container, &policy(&[1])).unwrap();
    let payload = Payload::read(&manifest, container.payload()).unwrap();
    let world = tiny();
    assert_eq!(payload, Payload { edits: world.edits.clone(), residual: Some(world.residual.clone()), sketch: None });
    assert_eq!(manifest.content_root.to_string(), CONTENT_ROOT);
    // Compressed bytes may change with the compressor; everything else is fixed.
    let now = assemble(&world);
    let now = Manifest::parse(now.manifest()).unwrap();
    let strip = |manifest: &Manifest| Manifest { sections: vec![], ..manifest.clone() };
    assert_eq!(strip(&now), strip(&manifest));
    let contents = |manifest: &Manifest| manifest.sections.iter().map(|entry| entry.content).collect::<Vec<_>>();
    assert_eq!(contents(&now), contents(&manifest));
}

const CONTENT_ROOT: &str = "f556c3fb6130a431e690a908e39a5f6e2e112d0d1dfa5eea6e78099edac6a773";

/// Normal deviates (Box and Muller), seeded.
fn gaussian(seed: u64) -> impl FnMut(f32) -> f32 {
    let mut generator = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    move |scale| {
        let (radius, angle): (f64, f64) = (1.0 - generator.random::<f64>(), generator.random());
        ((-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos() * f64::from(scale)) as f32
    }
}

/// The budget: what a 1B-shaped model's patch may take. 32 tensors, 51 rows and 10 clusters each, 2,048 columns, weights
/// and deltas of the same spread; the entropy of the deltas alone is 851 kB.
#[test]
fn a_patch_of_a_real_models_shape_stays_within_its_budget() {
    const COLS: usize = 2048;
    let (mut normal, spread) = (gaussian(1), (COLS as f32).sqrt().recip());
    let (mut edits, mut olds) = (Vec::new(), Vec::new());
    for tensor in 0..32 {
        let values: Vec<f32> = (0..10 * COLS).map(|_| normal(spread)).collect();
        edits.push(
            Edit::new(EditParts {
                tensor: TensorName::new(format!("model.layers.{tensor:02}.mlp.proj.weight")).unwrap(),
                dtype: Dtype::Bf16,
                shape: Shape::new([8192, COLS as u64]).unwrap(),
                layout: Layout::Rows,
                rows: (0..51).map(|row| row * 160 + (row * row + tensor) % 97).collect(),
                clusters: (0..51).map(|row| if row < 10 { row } else { (row * row + tensor) % 10 }).collect(),
                deltas: Deltas::rounded(Dtype::Bf16, COLS, &values).unwrap(),
            })
            .unwrap(),
        );
        olds.push((0..51 * COLS).flat_map(|_| half::bf16::from_f32(normal(spread)).to_le_bytes()).collect::<Vec<u8>>());
    }
    let edits = Edits::new(edits).unwrap();
    let mut builder = ResidualBuilder::new();
    for (edit, old) in edits.iter().zip(&olds) {
        for ((_, _, delta), old) in edit.changes().zip(old.chunks(COLS * 2)) {
            let mut new = old.to_vec();
            fold::fold_row(edit.dtype(), &mut new, delta).unwrap();
            fold::residual_row(edit.dtype(), old, &new, delta, &mut builder).unwrap();
        }
    }
    let residual = builder.finish(&edits).unwrap();
    let (table, _) = Payload::write(&edits, Some(&residual), None).unwrap();
    let sizes: Vec<u64> = table.iter().map(|entry| entry.stored.length).collect();
    println!("rows, deltas, residual: {sizes:?} bytes for {} values, {} rows", edits.parameters(), edits.rows());
    assert!(sizes[0] + sizes[1] <= 890_000, "{sizes:?}");
    assert!(sizes[2] <= 600_000, "{sizes:?}");
}

fn any_edit(index: usize) -> impl Strategy<Value = Edit> {
    let dtype = prop::sample::select(vec![Dtype::Bf16, Dtype::F16, Dtype::F32]);
    let layout = prop::sample::select(vec![Layout::Rows, Layout::Columns]);
    let rows = prop::collection::btree_map(0..12_u32, 0..4_u32, 1..8);
    (dtype.clone(), dtype, layout, prop::collection::vec(1..5_u64, 0..2), 1..6_u64, rows, any::<u64>()).prop_map(
        move |(dtype, delta_dtype, layout, leading, cols, rows, seed)| {
            let shape = match layout {
                Layout::Rows => vec![12, cols],
                Layout::Columns => vec![cols, 12],
            };
            let mut numbers = BTreeMap::new();
            let clusters: Vec<u32> = rows
                .values()
                .map(|cluster| {
                    let next = numbers.len() as u32;
                    *numbers.entry(*cluster).or_insert(next)
                })
                .collect();
            let values: Vec<f32> = (0..numbers.len() as u64 * cols)
                .map(|index| ((seed.wrapping_mul(index * 2 + 1) >> 40) as f32 - 8_388_608.0) / 8_388_608.0)
                .collect();
            Edit::new(EditParts {
                tensor: TensorName::new(format!("layer.{index}.weight")).unwrap(),
                dtype,
                shape: Shape::new([leading, shape].concat()).unwrap(),
                layout,
                rows: rows.into_keys().collect(),
                clusters,
                deltas: Deltas::rounded(delta_dtype, cols as usize, &values).unwrap(),
            })
            .unwrap()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_edits_survive_the_file(edits in (any_edit(0), any_edit(1), any_edit(2))) {
        let world = world(vec![edits.0, edits.1, edits.2]);
        let file = sign(&assemble(&world), &[1]);
        let payload = read(&file, &policy(&[1])).unwrap();
        prop_assert_eq!(payload, Payload { edits: world.edits, residual: Some(world.residual), sketch: None });
    }

    #[test]
    fn any_bytes_are_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let header = &sign(&assemble(&tiny()), &[1])[..64];
        prop_assert!(read(&[header, &bytes].concat(), &policy(&[1])).is_err());
        prop_assert!(Manifest::parse(&bytes).is_err());
    }
}
