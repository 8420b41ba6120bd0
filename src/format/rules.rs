//! The rules of a manifest, in the order in which they are checked.

use std::collections::BTreeSet;

use crate::digest::Sha256;
use crate::format::limits::{
    MAX_CONFIG_KEYS, MAX_CONFIG_VALUE_BYTES, MAX_CREATION_BYTES, MAX_EDITS, MAX_JSON_INTEGER, MAX_LABEL_BYTES,
    MAX_PAYLOAD_BYTES, MAX_REQUIRES, MAX_SECTION_BYTES, MAX_SECTIONS, MAX_SUPERSEDES,
};
use crate::format::manifest::{BaseTensor, Codec, FormatVersion, Kind, Level, Manifest, ManifestError, SectionEntry};

impl Manifest {
    /// Every rule that needs nothing but the manifest.
    pub(crate) fn check(&self) -> Result<(), ManifestError> {
        if !self.format.is_readable() {
            let FormatVersion { major, writer_minor, .. } = FormatVersion::CURRENT;
            let found = format!("major {}, min_reader_minor {}", self.format.major, self.format.min_reader_minor);
            return Err(broken("format", &format!("major {major}, min_reader_minor up to {writer_minor}"), &found));
        }
        about(&self.name, &self.series, self.sequence, &self.supersedes)?;
        label("tool.name", &self.tool.name)?;
        label("tool.version", &self.tool.version)?;
        at_most("requires", MAX_REQUIRES, self.requires.len())?;
        self.requires.iter().try_for_each(|rule| label("requires", rule))?;
        distinct("requires", self.requires.iter())?;
        let creation = serde_json::to_vec(&self.creation).map_or(usize::MAX, |bytes| bytes.len());
        at_most("bytes of creation", MAX_CREATION_BYTES, creation)?;
        self.check_sections()?;
        self.check_base()
    }

    fn check_sections(&self) -> Result<(), ManifestError> {
        at_most("sections", MAX_SECTIONS, self.sections.len())?;
        distinct("section names", self.sections.iter().map(|entry| &entry.name))?;
        self.sections.iter().try_for_each(check_section)?;
        let stored = self.sections.iter().map(|entry| entry.stored.length).sum::<u64>();
        if stored > MAX_PAYLOAD_BYTES {
            return Err(broken(
                "stored lengths",
                &format!("at most {MAX_PAYLOAD_BYTES} together"),
                &stored.to_string(),
            ));
        }
        let known = self.sections.iter().map(|entry| &entry.kind).filter(|kind| kind.is_known());
        distinct("section kinds", known)?;
        for kind in [Kind::Rows, Kind::Deltas] {
            if self.section(&kind).is_none() {
                return Err(broken("sections", &format!("one of kind {:?}", kind.as_str()), "none"));
            }
        }
        let root = Self::compute_content_root(&self.sections);
        equal("content_root", &root.to_string(), &self.content_root.to_string())
    }

    fn check_base(&self) -> Result<(), ManifestError> {
        label("base.name", &self.base.name)?;
        label("base.architecture.model_type", &self.base.architecture.model_type)?;
        at_most("base.architecture.config", MAX_CONFIG_KEYS, self.base.architecture.config.len())?;
        for (key, value) in &self.base.architecture.config {
            label("base.architecture.config", key)?;
            at_most("bytes of a base.architecture.config value", MAX_CONFIG_VALUE_BYTES, value.len())?;
        }
        self.base.levels.iter().try_for_each(|level| label("base.levels", level.as_str()))?;
        distinct("base.levels", self.base.levels.iter())?;
        if !self.base.levels.contains(&Level::Exact) {
            return Err(broken("base.levels", "a list with \"exact\"", &format!("{:?}", self.base.levels)));
        }
        match (self.base.levels.contains(&Level::Descendant), self.section(&Kind::Sketch)) {
            (true, None) => {
                return Err(broken("base.levels", "a section of kind \"sketch\" for \"descendant\"", "none"));
            }
            (false, Some(_)) => {
                let found = format!("{:?}", self.base.levels);
                return Err(broken("base.levels", "\"descendant\", as there is a section of kind \"sketch\"", &found));
            }
            _ => {}
        }
        let names = |tensors: &[BaseTensor]| tensors.iter().map(|tensor| tensor.name.clone()).collect::<Vec<_>>();
        let names = names(&self.base.tensors);
        at_most("base.tensors", MAX_EDITS, names.len())?;
        if names.is_empty() || !names.is_sorted_by(|before, name| before < name) {
            return Err(broken("base.tensors", "at least one, by strictly ascending name", "another order or none"));
        }
        for BaseTensor { shape, .. } in &self.base.tensors {
            if shape.dims().len() < 2 || shape.dims().contains(&0) {
                return Err(broken("base.tensors shape", "two dimensions or more, none zero", &shape.to_string()));
            }
        }
        match names.iter().eq(self.result.tensors.iter().map(|tensor| &tensor.name)) {
            true => Ok(()),
            false => Err(broken("result.tensors", "the tensors of base.tensors, in order", "another list")),
        }
    }
}

fn check_section(entry: &SectionEntry) -> Result<(), ManifestError> {
    label("section name", &entry.name)?;
    label("section kind", entry.kind.as_str())?;
    label("section codec", entry.codec.as_str())?;
    let what = |field: &str| format!("section {:?}: {field}", entry.name);
    if entry.kind.critical().is_some_and(|critical| critical != entry.critical) {
        return Err(broken(&what("critical"), &(!entry.critical).to_string(), &entry.critical.to_string()));
    }
    for (field, length) in [("stored.length", entry.stored.length), ("content.length", entry.content.length)] {
        if length > MAX_SECTION_BYTES {
            return Err(broken(&what(field), &format!("at most {MAX_SECTION_BYTES}"), &length.to_string()));
        }
    }
    let same = (entry.stored.length, entry.stored.blake3) == (entry.content.length, entry.content.blake3);
    if entry.codec == Codec::Raw && !same {
        return Err(broken(&what("stored"), "the length and digest of content, as codec is raw", "others"));
    }
    Ok(())
}

/// The rules for what a publisher calls a patch.
pub(crate) fn about(name: &str, series: &str, sequence: u64, supersedes: &[Sha256]) -> Result<(), ManifestError> {
    label("name", name)?;
    label("series", series)?;
    if !(1..MAX_JSON_INTEGER).contains(&sequence) {
        return Err(broken("sequence", "a number from 1, under 2^53", &sequence.to_string()));
    }
    at_most("supersedes", MAX_SUPERSEDES, supersedes.len())?;
    distinct("supersedes", supersedes.iter())
}

pub(crate) fn label(what: &str, text: &str) -> Result<(), ManifestError> {
    match text_fault(text, 1, MAX_LABEL_BYTES) {
        None => Ok(()),
        Some((expected, found)) => Err(broken(what, &expected, &found)),
    }
}

/// What was expected of a line of text and what was found, if it is too short, too long, or holds control characters.
pub(crate) fn text_fault(text: &str, least: usize, most: usize) -> Option<(String, String)> {
    let (length, control) = (text.len(), text.chars().any(char::is_control));
    if (least..=most).contains(&length) && !control {
        return None;
    }
    let cut: String = text.chars().take(80).collect();
    Some((format!("{least} to {most} bytes of printable text"), format!("{length} bytes, {cut:?}")))
}

fn distinct<T: Ord + std::fmt::Debug>(what: &str, items: impl Iterator<Item = T>) -> Result<(), ManifestError> {
    let mut seen = BTreeSet::new();
    for item in items {
        let found = format!("{item:?} twice");
        if !seen.insert(item) {
            return Err(broken(what, "each once", &found));
        }
    }
    Ok(())
}

fn at_most(what: &str, limit: usize, found: usize) -> Result<(), ManifestError> {
    if found <= limit { Ok(()) } else { Err(broken(what, &format!("at most {limit}"), &found.to_string())) }
}

pub(crate) fn equal(what: &str, expected: &str, found: &str) -> Result<(), ManifestError> {
    let cut: String = found.chars().take(80).collect();
    if expected == found { Ok(()) } else { Err(broken(what, &format!("{expected:?}"), &format!("{cut:?}"))) }
}

pub(crate) fn broken(what: &str, expected: &str, found: &str) -> ManifestError {
    ManifestError::Rule { what: what.to_owned(), expected: expected.to_owned(), found: found.to_owned() }
}
