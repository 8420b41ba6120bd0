//! The whole method: prompts in, edits out.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use candle_core::Device;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::edits::{FoldCount, count_changes, edits};
use super::preset::ValidOptions;
use super::probe::{Features, SiteProbe, probe};
use super::progress::{Progress, Stage};
use super::targets::{self, Lesson};
use super::tune::{Tuned, tune_on};
use super::work::{Work, parts};
use super::{Chat, ChatOptions, NestError, Openings, cluster, record, select};
use crate::checkpoint::Checkpoint;
use crate::decoder::{Config, Decoder, Projection, SharedDeltas, Site, SiteDeltas};
use crate::eval::Generator;
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
/// Cost: the network in its own type and once more in f32 while the base answers; activations of all prompts; then
/// about 4 FLOP per parameter and token a training step. Deterministic for given options on one machine type.
///
/// With [`Inputs::work`], the refusals chosen, the base's answers, the sites, and tuning after every epoch are kept in that
/// folder, and what an interrupted run of the same version on the same base with the same prompts and options has left
/// there is used: the edits and their record are those of a run that was not interrupted. To know the base, all of it is
/// read once more.
///
/// # Errors
/// The same prompt in both sets; a checkpoint, template or prompt that cannot be used; too few prompts; no neuron
/// over the threshold; a loss that is not finite.
pub fn run(
    checkpoint: &Checkpoint,
    inputs: Inputs<'_>,
    options: &ValidOptions,
    progress: &dyn Progress,
) -> Result<Outcome, NestError> {
    refuse_contradictions(inputs)?;
    let mut clock = Clock::default();
    let config = Config::from_json(checkpoint.config())?;
    let chat = Chat::with(checkpoint.dir(), inputs.chat)?;
    let work = match inputs.work {
        None => Work::nowhere(checkpoint, progress),
        Some(folder) => clock.time(Stage::Digest, || {
            Work::open(folder, || parts(checkpoint, inputs, options, progress), checkpoint, progress)
        })?,
    };
    let decoder = Decoder::load(config, checkpoint, &Device::Cpu)?;
    let refusals = match options.openings {
        Openings::Any => options.refusals.clone(),
        Openings::Likeliest => {
            work.stage("refusals", || targets::likeliest_opening(&decoder, &chat, inputs.harmful, &options.refusals))?
        }
    };
    let lessons =
        clock.time(Stage::Answer, || lessons(&chat, inputs, (options, &refusals), (&work, checkpoint, progress)))?;
    let (sites, slow) = work
        .stage("sites", || {
            let (prompts, harmful) = labelled(&chat, inputs)?;
            let features = clock.time(Stage::Probe, || Features::collect(&decoder, &prompts, progress))?;
            let (sites, slow) = clock.time(Stage::Select, || choose(&features, &harmful, options, progress))?;
            Ok(SavedSites::new(decoder.config(), sites, slow))
        })?
        .restored(decoder.config());
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

/// Refusals to harmful prompts and, where the file has no answers, the base's own answers to benign ones.
fn lessons(
    chat: &Chat,
    inputs: Inputs<'_>,
    (options, refusals): (&ValidOptions, &[String]),
    (work, checkpoint, progress): (&Work<'_>, &Checkpoint, &dyn Progress),
) -> Result<Vec<Lesson>, NestError> {
    let mut lessons = targets::refusal_lessons(chat, inputs.harmful, refusals, options.tune.seed)?;
    let unanswered = inputs.benign.prompts().iter().filter(|prompt| prompt.response.is_none());
    let prompts = unanswered.map(|prompt| chat.encode_prompt(&prompt.text)).collect::<Result<Vec<_>, _>>()?;
    let mut answers = Vec::new();
    if !prompts.is_empty() {
        answers = work.stage("answers", || {
            progress.begin(Stage::Answer, prompts.len());
            let generator = Generator::load(checkpoint.config(), checkpoint)?;
            let stops: Vec<_> = chat.stops().collect();
            let found = generator.answer(&prompts, &stops, &options.answers, &mut |count| progress.advance(count))?;
            Ok(found.into_iter().map(|answer| answer.tokens).collect::<Vec<_>>())
        })?;
    }
    lessons.extend(targets::benign_lessons(chat, inputs.benign, answers)?);
    Ok(lessons)
}

/// All prompts as tokens, harmful ones first, and which they are.
fn labelled(chat: &Chat, inputs: Inputs<'_>) -> Result<(Vec<Vec<u32>>, Vec<bool>), NestError> {
    let mut prompts = targets::encode_prompts(chat, inputs.harmful)?;
    let mut harmful = vec![true; prompts.len()];
    prompts.extend(targets::encode_prompts(chat, inputs.benign)?);
    harmful.resize(prompts.len(), false);
    Ok((prompts, harmful))
}

/// Probes, neurons and clusters of every site, and how many probes did not converge.
fn choose(
    features: &Features,
    harmful: &[bool],
    options: &ValidOptions,
    progress: &dyn Progress,
) -> Result<(Vec<SiteReport>, usize), NestError> {
    progress.begin(Stage::Select, features.iter().len());
    let probes = probe(features, harmful, &options.probe)?;
    let slow = probes.iter().filter(|probe| !probe.converged).count();
    let site = |probe: SiteProbe| {
        let rows = select(&probe.weights, &options.neurons);
        let found = cluster(&features.of_rows(probe.site, &rows), &options.cluster);
        progress.advance(1);
        let (k, silhouette) = (found.k, found.silhouette);
        SiteReport { site: probe.site, auc: probe.auc, rows, clusters: found.labels, k, silhouette }
    };
    Ok((probes.into_par_iter().map(site).collect(), slow))
}

/// What was found at every site, as it is kept: floats as their bits.
#[derive(Serialize, Deserialize)]
struct SavedSites {
    sites: Vec<SavedSite>,
    slow: usize,
}

#[derive(Serialize, Deserialize)]
struct SavedSite {
    /// Its place among the network's sites.
    place: usize,
    auc: u64,
    rows: Vec<u32>,
    clusters: Vec<u32>,
    k: usize,
    silhouette: Option<u64>,
}

impl SavedSites {
    fn new(config: &Config, sites: Vec<SiteReport>, slow: usize) -> Self {
        let places: BTreeMap<Site, usize> = config.sites().zip(0..).collect();
        let saved = |site: SiteReport| SavedSite {
            place: places.get(&site.site).copied().unwrap_or(usize::MAX),
            auc: site.auc.to_bits(),
            rows: site.rows,
            clusters: site.clusters,
            k: site.k,
            silhouette: site.silhouette.map(f64::to_bits),
        };
        Self { sites: sites.into_iter().map(saved).collect(), slow }
    }

    /// The sites again, and how many probes did not converge.
    fn restored(self, config: &Config) -> (Vec<SiteReport>, usize) {
        let places: Vec<Site> = config.sites().collect();
        // One that the network does not have is refused where deltas are made for it.
        let beyond = Site::new(config.layers, Projection::Gate);
        let site = |saved: SavedSite| SiteReport {
            site: places.get(saved.place).copied().unwrap_or(beyond),
            auc: f64::from_bits(saved.auc),
            rows: saved.rows,
            clusters: saved.clusters,
            k: saved.k,
            silhouette: saved.silhouette.map(f64::from_bits),
        };
        (self.sites.into_iter().map(site).collect(), self.slow)
    }
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
