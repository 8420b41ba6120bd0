//! Progress on stderr: bars on a terminal, one line a stage elsewhere.

use std::io::{self, IsTerminal};
use std::sync::Mutex;

use indicatif::{ProgressBar, ProgressStyle};

use super::output::{Output, bytes, warn};
use crate::checkpoint::Progress;

/// Stages shorter than this many bytes are not worth a line in a log.
const SMALL: u64 = 256 << 20;

/// Shows the library's progress.
pub(super) struct Bars {
    terminal: bool,
    quiet: bool,
    current: Mutex<Option<ProgressBar>>,
}

impl Bars {
    /// Bars if stderr is a terminal, silence if asked for.
    pub(super) fn new(output: Output) -> Self {
        Self { terminal: io::stderr().is_terminal(), quiet: output.quiet, current: Mutex::new(None) }
    }

    /// Takes the last bar away.
    pub(super) fn clear(&self) {
        self.replace(None);
    }

    /// A new stage: a bar on a terminal, `line` elsewhere.
    fn begin(&self, what: &str, length: u64, amount: &str, line: Option<String>) {
        if self.quiet {
            return;
        }
        if !self.terminal {
            line.iter().for_each(|line| warn(line));
            return;
        }
        let bar = if length == 0 { ProgressBar::new_spinner() } else { ProgressBar::new(length) };
        let template = format!("{{msg:24}} {{bar:30}} {amount} {{eta}}");
        let template = if length == 0 { "{spinner} {msg}" } else { &template };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(what.to_owned());
        self.replace(Some(bar));
    }

    fn go_on(&self, units: u64) {
        if let Ok(current) = self.current.lock()
            && let Some(bar) = current.as_ref()
        {
            bar.inc(units);
        }
    }

    fn replace(&self, next: Option<ProgressBar>) {
        if let Ok(mut current) = self.current.lock()
            && let Some(bar) = std::mem::replace(&mut *current, next)
        {
            bar.finish_and_clear();
        }
    }
}

impl Progress for Bars {
    fn stage(&self, what: &str, length: u64) {
        let worth_a_line = length >= SMALL;
        let line = || format!("{what} ({})", bytes(length));
        self.begin(what, length, "{bytes}/{total_bytes}", worth_a_line.then(line));
    }

    fn advance(&self, length: u64) {
        self.go_on(length);
    }
}

#[cfg(feature = "create")]
impl crate::nest::Progress for Bars {
    fn begin(&self, stage: crate::nest::Stage, total: usize) {
        let what = stage.to_string();
        self.begin(&what, total as u64, "{pos}/{len}", Some(format!("{what} ({total})")));
    }

    fn advance(&self, units: usize) {
        self.go_on(units as u64);
    }

    fn note(&self, sentence: &str) {
        if !self.quiet {
            self.warn(sentence);
        }
    }

    fn warn(&self, sentence: &str) {
        self.clear();
        warn(sentence);
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.clear();
    }
}
