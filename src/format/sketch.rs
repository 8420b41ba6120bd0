//! The sketch: projections of the base's touched rows on random signs, by which a reader without the base can tell about
//! how far a checkpoint's rows are from it.
//!
//! The arithmetic is part of the format (`spec/format.md`, *`sketch`*), so that every reader comes to the same distance.
//! Each row has signs of its own: a fine-tune of low rank moves all rows along few directions, which shared signs may miss.

use crate::format::edit::{Edit, Edits};
use crate::format::float;
use crate::format::reader::Reader;
use crate::format::tolerance::{NotATolerance, Tolerance};

/// Projections of a row.
pub const PROJECTIONS: usize = 4;
/// Domain of a row's signs.
pub const SIGNS_CONTEXT: &str = "nestpatch v1 2026-11-24 sketch signs";
/// Bytes of the tolerance, of a norm, of a projection.
const WORD: u64 = 4;

/// Why a sketch is refused, or cannot be made.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SketchError {
    /// Bytes missing or left over.
    #[error("sketch: expected {expected} bytes, found {found}")]
    Length {
        /// Bytes that the edits ask for.
        expected: u64,
        /// Bytes given.
        found: u64,
    },
    /// A tolerance that is none.
    #[error("sketch: tolerance: {0}")]
    Tolerance(#[from] NotATolerance),
    /// Tensors or rows missing or left over.
    #[error("sketch of {what}: expected {expected}, found {found}")]
    Rows {
        /// Which list: `the edited tensors`, or `rows of NAME`.
        what: String,
        /// How many the edits ask for.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// A number that a sketch does not have.
    #[error("sketch of tensor {tensor:?}: expected {what} that is finite and not {below}, found {found:?}")]
    Number {
        /// The tensor.
        tensor: String,
        /// `a norm` or `a projection`.
        what: &'static str,
        /// `negative` or `negative zero`.
        below: &'static str,
        /// The number.
        found: f32,
    },
    /// NaN or infinity in a row to be sketched.
    #[error("sketch of tensor {tensor:?}, row {row}, column {column}: expected a finite weight, found NaN or infinity")]
    NotFinite {
        /// The tensor.
        tensor: String,
        /// The row's index in the tensor.
        row: u32,
        /// The element within it.
        column: usize,
    },
}

/// What describes the touched rows of one tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorSketch {
    norm: f32,
    projections: Vec<[f32; PROJECTIONS]>,
}

/// Sketches the rows of one edit, one by one.
#[derive(Debug)]
pub struct TensorSketcher<'e> {
    edit: &'e Edit,
    squares: f64,
    projections: Vec<[f32; PROJECTIONS]>,
    signs: Vec<u8>,
}

impl<'e> TensorSketcher<'e> {
    /// Starts with no row.
    pub fn new(edit: &'e Edit) -> Self {
        let signs = vec![0; (edit.vectors().len() * PROJECTIONS).div_ceil(8)];
        Self { edit, squares: 0.0, projections: Vec::with_capacity(edit.rows().len()), signs }
    }

    /// Takes the next row: its elements in order, gathered if they lie apart.
    ///
    /// # Errors
    /// A row too many, a row of another length, NaN or infinity in it.
    pub fn push(&mut self, row: &[u8]) -> Result<(), SketchError> {
        let edit = self.edit;
        let index = edit.rows().get(self.projections.len()).copied();
        let index = index.ok_or_else(|| rows_error(edit, self.projections.len() + 1))?;
        if row.len() != edit.row_bytes() {
            let (expected, found) = (edit.row_bytes() as u64, row.len() as u64);
            return Err(SketchError::Length { expected, found });
        }
        let values = float::read_all(edit.dtype(), row);
        if let Some(column) = values.iter().position(|value| !value.is_finite()) {
            return Err(SketchError::NotFinite { tensor: edit.tensor().to_string(), row: index, column });
        }
        write_signs(edit.tensor().as_str(), index, &mut self.signs);
        // One addition at a time, in this order: the sums are part of the format.
        for value in &values {
            self.squares += f64::from(*value) * f64::from(*value);
        }
        self.projections.push(project(&values, &self.signs));
        Ok(())
    }

    /// The sketch of all rows; its numbers may be infinite.
    ///
    /// # Errors
    /// A row too few.
    pub fn finish(self) -> Result<TensorSketch, SketchError> {
        let Self { edit, squares, projections, .. } = self;
        match projections.len() == edit.rows().len() {
            true => Ok(TensorSketch { norm: squares.sqrt() as f32, projections }),
            false => Err(rows_error(edit, projections.len())),
        }
    }
}

impl TensorSketch {
    /// The distance of `found`, the sketch of another checkpoint's rows, as a share of this one's norm.
    pub fn distance(&self, found: &Self) -> f64 {
        let ours = self.projections.iter().flatten();
        let differences =
            ours.zip(found.projections.iter().flatten()).map(|(s, other)| f64::from(*other) - f64::from(*s));
        let sum = differences.fold(0.0, |sum, difference| sum + difference * difference);
        match (sum == 0.0, self.norm == 0.0) {
            (true, _) => 0.0,
            (false, true) => f64::INFINITY,
            (false, false) => (sum / PROJECTIONS as f64).sqrt() / f64::from(self.norm),
        }
    }

    /// How many rows it describes.
    pub fn rows(&self) -> usize {
        self.projections.len()
    }

    fn numbers(&self) -> impl Iterator<Item = f32> {
        std::iter::once(self.norm).chain(self.projections.iter().flatten().copied())
    }

    fn check(&self, edit: &Edit) -> Result<(), SketchError> {
        if self.rows() != edit.rows().len() {
            return Err(rows_error(edit, self.rows()));
        }
        let refuse = |what, below, found| SketchError::Number { tensor: edit.tensor().to_string(), what, below, found };
        if !self.norm.is_finite() || self.norm.is_sign_negative() {
            return Err(refuse("a norm", "negative", self.norm));
        }
        let wrong = |number: &&f32| !number.is_finite() || number.to_bits() == (-0.0_f32).to_bits();
        match self.projections.iter().flatten().find(wrong) {
            Some(found) => Err(refuse("a projection", "negative zero", *found)),
            None => Ok(()),
        }
    }
}

/// What a patch says about the base's touched rows, and how far from them a descendant's may be.
#[derive(Debug, Clone, PartialEq)]
pub struct Sketch {
    tolerance: Tolerance,
    tensors: Vec<TensorSketch>,
}

impl Sketch {
    /// The sketch of these tensors, in the order of the edits.
    ///
    /// # Errors
    /// Tensors or rows missing or left over; a number that is not finite.
    pub fn new(edits: &Edits, tolerance: Tolerance, tensors: Vec<TensorSketch>) -> Result<Self, SketchError> {
        let (expected, found) = (edits.len(), tensors.len());
        if expected != found {
            return Err(SketchError::Rows { what: "the edited tensors".to_owned(), expected, found });
        }
        edits.iter().zip(&tensors).try_for_each(|(edit, tensor)| tensor.check(edit))?;
        Ok(Self { tolerance, tensors })
    }

    /// The largest distance at which a checkpoint counts as a descendant.
    pub fn tolerance(&self) -> Tolerance {
        self.tolerance
    }

    /// Each tensor's sketch, in the order of the edits.
    pub fn tensors(&self) -> &[TensorSketch] {
        &self.tensors
    }

    /// The content of a `sketch` section.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = self.tolerance.millionths().to_le_bytes().to_vec();
        out.extend(self.tensors.iter().flat_map(TensorSketch::numbers).flat_map(f32::to_le_bytes));
        out
    }

    /// Reads the content of a `sketch` section.
    ///
    /// # Errors
    /// Bytes missing or left over; a tolerance or a number that a sketch does not have.
    pub fn from_bytes(edits: &Edits, bytes: &[u8]) -> Result<Self, SketchError> {
        let rows = edits.iter().map(|edit| edit.rows().len() as u64);
        let (expected, found) = (sketch_length(rows), bytes.len() as u64);
        let length = || SketchError::Length { expected, found };
        if expected != found {
            return Err(length());
        }
        let mut reader = Reader::new(bytes);
        let tolerance = Tolerance::from_millionths(reader.u32().ok_or_else(length)?)?;
        let mut tensors = Vec::with_capacity(edits.len());
        for edit in edits {
            let norm = reader.take_array().map(f32::from_le_bytes).ok_or_else(length)?;
            let rows = edit.rows().iter().map(|_| read_row(&mut reader)).collect::<Option<_>>();
            tensors.push(TensorSketch { norm, projections: rows.ok_or_else(length)? });
        }
        Self::new(edits, tolerance, tensors)
    }
}

/// Bytes of a `sketch` section for tensors with so many touched rows each.
pub(crate) fn sketch_length(rows: impl Iterator<Item = u64>) -> u64 {
    let tensor = |rows: u64| WORD + rows * WORD * PROJECTIONS as u64;
    rows.fold(WORD, |sum, rows| sum.saturating_add(tensor(rows)))
}

fn read_row(reader: &mut Reader<'_>) -> Option<[f32; PROJECTIONS]> {
    let mut row = [0.0; PROJECTIONS];
    for number in &mut row {
        *number = f32::from_le_bytes(reader.take_array()?);
    }
    Some(row)
}

fn rows_error(edit: &Edit, found: usize) -> SketchError {
    SketchError::Rows { what: format!("rows of {:?}", edit.tensor().as_str()), expected: edit.rows().len(), found }
}

/// Fills `signs` with those of a row: half a byte an element, the even one's below.
fn write_signs(tensor: &str, row: u32, signs: &mut [u8]) {
    let mut hasher = blake3::Hasher::new_derive_key(SIGNS_CONTEXT);
    hasher.update(&(tensor.len() as u64).to_le_bytes());
    hasher.update(tensor.as_bytes());
    hasher.update(&row.to_le_bytes());
    hasher.finalize_xof().fill(signs);
}

fn project(values: &[f32], signs: &[u8]) -> [f32; PROJECTIONS] {
    let mut sums = [0.0_f64; PROJECTIONS];
    for (pair, signs) in values.chunks(2).zip(signs) {
        for (value, signs) in pair.iter().zip([signs & 0xf, signs >> 4]) {
            for (bit, sum) in sums.iter_mut().enumerate() {
                // The sign bit of the element, flipped where the row's signs say minus.
                let minus = u32::from(signs >> bit & 1) << 31;
                *sum += f64::from(f32::from_bits(value.to_bits() ^ minus));
            }
        }
    }
    sums.map(|sum| sum as f32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{Deltas, EditParts, Layout};
    use crate::tensor::{Dtype, Shape, TensorName};

    fn edit(name: &str, dtype: Dtype, shape: [u64; 2], layout: Layout, rows: &[u32]) -> Edit {
        let cols = (if layout == Layout::Rows { shape[1] } else { shape[0] }) as usize;
        Edit::new(EditParts {
            tensor: TensorName::new(name).unwrap(),
            dtype,
            shape: Shape::new(shape).unwrap(),
            layout,
            rows: rows.to_vec(),
            clusters: vec![0; rows.len()],
            deltas: Deltas::new(dtype, cols, vec![1.0; cols]).unwrap(),
        })
        .unwrap()
    }

    fn edits() -> Edits {
        let a = edit("a", Dtype::Bf16, [9, 5], Layout::Rows, &[4, 7]);
        let b = edit("b", Dtype::F16, [3, 2], Layout::Columns, &[1]);
        Edits::new(vec![a, b, edit("c", Dtype::F32, [2, 1], Layout::Rows, &[0])]).unwrap()
    }

    fn sketch_of(edit: &Edit, rows: &[Vec<f32>]) -> Result<TensorSketch, SketchError> {
        let mut sketcher = TensorSketcher::new(edit);
        for row in rows {
            let mut bytes = Vec::new();
            float::write_all(edit.dtype(), row, &mut bytes);
            sketcher.push(&bytes)?;
        }
        sketcher.finish()
    }

    fn rows() -> [Vec<Vec<f32>>; 3] {
        let a = vec![vec![1.0, -2.0, 0.5, 0.0, -0.0], vec![3.0, 0.25, -1.0, 8.0, 0.125]];
        [a, vec![vec![0.5, -0.25, 4.0]], vec![vec![-1.5]]]
    }

    fn sketch() -> Sketch {
        let edits = edits();
        let tensors = edits.iter().zip(rows()).map(|(edit, rows)| sketch_of(edit, &rows).unwrap()).collect();
        Sketch::new(&edits, Tolerance::from_millionths(20_000).unwrap(), tensors).unwrap()
    }

    /// The bytes that the reference implementation gives.
    #[test]
    fn golden_bytes() {
        let bytes = sketch().to_bytes();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "204e000092810e41000020c0000060c000006040000020c000001ec1000046c100003ac10000cc40743e8140000098c00000984000005040000098400000c03f0000c0bf0000c03f0000c03f0000c03f"
        );
        assert_eq!(Sketch::from_bytes(&edits(), &bytes), Ok(sketch()));
    }

    #[test]
    fn equal_rows_are_at_no_distance() {
        let edits = edits();
        for ((edit, rows), tensor) in edits.iter().zip(rows()).zip(sketch().tensors()) {
            assert_eq!(tensor.distance(&sketch_of(edit, &rows).unwrap()), 0.0);
            // The sign of a zero is no difference in value.
            let unsigned: Vec<Vec<f32>> =
                rows.iter().map(|row| row.iter().map(|value| value + 0.0).collect()).collect();
            assert_eq!(tensor.distance(&sketch_of(edit, &unsigned).unwrap()), 0.0);
        }
    }

    #[test]
    fn one_element_is_as_far_as_it_is() {
        let edit = edit("c", Dtype::F32, [2, 1], Layout::Rows, &[0]);
        let of = |value: f32| sketch_of(&edit, &[vec![value]]).unwrap();
        assert_eq!(of(-1.5).distance(&of(0.0)), 1.0);
        assert_eq!(of(-1.5).distance(&of(1.5)), 2.0);
        assert_eq!(of(8.0).distance(&of(8.5)), 0.0625);
        assert_eq!(of(0.0).distance(&of(0.0)), 0.0);
        assert_eq!(of(0.0).distance(&of(f32::from_bits(1))), f64::INFINITY, "no norm to compare with");
        assert_eq!(of(f32::from_bits(1)).distance(&of(0.0)), 1.0, "the least number is one");
    }

    #[test]
    fn each_row_and_tensor_has_signs_of_its_own() {
        let mut all = std::collections::BTreeSet::new();
        for (name, row) in [("a", 0), ("a", 1), ("a", 256), ("b", 0), ("a\u{0}", 0)] {
            let mut signs = [0; 64];
            write_signs(name, row, &mut signs);
            all.insert(signs);
            let minus: u32 = signs.iter().map(|byte| byte.count_ones()).sum();
            assert!((192..320).contains(&minus), "{minus} of 512");
        }
        assert_eq!(all.len(), 5);
    }

    /// The slow twin: bit by bit, as the specification says it.
    #[test]
    fn projections_are_those_of_the_text() {
        let values: Vec<f32> = (0..7).map(|j| (j as f32 - 2.5) * 0.3).collect();
        let signs = [0x1b, 0xe4, 0x93, 0x5c];
        let minus = |bit: usize| signs[bit / 8] >> (bit % 8) & 1 == 1;
        let expected: [f32; 4] = std::array::from_fn(|p| {
            let sum = |sum: f64, (j, value): (usize, &f32)| {
                sum + if minus(4 * j + p) { -f64::from(*value) } else { f64::from(*value) }
            };
            values.iter().enumerate().fold(0.0, sum) as f32
        });
        assert_eq!(project(&values, &signs), expected);
    }

    #[test]
    fn bytes_that_break_a_rule_are_refused() {
        let (edits, bytes) = (edits(), sketch().to_bytes());
        let refused = |bytes: &[u8]| Sketch::from_bytes(&edits, bytes).unwrap_err();
        let expected = 4 + 3 * 4 + 4 * 16;
        for wrong in [&bytes[1..], &bytes[4..], &[], &[&bytes[..], &[0; 4]].concat()] {
            let found = wrong.len() as u64;
            assert_eq!(refused(wrong), SketchError::Length { expected, found });
        }
        let with = |at: usize, word: u32| {
            let mut changed = bytes.clone();
            changed[at..at + 4].copy_from_slice(&word.to_le_bytes());
            refused(&changed)
        };
        for tolerance in [0, 1_000_001, u32::MAX] {
            assert!(matches!(with(0, tolerance), SketchError::Tolerance(_)), "{tolerance}");
        }
        for (at, what) in [(4, "a norm"), (8, "a projection"), (bytes.len() - 4, "a projection")] {
            for word in [0x7f80_0000, 0xff80_0000, 0x7fc0_0000, 0x8000_0000] {
                assert!(
                    matches!(with(at, word), SketchError::Number { what: found, .. } if found == what),
                    "{at} {word:x}"
                );
            }
        }
        assert!(matches!(with(4, (-1.0_f32).to_bits()), SketchError::Number { below: "negative", .. }));
    }

    #[test]
    fn rows_that_cannot_be_sketched_are_refused() {
        let edit = edit("a", Dtype::F32, [3, 2], Layout::Rows, &[0, 2]);
        let refused = |rows: &[Vec<f32>]| sketch_of(&edit, rows).unwrap_err();
        let row = |value: f32| vec![1.0, value];
        let not_finite = |row| SketchError::NotFinite { tensor: "a".to_owned(), row, column: 1 };
        assert_eq!(refused(&[row(0.0), row(f32::NAN)]), not_finite(2));
        assert_eq!(refused(&[row(f32::NEG_INFINITY), row(0.0)]), not_finite(0));
        assert!(matches!(refused(&[row(0.0)]), SketchError::Rows { expected: 2, found: 1, .. }));
        assert!(matches!(refused(&[row(0.0), row(0.0), row(0.0)]), SketchError::Rows { expected: 2, found: 3, .. }));
        assert!(matches!(refused(&[vec![1.0]]), SketchError::Length { expected: 8, found: 4 }));
        // Numbers that overflow make no base's sketch; in another checkpoint they are infinitely far.
        let huge = sketch_of(&edit, &[vec![f32::MAX; 2], row(0.0)]).unwrap();
        assert_eq!(sketch_of(&edit, &[row(0.0), row(0.0)]).unwrap().distance(&huge), f64::INFINITY);
        let edits = Edits::new(vec![edit.clone()]).unwrap();
        let tolerance = Tolerance::from_millionths(1).unwrap();
        let made = |tensors| Sketch::new(&edits, tolerance, tensors);
        assert!(matches!(made(vec![huge]), Err(SketchError::Number { what: "a norm", .. })));
        assert!(matches!(made(vec![]), Err(SketchError::Rows { expected: 1, found: 0, .. })));
    }
}
