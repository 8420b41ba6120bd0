//! Bind: whether a checkpoint is one that a patch may be folded into, by the publisher's word and the applier's.

use super::{Contents, PatchError, VerifiedPatch};
use crate::checkpoint::{
    BindError, BoundBase, Checkpoint, Depth, Distance, Mismatch, MismatchKind, Progress, Side, Sides,
    config_differences, distances,
};
use crate::format::Level;

/// What whoever applies a patch is content with.
#[derive(Debug, Clone, PartialEq)]
pub struct Accept {
    /// The loosest level; a stricter one that matches is taken.
    pub level: Level,
    /// How much of the touched tensors is compared.
    pub depth: Depth,
    /// Why the publisher's word does not matter: then their levels, tolerance and configuration do not bind.
    pub override_binding: Option<String>,
}

impl Accept {
    /// Nothing but the exact base, the touched tensors compared as a whole.
    pub fn exact() -> Self {
        Self { level: Level::Exact, depth: Depth::Tensors, override_binding: None }
    }

    /// The same, looked at as deep as `depth` says.
    #[must_use]
    pub fn comparing(self, depth: Depth) -> Self {
        Self { depth, ..self }
    }
}

/// A checkpoint that a patch may be folded into, and on what grounds. Only [`bind`] makes one.
#[derive(Debug)]
pub struct Bound<'c> {
    pub(super) base: BoundBase<'c>,
    /// How far each touched tensor is from the publisher's; none at level `exact`, nor without a sketch.
    pub(super) distances: Vec<Distance>,
    pub(super) override_binding: Option<String>,
}

impl<'c> Bound<'c> {
    /// The checkpoint.
    pub fn base(&self) -> &BoundBase<'c> {
        &self.base
    }
}

/// Compares a checkpoint with what a patch was made for, and takes the strictest level that matches.
///
/// # Errors
/// Every tensor that differs from the exact base, if nothing looser is accepted; else what does not match at the
/// level accepted, or that the publisher does not permit it. A patch that is applied already, at any level.
pub fn bind<'c>(
    patch: &VerifiedPatch,
    checkpoint: &'c Checkpoint,
    accept: &Accept,
    progress: &dyn Progress,
) -> Result<Bound<'c>, PatchError> {
    let contents = patch.contents();
    let (manifest, edits) = (&contents.manifest, &contents.edits);
    let sides = Sides::signed(manifest);
    let exact = (Level::Exact, accept.depth);
    let mismatch = match BoundBase::known(checkpoint, edits, sides, Side::Base, exact, progress) {
        Ok(base) => return Ok(Bound { base, distances: vec![], override_binding: None }),
        Err(error) => error,
    };
    if accept.level == Level::Exact || !is_other_weights(&mismatch) {
        return Err(mismatch.into());
    }
    let distances = match &contents.sketch {
        Some(sketch) => distances(checkpoint, edits, sketch)?,
        None => vec![],
    };
    let level = match &contents.sketch {
        Some(sketch) if farthest(&distances).is_some_and(|far| sketch.tolerance().permits(far.distance)) => {
            Level::Descendant
        }
        _ => Level::Architecture,
    };
    if (&level, &accept.level) == (&Level::Architecture, &Level::Descendant) {
        return Err(not_a_descendant(contents, distances));
    }
    if accept.override_binding.is_none() {
        permit(patch, checkpoint, accept, &level)?;
    }
    let unknown = Sides::unknown(edits.len());
    // Nothing to compare: whether all is there, and finite.
    let base = BoundBase::known(checkpoint, edits, unknown, Side::Base, (level, Depth::Rows), progress)?;
    let override_binding = accept.override_binding.clone();
    Ok(Bound { base, distances, override_binding })
}

/// Why a checkpoint is none that the sketch permits.
fn not_a_descendant(contents: &Contents, distances: Vec<Distance>) -> PatchError {
    let levels = &contents.manifest.base.levels;
    match (farthest(&distances), &contents.sketch) {
        _ if !levels.contains(&Level::Descendant) => {
            PatchError::LevelNotPermitted { level: Level::Descendant, permitted: levels.clone() }
        }
        (Some(far), Some(sketch)) => PatchError::TooFar { far: far.clone(), tolerance: sketch.tolerance() },
        _ => PatchError::NoSketch,
    }
}

/// Whether the publisher permits the level that was found, or else the loosest that is accepted.
fn permit(patch: &VerifiedPatch, checkpoint: &Checkpoint, accept: &Accept, level: &Level) -> Result<(), PatchError> {
    let manifest = &patch.contents().manifest;
    if ![level, &accept.level].iter().any(|level| manifest.base.levels.contains(level)) {
        let (level, permitted) = (accept.level.clone(), manifest.base.levels.clone());
        return Err(PatchError::LevelNotPermitted { level, permitted });
    }
    let differences = config_differences(checkpoint, manifest);
    if differences.is_empty() { Ok(()) } else { Err(PatchError::Config { differences }) }
}

/// The tensor that is farthest from the base.
pub(super) fn farthest(distances: &[Distance]) -> Option<&Distance> {
    distances.iter().max_by(|one, other| one.distance.total_cmp(&other.distance))
}

/// Whether the tensors are there with their types and shapes, finite, and not what the patch gives already.
pub(super) fn is_other_weights(error: &BindError) -> bool {
    let other = |mismatch: &Mismatch| match mismatch.kind {
        MismatchKind::Rows { other_side, .. } => !other_side,
        MismatchKind::Elsewhere { .. } => true,
        _ => false,
    };
    matches!(error, BindError::Mismatch { mismatches, .. } if mismatches.iter().all(other))
}
