//! One layer, in two halves that both add to the residual stream: attention, then the gated feed-forward part.
//!
//! Each half has its gradient beside it, a mirror image read from the bottom up. Weights are frozen, so going back
//! needs only what a half's nonlinear steps read; a half's trace holds that, or is made again from the half's input.

use candle_core::{Result, Tensor};

use super::attention::{Attention, Inputs, Spans};
use super::config::Activation;
use super::deltas::{SharedDeltas, SiteDeltas};
use super::kernels;
use super::linear::FrozenLinear;
use super::rope::RopeTable;
use super::storage::{View, matrix, update};
use super::weights::Loader;
use super::{Config, DecoderError, Projection, Site};

/// Root mean square norm.
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
        matrix(kernels::rms_norm(x.values()?, &self.weight, self.epsilon), self.weight.len())
    }

    /// Adds to `into` the gradient with respect to `x`, given that with respect to the norm of it.
    pub(super) fn grad(&self, into: &Tensor, grad: &Tensor, x: &Tensor) -> Result<()> {
        let (grad, x) = (View::of(grad)?, View::of(x)?);
        let (grad, x) = (grad.values()?, x.values()?);
        update(into, |into| kernels::rms_norm_grad(into, grad, x, &self.weight, self.epsilon))
    }
}

/// What a pass through a layer needs besides its input.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pass<'a> {
    pub(super) rope: &'a RopeTable,
    pub(super) deltas: Option<&'a SharedDeltas>,
}

impl<'a> Pass<'a> {
    fn deltas(&self, layer: usize, projection: Projection) -> Option<&'a SiteDeltas> {
        self.deltas.and_then(|deltas| deltas.get(Site { layer, projection }))
    }
}

/// What the attention half keeps for its gradient.
#[derive(Debug)]
pub(super) struct AttentionTrace {
    inputs: Inputs,
}

/// What the feed-forward half keeps for its gradient: the linear outputs of its two sites.
#[derive(Debug)]
pub(super) struct FeedTrace {
    pub(super) gate: Tensor,
    pub(super) up: Tensor,
}

impl AttentionTrace {
    /// Bytes it holds.
    pub(super) fn bytes(&self) -> usize {
        [&self.inputs.queries, &self.inputs.keys, &self.inputs.values].map(bytes).iter().sum()
    }
}

impl FeedTrace {
    /// Bytes it holds.
    pub(super) fn bytes(&self) -> usize {
        bytes(&self.gate) + bytes(&self.up)
    }
}

fn bytes(tensor: &Tensor) -> usize {
    tensor.elem_count() * size_of::<f32>()
}

/// Gradients of a layer's shared deltas, gate and up.
pub(super) type SiteGrads = [Option<Vec<f32>>; 2];

/// A layer of the network, weights frozen.
#[derive(Debug)]
pub(super) struct Layer {
    index: usize,
    attention_norm: Norm,
    query: FrozenLinear,
    key: FrozenLinear,
    value: FrozenLinear,
    output: FrozenLinear,
    attention: Attention,
    feed_norm: Norm,
    gate: FrozenLinear,
    up: FrozenLinear,
    down: FrozenLinear,
    activation: Activation,
}

impl Layer {
    pub(super) fn load(config: &Config, index: usize, loader: &Loader<'_>) -> std::result::Result<Self, DecoderError> {
        let norm = |leaf: &str| -> std::result::Result<Norm, DecoderError> {
            let weight = loader.vector(config.names.layer(index, leaf)?, config.hidden)?;
            Ok(Norm::new(weight, config.norm_epsilon))
        };
        let linear = |leaf: &str, bias: bool, outputs, inputs| -> std::result::Result<FrozenLinear, DecoderError> {
            let weight = loader.matrix(config.names.layer(index, &format!("{leaf}.weight"))?, outputs, inputs)?;
            let name = config.names.layer(index, &format!("{leaf}.bias"))?;
            let bias = bias.then(|| loader.vector(name, outputs)).transpose()?;
            Ok(FrozenLinear::new(weight, bias)?)
        };
        let (hidden, width) = (config.hidden, config.feed_forward);
        let attend = |leaf, outputs, inputs| linear(leaf, config.attention_bias, outputs, inputs);
        let feed = |leaf, outputs, inputs| linear(leaf, config.mlp_bias, outputs, inputs);
        Ok(Self {
            index,
            attention_norm: norm("input_layernorm.weight")?,
            query: attend("self_attn.q_proj", config.query_width(), hidden)?,
            key: attend("self_attn.k_proj", config.kv_width(), hidden)?,
            value: attend("self_attn.v_proj", config.kv_width(), hidden)?,
            output: attend("self_attn.o_proj", hidden, config.query_width())?,
            attention: config.attention(),
            feed_norm: norm("post_attention_layernorm.weight")?,
            gate: feed("mlp.gate_proj", width, hidden)?,
            up: feed("mlp.up_proj", width, hidden)?,
            down: feed("mlp.down_proj", hidden, width)?,
            activation: config.activation,
        })
    }

    /// The attention half: `x + attention(norm(x))` at the rows that `spans` asks for.
    pub(super) fn attend(&self, x: &Tensor, spans: &Spans, pass: Pass<'_>) -> Result<(Tensor, AttentionTrace)> {
        let trace = self.trace_attention(x, spans)?;
        let attended = self.attention.forward(&trace.inputs, spans, pass.rope)?;
        let out = self.output.forward(&attended)?;
        let (x, width) = (View::of(x)?, out.dim(1)?);
        let x = x.values()?;
        update(&out, |out| kernels::add(out, &kernels::select_rows(x, spans.rows(), width)))?;
        Ok((out, trace))
    }

    /// What [`Self::attend_grad`] needs, from the half's input.
    pub(super) fn trace_attention(&self, x: &Tensor, spans: &Spans) -> Result<AttentionTrace> {
        let normed = self.attention_norm.forward(x)?;
        let asking = select(&normed, spans.rows())?;
        let (queries, keys, values) =
            (self.query.forward(&asking)?, self.key.forward(&normed)?, self.value.forward(&normed)?);
        Ok(AttentionTrace { inputs: Inputs { queries, keys, values } })
    }

    /// The gradient with respect to `x`, given that with respect to what [`Self::attend`] made of it.
    pub(super) fn attend_grad(
        &self,
        grad: &Tensor,
        x: &Tensor,
        trace: &AttentionTrace,
        spans: &Spans,
        pass: Pass<'_>,
    ) -> Result<Tensor> {
        let attended = self.output.input_grad(grad)?;
        let inputs = self.attention.grad(&attended, &trace.inputs, spans, pass.rope)?;
        let normed = self.key.input_grad(&inputs.keys)?;
        accumulate(&normed, &self.value.input_grad(&inputs.values)?)?;
        accumulate_rows(&normed, &self.query.input_grad(&inputs.queries)?, spans.rows())?;
        let into = x.zeros_like()?;
        accumulate_rows(&into, grad, spans.rows())?;
        self.attention_norm.grad(&into, &normed, x)?;
        Ok(into)
    }

    /// The feed-forward half: `x + down(silu(gate(norm(x))) * up(norm(x)))`.
    pub(super) fn feed(&self, x: &Tensor, pass: Pass<'_>) -> Result<(Tensor, FeedTrace)> {
        let trace = self.trace_feed(x, pass)?;
        Ok((self.finish_feed(x, &trace)?, trace))
    }

    /// What [`Self::feed`] makes of its input once the sites have been computed.
    pub(super) fn finish_feed(&self, x: &Tensor, trace: &FeedTrace) -> Result<Tensor> {
        let out = self.down.forward(&self.gated(trace)?)?;
        accumulate(&out, x)?;
        Ok(out)
    }

    /// The linear outputs of both sites, from the half's input.
    pub(super) fn trace_feed(&self, x: &Tensor, pass: Pass<'_>) -> Result<FeedTrace> {
        let normed = self.feed_norm.forward(x)?;
        Ok(FeedTrace {
            gate: self.gate.forward_shared(&normed, pass.deltas(self.index, Projection::Gate))?,
            up: self.up.forward_shared(&normed, pass.deltas(self.index, Projection::Up))?,
        })
    }

    /// The input of the down projection.
    pub(super) fn gated(&self, trace: &FeedTrace) -> Result<Tensor> {
        let (gate, up) = (View::of(&trace.gate)?, View::of(&trace.up)?);
        let gated = match self.activation {
            Activation::Silu => kernels::swiglu(gate.values()?, up.values()?),
        };
        matrix(gated, trace.gate.dim(1)?)
    }

    fn gated_grad(&self, grad: &Tensor, trace: &FeedTrace) -> Result<(Tensor, Tensor)> {
        let (grad, gate, up) = (View::of(grad)?, View::of(&trace.gate)?, View::of(&trace.up)?);
        let (d_gate, d_up) = match self.activation {
            Activation::Silu => kernels::swiglu_grad(grad.values()?, gate.values()?, up.values()?),
        };
        let width = trace.gate.dim(1)?;
        Ok((matrix(d_gate, width)?, matrix(d_up, width)?))
    }

    /// The gradient with respect to `x`, given that with respect to what [`Self::feed`] made of it, and the gradients
    /// of the layer's shared deltas. Nothing asks for the first in the lowest tuned layer: then `through` is false.
    pub(super) fn feed_grad(
        &self,
        grad: &Tensor,
        x: &Tensor,
        trace: &FeedTrace,
        pass: Pass<'_>,
        through: bool,
    ) -> Result<(Option<Tensor>, SiteGrads)> {
        let (gate, up) = self.gated_grad(&self.down.input_grad(grad)?, trace)?;
        let normed = through.then(|| self.sites_grad(&gate, &up)).transpose()?;
        let site_grads = self.delta_grads(&gate, &up, x, normed.as_ref(), pass)?;
        let Some(normed) = normed else { return Ok((None, site_grads)) };
        let into = grad.copy()?;
        self.feed_norm.grad(&into, &normed, x)?;
        Ok((Some(into), site_grads))
    }

    fn sites_grad(&self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        let normed = self.gate.input_grad(gate)?;
        accumulate(&normed, &self.up.input_grad(up)?)?;
        Ok(normed)
    }

    fn delta_grads(
        &self,
        gate: &Tensor,
        up: &Tensor,
        x: &Tensor,
        into: Option<&Tensor>,
        pass: Pass<'_>,
    ) -> Result<SiteGrads> {
        let deltas = Projection::ALL.map(|projection| pass.deltas(self.index, projection));
        if deltas.iter().all(Option::is_none) {
            return Ok([None, None]);
        }
        let normed = self.feed_norm.forward(x)?;
        let [gate_deltas, up_deltas] = deltas;
        Ok([
            gate_deltas.map(|deltas| deltas.grads(gate, &normed, into)).transpose()?,
            up_deltas.map(|deltas| deltas.grads(up, &normed, into)).transpose()?,
        ])
    }
}

/// The rows of a matrix that `rows` names; the matrix itself where that is all of them.
pub(super) fn select(x: &Tensor, rows: &[usize]) -> Result<Tensor> {
    let (count, width) = x.dims2()?;
    if rows.len() == count {
        return Ok(x.clone());
    }
    matrix(kernels::select_rows(View::of(x)?.values()?, rows, width), width)
}

fn accumulate(into: &Tensor, from: &Tensor) -> Result<()> {
    let from = View::of(from)?;
    let from = from.values()?;
    update(into, |into| kernels::add(into, from))
}

fn accumulate_rows(into: &Tensor, from: &Tensor, rows: &[usize]) -> Result<()> {
    let width = from.dim(1)?;
    let from = View::of(from)?;
    let from = from.values()?;
    update(into, |into| kernels::add_rows(into, from, rows, width))
}
