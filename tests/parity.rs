//! Agreement with transformers on reference checkpoints, and with candle-transformers as a second opinion.
//!
//! Every folder of the reference either agrees or is refused with an error that names what is unsupported.
#![cfg(feature = "create")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/oracle.rs"]
mod oracle;
#[path = "support/tensors.rs"]
mod tensors;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Llama, LlamaConfig};
use nestpatch::checkpoint::Checkpoint;
use nestpatch::decoder::{
    Activation, Batch, Config, Decoder, DecoderError, Example, Point, Projection, RopeScaling, SharedDeltas, Site,
    SiteDeltas, Target,
};
use serde_json::Value;
use tensors::Tensors;

/// Absolute, on f32 logits, hidden states and activations: ten times the noise between f32 and f64, and a seventh of
/// what the subtlest of 23 deliberate faults moves them.
const TOLERANCE: f32 = 1e-4;
/// Relative to the largest entry of a gradient.
const GRADIENT_TOLERANCE: f32 = 1e-4;

/// Folders that may not be refused.
const MUST_AGREE: [&str; 18] = [
    "gemma",
    "gemma2",
    "gemma3_mm",
    "gemma3_text",
    "llama3_untied_sharded",
    "llama_bias_odd",
    "llama_tied",
    "llava",
    "mistral_sliding",
    "phi3_fused",
    "phi3_longrope",
    "qwen2",
    "qwen2_5_vl",
    "qwen2_vl",
    "qwen2_yarn",
    "qwen3",
    "qwen3_vl",
    "stories260K",
];

#[test]
fn every_reference_checkpoint_agrees_or_is_refused_by_name() {
    let mut wrong = Vec::new();
    for (name, folder) in oracle::models() {
        match forward_error(&name, &folder) {
            Ok(largest) => {
                println!("{name}: largest error {largest:.1e}");
                if largest.is_nan() || largest > TOLERANCE {
                    wrong.push(format!("{name}: {largest}"));
                }
            }
            // A prompt longer than the network's positions is refused by their name.
            Err(error @ (DecoderError::Unsupported { .. } | DecoderError::Batch { .. })) => {
                println!("{name}: refused: {error}");
                if MUST_AGREE.contains(&name.trim_end_matches("_bf16").trim_end_matches("_f16")) {
                    wrong.push(format!("{name}: refused: {error}"));
                }
            }
            Err(error) => wrong.push(format!("{name}: {error}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The largest difference over hidden states, activations and logits of all prompts, in all layouts of the tensors and
/// all dialects of config.json that there are.
fn forward_error(name: &str, folder: &Path) -> Result<f32, DecoderError> {
    let reference = Tensors::read(&folder.join("ref.safetensors"));
    let mut largest = 0.0_f32;
    for checkpoint in ["ckpt", "ckpt_newlayout"].map(|checkpoint| folder.join(checkpoint)) {
        let configs = dialects(name, folder, &checkpoint);
        if !checkpoint.is_dir() || configs.is_empty() {
            continue;
        }
        let checkpoint = Checkpoint::open(&checkpoint).unwrap();
        for config in configs {
            let decoder = Decoder::load(Config::from_json(&oracle::json(&config))?, &checkpoint, &Device::Cpu)?;
            for prompt in (0..4).map(|index| format!("p{index}")) {
                if reference.has(&format!("{prompt}.logits")) {
                    largest = worse(largest, prompt_error(&decoder, &reference, &prompt)?);
                }
            }
        }
    }
    Ok(largest)
}

/// config.json of a checkpoint as several versions of transformers write it.
fn dialects(name: &str, folder: &Path, checkpoint: &Path) -> Vec<PathBuf> {
    let file = format!("{}.json", name.trim_end_matches("_bf16").trim_end_matches("_f16"));
    let layouts = folder.join("../../layouts");
    let other = ["4.49.0", "4.57.6", "5.23.0"].map(|version| layouts.join(format!("config_{version}")).join(&file));
    let own = [checkpoint.join("config.json"), folder.join("config_4x.json")];
    own.into_iter().chain(other).filter(|path| path.is_file()).collect()
}

fn prompt_error(decoder: &Decoder, reference: &Tensors, prompt: &str) -> Result<f32, DecoderError> {
    let batch = Batch::new([reference.tokens(&format!("{prompt}.input_ids"))])?;
    let layers = decoder.config().layers.len();
    let mut points: Vec<(Point, String)> = vec![(Point::Normed, format!("{prompt}.hidden.{layers}"))];
    for layer in 0..layers {
        points.push((Point::Hidden(layer), format!("{prompt}.hidden.{layer}")));
        points.push((Point::Activation(layer), format!("{prompt}.ffn_act.{layer}")));
    }
    let names: BTreeMap<Point, String> = points.into_iter().collect();
    let wanted: Vec<Point> = names.keys().copied().collect();
    let (mut largest, mut seen) = (0.0, 0);
    decoder.tap(&batch, None, &wanted, |point, values| {
        largest = worse(largest, difference(values, &reference.f32s(&names[&point])));
        seen += 1;
    })?;
    assert_eq!(seen, names.len(), "every point is shown once");
    let logits = decoder.logits(&batch, None)?.flatten_all()?.to_vec1::<f32>()?;
    Ok(worse(largest, difference(&logits, &reference.f32s(&format!("{prompt}.logits")))))
}

#[test]
fn gradients_of_shared_deltas_agree_with_the_reference() {
    for (name, folder) in oracle::models() {
        let reference = Tensors::read(&folder.join("ref.safetensors"));
        let Ok(config) = Config::from_json(&oracle::json(&folder.join("ckpt/config.json"))) else { continue };
        if !reference.has("grad.zero.grad") {
            continue;
        }
        let checkpoint = Checkpoint::open(&folder.join("ckpt")).unwrap();
        let decoder = Decoder::load(config, &checkpoint, &Device::Cpu).unwrap();
        for at in ["zero", "rand"] {
            let deltas = deltas(&decoder, &reference, &format!("grad.{at}.delta"));
            let examples = ["p1", "p2"].map(|prompt| last_eight(&reference.tokens(&format!("{prompt}.input_ids"))));
            let prepared = decoder.prepare(&examples, 0).unwrap();
            let batch: Vec<_> = prepared.iter().collect();
            let found = decoder.loss_and_gradients(&batch, &deltas).unwrap();
            let loss = (found.loss - f64::from(reference.f32s(&format!("grad.{at}.loss"))[0])).abs();
            let expected = reference.f32s(&format!("grad.{at}.grad"));
            let error = difference(&flat(&decoder, &reference, &found.deltas), &expected) / largest(&expected);
            println!("{name}: {at}: loss off by {loss:.1e}, gradient by {error:.1e} of its largest entry");
            assert!(loss < 1e-5, "{name} {at}: loss {} off by {loss}", found.loss);
            assert!(error < GRADIENT_TOLERANCE, "{name} {at}: gradient off by {error}");
        }
        let tuned = deltas(&decoder, &reference, "grad.adamw.delta.5");
        let batch = Batch::new([reference.tokens("p1.input_ids")]).unwrap();
        let logits = decoder.logits(&batch, Some(&tuned)).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let error = difference(&logits, &reference.f32s("grad.folded.p1.logits"));
        println!("{name}: logits with deltas off by {error:.1e} from folded ones");
        assert!(error < TOLERANCE, "{name}: logits with deltas off by {error}");
    }
}

/// The loss of the reference gradients: the mean over the last eight tokens of each prompt.
fn last_eight(tokens: &[u32]) -> Example {
    let first = tokens.len() - 8;
    let target = |position: usize| Target { position: position - 1, token: tokens[position], weight: 1.0 };
    Example::new(tokens.to_vec(), (first..tokens.len()).map(target).collect())
}

/// The clusters of the reference, layer by layer: their numbers and their neurons.
fn clusters(decoder: &Decoder, reference: &Tensors) -> Vec<Vec<(usize, Vec<u32>)>> {
    let mut layers = vec![vec![]; decoder.config().layers.len()];
    for cluster in 0..reference.shape("grad.zero.delta")[1] {
        let layer = reference.tokens(&format!("grad.cluster.{cluster}.layer"))[0] as usize;
        layers[layer].push((cluster, reference.tokens(&format!("grad.cluster.{cluster}.neurons"))));
    }
    layers
}

/// Shared deltas from a reference tensor `[part, cluster, hidden]`.
fn deltas(decoder: &Decoder, reference: &Tensors, name: &str) -> SharedDeltas {
    let hidden = decoder.config().hidden;
    let (values, count) = (reference.f32s(name), reference.shape(name)[1]);
    let mut sites = BTreeMap::new();
    for (layer, clusters) in clusters(decoder, reference).iter().enumerate() {
        let mut members: Vec<(u32, u32)> = Vec::new();
        for (index, (_, neurons)) in clusters.iter().enumerate() {
            members.extend(neurons.iter().map(|neuron| (*neuron, index as u32)));
        }
        members.sort_unstable();
        // A neuron may be in two clusters of the reference only if its deltas add; here none is.
        assert!(members.windows(2).all(|pair| pair[0].0 < pair[1].0));
        for (part, projection) in Projection::HALVES.into_iter().enumerate() {
            let (rows, of) = members.iter().copied().unzip();
            let mut deltas = SiteDeltas::zero(rows, of, clusters.len(), hidden);
            for (into, (cluster, _)) in deltas.values_mut().chunks_exact_mut(hidden).zip(clusters) {
                let from = (part * count + cluster) * hidden;
                into.copy_from_slice(&values[from..from + hidden]);
            }
            sites.insert(Site { layer, projection }, deltas);
        }
    }
    SharedDeltas::new(decoder.config(), sites).unwrap()
}

/// The inverse of [`deltas`].
fn flat(decoder: &Decoder, reference: &Tensors, deltas: &SharedDeltas) -> Vec<f32> {
    let hidden = decoder.config().hidden;
    let count = reference.shape("grad.zero.delta")[1];
    let mut flat = vec![f32::NAN; 2 * count * hidden];
    for (layer, clusters) in clusters(decoder, reference).iter().enumerate() {
        for (part, projection) in Projection::HALVES.into_iter().enumerate() {
            let site = deltas.get(Site { layer, projection }).unwrap();
            for (from, (cluster, _)) in site.values().chunks_exact(hidden).zip(clusters) {
                let into = (part * count + cluster) * hidden;
                flat[into..into + hidden].copy_from_slice(from);
            }
        }
    }
    flat
}

#[test]
fn candle_transformers_gives_the_same_logits() {
    for (name, folder) in oracle::models() {
        let mut config = oracle::json(&folder.join("ckpt/config.json"));
        let Ok(ours) = Config::from_json(&config) else { continue };
        if !candle_computes(&ours) || config.contains_key("text_config") {
            continue;
        }
        // candle-transformers reads only the older dialect.
        if let Some(rope) = config.remove("rope_parameters") {
            config.insert("rope_theta".to_owned(), rope["rope_theta"].clone());
            let scaled = rope["rope_type"] != "default";
            config.insert("rope_scaling".to_owned(), if scaled { rope } else { Value::Null });
        }
        let tensors = Tensors::checkpoint(&folder.join("ckpt"));
        let decoder = Decoder::load(ours, &tensors, &Device::Cpu).unwrap();
        let theirs: LlamaConfig = serde_json::from_value(config.into()).unwrap();
        let theirs = theirs.into_config(false);
        let llama = Llama::load(widened(&tensors), &theirs).unwrap();
        let reference = Tensors::read(&folder.join("ref.safetensors"));
        let tokens = reference.tokens("p2.input_ids");
        let input = Tensor::new(tokens.as_slice(), &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let mut cache = Cache::new(false, DType::F32, &theirs, &Device::Cpu).unwrap();
        let expected = llama.forward(&input, 0, &mut cache).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let logits = decoder.logits(&Batch::new([&tokens]).unwrap(), None).unwrap();
        let logits = logits.get(tokens.len() - 1).unwrap().to_vec1::<f32>().unwrap();
        let error = difference(&logits, &expected);
        println!("{name}: logits off by {error:.1e} from candle-transformers");
        assert!(error < TOLERANCE, "{name}: {error}");
    }
}

/// candle's Llama ignores biases and a width of heads of its own, and knows one activation and two kinds of positions.
fn candle_computes(config: &Config) -> bool {
    let shape = config.attention;
    config.architecture == "llama"
        && config.activation == Activation::Silu
        && !(shape.bias || config.mlp_bias)
        && shape.heads * shape.head_dim == config.hidden
        && config.ropes.iter().all(|rope| matches!(rope.scaling, RopeScaling::None | RopeScaling::Llama3 { .. }))
}

fn widened(tensors: &Tensors) -> VarBuilder<'static> {
    let load = |(name, (dtype, shape, bytes)): (&String, &(safetensors::Dtype, Vec<usize>, Vec<u8>))| {
        let dtype = DType::try_from(*dtype).unwrap();
        let tensor = Tensor::from_raw_buffer(bytes, dtype, shape, &Device::Cpu).unwrap();
        (name.clone(), tensor.to_dtype(DType::F32).unwrap())
    };
    VarBuilder::from_tensors(tensors.0.iter().map(load).collect(), DType::F32, &Device::Cpu)
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, worse)
}

fn largest(values: &[f32]) -> f32 {
    values.iter().map(|value| value.abs()).fold(0.0, worse)
}

/// The larger, and NaN where either is.
fn worse(a: f32, b: f32) -> f32 {
    if a.is_nan() || a > b { a } else { b }
}
