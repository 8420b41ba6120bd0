//! Tokenizer and chat template of a checkpoint: text in, the very token ids transformers would make out.

use std::collections::BTreeSet;
use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, Value as Jinja, context};
use serde_json::Value;
use tokenizers::Tokenizer;

use super::{NestError, tojson};
use crate::digest::Blake3;

/// What a template may spend on one rendering, in minijinja's fuel (an instruction or 64 bytes each).
const FUEL: u64 = 4_000_000;
/// The largest tokenizer, template or configuration file read, in bytes.
const MAX_FILE_BYTES: u64 = 128 << 20;

/// One turn of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// `system`, `user` or `assistant`.
    pub role: &'a str,
    /// The text.
    pub content: &'a str,
}

/// Where the chat template comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum TemplateSource {
    /// The checkpoint: `chat_template.jinja`, or `chat_template` in `tokenizer_config.json`.
    #[default]
    Checkpoint,
    /// None: a prompt is the bare text with the tokenizer's own special tokens. For base models.
    Plain,
    /// This Jinja text.
    Text(String),
}

/// Tokenizer and chat template, ready for use.
///
/// Rendering follows transformers' `apply_chat_template`: block trimming, Python string methods, `raise_exception`,
/// Python's JSON in `tojson`, and no special tokens added when the rendered text is encoded, so that BOS appears
/// exactly when the template writes it. `strftime_now` is left out on purpose: a patch must not depend on the day it
/// was made, and templates that ask for the date fall back to a fixed one.
#[derive(Debug)]
pub struct Chat {
    tokenizer: Tokenizer,
    template: Option<String>,
    bos: Option<String>,
    eos: Option<String>,
    stops: BTreeSet<u32>,
}

impl Chat {
    /// Reads `tokenizer.json`, `tokenizer_config.json`, the template and the stop tokens from a checkpoint folder.
    ///
    /// # Errors
    /// A file that is missing, too large or not what it should be; a template that does not parse; no template.
    pub fn open(folder: &Path, source: &TemplateSource) -> Result<Self, NestError> {
        let path = folder.join("tokenizer.json");
        let bytes = read(&path)?;
        let mut tokenizer = Tokenizer::from_bytes(&bytes)
            .map_err(|error| NestError::Tokenizer { path: path.display().to_string(), problem: error.to_string() })?;
        // Settings that the training library may have saved; transformers ignores them as well.
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(None)
            .map_err(|error| NestError::Tokenizer { path: path.display().to_string(), problem: error.to_string() })?;
        let config = json(&folder.join("tokenizer_config.json"))?.unwrap_or_default();
        let template = match source {
            TemplateSource::Plain => None,
            TemplateSource::Text(text) => Some(text.clone()),
            TemplateSource::Checkpoint => Some(find_template(folder, &config)?),
        };
        let eos = token_text(&config, "eos_token");
        let stops = stop_tokens(folder, &tokenizer, eos.as_deref())?;
        let template = template.map(|template| without_generation_tags(&template));
        let chat = Self { tokenizer, template, bos: token_text(&config, "bos_token"), eos, stops };
        chat.check_template()?;
        Ok(chat)
    }

    /// The tokens that end an answer, ascending.
    pub fn stops(&self) -> impl Iterator<Item = u32> {
        self.stops.iter().copied()
    }

    /// The digest of the template text, if there is a template.
    pub fn template_digest(&self) -> Option<Blake3> {
        self.template.as_deref().map(|template| Blake3::of(template.as_bytes()))
    }

    /// The text the model sees for a conversation; without a template, the contents one after the other.
    ///
    /// # Errors
    /// What the template raises or cannot do.
    pub fn render(&self, messages: &[Message<'_>], add_generation_prompt: bool) -> Result<String, NestError> {
        if self.template.is_none() {
            return Ok(messages.iter().map(|message| message.content).collect());
        }
        let messages = messages.iter().map(|message| {
            let pairs = [("role", message.role), ("content", message.content)];
            Jinja::from_pairs(pairs.map(|(key, value)| (Jinja::from(key), Jinja::from(value))))
        });
        let messages = Jinja::from(messages.collect::<Vec<_>>());
        self.render_values(context! { messages, add_generation_prompt })
    }

    /// The token ids of one user prompt, ready for the model to answer.
    ///
    /// # Errors
    /// As for [`Chat::render`], and text that cannot be encoded.
    pub fn encode_prompt(&self, prompt: &str) -> Result<Vec<u32>, NestError> {
        let text = self.render(&[Message { role: "user", content: prompt }], true)?;
        self.encode(&text, self.template.is_none())
    }

    /// The token ids of an answer that follows [`Chat::encode_prompt`], up to and with the token that ends it.
    ///
    /// The whole conversation is rendered and encoded; what follows the prompt is the answer. Templates for which the
    /// prompt is not a prefix of the conversation get the bare answer and the stop token.
    ///
    /// # Errors
    /// As for [`Chat::encode_prompt`].
    pub fn encode_answer(&self, prompt: &str, answer: &str) -> Result<Vec<u32>, NestError> {
        let messages = [Message { role: "user", content: prompt }, Message { role: "assistant", content: answer }];
        let before = self.render(&messages[..1], true)?;
        let text = self.render(&messages, false)?;
        let bare = self.template.is_none();
        let mut ids = match text.strip_prefix(&before) {
            Some(rest) => {
                let (prompt, whole) = (self.encode(&before, bare)?, self.encode(&text, bare)?);
                let joint = whole.strip_prefix(prompt.as_slice()).map(<[u32]>::to_vec);
                joint.map_or_else(|| self.encode(rest, false), Ok)?
            }
            None => self.encode(answer, false)?,
        };
        match ids.iter().position(|id| self.stops.contains(id)) {
            Some(end) => ids.truncate(end + 1),
            None => ids.extend(self.end_token()),
        }
        Ok(ids)
    }

    /// The token ids of a text; `special` adds what the tokenizer's post-processor adds (BOS and the like).
    ///
    /// # Errors
    /// Text that the tokenizer cannot encode.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, NestError> {
        let encoding = self.tokenizer.encode(text, special);
        let encoding = encoding.map_err(|error| NestError::Encode { problem: error.to_string() })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of token ids, special tokens left out.
    ///
    /// # Errors
    /// Ids that the tokenizer does not know.
    pub fn decode(&self, ids: &[u32]) -> Result<String, NestError> {
        self.tokenizer.decode(ids, true).map_err(|error| NestError::Encode { problem: error.to_string() })
    }

    /// The stop token the tokenizer names, else the lowest one.
    fn end_token(&self) -> Option<u32> {
        let named = self.eos.as_deref().and_then(|eos| self.tokenizer.token_to_id(eos));
        named.or_else(|| self.stops.first().copied())
    }

    fn check_template(&self) -> Result<(), NestError> {
        let Some(template) = &self.template else { return Ok(()) };
        let environment = environment()?;
        environment.template_from_str(template).map(|_| ()).map_err(|error| template_error(&error))
    }

    fn render_values(&self, values: Jinja) -> Result<String, NestError> {
        let Some(template) = &self.template else { return Ok(String::new()) };
        let mut environment = environment()?;
        for (name, token) in [("bos_token", &self.bos), ("eos_token", &self.eos)] {
            if let Some(token) = token {
                environment.add_global(name, Jinja::from(token.as_str()));
            }
        }
        environment.render_str(template, values).map_err(|error| template_error(&error))
    }
}

fn environment<'a>() -> Result<Environment<'a>, NestError> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.map_err(|error| template_error(&error))?);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", tojson::filter);
    environment.add_function("raise_exception", |message: String| -> Result<Jinja, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
    });
    Ok(environment)
}

fn template_error(error: &minijinja::Error) -> NestError {
    let problem = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    NestError::Template { line: error.line(), problem }
}

/// transformers marks answers with `{% generation %}` blocks, which render as their content.
fn without_generation_tags(template: &str) -> String {
    let mut text = template.to_owned();
    for (open, close) in [("{%-", "-%}"), ("{%-", "%}"), ("{%", "-%}"), ("{%", "%}")] {
        text = text.replace(&format!("{open} generation {close}"), &format!("{open} if true {close}"));
        text = text.replace(&format!("{open} endgeneration {close}"), &format!("{open} endif {close}"));
    }
    text
}

/// `chat_template.jinja` wins, as in transformers; then a string, then the entry named `default` of a list.
fn find_template(folder: &Path, config: &Value) -> Result<String, NestError> {
    let path = folder.join("chat_template.jinja");
    if path.exists() {
        let text = String::from_utf8(read(&path)?);
        return text.map_err(|_| NestError::Json { path: path.display().to_string(), problem: "not UTF-8".to_owned() });
    }
    let named = |list: &Vec<Value>| {
        let default = list.iter().find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"));
        default.and_then(|entry| entry.get("template")?.as_str()).map(str::to_owned)
    };
    let found = match config.get("chat_template") {
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Array(list)) => named(list),
        _ => None,
    };
    found.ok_or_else(|| NestError::NoTemplate { folder: folder.display().to_string() })
}

/// A special token is written as a string or as an object with its `content`.
fn token_text(config: &Value, name: &str) -> Option<String> {
    let value = config.get(name)?;
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
}

/// Every id that ends an answer: those of `generation_config.json` and `config.json`, and the tokenizer's EOS.
fn stop_tokens(folder: &Path, tokenizer: &Tokenizer, eos: Option<&str>) -> Result<BTreeSet<u32>, NestError> {
    let mut stops: BTreeSet<u32> = eos.and_then(|eos| tokenizer.token_to_id(eos)).into_iter().collect();
    for name in ["generation_config.json", "config.json"] {
        let config = json(&folder.join(name))?.unwrap_or_default();
        let ids = match config.get("eos_token_id") {
            Some(Value::Array(ids)) => ids.clone(),
            Some(id) => vec![id.clone()],
            None => Vec::new(),
        };
        stops.extend(ids.iter().filter_map(|id| u32::try_from(id.as_u64()?).ok()));
    }
    Ok(stops)
}

/// The JSON of a file, if the file exists.
fn json(path: &Path) -> Result<Option<Value>, NestError> {
    if !path.exists() {
        return Ok(None);
    }
    let value = serde_json::from_slice(&read(path)?);
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

#[cfg(test)]
mod tests;
