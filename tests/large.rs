//! Tensors and shards around 2 GiB and 4 GiB, as sparse files: touched at their ends and across the boundaries, and back.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use nestpatch::checkpoint::{Checkpoint, Depth};
use nestpatch::format::{Deltas, Edit, EditParts, Edits, Layout};
use nestpatch::patch::apply::{Options, Target, apply};
use nestpatch::patch::bind::{Accept, bind};
use nestpatch::patch::revert::{Which, find, revert};
use nestpatch::patch::verify::verify;
use nestpatch::tensor::{Dtype, Shape, TensorName};
use rustix::fs::{SeekFrom, seek};

const GIB_2: u64 = 1 << 31;
const GIB_4: u64 = 1 << 32;
/// Bytes of the length field and the header, padded: tensors begin here.
const DATA: u64 = 1024;
const SHARD: &str = "model.safetensors";

/// A sparse checkpoint of one file: tensors by name, element type and shape, in this order.
struct Sparse {
    root: tempfile::TempDir,
    /// Where each tensor begins in the file.
    begins: BTreeMap<&'static str, u64>,
    length: u64,
}

impl Sparse {
    /// `None`, with the reason printed, where files cannot have holes.
    fn new(tensors: &[(&'static str, &str, &[u64])]) -> Option<Self> {
        let (mut entries, mut begins, mut end) = (Vec::new(), BTreeMap::new(), 0);
        for (name, dtype, shape) in tensors {
            let size = if *dtype == "BF16" { 2 } else { 1 };
            let length = shape.iter().product::<u64>() * size;
            let range = [end, end + length];
            entries.push(format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":{range:?}}}"#));
            begins.insert(*name, DATA + end);
            end += length;
        }
        let header = format!("{:<width$}", format!("{{{}}}", entries.join(",")), width = DATA as usize - 8);
        assert_eq!(header.len() as u64, DATA - 8);
        let root = common::folder();
        fs::create_dir(root.path().join("m")).unwrap();
        fs::write(root.path().join("m/config.json"), "{\"model_type\":\"llama\"}").unwrap();
        let file = File::create_new(root.path().join("m").join(SHARD)).unwrap();
        file.write_all_at(&(DATA - 8).to_le_bytes(), 0).unwrap();
        file.write_all_at(header.as_bytes(), 8).unwrap();
        file.set_len(DATA + end).unwrap();
        file.sync_all().unwrap();
        let found = Self { root, begins, length: DATA + end };
        let holes = file.metadata().unwrap().blocks() * 512 < 1 << 20 && found.bytes().len() < 1 << 20;
        if !holes {
            eprintln!("skipped: this file system keeps no holes in files");
        }
        holes.then_some(found)
    }

    fn dir(&self) -> PathBuf {
        self.root.path().join("m")
    }

    /// Every byte of the file that is not zero, by its place. Holes are passed over.
    fn bytes(&self) -> BTreeMap<u64, u8> {
        let file = File::open(self.dir().join(SHARD)).unwrap();
        let (mut found, mut at) = (BTreeMap::new(), 0);
        while let Ok(begin) = seek(&file, SeekFrom::Data(at)) {
            at = seek(&file, SeekFrom::Hole(begin)).unwrap();
            let mut data = vec![0; (at - begin) as usize];
            file.read_exact_at(&mut data, begin).unwrap();
            found.extend((begin..).zip(data).filter(|(_, byte)| *byte != 0));
        }
        found
    }

    /// Puts a weight of 1 here and there around these places of the file, so that not all is zero.
    fn sow(&self, places: impl IntoIterator<Item = u64>) {
        let file = File::options().write(true).open(self.dir().join(SHARD)).unwrap();
        for place in places {
            file.write_all_at(&[0x80, 0x3f], place).unwrap();
        }
    }
}

/// Rows or columns of a BF16 tensor, each with a delta of its own.
fn edit(name: &str, shape: &[u64], layout: Layout, vectors: &[u32]) -> Edit {
    let length = shape[if layout == Layout::Rows { 1 } else { 0 }] as usize;
    let clusters = (0..vectors.len() as u32).collect();
    let deltas: Vec<f32> = (0..vectors.len() * length).map(|n| [0.5, -0.25, 2.0][n % 3]).collect();
    Edit::new(EditParts {
        tensor: TensorName::new(name).unwrap(),
        dtype: Dtype::Bf16,
        shape: Shape::new(shape).unwrap(),
        layout,
        rows: vectors.to_vec(),
        clusters,
        deltas: Deltas::new(Dtype::Bf16, length, deltas).unwrap(),
    })
    .unwrap()
}

/// For each vector that an edit touches, the places of its bytes in the file.
fn reach(begin: u64, edit: &Edit) -> Vec<Vec<u64>> {
    let (rows, columns) = (edit.shape().dims()[0], edit.shape().dims()[1]);
    let elements = |vector: u64| -> Vec<u64> {
        match edit.layout() {
            Layout::Rows => (0..columns).map(|column| vector * columns + column).collect(),
            Layout::Columns => (0..rows).map(|row| row * columns + vector).collect(),
        }
    };
    let places = |element: u64| [begin + element * 2, begin + element * 2 + 1];
    edit.rows().iter().map(|vector| elements(u64::from(*vector)).into_iter().flat_map(places).collect()).collect()
}

/// Applies and reverts in place: only the touched vectors change, each of them, and every byte comes back.
fn there_and_back(sparse: &Sparse, edits: Vec<Edit>) {
    let dir = sparse.dir();
    let reach: Vec<Vec<u64>> =
        edits.iter().flat_map(|edit| reach(sparse.begins[edit.tensor().as_str()], edit)).collect();
    sparse.sow(reach.iter().flat_map(|vector| [vector[0], vector[vector.len() - 2]]));
    // Their neighbours too, where those are tensors' bytes.
    sparse.sow(reach.iter().map(|vector| vector[0] - 2).filter(|place| *place >= DATA));
    let before = sparse.bytes();
    let patch = common::patch_of(&dir, 1, &Edits::new(edits).unwrap());
    let patch = verify(patch, &common::policy()).unwrap();
    apply_in_place(&patch, &dir);
    let after = sparse.bytes();
    for vector in &reach {
        assert!(
            vector.iter().any(|place| before.get(place) != after.get(place)),
            "a vector at {} is as it was",
            vector[0]
        );
    }
    let touched: BTreeSet<u64> = reach.into_iter().flatten().collect();
    let changed = |place: &&u64| before.get(place) != after.get(place);
    let outside: Vec<&u64> =
        before.keys().chain(after.keys()).filter(changed).filter(|place| !touched.contains(place)).collect();
    assert!(outside.is_empty(), "changed outside the touched vectors: {outside:?}");
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let applied = find(&checkpoint, Which::Newest, None).unwrap();
    let bound = applied.bind(&checkpoint, Depth::Rows, false, &()).unwrap();
    revert(&bound, Target::InPlace, Depth::Rows, &()).unwrap();
    assert!(sparse.bytes() == before);
    assert_eq!(fs::metadata(dir.join(SHARD)).unwrap().len(), sparse.length);
}

fn apply_in_place(patch: &nestpatch::patch::VerifiedPatch, dir: &Path) {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let bound = bind(patch, &checkpoint, &Accept::exact().comparing(Depth::Rows), &()).unwrap();
    apply(patch, &bound, Options { check: Depth::Rows, ..Options::new(Target::InPlace) }, &()).unwrap();
}

/// A tensor of `bytes` bytes in rows of `columns`: the first row, the last two, and those at the boundaries.
fn one_tensor(bytes: u64, columns: u64) {
    let shape = [bytes / 2 / columns, columns];
    let Some(sparse) = Sparse::new(&[("t", "BF16", &shape)]) else { return };
    assert_eq!(sparse.length, DATA + bytes);
    let last = bytes - 1;
    // Boundaries as the file counts and as the tensor counts.
    let places = [0, GIB_2 - DATA, GIB_2 - 1, GIB_2, GIB_4 - DATA, GIB_4 - 1, GIB_4, last - columns * 2, last];
    let rows: BTreeSet<u64> =
        places.iter().filter(|place| **place < bytes).map(|place| place / (columns * 2)).collect();
    let rows: Vec<u32> = rows.into_iter().map(|row| row.try_into().unwrap()).collect();
    there_and_back(&sparse, vec![edit("t", &shape, Layout::Rows, &rows)]);
}

#[test]
fn a_tensor_just_under_2_gib() {
    one_tensor(GIB_2 - 2, 3171);
}

#[test]
fn a_tensor_just_over_2_gib() {
    one_tensor(GIB_2 + 2, 80_581);
}

#[test]
fn a_tensor_just_under_4_gib() {
    one_tensor(GIB_4 - 2, 1);
}

/// Rows of six bytes, so that some lie across the boundaries.
#[test]
fn a_tensor_just_over_4_gib() {
    one_tensor(GIB_4 + 2, 3);
}

/// The touched tensor ends where the file does.
#[test]
fn shards_of_2_and_4_gib_and_a_byte_less_or_more() {
    let shape = [33, 17];
    let small = shape[0] * shape[1] * 2;
    for length in [GIB_2 - 1, GIB_2, GIB_2 + 1, GIB_4 - 1, GIB_4, GIB_4 + 1] {
        let pad = [length - DATA - small];
        let Some(sparse) = Sparse::new(&[("pad", "U8", &pad), ("t", "BF16", &shape)]) else { return };
        assert_eq!(fs::metadata(sparse.dir().join(SHARD)).unwrap().len(), length);
        there_and_back(&sparse, vec![edit("t", &shape, Layout::Rows, &[0, 15, 32])]);
    }
}

/// Rows of one tensor and columns of another, which lie across the boundaries of the file.
#[test]
fn tensors_across_the_boundaries() {
    let shape = [33, 17];
    let half = shape[0] * shape[1];
    for boundary in [GIB_2, GIB_4] {
        for shift in [0, 1, 2] {
            let pads = [[boundary - DATA - half - shift], [1 << 20], [boundary - half * 3 - (1 << 20) + shift]];
            let Some(sparse) = Sparse::new(&[
                ("pad.0", "U8", &pads[0]),
                ("a", "BF16", &shape),
                ("pad.1", "U8", &pads[1]),
                ("b", "BF16", &shape),
                ("pad.2", "U8", &pads[2]),
                ("c", "BF16", &shape),
            ]) else {
                return;
            };
            let a = sparse.begins["a"];
            assert!(a < boundary && boundary < a + half * 2);
            assert!(sparse.begins["c"] + half * 2 > boundary * 2 - (1 << 20));
            let all: Vec<u32> = (0..33).collect();
            there_and_back(
                &sparse,
                vec![
                    edit("a", &shape, Layout::Rows, &all),
                    edit("b", &shape, Layout::Columns, &[0, 8, 16]),
                    edit("c", &shape, Layout::Columns, &[0, 16]),
                ],
            );
        }
    }
}
