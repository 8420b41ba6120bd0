//! Weights on their way from a checkpoint into the network: checked for presence, type, shape and finite values.

use std::cell::RefCell;
use std::collections::BTreeSet;

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};

use super::config::Norms;
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
}

/// Hands out checked tensors and remembers which were asked for.
pub(super) struct Loader<'a> {
    weights: &'a dyn Weights,
    device: &'a Device,
    used: RefCell<BTreeSet<TensorName>>,
}

impl<'a> Loader<'a> {
    pub(super) fn new(weights: &'a dyn Weights, device: &'a Device) -> Self {
        Self { weights, device, used: RefCell::default() }
    }

    /// A matrix in its own element type.
    pub(super) fn matrix(&self, name: TensorName, rows: usize, cols: usize) -> Result<Tensor, DecoderError> {
        self.tensor(name, &[rows, cols])
    }

    /// A vector, widened to f32.
    pub(super) fn vector(&self, name: TensorName, length: usize) -> Result<Vec<f32>, DecoderError> {
        let vector = self.tensor(name, &[length])?;
        Ok(vector.to_dtype(DType::F32)?.to_vec1()?)
    }

    /// A norm, its weights as they are used.
    pub(super) fn norm(&self, name: TensorName, width: usize, norms: Norms) -> Result<Norm, DecoderError> {
        let weight = self.vector(name, width)?.into_iter().map(|weight| weight + norms.offset).collect();
        Ok(Norm::new(weight, norms.epsilon))
    }

    fn tensor(&self, name: TensorName, dims: &[usize]) -> Result<Tensor, DecoderError> {
        let Some((dtype, shape)) = self.weights.describe(&name) else { return Err(DecoderError::Missing { name }) };
        let expected: Vec<u64> = dims.iter().map(|dim| *dim as u64).collect();
        if shape.dims() != expected {
            return Err(DecoderError::shape(&name, &expected, &shape));
        }
        let Ok(dtype) = dtype.parse::<Dtype>() else {
            let expected = "element type BF16, F16 or F32".to_owned();
            return Err(DecoderError::Tensor { name, expected, found: dtype });
        };
        let bytes = self.weights.read(&name)?;
        if bytes.len() as u64 != shape.elements() * dtype.size() as u64 {
            let (expected, found) = (format!("{shape} of {dtype}"), format!("{} bytes", bytes.len()));
            return Err(DecoderError::Tensor { name, expected, found });
        }
        let tensor = self.build(&name, dtype, &bytes, dims)?;
        self.used.borrow_mut().insert(name);
        Ok(tensor)
    }

    fn build(&self, name: &TensorName, dtype: Dtype, bytes: &[u8], dims: &[usize]) -> Result<Tensor, DecoderError> {
        match dtype {
            Dtype::F32 => {
                let values: Vec<f32> = bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
                check_finite(name, values.iter().copied())?;
                Ok(Tensor::from_vec(values, dims, self.device)?)
            }
            Dtype::Bf16 => {
                let values: Vec<bf16> = bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b)).collect();
                check_finite(name, values.iter().map(|value| value.to_f32()))?;
                Ok(Tensor::from_vec(values, dims, self.device)?)
            }
            Dtype::F16 => {
                let values: Vec<f16> = bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b)).collect();
                check_finite(name, values.iter().map(|value| value.to_f32()))?;
                Ok(Tensor::from_vec(values, dims, self.device)?)
            }
        }
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

fn check_finite(name: &TensorName, mut values: impl Iterator<Item = f32>) -> Result<(), DecoderError> {
    let mut index = 0;
    let found = values.find(|value| {
        index += 1;
        !value.is_finite()
    });
    match found {
        Some(value) => Err(DecoderError::NotFinite { name: name.clone(), index: index - 1, value }),
        None => Ok(()),
    }
}
