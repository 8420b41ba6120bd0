//! Which deltas take one weight to another: an interval of `f32`, as the fold rounds.
//!
//! The fold is monotone in the delta: a greater delta never gives a smaller weight, with -0 below +0, and the zero delta,
//! which keeps every bit, stands where it belongs. So the deltas that give one result are neighbours, and finding the
//! first and the last of them is enough.

use crate::format::float::{self, Bf16, Element, F16, F32};
use crate::tensor::Dtype;

/// The greatest finite `f32` as a [`key`].
const MAX_KEY: i32 = 0x7f7f_ffff;

/// Neighbouring deltas, as keys: both ends belong to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Interval {
    low: i32,
    high: i32,
}

impl Interval {
    /// What both hold, if anything.
    pub(super) fn and(self, other: Self) -> Option<Self> {
        let both = Self { low: self.low.max(other.low), high: self.high.min(other.high) };
        (both.low <= both.high).then_some(both)
    }

    /// From the first delta to the last.
    pub(super) fn width(self) -> f64 {
        f64::from(value(self.high)) - f64::from(value(self.low))
    }

    /// Zero where that is in the interval; else the number of `dtype` nearest to the middle, if one is in it.
    pub(super) fn pick(self, dtype: Dtype) -> Option<f32> {
        if self.low <= 0 && self.high >= 0 {
            return Some(0.0);
        }
        let middle = (f64::from(value(self.low)) + f64::from(value(self.high))) / 2.0;
        let near = float::rounded(dtype, middle as f32);
        // Rounding twice may miss the nearest by one, and overflow.
        let around = [next(dtype, near, -1), near, next(dtype, near, 1)];
        let inside = around.into_iter().filter(|number| number.is_finite() && self.holds(key(*number)));
        inside.min_by(|a, b| (f64::from(*a) - middle).abs().total_cmp(&(f64::from(*b) - middle).abs()))
    }

    fn holds(self, key: i32) -> bool {
        (self.low..=self.high).contains(&key)
    }
}

/// For each pair of elements of `dtype` in two rows, the deltas that take the first to the second; the first column that
/// no delta does it for is the error. All elements must be finite.
pub(super) fn intervals(dtype: Dtype, old: &[u8], new: &[u8]) -> Result<Vec<Interval>, usize> {
    match dtype {
        Dtype::Bf16 => each::<Bf16, 2>(old, new),
        Dtype::F16 => each::<F16, 2>(old, new),
        Dtype::F32 => each::<F32, 4>(old, new),
    }
}

fn each<E: Element<N>, const N: usize>(old: &[u8], new: &[u8]) -> Result<Vec<Interval>, usize> {
    let pairs = old.as_chunks::<N>().0.iter().zip(new.as_chunks::<N>().0).enumerate();
    pairs.map(|(column, (old, new))| interval::<E, N>(*old, *new).ok_or(column)).collect()
}

fn interval<E: Element<N>, const N: usize>(old: [u8; N], new: [u8; N]) -> Option<Interval> {
    let (weight, target) = (E::widen(old), rank(E::widen(new)));
    let folded = |key: i32| match key {
        0 => rank(weight),
        key => rank(E::widen(E::narrow(weight + value(key)))),
    };
    let (first, last) = sums::<E, N>(new);
    let guess = |sum: f64| key((sum - f64::from(weight)) as f32).clamp(-MAX_KEY, MAX_KEY);
    let low = least(guess(first), |key| folded(key) >= target);
    let high = least(guess(last), |key| folded(key) > target) - 1;
    (low <= high).then_some(Interval { low, high })
}

/// About between which exact sums the fold gives `new`: where the search begins.
fn sums<E: Element<N>, const N: usize>(new: [u8; N]) -> (f64, f64) {
    let middle = E::widen(new);
    let edge = |towards: i32| {
        if N == 4 {
            return middle;
        }
        let beside = neighbour::<E, N>(new, towards);
        let beside = if beside.is_finite() { beside } else { 2.0 * middle - neighbour::<E, N>(new, -towards) };
        let half = middle + (beside - middle) / 2.0;
        // A sum halfway goes to the even one.
        let odd = new.first().is_some_and(|byte| byte % 2 == 1);
        if odd { value(key(half) - towards) } else { half }
    };
    // The sum itself was rounded to an f32: half a step more.
    let outside = |edge: f32, towards: i32| (f64::from(edge) + f64::from(value(key(edge) + towards))) / 2.0;
    (outside(edge(-1), -1), outside(edge(1), 1))
}

/// The next greater (1) or smaller (-1) element; infinite beyond the last.
fn neighbour<E: Element<N>, const N: usize>(element: [u8; N], towards: i32) -> f32 {
    let bits = element.iter().rev().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte));
    let sign = 1_u32 << (8 * N - 1);
    let magnitude = (bits & !sign) as i32;
    let at = if bits & sign == 0 { magnitude } else { -magnitude } + towards;
    let bits = at.unsigned_abs() | if at < 0 { sign } else { 0 };
    E::widen(std::array::from_fn(|index| (bits >> (8 * index)) as u8))
}

/// The number of `dtype` next to `number`, which is one.
fn next(dtype: Dtype, number: f32, towards: i32) -> f32 {
    let narrow = |number: f32, towards| match dtype {
        Dtype::Bf16 => neighbour::<Bf16, 2>(Bf16::narrow(number), towards),
        Dtype::F16 => neighbour::<F16, 2>(F16::narrow(number), towards),
        Dtype::F32 => neighbour::<F32, 4>(F32::narrow(number), towards),
    };
    narrow(number, towards)
}

/// The least key from which on `holds` is true, one past the last if it never is; few calls if `guess` is near it.
fn least(guess: i32, holds: impl Fn(i32) -> bool) -> i32 {
    let (mut below, mut from) = (-MAX_KEY - 1, MAX_KEY + 1);
    let (mut probe, mut step) = (guess, 1_i32);
    while from - 1 > below {
        let found = holds(probe);
        if found {
            from = probe
        } else {
            below = probe
        }
        // Ever longer steps until both sides are known, then halves.
        let known = (below >= -MAX_KEY, from <= MAX_KEY);
        probe = match known {
            (true, true) => below + (from - below) / 2,
            (false, _) => from.saturating_sub(step).max(-MAX_KEY),
            (_, false) => below.saturating_add(step).min(MAX_KEY),
        };
        step = step.saturating_mul(2);
    }
    from
}

/// Where a finite number stands among all; both zeros are 0.
fn key(number: f32) -> i32 {
    let magnitude = (number.to_bits() & 0x7fff_ffff) as i32;
    if number.is_sign_negative() { -magnitude } else { magnitude }
}

/// Undoes [`key`]; zero is positive.
fn value(key: i32) -> f32 {
    let magnitude = f32::from_bits(key.unsigned_abs());
    if key < 0 { -magnitude } else { magnitude }
}

/// Where a number stands among all, -0 before 0.
fn rank(number: f32) -> i32 {
    let magnitude = (number.to_bits() & 0x7fff_ffff) as i32;
    if number.is_sign_negative() { -magnitude - 1 } else { magnitude }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fold::fold_row;

    const DTYPES: [Dtype; 3] = [Dtype::Bf16, Dtype::F16, Dtype::F32];

    fn element(dtype: Dtype, number: f32) -> Vec<u8> {
        let mut bytes = Vec::new();
        float::write_all(dtype, &[number], &mut bytes);
        bytes
    }

    /// The format's own arithmetic: whether `delta` takes the one element to the other.
    fn takes(dtype: Dtype, old: &[u8], new: &[u8], delta: f32) -> bool {
        let mut row = old.to_vec();
        fold_row(dtype, &mut row, &[delta]).is_ok() && row == new
    }

    /// Every finite number of a 16-bit type, zero once.
    fn all(dtype: Dtype) -> impl Iterator<Item = f32> {
        let numbers = (0..=u16::MAX).map(move |bits| float::read_all(dtype, &bits.to_le_bytes())[0]);
        numbers.filter(|number| number.is_finite() && number.to_bits() != (-0.0_f32).to_bits())
    }

    fn found(dtype: Dtype, old: &[u8], new: &[u8]) -> Option<Interval> {
        intervals(dtype, old, new).ok().map(|found| found[0])
    }

    /// Holds an interval against the fold at its ends, at every 16-bit delta, and at `more`.
    fn check(dtype: Dtype, old: f32, new: f32, more: &[f32]) -> Result<(), TestCaseError> {
        let (old, new) = (element(dtype, old), element(dtype, new));
        let interval = found(dtype, &old, &new);
        let holds = |delta: f32| interval.is_some_and(|interval| interval.holds(key(delta)));
        if let Some(Interval { low, high }) = interval {
            for (at, inside) in [(low - 1, false), (low, true), (high, true), (high + 1, false)] {
                prop_assert_eq!(takes(dtype, &old, &new, value(at)), inside, "{} of {:?}", at, interval);
            }
        }
        for delta in more {
            prop_assert_eq!(takes(dtype, &old, &new, *delta), holds(*delta), "{:e}", delta);
        }
        for stored in [Dtype::Bf16, Dtype::F16] {
            let good: Vec<f32> = all(stored).filter(|delta| takes(dtype, &old, &new, *delta)).collect();
            prop_assert_eq!(good.len(), all(stored).filter(|delta| holds(*delta)).count());
            let picked = interval.and_then(|interval| interval.pick(stored));
            prop_assert_eq!(picked.is_some(), !good.is_empty(), "{:?} of {:?}", picked, interval);
            let Some((picked, interval)) = picked.zip(interval) else { continue };
            prop_assert!(good.contains(&picked));
            if good.contains(&0.0) {
                prop_assert_eq!(picked.to_bits(), 0);
                continue;
            }
            let middle = (f64::from(value(interval.low)) + f64::from(value(interval.high))) / 2.0;
            let away = |number: f32| (f64::from(number) - middle).abs();
            prop_assert!(good.iter().all(|other| away(*other) >= away(picked)));
        }
        Ok(())
    }

    fn number() -> impl Strategy<Value = f32> {
        let special = [
            0,
            0x8000_0000,
            1,
            0x8000_0001,
            0x0001_0000,
            0x8001_0000,
            0x007f_0000,
            0x0080_0000,
            0x7f7f_0000,
            0xff7f_0000,
            0x477f_e000,
            0xc77f_e000,
            0x3f80_0000,
            0xbf80_0000,
            0x3380_0000,
            0x3b80_0000,
        ];
        prop_oneof![
            4 => any::<u32>(),
            4 => any::<u32>().prop_map(|bits| (bits & 0x83ff_ffff) | 0x3800_0000),
            2 => prop::sample::select(special.to_vec()),
        ]
        .prop_map(f32::from_bits)
        .prop_filter("finite", |number| number.is_finite())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(120))]

        /// What some delta made is explained by exactly the deltas that make it.
        #[test]
        fn an_interval_is_all_deltas_that_give_the_result(
            old in number(), delta in number(), near in -1.1_f32..1.1, mode in 0..4_u8, which in 0..3_usize,
        ) {
            let dtype = DTYPES[which];
            let old = float::rounded(dtype, old);
            let delta = match mode { 0 => -old, 1 => old * near, 2 => old * near * 0.004, _ => delta } + 0.0;
            let mut row = element(dtype, old);
            prop_assume!(old.is_finite() && fold_row(dtype, &mut row, &[delta]).is_ok());
            let new = float::read_all(dtype, &row)[0];
            prop_assert!(found(dtype, &element(dtype, old), &row).is_some());
            check(dtype, old, new, &[delta, 0.0])?;
        }

        /// Two weights that have nothing to do with each other: often no delta does it, and none is made up.
        #[test]
        fn no_interval_means_no_delta(old in number(), new in number(), which in 0..3_usize) {
            let dtype = DTYPES[which];
            let (old, new) = (float::rounded(dtype, old), float::rounded(dtype, new));
            prop_assume!(old.is_finite() && new.is_finite());
            check(dtype, old, new, &[new - old, (new - old).next_up(), (new - old).next_down()])?;
        }
    }

    #[test]
    fn zeros_keep_their_sign_unless_a_delta_is_there() {
        for dtype in DTYPES {
            let (plus, minus) = (element(dtype, 0.0), element(dtype, -0.0));
            for zero in [&plus, &minus] {
                assert_eq!(found(dtype, zero, zero).and_then(|interval| interval.pick(Dtype::F32)), Some(0.0));
            }
            // Only a positive number too small for the type does it, and f32 has none that is too small for itself.
            let picked = found(dtype, &minus, &plus).and_then(|interval| interval.pick(Dtype::F32));
            assert_eq!(picked.is_some_and(|delta| delta > 0.0), dtype != Dtype::F32, "{dtype} {picked:?}");
        }
    }

    #[test]
    fn the_last_finite_weight_is_reached_and_not_passed() {
        for dtype in DTYPES {
            let last = match dtype {
                Dtype::Bf16 => f32::from_bits(0x7f7f_0000),
                Dtype::F16 => 65_504.0,
                Dtype::F32 => f32::MAX,
            };
            for (old, new) in [(1.0, last), (-1.0, -last), (last, last), (last, 1.0), (-last, last)] {
                check(dtype, old, new, &[new - old]).unwrap();
            }
        }
    }
}
