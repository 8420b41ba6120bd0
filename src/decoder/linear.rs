//! A linear layer whose weights are frozen: its gradient goes to its input and nowhere else.

use candle_core::{CpuStorage, Result, Storage, Tensor, bail};

use super::deltas::SiteDeltas;
use super::kernels::{self, Widen};
use super::storage::{View, matrix, update};

/// Weights widened at a time: 4 MiB of f32, which stays in cache while it is multiplied.
const BLOCK: usize = 1 << 20;

/// `y = x W^T + b` with `W` `[outputs, inputs]` in the element type of the checkpoint and `x` in f32.
///
/// bf16 and f16 weights are widened block by block, which is exact, so results equal those of f32 weights.
#[derive(Debug)]
pub(super) struct FrozenLinear {
    weight: Tensor,
    bias: Option<Vec<f32>>,
    outputs: usize,
    inputs: usize,
}

impl FrozenLinear {
    pub(super) fn new(weight: Tensor, bias: Option<Vec<f32>>) -> Result<Self> {
        let (outputs, inputs) = weight.dims2()?;
        Ok(Self { weight, bias, outputs, inputs })
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
    pub(super) fn forward_shared(&self, x: &Tensor, deltas: Option<&SiteDeltas>) -> Result<Tensor> {
        let y = self.forward(x)?;
        if let Some(deltas) = deltas {
            let shared = x.matmul(&deltas.matrix()?.t()?)?;
            let shared = View::of(&shared)?;
            let (shared, count) = (shared.values()?, deltas.count());
            update(&y, |y| kernels::spread(y, self.outputs, shared, count, deltas.rows(), deltas.clusters()))?;
        }
        Ok(y)
    }

    /// The gradient with respect to `x`, given that with respect to `y`: `g W`.
    pub(super) fn input_grad(&self, grad: &Tensor) -> Result<Tensor> {
        let mut sum: Option<Tensor> = None;
        for (first, block) in self.blocks() {
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
        sum.map_or_else(|| bail!("a linear layer without outputs"), Ok)
    }

    fn product(&self, x: &Tensor) -> Result<Tensor> {
        let mut blocks = self.blocks();
        if blocks.len() == 1 {
            return match blocks.next() {
                Some((_, block)) => x.matmul(&block?.t()?),
                None => bail!("a linear layer without outputs"),
            };
        }
        let y = matrix(vec![0.0; x.dim(0)? * self.outputs], self.outputs)?;
        for (first, block) in blocks {
            let part = x.matmul(&block?.t()?)?;
            let width = part.dim(1)?;
            let part = View::of(&part)?;
            let part = part.values()?;
            update(&y, |y| {
                for (y, part) in y.chunks_exact_mut(self.outputs).zip(part.chunks_exact(width)) {
                    y.iter_mut().skip(first).zip(part).for_each(|(y, part)| *y = *part);
                }
            })?;
        }
        Ok(y)
    }

    /// The weights as f32 in blocks of rows, each with its first row. f32 weights are one block and not copied.
    fn blocks(&self) -> impl ExactSizeIterator<Item = (usize, Result<Tensor>)> {
        let rows = match self.weight.dtype() {
            candle_core::DType::F32 => self.outputs,
            _ => (BLOCK / self.inputs).clamp(1, self.outputs),
        };
        (0..self.outputs.div_ceil(rows)).map(move |index| {
            let first = index * rows;
            (first, self.block(first, rows.min(self.outputs - first)))
        })
    }

    fn block(&self, first: usize, rows: usize) -> Result<Tensor> {
        let block = self.weight.narrow(0, first, rows)?;
        let (storage, layout) = block.storage_and_layout();
        let Some((start, end)) = layout.contiguous_offsets() else { bail!("weights must be contiguous") };
        match &*storage {
            Storage::Cpu(CpuStorage::BF16(weights)) => widened(weights.get(start..end), self.inputs),
            Storage::Cpu(CpuStorage::F16(weights)) => widened(weights.get(start..end), self.inputs),
            _ => Ok(block.clone()),
        }
    }
}

fn widened<T: Widen>(weights: Option<&[T]>, inputs: usize) -> Result<Tensor> {
    matrix(kernels::widen(weights.unwrap_or_default()), inputs)
}

impl SiteDeltas {
    /// U, `[k, hidden]`.
    fn matrix(&self) -> Result<Tensor> {
        matrix(self.values().to_vec(), self.values().len() / self.count().max(1))
    }

    /// Given the gradient `g` with respect to the site's output: that with respect to U, `(g M)^T x`, and, added to
    /// `into` where there is one, the side path's part of the gradient with respect to `x`, `(g M) U`.
    pub(super) fn grads(&self, grad: &Tensor, x: &Tensor, into: Option<&Tensor>) -> Result<Vec<f32>> {
        let width = grad.dim(1)?;
        let values = View::of(grad)?;
        let sums = kernels::gather(values.values()?, width, self.count(), self.rows(), self.clusters());
        let sums = matrix(sums, self.count())?;
        if let Some(into) = into {
            let side = sums.matmul(&self.matrix()?)?;
            let side = View::of(&side)?;
            let side = side.values()?;
            update(into, |into| kernels::add(into, side))?;
        }
        sums.t()?.matmul(x)?.flatten_all()?.to_vec1()
    }
}
