//! Causal grouped-query attention over packed sequences, with rotary positions, and its gradient.
//!
//! Each sequence and key head is one small task; probabilities are computed again for the gradient, so a pass keeps
//! nothing but its queries, keys and values as the projections left them.

use std::ops::Range;

use candle_core::Tensor;
use rayon::prelude::*;

use super::config::AttentionShape;
use super::error::Result;
use super::kernels;
use super::norm::Norm;
use super::product::{Mat, product};
use super::rope::RopeTable;
use super::storage::{View, matrix};

/// Which rows of a packed batch ask, and which they may look at.
#[derive(Debug, Clone)]
pub(super) struct Spans {
    spans: Vec<Span>,
    /// The row of the batch that each query is.
    rows: Vec<usize>,
}

#[derive(Debug, Clone)]
struct Span {
    keys: Range<usize>,
    queries: Range<usize>,
}

impl Spans {
    /// The queries at `rows`, ascending, of sequences that lie at `sequences`.
    pub(super) fn new(sequences: impl Iterator<Item = Range<usize>>, rows: Vec<usize>) -> Self {
        let mut from = 0;
        let spans = sequences.map(|keys| {
            let count = rows.iter().skip(from).take_while(|row| **row < keys.end).count();
            let queries = from..from + count;
            from = queries.end;
            Span { keys, queries }
        });
        Self { spans: spans.filter(|span| !span.queries.is_empty()).collect(), rows }
    }

    pub(super) fn rows(&self) -> &[usize] {
        &self.rows
    }
}

impl Span {
    /// Positions of the queries in their sequence.
    fn positions<'a>(&self, rows: &'a [usize]) -> impl Iterator<Item = usize> + Clone + use<'a> {
        let first = self.keys.start;
        rows.get(self.queries.clone()).unwrap_or_default().iter().map(move |row| row.saturating_sub(first))
    }
}

/// Attention without its projections.
#[derive(Debug)]
pub(super) struct Attention {
    pub(super) shape: AttentionShape,
    /// A token sees itself and so many before it less one.
    pub(super) window: Option<usize>,
    /// Norms of every query head and every key head.
    pub(super) head_norms: Option<[Norm; 2]>,
}

/// What attention reads: queries `[m, heads * head_dim]`, keys and values `[n, kv_heads * head_dim]`, neither normalised
/// nor turned.
#[derive(Debug, Clone)]
pub(super) struct Inputs {
    pub(super) queries: Tensor,
    pub(super) keys: Tensor,
    pub(super) values: Tensor,
}

/// One sequence and key head, gathered, normalised and turned: query heads one behind the other, times the scale.
struct Task {
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    head_dim: usize,
}

impl Task {
    fn queries(&self) -> Mat<'_> {
        Mat::new(&self.queries, self.head_dim)
    }

    fn keys(&self) -> Mat<'_> {
        Mat::new(&self.keys, self.head_dim)
    }

    fn values(&self) -> Mat<'_> {
        Mat::new(&self.values, self.head_dim)
    }
}

impl Attention {
    /// `softmax(q k^T * scale) v` for every query, `[m, heads * head_dim]`.
    pub(super) fn forward(&self, inputs: &Inputs, spans: &Spans, rope: &RopeTable<'_>) -> Result<Tensor> {
        let views = Views::of(inputs)?;
        let tasks: Result<Vec<Vec<f32>>> = self
            .tasks(spans)
            .map(|(span, head)| {
                let task = self.gather(&views, span, head, spans, rope)?;
                let (probabilities, _) = self.probabilities(&task, span, spans)?;
                product(Mat::new(&probabilities, span.keys.len()), task.values())
            })
            .collect();
        let width = self.shape.query_width();
        let mut out = vec![0.0; spans.rows.len() * width];
        for ((span, head), attended) in self.list(spans).into_iter().zip(tasks?) {
            self.scatter_queries(&mut out, &attended, span, head);
        }
        Ok(matrix(out, width)?)
    }

    /// The gradient with respect to queries, keys and values, given that with respect to the output.
    pub(super) fn grad(&self, grad: &Tensor, inputs: &Inputs, spans: &Spans, rope: &RopeTable<'_>) -> Result<Inputs> {
        let views = Views::of(inputs)?;
        let grad_view = View::of(grad)?;
        let grad = grad_view.values()?;
        let tasks: Result<Vec<[Vec<f32>; 3]>> =
            self.tasks(spans).map(|(span, head)| self.task_grad(grad, &views, span, head, spans, rope)).collect();
        let (width, kv_width, head_dim) = (self.shape.query_width(), self.shape.kv_width(), self.shape.head_dim);
        let mut queries = vec![0.0; spans.rows.len() * width];
        let (mut keys, mut values) = (vec![0.0; views.keys()?.len()], vec![0.0; views.keys()?.len()]);
        for ((span, head), [d_queries, d_keys, d_values]) in self.list(spans).into_iter().zip(tasks?) {
            self.scatter_queries(&mut queries, &d_queries, span, head);
            scatter(&mut keys, &d_keys, span.keys.clone(), kv_width, head * head_dim, head_dim);
            scatter(&mut values, &d_values, span.keys.clone(), kv_width, head * head_dim, head_dim);
        }
        Ok(Inputs {
            queries: matrix(queries, width)?,
            keys: matrix(keys, kv_width)?,
            values: matrix(values, kv_width)?,
        })
    }

    fn task_grad(
        &self,
        grad: &[f32],
        views: &Views<'_>,
        span: &Span,
        head: usize,
        spans: &Spans,
        rope: &RopeTable<'_>,
    ) -> Result<[Vec<f32>; 3]> {
        let task = self.gather(views, span, head, spans, rope)?;
        let (probabilities, capped) = self.probabilities(&task, span, spans)?;
        let (grad, keys) = (self.gather_queries(grad, span, head), span.keys.len());
        let grad = Mat::new(&grad, self.shape.head_dim);
        let d_values = product(Mat::new(&probabilities, keys).t(), grad)?;
        let mut d_scores = product(grad, task.values().t())?;
        self.scores_grad(&mut d_scores, &probabilities, capped.as_deref(), keys);
        let d_scores = Mat::new(&d_scores, keys);
        let (mut d_queries, mut d_keys) = (product(d_scores, task.keys())?, product(d_scores.t(), task.queries())?);
        let (length, head_dim) = (span.keys.len(), self.shape.head_dim);
        kernels::scale(&mut d_queries, self.shape.scale);
        let positions = span.positions(&spans.rows).cycle_over(self.group());
        d_queries.chunks_exact_mut(head_dim).zip(positions).for_each(|(head, at)| rope.rotate_back(head, at, length));
        d_keys.chunks_exact_mut(head_dim).enumerate().for_each(|(at, head)| rope.rotate_back(head, at, length));
        if let Some([query_norm, key_norm]) = &self.head_norms {
            let (queries, keys) =
                (self.gather_queries(views.queries()?, span, head), self.gather_keys(views, span, head)?);
            d_queries = through(query_norm, &d_queries, &queries);
            d_keys = through(key_norm, &d_keys, &keys);
        }
        Ok([d_queries, d_keys, d_values])
    }

    /// The gradient with respect to the scores, over that with respect to the probabilities.
    fn scores_grad(&self, grad: &mut [f32], probabilities: &[f32], capped: Option<&[f32]>, keys: usize) {
        let rows = grad.chunks_exact_mut(keys).zip(probabilities.chunks_exact(keys));
        rows.for_each(|(grad, row)| kernels::softmax_grad(grad, row));
        if let (Some(capped), Some(cap)) = (capped, self.shape.softcap) {
            kernels::soft_cap_grad(grad, capped, cap);
        }
    }

    /// Query heads to a key head.
    fn group(&self) -> usize {
        self.shape.heads / self.shape.kv_heads
    }

    fn list<'a>(&self, spans: &'a Spans) -> Vec<(&'a Span, usize)> {
        spans.spans.iter().flat_map(|span| (0..self.shape.kv_heads).map(move |head| (span, head))).collect()
    }

    fn tasks<'a>(&self, spans: &'a Spans) -> impl IndexedParallelIterator<Item = (&'a Span, usize)> {
        self.list(spans).into_par_iter()
    }

    fn gather(&self, views: &Views<'_>, span: &Span, head: usize, spans: &Spans, rope: &RopeTable<'_>) -> Result<Task> {
        let (length, head_dim) = (span.keys.len(), self.shape.head_dim);
        let mut queries = self.gather_queries(views.queries()?, span, head);
        let mut keys = self.gather_keys(views, span, head)?;
        if let Some([query_norm, key_norm]) = &self.head_norms {
            (queries, keys) = (query_norm.rows(&queries), key_norm.rows(&keys));
        }
        let positions = span.positions(&spans.rows).cycle_over(self.group());
        queries.chunks_exact_mut(head_dim).zip(positions).for_each(|(head, at)| rope.rotate(head, at, length));
        keys.chunks_exact_mut(head_dim).enumerate().for_each(|(at, head)| rope.rotate(head, at, length));
        kernels::scale(&mut queries, self.shape.scale);
        let values = gather(views.values()?, span.keys.clone(), self.shape.kv_width(), head * head_dim, head_dim);
        Ok(Task { queries, keys, values, head_dim })
    }

    /// Attention probabilities, and the scores after their soft cap if there is one.
    fn probabilities(&self, task: &Task, span: &Span, spans: &Spans) -> Result<(Vec<f32>, Option<Vec<f32>>)> {
        let mut scores = product(task.queries(), task.keys().t())?;
        let capped = self.shape.softcap.map(|cap| {
            kernels::soft_cap(&mut scores, cap);
            scores.clone()
        });
        let positions = span.positions(&spans.rows).cycle_over(self.group());
        let rows = scores.chunks_exact_mut(span.keys.len()).zip(positions);
        rows.for_each(|(row, position)| kernels::masked_softmax(row, self.seen(position)));
        Ok((scores, capped))
    }

    /// The positions that a token at `position` looks at.
    fn seen(&self, position: usize) -> Range<usize> {
        let end = position + 1;
        self.window.map_or(0, |window| end.saturating_sub(window))..end
    }

    fn gather_keys(&self, views: &Views<'_>, span: &Span, head: usize) -> Result<Vec<f32>> {
        let head_dim = self.shape.head_dim;
        Ok(gather(views.keys()?, span.keys.clone(), self.shape.kv_width(), head * head_dim, head_dim))
    }

    /// The heads that share a key head, `[group, queries, head_dim]`.
    fn gather_queries(&self, from: &[f32], span: &Span, head: usize) -> Vec<f32> {
        let (width, group, head_dim) = (self.shape.query_width(), self.group(), self.shape.head_dim);
        let columns = (0..group).map(|member| (head * group + member) * head_dim);
        columns.flat_map(|column| gather(from, span.queries.clone(), width, column, head_dim)).collect()
    }

    fn scatter_queries(&self, into: &mut [f32], from: &[f32], span: &Span, head: usize) {
        let (width, group, head_dim) = (self.shape.query_width(), self.group(), self.shape.head_dim);
        for (member, from) in from.chunks_exact(span.queries.len() * head_dim).enumerate() {
            scatter(into, from, span.queries.clone(), width, (head * group + member) * head_dim, head_dim);
        }
    }
}

/// The gradient with respect to `x` where `grad` is that with respect to its norm.
fn through(norm: &Norm, grad: &[f32], x: &[f32]) -> Vec<f32> {
    let mut into = vec![0.0; x.len()];
    norm.rows_grad(&mut into, grad, x);
    into
}

/// Repeats an iterator's items a number of times.
trait CycleOver: Iterator + Clone + Sized {
    fn cycle_over(self, times: usize) -> impl Iterator<Item = Self::Item> {
        std::iter::repeat_n(self, times).flatten()
    }
}

impl<I: Iterator + Clone> CycleOver for I {}

/// `count` columns from `column` on of some rows of a matrix of `width`.
fn gather(from: &[f32], rows: Range<usize>, width: usize, column: usize, count: usize) -> Vec<f32> {
    let rows = from.get(rows.start * width..rows.end * width).unwrap_or_default().chunks_exact(width);
    let mut into = Vec::with_capacity(rows.len() * count);
    rows.for_each(|row| into.extend_from_slice(row.get(column..column + count).unwrap_or_default()));
    into
}

fn scatter(into: &mut [f32], from: &[f32], rows: Range<usize>, width: usize, column: usize, count: usize) {
    let rows = into.get_mut(rows.start * width..rows.end * width).unwrap_or_default().chunks_exact_mut(width);
    for (row, from) in rows.zip(from.chunks_exact(count)) {
        if let Some(into) = row.get_mut(column..column + count) {
            into.copy_from_slice(from);
        }
    }
}

struct Views<'a> {
    queries: View<'a>,
    keys: View<'a>,
    values: View<'a>,
}

impl<'a> Views<'a> {
    fn of(inputs: &'a Inputs) -> Result<Self> {
        Ok(Self {
            queries: View::of(&inputs.queries)?,
            keys: View::of(&inputs.keys)?,
            values: View::of(&inputs.values)?,
        })
    }

    fn queries(&self) -> Result<&[f32]> {
        Ok(self.queries.values()?)
    }

    fn keys(&self) -> Result<&[f32]> {
        Ok(self.keys.values()?)
    }

    fn values(&self) -> Result<&[f32]> {
        Ok(self.values.values()?)
    }
}
