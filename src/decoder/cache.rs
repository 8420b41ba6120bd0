//! Sequences that grow: keys and values of what was read are kept, so that each further token runs alone.

use candle_core::{Result, Tensor};

use super::attention::Spans;
use super::batch::Batch;
use super::layer::{Pass, select};
use super::rope::Rope;
use super::storage::{View, matrix};
use super::{Decoder, DecoderError};

/// Keys and values of every layer for some sequences, as the projections left them: neither normalised nor turned.
///
/// Memory: `2 * layers * kv_heads * head_dim` f32 a token.
#[derive(Debug, Clone, Default)]
pub struct Cache {
    /// What was read of each sequence.
    tokens: Vec<Vec<u32>>,
    /// Layer by layer, sequence by sequence.
    layers: Vec<Vec<Past>>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Past {
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Cache {
    /// The number of sequences.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether no sequence is left.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Adds the sequences of another cache behind one's own.
    pub fn append(&mut self, other: Self) {
        self.tokens.extend(other.tokens);
        self.layers.resize_with(self.layers.len().max(other.layers.len()), Vec::new);
        self.layers.iter_mut().zip(other.layers).for_each(|(own, more)| own.extend(more));
    }

    /// Adds tokens to every sequence and says what is to run: those, or the whole sequence where its positions turn
    /// otherwise now that it is longer, and what was kept of it is forgotten.
    fn grow(&mut self, more: &Batch, ropes: &[Rope]) -> std::result::Result<Batch, DecoderError> {
        let mut pieces = Vec::with_capacity(self.tokens.len());
        for (place, (tokens, rows)) in self.tokens.iter_mut().zip(more.rows()).enumerate() {
            let (before, piece) = (tokens.len(), more.tokens().get(rows).unwrap_or_default());
            tokens.extend_from_slice(piece);
            if before > 0 && ropes.iter().any(|rope| rope.turns_otherwise(before, tokens.len())) {
                self.layers
                    .iter_mut()
                    .filter_map(|layer| layer.get_mut(place))
                    .for_each(|past| *past = Past::default());
                pieces.push(tokens.clone());
            } else {
                pieces.push(piece.to_vec());
            }
        }
        Batch::new(pieces)
    }

    /// Drops the sequences that `keep` does not name, by their place.
    pub fn retain(&mut self, keep: impl Fn(usize) -> bool) {
        retain(&mut self.tokens, &keep);
        self.layers.iter_mut().for_each(|layer| retain(layer, &keep));
    }
}

fn retain<T>(list: &mut Vec<T>, keep: impl Fn(usize) -> bool) {
    let mut place = 0;
    list.retain(|_| {
        place += 1;
        keep(place - 1)
    });
}

impl Decoder<'_> {
    /// Reads more tokens of each sequence and gives the logits behind the last of each, `[sequences, vocabulary]`.
    ///
    /// `more` holds a piece of at least one token for every sequence of the cache, or begins the sequences of an empty one.
    ///
    /// # Errors
    /// A token outside the vocabulary, a sequence longer than the network allows, another number of sequences: the cache is as
    /// it was. Weights that cannot be read: the cache is spent.
    pub fn extend(&self, cache: &mut Cache, more: &Batch) -> std::result::Result<Tensor, DecoderError> {
        if cache.is_empty() {
            cache.tokens = vec![Vec::new(); more.len()];
            cache.layers = vec![vec![Past::default(); more.len()]; self.layers.len()];
        }
        if cache.len() != more.len() {
            let (expected, found) = (format!("{} sequences", cache.len()), more.len().to_string());
            return Err(DecoderError::Batch { sequence: more.len(), expected, found });
        }
        let lengths: Vec<usize> =
            cache.tokens.iter().zip(more.rows()).map(|(past, rows)| past.len() + rows.len()).collect();
        self.config.check_lengths(lengths.iter().copied())?;
        let mut x = self.embed(more)?;
        let run = cache.grow(more, &self.config.ropes)?;
        if run.tokens().len() != more.tokens().len() {
            x = self.embed(&run)?;
        }
        let spans = growing(&run, &lengths);
        let ropes = self.ropes(&lengths);
        let pass = Pass { ropes: &ropes, deltas: None };
        let last_rows: Vec<usize> = run.rows().map(|rows| rows.end - 1).collect();
        for (index, (layer, past)) in self.layers.iter().zip(&mut cache.layers).enumerate() {
            let mut middle = layer.attend_cached(&x, (past, &run), &spans, pass)?;
            if index + 1 == self.layers.len() {
                middle = select(&middle, &last_rows)?;
            }
            (x, _) = layer.feed(&middle, pass)?;
        }
        self.head.logits(&x)
    }
}

/// Sequences of so many tokens one behind the other, whose last tokens, those of `run`, ask.
fn growing(run: &Batch, lengths: &[usize]) -> Spans {
    let (mut sequences, mut rows, mut start) = (Vec::new(), Vec::new(), 0);
    for (asking, length) in run.rows().zip(lengths) {
        sequences.push(start..start + length);
        rows.extend(start + length - asking.len()..start + length);
        start += length;
    }
    Spans::new(sequences.into_iter(), rows)
}

/// Appends the new keys and values of each sequence, and returns all of them, sequence after sequence.
pub(super) fn remember(past: &mut [Past], more: &Batch, keys: &Tensor, values: &Tensor) -> Result<[Tensor; 2]> {
    let width = keys.dim(1)?;
    let (keys, values) = (View::of(keys)?, View::of(values)?);
    let (keys, values) = (keys.values()?, values.values()?);
    for (past, rows) in past.iter_mut().zip(more.rows()) {
        let span = rows.start * width..rows.end * width;
        past.keys.extend_from_slice(keys.get(span.clone()).unwrap_or_default());
        past.values.extend_from_slice(values.get(span).unwrap_or_default());
    }
    let all = |part: fn(&Past) -> &Vec<f32>| matrix(past.iter().flat_map(part).copied().collect(), width);
    Ok([all(|past| &past.keys)?, all(|past| &past.values)?])
}
