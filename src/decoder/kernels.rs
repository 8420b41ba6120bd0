//! Arithmetic on plain slices of f32: the parts of a network that are not matrix products, and their gradients.
//!
//! Written so that the compiler can vectorise: fixed lanes, no calls to libm, no indexing. Rows are independent, so
//! results do not depend on the number of threads.

use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

use super::deltas::Part;
use super::head::Goal;

/// Elements below which a thread is not worth waking.
const TASK: usize = 1 << 15;
const LANES: usize = 16;

/// e^x within 2 units in the last place for x in [-87, 88], clamped outside; Cephes' polynomial.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to a whole number and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let power = rounded - ROUND;
    let r = x - power * LN2_HIGH - power * LN2_LOW;
    let tail = 1.987_569_1e-4 * r + 1.398_199_9e-3;
    let tail = ((tail * r + 8.333_452e-3) * r + 4.166_579_6e-2) * r + 0.166_666_65;
    let mantissa = (tail * r + 0.5) * r * r + r + 1.0;
    mantissa * f32::from_bits((rounded.to_bits() << 23).wrapping_add(127 << 23))
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Sum of `term` over two rows of the same length.
#[inline(always)]
fn reduce(a: &[f32], b: &[f32], term: impl Fn(f32, f32) -> f32) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut sums = [0.0_f32; LANES];
    for (a, b) in a.iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += term(*a, *b);
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| term(*a, *b)).sum();
    sums.iter().sum::<f32>() + rest
}

fn largest(row: &[f32]) -> f32 {
    let (chunks, rest) = row.as_chunks::<LANES>();
    let mut most = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for (most, value) in most.iter_mut().zip(chunk) {
            *most = if *value > *most { *value } else { *most };
        }
    }
    most.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max)
}

/// Rows handed to one task.
fn rows_per_task(width: usize) -> usize {
    TASK.div_ceil(width.max(1))
}

/// `y = x / rms(x) * w` for each row of `width`.
pub(super) fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32) -> Vec<f32> {
    let width = weight.len().max(1);
    let mut y = vec![0.0; x.len()];
    let task = rows_per_task(width) * width;
    y.par_chunks_mut(task).zip(x.par_chunks(task)).for_each(|(y, x)| {
        for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            let scale = inverse_rms(x, epsilon);
            for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
                *y = x * scale * w;
            }
        }
    });
    y
}

/// Gradient of [`rms_norm`] with respect to `x`: `r (g w - x r^2 mean(g w x))`, added to `into`.
pub(super) fn rms_norm_grad(into: &mut [f32], grad: &[f32], x: &[f32], weight: &[f32], epsilon: f32) {
    let width = weight.len().max(1);
    let task = rows_per_task(width) * width;
    into.par_chunks_mut(task).zip(grad.par_chunks(task)).zip(x.par_chunks(task)).for_each(|((into, grad), x)| {
        let mut scaled = vec![0.0; width];
        let rows = into.chunks_exact_mut(width).zip(grad.chunks_exact(width)).zip(x.chunks_exact(width));
        for ((into, grad), x) in rows {
            for ((s, g), w) in scaled.iter_mut().zip(grad).zip(weight) {
                *s = g * w;
            }
            let scale = inverse_rms(x, epsilon);
            let pull = reduce(&scaled, x, |s, x| s * x) / width as f32 * scale * scale;
            for ((into, s), x) in into.iter_mut().zip(&scaled).zip(x) {
                *into += scale * (s - x * pull);
            }
        }
    });
}

fn inverse_rms(x: &[f32], epsilon: f32) -> f32 {
    1.0 / (reduce(x, x, |a, b| a * b) / x.len() as f32 + epsilon).sqrt()
}

/// tanh x within a few units in the last place; Cephes' polynomial for small x.
#[inline(always)]
pub(super) fn tanh(x: f32) -> f32 {
    let square = x * x;
    let tail = (-5.704_988_7e-3 * square + 2.063_908_8e-2) * square - 5.373_971_6e-2;
    let small = ((tail * square + 1.333_144_2e-1) * square - 3.333_328e-1) * square * x + x;
    let large = 1.0 - 2.0 / (exp(2.0 * x) + 1.0);
    if x.abs() < 0.625 { small } else { large }
}

/// x / (1 + e^-x), and its slope.
#[inline(always)]
pub(super) fn silu(x: f32) -> (f32, f32) {
    let s = sigmoid(x);
    (x * s, s * (1.0 + x * (1.0 - s)))
}

/// x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), and its slope.
#[inline(always)]
pub(super) fn gelu_tanh(x: f32) -> (f32, f32) {
    const ROOT: f32 = 0.797_884_6;
    let cubic = 0.044_715 * x * x;
    let t = tanh(ROOT * x * (1.0 + cubic));
    (0.5 * x * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * ROOT * (1.0 + 3.0 * cubic))
}

/// `f(gate) * up`; `f` also gives its slope, which the compiler drops here.
pub(super) fn gated(gate: &[f32], up: &[f32], f: impl Fn(f32) -> (f32, f32) + Sync) -> Vec<f32> {
    let mut y = vec![0.0; gate.len()];
    y.par_chunks_mut(TASK).zip(gate.par_chunks(TASK)).zip(up.par_chunks(TASK)).for_each(|((y, gate), up)| {
        for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
            *y = f(*g).0 * u;
        }
    });
    y
}

/// Gradients of [`gated`] with respect to gate and up.
pub(super) fn gated_grad(
    grad: &[f32],
    gate: &[f32],
    up: &[f32],
    f: impl Fn(f32) -> (f32, f32) + Sync,
) -> (Vec<f32>, Vec<f32>) {
    let (mut d_gate, mut d_up) = (vec![0.0; gate.len()], vec![0.0; up.len()]);
    let outputs = d_gate.par_chunks_mut(TASK).zip(d_up.par_chunks_mut(TASK));
    let inputs = grad.par_chunks(TASK).zip(gate.par_chunks(TASK)).zip(up.par_chunks(TASK));
    outputs.zip(inputs).for_each(|((d_gate, d_up), ((grad, gate), up))| {
        for ((((d_gate, d_up), d), g), u) in d_gate.iter_mut().zip(d_up).zip(grad).zip(gate).zip(up) {
            let (value, slope) = f(*g);
            *d_gate = d * u * slope;
            *d_up = d * value;
        }
    });
    (d_gate, d_up)
}

/// `cap * tanh(x / cap)` in place.
pub(super) fn soft_cap(values: &mut [f32], cap: f32) {
    values.par_chunks_mut(TASK).for_each(|values| values.iter_mut().for_each(|x| *x = cap * tanh(*x / cap)));
}

/// Gradient of [`soft_cap`] with respect to its input, over that of its output; `capped` is the output.
pub(super) fn soft_cap_grad(grad: &mut [f32], capped: &[f32], cap: f32) {
    grad.par_chunks_mut(TASK).zip(capped.par_chunks(TASK)).for_each(|(grad, capped)| {
        for (g, y) in grad.iter_mut().zip(capped) {
            let t = y / cap;
            *g *= 1.0 - t * t;
        }
    });
}

/// Softmax of one row of scores in place, over the entries that are seen; the rest becomes zero.
pub(super) fn masked_softmax(scores: &mut [f32], seen: Range<usize>) {
    let end = seen.end.min(scores.len());
    let (before, after) = scores.split_at_mut(end);
    let (before, seen) = before.split_at_mut(seen.start.min(end));
    before.fill(0.0);
    after.fill(0.0);
    let most = largest(seen);
    for score in seen.iter_mut() {
        *score = exp(*score - most);
    }
    let total = 1.0 / reduce(seen, seen, |a, _| a);
    seen.iter_mut().for_each(|score| *score *= total);
}

/// Gradient of [`masked_softmax`] with respect to the scores, written over the gradient of its output.
pub(super) fn softmax_grad(grad: &mut [f32], probabilities: &[f32]) {
    let mean = reduce(grad, probabilities, |g, p| g * p);
    for (g, p) in grad.iter_mut().zip(probabilities) {
        *g = p * (*g - mean);
    }
}

/// `values *= factor`.
pub(super) fn scale(values: &mut [f32], factor: f32) {
    values.iter_mut().for_each(|value| *value *= factor);
}

/// Cross-entropy of one row of logits against a token, and over the logits its gradient times `weight`.
///
/// Nothing where the vocabulary has no such token.
fn cross_entropy(logits: &mut [f32], token: u32, weight: f32) -> Option<f64> {
    let most = largest(logits);
    let chosen = *logits.get(token as usize)?;
    for logit in logits.iter_mut() {
        *logit = exp(*logit - most);
    }
    // Sums of 32,000 probabilities lose digits in one f32.
    let total: f64 = logits.chunks(1024).map(|chunk| f64::from(reduce(chunk, chunk, |a, _| a))).sum();
    let share = weight / total as f32;
    logits.iter_mut().for_each(|logit| *logit *= share);
    *logits.get_mut(token as usize)? -= weight;
    Some(total.ln() + f64::from(most) - f64::from(chosen))
}

/// [`cross_entropy`] of row i against goal i, summed by share.
pub(super) fn cross_entropies(logits: &mut [f32], width: usize, goals: &[Goal]) -> Option<f64> {
    let rows = logits.par_chunks_exact_mut(width).zip(goals);
    let losses: Option<Vec<f64>> =
        rows.map(|(row, goal)| Some(f64::from(goal.share) * cross_entropy(row, goal.token, goal.share)?)).collect();
    // Summed in order, whatever the number of threads.
    losses.map(|losses| losses.iter().sum())
}

/// `into += from`.
pub(super) fn add(into: &mut [f32], from: &[f32]) {
    into.iter_mut().zip(from).for_each(|(into, from)| *into += from);
}

/// Adds each row of `from` to the row of `into` that `rows` names.
pub(super) fn add_rows(into: &mut [f32], from: &[f32], rows: &[usize], width: usize) {
    for (row, from) in rows.iter().zip(from.chunks_exact(width)) {
        if let Some(into) = into.get_mut(row * width..(row + 1) * width) {
            add(into, from);
        }
    }
}

/// The rows of a matrix that `rows` names.
pub(super) fn select_rows(matrix: &[f32], rows: &[usize], width: usize) -> Vec<f32> {
    let chosen = rows.iter().filter_map(|row| matrix.get(row * width..(row + 1) * width));
    chosen.flatten().copied().collect()
}

/// Adds to the columns of `y` that are rows of a site the column of `shared` that is their cluster's: y += M shared.
pub(super) fn spread(y: &mut [f32], width: usize, shared: &[f32], count: usize, part: Part<'_>) {
    for (y, shared) in y.chunks_exact_mut(width).zip(shared.chunks_exact(count)) {
        for (row, cluster) in part.rows.iter().zip(part.clusters) {
            if let (Some(y), Some(value)) = (y.get_mut((row - part.first) as usize), shared.get(*cluster as usize)) {
                *y += value;
            }
        }
    }
}

/// The transpose of [`spread`]: sums the columns of `grad` that belong to each cluster.
pub(super) fn gather(grad: &[f32], width: usize, count: usize, part: Part<'_>) -> Vec<f32> {
    let mut sums = vec![0.0; grad.len() / width.max(1) * count];
    for (sums, grad) in sums.chunks_exact_mut(count).zip(grad.chunks_exact(width)) {
        for (row, cluster) in part.rows.iter().zip(part.clusters) {
            if let (Some(sum), Some(value)) = (sums.get_mut(*cluster as usize), grad.get((row - part.first) as usize)) {
                *sum += value;
            }
        }
    }
    sums
}

/// An element type that weights are stored in.
pub(super) trait Widen: Copy + Send + Sync {
    /// Exact conversion to f32; both slices have the same length.
    fn widen(from: &[Self], into: &mut [f32]);
}

impl Widen for bf16 {
    fn widen(from: &[Self], into: &mut [f32]) {
        for (into, from) in into.iter_mut().zip(from) {
            *into = f32::from_bits(u32::from(from.to_bits()) << 16);
        }
    }
}

impl Widen for f16 {
    fn widen(from: &[Self], into: &mut [f32]) {
        from.convert_to_f32_slice(into);
    }
}

/// Elements of N bytes as f32.
pub(super) fn widen_bytes<const N: usize>(bytes: &[u8], into: &mut [f32], value: impl Fn([u8; N]) -> f32 + Sync) {
    let elements = bytes.as_chunks::<N>().0;
    into.par_chunks_mut(TASK).zip(elements.par_chunks(TASK)).for_each(|(into, from)| {
        into.iter_mut().zip(from).for_each(|(into, from)| *into = value(*from));
    });
}

/// The first value that is not finite, and where.
pub(super) fn first_not_finite(values: &[f32]) -> Option<(usize, f32)> {
    // A sum of values times zero is zero exactly if all are finite.
    let finite = |values: &[f32]| reduce(values, values, |value, _| value * 0.0) == 0.0;
    if values.par_chunks(TASK).all(finite) {
        return None;
    }
    values.iter().copied().enumerate().find(|(_, value)| !value.is_finite())
}

/// Stored weights as f32.
pub(super) fn widen<T: Widen>(from: &[T], into: &mut [f32]) {
    into.par_chunks_mut(TASK).zip(from.par_chunks(TASK)).for_each(|(into, from)| T::widen(from, into));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        for step in -8_700..8_800 {
            let x = step as f32 * 0.01;
            let (ours, exact) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((ours - exact).abs() <= exact * 2.4e-7, "exp({x}) = {ours}, expected {exact}");
        }
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn tanh_agrees_with_the_library() {
        for step in -3_000..3_000 {
            let x = step as f32 * 0.01;
            assert!((f64::from(tanh(x)) - f64::from(x).tanh()).abs() <= 2.4e-7, "tanh({x}) = {}", tanh(x));
            let y = x * 1e-3;
            assert!((f64::from(tanh(y)) - f64::from(y).tanh()).abs() <= f64::from(y.abs()) * 2e-7, "tanh({y})");
        }
    }

    #[test]
    fn softmax_rows_sum_to_one_over_what_is_seen() {
        let mut row: Vec<f32> = (0..37).map(|i| (i * 7 % 11) as f32 - 90.0).collect();
        masked_softmax(&mut row, 3..20);
        assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert!(row.iter().enumerate().all(|(at, p)| (*p > 0.0) == (3..20).contains(&at)));
    }

    #[test]
    fn widening_is_exact_for_every_pattern() {
        let all: Vec<u16> = (0..=u16::MAX).collect();
        let brain: Vec<bf16> = all.iter().map(|bits| bf16::from_bits(*bits)).collect();
        let ieee: Vec<f16> = all.iter().map(|bits| f16::from_bits(*bits)).collect();
        let mut wide = vec![0.0; all.len()];
        widen(&brain, &mut wide);
        assert!(wide.iter().zip(&brain).all(|(w, b)| w.to_bits() == b.to_f32().to_bits() || w.is_nan()));
        widen(&ieee, &mut wide);
        assert!(wide.iter().zip(&ieee).all(|(w, h)| w.to_bits() == h.to_f32().to_bits() || w.is_nan()));
    }

    #[test]
    fn gradients_agree_with_central_differences() {
        let x: Vec<f32> = (0..10).map(|i| (i as f32 * 1.3).sin()).collect();
        let g: Vec<f32> = (0..10).map(|i| (i as f32 * 0.7).cos()).collect();
        let w: Vec<f32> = (0..5).map(|i| 1.0 + i as f32 * 0.1).collect();
        let mut norm = vec![0.0; 10];
        rms_norm_grad(&mut norm, &g, &x, &w, 1e-5);
        compare(&norm, &x, &g, |x| rms_norm(x, &w, 1e-5));
        let up: Vec<f32> = x.iter().rev().copied().collect();
        for f in [silu, gelu_tanh] {
            let (d_gate, d_up) = gated_grad(&g, &x, &up, f);
            compare(&d_gate, &x, &g, |x| gated(x, &up, f));
            compare(&d_up, &up, &g, |up| gated(&x, up, f));
        }
        let capped = |x: &[f32]| {
            let mut y = x.to_vec();
            soft_cap(&mut y, 0.7);
            y
        };
        let mut grad = g.clone();
        soft_cap_grad(&mut grad, &capped(&x), 0.7);
        compare(&grad, &x, &g, capped);
    }

    fn compare(ours: &[f32], x: &[f32], g: &[f32], f: impl Fn(&[f32]) -> Vec<f32>) {
        let value = |x: &[f32]| f(x).iter().zip(g).map(|(y, g)| f64::from(y * g)).sum::<f64>();
        for (index, ours) in ours.iter().enumerate() {
            let (mut low, mut high) = (x.to_vec(), x.to_vec());
            low[index] -= 1e-2;
            high[index] += 1e-2;
            let slope = (value(&high) - value(&low)) / 2e-2;
            assert!((f64::from(*ours) - slope).abs() < 1e-3, "{index}: {ours} {slope}");
        }
    }
}
