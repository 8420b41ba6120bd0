//! Telling somebody how far a long task is.

/// Hears about progress. The library reports, the caller shows; `()` is silent.
pub trait Progress: Sync {
    /// A stage begins: what it does, and how many bytes it will go through (0: unknown).
    fn stage(&self, what: &str, bytes: u64);
    /// That many more bytes are done.
    fn advance(&self, bytes: u64);
}

impl Progress for () {
    fn stage(&self, _: &str, _: u64) {}
    fn advance(&self, _: u64) {}
}
