//! Any bytes as a rollback journal in a checkpoint's folder: recovery restores, or refuses and leaves the weights alone, and
//! reaches nothing outside the folder.
#![no_main]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use nestpatch::checkpoint::{STATE_FOLDER, recover};
use nestpatch::digest::Blake3;

/// In memory where there is such a place: every run writes files.
static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let place = Path::new("/dev/shm");
    let place = if place.is_dir() { place.to_owned() } else { std::env::temp_dir() };
    place.join(format!("nestpatch-fuzz-journal-{}", std::process::id()))
});

fuzz_target!(|bytes: &[u8]| {
    let (root, dir) = (FOLDER.as_path(), FOLDER.join("checkpoint"));
    let _ = fs::remove_dir_all(root);
    fs::create_dir_all(dir.join(STATE_FOLDER)).expect("a folder");
    let (shard, outside) = (dir.join("m.safetensors"), root.join("outside"));
    let weights: Vec<u8> = (0..1024_u32).map(|at| at as u8).collect();
    fs::write(&shard, &weights).expect("a shard");
    fs::write(&outside, &weights).expect("a file outside");
    // The digest at its end is right: what it covers is what is tried.
    let journal = [bytes, Blake3::of(bytes).as_bytes()].concat();
    fs::write(dir.join(STATE_FOLDER).join("journal"), journal).expect("a journal");
    let recovered = recover(&dir);
    let now = fs::read(&shard).expect("the shard");
    assert_eq!(now.len(), weights.len());
    assert!(recovered.is_ok() || now == weights, "refused, and wrote all the same");
    assert_eq!(fs::read(&outside).expect("the file outside"), weights);
    let _ = fs::remove_dir_all(root);
});
