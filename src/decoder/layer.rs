//! One layer, in two halves that both add to the residual stream: attention, then the gated feed-forward part. A half
//! normalises what it reads and, in some families, what it adds.
//!
//! Each half has its gradient beside it, a mirror image read from the bottom up. Weights are frozen, so going back
//! needs only what a half's nonlinear steps read; a half's trace holds that, or is made again from the half's input.

use candle_core::Tensor;

use super::attention::{Attention, Inputs, Spans};
use super::batch::Batch;
use super::cache::{Past, remember};
use super::config::Activation;
use super::deltas::{Part, SharedDeltas, SiteDeltas};
use super::error::Result;
use super::kernels;
use super::linear::FrozenLinear;
use super::norm::Norm;
use super::parts::Parts;
use super::rope::RopeTable;
use super::storage::{View, matrix, update};
use super::weights::Loader;
use super::{Config, Projection, Site};

/// What a pass through a layer needs besides its input.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pass<'a> {
    /// One for each of the network's rotary positions.
    pub(super) ropes: &'a [RopeTable<'a>],
    pub(super) deltas: Option<&'a SharedDeltas>,
}

impl<'a> Pass<'a> {
    /// The deltas that a half of a layer's feed-forward part takes.
    fn half(&self, layer: usize, projection: Projection, width: usize) -> Option<(&'a SiteDeltas, Part<'a>)> {
        self.deltas.and_then(|deltas| deltas.half(Site { layer, projection }, width))
    }
}

/// What the attention half keeps for its gradient.
#[derive(Debug)]
pub(super) struct AttentionTrace {
    inputs: Inputs,
    /// What the half adds before it is normalised, where that is done.
    out: Option<Tensor>,
}

/// What the feed-forward half keeps for its gradient: the linear outputs of its two sites.
#[derive(Debug)]
pub(super) struct FeedTrace {
    pub(super) gate: Tensor,
    pub(super) up: Tensor,
    /// What the half adds before it is normalised, where that is done.
    out: Option<Tensor>,
}

impl AttentionTrace {
    /// Bytes it holds.
    pub(super) fn bytes(&self) -> usize {
        let inputs = [&self.inputs.queries, &self.inputs.keys, &self.inputs.values];
        inputs.into_iter().chain(&self.out).map(bytes).sum()
    }
}

impl FeedTrace {
    /// Bytes it holds.
    pub(super) fn bytes(&self) -> usize {
        [&self.gate, &self.up].into_iter().chain(&self.out).map(bytes).sum()
    }
}

fn bytes(tensor: &Tensor) -> usize {
    tensor.elem_count() * size_of::<f32>()
}

/// Gradients of a layer's shared deltas, site by site.
pub(super) type SiteGrads = Vec<(Projection, Vec<f32>)>;

/// A layer of the network, weights frozen.
#[derive(Debug)]
pub(super) struct Layer<'w> {
    index: usize,
    attention_norm: Norm,
    query: FrozenLinear<'w>,
    key: FrozenLinear<'w>,
    value: FrozenLinear<'w>,
    output: FrozenLinear<'w>,
    attention: Attention,
    rope: usize,
    attention_out_norm: Option<Norm>,
    feed_norm: Norm,
    gate: FrozenLinear<'w>,
    up: FrozenLinear<'w>,
    down: FrozenLinear<'w>,
    feed_out_norm: Option<Norm>,
    activation: Activation,
}

impl<'w> Layer<'w> {
    pub(super) fn load(config: &Config, index: usize, loader: &Loader<'w>) -> Result<Self> {
        let parts = Parts { config, index, loader };
        let kind = config.layers.get(index).copied().unwrap_or_default();
        let (shape, after) = (config.attention, config.norms.after);
        let [query, key, value] = parts.query_key_value()?;
        let [gate, up] = parts.gate_up()?;
        let head_norm = |leaf| parts.norm(leaf, shape.head_dim);
        let head_norms =
            || Ok::<_, super::DecoderError>([head_norm("self_attn.q_norm")?, head_norm("self_attn.k_norm")?]);
        let norm = |leaf| parts.norm(leaf, config.hidden);
        // Families with norms after each half call the second half's first norm differently.
        let feed_norm = if after { "pre_feedforward_layernorm" } else { "post_attention_layernorm" };
        Ok(Self {
            index,
            attention_norm: norm("input_layernorm")?,
            query,
            key,
            value,
            output: parts.linear("self_attn.o_proj", shape.output_bias, config.hidden, shape.query_width())?,
            attention: Attention {
                shape,
                window: kind.window,
                head_norms: shape.head_norms.then(head_norms).transpose()?,
            },
            rope: kind.rope,
            attention_out_norm: after.then(|| norm("post_attention_layernorm")).transpose()?,
            feed_norm: norm(feed_norm)?,
            gate,
            up,
            down: parts.linear("mlp.down_proj", config.mlp_bias, config.hidden, config.feed_forward)?,
            feed_out_norm: after.then(|| norm("post_feedforward_layernorm")).transpose()?,
            activation: config.activation,
        })
    }

    /// The attention half: `x + attention(norm(x))` at the rows that `spans` asks for.
    pub(super) fn attend(&self, x: &Tensor, spans: &Spans, pass: Pass<'_>) -> Result<(Tensor, AttentionTrace)> {
        let inputs = self.attention_inputs(x, spans)?;
        let attended = self.attended(&inputs, spans, pass)?;
        let (out, added) = normed(self.attention_out_norm.as_ref(), attended)?;
        let (x, width) = (View::of(x)?, added.dim(1)?);
        let x = x.values()?;
        update(&added, |added| kernels::add(added, &kernels::select_rows(x, spans.rows(), width)))?;
        Ok((added, AttentionTrace { inputs, out }))
    }

    /// [`Self::attend`] for the tokens that some sequences have grown by.
    pub(super) fn attend_cached(
        &self,
        x: &Tensor,
        (past, more): (&mut [Past], &Batch),
        spans: &Spans,
        pass: Pass<'_>,
    ) -> Result<Tensor> {
        let read = self.attention_norm.forward(x)?;
        let [keys, values] = remember(past, more, &self.key.forward(&read)?, &self.value.forward(&read)?)?;
        let inputs = Inputs { queries: self.query.forward(&read)?, keys, values };
        let (_, added) = normed(self.attention_out_norm.as_ref(), self.attended(&inputs, spans, pass)?)?;
        accumulate(&added, x)?;
        Ok(added)
    }

    fn attended(&self, inputs: &Inputs, spans: &Spans, pass: Pass<'_>) -> Result<Tensor> {
        self.output.forward(&self.attention.forward(inputs, spans, self.rope(pass)?)?)
    }

    fn attention_inputs(&self, x: &Tensor, spans: &Spans) -> Result<Inputs> {
        let normed = self.attention_norm.forward(x)?;
        let asking = select(&normed, spans.rows())?;
        let (queries, keys, values) =
            (self.query.forward(&asking)?, self.key.forward(&normed)?, self.value.forward(&normed)?);
        Ok(Inputs { queries, keys, values })
    }

    fn rope<'a>(&self, pass: Pass<'a>) -> Result<&'a RopeTable<'a>> {
        let absent = || candle_core::Error::Msg(format!("layer {} has no rotary positions", self.index));
        Ok(pass.ropes.get(self.rope).ok_or_else(absent)?)
    }

    /// What [`Self::attend_grad`] needs, from the half's input.
    pub(super) fn trace_attention(&self, x: &Tensor, spans: &Spans, pass: Pass<'_>) -> Result<AttentionTrace> {
        let inputs = self.attention_inputs(x, spans)?;
        let out = self.attention_out_norm.as_ref().map(|_| self.attended(&inputs, spans, pass)).transpose()?;
        Ok(AttentionTrace { inputs, out })
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
        let out_grad = normed_grad(self.attention_out_norm.as_ref(), grad, trace.out.as_ref())?;
        let attended = self.output.input_grad(&out_grad)?;
        let inputs = self.attention.grad(&attended, &trace.inputs, spans, self.rope(pass)?)?;
        let normed = self.key.input_grad(&inputs.keys)?;
        accumulate(&normed, &self.value.input_grad(&inputs.values)?)?;
        accumulate_rows(&normed, &self.query.input_grad(&inputs.queries)?, spans.rows())?;
        let into = x.zeros_like()?;
        accumulate_rows(&into, grad, spans.rows())?;
        self.attention_norm.grad(&into, &normed, x)?;
        Ok(into)
    }

    /// The feed-forward half: `x + down(f(gate(norm(x))) * up(norm(x)))`.
    pub(super) fn feed(&self, x: &Tensor, pass: Pass<'_>) -> Result<(Tensor, FeedTrace)> {
        let mut trace = self.trace_sites(x, pass)?;
        Ok((self.finish_feed(x, &mut trace)?, trace))
    }

    /// What [`Self::feed`] makes of its input once the sites have been computed.
    pub(super) fn finish_feed(&self, x: &Tensor, trace: &mut FeedTrace) -> Result<Tensor> {
        let (out, added) = normed(self.feed_out_norm.as_ref(), self.down.forward(&self.gated(trace)?)?)?;
        trace.out = out;
        accumulate(&added, x)?;
        Ok(added)
    }

    /// The linear outputs of both sites, from the half's input.
    pub(super) fn trace_sites(&self, x: &Tensor, pass: Pass<'_>) -> Result<FeedTrace> {
        let normed = self.feed_norm.forward(x)?;
        Ok(FeedTrace {
            gate: self.gate.forward_shared(&normed, pass.half(self.index, Projection::Gate, self.gate.outputs()))?,
            up: self.up.forward_shared(&normed, pass.half(self.index, Projection::Up, self.up.outputs()))?,
            out: None,
        })
    }

    /// What [`Self::feed_grad`] needs, from the half's input.
    pub(super) fn trace_feed(&self, x: &Tensor, pass: Pass<'_>) -> Result<FeedTrace> {
        let trace = self.trace_sites(x, pass)?;
        let out = self.feed_out_norm.as_ref().map(|_| self.down.forward(&self.gated(&trace)?)).transpose()?;
        Ok(FeedTrace { out, ..trace })
    }

    /// The input of the down projection.
    pub(super) fn gated(&self, trace: &FeedTrace) -> Result<Tensor> {
        let (gate, up) = (View::of(&trace.gate)?, View::of(&trace.up)?);
        let gated = match self.activation {
            Activation::Silu => kernels::gated(gate.values()?, up.values()?, kernels::silu),
            Activation::GeluTanh => kernels::gated(gate.values()?, up.values()?, kernels::gelu_tanh),
        };
        Ok(matrix(gated, trace.gate.dim(1)?)?)
    }

    fn gated_grad(&self, grad: &Tensor, trace: &FeedTrace) -> Result<(Tensor, Tensor)> {
        let (grad, gate, up) = (View::of(grad)?, View::of(&trace.gate)?, View::of(&trace.up)?);
        let (grad, gate, up) = (grad.values()?, gate.values()?, up.values()?);
        let (d_gate, d_up) = match self.activation {
            Activation::Silu => kernels::gated_grad(grad, gate, up, kernels::silu),
            Activation::GeluTanh => kernels::gated_grad(grad, gate, up, kernels::gelu_tanh),
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
        let out_grad = normed_grad(self.feed_out_norm.as_ref(), grad, trace.out.as_ref())?;
        let (gate, up) = self.gated_grad(&self.down.input_grad(&out_grad)?, trace)?;
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
        let sites = [Projection::Gate, Projection::Up, Projection::GateUp].map(|projection| {
            let deltas = pass.deltas.and_then(|deltas| deltas.get(Site::new(self.index, projection)));
            deltas.map(|deltas| (projection, deltas))
        });
        if sites.iter().all(Option::is_none) {
            return Ok(Vec::new());
        }
        let normed = self.feed_norm.forward(x)?;
        let grads = sites.into_iter().flatten().map(|(projection, deltas)| {
            Ok((projection, deltas.grads(&deltas.sums(projection, gate, up)?, &normed, into)?))
        });
        grads.collect()
    }
}

/// What a half adds: before its norm, if it has one, and after.
fn normed(norm: Option<&Norm>, out: Tensor) -> Result<(Option<Tensor>, Tensor)> {
    match norm {
        Some(norm) => {
            let added = norm.forward(&out)?;
            Ok((Some(out), added))
        }
        None => Ok((None, out)),
    }
}

/// The gradient with respect to what a half computes, given that with respect to what it adds.
fn normed_grad(norm: Option<&Norm>, grad: &Tensor, out: Option<&Tensor>) -> Result<Tensor> {
    match (norm, out) {
        (Some(norm), Some(out)) => {
            let into = out.zeros_like()?;
            norm.grad(&into, grad, out)?;
            Ok(into)
        }
        _ => Ok(grad.clone()),
    }
}

/// The rows of a matrix that `rows` names; the matrix itself where that is all of them.
pub(super) fn select(x: &Tensor, rows: &[usize]) -> Result<Tensor> {
    let (count, width) = x.dims2()?;
    if rows.len() == count {
        return Ok(x.clone());
    }
    Ok(matrix(kernels::select_rows(View::of(x)?.values()?, rows, width), width)?)
}

fn accumulate(into: &Tensor, from: &Tensor) -> Result<()> {
    let from = View::of(from)?;
    let from = from.values()?;
    Ok(update(into, |into| kernels::add(into, from))?)
}

fn accumulate_rows(into: &Tensor, from: &Tensor, rows: &[usize]) -> Result<()> {
    let width = from.dim(1)?;
    let from = View::of(from)?;
    let from = from.values()?;
    Ok(update(into, |into| kernels::add_rows(into, from, rows, width))?)
}
