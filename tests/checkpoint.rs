//! Opening checkpoints: good ones as the peer reads them, and one situation a case for bad ones.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use nestpatch::checkpoint::{Cells, Checkpoint, CheckpointError};
use nestpatch::format::{Layout, Span, Vectors};
use nestpatch::tensor::TensorName;
use proptest::prelude::*;

const INDEX: &str = "model.safetensors.index.json";
const SECOND: &str = "model-00002-of-00003.safetensors";

fn opened(edit: impl FnOnce(&Path)) -> Result<Checkpoint, CheckpointError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model");
    common::checkpoint(&path);
    edit(&path);
    // The folder may go: what is open stays readable.
    Checkpoint::open(&path)
}

fn replace(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(path, text.replace(from, to)).unwrap();
}

#[test]
fn tensors_are_those_the_peer_reads() {
    let dir = tempfile::tempdir().unwrap();
    common::checkpoint(dir.path());
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.model_type(), Some("llama"));
    let mut seen = 0;
    for name in checkpoint.shard_names() {
        let bytes = fs::read(dir.path().join(name)).unwrap();
        for (tensor, view) in safetensors::SafeTensors::deserialize(&bytes).unwrap().tensors() {
            let info = checkpoint.tensor(&TensorName::new(tensor).unwrap()).unwrap();
            assert_eq!(info.dtype.as_str(), view.dtype().to_string());
            assert_eq!(checkpoint.read(&info.name).unwrap(), view.data());
            assert_eq!(checkpoint.shard_of(info), name);
            let mut streamed = Vec::new();
            checkpoint
                .stream(info, &(), |begin, piece| {
                    assert_eq!(begin, streamed.len() as u64);
                    streamed.extend_from_slice(piece);
                })
                .unwrap();
            assert_eq!(streamed, view.data());
            seen += 1;
        }
    }
    assert_eq!(seen, checkpoint.tensors().len());
}

#[test]
fn a_single_file_and_a_hub_snapshot_open_too() {
    let dir = tempfile::tempdir().unwrap();
    let (plain, snapshot) = (dir.path().join("plain"), dir.path().join("snapshot"));
    fs::create_dir_all(&plain).unwrap();
    fs::create_dir_all(&snapshot).unwrap();
    fs::write(plain.join("config.json"), "{}").unwrap();
    let shards = common::tensors(1);
    common::write_shard(&plain.join("model.safetensors"), &shards[SECOND]);
    for name in ["config.json", "model.safetensors"] {
        symlink(plain.join(name), snapshot.join(name)).unwrap();
    }
    for path in [plain, snapshot] {
        assert_eq!(Checkpoint::open(&path).unwrap().tensors().len(), 3);
    }
}

#[test]
fn a_weight_file_that_changes_after_it_was_opened_is_noticed() {
    type Change = fn(&Path);
    let changes: [(Change, &str); 5] = [
        (|path| fs::write(path, [0; 3]).unwrap(), "bytes, found 3"),
        (|path| touch(path, 1), "written to after it was opened"),
        (|path| touch(path, -1), "written to after it was opened"),
        (replace_by_a_copy, "another file has its name"),
        (|path| fs::remove_file(path).unwrap(), "cannot read"),
    ];
    for (change, words) in changes {
        let dir = tempfile::tempdir().unwrap();
        common::checkpoint(dir.path());
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        checkpoint.check_unchanged().unwrap();
        change(&dir.path().join(SECOND));
        let error = checkpoint.check_unchanged().unwrap_err().to_string();
        assert!(error.contains(words) && error.contains(SECOND), "{error} lacks {words}");
    }
}

/// Moves the time of the last write.
fn touch(path: &Path, seconds: i64) {
    let file = fs::File::options().write(true).open(path).unwrap();
    let time = file.metadata().unwrap().modified().unwrap();
    let step = std::time::Duration::from_secs(seconds.unsigned_abs());
    file.set_modified(if seconds < 0 { time - step } else { time + step }).unwrap();
}

/// The same bytes and times in another file of that name.
fn replace_by_a_copy(path: &Path) {
    let beside = path.with_extension("copy");
    fs::copy(path, &beside).unwrap();
    let time = fs::metadata(path).unwrap().modified().unwrap();
    fs::File::options().write(true).open(&beside).unwrap().set_modified(time).unwrap();
    fs::rename(beside, path).unwrap();
}

#[test]
fn other_weight_files_are_noticed() {
    let checkpoint = opened(|dir| {
        for name in ["consolidated.00.pth", "model.safetensors.old", "training_args.bin", "x.gguf"] {
            fs::write(dir.join(name), "").unwrap();
        }
    });
    assert_eq!(checkpoint.unwrap().strays(), ["consolidated.00.pth", "x.gguf"]);
}

#[test]
fn each_bad_checkpoint_is_refused_and_the_reason_named() {
    type Case = (&'static str, fn(&Path), &'static [&'static str]);
    let cases: [Case; 16] = [
        ("no folder", |dir| fs::remove_dir_all(dir).unwrap(), &["not a checkpoint folder"]),
        ("no weights", |dir| fs::remove_file(dir.join(INDEX)).unwrap(), &["no model.safetensors"]),
        ("no config", |dir| fs::remove_file(dir.join("config.json")).unwrap(), &["config.json"]),
        ("both layouts", |dir| drop(fs::copy(dir.join(SECOND), dir.join("model.safetensors"))), &["ambiguous"]),
        ("missing shard", |dir| fs::remove_file(dir.join(SECOND)).unwrap(), &["1 of 3 shards missing", SECOND]),
        ("shard outside", |dir| replace(&dir.join(INDEX), SECOND, "../x.safetensors"), &["../x", "plain file name"]),
        ("absolute shard", |dir| replace(&dir.join(INDEX), SECOND, "/etc/passwd"), &["/etc/passwd"]),
        (
            "key twice",
            |dir| replace(&dir.join("config.json"), "{\"a", "{\"model_type\":1,\"a"),
            &["config.json", "JSON"],
        ),
        ("index twice", |dir| replace(&dir.join(INDEX), "\"weight_map\"", "\"metadata\":{},\"weight_map\""), &[INDEX]),
        ("no map", |dir| fs::write(dir.join(INDEX), "{}").unwrap(), &["weight_map"]),
        (
            "tensor in no shard",
            |dir| replace(&dir.join(INDEX), "model.step", "model.stop"),
            &["model.step", "nothing of it"],
        ),
        (
            "tensor elsewhere",
            |dir| {
                let extra = "\"model.extra\":\"model-00001-of-00003.safetensors\",\"model.step\"";
                replace(&dir.join(INDEX), "\"model.step\"", extra);
            },
            &["model.extra", "does not hold it"],
        ),
        (
            "truncated",
            |dir| {
                let bytes = fs::read(dir.join(SECOND)).unwrap();
                fs::write(dir.join(SECOND), &bytes[..bytes.len() - 1]).unwrap();
            },
            &[SECOND, "malformed", "truncated"],
        ),
        ("empty shard", |dir| fs::write(dir.join(SECOND), "").unwrap(), &[SECOND, "too few"]),
        (
            "folder as shard",
            |dir| {
                fs::remove_file(dir.join(SECOND)).unwrap();
                fs::create_dir(dir.join(SECOND)).unwrap();
            },
            &[SECOND, "regular file"],
        ),
        (
            "dangling link",
            |dir| {
                fs::remove_file(dir.join(SECOND)).unwrap();
                symlink("/nowhere", dir.join(SECOND)).unwrap();
            },
            &[SECOND, "missing"],
        ),
    ];
    for (case, edit, expected) in cases {
        let error = opened(edit).map(drop).expect_err(case);
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        for part in expected {
            assert!(text.contains(part), "{case}: {text}");
        }
    }
}

proptest! {
    /// Columns read many at a time are the columns, at any rank, whichever of them are asked for.
    #[test]
    fn columns_are_read_as_they_are(
        matrices in 1..3_usize, height in 1..6_usize, width in 1..6_usize, wide in any::<bool>(),
        wanted in prop::collection::vec(any::<bool>(), 15),
    ) {
        let (dtype, size) = if wide { (safetensors::Dtype::F32, 4) } else { (safetensors::Dtype::BF16, 2) };
        let shape = vec![matrices, height, width];
        let bytes: Vec<u8> = (0..shape.iter().product::<usize>() * size).map(|byte| byte as u8).collect();
        let dir = common::folder();
        let tensor = common::Tensor { dtype, shape, bytes: bytes.clone() };
        let shards = [("model-00001-of-00001.safetensors".to_owned(), [("t".to_owned(), tensor)].into())].into();
        common::checkpoint_of(dir.path(), &shards);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let info = checkpoint.tensor(&TensorName::new("t").unwrap()).unwrap();
        let vectors = Vectors::new(Layout::Columns, &info.shape).unwrap();
        let wanted = (0..vectors.count() as u32).filter(|column| wanted[*column as usize % 15]);
        let spans: Vec<Span> = wanted.map(|column| vectors.span(column).unwrap()).collect();
        let mut found = Vec::new();
        let cells = spans.iter().map(|span| Cells::new(*span, size));
        checkpoint.read_vectors(info, cells, |vector| { found.push(vector.to_vec()); Ok::<_, CheckpointError>(()) }).unwrap();
        let expected: Vec<Vec<u8>> = spans.iter().map(|span| {
            let at = |step: usize| (span.start as usize + step * span.stride as usize) * size;
            (0..span.len).flat_map(|step| bytes[at(step)..at(step) + size].to_vec()).collect()
        }).collect();
        prop_assert_eq!(found, expected);
    }
}
