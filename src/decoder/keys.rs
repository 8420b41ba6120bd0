//! Typed reading of config.json: what is missing or of another kind is an error that names the key.

use serde_json::{Map, Value};

use super::DecoderError;

/// An object inside config.json and the path that leads to it.
#[derive(Debug, Clone)]
pub(super) struct Keys<'a> {
    map: &'a Map<String, Value>,
    parent: String,
}

impl<'a> Keys<'a> {
    pub(super) fn top(map: &'a Map<String, Value>) -> Self {
        Self { map, parent: String::new() }
    }

    /// A key's value; JSON's null counts as absent, as transformers writes it for "not set".
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Whether this is an object inside config.json, not the whole.
    pub(super) fn is_nested(&self) -> bool {
        !self.parent.is_empty()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Whether a key is written down, be it as null.
    pub(super) fn written(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    pub(super) fn object(&self, key: &str) -> Result<Option<Self>, DecoderError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Self { map, parent: self.path(key) })),
            Some(other) => Err(self.wrong(key, "an object", other)),
        }
    }

    pub(super) fn size(&self, key: &str) -> Result<usize, DecoderError> {
        self.optional_size(key)?.ok_or_else(|| self.absent(key, "a whole number above 0"))
    }

    pub(super) fn size_or(&self, key: &str, default: usize) -> Result<usize, DecoderError> {
        Ok(self.optional_size(key)?.unwrap_or(default))
    }

    /// As [`Self::size_or`], where 0 means something too.
    pub(super) fn count_or(&self, key: &str, default: usize) -> Result<usize, DecoderError> {
        if self.get(key).and_then(Value::as_u64) == Some(0) { Ok(0) } else { self.size_or(key, default) }
    }

    pub(super) fn optional_size(&self, key: &str) -> Result<Option<usize>, DecoderError> {
        // Bounded so that products of two sizes cannot overflow.
        let limit = 1 << 31;
        self.get(key)
            .map(|value| match value.as_u64() {
                Some(size @ 1..) if size < limit => Ok(size as usize),
                _ => Err(self.wrong(key, "a whole number above 0 and below 2^31", value)),
            })
            .transpose()
    }

    pub(super) fn number(&self, key: &str) -> Result<f32, DecoderError> {
        self.optional_number(key)?.ok_or_else(|| self.absent(key, "a number above 0"))
    }

    pub(super) fn number_or(&self, key: &str, default: f32) -> Result<f32, DecoderError> {
        Ok(self.optional_number(key)?.unwrap_or(default))
    }

    pub(super) fn optional_number(&self, key: &str) -> Result<Option<f32>, DecoderError> {
        self.get(key)
            .map(|value| match value.as_f64().map(|number| number as f32) {
                Some(number) if number > 0.0 && number.is_finite() => Ok(number),
                _ => Err(self.wrong(key, "a number above 0", value)),
            })
            .transpose()
    }

    pub(super) fn flag_or(&self, key: &str, default: bool) -> Result<bool, DecoderError> {
        Ok(self.optional_flag(key)?.unwrap_or(default))
    }

    pub(super) fn optional_flag(&self, key: &str) -> Result<Option<bool>, DecoderError> {
        self.get(key).map(|value| value.as_bool().ok_or_else(|| self.wrong(key, "true or false", value))).transpose()
    }

    /// Numbers above 0, one for each of `count`.
    pub(super) fn numbers(&self, key: &str, count: usize) -> Result<Vec<f32>, DecoderError> {
        let expected = format!("{count} numbers above 0");
        let value = self.get(key).ok_or_else(|| self.absent(key, &expected))?;
        let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
        let above = |entry: &Value| entry.as_f64().map(|number| number as f32).filter(|number| *number > 0.0);
        let numbers: Vec<f32> = list.iter().map_while(above).collect();
        if numbers.len() == count && list.len() == count { Ok(numbers) } else { Err(self.wrong(key, &expected, value)) }
    }

    /// Texts, each of which must be one of a few.
    pub(super) fn texts(&self, key: &str, known: &[&str]) -> Result<Option<Vec<&'a str>>, DecoderError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let list = value.as_array().ok_or_else(|| self.wrong(key, "a list of texts", value))?;
        let text = |entry: &'a Value| match entry.as_str() {
            Some(text) if known.contains(&text) => Ok(text),
            Some(text) => Err(self.unsupported(key, known.join(" or "), text)),
            None => Err(self.wrong(key, "a list of texts", value)),
        };
        list.iter().map(text).collect::<Result<_, _>>().map(Some)
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, DecoderError> {
        self.get(key).map(|value| value.as_str().ok_or_else(|| self.wrong(key, "a text", value))).transpose()
    }

    /// The text at a key, which must be one of a few.
    pub(super) fn one_of(&self, key: &str, default: &'a str, known: &[&str]) -> Result<&'a str, DecoderError> {
        match self.text(key)?.unwrap_or(default) {
            found if known.contains(&found) => Ok(found),
            found => Err(self.unsupported(key, known.join(" or "), found)),
        }
    }

    pub(super) fn absent(&self, key: &str, expected: &str) -> DecoderError {
        DecoderError::Config { key: self.path(key), expected: expected.to_owned(), found: "nothing".to_owned() }
    }

    pub(super) fn wrong(&self, key: &str, expected: &str, found: &Value) -> DecoderError {
        let found = found.to_string().chars().take(60).collect();
        DecoderError::Config { key: self.path(key), expected: expected.to_owned(), found }
    }

    pub(super) fn unsupported(&self, key: &str, expected: impl Into<String>, found: &str) -> DecoderError {
        let found = format!("{:?}", found.chars().take(60).collect::<String>());
        DecoderError::Unsupported { key: self.path(key), expected: expected.into(), found }
    }

    fn path(&self, key: &str) -> String {
        if self.parent.is_empty() { key.to_owned() } else { format!("{}.{key}", self.parent) }
    }
}
