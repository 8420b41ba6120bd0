//! Where a changed checkpoint goes, and how much of it is compared on the way.

use std::path::{Path, PathBuf};

use clap::builder::{PossibleValuesParser, TypedValueParser};

use super::failure::Failure;
use super::mend;
use crate::checkpoint::{Checkpoint, Depth, check_target};
use crate::patch::apply::Target;

/// Where a changed checkpoint goes.
#[derive(clap::Args)]
pub(super) struct Destination {
    #[command(flatten)]
    place: Place,
    /// With -o, make shards without touched rows hard links to the checkpoint's, where the file system can. They take no
    /// time and no space, and are one file with the original: do not write into them.
    #[arg(long, conflicts_with = "in_place")]
    link: bool,
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
    /// Compare only the touched rows, or the touched tensors as a whole [default: tensors with -o, else rows].
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
        match &self.place.output {
            None => Target::InPlace,
            Some(out) if self.link => Target::LinkedFolder(out),
            Some(out) => Target::NewFolder(out),
        }
    }

    /// How much is compared: unless said otherwise all of the touched tensors where they are copied anyway, and only
    /// the rows where nothing else need be read.
    pub(super) fn depth(&self) -> Depth {
        self.compared.check.unwrap_or(if self.place.in_place { Depth::Rows } else { Depth::Tensors })
    }

    /// How much is compared before the change: whole tensors are where they are not read afterwards anyway.
    pub(super) fn depth_before(&self) -> Depth {
        if self.place.in_place { self.depth() } else { Depth::Rows }
    }

    /// Opens the checkpoint for a change: what can be refused at once is, and a change in place has it to itself.
    pub(super) fn open(&self, dir: &Path) -> Result<Checkpoint, Failure> {
        if self.place.in_place {
            mend(dir)?;
        }
        let checkpoint = Checkpoint::open(dir)?;
        match &self.place.output {
            Some(out) => drop(check_target(&checkpoint, out)?),
            None => checkpoint.lock_for_change()?,
        }
        Ok(checkpoint)
    }
}
