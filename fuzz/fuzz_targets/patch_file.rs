//! Any bytes as a patch file: no panic, no hang, no large allocation, and one reading whoever vouches for it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nestpatch::format::{Container, Payload};
use nestpatch::patch::Contents;

fuzz_target!(|bytes: &[u8]| {
    let Ok(contents) = Contents::read(bytes.to_vec()) else { return };
    let container = Container::parse(bytes).expect("what was read is a container");
    // Nothing is signed here, so a residual may still be one that its signer would have had refused.
    let Ok(payload) = Payload::read(&contents.manifest, container.payload()) else { return };
    assert_eq!(payload.edits, contents.edits);
    nestpatch_fuzz::fold_and_unfold(&payload.edits, bytes);
});
