//! For tests: a small random llama in memory, written to disk with a tokenizer where a whole checkpoint is needed.

use std::collections::BTreeMap;
use std::path::Path;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};

use crate::decoder::{Config, Decoder, DecoderError, Weights};
use crate::tensor::{Dtype, Shape, TensorName};

/// Width of the residual stream.
pub(crate) const HIDDEN: usize = 16;
/// Rows of a gate or up projection.
pub(crate) const FEED_FORWARD: usize = 24;
/// Tokens there are. 0 begins a prompt, 1 ends an answer, 2 and 3 frame the turns.
pub(crate) const VOCABULARY: usize = 48;

/// Tensors in memory.
#[derive(Debug, Clone)]
pub(crate) struct Memory(pub(crate) BTreeMap<TensorName, (Dtype, Shape, Vec<u8>)>);

impl Memory {
    /// A two-layer network with random weights of one element type.
    pub(crate) fn random(seed: u64, dtype: Dtype) -> Self {
        let mut generator = ChaCha8Rng::seed_from_u64(seed);
        let mut tensors = BTreeMap::new();
        for (name, dims) in tensor_shapes() {
            let norm = name.contains("norm");
            let spread = if name.contains("embed") { 1.0 } else { 1.5 / (*dims.last().unwrap() as f32).sqrt() };
            let count: u64 = dims.iter().product();
            let value = |_| if norm { 1.0 } else { generator.random_range(-spread..spread) };
            let bytes = (0..count).map(value).flat_map(|value| element(dtype, value)).collect();
            tensors.insert(TensorName::new(name).unwrap(), (dtype, Shape::new(dims).unwrap(), bytes));
        }
        Self(tensors)
    }

    /// Writes config, weights, tokenizer and template as a checkpoint.
    pub(crate) fn write(&self, folder: &Path) {
        let views = self.0.iter().map(|(name, (dtype, shape, bytes))| {
            let dims = shape.dims().iter().map(|dim| *dim as usize).collect();
            let dtype = match dtype {
                Dtype::Bf16 => safetensors::Dtype::BF16,
                Dtype::F16 => safetensors::Dtype::F16,
                Dtype::F32 => safetensors::Dtype::F32,
            };
            (name.to_string(), safetensors::tensor::TensorView::new(dtype, dims, bytes).unwrap())
        });
        std::fs::write(folder.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
        let write = |name: &str, value: Value| std::fs::write(folder.join(name), value.to_string()).unwrap();
        write("config.json", Value::Object(config_json()));
        write("tokenizer.json", tokenizer());
        let template = "{{ bos_token }}{% for m in messages %}{{ ' <user> ' if m.role == 'user' else ' <assistant> ' }}\
                        {{ m.content }}{{ ' <eos>' if m.role == 'assistant' }}{% endfor %}\
                        {% if add_generation_prompt %} <assistant>{% endif %}";
        write(
            "tokenizer_config.json",
            json!({ "bos_token": "<bos>", "eos_token": "<eos>", "chat_template": template }),
        );
    }
}

impl Weights for Memory {
    fn names(&self) -> Vec<TensorName> {
        self.0.keys().cloned().collect()
    }

    fn describe(&self, name: &TensorName) -> Option<(String, Shape)> {
        let (dtype, shape, _) = self.0.get(name)?;
        Some((dtype.to_string(), shape.clone()))
    }

    fn read(&self, name: &TensorName) -> Result<Vec<u8>, DecoderError> {
        let missing = || DecoderError::Missing { name: name.clone() };
        self.0.get(name).map(|(_, _, bytes)| bytes.clone()).ok_or_else(missing)
    }
}

/// config.json of the network.
pub(crate) fn config_json() -> Map<String, Value> {
    let value = json!({
        "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": FEED_FORWARD, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": VOCABULARY, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": false,
        "attention_bias": false, "mlp_bias": false, "eos_token_id": 1,
    });
    value.as_object().unwrap().clone()
}

/// The network as a decoder.
pub(crate) fn decoder(weights: &dyn Weights) -> Decoder<'_> {
    let config = Config::from_json(&config_json()).unwrap();
    Decoder::load(config, weights, &candle_core::Device::Cpu).unwrap()
}

/// The folder of reference files `part`, if this machine has it; `$NESTPATCH_ORACLE` names that of the models.
pub(crate) fn oracle(part: &str) -> Option<std::path::PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/oracle");
    let root = std::env::var_os("NESTPATCH_ORACLE").map_or(beside, |models| Path::new(&models).join(".."));
    let folder = root.join(part);
    if folder.exists() {
        return Some(folder);
    }
    println!("skipped: no reference files at {}", folder.display());
    None
}

fn element(dtype: Dtype, value: f32) -> Vec<u8> {
    match dtype {
        Dtype::Bf16 => half::bf16::from_f32(value).to_le_bytes().to_vec(),
        Dtype::F16 => half::f16::from_f32(value).to_le_bytes().to_vec(),
        Dtype::F32 => value.to_le_bytes().to_vec(),
    }
}

fn tensor_shapes() -> Vec<(String, Vec<u64>)> {
    let (hidden, inner, vocabulary) = (HIDDEN as u64, FEED_FORWARD as u64, VOCABULARY as u64);
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![vocabulary, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
        ("lm_head.weight".to_owned(), vec![vocabulary, hidden]),
    ];
    for layer in 0..2 {
        let parts = [
            ("input_layernorm", vec![hidden]),
            ("post_attention_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![hidden, hidden]),
            ("self_attn.k_proj", vec![hidden / 2, hidden]),
            ("self_attn.v_proj", vec![hidden / 2, hidden]),
            ("self_attn.o_proj", vec![hidden, hidden]),
            ("mlp.gate_proj", vec![inner, hidden]),
            ("mlp.up_proj", vec![inner, hidden]),
            ("mlp.down_proj", vec![hidden, inner]),
        ];
        shapes.extend(parts.map(|(part, dims)| (format!("model.layers.{layer}.{part}.weight"), dims)));
    }
    shapes
}

/// Words `w4` to `w47` and the four special tokens.
fn tokenizer() -> Value {
    let special = ["<bos>", "<eos>", "<user>", "<assistant>"];
    let mut vocabulary: Map<String, Value> = (4..VOCABULARY).map(|id| (format!("w{id}"), json!(id))).collect();
    vocabulary.extend(special.iter().enumerate().map(|(id, text)| ((*text).to_owned(), json!(id))));
    let added = |(id, text): (usize, &&str)| {
        json!({
            "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true,
        })
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "decoder": null, "pre_tokenizer": { "type": "WhitespaceSplit" },
        "added_tokens": special.iter().enumerate().map(added).collect::<Vec<_>>(),
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "w4" },
    })
}
