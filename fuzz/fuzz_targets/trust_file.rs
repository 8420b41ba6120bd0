//! Any text as a trust file: a policy that comes of it keeps the rules on people and keys.
#![no_main]

use std::collections::BTreeSet;

use libfuzzer_sys::fuzz_target;
use nestpatch::trust::{Policy, PublicKey};

fuzz_target!(|text: &str| {
    let Ok(policy) = Policy::from_trust_file(text) else { return };
    let people = policy.people();
    assert!((1..=people.len()).contains(&policy.conditions().threshold));
    for (role, count) in &policy.conditions().require {
        assert!((1..=people.iter().filter(|person| person.roles.contains(role)).count()).contains(count));
    }
    let names: BTreeSet<_> = people.iter().map(|person| &person.name).collect();
    assert_eq!(names.len(), people.len(), "each person once");
    let ids: Vec<_> = policy.keys().map(|(_, key)| key.key.id()).collect();
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "each key once");
    for (_, key) in policy.keys() {
        assert_eq!(PublicKey::from_bytes(&key.key.to_bytes()).as_ref(), Ok(&key.key));
        assert!(key.from.is_none() || key.until.is_none() || key.from < key.until);
    }
});
