//! Any bytes as a patch file: no panic, no hang, no large allocation, and one reading.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nestpatch::format::{Container, Payload};

fuzz_target!(|bytes: &[u8]| {
    let Ok(container) = Container::parse(bytes) else { return };
    let Ok(manifest) = container.read_manifest() else { return };
    let Ok(payload) = Payload::read(&manifest, container.payload()) else { return };
    let again = Payload::read(&manifest, container.payload()).expect("what was read once is read again");
    assert_eq!(payload.edits, again.edits);
});
