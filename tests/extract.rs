//! `extract` through the real program: what comes back is what was put in, and nothing is dropped in silence.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use common::{
    FFN, HIDDEN, Ran, Shards, Tensor, checkpoint_of, encode, fails, folder, projection, run, snapshot, succeeds,
    tensors,
};
use nestpatch::checkpoint::Checkpoint;
use nestpatch::format::Layout;
use nestpatch::format::limits::{MAX_COLS, MAX_EDITS};
use nestpatch::patch::Contents;
use nestpatch::tensor::Dtype as Type;
use safetensors::Dtype;
use serde_json::Value;

const EXTRACT: [&str; 9] = ["extract", "--base", "base", "--tuned", "tuned", "--key", "k.key", "-o", "x.nestpatch"];

fn extract(more: &[&'static str]) -> Vec<&'static str> {
    [&EXTRACT[..], more].concat()
}

fn json(ran: &Ran) -> Value {
    serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
}

fn contents(dir: &Path, name: &str) -> Contents {
    Contents::read_whole(fs::read(dir.join(name)).unwrap()).unwrap()
}

/// The shards of a checkpoint, by name.
fn weights(dir: &Path) -> BTreeMap<std::path::PathBuf, Vec<u8>> {
    let mut files = snapshot(dir);
    files.retain(|path, _| path.extension().is_some_and(|extension| extension == "safetensors"));
    files
}

/// `base`, a patch for it, `tuned` that the patch makes of it, and a key pair.
fn patched() -> tempfile::TempDir {
    let world = common::world();
    let dir = world.path();
    succeeds(dir, &["apply", "p.nestpatch", "base", "-o", "tuned", "--key", "key.pub"]);
    fs::remove_dir_all(dir.join("tuned/nestpatch")).unwrap();
    succeeds(dir, &["keygen", "-o", "k", "--no-passphrase"]);
    world
}

/// The tensors of a base with one of each kind that no patch may touch.
fn mixed() -> Shards {
    let mut shards = tensors(1);
    let first = shards.values_mut().next().unwrap();
    let mut add = |name: &str, dtype, shape: &[usize], bytes| {
        first.insert(name.to_owned(), Tensor { dtype, shape: shape.to_vec(), bytes });
    };
    add("model.norm.weight", Dtype::BF16, &[4], encode(Dtype::BF16, &[1.0; 4]));
    add("model.layers.0.mlp.gate.weight", Dtype::BF16, &[4, 4], encode(Dtype::BF16, &[0.5; 16]));
    add("model.layers.0.mlp.scale.weight", Dtype::F8_E4M3, &[4, 4], vec![9; 16]);
    add("model.layers.0.mlp.count.weight", Dtype::I32, &[4, 4], vec![0; 64]);
    shards
}

fn find<'s>(shards: &'s mut Shards, name: &str) -> &'s mut Tensor {
    shards.values_mut().find_map(|shard| shard.get_mut(name)).unwrap_or_else(|| panic!("{name}"))
}

/// Writes one element.
fn set(shards: &mut Shards, name: &str, element: usize, value: f32) {
    let tensor = find(shards, name);
    let bytes = encode(tensor.dtype, &[value]);
    tensor.bytes[element * bytes.len()..][..bytes.len()].copy_from_slice(&bytes);
}

/// Gives every element of some rows another value, as a shared delta would.
fn tune(shards: &mut Shards, name: &str, rows: &[usize]) {
    for row in rows {
        (0..HIDDEN).for_each(|column| set(shards, name, row * HIDDEN + column, 1.0 + column as f32));
    }
}

/// `base` and `tuned`: the first as `mixed` has it, changed by `prepare`; the second with three tuned rows, and `change`.
fn world(prepare: impl FnOnce(&mut Shards), change: impl FnOnce(&mut Shards)) -> tempfile::TempDir {
    let root = folder();
    let mut shards = mixed();
    prepare(&mut shards);
    checkpoint_of(&root.path().join("base"), &shards);
    tune(&mut shards, &projection(0, "gate"), &[2, 5]);
    tune(&mut shards, &projection(2, "up"), &[1]);
    change(&mut shards);
    checkpoint_of(&root.path().join("tuned"), &shards);
    succeeds(root.path(), &["keygen", "-o", "k", "--no-passphrase"]);
    root
}

/// The whole way, for all element types and both layouts: the edits come back, and so does every bit.
#[test]
fn what_was_patched_is_extracted() {
    let world = patched();
    let dir = world.path();
    let made = succeeds(dir, &extract(&["--json"]));
    let (data, truth, found) = (json(&made), contents(dir, "p.nestpatch"), contents(dir, "x.nestpatch"));
    assert_eq!((data["schema"].as_str(), made.stderr.as_str()), (Some("nestpatch/extract/1"), ""));
    assert_eq!(found.edits.len(), 7);
    for (truth, found) in truth.edits.iter().zip(&found.edits) {
        assert_eq!((truth.tensor(), truth.layout()), (found.tensor(), found.layout()));
        assert_eq!((truth.rows(), truth.clusters()), (found.rows(), found.clusters()), "{}", truth.tensor());
    }
    assert_eq!(found.edits.iter().filter(|edit| edit.layout() == Layout::Columns).count(), 1);
    let types: Vec<Type> = found.edits.iter().map(|edit| edit.deltas().dtype()).collect();
    assert_eq!(types, [Type::Bf16, Type::Bf16, Type::Bf16, Type::Bf16, Type::Bf16, Type::F32, Type::F32]);
    assert_eq!((data["rows"].as_u64(), data["clusters"].as_u64()), (Some(found.edits.rows() as u64), Some(14)));
    assert_eq!(data["tensors"][6]["delta_type"], "F32");
    assert_eq!(found.manifest.result, truth.manifest.result);
    assert_eq!(found.manifest.creation["method"], "extract");
    assert_eq!(found.manifest.creation["tuned"], "tuned");
    assert_eq!((found.manifest.name.as_str(), found.manifest.base.name.as_str()), ("x", "base"));

    succeeds(dir, &["apply", "x.nestpatch", "base", "-o", "again", "--key", "k.pub"]);
    assert!(weights(&dir.join("again")) == weights(&dir.join("tuned")));
    succeeds(dir, &["revert", "again", "--in-place"]);
    assert!(weights(&dir.join("again")) == weights(&dir.join("base")));
}

#[test]
fn people_are_told_what_was_found() {
    let world = patched();
    let dir = world.path();
    let labels = [
        "--name",
        "ours",
        "--series",
        "safety",
        "--sequence",
        "3",
        "--base-name",
        "toy",
        "--supersedes",
        "p.nestpatch",
    ];
    let made = succeeds(dir, &extract(&labels)).stdout;
    for word in ["Extracted ours as x.nestpatch", "in 7 tensors", "14 deltas: BF16 in 5 tensors, F32 in 2 tensors"] {
        assert!(made.contains(word), "{word}: {made}");
    }
    let manifest = contents(dir, "x.nestpatch").manifest;
    assert_eq!((manifest.series.as_str(), manifest.sequence, manifest.base.name.as_str()), ("safety", 3, "toy"));
    assert_eq!(manifest.supersedes, [contents(dir, "p.nestpatch").id()]);
}

#[test]
fn another_way_of_sharding_and_another_run_change_nothing() {
    let world = patched();
    let dir = world.path();
    succeeds(dir, &EXTRACT);
    let tuned = Checkpoint::open(&dir.join("tuned")).unwrap();
    let mut one = BTreeMap::new();
    for shard in tensors(1).into_values() {
        for (name, tensor) in shard {
            let bytes = tuned.read(&nestpatch::tensor::TensorName::new(name.clone()).unwrap()).unwrap();
            one.insert(name, Tensor { bytes, ..tensor });
        }
    }
    drop(tuned);
    fs::remove_dir_all(dir.join("tuned")).unwrap();
    checkpoint_of(&dir.join("tuned"), &Shards::from([("all.safetensors".to_owned(), one)]));
    let again = ["extract", "--base", "base", "--tuned", "tuned", "--key", "k.key", "-o", "y.nestpatch"];
    succeeds(dir, &again);
    let root = |name| contents(dir, name).manifest.content_root;
    assert_eq!(root("x.nestpatch"), root("y.nestpatch"));
}

#[test]
fn nothing_to_extract() {
    let world = patched();
    let dir = world.path();
    let same = ["extract", "--base", "base", "--tuned", "base", "--key", "k.key", "-o", "x.nestpatch"];
    fails(dir, &same, 5, &["do not differ", "11 tensors"]);
}

#[test]
fn places_and_keys_that_cannot_be_used() {
    let world = patched();
    let dir = world.path();
    fs::write(dir.join("taken"), "").unwrap();
    let with = |position: usize, value: &'static str| {
        let mut arguments = EXTRACT;
        arguments[position] = value;
        arguments
    };
    fails(dir, &with(8, "taken"), 1, &["already exists", "Hint"]);
    fails(dir, &with(8, "absent/x.nestpatch"), 1, &["folder does not exist"]);
    fails(dir, &with(6, "k.pub"), 7, &["k.pub"]);
    fails(dir, &with(4, "absent"), 6, &["absent is not a checkpoint folder"]);
    fails(dir, &extract(&["--name", "two\nlines"]), 2, &["name: expected 1 to 200 bytes"]);
}

/// Refused with these words; with --partial, written without that tensor, which is listed everywhere.
#[track_caller]
fn omits(
    prepare: impl FnOnce(&mut Shards),
    change: impl FnOnce(&mut Shards),
    tensor: &str,
    reason: &str,
    words: &[&str],
) {
    let world = world(prepare, change);
    let dir = world.path();
    let refused = fails(dir, &EXTRACT, 5, &[words, &[tensor, "1 of 3 differing tensors", "--partial"]].concat());
    assert!(refused.stderr.contains(&format!("  {tensor}: ")), "{refused:?}");

    let data = json(&succeeds(dir, &extract(&["--partial", "--json"])));
    let omitted = &data["omitted"][0];
    assert_eq!((omitted["tensor"].as_str(), omitted["reason"].as_str()), (Some(tensor), Some(reason)), "{data}");
    assert_eq!(data["rows"], 3);
    let found = contents(dir, "x.nestpatch");
    assert_eq!(&found.manifest.creation["omitted"], &data["omitted"]);
    assert!(found.edits.iter().all(|edit| edit.tensor().as_str() != tensor));

    fs::remove_file(dir.join("x.nestpatch")).unwrap();
    let told = succeeds(dir, &extract(&["--partial"]));
    assert!(told.stderr.contains(&format!("not in the patch: {tensor}: ")), "{told:?}");
    assert!(told.stdout.contains("1 differing tensor, listed above"), "{told:?}");
}

#[test]
fn tensors_that_are_not_in_both_checkpoints() {
    let step = "model.step";
    let remove = |shards: &mut Shards| shards.values_mut().for_each(|shard| drop(shard.remove(step)));
    omits(|_| (), remove, step, "only_in_base", &["only in the base"]);
    omits(
        remove,
        |shards| {
            *shards = {
                let mut with = mixed();
                tune(&mut with, &projection(0, "gate"), &[2, 5]);
                tune(&mut with, &projection(2, "up"), &[1]);
                with
            }
        },
        step,
        "only_in_tuned",
        &["only in the tuned checkpoint"],
    );
}

#[test]
fn tensors_of_another_type_or_shape() {
    let name = projection(1, "gate");
    let retype = |shards: &mut Shards| find(shards, &name).dtype = Dtype::BF16;
    omits(|_| (), retype, &name, "other_type", &["element type F16 in the base, BF16"]);
    let reshape = |shards: &mut Shards| find(shards, &name).shape.reverse();
    omits(|_| (), reshape, &name, "other_shape", &["shape [24, 16] in the base, [16, 24]"]);
}

#[test]
fn tensors_that_a_patch_must_not_touch() {
    let changed = "(changed: rows 1, elements 1)";
    for (name, reason, words) in [
        ("model.norm.weight", "no_matrix", "shape [4]: expected two dimensions"),
        ("model.embed_tokens.weight", "not_feed_forward", "no feed-forward projection"),
        ("model.layers.0.mlp.gate.weight", "not_feed_forward", "no feed-forward projection"),
    ] {
        omits(|_| (), |shards| set(shards, name, 3, 8.0), name, reason, &[words, changed]);
    }
    for (name, words) in [
        ("model.layers.0.mlp.scale.weight", "element type F8_E4M3: expected BF16, F16 or F32"),
        ("model.layers.0.mlp.count.weight", "element type I32"),
        ("model.step", "element type U8"),
    ] {
        omits(|_| (), |shards| find(shards, name).bytes[1] = 77, name, "type", &[words, changed]);
    }
}

#[test]
fn weights_that_no_delta_explains() {
    let name = projection(0, "up");
    for (from, to) in [(0.5, f32::NAN), (0.5, f32::INFINITY), (f32::NAN, 0.5), (f32::NEG_INFINITY, f32::NEG_INFINITY)] {
        let prepare = |shards: &mut Shards| set(shards, &name, 3 * HIDDEN + 4, from);
        let change = |shards: &mut Shards| {
            set(shards, &name, 3 * HIDDEN + 4, to);
            set(shards, &name, 3 * HIDDEN + 5, 9.0);
        };
        omits(prepare, change, &name, "not_finite", &["vector 3, element 4", "NaN or infinity"]);
    }
    // 1 - 2^-30 is no f32, and nothing else takes 1 to 2^-30.
    let prepare = |shards: &mut Shards| set(shards, &name, 3 * HIDDEN + 4, 1.0);
    let change = |shards: &mut Shards| set(shards, &name, 3 * HIDDEN + 4, 2.0_f32.powi(-30));
    omits(prepare, change, &name, "no_delta", &["vector 3, element 4: no delta takes 1e0 to 9.31"]);
    // In f32 only a zero delta would give +0, and that keeps the sign.
    let name = projection(2, "gate");
    let prepare = |shards: &mut Shards| set(shards, &name, 3 * HIDDEN + 4, -0.0);
    omits(
        prepare,
        |shards| set(shards, &name, 3 * HIDDEN + 4, 0.0),
        &name,
        "no_delta",
        &["no delta takes -0e0 to 0e0"],
    );
}

/// A merge that adds zeros turns -0 into 0 where it should have kept it: the patch does the same.
#[test]
fn a_sign_that_a_merge_lost_is_lost_again() {
    let name = projection(0, "up");
    let prepare = |shards: &mut Shards| set(shards, &name, 3 * HIDDEN + 4, -0.0);
    let world = world(prepare, |shards| set(shards, &name, 3 * HIDDEN + 4, 0.0));
    let dir = world.path();
    succeeds(dir, &EXTRACT);
    succeeds(dir, &["apply", "x.nestpatch", "base", "-o", "again", "--key", "k.pub"]);
    assert!(weights(&dir.join("again")) == weights(&dir.join("tuned")));
}

#[test]
fn a_tensor_of_which_most_changed() {
    let name = projection(0, "up");
    let change = |shards: &mut Shards| tune(shards, &name, &(0..13).collect::<Vec<_>>());
    omits(|_| (), change, &name, "dense", &["most rows and most columns changed", "(changed: rows 13, elements 208)"]);
    // Half is not most.
    let world = world(|_| (), |shards| tune(shards, &name, &(0..12).collect::<Vec<_>>()));
    assert_eq!(json(&succeeds(world.path(), &extract(&["--json"])))["rows"], 15);
    assert_eq!(FFN, 24);
}

#[test]
fn a_row_too_long_for_a_patch() {
    let name = "model.layers.0.mlp.wide.weight";
    let add = |shards: &mut Shards| {
        let wide = Tensor { dtype: Dtype::BF16, shape: vec![2, MAX_COLS + 1], bytes: vec![0; 4 * (MAX_COLS + 1)] };
        shards.values_mut().next().unwrap().insert(name.to_owned(), wide);
    };
    let change = |shards: &mut Shards| find(shards, name).bytes[..2 * (MAX_COLS + 1)].fill(0x3f);
    omits(add, change, name, "dense", &["too long", "(changed: rows 1, elements 1048577)"]);
}

#[test]
fn more_tensors_than_a_patch_may_touch() {
    let name = |number: usize| format!("m.{number:05}.mlp.w");
    let add = |shards: &mut Shards| {
        for number in 0..MAX_EDITS - 1 {
            let bytes = vec![0; 4 * 2 * 2];
            let small = Tensor { dtype: Dtype::BF16, shape: vec![4, 2], bytes };
            shards.values_mut().next().unwrap().insert(name(number), small);
        }
    };
    let change = |shards: &mut Shards| (0..MAX_EDITS - 1).for_each(|number| set(shards, &name(number), 3, 1.0));
    let world = world(add, change);
    let words =
        ["1 of 32769 differing tensors", "expected at most 16777216 rows and 32768 tensors", "layers.2.mlp.up_proj"];
    fails(world.path(), &EXTRACT, 5, &words);
}

#[test]
fn a_fine_tune_of_everything_is_recognised() {
    let everything = |shards: &mut Shards| {
        let tensors = shards.values_mut().flat_map(|shard| shard.values_mut());
        tensors.flat_map(|tensor| &mut tensor.bytes).for_each(|byte| *byte ^= 1);
    };
    let world = world(|_| (), everything);
    let words = ["15 of 15 differing tensors", "a fine-tune of whole tensors", &projection(2, "down")];
    fails(world.path(), &EXTRACT, 5, &words);
    fails(world.path(), &extract(&["--partial"]), 5, &words);
}

#[test]
fn only_what_a_patch_must_not_touch_differs() {
    let world = world(
        |_| (),
        |shards| {
            *shards = mixed();
            set(shards, "model.norm.weight", 0, 2.0);
        },
    );
    fails(
        world.path(),
        &extract(&["--partial"]),
        5,
        &["1 of 1 differing tensors", "nothing that differs can be in a patch"],
    );
}

#[test]
fn other_files_that_differ_are_mentioned() {
    let world = patched();
    let dir = world.path();
    let quiet = succeeds(dir, &EXTRACT);
    assert_eq!(quiet.stderr, "");
    fs::remove_file(dir.join("x.nestpatch")).unwrap();
    fs::write(dir.join("tuned/config.json"), "{\"model_type\": \"llama\"}").unwrap();
    fs::write(dir.join("tuned/chat_template.jinja"), "").unwrap();
    let told = succeeds(dir, &extract(&["--json"]));
    assert!(told.stderr.contains("a patch does not carry these files, which differ: chat_template.jinja, config.json"));
    assert_eq!(json(&told)["other_files"], serde_json::json!(["chat_template.jinja", "config.json"]));
    assert!(run(dir, &["inspect", "x.nestpatch"]).code == Some(0));
}
