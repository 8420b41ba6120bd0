//! What a new patch is called, and where it goes.

use std::path::Path;

use super::failure::{Exit, Failure};
use super::trusted::patch_id;
use crate::patch::assemble::About;

/// What the patch is called.
#[derive(clap::Args)]
#[command(next_help_heading = "What the patch says of itself")]
pub(super) struct Labels {
    /// Its name [default: that of the output file].
    #[arg(long)]
    name: Option<String>,
    /// The line of patches that it belongs to [default: its name].
    #[arg(long)]
    series: Option<String>,
    /// Its number in the series.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    sequence: u64,
    /// A patch that it replaces: its file, or its id; may be repeated.
    #[arg(long, value_name = "PATCH")]
    supersedes: Vec<String>,
    /// The base's name, for people [default: that of the checkpoint's folder].
    #[arg(long, value_name = "NAME")]
    base_name: Option<String>,
}

impl Labels {
    /// What a patch written to `output` for the checkpoint in `model` says about itself, checked.
    pub(super) fn about(&self, output: &Path, model: &Path) -> Result<About, Failure> {
        let stem = output.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let name = self.name.clone().unwrap_or(stem);
        let series = self.series.clone().unwrap_or_else(|| name.clone());
        let about = About::new(name, series, self.base_name.clone().unwrap_or_else(|| folder_name(model)));
        let supersedes = self.supersedes.iter().map(|patch| patch_id(patch)).collect::<Result<_, _>>()?;
        let about = About { sequence: self.sequence, supersedes, ..about };
        about.check().map_err(|error| Failure::new(Exit::Usage, &error))?;
        Ok(about)
    }
}

/// Refuses a place that no new file can be written to, before the long work and not after it.
pub(super) fn require_new(output: &Path) -> Result<(), Failure> {
    if output.symlink_metadata().is_ok() {
        let taken = Failure::message(Exit::Failed, format!("{} already exists", output.display()));
        return Err(taken.hint("choose another -o, or remove it first; nothing is overwritten"));
    }
    let parent = output.parent().filter(|parent| !parent.as_os_str().is_empty());
    if parent.is_some_and(|parent| !parent.is_dir()) {
        let missing = format!("{}: its folder does not exist", output.display());
        return Err(Failure::message(Exit::Failed, missing));
    }
    Ok(())
}

/// What people call a checkpoint: the name of its folder, as `.` and links have none of their own to show.
pub(super) fn folder_name(dir: &Path) -> String {
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    dir.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
