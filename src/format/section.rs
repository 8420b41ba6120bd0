//! What the `rows` and `deltas` sections hold: edits to bytes and back.
//!
//! `rows` is one codec value, `deltas` are raw numbers. (`residual` is in its own module.)

use serde::{Deserialize, Serialize};

use crate::format::codec::{self, CodecError};
use crate::format::edit::{Deltas, Edit, EditError, EditParts, Edits};
use crate::format::float;
use crate::format::reader::Reader;
use crate::format::residual::ResidualError;
use crate::format::vectors::{Layout, Vectors};
use crate::tensor::{Dtype, Shape, TensorError, TensorName};

/// Why a section's content is refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SectionError {
    /// `rows` is not the one encoding of a table of edits.
    #[error("section rows: {0}")]
    Encoding(#[from] CodecError),
    /// A code that this version does not define.
    #[error("section rows: tensor {tensor:?}: expected a {what} code of {expected}, found {found}")]
    Code {
        /// The tensor.
        tensor: String,
        /// `element type`, `layout` or `delta type`.
        what: &'static str,
        /// The codes there are.
        expected: &'static str,
        /// The code found.
        found: u8,
    },
    /// A name or shape that is none.
    #[error("section rows: {0}")]
    Tensor(#[from] TensorError),
    /// Edits that break a rule.
    #[error(transparent)]
    Edit(#[from] EditError),
    /// More or fewer deltas than clusters.
    #[error("section deltas: expected {expected} bytes, found {found}")]
    DeltasLength {
        /// Bytes that the edits ask for.
        expected: u64,
        /// Bytes there are.
        found: u64,
    },
    /// A residual that does not fit.
    #[error(transparent)]
    Residual(#[from] ResidualError),
}

/// Content of a `rows` section.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct RowsSection {
    edits: Vec<RowsRecord>,
}

/// One edit without its deltas.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct RowsRecord {
    tensor: String,
    dtype: u8,
    shape: Vec<u64>,
    layout: u8,
    delta_dtype: u8,
    rows: Vec<u32>,
    clusters: Vec<u32>,
}

/// The content of the `rows` and `deltas` sections.
///
/// # Errors
/// None for checked edits that are within the caps.
pub(crate) fn write_edits(edits: &Edits) -> Result<(Vec<u8>, Vec<u8>), SectionError> {
    let record = |edit: &Edit| RowsRecord {
        tensor: edit.tensor().to_string(),
        dtype: dtype_code(edit.dtype()),
        shape: edit.shape().dims().to_vec(),
        layout: edit.layout().code(),
        delta_dtype: dtype_code(edit.deltas().dtype()),
        rows: edit.rows().to_vec(),
        clusters: edit.clusters().to_vec(),
    };
    let rows = codec::encode(&RowsSection { edits: edits.iter().map(record).collect() })?;
    let mut deltas = Vec::new();
    edits.iter().for_each(|edit| float::write_all(edit.deltas().dtype(), edit.deltas().values(), &mut deltas));
    Ok((rows, deltas))
}

/// The edits whose `rows` and `deltas` sections hold these bytes.
///
/// # Errors
/// The first rule broken.
pub(crate) fn read_edits(rows: &[u8], deltas: &[u8]) -> Result<Edits, SectionError> {
    let section: RowsSection = codec::decode(rows)?;
    let mut reader = Reader::new(deltas);
    let mut expected = 0_u64;
    let mut edits = Vec::with_capacity(section.edits.len());
    for record in section.edits {
        let found = deltas.len() as u64;
        let parts = read_record(record, &mut reader, &mut expected)?;
        let parts = parts.ok_or(SectionError::DeltasLength { expected, found })?;
        edits.push(Edit::new(parts)?);
    }
    if !reader.is_empty() {
        return Err(SectionError::DeltasLength { expected, found: deltas.len() as u64 });
    }
    Ok(Edits::new(edits)?)
}

/// One edit's parts; `None` if the deltas end first.
fn read_record(
    record: RowsRecord,
    deltas: &mut Reader<'_>,
    expected: &mut u64,
) -> Result<Option<EditParts>, SectionError> {
    let RowsRecord { tensor, dtype, shape, layout, delta_dtype, rows, clusters } = record;
    let (tensor, shape) = (TensorName::new(tensor)?, Shape::new(shape)?);
    let code = |what, expected, found| SectionError::Code { tensor: tensor.to_string(), what, expected, found };
    let dtypes = "1 (BF16), 2 (F16) or 3 (F32)";
    let dtype = dtype_of(dtype).ok_or_else(|| code("element type", dtypes, dtype))?;
    let delta_dtype = dtype_of(delta_dtype).ok_or_else(|| code("delta type", dtypes, delta_dtype))?;
    let layout = Layout::of(layout).ok_or_else(|| code("layout", "0 (rows) or 1 (columns)", layout))?;
    let cols = Vectors::new(layout, &shape)?.len();
    let k = clusters.iter().max().map_or(0, |last| u64::from(*last) + 1);
    // k is at most 2^32 and cols at most 2^20.
    let bytes = k * cols as u64 * delta_dtype.size() as u64;
    *expected = expected.saturating_add(bytes);
    let Some(bytes) = deltas.sub(bytes) else { return Ok(None) };
    let deltas = Deltas::new(delta_dtype, cols, float::read_all(delta_dtype, bytes))?;
    Ok(Some(EditParts { tensor, dtype, shape, layout, rows, clusters, deltas }))
}

fn dtype_code(dtype: Dtype) -> u8 {
    match dtype {
        Dtype::Bf16 => 1,
        Dtype::F16 => 2,
        Dtype::F32 => 3,
    }
}

fn dtype_of(code: u8) -> Option<Dtype> {
    [Dtype::Bf16, Dtype::F16, Dtype::F32].into_iter().find(|dtype| dtype_code(*dtype) == code)
}
