//! Python's `strftime` for a date at midnight, in English.

use minijinja::{Error, ErrorKind};

use crate::format::Timestamp;

const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// Fills in a format. A directive that is not known is an error: a wrong date would go unseen.
pub(super) fn strftime(date: Timestamp, format: &str) -> Result<String, Error> {
    let mut text = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        let mut directive = characters.next();
        let unpadded = directive == Some('-');
        if unpadded {
            directive = characters.next();
        }
        let filled = directive.and_then(|directive| fill(date, directive)).ok_or_else(|| {
            let problem = format!("strftime_now: format {format:?} has a directive that is not known");
            Error::new(ErrorKind::InvalidOperation, problem)
        })?;
        match filled.trim_start_matches('0') {
            short if unpadded => text.push_str(if short.is_empty() { "0" } else { short }),
            _ => text.push_str(&filled),
        }
    }
    Ok(text)
}

fn fill(date: Timestamp, directive: char) -> Option<String> {
    let shown = date.to_string();
    let (year, month, day) = (shown.get(0..4)?, shown.get(5..7)?, shown.get(8..10)?);
    let weekday = DAYS.get((date.to_unix() / 86_400 % 7) as usize)?;
    let month_name = MONTHS.get(month.parse::<usize>().ok()?.checked_sub(1)?)?;
    Some(match directive {
        'Y' => year.to_owned(),
        'y' => year.get(2..)?.to_owned(),
        'm' => month.to_owned(),
        'd' => day.to_owned(),
        'e' => format!("{:>2}", day.trim_start_matches('0')),
        'B' => (*month_name).to_owned(),
        'b' | 'h' => month_name.get(..3)?.to_owned(),
        'A' => (*weekday).to_owned(),
        'a' => weekday.get(..3)?.to_owned(),
        'H' | 'M' | 'S' => "00".to_owned(),
        'I' => "12".to_owned(),
        'p' => "AM".to_owned(),
        'F' => format!("{year}-{month}-{day}"),
        'T' => "00:00:00".to_owned(),
        '%' => "%".to_owned(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(date: &str, format: &str) -> Result<String, Error> {
        strftime(format!("{date}T00:00:00Z").parse().unwrap(), format)
    }

    #[test]
    fn dates_read_as_pythons() {
        // datetime(2024, 7, 6).strftime(...) and the same of 2026-11-24 and 1970-01-01.
        let cases = [
            ("2024-07-06", "%d %b %Y", "06 Jul 2024"),
            ("2024-07-06", "%d %B %Y, %A (%a)", "06 July 2024, Saturday (Sat)"),
            ("2024-07-06", "%-d/%-m/%y %e", "6/7/24  6"),
            ("2026-11-24", "%Y-%m-%d = %F %H:%M:%S %I %p 100%%", "2026-11-24 = 2026-11-24 00:00:00 12 AM 100%"),
            ("2026-11-24", "%A %-H", "Tuesday 0"),
            ("1970-01-01", "%a, %d %h", "Thu, 01 Jan"),
        ];
        for (date, format, expected) in cases {
            assert_eq!(filled(date, format).unwrap(), expected, "{format}");
        }
        for format in ["%Q", "%", "%-"] {
            assert!(filled("2026-11-24", format).unwrap_err().to_string().contains("strftime_now"), "{format}");
        }
    }
}
