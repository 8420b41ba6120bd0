//! `nestpatch extract`: what another program did to a checkpoint becomes a signed patch.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::failure::{Exit, Failure};
use super::labels::{Labels, folder_name, require_new};
use super::levels::LevelOptions;
use super::output::{Output, bytes, count, fields, grouped, warn};
use super::passphrase::SigningKey;
use super::progress::Bars;
use crate::checkpoint::{Checkpoint, write_new};
use crate::digest::Sha256;
use crate::format::{Edit, Kind};
use crate::patch::Contents;
use crate::patch::assemble::{About, sign};
use crate::patch::extract::{Changed, ExtractError, Extracted, Inexpressible, Omitted, extract, other_files};
use crate::tensor::{Dtype, TensorName};

/// Find the shared deltas that another program added to a checkpoint, and sign them as a patch.
///
/// The tuned checkpoint must differ from the base in rows (or columns) of feed-forward projections only. Rows that got the
/// same delta are found by its rounding, and the patch gives every tuned row bit for bit. What a patch cannot express is
/// refused and listed. A tensor counts as a feed-forward projection if a part of its name between dots is mlp,
/// feed_forward, ffn, block_sparse_moe, experts, shared_expert, shared_experts, shared_mlp, fc1 or fc2, and none is gate,
/// router, shared_expert_gate or expert_gate. Both checkpoints are only read.
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The checkpoint that the patch is for.
    #[arg(long, value_name = "DIR")]
    base: PathBuf,
    /// The checkpoint that the patch makes of it.
    #[arg(long, value_name = "DIR")]
    tuned: PathBuf,
    #[command(flatten)]
    key: SigningKey,
    /// The patch to write; it must not exist.
    #[arg(short, long, value_name = "PATCH")]
    output: PathBuf,
    /// Leave out what a patch cannot express, and list it, also in the patch.
    #[arg(long)]
    partial: bool,
    #[command(flatten)]
    labels: Labels,
    #[command(flatten)]
    levels: LevelOptions,
}

#[derive(Serialize)]
struct Made<'a> {
    patch: Sha256,
    name: &'a str,
    output: &'a Path,
    file_bytes: usize,
    residual_bytes: u64,
    rows: usize,
    clusters: usize,
    parameters: usize,
    changed_elements: u64,
    tensors: Vec<Tensor<'a>>,
    omitted: &'a [Omitted],
    /// Files beside the weights that differ.
    other_files: &'a [String],
}

#[derive(Serialize)]
struct Tensor<'a> {
    tensor: &'a TensorName,
    dtype: Dtype,
    layout: String,
    rows: usize,
    clusters: usize,
    delta_type: Dtype,
    changed_elements: u64,
}

pub(super) fn run(arguments: &Arguments, output: Output) -> Result<Exit, Failure> {
    require_new(&arguments.output)?;
    let about = arguments.labels.about(&arguments.output, &arguments.base)?;
    let about = About { levels: arguments.levels.levels(), ..about };
    let (base, tuned) = (Checkpoint::open(&arguments.base)?, Checkpoint::open(&arguments.tuned)?);
    let key = arguments.key.read()?;
    let others = other_files(&base, &tuned)?;
    if !others.is_empty() {
        output.note(&format!("note: a patch does not carry these files, which differ: {}", others.join(", ")));
    }
    let bars = Bars::new(output);
    let inexpressible = if arguments.partial { Inexpressible::Omit } else { Inexpressible::Refuse };
    let extracted = extract(&base, &tuned, inexpressible, (about, &folder_name(&arguments.tuned)), &bars);
    bars.clear();
    let extracted = extracted?;
    // The file is read as a stranger would read it before anyone gets it.
    let contents = Contents::read_whole(sign(&extracted.patch, &key)?)?;
    write_new(&arguments.output, contents.bytes())?;
    if !output.json {
        extracted.omitted.iter().for_each(|omitted| warn(&format!("not in the patch: {omitted}")));
    }
    let made = Made::new(&contents, &extracted, &others, &arguments.output);
    output.data("nestpatch/extract/1", &made, text)?;
    Ok(Exit::Done)
}

impl<'a> Made<'a> {
    fn new(contents: &'a Contents, extracted: &'a Extracted, others: &'a [String], output: &'a Path) -> Self {
        let Extracted { edits, changed, omitted, .. } = extracted;
        Self {
            patch: contents.id(),
            name: &contents.manifest.name,
            output,
            file_bytes: contents.bytes().len(),
            residual_bytes: contents.manifest.section(&Kind::Residual).map_or(0, |entry| entry.stored.length),
            rows: edits.rows(),
            clusters: edits.iter().map(Edit::k).sum(),
            parameters: edits.parameters(),
            changed_elements: changed.iter().map(|changed| changed.elements).sum(),
            tensors: edits.iter().zip(changed).map(tensor).collect(),
            omitted,
            other_files: others,
        }
    }
}

fn tensor<'a>((edit, changed): (&'a Edit, &'a Changed)) -> Tensor<'a> {
    Tensor {
        tensor: edit.tensor(),
        dtype: edit.dtype(),
        layout: edit.layout().to_string(),
        rows: edit.rows().len(),
        clusters: edit.k(),
        delta_type: edit.deltas().dtype(),
        changed_elements: changed.elements,
    }
}

fn text(made: &Made<'_>) -> String {
    let mut types: BTreeMap<Dtype, u64> = BTreeMap::new();
    made.tensors.iter().for_each(|tensor| *types.entry(tensor.delta_type).or_default() += 1);
    let types: Vec<String> =
        types.iter().map(|(dtype, tensors)| format!("{dtype} in {}", count(*tensors, "tensor"))).collect();
    let tensors = count(made.tensors.len() as u64, "tensor");
    let mut lines = vec![
        ("id", made.patch.to_string()),
        ("found", format!("{} in {tensors}", count(made.rows as u64, "changed row"))),
        ("shared", format!("{}: {}", count(made.clusters as u64, "delta"), types.join(", "))),
        ("changed", format!("{} elements", grouped(made.changed_elements))),
        ("size", format!("{}, {} of it for revert", bytes(made.file_bytes as u64), bytes(made.residual_bytes))),
    ];
    if made.clusters == made.rows && made.rows > 1 {
        lines.push(("note", "no two rows share a delta: this may be no NeST edit".to_owned()));
    }
    if !made.omitted.is_empty() {
        lines.push(("omitted", format!("{}, listed above", count(made.omitted.len() as u64, "differing tensor"))));
    }
    format!("Extracted {} as {}\n{}", made.name, made.output.display(), fields(&lines))
}

impl From<ExtractError> for Failure {
    fn from(error: ExtractError) -> Self {
        match error {
            ExtractError::Patch(error) => error.into(),
            ExtractError::NotExpressed { ref omitted, tensors } => {
                let dense = omitted.iter().filter(|omitted| omitted.reason.code() == "dense").count();
                let hint = match (tensors, dense) {
                    (0, 0) => "nothing that differs can be in a patch",
                    (0, _) => "this looks like a fine-tune of whole tensors, not like deltas that some rows share",
                    _ => "--partial makes a patch of what can be expressed, and lists the rest",
                };
                Self::new(Exit::Base, &error).details(omitted.iter().map(Omitted::to_string)).hint(hint)
            }
            ExtractError::Same { .. } => Self::new(Exit::Base, &error).hint("--base and --tuned may be one model"),
            ExtractError::Edit(_) | ExtractError::Row { .. } | ExtractError::Outcome { .. } => {
                Self::new(Exit::Patch, &error)
            }
        }
    }
}
