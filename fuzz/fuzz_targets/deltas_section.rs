//! Any bytes as the `deltas` section of fixed rows: what decodes encodes to the same bytes, and folds reversibly.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nestpatch::format::section::write_edits;
use nestpatch_fuzz::{ROWS, fold_and_unfold};

fuzz_target!(|bytes: &[u8]| {
    // What follows the deltas are weights to fold them into.
    let length = bytes.len().min(ROWS.deltas_length() as usize);
    let (deltas, weights) = bytes.split_at(length);
    let Ok(edits) = ROWS.clone().with_deltas(deltas) else { return };
    let (_, again) = write_edits(&edits).expect("what is read is written");
    assert_eq!(again, deltas);
    fold_and_unfold(&edits, weights);
});
