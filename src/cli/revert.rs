//! `nestpatch revert`: give the old bytes back.

use std::path::PathBuf;

use super::destination::Destination;
use super::failure::{Exit, Failure};
use super::output::{Output, count, fields, warn};
use super::progress::Bars;
use super::trusted::{Keys, no_key, read_patch};
use crate::checkpoint::Depth;
use crate::format::Level;
use crate::patch::record::SignedBy;
use crate::patch::revert::{Reverted, Which, find, revert};
use crate::patch::verify::verify;

/// Take back a patch, bit for bit.
///
/// Needs nothing but the checkpoint: the patch that was applied lies in it, and the newest is taken back unless another
/// is named. Its signature is checked only if a key or trust file is given; what is always checked is that the touched
/// rows are what the patch made of them, and that the restored ones are its base's. With -o this goes for the touched
/// tensors as a whole; --check says otherwise.
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The checkpoint's folder.
    checkpoint: PathBuf,
    #[command(flatten)]
    destination: Destination,
    #[command(flatten)]
    keys: Keys,
    /// Take back the patch of this record (`status` numbers them) from below newer ones, if they touch none of its rows.
    #[arg(long, value_name = "N", conflicts_with = "patch")]
    record: Option<u32>,
    /// Take back this patch by its publisher's word alone, whatever the checkpoint's records say: it must carry a residual,
    /// be trusted, and have been applied to its exact base.
    #[arg(long, value_name = "PATCH")]
    patch: Option<PathBuf>,
    /// Leave rows as they are that were changed since the patch was applied, instead of refusing; the record tells which.
    #[arg(long, conflicts_with = "patch")]
    leave_edited: bool,
}

pub(super) fn run(arguments: &Arguments, output: Output) -> Result<Exit, Failure> {
    let Arguments { destination, .. } = arguments;
    let policy = arguments.keys.policy()?;
    let given = match (&arguments.patch, &policy) {
        (None, _) => None,
        (Some(_), None) => return Err(no_key("no key to check the patch's signature with")),
        // An outdated or withdrawn patch is just what one takes back.
        (Some(path), Some(policy)) => Some(verify(read_patch(path)?, &policy.clone().signatures_only())?),
    };
    let which = match (&given, arguments.record) {
        (Some(patch), _) => Which::Patch(patch),
        (None, Some(number)) => Which::Record(number),
        (None, None) => Which::Newest,
    };
    let checkpoint = destination.open(&arguments.checkpoint)?;
    let found = find(&checkpoint, which, policy.as_ref())?;
    let bars = Bars::new(output);
    let bound = found.bind(&checkpoint, destination.depth_before(), arguments.leave_edited, &bars)?;
    let done = revert(&bound, destination.target(), destination.depth(), &bars)?;
    bars.clear();
    for (tensor, rows) in &done.left {
        warn(&format!(
            "left as they are: {} of {tensor}, changed since: {}",
            count(rows.len() as u64, "row"),
            list(rows)
        ));
    }
    output.data("nestpatch/revert/1", &done, text)?;
    Ok(Exit::Done)
}

fn list(rows: &[u32]) -> String {
    rows.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
}

fn text(done: &Reverted) -> String {
    let whose = match done.level {
        Level::Exact => "the base's",
        _ => "what they were before",
    };
    let compared = match (done.left.is_empty(), done.compared) {
        (false, _) => format!("{whose}, but for the rows left; in their tensors the other rows have no signed digest"),
        (true, Depth::Rows) => format!("the touched rows are {whose}, byte for byte"),
        (true, Depth::Tensors) => format!("the touched tensors are {whose}, byte for byte"),
    };
    let remaining = match done.remaining {
        0 => "no recorded patch".to_owned(),
        1 => "1 patch is applied".to_owned(),
        more => format!("{more} patches are applied"),
    };
    let signers = done.record_signers.iter().map(SignedBy::to_string).collect::<Vec<_>>().join(", ");
    let record = match (&done.level, signers.is_empty()) {
        (Level::Exact, _) => None,
        (_, false) => Some(format!("signed by {signers}")),
        (_, true) => Some("the only word on what the rows were before, and signed by nobody trusted here".to_owned()),
    };
    let mut lines = vec![
        ("patch", done.patch.short()),
        ("base", done.level.as_str().to_owned()),
        ("restored", format!("{} in {}", count(done.rows, "row"), count(done.tensors, "tensor"))),
        ("changed", count(done.changed, "element")),
        ("result", compared),
        ("remaining", remaining),
        ("output", done.output.display().to_string()),
    ];
    lines.extend(record.map(|record| ("record", record)));
    format!("Reverted {} on {}\n{}", done.name, done.checkpoint.display(), fields(&lines))
}
