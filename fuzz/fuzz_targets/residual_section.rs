//! Any bytes as the `residual` section of fixed edits, and as patched rows to unfold by it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nestpatch::fold;
use nestpatch::format::{Residual, ResidualBuilder};
use nestpatch_fuzz::{EDITS, ROWS};

fuzz_target!(|bytes: &[u8]| {
    let length = bytes.len().min(ROWS.residual_length() as usize);
    let (residual, patched) = bytes.split_at(length);
    let Ok(residual) = Residual::from_bytes(&EDITS, residual) else { return };
    assert_eq!(residual.to_bytes(), &bytes[..length]);
    if patched.is_empty() {
        return;
    }
    let mut source = patched.iter().cycle().copied();
    for (index, edit) in EDITS.iter().enumerate() {
        assert_eq!(residual.rows(index, edit).count(), edit.rows().len());
        for ((_, _, delta), residual) in edit.changes().zip(residual.rows(index, edit)) {
            let new: Vec<u8> = source.by_ref().take(edit.row_bytes()).collect();
            let mut old = new.clone();
            if fold::unfold_row(edit.dtype(), &mut old, delta, residual).is_ok() {
                // Any difference can be stored, so what was restored has this residual.
                let mut builder = ResidualBuilder::new();
                fold::residual_row(edit.dtype(), &old, &new, delta, &mut builder).expect("finite rows");
            }
        }
    }
});
