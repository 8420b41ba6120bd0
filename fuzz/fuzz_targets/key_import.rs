//! Any text as a key: what is read is written as a key that reads as the same. Nothing is decrypted without passphrase.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nestpatch::trust::{PublicKey, SecretKey};

fuzz_target!(|text: &str| {
    if let Ok(key) = PublicKey::parse(text) {
        for again in [key.to_pem(), key.to_line()] {
            assert_eq!(PublicKey::parse(&again).as_ref(), Ok(&key));
        }
        assert_eq!(PublicKey::from_bytes(&key.to_bytes()), Ok(key));
    }
    if let Ok(key) = SecretKey::parse(text, || None) {
        let again = SecretKey::parse(&key.to_pem(None).expect("a key is written"), || None).expect("and read");
        assert_eq!(again.public(), key.public());
    }
});
