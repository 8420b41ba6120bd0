//! Sequences that grow: keys and values of what was read are kept, so that each further token runs alone.

use candle_core::{Result, Tensor};

use super::attention::Spans;
use super::batch::Batch;
use super::layer::{Pass, select};
use super::storage::{View, matrix};
use super::{Decoder, DecoderError};

/// Keys and values of every layer for some sequences, as the projections left them: neither normalised nor turned, so
/// that positions may be stretched by a length that is not known yet.
///
/// Memory: `2 * layers * kv_heads * head_dim` f32 a token.
#[derive(Debug, Clone, Default)]
pub struct Cache {
    lengths: Vec<usize>,
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
        self.lengths.len()
    }

    /// Whether no sequence is left.
    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// Adds the sequences of another cache behind one's own.
    pub fn append(&mut self, other: Self) {
        self.lengths.extend(other.lengths);
        self.layers.resize_with(self.layers.len().max(other.layers.len()), Vec::new);
        self.layers.iter_mut().zip(other.layers).for_each(|(own, more)| own.extend(more));
    }

    /// Drops the sequences that `keep` does not name, by their place.
    pub fn retain(&mut self, keep: impl Fn(usize) -> bool) {
        retain(&mut self.lengths, &keep);
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
    /// A token outside the vocabulary, a sequence longer than the network allows, another number of sequences.
    pub fn extend(&self, cache: &mut Cache, more: &Batch) -> std::result::Result<Tensor, DecoderError> {
        if cache.is_empty() {
            cache.lengths = vec![0; more.len()];
            cache.layers = vec![vec![Past::default(); more.len()]; self.layers.len()];
        }
        if cache.len() != more.len() {
            let (expected, found) = (format!("{} sequences", cache.len()), more.len().to_string());
            return Err(DecoderError::Batch { sequence: more.len(), expected, found });
        }
        let lengths: Vec<usize> = cache.lengths.iter().zip(more.rows()).map(|(past, rows)| past + rows.len()).collect();
        self.check_lengths(&lengths)?;
        let spans = growing(&cache.lengths, &lengths);
        let ropes = self.ropes(&lengths);
        let pass = Pass { ropes: &ropes, deltas: None };
        let last_rows: Vec<usize> = more.rows().map(|rows| rows.end - 1).collect();
        let mut x = self.embed(more)?;
        for (index, (layer, past)) in self.layers.iter().zip(&mut cache.layers).enumerate() {
            let mut middle = layer.attend_cached(&x, (past, more), &spans, pass)?;
            if index + 1 == self.layers.len() {
                middle = select(&middle, &last_rows)?;
            }
            (x, _) = layer.feed(&middle, pass)?;
        }
        cache.lengths = lengths;
        self.head.logits(&x)
    }
}

/// Sequences one behind the other, whose last tokens ask.
fn growing(past: &[usize], lengths: &[usize]) -> Spans {
    let (mut sequences, mut rows, mut start) = (Vec::new(), Vec::new(), 0);
    for (past, length) in past.iter().zip(lengths) {
        sequences.push(start..start + length);
        rows.extend(start + past..start + length);
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
