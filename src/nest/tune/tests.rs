use std::collections::BTreeMap;

use rand::Rng;

use super::*;
use crate::decoder::{Projection, Site, SiteDeltas};
use crate::nest::progress::Silent;
use crate::nest::testing::{self, HIDDEN, Memory, VOCABULARY};
use crate::tensor::Dtype;

/// Prompts with word 7 are harmful and answered 40, 41, 1; the others are answered 20, 21, 22, 1.
fn lessons(count: usize) -> Vec<Lesson> {
    let mut generator = ChaCha8Rng::seed_from_u64(11);
    let lesson = |index: usize| {
        let harmful = index.is_multiple_of(2);
        let mut prompt: Vec<u32> =
            (0..4 + index % 3).map(|_| generator.random_range(24..VOCABULARY as u32 - 10)).collect();
        let place = generator.random_range(0..prompt.len());
        prompt[place] = if harmful { 7 } else { 9 };
        let answer = if harmful { vec![40, 41, 1] } else { vec![20, 21, 22, 1] };
        Lesson { prompt, answer, harmful }
    };
    (0..count).map(lesson).collect()
}

fn start(clusters: &[u32]) -> SharedDeltas {
    let rows: Vec<u32> = (0..clusters.len() as u32).map(|row| 2 * row + 1).collect();
    let k = clusters.iter().max().map_or(0, |last| last + 1) as usize;
    let site = |layer, projection| {
        (Site::new(layer, projection), SiteDeltas::zero(rows.clone(), clusters.to_vec(), k, HIDDEN))
    };
    let sites = BTreeMap::from([site(0, Projection::Up), site(1, Projection::Gate), site(1, Projection::Up)]);
    let config = crate::decoder::Config::from_json(&testing::config_json()).unwrap();
    SharedDeltas::new(&config, sites).unwrap()
}

fn params(change: impl FnOnce(&mut TuneParams)) -> Valid<TuneParams> {
    let mut params = TuneParams { epochs: 6, batch: 8, rate: 0.03, ..TuneParams::default() };
    change(&mut params);
    params.check().unwrap()
}

fn tuned(clusters: &[u32], params: &Valid<TuneParams>) -> Tuned {
    let weights = Memory::random(5, Dtype::F32);
    let decoder = testing::decoder(&weights);
    tune(&decoder, &lessons(80), start(clusters), params, &Silent).unwrap()
}

#[test]
fn one_cluster_some_clusters_and_one_a_neuron_all_learn() {
    let mut last = f64::INFINITY;
    for clusters in [[0; 6], [0, 1, 0, 2, 1, 2], [0, 1, 2, 3, 4, 5]] {
        let found = tuned(&clusters, &params(|_| ()));
        let (first, best) = (found.curve[0].held_out, found.curve.last().unwrap().held_out);
        assert!(best < 0.85 * first, "{clusters:?}: {first} to {best}");
        assert!(best < last, "{clusters:?}: more clusters should learn more, {last} to {best}");
        last = best;
    }
}

#[test]
fn a_seed_gives_the_same_deltas_and_another_seed_others() {
    let short = |seed| params(|params| (params.seed, params.epochs) = (seed, 2));
    let (one, same, other) = (tuned(&[0, 1], &short(1)), tuned(&[0, 1], &short(1)), tuned(&[0, 1], &short(2)));
    assert_eq!(one.deltas, same.deltas);
    assert_eq!(one.curve[1..], same.curve[1..]);
    assert_ne!(one.deltas, other.deltas);
}

#[test]
fn the_best_deltas_are_kept_and_patience_ends_it() {
    // So high a rate makes the held-out loss jump about.
    let found = tuned(&[0, 1, 2], &params(|params| (params.rate, params.patience, params.epochs) = (1.0, 2, 40)));
    let best = found.curve.iter().skip(1).min_by(|a, b| a.held_out.total_cmp(&b.held_out)).unwrap();
    assert_eq!(found.best_step, best.step);
    assert!(found.curve.len() < 41, "never stopped");
    let weights = Memory::random(5, Dtype::F32);
    let decoder = testing::decoder(&weights);
    let params = params(|params| (params.rate, params.patience, params.epochs) = (1.0, 2, 40));
    let mut generator = ChaCha8Rng::seed_from_u64(params.seed);
    let all = prepare(&decoder, &lessons(80), &found.deltas, &params, &Silent).unwrap();
    let (held_out, _) = split(&lessons(80), &params, &mut generator).unwrap();
    let run = run(&decoder, &params, found.deltas);
    let held_out: Vec<_> = held_out.iter().map(|at| &all[*at]).collect();
    assert_eq!(run.loss(&held_out).unwrap(), best.held_out);
}

fn run<'a>(decoder: &'a Decoder<'a>, params: &'a Valid<TuneParams>, deltas: SharedDeltas) -> Run<'a> {
    Run { decoder, params, deltas, optimiser: AdamW::new(0.0), step: 0, total: 100, part_tokens: PASS_TOKENS }
}

#[test]
fn a_batch_in_parts_has_the_gradient_of_the_whole() {
    let weights = Memory::random(5, Dtype::F32);
    let decoder = testing::decoder(&weights);
    let params = params(|params| params.benign_weight = 0.3);
    let deltas = tuned(&[0, 1], &params).deltas;
    let all = prepare(&decoder, &lessons(20), &deltas, &params, &Silent).unwrap();
    let batch: Vec<_> = all.iter().collect();
    let mut run = run(&decoder, &params, deltas);
    let (loss, whole) = run.gradient(&batch).unwrap().unwrap();
    run.part_tokens = 15;
    assert!(passes(&batch, 15, |ready| ready.prepared.tokens()).count() > 5);
    let (loss_in_parts, in_parts) = run.gradient(&batch).unwrap().unwrap();
    assert!((loss - loss_in_parts).abs() < 1e-5 && (run.loss(&batch).unwrap() - loss).abs() < 1e-5);
    for ((_, whole), (_, in_parts)) in whole.iter().zip(in_parts.iter()) {
        for (one, other) in whole.values().iter().zip(in_parts.values()) {
            assert!((one - other).abs() < 1e-6, "{one} {other}");
        }
    }
}

#[test]
fn benign_lessons_without_weight_do_not_count() {
    let weights = Memory::random(5, Dtype::F32);
    let decoder = testing::decoder(&weights);
    let params = params(|params| params.benign_weight = 0.0);
    let all = prepare(&decoder, &lessons(8), &start(&[0]), &params, &Silent).unwrap();
    let harmful: Vec<_> = all.iter().step_by(2).collect();
    let run = run(&decoder, &params, start(&[0]));
    let (all_loss, harmful_loss) = (run.loss(&all.iter().collect::<Vec<_>>()).unwrap(), run.loss(&harmful).unwrap());
    assert!((all_loss - harmful_loss).abs() < 1e-5, "{all_loss} {harmful_loss}");
    let benign: Vec<_> = all.iter().skip(1).step_by(2).collect();
    assert!(run.gradient(&benign).unwrap().is_none());
}

#[test]
fn both_kinds_are_held_out() {
    let lessons = lessons(60);
    let params = params(|params| params.held_out = 0.1);
    let (held_out, trained) = split(&lessons, &params, &mut ChaCha8Rng::seed_from_u64(0)).unwrap();
    let harmful = held_out.iter().filter(|at| lessons[**at].harmful).count();
    assert_eq!((held_out.len(), harmful, trained.len()), (6, 3, 54));
    let one = split(&lessons[..1], &params, &mut ChaCha8Rng::seed_from_u64(0));
    assert!(matches!(one, Err(NestError::TooFewPrompts { found: 1, .. })));
}

#[test]
fn the_rate_rises_and_falls() {
    let params = TuneParams { rate: 2.0, warm_up: 0.1, ..TuneParams::default() };
    let rates: Vec<_> = (0..100).map(|step| rate(step, 100, &params)).collect();
    assert_eq!((rates[0], rates[9], rates[10]), (0.2, 2.0, 2.0));
    assert!((rates[55] - 1.0).abs() < 1e-9 && rates[99] < 0.001);
    assert!(rates[10..].windows(2).all(|pair| pair[0] > pair[1]));
    assert_eq!(rate(0, 1, &TuneParams { warm_up: 0.0, ..params }), 2.0);
}
