//! How far a descendant's rows may be from the base's: a share, in millionths, so that no text of it is ambiguous.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::format::limits::MAX_TOLERANCE;

/// Millionths of the whole.
const WHOLE: u32 = 1_000_000;
/// Digits after the point.
const DIGITS: usize = 6;

/// The largest distance that a sketch permits: 0.000001 to 1; shown, parsed and serialised as a decimal number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tolerance(u32);

/// Why something is no tolerance.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected a number from 0.000001 to 1 with at most 6 digits after the point, found {found}")]
pub struct NotATolerance {
    found: String,
}

impl Tolerance {
    /// The tolerance of so many millionths.
    ///
    /// # Errors
    /// None, or more than [`MAX_TOLERANCE`].
    pub fn from_millionths(millionths: u32) -> Result<Self, NotATolerance> {
        match (1..=MAX_TOLERANCE).contains(&millionths) {
            true => Ok(Self(millionths)),
            false => Err(NotATolerance { found: format!("{millionths} millionths") }),
        }
    }

    /// How many millionths.
    pub fn millionths(self) -> u32 {
        self.0
    }

    /// Whether a distance of the format's arithmetic (`spec/format.md`, *Binding*) is within it; NaN is not.
    pub fn permits(self, distance: f64) -> bool {
        distance <= f64::from(self.0) / f64::from(WHOLE)
    }
}

impl fmt::Display for Tolerance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = format!("{:0width$}", self.0 % WHOLE, width = DIGITS);
        let digits = digits.trim_end_matches('0');
        write!(f, "{}{}{digits}", self.0 / WHOLE, if digits.is_empty() { "" } else { "." })
    }
}

impl FromStr for Tolerance {
    type Err = NotATolerance;

    fn from_str(text: &str) -> Result<Self, NotATolerance> {
        let refuse = || NotATolerance { found: format!("{:?}", text.chars().take(40).collect::<String>()) };
        let (whole, digits) = text.split_once('.').unwrap_or((text, "0"));
        let numeric = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if !numeric(whole) || !numeric(digits) || digits.len() > DIGITS {
            return Err(refuse());
        }
        let number = format!("{whole}{digits:0<width$}", width = DIGITS).parse().map_err(|_| refuse())?;
        Self::from_millionths(number).map_err(|_| refuse())
    }
}

impl Serialize for Tolerance {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimal_numbers_are_read_exactly_and_shown_shortest() {
        for (text, millionths, shown) in [
            ("0.05", 50_000, "0.05"),
            ("0.000001", 1, "0.000001"),
            ("1", 1_000_000, "1"),
            ("1.000000", 1_000_000, "1"),
            ("00.10", 100_000, "0.1"),
            ("0.999999", 999_999, "0.999999"),
        ] {
            let tolerance: Tolerance = text.parse().unwrap();
            assert_eq!((tolerance.millionths(), tolerance.to_string().as_str()), (millionths, shown), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "0",
            "0.0",
            "0.0000001",
            "0.0000010",
            "1.000001",
            "1.1",
            "2",
            "-0.1",
            "+0.1",
            ".5",
            "5.",
            "1e-2",
            "5%",
            "0,5",
            " 0.5",
            "0.5 ",
            "nan",
            "inf",
            "0x1",
            "0.5.5",
            "99999999999999999999",
            "0.٣",
        ] {
            assert!(text.parse::<Tolerance>().is_err(), "{text:?}");
        }
        assert!(Tolerance::from_millionths(0).is_err() && Tolerance::from_millionths(1_000_001).is_err());
    }

    #[test]
    fn the_edge_is_within() {
        let tolerance = Tolerance::from_millionths(1_000_000).unwrap();
        assert!(tolerance.permits(0.0) && tolerance.permits(1.0));
        assert!(!tolerance.permits(1.0_f64.next_up()) && !tolerance.permits(f64::INFINITY));
        assert!(!tolerance.permits(f64::NAN));
        let least = Tolerance::from_millionths(1).unwrap();
        assert!(least.permits(1e-6) && !least.permits(1e-6_f64.next_up()));
    }
}
