//! Greedy answers from candle-transformers' Llama, in f32 with a key-value cache.

use std::collections::{BTreeMap, HashMap};
use std::ops::Deref;

use candle_core::{D, DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Config as LlamaConfig, Llama, Llama3RopeConfig, Llama3RopeType};
use serde_json::{Map, Value};

use super::EvalError;
use crate::decoder::{Config, DecoderError, RopeScaling, Weights};
use crate::tensor::{Dtype, Shape, TensorName};

/// How long answers may get and how many run together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GenerateParams {
    /// The most tokens of an answer, 1 to 100,000.
    pub max_tokens: usize,
    /// The most prompts in a batch, 1 to 4,096. Prompts of the same number of tokens run together; there is no padding.
    pub batch: usize,
}

impl Default for GenerateParams {
    fn default() -> Self {
        Self { max_tokens: 128, batch: 64 }
    }
}

impl GenerateParams {
    /// Checks the ranges.
    ///
    /// # Errors
    /// The first option outside its range.
    pub fn check(self) -> Result<ValidGenerateParams, EvalError> {
        for (name, found, most) in [("max tokens", self.max_tokens, 100_000), ("batch", self.batch, 4096)] {
            if !(1..=most).contains(&found) {
                return Err(EvalError::OutOfRange { name, found, expected: format!("1 to {most}") });
            }
        }
        Ok(ValidGenerateParams(self))
    }
}

/// Options in range; made by [`GenerateParams::check`] alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ValidGenerateParams(GenerateParams);

impl Deref for ValidGenerateParams {
    type Target = GenerateParams;

    fn deref(&self) -> &GenerateParams {
        &self.0
    }
}

/// What a model answered.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answer {
    /// The tokens, with the stop token if one came.
    pub tokens: Vec<u32>,
    /// Whether a stop token ended it, and not the limit.
    pub stopped: bool,
}

/// A Llama that answers.
///
/// candle-transformers builds it: its own attention, norms and rotary positions. What that engine would silently
/// compute otherwise than the checkpoint says (biases, a head width of its own, linear position scaling) is refused.
#[derive(Debug)]
pub struct Generator {
    model: Llama,
    config: LlamaConfig,
    device: Device,
}

impl Generator {
    /// Loads a network in f32 on the CPU: 4 bytes a parameter.
    ///
    /// # Errors
    /// An architecture or option that the engine does not compute, a tensor missing or of another shape or type.
    pub fn load(config: &Map<String, Value>, weights: &dyn Weights) -> Result<Self, EvalError> {
        let config = Config::from_json(config)?;
        refuse_what_is_ignored(&config)?;
        let device = Device::Cpu;
        let tensors = expected_tensors(&config)
            .into_iter()
            .map(|(name, shape)| Ok((name.clone(), tensor(weights, name, shape, &device)?)))
            .collect::<Result<HashMap<_, _>, EvalError>>()?;
        let config = engine_config(&config);
        let model = Llama::load(VarBuilder::from_tensors(tensors, DType::F32, &device), &config)?;
        Ok(Self { model, config, device })
    }

    /// The greedy answer to each prompt, in the order of the prompts.
    ///
    /// An answer ends with the first token of `stops`, at the limit, or where the model's positions end. `done` hears
    /// how many more prompts were answered.
    ///
    /// # Errors
    /// A prompt that is empty, too long, or has a token outside the vocabulary.
    pub fn answer(
        &self,
        prompts: &[Vec<u32>],
        stops: &[u32],
        params: &ValidGenerateParams,
        done: &mut dyn FnMut(usize),
    ) -> Result<Vec<Answer>, EvalError> {
        let mut by_length: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (index, prompt) in prompts.iter().enumerate() {
            self.check_prompt(index, prompt)?;
            by_length.entry(prompt.len()).or_default().push(index);
        }
        let mut answers = vec![Answer::default(); prompts.len()];
        for group in by_length.values().flat_map(|group| group.chunks(params.batch)) {
            let batch: Vec<_> = group.iter().filter_map(|index| prompts.get(*index)).map(Vec::as_slice).collect();
            for (index, answer) in group.iter().zip(self.answer_batch(&batch, stops, params.max_tokens)?) {
                if let Some(place) = answers.get_mut(*index) {
                    *place = answer;
                }
            }
            done(group.len());
        }
        Ok(answers)
    }

    fn check_prompt(&self, index: usize, prompt: &[u32]) -> Result<(), EvalError> {
        let expected = self.config.max_position_embeddings;
        if !(1..=expected).contains(&prompt.len()) {
            return Err(EvalError::Prompt { index, expected, found: prompt.len() });
        }
        let expected = self.config.vocab_size;
        match prompt.iter().find(|token| **token as usize >= expected) {
            Some(found) => Err(EvalError::Token { index, expected, found: *found }),
            None => Ok(()),
        }
    }

    /// Prompts of one length.
    fn answer_batch(&self, prompts: &[&[u32]], stops: &[u32], max_tokens: usize) -> Result<Vec<Answer>, EvalError> {
        let length = prompts.first().map_or(0, |prompt| prompt.len());
        // The cache belongs to one batch: the engine never clears it.
        let mut cache = Cache::new(true, DType::F32, &self.config, &self.device)?;
        let mut input = Tensor::new(prompts.concat(), &self.device)?.reshape((prompts.len(), length))?;
        let mut answers = vec![Answer::default(); prompts.len()];
        let mut position = 0;
        // The last position may still predict a token, which then does not run.
        for _ in 0..max_tokens.min(self.config.max_position_embeddings - length + 1) {
            let logits = self.model.forward(&input, position, &mut cache)?;
            position += input.dim(D::Minus1)?;
            let next: Vec<u32> = logits.argmax(D::Minus1)?.to_vec1()?;
            for (answer, token) in answers.iter_mut().zip(&next).filter(|(answer, _)| !answer.stopped) {
                answer.tokens.push(*token);
                answer.stopped = stops.contains(token);
            }
            if answers.iter().all(|answer| answer.stopped) {
                break;
            }
            input = Tensor::new(next, &self.device)?.unsqueeze(1)?;
        }
        Ok(answers)
    }
}

/// What the engine leaves out without a word.
fn refuse_what_is_ignored(config: &Config) -> Result<(), EvalError> {
    let unsupported = |what: &str| Err(EvalError::Unsupported { what: what.to_owned() });
    if config.architecture != "llama" {
        return unsupported(&format!("architecture {}", config.architecture));
    }
    if config.attention_bias || config.mlp_bias {
        return unsupported("biases");
    }
    if config.head_dim * config.heads != config.hidden {
        return unsupported(&format!("heads of width {} at hidden size {}", config.head_dim, config.hidden));
    }
    if matches!(config.rope.scaling, RopeScaling::Linear { .. }) {
        return unsupported("linear scaling of positions");
    }
    Ok(())
}

fn engine_config(config: &Config) -> LlamaConfig {
    let rope_scaling = match config.rope.scaling {
        RopeScaling::Llama3 { factor, low, high, original } => Some(Llama3RopeConfig {
            factor,
            low_freq_factor: low,
            high_freq_factor: high,
            original_max_position_embeddings: original as usize,
            rope_type: Llama3RopeType::Llama3,
        }),
        RopeScaling::None | RopeScaling::Linear { .. } => None,
    };
    LlamaConfig {
        hidden_size: config.hidden,
        intermediate_size: config.feed_forward,
        vocab_size: config.vocabulary,
        num_hidden_layers: config.layers,
        num_attention_heads: config.heads,
        num_key_value_heads: config.kv_heads,
        use_flash_attn: false,
        rms_norm_eps: f64::from(config.norm_epsilon),
        rope_theta: config.rope.theta,
        bos_token_id: None,
        eos_token_id: None,
        rope_scaling,
        max_position_embeddings: config.max_positions,
        tie_word_embeddings: config.tied,
    }
}

/// Every tensor the engine asks for. It panics where one is missing, so all are checked before it is called.
fn expected_tensors(config: &Config) -> Vec<(String, Vec<usize>)> {
    let (hidden, inner) = (config.hidden, config.feed_forward);
    let (queries, keys) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![config.vocabulary, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    if !config.tied {
        tensors.push(("lm_head.weight".to_owned(), vec![config.vocabulary, hidden]));
    }
    for layer in 0..config.layers {
        let parts = [
            ("input_layernorm", vec![hidden]),
            ("post_attention_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![queries, hidden]),
            ("self_attn.k_proj", vec![keys, hidden]),
            ("self_attn.v_proj", vec![keys, hidden]),
            ("self_attn.o_proj", vec![hidden, queries]),
            ("mlp.gate_proj", vec![inner, hidden]),
            ("mlp.up_proj", vec![inner, hidden]),
            ("mlp.down_proj", vec![hidden, inner]),
        ];
        tensors.extend(parts.map(|(part, shape)| (format!("model.layers.{layer}.{part}.weight"), shape)));
    }
    tensors
}

/// A tensor widened to f32.
fn tensor(weights: &dyn Weights, name: String, dims: Vec<usize>, device: &Device) -> Result<Tensor, EvalError> {
    let name = TensorName::new(name).map_err(DecoderError::from)?;
    let Some((dtype, shape)) = weights.describe(&name) else { return Err(DecoderError::Missing { name }.into()) };
    let expected = Shape::new(dims.iter().map(|dim| *dim as u64).collect::<Vec<_>>()).map_err(DecoderError::from)?;
    let dtype = match dtype.parse::<Dtype>() {
        Ok(dtype) if shape == expected => dtype,
        _ => {
            let (expected, found) = (format!("BF16, F16 or F32 {expected}"), format!("{dtype} {shape}"));
            return Err(DecoderError::Tensor { name, expected, found }.into());
        }
    };
    let stored = match dtype {
        Dtype::Bf16 => DType::BF16,
        Dtype::F16 => DType::F16,
        Dtype::F32 => DType::F32,
    };
    let bytes = weights.read(&name)?;
    Ok(Tensor::from_raw_buffer(&bytes, stored, &dims, device)?.to_dtype(DType::F32)?)
}

#[cfg(test)]
mod tests;
