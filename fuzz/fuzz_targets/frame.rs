//! Any bytes as a stored section, by each codec: what loads is of the length asked for, and stores to be loaded again.
//! And as content: what stores loads as it was.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nestpatch::format::Codec;
use nestpatch::format::frame::{load, store};

const CODECS: [Codec; 6] =
    [Codec::Raw, Codec::Zstd, Codec::Planes2Zstd, Codec::Planes4Zstd, Codec::Float2Zstd, Codec::Float4Zstd];

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, rest)) = bytes.split_first() else { return };
    let codec = &CODECS[usize::from(choice % 6)];
    // Odd: content. Even: two bytes of length, then stored bytes.
    if choice & 0x80 != 0 {
        let Ok(stored) = store(codec, rest) else { return };
        assert_eq!(load(codec, &stored, rest.len() as u64).as_deref(), Ok(rest));
        return;
    }
    let Some((length, stored)) = rest.split_first_chunk() else { return };
    let length = u64::from(u16::from_le_bytes(*length));
    let Ok(content) = load(codec, stored, length) else { return };
    assert_eq!(content.len() as u64, length);
    let again = store(codec, &content).expect("what loads can be stored");
    assert_eq!(load(codec, &again, length), Ok(content));
});
