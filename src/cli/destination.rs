//! Where a changed checkpoint goes, and how much of it is compared on the way.

use std::path::{Path, PathBuf};

use clap::builder::{PossibleValuesParser, TypedValueParser};

use super::failure::Failure;
use super::open_checkpoint;
use crate::checkpoint::{Checkpoint, Depth, check_target};
use crate::patch::apply::Target;

/// Where a changed checkpoint goes.
#[derive(clap::Args)]
pub(super) struct Destination {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    compared: Compared,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Place {
    /// Write the changed checkpoint to this new folder.
    #[arg(short, long, value_name = "OUT")]
    output: Option<PathBuf>,
    /// Change the checkpoint where it lies, under a rollback journal.
    #[arg(long)]
    in_place: bool,
}

/// How much of the touched tensors is compared.
#[derive(clap::Args)]
pub(super) struct Compared {
    /// Compare only the touched rows, or the touched tensors as a whole.
    #[arg(long, value_name = "DEPTH", value_parser = depth())]
    check: Option<Depth>,
}

impl Compared {
    /// What was asked for.
    pub(super) fn depth(&self) -> Option<Depth> {
        self.check
    }
}

fn depth() -> impl TypedValueParser<Value = Depth> {
    PossibleValuesParser::new([Depth::Rows, Depth::Tensors].map(Depth::as_str))
        .map(|text| if text == Depth::Rows.as_str() { Depth::Rows } else { Depth::Tensors })
}

impl Destination {
    pub(super) fn target(&self) -> Target<'_> {
        self.place.output.as_deref().map_or(Target::InPlace, Target::NewFolder)
    }

    /// How much is compared: unless said otherwise all of the touched tensors where they are copied anyway, and only
    /// the rows where nothing else need be read.
    pub(super) fn depth(&self) -> Depth {
        self.compared.check.unwrap_or(match self.target() {
            Target::NewFolder(_) => Depth::Tensors,
            Target::InPlace => Depth::Rows,
        })
    }

    /// How much is compared before the change: whole tensors are where they are not read afterwards anyway.
    pub(super) fn depth_before(&self) -> Depth {
        match self.target() {
            Target::NewFolder(_) => Depth::Rows,
            Target::InPlace => self.depth(),
        }
    }

    /// Opens the checkpoint for a change: what can be refused at once is, and a change in place has it to itself.
    pub(super) fn open(&self, dir: &Path) -> Result<Checkpoint, Failure> {
        let checkpoint = open_checkpoint(dir)?;
        match self.target() {
            Target::NewFolder(out) => drop(check_target(&checkpoint, out)?),
            Target::InPlace => checkpoint.lock_for_change()?,
        }
        Ok(checkpoint)
    }
}
