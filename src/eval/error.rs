//! What can go wrong while a model answers.

use crate::decoder::DecoderError;
use crate::fold::FoldError;
use crate::tensor::TensorName;

/// Why a model cannot be evaluated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// The checkpoint cannot be read as a network.
    #[error(transparent)]
    Decoder(#[from] DecoderError),
    /// A prompt without tokens, or too long to be answered.
    #[error("prompt {index}: expected 1 to {expected} tokens, found {found}")]
    Prompt {
        /// Position in the list.
        index: usize,
        /// The most tokens that leave room for an answer.
        expected: usize,
        /// The tokens it has.
        found: usize,
    },
    /// A prompt with a token that the model does not have.
    #[error("prompt {index}: expected tokens below {expected}, found {found}")]
    Token {
        /// Position in the list.
        index: usize,
        /// The size of the vocabulary.
        expected: usize,
        /// The token.
        found: u32,
    },
    /// An option outside its range.
    #[error("option {name}: expected {expected}, found {found}")]
    OutOfRange {
        /// The option.
        name: &'static str,
        /// The value given.
        found: usize,
        /// The range.
        expected: String,
    },
    /// An edit that cannot be folded into a weight.
    #[error("tensor {tensor}, row {row}: the edit cannot be folded in")]
    Fold {
        /// The tensor.
        tensor: TensorName,
        /// The row.
        row: u32,
        /// Why.
        source: FoldError,
    },
    /// The tensor library failed.
    #[error("tensor arithmetic failed")]
    Candle(#[from] candle_core::Error),
}
