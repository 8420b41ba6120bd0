//! What the `rows` and `deltas` sections hold: edits to bytes and back.
//!
//! `rows` is one codec value, `deltas` are raw numbers. (`residual` and `sketch` are in their own modules.)

use serde::{Deserialize, Serialize};

use crate::format::codec::{self, CodecError};
use crate::format::edit::{Deltas, Edit, EditError, EditParts, Edits, count_clusters};
use crate::format::float;
use crate::format::limits::MAX_EDITS;
use crate::format::reader::Reader;
use crate::format::residual::{COUNTS_BYTES_A_ROW, ResidualError};
use crate::format::sketch::{SketchError, sketch_length};
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
    /// A sketch that does not fit.
    #[error(transparent)]
    Sketch(#[from] SketchError),
}

/// Content of a `rows` section.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct RowsSection {
    edits: Vec<RowsRecord>,
}

/// One edit without its deltas.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct RowsRecord {
    /// UTF-8. Not a `String`: bincode allocates as many bytes as one claims to have before it reads any.
    tensor: Vec<u8>,
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
pub fn write_edits(edits: &Edits) -> Result<(Vec<u8>, Vec<u8>), SectionError> {
    let record = |edit: &Edit| RowsRecord {
        tensor: edit.tensor().as_str().into(),
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

/// What a `rows` section says: edits that lack their deltas. It fixes the length of every other known section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rows(Vec<RowsOfEdit>);

/// An edit without its deltas, their number and length known.
#[derive(Debug, Clone, PartialEq, Eq)]
struct RowsOfEdit {
    tensor: TensorName,
    dtype: Dtype,
    shape: Shape,
    layout: Layout,
    delta_dtype: Dtype,
    rows: Vec<u32>,
    clusters: Vec<u32>,
    cols: usize,
    k: usize,
}

impl Rows {
    /// Reads the content of a `rows` section.
    ///
    /// # Errors
    /// The first rule broken. Those on the order of rows and edits are checked with the deltas.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SectionError> {
        // The count comes first, and a record takes three times its bytes in memory.
        if let Some(found) = Reader::new(bytes).u64().filter(|count| *count > MAX_EDITS as u64) {
            let found = usize::try_from(found).unwrap_or(usize::MAX);
            return Err(EditError::TooMany { what: "edited tensors".to_owned(), limit: MAX_EDITS, found }.into());
        }
        let RowsSection { edits } = codec::decode(bytes)?;
        edits.into_iter().map(read_record).collect::<Result<_, _>>().map(Self)
    }

    /// Bytes of the `deltas` section that goes with it.
    pub fn deltas_length(&self) -> u64 {
        self.0.iter().fold(0, |sum, edit| sum.saturating_add(edit.deltas_length()))
    }

    /// Bytes of the `residual` section that goes with it, if there is one.
    pub fn residual_length(&self) -> u64 {
        let row = |edit: &RowsOfEdit| edit.cols as u64 * edit.dtype.size() as u64 + COUNTS_BYTES_A_ROW;
        self.0.iter().fold(0, |sum, edit| sum.saturating_add(edit.rows.len() as u64 * row(edit)))
    }

    /// Bytes of the `sketch` section that goes with it, if there is one.
    pub fn sketch_length(&self) -> u64 {
        sketch_length(self.0.iter().map(|edit| edit.rows.len() as u64))
    }

    /// The edits, with the content of a `deltas` section.
    ///
    /// # Errors
    /// The first rule broken.
    pub fn with_deltas(self, bytes: &[u8]) -> Result<Edits, SectionError> {
        let (expected, found) = (self.deltas_length(), bytes.len() as u64);
        let length = SectionError::DeltasLength { expected, found };
        if expected != found {
            return Err(length);
        }
        let mut reader = Reader::new(bytes);
        let mut edits = Vec::with_capacity(self.0.len());
        for edit in self.0 {
            let bytes = reader.sub(edit.deltas_length()).ok_or_else(|| length.clone())?;
            let RowsOfEdit { tensor, dtype, shape, layout, delta_dtype, rows, clusters, cols, .. } = edit;
            let deltas = Deltas::new(delta_dtype, cols, float::read_all(delta_dtype, bytes))?;
            edits.push(Edit::new(EditParts { tensor, dtype, shape, layout, rows, clusters, deltas })?);
        }
        Ok(Edits::new(edits)?)
    }
}

impl RowsOfEdit {
    /// At most 2^25 clusters of at most 2^20 elements.
    fn deltas_length(&self) -> u64 {
        self.k as u64 * self.cols as u64 * self.delta_dtype.size() as u64
    }
}

fn read_record(record: RowsRecord) -> Result<RowsOfEdit, SectionError> {
    let RowsRecord { tensor, dtype, shape, layout, delta_dtype, rows, clusters } = record;
    let tensor = String::from_utf8(tensor).map_err(|error| CodecError::Malformed { reason: error.to_string() })?;
    let (tensor, shape) = (TensorName::new(tensor)?, Shape::new(shape)?);
    let code = |what, expected, found| SectionError::Code { tensor: tensor.to_string(), what, expected, found };
    let dtypes = "1 (BF16), 2 (F16) or 3 (F32)";
    let dtype = dtype_of(dtype).ok_or_else(|| code("element type", dtypes, dtype))?;
    let delta_dtype = dtype_of(delta_dtype).ok_or_else(|| code("delta type", dtypes, delta_dtype))?;
    let layout = Layout::of(layout).ok_or_else(|| code("layout", "0 (rows) or 1 (columns)", layout))?;
    let cols = Vectors::new(layout, &shape)?.len();
    let k = count_clusters(tensor.as_str(), &clusters)?;
    Ok(RowsOfEdit { tensor, dtype, shape, layout, delta_dtype, rows, clusters, cols, k })
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
