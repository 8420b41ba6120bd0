//! Verify: what is proven about a patch, and what is not.

use serde::Serialize;

use super::{Contents, Parts, PatchError};
use crate::checkpoint::{BindError, BoundBase, Checkpoint, Progress, Side};
use crate::digest::Sha256;
use crate::format::{Container, Manifest};
use crate::trust::{self, Policy, Signer, TrustError};

/// A patch that a trusted key signed, its payload read. Only [`verify`] makes one.
#[derive(Debug, Clone)]
pub struct VerifiedPatch {
    contents: Contents,
    signers: Vec<Signer>,
}

impl VerifiedPatch {
    /// The patch.
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// Whose signatures hold.
    pub fn signers(&self) -> &[Signer] {
        &self.signers
    }
}

/// Checks signatures first, then reads the payload that they vouch for.
///
/// # Errors
/// A malformed container, no signature that the policy trusts, a payload that is not what was signed.
pub fn verify(bytes: Vec<u8>, policy: &Policy) -> Result<VerifiedPatch, PatchError> {
    let container = Container::parse(&bytes)?;
    let verified = trust::verify(&container, policy)?;
    let (manifest, signers) = (Manifest::clone(&verified), verified.signers().to_vec());
    let parts = Parts::of(&container, &manifest)?;
    Ok(VerifiedPatch { contents: Contents::new(bytes, manifest, parts), signers })
}

/// The outcome of an examination; it decides the exit code.
#[must_use = "a patch is good for use only if this says so"]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Signed by a trusted key, whole, understood, and for this base if one was given.
    Trusted,
    /// No trusted key signed it, or none was given to check against.
    Untrusted,
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
    "that it is the newest of its series, or has not been withdrawn",
    "anything about tensors that it does not touch",
];

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
    let id = Container::parse(&bytes)?.patch_id();
    let Some(policy) = policy else {
        return Ok(Examination::unsigned(&Contents::read(bytes)?));
    };
    match verify(bytes, policy) {
        Err(PatchError::Trust(error)) if !is_malformed(&error) => Ok(Examination::distrusted(id, &error)),
        Err(error) => Err(error),
        Ok(patch) => Examination::trusted(&patch, checkpoint, progress),
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
        found.contents(contents);
        found.claim("base", Standing::Unchecked, "not compared: that is done for a trusted patch only");
        found
    }

    fn distrusted(id: Sha256, error: &TrustError) -> Self {
        let mut found = Self::new(Verdict::Untrusted, id, None);
        found.claim("container", Standing::Proven, "whole, every part where the header says");
        // The claim is named after its subject already.
        let detail = error.to_string();
        found.claim("signature", Standing::Failed, detail.strip_prefix("signature: ").unwrap_or(&detail));
        found.claim("content", Standing::Unchecked, "not decoded, as nobody vouches for it");
        found
    }

    fn trusted(
        patch: &VerifiedPatch,
        checkpoint: Option<&Checkpoint>,
        progress: &dyn Progress,
    ) -> Result<Self, PatchError> {
        let contents = patch.contents();
        let mut found = Self::new(Verdict::Trusted, contents.id(), Some(&contents.manifest));
        let signers = patch.signers().iter().map(|one| format!("{} (key {})", one.person, one.key_id.short()));
        found.claim("signature", Standing::Proven, format!("valid, by {}", signers.collect::<Vec<_>>().join(", ")));
        found.contents(contents);
        match checkpoint {
            None => found.claim("base", Standing::Unchecked, "no checkpoint given"),
            Some(checkpoint) => found.base(contents, checkpoint, progress)?,
        }
        Ok(found)
    }

    /// What holds of the content, signed or not.
    fn contents(&mut self, contents: &Contents) {
        let sections = contents.manifest.sections.len();
        self.claim("content", Standing::Proven, format!("{sections} sections match their digests, stored and decoded"));
        let unknown = contents.manifest.not_understood();
        if unknown.is_empty() {
            self.claim("understood", Standing::Proven, "nothing in it that this version must know and does not");
        } else {
            self.claim("understood", Standing::Failed, unknown.join("; "));
            self.verdict = if self.verdict == Verdict::Trusted { Verdict::NotUnderstood } else { self.verdict };
        }
        match contents.residual {
            Some(_) => self.claim("revert", Standing::Proven, "carries a residual for every touched row"),
            None => self.claim("revert", Standing::Unchecked, "carries no residual; apply keeps what revert needs"),
        }
    }

    fn base(
        &mut self,
        contents: &Contents,
        checkpoint: &Checkpoint,
        progress: &dyn Progress,
    ) -> Result<(), PatchError> {
        let Contents { manifest, edits, .. } = contents;
        match BoundBase::exact(checkpoint, manifest, edits, Side::Base, progress) {
            Ok(_) => {
                let detail = format!("{} touched tensors are the base's, byte for byte", edits.len());
                self.claim("base", Standing::Proven, detail);
                self.claim("result", Standing::Unchecked, "`apply --dry-run` works out its digests");
            }
            Err(error @ BindError::Mismatch { .. }) => {
                self.claim("base", Standing::Failed, error.to_string());
                self.verdict = if error.is_damage() { Verdict::DamagedBase } else { Verdict::WrongBase };
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}
