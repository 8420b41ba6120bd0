//! Snapshots in the cache of the Hugging Face hub: folders of symbolic links to files that revisions share.

use std::fmt;
use std::fs;
use std::path::Path;

/// A revision of a repository in a hub cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubSnapshot {
    /// `ORG/NAME`, or `NAME` for a repository without an organisation.
    pub repository: String,
    /// The name of the snapshot's folder: a commit.
    pub revision: String,
}

impl fmt::Display for HubSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let revision: String = self.revision.chars().take(12).collect();
        write!(f, "{} at revision {revision} in a hub cache", self.repository)
    }
}

/// Knows a snapshot by its place, `models--ORG--NAME/snapshots/REV` with `blobs` beside `snapshots`. What it holds is
/// not looked at: the cache of a system without links has copies there.
pub fn hub_snapshot(dir: &Path) -> Option<HubSnapshot> {
    let dir = fs::canonicalize(dir).ok()?;
    let snapshots = dir.parent().filter(|parent| parent.file_name().is_some_and(|name| name == "snapshots"))?;
    let cached = snapshots.parent().filter(|cached| cached.join("blobs").is_dir())?;
    let name = cached.file_name()?.to_str()?.strip_prefix("models--").filter(|name| !name.is_empty())?;
    let revision = dir.file_name()?.to_str()?.to_owned();
    Some(HubSnapshot { repository: name.replacen("--", "/", 1), revision })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_snapshot_is_known_by_its_place() {
        let root = tempfile::tempdir().unwrap();
        let make = |path: &str| fs::create_dir_all(root.path().join(path)).unwrap();
        let ask = |path: &str| hub_snapshot(&root.path().join(path));
        make("models--meta-llama--Llama-3.2-1B/snapshots/4e20de362430cd3b72f300e6b0f18e50e7166e08/original");
        make("models--meta-llama--Llama-3.2-1B/blobs");
        make("models--gpt2/snapshots/r");
        make("models--gpt2/blobs");
        let found = ask("models--meta-llama--Llama-3.2-1B/snapshots/4e20de362430cd3b72f300e6b0f18e50e7166e08").unwrap();
        assert_eq!(found.repository, "meta-llama/Llama-3.2-1B");
        assert_eq!(found.to_string(), "meta-llama/Llama-3.2-1B at revision 4e20de362430 in a hub cache");
        assert_eq!(ask("models--gpt2/snapshots/r/").unwrap().repository, "gpt2");
        // By another way to it as well.
        symlink(root.path().join("models--gpt2/snapshots/r"), root.path().join("mine")).unwrap();
        assert_eq!(ask("mine").unwrap().revision, "r");
        make("models--no--blobs/snapshots/r");
        make("datasets--a--b/snapshots/r");
        make("datasets--a--b/blobs");
        make("models--/snapshots/r");
        make("models--/blobs");
        for other in [
            "models--no--blobs/snapshots/r",
            "datasets--a--b/snapshots/r",
            "models--/snapshots/r",
            "models--gpt2/snapshots",
            "models--gpt2",
            "models--meta-llama--Llama-3.2-1B/snapshots/4e20de362430cd3b72f300e6b0f18e50e7166e08/original",
            "nowhere",
        ] {
            assert_eq!(ask(other), None, "{other}");
        }
    }
}
