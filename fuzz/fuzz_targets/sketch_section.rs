//! Any bytes as the `sketch` section of fixed edits, and as another checkpoint's rows to compare with it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nestpatch::format::{Sketch, SketchError, TensorSketcher};
use nestpatch_fuzz::{EDITS, ROWS};

fuzz_target!(|bytes: &[u8]| {
    let length = bytes.len().min(ROWS.sketch_length() as usize);
    let (content, rows) = bytes.split_at(length);
    let Ok(sketch) = Sketch::from_bytes(&EDITS, content) else { return };
    assert_eq!(sketch.to_bytes(), content);
    if rows.is_empty() {
        return;
    }
    let (mut source, mut made) = (rows.iter().cycle().copied(), Vec::new());
    for (edit, base) in EDITS.iter().zip(sketch.tensors()) {
        let mut sketcher = TensorSketcher::new(edit);
        for _ in edit.rows() {
            let row: Vec<u8> = source.by_ref().take(edit.row_bytes()).collect();
            match sketcher.push(&row) {
                Err(SketchError::NotFinite { .. }) => return,
                pushed => pushed.expect("a row of the right length"),
            }
        }
        let found = sketcher.finish().expect("a sketch of every row");
        assert!(base.distance(&found) >= 0.0, "not NaN either");
        assert_eq!(base.distance(base), 0.0);
        made.push(found);
    }
    // What these rows would be described by, if their numbers do not overflow, is read as it was written.
    if let Ok(of_rows) = Sketch::new(&EDITS, sketch.tolerance(), made) {
        assert_eq!(Sketch::from_bytes(&EDITS, &of_rows.to_bytes()), Ok(of_rows));
    }
});
