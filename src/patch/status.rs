//! Status: which patches are on a checkpoint, and whether their rows still hold.

use serde::Serialize;

use super::record::{Record, SignedBy, records, unrecorded};
use super::revert::{edited_rows, forget_shared, name_rows, recorded, recorded_patch, sides_of};
use super::{Contents, PatchError};
use crate::checkpoint::{BindError, Checkpoint, Depth, Progress, Side, compare};
use crate::format::{Container, Edits};
use crate::trust::{self, Policy};

/// What is on a checkpoint.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// The applied patches, oldest first.
    pub applied: Vec<StatusEntry>,
    /// Files with weights in another form, which patches do not reach.
    pub strays: Vec<String>,
    /// Files among the records that belong to none: a record was lost, or somebody put them there.
    pub unrecorded: Vec<String>,
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
    /// Who stands by the record.
    pub signed: Signed,
    /// Who stands by the patch; unchecked without a policy.
    pub patch_signed: Signed,
}

/// Whose signatures an apply record or its patch has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "is")]
pub enum Signed {
    /// It is not signed.
    No,
    /// No key was given to check it with.
    Unchecked,
    /// These people's hold, none of them if only strangers signed.
    By {
        /// Trusted people and their keys.
        signers: Vec<SignedBy>,
    },
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

/// Reads the records of a checkpoint and compares what they touch: the rows, or also the tensors around them where no
/// other patch touches those.
///
/// # Errors
/// A record or a weight cannot be read; a wrong signature on a record under a key of `policy`.
pub fn status(
    checkpoint: &Checkpoint,
    depth: Depth,
    policy: Option<&Policy>,
    progress: &dyn Progress,
) -> Result<Status, PatchError> {
    let read = |record: Record| {
        let contents = recorded_patch(checkpoint, &record);
        (record, contents)
    };
    let all: Vec<_> = records(checkpoint.dir())?.into_iter().map(read).collect();
    let mut applied = Vec::new();
    for (record, contents) in &all {
        let (rows, state, patch_signed) = match contents {
            Err(error) => (None, State::Unreadable { reason: error.to_string() }, Signed::Unchecked),
            Ok(contents) => {
                let others = all.iter().filter(|(other, _)| other.number != record.number);
                let others =
                    others.filter_map(|(other, contents)| Some((other.number, &contents.as_ref().ok()?.edits)));
                let others: Vec<(u32, &Edits)> = others.collect();
                let state = state_of(checkpoint, (record, contents), &others, depth, progress)?;
                (Some(contents.edits.rows() as u64), state, patch_signed(contents, policy)?)
            }
        };
        let (record, signed) = (record.clone(), signed(record, policy)?);
        applied.push(StatusEntry { record, rows, state, signed, patch_signed });
    }
    Ok(Status { applied, strays: checkpoint.strays().to_vec(), unrecorded: unrecorded(checkpoint.dir())? })
}

/// Whose signatures on the patch count, if anybody is to be believed.
fn patch_signed(contents: &Contents, policy: Option<&Policy>) -> Result<Signed, PatchError> {
    let Some(policy) = policy else { return Ok(Signed::Unchecked) };
    match trust::verify(&Container::parse(contents.bytes())?, &policy.clone().signatures_only()) {
        Ok(verified) => Ok(Signed::By { signers: verified.signers().iter().map(SignedBy::from).collect() }),
        Err(_) => Ok(Signed::By { signers: vec![] }),
    }
}

fn signed(record: &Record, policy: Option<&Policy>) -> Result<Signed, PatchError> {
    match (&record.signed, policy) {
        (None, _) => Ok(Signed::No),
        (Some(_), None) => Ok(Signed::Unchecked),
        (Some(envelope), Some(policy)) => {
            let signers = policy.check_signatures(envelope)?.signers;
            Ok(Signed::By { signers: signers.iter().map(SignedBy::from).collect() })
        }
    }
}

fn state_of(
    checkpoint: &Checkpoint,
    (record, contents): (&Record, &Contents),
    others: &[(u32, &Edits)],
    depth: Depth,
    progress: &dyn Progress,
) -> Result<State, PatchError> {
    let edits = &contents.edits;
    let newer = others.iter().filter(|(number, _)| *number > record.number);
    if let Some((by, _)) = newer.clone().find(|(_, newer)| overlap(edits, newer)) {
        return Ok(State::Covered { by: *by });
    }
    let mut sides = match sides_of(checkpoint, record, contents) {
        Ok(sides) => sides,
        Err(error) => return Ok(State::Unreadable { reason: error.to_string() }),
    };
    others.iter().for_each(|(_, other)| forget_shared(&mut sides, edits, other));
    match compare(checkpoint, edits, &sides, Side::Result, depth, progress) {
        Ok(_) => Ok(State::Holds),
        Err(mismatch @ BindError::Mismatch { .. }) => {
            let marks = recorded(checkpoint, &record.marks_name(), record.marks);
            let edited = marks.and_then(|marks| edited_rows(checkpoint, edits, &marks)).unwrap_or_default();
            Ok(State::Changed { found: name_rows(mismatch, edits, &edited).to_string() })
        }
        Err(error) => Err(error.into()),
    }
}

/// Whether two patches touch a row in common. Both lists of rows ascend.
pub(super) fn overlap(one: &Edits, other: &Edits) -> bool {
    one.iter().any(|edit| {
        let mut others = other.get(edit.tensor()).into_iter().flat_map(|edit| edit.rows()).peekable();
        // A row of another layout is another piece of the tensor: any two of them cross.
        let crossing = other.get(edit.tensor()).is_some_and(|other| other.layout() != edit.layout());
        crossing
            || edit.rows().iter().any(|row| {
                while others.next_if(|other| *other < row).is_some() {}
                others.peek() == Some(&row)
            })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{Deltas, Edit, EditParts, Layout};
    use crate::tensor::{Dtype, Shape, TensorName};

    fn edits(tensor: &str, layout: Layout, rows: &[u32]) -> Edits {
        let edit = Edit::new(EditParts {
            tensor: TensorName::new(tensor).unwrap(),
            dtype: Dtype::Bf16,
            shape: Shape::new([8, 8]).unwrap(),
            layout,
            rows: rows.to_vec(),
            clusters: vec![0; rows.len()],
            deltas: Deltas::new(Dtype::Bf16, 8, vec![1.0; 8]).unwrap(),
        });
        Edits::new(vec![edit.unwrap()]).unwrap()
    }

    #[test]
    fn patches_meet_in_a_row_and_rows_meet_columns() {
        let one = edits("a", Layout::Rows, &[1, 4, 6]);
        for (other, meet) in [
            (edits("a", Layout::Rows, &[0, 2, 5, 7]), false),
            (edits("a", Layout::Rows, &[0, 6]), true),
            (edits("a", Layout::Rows, &[1]), true),
            (edits("a", Layout::Rows, &[7]), false),
            (edits("b", Layout::Rows, &[1]), false),
            (edits("a", Layout::Columns, &[0]), true),
            (edits("b", Layout::Columns, &[0]), false),
        ] {
            assert_eq!(overlap(&one, &other), meet, "{other:?}");
            assert_eq!(overlap(&other, &one), meet, "{other:?}");
        }
    }
}
