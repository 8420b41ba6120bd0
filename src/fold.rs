//! The fold: adds a shared delta to a row of weights, and the residual that undoes it bit for bit.
//!
//! The arithmetic is part of the format (`spec/format.md`, *Arithmetic*), so that the result's digest is the same on
//! every machine: `new = round(f32(old) + delta)`, one IEEE 754 binary32 addition and one rounding to the element type,
//! both to nearest with ties to even. An entry whose delta is zero keeps its bits.
//!
//! Subtracting does not undo that: the addition loses low bits. The residual holds what subtraction gets wrong: the
//! difference of the bits of `old` and of the guess `round(f32(new) - delta)`, which is mostly zero or small.
//!
//! Rows are the raw little-endian elements of one vector, gathered; pure functions, no files.

use crate::format::float::{Bf16, Element, F16, F32};
use crate::format::residual::{ResidualBuilder, ResidualRow};
use crate::tensor::Dtype;

/// Why a row cannot be folded or unfolded.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum FoldError {
    /// A buffer of the wrong length.
    #[error("{what}: expected {expected} bytes, found {found}")]
    Length {
        /// Which buffer.
        what: &'static str,
        /// Bytes that the delta's length asks for.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
    /// NaN or infinity where a finite number is needed.
    #[error("column {column}: {what} is {value}, expected a finite number")]
    NotFinite {
        /// Zero-based element within the row.
        column: usize,
        /// `base weight`, `delta`, `result` or `restored weight`.
        what: &'static str,
        /// The value found.
        value: f32,
    },
    /// A residual that does not fit the row: the row has been changed, or the residual belongs to another.
    #[error("the residual is that of another row, or the row has been changed since it was folded")]
    OtherRow,
}

/// Adds `delta` to `row` in place and returns how many elements changed their bits.
///
/// `row` holds `delta.len()` little-endian elements of `dtype`. On error it is as it was.
///
/// # Errors
/// Wrong length; NaN or infinity in base, delta or result.
pub fn fold_row(dtype: Dtype, row: &mut [u8], delta: &[f32]) -> Result<usize, FoldError> {
    check_length("row", dtype, row, delta)?;
    match dtype {
        Dtype::Bf16 => fold::<Bf16, 2>(row, delta),
        Dtype::F16 => fold::<F16, 2>(row, delta),
        Dtype::F32 => fold::<F32, 4>(row, delta),
    }
}

/// Appends to `out` the residual that takes `new` (= folded `old`) back to `old`.
///
/// # Errors
/// Wrong length; NaN or infinity in `new` or delta.
pub fn residual_row(
    dtype: Dtype,
    old: &[u8],
    new: &[u8],
    delta: &[f32],
    out: &mut ResidualBuilder,
) -> Result<(), FoldError> {
    check_length("row before", dtype, old, delta)?;
    check_length("row after", dtype, new, delta)?;
    match dtype {
        Dtype::Bf16 => residual::<Bf16, 2>(old, new, delta, out),
        Dtype::F16 => residual::<F16, 2>(old, new, delta, out),
        Dtype::F32 => residual::<F32, 4>(old, new, delta, out),
    }
}

/// Takes a folded `row` back to what it was, in place, and returns how many elements changed their bits.
///
/// On error the row may be partly restored: discard it.
///
/// # Errors
/// Wrong length; NaN or infinity in row, delta or restored weight; a residual of another row.
pub fn unfold_row(dtype: Dtype, row: &mut [u8], delta: &[f32], residual: ResidualRow<'_>) -> Result<usize, FoldError> {
    check_length("row", dtype, row, delta)?;
    match dtype {
        Dtype::Bf16 => unfold::<Bf16, 2>(row, delta, residual),
        Dtype::F16 => unfold::<F16, 2>(row, delta, residual),
        Dtype::F32 => unfold::<F32, 4>(row, delta, residual),
    }
}

fn fold<E: Element<N>, const N: usize>(row: &mut [u8], delta: &[f32]) -> Result<usize, FoldError> {
    let cells = row.as_chunks_mut::<N>().0;
    // Both loops without a way out in between, so that they run on several elements at a time.
    let sound = cells.iter().zip(delta).fold(true, |sound, (cell, delta)| {
        let old = E::widen(*cell);
        sound & old.is_finite() & delta.is_finite() & E::widen(E::narrow(old + *delta)).is_finite()
    });
    if !sound {
        check_finite::<E, N>(cells, delta)?;
    }
    let mut changed = 0;
    for (cell, delta) in cells.iter_mut().zip(delta) {
        let new = if *delta == 0.0 { *cell } else { E::narrow(E::widen(*cell) + *delta) };
        changed += usize::from(new != *cell);
        *cell = new;
    }
    Ok(changed)
}

/// The first element that cannot be folded, and why.
fn check_finite<E: Element<N>, const N: usize>(cells: &[[u8; N]], delta: &[f32]) -> Result<(), FoldError> {
    for (column, (cell, delta)) in cells.iter().zip(delta).enumerate() {
        let old = finite("base weight", column, E::widen(*cell))?;
        if finite("delta", column, *delta)? != 0.0 {
            finite("result", column, E::widen(E::narrow(old + *delta)))?;
        }
    }
    Ok(())
}

fn residual<E: Element<N>, const N: usize>(
    old: &[u8],
    new: &[u8],
    delta: &[f32],
    out: &mut ResidualBuilder,
) -> Result<(), FoldError> {
    for (column, ((old, new), delta)) in cells::<N>(old).zip(cells::<N>(new)).zip(delta).enumerate() {
        let guess = guess::<E, N>(column, *new, *delta)?;
        out.push(lane::<E, N>(*new, guess), &difference(*old, guess));
    }
    out.end_row();
    Ok(())
}

fn unfold<E: Element<N>, const N: usize>(
    row: &mut [u8],
    delta: &[f32],
    mut residual: ResidualRow<'_>,
) -> Result<usize, FoldError> {
    let (mut changed, cells) = (0, row.as_chunks_mut::<N>().0);
    // Guessed several at a time; then, one by one, corrected.
    let sound = cells
        .iter()
        .zip(delta)
        .fold(true, |sound, (cell, delta)| sound & E::widen(*cell).is_finite() & delta.is_finite());
    if !sound {
        cells
            .iter()
            .zip(delta)
            .enumerate()
            .try_for_each(|(at, (cell, delta))| guess::<E, N>(at, *cell, *delta).map(drop))?;
    }
    let guesses: Vec<[u8; N]> = cells.iter().zip(delta).map(|(cell, delta)| guessed::<E, N>(*cell, *delta)).collect();
    for (column, (cell, guess)) in cells.iter_mut().zip(guesses).enumerate() {
        let difference = residual.take(lane::<E, N>(*cell, guess)).ok_or(FoldError::OtherRow)?;
        let old = corrected(guess, difference);
        finite("restored weight", column, E::widen(old))?;
        changed += usize::from(old != *cell);
        *cell = old;
    }
    if residual.is_empty() { Ok(changed) } else { Err(FoldError::OtherRow) }
}

/// The best guess at the old element. It may overflow to infinity: the residual corrects bits, not numbers.
fn guess<E: Element<N>, const N: usize>(column: usize, new: [u8; N], delta: f32) -> Result<[u8; N], FoldError> {
    finite("patched weight", column, E::widen(new))?;
    finite("delta", column, delta)?;
    Ok(guessed::<E, N>(new, delta))
}

fn guessed<E: Element<N>, const N: usize>(new: [u8; N], delta: f32) -> [u8; N] {
    if delta == 0.0 { new } else { E::narrow(E::widen(new) - delta) }
}

/// Where a difference is stored: 0 if the new weight's exponent is under the guess's, for then the guess is right but
/// for rare ties; else by how far it is above, and whether the new weight is odd, for ties go to even.
fn lane<E: Element<N>, const N: usize>(new: [u8; N], guess: [u8; N]) -> usize {
    let (new, guess) = (bits(new), bits(guess));
    match E::exponent(new).checked_sub(E::exponent(guess)) {
        None => 0,
        Some(above) => 1 + 2 * above.min(6) as usize + (new & 1) as usize,
    }
}

/// The bits of `old` less those of `guess`, modulo the width, as sign and magnitude: 0, -1, 1, -2, 2 become 0 to 4.
fn difference<const N: usize>(old: [u8; N], guess: [u8; N]) -> [u8; N] {
    let unused = 32 - 8 * N as u32;
    let signed = (bits(old).wrapping_sub(bits(guess)) << unused) as i32 >> unused;
    bytes(((signed << 1) ^ (signed >> 31)) as u32)
}

/// Undoes [`difference`].
fn corrected<const N: usize>(guess: [u8; N], difference: [u8; N]) -> [u8; N] {
    let difference = bits(difference);
    bytes(bits(guess).wrapping_add((difference >> 1) ^ (difference & 1).wrapping_neg()))
}

fn bits<const N: usize>(bytes: [u8; N]) -> u32 {
    bytes.iter().rev().fold(0, |bits, byte| bits << 8 | u32::from(*byte))
}

fn bytes<const N: usize>(bits: u32) -> [u8; N] {
    std::array::from_fn(|index| (bits >> (8 * index)) as u8)
}

fn cells<const N: usize>(bytes: &[u8]) -> std::slice::Iter<'_, [u8; N]> {
    bytes.as_chunks::<N>().0.iter()
}

fn finite(what: &'static str, column: usize, value: f32) -> Result<f32, FoldError> {
    if value.is_finite() { Ok(value) } else { Err(FoldError::NotFinite { column, what, value }) }
}

fn check_length(what: &'static str, dtype: Dtype, bytes: &[u8], delta: &[f32]) -> Result<(), FoldError> {
    let expected = delta.len().saturating_mul(dtype.size());
    if bytes.len() == expected { Ok(()) } else { Err(FoldError::Length { what, expected, found: bytes.len() }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::float;
    use crate::format::residual::{LANES, Residual};
    use crate::format::{Deltas, Edit, EditParts, Edits, Layout};
    use crate::tensor::{Shape, TensorName};
    use proptest::prelude::*;

    fn edits(dtype: Dtype, columns: usize) -> Edits {
        let edit = EditParts {
            tensor: TensorName::new("w").unwrap(),
            dtype,
            shape: Shape::new([1, columns as u64]).unwrap(),
            layout: Layout::Rows,
            rows: vec![0],
            clusters: vec![0],
            deltas: Deltas::new(dtype, columns, vec![0.0; columns]).unwrap(),
        };
        Edits::new(vec![Edit::new(edit).unwrap()]).unwrap()
    }

    fn residual_of(dtype: Dtype, old: &[u8], new: &[u8], delta: &[f32]) -> Residual {
        let mut builder = ResidualBuilder::new();
        residual_row(dtype, old, new, delta, &mut builder).unwrap();
        builder.finish(&edits(dtype, delta.len())).unwrap()
    }

    fn only_row(dtype: Dtype, residual: &Residual, columns: usize) -> ResidualRow<'_> {
        let edits = edits(dtype, columns);
        residual.rows(0, edits.iter().next().unwrap()).next().unwrap()
    }

    const DTYPES: [Dtype; 3] = [Dtype::Bf16, Dtype::F16, Dtype::F32];

    fn bytes_of(dtype: Dtype, values: &[f32]) -> Vec<u8> {
        let mut bytes = Vec::new();
        float::write_all(dtype, values, &mut bytes);
        bytes
    }

    /// Bit patterns that break naive arithmetic: zeros, subnormals, limits, and anything.
    fn bits() -> impl Strategy<Value = u32> {
        prop_oneof![
            4 => any::<u32>(),
            2 => any::<u32>().prop_map(|bits| (bits & 0x8fff_ffff) | 0x3800_0000),
            1 => prop::sample::select(vec![0, 0x8000_0000, 1, 0x8000_0001, 0x007f_ffff, 0x0080_0000, 0x7f7f_ffff,
                0xff7f_ffff, 0x3f80_0000, 0xbf80_0000, 0x3b80_0000, 0x477f_e000, 0x3300_0000, 0x0001_0000, 0x8001_0000]),
        ]
    }

    /// A weight of `dtype` and a delta: independent, cancelling, or far apart.
    fn cell() -> impl Strategy<Value = (u32, f32)> {
        (bits(), bits(), 0..4_u8).prop_map(|(weight, delta, mode)| {
            let delta = match mode {
                0 => -f32::from_bits(weight),
                1 => f32::from_bits(weight) * 0.003,
                _ => f32::from_bits(delta),
            };
            (weight, if delta.is_finite() { delta } else { 0.0 })
        })
    }

    /// The specification's sentence, element by element, in f64 where that is exact: the slow, plain twin of `fold`.
    fn plain(dtype: Dtype, old: f32, delta: f32) -> f32 {
        if delta == 0.0 { old } else { float::rounded(dtype, (f64::from(old) + f64::from(delta)) as f32) }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn unfolding_restores_every_bit(cells in prop::collection::vec(cell(), 1..40), which in 0..3_usize) {
            let dtype = DTYPES[which];
            // Keep the cells that may be folded: the others must be refused, which another test shows.
            let cells: Vec<(f32, f32)> = cells.iter().map(|(bits, delta)| {
                (float::rounded(dtype, f32::from_bits(*bits)), float::rounded(Dtype::Bf16, *delta))
            }).filter(|(old, delta)| {
                old.is_finite() && delta.is_finite() && float::rounded(dtype, old + delta).is_finite()
            }).collect();
            let (old, delta): (Vec<f32>, Vec<f32>) = cells.into_iter().unzip();
            prop_assume!(!old.is_empty());
            let before = bytes_of(dtype, &old);

            let mut row = before.clone();
            let changed = fold_row(dtype, &mut row, &delta).unwrap();
            let expected: Vec<f32> = old.iter().zip(&delta).map(|(old, delta)| plain(dtype, *old, *delta)).collect();
            prop_assert_eq!(&row, &bytes_of(dtype, &expected));

            let residual = residual_of(dtype, &before, &row, &delta);
            prop_assert_eq!(residual.to_bytes().len(), before.len() + 4 * LANES);
            let restored = unfold_row(dtype, &mut row, &delta, only_row(dtype, &residual, delta.len())).unwrap();
            prop_assert_eq!(row, before);
            prop_assert_eq!(changed, restored);
        }

        #[test]
        fn any_bits_fold_to_finite_numbers_or_are_refused(bits in any::<[u32; 4]>(), which in 0..3_usize) {
            let dtype = DTYPES[which];
            let mut row: Vec<u8> = bits[..2].iter().flat_map(|bits| bits.to_le_bytes()).collect();
            row.truncate(2 * dtype.size());
            let delta = [f32::from_bits(bits[2]), f32::from_bits(bits[3])];
            let inputs_finite = float::read_all(dtype, &row).iter().chain(&delta).all(|value| value.is_finite());
            match fold_row(dtype, &mut row, &delta) {
                Ok(_) => {
                    prop_assert!(inputs_finite);
                    prop_assert!(float::read_all(dtype, &row).iter().all(|value| value.is_finite()));
                }
                Err(FoldError::NotFinite { what, .. }) => prop_assert!(what == "result" || !inputs_finite),
                Err(error) => prop_assert!(false, "{error}"),
            }
        }
    }

    #[test]
    fn a_zero_delta_keeps_negative_zero() {
        for dtype in DTYPES {
            let before = bytes_of(dtype, &[-0.0, 1.5, -0.0]);
            let mut row = before.clone();
            assert_eq!(fold_row(dtype, &mut row, &[0.0, -0.0, 0.0]), Ok(0));
            assert_eq!(row, before);
            let residual = residual_of(dtype, &before, &row, &[0.0; 3]).to_bytes();
            assert_eq!(residual[..before.len()], vec![0; before.len()]);
        }
    }

    #[test]
    fn cancellation_gives_positive_zero_and_comes_back() {
        for dtype in DTYPES {
            let before = bytes_of(dtype, &[-0.5, 0.5, -0.0]);
            let (mut row, delta) = (before.clone(), [0.5, -0.5, 1.0]);
            fold_row(dtype, &mut row, &delta).unwrap();
            assert_eq!(row, bytes_of(dtype, &[0.0, 0.0, 1.0]));
            let residual = residual_of(dtype, &before, &row, &delta);
            unfold_row(dtype, &mut row, &delta, only_row(dtype, &residual, 3)).unwrap();
            assert_eq!(row, before);
        }
    }

    #[test]
    fn a_large_delta_over_a_tiny_weight_is_where_subtraction_fails() {
        let (before, delta) = (bytes_of(Dtype::Bf16, &[1e-6]), [1.0]);
        let mut row = before.clone();
        fold_row(Dtype::Bf16, &mut row, &delta).unwrap();
        assert_eq!(row, bytes_of(Dtype::Bf16, &[1.0]), "the weight is absorbed");
        let residual = residual_of(Dtype::Bf16, &before, &row, &delta);
        let doubled = u16::from_le_bytes([before[0], before[1]]) * 2;
        assert_eq!(residual.to_bytes()[..2], doubled.to_le_bytes(), "subtracting gives 0: all of it is missing");
        unfold_row(Dtype::Bf16, &mut row, &delta, only_row(Dtype::Bf16, &residual, 1)).unwrap();
        assert_eq!(row, before);
    }

    #[test]
    fn errors_name_the_column_and_what_is_wrong() {
        let mut row = bytes_of(Dtype::Bf16, &[1.0, f32::NAN]);
        let error = fold_row(Dtype::Bf16, &mut row, &[0.0, 0.0]).unwrap_err();
        assert_eq!(error.to_string(), "column 1: base weight is NaN, expected a finite number");
        let mut row = bytes_of(Dtype::F16, &[60_000.0]);
        let error = fold_row(Dtype::F16, &mut row, &[60_000.0]).unwrap_err();
        assert_eq!(error.to_string(), "column 0: result is inf, expected a finite number");
        let error = fold_row(Dtype::F32, &mut [0; 4], &[f32::INFINITY]).unwrap_err();
        assert_eq!(error.to_string(), "column 0: delta is inf, expected a finite number");
        let error = fold_row(Dtype::F32, &mut [0; 6], &[0.0, 0.0]).unwrap_err();
        assert_eq!(error, FoldError::Length { what: "row", expected: 8, found: 6 });
    }

    #[test]
    fn a_residual_of_another_row_is_noticed() {
        let (before, delta) = (bytes_of(Dtype::Bf16, &[0.3, 0.2]), [0.5, 0.5]);
        let mut row = before.clone();
        fold_row(Dtype::Bf16, &mut row, &delta).unwrap();
        let residual = residual_of(Dtype::Bf16, &before, &row, &delta);
        let mut edited = bytes_of(Dtype::Bf16, &[100.0, 0.7]);
        let unfolded = unfold_row(Dtype::Bf16, &mut edited, &delta, only_row(Dtype::Bf16, &residual, 2));
        assert_eq!(unfolded, Err(FoldError::OtherRow));
        let unfolded = unfold_row(Dtype::Bf16, &mut row[..2], &delta[..1], only_row(Dtype::Bf16, &residual, 2));
        assert_eq!(unfolded, Err(FoldError::OtherRow), "values left over");
        let mut row = bytes_of(Dtype::Bf16, &[1.0]);
        let mut builder = ResidualBuilder::new();
        builder.push(2 * 6 + 1, &[0, 0xff]);
        builder.end_row();
        let residual = builder.finish(&edits(Dtype::Bf16, 1)).unwrap();
        let error = unfold_row(Dtype::Bf16, &mut row, &[1.0], only_row(Dtype::Bf16, &residual, 1)).unwrap_err();
        assert_eq!(error.to_string(), "column 0: restored weight is inf, expected a finite number");
    }

    #[test]
    fn differences_are_small_where_the_guess_is_near() {
        for (old, guess, expected) in [(5_u16, 5_u16, 0_u16), (4, 5, 1), (6, 5, 2), (3, 5, 3), (0, 0xffff, 2)] {
            let found = difference(old.to_le_bytes(), guess.to_le_bytes());
            assert_eq!(u16::from_le_bytes(found), expected, "{old} {guess}");
        }
        for old in (0..=u16::MAX).step_by(7).map(u16::to_le_bytes) {
            for guess in [0, 1, 0x7f80, 0x8000, 0xffff].map(u16::to_le_bytes) {
                assert_eq!(corrected(guess, difference(old, guess)), old);
            }
        }
        let (old, guess) = (0x8000_0000_u32.to_le_bytes(), 1_u32.to_le_bytes());
        assert_eq!(corrected(guess, difference(old, guess)), old);
    }
}
