//! Assemble: a checkpoint and the edits to it become a patch file, whatever method found the edits.

use std::{panic, thread};

use serde_json::{Map, Value};

use super::{PatchError, effect};
use crate::checkpoint::{Checkpoint, CheckpointError, Progress, Side, find_touched, in_parallel};
use crate::digest::Sha256;
use crate::format::binding::architecture_config;
use crate::format::manifest::{Architecture, Base, ResultBinding, Tool};
use crate::format::{
    Draft, Edits, Level, ManifestError, Payload, Timestamp, Tolerance, Unsigned, WriteError, check_about, check_label,
};
use crate::trust::SecretKey;

/// What a new patch says about itself, beside what follows from the checkpoint and the edits.
#[derive(Debug, Clone)]
pub struct About {
    /// Its name, for people.
    pub name: String,
    /// The line of patches that it belongs to.
    pub series: String,
    /// Its place in the series, from 1.
    pub sequence: u64,
    /// Ids of the patches that it replaces.
    pub supersedes: Vec<Sha256>,
    /// When it is made.
    pub created: Timestamp,
    /// What makes it.
    pub tool: Tool,
    /// The base's name, for people.
    pub base: String,
    /// The checkpoints that it may be applied to.
    pub levels: Levels,
    /// How it was made: data for auditors, without floats.
    pub creation: Map<String, Value>,
}

/// The checkpoints that a patch may be applied to, beside the base itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Levels {
    /// Fine-tunes of the base that are this near to it. Adds a sketch of the base's touched rows.
    pub descendant: Option<Tolerance>,
    /// Whatever has the base's architecture.
    pub architecture: bool,
}

impl Levels {
    fn list(self) -> Vec<Level> {
        let descendant = self.descendant.map(|_| Level::Descendant);
        let architecture = self.architecture.then_some(Level::Architecture);
        std::iter::once(Level::Exact).chain(descendant).chain(architecture).collect()
    }
}

impl About {
    /// The first patch of a series, made now by this program.
    pub fn new(name: impl Into<String>, series: impl Into<String>, base: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            series: series.into(),
            sequence: 1,
            supersedes: Vec::new(),
            created: Timestamp::now(),
            tool: this_tool(),
            base: base.into(),
            levels: Levels::default(),
            creation: Map::new(),
        }
    }

    /// Checks what a person chose, so that a name that cannot be written fails before the work, not after it.
    ///
    /// # Errors
    /// The first rule broken, as a reader of the patch would report it.
    pub fn check(&self) -> Result<(), ManifestError> {
        check_about(&self.name, &self.series, self.sequence, &self.supersedes)?;
        check_label("base.name", &self.base)
    }
}

/// This program.
pub(super) fn this_tool() -> Tool {
    Tool { name: env!("CARGO_PKG_NAME").to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() }
}

/// Makes an unsigned patch: folds the edits into the checkpoint without writing to it, binds the patch to what the
/// checkpoint is and to what it becomes, and keeps what takes it back. Reads each touched tensor once, several at a time;
/// holds the touched rows of those.
///
/// # Errors
/// An edit that does not fit the checkpoint, a weight that is not finite, a draft that breaks a rule of the format.
pub fn assemble(
    checkpoint: &Checkpoint,
    edits: &Edits,
    about: About,
    progress: &dyn Progress,
) -> Result<Unsigned, PatchError> {
    let tensors = find_touched(checkpoint, edits, Side::Base)?;
    progress.stage("binding to the base", tensors.iter().map(|tensor| tensor.length).sum());
    let residual = effect::residual(checkpoint, &tensors, edits)?;
    let sketch = about.levels.descendant.map(|tolerance| effect::sketch(checkpoint, &tensors, edits, tolerance));
    let sketch = sketch.transpose()?;
    let pairs: Vec<_> = tensors.into_iter().zip(edits).collect();
    // Compressing takes as long as hashing, and neither needs the other.
    let (written, effects) = thread::scope(|scope| {
        let written = scope.spawn(|| Payload::write(edits, Some(&residual), sketch.as_ref()));
        let effects = in_parallel(&pairs, |(tensor, edit)| effect::sides(checkpoint, tensor, edit, progress));
        (written.join().unwrap_or_else(|panic| panic::resume_unwind(panic)), effects)
    });
    let effects = effects?;
    checkpoint.check_unchanged()?;
    let (base, result) = effects.into_iter().map(|effect| (effect.base, effect.result)).unzip();
    let draft = Draft {
        name: about.name,
        series: about.series,
        sequence: about.sequence,
        supersedes: about.supersedes,
        created: about.created,
        tool: about.tool,
        base: Base {
            name: about.base,
            architecture: architecture(checkpoint)?,
            levels: about.levels.list(),
            tensors: base,
            extensions: Map::new(),
        },
        result: ResultBinding { tensors: result },
        creation: about.creation,
    };
    let written = written.map_err(WriteError::from)?;
    Ok(draft.assemble_from(written, edits, Some(&residual), sketch.as_ref())?)
}

/// Signs a patch and gives the bytes of its file.
///
/// # Errors
/// The parts do not fit a container.
pub fn sign(patch: &Unsigned, key: &SecretKey) -> Result<Vec<u8>, PatchError> {
    Ok(patch.seal(&[key.sign(patch.manifest())?])?)
}

fn architecture(checkpoint: &Checkpoint) -> Result<Architecture, PatchError> {
    let missing = || CheckpointError::Content { path: checkpoint.dir().join("config.json"), expected: "a model_type" };
    let model_type = checkpoint.model_type().ok_or_else(missing)?.to_owned();
    let config = architecture_config(&Value::Object(checkpoint.config().clone()));
    Ok(Architecture { model_type, config })
}
