//! From the residual stream to logits and cross-entropy, only where a token is to be predicted.

use candle_core::{Result, Tensor};

use super::kernels;
use super::linear::FrozenLinear;
use super::norm::Norm;
use super::storage::{View, matrix, update};

/// Rows whose logits exist at one time: 256 x 128,000 f32 are 125 MiB.
const ROWS: usize = 256;

/// The final norm and the projection to the vocabulary.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) norm: Norm,
    pub(super) linear: FrozenLinear,
    /// Logits are squeezed into ± this.
    pub(super) softcap: Option<f32>,
}

/// A token to be predicted from a row of the residual stream, and its share in the loss.
#[derive(Debug, Clone, Copy)]
pub(super) struct Goal {
    pub(super) token: u32,
    pub(super) share: f32,
}

impl Head {
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

    /// The cross-entropy of row i against goal i, summed by share.
    pub(super) fn loss(&self, x: &Tensor, goals: &[Goal]) -> Result<f64> {
        let mut loss = 0.0;
        for (index, goals) in goals.chunks(ROWS).enumerate() {
            let logits = self.logits(&x.narrow(0, index * ROWS, goals.len())?)?;
            loss += cross_entropy(&logits, goals)?;
        }
        Ok(loss)
    }

    /// [`Self::loss`] and its gradient with respect to `x`.
    pub(super) fn loss_and_grad(&self, x: &Tensor, goals: &[Goal]) -> Result<(f64, Tensor)> {
        let normed = self.norm.forward(x)?;
        let width = x.dim(1)?;
        let (mut loss, mut normed_grad) = (0.0, Vec::with_capacity(x.elem_count()));
        for (index, goals) in goals.chunks(ROWS).enumerate() {
            let logits = self.logits_of(&normed.narrow(0, index * ROWS, goals.len())?)?;
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
    losses.map_or_else(|| candle_core::bail!("a target lies outside the vocabulary"), Ok)
}
