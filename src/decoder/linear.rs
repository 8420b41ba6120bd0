//! A linear layer whose weights are frozen: its gradient goes to its input and nowhere else.

use candle_core::Tensor;

use super::Projection;
use super::deltas::{Part, SiteDeltas};
use super::error::Result;
use super::kernels;
use super::matrix::Matrix;
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
        let y = self.product(x)?;
        if let Some(bias) = &self.bias {
            update(&y, |y| y.chunks_exact_mut(bias.len()).for_each(|row| kernels::add(row, bias)))?;
        }
        Ok(y)
    }

    /// [`Self::forward`] with the side path of shared deltas: `x W^T + b + M (U x)`.
    pub(super) fn forward_shared(&self, x: &Tensor, side: Option<(&SiteDeltas, Part<'_>)>) -> Result<Tensor> {
        let y = self.forward(x)?;
        if let Some((deltas, part)) = side {
            let shared = x.matmul(&deltas.matrix()?.t()?)?;
            let shared = View::of(&shared)?;
            let (shared, count) = (shared.values()?, deltas.count());
            update(&y, |y| kernels::spread(y, self.weight.rows(), shared, count, part))?;
        }
        Ok(y)
    }

    /// The gradient with respect to `x`, given that with respect to `y`: `g W`.
    pub(super) fn input_grad(&self, grad: &Tensor) -> Result<Tensor> {
        let mut sum: Option<Tensor> = None;
        for (first, block) in self.weight.blocks() {
            let block = block?;
            let part = grad.narrow(1, first, block.dim(0)?)?.matmul(&block)?;
            match &sum {
                None => sum = Some(part),
                Some(sum) => {
                    let part = View::of(&part)?;
                    let part = part.values()?;
                    update(sum, |sum| kernels::add(sum, part))?;
                }
            }
        }
        sum.map_or_else(|| Err(no_outputs()), Ok)
    }

    fn product(&self, x: &Tensor) -> Result<Tensor> {
        let mut blocks = self.weight.blocks();
        if blocks.len() == 1 {
            return match blocks.next() {
                Some((_, block)) => Ok(x.matmul(&block?.t()?)?),
                None => Err(no_outputs()),
            };
        }
        let outputs = self.weight.rows();
        let y = matrix(vec![0.0; x.dim(0)? * outputs], outputs)?;
        for (first, block) in blocks {
            let part = x.matmul(&block?.t()?)?;
            let width = part.dim(1)?;
            let part = View::of(&part)?;
            let part = part.values()?;
            update(&y, |y| {
                for (y, part) in y.chunks_exact_mut(outputs).zip(part.chunks_exact(width)) {
                    y.iter_mut().skip(first).zip(part).for_each(|(y, part)| *y = *part);
                }
            })?;
        }
        Ok(y)
    }
}

fn no_outputs() -> super::DecoderError {
    candle_core::Error::Msg("a linear layer without outputs".to_owned()).into()
}

impl SiteDeltas {
    /// U, `[k, hidden]`.
    fn matrix(&self) -> Result<Tensor> {
        Ok(matrix(self.values().to_vec(), self.values().len() / self.count().max(1))?)
    }

    /// Given the gradients with respect to the outputs of gate and up, those with respect to each cluster's side path:
    /// `g M`, `[n, k]`.
    pub(super) fn sums(&self, projection: Projection, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        let width = gate.dim(1)?;
        let (gate, up) = (View::of(gate)?, View::of(up)?);
        let gather = |grad: &[f32], first: usize| {
            kernels::gather(grad, width, self.count(), self.part(first as u32, width as u32))
        };
        let sums = match projection {
            Projection::Gate => gather(gate.values()?, 0),
            Projection::Up => gather(up.values()?, 0),
            Projection::GateUp => {
                let mut sums = gather(gate.values()?, 0);
                kernels::add(&mut sums, &gather(up.values()?, width));
                sums
            }
        };
        Ok(matrix(sums, self.count())?)
    }

    /// From [`Self::sums`], the gradient with respect to U, `(g M)^T x`, and, added to `into` where there is one, the side
    /// path's part of the gradient with respect to `x`, `(g M) U`.
    pub(super) fn grads(&self, sums: &Tensor, x: &Tensor, into: Option<&Tensor>) -> Result<Vec<f32>> {
        if let Some(into) = into {
            let side = sums.matmul(&self.matrix()?)?;
            let side = View::of(&side)?;
            let side = side.values()?;
            update(into, |into| kernels::add(into, side))?;
        }
        Ok(sums.t()?.matmul(x)?.flatten_all()?.to_vec1()?)
    }
}
