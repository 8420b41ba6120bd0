//! Matrix products of f32 slices: checked views around one call of `gemm`, the crate that candle multiplies with.
//!
//! candle's own call reads /proc/cpuinfo every time, unless an environment variable says how many threads to use, and
//! writes to memory of its own: on two cores half of the time of tuning a small network went there.

use gemm::Parallelism;

use super::error::{DecoderError, Result};

/// A matrix in a slice: element (r, c) lies at `r * row_step + c * column_step`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mat<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_step: usize,
    column_step: usize,
}

impl<'a> Mat<'a> {
    /// All of a slice, row by row of `columns`.
    pub(super) fn new(values: &'a [f32], columns: usize) -> Self {
        let columns = columns.max(1);
        Self { values, rows: values.len() / columns, columns, row_step: columns, column_step: 1 }
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// The transpose; nothing moves.
    pub(super) fn t(self) -> Self {
        let Self { values, rows, columns, row_step, column_step } = self;
        Self { values, rows: columns, columns: rows, row_step: column_step, column_step: row_step }
    }

    /// `count` columns from `first` on.
    pub(super) fn columns(self, first: usize, count: usize) -> Self {
        let values = self.values.get(first * self.column_step..).unwrap_or_default();
        Self { values, columns: count, ..self }
    }

    fn fits(&self) -> bool {
        within(self.values.len(), (self.rows, self.row_step), (self.columns, self.column_step))
    }
}

/// Some columns of a matrix to write to, row by row.
#[derive(Debug)]
pub(super) struct MatMut<'a> {
    values: &'a mut [f32],
    rows: usize,
    columns: usize,
    row_step: usize,
}

impl<'a> MatMut<'a> {
    /// All of a slice, row by row of `columns`.
    pub(super) fn new(values: &'a mut [f32], columns: usize) -> Self {
        let columns = columns.max(1);
        Self { rows: values.len() / columns, columns, row_step: columns, values }
    }

    /// `count` columns from `first` on.
    pub(super) fn columns(self, first: usize, count: usize) -> Self {
        Self { values: self.values.get_mut(first..).unwrap_or_default(), columns: count, ..self }
    }

    /// No two elements share a place, and none lies outside.
    fn fits(&self) -> bool {
        self.columns <= self.row_step && within(self.values.len(), (self.rows, self.row_step), (self.columns, 1))
    }
}

/// Whether the last element of so many rows and columns lies in a slice.
fn within(length: usize, (rows, row_step): (usize, usize), (columns, column_step): (usize, usize)) -> bool {
    let last = |count: usize, step: usize| count.checked_sub(1).map(|last| last.checked_mul(step));
    match (last(rows, row_step), last(columns, column_step)) {
        (None, _) | (_, None) => true,
        (Some(row), Some(column)) => row.zip(column).and_then(|(a, b)| a.checked_add(b)).is_some_and(|at| at < length),
    }
}

/// Who multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Threads {
    /// The thread that asks: it is one of many that do.
    One,
    /// All of the pool.
    All,
}

/// `into = a b`, or `into += a b` if `add`. The result does not depend on the threads.
#[allow(unsafe_code, reason = "gemm takes pointers; what it may touch is checked right before")]
pub(super) fn multiply(into: MatMut<'_>, a: Mat<'_>, b: Mat<'_>, add: bool, threads: Threads) -> Result<()> {
    let shapes = a.columns == b.rows && into.rows == a.rows && into.columns == b.columns;
    if !(shapes && into.fits() && a.fits() && b.fits()) {
        let shape = |rows: usize, columns: usize| format!("{rows} x {columns}");
        let (left, right) = (shape(a.rows, a.columns), shape(b.rows, b.columns));
        return Err(DecoderError::Product { left, right, into: shape(into.rows, into.columns) });
    }
    let parallelism = match (threads, rayon::current_num_threads()) {
        (Threads::All, threads @ 2..) => Parallelism::Rayon(threads),
        _ => Parallelism::None,
    };
    // SAFETY: `fits` has put every element of the three matrices inside its slice, and no two of `into` in one place;
    // `into` is borrowed mutably, so it overlaps neither `a` nor `b`. Steps are within isize since slices are.
    unsafe {
        gemm::gemm(
            into.rows,
            into.columns,
            a.columns,
            into.values.as_mut_ptr(),
            1,
            into.row_step as isize,
            add,
            a.values.as_ptr(),
            a.column_step as isize,
            a.row_step as isize,
            b.values.as_ptr(),
            b.column_step as isize,
            b.row_step as isize,
            if add { 1.0 } else { 0.0 },
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
    Ok(())
}

/// `a b` in memory of its own, by one thread.
pub(super) fn product(a: Mat<'_>, b: Mat<'_>) -> Result<Vec<f32>> {
    let mut into = vec![0.0; a.rows * b.columns];
    multiply(MatMut::new(&mut into, b.columns), a, b, false, Threads::One)?;
    Ok(into)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(rows: usize, columns: usize, seed: usize) -> Vec<f32> {
        (0..rows * columns).map(|at| ((at * 7 + seed) % 11) as f32 - 5.0).collect()
    }

    fn at(mat: &Mat<'_>, row: usize, column: usize) -> f32 {
        mat.values[row * mat.row_step + column * mat.column_step]
    }

    /// The slow twin.
    fn slow(a: Mat<'_>, b: Mat<'_>) -> Vec<f32> {
        let element = |row, column| (0..a.columns).map(|k| at(&a, row, k) * at(&b, k, column)).sum::<f32>();
        (0..a.rows).flat_map(|row| (0..b.columns).map(move |column| element(row, column))).collect()
    }

    #[test]
    fn products_equal_the_slow_twins() {
        for (m, k, n) in [(1, 1, 1), (5, 3, 4), (1, 40, 7), (33, 17, 65), (130, 70, 90)] {
            let (a, b, turned) = (matrix(m, k, 1), matrix(k, n, 2), matrix(n, k, 3));
            let (a, b, turned) = (Mat::new(&a, k), Mat::new(&b, n), Mat::new(&turned, k).t());
            assert_eq!(product(a, b).unwrap(), slow(a, b));
            assert_eq!(product(a, turned).unwrap(), slow(a, turned));
            assert_eq!(product(b.t(), a.t()).unwrap(), slow(b.t(), a.t()));
        }
    }

    #[test]
    fn columns_are_read_and_written_in_place() {
        let (a, b) = (matrix(4, 9, 1), matrix(3, 5, 2));
        let (a, b) = (Mat::new(&a, 9).columns(2, 3), Mat::new(&b, 5));
        let mut into = vec![1.0; 4 * 8];
        for (add, threads) in [(false, Threads::All), (true, Threads::One)] {
            multiply(MatMut::new(&mut into, 8).columns(3, 5), a, b, add, threads).unwrap();
        }
        let twice: Vec<f32> = slow(a, b).iter().map(|value| 2.0 * value).collect();
        for (row, expected) in into.chunks(8).zip(twice.chunks(5)) {
            assert_eq!((&row[..3], &row[3..]), (&[1.0; 3][..], expected));
        }
    }

    #[test]
    fn nothing_outside_a_slice_is_touched() {
        let values = matrix(4, 4, 1);
        let four = || Mat::new(&values, 4);
        let mut into = vec![0.0; 16];
        let mut refused = |rows: usize, columns: usize, a: Mat<'_>, b: Mat<'_>| {
            let into = MatMut { values: &mut into, rows, columns, row_step: 4 };
            multiply(into, a, b, false, Threads::One).is_err()
        };
        assert!(!refused(4, 4, four(), four()));
        assert!(refused(5, 4, Mat { rows: 5, ..four() }, four()), "rows beyond the slice");
        assert!(refused(4, 5, four(), Mat { columns: 5, ..four() }), "columns that overlap");
        assert!(refused(4, 4, four().columns(1, 4), four()), "a last row that ends outside");
        assert!(refused(4, 3, four(), four()), "shapes that differ");
        assert!(refused(4, 4, Mat { row_step: usize::MAX, ..four() }, four()), "a step that overflows");
        assert!(!refused(0, 4, Mat { rows: 0, ..four() }, four()), "no rows, nothing to do");
    }
}
