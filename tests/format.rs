//! The patch file from edits to bytes and back, and everything that must be refused on the way.

use std::collections::BTreeMap;

use nestpatch::digest::Blake3;
use nestpatch::fold;
use nestpatch::format::binding::{RowsHasher, TensorHasher};
use nestpatch::format::manifest::{Architecture, Base, BaseTensor, ResultBinding, ResultTensor, Tool};
use nestpatch::format::{
    Container, Deltas, Draft, Edit, EditParts, Edits, Layout, Level, Payload, Residual, ResidualBuilder, Timestamp,
    Unsigned,
};
use nestpatch::tensor::{Dtype, Shape, TensorName};
use nestpatch::trust::{self, Policy, SecretKey, TrustError};
use serde_json::{Map, json};

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
    draft(world).assemble(&world.edits, Some(&world.residual)).unwrap()
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
    assert_eq!(error, TrustError::Threshold { threshold: 2, found: vec!["\"Ada\"".to_owned()] });
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
