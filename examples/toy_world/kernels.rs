//! Everything of the network that is not a matrix product, forward beside backward, on row-major `f32` slices.
//!
//! Candle's own elementwise kernels are either slow on CPU or have no backward. These loops vectorise, use the same
//! exponential on every machine, and run on one thread each: [`crate::network`] gives every thread its own documents.

use std::ops::Range;

/// Partial sums that an accumulation keeps, so that the compiler may vectorise it.
const LANES: usize = 16;

/// `e^x` to about 2 units in the last place: 2^n times a polynomial of degree 6 (Cephes `expf`). Results below the
/// normal range become the smallest normal number.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    /// Adding and subtracting 1.5 * 2^23 rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let poly = 1.987_569_1e-4;
    let poly = poly * r + 1.398_199_9e-3;
    let poly = poly * r + 8.333_452e-3;
    let poly = poly * r + 4.166_579_6e-2;
    let poly = poly * r + 1.666_666_5e-1;
    let poly = poly * r + 5e-1;
    // The low bits of `shifted` hold n: with the bias added they are the exponent of 2^n.
    let scale = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    (poly * r * r + r + 1.0) * scale
}

/// Dot product in [`LANES`] partial sums, always in the same order.
#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; LANES];
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let tail: f32 = a.remainder().iter().zip(b.remainder()).map(|(x, y)| x * y).sum();
    for (a, b) in a.zip(b) {
        for ((sum, x), y) in sums.iter_mut().zip(a).zip(b) {
            *sum += x * y;
        }
    }
    sums.iter().sum::<f32>() + tail
}

/// `y += scale * x`.
#[inline(always)]
fn axpy(scale: f32, x: &[f32], y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += scale * x;
    }
}

/// Root-mean-square norm of each row of `x`, times `weight`.
pub(crate) fn rms_norm(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let mut out = Vec::with_capacity(x.len());
    for row in x.chunks_exact(weight.len()) {
        let r = inverse_rms(row, eps);
        out.extend(row.iter().zip(weight).map(|(x, w)| x * r * w));
    }
    out
}

/// Gradients of [`rms_norm`]: of `x`, and of `weight`.
pub(crate) fn rms_norm_backward(x: &[f32], weight: &[f32], grad: &[f32], eps: f32) -> (Vec<f32>, Vec<f32>) {
    let width = weight.len();
    let mut dx = Vec::with_capacity(x.len());
    let mut dweight = vec![0f32; width];
    let mut gw = vec![0f32; width];
    for (row, grad) in x.chunks_exact(width).zip(grad.chunks_exact(width)) {
        let r = inverse_rms(row, eps);
        for (((gw, g), w), (dw, x)) in gw.iter_mut().zip(grad).zip(weight).zip(dweight.iter_mut().zip(row)) {
            *gw = g * w;
            *dw += g * x * r;
        }
        let pull = r * r * r * dot(&gw, row) / width as f32;
        dx.extend(gw.iter().zip(row).map(|(gw, x)| gw * r - x * pull));
    }
    (dx, dweight)
}

fn inverse_rms(row: &[f32], eps: f32) -> f32 {
    1.0 / (dot(row, row) / row.len() as f32 + eps).sqrt()
}

/// Gated activation: each row of `gate_up` is `[gate, up]`, the result `silu(gate) * up`.
pub(crate) fn swiglu(gate_up: &[f32], ffn: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(gate_up.len() / 2);
    for row in gate_up.chunks_exact(2 * ffn) {
        let (gate, up) = row.split_at(ffn);
        out.extend(gate.iter().zip(up).map(|(g, u)| g * u / (1.0 + exp(-g))));
    }
    out
}

/// Gradient of [`swiglu`] with respect to `gate_up`.
pub(crate) fn swiglu_backward(gate_up: &[f32], grad: &[f32], ffn: usize) -> Vec<f32> {
    let mut out = vec![0f32; gate_up.len()];
    for ((row, grad), out) in
        gate_up.chunks_exact(2 * ffn).zip(grad.chunks_exact(ffn)).zip(out.chunks_exact_mut(2 * ffn))
    {
        let (gate, up) = row.split_at(ffn);
        let (dgate, dup) = out.split_at_mut(ffn);
        for ((((dgate, dup), g), u), d) in dgate.iter_mut().zip(dup).zip(gate).zip(up).zip(grad) {
            let sigmoid = 1.0 / (1.0 + exp(-g));
            *dgate = d * u * sigmoid * (1.0 + g * (1.0 - sigmoid));
            *dup = d * g * sigmoid;
        }
    }
    out
}

/// Cross-entropy of `logits` rows `[n, vocab]` with `targets`: the sum of the losses, and their gradient times `scale`.
pub(crate) fn cross_entropy(logits: &[f32], targets: &[u32], vocab: usize, scale: f32) -> (f64, Vec<f32>) {
    let mut grad = Vec::with_capacity(logits.len());
    let mut loss = 0f64;
    for (row, &target) in logits.chunks_exact(vocab).zip(targets) {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let start = grad.len();
        grad.extend(row.iter().map(|x| exp(x - max)));
        let row_grad = &mut grad[start..];
        let sum = lane_sum(row_grad);
        loss += f64::from(sum.ln() + max - row[target as usize]);
        row_grad.iter_mut().for_each(|g| *g *= scale / sum);
        row_grad[target as usize] -= scale;
    }
    (loss, grad)
}

fn lane_sum(values: &[f32]) -> f32 {
    let mut sums = [0f32; LANES];
    let chunks = values.chunks_exact(LANES);
    let tail: f32 = chunks.remainder().iter().sum();
    for chunk in chunks {
        sums.iter_mut().zip(chunk).for_each(|(sum, x)| *sum += x);
    }
    sums.iter().sum::<f32>() + tail
}

/// Where heads lie in a row of the fused query-key-value projection: `[query heads, key heads, value heads]`.
#[derive(Clone, Copy)]
pub(crate) struct Heads {
    pub(crate) query: usize,
    pub(crate) key_value: usize,
    pub(crate) dim: usize,
}

impl Heads {
    /// Width of a fused row.
    pub(crate) fn fused(self) -> usize {
        (self.query + 2 * self.key_value) * self.dim
    }

    /// Width of an attention output row.
    pub(crate) fn out(self) -> usize {
        self.query * self.dim
    }

    /// Columns of a query head and of the key and value heads it attends with.
    fn columns(self, head: usize) -> [Range<usize>; 3] {
        let shared = head * self.key_value / self.query;
        let at = |head: usize| head * self.dim..(head + 1) * self.dim;
        [at(head), at(self.query + shared), at(self.query + self.key_value + shared)]
    }
}

/// Cosines and sines of the rotary embedding, `[positions, dim / 2]` each.
pub(crate) struct Rotary {
    half: usize,
    cos_sin: Vec<(f32, f32)>,
}

impl Rotary {
    pub(crate) fn new(dim: usize, theta: f64, positions: usize) -> Self {
        let half = dim / 2;
        let angle = |at: usize, i: usize| at as f64 * theta.powf(-(2.0 * i as f64) / dim as f64);
        let cos_sin = (0..positions * half)
            .map(|n| angle(n / half, n % half).sin_cos())
            .map(|(sin, cos)| (cos as f32, sin as f32))
            .collect();
        Self { half, cos_sin }
    }

    /// Turns query and key heads of fused rows by their place in their document; `sign` -1 turns back, which is also
    /// the gradient.
    pub(crate) fn turn(&self, fused: &mut [f32], heads: Heads, spans: &[Range<usize>], sign: f32) {
        let turned = (heads.query + heads.key_value) * heads.dim;
        for span in spans {
            let rows = &mut fused[span.start * heads.fused()..span.end * heads.fused()];
            for (row, table) in rows.chunks_exact_mut(heads.fused()).zip(self.cos_sin.chunks_exact(self.half)) {
                for head in row[..turned].chunks_exact_mut(heads.dim) {
                    let (first, second) = head.split_at_mut(self.half);
                    for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(table) {
                        let sin = sign * sin;
                        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                    }
                }
            }
        }
    }
}

/// Causal attention within each span of rows. Returns the output `[rows, out]` and the probabilities, for each span
/// and head a lower triangle row by row.
pub(crate) fn attention(fused: &[f32], heads: Heads, spans: &[Range<usize>]) -> (Vec<f32>, Vec<f32>) {
    let (wide, narrow) = (heads.fused(), heads.out());
    let scale = 1.0 / (heads.dim as f32).sqrt();
    let mut out = vec![0f32; fused.len() / wide * narrow];
    let mut probabilities = Vec::with_capacity(triangles(spans) * heads.query);
    for span in spans {
        let rows = &fused[span.start * wide..span.end * wide];
        for head in 0..heads.query {
            let [q, k, v] = heads.columns(head);
            for t in 0..span.len() {
                let start = probabilities.len();
                let query = &rows[t * wide..][q.clone()];
                let seen = rows.chunks_exact(wide).take(t + 1);
                probabilities.extend(seen.clone().map(|row| scale * dot(query, &row[k.clone()])));
                softmax(&mut probabilities[start..]);
                let out = &mut out[(span.start + t) * narrow..][q.clone()];
                for (p, row) in probabilities[start..].iter().zip(seen) {
                    axpy(*p, &row[v.clone()], out);
                }
            }
        }
    }
    (out, probabilities)
}

/// Gradient of [`attention`] with respect to `fused`, from its probabilities and the gradient of its output.
pub(crate) fn attention_backward(
    fused: &[f32],
    probabilities: &[f32],
    grad: &[f32],
    heads: Heads,
    spans: &[Range<usize>],
) -> Vec<f32> {
    let (wide, narrow) = (heads.fused(), heads.out());
    let scale = 1.0 / (heads.dim as f32).sqrt();
    let mut out = vec![0f32; fused.len()];
    let mut dscores = Vec::new();
    let mut rest = probabilities;
    for span in spans {
        let rows = &fused[span.start * wide..span.end * wide];
        let out = &mut out[span.start * wide..span.end * wide];
        for head in 0..heads.query {
            let [q, k, v] = heads.columns(head);
            for t in 0..span.len() {
                let (p, after) = rest.split_at(t + 1);
                rest = after;
                let grad = &grad[(span.start + t) * narrow..][q.clone()];
                dscores.clear();
                dscores.extend(rows.chunks_exact(wide).take(t + 1).map(|row| dot(grad, &row[v.clone()])));
                let mean = dot(&dscores, p);
                dscores.iter_mut().zip(p).for_each(|(d, p)| *d = scale * p * (*d - mean));
                let query = &rows[t * wide..][q.clone()];
                for (s, (d, p)) in dscores.iter().zip(p).enumerate() {
                    axpy(*d, query, &mut out[s * wide..][k.clone()]);
                    axpy(*p, grad, &mut out[s * wide..][v.clone()]);
                    axpy(*d, &rows[s * wide..][k.clone()], &mut out[t * wide..][q.clone()]);
                }
            }
        }
    }
    out
}

fn triangles(spans: &[Range<usize>]) -> usize {
    spans.iter().map(|span| span.len() * (span.len() + 1) / 2).sum()
}

fn softmax(scores: &mut [f32]) {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    scores.iter_mut().for_each(|s| *s = exp(*s - max));
    let sum = lane_sum(scores);
    scores.iter_mut().for_each(|s| *s /= sum);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate_over_its_range() {
        for n in -8_600..8_800 {
            let x = n as f32 / 100.0;
            let error = f64::from(exp(x)) / f64::from(x).exp() - 1.0;
            assert!(error.abs() < 3e-7, "exp({x}) is off by {error}");
        }
        assert!(exp(f32::NEG_INFINITY) < 1e-37);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn turning_back_undoes_a_turn() {
        let heads = Heads { query: 2, key_value: 1, dim: 4 };
        let spans = [0..3, 3..5];
        let start: Vec<f32> = (0..5 * heads.fused()).map(|n| (n as f32).cos()).collect();
        let rotary = Rotary::new(4, 100.0, 3);
        let mut turned = start.clone();
        rotary.turn(&mut turned, heads, &spans, 1.0);
        assert!(turned.iter().zip(&start).any(|(a, b)| (a - b).abs() > 0.1));
        rotary.turn(&mut turned, heads, &spans, -1.0);
        assert!(turned.iter().zip(&start).all(|(a, b)| (a - b).abs() < 1e-6));
    }
}
