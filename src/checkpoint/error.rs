//! What can be wrong with a checkpoint on disk.

use std::io;
use std::path::{Path, PathBuf};

use super::header::HeaderError;
use crate::tensor::{Shape, TensorName};

/// Why a checkpoint cannot be read or written. Every variant names the file or tensor.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as a verb: "read", "create".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The path is not a folder.
    #[error("{} is not a checkpoint folder", dir.display())]
    NotAFolder {
        /// The path given.
        dir: PathBuf,
    },
    /// No weights in safetensors form.
    #[error("{}: no model.safetensors and no model.safetensors.index.json", dir.display())]
    NoWeights {
        /// The checkpoint folder.
        dir: PathBuf,
    },
    /// Both a single file and an index: two programs may load different weights.
    #[error("{}: both model.safetensors and model.safetensors.index.json, so it is ambiguous which holds", dir.display())]
    TwoLayouts {
        /// The checkpoint folder.
        dir: PathBuf,
    },
    /// A JSON file is malformed, or holds a key twice.
    #[error("{}: malformed JSON", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// A JSON file lacks what it must hold.
    #[error("{}: expected {expected}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What should be there.
        expected: &'static str,
    },
    /// A file that must be small is not.
    #[error("{}: {found} bytes, at most {limit} are allowed", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its length.
        found: u64,
        /// The cap.
        limit: u64,
    },
    /// A safetensors file is malformed.
    #[error("{}: malformed safetensors file", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// The broken rule.
        source: Box<HeaderError>,
    },
    /// The index names a file outside the folder.
    #[error("{}: shard name {name:?}: expected a plain file name that ends in .safetensors", index.display())]
    ShardName {
        /// The index file.
        index: PathBuf,
        /// The name as written, cut for display.
        name: String,
    },
    /// The index names shards that are not there.
    #[error("{}: {} of {listed} shards missing: {}", dir.display(), missing.len(), missing.join(", "))]
    MissingShards {
        /// The checkpoint folder.
        dir: PathBuf,
        /// Shards that the index lists.
        listed: usize,
        /// Those that do not exist.
        missing: Vec<String>,
    },
    /// The index maps a tensor to a shard that lacks it.
    #[error("{}: tensor {tensor}: the index says {shard}, which does not hold it", dir.display())]
    NotInShard {
        /// The checkpoint folder.
        dir: PathBuf,
        /// The tensor.
        tensor: TensorName,
        /// The shard the index names.
        shard: String,
    },
    /// A shard holds a tensor that the index maps elsewhere or not at all.
    #[error("{}: tensor {tensor} is in {shard}, the index says {}", dir.display(), listed.as_deref().unwrap_or("nothing of it"))]
    Unlisted {
        /// The checkpoint folder.
        dir: PathBuf,
        /// The tensor.
        tensor: TensorName,
        /// The shard that holds it.
        shard: String,
        /// Where the index maps it.
        listed: Option<String>,
    },
    /// No such tensor.
    #[error("{}: no tensor {tensor}", dir.display())]
    NoTensor {
        /// The checkpoint folder.
        dir: PathBuf,
        /// The tensor asked for.
        tensor: TensorName,
    },
    /// A tensor cannot hold what was asked for.
    #[error("{}: tensor {tensor} {shape}: {what} is out of bounds", dir.display())]
    Bounds {
        /// The checkpoint folder.
        dir: PathBuf,
        /// The tensor.
        tensor: TensorName,
        /// Its dimensions.
        shape: Shape,
        /// What lies outside.
        what: String,
    },
    /// A file changed while it was read.
    #[error("{}: changed while it was being read: expected {expected} bytes, found {found}", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// Its length when opened.
        expected: u64,
        /// Its length now.
        found: u64,
    },
    /// A file changed while it was read, and kept its length.
    #[error("{}: changed while it was being read: {how}", path.display())]
    Altered {
        /// The file.
        path: PathBuf,
        /// What tells.
        how: &'static str,
    },
    /// Something that cannot be copied as a file.
    #[error("{}: {what}", path.display())]
    Unsupported {
        /// The path.
        path: PathBuf,
        /// What it is and why that is refused.
        what: &'static str,
    },
    /// A symbolic link to a folder, which may lead to more than the checkpoint.
    #[error("{}: a symbolic link to a folder, which is not followed", path.display())]
    LinkedFolder {
        /// The link.
        path: PathBuf,
    },
    /// Somewhere that no output can go.
    #[error("{}: no place for the output: {what}", path.display())]
    Target {
        /// The path.
        path: PathBuf,
        /// Why not.
        what: &'static str,
    },
    /// The output is already there.
    #[error("{} already exists", path.display())]
    Exists {
        /// The path.
        path: PathBuf,
    },
    /// Another process holds the checkpoint.
    #[error("{} is in use by another nestpatch process", dir.display())]
    Busy {
        /// The checkpoint folder.
        dir: PathBuf,
    },
    /// A change in place was interrupted and has not been mended.
    #[error("{}: a change in place was interrupted", dir.display())]
    Interrupted {
        /// The checkpoint folder.
        dir: PathBuf,
    },
    /// The rollback journal cannot be used.
    #[error("{}: unusable rollback journal: {what}", path.display())]
    Journal {
        /// The journal.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The files are not those that the rollback journal was written for.
    #[error(
        "{}: at byte {offset} is neither what the interrupted change found nor what it wrote: changed or replaced since, so nothing was restored",
        path.display()
    )]
    Stranger {
        /// The file.
        path: PathBuf,
        /// Where it differs.
        offset: u64,
    },
    /// A change is complete, but its journal could not be removed.
    #[error("{}: the change is complete, but tidying up failed", dir.display())]
    Untidy {
        /// The checkpoint folder.
        dir: PathBuf,
        /// Why.
        source: Box<CheckpointError>,
    },
    /// A failed change could not be undone: the checkpoint is torn until the journal is played back.
    #[error("{}: undoing the change failed, the journal is kept", dir.display())]
    Torn {
        /// The checkpoint folder.
        dir: PathBuf,
        /// Why the rollback failed.
        source: Box<CheckpointError>,
    },
}

impl CheckpointError {
    /// For `map_err`: the system refused `action` on `path`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}
