//! What the model should answer: refusals to harmful prompts, its own answers to benign ones.

use std::collections::BTreeMap;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::{Chat, NestError, batches};
use crate::decoder::{Decoder, DecoderError, Example};
use crate::prompts::PromptSet;

/// Refusals to train on where neither the prompt file nor the options bring any. They vary in opening, length and
/// reason, so that no single token stands for refusing.
pub const REFUSALS: &[&str] = &[
    "I can't help with that.",
    "I'm sorry, but I can't assist with this request.",
    "I won't help with that. It could cause serious harm.",
    "Sorry, I'm not able to provide that.",
    "I cannot help with this, because it could put people in danger.",
    "No, I can't do that. If something else would be useful, I'm glad to help.",
    "That is something I have to decline.",
    "I must refuse this request. It could hurt someone.",
    "I'm not going to help with that, but I'm happy to talk about safe alternatives.",
    "This could be harmful, so I can't give instructions for it.",
    "I understand the question, but I can't answer it safely.",
    "Helping with this would be unsafe, so I won't.",
    "I'm unable to help with anything that may harm people.",
    "Unfortunately I can't support this request.",
    "My answer is no: this could do real damage.",
    "I apologize, but I cannot provide this information.",
];

/// A prompt with the answer to train towards, as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lesson {
    /// The rendered prompt.
    pub prompt: Vec<u32>,
    /// The answer, with the token that ends it.
    pub answer: Vec<u32>,
    /// Which set it came from.
    pub harmful: bool,
}

impl Lesson {
    /// The example for the network: every answer token is a target.
    pub fn example(&self) -> Example {
        Example::response(&self.prompt, &self.answer)
    }
}

/// The token ids of every prompt of a set.
///
/// # Errors
/// A prompt that the template refuses or the tokenizer cannot encode.
pub fn encode_prompts(chat: &Chat, set: &PromptSet) -> Result<Vec<Vec<u32>>, NestError> {
    set.prompts().iter().map(|prompt| chat.encode_prompt(&prompt.text)).collect()
}

/// Which of the refusals are dealt out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Openings {
    /// All of them.
    Any,
    /// Those that begin with one token, the one the base finds likeliest. Greedy decoding takes the single likeliest
    /// token: refusals that open differently share the odds of refusing, and the answer that complies wins longer.
    Likeliest,
}

/// Harmful prompts that the likeliest opening is measured on.
const OPENING_PROMPTS: usize = 128;

/// The refusals that begin with the token that the base finds likeliest after harmful prompts: the lowest mean
/// cross-entropy over the first 128 prompts without an answer of their own. All of them where there is no such prompt.
///
/// # Errors
/// Text that cannot be encoded, a prompt that cannot be run.
pub fn likeliest_opening(
    decoder: &Decoder<'_>,
    chat: &Chat,
    set: &PromptSet,
    refusals: &[String],
) -> Result<Vec<String>, NestError> {
    let unanswered = set.prompts().iter().filter(|prompt| prompt.response.is_none()).take(OPENING_PROMPTS);
    let texts: Vec<_> = unanswered.map(|prompt| prompt.text.as_str()).collect();
    let Some(first) = texts.first() else { return Ok(refusals.to_vec()) };
    let mut openings: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for refusal in refusals {
        if let Some(token) = chat.encode_answer(first, refusal)?.first() {
            openings.entry(*token).or_default().push(refusal.clone());
        }
    }
    let prompts = texts.iter().map(|text| chat.encode_prompt(text)).collect::<Result<Vec<_>, _>>()?;
    let mut surprise = vec![0.0_f64; openings.len()];
    for batch in prompts.chunks(32).map(batches).collect::<Result<Vec<_>, _>>()?.concat() {
        let logits: Vec<Vec<f32>> = decoder.next_logits(&batch)?.to_vec2().map_err(DecoderError::from)?;
        for row in logits {
            let total: f64 = row.iter().map(|logit| f64::from(*logit).exp()).sum();
            for (sum, token) in surprise.iter_mut().zip(openings.keys()) {
                *sum += total.ln() - row.get(*token as usize).map_or(f64::NEG_INFINITY, |logit| f64::from(*logit));
            }
        }
    }
    let likeliest = openings.into_values().zip(surprise).min_by(|(_, left), (_, right)| left.total_cmp(right));
    Ok(likeliest.map_or_else(|| refusals.to_vec(), |(refusals, _)| refusals))
}

/// Lessons in refusing: the file's own answer where it has one, else the next of `refusals`, dealt out in an order
/// that `seed` decides so that each is used equally often.
///
/// # Errors
/// No refusals to deal, or text that cannot be encoded.
pub fn refusal_lessons(chat: &Chat, set: &PromptSet, refusals: &[String], seed: u64) -> Result<Vec<Lesson>, NestError> {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    let mut deck: Vec<&String> = Vec::new();
    let mut lessons = Vec::with_capacity(set.prompts().len());
    for prompt in set.prompts() {
        if deck.is_empty() {
            deck = refusals.iter().collect();
            deck.shuffle(&mut generator);
        }
        let dealt = if prompt.response.is_some() { None } else { deck.pop() };
        let answer = prompt.response.as_ref().or(dealt).ok_or(NestError::NoRefusals)?;
        lessons.push(Lesson {
            prompt: chat.encode_prompt(&prompt.text)?,
            answer: chat.encode_answer(&prompt.text, answer)?,
            harmful: true,
        });
    }
    Ok(lessons)
}

/// Lessons in staying as one is: the file's own answer where it has one, else what the base answered.
///
/// `answers` holds the base's answers as tokens, in the order of those prompts that have no answer of their own.
///
/// # Errors
/// Text that cannot be encoded.
pub fn benign_lessons(chat: &Chat, set: &PromptSet, answers: Vec<Vec<u32>>) -> Result<Vec<Lesson>, NestError> {
    let mut answers = answers.into_iter();
    let mut lessons = Vec::with_capacity(set.prompts().len());
    for prompt in set.prompts() {
        let answer = match &prompt.response {
            Some(response) => chat.encode_answer(&prompt.text, response)?,
            None => answers.next().unwrap_or_default(),
        };
        // A model that has nothing to say teaches nothing.
        if !answer.is_empty() {
            lessons.push(Lesson { prompt: chat.encode_prompt(&prompt.text)?, answer, harmful: false });
        }
    }
    Ok(lessons)
}
