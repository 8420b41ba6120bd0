//! Patches in the formats of other programs, as text: pure functions, no files.
//!
//! A patch is signed over the DSSE encoding of its manifest, so [`dsse`], [`sigstore`] and [`intoto`] only rearrange what
//! is there. [`minisig`] and [`sshsig`] sign the whole file anew. `spec/interop.md` says what each one proves.

pub mod dsse;
pub mod intoto;
pub mod minisig;
pub mod sigstore;
pub mod sshsig;

use base64ct::{Base64, Encoding as _};
use serde::Serialize;

use crate::digest::Sha256;
use crate::format::{Container, SignatureRecord};

/// Why a patch cannot be written in a format.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// Nothing to put into an envelope.
    #[error("signatures of the patch: expected at least one by an Ed25519 key, found {found} of other kinds")]
    Unsigned {
        /// Records of algorithms that this version does not know.
        found: usize,
    },
    /// No or several keys of this name.
    #[error("signer {wanted:?}: expected the beginning of exactly one key id, of {keys}", keys = list(found))]
    Signer {
        /// The prefix asked for.
        wanted: String,
        /// The keys that signed.
        found: Vec<Sha256>,
    },
    /// The writer of JSON fails, which it does not for these types.
    #[error("JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// The records that DSSE and Sigstore can carry: those of a known algorithm.
fn ed25519<'a>(container: &'a Container<'_>) -> Result<Vec<&'a SignatureRecord>, ExportError> {
    let all = container.signatures();
    let known: Vec<_> = all.iter().filter(|record| record.algorithm == SignatureRecord::ED25519).collect();
    if known.is_empty() { Err(ExportError::Unsigned { found: all.len() }) } else { Ok(known) }
}

/// One line, so that an envelope is a line of an attestation bundle (`.intoto.jsonl`) too.
fn json(value: &impl Serialize) -> Result<String, ExportError> {
    Ok(serde_json::to_string(value)? + "\n")
}

/// RFC 4648 section 4, padded.
fn base64(bytes: &[u8]) -> String {
    Base64::encode_string(bytes)
}

/// The short name of a key that minisign shows and `allowed_signers` files carry: 16 digits of its id.
fn short_id(id: Sha256) -> String {
    id.to_string().chars().take(16).collect()
}

fn list(ids: &[Sha256]) -> String {
    ids.iter().map(Sha256::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod testing {
    use crate::format::manifest::FormatVersion;
    use crate::format::{Container, SignatureRecord};
    use crate::trust::SecretKey;

    /// A patch signed by the key of the seed 01 01 .. 01.
    pub(super) const TINY: &[u8] = include_bytes!("../../fixtures/format/tiny.nestpatch");

    pub(super) fn key(seed: u8) -> SecretKey {
        SecretKey::from_seed(&[seed; 32])
    }

    /// A container of the manifest `{}`, signed by the keys of these seeds and once by an unknown algorithm.
    pub(super) fn signed_by(seeds: &[u8]) -> Vec<u8> {
        let unknown =
            SignatureRecord { key_id: crate::digest::Sha256::of(b"x"), algorithm: 7, signature: vec![1, 2, 3] };
        let records = seeds.iter().map(|seed| key(*seed).sign(b"{}").unwrap()).chain([unknown]);
        Container::write(b"{}", &records.collect::<Vec<_>>(), b"", FormatVersion::CURRENT).unwrap()
    }
}
