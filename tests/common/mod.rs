//! A small synthetic checkpoint: llama-like, in three shards, with bf16, f16 and f32 layers.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nestpatch::checkpoint::Checkpoint;
use nestpatch::format::{Deltas, Edit, EditParts, Edits, Layout, Unsigned, Vectors};
use nestpatch::patch::assemble::{About, assemble, sign};
use nestpatch::tensor::TensorName;
use nestpatch::trust::{Policy, SecretKey};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::json;

/// Width of the hidden state.
pub const HIDDEN: usize = 16;
/// Rows of gate and up.
pub const FFN: usize = 24;
/// Element type of each layer.
pub const LAYERS: [Dtype; 3] = [Dtype::BF16, Dtype::F16, Dtype::F32];

/// One tensor to write.
#[derive(Clone)]
pub struct Tensor {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

/// Shard name to tensors.
pub type Shards = BTreeMap<String, BTreeMap<String, Tensor>>;

/// The name of a projection's tensor.
pub fn projection(layer: usize, name: &str) -> String {
    format!("model.layers.{layer}.mlp.{name}_proj.weight")
}

/// Values as little-endian elements.
pub fn encode(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::BF16 => values.iter().flat_map(|value| half::bf16::from_f32(*value).to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|value| half::f16::from_f32(*value).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
    }
}

/// A tensor of seeded values around zero, with both zeros and a subnormal among them.
pub fn random(rng: &mut ChaCha8Rng, dtype: Dtype, shape: &[usize]) -> Tensor {
    let count = shape.iter().product();
    let mut values: Vec<f32> = (0..count).map(|_| rng.random_range(-0.1..0.1)).collect();
    for (at, value) in [(0, 0.0), (1, -0.0), (2, 1e-40)] {
        if count > 8 {
            values[at * 2 + 1] = value;
        }
    }
    Tensor { dtype, shape: shape.to_vec(), bytes: encode(dtype, &values) }
}

/// The tensors of the synthetic checkpoint.
pub fn tensors(seed: u64) -> Shards {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut shards = Shards::new();
    for (layer, dtype) in LAYERS.into_iter().enumerate() {
        let mut shard = BTreeMap::new();
        for name in ["gate", "up"] {
            shard.insert(projection(layer, name), random(&mut rng, dtype, &[FFN, HIDDEN]));
        }
        shard.insert(projection(layer, "down"), random(&mut rng, dtype, &[HIDDEN, FFN]));
        if layer == 0 {
            shard.insert("model.embed_tokens.weight".to_owned(), random(&mut rng, dtype, &[32, HIDDEN]));
            let bytes = vec![7; 5];
            shard.insert("model.step".to_owned(), Tensor { dtype: Dtype::U8, shape: vec![5], bytes });
        }
        shards.insert(format!("model-{:05}-of-00003.safetensors", layer + 1), shard);
    }
    shards
}

/// Writes the synthetic checkpoint with everything that surrounds it.
pub fn checkpoint(dir: &Path) {
    checkpoint_of(dir, &tensors(1));
}

/// Writes these shards as a checkpoint.
pub fn checkpoint_of(dir: &Path, shards: &Shards) {
    fs::create_dir_all(dir.join("original")).unwrap();
    let config = json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": HIDDEN,
        "intermediate_size": FFN, "num_hidden_layers": LAYERS.len(), "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    });
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    fs::write(dir.join("tokenizer.json"), "{\"version\": \"1.0\"}").unwrap();
    fs::write(dir.join("original/params.json"), "{}").unwrap();
    let mut map = BTreeMap::new();
    for (name, tensors) in shards {
        write_shard(&dir.join(name), tensors);
        map.extend(tensors.keys().map(|tensor| (tensor.clone(), name.clone())));
    }
    let index = json!({"metadata": {"total_size": 0}, "weight_map": map});
    fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

/// Writes one safetensors file.
pub fn write_shard(path: &Path, tensors: &BTreeMap<String, Tensor>) {
    let views = tensors.iter().map(|(name, tensor)| {
        (name.clone(), TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes).unwrap())
    });
    let metadata = Some([("format".to_owned(), "pt".to_owned())].into());
    fs::write(path, safetensors::serialize(views, metadata).unwrap()).unwrap();
}

/// Every file below a folder with its bytes; folders end in a slash.
pub fn snapshot(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    collect(dir, Path::new(""), &mut files);
    files
}

fn collect(root: &Path, below: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in fs::read_dir(root.join(below)).unwrap() {
        let entry = entry.unwrap();
        let path = below.join(entry.file_name());
        if fs::metadata(root.join(&path)).unwrap().is_dir() {
            files.insert(path.join(""), vec![]);
            collect(root, &path, files);
        } else {
            files.insert(path.clone(), fs::read(root.join(&path)).unwrap());
        }
    }
}

/// The seed of the key that signs the patches of tests.
pub const KEY_SEED: [u8; 32] = [42; 32];

/// Edits to gate and up of every layer, and to columns of one down projection: two clusters each.
pub fn edits(checkpoint: &Checkpoint, seed: u64) -> Edits {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut edits = Vec::new();
    for layer in 0..LAYERS.len() {
        for name in ["gate", "up"] {
            edits.push(edit(checkpoint, &mut rng, &projection(layer, name), Layout::Rows));
        }
    }
    edits.push(edit(checkpoint, &mut rng, &projection(1, "down"), Layout::Columns));
    edits.sort_by(|one, other| one.tensor().cmp(other.tensor()));
    Edits::new(edits).unwrap()
}

fn edit(checkpoint: &Checkpoint, rng: &mut ChaCha8Rng, name: &str, layout: Layout) -> Edit {
    let tensor = TensorName::new(name).unwrap();
    let info = checkpoint.tensor(&tensor).unwrap();
    let dtype = info.dtype.editable().unwrap();
    let vectors = Vectors::new(layout, &info.shape).unwrap();
    let rows: Vec<u32> = (0..vectors.count() as u32).filter(|row| *row == 0 || rng.random_bool(0.3)).collect();
    let clusters: Vec<u32> = (0..rows.len()).map(|index| (index % 2).min(rows.len() - 1) as u32).collect();
    let count = clusters.iter().max().unwrap() + 1;
    let mut values: Vec<f32> = (0..count as usize * vectors.len()).map(|_| rng.random_range(-0.2..0.2)).collect();
    values[3] = 0.0;
    let stored = if dtype == nestpatch::tensor::Dtype::F32 { dtype } else { nestpatch::tensor::Dtype::Bf16 };
    let deltas = Deltas::rounded(stored, vectors.len(), &values).unwrap();
    Edit::new(EditParts { tensor, dtype, shape: info.shape.clone(), layout, rows, clusters, deltas }).unwrap()
}

/// A signed patch for the checkpoint in `dir`.
pub fn patch(dir: &Path, seed: u64) -> Vec<u8> {
    let edits = edits(&Checkpoint::open(dir).unwrap(), seed);
    patch_of(dir, seed, &edits)
}

/// A signed patch that changes two rows of one shard and a column of another.
pub fn small_patch(dir: &Path) -> Vec<u8> {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let cut = edits(&checkpoint, 5)
        .iter()
        .filter(|edit| edit.layout() == Layout::Columns || edit.tensor().as_str() == projection(0, "gate"))
        .map(|edit| {
            let rows = edit.rows()[..if edit.layout() == Layout::Rows { 2 } else { 1 }].to_vec();
            let clusters = vec![0; rows.len()];
            let deltas = Deltas::new(edit.deltas().dtype(), edit.deltas().cols(), edit.delta(0).to_vec()).unwrap();
            let (tensor, dtype, shape) = (edit.tensor().clone(), edit.dtype(), edit.shape().clone());
            Edit::new(EditParts { tensor, dtype, shape, layout: edit.layout(), rows, clusters, deltas }).unwrap()
        })
        .collect();
    patch_of(dir, 5, &Edits::new(cut).unwrap())
}

/// A signed patch on rows of the same tensors that [`small_patch`] leaves alone.
pub fn other_small_patch(dir: &Path) -> Vec<u8> {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let gate = TensorName::new(projection(0, "gate")).unwrap();
    let all = edits(&checkpoint, 5);
    let edit = all.get(&gate).unwrap();
    let rows = edit.rows()[2..4].to_vec();
    let deltas = Deltas::new(edit.deltas().dtype(), edit.deltas().cols(), edit.delta(0).to_vec()).unwrap();
    let (tensor, dtype, shape) = (edit.tensor().clone(), edit.dtype(), edit.shape().clone());
    let parts = EditParts { tensor, dtype, shape, layout: edit.layout(), rows, clusters: vec![0, 0], deltas };
    patch_of(dir, 6, &Edits::new(vec![Edit::new(parts).unwrap()]).unwrap())
}

/// A signed patch of these edits.
pub fn patch_of(dir: &Path, number: u64, edits: &Edits) -> Vec<u8> {
    sign(&unsigned(dir, number, edits), &SecretKey::from_seed(&KEY_SEED)).unwrap()
}

/// The same without a signature.
pub fn unsigned(dir: &Path, number: u64, edits: &Edits) -> Unsigned {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let about = About::new(format!("test patch {number}"), "tests", "synthetic");
    assemble(&checkpoint, edits, about, &()).unwrap()
}

/// The public key of the key that signs the patches of tests, as a file.
pub fn public_key(path: &Path) {
    fs::write(path, SecretKey::from_seed(&KEY_SEED).public().unwrap().to_pem()).unwrap();
}

/// What the real program did.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Runs the real program in `dir`, with a fault if one is given.
pub fn run_with(dir: &Path, fault: Option<&str>, arguments: &[&str]) -> Ran {
    // A lock that a test gave up lives on for a moment in a program that another test is just starting: between fork and
    // exec, that one has all files of this process. So a busy checkpoint is asked for again before it is believed.
    for _ in 0..40 {
        let ran = run_once(dir, fault, arguments);
        if !ran.stderr.contains("in use by another") {
            return ran;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    run_once(dir, fault, arguments)
}

fn run_once(dir: &Path, fault: Option<&str>, arguments: &[&str]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nestpatch"));
    command.current_dir(dir).args(arguments).env_remove("NESTPATCH_FAULT");
    fault.map(|fault| command.env("NESTPATCH_FAULT", fault));
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Runs the real program in `dir`.
pub fn run(dir: &Path, arguments: &[&str]) -> Ran {
    run_with(dir, None, arguments)
}

/// Runs the real program in `dir`, which must succeed.
#[track_caller]
pub fn succeeds(dir: &Path, arguments: &[&str]) -> Ran {
    let ran = run(dir, arguments);
    assert_eq!(ran.code, Some(0), "{arguments:?}: {ran:?}");
    ran
}

/// Fails with this code and these words on stderr, prints no data, and changes nothing in `dir`.
#[track_caller]
pub fn fails(dir: &Path, arguments: &[&str], code: i32, words: &[&str]) -> Ran {
    let before = snapshot(dir);
    let ran = run(dir, arguments);
    assert_eq!(ran.code, Some(code), "{arguments:?}: {ran:?}");
    assert_eq!(ran.stdout, "", "{arguments:?}");
    assert!(ran.stderr.starts_with("Error: "), "{arguments:?}: {ran:?}");
    for word in words {
        assert!(ran.stderr.contains(word), "{arguments:?} lacks {word:?}: {}", ran.stderr);
    }
    assert!(snapshot(dir) == before, "{arguments:?} left something behind");
    ran
}

/// A temporary folder, in memory where there is such a place: these tests sync thousands of times.
pub fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// A folder with `base` (a checkpoint), `p.nestpatch` for it, and `key.pub` that it is signed with.
pub fn world() -> tempfile::TempDir {
    let root = folder();
    let base = root.path().join("base");
    checkpoint(&base);
    fs::write(root.path().join("p.nestpatch"), patch(&base, 7)).unwrap();
    public_key(&root.path().join("key.pub"));
    root
}

/// Believes the key that signs the patches of tests.
pub fn policy() -> Policy {
    let key = SecretKey::from_seed(&KEY_SEED).public().unwrap();
    Policy::from_keys([("tester".to_owned(), key)]).unwrap()
}
