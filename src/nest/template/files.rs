//! What a checkpoint's files say about text: tokenizer, special tokens, stop tokens, chat template.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::{AddedToken, Tokenizer};

use crate::nest::NestError;

/// The largest tokenizer, template or configuration file read, in bytes.
const MAX_FILE_BYTES: u64 = 128 << 20;

/// Tokenizers in forms that are not read, newest first.
const OTHER_TOKENIZERS: &[&str] =
    &["tokenizer.model", "tekken.json", "spiece.model", "sentencepiece.bpe.model", "qwen.tiktoken", "vocab.json"];

/// Files that a checkpoint has if transformers uses it through a processor: multimodal ones.
const PROCESSOR_FILES: &[&str] = &["processor_config.json", "preprocessor_config.json", "chat_template.json"];

/// The other files that count.
const TEXT_FILES: &[&str] = &[
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "config.json",
    "chat_template.jinja",
];

/// Every file that counts and is there, with its bytes.
pub(super) fn contents(folder: &Path) -> Result<Vec<(&'static str, Vec<u8>)>, NestError> {
    let names = TEXT_FILES.iter().chain(PROCESSOR_FILES).copied();
    names.filter(|name| folder.join(name).exists()).map(|name| Ok((name, read(&folder.join(name))?))).collect()
}

/// The files' content, read once.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) tokenizer: Tokenizer,
    /// Named special tokens: `bos_token` and the like.
    pub(super) special: BTreeMap<String, String>,
    /// Tokens that end an answer.
    pub(super) stops: BTreeSet<u32>,
    /// Whether transformers would use a processor.
    pub(super) processor: bool,
    config: Map<String, Value>,
}

impl Files {
    pub(super) fn read(folder: &Path) -> Result<Self, NestError> {
        let config = object(folder, "tokenizer_config.json")?.unwrap_or_default();
        let mut named = config.clone();
        // As in transformers: the older file counts where the newer one does not list the added tokens.
        if !config.contains_key("added_tokens_decoder") {
            named.extend(object(folder, "special_tokens_map.json")?.unwrap_or_default());
        }
        let own_names = named.get("extra_special_tokens").and_then(Value::as_object).into_iter().flatten();
        let special: BTreeMap<String, AddedToken> = named
            .iter()
            .filter(|(name, _)| name.ends_with("_token"))
            .chain(own_names)
            .filter_map(|(name, value)| Some((name.clone(), special_token(value)?)))
            .collect();
        let lists = ["extra_special_tokens", "additional_special_tokens"].map(|name| named.get(name));
        let listed = lists.into_iter().flatten().filter_map(Value::as_array).flatten().filter_map(special_token);
        let mut tokenizer = tokenizer(folder)?;
        add_tokens(&mut tokenizer, &config, special.values().cloned().chain(listed))
            .map_err(|error| not_a_tokenizer(folder, &*error))?;
        let special: BTreeMap<_, _> = special.into_iter().map(|(name, token)| (name, token.content)).collect();
        let stops = stop_tokens(folder, &tokenizer, special.get("eos_token"))?;
        let processor = PROCESSOR_FILES.iter().any(|name| folder.join(name).exists());
        Ok(Self { tokenizer, special, stops, processor, config })
    }

    /// `chat_template.jinja` wins, as in transformers; then what processors kept in `chat_template.json`; then the
    /// tokenizer's configuration: a string, or the entry named `default` of a list.
    pub(super) fn template(&self, folder: &Path) -> Result<String, NestError> {
        let path = folder.join("chat_template.jinja");
        if path.exists() {
            let text = String::from_utf8(read(&path)?);
            return text
                .map_err(|_| NestError::Json { path: path.display().to_string(), problem: "not UTF-8".to_owned() });
        }
        let processors = object(folder, "chat_template.json")?;
        let found = [processors.as_ref(), Some(&self.config)].into_iter().flatten().find_map(|config| {
            match config.get("chat_template")? {
                Value::String(text) => Some(text.clone()),
                Value::Array(list) => {
                    let default = list.iter().find(|entry| entry.get("name").is_some_and(|name| name == "default"));
                    default.and_then(|entry| entry.get("template")?.as_str()).map(str::to_owned)
                }
                _ => None,
            }
        });
        found.ok_or_else(|| NestError::NoTemplate { folder: folder.display().to_string() })
    }
}

fn tokenizer(folder: &Path) -> Result<Tokenizer, NestError> {
    let path = folder.join("tokenizer.json");
    if !path.exists() {
        let found = OTHER_TOKENIZERS.iter().find(|name| folder.join(name).exists());
        return Err(NestError::NoTokenizer { folder: folder.display().to_string(), found: found.copied() });
    }
    let mut tokenizer = Tokenizer::from_bytes(read(&path)?).map_err(|error| not_a_tokenizer(folder, &*error))?;
    // Settings that the training library may have saved; transformers ignores them as well.
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(|error| not_a_tokenizer(folder, &*error))?;
    Ok(tokenizer)
}

fn not_a_tokenizer(folder: &Path, error: &dyn std::error::Error) -> NestError {
    NestError::Tokenizer { path: folder.join("tokenizer.json").display().to_string(), problem: error.to_string() }
}

/// Tokens that transformers adds when it loads: those of the configuration that `tokenizer.json` lacks or describes
/// otherwise, in the order of their ids, then special ones that only a name speaks of.
fn add_tokens(
    tokenizer: &mut Tokenizer,
    config: &Map<String, Value>,
    named: impl Iterator<Item = AddedToken>,
) -> tokenizers::Result<()> {
    let mut known: BTreeMap<String, AddedToken> =
        tokenizer.get_added_tokens_decoder().into_values().map(|token| (token.content.clone(), token)).collect();
    let listed = config.get("added_tokens_decoder").and_then(Value::as_object).into_iter().flatten();
    let mut listed: Vec<_> = listed.filter_map(|(id, token)| Some((id.parse::<u32>().ok()?, added(token)?))).collect();
    listed.sort_by_key(|(id, _)| *id);
    let mut new = Vec::new();
    for (_, token) in listed {
        if known.get(&token.content).is_none_or(|known| flags(known) != flags(&token)) {
            known.insert(token.content.clone(), token.clone());
            new.push(token);
        }
    }
    for token in named {
        if !known.contains_key(&token.content) {
            known.insert(token.content.clone(), token.clone());
            new.push(token);
        }
    }
    tokenizer.add_tokens(new).map(drop)
}

fn flags(token: &AddedToken) -> [bool; 5] {
    [token.single_word, token.lstrip, token.rstrip, token.normalized, token.special]
}

/// A token that is written as an object.
fn added(entry: &Value) -> Option<AddedToken> {
    let flag = |name: &str| entry.get(name).and_then(Value::as_bool);
    let special = flag("special").unwrap_or(false);
    let mut token = AddedToken::from(entry.get("content")?.as_str()?, special);
    token.single_word = flag("single_word").unwrap_or(false);
    token.lstrip = flag("lstrip").unwrap_or(false);
    token.rstrip = flag("rstrip").unwrap_or(false);
    token.normalized = flag("normalized").unwrap_or(!special);
    Some(token)
}

/// A special token is written as a string or as an object.
fn special_token(value: &Value) -> Option<AddedToken> {
    match value {
        Value::String(text) => Some(AddedToken::from(text.as_str(), true)),
        _ => added(value).map(|token| AddedToken { special: true, ..token }),
    }
}

/// Every id that ends an answer: those of `generation_config.json` and `config.json`, and the tokenizer's EOS.
fn stop_tokens(folder: &Path, tokenizer: &Tokenizer, eos: Option<&String>) -> Result<BTreeSet<u32>, NestError> {
    let mut stops: BTreeSet<u32> = eos.and_then(|eos| tokenizer.token_to_id(eos)).into_iter().collect();
    for name in ["generation_config.json", "config.json"] {
        let config = object(folder, name)?.unwrap_or_default();
        let language = config.get("text_config").and_then(|config| config.get("eos_token_id"));
        for ids in [config.get("eos_token_id"), language].into_iter().flatten() {
            let ids = ids.as_array().map_or(std::slice::from_ref(ids), Vec::as_slice);
            stops.extend(ids.iter().filter_map(|id| u32::try_from(id.as_u64()?).ok()));
        }
    }
    Ok(stops)
}

/// The JSON object of a file, if the file exists.
fn object(folder: &Path, name: &str) -> Result<Option<Map<String, Value>>, NestError> {
    let path = folder.join(name);
    if !path.exists() {
        return Ok(None);
    }
    let value = serde_json::from_slice(&read(&path)?);
    value.map(Some).map_err(|error| NestError::Json { path: path.display().to_string(), problem: error.to_string() })
}

fn read(path: &Path) -> Result<Vec<u8>, NestError> {
    let unreadable = |error| NestError::Read { path: path.display().to_string(), source: error };
    let length = std::fs::metadata(path).map_err(unreadable)?.len();
    if length > MAX_FILE_BYTES {
        let problem = format!("{length} bytes, expected at most {MAX_FILE_BYTES}");
        return Err(NestError::Json { path: path.display().to_string(), problem });
    }
    std::fs::read(path).map_err(unreadable)
}
