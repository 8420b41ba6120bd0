//! Evaluation: what a model answers, what a judge says of it, and what that comes to.
//!
//! Answers come from candle-transformers, an engine that shares no line with [`crate::decoder`], so that a patch is
//! never judged by the code that made it. Only folded weights are evaluated ([`Folded`]).

mod error;
mod folded;
mod generate;
mod judge;
mod metrics;

pub use error::EvalError;
pub use folded::Folded;
pub(crate) use folded::fold_tensor;
pub use generate::{Answer, GenerateParams, Generator, ValidGenerateParams};
pub use judge::{ExactAnswer, Judge, REFUSAL_PHRASES, RefusalPhrases, Verdict};
pub use metrics::{Interval, Rate};
