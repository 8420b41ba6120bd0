//! Weights on their way from a checkpoint into the network: checked for presence, type, shape and finite values.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use candle_core::{DType, Device, Tensor, WithDType};
use half::{bf16, f16};

use super::config::Norms;
use super::matrix::{BLOCK, Matrix};
use super::norm::Norm;
use super::{Config, DecoderError};
use crate::checkpoint::Checkpoint;
use crate::tensor::{Dtype, Shape, TensorName};

/// Where weights come from: a checkpoint on disk, or tensors made in memory.
pub trait Weights {
    /// The names of all tensors.
    fn names(&self) -> Vec<TensorName>;
    /// Element type, as safetensors names it, and shape; nothing where there is no such tensor.
    fn describe(&self, name: &TensorName) -> Option<(String, Shape)>;
    /// All bytes, row-major and little-endian.
    ///
    /// # Errors
    /// The tensor cannot be read.
    fn read(&self, name: &TensorName) -> Result<Vec<u8>, DecoderError>;
    /// Fills `into` with bytes of a tensor from byte `offset` on. Reads the whole tensor unless there is a better way.
    ///
    /// # Errors
    /// The tensor cannot be read, or has no such bytes.
    fn read_at(&self, name: &TensorName, offset: usize, into: &mut [u8]) -> Result<(), DecoderError> {
        let bytes = self.read(name)?;
        let short = || {
            let (expected, found) =
                (format!("{} bytes or more", offset + into.len()), format!("{} bytes", bytes.len()));
            DecoderError::Tensor { name: name.clone(), expected, found }
        };
        into.copy_from_slice(bytes.get(offset..offset + into.len()).ok_or_else(short)?);
        Ok(())
    }
}

impl Weights for Checkpoint {
    fn names(&self) -> Vec<TensorName> {
        self.tensors().map(|tensor| tensor.name.clone()).collect()
    }

    fn describe(&self, name: &TensorName) -> Option<(String, Shape)> {
        let tensor = self.tensor(name).ok()?;
        Some((tensor.dtype.to_string(), tensor.shape.clone()))
    }

    fn read(&self, name: &TensorName) -> Result<Vec<u8>, DecoderError> {
        self.read(name).map_err(|error| DecoderError::Read { name: name.clone(), source: Box::new(error) })
    }

    fn read_at(&self, name: &TensorName, offset: usize, into: &mut [u8]) -> Result<(), DecoderError> {
        let read = self.tensor(name).and_then(|info| self.read_at(info, offset as u64, into));
        read.map_err(|error| DecoderError::Read { name: name.clone(), source: Box::new(error) })
    }
}

/// Hands out checked tensors and remembers which were asked for.
pub(super) struct Loader<'w> {
    weights: &'w dyn Weights,
    device: Device,
    /// Bytes of matrices that may still become resident.
    room: Cell<u64>,
    used: RefCell<BTreeSet<TensorName>>,
}

impl<'w> Loader<'w> {
    pub(super) fn new(weights: &'w dyn Weights, device: &Device, room: u64) -> Self {
        Self { weights, device: device.clone(), room: Cell::new(room), used: RefCell::default() }
    }

    /// A matrix in its own element type: resident while there is room.
    pub(super) fn matrix(&self, name: TensorName, rows: usize, columns: usize) -> Result<Matrix<'w>, DecoderError> {
        let (dtype, elements) = self.described(&name, &[rows, columns])?;
        self.used.borrow_mut().insert(name.clone());
        match self.room.get().checked_sub(elements * dtype.size() as u64) {
            Some(room) => {
                self.room.set(room);
                Matrix::resident(self.tensor(&name, dtype, &[rows, columns])?)
            }
            None => Ok(Matrix::stored(self.weights, name, dtype, rows, columns)),
        }
    }

    /// Bytes of matrices that are resident, if there was room for `room`.
    pub(super) fn resident(&self, room: u64) -> u64 {
        room - self.room.get()
    }

    /// A vector, widened to f32.
    pub(super) fn vector(&self, name: TensorName, length: usize) -> Result<Vec<f32>, DecoderError> {
        let (dtype, _) = self.described(&name, &[length])?;
        let vector = self.tensor(&name, dtype, &[length])?;
        self.used.borrow_mut().insert(name);
        Ok(vector.to_dtype(DType::F32)?.to_vec1()?)
    }

    /// A norm, its weights as they are used.
    pub(super) fn norm(&self, name: TensorName, width: usize, norms: Norms) -> Result<Norm, DecoderError> {
        let weight = self.vector(name, width)?.into_iter().map(|weight| weight + norms.offset).collect();
        Ok(Norm::new(weight, norms.epsilon))
    }

    /// Element type and number of elements of a tensor that has the shape it should have.
    fn described(&self, name: &TensorName, dims: &[usize]) -> Result<(Dtype, u64), DecoderError> {
        let missing = || DecoderError::Missing { name: name.clone() };
        let (dtype, shape) = self.weights.describe(name).ok_or_else(missing)?;
        let expected: Vec<u64> = dims.iter().map(|dim| *dim as u64).collect();
        if shape.dims() != expected {
            return Err(DecoderError::shape(name, &expected, &shape));
        }
        match dtype.parse::<Dtype>() {
            Ok(dtype) => Ok((dtype, shape.elements())),
            Err(_) => {
                let expected = "element type BF16, F16 or F32".to_owned();
                Err(DecoderError::Tensor { name: name.clone(), expected, found: dtype })
            }
        }
    }

    /// Read in pieces, so that little more than the tensor itself is in memory.
    fn tensor(&self, name: &TensorName, dtype: Dtype, dims: &[usize]) -> Result<Tensor, DecoderError> {
        match dtype {
            Dtype::F32 => self.values(name, dims, f32::from_le_bytes, |value| value),
            Dtype::Bf16 => self.values(name, dims, bf16::from_le_bytes, bf16::to_f32),
            Dtype::F16 => self.values(name, dims, f16::from_le_bytes, f16::to_f32),
        }
    }

    fn values<T: WithDType, const N: usize>(
        &self,
        name: &TensorName,
        dims: &[usize],
        value: impl Fn([u8; N]) -> T,
        wide: impl Fn(T) -> f32,
    ) -> Result<Tensor, DecoderError> {
        let rows = dims.first().copied().unwrap_or(1);
        let width = dims.iter().product::<usize>() / rows.max(1);
        let step = (BLOCK / width.max(1)).clamp(1, rows.max(1));
        let (mut values, mut bytes) = (Vec::with_capacity(rows * width), Vec::new());
        for first in (0..rows).step_by(step) {
            bytes.resize(step.min(rows - first) * width * N, 0);
            self.weights.read_at(name, first * width * N, &mut bytes)?;
            let read = values.len();
            values.extend(bytes.as_chunks().0.iter().map(|bytes| value(*bytes)));
            let fresh = values.get(read..).unwrap_or_default();
            if let Some(index) = fresh.iter().position(|value| !wide(*value).is_finite()) {
                let value = fresh.get(index).map_or(f32::NAN, |value| wide(*value));
                return Err(DecoderError::NotFinite { name: name.clone(), index: read + index, value });
            }
        }
        Ok(Tensor::from_vec(values, dims, &self.device)?)
    }

    /// Refuses tensors of the decoder's own prefix that nothing has asked for: the model has parts we would leave out.
    pub(super) fn check_surplus(&self, config: &Config) -> Result<(), DecoderError> {
        let used = self.used.borrow();
        let ours = |name: &TensorName| name.as_str().starts_with(config.names.prefix());
        // Old checkpoints store the rotary frequencies, which follow from the configuration.
        let derived = |name: &TensorName| name.as_str().ends_with(".rotary_emb.inv_freq");
        match self.weights.names().into_iter().find(|name| ours(name) && !derived(name) && !used.contains(name)) {
            Some(name) => Err(DecoderError::Surplus { name, architecture: config.architecture.clone() }),
            None => Ok(()),
        }
    }
}
