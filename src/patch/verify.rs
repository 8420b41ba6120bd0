//! Verify: what is proven about a patch, and what is not.

use serde::Serialize;

use super::bind::{farthest, is_other_weights};
use super::{Contents, Parts, PatchError};
use crate::checkpoint::{BindError, BoundBase, Checkpoint, Depth, Distance, Progress, Side, distances};
use crate::digest::Sha256;
use crate::format::{Container, Kind, Manifest, PatchStatus, Payload};
use crate::trust::{self, Policy, Signatures, Signer, TrustError, Verified};

/// A patch that a trusted key signed, its payload read. Only [`verify`] makes one.
#[derive(Debug, Clone)]
pub struct VerifiedPatch {
    contents: Contents,
    signatures: Signatures,
}

impl VerifiedPatch {
    fn new(bytes: Vec<u8>, verified: &Verified<Manifest>, parts: Parts) -> Self {
        let signatures = verified.signatures().clone();
        Self { contents: Contents::new(bytes, Manifest::clone(verified), parts), signatures }
    }

    /// The patch.
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// Lets go of the residual, which takes as much memory as the touched rows and is of use on the exact base only.
    pub fn drop_residual(&mut self) {
        self.contents.residual = None;
    }

    /// Whose signatures hold and count.
    pub fn signers(&self) -> &[Signer] {
        &self.signatures.signers
    }
}

/// Checks signatures and the policy's conditions first, then reads the payload that they vouch for.
///
/// # Errors
/// A malformed container, no signature that the policy trusts, a payload that is not what was signed.
pub fn verify(bytes: Vec<u8>, policy: &Policy) -> Result<VerifiedPatch, PatchError> {
    let container = Container::parse(&bytes)?;
    let verified = trust::verify(&container, policy)?;
    let parts = Parts::of(&container, &verified, Payload::read)?;
    Ok(VerifiedPatch::new(bytes, &verified, parts))
}

/// The outcome of an examination; it decides the exit code.
#[must_use = "a patch is good for use only if this says so"]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Signed by a trusted key, whole, understood, and for this base if one was given.
    Trusted,
    /// Too few trusted people signed it, or none were given to check against.
    Untrusted,
    /// Signed, but older than one that was asked for or seen before, or superseded.
    Outdated,
    /// Signed, but the status feed says that it is withdrawn or compromised.
    Withdrawn,
    /// Signed, but the status feed that the trust file asks for is not at hand.
    StatusUnknown,
    /// Trusted, but it needs what this version does not know.
    NotUnderstood,
    /// Trusted, but the checkpoint given is another one.
    WrongBase,
    /// Trusted, but the checkpoint given holds weights that are not numbers.
    DamagedBase,
}

/// What an examination found.
#[derive(Debug, Clone, Serialize)]
pub struct Examination {
    /// The outcome.
    pub verdict: Verdict,
    /// The patch's id.
    pub patch: Sha256,
    /// Its name; absent where its manifest was not read because nobody vouches for it.
    pub name: Option<String>,
    /// Its series and number there.
    pub series: Option<(String, u64)>,
    /// What was looked at, in order.
    pub claims: Vec<Claim>,
    /// What no verification of a file can prove.
    pub never_proven: Vec<&'static str>,
}

/// One thing that was looked at, or was not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Claim {
    /// What it is about.
    pub about: &'static str,
    /// How it stands.
    pub standing: Standing,
    /// In words.
    pub detail: String,
}

/// How a claim stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// Checked and true.
    Proven,
    /// Checked and false.
    Failed,
    /// Not checked.
    Unchecked,
}

/// What stays open however many signatures hold.
const NEVER_PROVEN: [&str; 4] = [
    "that the patch makes the model safe, or leaves it useful",
    "that what it says about its making is true: the signer says so",
    "that there is no newer one, or word of its withdrawal, that did not get here",
    "anything about tensors that it does not touch: `nestpatch audit` compares those",
];

const NO_RESIDUAL: &str = "carries no residual; apply keeps what revert needs";

/// Examines a patch as far as the given key and checkpoint allow, and lists what was proven and what was not.
///
/// # Errors
/// A malformed patch, or a checkpoint that cannot be read. Missing trust and a wrong base are findings, not errors.
pub fn examine(
    bytes: Vec<u8>,
    policy: Option<&Policy>,
    checkpoint: Option<&Checkpoint>,
    progress: &dyn Progress,
) -> Result<Examination, PatchError> {
    let container = Container::parse(&bytes)?;
    let id = container.patch_id();
    let Some(policy) = policy else {
        return Ok(Examination::unsigned(&Contents::read(bytes)?));
    };
    let verified = match trust::verify(&container, policy) {
        Err(error) if !is_malformed(&error) => return Ok(Examination::distrusted(&container, &error)),
        verified => verified?,
    };
    match Parts::of(&container, &verified, Payload::read) {
        Err(PatchError::NotUnderstood { what }) => Ok(Examination::not_understood(id, &what)),
        parts => {
            let parts = parts?;
            Examination::trusted(&VerifiedPatch::new(bytes, &verified, parts), policy, checkpoint, progress)
        }
    }
}

/// Whether rightly signed bytes break a rule of the format, which is no question of trust.
pub fn is_malformed(error: &TrustError) -> bool {
    matches!(error, TrustError::Manifest(_) | TrustError::Contradiction(_))
}

impl Examination {
    fn new(verdict: Verdict, patch: Sha256, manifest: Option<&Manifest>) -> Self {
        let name = manifest.map(|manifest| manifest.name.clone());
        let series = manifest.map(|manifest| (manifest.series.clone(), manifest.sequence));
        Self { verdict, patch, name, series, claims: Vec::new(), never_proven: NEVER_PROVEN.to_vec() }
    }

    fn claim(&mut self, about: &'static str, standing: Standing, detail: impl Into<String>) {
        self.claims.push(Claim { about, standing, detail: detail.into() });
    }

    fn unsigned(contents: &Contents) -> Self {
        let mut found = Self::new(Verdict::Untrusted, contents.id(), Some(&contents.manifest));
        let claimed = contents.claimed_signers().len();
        found.claim("signature", Standing::Unchecked, format!("{claimed} in the file, no key or trust file given"));
        let sections = contents.manifest.sections.len();
        let detail = format!("{sections} sections match their digests as stored, all but a residual also decoded");
        found.claim("content", Standing::Proven, detail);
        found.understood(contents);
        found.claim(
            "revert",
            Standing::Unchecked,
            match contents.manifest.section(&Kind::Residual) {
                Some(_) => "carries a residual, not decoded, as nobody vouches for it",
                None => NO_RESIDUAL,
            },
        );
        found.claim("base", Standing::Unchecked, "not compared: that is done for a trusted patch only");
        found
    }

    fn distrusted(container: &Container<'_>, error: &TrustError) -> Self {
        let (verdict, about) = match error {
            TrustError::Outdated { .. } | TrustError::Seen(_) => (Verdict::Outdated, "current"),
            TrustError::Status { entry } if entry.status == PatchStatus::Superseded => (Verdict::Outdated, "status"),
            TrustError::Status { .. } => (Verdict::Withdrawn, "status"),
            TrustError::NoStatusFeed { .. } => (Verdict::StatusUnknown, "status"),
            _ => (Verdict::Untrusted, "signature"),
        };
        // What a manifest says is shown only if as many people signed it as it takes.
        let manifest = (about != "signature").then(|| container.read_manifest().ok()).flatten();
        let mut found = Self::new(verdict, container.patch_id(), manifest.as_ref());
        found.claim("container", Standing::Proven, "whole, every part where the header says");
        if about != "signature" {
            found.claim("signature", Standing::Proven, "valid, by as many trusted people as it takes");
        }
        // The claim is named after its subject already.
        let detail = error.to_string();
        found.claim(about, Standing::Failed, detail.strip_prefix(&format!("{about}: ")).unwrap_or(&detail));
        found.claim("content", Standing::Unchecked, "not decoded, as it is not to be used");
        found
    }

    fn not_understood(id: Sha256, what: &[String]) -> Self {
        let mut found = Self::new(Verdict::NotUnderstood, id, None);
        found.claim("container", Standing::Proven, "whole, every part where the header says");
        found.claim("signature", Standing::Proven, "valid, by as many trusted people as it takes");
        found.claim("content", Standing::Unchecked, "as it was signed, but not decoded");
        found.claim("understood", Standing::Failed, what.join("; "));
        found
    }

    fn trusted(
        patch: &VerifiedPatch,
        policy: &Policy,
        checkpoint: Option<&Checkpoint>,
        progress: &dyn Progress,
    ) -> Result<Self, PatchError> {
        let contents = patch.contents();
        let mut found = Self::new(Verdict::Trusted, contents.id(), Some(&contents.manifest));
        found.signatures(&patch.signatures);
        found.current(&contents.manifest, policy);
        found.status(contents.id(), policy);
        found.contents(contents);
        match checkpoint {
            None => found.claim("base", Standing::Unchecked, "no checkpoint given"),
            Some(checkpoint) => found.base(contents, checkpoint, progress)?,
        }
        Ok(found)
    }

    fn signatures(&mut self, signatures: &Signatures) {
        let signer = |one: &Signer| {
            let roles: Vec<&str> = one.roles.iter().map(|role| role.as_str()).collect();
            // A key given by itself stands for anything; only a trust file says more.
            let roles = if (1..3).contains(&roles.len()) { format!("{}, ", roles.join(", ")) } else { String::new() };
            format!("{} ({roles}key {})", one.person, one.key_id.short())
        };
        let signers = signatures.signers.iter().map(signer).collect::<Vec<_>>();
        self.claim("signature", Standing::Proven, format!("valid, by {}", signers.join(", ")));
        for one in &signatures.passed_over {
            let detail = format!("valid, by {} (key {}), not counted: {}", one.person, one.key_id.short(), one.reason);
            self.claim("signature", Standing::Unchecked, detail);
        }
        if !signatures.strangers.is_empty() {
            let count = signatures.strangers.len();
            self.claim("signature", Standing::Unchecked, format!("{count} more, by keys that nobody here trusts"));
        }
    }

    fn current(&mut self, manifest: &Manifest, policy: &Policy) {
        let number = manifest.sequence;
        match policy.conditions().minimum.get(&manifest.series) {
            Some(minimum) => {
                let detail = format!("number {number}, and the trust file asks for {minimum} or later");
                self.claim("current", Standing::Proven, detail);
            }
            None if policy.seen().is_none() => {
                self.claim("current", Standing::Unchecked, "no memory given of what was seen before");
            }
            None => {}
        }
        if policy.seen().is_some() {
            self.claim("current", Standing::Proven, format!("number {number}, and none later was seen before"));
        }
    }

    fn status(&mut self, patch: Sha256, policy: &Policy) {
        let Some(feed) = policy.status_feed() else {
            return self.claim("status", Standing::Unchecked, "no status feed given");
        };
        let of = format!("status feed {:?}, number {}, good until {}", feed.feed, feed.number, feed.expires);
        match feed.status_of(patch) {
            None => self.claim("status", Standing::Proven, format!("nothing against it in {of}")),
            Some(entry) => {
                let detail = format!("{} since {}, says {of}", entry.status.as_str(), entry.since);
                self.claim("status", Standing::Proven, detail);
            }
        }
    }

    /// What holds of signed content.
    fn contents(&mut self, contents: &Contents) {
        let sections = contents.manifest.sections.len();
        self.claim("content", Standing::Proven, format!("{sections} sections match their digests, stored and decoded"));
        self.understood(contents);
        match contents.residual {
            Some(_) => self.claim("revert", Standing::Proven, "carries a residual for every touched row"),
            None => self.claim("revert", Standing::Unchecked, NO_RESIDUAL),
        }
    }

    fn understood(&mut self, contents: &Contents) {
        let unknown = contents.manifest.not_understood();
        if unknown.is_empty() {
            self.claim("understood", Standing::Proven, "nothing in it that this version must know and does not");
        } else {
            self.claim("understood", Standing::Failed, unknown.join("; "));
            self.verdict = if self.verdict == Verdict::Trusted { Verdict::NotUnderstood } else { self.verdict };
        }
    }

    fn base(
        &mut self,
        contents: &Contents,
        checkpoint: &Checkpoint,
        progress: &dyn Progress,
    ) -> Result<(), PatchError> {
        let Contents { manifest, edits, .. } = contents;
        match BoundBase::exact(checkpoint, manifest, edits, Side::Base, Depth::Tensors, progress) {
            Ok(_) => {
                let detail = format!("{} touched tensors are the base's, byte for byte", edits.len());
                self.claim("base", Standing::Proven, detail);
                self.claim("result", Standing::Unchecked, "`apply --dry-run` works out its digests");
            }
            Err(error @ BindError::Mismatch { .. }) => {
                self.claim("base", Standing::Failed, error.to_string());
                self.verdict = if error.is_damage() { Verdict::DamagedBase } else { Verdict::WrongBase };
                if is_other_weights(&error) {
                    self.descendant(contents, checkpoint)?;
                }
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// How far another base is from the exact one, where the publisher left a sketch to tell.
    fn descendant(&mut self, contents: &Contents, checkpoint: &Checkpoint) -> Result<(), PatchError> {
        let Some(sketch) = &contents.sketch else { return Ok(()) };
        let distances = distances(checkpoint, &contents.edits, sketch)?;
        if let Some(far) = farthest(&distances) {
            let within = sketch.tolerance().permits(far.distance);
            let standing = if within { Standing::Proven } else { Standing::Failed };
            let (limit, Distance { tensor, distance, .. }) = (sketch.tolerance(), far);
            let detail = format!("at most about {distance:.4} from the base ({tensor}); its publisher permits {limit}");
            self.claim("descendant", standing, detail);
        }
        Ok(())
    }
}
