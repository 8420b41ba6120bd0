//! Whose signatures count, and the patch that they vouch for.

use std::path::{Path, PathBuf};

use super::failure::{Exit, Failure};
use crate::checkpoint::{CheckpointError, read_bounded};
use crate::patch::verify::verify;
use crate::patch::{MAX_FILE_BYTES, VerifiedPatch};
use crate::trust::{Policy, read_public_key};

/// The longest trust file read, in bytes.
const MAX_TRUST_BYTES: u64 = 4 << 20;

/// Whose signatures count.
#[derive(clap::Args)]
pub(super) struct Trusted {
    /// Trust this public key; may be repeated, and a signature by any of them is enough.
    #[arg(long, value_name = "PUB")]
    key: Vec<PathBuf>,
    /// Trust the people that this file names, as many of them as it asks for.
    #[arg(long, value_name = "FILE", conflicts_with = "key")]
    trust: Option<PathBuf>,
}

impl Trusted {
    /// The policy, if a key or trust file was given.
    pub(super) fn policy(&self) -> Result<Option<Policy>, Failure> {
        if let Some(path) = &self.trust {
            let bytes = read_input(path, MAX_TRUST_BYTES, Exit::Input)?;
            let text = String::from_utf8(bytes).map_err(|error| unusable(path, &error))?;
            return Ok(Some(Policy::from_trust_file(&text).map_err(|error| unusable(path, &error))?));
        }
        if self.key.is_empty() {
            return Ok(None);
        }
        let mut keys = Vec::new();
        for path in &self.key {
            let key = read_public_key(path).map_err(|error| Failure::new(Exit::Input, &error))?;
            keys.push((path.display().to_string(), key));
        }
        Ok(Some(Policy::from_keys(keys).map_err(|error| Failure::new(Exit::Input, &error))?))
    }

    /// The policy, which there must be.
    fn required(&self) -> Result<Policy, Failure> {
        let none = || Failure::message(Exit::Untrusted, "no key to check the patch's signature with");
        self.policy()?
            .ok_or_else(|| none().hint("give the publisher's public key with --key, or a trust file with --trust"))
    }
}

/// Reads a patch and checks that somebody trusted signed it.
pub(super) fn verified(path: &Path, trusted: &Trusted) -> Result<VerifiedPatch, Failure> {
    let policy = trusted.required()?;
    Ok(verify(read_patch(path)?, &policy)?)
}

/// Reads a patch file, at most as long as one may be.
pub(super) fn read_patch(path: &Path) -> Result<Vec<u8>, Failure> {
    read_input(path, MAX_FILE_BYTES, Exit::Patch)
}

/// Reads a file that is given on the command line; `exit` is for one that cannot be what it should.
pub(super) fn read_input(path: &Path, limit: u64, exit: Exit) -> Result<Vec<u8>, Failure> {
    read_bounded(path, limit).map_err(|error| match error {
        CheckpointError::TooLarge { .. } => Failure::new(exit, &error),
        _ => Failure::new(Exit::Failed, &error),
    })
}

fn unusable(path: &Path, error: &dyn std::error::Error) -> Failure {
    Failure::message(Exit::Input, format!("{}: {error}", path.display()))
}
