//! `nestpatch audit`, the real program: what is proven, that every kind of difference is found and named, and that bad
//! input leaves nothing behind.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{
    FFN, HIDDEN, KEY_SEED, Ran, Shards, Tensor, checkpoint_of, edits, fails, folder, patch, patch_of, projection, run,
    snapshot, succeeds, tensors, world,
};
use nestpatch::checkpoint::{Checkpoint, Progress};
use nestpatch::digest::Blake3;
use nestpatch::format::container::{PAYLOAD_TYPE, pre_authentication_encoding};
use nestpatch::format::{Edits, Envelope, json};
use nestpatch::patch::audit::{AUDIT_PREDICATE_TYPE, CHECKPOINT_DIGEST_NAME, Scope, audit};
use nestpatch::patch::verify::verify;
use nestpatch::tensor::TensorName;
use nestpatch::trust::SecretKey;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

const AUDIT: &[&str] = &["audit", "p.nestpatch", "--base", "base", "--patched", "out", "--key", "key.pub"];
const EMBEDDING: &str = "model.embed_tokens.weight";

/// A world with the patched checkpoint as `out`.
fn applied() -> tempfile::TempDir {
    let world = world();
    succeeds(world.path(), &["apply", "p.nestpatch", "base", "--key", "key.pub", "-o", "out"]);
    world
}

/// Runs the audit in JSON; it must end with this code.
#[track_caller]
fn audited(dir: &Path, code: i32, more: &[&str]) -> Value {
    let ran = run(dir, &[AUDIT, more, &["--json"]].concat());
    assert_eq!(ran.code, Some(code), "{ran:?}");
    let found: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(found["schema"], "nestpatch/audit/1");
    found
}

/// Runs the audit in text; it must end with this code.
#[track_caller]
fn in_words(dir: &Path, code: i32) -> String {
    let Ran { code: found, stdout, stderr } = run(dir, AUDIT);
    assert_eq!(found, Some(code), "{stdout}{stderr}");
    stdout
}

/// The tensors of a checkpoint, shard by shard.
fn read(dir: &Path) -> Shards {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let shard = |name: &str| {
        let bytes = fs::read(dir.join(name)).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let tensor = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
            let (dtype, shape) = (view.dtype(), view.shape().to_vec());
            (name, Tensor { dtype, shape, bytes: view.data().to_vec() })
        };
        (name.to_owned(), tensors.tensors().into_iter().map(tensor).collect())
    };
    checkpoint.shard_names().map(shard).collect()
}

/// Changes the tensors of a checkpoint.
fn rewrite(dir: &Path, change: impl FnOnce(&mut BTreeMap<String, Tensor>)) {
    let shards = read(dir);
    let home: BTreeMap<String, String> =
        shards.iter().flat_map(|(shard, all)| all.keys().map(|name| (name.clone(), shard.clone()))).collect();
    let mut all: BTreeMap<String, Tensor> = shards.into_values().flatten().collect();
    change(&mut all);
    let mut shards = Shards::new();
    for (name, tensor) in all {
        let shard = home.get(&name).cloned().unwrap_or_else(|| "model-00001-of-00003.safetensors".to_owned());
        shards.entry(shard).or_default().insert(name, tensor);
    }
    checkpoint_of(dir, &shards);
}

fn tensor<'a>(all: &'a mut BTreeMap<String, Tensor>, name: &str) -> &'a mut Tensor {
    all.get_mut(name).unwrap()
}

/// Flips the lowest bit of an element.
fn flip(all: &mut BTreeMap<String, Tensor>, name: &str, element: usize) {
    let tensor = tensor(all, name);
    let size = tensor.bytes.len() / tensor.shape.iter().product::<usize>();
    tensor.bytes[element * size] ^= 1;
}

/// A touched and an untouched row of a tensor, of those that the patch of these tests touches.
fn rows_of(dir: &Path, name: &str) -> (usize, usize) {
    let edits = edits(&Checkpoint::open(&dir.join("base")).unwrap(), 7);
    let edit = edits.get(&TensorName::new(name).unwrap()).unwrap();
    let touched = *edit.rows().last().unwrap();
    let untouched = (0..edit.vectors().count() as u32).rev().find(|row| !edit.rows().contains(row)).unwrap();
    (touched as usize, untouched as usize)
}

fn only(row: usize) -> Value {
    json!({"count": 1, "first": [row]})
}

fn none() -> Value {
    json!({"count": 0, "first": []})
}

/// The specification's checkpoint digest, a second time.
fn digest_of(dir: &Path) -> String {
    let head = |name: &str, tensor: &Tensor| {
        let mut head = Vec::new();
        for text in [name, &tensor.dtype.to_string()] {
            head.extend((text.len() as u64).to_le_bytes());
            head.extend(text.as_bytes());
        }
        head.extend((tensor.shape.len() as u64).to_le_bytes());
        tensor.shape.iter().for_each(|dim| head.extend((*dim as u64).to_le_bytes()));
        head
    };
    let all: BTreeMap<String, Tensor> = read(dir).into_values().flatten().collect();
    let mut whole = Vec::new();
    for (name, tensor) in &all {
        let head = head(name, tensor);
        let content = [&head[..], &tensor.bytes].concat();
        whole.extend(head);
        whole.extend(blake3::derive_key("nestpatch v1 2026-11-24 tensor content", &content));
    }
    Blake3::from_bytes(blake3::derive_key("nestpatch v1 2026-11-24 checkpoint", &whole)).to_string()
}

#[test]
fn what_apply_writes_is_proven() {
    let world = applied();
    let dir = world.path();
    let before = snapshot(dir);
    let found = audited(dir, 0, &[]);
    assert!(snapshot(dir) == before, "an audit changes nothing");
    assert_eq!((&found["verdict"], &found["findings"]), (&json!("proven"), &json!([])));
    assert_eq!((&found["base"]["holds"], &found["patched"]["holds"]), (&json!("base"), &json!("result")));
    assert_eq!(found["base"]["digest"], digest_of(&dir.join("base")));
    assert_eq!(found["patched"]["digest"], digest_of(&dir.join("out")));
    assert_eq!((&found["compared"]["tensors"], &found["compared"]["touched_tensors"]), (&json!(11), &json!(7)));
    assert!(
        found["touched"]
            .as_array()
            .unwrap()
            .iter()
            .all(|one| { one["is_publishers_base"] == json!(true) && one["is_publishers_result"] == json!(true) })
    );
    assert_eq!(found["files"]["names"], json!(["config.json", "original/params.json", "tokenizer.json"]));
    let text = in_words(dir, 0);
    for word in ["out: PROVEN to be base with test patch 7, and nothing else", "key.pub", "publisher's result", "safe"]
    {
        assert!(text.contains(word), "{word}: {text}");
    }
}

#[test]
fn what_is_applied_in_place_is_proven() {
    let world = world();
    let dir = world.path();
    checkpoint_of(&dir.join("out"), &tensors(1));
    succeeds(dir, &["apply", "p.nestpatch", "out", "--key", "key.pub", "--in-place"]);
    assert_eq!(audited(dir, 0, &[])["verdict"], "proven");
    // Through a link, too.
    fs::rename(dir.join("out"), dir.join("real")).unwrap();
    std::os::unix::fs::symlink("real", dir.join("out")).unwrap();
    assert_eq!(audited(dir, 0, &[])["verdict"], "proven");
}

/// A safetensors file with the tensors in this order.
fn in_order(tensors: &[(String, Tensor)]) -> Vec<u8> {
    let mut data = Vec::new();
    let mut header = serde_json::Map::new();
    for (name, tensor) in tensors {
        let begin = data.len();
        data.extend(&tensor.bytes);
        let entry = json!({
            "dtype": tensor.dtype.to_string(), "shape": tensor.shape, "data_offsets": [begin, data.len()],
        });
        header.insert(name.clone(), entry);
    }
    let header = Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()
}

#[test]
fn shards_and_order_make_no_difference() {
    let world = applied();
    let dir = world.path();
    let before = audited(dir, 0, &[]);
    let out = dir.join("out");
    let mut all: Vec<(String, Tensor)> = read(&out).into_values().flatten().collect();
    all.reverse();
    all.swap(2, 5);
    let names: Vec<String> = read(&out).into_keys().collect();
    names.iter().for_each(|name| fs::remove_file(out.join(name)).unwrap());
    fs::remove_file(out.join("model.safetensors.index.json")).unwrap();
    fs::write(out.join("model.safetensors"), in_order(&all)).unwrap();
    let found = audited(dir, 0, &[]);
    assert_eq!((&found["verdict"], &found["patched"]), (&json!("proven"), &before["patched"]));
}

/// The one finding of an audit of `out` with these changes.
#[track_caller]
fn one_finding(dir: &Path, change: impl FnOnce(&mut BTreeMap<String, Tensor>)) -> Value {
    let before = read(&dir.join("out"));
    rewrite(&dir.join("out"), change);
    let found = audited(dir, 5, &[]);
    assert_eq!(found["verdict"], "differs");
    let findings = found["findings"].as_array().unwrap();
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert_eq!(found["patched"]["digest"], digest_of(&dir.join("out")));
    let text = in_words(dir, 5);
    assert!(text.contains("out: NOT base with test patch 7") && text.contains("1 not as they must be"), "{text}");
    assert!(text.contains(&format!("  {}: ", findings[0]["tensor"].as_str().unwrap())), "{text}");
    checkpoint_of(&dir.join("out"), &before);
    findings[0].clone()
}

#[test]
fn one_bit_anywhere_is_named_by_its_row() {
    let world = applied();
    let dir = world.path();
    let (gate, down) = (projection(0, "gate"), projection(1, "down"));
    let (touched, untouched) = rows_of(dir, &gate);
    let (touched_column, untouched_column) = rows_of(dir, &down);
    let cases = [
        (EMBEDDING, 5 * HIDDEN + 3, none(), only(5)),
        (&gate, untouched * HIDDEN + HIDDEN - 1, none(), only(untouched)),
        (&gate, touched * HIDDEN, only(touched), none()),
        (&projection(2, "up"), 0, only(0), none()),
        (&projection(2, "down"), HIDDEN * FFN - 1, none(), only(HIDDEN - 1)),
        (&down, 4 * FFN + untouched_column, none(), only(untouched_column)),
        (&down, 15 * FFN + touched_column, only(touched_column), none()),
    ];
    for (name, element, touched, others) in cases {
        let found = one_finding(dir, |all| flip(all, name, element));
        let layout = if *name == down { "columns" } else { "rows" };
        let shape = match name.rsplit('.').nth(1) {
            Some("embed_tokens") => [32, HIDDEN],
            Some("down_proj") => [HIDDEN, FFN],
            _ => [FFN, HIDDEN],
        };
        let (is, unit) = ("bytes", "row");
        let expected = json!({"tensor": name, "is": is, "unit": unit, "layout": layout, "shape": shape,
            "touched": touched, "others": others});
        assert_eq!(found, expected);
    }
    let found = one_finding(dir, |all| tensor(all, "model.step").bytes[3] = 0);
    assert_eq!((&found["unit"], &found["others"]), (&json!("element"), &only(3)));
}

#[test]
fn all_rows_are_counted_and_the_first_are_named() {
    let world = applied();
    let dir = world.path();
    let found = one_finding(dir, |all| tensor(all, EMBEDDING).bytes.fill(1));
    assert_eq!(found["others"], json!({"count": 32, "first": (0..16).collect::<Vec<_>>()}));
    let down = projection(1, "down");
    let found = one_finding(dir, |all| tensor(all, &down).bytes.fill(1));
    let (touched, others) = (&found["touched"], &found["others"]);
    assert_eq!(touched["count"].as_u64().unwrap() + others["count"].as_u64().unwrap(), FFN as u64);
    assert!(touched["first"].as_array().unwrap().contains(&json!(0)), "{touched}");
    rewrite(&dir.join("out"), |all| tensor(all, EMBEDDING).bytes.fill(1));
    let text = in_words(dir, 5);
    assert!(
        text.contains("embed_tokens.weight: 32 rows not the base's (0, 1, 2, 3,") && text.contains("15, ...)"),
        "{text}"
    );
}

#[test]
fn tensors_that_are_missing_extra_or_of_another_form_are_named() {
    let world = applied();
    let dir = world.path();
    let found = one_finding(dir, |all| drop(all.remove("model.step")));
    assert_eq!(found, json!({"tensor": "model.step", "is": "missing"}));
    let extra = Tensor { dtype: Dtype::I64, shape: vec![], bytes: vec![0; 8] };
    let found = one_finding(dir, |all| drop(all.insert("zz.new".to_owned(), extra)));
    assert_eq!(found, json!({"tensor": "zz.new", "is": "extra"}));
    let gate = projection(0, "gate");
    let (was, is) = (json!({"dtype": "BF16", "shape": [FFN, HIDDEN]}), json!({"dtype": "F16", "shape": [FFN, HIDDEN]}));
    let found = one_finding(dir, |all| tensor(all, &gate).dtype = Dtype::F16);
    assert_eq!(found, json!({"tensor": &gate, "is": "form", "base": was, "patched": is}));
    let is = json!({"dtype": "BF16", "shape": [HIDDEN, FFN]});
    let found = one_finding(dir, |all| tensor(all, &gate).shape.reverse());
    assert_eq!(found, json!({"tensor": &gate, "is": "form", "base": was, "patched": is}));
    let found = one_finding(dir, |all| drop(all.remove(&gate)));
    assert_eq!(found, json!({"tensor": &gate, "is": "missing"}));
}

#[test]
fn every_element_type_is_compared() {
    let world = applied();
    let dir = world.path();
    let types = [
        ("a", Dtype::I64, vec![2, 3], 48),
        ("b", Dtype::F8_E4M3, vec![4, 3], 12),
        ("c", Dtype::BOOL, vec![7], 7),
        ("d", Dtype::F64, vec![], 8),
        ("e", Dtype::F4, vec![2, 4], 4),
        ("f", Dtype::F16, vec![0, 3], 0),
    ];
    let add = |all: &mut BTreeMap<String, Tensor>| {
        for (name, dtype, shape, bytes) in types.clone() {
            all.insert(name.to_owned(), Tensor { dtype, shape, bytes: vec![1; bytes] });
        }
    };
    ["base", "out"].into_iter().for_each(|side| rewrite(&dir.join(side), add));
    let found = audited(dir, 0, &[]);
    assert_eq!((&found["verdict"], &found["compared"]["tensors"]), (&json!("proven"), &json!(17)));
    assert_eq!(found["patched"]["digest"], digest_of(&dir.join("out")));
    for (name, byte, unit, row) in
        [("a", 47, "row", 1), ("b", 6, "row", 2), ("c", 6, "element", 6), ("d", 0, "element", 0), ("e", 2, "row", 1)]
    {
        let found = one_finding(dir, |all| tensor(all, name).bytes[byte] ^= 0x11);
        assert_eq!((&found["unit"], &found["others"]), (&json!(unit), &only(row)), "{name}");
    }
}

/// The folders hold what the publisher's base and result do not, in the same places.
#[test]
fn a_base_that_is_not_the_publishers_is_still_a_base() {
    let world = applied();
    let dir = world.path();
    let (_, untouched) = rows_of(dir, &projection(2, "gate"));
    for side in ["base", "out"] {
        rewrite(&dir.join(side), |all| flip(all, &projection(2, "gate"), untouched * HIDDEN));
    }
    let found = audited(dir, 0, &[]);
    assert_eq!((&found["verdict"], &found["base"]["holds"]), (&json!("proven"), &json!("other")));
    let differ = |one: &&Value| one["is_publishers_base"] == json!(false);
    let touched = found["touched"].as_array().unwrap();
    assert_eq!(touched.iter().filter(differ).count(), 1);
    assert!(in_words(dir, 0).contains("not the publisher's base: 1 of 7 touched tensors differ from it"));
}

#[test]
fn a_patch_that_is_not_applied_is_said_to_be_not_applied() {
    let world = world();
    let dir = world.path();
    checkpoint_of(&dir.join("out"), &tensors(1));
    let found = audited(dir, 5, &[]);
    assert_eq!((&found["verdict"], &found["patched"]["holds"]), (&json!("not_applied"), &json!("base")));
    assert_eq!(found["findings"].as_array().unwrap().len(), 7);
    let text = in_words(dir, 5);
    assert!(text.contains("out: the patch test patch 7 is NOT APPLIED, every tensor is base's"), "{text}");
}

#[test]
fn swapped_folders_are_said_to_be_swapped() {
    let world = applied();
    let dir = world.path();
    fs::rename(dir.join("base"), dir.join("x")).unwrap();
    fs::rename(dir.join("out"), dir.join("base")).unwrap();
    fs::rename(dir.join("x"), dir.join("out")).unwrap();
    assert_eq!(audited(dir, 5, &[])["verdict"], "swapped");
    assert!(in_words(dir, 5).contains("out: SWAPPED, base is the one that has test patch 7"));
}

/// Replaces the patch by one for another checkpoint, made of the base's tensors.
fn patch_for_another(
    dir: &Path,
    change: impl FnOnce(&mut BTreeMap<String, Tensor>),
    edits: impl Fn(&Checkpoint) -> Edits,
) {
    let other = dir.join("other");
    checkpoint_of(&other, &read(&dir.join("base")));
    rewrite(&other, change);
    let edits = edits(&Checkpoint::open(&other).unwrap());
    fs::write(dir.join("p.nestpatch"), patch_of(&other, 9, &edits)).unwrap();
    fs::remove_dir_all(other).unwrap();
}

#[test]
fn a_patch_for_other_weights_is_found_out() {
    let world = applied();
    let dir = world.path();
    fs::write(dir.join("p.nestpatch"), patch(&dir.join("base"), 8)).unwrap();
    let found = audited(dir, 5, &[]);
    assert_eq!(found["verdict"], "differs");
    assert!(found["findings"].as_array().unwrap().iter().all(|one| one["is"] == "bytes"));

    let gate = projection(0, "gate");
    patch_for_another(dir, |all| tensor(all, &gate).shape.reverse(), |other| edits(other, 7));
    let found = audited(dir, 5, &[]);
    let first = &found["findings"][0];
    let of = |shape: [usize; 2]| json!({"dtype": "BF16", "shape": shape});
    let expected = json!({"tensor": &gate, "is": "other_base", "patch": of([HIDDEN, FFN]), "base": of([FFN, HIDDEN])});
    assert_eq!(first, &expected);

    let rename = |all: &mut BTreeMap<String, Tensor>| {
        let moved = all.remove(&gate).unwrap();
        all.insert("elsewhere".to_owned(), moved);
    };
    patch_for_another(dir, rename, |other| {
        let gate = edits(&Checkpoint::open(&dir.join("base")).unwrap(), 7);
        let part = gate.get(&TensorName::new(projection(0, "gate")).unwrap()).unwrap();
        let parts = nestpatch::format::EditParts {
            tensor: TensorName::new("elsewhere").unwrap(),
            dtype: part.dtype(),
            shape: part.shape().clone(),
            layout: part.layout(),
            rows: part.rows().to_vec(),
            clusters: part.clusters().to_vec(),
            deltas: part.deltas().clone(),
        };
        assert!(other.tensor(&parts.tensor).is_ok());
        Edits::new(vec![nestpatch::format::Edit::new(parts).unwrap()]).unwrap()
    });
    let found = audited(dir, 5, &[]);
    assert_eq!(found["findings"][0], json!({"tensor": "elsewhere", "is": "absent"}));
    assert!(in_words(dir, 5).contains("elsewhere: the patch touches it, and neither checkpoint has it"));
}

#[test]
fn a_weight_to_which_nothing_can_be_added_is_named() {
    let world = applied();
    let dir = world.path();
    let up = projection(2, "up");
    let (touched, _) = rows_of(dir, &up);
    for side in ["base", "out"] {
        rewrite(&dir.join(side), |all| {
            let at = (touched * HIDDEN + 2) * 4;
            tensor(all, &up).bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
        });
    }
    let found = audited(dir, 5, &[]);
    let reason = "column 2: base weight is NaN, expected a finite number";
    let expected = json!([{"tensor": &up, "is": "not_foldable", "row": touched, "reason": reason}]);
    assert_eq!(found["findings"], expected);
}

#[test]
fn other_files_have_a_verdict_of_their_own() {
    let world = applied();
    let dir = world.path();
    let out = dir.join("out");
    type Change = fn(&Path);
    let cases: [(Change, &str, Value); 5] = [
        (|out| fs::write(out.join("tokenizer.json"), "{}").unwrap(), "tokenizer.json", json!("different")),
        (|out| fs::write(out.join("modeling.py"), "import os").unwrap(), "modeling.py", json!("extra")),
        (|out| fs::remove_file(out.join("original/params.json")).unwrap(), "original/params.json", json!("missing")),
        (
            |out| fs::write(out.join("tokenizer.json"), "{\"version\": \"1.1\"}").unwrap(),
            "tokenizer.json",
            json!("different"),
        ),
        (|out| fs::write(out.join("pytorch_model.bin"), "x").unwrap(), "pytorch_model.bin", json!("extra")),
    ];
    for (change, path, is) in cases {
        let before = snapshot(&out);
        change(&out);
        let found = audited(dir, 5, &[]);
        assert_eq!((&found["verdict"], &found["findings"]), (&json!("files_differ"), &json!([])));
        assert_eq!(found["files"]["findings"], json!([{"path": path, "is": is}]));
        let text = in_words(dir, 5);
        assert!(text.contains("OTHER FILES DIFFER") && text.contains(&format!("  {path}: ")), "{text}");
        let found = audited(dir, 0, &["--tensors-only"]);
        assert_eq!((&found["verdict"], &found["files"]["compared"]), (&json!("tensors_proven"), &json!(false)));
        let names = found["files"]["names"].as_array().unwrap();
        assert!(names.contains(&json!(path)) && names.contains(&json!("config.json")), "{names:?}");
        fs::remove_dir_all(&out).unwrap();
        for (path, bytes) in before {
            fs::create_dir_all(out.join(&path).parent().unwrap()).unwrap();
            if !path.to_str().unwrap().ends_with('/') {
                fs::write(out.join(path), bytes).unwrap();
            }
        }
    }
    fs::write(out.join("pytorch_model.bin"), "x").unwrap();
    fs::write(dir.join("base/pytorch_model.bin"), "x").unwrap();
    assert_eq!(audited(dir, 0, &[])["files"]["strays"], json!(["pytorch_model.bin"]));
    assert!(in_words(dir, 0).contains("which no patch reaches"));
}

#[test]
fn config_keys_are_compared_by_content() {
    let world = applied();
    let dir = world.path();
    let config = dir.join("out/config.json");
    let text = fs::read_to_string(&config).unwrap();
    // Written otherwise, the same content.
    fs::write(&config, text.replace("10000.0", "10000").replace(':', " : ")).unwrap();
    assert_eq!(audited(dir, 0, &[])["verdict"], "proven");
    let changed = text.replace("10000.0", "10001.0").replace("\"llama\"", "\"llama\",\"auto_map\":{\"x\":\"y.py\"}");
    fs::write(&config, changed).unwrap();
    let found = audited(dir, 5, &[]);
    assert_eq!(found["verdict"], "files_differ");
    let expected = json!([
        {"at": "/auto_map", "base": null, "patched": "{\"x\":\"y.py\"}"},
        {"at": "/rope_theta", "base": "10000.0", "patched": "10001.0"},
    ]);
    assert_eq!(found["files"]["config"], expected);
    assert!(in_words(dir, 5).contains("config.json: /rope_theta: 10000.0 in the base, 10001.0 in the patched one"));
    assert_eq!(audited(dir, 0, &["--tensors-only"])["verdict"], "tensors_proven");
}

#[test]
fn bad_input_is_refused_and_nothing_written() {
    let world = applied();
    let dir = world.path();
    let other = SecretKey::from_seed(&[9; 32]).public().unwrap().to_pem();
    fs::write(dir.join("other.pub"), other).unwrap();
    fs::write(dir.join("taken"), "mine").unwrap();
    let edits = edits(&Checkpoint::open(&dir.join("base")).unwrap(), 7);
    fs::write(dir.join("unsigned"), common::unsigned(&dir.join("base"), 7, &edits).seal(&[]).unwrap()).unwrap();
    fs::write(dir.join("broken"), &fs::read(dir.join("p.nestpatch")).unwrap()[..900]).unwrap();
    std::os::unix::fs::symlink("out", dir.join("link")).unwrap();
    let with = |patch, base, patched, more: &[&'static str]| {
        [&["audit", patch, "--base", base, "--patched", patched, "-o", "new.json"], more].concat()
    };
    let key: &[&str] = &["--key", "key.pub"];
    let cases: [(Vec<&str>, i32, &[&str]); 9] = [
        (with("unsigned", "base", "out", key), 3, &["unsigned"]),
        (with("p.nestpatch", "base", "out", &["--key", "other.pub"]), 3, &["nobody has called trusted"]),
        (with("p.nestpatch", "base", "out", &[]), 3, &["no key to check the patch"]),
        (with("broken", "base", "out", key), 4, &["malformed patch"]),
        (with("p.nestpatch", "out", "out", key), 2, &["the same one twice"]),
        (with("p.nestpatch", "link", "out", key), 2, &["the same one twice"]),
        (with("p.nestpatch", "nowhere", "out", key), 6, &["nowhere is not a checkpoint folder"]),
        (with("p.nestpatch", "base", "base/original", key), 6, &["no model.safetensors"]),
        (with("p.nestpatch", "base", "out", &["--key", "key.pub", "--sign-with", "taken"]), 7, &["taken"]),
    ];
    for (arguments, code, words) in cases {
        fails(dir, &arguments, code, words);
    }
    fails(dir, &[AUDIT, &["-o", "taken"]].concat(), 1, &["taken already exists", "nothing is overwritten"]);
    fails(dir, &[AUDIT, &["-o", "nowhere/new.json"]].concat(), 1, &["nowhere"]);
    for inside in ["out/new.json", "base/original/new.json", "link/new.json"] {
        fails(dir, &[AUDIT, &["-o", inside]].concat(), 1, &["no place for the output", "a folder that is audited"]);
    }
    let ran = run(dir, &[AUDIT, &["--sign-with", "taken"]].concat());
    assert!(ran.code == Some(2) && ran.stderr.contains("--output"), "{ran:?}");
    fs::remove_file(dir.join("out/model-00002-of-00003.safetensors")).unwrap();
    fails(dir, AUDIT, 6, &["1 of 3 shards missing"]);
}

#[test]
fn a_patch_that_is_not_understood_proves_nothing() {
    let world = applied();
    let dir = world.path();
    let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/vectors");
    for name in ["apply-refused-requires-unknown", "apply-refused-critical-unknown-section"] {
        fs::copy(vectors.join(name).with_extension("nestpatch"), dir.join("new.nestpatch")).unwrap();
        fs::copy(vectors.join("trust.toml"), dir.join("trust.toml")).unwrap();
        let arguments = ["audit", "new.nestpatch", "--base", "base", "--patched", "out", "--trust", "trust.toml"];
        fails(dir, &arguments, 4, &["needs what this version does not know"]);
    }
}

/// The archive gets bad news, too.
#[test]
fn the_statement_says_what_was_found() {
    let world = applied();
    let dir = world.path();
    succeeds(dir, &[AUDIT, &["-o", "good.json"]].concat());
    let text = fs::read(dir.join("good.json")).unwrap();
    json::check(text.trim_ascii()).unwrap();
    let good: Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(good["_type"], "https://in-toto.io/Statement/v1");
    assert_eq!(good["predicateType"], AUDIT_PREDICATE_TYPE);
    let subject = json!([{"name": "out", "digest": {CHECKPOINT_DIGEST_NAME: digest_of(&dir.join("out"))}}]);
    assert_eq!(good["subject"], subject);
    let predicate = &good["predicate"];
    assert_eq!((&predicate["verdict"], &predicate["tool"]["name"]), (&json!("proven"), &json!("nestpatch")));
    assert_eq!(predicate["base"]["digest"], digest_of(&dir.join("base")));
    assert_eq!(predicate["patch"]["signers"][0]["person"], "key.pub");
    rewrite(&dir.join("out"), |all| flip(all, EMBEDDING, 0));
    let found = audited(dir, 5, &["-o", "bad.json"]);
    assert_eq!(found["statement"], "bad.json");
    let bad: Value = serde_json::from_slice(&fs::read(dir.join("bad.json")).unwrap()).unwrap();
    assert_eq!((&bad["predicate"]["verdict"], &bad["predicate"]["findings"]), (&json!("differs"), &found["findings"]));
}

#[test]
fn a_signed_statement_is_an_envelope_that_cannot_be_changed() {
    let world = applied();
    let dir = world.path();
    let secret = SecretKey::from_seed(&KEY_SEED);
    fs::write(dir.join("key.key"), secret.to_pem(Some("correct horse")).unwrap().as_str()).unwrap();
    fs::write(dir.join("pass"), "correct horse\n").unwrap();
    let sign = ["-o", "a.dsse.json", "--sign-with", "key.key", "--passphrase-file", "pass"];
    succeeds(dir, &[AUDIT, &sign].concat());
    let envelope = Envelope::parse(&fs::read(dir.join("a.dsse.json")).unwrap()).unwrap();
    let public = secret.public().unwrap();
    assert_eq!((envelope.signatures.len(), envelope.signatures[0].key_id), (1, public.id()));
    let holds = |statement: &[u8]| {
        let message = pre_authentication_encoding(PAYLOAD_TYPE, statement);
        public.verifies(&message, &envelope.signatures[0].signature)
    };
    assert!(holds(&envelope.statement));
    let text = String::from_utf8(envelope.statement.clone()).unwrap();
    assert!(text.contains("\"verdict\":\"proven\"") && text.contains(AUDIT_PREDICATE_TYPE));
    for at in 0..text.len() {
        let mut changed = envelope.statement.clone();
        changed[at] ^= 1;
        assert!(!holds(&changed), "byte {at}");
    }
    let wrong = ["-o", "b.json", "--sign-with", "key.key", "--passphrase-file", "key.pub"];
    fails(dir, &[AUDIT, &wrong].concat(), 7, &["passphrase"]);
}

/// Writes to a weight file when the second stage begins.
struct Meddler<'a> {
    file: &'a Path,
    done: AtomicBool,
}

impl Progress for Meddler<'_> {
    fn stage(&self, what: &str, _: u64) {
        if what.contains("files") {
            let bytes = fs::read(self.file).unwrap();
            fs::remove_file(self.file).unwrap();
            fs::write(self.file, bytes).unwrap();
            self.done.store(true, Ordering::Relaxed);
        }
    }

    fn advance(&self, _: u64) {}
}

#[test]
fn a_checkpoint_that_changes_during_the_audit_is_an_error() {
    let world = applied();
    let dir = world.path();
    let patch = verify(fs::read(dir.join("p.nestpatch")).unwrap(), &common::policy()).unwrap();
    for side in ["base", "out"] {
        let (base, out) = (Checkpoint::open(&dir.join("base")).unwrap(), Checkpoint::open(&dir.join("out")).unwrap());
        let file = dir.join(side).join("model-00003-of-00003.safetensors");
        let meddler = Meddler { file: &file, done: AtomicBool::new(false) };
        let error = audit(&patch, &base, &out, Scope::Everything, &meddler).unwrap_err().to_string();
        assert!(meddler.done.into_inner() && error.contains("changed while it was being read"), "{error}");
    }
}

/// A tensor of 192 MiB on each side, mostly holes, read with 64 MiB of memory.
#[test]
#[cfg(target_os = "linux")]
fn what_is_held_does_not_grow_with_the_checkpoint() {
    let dir = folder();
    let dir = dir.path();
    common::public_key(&dir.join("key.pub"));
    let wide = Tensor { dtype: Dtype::BF16, shape: vec![3 << 13, 4096], bytes: vec![] };
    let header = json!({"w": {"dtype": "BF16", "shape": wide.shape, "data_offsets": [0, 192 << 20]}}).to_string();
    for side in ["base", "out"] {
        fs::create_dir(dir.join(side)).unwrap();
        fs::write(dir.join(side).join("config.json"), "{\"model_type\": \"llama\"}").unwrap();
        let path = dir.join(side).join("model.safetensors");
        fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()).unwrap();
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_len((8 + header.len() + (192 << 20)) as u64).unwrap();
    }
    let parts = nestpatch::format::EditParts {
        tensor: TensorName::new("w").unwrap(),
        dtype: nestpatch::tensor::Dtype::Bf16,
        shape: nestpatch::tensor::Shape::new([3 << 13, 4096]).unwrap(),
        layout: nestpatch::format::Layout::Columns,
        rows: vec![5],
        clusters: vec![0],
        deltas: nestpatch::format::Deltas::new(nestpatch::tensor::Dtype::Bf16, 3 << 13, vec![1.0; 3 << 13]).unwrap(),
    };
    let edits = Edits::new(vec![nestpatch::format::Edit::new(parts).unwrap()]).unwrap();
    fs::write(dir.join("p.nestpatch"), patch_of(&dir.join("base"), 1, &edits)).unwrap();
    let command = "ulimit -d 65536 && exec \"$@\"";
    let output = Command::new("sh")
        .args(["-c", command, "sh", env!("CARGO_BIN_EXE_nestpatch")])
        .args(AUDIT)
        .current_dir(dir)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(5), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("NOT APPLIED") && text.contains("w: 1 row not the base's with the delta (5)"), "{text}");
}
