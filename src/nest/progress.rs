//! What a long run tells those who wait.

use std::fmt;

/// A part of the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// The base is digested, to know whose results are kept. Counted in tensors.
    Digest,
    /// The base answers benign prompts: the targets of self-distillation. Counted in prompts.
    Answer,
    /// Activations are collected, probes fitted, neurons chosen and clustered. Counted in layers.
    Probe,
    /// Training examples are run up to the lowest site. Counted in examples.
    Prepare,
    /// Shared deltas are trained. Counted in steps.
    Tune,
    /// Deltas are rounded and folded in memory. Counted in sites.
    Fold,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Digest => "digest",
            Self::Answer => "answer",
            Self::Probe => "probe",
            Self::Prepare => "prepare",
            Self::Tune => "tune",
            Self::Fold => "fold",
        })
    }
}

/// Listens to a run.
pub trait Progress: Sync {
    /// A stage begins; `total` units lie ahead.
    fn begin(&self, stage: Stage, total: usize);
    /// Some units are done.
    fn advance(&self, units: usize);
    /// What is going on, in a sentence.
    fn note(&self, _sentence: &str) {}
    /// What a person should know, in a sentence, and before the end of the run.
    fn warn(&self, _sentence: &str) {}
}

/// Nobody listens.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _: Stage, _: usize) {}
    fn advance(&self, _: usize) {}
}
