//! The rollback journal: the bytes that a change in place is about to overwrite.
//!
//! `magic · header length (u32) · header (JSON) · entries · BLAKE3 of everything before it`, integers little-endian. An
//! entry is `shard (u32) · offset (u64) · size (u32) · stride (u64) · count (u32) · count * size bytes · marks`: one
//! vector's old bytes, at absolute offsets of the shard's file, and what tells its new bytes. It exists under its final
//! name only when all of it is on the disk.
//!
//! Marks are there so that recovery overwrites only what is its own. A torn write leaves whole blocks old or new, so each
//! cell is cut where blocks of the file end ([`BLOCK`]), and every part has a mark: its new bytes if they are at most 8,
//! else the first 8 bytes of their BLAKE3.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::rows::Cells;
use super::{CheckpointError, disk};

const MAGIC: &[u8; 20] = b"nestpatch journal 2\n";
const DIGEST_BYTES: u64 = 32;
/// Bytes gathered before they are written.
const BUFFER: usize = 1 << 20;
/// Bytes that a disk or the page cache writes whole or not at all.
pub(super) const BLOCK: u64 = 512;
/// Bytes of a mark.
const MARK: usize = 8;
/// The longest header accepted: the names of some thousand shards.
const MAX_HEADER_BYTES: u32 = 16 << 20;
/// The longest vector accepted.
const MAX_VECTOR_BYTES: usize = 64 << 20;

/// What a change does, so that another process can undo or finish it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Header {
    /// `apply` or `revert`.
    pub(super) verb: String,
    /// The id of the patch.
    pub(super) patch: String,
    /// The shards that are written to.
    pub(super) shards: Vec<ShardName>,
    /// Files of the state folder that exist only if the change is completed.
    pub(super) created: Vec<String>,
    /// Files of the state folder that exist only if it is not.
    pub(super) obsolete: Vec<String>,
}

/// A shard that is written to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ShardName {
    /// Its plain file name.
    pub(super) name: String,
    /// Bytes of the whole file.
    pub(super) length: u64,
}

/// The old bytes of one vector.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Index into the header's shards.
    pub(super) shard: usize,
    /// Where in the shard's file.
    pub(super) cells: Cells,
    /// The gathered bytes.
    pub(super) old: Vec<u8>,
    marks: Vec<u8>,
}

impl Entry {
    /// Where in the shard's file the vector's `present` bytes are neither old nor new, if they are not.
    pub(super) fn stranger(&self, present: &[u8]) -> Option<u64> {
        let found = marks(self.cells, present);
        let (mut expected, mut found) = (self.marks.as_slice(), found.as_slice());
        parts(self.cells).find_map(|(offset, range)| {
            let length = MARK.min(range.len());
            let is_new = expected.split_off(..length) == found.split_off(..length);
            (!is_new && self.old.get(range.clone()) != present.get(range)).then_some(offset)
        })
    }
}

/// The parts of a vector that are old or new as a whole: where in the file, and which of the gathered bytes.
fn parts(cells: Cells) -> impl Iterator<Item = (u64, Range<usize>)> {
    cells.offsets().enumerate().flat_map(move |(index, offset)| {
        let (first, end) = (index * cells.size, offset.saturating_add(cells.size as u64));
        let next = |from: u64| (from / BLOCK).saturating_add(1).saturating_mul(BLOCK);
        let cuts = std::iter::successors(Some(offset), move |from| Some(next(*from)));
        cuts.take_while(move |from| *from < end).map(move |from| {
            let to = next(from).min(end);
            (from, first + (from - offset) as usize..first + (to - offset) as usize)
        })
    })
}

/// What tells the new bytes of each part of a vector.
fn marks(cells: Cells, new: &[u8]) -> Vec<u8> {
    let mut marks = Vec::new();
    for (_, range) in parts(cells) {
        let part = new.get(range).unwrap_or_default();
        match part.len() <= MARK {
            true => marks.extend_from_slice(part),
            false => marks.extend(blake3::hash(part).as_bytes().iter().take(MARK)),
        }
    }
    marks
}

/// A journal being written under a temporary name.
pub(super) struct Writer {
    file: File,
    path: PathBuf,
    hasher: blake3::Hasher,
    buffer: Vec<u8>,
    written: u64,
}

impl Writer {
    pub(super) fn create(path: PathBuf, header: &Header) -> Result<Self, CheckpointError> {
        let json = serde_json::to_vec(header).map_err(|source| CheckpointError::Json { path: path.clone(), source })?;
        let file = disk::create(&path)?;
        let mut writer = Self { file, path, hasher: blake3::Hasher::new(), buffer: Vec::new(), written: 0 };
        writer.put(MAGIC)?;
        writer.put(&(json.len() as u32).to_le_bytes())?;
        writer.put(&json)?;
        Ok(writer)
    }

    pub(super) fn add(&mut self, shard: usize, cells: Cells, old: &[u8], new: &[u8]) -> Result<(), CheckpointError> {
        self.put(&(shard as u32).to_le_bytes())?;
        self.put(&cells.offset.to_le_bytes())?;
        self.put(&(cells.size as u32).to_le_bytes())?;
        self.put(&cells.stride.to_le_bytes())?;
        self.put(&(cells.count as u32).to_le_bytes())?;
        self.put(old)?;
        self.put(&marks(cells, new))
    }

    /// Writes the digest and forces everything to the disk.
    pub(super) fn finish(mut self) -> Result<(), CheckpointError> {
        self.flush()?;
        let digest = *self.hasher.finalize().as_bytes();
        disk::write_at(&self.file, &self.path, &digest, self.written)?;
        disk::sync(&self.file, &self.path)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), CheckpointError> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= BUFFER { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), CheckpointError> {
        self.hasher.update(&self.buffer);
        disk::write_at(&self.file, &self.path, &self.buffer, self.written)?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

/// A journal whose digest was checked.
pub(super) struct Reader {
    pub(super) header: Header,
    path: PathBuf,
    rest: io::Take<BufReader<File>>,
}

impl Reader {
    pub(super) fn open(path: &Path) -> Result<Self, CheckpointError> {
        let failed = || CheckpointError::io("read", path);
        // Looked at before it is opened: opening a pipe would wait for a writer.
        if !path.metadata().map_err(failed())?.is_file() {
            return Err(unusable(path, "it is no regular file"));
        }
        let file = File::open(path).map_err(failed())?;
        let total = file.metadata().map_err(failed())?.len();
        let body = total.checked_sub(DIGEST_BYTES).ok_or_else(|| unusable(path, "it is too short"))?;
        let mut hasher = blake3::Hasher::new();
        let mut whole = BufReader::with_capacity(BUFFER, file);
        let mut digest = [0; DIGEST_BYTES as usize];
        io::copy(&mut (&mut whole).take(body), &mut hasher).map_err(failed())?;
        whole.read_exact(&mut digest).map_err(failed())?;
        if *hasher.finalize().as_bytes() != digest {
            return Err(unusable(path, "its digest does not match its bytes"));
        }
        let rest = BufReader::with_capacity(BUFFER, File::open(path).map_err(failed())?).take(body);
        Self::read_header(path, rest)
    }

    fn read_header(path: &Path, mut rest: io::Take<BufReader<File>>) -> Result<Self, CheckpointError> {
        let failed = |error| CheckpointError::io("read", path)(error);
        let mut magic = [0; MAGIC.len()];
        rest.read_exact(&mut magic).map_err(failed)?;
        if magic != *MAGIC {
            return Err(unusable(path, "it is not a journal of this version"));
        }
        let length = u32::from_le_bytes(take(&mut rest).map_err(failed)?);
        // No more is taken than there is: whoever made the folder may have made the journal up.
        if length > MAX_HEADER_BYTES || u64::from(length) > rest.limit() {
            return Err(unusable(path, "its header is too long"));
        }
        let mut json = vec![0; length as usize];
        rest.read_exact(&mut json).map_err(failed)?;
        let header =
            serde_json::from_slice(&json).map_err(|source| CheckpointError::Json { path: path.to_owned(), source })?;
        Ok(Self { header, path: path.to_owned(), rest })
    }

    /// The next entry with what is given for its shard, one for each of the header's; `None` at the end.
    pub(super) fn next_of<'s, T>(&mut self, shards: &'s [T]) -> Result<Option<(Entry, &'s T)>, CheckpointError> {
        Ok(self.next()?.and_then(|entry| shards.get(entry.shard).map(|shard| (entry, shard))))
    }

    /// The next entry; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, CheckpointError> {
        if self.rest.limit() == 0 {
            return Ok(None);
        }
        let failed = |error| CheckpointError::io("read", &self.path)(error);
        let (shard, cells) = read_place(&mut self.rest).map_err(failed)?;
        let fits = self.header.shards.get(shard).is_some_and(|shard| cells.size > 0 && cells.fits(shard.length));
        if !fits || cells.bytes() > MAX_VECTOR_BYTES || cells.bytes() as u64 > self.rest.limit() {
            return Err(unusable(&self.path, "an entry lies outside its shard"));
        }
        let mut old = vec![0; cells.bytes()];
        self.rest.read_exact(&mut old).map_err(failed)?;
        let mut marks = vec![0; parts(cells).map(|(_, range)| range.len().min(MARK)).sum()];
        self.rest.read_exact(&mut marks).map_err(failed)?;
        Ok(Some(Entry { shard, cells, old, marks }))
    }
}

fn read_place(rest: &mut impl Read) -> io::Result<(usize, Cells)> {
    let shard = u32::from_le_bytes(take(rest)?) as usize;
    let offset = u64::from_le_bytes(take(rest)?);
    let size = u32::from_le_bytes(take(rest)?) as usize;
    let stride = u64::from_le_bytes(take(rest)?);
    let count = u32::from_le_bytes(take(rest)?) as usize;
    Ok((shard, Cells { offset, size, stride, count }))
}

fn take<const N: usize>(reader: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    reader.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn unusable(path: &Path, what: &'static str) -> CheckpointError {
    CheckpointError::Journal { path: path.to_owned(), what }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path) -> Header {
        let shards = vec![ShardName { name: "model.safetensors".to_owned(), length: 99 }];
        let (verb, patch) = ("apply".to_owned(), "ab".to_owned());
        let header = Header { verb, patch, shards, created: vec!["0001.json".to_owned()], obsolete: vec![] };
        let mut writer = Writer::create(path.to_owned(), &header).unwrap();
        writer.add(0, Cells { offset: 8, size: 4, stride: 0, count: 1 }, &[1, 2, 3, 4], &[9; 4]).unwrap();
        writer.add(0, Cells { offset: 20, size: 2, stride: 10, count: 3 }, &[5; 6], &[6; 6]).unwrap();
        writer.finish().unwrap();
        header
    }

    #[test]
    fn what_was_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let header = write(&path);
        let mut reader = Reader::open(&path).unwrap();
        assert_eq!(reader.header, header);
        assert_eq!(reader.next().unwrap().map(|entry| entry.old), Some(vec![1, 2, 3, 4]));
        assert_eq!(reader.next().unwrap().map(|entry| entry.cells.stride), Some(10));
        assert_eq!(reader.next().unwrap(), None);
    }

    /// Each block of a vector is old or new by itself; anything else is told, and where.
    #[test]
    fn old_and_new_are_told_from_anything_else() {
        let dir = tempfile::tempdir().unwrap();
        for (cells, cut) in [
            (Cells { offset: 300, size: 2000, stride: 0, count: 1 }, 512 - 300),
            (Cells { offset: 300, size: 4, stride: 50, count: 30 }, 4 * 7),
        ] {
            let path = dir.path().join("journal");
            let shards = vec![ShardName { name: "model.safetensors".to_owned(), length: 3000 }];
            let (verb, patch) = ("apply".to_owned(), "ab".to_owned());
            let header = Header { verb, patch, shards, created: vec![], obsolete: vec![] };
            let old: Vec<u8> = (0..cells.bytes()).map(|at| at as u8).collect();
            let new: Vec<u8> = old.iter().map(|byte| byte ^ 1).collect();
            let mut writer = Writer::create(path.clone(), &header).unwrap();
            writer.add(0, cells, &old, &new).unwrap();
            writer.finish().unwrap();
            let entry = Reader::open(&path).unwrap().next().unwrap().unwrap();
            let torn = [&new[..cut], &old[cut..]].concat();
            for sound in [&old, &new, &torn] {
                assert_eq!(entry.stranger(sound), None);
            }
            let mut other = torn;
            other[cut] ^= 2;
            let at = parts(cells).find(|(_, range)| range.contains(&cut)).map(|(offset, _)| offset);
            assert!(at.is_some());
            assert_eq!(entry.stranger(&other), at);
            std::fs::remove_file(path).unwrap();
        }
    }

    #[test]
    fn any_flip_and_any_cut_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        write(&path);
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&path, &bad).unwrap();
            assert!(Reader::open(&path).is_err(), "flip at {at}");
            std::fs::write(&path, &good[..at]).unwrap();
            assert!(Reader::open(&path).is_err(), "cut at {at}");
        }
    }
}
