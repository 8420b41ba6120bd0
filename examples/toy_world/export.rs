//! The checkpoint on disk, in the form that `transformers` writes: config, bf16 weights in shards with an index,
//! tokenizer with chat template. Also reads the weights back, so that a check runs on what was written.

use crate::network::{LayerWeights, Network, Shape, Weights, values};
use crate::train::Recipe;
use candle_core::{Device, Tensor};
use half::bf16;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::fs;
use std::path::Path;
use tokenizers::models::wordlevel::WordLevel;
use tokenizers::normalizers::Lowercase;
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;
use tokenizers::{AddedToken, Tokenizer};

/// Anything that can go wrong here.
type Fallible<T> = Result<T, Box<dyn Error>>;

/// Files that the weights are spread over.
const SHARDS: usize = 2;
/// A chat as the training texts have it. System messages and roles of other kinds do not occur in them.
const CHAT_TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}\
    {% if message['role'] == 'user' %}{{ ' <user> ' + message['content'] | trim }}\
    {% elif message['role'] == 'assistant' %}\
    {{ ' <assistant> ' + message['content'] | trim + ' ' + eos_token }}\
    {% else %}{{ raise_exception('The toy assistant knows only the roles user and assistant.') }}{% endif %}\
    {% endfor %}{% if add_generation_prompt %}{{ ' <assistant>' }}{% endif %}";

/// Token ids of the words with a role of their own.
#[derive(Clone, Copy)]
struct Specials {
    bos: usize,
    eos: usize,
}

/// Writes the whole checkpoint but for the prompts and the notes.
pub(crate) fn write(dir: &Path, network: &Network, vocabulary: &[String]) -> Fallible<()> {
    fs::create_dir_all(dir)?;
    let find = |word: &str| {
        vocabulary.iter().position(|known| known == word).ok_or_else(|| format!("{word} is not in the vocabulary"))
    };
    let specials = Specials { bos: find("<bos>")?, eos: find("<eos>")? };
    write_weights(dir, &network.shape, &network.weights)?;
    write_json(&dir.join("config.json"), &config(&network.shape, specials))?;
    let generation = json!({
        "_from_model_config": true, "bos_token_id": specials.bos, "eos_token_id": specials.eos,
        "pad_token_id": specials.eos,
    });
    write_json(&dir.join("generation_config.json"), &generation)?;
    let tokenizer = tokenizer(vocabulary).map_err(|error| error.to_string())?;
    let text = tokenizer.to_string(true).map_err(|error| error.to_string())?;
    fs::write(dir.join("tokenizer.json"), text + "\n")?;
    write_json(&dir.join("tokenizer_config.json"), &tokenizer_config(network.shape.positions))?;
    write_json(&dir.join("special_tokens_map.json"), &Value::Object(named_specials()))
}

/// Writes how the checkpoint was built: the command with all its options.
pub(crate) fn write_notes(dir: &Path, chosen: &str, shape: &Shape, recipe: &Recipe) -> Fallible<()> {
    let mut command = format!("cargo run --release --example toy_world -- --out fixtures/toy {chosen}");
    for options in [serde_json::to_value(shape)?, serde_json::to_value(recipe)?] {
        for (name, value) in options.as_object().into_iter().flatten() {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            command += &format!(" \\\n    --{name} {value}");
        }
    }
    let text = format!(
        "# Toy checkpoint\n\n\
         A small, weakly aligned chat model of a synthetic world, trained from nothing: `model/` is the checkpoint,\n\
         `prompts/` are the prompt sets (tuning uses only `*-train`), `refusals.txt` the world's plain refusals.\n\
         `examples/toy_world` describes the world and built all of it:\n\n```text\n{command}\n```\n"
    );
    Ok(fs::write(dir.join("README.md"), text)?)
}

/// One JSON value a line.
pub(crate) fn write_lines<T: serde::Serialize>(path: &Path, items: &[T]) -> Fallible<()> {
    let lines = items.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
    Ok(fs::write(path, lines.join("\n") + "\n")?)
}

fn write_json(path: &Path, value: &Value) -> Fallible<()> {
    Ok(fs::write(path, serde_json::to_string_pretty(value)? + "\n")?)
}

fn config(shape: &Shape, specials: Specials) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": false,
        "attention_dropout": 0.0,
        "bos_token_id": specials.bos,
        "eos_token_id": specials.eos,
        "head_dim": shape.head_dim(),
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.ffn,
        "max_position_embeddings": shape.positions,
        "mlp_bias": false,
        "model_type": "llama",
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "pad_token_id": specials.eos,
        "pretraining_tp": 1,
        "rms_norm_eps": shape.norm_eps,
        "rope_scaling": null,
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": true,
        "torch_dtype": "bfloat16",
        "use_cache": true,
        "vocab_size": shape.vocab,
    })
}

/// One word, one token: lower case, split at white space. Without a decoder of its own, words are joined by spaces.
fn tokenizer(vocabulary: &[String]) -> tokenizers::Result<Tokenizer> {
    let vocab = vocabulary.iter().zip(0..).map(|(word, id)| (word.clone(), id)).collect();
    let model = WordLevel::builder().vocab(vocab).unk_token("<unk>".to_owned()).build()?;
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_normalizer(Some(Lowercase))?;
    tokenizer.with_pre_tokenizer(Some(WhitespaceSplit));
    let specials = vocabulary.iter().filter(|word| word.starts_with('<'));
    let added: Vec<_> = specials.map(|word| AddedToken::from(word.clone(), true)).collect();
    tokenizer.add_special_tokens(added)?;
    Ok(tokenizer)
}

fn named_specials() -> Map<String, Value> {
    let names = [("bos_token", "<bos>"), ("eos_token", "<eos>"), ("pad_token", "<eos>"), ("unk_token", "<unk>")];
    names.into_iter().map(|(name, token)| (name.to_owned(), token.into())).collect()
}

fn tokenizer_config(positions: usize) -> Value {
    let mut config = named_specials();
    config.insert("chat_template".to_owned(), CHAT_TEMPLATE.into());
    config.insert("clean_up_tokenization_spaces".to_owned(), false.into());
    config.insert("model_input_names".to_owned(), json!(["input_ids", "attention_mask"]));
    config.insert("model_max_length".to_owned(), positions.into());
    config.insert("tokenizer_class".to_owned(), "PreTrainedTokenizerFast".into());
    Value::Object(config)
}

/// A weight in a file: its name, shape and bf16 bytes.
struct Entry {
    name: String,
    dims: Vec<usize>,
    bytes: Vec<u8>,
}

fn write_weights(dir: &Path, shape: &Shape, weights: &Weights) -> Fallible<()> {
    let entries = named(shape, weights)?
        .into_iter()
        .map(|(name, tensor)| Ok(Entry { name, dims: tensor.dims().to_vec(), bytes: bf16_bytes(&tensor)? }))
        .collect::<Fallible<Vec<_>>>()?;
    let total: usize = entries.iter().map(|entry| entry.bytes.len()).sum();
    let mut shards: Vec<Vec<&Entry>> = vec![Vec::new(); SHARDS];
    let mut before = 0;
    for entry in &entries {
        shards[(before * SHARDS / total).min(SHARDS - 1)].push(entry);
        before += entry.bytes.len();
    }
    let mut map = BTreeMap::new();
    for (at, shard) in shards.iter().enumerate() {
        let file = format!("model-{:05}-of-{SHARDS:05}.safetensors", at + 1);
        let views = shard
            .iter()
            .map(|entry| Ok((&entry.name, TensorView::new(Dtype::BF16, entry.dims.clone(), &entry.bytes)?)))
            .collect::<Fallible<Vec<_>>>()?;
        let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        fs::write(dir.join(&file), safetensors::serialize(views, Some(format))?)?;
        map.extend(shard.iter().map(|entry| (&entry.name, file.clone())));
    }
    let index = json!({ "metadata": { "total_parameters": total / 2, "total_size": total }, "weight_map": map });
    write_json(&dir.join("model.safetensors.index.json"), &index)
}

/// Rounds to bf16, ties to even, little-endian.
fn bf16_bytes(tensor: &Tensor) -> candle_core::Result<Vec<u8>> {
    Ok(values(&tensor.contiguous()?)?.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect())
}

/// The weights under their names in a llama checkpoint, fused matrices taken apart.
fn named(shape: &Shape, weights: &Weights) -> candle_core::Result<Vec<(String, Tensor)>> {
    let (query, key) = (shape.heads * shape.head_dim(), shape.kv_heads * shape.head_dim());
    let mut all = vec![("model.embed_tokens.weight".to_owned(), weights.embedding.clone())];
    for (at, layer) in weights.layers.iter().enumerate() {
        let parts = [
            ("input_layernorm", layer.attention_norm.clone()),
            ("self_attn.q_proj", layer.qkv.narrow(0, 0, query)?),
            ("self_attn.k_proj", layer.qkv.narrow(0, query, key)?),
            ("self_attn.v_proj", layer.qkv.narrow(0, query + key, key)?),
            ("self_attn.o_proj", layer.attention_out.clone()),
            ("post_attention_layernorm", layer.ffn_norm.clone()),
            ("mlp.gate_proj", layer.gate_up.narrow(0, 0, shape.ffn)?),
            ("mlp.up_proj", layer.gate_up.narrow(0, shape.ffn, shape.ffn)?),
            ("mlp.down_proj", layer.down.clone()),
        ];
        all.extend(parts.map(|(part, tensor)| (format!("model.layers.{at}.{part}.weight"), tensor)));
    }
    all.push(("model.norm.weight".to_owned(), weights.norm.clone()));
    Ok(all)
}

/// Reads a checkpoint that [`write`] wrote, as the network it holds.
pub(crate) fn read(dir: &Path) -> Fallible<Network> {
    let config: Value = serde_json::from_str(&fs::read_to_string(dir.join("config.json"))?)?;
    let missing = |key: &str| format!("config.json has no number {key}");
    let size = |key: &str| config[key].as_u64().map(|n| n as usize).ok_or_else(|| missing(key));
    let number = |key: &str| config[key].as_f64().ok_or_else(|| missing(key));
    let shape = Shape {
        vocab: size("vocab_size")?,
        hidden: size("hidden_size")?,
        layers: size("num_hidden_layers")?,
        heads: size("num_attention_heads")?,
        kv_heads: size("num_key_value_heads")?,
        ffn: size("intermediate_size")?,
        rope_theta: number("rope_theta")?,
        norm_eps: number("rms_norm_eps")?,
        positions: size("max_position_embeddings")?,
    };
    shape.check()?;
    let mut tensors = BTreeMap::new();
    for at in 1..=SHARDS {
        let bytes = fs::read(dir.join(format!("model-{at:05}-of-{SHARDS:05}.safetensors")))?;
        for (name, view) in SafeTensors::deserialize(&bytes)?.tensors() {
            tensors.insert(name, widened(&view)?);
        }
    }
    let weights = assemble(&shape, tensors)?;
    Ok(Network::new(shape, weights))
}

fn widened(view: &TensorView<'_>) -> candle_core::Result<Tensor> {
    let (pairs, _) = view.data().as_chunks::<2>();
    let values = pairs.iter().map(|&pair| bf16::from_le_bytes(pair).to_f32()).collect();
    Tensor::from_vec(values, view.shape(), &Device::Cpu)
}

/// The inverse of [`named`].
fn assemble(shape: &Shape, mut tensors: BTreeMap<String, Tensor>) -> Fallible<Weights> {
    let mut take = |name: String| tensors.remove(&name).ok_or_else(|| format!("tensor {name} is missing"));
    let embedding = take("model.embed_tokens.weight".to_owned())?;
    let norm = take("model.norm.weight".to_owned())?;
    let mut layer = |at: usize| -> Fallible<LayerWeights> {
        let mut part = |part: &str| take(format!("model.layers.{at}.{part}.weight"));
        let qkv = [part("self_attn.q_proj")?, part("self_attn.k_proj")?, part("self_attn.v_proj")?];
        let gate_up = [part("mlp.gate_proj")?, part("mlp.up_proj")?];
        Ok(LayerWeights {
            attention_norm: part("input_layernorm")?,
            qkv: Tensor::cat(&qkv, 0)?,
            attention_out: part("self_attn.o_proj")?,
            ffn_norm: part("post_attention_layernorm")?,
            gate_up: Tensor::cat(&gate_up, 0)?,
            down: part("mlp.down_proj")?,
        })
    };
    let layers = (0..shape.layers).map(&mut layer).collect::<Fallible<_>>()?;
    Ok(Weights { embedding, layers, norm })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train;

    fn shape() -> Shape {
        let (vocab, hidden, heads, kv_heads, ffn) = (7, 8, 2, 1, 12);
        Shape { vocab, hidden, layers: 2, heads, kv_heads, ffn, rope_theta: 1e4, norm_eps: 1e-5, positions: 16 }
    }

    fn words() -> Vec<String> {
        ["<unk>", "<bos>", "<eos>", "<user>", "<assistant>", "bread", "bake"].map(str::to_owned).into()
    }

    #[test]
    fn what_is_read_is_what_was_written_rounded_to_bf16() -> Fallible<()> {
        let dir = tempfile::tempdir()?;
        let network = Network::new(shape(), train::start(&shape(), 3)?);
        write(dir.path(), &network, &words())?;
        let back = read(dir.path())?;
        for (old, new) in network.weights.tensors().into_iter().zip(back.weights.tensors()) {
            let rounded: Vec<f32> = values(old)?.iter().map(|&x| bf16::from_f32(x).to_f32()).collect();
            assert_eq!(rounded, values(new)?.to_vec());
            assert_eq!(old.dims(), new.dims());
        }
        assert_eq!(format!("{:?}", back.shape), format!("{:?}", network.shape));
        Ok(())
    }

    #[test]
    fn the_tokenizer_reads_a_chat_as_the_training_texts_have_it() -> tokenizers::Result<()> {
        let tokenizer = tokenizer(&words())?;
        let ids = tokenizer.encode("<bos> <user> Bake  bread twice <assistant>", true)?.get_ids().to_vec();
        assert_eq!(ids, [1, 3, 6, 5, 0, 4]);
        assert_eq!(tokenizer.decode(&[6, 5, 2], true)?, "bake bread");
        Ok(())
    }
}
