//! Any bytes as a status feed, signed and as an envelope: what is read is written the same and keeps its rules.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use nestpatch::format::{Envelope, StatusFeed};
use nestpatch::trust::{Policy, SecretKey, Seen};

static KEY: LazyLock<SecretKey> = LazyLock::new(|| SecretKey::from_seed(&[1; 32]));

static POLICY: LazyLock<Policy> = LazyLock::new(|| {
    let key = KEY.public().expect("a key");
    let policy = Policy::from_keys([("tester".to_owned(), key)]).expect("a policy");
    policy.at("2026-11-24T00:00:00Z".parse().expect("a time")).remembering(Seen::default())
});

fuzz_target!(|bytes: &[u8]| {
    if let Ok(envelope) = Envelope::parse(bytes) {
        assert_eq!(Envelope::parse(envelope.to_json().as_bytes()), Ok(envelope));
    }
    // Nobody signed these bytes as they are, but for the seed.
    let _ = POLICY.read_status_feed(bytes);
    let Ok(feed) = StatusFeed::parse(bytes) else { return };
    let statement = feed.to_bytes().expect("what is read can be written");
    assert_eq!(StatusFeed::parse(&statement).as_ref(), Ok(&feed));
    for entry in &feed.entries {
        let last = feed.status_of(entry.patch).expect("every patch has a last word");
        assert!(last.status >= entry.status, "nothing comes back");
    }
    let signature = KEY.sign(&statement).expect("a signature");
    let envelope = Envelope::new(statement, vec![signature]).to_json();
    assert_eq!(POLICY.read_status_feed(envelope.as_bytes()).as_ref(), Ok(&feed));
    let Ok(knowing) = POLICY.clone().knowing(envelope.as_bytes()) else { return };
    let mut seen = Seen::default();
    seen.note_feed(knowing.status_feed().expect("it was read"));
    assert_eq!(seen.check_feed(&feed), Ok(()));
});
