//! Causal grouped-query attention over packed sequences, with rotary positions, and its gradient.
//!
//! Each sequence and key head is one small task; probabilities are computed again for the gradient, so a pass keeps
//! nothing but its queries, keys and values.

use std::ops::Range;

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::kernels;
use super::rope::RopeTable;
use super::storage::{View, matrix, update};

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

/// The shape of an attention part.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attention {
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) scale: f32,
}

/// What attention reads: queries `[m, heads * head_dim]`, keys and values `[n, kv_heads * head_dim]`, not yet turned.
#[derive(Debug, Clone)]
pub(super) struct Inputs {
    pub(super) queries: Tensor,
    pub(super) keys: Tensor,
    pub(super) values: Tensor,
}

/// One sequence and key head, gathered and turned: query heads one behind the other.
struct Task {
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
}

impl Attention {
    /// `softmax(q k^T * scale) v` for every query, `[m, heads * head_dim]`.
    pub(super) fn forward(&self, inputs: &Inputs, spans: &Spans, rope: &RopeTable) -> Result<Tensor> {
        let views = Views::of(inputs)?;
        let tasks: Result<Vec<Vec<f32>>> = self
            .tasks(spans)
            .map(|(span, head)| {
                let task = self.gather(&views, span, head, spans, rope)?;
                let attended = self.probabilities(&task, span, spans)?.matmul(&task.values)?;
                attended.flatten_all()?.to_vec1()
            })
            .collect();
        let mut out = vec![0.0; spans.rows.len() * self.heads * self.head_dim];
        for ((span, head), attended) in self.list(spans).into_iter().zip(tasks?) {
            self.scatter_queries(&mut out, &attended, span, head);
        }
        matrix(out, self.heads * self.head_dim)
    }

    /// The gradient with respect to queries, keys and values, given that with respect to the output.
    pub(super) fn grad(&self, grad: &Tensor, inputs: &Inputs, spans: &Spans, rope: &RopeTable) -> Result<Inputs> {
        let views = Views::of(inputs)?;
        let grad_view = View::of(grad)?;
        let grad = grad_view.values()?;
        let tasks: Result<Vec<[Vec<f32>; 3]>> =
            self.tasks(spans).map(|(span, head)| self.task_grad(grad, &views, span, head, spans, rope)).collect();
        let kv_width = self.kv_heads * self.head_dim;
        let mut queries = vec![0.0; spans.rows.len() * self.heads * self.head_dim];
        let (mut keys, mut values) = (vec![0.0; views.keys()?.len()], vec![0.0; views.keys()?.len()]);
        for ((span, head), [d_queries, d_keys, d_values]) in self.list(spans).into_iter().zip(tasks?) {
            self.scatter_queries(&mut queries, &d_queries, span, head);
            scatter(&mut keys, &d_keys, span.keys.clone(), kv_width, head * self.head_dim, self.head_dim);
            scatter(&mut values, &d_values, span.keys.clone(), kv_width, head * self.head_dim, self.head_dim);
        }
        Ok(Inputs {
            queries: matrix(queries, self.heads * self.head_dim)?,
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
        rope: &RopeTable,
    ) -> Result<[Vec<f32>; 3]> {
        let task = self.gather(views, span, head, spans, rope)?;
        let probabilities = self.probabilities(&task, span, spans)?;
        let grad = matrix(self.gather_queries(grad, span, head), self.head_dim)?;
        let d_values = probabilities.t()?.matmul(&grad)?;
        let d_scores = grad.matmul(&task.values.t()?)?;
        let width = span.keys.len();
        {
            let probabilities = View::of(&probabilities)?;
            let probabilities = probabilities.values()?;
            update(&d_scores, |grad| {
                let rows = grad.chunks_exact_mut(width).zip(probabilities.chunks_exact(width));
                rows.for_each(|(grad, row)| kernels::softmax_grad(grad, row, self.scale));
            })?;
        }
        let mut d_queries: Vec<f32> = d_scores.matmul(&task.keys)?.flatten_all()?.to_vec1()?;
        let mut d_keys: Vec<f32> = d_scores.t()?.matmul(&task.queries)?.flatten_all()?.to_vec1()?;
        let positions = span.positions(&spans.rows).cycle_over(self.group());
        d_queries.chunks_exact_mut(self.head_dim).zip(positions).for_each(|(head, at)| rope.rotate_back(head, at));
        d_keys.chunks_exact_mut(self.head_dim).enumerate().for_each(|(at, head)| rope.rotate_back(head, at));
        Ok([d_queries, d_keys, d_values.flatten_all()?.to_vec1()?])
    }

    /// Query heads to a key head.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    fn list<'a>(&self, spans: &'a Spans) -> Vec<(&'a Span, usize)> {
        spans.spans.iter().flat_map(|span| (0..self.kv_heads).map(move |head| (span, head))).collect()
    }

    fn tasks<'a>(&self, spans: &'a Spans) -> impl IndexedParallelIterator<Item = (&'a Span, usize)> {
        self.list(spans).into_par_iter()
    }

    fn gather(&self, views: &Views<'_>, span: &Span, head: usize, spans: &Spans, rope: &RopeTable) -> Result<Task> {
        let mut queries = self.gather_queries(views.queries()?, span, head);
        let positions = span.positions(&spans.rows).cycle_over(self.group());
        queries.chunks_exact_mut(self.head_dim).zip(positions).for_each(|(head, at)| rope.rotate(head, at));
        let column = head * self.head_dim;
        let kv_width = self.kv_heads * self.head_dim;
        let mut keys = gather(views.keys()?, span.keys.clone(), kv_width, column, self.head_dim);
        keys.chunks_exact_mut(self.head_dim).enumerate().for_each(|(at, head)| rope.rotate(head, at));
        let values = gather(views.values()?, span.keys.clone(), kv_width, column, self.head_dim);
        Ok(Task {
            queries: matrix(queries, self.head_dim)?,
            keys: matrix(keys, self.head_dim)?,
            values: matrix(values, self.head_dim)?,
        })
    }

    fn probabilities(&self, task: &Task, span: &Span, spans: &Spans) -> Result<Tensor> {
        let scores = task.queries.matmul(&task.keys.t()?)?;
        let positions = span.positions(&spans.rows).cycle_over(self.group());
        update(&scores, |scores| {
            let rows = scores.chunks_exact_mut(span.keys.len()).zip(positions);
            rows.for_each(|(row, position)| kernels::causal_softmax(row, position + 1, self.scale));
        })?;
        Ok(scores)
    }

    /// The heads that share a key head, `[group, queries, head_dim]`.
    fn gather_queries(&self, from: &[f32], span: &Span, head: usize) -> Vec<f32> {
        let (width, group) = (self.heads * self.head_dim, self.group());
        let columns = (0..group).map(|member| (head * group + member) * self.head_dim);
        columns.flat_map(|column| gather(from, span.queries.clone(), width, column, self.head_dim)).collect()
    }

    fn scatter_queries(&self, into: &mut [f32], from: &[f32], span: &Span, head: usize) {
        let (width, group) = (self.heads * self.head_dim, self.group());
        for (member, from) in from.chunks_exact(span.queries.len() * self.head_dim).enumerate() {
            scatter(into, from, span.queries.clone(), width, (head * group + member) * self.head_dim, self.head_dim);
        }
    }
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
        self.queries.values()
    }

    fn keys(&self) -> Result<&[f32]> {
        self.keys.values()
    }

    fn values(&self) -> Result<&[f32]> {
        self.values.values()
    }
}
