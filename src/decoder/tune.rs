//! Loss and gradients of shared deltas.
//!
//! Below the lowest site nothing changes while deltas are tuned, so each example is run up to there once
//! ([`Decoder::prepare`]). In the last layer only tokens that predict a target go on, and only they get logits.

use candle_core::Tensor;

use super::attention::Spans;
use super::batch::{Batch, Example, passes};
use super::deltas::SharedDeltas;
use super::head::Goal;
use super::layer::{AttentionTrace, FeedTrace, Pass, SiteGrads, select};
use super::rope::RopeTable;
use super::storage::{View, matrix};
use super::{Decoder, DecoderError, PASS_TOKENS, Projection, Site};

/// Bytes of traces kept unless told otherwise: 1 GiB.
pub(super) const TRACE_BYTES: usize = 1 << 30;

/// An example and its residual stream in front of the feed-forward part of the lowest tuned layer.
#[derive(Debug, Clone)]
pub struct Prepared {
    layer: usize,
    length: usize,
    /// Rows that predict a target, ascending, with the token and its weight.
    goals: Vec<(usize, u32, f32)>,
    /// `[length, hidden]`, or `[goals, hidden]` where the lowest tuned layer is the last.
    hidden: Vec<f32>,
}

impl Prepared {
    /// Tokens that run when the example is trained on.
    pub fn tokens(&self) -> usize {
        self.length
    }

    /// Tokens that are predicted.
    pub fn targets(&self) -> usize {
        self.goals.len()
    }
}

/// A loss and its gradient.
#[derive(Debug, Clone, PartialEq)]
pub struct Gradients {
    /// Mean cross-entropy over the targets of the batch, by weight; natural logarithm.
    pub loss: f64,
    /// d loss / d U for every site of the deltas.
    pub deltas: SharedDeltas,
}

/// A batch of prepared examples.
struct Step<'a> {
    layer: usize,
    hidden: Tensor,
    /// Every row; rows that predict a target.
    all: Spans,
    asking: Spans,
    goals: Vec<Goal>,
    ropes: Vec<RopeTable<'a>>,
}

/// What a layer keeps on the way forward.
struct Kept {
    /// The layer's input and what its attention half kept; nothing in the lowest layer.
    attention: Option<(Tensor, Option<AttentionTrace>)>,
    middle: Tensor,
    feed: Option<FeedTrace>,
}

impl Decoder<'_> {
    /// Runs examples up to the feed-forward part of `layer`, the lowest that will be tuned.
    ///
    /// Each result holds `length * hidden` f32. The order of examples is kept.
    ///
    /// # Errors
    /// A token outside the vocabulary, a sequence that is empty or too long, targets not in order or out of range.
    pub fn prepare(&self, examples: &[Example], layer: usize) -> Result<Vec<Prepared>, DecoderError> {
        if layer >= self.layers.len() {
            let (expected, found) = (format!("a layer below {}", self.layers.len()), layer.to_string());
            return Err(DecoderError::Deltas { site: Site::new(layer, Projection::Gate), expected, found });
        }
        let mut prepared = Vec::with_capacity(examples.len());
        for group in passes(examples, PASS_TOKENS, |example| example.tokens().len()) {
            prepared.extend(self.prepare_group(group, layer, prepared.len())?);
        }
        Ok(prepared)
    }

    fn prepare_group(&self, group: &[Example], layer: usize, first: usize) -> Result<Vec<Prepared>, DecoderError> {
        for (index, example) in group.iter().enumerate() {
            self.check_targets(example, first + index)?;
        }
        let batch = Batch::new(group.iter().map(Example::tokens))?;
        let all = super::all_rows(&batch);
        let ropes = self.rope_tables(&batch)?;
        let pass = Pass { ropes: &ropes, deltas: None };
        let mut x = self.embed(&batch)?;
        for below in self.layers.iter().take(layer) {
            let (middle, _) = below.attend(&x, &all, pass)?;
            (x, _) = below.feed(&middle, pass)?;
        }
        let lowest = self.layers.get(layer).map(|lowest| lowest.attend(&x, &all, pass)).transpose()?;
        let middle = lowest.map_or(x, |(middle, _)| middle);
        let last = layer + 1 == self.layers.len();
        batch.rows().zip(group).map(|(rows, example)| prepare_one(&middle, rows.start, example, layer, last)).collect()
    }

    fn check_targets(&self, example: &Example, sequence: usize) -> Result<(), DecoderError> {
        let wrong = |expected: String, found: String| DecoderError::Batch { sequence, expected, found };
        let mut next = 0;
        for target in example.targets() {
            if target.position < next || target.position >= example.tokens().len() {
                let expected = format!("targets at ascending positions below {}", example.tokens().len());
                return Err(wrong(expected, format!("position {}", target.position)));
            }
            if target.token as usize >= self.config.vocabulary {
                return Err(wrong(format!("tokens below {}", self.config.vocabulary), target.token.to_string()));
            }
            if !(target.weight.is_finite() && target.weight >= 0.0) {
                return Err(wrong("weights of 0 or more".to_owned(), target.weight.to_string()));
            }
            next = target.position + 1;
        }
        Ok(())
    }

    /// Mean cross-entropy over the targets of some prepared examples, by weight.
    ///
    /// # Errors
    /// No target, or a loss that is not finite.
    pub fn loss(&self, batch: &[&Prepared], deltas: &SharedDeltas) -> Result<f64, DecoderError> {
        let step = self.step(batch, deltas)?;
        let pass = Pass { ropes: &step.ropes, deltas: Some(deltas) };
        let (x, _) = self.forward(&step, pass, None)?;
        finite(self.head.loss(&x, &step.goals)?)
    }

    /// [`Self::loss`] and its gradient with respect to the shared deltas.
    ///
    /// # Errors
    /// No target, deltas below the layer that the examples were prepared for, or a loss that is not finite.
    pub fn loss_and_gradients(&self, batch: &[&Prepared], deltas: &SharedDeltas) -> Result<Gradients, DecoderError> {
        let step = self.step(batch, deltas)?;
        let pass = Pass { ropes: &step.ropes, deltas: Some(deltas) };
        let (x, kept) = self.forward(&step, pass, Some(self.trace_bytes))?;
        let (loss, grad) = self.head.loss_and_grad(&x, &step.goals)?;
        let mut gradients = Gradients { loss: finite(loss)?, deltas: deltas.zeros_like() };
        self.backward(&step, pass, grad, kept, &mut gradients.deltas)?;
        Ok(gradients)
    }

    fn step(&self, batch: &[&Prepared], deltas: &SharedDeltas) -> Result<Step<'_>, DecoderError> {
        let layer = batch.iter().map(|example| example.layer).max().unwrap_or(0);
        let differs = batch.iter().any(|example| example.layer != layer);
        if let Some((site, _)) = deltas.iter().next().filter(|(site, _)| site.layer < layer || differs) {
            let expected = "examples that were all prepared for the lowest layer of the deltas".to_owned();
            return Err(DecoderError::Deltas { site, expected, found: format!("layer {layer}") });
        }
        let total: f32 = batch.iter().flat_map(|example| &example.goals).map(|goal| goal.2).sum();
        if total <= 0.0 {
            let expected = "at least one target with a weight above 0".to_owned();
            return Err(DecoderError::Batch { sequence: 0, expected, found: "none".to_owned() });
        }
        let (mut hidden, mut goals, mut rows, mut sequences, mut start) = (vec![], vec![], vec![], vec![], 0);
        for example in batch {
            hidden.extend_from_slice(&example.hidden);
            rows.extend(example.goals.iter().map(|goal| start + goal.0));
            goals.extend(example.goals.iter().map(|goal| Goal { token: goal.1, share: goal.2 / total }));
            sequences.push(start..start + example.length);
            start += example.length;
        }
        let lengths: Vec<usize> = batch.iter().map(|example| example.length).collect();
        Ok(Step {
            layer,
            hidden: matrix(hidden, self.config.hidden)?,
            all: Spans::new(sequences.iter().cloned(), (0..start).collect()),
            asking: Spans::new(sequences.into_iter(), rows),
            goals,
            ropes: self.ropes(&lengths),
        })
    }

    /// The residual stream after the last layer at the rows that predict a target, and, within `budget` bytes, what
    /// the way back needs.
    fn forward(
        &self,
        step: &Step<'_>,
        pass: Pass<'_>,
        budget: Option<usize>,
    ) -> Result<(Tensor, Vec<Kept>), DecoderError> {
        let mut left = budget.unwrap_or(0);
        let mut kept = Vec::new();
        let mut x = step.hidden.clone();
        for (index, layer) in self.layers.iter().enumerate().skip(step.layer) {
            let mut attention = None;
            let mut middle = x.clone();
            if index > step.layer {
                let (attended, trace) = layer.attend(&x, self.spans(step, index), pass)?;
                attention = Some((x, afford(&mut left, trace.bytes(), trace)));
                middle = attended;
            }
            let (out, trace) = layer.feed(&middle, pass)?;
            x = out;
            if budget.is_some() {
                kept.push(Kept { attention, middle, feed: afford(&mut left, trace.bytes(), trace) });
            }
        }
        Ok((x, kept))
    }

    fn backward(
        &self,
        step: &Step<'_>,
        pass: Pass<'_>,
        mut grad: Tensor,
        mut kept: Vec<Kept>,
        into: &mut SharedDeltas,
    ) -> Result<(), DecoderError> {
        let Some(lowest) = into.lowest_layer() else { return Ok(()) };
        for (index, layer) in self.layers.iter().enumerate().skip(lowest).rev() {
            let Some(Kept { attention, middle, feed }) = kept.pop() else { return Ok(()) };
            let feed = feed.map_or_else(|| layer.trace_feed(&middle, pass), Ok)?;
            let (through, site_grads) = layer.feed_grad(&grad, &middle, &feed, pass, index > lowest)?;
            store(into, index, site_grads);
            let (Some(through), Some((x, trace))) = (through, attention) else { return Ok(()) };
            let spans = self.spans(step, index);
            let trace = trace.map_or_else(|| layer.trace_attention(&x, spans, pass), Ok)?;
            grad = layer.attend_grad(&through, &x, &trace, spans, pass)?;
        }
        Ok(())
    }

    /// Which rows go on from a layer's attention.
    fn spans<'a>(&self, step: &'a Step<'_>, layer: usize) -> &'a Spans {
        if layer + 1 == self.layers.len() { &step.asking } else { &step.all }
    }
}

fn prepare_one(
    middle: &Tensor,
    start: usize,
    example: &Example,
    layer: usize,
    last: bool,
) -> Result<Prepared, DecoderError> {
    let length = example.tokens().len();
    let mut hidden = middle.narrow(0, start, length)?;
    if last {
        let rows: Vec<usize> = example.targets().iter().map(|target| target.position).collect();
        hidden = select(&hidden, &rows)?;
    }
    let goals = example.targets().iter().map(|target| (target.position, target.token, target.weight)).collect();
    let hidden = View::of(&hidden)?.values()?.to_vec();
    Ok(Prepared { layer, length, goals, hidden })
}

/// Keeps a trace while there is room for it.
fn afford<T>(left: &mut usize, bytes: usize, trace: T) -> Option<T> {
    *left = left.checked_sub(bytes)?;
    Some(trace)
}

fn store(into: &mut SharedDeltas, layer: usize, grads: SiteGrads) {
    for (projection, grads) in grads {
        if let Some(deltas) = into.get_mut(Site { layer, projection }) {
            deltas.values_mut().copy_from_slice(&grads);
        }
    }
}

fn finite(loss: f64) -> Result<f64, DecoderError> {
    if loss.is_finite() { Ok(loss) } else { Err(DecoderError::Diverged { what: "the loss", value: loss }) }
}
