//! Status: which patches are on a checkpoint, and whether their rows still hold.

use std::collections::BTreeSet;

use serde::Serialize;

use super::record::{Record, records};
use super::revert::recorded_patch;
use super::{Contents, PatchError};
use crate::checkpoint::{BindError, Checkpoint, Side, check_rows};
use crate::format::Edits;
use crate::tensor::TensorName;

/// What is on a checkpoint.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// The applied patches, oldest first.
    pub applied: Vec<StatusEntry>,
    /// Files with weights in another form, which patches do not reach.
    pub strays: Vec<String>,
}

/// One applied patch.
#[derive(Debug, Clone, Serialize)]
pub struct StatusEntry {
    /// Its record.
    pub record: Record,
    /// Touched rows; absent where the patch cannot be read.
    pub rows: Option<u64>,
    /// Whether it still holds.
    pub state: State,
}

/// Whether an applied patch still holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "is")]
pub enum State {
    /// Every touched row is what the patch made of it.
    Holds,
    /// A newer patch touches some of the same rows, so this one is seen through it.
    Covered {
        /// The newer record.
        by: u32,
    },
    /// Some touched rows are something else by now.
    Changed {
        /// What was found.
        found: String,
    },
    /// The patch beside the record is missing or damaged.
    Unreadable {
        /// Why.
        reason: String,
    },
}

impl Status {
    /// Whether everything that is applied holds.
    pub fn is_sound(&self) -> bool {
        self.applied.iter().all(StatusEntry::is_sound)
    }
}

impl StatusEntry {
    /// Whether the patch holds, or is seen through a newer one.
    pub fn is_sound(&self) -> bool {
        matches!(self.state, State::Holds | State::Covered { .. })
    }
}

/// Reads the records of a checkpoint and compares the rows they touch: quick, as only those are read.
///
/// # Errors
/// A record or a weight cannot be read.
pub fn status(checkpoint: &Checkpoint) -> Result<Status, PatchError> {
    let mut newer: Vec<(u32, Edits)> = Vec::new();
    let mut applied = Vec::new();
    for record in records(checkpoint.dir())?.into_iter().rev() {
        let (rows, state) = match recorded_patch(checkpoint, &record) {
            Err(error) => (None, State::Unreadable { reason: error.to_string() }),
            Ok(contents) => {
                let state = state_of(checkpoint, &contents, &newer)?;
                let rows = contents.edits.rows() as u64;
                newer.push((record.number, contents.edits));
                (Some(rows), state)
            }
        };
        applied.push(StatusEntry { record, rows, state });
    }
    applied.reverse();
    Ok(Status { applied, strays: checkpoint.strays().to_vec() })
}

fn state_of(checkpoint: &Checkpoint, contents: &Contents, newer: &[(u32, Edits)]) -> Result<State, PatchError> {
    if let Some((by, _)) = newer.iter().rev().find(|(_, edits)| overlap(&contents.edits, edits)) {
        return Ok(State::Covered { by: *by });
    }
    match check_rows(checkpoint, &contents.manifest, &contents.edits, Side::Result) {
        Ok(()) => Ok(State::Holds),
        Err(mismatch @ BindError::Mismatch { .. }) => Ok(State::Changed { found: mismatch.to_string() }),
        Err(error) => Err(error.into()),
    }
}

/// Whether two patches touch a row in common.
fn overlap(one: &Edits, other: &Edits) -> bool {
    let rows = |edits: &Edits, tensor: &TensorName| {
        edits.get(tensor).map(|edit| edit.rows().iter().copied().collect::<BTreeSet<u32>>()).unwrap_or_default()
    };
    one.iter().any(|edit| {
        let other = rows(other, edit.tensor());
        edit.rows().iter().any(|row| other.contains(row))
    })
}
