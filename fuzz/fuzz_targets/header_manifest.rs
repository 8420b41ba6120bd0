//! Any bytes as a manifest, in a container made for it: what is read is written, and read again as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nestpatch::format::{Container, Manifest};

fuzz_target!(|bytes: &[u8]| {
    // The header alone decides first.
    if let Ok(container) = Container::parse(bytes) {
        let header = container.header();
        let again = Container::write(container.manifest(), container.signatures(), container.payload(), header.version);
        assert_eq!(again.as_deref(), Ok(bytes), "one file, one reading");
        let _ = container.read_manifest();
    }
    let Ok(manifest) = Manifest::parse(bytes) else { return };
    let written = manifest.to_bytes().expect("what is read is written");
    assert_eq!(Manifest::parse(&written), Ok(manifest));
});
