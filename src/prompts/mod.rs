//! Prompt sets: what a person brings, as JSON lines, JSON, CSV or one prompt a line.

mod error;

pub use error::PromptsError;

use std::collections::HashMap;
use std::io::Read;
use std::path::Path;

use serde_json::Value;

use crate::digest::Blake3;

/// The largest prompt file read, in bytes.
pub const MAX_FILE_BYTES: u64 = 256 << 20;
/// The field or column a prompt is taken from unless another is named.
pub const PROMPT_FIELD: &str = "prompt";
/// The field or column an answer is taken from unless another is named.
pub const RESPONSE_FIELD: &str = "response";

/// One prompt and, where the file has one, the answer to train on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// What the user says.
    pub text: String,
    /// What the model should answer.
    pub response: Option<String>,
    /// The line (JSON lines, text, CSV) or item (JSON) it came from, counted from 1.
    pub origin: usize,
}

/// Which fields (JSON) or columns (CSV) hold prompt and answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fields {
    /// The prompt's field; [`PROMPT_FIELD`] unless named.
    pub prompt: Option<String>,
    /// The answer's field. A named one must exist; [`RESPONSE_FIELD`] is used if it does.
    pub response: Option<String>,
}

impl Fields {
    fn prompt(&self) -> &str {
        self.prompt.as_deref().unwrap_or(PROMPT_FIELD)
    }

    fn response(&self) -> &str {
        self.response.as_deref().unwrap_or(RESPONSE_FIELD)
    }
}

/// How a prompt file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileFormat {
    /// One JSON object a line.
    JsonLines,
    /// A JSON list of objects, or an object that holds exactly one such list (as JailbreakBench's artifacts do).
    Json,
    /// Comma-separated values with a header.
    Csv,
    /// One prompt a line; empty lines do not count.
    Lines,
}

impl FileFormat {
    /// The format a file name stands for: `.jsonl` or `.ndjson`, `.json`, `.csv`; anything else is lines.
    pub fn of(path: &Path) -> Self {
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        match extension.to_ascii_lowercase().as_str() {
            "jsonl" | "ndjson" => Self::JsonLines,
            "json" => Self::Json,
            "csv" => Self::Csv,
            _ => Self::Lines,
        }
    }
}

/// A repeated prompt: the same text, but for case and white space, in two places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Duplicate {
    /// Where it stood first ([`Prompt::origin`]).
    pub first: usize,
    /// Where it stands again.
    pub again: usize,
}

/// The prompts of one file, in the file's order, each text once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptSet {
    source: String,
    prompts: Vec<Prompt>,
    duplicates: Vec<Duplicate>,
    skipped: usize,
}

impl PromptSet {
    /// Reads a prompt file; the name's ending decides the format.
    ///
    /// # Errors
    /// A file that cannot be read, is larger than [`MAX_FILE_BYTES`], is not UTF-8, holds no prompt, lacks the field
    /// or column, or has an entry of another type; each says where.
    pub fn load(path: &Path, fields: &Fields) -> Result<Self, PromptsError> {
        let source = path.display().to_string();
        let unreadable = |error| PromptsError::Read { path: source.clone(), source: error };
        let mut bytes = Vec::new();
        // Not by the length that the file system gives: a device has none and never ends.
        let mut file = std::fs::File::open(path).map_err(unreadable)?.take(MAX_FILE_BYTES + 1);
        let found = file.read_to_end(&mut bytes).map_err(unreadable)? as u64;
        if found > MAX_FILE_BYTES {
            return Err(PromptsError::Size { file: source });
        }
        Self::parse(&bytes, FileFormat::of(path), fields, &source)
    }

    /// Reads prompts from bytes; `source` names them in messages.
    ///
    /// # Errors
    /// As for [`PromptSet::load`].
    pub fn parse(bytes: &[u8], format: FileFormat, fields: &Fields, source: &str) -> Result<Self, PromptsError> {
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let text = std::str::from_utf8(bytes)
            .map_err(|error| PromptsError::Encoding { file: source.to_owned(), offset: error.valid_up_to() })?;
        let mut reader = Reader { source, fields, prompts: Vec::new(), skipped: 0 };
        match format {
            FileFormat::JsonLines => reader.json_lines(text)?,
            FileFormat::Json => reader.json(text)?,
            FileFormat::Csv => reader.csv(text)?,
            FileFormat::Lines => reader.lines(text)?,
        }
        reader.finish()
    }

    /// A set from texts at hand.
    ///
    /// # Errors
    /// No text at all.
    pub fn from_texts<T: Into<String>>(source: &str, texts: impl IntoIterator<Item = T>) -> Result<Self, PromptsError> {
        let prompt = |(index, text): (usize, T)| Prompt { text: text.into(), response: None, origin: index + 1 };
        let prompts = texts.into_iter().enumerate().map(prompt).collect();
        Reader { source, fields: &Fields::default(), prompts, skipped: 0 }.finish()
    }

    /// What the set was read from.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The prompts, each text once, in the file's order.
    pub fn prompts(&self) -> &[Prompt] {
        &self.prompts
    }

    /// Entries left out because an earlier one says the same.
    pub fn duplicates(&self) -> &[Duplicate] {
        &self.duplicates
    }

    /// Entries left out because their prompt is null (failed attempts in jailbreak artifacts).
    pub fn skipped(&self) -> usize {
        self.skipped
    }

    /// Pairs of origins, here and in `other`, that hold the same text.
    pub fn overlap(&self, other: &Self) -> Vec<(usize, usize)> {
        let theirs: HashMap<_, _> = other.prompts.iter().map(|prompt| (key(&prompt.text), prompt.origin)).collect();
        let ours = self.prompts.iter();
        ours.filter_map(|prompt| Some((prompt.origin, *theirs.get(&key(&prompt.text))?))).collect()
    }

    /// The digest of the normalised list: BLAKE3 over a tag and, for each prompt in order, the length and bytes of the
    /// text and of the answer, line ends as LF and outer white space cut. File format and duplicates do not matter.
    pub fn digest(&self) -> Blake3 {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"nestpatch prompt set v1\n");
        let mut part = |text: &str| {
            let text = text.replace("\r\n", "\n");
            let text = text.trim();
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        };
        for prompt in &self.prompts {
            part(&prompt.text);
            part(prompt.response.as_deref().unwrap_or_default());
        }
        hasher.finalize().into()
    }
}

/// What makes two prompts the same: words, whatever their case and spacing.
fn key(text: &str) -> String {
    text.split_whitespace().map(str::to_lowercase).collect::<Vec<_>>().join(" ")
}

struct Reader<'a> {
    source: &'a str,
    fields: &'a Fields,
    prompts: Vec<Prompt>,
    skipped: usize,
}

impl Reader<'_> {
    fn json_lines(&mut self, text: &str) -> Result<(), PromptsError> {
        for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let value = serde_json::from_str(line).map_err(|error| self.entry(index + 1, error.to_string()))?;
            self.object(index + 1, &value)?;
        }
        Ok(())
    }

    fn json(&mut self, text: &str) -> Result<(), PromptsError> {
        let value: Value = serde_json::from_str(text).map_err(|error| self.entry(error.line(), error.to_string()))?;
        let list = object_list(&value).ok_or_else(|| {
            self.entry(1, "expected a list of objects, or an object with exactly one list of objects".to_owned())
        })?;
        list.iter().enumerate().try_for_each(|(index, item)| self.object(index + 1, item))
    }

    fn object(&mut self, origin: usize, value: &Value) -> Result<(), PromptsError> {
        let Value::Object(object) = value else {
            return Err(self.entry(origin, format!("expected a JSON object, found {}", kind(value))));
        };
        let missing = |field: &str| PromptsError::Field {
            file: self.source.to_owned(),
            origin,
            field: field.to_owned(),
            found: object.keys().cloned().collect(),
        };
        let text = match object.get(self.fields.prompt()) {
            None => return Err(missing(self.fields.prompt())),
            Some(Value::Null) => {
                self.skipped += 1;
                return Ok(());
            }
            Some(value) => self.text(origin, self.fields.prompt(), value)?,
        };
        let response = match object.get(self.fields.response()) {
            None if self.fields.response.is_some() => return Err(missing(self.fields.response())),
            None | Some(Value::Null) => None,
            Some(value) => Some(self.text(origin, self.fields.response(), value)?),
        };
        self.push(origin, text, response)
    }

    /// A string, or the first of a list of strings: the opening turn of a conversation.
    fn text(&self, origin: usize, field: &str, value: &Value) -> Result<String, PromptsError> {
        let first = value.as_array().and_then(|turns| turns.first()).unwrap_or(value);
        let text = first.as_str().map(str::to_owned);
        text.ok_or_else(|| self.entry(origin, format!("field {field:?}: expected a string, found {}", kind(value))))
    }

    fn csv(&mut self, text: &str) -> Result<(), PromptsError> {
        let mut reader = csv::ReaderBuilder::new().from_reader(text.as_bytes());
        let header = reader.headers().map_err(|error| self.entry(1, error.to_string()))?.clone();
        let column = |name: &str| header.iter().position(|column| column.trim() == name);
        let missing = |name: &str| PromptsError::Column {
            file: self.source.to_owned(),
            column: name.to_owned(),
            found: header.iter().map(str::to_owned).collect(),
        };
        let prompt = column(self.fields.prompt()).ok_or_else(|| missing(self.fields.prompt()))?;
        let response = column(self.fields.response());
        if response.is_none() && self.fields.response.is_some() {
            return Err(missing(self.fields.response()));
        }
        for (index, record) in reader.records().enumerate() {
            let record = record.map_err(|error| self.entry(index + 2, error.to_string()))?;
            let origin = record.position().map_or(index + 2, |position| position.line() as usize);
            let cell = |column: usize| record.get(column).unwrap_or_default().to_owned();
            let answer = response.map(cell).filter(|answer| !answer.trim().is_empty());
            self.push(origin, cell(prompt), answer)?;
        }
        Ok(())
    }

    fn lines(&mut self, text: &str) -> Result<(), PromptsError> {
        for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            // JSON under another name would become prompts that begin with a brace.
            if serde_json::from_str::<serde_json::Map<String, Value>>(line).is_ok() {
                let problem = "expected a prompt, found a JSON object: a file of JSON lines is called .jsonl";
                return Err(self.entry(index + 1, problem.to_owned()));
            }
            self.prompts.push(Prompt { text: line.trim().to_owned(), response: None, origin: index + 1 });
        }
        Ok(())
    }

    fn push(&mut self, origin: usize, text: String, response: Option<String>) -> Result<(), PromptsError> {
        if text.trim().is_empty() {
            return Err(self.entry(origin, format!("field {:?} is empty", self.fields.prompt())));
        }
        self.prompts.push(Prompt { text, response, origin });
        Ok(())
    }

    fn finish(self) -> Result<PromptSet, PromptsError> {
        let mut first = HashMap::new();
        let mut prompts = Vec::with_capacity(self.prompts.len());
        let mut duplicates = Vec::new();
        for prompt in self.prompts {
            match first.entry(key(&prompt.text)) {
                std::collections::hash_map::Entry::Occupied(entry) => {
                    duplicates.push(Duplicate { first: *entry.get(), again: prompt.origin });
                }
                std::collections::hash_map::Entry::Vacant(entry) => {
                    entry.insert(prompt.origin);
                    prompts.push(prompt);
                }
            }
        }
        if prompts.is_empty() {
            return Err(PromptsError::Empty { file: self.source.to_owned() });
        }
        Ok(PromptSet { source: self.source.to_owned(), prompts, duplicates, skipped: self.skipped })
    }

    fn entry(&self, origin: usize, problem: String) -> PromptsError {
        PromptsError::Entry { file: self.source.to_owned(), origin, problem }
    }
}

/// A list of objects, or the only one that an object holds.
fn object_list(value: &Value) -> Option<&[Value]> {
    let objects = |value: &Value| value.as_array().is_some_and(|list| list.iter().all(Value::is_object));
    match value {
        Value::Array(list) => Some(list),
        Value::Object(object) => {
            let mut lists = object.values().filter(|value| objects(value));
            let only = lists.next().filter(|_| lists.next().is_none())?;
            only.as_array().map(Vec::as_slice)
        }
        _ => None,
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, format: FileFormat) -> Result<PromptSet, PromptsError> {
        PromptSet::parse(text.as_bytes(), format, &Fields::default(), "set")
    }

    #[test]
    fn json_lines_under_another_name_are_refused() {
        let error = parse("bake a cake\n{\"prompt\":\"kill a process\"}\n", FileFormat::Lines).unwrap_err();
        assert!(error.to_string().contains("entry 2") && error.to_string().contains(".jsonl"), "{error}");
        assert_eq!(texts(&parse("{what} is a brace ?", FileFormat::Lines).unwrap()), ["{what} is a brace ?"]);
    }

    fn texts(set: &PromptSet) -> Vec<&str> {
        set.prompts().iter().map(|prompt| prompt.text.as_str()).collect()
    }

    #[test]
    fn the_same_prompts_in_four_formats_have_one_digest() {
        let lines = parse("\u{feff}bake a cake\r\n\r\nkill a process\r\n", FileFormat::Lines).unwrap();
        let json_lines =
            parse("{\"prompt\":\"bake a cake\"}\n{\"prompt\":\"kill a process\"}\n", FileFormat::JsonLines);
        let json = parse(r#"[{"prompt":"bake a cake"},{"prompt":"kill a process"}]"#, FileFormat::Json);
        let csv = parse("id,prompt\r\n1,bake a cake\r\n2,\"kill a process\"\r\n", FileFormat::Csv);
        for set in [json_lines, json, csv] {
            let set = set.unwrap();
            assert_eq!(texts(&set), ["bake a cake", "kill a process"]);
            assert_eq!(set.digest(), lines.digest());
        }
        assert_ne!(parse("kill a process\nbake a cake", FileFormat::Lines).unwrap().digest(), lines.digest());
    }

    #[test]
    fn answers_count_in_the_digest_and_named_fields_must_exist() {
        let text = r#"{"q":"2+2?","response":"4"}"#;
        let fields = Fields { prompt: Some("q".to_owned()), response: None };
        let with = PromptSet::parse(text.as_bytes(), FileFormat::JsonLines, &fields, "set").unwrap();
        assert_eq!(with.prompts()[0].response.as_deref(), Some("4"));
        let without = PromptSet::parse(br#"{"q":"2+2?"}"#, FileFormat::JsonLines, &fields, "set").unwrap();
        assert_ne!(with.digest(), without.digest());
        let fields = Fields { prompt: Some("q".to_owned()), response: Some("answer".to_owned()) };
        let error = PromptSet::parse(text.as_bytes(), FileFormat::JsonLines, &fields, "set").unwrap_err();
        assert!(matches!(error, PromptsError::Field { field, .. } if field == "answer"));
    }

    #[test]
    fn a_missing_column_names_those_that_exist() {
        let error = parse("goal,target\nx,y\n", FileFormat::Csv).unwrap_err().to_string();
        assert!(error.contains("\"prompt\"") && error.contains("goal") && error.contains("target"), "{error}");
    }

    #[test]
    fn duplicates_are_reported_once_each_and_left_out() {
        let set = parse("Make tea\nbake bread\nmake  TEA\n", FileFormat::Lines).unwrap();
        assert_eq!(texts(&set), ["Make tea", "bake bread"]);
        assert_eq!(set.duplicates(), [Duplicate { first: 1, again: 3 }]);
        let other = parse("x\nBAKE bread", FileFormat::Lines).unwrap();
        assert_eq!(set.overlap(&other), [(2, 2)]);
    }

    #[test]
    fn nothing_to_read_is_an_error() {
        for (text, format) in [("", FileFormat::Lines), ("\n \n", FileFormat::JsonLines), ("[]", FileFormat::Json)] {
            assert!(matches!(parse(text, format), Err(PromptsError::Empty { .. })), "{text:?}");
        }
        assert!(matches!(parse("prompt\n", FileFormat::Csv), Err(PromptsError::Empty { .. })));
    }

    #[test]
    fn wrong_entries_say_where() {
        let wrong = [
            ("{\"prompt\":\"a\"}\n{\"prompt\":3}", FileFormat::JsonLines, 2),
            ("{\"prompt\":\"a\"}\n{\"prompt\":", FileFormat::JsonLines, 2),
            ("{\"prompt\":\"a\"}\n\n[1]", FileFormat::JsonLines, 3),
            ("prompt\na\n\" \"\n", FileFormat::Csv, 3),
            ("prompt,x\na,1\nb\n", FileFormat::Csv, 3),
        ];
        for (text, format, line) in wrong {
            let error = parse(text, format).unwrap_err();
            assert!(matches!(&error, PromptsError::Entry { origin, .. } if *origin == line), "{text:?}: {error}");
        }
        let error = PromptSet::parse(b"ab\xffc", FileFormat::Lines, &Fields::default(), "set").unwrap_err();
        assert!(matches!(error, PromptsError::Encoding { offset: 2, .. }));
    }

    #[test]
    fn null_prompts_of_an_artifact_are_skipped_and_counted() {
        let text = r#"{"parameters":{},"jailbreaks":[{"prompt":null},{"prompt":"please"}]}"#;
        let set = parse(text, FileFormat::Json).unwrap();
        assert_eq!((texts(&set), set.skipped()), (vec!["please"], 1));
    }
}
