//! Sign: one more signature on a patch, everything else as it was.

use serde::Serialize;

use super::{Contents, PatchError};
use crate::digest::Sha256;
use crate::format::{Container, Payload};
use crate::trust::SecretKey;

/// What was signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Signed {
    /// The patch's id, which signatures do not change.
    pub patch: Sha256,
    /// Its name.
    pub name: String,
    /// Its series.
    pub series: String,
    /// Its number there.
    pub sequence: u64,
    /// Ids of the patches that it replaces.
    pub supersedes: Vec<Sha256>,
    /// What it is for, as the publisher calls it.
    pub base: String,
    /// Tensors it changes.
    pub tensors: usize,
    /// Rows it changes.
    pub rows: usize,
    /// Id of the key that signed.
    pub key_id: Sha256,
    /// Ids of all keys that a record names by now, in order. Only this key's is known to be right.
    pub key_ids: Vec<Sha256>,
}

/// Adds a signature to a patch whose every digest and rule holds, in the place of a wrong one under the same key; gives
/// the new file.
///
/// # Errors
/// A malformed patch, or one that holds what this version does not know; a key that has signed it already; a 65th signature.
pub fn sign(bytes: Vec<u8>, key: &SecretKey) -> Result<(Signed, Vec<u8>), PatchError> {
    let contents = Contents::of(bytes, Payload::read_bounded)?;
    contents.require_understood()?;
    let container = Container::parse(contents.bytes())?;
    let record = key.sign(container.manifest())?;
    let key_id = record.key_id;
    // Signing is deterministic: another record under this key is a wrong one, which somebody else put there.
    if container.signatures().contains(&record) {
        return Err(PatchError::AlreadySigned { key_id });
    }
    let signed = container.with_signature(record)?;
    let manifest = &contents.manifest;
    let mut key_ids = contents.claimed_signers().to_vec();
    key_ids.retain(|id| *id != key_id);
    key_ids.push(key_id);
    key_ids.sort_unstable();
    let report = Signed {
        patch: contents.id(),
        name: manifest.name.clone(),
        series: manifest.series.clone(),
        sequence: manifest.sequence,
        supersedes: manifest.supersedes.clone(),
        base: manifest.base.name.clone(),
        tensors: contents.edits.len(),
        rows: contents.edits.iter().map(|edit| edit.rows().len()).sum(),
        key_id,
        key_ids,
    };
    Ok((report, signed))
}
