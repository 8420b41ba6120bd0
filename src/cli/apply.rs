//! `nestpatch apply`: verify, check the base, fold, record.

use std::path::PathBuf;

use super::failure::{Exit, Failure};
use super::output::{Output, bytes, count, fields, grouped};
use super::progress::Bars;
use super::trusted::Trusted;
use super::{Destination, note_strays, open_checkpoint};
use crate::checkpoint::{BoundBase, Checkpoint, Side, check_target, config_differences};
use crate::patch::apply::{Applied, Target, apply, dry_run};
use crate::patch::record::SignedBy;

/// Verify a patch and apply it to a checkpoint.
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The patch.
    patch: PathBuf,
    /// The checkpoint's folder. A snapshot in a hub cache works with -o.
    checkpoint: PathBuf,
    #[command(flatten)]
    destination: Destination,
    #[command(flatten)]
    trusted: Trusted,
    /// Write no checkpoint: say what would change, and whether the result is what the publisher signed.
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn run(arguments: &Arguments, output: Output) -> Result<Exit, Failure> {
    let patch = arguments.trusted.verified(&arguments.patch)?;
    let target = arguments.destination.target();
    let checkpoint = match arguments.dry_run {
        true => Checkpoint::open(&arguments.checkpoint)?,
        false => open_checkpoint(&arguments.checkpoint)?,
    };
    match target {
        Target::NewFolder(out) => drop(check_target(&checkpoint, out)?),
        Target::InPlace if arguments.dry_run => {}
        Target::InPlace => checkpoint.lock_for_change()?,
    }
    let bars = Bars::new(output);
    let contents = patch.contents();
    let base = BoundBase::exact(&checkpoint, &contents.manifest, &contents.edits, Side::Base, &bars)?;
    let done = match arguments.dry_run {
        true => dry_run(&patch, &base, target, &bars)?,
        false => apply(&patch, &base, target, &bars)?,
    };
    bars.clear();
    for (key, expected, found) in config_differences(&checkpoint, &contents.manifest) {
        output.note(&format!("note: config.json: {key}: the base has {expected}, this checkpoint {found}"));
    }
    note_strays(&checkpoint, output);
    output.data("nestpatch/apply/1", &done, text)?;
    Ok(Exit::Done)
}

fn text(done: &Applied) -> String {
    let heading = match done.dry_run {
        true => format!("Would apply {} to {} (nothing was written)", done.name, done.checkpoint.display()),
        false if done.output == done.checkpoint => format!("Applied {} to {}", done.name, done.checkpoint.display()),
        false => format!("Applied {} to a copy of {}", done.name, done.checkpoint.display()),
    };
    let signers = done.signers.iter().map(SignedBy::to_string).collect::<Vec<_>>().join(", ");
    let (rows, tensors) = (count(done.rows, "row"), count(done.tensors, "tensor"));
    let mut lines = vec![
        ("patch", done.patch.short()),
        ("signed by", signers),
        ("base", format!("{} match of {tensors}", done.level.as_str())),
        ("rows", format!("{rows} in {tensors}, {}", bytes(done.bytes))),
        ("changed", format!("{} of {}", grouped(done.changed), count(done.elements, "element"))),
        ("result", "what the publisher signed".to_owned()),
    ];
    match done.dry_run {
        true => lines.push(("disk needed", format!("at most {}", bytes(done.disk_needed)))),
        false => lines.push(("output", format!("{} (record {})", done.output.display(), done.record))),
    }
    format!("{heading}\n{}", fields(&lines))
}
