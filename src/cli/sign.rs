//! `nestpatch sign`: vouch for a patch that somebody else made.

use std::path::PathBuf;

use serde::Serialize;

use super::failure::{Exit, Failure};
use super::output::{Output, count, fields, on_one_line};
use super::passphrase::SigningKey;
use super::trusted::read_patch;
use crate::checkpoint::{Amendment, write_new};
use crate::digest::Sha256;
use crate::patch::sign::{Signed, sign};

/// Add a signature to a patch.
///
/// Every digest and rule of the patch is checked first, and what it is gets printed; whether it does good is for whoever
/// signs to know. Its id and content stay as they are, and so do the other signatures, which are not checked: `verify` does.
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The patch. It is replaced, whole or not at all.
    patch: PathBuf,
    #[command(flatten)]
    key: SigningKey,
    /// Write the signed patch to this new file instead.
    #[arg(short, long, value_name = "OUT")]
    output: Option<PathBuf>,
}

#[derive(Serialize)]
struct Report<'a> {
    output: &'a PathBuf,
    #[serde(flatten)]
    signed: &'a Signed,
}

pub(super) fn run(arguments: &Arguments, output: Output) -> Result<Exit, Failure> {
    let key = arguments.key.read()?;
    let file = Amendment::of(&arguments.patch)?;
    let bytes = read_patch(&arguments.patch)?;
    let (signed, bytes) = sign(bytes, &key)?;
    match &arguments.output {
        Some(path) => write_new(path, &bytes)?,
        None => file.write(&bytes)?,
    }
    let path = arguments.output.as_ref().unwrap_or(&arguments.patch);
    output.data("nestpatch/sign/1", &Report { output: path, signed: &signed }, text)?;
    Ok(Exit::Done)
}

fn text(report: &Report<'_>) -> String {
    let Signed { patch, name, series, sequence, supersedes, base, tensors, rows, key_id, key_ids } = report.signed;
    let others: Vec<String> = key_ids.iter().filter(|id| *id != key_id).map(Sha256::short).collect();
    let mut lines = vec![
        ("id", patch.to_string()),
        ("series", format!("{series}, number {sequence}")),
        ("base", base.clone()),
        ("changes", format!("{} in {}", count(*rows as u64, "row"), count(*tensors as u64, "tensor"))),
        ("signed with", format!("key {}", key_id.short())),
        (
            "claimed by",
            if others.is_empty() { "nobody else".to_owned() } else { format!("key {}", others.join(", key ")) },
        ),
    ];
    lines.extend(supersedes.iter().map(|id| ("supersedes", id.to_string())));
    format!("Signed {name} as {}\n{}", on_one_line(report.output), fields(&lines))
}
