//! Which checkpoints a new patch may be applied to, beside its base: options of the verbs that make one.

use crate::format::Tolerance;
use crate::patch::assemble::Levels;

/// The levels that a publisher permits.
#[derive(clap::Args)]
#[command(next_help_heading = "Which checkpoints it is for")]
pub(super) struct LevelOptions {
    /// Also fine-tunes of the base whose touched rows are at most this far from its, as a share of their norm: 0.05.
    #[arg(long, value_name = "TOLERANCE")]
    descendants: Option<Tolerance>,
    /// Also any checkpoint of the base's architecture.
    #[arg(long)]
    any_of_architecture: bool,
}

impl LevelOptions {
    /// What they ask for; without any, the base alone.
    pub(super) fn levels(&self) -> Levels {
        Levels { descendant: self.descendants, architecture: self.any_of_architecture }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: LevelOptions,
    }

    fn read(line: &str) -> Result<Levels, clap::Error> {
        Line::try_parse_from(["x"].into_iter().chain(line.split_whitespace())).map(|line| line.options.levels())
    }

    #[test]
    fn levels_are_what_is_asked_for() {
        assert_eq!(read("").unwrap(), Levels::default());
        let both = read("--any-of-architecture --descendants 0.05").unwrap();
        assert_eq!(both, Levels { descendant: "0.05".parse().ok(), architecture: true });
        assert_eq!(read("--descendants=1").unwrap().descendant.map(Tolerance::millionths), Some(1_000_000));
    }

    #[test]
    fn a_tolerance_that_is_none_is_refused_with_the_range() {
        for wrong in ["0", "1.5", "-1", "5%", "0.0000001", "many"] {
            let error = read(&format!("--descendants={wrong}")).err().unwrap();
            assert!(error.to_string().contains("expected a number from 0.000001 to 1"), "{wrong}: {error}");
            assert_eq!(error.exit_code(), 2);
        }
    }
}
