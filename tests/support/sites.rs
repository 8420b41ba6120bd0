//! Small checkpoints with feed-forward parts of many shapes, edits to them, and what the edits must give, worked out
//! slowly and from the text of the format alone.

#![allow(dead_code)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use nestpatch::checkpoint::Checkpoint;
use nestpatch::format::{Deltas, Edit, EditParts, Edits, Layout, Vectors};
use nestpatch::tensor::{Dtype as Type, TensorName};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::Dtype;
use serde_json::json;

use crate::common::{Shards, checkpoint_of, random};

/// A tensor of which some rows are edited.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    pub(crate) tensor: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) layout: Layout,
    pub(crate) rows: Vec<u32>,
}

/// A checkpoint of one family's shapes.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) model_type: &'static str,
    pub(crate) sites: Vec<Site>,
    /// Tensors beside them.
    pub(crate) others: Vec<(String, Vec<usize>)>,
}

fn site(tensor: impl Into<String>, shape: &[usize], layout: Layout, rows: &[u32]) -> Site {
    Site { tensor: tensor.into(), shape: shape.to_vec(), layout, rows: rows.to_vec() }
}

/// The shapes that families store feed-forward parts in.
pub(crate) fn cases() -> Vec<Case> {
    use Layout::{Columns, Rows};
    let case = |name, model_type, sites, others: &[(&str, &[usize])]| Case {
        name,
        model_type,
        sites,
        others: others.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())).collect(),
    };
    let fused = |layer| {
        let gate_up = format!("model.layers.{layer}.mlp.gate_up_proj.weight");
        site(gate_up, &[22, 6], Rows, &[0, 4, 10, 11, 15, 21])
    };
    let prime = |part| site(format!("model.layers.0.mlp.{part}_proj.weight"), &[13, 7], Rows, &[0, 5, 12]);
    let biases = [("model.layers.0.mlp.gate_proj.bias", &[13][..]), ("model.layers.0.mlp.up_proj.bias", &[13])];
    vec![
        case("fused", "phi3", vec![fused(0), fused(1)], &[("model.layers.0.mlp.down_proj.weight", &[6, 11])]),
        case("an expert a tensor", "qwen3_moe", experts(130), &[("model.layers.0.mlp.gate.weight", &[130, 4])]),
        case("a stack of experts", "mixtral", vec![stack("mlp.experts.gate_up_proj", Rows)], &[]),
        case("input_linear", "granitemoe", vec![stack("block_sparse_moe.input_linear.weight", Rows)], &[]),
        case(
            "a stack of experts, transposed",
            "gpt_oss",
            vec![stack("mlp.experts.gate_up_proj", Columns)],
            &[("model.layers.0.mlp.experts.gate_up_proj_bias", &[5, 10])],
        ),
        case(
            "transposed",
            "gpt2",
            vec![
                site("transformer.h.0.mlp.c_fc.weight", &[6, 11], Columns, &[0, 3, 4, 10]),
                site("transformer.h.0.mlp.c_proj.weight", &[11, 6], Rows, &[0, 3, 4, 10]),
            ],
            &[("transformer.h.0.mlp.c_fc.bias", &[11])],
        ),
        case("biased, of prime size", "llama", vec![prime("gate"), prime("up")], &biases),
        case(
            "four dimensions",
            "other",
            vec![
                site("model.layers.0.mlp.a.weight", &[2, 3, 4, 5], Rows, &[0, 3, 4, 11, 12, 23]),
                site("model.layers.0.mlp.b.weight", &[2, 3, 4, 5], Columns, &[0, 4, 5, 14, 15, 29]),
            ],
            &[],
        ),
    ]
}

/// The case of this name.
pub(crate) fn case(name: &str) -> Case {
    cases().into_iter().find(|case| case.name == name).unwrap()
}

/// Five experts with gate and up in one tensor, of which four are edited, the last in its first and last row.
fn stack(name: &str, layout: Layout) -> Site {
    let shape = if layout == Layout::Rows { [5, 10, 6] } else { [5, 6, 10] };
    site(format!("model.layers.0.{name}"), &shape, layout, &[0, 9, 10, 17, 34, 40, 49])
}

/// Gate and up of many experts and a shared one, a tensor each.
fn experts(count: usize) -> Vec<Site> {
    let projection = |expert: &str, part: &str, row: u32| {
        site(format!("model.layers.0.mlp.{expert}.{part}_proj.weight"), &[5, 6], Layout::Rows, &[row])
    };
    let mut sites = vec![projection("shared_expert", "gate", 1), projection("shared_expert", "up", 1)];
    for expert in 0..count {
        let name = format!("experts.{expert}");
        sites.extend(["gate", "up"].map(|part| projection(&name, part, expert as u32 % 5)));
    }
    sites
}

/// Writes a case's checkpoint: the sites in one shard, what is beside them in another.
pub(crate) fn write(dir: &Path, case: &Case, dtype: Dtype) {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let mut shard = |tensors: Vec<(&String, &Vec<usize>)>| -> BTreeMap<String, _> {
        tensors.into_iter().map(|(name, shape)| (name.clone(), random(&mut rng, dtype, shape))).collect()
    };
    let embedding = ("model.embed_tokens.weight".to_owned(), vec![8, 4]);
    let others = case.others.iter().chain([&embedding]).map(|(name, shape)| (name, shape)).collect();
    let shards = Shards::from([
        (
            "model-00001-of-00002.safetensors".to_owned(),
            shard(case.sites.iter().map(|one| (&one.tensor, &one.shape)).collect()),
        ),
        ("model-00002-of-00002.safetensors".to_owned(), shard(others)),
    ]);
    checkpoint_of(dir, &shards);
    let config = json!({"model_type": case.model_type, "hidden_size": 4, "num_hidden_layers": 1});
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
}

/// Edits of the sites of a checkpoint: two clusters where there are two rows; deltas with a zero and one that rounding
/// swallows, stored in each type in turn.
pub(crate) fn edits(dir: &Path, sites: &[Site], seed: u64) -> Edits {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut edits: Vec<Edit> =
        sites.iter().enumerate().map(|(at, site)| edit(&checkpoint, &mut rng, site, at)).collect();
    edits.sort_by(|one, other| one.tensor().cmp(other.tensor()));
    Edits::new(edits).unwrap()
}

fn edit(checkpoint: &Checkpoint, rng: &mut ChaCha8Rng, site: &Site, at: usize) -> Edit {
    let tensor = TensorName::new(&site.tensor).unwrap();
    let info = checkpoint.tensor(&tensor).unwrap();
    let (dtype, shape, layout, rows) =
        (info.dtype.editable().unwrap(), info.shape.clone(), site.layout, site.rows.clone());
    let len = Vectors::new(layout, &shape).unwrap().len();
    let clusters: Vec<u32> = (0..rows.len() as u32).map(|row| row % 2).collect();
    let count = clusters.iter().max().unwrap() + 1;
    let mut values: Vec<f32> = (0..count as usize * len).map(|_| rng.random_range(-0.2..0.2)).collect();
    (values[0], values[1]) = (0.0, 1e-12);
    let stored = [Type::Bf16, Type::F16, Type::F32][at % 3];
    let deltas = Deltas::rounded(stored, len, &values).unwrap();
    Edit::new(EditParts { tensor, dtype, shape, layout, rows, clusters, deltas }).unwrap()
}

/// Holds every tensor of `after` against those of `before` with the edits added, one after the other, element by element.
#[track_caller]
pub(crate) fn assert_folded(before: &Path, after: &Path, edits: &[&Edits], what: &str) {
    let (before, after) = (Checkpoint::open(before).unwrap(), Checkpoint::open(after).unwrap());
    assert_eq!(before.tensors().len(), after.tensors().len(), "{what}");
    for info in before.tensors() {
        let (mut expected, found) = (before.read(&info.name).unwrap(), after.read(&info.name).unwrap());
        let edits: Vec<&Edit> = edits.iter().filter_map(|edits| edits.get(&info.name)).collect();
        let changed = edits.iter().map(|edit| fold(&mut expected, edit)).sum::<usize>();
        assert!(changed > 0 || edits.is_empty(), "{what}: {} is as it was", info.name);
        assert!(expected == found, "{what}: {}", info.name);
    }
}

/// Walks through all elements of a tensor, and adds the delta to those whose row is edited. Gives how many changed.
fn fold(bytes: &mut [u8], edit: &Edit) -> usize {
    let [leading @ .., outer, inner] = edit.shape().dims() else { panic!("two dimensions") };
    let (matrices, mut changed) = (leading.iter().product::<u64>(), 0);
    let mut elements = bytes.chunks_exact_mut(edit.dtype().size());
    for matrix in 0..matrices {
        for row in 0..*outer {
            for column in 0..*inner {
                let element = elements.next().unwrap();
                let (vector, place) = match edit.layout() {
                    Layout::Rows => (matrix * outer + row, column),
                    Layout::Columns => (matrix * inner + column, row),
                };
                let Some(at) = edit.rows().iter().position(|edited| u64::from(*edited) == vector) else { continue };
                let delta = edit.delta(edit.clusters()[at])[place as usize];
                let old = element.to_vec();
                add(edit.dtype(), element, delta);
                changed += usize::from(old != element);
            }
        }
    }
    assert!(elements.next().is_none());
    changed
}

/// The specification's sentence: nothing for a delta of zero, else one addition in f32 and one rounding.
fn add(dtype: Type, element: &mut [u8], delta: f32) {
    if delta == 0.0 {
        return;
    }
    let bits: Vec<u8> = match dtype {
        Type::F32 => (f32::from_le_bytes(element.try_into().unwrap()) + delta).to_le_bytes().into(),
        Type::Bf16 => {
            let old = half::bf16::from_le_bytes([element[0], element[1]]).to_f32();
            half::bf16::from_f32(old + delta).to_le_bytes().into()
        }
        Type::F16 => {
            let old = half::f16::from_le_bytes([element[0], element[1]]).to_f32();
            half::f16::from_f32(old + delta).to_le_bytes().into()
        }
    };
    element.copy_from_slice(&bits);
}
