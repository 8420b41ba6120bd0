//! Checked parameters: an algorithm takes its options only after every one was found in range.

use std::fmt::Display;
use std::ops::{Deref, RangeInclusive};

use super::NestError;

/// Options whose ranges were checked; made by [`Params::check`] alone.
#[derive(Debug, Clone, PartialEq)]
pub struct Valid<P>(P);

impl<P> Valid<P> {
    pub(super) fn new(params: P) -> Self {
        Self(params)
    }
}

impl<P> Deref for Valid<P> {
    type Target = P;

    fn deref(&self) -> &P {
        &self.0
    }
}

/// Options of a stage, with documented ranges.
pub trait Params: Sized {
    /// Checks every option against its range.
    ///
    /// # Errors
    /// [`NestError::OutOfRange`] for the first option outside.
    fn check(self) -> Result<Valid<Self>, NestError>;
}

/// Refuses a value outside `range`, and NaN.
pub(super) fn within<T: PartialOrd + Display>(
    name: &'static str,
    value: T,
    range: RangeInclusive<T>,
) -> Result<(), NestError> {
    if range.contains(&value) {
        return Ok(());
    }
    let expected = format!("{} to {}", range.start(), range.end());
    Err(NestError::OutOfRange { name, found: value.to_string(), expected })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nan_and_neighbours_of_the_range_are_refused() {
        assert!(within("x", 3.0, 0.0..=3.0).is_ok());
        for value in [f64::NAN, -0.1, 3.1, f64::INFINITY] {
            assert!(matches!(within("x", value, 0.0..=3.0), Err(NestError::OutOfRange { name: "x", .. })), "{value}");
        }
    }
}
