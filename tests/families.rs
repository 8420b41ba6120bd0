//! Every architecture on a small network of our own: what transformers computes with it, gradients, answers, and that a
//! patch touches nothing but the language decoder. `fixtures/families/make.py` says how the expected numbers were made.
#![cfg(feature = "create")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/tensors.rs"]
mod tensors;

use std::collections::BTreeMap;
use std::path::Path;

use nestpatch::decoder::{
    Batch, Cache, Config, Decoder, Device, Example, Point, Projection, SharedDeltas, Site, SiteDeltas,
};
use nestpatch::nest::edits;
use safetensors::Dtype;
use serde_json::{Map, Value};
use tensors::Tensors;

/// Absolute, on f32 logits and activations of about 1; the fixture keeps eight digits.
const TOLERANCE: f32 = 1e-5;

struct Family {
    name: String,
    config: Map<String, Value>,
    weights: Tensors,
    logits: Vec<f32>,
    activations: Vec<Vec<f32>>,
}

impl Family {
    fn decoder(&self) -> Decoder<'_> {
        Decoder::load(Config::from_json(&self.config).unwrap(), &self.weights, &Device::Cpu).unwrap()
    }
}

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect()
}

/// The fixture's families and its prompt.
fn families() -> (Vec<Family>, Vec<u32>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/families/families.json");
    let fixture: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let family = |family: &Value| {
        let name = family["name"].as_str().unwrap().to_owned();
        let mut weights = Tensors::default();
        for (tensor, dims) in family["tensors"].as_object().unwrap() {
            let dims: Vec<usize> = dims.as_array().unwrap().iter().map(|dim| dim.as_u64().unwrap() as usize).collect();
            let middle = if name.starts_with("gemma") { 0.0 } else { 1.0 };
            weights.insert(tensor, Dtype::F32, &dims, &values(tensor, &dims, middle));
        }
        let config = family["config"].as_object().unwrap().clone();
        let activations = family["activations"].as_array().unwrap().iter().map(floats).collect();
        Family { name, config, weights, logits: floats(&family["logits"]), activations }
    };
    let families: Vec<Family> = fixture["families"].as_array().unwrap().iter().map(family).collect();
    assert_eq!(families.len(), 13);
    (families, fixture["prompt"].as_array().unwrap().iter().map(|token| token.as_u64().unwrap() as u32).collect())
}

/// What the fixture's maker calls `values`.
fn values(name: &str, dims: &[usize], norm_middle: f64) -> Vec<f32> {
    let hash = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325, hash);
    let (middle, spread) = match dims {
        [_] if name.contains("norm") => (norm_middle, 0.2),
        [_] => (0.0, 0.2),
        _ => (0.0, 1.7 / (*dims.last().unwrap() as f64).sqrt()),
    };
    let element = |index: u64| {
        let mut x = index.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(seed);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let unit = ((x ^ (x >> 31)) >> 40) as f64 / f64::from(1 << 23) - 1.0;
        (middle + spread * unit) as f32
    };
    (1..=dims.iter().product::<usize>() as u64).map(element).collect()
}

fn assert_close(name: &str, ours: &[f32], expected: &[f32]) {
    assert_eq!(ours.len(), expected.len(), "{name}");
    for (index, (ours, expected)) in ours.iter().zip(expected).enumerate() {
        assert!((ours - expected).abs() <= TOLERANCE, "{name}, {index}: {ours}, expected {expected}");
    }
}

fn last_row(values: &[f32], rows: usize) -> &[f32] {
    values.chunks_exact(values.len() / rows).last().unwrap()
}

#[test]
fn every_family_computes_what_transformers_does() {
    let (families, prompt) = families();
    for family in &families {
        let decoder = family.decoder();
        let batch = Batch::new([&prompt]).unwrap();
        let logits: Vec<f32> = decoder.logits(&batch, None).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        assert_close(&family.name, last_row(&logits, prompt.len()), &family.logits);
        let points: Vec<Point> = (0..family.activations.len()).map(Point::Activation).collect();
        let mut seen = 0;
        let visit = |point: Point, values: &[f32]| {
            let Point::Activation(layer) = point else { panic!("{point:?}") };
            let own = &last_row(values, prompt.len())[..4];
            assert_close(&format!("{} layer {layer}", family.name), own, &family.activations[layer]);
            seen += 1;
        };
        decoder.tap(&batch, None, &points, visit).unwrap();
        assert_eq!(seen, decoder.config().layers.len(), "{}", family.name);
    }
}

#[test]
fn a_stored_head_is_used_even_where_config_json_ties_it() {
    let (families, prompt) = families();
    let logits = |family: &Family| {
        let batch = Batch::new([&prompt]).unwrap();
        family.decoder().logits(&batch, None).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let mut tied = families.into_iter().find(|family| family.name == "gemma2").unwrap();
    let before = logits(&tied);
    let (vocabulary, hidden) =
        (tied.config["vocab_size"].as_u64().unwrap(), tied.config["hidden_size"].as_u64().unwrap());
    let dims = [vocabulary as usize, hidden as usize];
    tied.weights.insert("lm_head.weight", Dtype::F32, &dims, &values("another head", &dims, 0.0));
    let own = logits(&tied);
    tied.config.insert("tie_word_embeddings".to_owned(), false.into());
    assert_ne!(own, before);
    assert_eq!(own, logits(&tied));
}

#[test]
fn two_dialects_of_positions_that_differ_are_refused() {
    let (families, _) = families();
    for name in ["llama", "qwen3"] {
        let mut config = families.iter().find(|family| family.name == name).unwrap().config.clone();
        config.remove("rope_theta");
        config.insert("rope_parameters".to_owned(), serde_json::json!({"rope_type": "default", "rope_theta": 1e4}));
        config.insert("rope_scaling".to_owned(), Value::Object(Map::new()));
        assert!(Config::from_json(&config).is_ok(), "{name}");
        config.insert("rope_scaling".to_owned(), serde_json::json!({"rope_type": "linear", "factor": 2.0}));
        let error = Config::from_json(&config).unwrap_err().to_string();
        assert!(error.contains("rope_scaling"), "{error}");
        config.insert("rope_parameters".to_owned(), config["rope_scaling"].clone());
        assert!(Config::from_json(&config).is_ok(), "{name}: twice the same");
    }
}

#[test]
fn read_in_pieces_a_sequence_ends_in_the_same_logits() {
    let (families, prompt) = families();
    for family in &families {
        let decoder = family.decoder();
        let mut cache = Cache::default();
        let (first, second) = prompt.split_at(9);
        // Another sequence beside it, dropped on the way.
        decoder.extend(&mut cache, &Batch::new([&[5, 6, 7], first]).unwrap()).unwrap();
        cache.retain(|place| place == 1);
        let mut last = Vec::new();
        for piece in [&second[..1], &second[1..2], &second[2..]] {
            let logits = decoder.extend(&mut cache, &Batch::new([piece]).unwrap()).unwrap();
            last = logits.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        }
        assert_close(&family.name, &last, &family.logits);
    }
}

/// Deltas of two clusters at every site, every third row, and in a fused network at sites that are both halves.
fn deltas(decoder: &Decoder<'_>, fused: bool, scale: f32) -> SharedDeltas {
    let hidden = decoder.config().hidden;
    let layers = decoder.config().layers.len();
    let sites: Vec<Site> = match fused {
        true => (0..layers).map(|layer| Site::new(layer, Projection::GateUp)).collect(),
        false => decoder.config().sites().collect(),
    };
    let site = |site: Site| {
        let rows: Vec<u32> = (0..decoder.config().width(site.projection) as u32).step_by(3).collect();
        let clusters = rows.iter().map(|row| row % 2).collect();
        let mut deltas = SiteDeltas::zero(rows, clusters, 2, hidden);
        let drawn = values(&site.to_string(), &[2 * hidden], 0.0);
        deltas.values_mut().iter_mut().zip(drawn).for_each(|(value, drawn)| *value = scale * drawn);
        (site, deltas)
    };
    SharedDeltas::new(decoder.config(), sites.into_iter().map(site).collect()).unwrap()
}

#[test]
fn gradients_agree_with_finite_differences_in_every_family() {
    let (families, prompt) = families();
    let examples = [Example::response(&prompt[..9], &prompt[9..14]), Example::response(&prompt[14..17], &prompt[17..])];
    for family in &families {
        let decoder = family.decoder();
        let prepared = decoder.prepare(&examples, 0).unwrap();
        let batch: Vec<_> = prepared.iter().collect();
        for fused in [false, true] {
            if fused && family.name != "phi3" {
                let both = Site::new(0, Projection::GateUp);
                let own = SiteDeltas::zero(vec![0], vec![0], 1, decoder.config().hidden);
                let refused = SharedDeltas::new(decoder.config(), BTreeMap::from([(both, own)])).unwrap_err();
                assert!(refused.to_string().contains("gate and up in two"), "{refused}");
                continue;
            }
            let at = deltas(&decoder, fused, 0.5);
            let gradient = decoder.loss_and_gradients(&batch, &at).unwrap().deltas;
            // Recomputed on the way back instead of kept: the same bits.
            let frugal = family.decoder().with_trace_bytes(0).loss_and_gradients(&batch, &at).unwrap().deltas;
            assert_eq!(frugal, gradient, "{}", family.name);
            // Along the gradient itself, the slope is its length squared.
            let slope: f64 = gradient.iter().flat_map(|(_, site)| site.values()).map(|g| f64::from(g * g)).sum();
            let step = 5e-3 / slope.sqrt();
            let loss = |side: f64| {
                let mut moved = at.clone();
                for (into, (_, from)) in moved.values_mut().zip(gradient.iter()) {
                    into.iter_mut().zip(from.values()).for_each(|(into, from)| *into += (side * step) as f32 * from);
                }
                decoder.loss(&batch, &moved).unwrap()
            };
            let measured = (loss(1.0) - loss(-1.0)) / (2.0 * step);
            println!("{} {fused}: slope {slope:.6}, measured {measured:.6}", family.name);
            assert!((measured / slope - 1.0).abs() < 2e-3, "{} {fused}: {measured}, expected {slope}", family.name);
        }
    }
}

/// Vision towers hold modules of the same names; a patch has none of their tensors.
#[test]
fn sites_are_the_language_decoders_alone() {
    let (families, _) = families();
    let leaf = |name: &str| name.contains(".mlp.gate_proj.") || name.contains(".mlp.up_proj.");
    let mut towers = 0;
    for family in &families {
        let decoder = family.decoder();
        let edits = edits(decoder.config(), &family.weights, &deltas(&decoder, false, 0.5), None).unwrap();
        assert_eq!(edits.iter().len(), if family.name == "phi3" { 3 } else { 6 }, "{}", family.name);
        for edit in edits.iter() {
            let name = edit.tensor().as_str();
            assert!(!name.contains("visual") && !name.contains("vision"), "{name}");
            assert!(family.weights.has(name), "{name}");
        }
        towers += family.weights.0.keys().filter(|name| name.contains("visual") && leaf(name)).count();
    }
    assert!(towers >= 2, "no fixture has a vision tower with gate and up projections");
}

/// The fixture has the names that are on disk; those in memory since transformers 4.52 lead to the same network.
#[test]
fn a_multimodal_checkpoint_may_have_either_layout() {
    let (families, prompt) = families();
    for (name, on_disk) in
        [("gemma3", "language_model.model."), ("llava", "language_model.model."), ("qwen2_5_vl", "model.")]
    {
        let family = families.iter().find(|family| family.name == name).unwrap();
        let renamed = family.weights.0.iter().map(|(key, value)| {
            let key = key.replace("language_model.lm_head.", "lm_head.");
            let moved = key.strip_prefix(on_disk).map(|rest| format!("model.language_model.{rest}"));
            (moved.unwrap_or(key), value.clone())
        });
        let renamed = Tensors(renamed.collect());
        assert!(
            renamed.has("model.language_model.embed_tokens.weight") && !renamed.has("language_model.model.norm.weight")
        );
        let decoder = Decoder::load(Config::from_json(&family.config).unwrap(), &renamed, &Device::Cpu).unwrap();
        let logits = decoder.extend(&mut Cache::default(), &Batch::new([&prompt]).unwrap()).unwrap();
        assert_close(name, &logits.flatten_all().unwrap().to_vec1::<f32>().unwrap(), &family.logits);
        let site = decoder.config().site_tensor(Site::new(1, Projection::Up)).unwrap();
        assert_eq!(site.name.as_str(), "model.language_model.layers.1.mlp.up_proj.weight");
    }
}
