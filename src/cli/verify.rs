//! `nestpatch verify`: what is proven, what is not, and the exit code that says so.

use std::path::PathBuf;

use serde::Serialize;

use super::failure::{Exit, Failure};
use super::output::{Output, fields, on_one_line};
use super::progress::Bars;
use super::trusted::{Trusted, read_patch};
use crate::checkpoint::Checkpoint;
use crate::patch::verify::{Claim, Examination, Standing, Verdict, examine};

/// Say what is proven about a patch and what is not.
///
/// Exits 0 only if as many trusted people signed the patch as it takes, nothing that was given speaks against its use
/// (trust file, status feed, memory), it is whole and understood, and, where a checkpoint is given, made for that
/// checkpoint. Uses no network.
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The patch.
    patch: PathBuf,
    #[command(flatten)]
    trusted: Trusted,
    /// Also check that this checkpoint is the base it was made for.
    #[arg(long, value_name = "DIR")]
    checkpoint: Option<PathBuf>,
}

#[derive(Serialize)]
struct Report<'a> {
    file: &'a PathBuf,
    #[serde(flatten)]
    found: &'a Examination,
}

pub(super) fn run(arguments: &Arguments, output: Output) -> Result<Exit, Failure> {
    let policy = arguments.trusted.policy()?;
    let bytes = read_patch(&arguments.patch)?;
    let checkpoint = arguments.checkpoint.as_deref().map(Checkpoint::open).transpose()?;
    let bars = Bars::new(output);
    let found = examine(bytes, policy.as_ref(), checkpoint.as_ref(), &bars)?;
    bars.clear();
    // The memory may lie in the checkpoint's folder, which is locked until here.
    drop(checkpoint);
    // Believed is believed, whatever the checkpoint is.
    let believed = matches!(found.verdict, Verdict::Trusted | Verdict::WrongBase | Verdict::DamagedBase);
    if let Some((series, number)) = found.series.as_ref().filter(|_| believed) {
        arguments.trusted.remember(series, *number, found.patch)?;
    }
    let child = |claim: &Claim| claim.about == "descendant" && claim.standing == Standing::Proven;
    if found.claims.iter().any(child) {
        output.note("note: `nestpatch apply --level descendant` takes the patch on this checkpoint");
    }
    output.data("nestpatch/verify/1", &Report { file: &arguments.patch, found: &found }, text)?;
    Ok(exit(found.verdict))
}

/// The one place where a verdict becomes an exit code.
fn exit(verdict: Verdict) -> Exit {
    match verdict {
        Verdict::Trusted => Exit::Done,
        Verdict::Untrusted | Verdict::Outdated | Verdict::Withdrawn | Verdict::StatusUnknown => Exit::Untrusted,
        Verdict::NotUnderstood => Exit::Patch,
        Verdict::WrongBase => Exit::Base,
        Verdict::DamagedBase => Exit::Checkpoint,
    }
}

fn text(report: &Report<'_>) -> String {
    let found = report.found;
    let verdict = match found.verdict {
        Verdict::Trusted => "trusted",
        Verdict::Untrusted => "NOT TRUSTED",
        Verdict::Outdated => "signed, but OUTDATED",
        Verdict::Withdrawn => "signed, but WITHDRAWN",
        Verdict::StatusUnknown => "signed, but its status is UNKNOWN",
        Verdict::NotUnderstood => "trusted, but NOT UNDERSTOOD by this version",
        Verdict::WrongBase => "trusted, but made for ANOTHER BASE",
        Verdict::DamagedBase => "trusted, but the checkpoint is DAMAGED",
    };
    let mut lines = vec![("patch", found.patch.to_string())];
    lines.extend(found.name.iter().map(|name| ("name", name.clone())));
    lines.extend(found.series.iter().map(|(series, number)| ("series", format!("{series}, number {number}"))));
    let mut text = format!("{}: {verdict}\n{}", on_one_line(report.file), fields(&lines));
    for (heading, standing) in
        [("Proven", Standing::Proven), ("Failed", Standing::Failed), ("Not checked", Standing::Unchecked)]
    {
        let claims = found.claims.iter().filter(|claim| claim.standing == standing);
        let lines: Vec<_> = claims.map(|claim| (claim.about, claim.detail.clone())).collect();
        if !lines.is_empty() {
            text += &format!("\n{heading}\n{}", fields(&lines));
        }
    }
    let never = found.never_proven.iter().map(|line| format!("  {line}\n")).collect::<String>();
    format!("{text}\nNot provable by any signature\n{never}")
}
