//! Rows that got the same delta, and that delta: from the intervals in which each element's delta must lie.

use super::interval::Interval;
use crate::tensor::Dtype;

/// Rows in groups, with a delta for each.
#[derive(Debug, PartialEq)]
pub(super) struct Solution {
    /// The group of each row, numbered in the order of first use.
    pub(super) clusters: Vec<u32>,
    /// The type that all deltas are exact in.
    pub(super) stored: Dtype,
    /// One delta for each group, one after the other.
    pub(super) deltas: Vec<f32>,
}

/// Groups rows and chooses their deltas, for a tensor of type `own`.
///
/// Rows that some f32 delta explains go together. If such deltas must be stored as f32, grouping only what a delta of the
/// tensor's own type explains is tried as well, and the one whose deltas take fewer bytes is kept. The same rows always
/// give the same answer.
pub(super) fn solve(own: Dtype, rows: &[Vec<Interval>]) -> Solution {
    let loose = group(rows, Dtype::F32).map(|groups| finish(rows.len(), &groups));
    let narrow = loose.as_ref().is_none_or(|found| found.stored.size() > own.size());
    let strict = narrow.then(|| group(rows, own)).flatten().map(|groups| finish(rows.len(), &groups));
    let nothing = Solution { clusters: Vec::new(), stored: Dtype::F32, deltas: Vec::new() };
    [strict, loose]
        .into_iter()
        .flatten()
        .min_by_key(|found| found.deltas.len() * found.stored.size())
        .unwrap_or(nothing)
}

/// Rows that may share a delta, and in which interval each of its values lies. Intervals of which each two meet have a
/// common number, but one may meet two that do not meet: which rows go together depends on the order.
struct Group {
    rows: Vec<usize>,
    common: Vec<Interval>,
}

impl Group {
    /// What is left of the intervals if `row` joins; `None` if some column has no number of `dtype` left.
    fn with(&self, row: &[Interval], dtype: Dtype) -> Option<Vec<Interval>> {
        // Looked at first without keeping anything: rows of other groups part within a few columns.
        let both = || self.common.iter().zip(row).map(|(one, other)| one.and(*other));
        both().all(|both| both.is_some()).then_some(())?;
        both().map(|both| both.filter(|both| has(*both, dtype))).collect()
    }

    /// How much of the narrower of each two intervals is in both, on the average: 1 if one lies in the other.
    fn overlap(&self, row: &[Interval], both: &[Interval]) -> f64 {
        let share = |((one, other), both): ((&Interval, &Interval), &Interval)| {
            let narrower = one.width().min(other.width());
            if narrower > 0.0 { both.width() / narrower } else { 1.0 }
        };
        self.common.iter().zip(row).zip(both).map(share).sum::<f64>() / both.len() as f64
    }
}

/// Groups rows by deltas of `dtype`, those that say most about their delta first: each joins the group that it overlaps
/// most with, or begins one. `None` if a row has no such delta.
fn group(rows: &[Vec<Interval>], dtype: Dtype) -> Option<Vec<Group>> {
    let mut order: Vec<(u64, usize)> = rows.iter().map(|row| vagueness(row)).zip(0..).collect();
    order.sort_unstable();
    let mut groups: Vec<Group> = Vec::new();
    for (_, index) in order {
        let row = rows.get(index)?;
        let fitting = groups.iter().zip(0..).filter_map(|(group, place)| {
            let both = group.with(row, dtype)?;
            Some((group.overlap(row, &both), place, both))
        });
        // The first of equals.
        let best: Option<(f64, usize, Vec<Interval>)> =
            fitting.reduce(|best, other| if other.0 > best.0 { other } else { best });
        match best.and_then(|(_, place, both)| Some((groups.get_mut(place)?, both))) {
            Some((group, both)) => {
                group.rows.push(index);
                group.common = both;
            }
            None if row.iter().all(|interval| has(*interval, dtype)) => {
                groups.push(Group { rows: vec![index], common: row.clone() });
            }
            None => return None,
        }
    }
    Some(groups)
}

fn has(interval: Interval, dtype: Dtype) -> bool {
    dtype == Dtype::F32 || interval.pick(dtype).is_some()
}

/// How little a row says about its delta: the widths' exponents together.
fn vagueness(row: &[Interval]) -> u64 {
    row.iter().map(|interval| u64::from((interval.width() as f32).to_bits() >> 23)).sum()
}

/// Numbers the groups by first use, and stores their deltas in the first type that has them all.
fn finish(rows: usize, groups: &[Group]) -> Solution {
    let mut groups: Vec<&Group> = groups.iter().collect();
    groups.sort_by_key(|group| group.rows.iter().min());
    let mut clusters = vec![0; rows];
    for (number, group) in (0..).zip(&groups) {
        for row in &group.rows {
            clusters.get_mut(*row).into_iter().for_each(|cluster| *cluster = number);
        }
    }
    let deltas = |dtype| {
        let values = groups.iter().flat_map(|group| &group.common).map(|interval| interval.pick(dtype));
        values.collect::<Option<Vec<f32>>>().map(|deltas| (dtype, deltas))
    };
    let found = [Dtype::Bf16, Dtype::F16, Dtype::F32].into_iter().find_map(deltas);
    let (stored, deltas) = found.unwrap_or((Dtype::F32, Vec::new()));
    Solution { clusters, stored, deltas }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::interval::intervals;
    use super::*;
    use crate::fold::fold_row;
    use crate::format::float;

    const COLUMNS: usize = 48;

    /// Rows of weights, and the same with their clusters' deltas folded in.
    fn rows(dtype: Dtype, weights: &[f32], deltas: &[Vec<f32>], truth: &[usize]) -> Vec<(Vec<u8>, Vec<u8>)> {
        let fold = |(weights, cluster): (&[f32], &usize)| {
            let mut old = Vec::new();
            float::write_all(dtype, weights, &mut old);
            let mut new = old.clone();
            fold_row(dtype, &mut new, &deltas[*cluster]).unwrap();
            (old, new)
        };
        weights.chunks(COLUMNS).zip(truth).map(fold).collect()
    }

    fn solved(dtype: Dtype, rows: &[(Vec<u8>, Vec<u8>)]) -> Solution {
        let bounds: Vec<_> = rows.iter().map(|(old, new)| intervals(dtype, old, new).unwrap()).collect();
        let solution = solve(dtype, &bounds);
        for ((old, new), cluster) in rows.iter().zip(&solution.clusters) {
            let mut row = old.clone();
            let delta = &solution.deltas[*cluster as usize * COLUMNS..][..COLUMNS];
            assert!(delta.iter().all(|value| float::rounded(solution.stored, *value).to_bits() == value.to_bits()));
            fold_row(dtype, &mut row, delta).unwrap();
            assert!(row == *new, "a row is not what it was tuned to");
        }
        solution
    }

    /// Cluster ids by first use.
    fn numbered(truth: &[usize]) -> Vec<u32> {
        let mut seen: Vec<usize> = Vec::new();
        let number = |cluster: &usize| {
            let place = seen.iter().position(|known| known == cluster);
            place.unwrap_or_else(|| {
                seen.push(*cluster);
                seen.len() - 1
            }) as u32
        };
        truth.iter().map(number).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(150))]

        /// Whatever the types, rows are grouped as they were, and every bit of every row comes back.
        #[test]
        fn shared_deltas_are_recovered(
            weights in prop::collection::vec(-0.1_f32..0.1, 12 * COLUMNS),
            deltas in prop::collection::vec(prop::collection::vec(-1.0_f32..1.0, COLUMNS), 4),
            truth in prop::collection::vec(0..4_usize, 12),
            scale in prop::sample::select(vec![0.003_f32, 0.1, 5.0]),
            which in 0..3_usize, shipped in 0..3_usize,
        ) {
            const DTYPES: [Dtype; 3] = [Dtype::Bf16, Dtype::F16, Dtype::F32];
            let (dtype, shipped) = (DTYPES[which], DTYPES[shipped]);
            let weights: Vec<f32> = weights.iter().map(|weight| float::rounded(dtype, *weight)).collect();
            let exact = |values: &Vec<f32>| values.iter().map(|value| float::rounded(shipped, value * scale) + 0.0).collect();
            let deltas: Vec<Vec<f32>> = deltas.iter().map(exact).collect();
            let rows = rows(dtype, &weights, &deltas, &truth);
            let solution = solved(dtype, &rows);
            if shipped.size() == 2 && shipped == solution.stored || solution.stored == Dtype::F32 {
                prop_assert_eq!(&solution.clusters, &numbered(&truth));
            }
            // An f32 delta in a narrower tensor may cost more as f32 than as more deltas of its own type.
            let (least, size) = (numbered(&truth).iter().max().unwrap() + 1, solution.stored.size());
            prop_assert!(solution.deltas.len() * size <= least as usize * COLUMNS * 4);
            prop_assert_eq!(solved(dtype, &rows), solution);
        }
    }

    fn interval(old: f32, new: f32) -> Interval {
        let bytes = |number: f32| half::bf16::from_f32(number).to_le_bytes();
        intervals(Dtype::Bf16, &bytes(old), &bytes(new)).unwrap()[0]
    }

    #[test]
    fn a_row_joins_what_it_overlaps_most_with() {
        // The vague row fits both groups: half of the first one's interval, all of the second one's.
        let (one, two, vague) = (interval(4.0, 4.53125), interval(4.0, 4.5), interval(8.0, 8.5));
        assert!(one.and(two).is_none() && one.and(vague).is_some() && two.and(vague) == Some(two));
        let solution = solve(Dtype::Bf16, &[vec![one], vec![two], vec![vague]]);
        assert_eq!(solution.clusters, [0, 1, 1]);
    }

    #[test]
    fn a_type_that_splits_groups_is_weighed_against_a_wider_one() {
        // -0 becomes 0: only a delta that is too small for bf16 does it.
        let tiny = interval(-0.0, 0.0);
        let rows = vec![vec![tiny, interval(1.0, 1.5)]; 3];
        let solution = solve(Dtype::Bf16, &rows);
        assert_eq!((solution.clusters, solution.stored), (vec![0, 0, 0], Dtype::F32));
        assert!(solution.deltas[0] > 0.0 && solution.deltas[1] == 0.5);
    }
}
