//! The self-checks of shared deltas on small random networks: identity, gradients, folding, batching.
#![cfg(feature = "create")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/tensors.rs"]
mod tensors;

use std::collections::BTreeMap;

use candle_core::Device;
use nestpatch::decoder::{
    Batch, Config, Decoder, DecoderError, Example, Point, Prepared, Projection, RopeScaling, SharedDeltas, Site,
    SiteDeltas, Target,
};
use nestpatch::fold::fold_row;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::Dtype;
use serde_json::{Map, Value, json};
use tensors::Tensors;

const HIDDEN: usize = 20;
const FFN: usize = 37;
const LAYERS: usize = 3;
const VOCABULARY: usize = 29;

fn config(change: Value) -> Map<String, Value> {
    let mut config = json!({
        "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": FFN, "num_hidden_layers": LAYERS,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "vocab_size": VOCABULARY,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "hidden_act": "silu", "attention_bias": true,
        "mlp_bias": true, "tie_word_embeddings": false,
        "rope_parameters": {"rope_theta": 1000.0, "rope_type": "linear", "factor": 2.0},
    });
    let map = config.as_object_mut().unwrap();
    map.extend(change.as_object().unwrap().clone());
    map.clone()
}

/// Random weights of about the scale that trained ones have.
fn weights(dtype: Dtype, seed: u64) -> Tensors {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut tensors = Tensors::default();
    let mut add = |name: &str, shape: &[usize]| {
        let (middle, spread) = match (shape.len(), name.ends_with("norm.weight")) {
            (1, true) => (1.0, 0.2),
            (1, false) => (0.0, 0.2),
            _ => (0.0, 1.7 / (shape[1] as f32).sqrt()),
        };
        let values: Vec<f32> =
            (0..shape.iter().product()).map(|_| middle + spread * rng.random_range(-1.0..1.0)).collect();
        tensors.insert(name, dtype, shape, &values);
    };
    add("model.embed_tokens.weight", &[VOCABULARY, HIDDEN]);
    for layer in 0..LAYERS {
        let linears = [
            ("self_attn.q_proj", 24, HIDDEN),
            ("self_attn.k_proj", 12, HIDDEN),
            ("self_attn.v_proj", 12, HIDDEN),
            ("self_attn.o_proj", HIDDEN, 24),
            ("mlp.gate_proj", FFN, HIDDEN),
            ("mlp.up_proj", FFN, HIDDEN),
            ("mlp.down_proj", HIDDEN, FFN),
        ];
        for (leaf, rows, cols) in linears {
            add(&format!("model.layers.{layer}.{leaf}.weight"), &[rows, cols]);
            add(&format!("model.layers.{layer}.{leaf}.bias"), &[rows]);
        }
        add(&format!("model.layers.{layer}.input_layernorm.weight"), &[HIDDEN]);
        add(&format!("model.layers.{layer}.post_attention_layernorm.weight"), &[HIDDEN]);
    }
    add("model.norm.weight", &[HIDDEN]);
    add("lm_head.weight", &[VOCABULARY, HIDDEN]);
    tensors
}

fn load(weights: &Tensors) -> Decoder<'_> {
    Decoder::load(Config::from_json(&config(json!({}))).unwrap(), weights, &Device::Cpu).unwrap()
}

fn decoder() -> Decoder<'static> {
    load(Box::leak(Box::new(weights(Dtype::F32, 1))))
}

/// Three clusters of every third row at every site from layer `lowest` on.
fn deltas(decoder: &Decoder, lowest: usize, scale: f32) -> SharedDeltas {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let sites = decoder.config().sites().filter(|site| site.layer >= lowest).map(|site| {
        let offset = site.layer as u32 + u32::from(site.projection == Projection::Up);
        let rows: Vec<u32> = (offset..FFN as u32).step_by(3).collect();
        let clusters = rows.iter().map(|_| rng.random_range(0..3)).collect();
        let mut deltas = SiteDeltas::zero(rows, clusters, 3, HIDDEN);
        deltas.values_mut().iter_mut().for_each(|value| *value = scale * rng.random_range(-1.0..1.0));
        (site, deltas)
    });
    SharedDeltas::new(decoder.config(), sites.collect()).unwrap()
}

fn examples() -> Vec<Example> {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut tokens = |count| (0..count).map(|_| rng.random_range(0..VOCABULARY as u32)).collect::<Vec<_>>();
    let lengths = [(4, 3), (9, 1), (1, 6), (12, 5)];
    lengths.map(|(prompt, response)| Example::response(&tokens(prompt), &tokens(response))).into()
}

fn refs(prepared: &[Prepared]) -> Vec<&Prepared> {
    prepared.iter().collect()
}

fn logits(decoder: &Decoder, deltas: Option<&SharedDeltas>) -> Vec<f32> {
    let batch = Batch::new(examples().iter().map(Example::tokens)).unwrap();
    decoder.logits(&batch, deltas).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn flat(deltas: &SharedDeltas) -> Vec<f32> {
    deltas.iter().flat_map(|(_, deltas)| deltas.values().to_vec()).collect()
}

fn assert_close(a: &[f32], b: &[f32], relative: f32) {
    assert_eq!(a.len(), b.len());
    let scale = b.iter().map(|value| value.abs()).fold(1e-6, f32::max);
    for (index, (a, b)) in a.iter().zip(b).enumerate() {
        assert!((a - b).abs() <= relative * scale, "{index}: {a} and {b}, largest {scale}");
    }
}

#[test]
fn deltas_of_zero_give_the_logits_of_the_base() {
    for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16] {
        let weights = weights(dtype, 1);
        let decoder = load(&weights);
        let zero = deltas(&decoder, 0, 0.0);
        assert_eq!(logits(&decoder, Some(&zero)), logits(&decoder, None));
        let moved = deltas(&decoder, 0, 0.1);
        assert_ne!(logits(&decoder, Some(&moved)), logits(&decoder, None));
    }
}

#[test]
fn gradients_agree_with_finite_differences() {
    let decoder = decoder();
    let prepared = decoder.prepare(&examples(), 0).unwrap();
    let batch = refs(&prepared);
    let at = deltas(&decoder, 0, 0.1);
    let found = decoder.loss_and_gradients(&batch, &at).unwrap();
    assert!((found.loss - decoder.loss(&batch, &at).unwrap()).abs() < 1e-12);
    let ours = flat(&found.deltas);
    let moved = |index: usize, step: f32| {
        let mut moved = at.clone();
        let value = moved.values_mut().flatten().nth(index).unwrap();
        *value += step;
        decoder.loss(&batch, &moved).unwrap()
    };
    // Richardson's rule: the error of central differences falls with the fourth power of the step.
    let slope = |index: usize| {
        let step = 0.03;
        let near = moved(index, step) - moved(index, -step);
        let far = moved(index, 2.0 * step) - moved(index, -2.0 * step);
        ((8.0 * near - far) / (12.0 * f64::from(step))) as f32
    };
    let expected: Vec<f32> = (0..at.parameters()).map(slope).collect();
    let largest = expected.iter().map(|value| value.abs()).fold(0.0, f32::max);
    let error = ours.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    println!("{} parameters: off by {:.1e} of the largest", ours.len(), error / largest);
    assert!(largest > 1e-2, "the test has something to measure: {largest}");
    assert_close(&ours, &expected, 1e-3);
}

#[test]
fn a_shared_gradient_is_the_sum_over_its_rows() {
    let decoder = decoder();
    let prepared = decoder.prepare(&examples(), 0).unwrap();
    let shared = deltas(&decoder, 0, 0.1);
    let grads = decoder.loss_and_gradients(&refs(&prepared), &shared).unwrap().deltas;
    let own = one_cluster_a_row(&decoder, &shared);
    let row_grads = decoder.loss_and_gradients(&refs(&prepared), &own).unwrap().deltas;
    for (site, grad) in grads.iter() {
        let mut sums = vec![0.0; grad.values().len()];
        let rows = row_grads.get(site).unwrap().values().chunks_exact(HIDDEN);
        for (cluster, row) in grad.clusters().iter().zip(rows) {
            let sum = &mut sums[*cluster as usize * HIDDEN..][..HIDDEN];
            sum.iter_mut().zip(row).for_each(|(sum, row)| *sum += row);
        }
        assert_close(grad.values(), &sums, 1e-5);
    }
}

/// The same weights as `shared` with k = m: every row its own cluster.
fn one_cluster_a_row(decoder: &Decoder, shared: &SharedDeltas) -> SharedDeltas {
    let sites = shared.iter().map(|(site, shared)| {
        let rows = shared.rows().to_vec();
        let clusters = (0..rows.len() as u32).collect();
        let mut own = SiteDeltas::zero(rows, clusters, shared.rows().len(), HIDDEN);
        for (into, cluster) in own.values_mut().chunks_exact_mut(HIDDEN).zip(shared.clusters()) {
            into.copy_from_slice(&shared.values()[*cluster as usize * HIDDEN..][..HIDDEN]);
        }
        (site, own)
    });
    SharedDeltas::new(decoder.config(), sites.collect()).unwrap()
}

#[test]
fn folded_weights_give_the_logits_of_the_side_path() {
    // What rounding the folded rows to the element type costs, relative to the largest logit.
    for (dtype, tolerance) in [(Dtype::F32, 1e-5), (Dtype::F16, 2e-3), (Dtype::BF16, 2e-2)] {
        let weights = weights(dtype, 1);
        let mut folded = weights.clone();
        let decoder = load(&weights);
        let deltas = deltas(&decoder, 0, 0.1);
        let unfolded = logits(&decoder, Some(&deltas));
        for (site, deltas) in deltas.iter() {
            let name = decoder.config().site_tensor(site).unwrap().name;
            let (dtype, _, bytes) = folded.0.get_mut(name.as_str()).unwrap();
            let dtype = format!("{dtype:?}").parse().unwrap();
            let width = bytes.len() / FFN;
            for (row, cluster) in deltas.rows().iter().zip(deltas.clusters()) {
                let row = &mut bytes[*row as usize * width..][..width];
                fold_row(dtype, row, &deltas.values()[*cluster as usize * HIDDEN..][..HIDDEN]).unwrap();
            }
        }
        assert_close(&logits(&load(&folded), None), &unfolded, tolerance);
    }
}

#[test]
fn a_batch_gives_what_its_sequences_give_alone() {
    let decoder = decoder();
    let deltas = deltas(&decoder, 0, 0.1);
    let together = logits(&decoder, Some(&deltas));
    let alone: Vec<f32> = examples()
        .iter()
        .flat_map(|example| {
            let batch = Batch::new([example.tokens()]).unwrap();
            decoder.logits(&batch, Some(&deltas)).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        })
        .collect();
    assert_close(&together, &alone, 1e-5);

    let prepared = decoder.prepare(&examples(), 0).unwrap();
    let whole = decoder.loss_and_gradients(&refs(&prepared), &deltas).unwrap();
    let targets: usize = prepared.iter().map(Prepared::targets).sum();
    let (mut loss, mut sum) = (0.0, vec![0.0; deltas.parameters()]);
    for one in &prepared {
        let share = one.targets() as f32 / targets as f32;
        let part = decoder.loss_and_gradients(&[one], &deltas).unwrap();
        loss += f64::from(share) * part.loss;
        sum.iter_mut().zip(flat(&part.deltas)).for_each(|(sum, part)| *sum += share * part);
    }
    assert!((whole.loss - loss).abs() < 1e-5, "{} and {loss}", whole.loss);
    assert_close(&flat(&whole.deltas), &sum, 1e-5);
}

#[test]
fn the_loss_is_the_cross_entropy_of_the_logits() {
    let decoder = decoder();
    let deltas = deltas(&decoder, 0, 0.1);
    let (mut total, mut count) = (0.0, 0.0);
    for example in examples() {
        let batch = Batch::new([example.tokens()]).unwrap();
        let logits: Vec<Vec<f32>> = decoder.logits(&batch, Some(&deltas)).unwrap().to_vec2().unwrap();
        for target in example.targets() {
            let row = &logits[target.position];
            let sum: f64 = row.iter().map(|logit| f64::from(*logit).exp()).sum();
            total += sum.ln() - f64::from(row[target.token as usize]);
            count += 1.0;
        }
    }
    let prepared = decoder.prepare(&examples(), 0).unwrap();
    let loss = decoder.loss(&refs(&prepared), &deltas).unwrap();
    assert!((loss - total / count).abs() < 1e-5, "{loss} and {}", total / count);
}

#[test]
fn target_weights_weigh() {
    let decoder = decoder();
    let deltas = deltas(&decoder, 0, 0.1);
    let weighted = |weights: [f32; 2]| {
        let target = |position: usize, weight| Target { position, token: 3, weight };
        let example = Example::new(vec![1, 2, 3, 4], vec![target(1, weights[0]), target(3, weights[1])]);
        let prepared = decoder.prepare(&[example], 0).unwrap();
        decoder.loss_and_gradients(&[&prepared[0]], &deltas).map(|found| (found.loss, flat(&found.deltas)))
    };
    let ((first, first_grad), (second, second_grad)) = (weighted([2.0, 0.0]).unwrap(), weighted([0.0, 1.0]).unwrap());
    let (both, both_grad) = weighted([3.0, 1.0]).unwrap();
    assert!((both - (0.75 * first + 0.25 * second)).abs() < 1e-6);
    let mean: Vec<f32> = first_grad.iter().zip(&second_grad).map(|(a, b)| 0.75 * a + 0.25 * b).collect();
    assert_close(&both_grad, &mean, 1e-5);
    assert!(matches!(weighted([0.0, 0.0]), Err(DecoderError::Batch { .. })));
}

#[test]
fn what_is_kept_or_prepared_does_not_change_the_gradient() {
    let (keeping, frugal) = (decoder(), decoder().with_trace_bytes(0));
    let half = decoder().with_trace_bytes(9_000);
    for lowest in 0..LAYERS {
        let deltas = deltas(&keeping, lowest, 0.1);
        let expected = keeping.loss_and_gradients(&refs(&keeping.prepare(&examples(), 0).unwrap()), &deltas).unwrap();
        for decoder in [&frugal, &half] {
            let prepared = decoder.prepare(&examples(), 0).unwrap();
            assert_eq!(decoder.loss_and_gradients(&refs(&prepared), &deltas).unwrap(), expected);
        }
        let prepared = keeping.prepare(&examples(), lowest).unwrap();
        let above = keeping.loss_and_gradients(&refs(&prepared), &deltas).unwrap();
        assert!((above.loss - expected.loss).abs() < 1e-6);
        assert_close(&flat(&above.deltas), &flat(&expected.deltas), 1e-5);
    }
}

#[test]
fn where_weights_lie_changes_no_bit() {
    for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16] {
        let weights = weights(dtype, 1);
        let all = load(&weights);
        let deltas = deltas(&all, 0, 0.1);
        let prepared = all.prepare(&examples(), 0).unwrap();
        let expected = all.loss_and_gradients(&refs(&prepared), &deltas).unwrap();
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        for resident in [0, 3000, 12_000] {
            let config = Config::from_json(&config(json!({}))).unwrap();
            let some = Decoder::load_within(config, &weights, &Device::Cpu, resident).unwrap();
            assert_eq!(bits(logits(&some, Some(&deltas))), bits(logits(&all, Some(&deltas))));
            let prepared = some.prepare(&examples(), 0).unwrap();
            assert_eq!(some.loss_and_gradients(&refs(&prepared), &deltas).unwrap(), expected);
        }
    }
}

#[test]
fn a_weight_that_is_not_a_number_is_found_when_it_is_read() {
    let mut weights = weights(Dtype::BF16, 1);
    let name = "model.layers.1.mlp.up_proj.weight";
    weights.0.get_mut(name).unwrap().2[82..84].copy_from_slice(&[0x80, 0x7f]);
    let config = Config::from_json(&config(json!({}))).unwrap();
    let decoder = Decoder::load_within(config, &weights, &Device::Cpu, 0).unwrap();
    let error = decoder.logits(&Batch::new([[1, 2]]).unwrap(), None).unwrap_err();
    assert_eq!(error.to_string(), format!("tensor {name}: element 41 is inf; expected finite numbers"));
}

#[test]
fn examples_prepared_above_a_site_are_refused() {
    let decoder = decoder();
    let prepared = decoder.prepare(&examples(), 1).unwrap();
    let error = decoder.loss_and_gradients(&refs(&prepared), &deltas(&decoder, 0, 0.1)).unwrap_err();
    assert!(error.to_string().contains("layer 0 gate"), "{error}");
}

#[test]
fn a_tap_sees_the_linear_output_of_its_site() {
    let decoder = decoder();
    let batch = Batch::new([[1, 2, 3], [4, 5, 6]]).unwrap();
    let (gate, up) = (Site::new(1, Projection::Gate), Site::new(1, Projection::Up));
    let points = [Point::Activation(1), Point::Site(gate), Point::Site(up)];
    let mut seen = BTreeMap::new();
    decoder.tap(&batch, None, &points, |point, values| assert!(seen.insert(point, values.to_vec()).is_none())).unwrap();
    assert_eq!(seen.len(), 3);
    let gated = seen[&Point::Site(gate)].iter().zip(&seen[&Point::Site(up)]).map(|(g, u)| g / (1.0 + (-g).exp()) * u);
    assert_close(&gated.collect::<Vec<f32>>(), &seen[&Point::Activation(1)], 1e-6);
    assert_eq!(seen[&Point::Site(gate)].len(), 6 * FFN);
    let beyond = [Point::Site(Site::new(LAYERS, Projection::Up))];
    assert!(decoder.tap(&batch, None, &beyond, |_, _| ()).is_err());
}

#[test]
fn wrong_input_is_named() {
    let decoder = decoder();
    let refused = |tokens: Vec<u32>| decoder.logits(&Batch::new([vec![1], tokens])?, None).map(|_| ());
    let outside = refused(vec![0, VOCABULARY as u32]).unwrap_err().to_string();
    assert!(outside.contains("sequence 1") && outside.contains("29"), "{outside}");
    assert!(refused(vec![0; 65]).unwrap_err().to_string().contains("64"));
    assert!(refused(vec![]).is_err());
    let target = |position| Example::new(vec![1, 2], vec![Target { position, token: 1, weight: 1.0 }]);
    let error = decoder.prepare(&[target(1), target(2)], 0).unwrap_err().to_string();
    assert!(error.contains("sequence 1") && error.contains("position 2"), "{error}");
    let rows = |rows: Vec<u32>, clusters: Vec<u32>| {
        let site = Site::new(2, Projection::Up);
        let deltas = SiteDeltas::zero(rows, clusters, 2, HIDDEN);
        SharedDeltas::new(decoder.config(), BTreeMap::from([(site, deltas)])).map(|_| ())
    };
    assert!(rows(vec![0, 36], vec![0, 1]).is_ok());
    for (wrong, clusters) in [(vec![36, 37], vec![0, 1]), (vec![2, 1], vec![0, 1]), (vec![1, 2], vec![0, 2])] {
        let error = rows(wrong, clusters).unwrap_err().to_string();
        assert!(error.contains("layer 2 up"), "{error}");
    }
}

#[test]
fn wrong_weights_are_named() {
    let name = "model.layers.1.mlp.up_proj.weight";
    let refused = |change: &dyn Fn(&mut Tensors)| {
        let mut weights = weights(Dtype::F16, 1);
        change(&mut weights);
        let config = Config::from_json(&config(json!({}))).unwrap();
        let error = Decoder::load(config, &weights, &Device::Cpu).expect_err("a wrong weight").to_string();
        assert!(error.contains("model.layers.1."), "{error}");
        error
    };
    assert!(refused(&|weights| assert!(weights.0.remove(name).is_some())).contains("no tensor"));
    let nan = |weights: &mut Tensors| weights.0.get_mut(name).unwrap().2[8..10].copy_from_slice(&[0xff, 0xff]);
    assert!(refused(&nan).contains("element 4 is NaN"));
    let turned = |weights: &mut Tensors| weights.0.get_mut(name).unwrap().1.reverse();
    assert!(refused(&turned).contains("[37, 20]"));
    let stored = |weights: &mut Tensors| weights.0.get_mut(name).unwrap().0 = Dtype::I16;
    assert!(refused(&stored).contains("I16"));
    let extra =
        |weights: &mut Tensors| weights.insert("model.layers.1.self_attn.q_norm.weight", Dtype::F32, &[1], &[1.0]);
    assert!(refused(&extra).contains("not part of a llama decoder"));
}

#[test]
fn unsupported_configurations_are_named() {
    let cases = [
        (json!({"model_type": "mamba"}), "mamba"),
        (json!({"hidden_act": "relu2"}), "relu2"),
        (json!({"rope_parameters": {"rope_theta": 1e4, "rope_type": "axial", "factor": 4.0}}), "axial"),
        (json!({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}), "partial_rotary_factor"),
        (json!({"quantization_config": {"quant_method": "gptq"}}), "quantization_config"),
        (json!({"num_key_value_heads": 3}), "num_key_value_heads"),
        (json!({"head_dim": 7}), "head_dim"),
        (json!({"model_type": "llava"}), "text_config"),
        (json!({"model_type": "llava", "text_config": {"model_type": "mamba"}}), "text_config.model_type: \"mamba\""),
        (json!({"model_type": "qwen2", "layer_types": ["linear_attention"]}), "linear_attention"),
        (json!({"model_type": "qwen2", "layer_types": ["full_attention"]}), "layer_types"),
        (
            json!({"model_type": "gemma", "hidden_act": "gelu", "use_bidirectional_attention": true}),
            "use_bidirectional_attention",
        ),
        (
            json!({"model_type": "mistral", "layer_types": ["full_attention", "full_attention", "full_attention"]}),
            "layer_types",
        ),
        (json!({"model_type": "qwen3_vl", "text_config": {"hidden_size": "8"}}), "text_config.hidden_size"),
        (json!({"model_type": "qwen3_vl_text", "rope_parameters": {"rope_type": "default"}}), "rope_theta"),
        (json!({"model_type": "gemma", "hidden_act": "gelu", "hidden_activation": "silu"}), "hidden_activation"),
        (json!({"model_type": "gemma3_text", "attn_logit_softcapping": 5.0}), "attn_logit_softcapping"),
        (json!({"model_type": "gemma3_text"}), "rope_parameters.full_attention"),
        (
            json!({"model_type": "gemma3_text", "rope_parameters": null, "rope_scaling": {"type": "linear", "factor": 8.0}}),
            "rope_scaling.rope_type",
        ),
        (
            json!({"model_type": "gemma3", "text_config": {"final_logit_softcapping": 5.0}}),
            "text_config.final_logit_softcapping",
        ),
        (json!({"model_type": "phi3", "head_dim": 6}), "longrope or default"),
        (json!({"hidden_size": "20"}), "hidden_size"),
        (json!({"intermediate_size": null}), "intermediate_size"),
        (json!({"rms_norm_eps": -1.0}), "rms_norm_eps"),
    ];
    for (change, named) in cases {
        let error = Config::from_json(&config(change)).unwrap_err().to_string();
        assert!(error.contains(named) && error.starts_with("config.json: "), "{error}");
    }
}

/// Which layers have a window where config.json does not list them.
#[test]
fn windows_follow_from_older_keys() {
    let windows = |change: Value| {
        let config = Config::from_json(&config(change)).unwrap();
        config.layers.iter().map(|layer| layer.window).collect::<Vec<_>>()
    };
    let qwen = |on: bool| json!({"model_type": "qwen2", "use_sliding_window": on, "sliding_window": 8, "max_window_layers": 1});
    assert_eq!(windows(qwen(true)), [None, Some(8), Some(8)]);
    assert_eq!(windows(qwen(false)), [None; 3]);
    let from_the_first =
        json!({"model_type": "qwen2", "use_sliding_window": true, "sliding_window": 8, "max_window_layers": 0});
    assert_eq!(windows(from_the_first), [Some(8); 3]);
    assert_eq!(windows(json!({"model_type": "mistral", "sliding_window": null})), [None; 3]);
    assert_eq!(windows(json!({"model_type": "mistral"})), [Some(4096); 3]);
    let plain = json!({"model_type": "phi3", "sliding_window": 5, "rope_parameters": null});
    assert_eq!(windows(plain), [Some(5); 3]);
    let gelu = |model: &str| json!({"model_type": model, "hidden_act": "gelu_pytorch_tanh", "rope_parameters": null});
    assert_eq!(windows(gelu("gemma2")), [Some(4096), None, Some(4096)]);
    assert_eq!(windows(gelu("gemma3_text")), [Some(4096); 3]);
}

/// Files of multimodal checkpoints leave out what transformers' classes have by default.
#[test]
fn what_a_multimodal_file_leaves_out_is_as_in_transformers() {
    let read = |value: Value| Config::from_json(value.as_object().unwrap()).unwrap();
    let llava = read(json!({"model_type": "llava", "text_config": {"model_type": "llama", "vocab_size": 32064,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}}));
    assert_eq!((llava.hidden, llava.feed_forward, llava.layers.len()), (4096, 11008, 32));
    assert_eq!((llava.attention.heads, llava.attention.kv_heads, llava.attention.head_dim), (32, 32, 128));
    let gemma = read(json!({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "hidden_size": 2560,
        "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}}}));
    assert_eq!((gemma.vocabulary, gemma.attention.heads, gemma.attention.head_dim), (262_208, 8, 256));
    let windows: Vec<_> = gemma.layers.iter().take(7).map(|layer| (layer.window, layer.rope)).collect();
    assert_eq!(windows, [[(Some(1024), 1); 5].as_slice(), &[(None, 0), (Some(1024), 1)]].concat());
    assert_eq!(gemma.ropes.iter().map(|rope| rope.theta).collect::<Vec<_>>(), [1e6, 1e4]);
    assert_eq!(gemma.ropes[0].scaling, RopeScaling::Linear { factor: 8.0 });
    assert_eq!(gemma.ropes[1].scaling, RopeScaling::None);
}

#[test]
fn the_parameter_count_is_the_papers() {
    // Llama-3.2-1B with two clusters at every site: 0.13 M in the paper's table.
    let change = json!({"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128_256});
    let config = Config::from_json(&config(change)).unwrap();
    let sites = config.sites().map(|site| (site, SiteDeltas::zero(vec![5, 7], vec![0, 1], 2, config.hidden)));
    assert_eq!(SharedDeltas::new(&config, sites.collect()).unwrap().parameters(), 131_072);
}
