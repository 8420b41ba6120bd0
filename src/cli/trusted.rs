//! Whose signatures count, on what conditions, and the patch that they vouch for.

use std::path::{Path, PathBuf};

use super::failure::{Exit, Failure};
use super::memory;
use crate::checkpoint::{CheckpointError, read_bounded};
use crate::digest::Sha256;
use crate::format::limits::{MAX_ENVELOPE_BYTES, MAX_LABEL_BYTES};
use crate::format::{Container, Timestamp};
use crate::patch::verify::verify;
use crate::patch::{MAX_FILE_BYTES, PatchError, VerifiedPatch};
use crate::trust::{Policy, PublicKey, SeenError, TrustError, read_public_key};

/// The longest trust file read, in bytes: a thousand people with three keys each. TOML takes 75 times that in memory.
const MAX_TRUST_BYTES: u64 = 512 << 10;

/// Whose signatures count.
#[derive(clap::Args)]
pub(super) struct Keys {
    /// Trust this public key (PEM, OpenSSH ssh-ed25519 or minisign); may be repeated, and a signature by any is enough.
    #[arg(long, value_name = "PUB")]
    key: Vec<PathBuf>,
    /// Trust the people that this file names, on the conditions that it states.
    #[arg(long, value_name = "FILE", conflicts_with = "key")]
    trust: Option<PathBuf>,
    /// Look at keys and status feeds as of this time (like 2026-11-24T03:41:00Z) instead of now.
    #[arg(long, value_name = "TIME")]
    at: Option<Timestamp>,
}

/// Whose signatures count, and what else decides whether a patch may come into use.
#[derive(clap::Args)]
pub(super) struct Trusted {
    #[command(flatten)]
    keys: Keys,
    /// Refuse what this status feed (a signed local file) calls withdrawn, compromised or superseded.
    #[arg(long, value_name = "FEED")]
    status_feed: Option<PathBuf>,
    /// Refuse what is older than what was seen before, and remember what is seen, in this file.
    #[arg(long, value_name = "FILE")]
    seen: Option<PathBuf>,
    /// Accept a patch that the status feed calls superseded.
    #[arg(long, requires = "status_feed")]
    allow_superseded: bool,
}

impl Keys {
    /// The policy, if a key or trust file was given.
    pub(super) fn policy(&self) -> Result<Option<Policy>, Failure> {
        let policy = match &self.trust {
            Some(path) => read_trust_file(path)?,
            None if self.key.is_empty() => return Ok(None),
            None => {
                let mut keys: Vec<(String, PublicKey)> = Vec::new();
                for path in &self.key {
                    let key = read_public_key(path)?;
                    // The same key under another name is the same person.
                    if keys.iter().all(|(_, known)| *known != key) {
                        keys.push((name_of(path), key));
                    }
                }
                Policy::from_keys(keys).map_err(|error| Failure::new(Exit::Input, &error))?
            }
        };
        Ok(Some(match self.at {
            Some(at) => policy.at(at),
            None => policy,
        }))
    }
}

impl Trusted {
    /// The policy, if a key or trust file was given, with all that it is to know.
    pub(super) fn policy(&self) -> Result<Option<Policy>, Failure> {
        let Some(policy) = self.keys.policy()? else {
            return match self.status_feed.is_some() || self.seen.is_some() {
                true => Err(no_key("no key to check the status feed or the patch with")),
                false => Ok(None),
            };
        };
        let policy = match &self.seen {
            None => self.informed(policy)?,
            // Written before anything else is, so that nothing is done that could then not be remembered. A feed that is
            // believed is remembered whatever becomes of the patch: else an older issue would do next time.
            Some(path) => memory::update(path, |seen| {
                let policy = self.informed(policy.remembering(seen.clone()))?;
                policy.status_feed().into_iter().for_each(|feed| seen.note_feed(feed));
                Ok(policy)
            })?,
        };
        Ok(Some(if self.allow_superseded { policy.allowing_superseded() } else { policy }))
    }

    /// The same policy, knowing what the status feed says, if one was given.
    fn informed(&self, policy: Policy) -> Result<Policy, Failure> {
        let Some(path) = &self.status_feed else { return Ok(policy) };
        let bytes = read_input(path, MAX_ENVELOPE_BYTES as u64, Exit::Input)?;
        policy.knowing(&bytes).map_err(|error| feed_failure(path, &error))
    }

    /// Reads a patch, checks that it is trusted, and remembers that it was.
    pub(super) fn verified(&self, path: &Path) -> Result<VerifiedPatch, Failure> {
        let policy = self.policy()?.ok_or_else(|| no_key("no key to check the patch's signature with"))?;
        let patch = verify(read_patch(path)?, &policy)?;
        let contents = patch.contents();
        self.remember(&contents.manifest.series, contents.manifest.sequence, contents.id())?;
        Ok(patch)
    }

    /// Remembers that this patch was believed, if `--seen` says where. What another process remembered meanwhile counts.
    pub(super) fn remember(&self, series: &str, number: u64, patch: Sha256) -> Result<(), Failure> {
        let Some(path) = &self.seen else { return Ok(()) };
        memory::update(path, |seen| {
            seen.check_patch(series, number, patch).map_err(|error| PatchError::Trust(error.into()))?;
            seen.note_patch(series, number, patch);
            Ok(())
        })
    }
}

/// What the holder of a key file is called: the path, as far as it can be shown on a line.
fn name_of(path: &Path) -> String {
    let name = path.display().to_string().replace(char::is_control, "?");
    let from = name.len().saturating_sub(MAX_LABEL_BYTES);
    name.get(name.ceil_char_boundary(from)..).unwrap_or_default().to_owned()
}

/// Reads a trust file.
pub(super) fn read_trust_file(path: &Path) -> Result<Policy, Failure> {
    parse_trust_file(path, &read_text(path)?)
}

/// Reads the text of a trust file; `path` is for the error.
pub(super) fn parse_trust_file(path: &Path, text: &str) -> Result<Policy, Failure> {
    Policy::from_trust_file(text).map_err(|error| unusable(path, &error))
}

/// Reads a trust file's text.
pub(super) fn read_text(path: &Path) -> Result<String, Failure> {
    let bytes = read_input(path, MAX_TRUST_BYTES, Exit::Input)?;
    String::from_utf8(bytes).map_err(|error| unusable(path, &error))
}

/// A status feed that does not count: nobody may be believed on the strength of it.
pub(super) fn feed_failure(path: &Path, error: &TrustError) -> Failure {
    let exit = match error {
        TrustError::Envelope(_) | TrustError::Feed(_) => Exit::Input,
        _ => Exit::Untrusted,
    };
    let failure = Failure::message(exit, format!("{}: {error}", path.display()));
    match error {
        TrustError::Seen(error) => failure.hint(hint_of_seen(error)),
        TrustError::ExpiredFeed { .. } => failure.hint("get the newest feed from the publisher"),
        TrustError::Role { .. } => failure.hint("a status feed counts if people with the role `release` signed it"),
        _ => failure,
    }
}

/// What to do when something is not what was seen before.
pub(super) fn hint_of_seen(error: &SeenError) -> &'static str {
    match error {
        SeenError::Rollback { .. } => {
            "get the newest one from the publisher; if whoever signed the later number is trusted no more, take its entry \
             out of the --seen file"
        }
        SeenError::Twice { .. } => {
            "ask the publisher which of the two is meant; publishers who use one name need a --seen file each"
        }
        SeenError::Rewritten { .. } => "ask the publisher why; do not rely on this feed until you know",
    }
}

/// Reads a patch file, at most as long as one may be.
pub(super) fn read_patch(path: &Path) -> Result<Vec<u8>, Failure> {
    read_input(path, MAX_FILE_BYTES, Exit::Patch)
}

/// The id of a patch that is given by it, or by its file.
pub(super) fn patch_id(text: &str) -> Result<Sha256, Failure> {
    if let Ok(id) = text.parse() {
        return Ok(id);
    }
    let bytes = read_patch(Path::new(text))?;
    let container = Container::parse(&bytes).map_err(|error| {
        Failure::message(Exit::Patch, format!("{text}: {error}")).hint("give a patch file, or the 64 digits of its id")
    })?;
    Ok(container.patch_id())
}

/// Reads a file that is given on the command line; `exit` is for one that cannot be what it should.
pub(super) fn read_input(path: &Path, limit: u64, exit: Exit) -> Result<Vec<u8>, Failure> {
    read_bounded(path, limit).map_err(|error| match error {
        CheckpointError::TooLarge { .. } => Failure::new(exit, &error),
        _ => Failure::new(Exit::Failed, &error),
    })
}

pub(super) fn no_key(what: &str) -> Failure {
    Failure::message(Exit::Untrusted, what)
        .hint("give the publisher's public key with --key, or a trust file with --trust")
}

fn unusable(path: &Path, error: &dyn std::error::Error) -> Failure {
    Failure::message(Exit::Input, format!("{}: {error}", path.display()))
}
