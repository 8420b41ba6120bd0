//! Token sequences packed one behind the other: there is no padding to mask or to pay for.

use std::ops::Range;

use super::DecoderError;

/// A sequence of tokens, some of which are to be predicted.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    tokens: Vec<u32>,
    targets: Vec<Target>,
}

/// One token to be predicted from those before it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Target {
    /// Position of the last token seen; the one predicted follows it.
    pub position: usize,
    /// The token that should follow.
    pub token: u32,
    /// How much its cross-entropy counts in the mean.
    pub weight: f32,
}

impl Example {
    /// A prompt and the response to it: every response token is a target of weight 1.
    ///
    /// The last token of the response is predicted but predicts nothing, so it does not run. After an empty prompt
    /// nothing can predict the first token.
    pub fn response(prompt: &[u32], response: &[u32]) -> Self {
        let targets = response.iter().enumerate().filter_map(|(index, token)| {
            let position = (prompt.len() + index).checked_sub(1)?;
            Some(Target { position, token: *token, weight: 1.0 })
        });
        let before_last = response.split_last().map_or(response, |(_, before)| before);
        Self { targets: targets.collect(), tokens: [prompt, before_last].concat() }
    }

    /// Tokens with targets of one's own.
    pub fn new(tokens: Vec<u32>, targets: Vec<Target>) -> Self {
        Self { tokens, targets }
    }

    /// The tokens that run.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The tokens to predict.
    pub fn targets(&self) -> &[Target] {
        &self.targets
    }
}

/// Sequences that run together. Activations of a batch are matrices with one row per token, sequence after sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    tokens: Vec<u32>,
    starts: Vec<usize>,
}

impl Batch {
    /// Packs sequences. Causal attention never looks from one into another.
    ///
    /// # Errors
    /// No sequence, or an empty one.
    pub fn new<S: AsRef<[u32]>>(sequences: impl IntoIterator<Item = S>) -> Result<Self, DecoderError> {
        let mut batch = Self { tokens: vec![], starts: vec![0] };
        for (sequence, tokens) in sequences.into_iter().enumerate() {
            if tokens.as_ref().is_empty() {
                return Err(empty(sequence, "at least one token"));
            }
            batch.tokens.extend_from_slice(tokens.as_ref());
            batch.starts.push(batch.tokens.len());
        }
        if batch.is_empty() { Err(empty(0, "at least one sequence")) } else { Ok(batch) }
    }

    /// The number of sequences.
    pub fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// True of no batch that could be made.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// All tokens, sequence after sequence.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The rows of each sequence.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = Range<usize>> + Clone {
        self.starts.windows(2).map(|pair| match pair {
            [start, end] => *start..*end,
            _ => 0..0,
        })
    }
}

/// Cuts items into runs of at most `limit` tokens, or of one item.
pub fn passes<T>(mut rest: &[T], limit: usize, tokens: impl Fn(&T) -> usize) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let mut sum = 0;
        let fits = |item: &&T| {
            sum += tokens(item);
            sum <= limit
        };
        let count = rest.iter().take_while(fits).count().max(1);
        let (pass, later) = rest.split_at_checked(count)?;
        rest = later;
        Some(pass)
    })
}

fn empty(sequence: usize, expected: &str) -> DecoderError {
    DecoderError::Batch { sequence, expected: expected.to_owned(), found: "none".to_owned() }
}
