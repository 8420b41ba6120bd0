//! How a run divides memory: what it cannot do without first, then weights, then what saves computing twice.

use std::fs;

use super::NestError;
use crate::decoder::Config;

/// The process itself, its tokenizer among it.
const PROCESS: u64 = 96 << 20;
/// Traces beyond this save nothing: one pass keeps less.
const MOST_TRACES: u64 = 1 << 30;

/// Keys and values of the sequences that are answered together, if they are more than one: the same whatever memory there
/// is, since an answer may depend on its company in the last bits.
const CACHES: u64 = 512 << 20;

/// What all prompts of a run ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// Prompts.
    pub prompts: usize,
    /// Their tokens, and the answers'.
    pub tokens: usize,
    /// Tokens of the longest prompt with its answer.
    pub longest: usize,
    /// Prompts that the network answers itself.
    pub answered: usize,
}

/// Bytes for each purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Matrices that may stay in memory.
    pub resident: u64,
}

impl MemoryPlan {
    /// Divides `limit` bytes, or what the machine has free.
    ///
    /// # Errors
    /// A limit below what the run needs with no weights in memory at all.
    pub fn new(limit: Option<u64>, config: &Config, demand: Demand) -> Result<Self, NestError> {
        let features = 8 * (demand.prompts * config.feed_forward) as u64;
        // Hidden states of all prompts while they are probed, or of all lessons while they are tuned on.
        let kept = 4 * (demand.tokens * config.hidden) as u64 + features;
        // Caches are gone before anything is kept.
        let caches =
            demand.answered.min(Self::together(config, demand.longest)) as u64 * config.cache_bytes(demand.longest);
        let needed = PROCESS + config.pass_bytes(demand.tokens, demand.longest) + kept.max(caches);
        let Some(limit) = limit.or_else(|| free_bytes().map(|free| free / 10 * 9)) else {
            return Ok(Self { resident: u64::MAX });
        };
        match limit.checked_sub(needed) {
            Some(rest) => Ok(Self { resident: rest }),
            None => Err(NestError::Memory { limit, needed }),
        }
    }

    /// Traces that there is room for beside `resident` bytes of weights.
    pub fn traces(&self, resident: u64) -> usize {
        usize::try_from(self.resident.saturating_sub(resident).min(MOST_TRACES)).unwrap_or(usize::MAX)
    }

    /// Sequences of up to `longest` tokens that are answered together, at least one.
    pub fn together(config: &Config, longest: usize) -> usize {
        usize::try_from(CACHES / config.cache_bytes(longest).max(1)).unwrap_or(usize::MAX).max(1)
    }
}

/// Bytes that can be used without swapping: of the machine, or of the group of processes this one belongs to.
fn free_bytes() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
    });
    let number = |file: &str| fs::read_to_string(format!("/sys/fs/cgroup/{file}")).ok()?.trim().parse::<u64>().ok();
    let group = number("memory.max").map(|most| most.saturating_sub(number("memory.current").unwrap_or(0)));
    machine.into_iter().chain(group).min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nest::testing;

    fn config() -> Config {
        Config::from_json(&testing::config_json()).unwrap()
    }

    const DEMAND: Demand = Demand { prompts: 10, tokens: 100, longest: 20, answered: 5 };

    #[test]
    fn what_is_needed_comes_before_weights() {
        let error = MemoryPlan::new(Some(1 << 20), &config(), DEMAND).unwrap_err();
        let NestError::Memory { limit: 1_048_576, needed } = error else { panic!("{error}") };
        assert!(MemoryPlan::new(Some(needed - 1), &config(), DEMAND).is_err());
        let least = MemoryPlan::new(Some(needed), &config(), DEMAND).unwrap();
        assert_eq!((least.resident, least.traces(0)), (0, 0));
        let more = MemoryPlan::new(Some(needed + 1000), &config(), DEMAND).unwrap();
        assert_eq!((more.resident, more.traces(600), more.traces(1001)), (1000, 400, 0));
        assert!(MemoryPlan::together(&config(), 1 << 40) == 1 && MemoryPlan::together(&config(), 20) > 1000);
        // More prompts need more.
        assert!(MemoryPlan::new(Some(needed), &config(), Demand { tokens: 10_000, ..DEMAND }).is_err());
    }
}
