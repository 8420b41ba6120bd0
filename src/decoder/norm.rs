//! Root mean square norm.

use candle_core::{Result, Tensor};

use super::kernels;
use super::storage::{View, matrix, update};

/// `x / rms(x) * w` over the last dimension.
#[derive(Debug)]
pub(super) struct Norm {
    weight: Vec<f32>,
    epsilon: f32,
}

impl Norm {
    pub(super) fn new(weight: Vec<f32>, epsilon: f32) -> Self {
        Self { weight, epsilon }
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = View::of(x)?;
        matrix(self.rows(x.values()?), self.weight.len())
    }

    /// Adds to `into` the gradient with respect to `x`, given that with respect to the norm of it.
    pub(super) fn grad(&self, into: &Tensor, grad: &Tensor, x: &Tensor) -> Result<()> {
        let (grad, x) = (View::of(grad)?, View::of(x)?);
        let (grad, x) = (grad.values()?, x.values()?);
        update(into, |into| self.rows_grad(into, grad, x))
    }

    /// [`Self::forward`] of rows one behind the other.
    pub(super) fn rows(&self, x: &[f32]) -> Vec<f32> {
        kernels::rms_norm(x, &self.weight, self.epsilon)
    }

    /// [`Self::grad`] of rows one behind the other.
    pub(super) fn rows_grad(&self, into: &mut [f32], grad: &[f32], x: &[f32]) {
        kernels::rms_norm_grad(into, grad, x, &self.weight, self.epsilon);
    }
}
