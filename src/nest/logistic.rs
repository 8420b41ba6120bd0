//! L2-regularised logistic regression, classes weighted 1:1.

use rand::Rng;

use super::lbfgs;

/// Points of equal width with a yes-or-no label each.
#[derive(Debug, Clone, Copy)]
pub(super) struct Samples<'a> {
    /// One slice per point.
    pub(super) points: &'a [&'a [f32]],
    /// The label of each point.
    pub(super) labels: &'a [bool],
}

/// A fitted plane: a point is positive where `weights . point + bias > 0`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Plane {
    /// One weight per coordinate.
    pub(super) weights: Vec<f32>,
    /// The offset.
    pub(super) bias: f32,
    /// Whether the optimiser reached its tolerance (always true for a fixed number of steps).
    pub(super) converged: bool,
}

impl Plane {
    /// The signed distance of a point, up to scale.
    pub(super) fn score(&self, point: &[f32]) -> f32 {
        dot(&self.weights, point) + self.bias
    }
}

/// The minimum of the mean log loss plus `l2 / 2` times the squared weights (the bias is free), from zero.
///
/// Deterministic; at most `limit` L-BFGS steps, each two passes over the samples.
pub(super) fn fit(samples: Samples<'_>, l2: f64, tolerance: f64, limit: usize) -> Plane {
    let width = samples.points.first().map_or(0, |point| point.len());
    let balance = balance(samples.labels);
    let mut weights = vec![0_f32; width];
    let mut pulled = vec![0_f32; width];
    let function = |at: &[f64], gradient: &mut [f64]| {
        let (at, bias) = at.split_at(width);
        weights.iter_mut().zip(at).for_each(|(weight, at)| *weight = *at as f32);
        let bias = bias.first().copied().unwrap_or_default();
        pulled.fill(0.0);
        let (loss, bias_gradient) = losses(samples, &balance, &weights, bias, &mut pulled);
        let mut penalty = 0.0;
        for ((gradient, pulled), at) in gradient.iter_mut().zip(&pulled).zip(at) {
            *gradient = f64::from(*pulled) + l2 * at;
            penalty += at * at;
        }
        if let Some(last) = gradient.last_mut() {
            *last = bias_gradient;
        }
        loss + 0.5 * l2 * penalty
    };
    let minimum = lbfgs::minimise(function, vec![0.0; width + 1], tolerance, limit);
    let (weights, bias) = minimum.point.split_at(width);
    Plane {
        weights: weights.iter().map(|weight| *weight as f32).collect(),
        bias: bias.first().copied().unwrap_or_default() as f32,
        converged: minimum.converged,
    }
}

/// What the paper's laboratory runs: full-batch Adam for a fixed number of steps from a random start, the penalty as
/// weight decay in the gradient (bias included), averaged over `starts` starts drawn from `generator`.
pub(super) fn fit_adam(
    samples: Samples<'_>,
    l2: f32,
    rate: f32,
    steps: usize,
    starts: usize,
    generator: &mut impl Rng,
) -> Plane {
    let width = samples.points.first().map_or(0, |point| point.len());
    let balance = balance(samples.labels);
    let mut mean = vec![0_f32; width + 1];
    let span = 1.0 / (width.max(1) as f32).sqrt();
    for _ in 0..starts {
        let mut at: Vec<f32> = (0..=width).map(|_| generator.random_range(-span..=span)).collect();
        let mut adam = Adam::new(width + 1);
        let mut gradient = vec![0_f32; width + 1];
        for _ in 0..steps {
            gradient.fill(0.0);
            let (weights, bias) = at.split_at(width);
            let bias = f64::from(bias.first().copied().unwrap_or_default());
            let (_, bias_gradient) =
                losses(samples, &balance, weights, bias, gradient.get_mut(..width).unwrap_or(&mut []));
            if let Some(last) = gradient.last_mut() {
                *last = bias_gradient as f32;
            }
            gradient.iter_mut().zip(&at).for_each(|(gradient, at)| *gradient += l2 * at);
            adam.step(&mut at, &gradient, rate);
        }
        mean.iter_mut().zip(&at).for_each(|(mean, at)| *mean += at / starts as f32);
    }
    let bias = mean.pop().unwrap_or_default();
    Plane { weights: mean, bias, converged: true }
}

/// The area under the ROC curve: the chance that a positive outscores a negative, ties counting half.
///
/// `None` when one of the classes is empty.
pub(super) fn auc(scores: &[f32], labels: &[bool]) -> Option<f64> {
    let mut order: Vec<_> = scores.iter().copied().zip(labels.iter().copied()).collect();
    order.sort_by(|left, right| left.0.total_cmp(&right.0));
    let positives = labels.iter().filter(|label| **label).count() as f64;
    let negatives = labels.len() as f64 - positives;
    let mut below = 0.0;
    let mut wins = 0.0;
    for tied in order.chunk_by(|left, right| left.0 == right.0) {
        let positive = tied.iter().filter(|(_, label)| *label).count() as f64;
        let negative = tied.len() as f64 - positive;
        wins += positive * (below + 0.5 * negative);
        below += negative;
    }
    (positives > 0.0 && negatives > 0.0).then(|| wins / (positives * negatives))
}

/// Adds the gradient over the weights to `pulled`; returns the mean loss and the gradient over the bias.
fn losses(samples: Samples<'_>, balance: &[f64; 2], weights: &[f32], bias: f64, pulled: &mut [f32]) -> (f64, f64) {
    let (mut loss, mut bias_gradient) = (0.0, 0.0);
    let [negative, positive] = balance;
    for (point, label) in samples.points.iter().zip(samples.labels) {
        let score = f64::from(dot(weights, point)) + bias;
        let (share, margin) = if *label { (positive, score) } else { (negative, -score) };
        // log(1 + exp(-margin)) without overflow.
        loss += share * ((-margin.abs()).exp().ln_1p() + (-margin).max(0.0));
        let wrong = share / (1.0 + margin.exp());
        let slope = if *label { -wrong } else { wrong };
        bias_gradient += slope;
        let slope = slope as f32;
        pulled.iter_mut().zip(*point).for_each(|(pulled, value)| *pulled += slope * value);
    }
    (loss, bias_gradient)
}

/// The weight of a negative and of a positive sample: each class counts half in all.
fn balance(labels: &[bool]) -> [f64; 2] {
    let positives = labels.iter().filter(|label| **label).count();
    let share = |count: usize| if count == 0 { 0.0 } else { 0.5 / count as f64 };
    [share(labels.len() - positives), share(positives)]
}

/// A dot product in 16 running sums, which the compiler can keep in vector registers.
fn dot(left: &[f32], right: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0_f32; LANES];
    let (left, right) = (left.chunks_exact(LANES), right.chunks_exact(LANES));
    let rest: f32 = left.remainder().iter().zip(right.remainder()).map(|(left, right)| left * right).sum();
    for (left, right) in left.zip(right) {
        for ((sum, left), right) in sums.iter_mut().zip(left).zip(right) {
            *sum += left * right;
        }
    }
    sums.iter().sum::<f32>() + rest
}

/// Adam (Kingma and Ba, 2015) with the usual moments.
struct Adam {
    first: Vec<f32>,
    second: Vec<f32>,
    steps: i32,
}

impl Adam {
    fn new(width: usize) -> Self {
        Self { first: vec![0.0; width], second: vec![0.0; width], steps: 0 }
    }

    fn step(&mut self, at: &mut [f32], gradient: &[f32], rate: f32) {
        self.steps += 1;
        let (first, second) = (1.0 - 0.9_f32.powi(self.steps), 1.0 - 0.999_f32.powi(self.steps));
        for (((at, gradient), m), v) in at.iter_mut().zip(gradient).zip(&mut self.first).zip(&mut self.second) {
            *m = 0.9 * *m + 0.1 * gradient;
            *v = 0.999 * *v + 0.001 * gradient * gradient;
            *at -= rate * (*m / first) / ((*v / second).sqrt() + 1e-8);
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn two_points_have_a_known_plane() {
        // One point each at +1 and -1: the weight solves sigmoid(-w) = l2 * w, the bias is 0.
        let points: [&[f32]; 2] = [&[1.0], &[-1.0]];
        let plane = fit(Samples { points: &points, labels: &[true, false] }, 0.1, 1e-6, 200);
        let weight = f64::from(plane.weights[0]);
        assert!(plane.converged && plane.bias.abs() < 1e-6);
        assert!((1.0 / (1.0 + weight.exp()) - 0.1 * weight).abs() < 1e-6, "{weight}");
    }

    #[test]
    fn unequal_classes_count_the_same() {
        let (one, other): (&[f32], &[f32]) = (&[1.0], &[-1.0]);
        let many = [one, other, other, other, other];
        let labels = [true, false, false, false, false];
        let few = fit(Samples { points: &[one, other], labels: &labels[..2] }, 0.1, 1e-6, 200);
        let many = fit(Samples { points: &many, labels: &labels }, 0.1, 1e-6, 200);
        assert!((few.weights[0] - many.weights[0]).abs() < 1e-5 && many.bias.abs() < 1e-5);
    }

    #[test]
    fn area_under_the_curve() {
        assert_eq!(auc(&[0.1, 0.4, 0.35, 0.8], &[false, false, true, true]), Some(0.75));
        assert_eq!(auc(&[1.0, 1.0], &[true, false]), Some(0.5));
        assert_eq!(auc(&[1.0, 2.0], &[true, true]), None);
    }

    #[test]
    fn both_solvers_find_the_planted_direction() {
        let mut generator = ChaCha8Rng::seed_from_u64(7);
        let (points, labels) = planted(&mut generator, 400, 60);
        let points: Vec<_> = points.iter().map(Vec::as_slice).collect();
        let samples = Samples { points: &points, labels: &labels };
        let exact = fit(samples, 1e-2, 1e-6, 500);
        assert!(exact.converged);
        let adam = fit_adam(samples, 1e-2, 1e-3, 2000, 3, &mut generator);
        for plane in [exact, adam] {
            let mut order: Vec<_> = (0..60).collect();
            order.sort_by(|left, right| plane.weights[*right].total_cmp(&plane.weights[*left]));
            order.truncate(3);
            order.sort_unstable();
            assert_eq!(order, [0, 1, 2]);
        }
    }

    /// Noise in every coordinate, and in the first three a shift that follows the label.
    fn planted(generator: &mut ChaCha8Rng, count: usize, width: usize) -> (Vec<Vec<f32>>, Vec<bool>) {
        let labels: Vec<_> = (0..count).map(|index| index % 2 == 0).collect();
        let point = |label: &bool| {
            let shift = if *label { 0.8 } else { 0.0 };
            let value = |at| generator.random_range(-1.0..1.0) + if at < 3 { shift } else { 0.0 };
            (0..width).map(value).collect()
        };
        (labels.iter().map(point).collect(), labels)
    }
}
