//! `nestpatch inspect`: lay a patch open, key or no key.

use std::path::PathBuf;

use serde_json::Value;

use super::failure::{Exit, Failure};
use super::output::{Output, bytes, count, fields, table};
use super::trusted::read_patch;
use crate::digest::Sha256;
use crate::format::Level;
use crate::patch::Contents;
use crate::patch::inspect::{EditSummary, Inspection, inspect};

/// Show what a patch holds. Checks no signature.
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The patch.
    patch: PathBuf,
}

pub(super) fn run(arguments: &Arguments, output: Output) -> Result<Exit, Failure> {
    let contents = Contents::read(read_patch(&arguments.patch)?)?;
    output.data("nestpatch/inspect/1", &inspect(&contents), text)?;
    Ok(Exit::Done)
}

fn text(found: &Inspection) -> String {
    let totals = &found.totals;
    let ratio = totals.touched_bytes as f64 / totals.file_bytes.max(1) as f64;
    let claimed = found.claimed_signers.iter().map(Sha256::short).collect::<Vec<_>>().join(", ");
    let levels = found.base.levels.iter().map(|level| match (level, found.base.tolerance) {
        (Level::Descendant, Some(tolerance)) => format!("{} (at most {tolerance} away)", level.as_str()),
        _ => level.as_str().to_owned(),
    });
    let levels = levels.collect::<Vec<_>>().join(", ");
    let mut lines = vec![
        ("id", found.id.to_string()),
        ("series", format!("{}, number {}", found.series, found.sequence)),
        ("created", format!("{} by {} {}", found.created, found.tool.name, found.tool.version)),
        ("base", format!("{} ({}), binds: {levels}", found.base.name, found.base.model_type)),
        (
            "signatures",
            format!(
                "not checked, nobody vouches for this; claimed by keys {}",
                if claimed.is_empty() { "(none)" } else { &claimed }
            ),
        ),
        ("edits", edits(found)),
        (
            "size",
            format!("{} for {} of rows: {ratio:.1}x smaller", bytes(totals.file_bytes), bytes(totals.touched_bytes)),
        ),
        (
            "revert",
            if totals.residual { "bit for bit, by the residual inside" } else { "needs what apply keeps" }.to_owned(),
        ),
    ];
    lines.extend(
        (!found.supersedes.is_empty())
            .then(|| ("replaces", found.supersedes.iter().map(Sha256::short).collect::<Vec<_>>().join(", "))),
    );
    lines.extend(found.not_understood.iter().map(|what| ("UNKNOWN", what.clone())));
    let mut text = format!("{}\n{}", found.name, fields(&lines));
    text += &format!("\nSections\n{}", sections(found));
    text +=
        &format!("\nEdits\n{}", table(&std::iter::once(head()).chain(found.edits.iter().map(row)).collect::<Vec<_>>()));
    if !found.creation.is_empty() {
        text += &format!("\nCreation, as its maker says\n{}", creation(&Value::Object(found.creation.clone()), "  "));
    }
    text
}

fn edits(found: &Inspection) -> String {
    let totals = &found.totals;
    let parts = [
        (totals.rows, "row"),
        (totals.tensors, "tensor"),
        (totals.clusters, "cluster"),
        (totals.parameters, "parameter"),
    ];
    parts.map(|(number, noun)| count(number, noun)).join(", ")
}

fn sections(found: &Inspection) -> String {
    let head = ["name", "codec", "critical", "stored", "decoded", "ratio"].map(str::to_owned).to_vec();
    let rows = found.sections.iter().map(|section| {
        let ratio = section.length as f64 / section.stored.max(1) as f64;
        let kind = if section.known { String::new() } else { format!(" (unknown kind {})", section.kind) };
        vec![
            format!("{}{kind}", section.name),
            section.codec.clone(),
            if section.critical { "yes" } else { "no" }.to_owned(),
            bytes(section.stored),
            bytes(section.length),
            format!("{ratio:.1}x"),
        ]
    });
    table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

fn head() -> Vec<String> {
    ["layer", "projection", "type", "rows", "of", "clusters", "delta norms", "change"].map(str::to_owned).to_vec()
}

fn row(edit: &EditSummary) -> Vec<String> {
    let norms = edit.clusters.iter().map(|cluster| cluster.norm);
    let (low, high) = (norms.clone().fold(f64::INFINITY, f64::min), norms.fold(0.0, f64::max));
    vec![
        edit.layer.map_or_else(|| edit.tensor.to_string(), |layer| layer.to_string()),
        edit.projection.clone(),
        edit.dtype.to_string(),
        edit.rows.to_string(),
        edit.of.to_string(),
        edit.clusters.len().to_string(),
        if edit.clusters.len() == 1 { format!("{low:.3}") } else { format!("{low:.3}..{high:.3}") },
        format!("{:.3}", edit.norm),
    ]
}

/// The creation block as indented lines; lists of anything but text are only counted.
fn creation(value: &Value, indent: &str) -> String {
    let Value::Object(members) = value else { return String::new() };
    let mut text = String::new();
    for (key, value) in members {
        match value {
            Value::Object(_) => text += &format!("{indent}{key}\n{}", creation(value, &format!("{indent}  "))),
            Value::String(line) => text += &format!("{indent}{key}: {line}\n"),
            Value::Array(items) if items.iter().all(Value::is_string) => {
                text += &format!("{indent}{key}\n");
                text.extend(items.iter().filter_map(Value::as_str).map(|line| format!("{indent}  {line}\n")));
            }
            Value::Array(items) => {
                text += &format!("{indent}{key}: {} (see --json)\n", count(items.len() as u64, "item"))
            }
            other => text += &format!("{indent}{key}: {other}\n"),
        }
    }
    text
}
