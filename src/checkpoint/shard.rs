//! One safetensors file, opened and checked.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::CheckpointError;
use super::header::{self, Entry, LENGTH_BYTES};

/// An open safetensors file. Reads are positioned, so one handle serves any number of readers.
#[derive(Debug)]
pub(super) struct Shard {
    /// Its plain file name.
    pub(super) name: String,
    path: PathBuf,
    file: File,
    /// Bytes of the whole file.
    pub(super) length: u64,
    state: State,
    /// Where the tensors' bytes begin.
    pub(super) data: u64,
}

/// What a file has another one of once it was replaced or written to.
#[derive(Debug, PartialEq, Eq)]
struct State {
    file: (u64, u64),
    /// Seconds and nanoseconds of the last write.
    written: (i64, i64),
}

impl State {
    fn of(metadata: &Metadata) -> Self {
        Self { file: (metadata.dev(), metadata.ino()), written: (metadata.mtime(), metadata.mtime_nsec()) }
    }
}

impl Shard {
    /// Opens `dir/name` and reads its header.
    pub(super) fn open(dir: &Path, name: &str) -> Result<(Self, Vec<Entry>), CheckpointError> {
        let path = dir.join(name);
        // Looked at before it is opened: opening a pipe would wait for a writer.
        let metadata = fs::metadata(&path).map_err(CheckpointError::io("read", &path))?;
        if !metadata.is_file() {
            return Err(CheckpointError::Unsupported { path, what: "a shard must be a regular file" });
        }
        let file = File::open(&path).map_err(CheckpointError::io("open", &path))?;
        let metadata = file.metadata().map_err(CheckpointError::io("read", &path))?;
        let (length, state) = (metadata.len(), State::of(&metadata));
        let mut shard = Self { name: name.to_owned(), path, file, length, state, data: 0 };
        let entries = shard.read_header()?;
        Ok((shard, entries))
    }

    fn read_header(&mut self) -> Result<Vec<Entry>, CheckpointError> {
        let mut field = [0; LENGTH_BYTES as usize];
        if self.length < LENGTH_BYTES {
            return Err(self.malformed(header::HeaderError::Short { file: self.length, header: LENGTH_BYTES }));
        }
        self.read_at(&mut field, 0)?;
        let length = header::header_length(field, self.length).map_err(|error| self.malformed(error))?;
        let mut bytes = vec![0; length as usize];
        self.read_at(&mut bytes, LENGTH_BYTES)?;
        self.data = LENGTH_BYTES + length;
        header::parse(&bytes, self.length - self.data).map_err(|error| self.malformed(error))
    }

    /// Fills `buffer` from the absolute file position `offset`.
    pub(super) fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), CheckpointError> {
        match self.file.read_exact_at(buffer, offset) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                let found = self.file.metadata().map_or(0, |metadata| metadata.len());
                Err(CheckpointError::Changed { path: self.path.clone(), expected: self.length, found })
            }
            other => other.map_err(CheckpointError::io("read", &self.path)),
        }
    }

    /// Whether the file of this name is still the one that was opened, with its length and time of the last write.
    pub(super) fn check_unchanged(&self) -> Result<(), CheckpointError> {
        let metadata = fs::metadata(&self.path).map_err(CheckpointError::io("read", &self.path))?;
        let (path, expected, found) = (self.path.clone(), self.length, metadata.len());
        let state = State::of(&metadata);
        if found != expected {
            Err(CheckpointError::Changed { path, expected, found })
        } else if state.file != self.state.file {
            Err(CheckpointError::Altered { path, how: "another file has its name by now" })
        } else if state != self.state {
            Err(CheckpointError::Altered { path, how: "it was written to after it was opened" })
        } else {
            Ok(())
        }
    }

    fn malformed(&self, source: header::HeaderError) -> CheckpointError {
        CheckpointError::Header { path: self.path.clone(), source: Box::new(source) }
    }
}
