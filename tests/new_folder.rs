//! Writing to a new folder: what is linked, what is copied, and who wins a race.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use common::{fails, snapshot, succeeds};
use nestpatch::checkpoint::{Cells, Checkpoint, CheckpointError, Staged, TensorInfo, Untouched};
use nestpatch::format::edit::Span;
use nestpatch::tensor::TensorName;

const FIRST: &str = "model-00001-of-00003.safetensors";
const SECOND: &str = "model-00002-of-00003.safetensors";
const THIRD: &str = "model-00003-of-00003.safetensors";

/// The first row of the first shard's gate projection becomes 9s; gives the linked shards.
fn change_one_shard(base: &Path, out: &Path, untouched: Untouched) -> Result<Vec<String>, CheckpointError> {
    let checkpoint = Checkpoint::open(base)?;
    let tensor = touched(&checkpoint);
    let staged = Staged::begin(&checkpoint, out, &[tensor], untouched, &())?;
    let linked = staged.linked().to_vec();
    let cells = Cells::new(Span { start: 0, stride: 1, len: common::HIDDEN }, 2);
    staged.write(&checkpoint, tensor, cells, &[9; common::HIDDEN * 2])?;
    // As the engine may: the disk works while what was written is read back.
    std::thread::scope(|scope| {
        let synced = scope.spawn(|| staged.sync_shards());
        let copy = Checkpoint::open(staged.path())?;
        assert_eq!(copy.read(&tensor.name)?[..2], [9, 9]);
        synced.join().unwrap()
    })?;
    staged.commit()?;
    Ok(linked)
}

fn touched(checkpoint: &Checkpoint) -> &TensorInfo {
    checkpoint.tensor(&TensorName::new(common::projection(0, "gate")).unwrap()).unwrap()
}

fn folders() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let root = common::folder();
    let (base, out) = (root.path().join("base"), root.path().join("out"));
    common::checkpoint(&base);
    (root, base, out)
}

fn inode(path: PathBuf) -> (u64, u64) {
    let metadata = fs::symlink_metadata(path).unwrap();
    (metadata.dev(), metadata.ino())
}

fn is_one_file(base: &Path, out: &Path, name: &str) -> bool {
    inode(base.join(name)) == inode(out.join(name))
}

/// What the change must leave: the source as it was, the copy like it but for one row.
fn assert_only_one_row_differs(base: &Path, out: &Path, before: &BTreeMap<PathBuf, Vec<u8>>) {
    assert!(snapshot(base) == *before, "the source was changed");
    let mut after = snapshot(out);
    let changed = after.insert(FIRST.into(), before[Path::new(FIRST)].clone()).unwrap();
    assert!(after == *before);
    let differing = changed.iter().zip(&before[Path::new(FIRST)]).filter(|(one, other)| one != other).count();
    assert!((1..=common::HIDDEN * 2).contains(&differing), "{differing}");
}

#[test]
fn untouched_shards_are_linked_and_nothing_else() {
    let (_root, base, out) = folders();
    fs::set_permissions(base.join(THIRD), fs::Permissions::from_mode(0o440)).unwrap();
    let before = snapshot(&base);
    assert_eq!(change_one_shard(&base, &out, Untouched::Link).unwrap(), [SECOND, THIRD]);
    assert_only_one_row_differs(&base, &out, &before);
    for (path, _) in before.iter().filter(|(path, _)| base.join(path).is_file()) {
        let name = path.to_str().unwrap();
        assert_eq!(is_one_file(&base, &out, name), [SECOND, THIRD].contains(&name), "{name}");
    }
    assert_eq!(fs::metadata(base.join(THIRD)).unwrap().mode() & 0o777, 0o440);
}

#[test]
fn without_the_wish_nothing_is_linked() {
    let (_root, base, out) = folders();
    let before = snapshot(&base);
    assert!(change_one_shard(&base, &out, Untouched::default()).unwrap().is_empty());
    assert_only_one_row_differs(&base, &out, &before);
    for name in [FIRST, SECOND, THIRD, "config.json"] {
        assert!(!is_one_file(&base, &out, name), "{name}");
    }
}

/// A failure later on takes the links away again, and never the files behind them.
#[test]
fn giving_up_leaves_the_source_and_no_link() {
    let (root, base, out) = folders();
    let before = snapshot(&base);
    let checkpoint = Checkpoint::open(&base).unwrap();
    let staged = Staged::begin(&checkpoint, &out, &[touched(&checkpoint)], Untouched::Link, &()).unwrap();
    assert_eq!(fs::metadata(base.join(THIRD)).unwrap().nlink(), 2);
    drop(staged);
    assert_eq!(fs::metadata(base.join(THIRD)).unwrap().nlink(), 1);
    assert!(snapshot(&base) == before && fs::read_dir(root.path()).unwrap().count() == 1);
}

/// A change in place of either folder would be seen in the other.
#[test]
fn neither_side_of_a_link_is_changed_in_place() {
    let (root, base, out) = folders();
    let dir = root.path();
    fs::write(dir.join("p.nestpatch"), common::patch(&base, 7)).unwrap();
    common::public_key(&dir.join("key.pub"));
    let checkpoint = Checkpoint::open(&base).unwrap();
    let staged = Staged::begin(&checkpoint, &out, &[touched(&checkpoint)], Untouched::Link, &()).unwrap();
    staged.commit().unwrap();
    drop(checkpoint);
    for folder in ["base", "out"] {
        let arguments = ["apply", "p.nestpatch", folder, "--key", "key.pub", "--in-place"];
        fails(dir, &arguments, 6, &[&format!("{folder}/model-0000"), "another hard link", "Hint", "-o"]);
    }
    fs::remove_dir_all(&out).unwrap();
    succeeds(dir, &["apply", "p.nestpatch", "base", "--key", "key.pub", "--in-place"]);
}

#[test]
fn a_linked_source_is_copied_instead() {
    let (root, base, out) = folders();
    fs::rename(base.join(THIRD), root.path().join("blob")).unwrap();
    symlink("../blob", base.join(THIRD)).unwrap();
    let before = snapshot(&base);
    assert_eq!(change_one_shard(&base, &out, Untouched::Link).unwrap(), [SECOND]);
    assert_only_one_row_differs(&base, &out, &before);
    assert!(!out.join(THIRD).is_symlink());
    assert_eq!(fs::metadata(root.path().join("blob")).unwrap().nlink(), 1);
}

#[test]
fn another_file_system_gets_a_copy() {
    let (_root, base, _) = folders();
    let other = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    if inode(other.path().to_owned()).0 == inode(base.clone()).0 {
        eprintln!("skipped: one file system holds both");
        return;
    }
    let (before, out) = (snapshot(&base), other.path().join("out"));
    assert!(change_one_shard(&base, &out, Untouched::Link).unwrap().is_empty());
    assert_only_one_row_differs(&base, &out, &before);
}

#[test]
fn the_slower_of_two_writers_is_told_that_the_output_exists() {
    let (root, base, out) = folders();
    let checkpoint = Checkpoint::open(&base).unwrap();
    let begin = || Staged::begin(&checkpoint, &out, &[touched(&checkpoint)], Untouched::Copy, &()).unwrap();
    let (slow, fast) = (begin(), begin());
    fast.add_state("who", b"fast").unwrap();
    fast.commit().unwrap();
    let error = slow.commit().unwrap_err();
    assert!(matches!(&error, CheckpointError::Exists { path } if *path == out), "{error}");
    assert_eq!(fs::read(out.join("nestpatch/who")).unwrap(), b"fast");
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 2, "the slower one's copy is gone");
}
