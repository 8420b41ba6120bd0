//! Greedy answers.

use std::ops::Deref;

use candle_core::{D, Tensor};

use super::EvalError;
use crate::decoder::{Batch, Cache, Decoder, PASS_TOKENS, passes};

/// How long answers may get and how many run together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GenerateParams {
    /// The most tokens of an answer, 1 to 100,000.
    pub max_tokens: usize,
    /// The most prompts that are answered together, 1 to 4,096.
    pub batch: usize,
}

impl Default for GenerateParams {
    fn default() -> Self {
        Self { max_tokens: 128, batch: 64 }
    }
}

impl GenerateParams {
    /// Checks the ranges.
    ///
    /// # Errors
    /// The first option outside its range.
    pub fn check(self) -> Result<ValidGenerateParams, EvalError> {
        for (name, found, most) in [("max tokens", self.max_tokens, 100_000), ("batch", self.batch, 4096)] {
            if !(1..=most).contains(&found) {
                return Err(EvalError::OutOfRange { name, found, expected: format!("1 to {most}") });
            }
        }
        Ok(ValidGenerateParams(self))
    }
}

/// Options in range; made by [`GenerateParams::check`] alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ValidGenerateParams(GenerateParams);

impl ValidGenerateParams {
    /// The same with at most so many prompts in a batch, or one. What is answered does not depend on it.
    pub fn at_most(self, batch: usize) -> Self {
        Self(GenerateParams { batch: self.0.batch.min(batch.max(1)), ..self.0 })
    }
}

impl Deref for ValidGenerateParams {
    type Target = GenerateParams;

    fn deref(&self) -> &GenerateParams {
        &self.0
    }
}

/// What a model answered.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answer {
    /// The tokens, with the stop token if one came.
    pub tokens: Vec<u32>,
    /// Whether a stop token ended it, and not the limit.
    pub stopped: bool,
}

/// A network that answers.
#[derive(Debug, Clone, Copy)]
pub struct Generator<'a> {
    decoder: &'a Decoder<'a>,
}

/// A sequence that is being answered.
struct Open {
    /// The prompt that it answers.
    index: usize,
    next: u32,
    /// Tokens that may still follow.
    left: usize,
}

impl<'a> Generator<'a> {
    /// Answers by a decoder, in f32 with cached keys and values.
    pub fn new(decoder: &'a Decoder<'a>) -> Self {
        Self { decoder }
    }

    /// The greedy answer to each prompt, in the order of the prompts.
    ///
    /// An answer ends with the first token of `stops`, at the limit, or where the model's positions end. Sequences of a
    /// batch may differ in length, and one that has ended costs nothing more. `done` hears how many more prompts were
    /// answered.
    ///
    /// # Errors
    /// A prompt that is empty, too long, or has a token outside the vocabulary.
    pub fn answer(
        &self,
        prompts: &[Vec<u32>],
        stops: &[u32],
        params: &ValidGenerateParams,
        done: &mut dyn FnMut(usize),
    ) -> Result<Vec<Answer>, EvalError> {
        for (index, prompt) in prompts.iter().enumerate() {
            self.check_prompt(index, prompt)?;
        }
        let mut answers = vec![Answer::default(); prompts.len()];
        let places: Vec<usize> = (0..prompts.len()).collect();
        for group in places.chunks(params.batch) {
            let (mut cache, mut open) = self.read(prompts, group, params.max_tokens)?;
            while !open.is_empty() {
                let ended = settle(&mut open, &mut cache, &mut answers, stops);
                done(ended);
                if !open.is_empty() {
                    let batch = Batch::new(open.iter().map(|open| [open.next]))?;
                    let next = greedy(&self.decoder.extend(&mut cache, &batch)?)?;
                    open.iter_mut().zip(next).for_each(|(open, next)| open.next = next);
                }
            }
        }
        Ok(answers)
    }

    /// Reads some prompts, a part of them at a time.
    fn read(&self, prompts: &[Vec<u32>], group: &[usize], limit: usize) -> Result<(Cache, Vec<Open>), EvalError> {
        let (mut cache, mut open) = (Cache::default(), Vec::new());
        let length = |index: usize| prompts.get(index).map_or(0, Vec::len);
        for part in passes(group, PASS_TOKENS, |index| length(*index)) {
            let mut read = Cache::default();
            let batch = Batch::new(part.iter().filter_map(|index| prompts.get(*index)))?;
            let next = greedy(&self.decoder.extend(&mut read, &batch)?)?;
            // The last position may still predict a token, which then does not run.
            let left = |index: usize| limit.min(self.decoder.config().max_positions - length(index) + 1);
            open.extend(part.iter().zip(next).map(|(index, next)| Open { index: *index, next, left: left(*index) }));
            cache.append(read);
        }
        Ok((cache, open))
    }

    fn check_prompt(&self, index: usize, prompt: &[u32]) -> Result<(), EvalError> {
        let expected = self.decoder.config().max_positions;
        if !(1..=expected).contains(&prompt.len()) {
            return Err(EvalError::Prompt { index, expected, found: prompt.len() });
        }
        let expected = self.decoder.config().vocabulary;
        match prompt.iter().find(|token| **token as usize >= expected) {
            Some(found) => Err(EvalError::Token { index, expected, found: *found }),
            None => Ok(()),
        }
    }
}

/// Notes the next token of every open sequence, and closes those that end with it; returns how many.
fn settle(open: &mut Vec<Open>, cache: &mut Cache, answers: &mut [Answer], stops: &[u32]) -> usize {
    let before = open.len();
    let mut goes_on = Vec::with_capacity(before);
    for sequence in open.iter_mut() {
        sequence.left -= 1;
        let Some(answer) = answers.get_mut(sequence.index) else { continue };
        answer.tokens.push(sequence.next);
        answer.stopped = stops.contains(&sequence.next);
        goes_on.push(!answer.stopped && sequence.left > 0);
    }
    cache.retain(|place| goes_on.get(place) == Some(&true));
    let mut goes_on = goes_on.into_iter();
    open.retain(|_| goes_on.next() == Some(true));
    before - open.len()
}

/// The likeliest token of each row of logits; the lowest where several are.
fn greedy(logits: &Tensor) -> Result<Vec<u32>, EvalError> {
    Ok(logits.argmax(D::Minus1)?.to_vec1()?)
}

#[cfg(test)]
mod tests;
