//! Create: prompts and a checkpoint become a signed patch.

use super::PatchError;
use super::assemble::{About, assemble, sign};
use crate::checkpoint::{self, Checkpoint};
use crate::nest::{self, Inputs, NestError, Outcome, Report, ValidOptions};
use crate::trust::SecretKey;

/// Why no patch was created.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// Prompts, network or training.
    #[error(transparent)]
    Nest(#[from] NestError),
    /// The patch itself.
    #[error(transparent)]
    Patch(#[from] PatchError),
}

/// A new patch.
#[derive(Debug, Clone)]
pub struct Created {
    /// The bytes of its file.
    pub bytes: Vec<u8>,
    /// How the run went.
    pub report: Report,
}

/// Runs NeST on a checkpoint, binds the edits to it and signs the patch. Writes nothing.
///
/// What the run says about itself goes into `about.creation`, replacing what was there. Cost: see [`nest::run()`].
///
/// # Errors
/// Those of the run, and those of [`assemble()`].
pub fn create(
    base: &Checkpoint,
    inputs: Inputs<'_>,
    options: &ValidOptions,
    about: About,
    key: &SecretKey,
    progress: (&dyn nest::Progress, &dyn checkpoint::Progress),
) -> Result<Created, CreateError> {
    let Outcome { edits, creation, report } = nest::run(base, inputs, options, progress.0)?;
    let patch = assemble(base, &edits, About { creation, ..about }, progress.1)?;
    Ok(Created { bytes: sign(&patch, key)?, report })
}
