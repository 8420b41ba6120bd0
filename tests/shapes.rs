//! Feed-forward parts of every shape that families store them in: a patch changes the elements it is meant to change, by
//! the arithmetic of the format, and nothing else; and every verb says so.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;
#[allow(dead_code)]
#[path = "support/oracle.rs"]
mod oracle;
#[path = "support/sites.rs"]
mod sites;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use common::{folder, snapshot};
use nestpatch::checkpoint::{Checkpoint, Depth, TensorInfo};
use nestpatch::format::{Deltas, Edit, EditError, EditParts, Edits, Layout, Manifest, Vectors};
use nestpatch::patch::apply::{Options, Target, apply};
use nestpatch::patch::assemble::About;
use nestpatch::patch::audit::{Scope, Verdict as Audited, audit};
use nestpatch::patch::bind::{Accept, bind};
use nestpatch::patch::extract::{Inexpressible, extract};
use nestpatch::patch::revert::{Which, find, revert};
use nestpatch::patch::status::{State, status};
use nestpatch::patch::verify::{Verdict, examine, verify};
use nestpatch::patch::{PatchError, VerifiedPatch};
use nestpatch::tensor::{Dtype as Type, Shape, TensorName};
use safetensors::Dtype;
use serde_json::Value;
use sites::{Site, assert_folded, case, cases, edits, write};

const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::BF16, Dtype::F16];

fn apply_to(patch: &[u8], dir: &Path, target: Target<'_>) {
    let patch = verify(patch.to_vec(), &common::policy()).unwrap();
    let checkpoint = Checkpoint::open(dir).unwrap();
    let bound = bind(&patch, &checkpoint, &Accept::exact(), &()).unwrap();
    apply(&patch, &bound, Options::new(target), &()).unwrap();
}

fn try_revert(dir: &Path, which: Which<'_>, target: Target<'_>) -> Result<(), PatchError> {
    let checkpoint = Checkpoint::open(dir)?;
    let found = find(&checkpoint, which, Some(&common::policy()))?;
    let bound = found.bind(&checkpoint, Depth::Tensors, false, &())?;
    revert(&bound, target, Depth::Tensors, &()).map(|_| ())
}

/// Everything that is done to a patch and a checkpoint, each outcome held against the slow computation.
fn the_whole_way(root: &Path, base: &Path, edits: &Edits, what: &str) {
    let before = snapshot(base);
    let patch = common::patch_of(base, 1, edits);
    let (out, linked, back) = (root.join("out"), root.join("linked"), root.join("back"));
    let verdict = |dir: &Path| {
        examine(patch.clone(), Some(&common::policy()), Some(&Checkpoint::open(dir).unwrap()), &()).unwrap().verdict
    };
    assert_eq!(verdict(base), Verdict::Trusted, "{what}");
    for (target, dir) in [(Target::NewFolder(&out), &out), (Target::LinkedFolder(&linked), &linked)] {
        apply_to(&patch, base, target);
        assert!(snapshot(base) == before, "{what}");
        assert_folded(base, dir, &[edits], what);
    }
    assert_eq!(verdict(&out), Verdict::WrongBase, "{what}");
    let read = verify(patch.clone(), &common::policy()).unwrap();
    let sides = (Checkpoint::open(base).unwrap(), Checkpoint::open(&out).unwrap());
    let audited = audit(&read, &sides.0, &sides.1, Scope::Everything, &()).unwrap();
    assert_eq!(audited.verdict, Audited::Proven, "{what}: {audited:?}");
    assert_extracted(&sides.0, &sides.1, &read, what);
    let states = status(&sides.1, Depth::Tensors, None, &()).unwrap().applied;
    assert!(matches!(states.as_slice(), [entry] if entry.state == State::Holds), "{what}: {states:?}");
    drop(sides);
    try_revert(&out, Which::Newest, Target::NewFolder(&back)).unwrap();
    assert!(snapshot(&back) == before, "{what}");
    apply_to(&patch, base, Target::InPlace);
    assert_folded(&back, base, &[edits], what);
    try_revert(base, Which::Patch(&read), Target::InPlace).unwrap();
    assert!(snapshot(base) == before, "{what}");
    for dir in [out, linked, back] {
        fs::remove_dir_all(dir).unwrap();
    }
}

/// As if another program had made `tuned`: the same rows become a patch again, in the same layout.
fn assert_extracted(base: &Checkpoint, tuned: &Checkpoint, patch: &VerifiedPatch, what: &str) {
    let about = (About::new("again", "tests", "synthetic"), "tuned");
    let found = extract(base, tuned, Inexpressible::Refuse, about, &()).unwrap();
    for (edit, again) in patch.contents().edits.iter().zip(&found.edits) {
        let same = (edit.tensor(), edit.layout(), edit.rows()) == (again.tensor(), again.layout(), again.rows());
        assert!(same, "{what}: {again:?}");
    }
    let result = Manifest::parse(found.patch.manifest()).unwrap().result;
    assert_eq!(result, patch.contents().manifest.result, "{what}");
}

#[test]
fn every_shape_and_type_goes_the_whole_way() {
    for case in cases() {
        for dtype in DTYPES {
            let root = folder();
            let base = root.path().join("base");
            write(&base, &case, dtype);
            let edits = edits(&base, &case.sites, 3);
            the_whole_way(root.path(), &base, &edits, &format!("{} {dtype:?}", case.name));
        }
    }
}

/// Two patches on one stack of experts: the older comes off from below if no row is in both, else not.
#[test]
fn a_stack_is_taken_back_from_below_unless_rows_meet() {
    for name in ["a stack of experts", "a stack of experts, transposed"] {
        for (rows, meets) in [(vec![1, 8, 11, 33, 41], false), (vec![1, 8, 17, 41], true)] {
            let (root, case) = (folder(), case(name));
            let (base, dir) = (root.path().join("base"), root.path().join("dir"));
            write(&base, &case, Dtype::BF16);
            write(&dir, &case, Dtype::BF16);
            let second = vec![Site { rows, ..case.sites[0].clone() }];
            let (one, other) = (edits(&base, &case.sites, 3), edits(&base, &second, 4));
            apply_to(&common::patch_of(&dir, 1, &one), &dir, Target::InPlace);
            apply_to(&common::patch_of(&dir, 2, &other), &dir, Target::InPlace);
            assert_folded(&base, &dir, &[&one, &other], name);
            let patched = snapshot(&dir);
            let reverted = try_revert(&dir, Which::Record(1), Target::InPlace);
            if meets {
                assert!(matches!(reverted, Err(PatchError::Covered { number: 1, by: 2, .. })), "{reverted:?}");
                assert!(snapshot(&dir) == patched);
                try_revert(&dir, Which::Newest, Target::InPlace).unwrap();
                assert_folded(&base, &dir, &[&one], name);
            } else {
                reverted.unwrap();
                assert_folded(&base, &dir, &[&other], name);
            }
            try_revert(&dir, Which::Newest, Target::InPlace).unwrap();
            assert!(snapshot(&dir) == snapshot(&base));
        }
    }
}

/// Shapes that have no rows, or more of them than a row's index can tell apart.
#[test]
fn shapes_that_rows_cannot_address_are_refused() {
    let edit = |shape: &[u64], layout, cols: usize| {
        Edit::new(EditParts {
            tensor: TensorName::new("m.mlp.experts.gate_up_proj").unwrap(),
            dtype: Type::Bf16,
            shape: Shape::new(shape).unwrap(),
            layout,
            rows: vec![u32::MAX],
            clusters: vec![0],
            deltas: Deltas::new(Type::Bf16, cols, vec![1.0; cols]).unwrap(),
        })
    };
    for (shape, layout) in [
        (&[4096][..], Layout::Rows),
        (&[4096], Layout::Columns),
        (&[], Layout::Rows),
        (&[1 << 16, (1 << 16) + 1, 2], Layout::Rows),
        (&[1 << 16, 2, (1 << 16) + 1], Layout::Columns),
        (&[1 << 16, 1 << 15, 3, 2], Layout::Rows),
        (&[2, 2, (1 << 20) + 1], Layout::Rows),
        (&[2, (1 << 20) + 1, 2], Layout::Columns),
        (&[2, 0, 2], Layout::Rows),
    ] {
        let error = edit(shape, layout, 2).unwrap_err();
        assert!(matches!(error, EditError::Shape { .. }), "{shape:?}: {error}");
        let words = "tensor \"m.mlp.experts.gate_up_proj\": expected a shape of at least two dimensions";
        assert!(error.to_string().starts_with(words), "{error}");
        assert!(error.to_string().ends_with(&format!("found {} ({layout})", Shape::new(shape).unwrap())), "{error}");
    }
    // One row fewer, and every one has an index.
    for (shape, layout) in [(&[1 << 16, 1 << 16, 2][..], Layout::Rows), (&[1 << 16, 2, 1 << 16], Layout::Columns)] {
        assert_eq!(edit(shape, layout, 2).unwrap().rows(), [u32::MAX]);
    }
    let error = edit(&[5, 10, 2], Layout::Rows, 2).unwrap_err();
    assert!(error.to_string().contains("expected row indices under 50, found 4294967295"), "{error}");
}

/// How the neurons of a tensor lie that goes into a feed-forward block of a model that writes, by what families call
/// these; nothing for any other tensor.
fn neurons(model_type: &str, name: &str) -> Option<Layout> {
    const PROJECTIONS: [&str; 9] =
        ["gate_proj", "up_proj", "gate_up_proj", "dense_h_to_4h", "c_fc", "fc1", "w1", "w3", "input_linear"];
    let parts: Vec<&str> = name.strip_suffix(".weight").unwrap_or(name).split('.').collect();
    let sees = parts.iter().any(|part| part.starts_with("vis") || *part == "connector");
    let transposed = matches!(model_type, "gpt2" | "gpt_oss");
    match parts.last() {
        Some(last) if PROJECTIONS.contains(last) && !sees => {
            Some(if transposed { Layout::Columns } else { Layout::Rows })
        }
        _ => None,
    }
}

/// The first row, the last and two between them of every tensor that goes into a feed-forward block.
fn sites_of(dir: &Path) -> Vec<Site> {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let model_type = checkpoint.model_type().unwrap();
    let site = |tensor: &TensorInfo| {
        let layout = neurons(model_type, tensor.name.as_str())?;
        let count = Vectors::new(layout, &tensor.shape).unwrap().count() as u32;
        let shape = tensor.shape.dims().iter().map(|dim| *dim as usize).collect();
        Some(Site { tensor: tensor.name.to_string(), shape, layout, rows: vec![0, count / 3, count / 2, count - 1] })
    };
    let sites: Vec<Site> = checkpoint.tensors().filter_map(site).collect();
    let text = checkpoint.config().get("text_config").and_then(Value::as_object).unwrap_or(checkpoint.config());
    let layers =
        ["num_hidden_layers", "n_layer"].iter().find_map(|key| text.get(*key)).and_then(Value::as_u64).unwrap();
    let found: BTreeSet<u64> =
        sites.iter().filter_map(|site| site.tensor.split('.').find_map(|part| part.parse().ok())).collect();
    assert_eq!(found, (0..layers).collect(), "{}: every layer has such tensors", dir.display());
    sites
}

/// Checkpoints as transformers writes them, of every family that is there.
#[test]
fn reference_checkpoints_go_the_whole_way() {
    for (model, folder) in oracle::models() {
        for layout in ["ckpt", "ckpt_newlayout"].into_iter().filter(|name| folder.join(name).is_dir()) {
            let (root, what) = (common::folder(), format!("{model}/{layout}"));
            let base = root.path().join("base");
            copy(&folder.join(layout), &base);
            let sites = sites_of(&base);
            let edits = edits(&base, &sites, 3);
            the_whole_way(root.path(), &base, &edits, &what);
            let shapes: BTreeSet<String> =
                edits.iter().map(|edit| format!("{} {} by {}", edit.dtype(), edit.shape(), edit.layout())).collect();
            let shapes = shapes.into_iter().collect::<Vec<_>>().join(", ");
            println!("{what}: {} rows of {} tensors ({shapes}): patched and taken back", edits.rows(), edits.len());
        }
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for (path, bytes) in snapshot(from) {
        fs::write(to.join(path), bytes).unwrap();
    }
}
