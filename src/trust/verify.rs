//! The only way from a container to a [`Verified`] manifest, and from an envelope to a status feed that counts.

use std::collections::BTreeSet;
use std::ops::Deref;

use crate::digest::Sha256;
use crate::format::container::{Container, ContainerError, ReadError, SignatureRecord, signing_input};
use crate::format::manifest::{Manifest, ManifestError};
use crate::format::{Envelope, EnvelopeError, FeedEntry, PatchStatus, StatusFeed, StatusFeedError, Timestamp};
use crate::trust::policy::{Person, Policy, Role};
use crate::trust::seen::SeenError;

/// Why a patch or a status feed is not believed.
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
    #[error("signature of {person:?} (key {key_id}) is wrong: what it is for was changed, or never signed by that key")]
    Wrong {
        /// Whose key it names.
        person: String,
        /// The key's id.
        key_id: Sha256,
    },
    /// Too few people.
    #[error(
        "signature: expected {threshold} different trusted people, found {}{}",
        found(people),
        uncounted(passed_over)
    )]
    Threshold {
        /// People that the policy asks for.
        threshold: usize,
        /// People whose signatures are right and count.
        people: Vec<String>,
        /// People whose signatures are right and do not count, and why.
        passed_over: Vec<PassedOver>,
    },
    /// Too few people with a role.
    #[error(
        "signature: expected {expected} different people with the role {role}, found {}{}",
        found(people),
        uncounted(passed_over)
    )]
    Role {
        /// The role.
        role: Role,
        /// People that the policy asks for.
        expected: usize,
        /// People with the role whose signatures are right and count.
        people: Vec<String>,
        /// People whose signatures are right and do not count, and why.
        passed_over: Vec<PassedOver>,
    },
    /// What is rightly signed breaks a rule of manifests.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// What is rightly signed contradicts the header.
    #[error(transparent)]
    Contradiction(#[from] ContainerError),
    /// Older than the trust file asks for.
    #[error("series {series:?}: expected number {minimum} or later, as the trust file says, found {found}")]
    Outdated {
        /// The series.
        series: String,
        /// The least number that is believed.
        minimum: u64,
        /// The patch's.
        found: u64,
    },
    /// Older than what was seen before, or another with the same number.
    #[error(transparent)]
    Seen(#[from] SeenError),
    /// The status feed says that the patch is not to be used.
    #[error("status: {} since {}{}", entry.status.as_str(), entry.since, because(entry))]
    Status {
        /// What it says.
        entry: FeedEntry,
    },
    /// The trust file asks for a status feed and none is at hand.
    #[error("status: expected the status feed {feed:?}, as the trust file says, found none")]
    NoStatusFeed {
        /// Its name.
        feed: String,
    },
    /// The status feed is another one.
    #[error("status feed: expected {expected:?}, as the trust file says, found {found:?}")]
    OtherFeed {
        /// The name in the trust file.
        expected: String,
        /// The feed's.
        found: String,
    },
    /// The status feed proves nothing any more.
    #[error(
        "status feed {feed:?}: number {number} was good until {expires}, and it is {at}: a newer one is being kept back, or is late"
    )]
    ExpiredFeed {
        /// Its name.
        feed: String,
        /// Its number.
        number: u64,
        /// Its end.
        expires: Timestamp,
        /// The reader's time.
        at: Timestamp,
    },
    /// The bytes are no status feed.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// What is rightly signed is no status feed.
    #[error(transparent)]
    Feed(#[from] StatusFeedError),
}

/// A trusted person whose signature is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signer {
    /// The name by which the policy knows them; from nowhere else.
    pub person: String,
    /// What their signature stands for.
    pub roles: BTreeSet<Role>,
    /// The key they used.
    pub key_id: Sha256,
}

/// A right signature of a trusted person that does not count here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PassedOver {
    /// The name by which the policy knows them.
    pub person: String,
    /// The key they used.
    pub key_id: Sha256,
    /// Why not.
    pub reason: String,
}

/// A value read from bytes that enough trusted people signed. Made by [`verify`] alone.
#[derive(Debug, Clone)]
pub struct Verified<T> {
    value: T,
    patch_id: Sha256,
    signatures: Signatures,
}

impl<T> Verified<T> {
    /// SHA-256 of the bytes that were signed.
    pub fn patch_id(&self) -> Sha256 {
        self.patch_id
    }

    /// The signatures, by what they are worth.
    pub fn signatures(&self) -> &Signatures {
        &self.signatures
    }

    /// Whose signatures are right and count, in the order of the file.
    pub fn signers(&self) -> &[Signer] {
        &self.signatures.signers
    }

    /// Key ids of signatures that say nothing here: of unknown keys or algorithms. Not checked.
    pub fn strangers(&self) -> &[Sha256] {
        &self.signatures.strangers
    }
}

impl<T> Deref for Verified<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// Checks signatures over the manifest's bytes against `policy`, and only then reads those bytes; then whether what
/// they say is current, as far as the policy's conditions, status feed and memory tell.
///
/// # Errors
/// In this order: a status feed that is not current; a wrong signature under a trusted key; too few trusted people; a
/// manifest that breaks a rule; too few people for its series, or with a role; a number that is too low; a status that
/// forbids using it.
pub fn verify(container: &Container<'_>, policy: &Policy) -> Result<Verified<Manifest>, TrustError> {
    policy.check_feed()?;
    let mut signatures = Signatures::sort(&container.signing_input(), container.signatures(), policy)?;
    signatures.require(policy, policy.conditions().threshold)?;
    let manifest = container.read_manifest().map_err(|error| match error {
        ReadError::Manifest(error) => TrustError::Manifest(error),
        ReadError::Container(error) => TrustError::Contradiction(error),
    })?;
    signatures.keep_those_for(&manifest.series, policy);
    signatures.require(policy, policy.conditions().threshold)?;
    for (role, count) in &policy.conditions().require {
        signatures.require_role(*role, *count)?;
    }
    let patch_id = container.patch_id();
    check_current(&manifest, patch_id, policy)?;
    Ok(Verified { value: manifest, patch_id, signatures })
}

fn check_current(manifest: &Manifest, patch_id: Sha256, policy: &Policy) -> Result<(), TrustError> {
    let (series, found) = (&manifest.series, manifest.sequence);
    if let Some(minimum) = policy.conditions().minimum.get(series).copied().filter(|minimum| found < *minimum) {
        return Err(TrustError::Outdated { series: series.clone(), minimum, found });
    }
    if let Some(seen) = policy.seen() {
        seen.check_patch(series, found, patch_id)?;
    }
    let Some(feed) = policy.status_feed() else {
        return match &policy.conditions().status {
            None => Ok(()),
            Some(rule) => Err(TrustError::NoStatusFeed { feed: rule.feed.clone() }),
        };
    };
    match feed.status_of(patch_id) {
        Some(entry) if entry.status == PatchStatus::Superseded && policy.allows_superseded() => Ok(()),
        Some(entry) if entry.status > PatchStatus::Active => Err(TrustError::Status { entry: entry.clone() }),
        _ => Ok(()),
    }
}

impl Policy {
    /// Reads a status feed: a DSSE envelope, signed by people with the role `release`. Whether it is current is not
    /// looked at: see [`Policy::knowing`].
    ///
    /// # Errors
    /// Not an envelope; a wrong signature under a trusted key; too few people with the role; a feed that breaks a rule,
    /// or has another name than the trust file says.
    pub fn read_status_feed(&self, envelope: &[u8]) -> Result<StatusFeed, TrustError> {
        let envelope = Envelope::parse(envelope)?;
        let message = signing_input(&envelope.statement);
        let signatures = Signatures::sort(&message, &envelope.signatures, self)?;
        let rule = self.conditions().status.as_ref();
        signatures.require(self, 1)?;
        signatures.require_role(Role::Release, rule.map_or(1, |rule| rule.threshold))?;
        let feed = StatusFeed::parse(&envelope.statement)?;
        match rule.filter(|rule| rule.feed != feed.feed) {
            Some(rule) => Err(TrustError::OtherFeed { expected: rule.feed.clone(), found: feed.feed }),
            None => Ok(feed),
        }
    }

    /// Sorts an envelope's signatures by what they are worth, however few they are.
    ///
    /// # Errors
    /// A wrong one under a key of this policy.
    pub fn check_signatures(&self, envelope: &Envelope) -> Result<Signatures, TrustError> {
        Signatures::sort(&signing_input(&envelope.statement), &envelope.signatures, self)
    }

    /// The same policy, knowing what a status feed says.
    ///
    /// # Errors
    /// Those of [`Policy::read_status_feed`]; a feed that has expired, or is older than one that was seen before.
    pub fn knowing(mut self, envelope: &[u8]) -> Result<Self, TrustError> {
        self.feed = Some(self.read_status_feed(envelope)?);
        self.check_feed()?;
        Ok(self)
    }

    /// Whether the feed that is known is current; asked again whenever it is used, as time and memory may be set later.
    fn check_feed(&self) -> Result<(), TrustError> {
        let Some(feed) = self.status_feed() else { return Ok(()) };
        if feed.expires <= self.time() {
            let StatusFeed { feed, number, expires, .. } = feed.clone();
            return Err(TrustError::ExpiredFeed { feed, number, expires, at: self.time() });
        }
        self.seen().map_or(Ok(()), |seen| seen.check_feed(feed)).map_err(TrustError::from)
    }
}

/// Signatures sorted by what they are worth to a policy.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Signatures {
    /// Right, and counting, in the order of the file.
    pub signers: Vec<Signer>,
    /// Right, and not counting.
    pub passed_over: Vec<PassedOver>,
    /// Key ids of signatures that say nothing here: of unknown keys or algorithms. Not checked.
    pub strangers: Vec<Sha256>,
}

impl Signatures {
    /// A wrong signature under a trusted key is an error whatever the others are: somebody changed something.
    fn sort(message: &[u8], records: &[SignatureRecord], policy: &Policy) -> Result<Self, TrustError> {
        let mut sorted = Self::default();
        for record in records {
            let key_id = record.key_id;
            let known = policy.find(key_id).filter(|_| record.algorithm == SignatureRecord::ED25519);
            let Some((Person { name, roles, .. }, key)) = known else {
                sorted.strangers.push(key_id);
                continue;
            };
            if !key.key.verifies(message, &record.signature) {
                return Err(TrustError::Wrong { person: name.clone(), key_id });
            }
            match key.is_out_of_time(policy.time()) {
                None => sorted.signers.push(Signer { person: name.clone(), roles: roles.clone(), key_id }),
                Some(reason) => sorted.passed_over.push(PassedOver { person: name.clone(), key_id, reason }),
            }
        }
        Ok(sorted)
    }

    /// Passes over people who may not sign patches of a series.
    fn keep_those_for(&mut self, series: &str, policy: &Policy) {
        let may = |name: &str| policy.people().iter().any(|person| person.name == name && person.may_sign(series));
        let (kept, outside): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.signers).into_iter().partition(|one| may(&one.person));
        self.signers = kept;
        let reason = format!("may not sign series {series:?}");
        let pass = |Signer { person, key_id, .. }: Signer| PassedOver { person, key_id, reason: reason.clone() };
        self.passed_over.extend(outside.into_iter().map(pass));
    }

    fn people(&self, counts: impl Fn(&Signer) -> bool) -> Vec<String> {
        let names: BTreeSet<&str> =
            self.signers.iter().filter(|signer| counts(signer)).map(|signer| signer.person.as_str()).collect();
        names.into_iter().map(str::to_owned).collect()
    }

    fn require(&self, policy: &Policy, threshold: usize) -> Result<(), TrustError> {
        let people = self.people(|_| true);
        if people.len() >= threshold {
            return Ok(());
        }
        let nobody = people.is_empty() && self.passed_over.is_empty();
        Err(match (nobody, self.strangers.is_empty()) {
            (true, true) => TrustError::Unsigned { threshold },
            (true, false) => {
                let expected = |(person, key): (&Person, &crate::trust::TrustedKey)| {
                    format!("{:?} (key {})", person.name, key.key.id().short())
                };
                TrustError::Untrusted {
                    expected: policy.keys().map(expected).collect(),
                    found: self.strangers.iter().map(|id| format!("key {}", id.short())).collect(),
                }
            }
            (false, _) => TrustError::Threshold { threshold, people, passed_over: self.passed_over.clone() },
        })
    }

    fn require_role(&self, role: Role, expected: usize) -> Result<(), TrustError> {
        let people = self.people(|signer| signer.roles.contains(&role));
        match people.len() >= expected {
            true => Ok(()),
            false => Err(TrustError::Role { role, expected, people, passed_over: self.passed_over.clone() }),
        }
    }
}

/// A list for people, cut after eight.
fn list(items: &[String]) -> String {
    let shown: Vec<&str> = items.iter().take(8).map(String::as_str).collect();
    let more = items.len().saturating_sub(shown.len());
    if more == 0 { shown.join(", ") } else { format!("{} and {more} more", shown.join(", ")) }
}

fn found(people: &[String]) -> String {
    match people.is_empty() {
        true => "none".to_owned(),
        false => list(&people.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>()),
    }
}

fn uncounted(passed_over: &[PassedOver]) -> String {
    let show =
        |one: &PassedOver| format!("{:?} (key {}) is not counted: {}", one.person, one.key_id.short(), one.reason);
    match passed_over.is_empty() {
        true => String::new(),
        false => format!("; {}", list(&passed_over.iter().map(show).collect::<Vec<_>>())),
    }
}

fn because(entry: &FeedEntry) -> String {
    let by = entry.by.map(|by| format!(", by {by}")).unwrap_or_default();
    if entry.reason.is_empty() { by } else { format!("{by}: {}", entry.reason) }
}
