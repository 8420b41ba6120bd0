//! The whole method: prompts in, edits out.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use candle_core::Device;
use rayon::prelude::*;
use serde_json::{Map, Value};

use super::edits::{FoldCount, count_changes, edits};
use super::memory::{Demand, MemoryPlan};
use super::preset::ValidOptions;
use super::probe::{LEAST_PROMPTS, Layers, SiteProbe, batches, probe};
use super::progress::{Progress, Stage};
use super::saved::SavedSites;
use super::targets::{self, Lesson};
use super::tune::{Tuned, tune_on};
use super::work::{Work, parts};
use super::{Chat, ChatOptions, NestError, Openings, cluster, record, select};
use crate::checkpoint::Checkpoint;
use crate::decoder::{Config, Decoder, Fused, Projection, SharedDeltas, Site, SiteDeltas};
use crate::eval::{Generator, ValidGenerateParams};
use crate::format::Edits;
use crate::prompts::PromptSet;

/// A probe that ranks fewer held-out prompts right than this is worth a warning.
pub const GOOD_AUC: f64 = 0.9;

/// What a person brings.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// Prompts to refuse.
    pub harmful: &'a PromptSet,
    /// Prompts to answer as before.
    pub benign: &'a PromptSet,
    /// How prompts become what the model sees.
    pub chat: &'a ChatOptions,
    /// The most bytes of memory to use; without it, most of what the machine has free. It changes no result.
    pub memory: Option<u64>,
    /// A folder where the results of stages are kept, so that an interrupted run can go on.
    pub work: Option<&'a Path>,
}

/// What a run brings.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The patch's content.
    pub edits: Edits,
    /// How it was made, for the manifest: no floats, numbers as integers or decimal text.
    pub creation: Map<String, Value>,
    /// The same for people.
    pub report: Report,
}

/// What happened in a run.
#[derive(Debug, Clone)]
pub struct Report {
    /// Every site, whether it has neurons or not.
    pub sites: Vec<SiteReport>,
    /// Trained parameters.
    pub parameters: usize,
    /// The tuning curve and which step was kept.
    pub tuned: Tuned,
    /// How many elements change when deltas are folded.
    pub folded: FoldCount,
    /// The refusals that were dealt out.
    pub refusals: Vec<String>,
    /// Harmful and benign lessons.
    pub lessons: [usize; 2],
    /// How long each stage took, in the order they ran.
    pub times: Vec<(Stage, Duration)>,
    /// What a person should know, a sentence each.
    pub warnings: Vec<String>,
}

/// What was found at a site.
#[derive(Debug, Clone, PartialEq)]
pub struct SiteReport {
    /// The site.
    pub site: Site,
    /// Held-out area under the ROC curve of its probe.
    pub auc: f64,
    /// Its safety neurons, ascending rows.
    pub rows: Vec<u32>,
    /// The cluster of each.
    pub clusters: Vec<u32>,
    /// How many clusters.
    pub k: usize,
    /// The mean silhouette, where it decided.
    pub silhouette: Option<f64>,
}

/// Runs NeST on a checkpoint: probe, select, cluster, tune, round.
///
/// Cost: the network in its own type, or as much of it as memory allows; hidden states of all prompts; then
/// about 4 FLOP per parameter and token a training step. Deterministic for given options on one machine type.
///
/// With [`Inputs::work`], the refusals chosen, the base's answers, the sites, and tuning after every epoch are kept in that
/// folder, and what an interrupted run of the same version on the same base with the same prompts and options has left
/// there is used: the edits and their record are those of a run that was not interrupted. To know the base, all of it is
/// read once more.
///
/// # Errors
/// The same prompt in both sets; a checkpoint, template or prompt that cannot be used; too few prompts; no neuron
/// over the threshold; a loss that is not finite; a limit of memory that is too low.
pub fn run(
    checkpoint: &Checkpoint,
    inputs: Inputs<'_>,
    options: &ValidOptions,
    progress: &dyn Progress,
) -> Result<Outcome, NestError> {
    refuse_contradictions(inputs)?;
    let mut clock = Clock::default();
    let config = Config::from_checkpoint(checkpoint)?;
    let chat = Chat::with(checkpoint.dir(), inputs.chat)?;
    let (prompts, harmful) = labelled(&chat, inputs)?;
    refuse_early(&config, inputs, options)?;
    let demand = demand(&config, &chat, &prompts, inputs, options)?;
    let plan = MemoryPlan::new(inputs.memory, &config, demand)?;
    let together = options.answers.at_most(MemoryPlan::together(&config, demand.longest));
    let work = match inputs.work {
        None => Work::nowhere(checkpoint, progress),
        Some(folder) => clock.time(Stage::Digest, || {
            Work::open(folder, || parts(checkpoint, inputs, options, progress), checkpoint, progress)
        })?,
    };
    let decoder = Decoder::load_within(config, checkpoint, &Device::Cpu, plan.resident)?;
    let traces = plan.traces(decoder.resident_bytes());
    let decoder = decoder.with_trace_bytes(traces);
    let refusals = match options.openings {
        Openings::Any => options.refusals.clone(),
        Openings::Likeliest => {
            work.stage("refusals", || targets::likeliest_opening(&decoder, &chat, inputs.harmful, &options.refusals))?
        }
    };
    let refused = targets::refusal_lessons(&chat, inputs.harmful, &refusals, options.tune.seed)?;
    let answers = clock
        .time(Stage::Answer, || work.stage("answers", || answers(&decoder, &chat, inputs, &together, progress)))?;
    let lessons: Vec<Lesson> = [refused, targets::benign_lessons(&chat, inputs.benign, answers)?].concat();
    let (sites, slow) = clock.time(Stage::Probe, || {
        let chosen = || choose(&decoder, &prompts, &harmful, options, progress);
        work.stage("sites", || chosen().map(|(sites, slow)| SavedSites::new(sites, slow))).map(SavedSites::restored)
    })?;
    let deltas = untrained(decoder.config(), &sites)?;
    let parameters = deltas.parameters();
    let tuned = clock.time(Stage::Tune, || tune_on(&decoder, &lessons, deltas, &options.tune, (progress, &work)))?;
    let (edits, folded) = clock.time(Stage::Fold, || {
        let edits = edits(decoder.config(), checkpoint, &tuned.deltas, options.stored)?;
        let folded = count_changes(checkpoint, &edits)?;
        Ok::<_, NestError>((edits, folded))
    })?;
    let count = |kind| lessons.iter().filter(|lesson| lesson.harmful == kind).count();
    let lessons = [count(true), count(false)];
    let warnings = warnings(inputs, &sites, slow, folded);
    let report = Report { sites, parameters, tuned, folded, refusals, lessons, times: clock.times, warnings };
    let creation = record::creation(inputs, &chat, options, &edits, &report);
    Ok(Outcome { edits, creation, report })
}

fn refuse_contradictions(inputs: Inputs<'_>) -> Result<(), NestError> {
    let overlap = inputs.harmful.overlap(inputs.benign);
    match overlap.first() {
        None => Ok(()),
        Some((first, second)) => Err(NestError::Contradiction {
            count: overlap.len(),
            harmful: inputs.harmful.source().to_owned(),
            first: *first,
            benign: inputs.benign.source().to_owned(),
            second: *second,
        }),
    }
}

/// What would otherwise be found after hours: sites that the network does not have, too few prompts to probe.
fn refuse_early(config: &Config, inputs: Inputs<'_>, options: &ValidOptions) -> Result<(), NestError> {
    let both = Site::new(0, Projection::GateUp);
    if options.fused == Fused::One && config.site_tensor(both).is_err() {
        return Err(NestError::NotFused { architecture: config.architecture.clone() });
    }
    for (class, set) in [("harmful", inputs.harmful), ("benign", inputs.benign)] {
        let found = set.prompts().len();
        if found < LEAST_PROMPTS {
            return Err(NestError::TooFewPrompts { class, expected: LEAST_PROMPTS, found });
        }
    }
    Ok(())
}

/// What the prompts ask of memory; answers that are not known yet count as long as they may get.
///
/// # Errors
/// A prompt, or one with the answer that its file brings, that the network cannot run.
fn demand(
    config: &Config,
    chat: &Chat,
    prompts: &[Vec<u32>],
    inputs: Inputs<'_>,
    options: &ValidOptions,
) -> Result<Demand, NestError> {
    // An answer ends with a token of its own.
    let length = |text: &str| Ok::<_, NestError>(chat.encode(text, false)?.len() + 1);
    let refusal = options.refusals.iter().map(|text| length(text)).collect::<Result<Vec<_>, _>>()?;
    let refusal = refusal.into_iter().max().unwrap_or(0);
    let (mut tokens, mut longest) = (0, 0);
    let sets = [(inputs.harmful, refusal), (inputs.benign, options.answers.max_tokens)];
    let all = sets.iter().flat_map(|(set, own)| set.prompts().iter().map(move |prompt| (set, prompt, *own)));
    for ((set, prompt, own), ids) in all.zip(prompts) {
        let answer = prompt.response.as_deref().map_or(Ok(own), length)?;
        let runs = ids.len() + if prompt.response.is_some() { answer } else { 0 };
        let wrong = |expected: String, found: String| {
            Err(NestError::Prompt { file: set.source().to_owned(), entry: prompt.origin, expected, found })
        };
        if runs > config.max_positions {
            return wrong(format!("at most {} tokens, answer included", config.max_positions), runs.to_string());
        }
        if let Some(token) = ids.iter().find(|token| **token as usize >= config.vocabulary) {
            let expected = format!("tokens below {}: is the tokenizer this checkpoint's?", config.vocabulary);
            return wrong(expected, token.to_string());
        }
        tokens += ids.len() + answer;
        longest = longest.max(ids.len() + answer);
    }
    let answered = inputs.benign.prompts().iter().filter(|prompt| prompt.response.is_none()).count();
    Ok(Demand { prompts: prompts.len(), tokens, longest, answered })
}

/// The base's own answers to benign prompts where the file has none.
fn answers(
    decoder: &Decoder<'_>,
    chat: &Chat,
    inputs: Inputs<'_>,
    params: &ValidGenerateParams,
    progress: &dyn Progress,
) -> Result<Vec<Vec<u32>>, NestError> {
    let unanswered = inputs.benign.prompts().iter().filter(|prompt| prompt.response.is_none());
    let prompts = unanswered.map(|prompt| chat.encode_prompt(&prompt.text)).collect::<Result<Vec<_>, _>>()?;
    if prompts.is_empty() {
        return Ok(Vec::new());
    }
    progress.begin(Stage::Answer, prompts.len());
    let stops: Vec<_> = chat.stops().collect();
    let found = Generator::new(decoder).answer(&prompts, &stops, params, &mut |count| progress.advance(count))?;
    Ok(found.into_iter().map(|answer| answer.tokens).collect())
}

/// All prompts as tokens, harmful ones first, and which they are.
fn labelled(chat: &Chat, inputs: Inputs<'_>) -> Result<(Vec<Vec<u32>>, Vec<bool>), NestError> {
    let mut prompts = targets::encode_prompts(chat, inputs.harmful)?;
    let mut harmful = vec![true; prompts.len()];
    prompts.extend(targets::encode_prompts(chat, inputs.benign)?);
    harmful.resize(prompts.len(), false);
    Ok((prompts, harmful))
}

/// Probes, neurons and clusters of every site, layer by layer, and how many probes did not converge.
fn choose(
    decoder: &Decoder<'_>,
    prompts: &[Vec<u32>],
    harmful: &[bool],
    options: &ValidOptions,
    progress: &dyn Progress,
) -> Result<(Vec<SiteReport>, usize), NestError> {
    progress.begin(Stage::Probe, decoder.config().layers.len());
    let batches = batches(prompts)?;
    let mut layers = Layers::new(decoder, &batches, options.fused)?;
    let (mut sites, mut slow) = (Vec::new(), 0);
    while let Some(features) = layers.next_layer()? {
        let probes = probe(&features, harmful, &options.probe)?;
        slow += probes.iter().filter(|probe| !probe.converged).count();
        let site = |probe: SiteProbe| {
            let rows = select(&probe.weights, &options.neurons);
            let found = cluster(&features.of_rows(probe.site, &rows), &options.cluster);
            let (k, silhouette) = (found.k, found.silhouette);
            SiteReport { site: probe.site, auc: probe.auc, rows, clusters: found.labels, k, silhouette }
        };
        sites.extend(probes.into_par_iter().map(site).collect::<Vec<_>>());
        progress.advance(1);
    }
    Ok((sites, slow))
}

/// Deltas of zero for every site that has neurons.
///
/// # Errors
/// None has.
pub fn untrained(config: &Config, sites: &[SiteReport]) -> Result<SharedDeltas, NestError> {
    let with_rows = sites.iter().filter(|site| !site.rows.is_empty());
    let zero = |site: &SiteReport| {
        (site.site, SiteDeltas::zero(site.rows.clone(), site.clusters.clone(), site.k, config.hidden))
    };
    let deltas: BTreeMap<_, _> = with_rows.map(zero).collect();
    if deltas.is_empty() {
        return Err(NestError::NoNeurons);
    }
    Ok(SharedDeltas::new(config, deltas)?)
}

fn warnings(inputs: Inputs<'_>, sites: &[SiteReport], slow: usize, folded: FoldCount) -> Vec<String> {
    let mut warnings = Vec::new();
    for set in [inputs.harmful, inputs.benign] {
        if let Some(first) = set.duplicates().first() {
            let (count, source) = (set.duplicates().len(), set.source());
            let (first, again) = (first.first, first.again);
            warnings.push(format!("{source}: {count} repeated prompts left out (entry {again} repeats {first})"));
        }
        if set.skipped() > 0 {
            warnings.push(format!("{}: {} entries without a prompt left out", set.source(), set.skipped()));
        }
    }
    let weak: Vec<_> = sites.iter().filter(|site| site.auc < GOOD_AUC && !site.rows.is_empty()).collect();
    if let Some(worst) = weak.iter().min_by(|left, right| left.auc.total_cmp(&right.auc)) {
        let (count, site, auc) = (weak.len(), worst.site, worst.auc);
        warnings.push(format!("{count} probes rank held-out prompts worse than {GOOD_AUC} (AUC); {site} has {auc:.3}"));
    }
    if slow > 0 {
        warnings.push(format!("{slow} probes stopped before their tolerance was reached"));
    }
    if folded.share() < 0.5 {
        let percent = 100.0 * folded.share();
        warnings.push(format!("only {percent:.0} % of the selected rows' elements change: most deltas round away"));
    }
    warnings
}

#[derive(Default)]
struct Clock {
    times: Vec<(Stage, Duration)>,
}

impl Clock {
    fn time<T>(&mut self, stage: Stage, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        self.times.push((stage, start.elapsed()));
        result
    }
}

#[cfg(test)]
mod resume;
#[cfg(test)]
mod tests;
