//! Whatever finite weights and deltas there are, of every element type and layout: applying gives what the specification's
//! arithmetic gives, and reverting gives every bit back, through the record and through the patch alone.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::{Shards, Tensor};
use nestpatch::checkpoint::{Checkpoint, Depth};
use nestpatch::format::{Deltas, Edit, EditParts, Edits, Layout};
use nestpatch::patch::VerifiedPatch;
use nestpatch::patch::apply::{Options, Target, apply};
use nestpatch::patch::bind::{Accept, bind};
use nestpatch::patch::revert::{Which, find, revert};
use nestpatch::patch::verify::verify;
use nestpatch::tensor::{Dtype, Shape, TensorName};
use proptest::prelude::*;

const ROWS: usize = 6;
const COLUMNS: usize = 5;

/// A weight and a delta: random bits, cancelling, absorbed, both zeros, subnormal, near overflow.
fn cell() -> impl Strategy<Value = (f32, f32)> {
    let bits = prop_oneof![
        3 => any::<u32>(),
        2 => any::<u32>().prop_map(|bits| (bits & 0x8fff_ffff) | 0x3800_0000),
        2 => prop::sample::select(vec![0, 0x8000_0000, 1, 0x8000_0001, 0x007f_ffff, 0x0080_0000, 0x7f7f_0000,
            0xff7f_0000, 0x477f_e000, 0xc77f_e000, 0x3380_0000, 0x0001_0000, 0x8001_0000, 0x3f80_0000]),
    ];
    (bits.clone(), bits, 0..5_u8).prop_map(|(weight, delta, kind)| {
        let (weight, delta) = (f32::from_bits(weight), f32::from_bits(delta));
        (
            weight,
            match kind {
                0 => -weight,
                1 => weight * 0.003,
                2 => 0.0,
                _ => delta,
            },
        )
    })
}

fn rounded(dtype: Dtype, value: f32) -> f32 {
    match dtype {
        Dtype::Bf16 => half::bf16::from_f32(value).to_f32(),
        Dtype::F16 => half::f16::from_f32(value).to_f32(),
        Dtype::F32 => value,
    }
}

/// The specification's sentence.
fn folded(dtype: Dtype, old: f32, delta: f32) -> f32 {
    if delta == 0.0 { old } else { rounded(dtype, old + delta) }
}

/// A matrix of weights, and for each neuron the delta of its cluster. What may not be folded is made foldable.
struct Case {
    dtype: Dtype,
    layout: Layout,
    /// By neuron.
    weights: Vec<Vec<f32>>,
    deltas: [Vec<f32>; 2],
    touched: Vec<u32>,
}

impl Case {
    fn new(dtype: Dtype, layout: Layout, cells: Vec<(f32, f32)>, touched: [bool; ROWS]) -> Self {
        let finite = |value: f32| if value.is_finite() { value } else { -0.0 };
        let mut weights: Vec<Vec<f32>> = cells
            .chunks(COLUMNS)
            .map(|row| row.iter().map(|(weight, _)| finite(rounded(dtype, *weight))).collect())
            .collect();
        // A delta is one of the tensor's type, and positive if zero.
        let delta = |at: usize| cells[at..at + COLUMNS].iter().map(|(_, delta)| finite(rounded(dtype, *delta)) + 0.0);
        let deltas = [delta(0).collect::<Vec<_>>(), delta(2 * COLUMNS).collect()];
        let touched: Vec<u32> = (0..ROWS as u32).filter(|row| *row == 0 || touched[*row as usize]).collect();
        for (index, row) in touched.iter().enumerate() {
            for (weight, delta) in weights[*row as usize].iter_mut().zip(&deltas[index % 2]) {
                *weight = if folded(dtype, *weight, *delta).is_finite() { *weight } else { 1e-3 };
                *weight = rounded(dtype, *weight);
                *weight = if folded(dtype, *weight, *delta).is_finite() { *weight } else { 0.0 };
            }
        }
        Self { dtype, layout, weights, deltas, touched }
    }

    fn tensor(&self, weights: &[Vec<f32>]) -> Tensor {
        let dtype = match self.dtype {
            Dtype::Bf16 => safetensors::Dtype::BF16,
            Dtype::F16 => safetensors::Dtype::F16,
            Dtype::F32 => safetensors::Dtype::F32,
        };
        let (shape, values) = match self.layout {
            Layout::Rows => (vec![ROWS, COLUMNS], weights.concat()),
            Layout::Columns => {
                let column = |at: usize| weights.iter().map(move |row| row[at]);
                (vec![COLUMNS, ROWS], (0..COLUMNS).flat_map(column).collect())
            }
        };
        Tensor { dtype, shape, bytes: common::encode(dtype, &values) }
    }

    fn patched(&self) -> Vec<Vec<f32>> {
        let mut weights = self.weights.clone();
        for (index, row) in self.touched.iter().enumerate() {
            for (weight, delta) in weights[*row as usize].iter_mut().zip(&self.deltas[index % 2]) {
                *weight = folded(self.dtype, *weight, *delta);
            }
        }
        weights
    }

    fn edit(&self, name: &str) -> Edit {
        let clusters: Vec<u32> = (0..self.touched.len() as u32).map(|index| index % 2).collect();
        let used = self.touched.len().min(2);
        Edit::new(EditParts {
            tensor: TensorName::new(name).unwrap(),
            dtype: self.dtype,
            shape: Shape::new(self.tensor(&self.weights).shape.iter().map(|dim| *dim as u64).collect::<Vec<_>>())
                .unwrap(),
            layout: self.layout,
            rows: self.touched.clone(),
            clusters,
            deltas: Deltas::new(self.dtype, COLUMNS, self.deltas[..used].concat()).unwrap(),
        })
        .unwrap()
    }
}

fn put(dir: &Path, cases: &[Case], weights: impl Fn(&Case) -> Vec<Vec<f32>>) {
    let tensors = cases.iter().enumerate().map(|(at, case)| (format!("t{at}"), case.tensor(&weights(case))));
    let shards: Shards =
        tensors.map(|(name, tensor)| (format!("{name}.safetensors"), [(name, tensor)].into())).collect();
    common::checkpoint_of(dir, &shards);
}

fn weights(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let checkpoint = Checkpoint::open(dir).unwrap();
    checkpoint.tensors().map(|info| (info.name.to_string(), checkpoint.read(&info.name).unwrap())).collect()
}

fn applied(patch: &VerifiedPatch, dir: &Path, target: Target<'_>, depth: Depth) {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let bound = bind(patch, &checkpoint, &Accept::exact().comparing(depth), &()).unwrap();
    apply(patch, &bound, Options { check: depth, ..Options::new(target) }, &()).unwrap();
}

fn reverted(dir: &Path, which: Which<'_>, target: Target<'_>, depth: Depth) {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let found = find(&checkpoint, which, None).unwrap();
    let bound = found.bind(&checkpoint, depth, false, &()).unwrap();
    revert(&bound, target, depth, &()).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_bit_comes_back(
        cells in prop::collection::vec(prop::collection::vec(cell(), ROWS * COLUMNS), 6),
        touched in prop::collection::vec(any::<[bool; ROWS]>(), 6),
    ) {
        let kinds = [Dtype::Bf16, Dtype::F16, Dtype::F32].into_iter().flat_map(|dtype| [(dtype, Layout::Rows), (dtype, Layout::Columns)]);
        let cases: Vec<Case> = kinds.zip(cells).zip(touched)
            .map(|(((dtype, layout), cells), touched)| Case::new(dtype, layout, cells, touched)).collect();
        let root = common::folder();
        let (base, model) = (root.path().join("base"), root.path().join("expected"));
        put(&base, &cases, |case| case.weights.clone());
        put(&model, &cases, Case::patched);
        let (before, after) = (weights(&base), weights(&model));
        let edits = cases.iter().enumerate().map(|(at, case)| case.edit(&format!("t{at}"))).collect();
        let patch = verify(common::patch_of(&base, 1, &Edits::new(edits).unwrap()), &common::policy()).unwrap();

        applied(&patch, &base, Target::InPlace, Depth::Rows);
        prop_assert_eq!(&weights(&base), &after);
        reverted(&base, Which::Newest, Target::InPlace, Depth::Rows);
        prop_assert_eq!(&weights(&base), &before);

        let (out, back, alone) = (root.path().join("out"), root.path().join("back"), root.path().join("alone"));
        applied(&patch, &base, Target::NewFolder(&out), Depth::Tensors);
        prop_assert_eq!(&weights(&out), &after);
        reverted(&out, Which::Newest, Target::NewFolder(&back), Depth::Tensors);
        prop_assert_eq!(&weights(&back), &before);
        std::fs::remove_dir_all(out.join("nestpatch")).unwrap();
        reverted(&out, Which::Patch(&patch), Target::NewFolder(&alone), Depth::Tensors);
        prop_assert_eq!(&weights(&alone), &before);
    }
}
