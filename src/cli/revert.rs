//! `nestpatch revert`: give the old bytes back.

use std::path::PathBuf;

use super::failure::{Exit, Failure};
use super::output::{Output, count, fields};
use super::progress::Bars;
use super::trusted::Keys;
use super::{Destination, open_checkpoint};
use crate::checkpoint::check_target;
use crate::patch::apply::Target;
use crate::patch::revert::{Reverted, newest, revert};
use crate::patch::verify::verify;

/// Take back the newest patch, bit for bit.
///
/// Needs nothing but the checkpoint: the patch that was applied lies in it. Its signature is checked only if a key or
/// trust file is given; what is always checked is that the touched tensors are what the patch made of them, and that
/// the restored ones are its base.
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The checkpoint's folder.
    checkpoint: PathBuf,
    #[command(flatten)]
    destination: Destination,
    #[command(flatten)]
    keys: Keys,
}

pub(super) fn run(arguments: &Arguments, output: Output) -> Result<Exit, Failure> {
    let checkpoint = open_checkpoint(&arguments.checkpoint)?;
    let target = arguments.destination.target();
    match target {
        Target::NewFolder(out) => drop(check_target(&checkpoint, out)?),
        Target::InPlace => checkpoint.lock_for_change()?,
    }
    let newest = newest(&checkpoint)?;
    if let Some(policy) = arguments.keys.policy()? {
        // An outdated or withdrawn patch is just what one takes back.
        verify(newest.contents().bytes().to_vec(), &policy.signatures_only())?;
    }
    let bars = Bars::new(output);
    let bound = newest.bind(&checkpoint, &bars)?;
    let done = revert(&newest, &bound, target, &bars)?;
    bars.clear();
    output.data("nestpatch/revert/1", &done, text)?;
    Ok(Exit::Done)
}

fn text(done: &Reverted) -> String {
    let remaining = match done.remaining {
        0 => "no patch; the touched tensors are the base's, byte for byte".to_owned(),
        1 => "1 patch is applied".to_owned(),
        more => format!("{more} patches are applied"),
    };
    let lines = [
        ("patch", done.patch.short()),
        ("restored", format!("{} in {}", count(done.rows, "row"), count(done.tensors, "tensor"))),
        ("changed", count(done.changed, "element")),
        ("remaining", remaining),
        ("output", done.output.display().to_string()),
    ];
    format!("Reverted {} on {}\n{}", done.name, done.checkpoint.display(), fields(&lines))
}
