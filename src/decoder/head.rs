//! From the residual stream to logits and cross-entropy, only where a token is to be predicted.

use candle_core::Tensor;

use super::error::Result;
use super::kernels;
use super::linear::FrozenLinear;
use super::norm::Norm;
use super::storage::{View, matrix, update};

/// Logits that exist at one time, if they are those of at least one row: 32 MiB.
pub(super) const LOGITS: usize = 1 << 23;

/// The final norm and the projection to the vocabulary.
#[derive(Debug)]
pub(super) struct Head<'w> {
    pub(super) norm: Norm,
    pub(super) linear: FrozenLinear<'w>,
    /// Logits are squeezed into ± this.
    pub(super) softcap: Option<f32>,
}

/// A token to be predicted from a row of the residual stream, and its share in the loss.
#[derive(Debug, Clone, Copy)]
pub(super) struct Goal {
    pub(super) token: u32,
    pub(super) share: f32,
}

impl Head<'_> {
    /// `[n, hidden]` to `[n, vocabulary]`.
    pub(super) fn logits(&self, x: &Tensor) -> Result<Tensor> {
        self.logits_of(&self.norm.forward(x)?)
    }

    fn logits_of(&self, normed: &Tensor) -> Result<Tensor> {
        let logits = self.linear.forward(normed)?;
        if let Some(cap) = self.softcap {
            update(&logits, |logits| kernels::soft_cap(logits, cap))?;
        }
        Ok(logits)
    }

    /// Rows whose logits exist at one time; the same for a network whatever memory there is.
    fn rows(&self) -> usize {
        (LOGITS / self.linear.outputs().max(1)).max(1)
    }

    /// The cross-entropy of row i against goal i, summed by share.
    pub(super) fn loss(&self, x: &Tensor, goals: &[Goal]) -> Result<f64> {
        let (mut loss, rows) = (0.0, self.rows());
        for (index, goals) in goals.chunks(rows).enumerate() {
            let logits = self.logits(&x.narrow(0, index * rows, goals.len())?)?;
            loss += cross_entropy(&logits, goals)?;
        }
        Ok(loss)
    }

    /// [`Self::loss`] and its gradient with respect to `x`.
    pub(super) fn loss_and_grad(&self, x: &Tensor, goals: &[Goal]) -> Result<(f64, Tensor)> {
        let normed = self.norm.forward(x)?;
        let (width, rows) = (x.dim(1)?, self.rows());
        let (mut loss, mut normed_grad) = (0.0, Vec::with_capacity(x.elem_count()));
        for (index, goals) in goals.chunks(rows).enumerate() {
            let logits = self.logits_of(&normed.narrow(0, index * rows, goals.len())?)?;
            let capped = self.softcap.map(|cap| Ok::<_, candle_core::Error>((logits.copy()?, cap))).transpose()?;
            loss += cross_entropy(&logits, goals)?;
            if let Some((capped, cap)) = capped {
                let capped = View::of(&capped)?;
                let capped = capped.values()?;
                update(&logits, |grad| kernels::soft_cap_grad(grad, capped, cap))?;
            }
            normed_grad.extend(self.linear.input_grad(&logits)?.flatten_all()?.to_vec1::<f32>()?);
        }
        let grad = x.zeros_like()?;
        self.norm.grad(&grad, &matrix(normed_grad, width)?, x)?;
        Ok((loss, grad))
    }
}

/// The loss of some rows of logits, over which their gradient is written.
fn cross_entropy(logits: &Tensor, goals: &[Goal]) -> Result<f64> {
    let width = logits.dim(1)?;
    let losses = update(logits, |logits| kernels::cross_entropies(logits, width, goals))?;
    let outside = || candle_core::Error::Msg("a target lies outside the vocabulary".to_owned());
    Ok(losses.ok_or_else(outside)?)
}
