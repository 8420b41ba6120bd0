//! A linear layer whose weights are frozen: its gradient goes to its input and nowhere else.

use candle_core::Tensor;

use super::Projection;
use super::deltas::{Part, SiteDeltas};
use super::error::Result;
use super::kernels;
use super::matrix::Matrix;
use super::product::{Mat, MatMut, Threads, multiply, product};
use super::storage::{View, matrix, update};

/// `y = x W^T + b` with `W` `[outputs, inputs]` in the element type of the checkpoint and `x` in f32.
#[derive(Debug)]
pub(super) struct FrozenLinear<'w> {
    weight: Matrix<'w>,
    bias: Option<Vec<f32>>,
}

impl<'w> FrozenLinear<'w> {
    pub(super) fn new(weight: Matrix<'w>, bias: Option<Vec<f32>>) -> Self {
        Self { weight, bias }
    }

    pub(super) fn outputs(&self) -> usize {
        self.weight.rows()
    }

    /// `[n, inputs]` to `[n, outputs]`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (x, inputs) = (View::of(x)?, x.dim(1)?);
        let (x, outputs) = (Mat::new(x.values()?, inputs), self.outputs());
        let mut y = vec![0.0; x.rows() * outputs];
        self.weight.for_each_block(|first, block| {
            let into = MatMut::new(&mut y, outputs).columns(first, block.rows());
            multiply(into, x, block.t(), false, Threads::All)
        })?;
        if let Some(bias) = &self.bias {
            y.chunks_exact_mut(bias.len()).for_each(|row| kernels::add(row, bias));
        }
        Ok(matrix(y, outputs)?)
    }

    /// [`Self::forward`] with the side path of shared deltas: `x W^T + b + M (U x)`.
    pub(super) fn forward_shared(&self, x: &Tensor, side: Option<(&SiteDeltas, Part<'_>)>) -> Result<Tensor> {
        let y = self.forward(x)?;
        if let Some((deltas, part)) = side {
            let x = View::of(x)?;
            let shared = product(Mat::new(x.values()?, deltas.width()), deltas.matrix().t())?;
            update(&y, |y| kernels::spread(y, self.outputs(), &shared, deltas.count(), part))?;
        }
        Ok(y)
    }

    /// The gradient with respect to `x`, given that with respect to `y`: `g W`.
    pub(super) fn input_grad(&self, grad: &Tensor) -> Result<Tensor> {
        let (grad, inputs) = (View::of(grad)?, self.weight.columns());
        let grad = Mat::new(grad.values()?, self.outputs());
        let mut into = vec![0.0; grad.rows() * inputs];
        self.weight.for_each_block(|first, block| {
            let grad = grad.columns(first, block.rows());
            multiply(MatMut::new(&mut into, inputs), grad, block, first > 0, Threads::All)
        })?;
        Ok(matrix(into, inputs)?)
    }
}

impl SiteDeltas {
    fn width(&self) -> usize {
        self.values().len() / self.count().max(1)
    }

    /// U, `[k, hidden]`.
    fn matrix(&self) -> Mat<'_> {
        Mat::new(self.values(), self.width())
    }

    /// Given the gradients with respect to the outputs of gate and up, those with respect to each cluster's side path:
    /// `g M`, `[n, k]`.
    pub(super) fn sums(&self, projection: Projection, gate: &Tensor, up: &Tensor) -> Result<Vec<f32>> {
        let width = gate.dim(1)?;
        let (gate, up) = (View::of(gate)?, View::of(up)?);
        let gather = |grad: &[f32], first: usize| {
            kernels::gather(grad, width, self.count(), self.part(first as u32, width as u32))
        };
        Ok(match projection {
            Projection::Gate => gather(gate.values()?, 0),
            Projection::Up => gather(up.values()?, 0),
            Projection::GateUp => {
                let mut sums = gather(gate.values()?, 0);
                kernels::add(&mut sums, &gather(up.values()?, width));
                sums
            }
        })
    }

    /// From [`Self::sums`], the gradient with respect to U, `(g M)^T x`, and, added to `into` where there is one, the side
    /// path's part of the gradient with respect to `x`, `(g M) U`.
    pub(super) fn grads(&self, sums: &[f32], x: &Tensor, into: Option<&Tensor>) -> Result<Vec<f32>> {
        let (sums, x) = (Mat::new(sums, self.count()), View::of(x)?);
        if let Some(into) = into {
            update(into, |into| multiply(MatMut::new(into, self.width()), sums, self.matrix(), true, Threads::All))??;
        }
        product(sums.t(), Mat::new(x.values()?, self.width()))
    }
}
