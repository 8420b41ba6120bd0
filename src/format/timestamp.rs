//! Points in time as RFC 3339 writes them, in UTC to the second.

use std::fmt;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// A text that is not a timestamp of the one form accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected a time like 2026-11-24T03:41:00Z (UTC, whole seconds), found {found:?}")]
pub struct NotATimestamp {
    found: String,
}

/// A point in time: `YYYY-MM-DDTHH:MM:SSZ`. The order is that of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Timestamp {
    year: u16,
    month: u8,
    day: u8,
    hour: u8,
    minute: u8,
    second: u8,
}

impl Timestamp {
    /// The current time by the system's clock.
    pub fn now() -> Self {
        Self::from_unix(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
    }

    /// The time `seconds` after 1970-01-01T00:00:00Z; times after the year 9999 give its last second.
    pub fn from_unix(seconds: u64) -> Self {
        let seconds = seconds.min(253_402_300_799);
        let (mut days, rest) = (seconds / 86_400, seconds % 86_400);
        let mut year = 1970;
        while days >= days_in_year(year) {
            days -= days_in_year(year);
            year += 1;
        }
        let mut month = 1;
        while days >= days_in_month(year, month) {
            days -= days_in_month(year, month);
            month += 1;
        }
        let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
        let small = |number: u64| number as u8;
        let (day, hour, minute, second) = (small(days + 1), small(hour), small(minute), small(second));
        Self { year, month, day, hour, minute, second }
    }

    /// Seconds since 1970-01-01T00:00:00Z; none before.
    pub fn to_unix(self) -> u64 {
        let years: u64 = (1970..self.year).map(days_in_year).sum();
        let months: u64 = (1..self.month).map(|month| days_in_month(self.year, month)).sum();
        let days = years + months + u64::from(self.day) - 1;
        let seconds = ((u64::from(self.hour) * 60) + u64::from(self.minute)) * 60 + u64::from(self.second);
        if self.year < 1970 { 0 } else { days * 86_400 + seconds }
    }

    /// The time `days` later.
    #[must_use]
    pub fn plus_days(self, days: u32) -> Self {
        Self::from_unix(self.to_unix() + u64::from(days) * 86_400)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { year, month, day, hour, minute, second } = self;
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

impl FromStr for Timestamp {
    type Err = NotATimestamp;

    fn from_str(text: &str) -> Result<Self, NotATimestamp> {
        let part = |range: std::ops::Range<usize>| text.get(range).and_then(|digits| digits.parse::<u16>().ok());
        let small = |range| part(range).and_then(|number| u8::try_from(number).ok());
        let read = || {
            let (year, month, day) = (part(0..4)?, small(5..7)?, small(8..10)?);
            let (hour, minute, second) = (small(11..13)?, small(14..16)?, small(17..19)?);
            let real = (1..=12).contains(&month)
                && (1..=days_in_month(year, month)).contains(&u64::from(day))
                && hour < 24
                && minute < 60
                && second < 60;
            real.then_some(Self { year, month, day, hour, minute, second })
        };
        // Writing it again settles separators, length, and digits such as `+1`.
        read()
            .filter(|time| time.to_string() == text)
            .ok_or_else(|| NotATimestamp { found: text.chars().take(40).collect() })
    }
}

impl TryFrom<String> for Timestamp {
    type Error = NotATimestamp;

    fn try_from(text: String) -> Result<Self, NotATimestamp> {
        text.parse()
    }
}

impl From<Timestamp> for String {
    fn from(time: Timestamp) -> Self {
        time.to_string()
    }
}

fn is_leap(year: u16) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_in_year(year: u16) -> u64 {
    if is_leap(year) { 366 } else { 365 }
}

fn days_in_month(year: u16, month: u8) -> u64 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if is_leap(year) => 29,
        2 => 28,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unix_times_have_these_dates() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_795_491_660, "2026-11-24T03:41:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (u64::MAX, "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(Timestamp::from_unix(seconds).to_string(), text);
            assert_eq!(text.parse(), Ok(Timestamp::from_unix(seconds)));
            assert_eq!(Timestamp::from_unix(seconds).to_unix(), seconds.min(253_402_300_799));
        }
    }

    #[test]
    fn one_form_only() {
        for wrong in [
            "2026-11-24",
            "2026-11-24T03:41:00+00:00",
            "2026-11-24t03:41:00z",
            "2026-11-24T03:41:00.5Z",
            "2026-11-31T03:41:00Z",
            "2026-02-29T03:41:00Z",
            "2026-11-24T24:00:00Z",
            "2026-11-24T03:41:60Z",
            "2026-11-24T03:+1:00Z",
            "2026-11-24 03:41:00Z",
            "２026-11-24T03:41:00Z",
        ] {
            assert!(wrong.parse::<Timestamp>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn days_carry_over() {
        let time: Timestamp = "2027-12-30T23:59:59Z".parse().unwrap();
        assert_eq!(time.plus_days(62).to_string(), "2028-03-01T23:59:59Z");
    }

    #[test]
    fn times_sort() {
        assert!(Timestamp::from_unix(1) < Timestamp::from_unix(86_400));
        assert!(Timestamp::now() > Timestamp::from_unix(1_700_000_000));
    }
}
