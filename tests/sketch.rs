//! The sketch: what it says of fine-tunes, in memory and through patches and checkpoints.

// A test says what it expects by panicking; clippy.toml allows that inside test functions, this in their helpers.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

mod common;

use std::path::Path;

use common::{FFN, HIDDEN, Shards, Tensor, checkpoint_of, encode, projection, tensors};
use nestpatch::checkpoint::{BindError, Checkpoint, MismatchKind, distances};
use nestpatch::digest::Blake3;
use nestpatch::format::limits::MAX_UNVERIFIED_BYTES;
use nestpatch::format::manifest::{BaseTensor, Stored};
use nestpatch::format::section::SectionError;
use nestpatch::format::{
    Codec, Deltas, Edit, EditParts, Edits, Kind, Layout, Level, Manifest, Payload, PayloadError, Sketch, SketchError,
    TensorSketch, TensorSketcher, Tolerance,
};
use nestpatch::patch::Contents;
use nestpatch::patch::assemble::{About, Levels, assemble, sign};
use nestpatch::patch::diff::diff;
use nestpatch::patch::inspect::inspect;
use nestpatch::tensor::{Shape, TensorName};
use nestpatch::trust::SecretKey;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::Dtype;

/// About normal, of unit variance.
fn noise(rng: &mut ChaCha8Rng) -> f32 {
    (0..12).map(|_| rng.random_range(-0.5..0.5_f32)).sum()
}

const ROWS: usize = 48;
const COLS: usize = 160;

fn edit(tensor: &str, dtype: Dtype) -> Edit {
    let dtype = if dtype == Dtype::F32 { nestpatch::tensor::Dtype::F32 } else { nestpatch::tensor::Dtype::Bf16 };
    Edit::new(EditParts {
        tensor: TensorName::new(tensor).unwrap(),
        dtype,
        shape: Shape::new([2 * ROWS as u64, COLS as u64]).unwrap(),
        layout: Layout::Rows,
        rows: (0..ROWS as u32).map(|row| row * 2).collect(),
        clusters: vec![0; ROWS],
        deltas: Deltas::new(dtype, COLS, vec![1.0; COLS]).unwrap(),
    })
    .unwrap()
}

fn sketch(edit: &Edit, dtype: Dtype, values: &[f32]) -> TensorSketch {
    let mut sketcher = TensorSketcher::new(edit);
    values.chunks(COLS).for_each(|row| sketcher.push(&encode(dtype, row)).unwrap());
    sketcher.finish().unwrap()
}

/// Estimated over true distance of a change to random rows.
fn ratio(seed: u64, dtype: Dtype, change: impl Fn(&mut ChaCha8Rng) -> Vec<f32>) -> f64 {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let stored = |value: f32| if dtype == Dtype::F32 { value } else { half::bf16::from_f32(value).to_f32() };
    let base: Vec<f32> = (0..ROWS * COLS).map(|_| stored(0.02 * noise(&mut rng))).collect();
    let tuned: Vec<f32> = base.iter().zip(change(&mut rng)).map(|(base, change)| stored(base + change)).collect();
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let difference = base.iter().zip(&tuned).map(|(base, tuned)| f64::from(*tuned) - f64::from(*base));
    let truth = norm(&mut difference.into_iter()) / norm(&mut base.iter().map(|value| f64::from(*value)));
    assert!((0.005..0.5).contains(&truth), "{truth}");
    let edit = edit(&format!("w{seed}"), dtype);
    sketch(&edit, dtype, &base).distance(&sketch(&edit, dtype, &tuned)) / truth
}

/// Its standard error at 48 rows is 5 %: 30 draws stay within 20 %, and their mean within 3 %.
fn stays_near(dtype: Dtype, change: impl Fn(&mut ChaCha8Rng) -> Vec<f32>) {
    let ratios: Vec<f64> = (0..30).map(|seed| ratio(seed, dtype, &change)).collect();
    assert!(ratios.iter().all(|ratio| (0.8..1.2).contains(ratio)), "{ratios:?}");
    let mean = ratios.iter().sum::<f64>() / ratios.len() as f64;
    assert!((0.97..1.03).contains(&mean), "{mean}");
}

#[test]
fn the_distance_of_dense_noise_is_estimated() {
    for dtype in [Dtype::F32, Dtype::BF16] {
        stays_near(dtype, |rng| (0..ROWS * COLS).map(|_| 0.001 * noise(rng)).collect());
    }
}

/// All rows move along one direction: signs shared by the rows would err by a third.
#[test]
fn the_distance_of_a_change_of_rank_one_is_estimated() {
    stays_near(Dtype::F32, |rng| {
        let direction: Vec<f32> = (0..COLS).map(|_| noise(rng)).collect();
        let scale: Vec<f32> = (0..ROWS).map(|_| 0.002 + 0.0005 * noise(rng)).collect();
        scale.iter().flat_map(|scale| direction.iter().map(move |value| scale * value)).collect()
    });
}

/// The columns of a transposed matrix and the rows of others, in all three types; each touches every fourth vector.
fn edits(checkpoint: &Checkpoint) -> Edits {
    common::edits(checkpoint, 3)
}

fn tolerance(text: &str) -> Tolerance {
    text.parse().unwrap()
}

fn made(dir: &Path, levels: Levels) -> Contents {
    let base = Checkpoint::open(dir).unwrap();
    let about = About { levels, ..About::new("sketched", "tests", "synthetic") };
    let patch = assemble(&base, &edits(&base), about, &()).unwrap();
    Contents::read(sign(&patch, &SecretKey::from_seed(&[7; 32])).unwrap()).unwrap()
}

fn sketched(dir: &Path, text: &str) -> (Contents, Sketch) {
    let contents = made(dir, Levels { descendant: Some(tolerance(text)), architecture: false });
    let sketch = contents.sketch.clone().unwrap();
    (contents, sketch)
}

/// The synthetic checkpoint with every weight of a projection changed.
fn tuned(dir: &Path, change: impl Fn(f32) -> f32) {
    let mut shards = tensors(1);
    for (name, tensor) in shards.values_mut().flatten().filter(|(name, _)| name.ends_with("_proj.weight")) {
        assert!(name.contains("mlp"));
        *tensor = changed(tensor, &change);
    }
    checkpoint_of(dir, &shards);
}

fn changed(tensor: &Tensor, change: impl Fn(f32) -> f32) -> Tensor {
    let value = |bytes: &[u8]| match tensor.dtype {
        Dtype::BF16 => half::bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
        Dtype::F16 => half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
        _ => f32::from_le_bytes(bytes.try_into().unwrap()),
    };
    let size = tensor.bytes.len() / tensor.shape.iter().product::<usize>();
    let values: Vec<f32> = tensor.bytes.chunks(size).map(|bytes| change(value(bytes))).collect();
    Tensor { bytes: encode(tensor.dtype, &values), ..tensor.clone() }
}

/// Folder for a base, folder for another checkpoint.
fn folders() -> (tempfile::TempDir, std::path::PathBuf, std::path::PathBuf) {
    let scratch = tempfile::tempdir().unwrap();
    let (base, other) = (scratch.path().join("base"), scratch.path().join("other"));
    common::checkpoint(&base);
    (scratch, base, other)
}

#[test]
fn a_base_is_at_no_distance_and_twice_the_base_at_its_own_estimated_norm() {
    let (_scratch, base, other) = folders();
    let (contents, sketch) = sketched(&base, "0.05");
    let found = distances(&Checkpoint::open(&base).unwrap(), &contents.edits, &sketch).unwrap();
    assert_eq!(found.len(), contents.edits.len());
    for (found, edit) in found.iter().zip(&contents.edits) {
        assert_eq!((&found.tensor, found.distance, found.rows), (edit.tensor(), 0.0, edit.rows().len()));
    }
    // Twice the weights are exact in every type, and the sketch of the difference is that of the base.
    tuned(&other, |value| value * 2.0);
    let found = distances(&Checkpoint::open(&other).unwrap(), &contents.edits, &sketch).unwrap();
    let bytes = sketch.to_bytes();
    let mut numbers = bytes[4..].chunks(4).map(|bytes| f64::from(f32::from_le_bytes(bytes.try_into().unwrap())));
    for found in &found {
        let norm = numbers.next().unwrap();
        let square: f64 = numbers.by_ref().take(4 * found.rows).map(|number| number * number).sum();
        let expected = (square / 4.0).sqrt() / norm;
        assert!((found.distance / expected - 1.0).abs() < 1e-12, "{found:?}: {expected}");
    }
    assert!(!found.iter().all(|found| sketch.tolerance().permits(found.distance)));
}

#[test]
fn only_touched_rows_count() {
    let (_scratch, base, other) = folders();
    let (contents, sketch) = sketched(&base, "0.05");
    let mut shards = tensors(1);
    for edit in &contents.edits {
        let tensor = shards.values_mut().find_map(|shard| shard.get_mut(edit.tensor().as_str())).unwrap();
        let size = tensor.bytes.len() / (FFN * HIDDEN);
        let touched: Vec<usize> = edit
            .changes()
            .flat_map(|(_, span, _)| (0..span.len).map(move |step| span.start as usize + step * span.stride as usize))
            .collect();
        // NaN wherever the patch does not reach.
        let nan = encode(tensor.dtype, &[f32::NAN]);
        for (_, cell) in tensor.bytes.chunks_mut(size).enumerate().filter(|(at, _)| !touched.contains(at)) {
            cell.copy_from_slice(&nan);
        }
    }
    checkpoint_of(&other, &shards);
    let found = distances(&Checkpoint::open(&other).unwrap(), &contents.edits, &sketch).unwrap();
    assert!(found.iter().all(|found| found.distance == 0.0), "{found:?}");
}

fn mismatches(base: &Path, other: &Path, shards: &Shards) -> Vec<(String, MismatchKind)> {
    let (contents, sketch) = sketched(base, "1");
    checkpoint_of(other, shards);
    match distances(&Checkpoint::open(other).unwrap(), &contents.edits, &sketch) {
        Err(BindError::Mismatch { tensors, mismatches, .. }) => {
            assert_eq!(tensors, contents.edits.len());
            mismatches.into_iter().map(|mismatch| (mismatch.tensor.to_string(), mismatch.kind)).collect()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn weights_that_are_no_numbers_and_tensors_that_are_others_have_no_distance() {
    let (_scratch, base, other) = folders();
    let mut shards = tensors(1);
    for (layer, dtype) in [(0, Dtype::BF16), (2, Dtype::F32)] {
        let shard = shards.get_mut(&format!("model-{:05}-of-00003.safetensors", layer + 1)).unwrap();
        let tensor = shard.get_mut(&projection(layer, "up")).unwrap();
        // Row 0 is touched, everywhere.
        let value = encode(dtype, &[f32::NEG_INFINITY]);
        tensor.bytes[5 * value.len()..6 * value.len()].copy_from_slice(&value);
    }
    let not_finite = MismatchKind::NotFinite { row: 0, column: 5 };
    let expected = [(projection(0, "up"), not_finite.clone()), (projection(2, "up"), not_finite)];
    assert_eq!(mismatches(&base, &other, &shards), expected);

    let (_scratch, base, other) = folders();
    let mut shards = tensors(1);
    let shard = shards.get_mut("model-00002-of-00003.safetensors").unwrap();
    shard.remove(&projection(1, "gate"));
    shard.get_mut(&projection(1, "up")).unwrap().shape = vec![HIDDEN, FFN];
    shard.get_mut(&projection(1, "down")).unwrap().dtype = Dtype::BF16;
    let found = mismatches(&base, &other, &shards);
    let found: Vec<_> = found.iter().map(|(tensor, kind)| (tensor.as_str(), kind)).collect();
    let (down, gate, up) = (projection(1, "down"), projection(1, "gate"), projection(1, "up"));
    assert!(
        matches!(
            &found[..],
            [(a, MismatchKind::Dtype { .. }), (b, MismatchKind::Missing { .. }), (c, MismatchKind::Shape { .. })]
                if *a == down && *b == gate && *c == up
        ),
        "{found:?}"
    );
}

#[test]
fn a_sketch_of_other_edits_is_refused() {
    let (_scratch, base, _) = folders();
    let (_, sketch) = sketched(&base, "0.05");
    let checkpoint = Checkpoint::open(&base).unwrap();
    let fewer = Edits::new(common::edits(&checkpoint, 4).iter().cloned().collect()).unwrap();
    assert!(matches!(distances(&checkpoint, &fewer, &sketch), Err(BindError::Length(_))));
}

#[test]
fn a_patch_says_which_checkpoints_it_is_for() {
    let (_scratch, base, _) = folders();
    let levels = |levels: Levels| made(&base, levels).manifest.base.levels;
    assert_eq!(levels(Levels::default()), [Level::Exact]);
    assert_eq!(levels(Levels { descendant: None, architecture: true }), [Level::Exact, Level::Architecture]);
    let all = made(&base, Levels { descendant: Some(tolerance("0.05")), architecture: true });
    assert_eq!(all.manifest.base.levels, [Level::Exact, Level::Descendant, Level::Architecture]);
    let section = all.manifest.section(&Kind::Sketch).unwrap();
    let rows: usize = all.edits.iter().map(|edit| edit.rows().len()).sum();
    assert_eq!(section.content.length as usize, 4 + 4 * all.edits.len() + 16 * rows);
    assert!(!section.critical);

    let shown = inspect(&all);
    assert_eq!((shown.base.levels.len(), shown.base.tolerance), (3, Some(tolerance("0.05"))));
    assert_eq!(serde_json::to_value(&shown).unwrap()["base"]["tolerance"], "0.05");
    assert_eq!(inspect(&made(&base, Levels::default())).base.tolerance, None);
}

#[test]
fn other_levels_and_tolerances_are_a_difference() {
    let (_scratch, base, _) = folders();
    let differences = |a: &Contents, b: &Contents| -> Vec<(String, Option<String>, Option<String>)> {
        let fields = diff(a, b).fields.into_iter().filter(|field| field.field != "created");
        fields.map(|field| (field.field, field.a, field.b)).collect()
    };
    let text = |text: &str| Some(text.to_owned());
    let (near, far) = (sketched(&base, "0.05").0, sketched(&base, "0.1").0);
    assert_eq!(differences(&near, &far), [("base.tolerance".to_owned(), text("0.05"), text("0.1"))]);
    let exact = made(&base, Levels::default());
    assert_eq!(
        differences(&exact, &near),
        [
            ("base.levels".to_owned(), text("exact"), text("exact, descendant")),
            ("base.tolerance".to_owned(), None, text("0.05")),
        ]
    );
}

/// A patch of so many rows of zeros and its sections, as a payload.
fn of_zeros(manifest: &Manifest, rows: u32) -> (Manifest, Vec<u8>) {
    let (name, dtype) = (TensorName::new("w").unwrap(), nestpatch::tensor::Dtype::F32);
    let shape = Shape::new([u64::from(rows), 1]).unwrap();
    let edit = Edit::new(EditParts {
        tensor: name.clone(),
        dtype,
        shape: shape.clone(),
        layout: Layout::Rows,
        rows: (0..rows).collect(),
        clusters: vec![0; rows as usize],
        deltas: Deltas::new(dtype, 1, vec![1.0]).unwrap(),
    });
    let edits = Edits::new(vec![edit.unwrap()]).unwrap();
    let mut sketcher = TensorSketcher::new(edits.iter().next().unwrap());
    (0..rows).for_each(|_| sketcher.push(&[0; 4]).unwrap());
    let sketch = Sketch::new(&edits, tolerance("0.5"), vec![sketcher.finish().unwrap()]).unwrap();
    let (sections, payload) = Payload::write(&edits, None, Some(&sketch)).unwrap();
    let digest = manifest.base.tensors[0].blake3;
    let mut manifest = Manifest { sections, ..manifest.clone() };
    manifest.base.tensors = vec![BaseTensor { name, dtype, shape, blake3: digest, rows: digest }];
    (manifest, payload)
}

#[test]
fn a_sketch_that_nobody_vouches_for_is_no_bomb() {
    let (_scratch, base, _) = folders();
    let (contents, _) = sketched(&base, "0.05");
    let (manifest, payload) = of_zeros(&contents.manifest, 600_000);
    let entry = manifest.section(&Kind::Sketch).unwrap();
    let (stored, found) = (entry.stored.length, entry.content.length);
    assert!(stored < 10_000 && found == 9_600_008, "{stored} bytes give {found}");
    let section = "sketch".to_owned();
    let refused = PayloadError::Unverified { section, limit: MAX_UNVERIFIED_BYTES, found };
    assert_eq!(Payload::read_shown(&manifest, &payload), Err(refused.clone()));
    assert_eq!(Payload::read_bounded(&manifest, &payload), Err(refused));
    assert!(Payload::read(&manifest, &payload).unwrap().sketch.is_some(), "who signs it may ask for it");
    let (manifest, payload) = of_zeros(&contents.manifest, 1000);
    assert!(Payload::read_shown(&manifest, &payload).unwrap().sketch.is_some());
}

/// The length that `rows` gives is asked for first: what is stored would not even decode.
#[test]
fn a_length_that_does_not_follow_from_the_rows_is_noticed_before_decoding() {
    let (_scratch, base, _) = folders();
    let (contents, _) = sketched(&base, "0.05");
    let (mut manifest, mut payload) = of_zeros(&contents.manifest, 10);
    let entry = manifest.sections.last_mut().unwrap();
    let last = payload.len() - entry.stored.length as usize;
    payload.truncate(last);
    payload.extend(b"no frame");
    entry.stored = Stored { length: 8, blake3: Blake3::of(b"no frame") };
    let decoded = Payload::read(&manifest, &payload).unwrap_err();
    assert!(matches!(decoded, PayloadError::Frame { .. }), "{decoded}");
    manifest.sections.last_mut().unwrap().content.length += 4;
    let refused = Payload::read(&manifest, &payload).unwrap_err();
    assert_eq!(refused, SectionError::from(SketchError::Length { expected: 168, found: 172 }).into());
    // In a codec of a later version it is left alone.
    manifest.sections.last_mut().unwrap().codec = Codec::Other("brotli".to_owned());
    assert_eq!(Payload::read(&manifest, &payload).unwrap().sketch, None);
}

#[test]
fn inspect_shows_levels_and_tolerance() {
    let (scratch, base, _) = folders();
    std::fs::write(scratch.path().join("p.nestpatch"), sketched(&base, "0.05").0.bytes()).unwrap();
    let text = common::succeeds(scratch.path(), &["inspect", "p.nestpatch"]).stdout;
    assert!(text.contains("binds: exact, descendant (at most 0.05 away)"), "{text}");
    let line = text.lines().find(|line| line.trim_start().starts_with("sketch ")).expect("a line of the sections");
    assert!(line.contains("float4+zstd") && line.contains("no") && !line.contains("unknown"), "{line}");
}
