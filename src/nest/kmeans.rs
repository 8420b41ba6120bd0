//! k-means and silhouettes over a Gram matrix.

use rand::Rng;

/// Lloyd's steps before a start is taken as it is.
const STEPS: usize = 100;

/// All inner products of a set of points: everything k-means and silhouettes need to know of them.
#[derive(Debug)]
pub(super) struct Gram {
    products: Vec<f64>,
    count: usize,
}

impl Gram {
    /// The products of points of equal width.
    pub(super) fn new(points: &[Vec<f64>]) -> Self {
        let product =
            |left: &Vec<f64>, right: &Vec<f64>| left.iter().zip(right).map(|(left, right)| left * right).sum();
        let products = points.iter().flat_map(|left| points.iter().map(move |right| product(left, right))).collect();
        Self { products, count: points.len() }
    }

    /// Whether all products are finite and some two points lie apart.
    pub(super) fn is_spread(&self) -> bool {
        let size = (0..self.count).map(|point| self.at(point, point)).fold(0.0, f64::max);
        let apart = (1..self.count).any(|point| self.squared_distance(0, point) > 1e-9 * size);
        apart && self.products.iter().all(|product| product.is_finite())
    }

    fn at(&self, left: usize, right: usize) -> f64 {
        self.products.get(left * self.count + right).copied().unwrap_or_default()
    }

    fn squared_distance(&self, left: usize, right: usize) -> f64 {
        (self.at(left, left) - 2.0 * self.at(left, right) + self.at(right, right)).max(0.0)
    }
}

/// The labels of the tightest of `restarts` k-means runs. Some labels below `k` may stay unused.
pub(super) fn partition(gram: &Gram, k: usize, restarts: usize, generator: &mut impl Rng) -> Vec<usize> {
    let mut best = (f64::INFINITY, vec![0; gram.count]);
    for _ in 0..restarts {
        let centres = spread_out(gram, k, generator);
        let run = lloyd(gram, k, nearest_point(gram, &centres));
        if run.0 < best.0 {
            best = run;
        }
    }
    best.1
}

/// The mean silhouette: for each point (b - a) / max(a, b), where a is its mean distance to its own cluster and b the
/// mean distance to the nearest other one; 0 for a point alone in its cluster (Rousseeuw 1987).
pub(super) fn silhouette(gram: &Gram, labels: &[usize]) -> f64 {
    let k = labels.iter().max().map_or(0, |label| label + 1);
    let mut total = 0.0;
    for (point, own) in labels.iter().enumerate() {
        let mut sums = vec![(0.0, 0_usize); k];
        for (other, label) in labels.iter().enumerate().filter(|(other, _)| *other != point) {
            if let Some((sum, count)) = sums.get_mut(*label) {
                *sum += gram.squared_distance(point, other).sqrt();
                *count += 1;
            }
        }
        let mean = |(sum, count): &(f64, usize)| sum / *count as f64;
        let Some(inside) = sums.get(*own).filter(|(_, count)| *count > 0).map(mean) else { continue };
        let others = sums.iter().enumerate().filter(|(label, (_, count))| label != own && *count > 0);
        let outside = others.map(|(_, sum)| mean(sum)).fold(f64::INFINITY, f64::min);
        if outside.is_finite() && inside.max(outside) > 0.0 {
            total += (outside - inside) / inside.max(outside);
        }
    }
    total / labels.len().max(1) as f64
}

/// k-means++: each next centre is a point drawn with odds by its squared distance from those chosen.
fn spread_out(gram: &Gram, k: usize, generator: &mut impl Rng) -> Vec<usize> {
    let mut centres = vec![generator.random_range(0..gram.count)];
    let mut distances = vec![f64::INFINITY; gram.count];
    while centres.len() < k {
        let last = centres.last().copied().unwrap_or_default();
        for (point, distance) in distances.iter_mut().enumerate() {
            *distance = distance.min(gram.squared_distance(point, last));
        }
        let total: f64 = distances.iter().sum();
        if total <= 0.0 {
            break;
        }
        let mut left = generator.random_range(0.0..total);
        let drawn = distances.iter().position(|distance| {
            left -= distance;
            left < 0.0
        });
        // Rounding can leave a trace over; the farthest point takes it.
        centres.push(drawn.unwrap_or_else(|| farthest(&distances)));
    }
    centres
}

fn nearest_point(gram: &Gram, centres: &[usize]) -> Vec<usize> {
    let distances = |point: usize| centres.iter().map(move |centre| gram.squared_distance(point, *centre));
    (0..gram.count).map(|point| lowest(distances(point))).collect()
}

/// Lloyd's steps until no label changes; returns the summed squared distance to the centres, and the labels.
fn lloyd(gram: &Gram, k: usize, mut labels: Vec<usize>) -> (f64, Vec<usize>) {
    let mut inertia = f64::INFINITY;
    for _ in 0..STEPS {
        let distances = to_centres(gram, k, &labels);
        let mut next: Vec<_> = distances.chunks(k).map(|row| lowest(row.iter().copied())).collect();
        fill_empty(k, &distances, &mut next);
        let own = |(point, label): (usize, &usize)| distances.get(point * k + label).copied().unwrap_or_default();
        inertia = labels.iter().enumerate().map(own).sum();
        if next == labels {
            break;
        }
        labels = next;
    }
    (inertia, labels)
}

/// Squared distances of every point to every cluster's mean, point by point; infinite for an empty cluster.
///
/// |x - mean|^2 = x.x - 2 sum(x.y) / n + sum(y.z) / n^2 over the members y, z.
fn to_centres(gram: &Gram, k: usize, labels: &[usize]) -> Vec<f64> {
    let mut sizes = vec![0.0; k];
    labels.iter().filter_map(|label| sizes.get_mut(*label).map(|size: &mut f64| *size += 1.0)).for_each(drop);
    let mut cross = vec![0.0; gram.count * k];
    let mut inner = vec![0.0; k];
    for (point, sums) in cross.chunks_mut(k).enumerate() {
        for (other, label) in labels.iter().enumerate() {
            if let Some(sum) = sums.get_mut(*label) {
                *sum += gram.at(point, other);
            }
        }
        if let Some(label) = labels.get(point)
            && let (Some(inner), Some(sum)) = (inner.get_mut(*label), sums.get(*label))
        {
            *inner += sum;
        }
    }
    for (point, sums) in cross.chunks_mut(k).enumerate() {
        for ((sum, size), inner) in sums.iter_mut().zip(&sizes).zip(&inner) {
            let distance = gram.at(point, point) - 2.0 * *sum / size + inner / (size * size);
            *sum = if *size > 0.0 { distance.max(0.0) } else { f64::INFINITY };
        }
    }
    cross
}

/// A cluster that lost all members takes the point farthest from its own centre.
fn fill_empty(k: usize, distances: &[f64], labels: &mut [usize]) {
    for cluster in 0..k {
        if labels.contains(&cluster) {
            continue;
        }
        let alone = |label: usize| labels.iter().filter(|other| **other == label).count() < 2;
        let own = |(point, label): (usize, &usize)| {
            if alone(*label) { -1.0 } else { distances.get(point * k + label).copied().unwrap_or_default() }
        };
        let reach: Vec<f64> = labels.iter().enumerate().map(own).collect();
        let point = farthest(&reach);
        if reach.get(point).is_some_and(|distance| *distance > 0.0)
            && let Some(label) = labels.get_mut(point)
        {
            *label = cluster;
        }
    }
}

fn lowest(values: impl Iterator<Item = f64>) -> usize {
    values.enumerate().fold((0, f64::INFINITY), |best, next| if next.1 < best.1 { next } else { best }).0
}

fn farthest(values: &[f64]) -> usize {
    lowest(values.iter().map(|value| -value))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn random_points(seed: u64, count: usize, width: usize) -> Vec<Vec<f64>> {
        let mut generator = ChaCha8Rng::seed_from_u64(seed);
        (0..count).map(|_| (0..width).map(|_| generator.random_range(-1.0..1.0)).collect()).collect()
    }

    fn squared(left: &[f64], right: &[f64]) -> f64 {
        left.iter().zip(right).map(|(left, right)| (left - right).powi(2)).sum()
    }

    /// The plain twin: coordinates and means instead of a Gram matrix.
    fn plain_lloyd(points: &[Vec<f64>], k: usize, mut labels: Vec<usize>) -> (f64, Vec<usize>) {
        loop {
            let centre = |cluster: usize| -> Vec<f64> {
                let members: Vec<_> = (0..points.len()).filter(|point| labels[*point] == cluster).collect();
                let mean =
                    |at: usize| members.iter().map(|point| points[*point][at]).sum::<f64>() / members.len() as f64;
                (0..points[0].len()).map(mean).collect()
            };
            let centres: Vec<_> = (0..k).map(centre).collect();
            let inertia = points.iter().zip(&labels).map(|(point, label)| squared(point, &centres[*label])).sum();
            let next: Vec<_> =
                points.iter().map(|point| lowest(centres.iter().map(|centre| squared(point, centre)))).collect();
            if next == labels {
                return (inertia, labels);
            }
            labels = next;
        }
    }

    #[test]
    fn the_gram_path_equals_the_plain_twin() {
        for seed in 0..20 {
            let points = random_points(seed, 40, 5);
            let gram = Gram::new(&points);
            let start = nearest_point(&gram, &[0, 1, 2, 3]);
            let (inertia, labels) = lloyd(&gram, 4, start.clone());
            let (plain_inertia, plain_labels) = plain_lloyd(&points, 4, start);
            assert_eq!(labels, plain_labels);
            assert!((inertia - plain_inertia).abs() < 1e-9);
        }
    }

    #[test]
    fn known_answers() {
        let points = [[0.0, 0.0], [0.0, 1.0], [10.0, 0.0], [10.0, 1.0]].map(|point| point.to_vec());
        let gram = Gram::new(&points);
        let mut generator = ChaCha8Rng::seed_from_u64(0);
        let labels = partition(&gram, 2, 5, &mut generator);
        assert!(labels[0] == labels[1] && labels[2] == labels[3] && labels[0] != labels[2], "{labels:?}");
        assert!((lloyd(&gram, 2, labels).0 - 1.0).abs() < 1e-9);
        // a = 1, b = (10 + sqrt(101)) / 2 for every point.
        let outside = (10.0 + 101_f64.sqrt()) / 2.0;
        assert!((silhouette(&gram, &[0, 0, 1, 1]) - (outside - 1.0) / outside).abs() < 1e-9);
        assert!(silhouette(&gram, &[0, 1, 0, 1]) < 0.0);
        assert_eq!(silhouette(&gram, &[0, 1, 2, 3]), 0.0);
    }

    #[test]
    fn restarts_find_the_best_of_many() {
        let points = random_points(5, 60, 2);
        let gram = Gram::new(&points);
        let tightness = |restarts| {
            let labels = partition(&gram, 6, restarts, &mut ChaCha8Rng::seed_from_u64(1));
            lloyd(&gram, 6, labels).0
        };
        let plain: f64 = (0..200)
            .map(|seed| {
                let mut generator = ChaCha8Rng::seed_from_u64(seed);
                plain_lloyd(&points, 6, nearest_point(&gram, &spread_out(&gram, 6, &mut generator))).0
            })
            .filter(|inertia| inertia.is_finite())
            .fold(f64::INFINITY, f64::min);
        assert!(tightness(50) <= tightness(1) + 1e-9);
        assert!(tightness(50) < plain * 1.02, "{} against {plain}", tightness(50));
    }

    #[test]
    fn an_emptied_cluster_takes_the_farthest_point() {
        let points = [[0.0], [0.1], [0.2], [9.0]].map(|point: [f64; 1]| point.to_vec());
        let gram = Gram::new(&points);
        let (_, labels) = lloyd(&gram, 2, vec![0, 0, 0, 0]);
        assert!(labels[3] != labels[0] && labels[0] == labels[1] && labels[1] == labels[2], "{labels:?}");
    }
}
