//! Any bytes as signature records, behind a signed manifest: parsed ones are written the same, and none of them counts
//! but the trusted key's own.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use nestpatch::format::{Container, Manifest};
use nestpatch::trust::{self, Policy, SecretKey};

const TINY: &[u8] = include_bytes!("../../fixtures/format/tiny.nestpatch");

static POLICY: LazyLock<Policy> = LazyLock::new(|| {
    let key = SecretKey::from_seed(&[1; 32]).public().expect("a key");
    Policy::from_keys([("tester".to_owned(), key)]).expect("a policy")
});

fuzz_target!(|bytes: &[u8]| {
    let tiny = Container::parse(TINY).expect("the fixture");
    let mut file = TINY[..24].to_vec();
    file.extend((bytes.len() as u64).to_le_bytes());
    file.extend(&TINY[32..64]);
    [tiny.manifest(), bytes, tiny.payload()].iter().for_each(|part| file.extend(*part));
    let Ok(container) = Container::parse(&file) else { return };
    let version = container.header().version;
    let again = Container::write(container.manifest(), container.signatures(), container.payload(), version);
    assert_eq!(again.as_deref(), Ok(&file[..]), "one file, one reading");
    if let Ok(verified) = trust::verify(&container, &POLICY) {
        // Deterministic signing, strict verification: there is one right signature.
        let own = &tiny.signatures()[0];
        assert!(container.signatures().contains(own), "only the signature that was made counts");
        assert_eq!(verified.signers().len(), 1);
        assert_eq!(Ok(Manifest::clone(&verified)), Manifest::parse(tiny.manifest()));
    }
});
