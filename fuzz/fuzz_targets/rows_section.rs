//! Any bytes as a `rows` section: what decodes encodes to the same bytes, once it has deltas.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nestpatch::format::section::{Rows, write_edits};

fuzz_target!(|bytes: &[u8]| {
    let Ok(rows) = Rows::from_bytes(bytes) else { return };
    let length = rows.deltas_length();
    assert!(rows.residual_length() > 0 || length == 0, "no row without a residual");
    // Deltas follow from rows and may be large; only what an input of this size could hold is read.
    if length > 1 << 16 {
        return;
    }
    let deltas = vec![0; length as usize];
    let Ok(edits) = rows.with_deltas(&deltas) else { return };
    assert_eq!(write_edits(&edits), Ok((bytes.to_vec(), deltas)));
});
