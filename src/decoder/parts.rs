//! A layer's parts, as a checkpoint holds them: one tensor each, or several in one.

use super::Config;
use super::error::Result;
use super::linear::FrozenLinear;
use super::norm::Norm;
use super::weights::Loader;

/// Where a layer's parts lie in a checkpoint.
pub(super) struct Parts<'a, 'w> {
    pub(super) config: &'a Config,
    pub(super) index: usize,
    pub(super) loader: &'a Loader<'w>,
}

impl<'w> Parts<'_, 'w> {
    pub(super) fn norm(&self, leaf: &str, width: usize) -> Result<Norm> {
        let name = self.config.names.layer(self.index, &format!("{leaf}.weight"))?;
        self.loader.norm(name, width, self.config.norms)
    }

    pub(super) fn query_key_value(&self) -> Result<[FrozenLinear<'w>; 3]> {
        let shape = &self.config.attention;
        let (queries, keys) = (shape.query_width(), shape.kv_width());
        if self.config.names.is_fused() {
            return self.slices("self_attn.qkv_proj", [queries, keys, keys]);
        }
        let linear = |leaf, outputs| self.linear(leaf, shape.bias, outputs, self.config.hidden);
        Ok([linear("self_attn.q_proj", queries)?, linear("self_attn.k_proj", keys)?, linear("self_attn.v_proj", keys)?])
    }

    pub(super) fn gate_up(&self) -> Result<[FrozenLinear<'w>; 2]> {
        let (width, bias) = (self.config.feed_forward, self.config.mlp_bias);
        if self.config.names.is_fused() {
            return self.slices("mlp.gate_up_proj", [width, width]);
        }
        let linear = |leaf| self.linear(leaf, bias, width, self.config.hidden);
        Ok([linear("mlp.gate_proj")?, linear("mlp.up_proj")?])
    }

    pub(super) fn linear(&self, leaf: &str, bias: bool, outputs: usize, inputs: usize) -> Result<FrozenLinear<'w>> {
        let weight =
            self.loader.matrix(self.config.names.layer(self.index, &format!("{leaf}.weight"))?, outputs, inputs)?;
        let name = self.config.names.layer(self.index, &format!("{leaf}.bias"))?;
        let bias = bias.then(|| self.loader.vector(name, outputs)).transpose()?;
        Ok(FrozenLinear::new(weight, bias))
    }

    /// Projections that are one tensor, one below the other. No family has biases here.
    fn slices<const N: usize>(&self, leaf: &str, outputs: [usize; N]) -> Result<[FrozenLinear<'w>; N]> {
        let name = self.config.names.layer(self.index, &format!("{leaf}.weight"))?;
        let weight = self.loader.matrix(name, outputs.iter().sum(), self.config.hidden)?;
        let mut linears = Vec::with_capacity(N);
        let mut first = 0;
        for outputs in outputs {
            linears.push(FrozenLinear::new(weight.slice(first, outputs)?, None));
            first += outputs;
        }
        let wrong = |linears: Vec<FrozenLinear<'_>>| format!("{} slices of {leaf}", linears.len());
        linears.try_into().map_err(|linears| candle_core::Error::Msg(wrong(linears)).into())
    }
}
