//! What lies on a checkpoint and comes off again: records, stacks, rows that were edited since, patches without a
//! record, other bases than the exact one, and what recovery leaves alone.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{fails, run, snapshot, succeeds, world};
use nestpatch::checkpoint::Checkpoint;
use nestpatch::format::{Deltas, Edit, EditParts, Edits, Layout, Vectors};
use nestpatch::patch::assemble::{About, Levels, assemble, sign};
use nestpatch::tensor::TensorName;
use nestpatch::trust::SecretKey;
use serde_json::Value;

const IN_PLACE: &[&str] = &["apply", "p.nestpatch", "base", "--key", "key.pub", "--in-place"];
const GATE: &str = "model.layers.0.mlp.gate_proj.weight";

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// A patch that adds one delta to rows of the first gate projection.
fn patch_of_rows(dir: &Path, number: u64, rows: &[u32]) -> Vec<u8> {
    let checkpoint = Checkpoint::open(&dir.join("base")).unwrap();
    let template =
        common::edits(&checkpoint, number).iter().find(|edit| edit.tensor().as_str() == GATE).unwrap().clone();
    let (dtype, cols) = (template.deltas().dtype(), template.deltas().cols());
    let edit = Edit::new(EditParts {
        tensor: template.tensor().clone(),
        dtype: template.dtype(),
        shape: template.shape().clone(),
        layout: Layout::Rows,
        rows: rows.to_vec(),
        clusters: vec![0; rows.len()],
        deltas: Deltas::new(dtype, cols, template.delta(0).to_vec()).unwrap(),
    });
    common::patch_of(&dir.join("base"), number, &Edits::new(vec![edit.unwrap()]).unwrap())
}

/// Flips a bit, too high to be rounded away, in one row of the first gate projection.
fn edit_row(dir: &Path, row: u32) {
    let (path, offset) = place(dir, row);
    let mut bytes = fs::read(&path).unwrap();
    bytes[offset + 3] ^= 1;
    fs::write(path, bytes).unwrap();
}

/// The file that holds a row of the first gate projection, and where.
fn place(dir: &Path, row: u32) -> (PathBuf, usize) {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let tensor = checkpoint.tensor(&TensorName::new(GATE).unwrap()).unwrap();
    let path = dir.join(checkpoint.shard_of(tensor));
    let (bytes, whole) = (checkpoint.read(&tensor.name).unwrap(), fs::read(&path).unwrap());
    let at = whole.windows(bytes.len()).position(|window| window == bytes).unwrap();
    let vectors = Vectors::new(Layout::Rows, &tensor.shape).unwrap();
    (path, at + row as usize * vectors.len() * tensor.dtype.editable().unwrap().size())
}

/// Rows of the first gate projection that `p.nestpatch` touches, and one that it does not.
fn rows(dir: &Path) -> (Vec<u32>, u32) {
    let checkpoint = Checkpoint::open(&dir.join("base")).unwrap();
    let edits = common::edits(&checkpoint, 7);
    let touched = edits.get(&TensorName::new(GATE).unwrap()).unwrap().rows().to_vec();
    let outside = (0..).find(|row| !touched.contains(row)).unwrap();
    (touched, outside)
}

#[test]
fn a_patch_without_a_record_needs_a_key() {
    let world = world();
    let dir = world.path();
    succeeds(dir, IN_PLACE);
    succeeds(dir, &["keygen", "-o", "stranger", "--no-passphrase", "-q"]);
    // The copy in the record folder is believed without a key, and with one only if that key signed it.
    fails(dir, &["revert", "base", "--in-place", "--key", "stranger.pub"], 3, &["not trusted"]);
    // As it would be after a download: the weights, and no word of how they came about.
    fs::remove_dir_all(dir.join("base/nestpatch")).unwrap();
    fails(dir, &["revert", "base", "--in-place"], 5, &["no patch is applied", "revert --patch"]);
    let by_patch = ["revert", "base", "--in-place", "--patch", "p.nestpatch"];
    fails(dir, &by_patch, 3, &["no key"]);
    fails(dir, &[&by_patch[..], &["--key", "stranger.pub"]].concat(), 3, &["not trusted"]);
    let both = run(dir, &[&by_patch[..], &["--key", "key.pub", "--record", "1"]].concat());
    assert_eq!(both.code, Some(2));
}

#[test]
fn a_patch_alone_gives_the_base_back() {
    let world = world();
    let dir = world.path();
    let before = snapshot(&dir.join("base"));
    succeeds(dir, IN_PLACE);
    fs::remove_dir_all(dir.join("base/nestpatch")).unwrap();
    let by_patch = ["revert", "base", "--patch", "p.nestpatch", "--key", "key.pub"];
    succeeds(dir, &[&by_patch[..], &["-o", "back"]].concat());
    assert!(snapshot(&dir.join("back")) == before);
    succeeds(dir, &[&by_patch[..], &["--in-place"]].concat());
    assert!(snapshot(&dir.join("base")) == before);
    fails(dir, &[&by_patch[..], &["--in-place"]].concat(), 5, &["the other side of this patch"]);
    // With a record of it, that goes too.
    succeeds(dir, IN_PLACE);
    succeeds(dir, &[&by_patch[..], &["--in-place"]].concat());
    assert!(snapshot(&dir.join("base")) == before);
}

#[test]
fn a_patch_is_taken_from_below_others_only_if_they_touch_none_of_its_rows() {
    let world = world();
    let dir = world.path();
    let before = snapshot(&dir.join("base"));
    for (number, rows) in [(1, &[0, 3][..]), (2, &[1, 4]), (3, &[4, 5])] {
        // The third is made for what the second gives, the second for the base.
        fs::write(dir.join(format!("{number}.nestpatch")), patch_of_rows(dir, number, rows)).unwrap();
        let patch = format!("{number}.nestpatch");
        succeeds(dir, &["apply", &patch, "base", "--key", "key.pub", "--in-place"]);
    }
    let take = |record| ["revert", "base", "--in-place", "--record", record];
    fails(dir, &take("2"), 5, &["record 2", "below record 3", "take the newer one back first"]);
    fails(dir, &take("9"), 5, &["no record 9"]);
    succeeds(dir, &take("1"));
    let status = json(&succeeds(dir, &["status", "base", "--json"]).stdout);
    let numbers: Vec<_> =
        status["applied"].as_array().unwrap().iter().map(|entry| entry["record"]["number"].clone()).collect();
    assert_eq!(numbers, [2, 3]);
    // What is applied next comes after all of them, and nothing is applied twice.
    fails(dir, &["apply", "3.nestpatch", "base", "--key", "key.pub", "--in-place"], 5, &["other side"]);
    succeeds(dir, &["apply", "1.nestpatch", "base", "--key", "key.pub", "--in-place"]);
    assert!(dir.join("base/nestpatch/0004.json").exists());
    for record in ["4", "3", "2"] {
        succeeds(dir, &take(record));
    }
    assert!(snapshot(&dir.join("base")) == before);
}

#[test]
fn rows_that_were_edited_since_are_named_and_can_be_left() {
    let world = world();
    let dir = world.path();
    let (touched, _) = rows(dir);
    let base = snapshot(&dir.join("base"));
    succeeds(dir, IN_PLACE);
    let (path, offset) = place(&dir.join("base"), touched[1]);
    edit_row(&dir.join("base"), touched[1]);
    let edited = fs::read(&path).unwrap();
    let named = format!("row {} was changed since", touched[1]);
    fails(dir, &["revert", "base", "--in-place"], 5, &[GATE, &named, "--leave-edited"]);
    fails(dir, &["revert", "base", "-o", "out"], 5, &[GATE, &named]);
    let status = run(dir, &["status", "base"]);
    assert_eq!(status.code, Some(5));
    assert!(status.stdout.contains(&named), "{status:?}");
    for target in [&["-o", "out"][..], &["--in-place"]] {
        let done = succeeds(dir, &[&["revert", "base", "--leave-edited", "--json"], target].concat());
        assert_eq!(json(&done.stdout)["left"][GATE], serde_json::json!([touched[1]]));
        assert!(done.stderr.contains("left as they are: 1 row"), "{done:?}");
    }
    // Only that row is not the base's.
    let row = common::edits(&Checkpoint::open(&dir.join("base")).unwrap(), 7);
    let bytes = row.get(&TensorName::new(GATE).unwrap()).unwrap().row_bytes();
    for name in ["base", "out"] {
        let mut found = snapshot(&dir.join(name));
        let shard = found.get_mut(Path::new(path.file_name().unwrap())).unwrap();
        assert_eq!(shard[offset..offset + bytes], edited[offset..offset + bytes]);
        shard[offset..offset + bytes]
            .copy_from_slice(&base[Path::new(path.file_name().unwrap())][offset..offset + bytes]);
        assert!(found == base, "{name}");
    }
}

/// In place only the touched rows matter, to a new folder the whole tensors, and either can be asked for.
#[test]
fn what_lies_around_the_rows_counts_where_it_is_looked_at() {
    let world = world();
    let dir = world.path();
    let (_, outside) = rows(dir);
    edit_row(&dir.join("base"), outside);
    let edited = snapshot(&dir.join("base"));
    let to_out = ["apply", "p.nestpatch", "base", "--key", "key.pub", "-o", "out"];
    fails(dir, &to_out, 5, &[GATE, "not the rows around them", "--check rows"]);
    fails(dir, &[&to_out[..], &["--dry-run"]].concat(), 5, &[GATE, "not the rows around them"]);
    fails(dir, &[IN_PLACE, &["--check", "tensors"]].concat(), 5, &[GATE, "not the rows around them"]);
    let done = succeeds(dir, &[&to_out[..], &["--check", "rows"]].concat()).stdout;
    assert!(done.contains("exact, by the touched rows"), "{done}");
    let done = succeeds(dir, &[IN_PLACE, &["--json"]].concat()).stdout;
    assert_eq!((&json(&done)["level"], &json(&done)["compared"]), (&"exact".into(), &"rows".into()));
    assert_eq!(run(dir, &["status", "base"]).code, Some(0));
    let whole = run(dir, &["status", "base", "--check", "tensors"]);
    assert_eq!(whole.code, Some(5));
    assert!(whole.stdout.contains("not the rows around them"), "{whole:?}");
    fails(dir, &["revert", "base", "--in-place", "--check", "tensors"], 5, &["not the rows around them"]);
    succeeds(dir, &["revert", "base", "--in-place"]);
    assert!(snapshot(&dir.join("base")) == edited);
}

/// Shards that a patch does not touch are one file with the original's, and are safe from later changes in place.
#[test]
fn untouched_shards_are_linked_on_request() {
    use std::os::unix::fs::MetadataExt;
    let world = world();
    let dir = world.path();
    let before = snapshot(&dir.join("base"));
    fs::write(dir.join("1.nestpatch"), patch_of_rows(dir, 1, &[0, 3])).unwrap();
    let apply = ["apply", "1.nestpatch", "base", "--key", "key.pub", "--link"];
    assert_eq!(run(dir, &[&apply[..], &["--in-place"]].concat()).code, Some(2));
    succeeds(dir, &[&apply[..], &["-o", "out"]].concat());
    let touched = place(&dir.join("base"), 0).0.file_name().unwrap().to_owned();
    let shards = before.keys().filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
    for shard in shards {
        let links = fs::metadata(dir.join("out").join(shard)).unwrap().nlink();
        assert_eq!(links, if shard.as_os_str() == touched { 1 } else { 2 }, "{shard:?}");
    }
    assert!(snapshot(&dir.join("base")) == before);
    succeeds(dir, &["revert", "out", "-o", "back", "--link"]);
    assert!(snapshot(&dir.join("back")) == before);
    let all = ["apply", "p.nestpatch", "back", "--key", "key.pub", "--in-place"];
    fails(dir, &all, 6, &["another hard link", "-o"]);
}

#[test]
fn another_base_takes_the_publishers_word_or_a_reason() {
    let world = world();
    let dir = world.path();
    let (touched, _) = rows(dir);
    edit_row(&dir.join("base"), touched[1]);
    let other = snapshot(&dir.join("base"));
    fails(dir, IN_PLACE, 5, &[GATE, "--level descendant"]);
    let loose = [IN_PLACE, &["--level", "architecture"]].concat();
    fails(dir, &loose, 5, &["permits the patch at level exact, not at level architecture", "--override-binding"]);
    let reason = "trying it on our own child";
    let overridden = [&loose[..], &["--override-binding", reason]].concat();
    let done = succeeds(dir, &overridden).stdout;
    assert!(done.contains(reason) && done.contains("the publisher signed none for this base"), "{done}");
    let record = json(&fs::read_to_string(dir.join("base/nestpatch/0001.json")).unwrap());
    assert_eq!(record["predicate"]["override"], reason);
    assert_eq!(record["predicate"]["level"], "architecture");
    assert!(succeeds(dir, &["status", "base"]).stdout.contains(reason));
    fails(dir, &overridden, 5, &["other side of this patch"]);
    // The residual of this base was kept, as the patch's own belongs to another.
    succeeds(dir, &["revert", "base", "--in-place"]);
    assert!(snapshot(&dir.join("base")) == other);
    // Other types or shapes are no base at any level.
    fs::write(dir.join("base/config.json"), r#"{"model_type": "llama", "hidden_size": 4}"#).unwrap();
    succeeds(dir, &overridden);
}

/// A patch for `base` that its publisher permits on descendants within this tolerance.
fn tolerant_patch(dir: &Path, tolerance: &str) -> Vec<u8> {
    let checkpoint = Checkpoint::open(&dir.join("base")).unwrap();
    let levels = Levels { descendant: Some(tolerance.parse().unwrap()), architecture: false };
    let about = About { levels, ..About::new("tolerant", "tests", "synthetic") };
    let unsigned = assemble(&checkpoint, &common::edits(&checkpoint, 7), about, &()).unwrap();
    sign(&unsigned, &SecretKey::from_seed(&common::KEY_SEED)).unwrap()
}

/// The synthetic checkpoint with every weight changed by this share of its size.
fn descendant(dir: &Path, share: f32) {
    let mut shards = common::tensors(1);
    for (at, tensor) in shards.values_mut().flat_map(|shard| shard.values_mut()).enumerate() {
        let decode = |cell: &[u8]| match tensor.dtype {
            safetensors::Dtype::BF16 => half::bf16::from_le_bytes(cell.try_into().unwrap()).to_f32(),
            safetensors::Dtype::F16 => half::f16::from_le_bytes(cell.try_into().unwrap()).to_f32(),
            _ => f32::from_le_bytes(cell.try_into().unwrap()),
        };
        if tensor.dtype != safetensors::Dtype::U8 {
            let cells = tensor.bytes.chunks(tensor.dtype.bitsize() / 8).enumerate();
            let sign = |index: usize| if (index * 7 + at).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
            let values: Vec<f32> = cells.map(|(index, cell)| decode(cell) * (1.0 + share * sign(index))).collect();
            tensor.bytes = common::encode(tensor.dtype, &values);
        }
    }
    common::checkpoint_of(dir, &shards);
}

#[test]
fn a_descendant_is_taken_within_the_publishers_tolerance() {
    let world = world();
    let dir = world.path();
    fs::write(dir.join("t.nestpatch"), tolerant_patch(dir, "0.08")).unwrap();
    descendant(&dir.join("near"), 0.04);
    descendant(&dir.join("far"), 0.3);
    let before = snapshot(&dir.join("near"));
    let on = |model: &'static str, more: &[&'static str]| {
        [&["apply", "t.nestpatch", model, "--key", "key.pub", "--in-place"][..], more].concat()
    };
    fails(dir, &on("near", &[]), 5, &[GATE, "--level descendant"]);
    fails(dir, &on("far", &["--level", "descendant"]), 5, &["from the base's rows", "the publisher permits 0.08"]);
    let verified = run(dir, &["verify", "t.nestpatch", "--key", "key.pub", "--checkpoint", "near"]);
    assert_eq!(verified.code, Some(5));
    let proven = verified.stdout.split("Failed").next().unwrap();
    assert!(proven.contains("descendant") && proven.contains("its publisher permits 0.08"), "{verified:?}");
    // The exact base is bound as such, whatever else would do.
    let exact = succeeds(dir, &on("base", &["--level", "descendant", "--dry-run", "--json"]));
    assert_eq!(json(&exact.stdout)["level"], "exact");

    let done = succeeds(dir, &on("near", &["--level", "descendant"])).stdout;
    assert!(done.contains("Distance from the base") && done.contains(GATE), "{done}");
    let record = json(&fs::read_to_string(dir.join("near/nestpatch/0001.json")).unwrap());
    assert_eq!(record["predicate"]["level"], "descendant");
    let far: Vec<_> =
        record["predicate"]["distances"].as_object().unwrap().values().map(|far| far.as_u64().unwrap()).collect();
    assert!(far.len() == 7 && far.iter().all(|far| (20_000..80_000).contains(far)), "{far:?}");
    assert_eq!(run(dir, &["status", "near"]).code, Some(0));
    let other = ["revert", "near", "--in-place", "--patch", "p.nestpatch", "--key", "key.pub"];
    fails(dir, &other, 5, &["record 1", "about some of the same rows"]);
    let same = ["revert", "near", "--in-place", "--patch", "t.nestpatch", "--key", "key.pub"];
    fails(dir, &same, 5, &[GATE, "belong to another base"]);
    succeeds(dir, &["revert", "near", "-o", "back"]);
    assert!(snapshot(&dir.join("back")) == before);
    succeeds(dir, &["revert", "near", "--in-place"]);
    assert!(snapshot(&dir.join("near")) == before);
    // The same weights that compute something else are another model.
    let config = fs::read_to_string(dir.join("near/config.json")).unwrap();
    fs::write(dir.join("near/config.json"), config.replacen('{', r#"{"mlp_bias": true, "#, 1)).unwrap();
    fails(dir, &on("near", &["--level", "descendant"]), 5, &["config.json: mlp_bias", "--override-binding"]);
}

/// On another base than the exact one nothing but the record knows that a patch is there already.
#[test]
fn no_patch_is_applied_twice() {
    let world = world();
    let dir = world.path();
    fs::write(dir.join("1.nestpatch"), patch_of_rows(dir, 1, &[0, 3])).unwrap();
    edit_row(&dir.join("base"), 3);
    let apply = ["apply", "1.nestpatch", "base", "--key", "key.pub", "--in-place", "--level", "architecture"];
    let apply = [&apply[..], &["--override-binding", "x"]].concat();
    succeeds(dir, &apply);
    fails(dir, &apply, 5, &["0001.json", "is applied already"]);
}

#[test]
fn a_record_is_signed_on_request() {
    let world = world();
    let dir = world.path();
    succeeds(dir, &["keygen", "-o", "me", "--no-passphrase", "-q"]);
    fails(dir, &[IN_PLACE, &["--sign-with", "key.pub"]].concat(), 7, &["key.pub"]);
    succeeds(dir, &[IN_PLACE, &["--sign-with", "me.key"]].concat());
    let signed = dir.join("base/nestpatch/0001.dsse.json");
    let line = |keys: &[&str]| {
        let text = succeeds(dir, &[&["status", "base"], keys].concat()).stdout;
        text.lines().find(|line| line.starts_with("  record")).unwrap().to_owned()
    };
    assert!(line(&[]).contains("not checked"));
    assert!(line(&["--key", "me.pub", "--key", "key.pub"]).contains("signed by me.pub"));
    let stranger = run(dir, &["status", "base", "--key", "me.pub"]);
    assert!(stranger.code == Some(3) && stranger.stdout.contains("NOBODY who is trusted here"), "{stranger:?}");
    assert!(line(&["--key", "key.pub"]).contains("nobody who is trusted here"));
    let good = fs::read_to_string(&signed).unwrap();
    let mut envelope = json(&good);
    let signature = envelope["signatures"][0]["sig"].as_str().unwrap().replacen(|letter: char| letter != 'A', "A", 1);
    envelope["signatures"][0]["sig"] = signature.into();
    fs::write(&signed, envelope.to_string()).unwrap();
    fails(dir, &["status", "base", "--key", "me.pub"], 3, &["me.pub"]);
    fails(dir, &["revert", "base", "--in-place", "--key", "me.pub", "--key", "key.pub"], 3, &["me.pub"]);
    // A record that was changed is not the one that was signed.
    fs::write(&signed, good).unwrap();
    let record = dir.join("base/nestpatch/0001.json");
    let text = fs::read_to_string(&record).unwrap();
    fs::write(&record, text.replacen("test patch 7", "test patch 8", 1)).unwrap();
    fails(dir, &["status", "base"], 6, &["0001.dsse.json", "payload"]);
    fs::write(&record, text).unwrap();
    succeeds(dir, &["revert", "base", "--in-place"]);
    assert!(!dir.join("base/nestpatch").exists());
}

/// Somebody fetched the weights anew after a crash: recovery finds neither old nor new rows, and touches nothing.
#[test]
fn recovery_leaves_files_alone_that_are_not_what_was_interrupted() {
    let world = world();
    let dir = world.path();
    let before = snapshot(&dir.join("base"));
    let (path, offset) = place(&dir.join("base"), rows(dir).0[0]);
    let torn = (20..).find(|call| {
        let ran = common::run_with(dir, Some(&format!("kill@{call}")), IN_PLACE);
        assert_ne!(ran.code, Some(0));
        let changed =
            snapshot(&dir.join("base")).iter().any(|(path, bytes)| before.get(path).is_some_and(|old| old != bytes));
        if !changed {
            assert_eq!(run(dir, &["status", "base"]).code, Some(0));
        }
        changed
    });
    assert!(torn.is_some());
    let mut bytes = fs::read(&path).unwrap();
    let sound = bytes[offset];
    bytes[offset] ^= 0x40;
    fs::write(&path, &bytes).unwrap();
    let name = path.file_name().unwrap().to_str().unwrap().to_owned();
    fails(
        dir,
        &["status", "base"],
        6,
        &[&name, "neither what the interrupted change found nor what it wrote", "fetched anew"],
    );
    fails(dir, &["revert", "base", "--in-place"], 6, &["neither"]);
    bytes[offset] = sound;
    fs::write(&path, &bytes).unwrap();
    let mended = succeeds(dir, &["status", "base"]);
    assert!(mended.stderr.contains("was undone"), "{mended:?}");
    assert!(snapshot(&dir.join("base")) == before);
}

/// Who can write the record folder cannot say what an exact base was.
#[test]
fn a_forged_record_restores_nothing() {
    let world = world();
    let dir = world.path();
    let before = snapshot(&dir.join("base"));
    succeeds(dir, IN_PLACE);
    let path = dir.join("base/nestpatch/0001.json");
    let mut record = json(&fs::read_to_string(&path).unwrap());
    let touched = common::edits(&Checkpoint::open(&dir.join("base")).unwrap(), 7).touched_bytes() as usize;
    // A residual that gives other rows: what the patch carries, one value changed.
    let residual = vec![0; touched + 15 * 4 * 47];
    fs::write(dir.join("base/nestpatch/0001.residual"), &residual).unwrap();
    record["predicate"]["residual"] = nestpatch::digest::Blake3::of(&residual).to_string().into();
    record["predicate"]["base"][0]["rows"] = "00".repeat(32).into();
    let words = "was not the publisher's base, though it became the publisher's result";
    for (level, reason) in [("architecture", Value::Null), ("architecture", "x".into()), ("descendant", "x".into())] {
        record["predicate"]["level"] = level.into();
        record["predicate"]["override"] = reason;
        fs::write(&path, record.to_string()).unwrap();
        for keys in [&[][..], &["--key", "key.pub"]] {
            fails(dir, &[&["revert", "base", "--in-place"], keys].concat(), 6, &[words]);
        }
    }
    succeeds(dir, &["revert", "base", "--in-place", "--patch", "p.nestpatch", "--key", "key.pub"]);
    assert!(snapshot(&dir.join("base")) == before, "the record goes with the patch");
}

#[test]
fn what_belongs_to_no_record_is_named_and_kept() {
    let world = world();
    let dir = world.path();
    let state = dir.join("base/nestpatch");
    succeeds(dir, IN_PLACE);
    // A lost record, somebody's notes, and a folder that bears a number.
    fs::rename(state.join("0001.json"), dir.join("aside")).unwrap();
    fs::create_dir(state.join("0001.notes")).unwrap();
    fs::write(state.join("0001.bak"), "mine").unwrap();
    let status = succeeds(dir, &["status", "base"]).stdout;
    for name in ["0001.nestpatch", "0001.marks", "0001.notes", "0001.bak"] {
        assert!(status.contains(&format!("of no record: {name}")), "{name}: {status}");
    }
    fs::write(dir.join("1.nestpatch"), patch_of_rows(dir, 1, &[0, 3])).unwrap();
    let before = snapshot(&state);
    succeeds(dir, &["apply", "1.nestpatch", "base", "--key", "key.pub", "--in-place"]);
    assert!(state.join("0002.json").exists(), "numbers are not used again");
    succeeds(dir, &["revert", "base", "--in-place"]);
    assert!(snapshot(&state) == before);
    fs::rename(dir.join("aside"), state.join("0001.json")).unwrap();
    succeeds(dir, &["revert", "base", "--in-place"]);
    let left: Vec<_> = snapshot(&state).into_keys().collect();
    assert_eq!(left, [Path::new("0001.bak"), Path::new("0001.notes/")]);
    // Something lies where a record's file is to go.
    fs::write(state.join("0003.marks"), "mine").unwrap();
    fs::remove_dir(state.join("0001.notes")).unwrap();
    succeeds(dir, IN_PLACE);
    assert_eq!(fs::read_to_string(state.join("0003.marks")).unwrap(), "mine");
    assert!(state.join("0004.json").exists());
}

#[test]
fn marks_are_needed_only_to_tell_rows() {
    let world = world();
    let dir = world.path();
    let before = snapshot(&dir.join("base"));
    let (touched, _) = rows(dir);
    succeeds(dir, IN_PLACE);
    fs::write(dir.join("base/nestpatch/0001.marks"), "damaged").unwrap();
    edit_row(&dir.join("base"), touched[1]);
    fails(dir, &["revert", "base", "--in-place"], 5, &[GATE]);
    fails(dir, &["revert", "base", "--in-place", "--leave-edited"], 5, &["no record tells which"]);
    edit_row(&dir.join("base"), touched[1]);
    succeeds(dir, &["revert", "base", "--in-place"]);
    assert!(snapshot(&dir.join("base")) == before);
}

/// NaN too is an edit, and one that may be left.
#[test]
fn a_row_that_is_no_number_any_more_can_be_left() {
    let world = world();
    let dir = world.path();
    let (touched, _) = rows(dir);
    succeeds(dir, IN_PLACE);
    let (path, offset) = place(&dir.join("base"), touched[1]);
    let mut bytes = fs::read(&path).unwrap();
    bytes[offset..offset + 2].copy_from_slice(&[0xc0, 0x7f]);
    fs::write(&path, &bytes).unwrap();
    fails(dir, &["revert", "base", "--in-place"], 5, &[GATE, &format!("row {} was changed since", touched[1])]);
    succeeds(dir, &["revert", "base", "--in-place", "--leave-edited"]);
    assert_eq!(fs::read(&path).unwrap()[offset..offset + 2], [0xc0, 0x7f]);
}

/// Patches that share a tensor and no row come and go as whole tensors too.
#[test]
fn whole_tensors_are_compared_where_one_patch_alone_made_them() {
    let world = world();
    let dir = world.path();
    let before = snapshot(&dir.join("base"));
    for (number, rows) in [(1, [0, 3]), (2, [1, 4])] {
        fs::write(dir.join(format!("{number}.nestpatch")), patch_of_rows(dir, number, &rows)).unwrap();
    }
    for number in ["1", "2"] {
        succeeds(dir, &["apply", &format!("{number}.nestpatch"), "base", "--key", "key.pub", "--in-place"]);
    }
    let status = ["status", "base", "--check", "tensors"];
    succeeds(dir, &status);
    succeeds(dir, &["revert", "base", "--record", "1", "-o", "second"]);
    succeeds(dir, &["revert", "base", "--record", "2", "-o", "first"]);
    succeeds(dir, &["status", "second", "--check", "tensors"]);
    succeeds(dir, &["status", "first", "--check", "tensors"]);
    succeeds(dir, &["revert", "second", "-o", "back"]);
    assert!(snapshot(&dir.join("back")) == before);
    fs::remove_dir_all(dir.join("back")).unwrap();
    succeeds(dir, &["revert", "first", "-o", "back"]);
    assert!(snapshot(&dir.join("back")) == before);
}

/// A reader does not write: only verbs that change a checkpoint make it whole again.
#[test]
fn verbs_that_read_leave_an_interrupted_change_alone() {
    let world = world();
    let dir = world.path();
    let before = snapshot(&dir.join("base"));
    assert_ne!(common::run_with(dir, Some("kill@40"), IN_PLACE).code, Some(0));
    assert!(dir.join("base/nestpatch/journal").exists());
    for verb in [
        &["verify", "p.nestpatch", "--key", "key.pub", "--checkpoint", "base"][..],
        &["apply", "p.nestpatch", "base", "--key", "key.pub", "-o", "out"],
        &["revert", "base", "-o", "out"],
        &["audit", "p.nestpatch", "--key", "key.pub", "--base", "base", "--patched", "base"],
    ] {
        let ran = run(dir, verb);
        assert!(
            ran.code == Some(6) && ran.stderr.contains("`nestpatch status DIR` makes it whole") || verb[0] == "audit",
            "{ran:?}"
        );
        assert!(dir.join("base/nestpatch/journal").exists(), "{verb:?}");
    }
    succeeds(dir, &["status", "base"]);
    assert!(snapshot(&dir.join("base")) == before);
    // A pipe in the journal's place is no journal, and nobody waits for it.
    fs::create_dir(dir.join("base/nestpatch")).unwrap();
    let made = std::process::Command::new("mkfifo").arg(dir.join("base/nestpatch/journal")).status();
    assert!(made.unwrap().success());
    let piped = run(dir, &["status", "base"]);
    assert!(piped.code == Some(6) && piped.stderr.contains("no regular file"), "{piped:?}");
}

#[test]
fn a_level_looser_than_asked_for_is_not_taken() {
    let world = world();
    let dir = world.path();
    fs::write(dir.join("t.nestpatch"), tolerant_patch(dir, "0.01")).unwrap();
    descendant(&dir.join("far"), 0.3);
    for (patch, words) in [("t.nestpatch", "from the base's rows"), ("p.nestpatch", "permits the patch at level exact")]
    {
        let apply = ["apply", patch, "far", "--key", "key.pub", "--in-place", "--override-binding", "x"];
        fails(dir, &[&apply[..], &["--level", "descendant"]].concat(), 5, &[words]);
    }
    let empty = ["apply", "p.nestpatch", "far", "--key", "key.pub", "--in-place", "--override-binding", ""];
    assert_eq!(run(dir, &empty).code, Some(2));
}

/// What a dry run promises about the disk holds, for rows and columns, kept residual and all.
#[test]
fn a_change_takes_no_more_disk_than_said() {
    let world = world();
    let dir = world.path();
    edit_row(&dir.join("base"), rows(dir).0[1]);
    let apply = [IN_PLACE, &["--level", "architecture", "--override-binding", "x", "--json"]].concat();
    let said = json(&succeeds(dir, &[&apply[..], &["--dry-run"]].concat()).stdout)["disk_needed"].as_u64().unwrap();
    // Killed where the journal and all of the record are there.
    let most = (30..200).map(|call| {
        let _ = fs::remove_dir_all(dir.join("copy"));
        copy(&dir.join("base"), &dir.join("copy"));
        let there = |arguments: &[&str]| {
            arguments
                .iter()
                .map(|word| if *word == "base" { "copy" } else { word })
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let words = there(&apply);
        common::run_with(dir, Some(&format!("kill@{call}")), &words.iter().map(String::as_str).collect::<Vec<_>>());
        let files = snapshot(&dir.join("copy"));
        files.iter().filter(|(path, _)| path.starts_with("nestpatch")).map(|(_, bytes)| bytes.len() as u64).sum::<u64>()
    });
    let most = most.max().unwrap();
    assert!(most > 4_000 && most <= said, "{most} of {said}");
}

fn copy(from: &Path, to: &Path) {
    for (path, bytes) in snapshot(from) {
        let to = to.join(&path);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        match path.to_str().unwrap().ends_with('/') {
            true => fs::create_dir_all(to).unwrap(),
            false => fs::write(to, bytes).unwrap(),
        }
    }
}
