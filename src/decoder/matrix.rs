//! Frozen matrices: resident in the checkpoint's element type, or read again from the checkpoint block by block.

use std::fmt;

use candle_core::{CpuStorage, DType, Storage, Tensor};
use half::f16;

use super::error::{DecoderError, Result};
use super::kernels::{self, Widen};
use super::product::Mat;
use super::storage::matrix;
use super::weights::Weights;
use crate::tensor::{Dtype, TensorName};

/// Weights widened at a time: 4 MiB of f32, which stays in cache while it is multiplied.
pub(super) const BLOCK: usize = 1 << 20;

/// A matrix `[rows, columns]`, whose values are read as f32, which is exact for bf16 and f16: where it lies changes no
/// result.
#[derive(Debug, Clone)]
pub(super) struct Matrix<'w> {
    place: Place<'w>,
    rows: usize,
    columns: usize,
}

#[derive(Debug, Clone)]
enum Place<'w> {
    /// In memory, in its own element type.
    Resident(Tensor),
    /// In the checkpoint.
    Stored(Stored<'w>),
}

/// Rows of a tensor that stays where it is.
#[derive(Clone)]
pub(super) struct Stored<'w> {
    pub(super) weights: &'w dyn Weights,
    pub(super) name: TensorName,
    pub(super) dtype: Dtype,
    /// The first row that is the matrix's own.
    first: usize,
}

/// A block on its way: as it is stored, and widened.
#[derive(Default)]
struct Scratch {
    bytes: Vec<u8>,
    values: Vec<f32>,
}

impl fmt::Debug for Stored<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} from row {}", self.name, self.dtype, self.first)
    }
}

impl<'w> Matrix<'w> {
    pub(super) fn resident(tensor: Tensor) -> Result<Self> {
        let (rows, columns) = tensor.dims2()?;
        Ok(Self { place: Place::Resident(tensor), rows, columns })
    }

    pub(super) fn stored(
        weights: &'w dyn Weights,
        name: TensorName,
        dtype: Dtype,
        rows: usize,
        columns: usize,
    ) -> Self {
        Self { place: Place::Stored(Stored { weights, name, dtype, first: 0 }), rows, columns }
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    /// Some rows, as a matrix; nothing is copied.
    pub(super) fn slice(&self, first: usize, rows: usize) -> Result<Self> {
        let place = match &self.place {
            Place::Resident(tensor) => Place::Resident(tensor.narrow(0, first, rows)?),
            Place::Stored(stored) => Place::Stored(Stored { first: stored.first + first, ..stored.clone() }),
        };
        Ok(Self { place, rows, columns: self.columns })
    }

    /// Shows all rows in blocks, each with its first row and in f32. The blocks are the same wherever the matrix lies, and
    /// so are sums over them.
    pub(super) fn for_each_block(&self, mut visit: impl FnMut(usize, Mat<'_>) -> Result<()>) -> Result<()> {
        let rows = (BLOCK / self.columns.max(1)).clamp(1, self.rows.max(1));
        let mut scratch = Scratch::default();
        for first in (0..self.rows).step_by(rows) {
            let rows = rows.min(self.rows - first);
            match &self.place {
                Place::Resident(tensor) => {
                    let (storage, layout) = tensor.storage_and_layout();
                    let start = layout.start_offset() + first * self.columns;
                    let span = start..start + rows * self.columns;
                    let block = match &*storage {
                        Storage::Cpu(CpuStorage::F32(weights)) => weights.get(span).unwrap_or_default(),
                        Storage::Cpu(CpuStorage::BF16(weights)) => widened(weights.get(span), &mut scratch.values),
                        Storage::Cpu(CpuStorage::F16(weights)) => widened(weights.get(span), &mut scratch.values),
                        _ => return Err(elsewhere()),
                    };
                    visit(first, Mat::new(block, self.columns))?;
                }
                Place::Stored(stored) => {
                    stored.read(first, rows, self.columns, &mut scratch)?;
                    visit(first, Mat::new(&scratch.values, self.columns))?;
                }
            }
        }
        Ok(())
    }

    /// The rows that `rows` names, in f32.
    pub(super) fn select(&self, rows: &[u32]) -> Result<Tensor> {
        match &self.place {
            Place::Resident(tensor) => {
                let rows = Tensor::new(rows, tensor.device())?;
                Ok(tensor.index_select(&rows, 0)?.to_dtype(DType::F32)?)
            }
            Place::Stored(stored) => {
                let mut values = Vec::with_capacity(rows.len() * self.columns);
                let mut scratch = Scratch::default();
                for row in rows {
                    stored.read(*row as usize, 1, self.columns, &mut scratch)?;
                    values.extend_from_slice(&scratch.values);
                }
                Ok(matrix(values, self.columns)?)
            }
        }
    }
}

impl Stored<'_> {
    /// Some rows in f32, checked to be finite each time: nobody else has read them.
    fn read(&self, first: usize, rows: usize, columns: usize, scratch: &mut Scratch) -> Result<()> {
        let first = self.first + first;
        let row_bytes = columns * self.dtype.size();
        scratch.bytes.resize(rows * row_bytes, 0);
        self.weights.read_at(&self.name, first * row_bytes, &mut scratch.bytes)?;
        let (bytes, into) = (&scratch.bytes, &mut scratch.values);
        into.resize(rows * columns, 0.0);
        match self.dtype {
            Dtype::F32 => kernels::widen_bytes(bytes, into, f32::from_le_bytes),
            Dtype::Bf16 => {
                kernels::widen_bytes(bytes, into, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16));
            }
            Dtype::F16 => kernels::widen_bytes(bytes, into, |bytes| f16::from_le_bytes(bytes).to_f32()),
        }
        match kernels::first_not_finite(into) {
            None => Ok(()),
            Some((index, value)) => {
                Err(DecoderError::NotFinite { name: self.name.clone(), index: first * columns + index, value })
            }
        }
    }
}

fn widened<'a, T: Widen>(weights: Option<&[T]>, scratch: &'a mut Vec<f32>) -> &'a [f32] {
    let weights = weights.unwrap_or_default();
    scratch.resize(weights.len(), 0.0);
    kernels::widen(weights, scratch);
    scratch
}

fn elsewhere() -> DecoderError {
    candle_core::Error::Msg("expected weights of F32, BF16 or F16 on the CPU".to_owned()).into()
}
