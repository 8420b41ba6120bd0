//! Presets: named sets of options that say which part of the paper they follow, and where they do not.

use super::params::{Params, Valid, within};
use super::{ClusterParams, NestError, NeuronParams, Openings, ProbeParams, REFUSALS, TuneParams};
use crate::decoder::Fused;
use crate::eval::{GenerateParams, ValidGenerateParams};
use crate::tensor::Dtype;

/// Every option of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// The preset they began as.
    pub preset: &'static str,
    /// What counts as a site where gate and up are one tensor.
    pub fused: Fused,
    /// How prompts are told apart.
    pub probe: ProbeParams,
    /// Which rows are neurons.
    pub neurons: NeuronParams,
    /// Which neurons share a delta.
    pub cluster: ClusterParams,
    /// How deltas are trained.
    pub tune: TuneParams,
    /// How the base answers benign prompts that bring no answer.
    pub answers: GenerateParams,
    /// Refusals for harmful prompts that bring no answer: 1 to 10,000, none empty.
    pub refusals: Vec<String>,
    /// Which of them are used.
    pub openings: Openings,
    /// The type deltas are stored in; the checkpoint's own if not named.
    pub stored: Option<Dtype>,
}

/// Options, every one in range.
#[derive(Debug, Clone, PartialEq)]
pub struct ValidOptions {
    pub(super) preset: &'static str,
    pub(super) fused: Fused,
    pub(super) probe: Valid<ProbeParams>,
    pub(super) neurons: Valid<NeuronParams>,
    pub(super) cluster: Valid<ClusterParams>,
    pub(super) tune: Valid<TuneParams>,
    pub(super) answers: ValidGenerateParams,
    pub(super) refusals: Vec<String>,
    pub(super) openings: Openings,
    pub(super) stored: Option<Dtype>,
}

impl Options {
    /// Uses one seed for every stage.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.probe.seed = seed;
        self.cluster.seed = seed;
        self.tune.seed = seed;
        self
    }

    /// Checks every option against its range.
    ///
    /// # Errors
    /// The first option outside.
    pub fn check(self) -> Result<ValidOptions, NestError> {
        within("refusals", self.refusals.len(), 1..=10_000)?;
        if self.refusals.iter().any(|refusal| refusal.trim().is_empty()) {
            return Err(NestError::NoRefusals);
        }
        Ok(ValidOptions {
            preset: self.preset,
            fused: self.fused,
            probe: self.probe.check()?,
            neurons: self.neurons.check()?,
            cluster: self.cluster.check()?,
            tune: self.tune.check()?,
            answers: self.answers.check()?,
            refusals: self.refusals,
            openings: self.openings,
            stored: self.stored,
        })
    }
}

/// A named set of options.
#[derive(Debug, Clone, Copy)]
pub struct Preset {
    /// Its name on the command line and in patches.
    pub name: &'static str,
    /// What it follows.
    pub follows: &'static str,
    /// Where it deviates or chooses what the paper leaves open, a sentence each.
    pub deviations: &'static [&'static str],
    options: fn() -> Options,
}

impl Preset {
    /// Finds a preset.
    ///
    /// # Errors
    /// No preset of that name.
    pub fn find(name: &str) -> Result<&'static Self, NestError> {
        let names = || PRESETS.iter().map(|preset| preset.name).collect::<Vec<_>>().join(", ");
        let unknown = || NestError::Preset { found: name.to_owned(), expected: names() };
        PRESETS.iter().find(|preset| preset.name == name).ok_or_else(unknown)
    }

    /// Its options, to be changed and checked.
    pub fn options(&self) -> Options {
        (self.options)()
    }
}

/// The preset used unless another is named.
pub const DEFAULT_PRESET: &str = "paper-v2";

/// All presets, the default first.
pub const PRESETS: &[Preset] = &[Preset {
    name: DEFAULT_PRESET,
    follows: "NeST, arXiv 2602.16835 version 2: sections 3.2 to 3.5, clusters as in section 4.2, \
              trained on vanilla harmful prompts",
    deviations: &[
        "The probe is fitted to its minimum from zero, not by Adam over random starts.",
        "Rows are kept from z > 2, which the paper tried too, not z > 3: the toy assistant needs more neurons.",
        "Gate and up are two sites where a checkpoint holds them in one tensor as well; the paper's counts for such \
         networks fit one site.",
        "The number of clusters is capped at 8.",
        "The optimiser, which the paper leaves open, is AdamW without weight decay, with warm-up, a cosine and \
         clipping, at a rate of 0.01 chosen on the toy assistant; loss on answers only; the deltas with the lowest \
         held-out loss are kept.",
        "Answers to train on, which the paper leaves open, are refusals to harmful prompts, varied but for their \
         first token, and the base's own greedy answers to benign ones.",
    ],
    options: paper_v2,
}];

fn paper_v2() -> Options {
    Options {
        preset: DEFAULT_PRESET,
        fused: Fused::Halves,
        probe: ProbeParams::default(),
        neurons: NeuronParams::default(),
        cluster: ClusterParams::default(),
        tune: TuneParams::default(),
        answers: GenerateParams::default(),
        refusals: REFUSALS.iter().map(|refusal| (*refusal).to_owned()).collect(),
        openings: Openings::Likeliest,
        stored: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_valid_and_named_once() {
        for (index, preset) in PRESETS.iter().enumerate() {
            assert_eq!(preset.options().preset, preset.name);
            assert!(preset.options().check().is_ok(), "{}", preset.name);
            assert!(PRESETS.iter().skip(index + 1).all(|other| other.name != preset.name));
        }
        assert!(Preset::find(DEFAULT_PRESET).is_ok());
        let error = Preset::find("paper").unwrap_err().to_string();
        assert!(error.contains(DEFAULT_PRESET), "{error}");
    }

    #[test]
    fn the_default_follows_the_paper_where_it_speaks() {
        let options = Preset::find(DEFAULT_PRESET).unwrap().options();
        assert_eq!((options.tune.epochs, options.tune.held_out), (5, 0.05));
        assert_eq!(options.probe.held_out, 0.2);
    }

    #[test]
    fn every_stage_is_checked() {
        let wrong: [fn(&mut Options); 6] = [
            |options| options.probe.l2 = -1.0,
            |options| options.neurons.threshold = f64::NAN,
            |options| options.cluster.restarts = 0,
            |options| options.tune.rate = 0.0,
            |options| options.answers.max_tokens = 0,
            |options| options.refusals.clear(),
        ];
        for spoil in wrong {
            let mut options = Preset::find(DEFAULT_PRESET).unwrap().options();
            spoil(&mut options);
            assert!(options.check().is_err());
        }
    }
}
