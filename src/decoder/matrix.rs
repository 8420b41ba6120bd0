//! Frozen matrices: resident in the checkpoint's element type, or read again from the checkpoint block by block.

use std::fmt;

use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use half::{bf16, f16};

use super::error::{DecoderError, Result};
use super::kernels::{self, Widen};
use super::storage::matrix;
use super::weights::{Weights, check_finite};
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

    /// Some rows, as a matrix; nothing is copied.
    pub(super) fn slice(&self, first: usize, rows: usize) -> Result<Self> {
        let place = match &self.place {
            Place::Resident(tensor) => Place::Resident(tensor.narrow(0, first, rows)?),
            Place::Stored(stored) => Place::Stored(Stored { first: stored.first + first, ..stored.clone() }),
        };
        Ok(Self { place, rows, columns: self.columns })
    }

    /// All rows in blocks, each with its first row. The blocks are the same wherever the matrix lies, and so are sums over
    /// them. Resident f32 weights are not copied.
    pub(super) fn blocks(&self) -> impl ExactSizeIterator<Item = (usize, Result<Tensor>)> {
        let rows = (BLOCK / self.columns.max(1)).clamp(1, self.rows.max(1));
        (0..self.rows.div_ceil(rows)).map(move |index| {
            let first = index * rows;
            (first, self.block(first, rows.min(self.rows - first)))
        })
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
                for row in rows {
                    values.extend(stored.read(*row as usize, 1, self.columns)?);
                }
                Ok(matrix(values, self.columns)?)
            }
        }
    }

    fn block(&self, first: usize, rows: usize) -> Result<Tensor> {
        let tensor = match &self.place {
            Place::Resident(tensor) => tensor.narrow(0, first, rows)?,
            Place::Stored(stored) => return Ok(matrix(stored.read(first, rows, self.columns)?, self.columns)?),
        };
        let (storage, layout) = tensor.storage_and_layout();
        let Some((start, end)) = layout.contiguous_offsets() else {
            return Err(candle_core::Error::Msg("weights must be contiguous".to_owned()).into());
        };
        match &*storage {
            Storage::Cpu(CpuStorage::BF16(weights)) => widened(weights.get(start..end), self.columns),
            Storage::Cpu(CpuStorage::F16(weights)) => widened(weights.get(start..end), self.columns),
            _ => Ok(tensor.clone()),
        }
    }
}

impl Stored<'_> {
    /// Some rows in f32, checked to be finite each time: nobody else has read them.
    fn read(&self, first: usize, rows: usize, columns: usize) -> Result<Vec<f32>> {
        let first = self.first + first;
        let bytes = self.weights.read_rows(&self.name, first..first + rows, columns * self.dtype.size())?;
        let values = values(self.dtype, &bytes);
        match kernels::first_not_finite(&values) {
            None => Ok(values),
            Some((index, value)) => {
                Err(DecoderError::NotFinite { name: self.name.clone(), index: first * columns + index, value })
            }
        }
    }
}

/// Elements of any type as f32.
fn values(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        Dtype::F32 => kernels::widen_bytes(bytes, f32::from_le_bytes),
        Dtype::Bf16 => kernels::widen_bytes(bytes, |bytes| f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)),
        Dtype::F16 => kernels::widen_bytes(bytes, |bytes| f16::from_le_bytes(bytes).to_f32()),
    }
}

fn widened<T: Widen>(weights: Option<&[T]>, columns: usize) -> Result<Tensor> {
    Ok(matrix(kernels::widen(weights.unwrap_or_default()), columns)?)
}

/// A tensor of `dims` from its bytes, in its own element type.
pub(super) fn tensor(name: &TensorName, dtype: Dtype, bytes: &[u8], dims: &[usize], on: &Device) -> Result<Tensor> {
    Ok(match dtype {
        Dtype::F32 => {
            let values: Vec<f32> = bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            check_finite(name, values.iter().copied())?;
            Tensor::from_vec(values, dims, on)?
        }
        Dtype::Bf16 => {
            let values: Vec<bf16> = bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b)).collect();
            check_finite(name, values.iter().map(|value| value.to_f32()))?;
            Tensor::from_vec(values, dims, on)?
        }
        Dtype::F16 => {
            let values: Vec<f16> = bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b)).collect();
            check_finite(name, values.iter().map(|value| value.to_f32()))?;
            Tensor::from_vec(values, dims, on)?
        }
    })
}
