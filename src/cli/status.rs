//! `nestpatch status`: what is applied, and whether it still holds.

use std::path::PathBuf;

use serde::Serialize;

use super::destination::Compared;
use super::failure::{Exit, Failure};
use super::output::{Output, count, fields, one_line, warn};
use super::progress::Bars;
use super::trusted::Keys;
use crate::checkpoint::{Checkpoint, Depth, recover};
use crate::patch::record::{Record, SignedBy};
use crate::patch::status::{Signed, State, Status, StatusEntry, status};

/// Show what is applied to a checkpoint, and whether it still holds.
///
/// Mends the checkpoint first if a change in place was interrupted, and says how. Reads only the touched rows, unless
/// --check asks for more. Signatures on patches and records are checked with the keys given.
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The checkpoint's folder.
    checkpoint: PathBuf,
    #[command(flatten)]
    compared: Compared,
    #[command(flatten)]
    keys: Keys,
}

#[derive(Serialize)]
struct Report {
    checkpoint: PathBuf,
    /// What was done about an interrupted change.
    recovered: Option<String>,
    #[serde(flatten)]
    status: Status,
}

pub(super) fn run(arguments: &Arguments, output: Output) -> Result<Exit, Failure> {
    let (dir, policy) = (&arguments.checkpoint, arguments.keys.policy()?);
    let recovered = recover(dir)?.map(|recovery| one_line(&recovery.to_string()));
    if let Some(recovery) = &recovered {
        warn(&format!("{}: {recovery}", dir.display()));
    }
    let checkpoint = Checkpoint::open(dir)?;
    let (depth, bars) = (arguments.compared.depth().unwrap_or(Depth::Rows), Bars::new(output));
    let status = status(&checkpoint, depth, policy.as_ref(), &bars)?;
    let report = Report { checkpoint: dir.clone(), recovered, status };
    bars.clear();
    output.data("nestpatch/status/1", &report, text)?;
    let unreadable = |entry: &StatusEntry| matches!(entry.state, State::Unreadable { .. });
    let by_nobody = |entry: &StatusEntry| matches!(&entry.patch_signed, Signed::By { signers } if signers.is_empty());
    Ok(match report.status.is_sound() {
        true if report.status.applied.iter().any(by_nobody) => Exit::Untrusted,
        true => Exit::Done,
        false if report.status.applied.iter().any(unreadable) => Exit::Checkpoint,
        false => Exit::Base,
    })
}

fn text(report: &Report) -> String {
    let applied = &report.status.applied;
    let heading = match applied.len() {
        0 => format!("{}: no patch is applied\n", report.checkpoint.display()),
        1 => format!("{}: 1 patch is applied\n", report.checkpoint.display()),
        more => format!("{}: {more} patches are applied\n", report.checkpoint.display()),
    };
    let strays = report.status.strays.iter().map(|name| ("not reached by patches", name));
    let unrecorded = report.status.unrecorded.iter().map(|name| ("in the nestpatch folder, and of no record", name));
    let notes = strays.chain(unrecorded).map(|(what, name)| format!("  {what}: {}\n", one_line(name)));
    heading + &applied.iter().map(entry).collect::<String>() + &notes.collect::<String>()
}

fn entry(entry: &StatusEntry) -> String {
    let record = &entry.record;
    let state = match &entry.state {
        State::Holds => "holds: every touched row is what the patch made of it".to_owned(),
        State::Covered { by } => format!("covered: record {by} touches some of the same rows"),
        State::Changed { found } => format!("CHANGED: {found}"),
        State::Unreadable { reason } => format!("UNREADABLE: {reason}"),
    };
    let mut lines = vec![
        (
            "patch",
            format!("{} (series {}, number {})", record.patch.id.short(), record.patch.series, record.patch.sequence),
        ),
        ("signed by", signers(record, &entry.patch_signed)),
        ("applied", format!("{} at level {}", record.applied, record.level.as_str())),
    ];
    lines.extend(record.override_binding.iter().map(|reason| ("override", reason.clone())));
    lines.extend(signed(&entry.signed).map(|signed| ("record", signed)));
    lines.extend(entry.rows.map(|rows| ("rows", count(rows, "row"))));
    lines.push(("state", state));
    format!("{}. {}\n{}", record.number, one_line(&record.patch.name), fields(&lines))
}

/// Whose signatures the patch has: checked if keys were given, else what the record says.
fn signers(record: &Record, checked: &Signed) -> String {
    let list = |signers: &[SignedBy]| signers.iter().map(SignedBy::to_string).collect::<Vec<_>>().join(", ");
    match checked {
        Signed::By { signers } if signers.is_empty() => "NOBODY who is trusted here".to_owned(),
        Signed::By { signers } => list(signers),
        _ => list(&record.signers) + " (as recorded, not checked)",
    }
}

fn signed(signed: &Signed) -> Option<String> {
    match signed {
        Signed::No => None,
        Signed::Unchecked => Some("signed; not checked, as no key was given".to_owned()),
        Signed::By { signers } if signers.is_empty() => Some("signed by nobody who is trusted here".to_owned()),
        Signed::By { signers } => {
            Some(format!("signed by {}", signers.iter().map(SignedBy::to_string).collect::<Vec<_>>().join(", ")))
        }
    }
}
