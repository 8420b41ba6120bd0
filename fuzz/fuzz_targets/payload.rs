//! Any bytes as the sections of a payload whose digests are right, as an attacker would make them: one reading, bounded by
//! what is stored, and what is read is written.
//!
//! An input is the codec of the deltas, the stored lengths of rows and deltas (2 bytes each), the length that the deltas are
//! said to decode to (4 bytes), and the stored bytes of rows, deltas and, if any are left, residual.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use nestpatch::digest::{Blake3, Sha256};
use nestpatch::format::manifest::{Content, SectionEntry, Stored};
use nestpatch::format::{Codec, Container, Kind, Manifest, Payload, frame, limits};

const TINY: &[u8] = include_bytes!("../../fixtures/format/tiny.nestpatch");
const CODECS: [Codec; 4] = [Codec::Raw, Codec::Zstd, Codec::Float2Zstd, Codec::Planes4Zstd];

static MANIFEST: LazyLock<Manifest> =
    LazyLock::new(|| Container::parse(TINY).expect("the fixture").read_manifest().expect("its manifest"));

fn entry(kind: Kind, codec: Codec, stored: &[u8], length: u64) -> SectionEntry {
    // A large one must be refused before anybody asks for the digest of its content.
    let content = if length > 1 << 20 { Vec::new() } else { frame::load(&codec, stored, length).unwrap_or_default() };
    SectionEntry {
        name: kind.as_str().to_owned(),
        critical: kind.critical().unwrap_or(false),
        kind,
        codec,
        stored: Stored { length: stored.len() as u64, blake3: Blake3::of(stored) },
        content: Content { length, blake3: Blake3::of(&content), sha256: Sha256::of(&content) },
    }
}

fn about(sections: Vec<SectionEntry>) -> Manifest {
    Manifest { sections, ..MANIFEST.clone() }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((head, payload)) = bytes.split_first_chunk::<9>() else { return };
    let stored = |at: usize| usize::from(u16::from_le_bytes([head[at], head[at + 1]]));
    let Some((rows, rest)) = payload.split_at_checked(stored(1)) else { return };
    let Some((deltas, residual)) = rest.split_at_checked(stored(3)) else { return };
    let length = u32::from_le_bytes([head[5], head[6], head[7], head[8]]).into();
    let mut sections = vec![
        entry(Kind::Rows, Codec::Raw, rows, rows.len() as u64),
        entry(Kind::Deltas, CODECS[usize::from(head[0] % 4)].clone(), deltas, length),
    ];
    if !residual.is_empty() {
        sections.push(entry(Kind::Residual, Codec::Raw, residual, residual.len() as u64));
    }
    let manifest = about(sections);
    let Ok(edits) = Payload::read_unverified(&manifest, payload) else { return };
    let bound = |stored: u64| limits::MAX_UNVERIFIED_BYTES.max(stored * limits::MAX_UNVERIFIED_RATIO);
    let decoded = manifest.sections.iter().take(2);
    assert!(decoded.into_iter().all(|entry| entry.content.length <= bound(entry.stored.length)));
    nestpatch_fuzz::fold_and_unfold(&edits, bytes);
    // Signed, the residual is read as well.
    let Ok(read) = Payload::read(&manifest, payload) else { return };
    assert_eq!(read.edits, edits);
    let (table, written) =
        Payload::write(&read.edits, read.residual.as_ref(), read.sketch.as_ref()).expect("what is read is written");
    assert_eq!(Payload::read(&about(table), &written), Ok(read));
});
