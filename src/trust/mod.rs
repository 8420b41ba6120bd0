//! Keys, signatures, and who is believed: the only way from a container to a [`Verified`] manifest.
//!
//! A key found inside a patch is never trusted, and a key id only says which key to try. Verification uses no network.

mod key;
mod keyfile;
mod policy;

pub use key::{KeyError, PublicKey, SecretKey};
pub use keyfile::{KeyFileError, KeyPairPaths, create_key_pair, read_public_key, read_secret_key};
pub use policy::{Person, Policy, PolicyError};

use std::collections::BTreeSet;
use std::ops::Deref;

use crate::digest::Sha256;
use crate::format::container::{Container, ContainerError, ReadError, SignatureRecord};
use crate::format::manifest::{Manifest, ManifestError};

/// Why a patch is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// No signature at all.
    #[error("signature: expected at least {threshold} of trusted people, found none: the patch is unsigned")]
    Unsigned {
        /// People that the policy asks for.
        threshold: usize,
    },
    /// Signatures, but none by a trusted key.
    #[error(
        "signature: expected one by {}, found only {}, which nobody has called trusted",
        list(expected),
        list(found)
    )]
    Untrusted {
        /// People and key ids that the policy trusts.
        expected: Vec<String>,
        /// Key ids of the signatures.
        found: Vec<String>,
    },
    /// A signature under a trusted key that does not verify.
    #[error(
        "signature of {person:?} (key {key_id}) is wrong: the patch has been changed, or was never signed by that key"
    )]
    Wrong {
        /// Whose key it names.
        person: String,
        /// The key's id.
        key_id: Sha256,
    },
    /// Too few people.
    #[error("signature: expected {threshold} different trusted people, found {}", list(found))]
    Threshold {
        /// People that the policy asks for.
        threshold: usize,
        /// People whose signatures are right.
        found: Vec<String>,
    },
    /// What is rightly signed breaks a rule of manifests.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// What is rightly signed contradicts the header.
    #[error(transparent)]
    Contradiction(#[from] ContainerError),
}

/// A trusted person whose signature is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signer {
    /// The name by which the policy knows them; from nowhere else.
    pub person: String,
    /// The key they used.
    pub key_id: Sha256,
}

/// A value read from bytes that enough trusted people signed. Made by [`verify`] alone.
#[derive(Debug, Clone)]
pub struct Verified<T> {
    value: T,
    patch_id: Sha256,
    signers: Vec<Signer>,
    strangers: Vec<Sha256>,
}

impl<T> Verified<T> {
    /// SHA-256 of the bytes that were signed.
    pub fn patch_id(&self) -> Sha256 {
        self.patch_id
    }

    /// Whose signatures are right, in the order of the file.
    pub fn signers(&self) -> &[Signer] {
        &self.signers
    }

    /// Key ids of signatures that say nothing here: of unknown keys or algorithms. Not checked.
    pub fn strangers(&self) -> &[Sha256] {
        &self.strangers
    }
}

impl<T> Deref for Verified<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// Checks signatures over the manifest's bytes against `policy`, and only then reads those bytes.
///
/// # Errors
/// In this order: a wrong signature under a trusted key; too few trusted people; a manifest that breaks a rule.
pub fn verify(container: &Container<'_>, policy: &Policy) -> Result<Verified<Manifest>, TrustError> {
    let message = container.signing_input();
    let (mut signers, mut strangers) = (Vec::new(), Vec::new());
    for record in container.signatures() {
        match policy.find(record.key_id).filter(|_| record.algorithm == SignatureRecord::ED25519) {
            None => strangers.push(record.key_id),
            Some((person, key)) if key.verifies(&message, &record.signature) => {
                signers.push(Signer { person: person.to_owned(), key_id: record.key_id });
            }
            Some((person, key)) => return Err(TrustError::Wrong { person: person.to_owned(), key_id: key.id() }),
        }
    }
    check_threshold(policy, &signers, &strangers)?;
    let manifest = container.read_manifest().map_err(|error| match error {
        ReadError::Manifest(error) => TrustError::Manifest(error),
        ReadError::Container(error) => TrustError::Contradiction(error),
    })?;
    Ok(Verified { value: manifest, patch_id: container.patch_id(), signers, strangers })
}

fn check_threshold(policy: &Policy, signers: &[Signer], strangers: &[Sha256]) -> Result<(), TrustError> {
    let threshold = policy.threshold();
    let people: BTreeSet<&str> = signers.iter().map(|signer| signer.person.as_str()).collect();
    if people.len() >= threshold {
        return Ok(());
    }
    Err(match (people.is_empty(), strangers.is_empty()) {
        (true, true) => TrustError::Unsigned { threshold },
        (true, false) => TrustError::Untrusted {
            expected: policy.keys().map(|(person, key)| format!("{person:?} (key {})", key.id().short())).collect(),
            found: strangers.iter().map(|id| format!("key {}", id.short())).collect(),
        },
        (false, _) => {
            TrustError::Threshold { threshold, found: people.into_iter().map(|name| format!("{name:?}")).collect() }
        }
    })
}

/// A list for people, cut after eight.
fn list(items: &[String]) -> String {
    let shown: Vec<&str> = items.iter().take(8).map(String::as_str).collect();
    let more = items.len().saturating_sub(shown.len());
    if more == 0 { shown.join(", ") } else { format!("{} and {more} more", shown.join(", ")) }
}
