//! Limited-memory BFGS for smooth convex functions (Nocedal and Wright, *Numerical Optimization*, algorithm 7.5).

use std::collections::VecDeque;

/// Correction pairs kept.
const MEMORY: usize = 12;
/// Armijo's constant: the share of the promised decrease that a step must bring.
const DECREASE: f64 = 1e-4;
/// Rounding error of a value, relative: a rise below it does not refuse a step.
const NOISE: f64 = 1e-7;
/// Halvings of a step before the search gives up.
const HALVINGS: usize = 40;

/// Where the search ended.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Minimum {
    /// The point.
    pub(super) point: Vec<f64>,
    /// Steps taken.
    pub(super) iterations: usize,
    /// Whether the gradient became small enough.
    pub(super) converged: bool,
}

/// Minimises `function`, which returns a value and writes the gradient, from `start`.
///
/// Stops when the largest gradient entry is at most `tolerance` or after `limit` steps. Deterministic. Cost per step:
/// one or more evaluations and 4 x 12 passes over the point.
pub(super) fn minimise(
    mut function: impl FnMut(&[f64], &mut [f64]) -> f64,
    start: Vec<f64>,
    tolerance: f64,
    limit: usize,
) -> Minimum {
    let mut point = start;
    let mut gradient = vec![0.0; point.len()];
    let mut value = function(&point, &mut gradient);
    let mut pairs = VecDeque::with_capacity(MEMORY);
    for iterations in 0..limit {
        if gradient.iter().all(|entry| entry.abs() <= tolerance) {
            return Minimum { point, iterations, converged: true };
        }
        let direction = direction(&gradient, &pairs);
        let first = if pairs.is_empty() { 1.0 / dot(&gradient, &gradient).sqrt().max(1.0) } else { 1.0 };
        let Some(step) = search(&mut function, &point, value, &gradient, &direction, first) else {
            return Minimum { point, iterations, converged: false };
        };
        let moved: Vec<f64> = step.point.iter().zip(&point).map(|(new, old)| new - old).collect();
        let bent: Vec<f64> = step.gradient.iter().zip(&gradient).map(|(new, old)| new - old).collect();
        let curvature = dot(&moved, &bent);
        if curvature > 1e-14 * dot(&bent, &bent) {
            if pairs.len() == MEMORY {
                pairs.pop_front();
            }
            pairs.push_back(Pair { moved, bent, curvature });
        }
        (point, value, gradient) = (step.point, step.value, step.gradient);
    }
    Minimum { point, iterations: limit, converged: false }
}

struct Pair {
    moved: Vec<f64>,
    bent: Vec<f64>,
    curvature: f64,
}

struct Step {
    point: Vec<f64>,
    value: f64,
    gradient: Vec<f64>,
}

/// The two-loop recursion: minus the inverse Hessian estimate times the gradient.
fn direction(gradient: &[f64], pairs: &VecDeque<Pair>) -> Vec<f64> {
    let mut direction: Vec<f64> = gradient.iter().map(|entry| -entry).collect();
    let mut alphas = Vec::with_capacity(pairs.len());
    for pair in pairs.iter().rev() {
        let alpha = dot(&pair.moved, &direction) / pair.curvature;
        add(&mut direction, -alpha, &pair.bent);
        alphas.push(alpha);
    }
    if let Some(pair) = pairs.back() {
        let scale = pair.curvature / dot(&pair.bent, &pair.bent);
        direction.iter_mut().for_each(|entry| *entry *= scale);
    }
    for (pair, alpha) in pairs.iter().zip(alphas.iter().rev()) {
        let beta = dot(&pair.bent, &direction) / pair.curvature;
        add(&mut direction, alpha - beta, &pair.moved);
    }
    direction
}

/// Halves the step until the value falls as Armijo asks.
fn search(
    function: &mut impl FnMut(&[f64], &mut [f64]) -> f64,
    start: &[f64],
    value: f64,
    gradient: &[f64],
    direction: &[f64],
    first: f64,
) -> Option<Step> {
    let slope = dot(gradient, direction);
    let mut length = first;
    let mut new = vec![0.0; start.len()];
    for _ in 0..HALVINGS {
        let mut point = start.to_vec();
        add(&mut point, length, direction);
        let found = function(&point, &mut new);
        if found <= value + DECREASE * length * slope + NOISE * value.abs() && slope < 0.0 {
            return Some(Step { point, value: found, gradient: new });
        }
        length *= 0.5;
    }
    None
}

fn dot(left: &[f64], right: &[f64]) -> f64 {
    left.iter().zip(right).map(|(left, right)| left * right).sum()
}

fn add(to: &mut [f64], factor: f64, what: &[f64]) {
    to.iter_mut().zip(what).for_each(|(to, what)| *to += factor * what);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_minimum_of_a_badly_scaled_quadratic() {
        let scales: Vec<f64> = (0..30).map(|index| 10_f64.powf(f64::from(index) / 10.0)).collect();
        let found = minimise(
            |x, gradient| {
                let mut value = 0.0;
                for ((x, gradient), scale) in x.iter().zip(gradient).zip(&scales) {
                    value += 0.5 * scale * (x - 1.0).powi(2);
                    *gradient = scale * (x - 1.0);
                }
                value
            },
            vec![0.0; 30],
            1e-9,
            500,
        );
        assert!(found.converged, "{} steps", found.iterations);
        assert!(found.point.iter().all(|x| (x - 1.0).abs() < 1e-8));
    }

    #[test]
    fn says_when_it_did_not_get_there() {
        let cubic = |x: &[f64], gradient: &mut [f64]| {
            gradient[0] = 4.0 * (x[0] - 3.0).powi(3);
            (x[0] - 3.0).powi(4)
        };
        assert!(!minimise(cubic, vec![0.0], 1e-12, 3).converged);
    }
}
