//! What goes to stdout, and how text from files is made safe for a terminal.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write};
use std::path::Path;

use serde::Serialize;

use super::failure::{Exit, Failure};

/// How to talk: set once from the command line.
#[derive(Debug, Clone, Copy)]
pub(super) struct Output {
    /// Data as JSON instead of text.
    pub(super) json: bool,
    /// No progress and no remarks.
    pub(super) quiet: bool,
}

#[derive(Serialize)]
struct Document<'a, T> {
    schema: &'a str,
    #[serde(flatten)]
    body: &'a T,
}

impl Output {
    /// Prints the data of a verb: as JSON under its schema, or as the text that `text` writes.
    ///
    /// # Errors
    /// Stdout cannot be written. A closed pipe is no error.
    pub(super) fn data<T: Serialize>(
        self,
        schema: &str,
        body: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        let printed = if self.json {
            serde_json::to_string_pretty(&Document { schema, body }).map_err(Failure::other)?
        } else {
            escape(&text(body))
        };
        written(writeln!(io::stdout().lock(), "{}", printed.trim_end()))
    }

    /// Prints bytes that another program reads, as they are; on a terminal, made safe for it.
    ///
    /// # Errors
    /// As [`Output::data`].
    pub(super) fn exact(self, bytes: &[u8]) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        written(match stdout.is_terminal() {
            true => writeln!(stdout, "{}", escape(&String::from_utf8_lossy(bytes)).trim_end()),
            false => stdout.write_all(bytes).and_then(|()| stdout.flush()),
        })
    }

    /// A remark for the person at the terminal, on stderr.
    pub(super) fn note(self, text: &str) {
        if !self.quiet {
            warn(text);
        }
    }
}

fn written(done: io::Result<()>) -> Result<(), Failure> {
    match done {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::message(Exit::Failed, format!("cannot write to stdout, though the command is done: {error}")))
        }
        _ => Ok(()),
    }
}

/// A line that matters even when quiet, on stderr.
pub(super) fn warn(text: &str) {
    // A closed stderr leaves nobody to tell.
    let _ = writeln!(io::stderr().lock(), "{}", escape(text));
}

/// Shows control characters and those that reorder text as escapes; newlines stay.
pub(super) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        let reorders =
            matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
        if (c.is_control() && c != '\n') || reorders {
            let _ = write!(safe, "{}", c.escape_unicode());
        } else {
            safe.push(c);
        }
    }
    safe
}

/// A path on one line, whatever it is called.
pub(super) fn on_one_line(path: &Path) -> String {
    one_line(&path.display().to_string())
}

/// Text from a file on one line, so that it cannot pass for another.
pub(super) fn one_line(text: &str) -> String {
    text.replace('\n', "\\n")
}

/// Columns padded to their widest cell, two spaces apart; the first is left-aligned, the others right-aligned.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::from(" ");
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let pad = " ".repeat(width.saturating_sub(cell.chars().count()));
            let _ = if column == 0 { write!(line, " {cell}{pad}") } else { write!(line, "  {pad}{cell}") };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Labelled lines below a heading, the labels in one column; each stays on its line, whatever is in it.
pub(super) fn fields(lines: &[(&str, String)]) -> String {
    lines.iter().map(|(label, value)| format!("  {label:<12}{}\n", one_line(value))).collect()
}

/// A number of bytes for people: `858 kB`, `2.47 GB`.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if count < 1000 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1000.0;
    let mut units = UNITS.iter();
    let mut unit = units.next().unwrap_or(&"kB");
    while value >= 999.5 {
        let Some(larger) = units.next() else { break };
        (value, unit) = (value / 1000.0, larger);
    }
    let decimals = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.decimals$} {unit}")
}

/// A number with its noun: `1 row`, `12,288 rows`.
pub(super) fn count(number: u64, noun: &str) -> String {
    counted(number, noun, &format!("{noun}s"))
}

/// A number with its noun, where more than one is no matter of an s.
pub(super) fn counted(number: u64, one: &str, more: &str) -> String {
    format!("{} {}", grouped(number), if number == 1 { one } else { more })
}

/// A number in groups of three digits: `12,288`.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_a_file_moves_the_cursor() {
        assert_eq!(escape("a\u{1b}[2Jb\rc\nd\u{202e}e"), "a\\u{1b}[2Jb\\u{d}c\nd\\u{202e}e");
        assert_eq!(escape("mögliche 模型"), "mögliche 模型");
        assert_eq!(on_one_line(Path::new("a\nProven")), "a\\nProven");
    }

    #[test]
    fn sizes_read_well() {
        for (count, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.00 kB"),
            (858_000, "858 kB"),
            (999_499, "999 kB"),
            (999_600, "1.00 MB"),
            (2_471_646_288, "2.47 GB"),
            (10_000_000_000_000_000, "10000 TB"),
        ] {
            assert_eq!(bytes(count), text);
        }
        assert_eq!(count(1, "row"), "1 row");
        assert_eq!(count(1_234_567, "row"), "1,234,567 rows");
    }

    #[test]
    fn columns_line_up() {
        let rows = [vec!["a".to_owned(), "10".to_owned()], vec!["long".to_owned(), "1".to_owned()]];
        assert_eq!(table(&rows), "  a     10\n  long   1\n");
    }
}
