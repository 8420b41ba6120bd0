//! Files other than the weights: config.json by content, all others by bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value};

use super::{Scope, Verdict};
use crate::checkpoint::{Checkpoint, CheckpointError, OtherFile, Progress, same_bytes};
use crate::format::binding::config_text;

/// Characters of a configuration value that are shown.
const MAX_SHOWN: usize = 200;
/// How deep objects of a configuration are compared member by member.
const MAX_DEPTH: usize = 16;

/// What was found of files other than the weights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Files {
    /// Whether they were compared.
    pub compared: bool,
    /// Files in both folders that are the same, config.json among them; or, not compared, files in either.
    pub names: Vec<String>,
    /// Members of config.json that differ.
    pub config: Vec<ConfigFinding>,
    /// Files that differ.
    pub findings: Vec<FileFinding>,
    /// Weights in other files of the patched checkpoint: programs may load these, and no patch reaches them.
    pub strays: Vec<String>,
}

/// A member of config.json that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConfigFinding {
    /// Where it is, as a JSON pointer (RFC 6901).
    pub at: String,
    /// Its JSON in the base, cut for display; absent if the base lacks it.
    pub base: Option<String>,
    /// Its JSON in the patched checkpoint.
    pub patched: Option<String>,
}

/// A file that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileFinding {
    /// Its path from the checkpoint's folder.
    pub path: String,
    /// How it differs.
    pub is: FileDifference,
}

/// How a file differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FileDifference {
    /// The patched checkpoint lacks it.
    Missing,
    /// The base lacks it.
    Extra,
    /// Other bytes.
    Different,
}

impl Files {
    /// The verdict on checkpoints whose tensors are proven.
    pub(super) fn verdict(&self) -> Verdict {
        match (self.compared, self.config.is_empty() && self.findings.is_empty()) {
            (false, _) => Verdict::TensorsProven,
            (true, true) => Verdict::Proven,
            (true, false) => Verdict::FilesDiffer,
        }
    }
}

/// Compares the other files of two checkpoints, or lists them.
pub(super) fn compare(
    base: &Checkpoint,
    patched: &Checkpoint,
    scope: Scope,
    progress: &dyn Progress,
) -> Result<Files, CheckpointError> {
    let (ours, theirs) = (by_path(base.other_files()?), by_path(patched.other_files()?));
    let paths: BTreeSet<&PathBuf> = ours.keys().chain(theirs.keys()).collect();
    let strays = patched.strays().to_vec();
    if scope == Scope::TensorsOnly {
        let names = ["config.json".to_owned()].into_iter().chain(paths.into_iter().map(|path| shown(path))).collect();
        return Ok(Files { compared: false, names, config: vec![], findings: vec![], strays });
    }
    progress.stage("comparing other files", ours.values().sum());
    let config = config_findings(base.config(), patched.config());
    let (mut names, mut findings) = (Vec::new(), Vec::new());
    if config.is_empty() {
        names.push("config.json".to_owned());
    }
    for path in paths {
        let is = match (ours.get(path), theirs.get(path)) {
            (Some(_), None) => FileDifference::Missing,
            (None, _) => FileDifference::Extra,
            (Some(one), Some(other)) => {
                let same = one == other && same_bytes(&base.dir().join(path), &patched.dir().join(path), progress)?;
                if same {
                    names.push(shown(path));
                    continue;
                }
                FileDifference::Different
            }
        };
        findings.push(FileFinding { path: shown(path), is });
    }
    Ok(Files { compared: true, names, config, findings, strays })
}

fn by_path(files: Vec<OtherFile>) -> BTreeMap<PathBuf, u64> {
    files.into_iter().map(|file| (file.path, file.length)).collect()
}

/// A path as text: whatever the system calls it, JSON holds Unicode.
fn shown(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn config_findings(base: &Map<String, Value>, patched: &Map<String, Value>) -> Vec<ConfigFinding> {
    let mut findings = Vec::new();
    members(base, patched, "", MAX_DEPTH, &mut findings);
    findings
}

/// Numbers and everything else are the same if their texts in a binding are (`spec/format.md`, 8).
fn members(
    base: &Map<String, Value>,
    patched: &Map<String, Value>,
    above: &str,
    depth: usize,
    findings: &mut Vec<ConfigFinding>,
) {
    let keys: BTreeSet<&String> = base.keys().chain(patched.keys()).collect();
    for key in keys {
        let at = format!("{above}/{}", key.replace('~', "~0").replace('/', "~1"));
        match (base.get(key), patched.get(key)) {
            (Some(Value::Object(ours)), Some(Value::Object(theirs))) if depth > 0 => {
                members(ours, theirs, &at, depth - 1, findings);
            }
            (ours, theirs) if ours.map(config_text) != theirs.map(config_text) => {
                let text = |value: Option<&Value>| value.map(|value| cut(&value.to_string()));
                findings.push(ConfigFinding { at, base: text(ours), patched: text(theirs) });
            }
            _ => {}
        }
    }
}

fn cut(text: &str) -> String {
    let mut letters = text.chars();
    let shown: String = letters.by_ref().take(MAX_SHOWN).collect();
    if letters.next().is_some() { shown + " ..." } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn configurations_are_compared_member_by_member() {
        let base = json!({"a": 500000, "b": {"c/d": [1, 2], "same": "x"}, "gone": null, "e": 1e-5});
        let patched = json!({"a": 500000.0, "b": {"c/d": [1, 3], "same": "x"}, "e": 1e-5, "new": {"x": 1}});
        let found = config_findings(base.as_object().unwrap(), patched.as_object().unwrap());
        let found: Vec<_> =
            found.iter().map(|one| (one.at.as_str(), one.base.as_deref(), one.patched.as_deref())).collect();
        assert_eq!(
            found,
            [
                ("/b/c~1d", Some("[1,2]"), Some("[1,3]")),
                ("/gone", Some("null"), None),
                ("/new", None, Some(r#"{"x":1}"#))
            ]
        );
    }
}
